"""R3D_18_CTC and R(2+1)D_18_CTC: the residual networks' features over time under the gloss head."""

from pathlib import Path

from torch import Tensor, nn

from slr.catalogue import check_clip
from slr.errors import Mistake
from slr.models import resnet3d
from slr.models.masked import Frames, run
from slr.models.sentence import GlossHead, SentenceModel

CHANNELS = 512
PARTS = ("stem", "layer1", "layer2", "layer3", "layer4")
HALVING = {"layer4": 4, "layer3": 2, "layer2": 1}  # over time, in torchvision; the stride that is left without it


def keep_time(net: nn.Module, stride: int) -> None:
    """Let the last of the three layers that halve time do so no more, until `stride` frames are a time step."""
    for part, left in HALVING.items():
        for layer in net.get_submodule(part).modules() if stride <= left else ():
            if isinstance(layer, nn.Conv3d):
                layer.stride = (1, *layer.stride[1:])


class ResNetSentence(SentenceModel):
    """See SentenceModel: features (N, T / stride, 512), the means over each time step's cells."""

    def over_time(self, clips: Tensor, frames: Frames) -> Tensor:
        cells = frames.zero(clips, 2)
        for part in PARTS:
            cells, frames = run(self.backbone.get_submodule(part), cells, frames)
        return cells.mean((3, 4)).transpose(1, 2)


def build(
    num_classes: int,
    *,
    frames: int,
    size: int,
    variant: str = "r3d_18",
    drop_p: float = 0.1,
    width: int = 512,
    stride: int = 4,
    bn_momentum: float | None = None,
    weights: Path | str | None = None,
) -> ResNetSentence:
    """`variant` r3d_18 or r2plus1d_18, for sentences of up to `frames` frames of `size` pixels and `num_classes`
    classes, the blank among them.

    `width` is the head's. `stride` is 8 as in torchvision, which is more frames than many a gloss has; or 4, where
    layer 4 does not halve time; or 2 or 1. The weights are the same. Batch-norm's momentum in the backbone is 0.1
    unless given.
    """
    name, _ = resnet3d.VARIANTS[variant]
    check_clip(f"{name}_CTC", frames, size)
    if stride not in (1, 2, 4, 8):
        raise Mistake(f"{name}_CTC cannot have such a temporal stride", f"stride = {stride}", "give 8, 4, 2 or 1")
    whole = resnet3d.build(1, frames=frames, size=size, variant=variant, bn_momentum=bn_momentum, weights=weights)
    keep_time(whole.backbone, stride)
    model = ResNetSentence(whole.backbone, GlossHead(CHANNELS, num_classes, width, drop_p), stride)
    model.report = whole.report
    return model
