"""RandAugment and random erasing of a clip, in the workers, on uint8.

    changes = draw_changes(rng, 112, Recipe(magnitude=5, erase_p=0.25))
    frames, points = changes.of_frames(frames), changes.of_points(points, 112)

One draw is for all frames of a clip: the same operations, of the same strength, by what the clip as a whole holds, and
the same rectangle. What moves the pixels of a frame moves the points on it.

RandAugment: Cubuk et al. 2019, https://arxiv.org/abs/1909.13719. The fifteen operations, what magnitude 10 means and
that each operation drawn is carried out with a probability are timm's (`rand-m5-inc1` is magnitude 5), but for two
things: shears leave the middle where it is, and posterising keeps a bit. Random erasing: Zhong et al. 2017,
https://arxiv.org/abs/1708.04896, with random pixels, and as there once a clip.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

FULL = 10.0  # the largest magnitude
GREY = 128  # what comes in from outside the frame
AREA, ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of what is erased: its share of the frame, its height over its width
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601

Step = tuple[str, float]  # an operation and its strength, -1 to 1, where 1 is magnitude 10


# --- operations that move pixels ----------------------------------------------------------------------------

def affine(step: Step, size: int) -> np.ndarray | None:
    """(2, 3): where a pixel of a frame goes, its middle being a whole number; None where the operation moves none."""
    name, strength = step
    middle = (size - 1) / 2
    if name == "rotate":
        return cv2.getRotationMatrix2D((middle, middle), 30 * strength, 1)
    shear, shift = 0.3 * strength, 0.45 * strength * size
    moves = {"shear_x": ((1, shear, -shear * middle), (0, 1, 0)), "translate_x": ((1, 0, shift), (0, 1, 0)),
             "shear_y": ((1, 0, 0), (shear, 1, -shear * middle)), "translate_y": ((1, 0, 0), (0, 1, shift))}
    return np.array(moves[name]) if name in moves else None


def moved(frames: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 whose pixels are where the matrix (2, 3) sends them; grey comes in from outside."""
    out, size = np.empty_like(frames), (frames.shape[2], frames.shape[1])
    for frame, target in zip(frames, out, strict=True):
        cv2.warpAffine(frame, matrix, size, dst=target, flags=cv2.INTER_LINEAR, borderValue=(GREY, GREY, GREY))
    return out


# --- operations that give every value another one -----------------------------------------------------------

def _rows(frames: np.ndarray) -> np.ndarray:
    """A clip as one tall picture."""
    return frames.reshape(-1, frames.shape[2], 3)


def _counts(frames: np.ndarray) -> np.ndarray:
    """(256, 3) how often the clip has every value."""
    return np.stack([cv2.calcHist([_rows(frames)], [k], None, [256], [0, 256]).ravel() for k in range(3)], 1)


def _auto_contrast(frames: np.ndarray, _: float) -> np.ndarray:
    there, values = _counts(frames) > 0, np.arange(256.0)[:, None]
    low, high = there.argmax(0), 255 - there[::-1].argmax(0)
    return np.where(low < high, (values - low) * 255 / np.maximum(high - low, 1), values)


def _equalize(frames: np.ndarray, _: float) -> np.ndarray:
    """As Pillow has it: equally many pixels of every value, the last one's own left aside."""
    counts = _counts(frames).astype(np.int64)
    last = 255 - (counts > 0)[::-1].argmax(0)
    step = (counts.sum(0) - counts[last, range(3)]) // 255
    before = counts.cumsum(0) - counts
    return np.where(step > 0, (before + step // 2) // np.maximum(step, 1), np.arange(256)[:, None])


def _contrast(frames: np.ndarray, strength: float) -> np.ndarray:
    grey = float(np.dot(cv2.mean(_rows(frames))[:3], _LUMA))
    return grey + _factor(strength) * (np.arange(256.0) - grey)


def _factor(strength: float) -> float:
    return 1 + 0.9 * strength


def _posterize(_: np.ndarray, strength: float) -> np.ndarray:
    kept = max(1, 4 - int(4 * abs(strength)))
    return np.arange(256) & (0xFF00 >> kept)


def _solarize(_: np.ndarray, strength: float) -> np.ndarray:
    values = np.arange(256)
    return np.where(values < 256 - int(256 * abs(strength)), values, 255 - values)


def _solarize_add(_: np.ndarray, strength: float) -> np.ndarray:
    values = np.arange(256)
    return np.where(values < 128, values + int(110 * abs(strength)), values)


# name -> (clip, strength) -> (256,) or (256, 3): what becomes of each value
TABLES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "auto_contrast": _auto_contrast, "equalize": _equalize, "invert": lambda *_: np.arange(255, -1, -1),
    "posterize": _posterize, "solarize": _solarize, "solarize_add": _solarize_add, "contrast": _contrast,
    "brightness": lambda _, strength: np.arange(256) * _factor(strength)}


def _looked_up(frames: np.ndarray, table: np.ndarray) -> np.ndarray:
    table = np.clip(np.round(table), 0, 255).astype(np.uint8)
    table = table if table.ndim == 1 else table[None]
    return cv2.LUT(_rows(frames), table).reshape(frames.shape)


# --- operations on neighbours and channels ------------------------------------------------------------------

def _saturation(frames: np.ndarray, strength: float) -> np.ndarray:
    factor = _factor(strength)
    matrix = factor * np.eye(3) + (1 - factor) * np.array([_LUMA] * 3)
    return cv2.transform(_rows(frames), matrix).reshape(frames.shape)


def _sharpness(frames: np.ndarray, strength: float) -> np.ndarray:
    """Between the frame and Pillow's smooth one: neighbours count 1, the pixel itself 5, of 13."""
    smooth = np.ones((3, 3)) / 13
    smooth[1, 1] = 5 / 13
    kernel = (1 - _factor(strength)) * smooth
    kernel[1, 1] += _factor(strength)
    return np.stack([cv2.filter2D(frame, -1, kernel, borderType=cv2.BORDER_REPLICATE) for frame in frames])


FILTERS = {"saturation": _saturation, "sharpness": _sharpness}
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*TABLES, *FILTERS, *MOVES)


