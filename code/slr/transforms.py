"""What happens to a clip between the decoder and the model.

In the workers, on uint8: one crop and resize a clip (and what `slr.augment` does). On the device, on whole batches:
flip, colour, normalisation and mixup, and heatmaps of the points on the frames. Every clip has one draw (`draw`), taken
from its own random numbers, and all its frames share it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

Range = float | tuple[float, float]  # how far something is changed to either side, or from where to where
DRAWS = 6  # flip, brightness, contrast, saturation, hue, mixup's share
COLOURS = slice(1, 5)


@dataclass(frozen=True)
class Augment:
    """How far a training clip may be changed; the defaults change nothing."""

    min_scale: float = 1.0
    max_aspect: float = 1.0
    hflip: float = 0.0
    jitter: tuple[Range, Range, Range, Range] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    jitter_p: float = 1.0  # of the clips
    mixup: float = 0.0


def random_box(height: int, width: int, rng: np.random.Generator, min_scale: float,
               max_aspect: float) -> tuple[int, int, int, int]:
    """A crop (x0, y0, x1, y1) with an area of min_scale to 1 of the centre square's and an aspect within max_aspect.

    The draw of Inception (Szegedy et al. 2015) as torchvision's RandomResizedCrop makes it, but inside the square
    that evaluation looks at: of a wide frame its margins show no sign, and a square of its area would not fit.
    Where ten draws do not fit, the whole square.
    """
    left, top, right, bottom = center_box(height, width, 1.0)
    side = right - left
    for _ in range(10):
        area = side * side * rng.uniform(min_scale, 1.0)
        aspect = math.exp(rng.uniform(-math.log(max_aspect), math.log(max_aspect)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= side and 0 < h <= side:
            x, y = left + int(rng.integers(0, side - w + 1)), top + int(rng.integers(0, side - h + 1))
            return x, y, x + w, y + h
    return left, top, right, bottom


def center_box(height: int, width: int, eval_resize: float) -> tuple[int, int, int, int]:
    """The square that is left when the short side becomes eval_resize x frame_size and the centre is cropped."""
    side = max(1, round(min(height, width) / eval_resize))
    x, y = (width - side) // 2, (height - side) // 2
    return x, y, x + side, y + side


def crop_resize(frames: np.ndarray | list[np.ndarray], box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """(T, H, W, 3) uint8 -> (T, size, size, 3) uint8: the box of every frame, resized."""
    import cv2

    x0, y0, x1, y1 = box
    out = np.empty((len(frames), size, size, 3), np.uint8)
    shrinks = min(x1 - x0, y1 - y0) > size * 1.5
    for frame, target in zip(frames, out, strict=True):
        part = frame[y0:y1, x0:x1]
        if part.shape[:2] == (size, size):
            target[...] = part
        else:
            cv2.resize(part, (size, size), dst=target, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return out


def on_crop(points: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """(…, 3) x, y, confidence in pixels of the frame -> in pixels of what `crop_resize` makes of it, as float32.

    A pixel's middle is a whole number, in the frame as in the crop.
    """
    x0, y0, x1, y1 = box
    placed = np.array(points, np.float32)
    placed[..., 0] = (placed[..., 0] + 0.5 - x0) * (size / (x1 - x0)) - 0.5
    placed[..., 1] = (placed[..., 1] + 0.5 - y0) * (size / (y1 - y0)) - 0.5
    return placed


def mirrored(points: np.ndarray, size: int) -> np.ndarray:
    """The same points on the mirrored frames of `size`."""
    return np.concatenate([size - 1 - points[..., :1], points[..., 1:]], axis=-1)


def draw(rng: np.random.Generator, augment: Augment) -> np.ndarray:
    """The (6,) float32 numbers of one clip: flip, three factors, hue in turns, mixup's share of the clip itself."""
    *factors, hue = augment.jitter
    share = rng.beta(augment.mixup, augment.mixup) if augment.mixup > 0 else 1.0
    draws = np.array([rng.random() < augment.hflip, *(rng.uniform(*_around(1.0, x)) for x in factors),
                      rng.uniform(*_around(0.0, hue)), max(share, 1 - share)], np.float32)
    if rng.random() >= augment.jitter_p:
        draws[COLOURS] = no_draw()[COLOURS]
    return draws


