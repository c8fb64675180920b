"""Batch-norm whose statistics count the rows of all processes, so that several compute what one process would.

On a GPU torch's SyncBatchNorm computes it; on a CPU, which that refuses, this module does. A process without a share of
a batch (see loading.Key) is told so by `mark_ghost`: its rows then count nowhere.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from slr.errors import Mistake


class SharedBatchNorm(_BatchNorm):
    """(N, C, …) -> the same shape; in training N may be another number on every process, in evaluation as any other.

    Raises Mistake where all processes together have fewer than two values a channel.
    """

    ghost = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if not self.ghost:
            return self._over_all(x)
        # Not one row for the others, in whose collective calls, backward too, this process still takes its part. Theirs
        # are in fp32, whatever the rows are in.
        nothing = self._over_all(x[:0].to(torch.promote_types(x.dtype, torch.float32))).sum()
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps) + nothing

    def _over_all(self, x: Tensor) -> Tensor:
        out, mean, var, count = _OverAll.apply(x, self.weight, self.bias, self.eps)
        self._remember(mean, var, count)
        return out

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * count / (count - 1), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"no channels in {tuple(input.shape)}")


class _OnGpu(SharedBatchNorm, nn.SyncBatchNorm):
    """With torch's kernels."""

    def _over_all(self, x: Tensor) -> Tensor:
        return nn.SyncBatchNorm.forward(self, x)


class _OverAll(torch.autograd.Function):
    """Batch-norm with the statistics of all processes' rows: (x, weight, bias, eps) -> (out, mean, variance, count).

    The processes' means and variances are put together as Chan, Golub and LeVeque do (1983,
    https://doi.org/10.1080/00031305.1983.10483115); the gradients are those of Ioffe and Szegedy (2015,
    https://arxiv.org/abs/1502.03167), section 3, with the sums over all processes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, int]:
        mean, var, count = _moments(x)
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.count = count
        return batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight, mean, scale = ctx.saved_tensors
        gradient, rest, shape = gradients[0].to(mean.dtype), _rest(x), _broadcast(x)
        normal = (x - mean.view(shape)) * scale.view(shape)
        own = torch.stack((gradient.sum(rest), (gradient * normal).sum(rest)))
        if not ctx.needs_input_grad[0]:
            return None, own[1], own[0], None
        sums = own.clone()
        dist.all_reduce(sums)
        by_mean, by_spread = (row.view(shape) for row in sums / ctx.count)
        found = (weight * scale).view(shape) * (gradient - by_mean - normal * by_spread)
        return found.to(x.dtype), own[1], own[0], None


def _rest(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [0, *range(2, x.dim())]


def _broadcast(x: Tensor) -> Sequence[int]:
    return [1, -1, *[1] * (x.dim() - 2)]


def _moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance (C,) of each channel over the rows of all processes, and how many values those are."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count, none = x.numel() // x.shape[1], torch.zeros(x.shape[1], dtype=wide.dtype)
    var, mean = torch.var_mean(wide, _rest(x), correction=0) if count else (none, none)
    own = torch.cat((mean, var, mean.new_full((1,), count))).double()
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    means, variances, counts = torch.stack(every).split((len(mean), len(var), 1), dim=1)
    total = counts.sum()
    if total < 2:
        raise Mistake("there is no batch-norm over a single value", "the batch holds one, on all processes together",
                      "train on larger or longer items, or on more of them at once")
    middle = (counts * means).sum(0) / total
    spread = (counts * (variances + (means - middle) ** 2)).sum(0) / total
    return middle.to(wide.dtype), spread.to(wide.dtype), int(total)


def share_batch_norm(model: nn.Module) -> nn.Module:
    """The model with every batch-norm inside it shared, in place; its parameters and buffers stay the same tensors."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _shared_form(child))
    return model


def _shared_form(norm: _BatchNorm) -> SharedBatchNorm:
    kind = _OnGpu if norm.weight.is_cuda else SharedBatchNorm
    shared = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    shared.weight, shared.bias = norm.weight, norm.bias
    shared.running_mean, shared.running_var = norm.running_mean, norm.running_var
    shared.num_batches_tracked = norm.num_batches_tracked
    return shared.train(norm.training)


def mark_ghost(model: nn.Module, ghost: bool) -> None:
    """Whether the next batch is one that this process has no share of."""
    for module in model.modules():
        if isinstance(module, SharedBatchNorm):
            module.ghost = ghost
