"""From frames to a vector of each: a net for pictures on every frame, or R(2+1)D over the clip, then a linear layer.

    net = build("cnn_extractor", 512, frames=8, size=(224, 224), model_path="efficientnet_b1")
    vectors = net(clips, Frames(lengths, 8, clips.device))        # (N, 3, T, H, W) -> (N, T, 512)

A frame behind an item's end is never looked at, not by batch-norm's statistics either, and its vector is 0.
"""

import http.client
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from slr.errors import Mistake
from slr.models import resnet3d
from slr.models.masked import Frames, run
from slr.models.resnet3d_ctc import CHANNELS, PARTS, keep_time
from slr.models.weights import kinetics_file

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
R2PLUS1D = "R(2+1)D_18"
Size = tuple[int, int]


class Extractor(nn.Module, ABC):
    """Clips (N, 3, T, H, W), float and normalised, and which frames are valid -> (N, T, representation).

    net: a trunk without its classifier; project: the linear layer from its `features` numbers a frame.
    """

    def __init__(self, net: nn.Module, features: int, representation: int):
        super().__init__()
        self.net, self.project = net, nn.Linear(features, representation)

    @abstractmethod
    def features(self, clips: Tensor, valid: Frames) -> Tensor:
        """(N, T, features), whatever behind an item's end."""

    def forward(self, clips: Tensor, valid: Frames) -> Tensor:
        return valid.zero(self.project(self.features(clips, valid)), 1)


class OnPictures(Extractor):
    """A net (M, 3, H, W) -> (M, features) on all valid frames of the batch at once."""

    def features(self, clips: Tensor, valid: Frames) -> Tensor:
        pictures = clips.movedim(2, 1)
        items, steps = pictures.shape[:2]
        if valid.full:
            return self.net(pictures.flatten(0, 1)).unflatten(0, (items, steps))
        seen = self.net(pictures[valid.index // steps, valid.index % steps])
        rows = seen.new_zeros(items * steps, seen.shape[1])
        return rows.index_copy(0, valid.index, seen).unflatten(0, (items, steps))


class OnClips(Extractor):
    """torchvision's R(2+1)D, none of whose layers halves time: a vector a frame, the mean over its cells."""

    def features(self, clips: Tensor, valid: Frames) -> Tensor:
        cells, after = valid.zero(clips, 2), valid
        for part in PARTS:
            cells, after = run(self.net.get_submodule(part), cells, after)
        return cells.mean((3, 4)).transpose(1, 2)


def build(name: str, representation: int, *, frames: int, size: Size, model_path: str = "",
          pretrained: bool = False) -> Extractor:
    """The extractor `name` of EXTRACTORS for clips of `frames` frames of `size` (height, width) pixels.

    model_path: cnn_extractor's model, by its name in timm; the others have none. pretrained: with the weights that timm
    (ImageNet, mostly) or torchvision (ImageNet, Kinetics-400) publish. Raises Mistake where a name is unknown, where
    weights cannot be had, and where the model does not take such frames.
    """
    if name not in EXTRACTORS:
        raise Mistake("no such feature extractor", name or "no name", f"there are {', '.join(EXTRACTORS)}")
    if bool(model_path) != (name == "cnn_extractor"):
        raise Mistake("model_path names cnn_extractor's model, and nothing else",
                      f"{name} with model_path = '{model_path}'", "give a timm name such as efficientnet_b1 there")
    return EXTRACTORS[name](representation, frames, size, model_path, pretrained)


def _cnn(representation: int, frames: int, size: Size, model_path: str, pretrained: bool) -> Extractor:
    net = _timm_model(model_path, size, pretrained)
    return OnPictures(net, _width(net, size, model_path), representation)


def _resnet50(representation: int, frames: int, size: Size, model_path: str, pretrained: bool) -> Extractor:
    from torchvision.models import ResNet50_Weights, resnet50

    net: Any = resnet50()
    if pretrained:
        net.load_state_dict(_fetched(ResNet50_Weights.IMAGENET1K_V2))
    features, net.fc = net.fc.in_features, nn.Identity()
    return OnPictures(net, features, representation)


def _r2plus1d(representation: int, frames: int, size: Size, model_path: str, pretrained: bool) -> Extractor:
    weights = kinetics_file(R2PLUS1D) if pretrained else None
    net = resnet3d.build(1, frames=frames, size=min(size), variant="r2plus1d_18", weights=weights).backbone
    keep_time(net, 1)
    return OnClips(net, CHANNELS, representation)


EXTRACTORS = {"cnn_extractor": _cnn, "resnet50_extractor": _resnet50, "r2plus1d_extractor": _r2plus1d}


def normalisation(name: str, model_path: str = "") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the colours, as of 0 to 1, that the extractor's published weights are for."""
    if name != "cnn_extractor":
        return KINETICS if name == "r2plus1d_extractor" else IMAGENET
    known = _configuration(_timm(), model_path)
    return (tuple(known.mean), tuple(known.std)) if known else IMAGENET


# --- timm ---------------------------------------------------------------------------------------------------


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise Mistake("cnn_extractor needs timm", str(error), "pip install timm") from None
    return timm


def _configuration(timm: Any, name: str) -> Any:
    """What timm knows of a model's weights; None of one in a folder or on the hub (`local-dir:…`, `hf-hub:…`)."""
    if ":" in name:
        return None
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5] if name else []
        raise Mistake("timm has no such model", f"model_path = {name}",
                      f"there are {', '.join(near)}" if near else "timm.list_models() lists them")
    return timm.models.get_pretrained_cfg(name)


def _timm_model(name: str, size: Size, pretrained: bool) -> nn.Module:
    timm = _timm()
    known = _configuration(timm, name)
    # Those that learn a table of positions have to know the size; timm interpolates a published one.
    sized = {"img_size": size} if known is not None and known.fixed_input_size else {}
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **sized)
    except Exception as error:  # its own kinds, the hub's, the connection's, the disk's
        if not pretrained and ":" not in name:
            raise _unfit(name, size, error) from error
        raise Mistake(f"the pretrained weights of timm's {name} cannot be had", _first_line(error),
                      "fetch them where there is a network (they stay in the hub's cache), name a folder of them as "
                      "model_path = local-dir:FOLDER, or set pretrained = False") from error


def _width(net: nn.Module, size: Size, name: str) -> int:
    """Numbers that the net makes of a picture; its modes and statistics stay as they are."""
    training = net.training
    try:
        with torch.no_grad():
            shape = net.eval()(torch.zeros(1, 3, *size)).shape
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _unfit(name, size, error) from error
    net.train(training)
    if len(shape) != 2:
        raise Mistake(f"timm's {name} does not make a vector of a picture", f"its output is {tuple(shape)}",
                      "name a model that pools")
    return shape[1]


def _unfit(name: str, size: Size, error: Exception) -> Mistake:
    return Mistake(f"timm's {name} cannot be built for frames of {size[0]} x {size[1]}", _first_line(error),
                   "give the frames another size, or name another model")


# --- torchvision's weights ----------------------------------------------------------------------------------


def _fetched(weights: Any) -> dict[str, Tensor]:
    """The tensors out of torchvision's cache, or fetched, and their hash checked; else Mistake."""
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        cache = f"{torch.hub.get_dir()}/checkpoints/{weights.url.rpartition('/')[2]}"
        raise Mistake("the pretrained weights of resnet50_extractor cannot be had", _first_line(error),
                      f"Fetch {weights.url} elsewhere and put it at {cache}, or set pretrained = False.") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
