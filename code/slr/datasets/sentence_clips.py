"""Sentences as a torch data set: frames in, uint8 clips of different lengths out, packed into batches."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from slr.augment import UNCHANGED, Recipe, draw_changes
from slr.datasets.keypoints import Keypoints
from slr.datasets.sentences import Sentence, read_images, steps_needed, time_steps
from slr.loading import Key, collate
from slr.runtime import generator
from slr.transforms import Augment, center_box, crop_resize, draw, mirrored, no_draw, on_crop, random_box

Box = tuple[int, int, int, int]


def longest(num_frames: int, most: int, every: int = 1) -> int:
    """How many frames evaluation looks at: every `every`-th, `most` at most."""
    return min(time_steps(num_frames, every), most)


def is_feasible(sentence: Sentence, *, most: int, every: int, stride: int) -> bool:
    """Whether a model with this temporal stride has enough time steps to say it."""
    return time_steps(longest(sentence.num_frames, most, every), stride) >= steps_needed(sentence.gloss)


def eval_indices(num_frames: int, most: int, every: int = 1) -> np.ndarray:
    """(T,) every `every`-th frame; of more than `most` those in the middle."""
    indices = np.arange(0, num_frames, every)
    first = max(0, (len(indices) - most) // 2)
    return indices[first:first + most]


def train_indices(num_frames: int, most: int, every: int, multiple: int, least: int,
                  rng: np.random.Generator, scale: tuple[float, float]) -> np.ndarray:
    """(T,) sorted: a random subset of every `every`-th frame, or all of them and random repeats.

    T is uniform in the range `scale` x their number, at least `least`, at most `most`, rounded up to a `multiple` (of
    which `most` is one).
    """
    phase = int(rng.integers(min(every, num_frames)))
    indices = np.arange(phase, num_frames, every)
    count = max(int(round(rng.uniform(*scale) * len(indices))), least, 1)
    count = -(-min(count, most) // multiple) * multiple
    if count <= len(indices):
        return np.sort(rng.choice(indices, count, replace=False))
    return np.sort(np.concatenate([indices, rng.choice(indices, count - len(indices))]))


def window_indices(num_frames: int, most: int, every: int, rng: np.random.Generator) -> np.ndarray:
    """(T,) every `every`-th frame from a random first one on; of more than `most` so many neighbours, from anywhere."""
    indices = np.arange(int(rng.integers(min(every, num_frames))), num_frames, every)
    first = int(rng.integers(max(0, len(indices) - most) + 1))
    return indices[first:first + most]


def on_frame(box: Box, side: int, height: int, width: int) -> Box:
    """A box of a square with this side, on a frame that is stretched to that square."""
    x0, y0, x1, y1 = box
    left, top = math.floor(x0 * width / side), math.floor(y0 * height / side)
    return left, top, max(left + 1, round(x1 * width / side)), max(top + 1, round(y1 * height / side))


class SentenceDataset(Dataset):
    """Items {ids, frames (T, S, S, 3) uint8, lengths, indices (T,), targets (U,), needed, reference, draws (6,), epoch}
    for `Key(epoch, item)`; with `keypoints` also points (T, K, 3) float32, in pixels of the frames as the model sees
    them.

    `indices` are the numbers of the frames; `targets` those of the glosses, 0 for one that `numbers` lacks; `needed`
    the time steps that these take; `reference` the words to score against.

    Whole frames are stretched to a square of frame_size, in training and in evaluation; training crops at random (one
    crop a sentence), evaluation to 1 / eval_resize in the middle.
    """

    def __init__(self, sentences: Sequence[Sentence], numbers: Mapping[str, int], *, num_frames: int, frame_size: int,
                 frame_stride: int = 1, stride: int = 1, multiple: int = 1, seed: int = 0, eval_resize: float = 1.0,
                 augment: Augment | None = None, jitter_frames: bool = False,
                 jitter_length: tuple[float, float] = (0.5, 1.5), recipe: Recipe = UNCHANGED,
                 keypoints: Keypoints | None = None, windows: bool = False):
        self.sentences, self.numbers, self.seed = list(sentences), numbers, seed
        self.num_frames, self.frame_size, self.frame_stride = num_frames, frame_size, frame_stride
        self.stride, self.multiple, self.eval_resize = stride, multiple, eval_resize
        self.augment, self.jitter_frames = augment, jitter_frames and augment is not None
        self.jitter_length = jitter_length
        self.recipe, self.keypoints, self.windows = recipe, keypoints, windows

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        sentence = self.sentences[key.item]
        rng = generator(self.seed, key.epoch, sentence.id)
        indices = self.indices(sentence, rng)
        images = read_images(sentence, indices)
        box = self._box(images[0], rng)
        draws = draw(rng, self.augment) if self.augment else no_draw()
        changes = draw_changes(rng, self.frame_size, self.recipe)
        item = {**self.about(key, indices), "draws": draws,
                "frames": changes.of_frames(crop_resize(images, box, self.frame_size))}
        if self.keypoints:
            points = self.keypoints.at(sentence, indices, *images[0].shape[:2])
            points = changes.of_points(on_crop(points, box, self.frame_size), self.frame_size)
            item["points"] = mirrored(points, self.frame_size) if draws[0] > 0.5 else points
        return item

    def about(self, key: Key, indices: np.ndarray) -> dict[str, Any]:
        """What an item holds beside its frames and their draws."""
        sentence = self.sentences[key.item]
        words = sentence.gloss if sentence.reference is None else sentence.reference
        return {"ids": sentence.id, "set": sentence.set, "indices": indices, "lengths": np.int64(len(indices)),
                "needed": np.int64(steps_needed(sentence.gloss)), "reference": list(words),
                "targets": [self.numbers.get(gloss, 0) for gloss in sentence.gloss], "epoch": np.int64(key.epoch),
                "ghost": key.ghost}

    def lengths(self, epoch: int) -> list[int]:
        """How many frames each item has in this epoch."""
        return [len(self.indices(sentence, generator(self.seed, epoch, sentence.id))) for sentence in self.sentences]

    def indices(self, sentence: Sentence, rng: np.random.Generator) -> np.ndarray:
        """The frames to look at, 0-based: in training never fewer than the sentence's glosses need, or with `windows`
        neighbours, at their own pace."""
        if not self.jitter_frames:
            return eval_indices(sentence.num_frames, self.num_frames, self.frame_stride)
        if self.windows:
            return window_indices(sentence.num_frames, self.num_frames, self.frame_stride, rng)
        least = self.stride * steps_needed(sentence.gloss)
        return train_indices(sentence.num_frames, self.num_frames, self.frame_stride, self.multiple, least, rng,
                             self.jitter_length)

    def _box(self, image: np.ndarray, rng: np.random.Generator) -> Box:
        """What is cut out of the frames."""
        height, width = image.shape[:2]
        side = max(height, width)
        if self.augment:
            box = random_box(side, side, rng, self.augment.min_scale, self.augment.max_aspect)
        else:
            box = center_box(side, side, self.eval_resize)
        return on_frame(box, side, height, width)


class SeenDataset(SentenceDataset):
    """The same with what a frozen net has seen in the frames, `features` (T, C) float32, in their place.

    seen: all that it saw in a sentence, (frames, C): so the frames are those of evaluation, whatever trains.
    """

    def __init__(self, sentences: Sequence[Sentence], numbers: Mapping[str, int],
                 seen: Callable[[Sentence], np.ndarray], **options: Any):
        super().__init__(sentences, numbers, **options)
        self.seen = seen

    def __getitem__(self, key: Key) -> dict[str, Any]:
        sentence = self.sentences[key.item]
        indices = self.indices(sentence, generator(self.seed, key.epoch, sentence.id))
        return {**self.about(key, indices), "features": self.seen(sentence)[indices]}


RAGGED = ("frames", "points", "features")  # a row for every frame, or time step


def packed(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Frames one item after the other, (sum of T, S, S, 3), and their points (sum of T, K, 3) where there are any;
    indices, targets and references in lists, the rest stacked."""
    apart = (*RAGGED, "indices")
    batch = collate([{name: value for name, value in item.items() if name not in apart} for item in items])
    for name in RAGGED:
        if name in items[0]:
            batch[name] = torch.from_numpy(np.concatenate([item[name] for item in items]))
    return batch | {"indices": [item["indices"].tolist() for item in items]}


def split(batch: Mapping[str, Any], name: str = "frames") -> list[torch.Tensor]:
    """Each item's own frames (T, S, S, 3), or points (T, K, 3)."""
    return list(batch[name].split(batch["lengths"].tolist()))
