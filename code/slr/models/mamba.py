"""MambaSLR: frames to glosses in selective scans, over the patches of a frame and over the frames of a sentence.

    model = build(1296)
    logits = model(frames, seq_idx)                    # packed: (S, 3, H, W), (S,) -> (S', K)
    logits, lengths = model.padded(clips, lengths)     # the same for clips (N, 3, T, H, W)

Shapes: S frames of all sequences of a batch in one axis; seq_idx (S,), a sequence starts wherever it changes;
L = h w + 1 tokens of a frame, the patches by rows and CLS last; E channels of a token. One sequence never touches
another, so packed and padded batches give the same. The scan is Mamba-2's, see `slr.models.scan`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu, softplus
from torch.utils.checkpoint import checkpoint

from slr.errors import Mistake
from slr.models.classifier import Classifier
from slr.models.masked import Frames
from slr.models.scan import scan, segments
from slr.models.sentence import pad as to_padded

TAPS = 4  # of the convolution over time

Grid = tuple[int, int]


def pack(clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, T, H, W) and lengths (N,), 1 to T -> frames (S, C, H, W) and seq_idx (S,). Raises Mistake."""
    frames = Frames(lengths, clips.shape[2], clips.device)
    return clips.transpose(1, 2)[frames.valid], frames.index // frames.steps


# --- stem -------------------------------------------------------------------------------------------------------