def carry_out(frames: np.ndarray, step: Step) -> np.ndarray:
    """One operation on a clip, uint8 (T, S, S, 3), all frames alike."""
    name, strength = step
    if name in TABLES:
        return _looked_up(frames, TABLES[name](frames, strength))
    if name in FILTERS:
        return FILTERS[name](frames, strength)
    matrix = affine(step, frames.shape[1])
    assert matrix is not None, name
    return moved(frames, matrix)


# --- what is drawn ------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Recipe:
    """What may happen to training clips; the defaults change nothing."""

    magnitude: float = 0.0  # of the operations, of 10; their signs are drawn. 0 = no operations
    operations: int = 2  # drawn of OPERATIONS for a clip; one may come twice
    operation_p: float = 0.5  # with which each of those is carried out
    erase_p: float = 0.0  # with which a rectangle is erased


UNCHANGED = Recipe()


@dataclass(frozen=True)
class Changes:
    """What happens to one clip: operations in their order; then a patch is painted on it, at `corner` (x, y)."""

    steps: tuple[Step, ...] = ()
    corner: tuple[int, int] = (0, 0)
    patch: np.ndarray | None = None  # uint8 (h, w, 3)

    def of_frames(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (T, S, S, 3), the clip's own array where nothing moves; the patch is painted into it."""
        for step in self.steps:
            frames = carry_out(frames, step)
        if self.patch is not None:
            (x, y), (height, width) = self.corner, self.patch.shape[:2]
            frames[:, y:y + height, x:x + width] = self.patch
        return frames

    def of_points(self, points: np.ndarray, size: int) -> np.ndarray:
        """(…, 3) x, y, confidence in pixels of a frame of `size` -> where they are then; what is erased stays."""
        for step in self.steps:
            matrix = affine(step, size)
            if matrix is not None:
                points = np.concatenate([points[..., :2] @ matrix[:, :2].T + matrix[:, 2], points[..., 2:]], axis=-1)
        return points.astype(np.float32, copy=False)


def draw_changes(rng: np.random.Generator, size: int, recipe: Recipe) -> Changes:
    """What happens to a clip of frames of `size`. Of what is off nothing is drawn."""
    steps = _draw_steps(rng, recipe) if recipe.magnitude else ()
    corner, patch = draw_patch(rng, size, size) if recipe.erase_p and rng.random() < recipe.erase_p else ((0, 0), None)
    return Changes(steps, corner, patch)


def _draw_steps(rng: np.random.Generator, recipe: Recipe) -> tuple[Step, ...]:
    count, strength = recipe.operations, recipe.magnitude / FULL
    chosen, kept = rng.integers(len(OPERATIONS), size=count), rng.random(count) < recipe.operation_p
    minus = rng.random(count) < 0.5
    return tuple((OPERATIONS[number], -strength if negative else strength)
                 for number, wanted, negative in zip(chosen, kept, minus, strict=True) if wanted)


def draw_patch(rng: np.random.Generator, height: int, width: int) -> tuple[tuple[int, int], np.ndarray]:
    """A rectangle of random pixels to paint on frames of this size: its corner (x, y), and uint8 (h, w, 3)."""
    low, high = ASPECT
    area, aspect = height * width * rng.uniform(*AREA), math.exp(rng.uniform(math.log(low), math.log(high)))
    tall = min(max(round(math.sqrt(area * aspect)), 1), height)
    wide = min(max(round(math.sqrt(area / aspect)), 1), width)
    corner = int(rng.integers(width - wide + 1)), int(rng.integers(height - tall + 1))
    return corner, rng.integers(256, size=(tall, wide, 3), dtype=np.uint8)
