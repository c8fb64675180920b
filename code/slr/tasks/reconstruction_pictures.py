"""What VideoMAE draws of hidden tubes, as pictures: the clip, what was left of it, and what it made of that."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slr import plots
from slr.models.video_mae import VideoMAEPretrain, cut, pick, split

MOMENTS = 8  # frames of a clip
GREY = 127  # of what is hidden


@torch.no_grad()
def pictures(model: VideoMAEPretrain, clip: Tensor, masked: Tensor, predicted: Tensor, steps: int) -> np.ndarray:
    """(3, T, S, S, 3) uint8: a clip (1, 3, T, S, S) as it is, without its hidden tubes, and with the predicted ones.

    The prediction is of normalised pixels: it is given the mean and the deviation of the true tubelet, so only the
    shapes in it are the model's. Shades of a clip without its mean are shown around grey.
    """
    whole = (clip.float() * model.std + model.mean)[:, :, :steps * model.encoder.sizes.tubelet]
    whole = whole + (0.5 if not bool(model.mean.any()) else 0.0)
    tubelets = cut(whole, model.encoder.sizes)
    hidden = split(masked)[1].to(clip.device)
    pixels = pick(tubelets.movedim(3, -1).flatten(3), hidden).unflatten(3, (-1, 3))
    drawn = (predicted[:, :steps].unflatten(3, (-1, 3)) * (pixels.var(3, keepdim=True).sqrt() + 1e-6)
             + pixels.mean(3, keepdim=True))
    where = hidden[:, None, :, None].expand(-1, steps, -1, tubelets[0, 0, 0].numel())
    shape = tubelets.movedim(3, -1).shape
    flat = tubelets.movedim(3, -1).flatten(3)
    left = flat.scatter(2, where, torch.full_like(where, GREY / 255, dtype=flat.dtype))
    made = flat.scatter(2, where, drawn.flatten(3))
    return np.stack([_frames(part.view(shape), model) for part in (flat, left, made)])


def _frames(tubelets: Tensor, model: VideoMAEPretrain) -> np.ndarray:
    """(1, T', cells, tubelet, patch, patch, 3) -> (T, S, S, 3) uint8."""
    sizes = model.encoder.sizes
    side = sizes.size // sizes.patch
    rows = tubelets[0].unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5, 6)
    frames = rows.reshape(-1, sizes.size, sizes.size, 3)
    return (frames.clamp(0, 1) * 255).round().byte().cpu().numpy()


def draw(records: Sequence[dict[str, Any]], path: Path, title: str) -> Path:
    """Three rows of frames for each record with `pictures`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.4 * MOMENTS, 4.6 * len(records) + 0.6), layout="constrained", dpi=plots.DPI)
    figure.suptitle(title, parse_math=False)
    for place, record in zip(np.ravel(figure.subfigures(len(records), 1, squeeze=False)), records, strict=True):
        place.suptitle(f"{record['id']}: mean squared error {record['loss']:.3f}", fontsize=9, parse_math=False)
        clips = record["pictures"]
        chosen = np.linspace(0, len(clips[0]) - 1, min(MOMENTS, len(clips[0]))).round().astype(int)
        axes = place.subplots(3, len(chosen), squeeze=False)
        for row, clip, name in zip(axes, clips, ("clip", "seen", "drawn"), strict=True):
            for ax, moment in zip(row, chosen, strict=True):
                ax.imshow(clip[moment])
                ax.set_xticks([])
                ax.set_yticks([])
            row[0].set_ylabel(name)
    return plots.write(figure, path)
