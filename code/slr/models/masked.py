"""A padded batch through nets with temporal convolutions, such that no item feels the padding.

Padded frames are set to zero before each layer that looks at neighbouring frames, because that is what such a layer
sees beyond the end of an item that is alone: zeros. Batch-norm in training counts valid frames only.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.video.resnet import BasicBlock
from torchvision.models.video.s3d import SepInceptionBlock3D

from slr.errors import Mistake


class Frames:
    """Which frames of a padded batch are valid: of item n, the first lengths[n] of `steps`.

    lengths (N,) whole numbers from 1 to `steps`, kept on the CPU; the masks are on `device`.
    Raises Mistake for other lengths.
    """

    def __init__(self, lengths: Tensor, steps: int, device: torch.device):
        self.lengths, self.steps, self.device = lengths.detach().cpu().long(), steps, device
        if self.lengths.dim() != 1 or not len(self.lengths) or ((self.lengths < 1) | (self.lengths > steps)).any():
            raise Mistake("the lengths of a batch of sentences are out of range", str(lengths.tolist()),
                          f"give one number an item, each from 1 to the {steps} frames of the batch")

    @cached_property
    def full(self) -> bool:
        """There is no padding."""
        return bool((self.lengths == self.steps).all())

    @cached_property
    def valid(self) -> Tensor:
        """(N, T) bool."""
        return self._inside().to(self.device, non_blocking=True)

    @cached_property
    def index(self) -> Tensor:
        """(V,) where the valid frames are among the N T frames of the batch; found without waiting for the device."""
        return self._inside().flatten().nonzero()[:, 0].to(self.device, non_blocking=True)

    def _inside(self) -> Tensor:
        return torch.arange(self.steps) < self.lengths[:, None]

    def strided(self, stride: int) -> "Frames":
        """After a layer with this temporal stride, whose output is centred on every stride-th frame: ceil(len / s)."""
        if stride == 1:
            return self
        return Frames(-(-self.lengths // stride), -(-self.steps // stride), self.device)

    def zero(self, x: Tensor, dim: int) -> Tensor:
        """x (N, …, T, …) with time in dimension `dim`, its padded frames zero, whatever they held (NaN too)."""
        if self.full:
            return x
        shape = [self.steps if d == dim else 1 for d in range(1, x.dim())]
        # Not masked_fill, which would turn channels_last memory round: convolutions and pools are far slower then.
        return torch.where(self.valid.view(len(self.lengths), *shape), x, x.new_zeros(()))


def on_valid(norm: Callable[[Tensor], Tensor], rows: Tensor, frames: Frames) -> Tensor:
    """A batch-norm in training, on the valid ones of the rows (N T, …), a row a frame; 0 elsewhere.

    So its statistics, the running ones too, are those of the packed batch.
    """
    normed = norm(rows.index_select(0, frames.index))
    return torch.zeros_like(rows, dtype=normed.dtype).index_copy_(0, frames.index, normed)


def run(layer: nn.Module, x: Tensor, frames: Frames) -> tuple[Tensor, Frames]:
    """What the torchvision layer makes of a padded batch x (N, C, T, H, W), and which frames of that are valid.

    The valid frames are those that each item would have alone; what the others hold is left open. Padded frames of x
    may hold anything finite; NaN would reach the weights' gradients, though nothing else. A layer of an unknown kind is
    a TypeError: it might look over time. Max-pooling must come behind a ReLU, as it does in S3D: only then do zeros
    around an item do what its own border does.
    """
    if isinstance(layer, SepInceptionBlock3D):
        branches = (layer.branch0, layer.branch1, layer.branch2, layer.branch3)
        return torch.cat([run(branch, x, frames)[0] for branch in branches], 1), frames
    if isinstance(layer, BasicBlock):
        return _residual(layer, x, frames)
    if isinstance(layer, nn.Sequential):
        for part in _merged(list(layer)):
            x, frames = run(part, x, frames)
        return x, frames
    if isinstance(layer, nn.Conv3d | nn.MaxPool3d):
        return _over_time(layer, x, frames)
    if isinstance(layer, _BatchNorm):
        return _normalised(layer, x, frames), frames
    if isinstance(layer, nn.ReLU):
        # In place on a view, which a masked batch-norm gives, the whole gradient is copied on its way back.
        return (relu(x) if x.requires_grad else layer(x)), frames
    raise TypeError(f"no masked form of {type(layer).__name__}")


def _merged(layers: list[nn.Module]) -> list[nn.Module]:
    """The layers, a convolution and the batch-norm behind it as one convolution where neither learns: a pass over the
    cells less. torch.compile cannot follow that, and joins them by itself."""
    if torch.compiler.is_compiling():
        return layers
    merged: list[nn.Module] = []
    for layer in layers:
        before = merged[-1] if merged else None
        if isinstance(before, nn.Conv3d) and isinstance(layer, _BatchNorm) and _fixed(before) and _fixed(layer):
            merged[-1] = fuse_conv_bn_eval(before, layer)
        else:
            merged.append(layer)
    return merged


def _fixed(layer: nn.Module) -> bool:
    learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in layer.parameters())
    return not layer.training and not learns


def _residual(block: BasicBlock, x: Tensor, frames: Frames) -> tuple[Tensor, Frames]:
    out, after = run(block.conv2, *run(block.conv1, x, frames))
    if block.downsample is not None:
        x, _ = run(block.downsample, x, frames)
    return block.relu(out + x), after


def _over_time(layer: nn.Conv3d | nn.MaxPool3d, x: Tensor, frames: Frames) -> tuple[Tensor, Frames]:
    kernel, stride, padding = _first(layer.kernel_size), _first(layer.stride), _first(layer.padding)
    if padding != kernel // 2 or kernel % 2 == 0:
        raise TypeError(f"{layer} is not centred on its frames")
    if kernel > 1:
        x = frames.zero(x, 2)
    return layer(x), frames.strided(stride)


def _normalised(norm: nn.Module, x: Tensor, frames: Frames) -> Tensor:
    if frames.full or not norm.training:
        return norm(x)
    # Channels stay where the memory has them: rows are gathered whole, and the next layer need not turn them.
    where = -1 if x.is_contiguous(memory_format=torch.channels_last_3d) else 1
    rows = x.movedim(2, 1).flatten(0, 1).movedim(1, where)

    def of_frames(valid: Tensor) -> Tensor:
        return norm(valid.movedim(where, 1).unsqueeze(2)).squeeze(2).movedim(1, where)

    out = on_valid(of_frames, rows, frames).movedim(where, 1)
    return out.unflatten(0, (len(x), -1)).movedim(1, 2)


def _first(sides: Any) -> int:
    """What torchvision gives as a number, or as one for each of time, height and width."""
    return int(sides[0] if isinstance(sides, tuple) else sides)
