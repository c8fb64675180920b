"""S3D: separable 3D convolutions in inception blocks.

Xie et al., Rethinking Spatiotemporal Feature Learning (2018), https://arxiv.org/abs/1712.04851, as
torchvision has it.
"""

from collections import OrderedDict
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import avg_pool3d
from torchvision.models.video import s3d

from slr.catalogue import check_clip
from slr.models.classifier import Classifier, pretrain


def pool(features: Tensor) -> Tensor:
    """Average windows of 2 x 7 x 7 cells, or of as many as there are: (N, C, T, H, W) -> (N, C, T', H', W').

    torchvision's fixed window needs clips of 13 frames and 209 pixels; on those this is the same.
    """
    frames, height, width = features.shape[2:]
    return avg_pool3d(features, (min(2, frames), min(7, height), min(7, width)), stride=1)


class S3D(Classifier):
    """Clips (N, 3, T, H, W) -> features (N, 1024, T/8, H/32, W/32) -> logits (N, K), means over all cells."""

    def forward(self, clips: Tensor) -> Tensor:
        return self.classifier(pool(self.backbone(clips))).mean(dim=(2, 3, 4))


def build(
    num_classes: int,
    *,
    frames: int,
    size: int,
    drop_p: float = 0.0,
    bn_momentum: float | None = None,
    weights: Path | str | None = None,
) -> S3D:
    """S3D for clips of at least 5 frames and 17 pixels; raises Mistake for smaller ones.

    Batch-norm's momentum is torchvision's 0.001 with pretrained weights. Without them its running statistics
    would never arrive in a short run, so it is 0.1.
    """
    check_clip("S3D", frames, size)
    if bn_momentum is None:
        bn_momentum = 0.1 if weights is None else 0.001
    net = s3d(num_classes=num_classes, norm_layer=partial(nn.BatchNorm3d, eps=0.001, momentum=bn_momentum))
    backbone = nn.Sequential(OrderedDict(features=net.features))
    return pretrain(S3D(backbone, net.classifier[1], drop_p), "S3D", weights)
