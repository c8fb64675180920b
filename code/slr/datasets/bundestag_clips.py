"""Subtitled stretches of long videos as a torch data set: frames in, uint8 clips of different lengths out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from slr.datasets.bundestag import Sample, sample_indices
from slr.datasets.sentence_clips import on_frame
from slr.loading import Key, collate
from slr.runtime import generator
from slr.transforms import Augment, center_box, crop_resize, draw, no_draw, random_box
from slr.video import read_frames

APART = ("frames", "indices")  # of an item: a row for every frame


class SubtitleDataset(Dataset):
    """Items {ids, frames (T, S, S, 3) uint8, lengths () int64 = T, indices (T,) int64, texts, draws (6,) float32,
    ghost} for `Key(epoch, item)`, T <= num_frames: every `stride`-th frame of a subtitle, then so many of them.

    Whole frames are stretched to a square of frame_size, as slr.datasets.sentence_clips has it, so that what learns
    here sees the same there. Training (`augment`) draws first frame, cut and one crop for all frames; evaluation takes
    the middle. `indices` are the numbers of the frames in the video.
    """

    def __init__(self, samples: Sequence[Sample], *, num_frames: int, frame_size: int, stride: int = 1, seed: int = 0,
                 eval_resize: float = 1.0, augment: Augment | None = None):
        self.samples, self.num_frames, self.frame_size, self.stride = list(samples), num_frames, frame_size, stride
        self.seed, self.eval_resize, self.augment = seed, eval_resize, augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        sample = self.samples[key.item]
        rng = generator(self.seed, key.epoch, sample.id)
        indices = self.indices(sample, rng)
        images = read_frames(sample.file, indices)
        height, width = images.shape[1:3]
        side = max(height, width)
        if self.augment:
            box = random_box(side, side, rng, self.augment.min_scale, self.augment.max_aspect)
        else:
            box = center_box(side, side, self.eval_resize)
        frames = crop_resize(list(images), on_frame(box, side, height, width), self.frame_size)
        return {"ids": sample.id, "frames": frames, "lengths": np.int64(len(indices)), "indices": indices,
                "texts": sample.text, "draws": draw(rng, self.augment) if self.augment else no_draw(),
                "ghost": key.ghost}

    def indices(self, sample: Sample, rng: np.random.Generator) -> np.ndarray:
        """(T,) the frames to look at; `rng` is the item's own, fresh."""
        return sample_indices(sample.start, sample.end, num_frames=self.num_frames, stride=self.stride,
                              rng=rng if self.augment else None)

    def lengths(self, epoch: int) -> list[int]:
        """How many frames each item has in this epoch."""
        return [len(self.indices(sample, generator(self.seed, epoch, sample.id))) for sample in self.samples]


def padded(items: list[dict[str, Any]], multiple: int = 1) -> dict[str, Any]:
    """A batch: frames (N, T, S, S, 3) uint8, zero behind each item's own `lengths` (N,); T is the longest, rounded up
    to a `multiple`. indices, ids and texts in lists, the rest stacked."""
    batch = collate([{name: value for name, value in item.items() if name not in APART} for item in items])
    longest = max(len(item["frames"]) for item in items)
    first = items[0]["frames"]
    frames = np.zeros((len(items), -(-longest // multiple) * multiple, *first.shape[1:]), first.dtype)
    for row, item in zip(frames, items, strict=True):
        row[:len(item["frames"])] = item["frames"]
    return batch | {"frames": torch.from_numpy(frames), "indices": [item["indices"].tolist() for item in items]}