def mlp(width: int, ratio: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


def _convolve(conv: nn.Conv2d, cells: Tensor) -> Tensor:
    """(S, H, W, E) -> (S, H', W', E'): the channels stay last, in memory too."""
    return conv(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class StemBlock(nn.Module):
    """(S, H, W, E) -> the same: a depthwise convolution of 3 x 3, then an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width)

    def forward(self, cells: Tensor) -> Tensor:
        cells = cells + _convolve(self.conv, self.norm1(cells))
        return cells + self.mlp(self.norm2(cells))


class Shrink(nn.Module):
    """(S, H, W, E) -> (S, H/2, W/2, E'), rounded up."""

    def __init__(self, width: int, wider: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, wider, 3, stride=2, padding=1)

    def forward(self, cells: Tensor) -> Tensor:
        return _convolve(self.conv, self.norm(cells))


class Stem(nn.Module):
    """Frames (S, C, H, W) -> cells (S, H/16, W/16, E), rounded up."""

    def __init__(self, channels: int, dim: int, depth: int):
        super().__init__()
        widths = (dim // 4, dim // 2, dim)
        self.conv = nn.Conv2d(channels, widths[0], 7, stride=4, padding=3)
        stages: list[nn.Module] = [StemBlock(widths[0]) for _ in range(depth)]
        for width, wider in zip(widths, widths[1:], strict=False):
            stages += [Shrink(width, wider), *(StemBlock(wider) for _ in range(depth if wider < dim else 0))]
        self.stages = nn.Sequential(*stages)

    def forward(self, frames: Tensor) -> Tensor:
        return self.stages(_convolve(self.conv, frames.permute(0, 2, 3, 1)))


# --- mixers -----------------------------------------------------------------------------------------------------

class Heads(nn.Module):
    """What the scan's heads learn of themselves: the bias of their step size, their decay, their way past the state.

    forward: x (N, L, H P), raw step sizes (N, L, H), B and C (N, L, G, M) -> y (N, L, H P).
    """

    def __init__(self, heads: int):
        super().__init__()
        dt = torch.empty(heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))

    def forward(self, x: Tensor, raw: Tensor, B: Tensor, C: Tensor, seq_idx: Tensor | None = None,
                reverse: bool = False) -> Tensor:
        wide = torch.promote_types(raw.dtype, torch.float32)
        dt, A = softplus(raw.to(wide) + self.dt_bias), -self.A_log.to(wide).exp()
        return scan(x.unflatten(2, (len(self.D), -1)), dt, A, B, C, self.D, seq_idx, reverse=reverse).flatten(2)


def unroll(tokens: Tensor, grid: Grid) -> Tensor:
    """(S, L, 4, E) -> (S, L, 4, E): each quarter in its own order, CLS always last.

    Rows from the first patch on, rows from the last, columns from the first, columns from the last.
    """
    patches, cls = tokens[:, :-1], tokens[:, -1:]
    rows, columns = patches[:, :, :2], _transposed(patches[:, :, 2:], grid)
    quarters = (rows[:, :, 0], rows[:, :, 1].flip(1), columns[:, :, 0], columns[:, :, 1].flip(1))
    return torch.cat([torch.stack(quarters, dim=2), cls], dim=1)


def roll(tokens: Tensor, grid: Grid) -> Tensor:
    """What `unroll` did, undone."""
    patches, cls = tokens[:, :-1], tokens[:, -1:]
    first, second, third, fourth = patches.unbind(2)
    columns = _transposed(torch.stack((third, fourth.flip(1)), dim=2), grid[::-1])
    return torch.cat([torch.cat([torch.stack((first, second.flip(1)), dim=2), columns], dim=2), cls], dim=1)


def _transposed(patches: Tensor, grid: Grid) -> Tensor:
    """(S, h w, ...) by rows -> by columns."""
    return patches.unflatten(1, grid).transpose(1, 2).flatten(1, 2)


class SpatialMixer(nn.Module):
    """Tokens (S, L, E) -> the same: four quarters of the channels scan the patches in four orders, then CLS."""

    def __init__(self, dim: int, inner: int, headdim: int, state: int):
        super().__init__()
        self.sizes = (inner, 4 * state, 4 * state)
        mixed, heads = sum(self.sizes), inner // headdim
        self.in_proj = nn.Linear(dim, mixed + heads, bias=False)
        self.conv = nn.Conv2d(mixed, mixed, 3, padding=1, groups=mixed)
        self.heads = Heads(heads)
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        projected = self.in_proj(tokens)
        mixed, raw = projected.split((sum(self.sizes), projected.shape[2] - sum(self.sizes)), dim=2)
        patches = _convolve(self.conv, mixed[:, :-1].unflatten(1, grid)).flatten(1, 2)
        mixed = torch.cat([silu(patches), mixed[:, -1:]], dim=1)
        x, B, C, raw = (unroll(part.unflatten(2, (4, -1)), grid) for part in (*mixed.split(self.sizes, dim=2), raw))
        y = self.heads(x.flatten(2), raw.flatten(2), B, C)
        return self.out_proj(_norm(self.norm, roll(y.unflatten(2, (4, -1)), grid).flatten(2)))


class Attention(nn.Module):
    """Tokens (S, L, E) -> the same: multi-head attention among the tokens of a frame."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Direction(nn.Module):
    """One direction of time: mixed (S, L, E + 2 M) and raw step sizes (S, L, H) -> (S, L, E)."""

    def __init__(self, inner: int, heads: int, state: int, reverse: bool):
        super().__init__()
        self.sizes, self.reverse = (inner, state, state), reverse
        conv = nn.Conv1d(sum(self.sizes), sum(self.sizes), TAPS, groups=sum(self.sizes))
        self.weight, self.bias = conv.weight, conv.bias
        self.heads = Heads(heads)

    def forward(self, mixed: Tensor, raw: Tensor, numbers: Tensor) -> Tensor:
        mixed = silu(self.convolve(mixed, numbers))
        x, B, C = mixed.transpose(0, 1).split(self.sizes, dim=2)
        y = self.heads(x, raw.transpose(0, 1), B[:, :, None], C[:, :, None], numbers, self.reverse)
        return y.transpose(0, 1)

    def convolve(self, mixed: Tensor, numbers: Tensor) -> Tensor:
        """Each step and the 3 before it (behind it where time runs backward), those of its own sequence: (S, L, E)."""
        weight, bias = self.weight.to(mixed.dtype), self.bias.to(mixed.dtype)  # type: ignore[union-attr]
        steps, most = len(mixed), TAPS - 1
        ends = (0, most) if self.reverse else (most, 0)
        longer, known = pad(mixed, (0, 0, 0, 0, *ends)), pad(numbers, ends, value=-1)
        total = bias.expand_as(mixed)
        for shift in range(TAPS):
            begin = shift if self.reverse else most - shift
            tap = (known[begin : begin + steps] == numbers)[:, None, None] * weight[:, 0, most - shift]
            total = torch.addcmul(total, longer[begin : begin + steps], tap)
        return total


class TemporalMixer(nn.Module):
    """Tokens (S, L, E) -> the same: every place of the frame scans the frames of its sequence, forward and backward."""

    def __init__(self, dim: int, inner: int, headdim: int, state: int):
        super().__init__()
        half, heads = inner // 2, inner // 2 // headdim
        self.sizes = (half + 2 * state, half + 2 * state, heads, heads)
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.ahead = Direction(half, heads, state, reverse=False)
        self.back = Direction(half, heads, state, reverse=True)
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: Tensor, numbers: Tensor) -> Tensor:
        ahead, back, raw_ahead, raw_back = self.in_proj(tokens).split(self.sizes, dim=2)
        y = torch.cat([self.ahead(ahead, raw_ahead, numbers), self.back(back, raw_back, numbers)], dim=2)
        return self.out_proj(_norm(self.norm, y))


def _norm(norm: nn.LayerNorm, values: Tensor) -> Tensor:
    """The norm of what may be wider than its weights: the residual stays float32 where they are bfloat16."""
    return norm(values.to(norm.weight.dtype))


# --- the model --------------------------------------------------------------------------------------------------

class Block(nn.Module):
    """Tokens (S, L, E) -> the same: mixes the tokens of a frame, then the frames of a sequence, then the channels."""

    def __init__(self, dim: int, spatial: nn.Module, temporal: nn.Module, drop_path: float):
        super().__init__()
        self.norm1, self.spatial = nn.LayerNorm(dim), spatial
        self.norm2, self.temporal = nn.LayerNorm(dim), temporal
        self.norm3, self.mlp = nn.LayerNorm(dim), mlp(dim)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, numbers: Tensor, grid: Grid) -> Tensor:
        tokens = tokens + self.drop(self.spatial(_norm(self.norm1, tokens), grid), numbers)
        tokens = tokens + self.drop(self.temporal(_norm(self.norm2, tokens), numbers), numbers)
        return tokens + self.drop(self.mlp(_norm(self.norm3, tokens)), numbers)

    def drop(self, branch: Tensor, numbers: Tensor) -> Tensor:
        """In training the whole branch of a whole sequence is left out, with the probability `drop_path`."""
        if not self.training or not self.drop_path:
            return branch
        kept = (torch.rand(len(numbers), device=numbers.device) >= self.drop_path)[numbers]
        return branch * (kept / (1 - self.drop_path)).to(branch.dtype)[:, None, None]


def halve(tokens: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Frames 0 and 1, 2 and 3 ... of each sequence averaged; the last of an odd number stays as it is."""
    index = torch.arange(len(numbers), device=numbers.device)
    start = torch.where(numbers.diff(prepend=numbers[:1] - 1) != 0, index, 0).cummax(0).values
    first = index[(index - start) % 2 == 0]
    second = (first + 1).clamp(max=len(index) - 1)
    second = torch.where(numbers[second] == numbers[first], second, first)
    return (tokens[first] + tokens[second]) / 2, numbers[first]


class Backbone(nn.Module):
    """Packed frames (S, C, H, W) and seq_idx (S,) -> features (S', 2 E): the mean of a frame's patches, then CLS."""

    def __init__(self, stem: Stem, blocks: Sequence[Block], dim: int, downsample: Sequence[int], recompute: bool):
        super().__init__()
        self.stem = stem
        self.cls = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)
        self.downsample, self.recompute = tuple(downsample), recompute

    def forward(self, frames: Tensor, seq_idx: Tensor) -> Tensor:
        if frames.shape[1] != self.stem.conv.in_channels or seq_idx.shape != frames.shape[:1]:
            raise ValueError(f"built for frames (S, {self.stem.conv.in_channels}, H, W) and seq_idx (S,), "
                             f"given {tuple(frames.shape)} and {tuple(seq_idx.shape)}")
        cells, numbers = self.stem(frames), segments(seq_idx)
        grid = (cells.shape[1], cells.shape[2])
        tokens = torch.cat([cells.flatten(1, 2), self.cls.to(cells.dtype).expand(len(cells), 1, -1)], dim=1)
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        for number, block in enumerate(self.blocks):
            for _ in range(self.downsample.count(number)):
                tokens, numbers = halve(tokens, numbers)
            if self.recompute and self.training:
                tokens = checkpoint(block, tokens, numbers, grid, use_reentrant=False)
            else:
                tokens = block(tokens, numbers, grid)
        tokens = _norm(self.norm, tokens)
        return torch.cat([tokens[:, :-1].mean(1), tokens[:, -1]], dim=1)


class MambaSLR(Classifier):
    """Packed frames (S, C, H, W), 3 channels and the heatmaps, and seq_idx (S,) -> logits (S', K).

    S' is S, or less with `downsample`: then a sequence of T frames has ceil(T / stride) rows.
    """

    backbone: Backbone
    no_decay = ("dt_bias", "A_log", "D")

    @property
    def stride(self) -> int:
        """Frames of a time step of the output."""
        return 2 ** len(self.backbone.downsample)

    def forward(self, frames: Tensor, seq_idx: Tensor) -> Tensor:  # type: ignore[override]
        return self.classifier(self.backbone(frames, seq_idx))

    def padded(self, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Clips (N, C, T, H, W) and lengths (N,) -> logits (N, T', K), 0 behind an item's end, and lengths (N,) of T'.

        What lies behind a clip's end is never computed. Raises Mistake for lengths out of range.
        """
        rows, steps = MambaSLR.forward(self, *pack(clips, lengths)), -(-lengths // self.stride)
        return to_padded(rows, steps), steps

    def features(self, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the backbone sees of the same: (N, T', 2 E), 0 behind an item's end, and lengths (N,) of T'."""
        rows, steps = self.backbone(*pack(clips, lengths)), -(-lengths // self.stride)
        return to_padded(rows, steps), steps

    def layers(self) -> dict[str, int]:
        """0 are the stem and CLS, 1 to `depth` the blocks, depth + 1 what follows."""
        return {name: self._layer(name.split(".")) for name, _ in self.named_parameters()}

    def _layer(self, parts: list[str]) -> int:
        if parts[0] == "backbone" and parts[1] in ("stem", "cls"):
            return 0
        return int(parts[2]) + 1 if parts[:2] == ["backbone", "blocks"] else len(self.backbone.blocks) + 1


class PaddedMambaSLR(MambaSLR):
    """The same weights under the same names, called as the other models for sentences are: `padded` is its forward."""

    def forward(self, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.padded(clips, lengths)


def build(
    num_classes: int,
    *,
    dim: int = 512,
    depth: int = 12,
    expand: int = 2,
    headdim: int = 64,
    spatial_state: int = 16,
    temporal_state: int = 32,
    attn_layers: Sequence[int] = (4,),
    attn_heads: int = 8,
    stem_depth: int = 3,
    heatmaps: int = 0,
    downsample: Sequence[int] = (),
    drop_p: float = 0.1,
    drop_path: float = 0.4,
    recompute: bool = False,
    padded: bool = False,
) -> MambaSLR:
    """MambaSLR for frames of any size: 57,154,016 parameters at 1,296 classes.

    `attn_layers`: blocks, counted from 0, that attend instead of scanning the patches. `heatmaps`: channels behind
    the frame's three. `downsample`: blocks before which time is halved, e.g. (4, 8) for a quarter; none is faithful
    to the paper. `drop_path`: the last block's share. `recompute`: blocks are computed again in the backward pass
    instead of kept, a third more time for a fraction of the memory. `padded`: a PaddedMambaSLR. Raises Mistake for
    sizes that do not go together.
    """
    inner = expand * dim
    _check(dim, depth, inner, headdim, attn_layers, attn_heads, downsample)
    blocks = []
    for number in range(depth):
        spatial = (Attention(dim, attn_heads) if number in attn_layers
                   else SpatialMixer(dim, inner, headdim, spatial_state))
        temporal = TemporalMixer(dim, inner, headdim, temporal_state)
        blocks.append(Block(dim, spatial, temporal, drop_path * number / max(depth - 1, 1)))
    backbone = Backbone(Stem(3 + heatmaps, dim, stem_depth), blocks, dim, downsample, recompute)
    return (PaddedMambaSLR if padded else MambaSLR)(backbone, nn.Linear(2 * dim, num_classes), drop_p)


def build_for_sentences(num_classes: int, *, frames: int, size: int, weights: None = None,
                        drop_path: float | None = None, **options: Any) -> MambaSLR:
    """`build`, called as the builders of the other models for sentences are: any number of frames, of any size; no
    pretrained weights; `drop_path` None is the default."""
    given: dict[str, Any] = {} if drop_path is None else {"drop_path": drop_path}
    return build(num_classes, padded=True, **given, **options)


def _check(dim: int, depth: int, inner: int, headdim: int, attn_layers: Sequence[int], attn_heads: int,
           downsample: Sequence[int]) -> None:
    wrong = "these sizes of MambaSLR do not go together"
    if inner % (4 * headdim):
        raise Mistake(wrong, f"expand x dim = {inner}, headdim = {headdim}",
                      "four directions share the heads: expand x dim has to be a multiple of 4 headdim")
    if dim % 4 or dim % attn_heads:
        raise Mistake(wrong, f"dim = {dim}, attn_heads = {attn_heads}", "dim has to be a multiple of 4 and attn_heads")
    for key, numbers in (("attn_layers", attn_layers), ("downsample", downsample)):
        if any(not 0 <= number < depth for number in numbers):
            raise Mistake(wrong, f"{key} = {list(numbers)}, depth = {depth}", f"the blocks are 0 to {depth - 1}")
