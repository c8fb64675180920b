"""What the models for sentences have in common: a backbone that gives features over time, and the gloss head for CTC.

    model = builder_of("S3D_CTC")(1094, frames=400, size=224)
    logits, steps = model(clips, lengths)          # (N, 3, T, H, W), (N,) -> (N, T', K), (N,); class 0 is the blank

An item's output is what it would be alone, whatever the batch is padded with and to: in evaluation always, and in
training for the statistics of batch-norm too, which count valid frames only (drop-out and stochastic depth draw other
numbers, of course). The head is that of Chen et al., Two-Stream Network for Sign Language Recognition and Translation
(2022), https://arxiv.org/abs/2211.01367.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from slr.batchnorm import SharedBatchNorm
from slr.errors import Mistake
from slr.models.classifier import State, TwoParts, WeightsReport, check_rows, load_backbone, take_rows
from slr.models.masked import Frames, on_valid

GLOSS = "classifier.gloss."


def sinusoids(steps: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions (T, C): sin(t / 10000^(2i/C)) in channel 2i, the cosine in 2i + 1; `width` is even.

    Vaswani et al., Attention Is All You Need (2017), https://arxiv.org/abs/1706.03762, section 3.5.
    """
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-torch.log(torch.tensor(10000.0)) / width).item())
    angles = torch.arange(steps, device=device)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)


class TemporalBlock(nn.Module):
    """x + convolutions over time, C -> 4 C -> C, 3 steps wide: (N, T, C) -> (N, T, C).

    `last_relu`: behind the second convolution as well; the authors' program (SLRT) has none there.
    """

    def __init__(self, width: int, drop_p: float, last_relu: bool = True):
        super().__init__()
        self.last_relu = last_relu
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Conv1d(width, 4 * width, 3, padding=1)
        self.narrow = nn.Conv1d(4 * width, width, 3, padding=1)
        self.dropout = nn.Dropout(drop_p)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        y = frames.zero(self.norm(x), 1).transpose(1, 2)
        y = frames.zero(self.dropout(self.widen(y).relu()), 2)
        y = self.narrow(y)
        return x + self.dropout(y.relu() if self.last_relu else y).transpose(1, 2)


class GlossHead(nn.Module):
    """Features over time (N, T, channels) -> logits (N, T, K); behind an item's end both outputs are 0.

    Linear, batch-norm, ReLU, positions, dropout, a residual block of two convolutions over time, layer-norm: the gloss
    features (N, T, width); then a linear layer with a row a class, `gloss`.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 512, drop_p: float = 0.1, last_relu: bool = True):
        super().__init__()
        self.project = nn.Linear(channels, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(drop_p)
        self.block = TemporalBlock(width, drop_p, last_relu)
        self.last_norm = nn.LayerNorm(width)
        self.gloss = nn.Linear(width, num_classes)

    def gloss_features(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(N, T, channels), (N,) -> (N, T, width)."""
        frames = Frames(lengths, features.shape[1], features.device)
        x = self._normalised(self.project(features), frames).relu()
        x = self.dropout(x + sinusoids(x.shape[1], x.shape[2], x.device))
        return frames.zero(self.last_norm(self.block(x, frames)), 1)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        logits = self.gloss(self.gloss_features(features, lengths))
        return Frames(lengths, logits.shape[1], logits.device).zero(logits, 1)

    def _normalised(self, x: Tensor, frames: Frames) -> Tensor:
        rows = x.flatten(0, 1)
        alone = not isinstance(self.norm, SharedBatchNorm)  # that one counts the others' time steps, too
        if self.training and alone and frames.lengths.sum() < 2:
            raise Mistake("there is no batch-norm over a single time step", "the batch holds one item, of one step",
                          "train on longer items, or on more of them at once")
        padded = self.training and not frames.full
        return (on_valid(self.norm, rows, frames) if padded else self.norm(rows)).view_as(x)


