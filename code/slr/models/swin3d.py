"""Swin3D: transformers whose attention is within windows of 8 x 7 x 7 patches that shift from layer to layer.

Liu et al., Video Swin Transformer (2021), https://arxiv.org/abs/2106.13230, as torchvision has them.
"""

from pathlib import Path

from torch import nn
from torchvision.models import video

from slr.catalogue import check_clip
from slr.models.classifier import Classifier, pretrain, refuse_batch_norm, set_drop_path

VARIANTS = {
    "swin3d_t": ("Swin3D_T", video.swin3d_t),
    "swin3d_s": ("Swin3D_S", video.swin3d_s),
    "swin3d_b": ("Swin3D_B", video.swin3d_b),
}


def build(
    num_classes: int,
    *,
    frames: int,
    size: int,
    variant: str = "swin3d_t",
    drop_p: float = 0.0,
    drop_path: float | None = None,
    bn_momentum: float | None = None,
    weights: Path | str | None = None,
) -> Classifier:
    """`variant` swin3d_t, swin3d_s or swin3d_b, for clips of any length and size.

    `drop_path` is the last layer's stochastic depth, 0.1 unless given.
    """
    name, make = VARIANTS[variant]
    check_clip(name, frames, size)
    refuse_batch_norm(name, bn_momentum)
    net = make(num_classes=num_classes)
    set_drop_path(net, drop_path)
    head, net.head = net.head, nn.Identity()
    return pretrain(Classifier(net, head, drop_p), name, weights)