def _around(middle: float, far: Range) -> tuple[float, float]:
    """From where to where a factor around 1, which is not negative, or a shift around 0 is drawn."""
    if isinstance(far, tuple):
        return far
    return max(middle - far, 0.0) if middle else -far, middle + far


def no_draw() -> np.ndarray:
    """The draw of a clip that is left as it is."""
    return np.array([0, 1, 1, 1, 0, 1], np.float32)


# Luma weights of ITU-R BT.601 and the YIQ axes in which a hue shift is a rotation.
_LUMA = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


def colour_matrix(draws: torch.Tensor) -> torch.Tensor:
    """(N, 6) draws -> (N, 3, 3): saturation, hue and brightness as one linear map of RGB."""
    n = len(draws)
    luma = draws.new_tensor(_LUMA).expand(3, 3)
    eye = torch.eye(3).to(draws)
    saturation = draws[:, 3].view(n, 1, 1)
    saturate = saturation * eye + (1 - saturation) * luma
    yiq = draws.new_tensor(_YIQ)
    angle = -2 * math.pi * draws[:, 4]  # red goes to green, as in HSV
    turn = eye.repeat(n, 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 2, 1] = angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    return draws[:, 1].view(n, 1, 1) * (torch.linalg.inv(yiq) @ turn @ yiq @ saturate)


