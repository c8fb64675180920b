"""What the video classifiers have in common: a backbone, a classifier, and how weights get into them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from slr.errors import Mistake
from slr.models.weights import from_old, read_weights

State = Mapping[str, Tensor]
HEAD = "classifier.1."


@dataclass
class WeightsReport:
    """What became of another model's weights; `str(report)` is one line for the log."""

    loaded: int = 0  # tensors of the backbone
    resized: list[str] = field(default_factory=list)  # position tables that were interpolated
    unused: list[str] = field(default_factory=list)  # in the file, but not in this backbone
    shared: list[str] = field(default_factory=list)  # glosses whose row of the head was taken over
    fresh: list[str] = field(default_factory=list)  # glosses whose row of the head is new

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        if self.resized:
            parts.append(f"{len(self.resized)} of them position tables that were interpolated")
        if self.unused:
            parts.append(f"not used: {_some(self.unused)}")
        if self.shared or self.fresh:
            parts.append(f"head: {len(self.shared)} glosses taken over, {len(self.fresh)} fresh")
        return "; ".join(parts)


class TwoParts(nn.Module):
    """A net of a `backbone` and a `classifier`, whose backbone can start from another model's weights."""

    report: WeightsReport | None = None  # of the weights that it was built with; None after a random start
    no_decay: tuple[str, ...] = ()  # last parts of the names of the parameters that weight decay leaves alone
    backbone: nn.Module
    classifier: nn.Module

    def layers(self) -> dict[str, int]:
        """The layer of every parameter by its name: 0 is the first of the backbone, the classifier is the last.

        A layer is what the backbone numbers (features.3, layer1.0), and what it names besides.
        """
        labels = {name: _layer(name) for name, _ in self.named_parameters()}
        order = {label: number for number, label in enumerate(dict.fromkeys(labels.values()))}
        return {name: order[label] for name, label in labels.items()}

    def resize(self, key: str, table: Tensor, shape: torch.Size) -> Tensor | None:
        """The position table `key`, learnt on clips of another size, in `shape`; None otherwise."""
        return None


class Classifier(TwoParts):
    """A backbone from clips to features, and a classifier (dropout, then the head) from features to logits.

    Shapes: clips (N, 3, T, H, W), float and normalised -> features (N, C) -> logits (N, K).
    """

    classifier: nn.Sequential

    def __init__(self, backbone: nn.Module, head: nn.Linear | nn.Conv3d, drop_p: float):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Sequential(nn.Dropout(drop_p), head)

    @property
    def head(self) -> nn.Linear | nn.Conv3d:
        """The layer whose weight has a row a class."""
        return self.classifier[1]  # type: ignore[return-value]

    def forward(self, clips: Tensor) -> Tensor:
        return self.classifier(self.backbone(clips))


Built = TypeVar("Built", bound=Classifier)