class SentenceModel(TwoParts, ABC):
    """Clips (N, 3, T, H, W), float and normalised, and lengths (N,) -> logits (N, T', K), lengths (N,) in time steps.

    A time step stands for `stride` frames, from frame `stride` x t on: lengths become ceil(len / stride), T becomes
    ceil(T / stride). What the clips hold behind an item's end is never looked at.
    Raises Mistake for lengths out of range.
    """

    classifier: GlossHead

    def __init__(self, backbone: nn.Module, classifier: GlossHead, stride: int):
        super().__init__()
        self.backbone, self.classifier, self.stride = backbone, classifier, stride

    @abstractmethod
    def over_time(self, clips: Tensor, frames: Frames) -> Tensor:
        """(N, 3, T, H, W) -> (N, T', channels), right where it is valid."""

    def features(self, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the backbone sees (N, T', channels), 0 behind an item's end, and the lengths (N,) in time steps."""
        if len(lengths) != len(clips):
            raise Mistake("the lengths are of another batch", f"{lengths.tolist()} for {len(clips)} items",
                          "give one number an item")
        frames = Frames(lengths, clips.shape[2], clips.device)
        after = frames.strided(self.stride)
        return after.zero(self.over_time(clips, frames), 1), after.lengths.to(lengths.device)

    def forward(self, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, steps = self.features(clips, lengths)
        return self.classifier(features, steps), steps

    def packed(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """All items' frames in one axis (sum of T, 3, H, W), lengths (N,) -> logits (sum of T', K), lengths (N,)."""
        logits, steps = self(pad(frames, lengths).movedim(1, 2), lengths)
        return pack(logits, steps), steps


def pad(packed: Tensor, lengths: Tensor) -> Tensor:
    """(sum of T, …) -> (N, T, …), zeros behind an item's end. Raises Mistake where the lengths are another batch's."""
    if int(lengths.sum()) != len(packed) or (lengths < 1).any():
        raise Mistake("the lengths do not fit the packed batch", f"{len(packed)} frames, lengths {lengths.tolist()}",
                      "give one number an item, each 1 or more, with this sum")
    return pad_sequence(packed.split(lengths.tolist()), batch_first=True)


def pack(padded: Tensor, lengths: Tensor) -> Tensor:
    """(N, T, …) -> (sum of T, …)."""
    frames = Frames(lengths, padded.shape[1], padded.device)
    return padded.flatten(0, 1).index_select(0, frames.index)


def init_from(model: SentenceModel, state: State, old_classes: Sequence[str], new_classes: Sequence[str],
              source: str = "the checkpoint") -> WeightsReport:
    """Start `model` from another experiment's weights `state`: of the isolated model that its backbone comes from, or
    of this very model with other glosses.

    The backbone must match. An isolated model gives that and nothing else; its class rows, and for S3D the block that
    sentences do without, are in the report's `unused`. A sentence model also gives its head: a gloss's row is taken
    over, glosses that were not there keep their fresh one. `old_classes` and `new_classes` are the vocabularies by
    number, the blank first; of an isolated model the old ones are not read. Raises Mistake where the weights do not fit
    the model or the classes; the model is then unchanged.
    """
    if GLOSS + "weight" not in state:
        return load_backbone(model, state, source)
    check_rows(state, GLOSS, model.classifier.gloss, old_classes, new_classes)
    head = _head_weights(model, state, source)
    report = load_backbone(model, state, source)
    model.load_state_dict(head, strict=False)
    report.loaded += len(head)
    report.unused = [key for key in report.unused if key not in head and not key.startswith(GLOSS)]
    take_rows(state, GLOSS, model.classifier.gloss, old_classes, new_classes, report)
    return report


def _head_weights(model: SentenceModel, state: State, source: str) -> dict[str, Tensor]:
    """The head's tensors in `state`, but for the rows of the classes."""
    mine = {key: value for key, value in model.state_dict().items()
            if key.startswith("classifier.") and not key.startswith(GLOSS)}
    wrong = [key for key, value in mine.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise Mistake(f"the head in {source} is of another model",
                      f"{wrong[0]} and {len(wrong) - 1} more tensors are missing or have another shape")
    return {key: state[key] for key in mine}
