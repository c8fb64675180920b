"""MViT: multiscale vision transformers, whose attention pools its way to fewer and wider tokens.

Fan et al., Multiscale Vision Transformers (2021), https://arxiv.org/abs/2104.11227, and Li et al., MViTv2
(2022), https://arxiv.org/abs/2112.01526, as torchvision has them. torchvision builds them for 16 frames of
224; here their position tables are laid out for the clips of the experiment.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import video
from torchvision.models.video.mvit import MViT as Net

from slr.catalogue import check_clip
from slr.models.classifier import Classifier, pretrain, refuse_batch_norm, set_drop_path

VARIANTS = {"mvit_v2_s": ("MViTv2_S", video.mvit_v2_s), "mvit_v1_b": ("MViTv1_B", video.mvit_v1_b)}


def lay_out(net: Net, frames: int, size: int) -> None:
    """Give the net position tables for clips of `frames` frames of `size` x `size`, freshly initialised.

    Patches are 2 x 4 x 4 and every stride rounds up, so no length or size is impossible. A block's tables of
    relative positions have a row for each offset of its queries and keys: 2 n - 1 for n on the longer side.
    """
    depth, side = -(-frames // 2), -(-size // 4)
    encoding = net.pos_encoding
    encoding.temporal_size, encoding.spatial_size = depth, (side, side)
    if encoding.spatial_pos is not None:
        encoding.spatial_pos = _table(side * side, encoding.spatial_pos)
        encoding.temporal_pos = _table(depth, encoding.temporal_pos)
    for block in net.blocks:
        attention = block.attn
        keys = -(-side // _stride(attention.pool_k))
        side = -(-side // _stride(attention.pool_q))
        if attention.rel_pos_h is not None:
            attention.rel_pos_h = _table(2 * max(side, keys) - 1, attention.rel_pos_h)
            attention.rel_pos_w = _table(2 * max(side, keys) - 1, attention.rel_pos_w)
            attention.rel_pos_t = _table(2 * depth - 1, attention.rel_pos_t)


def resize_table(key: str, table: Tensor, rows: int) -> Tensor:
    """A position table (rows of it, C) stretched to `rows`: bicubic over v1's square of patches, else linear.

    Linear is what MViTv2 does to relative positions (its authors' code, and torchvision's forward); bicubic
    is the custom with absolute ones.
    """
    if len(table) == rows:
        return table
    columns = table.T[None].float()
    if not key.endswith("spatial_pos"):
        return interpolate(columns, size=rows, mode="linear")[0].T
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    square = columns.unflatten(2, (old, old))
    return interpolate(square, size=(new, new), mode="bicubic").flatten(2)[0].T


def fit_table(key: str, table: Tensor, shape: torch.Size) -> Tensor | None:
    """`resize_table` to `shape`, or None where that cannot be: `key` is no position table, their widths differ, or v1's
    old patches make no square.
    """
    spatial = key.endswith("spatial_pos")
    positions = spatial or key.endswith("temporal_pos") or ".rel_pos_" in key
    if not positions or table.shape[1:] != shape[1:]:
        return None
    if spatial and math.isqrt(len(table)) ** 2 != len(table):
        return None
    return resize_table(key, table, shape[0])


class MViT(Classifier):
    """Shapes: clips (N, 3, T, H, W), exactly as built for -> features (N, 768) -> logits (N, K)."""

    def __init__(self, backbone: Net, head: nn.Linear, drop_p: float, clip: tuple[int, int, int]):
        super().__init__(backbone, head, drop_p)
        self.clip = clip

    def forward(self, clips: Tensor) -> Tensor:
        if tuple(clips.shape[2:]) != self.clip:
            raise ValueError(f"built for clips of (T, H, W) = {self.clip}, given {tuple(clips.shape[2:])}")
        return super().forward(clips)

    def resize(self, key: str, table: Tensor, shape: torch.Size) -> Tensor | None:
        """See Classifier.resize."""
        return fit_table(key, table, shape)


def build(
    num_classes: int,
    *,
    frames: int,
    size: int,
    variant: str = "mvit_v2_s",
    drop_p: float = 0.0,
    drop_path: float | None = None,
    bn_momentum: float | None = None,
    weights: Path | str | None = None,
) -> MViT:
    """`variant` mvit_v2_s or mvit_v1_b, for clips of any one length and size.

    `drop_path` is the last block's stochastic depth, 0.2 unless given.
    """
    name, make = VARIANTS[variant]
    check_clip(name, frames, size)
    refuse_batch_norm(name, bn_momentum)
    net = make(num_classes=num_classes)
    lay_out(net, frames, size)
    set_drop_path(net, drop_path)
    head, net.head = net.head[1], nn.Identity()
    return pretrain(MViT(net, head, drop_p, (frames, size, size)), name, weights)


def _table(rows: int, like: nn.Parameter) -> nn.Parameter:
    """A new table with so many rows, initialised as torchvision does it; one that fits already is kept."""
    if len(like) == rows:
        return like
    return nn.Parameter(nn.init.trunc_normal_(like.new_empty(rows, *like.shape[1:]), std=0.02))


def _stride(pool: Any) -> int:
    """How many patches of a side become one: torchvision's Pool keeps its convolution as `pool`."""
    return 1 if pool is None else pool.pool.stride[1]