def colour(clips: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """(N, T, H, W, 3) float in 0..1 with each clip's brightness, contrast, saturation and hue; clamped to 0..1.

    Contrast pulls towards the clip's own mean luma, so all frames of a clip change alike.
    """
    return _coloured(clips, draws, clips.new_ones(3), clips.new_zeros(3))


# Pixels that one row of the matrix product holds: with a single one, three numbers, a CPU takes three times as long.
_PIXELS = 4


def _coloured(clips: torch.Tensor, draws: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor,
              white: float = 1.0, into: torch.Tensor | None = None) -> torch.Tensor:
    """scale * colour(clips / white) + shift, channel by channel, in one matrix product and one clamp (into `into`)."""
    n, width = len(clips), clips.shape[3]
    matrix = colour_matrix(draws).transpose(1, 2)
    contrast = draws[:, 2].view(n, 1, 1)
    rows = clips.reshape(n, -1, width * 3)
    mean = rows.mean(1).view(n, width, 3).mean(1, keepdim=True) / white
    grey = mean @ matrix @ clips.new_tensor(_LUMA).view(3, 1)
    offset = (1 - contrast) * grey * scale + shift
    together = math.gcd(_PIXELS, clips[0].numel() // 3)
    turn = torch.kron(torch.eye(together, device=clips.device), (contrast / white * matrix * scale).contiguous())
    moved = torch.baddbmm(offset.repeat(1, 1, together), clips.reshape(n, -1, together * 3), turn).view(rows.shape)
    out = None if into is None else into.view(rows.shape)
    return torch.clamp(moved, shift.repeat(width), (scale + shift).repeat(width), out=out).view(clips.shape)


def to_input(clips: torch.Tensor, draws: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...], *,
             subtract_clip_mean: bool = False) -> torch.Tensor:
    """(N, T, H, W, 3) uint8 on the device, (N, 6) draws on the CPU -> (N, 3, T, H, W) float32, channels last in memory.

    subtract_clip_mean: the clip's mean over time is taken away at every pixel and the rest divided by 48 (of 255),
    in place of the model's own mean and standard deviation.
    """
    if subtract_clip_mean:
        mean, std = (0.0, 0.0, 0.0), (48 / 255, 48 / 255, 48 / 255)
    inputs = torch.empty(clips.shape, device=clips.device)
    scale = 1 / inputs.new_tensor(std)
    shift = -inputs.new_tensor(mean) * scale
    flipped = (draws[:, 0] > 0.5).tolist()  # asked of the CPU's copy: no wait for the GPU
    coloured = (draws[:, 1:5] != draws.new_tensor(no_draw())[1:5]).any(1).tolist()
    there = draws.to(clips.device, non_blocking=True)
    on_cpu = clips.device.type == "cpu"
    step = 1 if on_cpu else max(1, len(clips))  # a GPU takes the batch as a whole
    for first in range(0, len(clips), step):
        part = slice(first, first + step)
        draws_here = there[part] if any(coloured[part]) else None
        _normalise(inputs[part], clips[part], flipped[part], draws_here, scale, shift, 4 if on_cpu else clips.shape[1])
        if subtract_clip_mean:
            inputs[part] -= inputs[part].mean(1, keepdim=True)
    return inputs.permute(0, 4, 1, 2, 3)


def _normalise(x: torch.Tensor, clips: torch.Tensor, flipped: list[bool], draws: torch.Tensor | None,
               scale: torch.Tensor, shift: torch.Tensor, frames: int) -> None:
    """Into x: the clips flipped, coloured where there are draws, then scale * value / 255 + shift.

    Without colours by so many `frames` at a time, that a CPU's cache holds them.
    """
    length, width = x.shape[1], x.shape[3]
    frames = length if draws is not None else frames
    factor, term = (scale / 255).repeat(width), shift.repeat(width)  # a broadcast over three numbers alone is slow
    for first in range(0, length, frames):
        part = slice(first, first + frames)
        for target, clip, flip in zip(x[:, part], clips[:, part], flipped, strict=True):
            target.copy_(clip.flip(2) if flip else clip)
        if draws is None:
            rows = x[:, part].view(-1, width * 3)
            torch.addcmul(term, rows, factor, out=rows)
    if draws is not None:
        _coloured(x, draws, scale, shift, white=255, into=x)


# Standard deviations of the peaks, as shares of the frame's side: 32 pixels of 256, and 8 of 112.
SIGMA = {"max": 32 / 256, "points": 8 / 112}


def heatmaps(points: torch.Tensor, size: int, kind: str) -> torch.Tensor:
    """Points (T, K, 3), x, y, confidence in pixels of frames of `size` -> Gaussian peaks of 1, (C, T, size, size).

    kind: `points` gives every point its channel, `max` all one, with the largest of their values at every pixel. A
    point of confidence 0 has no peak.
    """
    axis = torch.arange(size, device=points.device, dtype=points.dtype)
    across, down = ((axis - points[..., k, None]).square() / (2 * (SIGMA[kind] * size) ** 2) for k in (0, 1))
    down = down.masked_fill(points[..., 2, None] <= 0, torch.inf)
    if kind == "points":
        return torch.einsum("tky,tkx->ktyx", (-down).exp(), (-across).exp())
    nearest = down.new_full((len(points), size, size), torch.inf)
    for y, x in zip(down.unbind(1), across.unbind(1), strict=True):
        torch.minimum(nearest, y[:, :, None] + x[:, None], out=nearest)
    return nearest.neg_().exp_()[None]


def partners(n: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """(N,) the index that each item is mixed with: its neighbour in pairs (0 1)(2 3) …; an odd last one, itself."""
    index = torch.arange(n, device=device)
    other = index ^ 1
    return torch.where(other < n, other, index)


def mixup(inputs: torch.Tensor, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zhang et al. 2018, https://arxiv.org/abs/1710.09412: (mixed inputs, partner index (N,), own share (N,)).

    The larger share is the item's own; both of a pair use the share that the first of them drew.
    """
    other = partners(len(inputs), inputs.device)
    share = draws[torch.minimum(other, torch.arange(len(inputs), device=inputs.device)), 5]
    weight = share.view(-1, *[1] * (inputs.ndim - 1))
    return inputs * weight + inputs[other] * (1 - weight), other, share
