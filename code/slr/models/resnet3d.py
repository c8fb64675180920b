"""R3D and R(2+1)D with 18 layers: residual networks of 3D, or of separated 2D and 1D, convolutions.

Tran et al., A Closer Look at Spatiotemporal Convolutions for Action Recognition (2018),
https://arxiv.org/abs/1711.11248, as torchvision has them.
"""

from pathlib import Path

from torch import nn
from torchvision.models import video

from slr.catalogue import check_clip
from slr.models.classifier import Classifier, pretrain, set_batch_norm

VARIANTS = {"r3d_18": ("R3D_18", video.r3d_18), "r2plus1d_18": ("R(2+1)D_18", video.r2plus1d_18)}


def build(
    num_classes: int,
    *,
    frames: int,
    size: int,
    variant: str = "r3d_18",
    drop_p: float = 0.0,
    bn_momentum: float | None = None,
    weights: Path | str | None = None,
) -> Classifier:
    """`variant` r3d_18 or r2plus1d_18, for clips of any length and size.

    Batch-norm's momentum is 0.1 unless given.
    """
    name, make = VARIANTS[variant]
    check_clip(name, frames, size)
    net = make(num_classes=num_classes)
    set_batch_norm(net, bn_momentum)
    head, net.fc = net.fc, nn.Identity()
    return pretrain(Classifier(net, head, drop_p), name, weights)
