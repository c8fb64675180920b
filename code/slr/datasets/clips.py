"""Labelled clips as a torch data set: frames in, one fixed-size uint8 clip and its draw out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from slr.augment import UNCHANGED, Recipe, draw_changes
from slr.datasets.wlasl import Clip
from slr.loading import Key
from slr.runtime import generator
from slr.transforms import Augment, center_box, crop_resize, draw, no_draw, random_box
from slr.video import Source, sample_indices


class ClipDataset(Dataset):
    """Items {ids, frames (T, S, S, 3) uint8, labels, draws (6,)} for `Key(epoch, item)`.

    Augments where `augment` is given, and as `recipe` says. Reads only the frames that the sample uses.
    """

    def __init__(self, clips: Sequence[Clip], source: Source, *, num_frames: int, frame_size: int, seed: int = 0,
                 eval_resize: float = 1.0, augment: Augment | None = None, jitter_frames: bool = False,
                 recipe: Recipe = UNCHANGED):
        self.clips, self.source, self.seed = list(clips), source, seed
        self.num_frames, self.frame_size, self.eval_resize = num_frames, frame_size, eval_resize
        self.augment, self.jitter_frames = augment, jitter_frames and augment is not None
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        clip = self.clips[key.item]
        rng = generator(self.seed, key.epoch, clip.id)
        indices = sample_indices(self.source.length(clip), self.num_frames, rng if self.jitter_frames else None)
        frames = self.source.images(clip, indices)
        height, width = frames[0].shape[:2]
        if self.augment:
            box = random_box(height, width, rng, self.augment.min_scale, self.augment.max_aspect)
        else:
            box = center_box(height, width, self.eval_resize)
        draws = draw(rng, self.augment) if self.augment else no_draw()
        changes = draw_changes(rng, self.frame_size, self.recipe)
        return {"ids": clip.id, "frames": changes.of_frames(crop_resize(frames, box, self.frame_size)),
                "labels": np.int64(clip.label), "draws": draws, "ghost": key.ghost}