def _layer(name: str) -> str:
    """backbone.features.3.1.weight -> backbone.features.3, backbone.norm.weight -> backbone.norm; one classifier."""
    parts = name.split(".")
    if parts[0] == "classifier":
        return parts[0]
    numbered = next((at for at, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[:numbered + 1])


@dataclass
class Group:
    """Parameters that are trained alike: `part` is backbone or classifier, `scale` of its rate, decay or none."""

    part: str
    scale: float
    decay: bool
    params: list[nn.Parameter] = field(default_factory=list)


def parameter_groups(model: TwoParts, layer_decay: float = 1.0) -> dict[str, Group]:
    """All parameters of the model, each once, by the groups' names; the rate of a layer is `layer_decay` times that of
    the next one (Clark et al. 2020, ELECTRA, appendix A)."""
    groups: dict[str, Group] = {}
    layers = model.layers()
    top = max(layers.values())
    for name, parameter in model.named_parameters():
        part, decay = name.split(".")[0], name.split(".")[-1] not in model.no_decay
        label = part if layer_decay == 1 else f"{part} {layers[name]}"
        label = label if decay else f"{label} no decay"
        groups.setdefault(label, Group(part, layer_decay ** (top - layers[name]), decay)).params.append(parameter)
    return groups


def pretrain(model: Built, name: str, weights: Path | str | None) -> Built:
    """Give a new model's backbone the weights in the file `weights` (see `from_old` for its form), if any."""
    if weights is not None:
        model.report = load_backbone(model, from_old(read_weights(weights), name), str(weights))
    return model


def load_backbone(model: TwoParts, state: State, source: str = "the checkpoint") -> WeightsReport:
    """Copy the backbone's tensors out of `state` (under our names); the head stays as it is.

    Raises Mistake, naming the tensors, unless each is there in its shape. Position tables of clips of another
    size are interpolated; batch-norm's step counters, which very old files lack, may be missing.
    """
    wanted = {key: value for key, value in model.state_dict().items() if key.startswith("backbone.")}
    report = WeightsReport(unused=[key for key in state if key not in wanted])
    fitting, wrong = {}, []
    for key, mine in wanted.items():
        theirs = state.get(key)
        if theirs is not None and theirs.shape != mine.shape:
            theirs = model.resize(key, theirs, mine.shape)
            report.resized.append(key)
        if theirs is not None:
            fitting[key] = theirs
        elif not key.endswith("num_batches_tracked"):
            wrong.append(f"{key} {tuple(mine.shape)}")
    if wrong:
        raise Mistake(
            f"the weights in {source} are of another model",
            f"{len(wrong)} of its {len(wanted)} tensors are missing or have another shape: {_some(wrong)}",
        )
    model.load_state_dict(fitting, strict=False)
    report.loaded = len(fitting)
    return report


def init_from(
    model: Classifier, state: State, old_classes: Sequence[str], new_classes: Sequence[str]
) -> WeightsReport:
    """Start `model` from another experiment's weights `state` (under our names).

    `old_classes` and `new_classes` are the glosses in the order of their labels, there and here. The backbone
    must match. A gloss's row of the head is taken over; glosses that were not there keep their fresh row.
    Raises Mistake where the weights do not fit the model or the classes; the model is then unchanged.
    """
    check_rows(state, HEAD, model.head, old_classes, new_classes)
    report = load_backbone(model, state)
    report.unused = [key for key in report.unused if not key.startswith(HEAD)]
    take_rows(state, HEAD, model.head, old_classes, new_classes, report)
    return report


def check_rows(state: State, name: str, head: nn.Linear | nn.Conv3d, old_classes: Sequence[str],
               new_classes: Sequence[str]) -> None:
    """Raises Mistake unless `take_rows` can be called with the same."""
    missing = [name + part for part in ("weight", "bias") if name + part not in state]
    if missing:
        raise Mistake("the checkpoint has no head", f"{_some(missing)} missing")
    rows, mine = state[name + "weight"], head.weight
    if rows.shape[1:] != mine.shape[1:]:
        found = f"rows of {tuple(rows.shape[1:])}, not {tuple(mine.shape[1:])}"
        raise Mistake("the checkpoint's head is of another model", found)
    for classes, tensor, whose in ((old_classes, rows, "checkpoint"), (new_classes, mine, "model")):
        if len(classes) != len(tensor):
            found = f"{len(classes)} glosses, {len(tensor)} rows"
            raise Mistake(f"the {whose}'s classes do not fit its head", found)


def take_rows(state: State, name: str, head: nn.Linear | nn.Conv3d, old_classes: Sequence[str],
              new_classes: Sequence[str], report: WeightsReport) -> None:
    """Copy the rows of the layer `name` (with its dot) in `state` to the same classes' rows of `head`; report them."""
    row = {gloss: index for index, gloss in enumerate(old_classes)}
    report.shared = [gloss for gloss in new_classes if gloss in row]
    report.fresh = [gloss for gloss in new_classes if gloss not in row]
    here = [index for index, gloss in enumerate(new_classes) if gloss in row]
    there = [row[gloss] for gloss in report.shared]
    with torch.no_grad():
        for part in ("weight", "bias"):
            tensor = getattr(head, part)
            tensor[here] = state[name + part][there].to(tensor)


def set_batch_norm(net: nn.Module, momentum: float | None) -> None:
    """Give every batch-norm of the net this momentum, unless it is None."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d) and momentum is not None:
            module.momentum = momentum


def set_drop_path(net: nn.Module, rate: float | None) -> None:
    """Stochastic depth that grows from 0 in the first block to `rate` in the last, unless it is None."""
    layers = [module for module in net.modules() if isinstance(module, StochasticDepth)]
    if rate is not None:
        for index, layer in enumerate(layers):
            layer.p = rate * index / (len(layers) - 1)


def refuse_batch_norm(name: str, momentum: float | None) -> None:
    """A key that would do nothing is a mistake."""
    if momentum is not None:
        raise Mistake(f"{name} has no batch-norm", f"bn_momentum = {momentum}", "Leave the key out.")


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
