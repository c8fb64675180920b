"""Signs labelled by their symbols as a torch data set: pictures and landmarks in, arrays of one size out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import Dataset

from slr.augment import Changes, draw_patch, moved
from slr.datasets.hearai import Sample, load_landmarks, picture, sample_indices
from slr.datasets.sentences import decode
from slr.errors import Mistake
from slr.hamnosys import landmark_size
from slr.loading import Key
from slr.paths import shown
from slr.runtime import generator
from slr.transforms import Augment, Range, crop_resize, draw, no_draw
from slr.video import VideoError

Size = tuple[int, int]


@dataclass(frozen=True)
class Pictures:
    """What becomes of the frames of a clip, all alike; the defaults leave them as they are.

    First resized, then cropped, as torchvision's Resize((s, s)) and CenterCrop do it; in training then turned, and a
    rectangle erased.
    """

    resize: int | None = None  # both sides, in pixels
    crop: Size | None = None  # height and width of the middle; what a frame lacks of it is black
    rotation: float = 0.0  # degrees: turned by up to so many either way, with grey from outside
    erase_p: float = 0.0  # with which a rectangle is erased
    jitter: tuple[Range, Range, Range, Range] = (0.0, 0.0, 0.0, 0.0)  # of slr.transforms.Augment: done on the device

    def size(self, height: int, width: int) -> Size:
        """(h, w) of what pictures of this size become."""
        return self.crop or ((self.resize, self.resize) if self.resize else (height, width))

    def of(self, images: Sequence[np.ndarray], rng: np.random.Generator | None = None) -> np.ndarray:
        """Images (H, W, 3) of one size, uint8 -> (T, h, w, 3) uint8; training gives `rng`. Of what is off nothing is
        drawn."""
        height, width = images[0].shape[:2]
        frames = crop_resize(list(images), (0, 0, width, height), self.resize) if self.resize else np.stack(images)
        frames = center_crop(frames, *self.crop) if self.crop else frames
        height, width = frames.shape[1:3]
        if rng and self.rotation:
            middle = (width - 1) / 2, (height - 1) / 2
            frames = moved(frames, cv2.getRotationMatrix2D(middle, rng.uniform(-self.rotation, self.rotation), 1))
        if rng and self.erase_p and rng.random() < self.erase_p:
            corner, patch = draw_patch(rng, height, width)
            frames = Changes((), corner, patch).of_frames(frames)
        return frames


def center_crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """(T, H, W, 3) -> (T, height, width, 3): the middle, in black where the frames are smaller, as torchvision has it.
    """
    lacks = [max(0, wanted - there) for wanted, there in zip((height, width), frames.shape[1:3], strict=True)]
    if any(lacks):
        frames = np.pad(frames, ((0, 0), *((lack // 2, (lack + 1) // 2) for lack in lacks), (0, 0)))
    top, left = (round((there - wanted) / 2) for there, wanted in zip(frames.shape[1:3], (height, width), strict=True))
    return np.ascontiguousarray(frames[:, top:top + height, left:left + width])


def read_pictures(sample: Sample, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """The frames at `indices` of its name, each uint8 (H, W, 3), RGB, all of one size.

    Raises:
        VideoError: one is missing or no image, or they are of several sizes.
    """
    images = [_decoded(picture(sample, int(index))) for index in indices]
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise VideoError(f"the frames of {sample.id} are of {len(sizes)} sizes",
                         f"{shown(sample.folder / sample.name)}: {sorted(sizes)}", "extract them anew")
    return images


def _decoded(file: Path) -> np.ndarray:
    try:
        return decode(file.read_bytes(), shown(file))
    except OSError as error:
        raise VideoError(f"cannot read {shown(file)}", error.strerror or str(error), "get it anew") from error


def padded(values: np.ndarray, steps: int) -> np.ndarray:
    """(n, …) -> (steps, …), zero from n on."""
    if len(values) == steps:
        return values
    out = np.zeros((steps, *values.shape[1:]), values.dtype)
    out[:len(values)] = values
    return out


class SignDataset(Dataset):
    """Items for `Key(epoch, item)`, T = segments: {ids, labels (K,) int64 in the order of `heads` with -1 where one is
    missing, length () int64: how many of the T frames there are, draws (6,) float32, ghost}, and frames
    (T, H, W, 3) uint8 where `pictures` are given, landmarks (T, L) float32 where `parts` are, both of the same frames
    and zero after them.

    Training draws the frames, and what `pictures` says of them; evaluation draws nothing. Landmarks stay what they
    are where the pictures are turned.

    Raises:
        Mistake: `time` is given and a sample has no frame rate; a sample has no landmarks that are asked for; without
            resize and crop pictures are of another size than the first sample's.
    """

    def __init__(self, samples: Sequence[Sample], heads: Sequence[str], *, segments: int, time: float = 0.0,
                 parts: Sequence[str] = (), pictures: Pictures | None = None, train: bool = False, seed: int = 0):
        if not parts and pictures is None:
            raise ValueError("neither frames nor landmarks are asked for")
        self.samples, self.heads, self.segments, self.time = list(samples), tuple(heads), segments, time
        self.parts, self.pictures, self.train, self.seed = tuple(parts), pictures, train, seed
        self._check("seconds between frames need a frame rate", "get <name>_properties.json, or leave out time",
                    [s.id for s in self.samples if time > 0 and s.fps is None])
        self._check("landmarks are asked for", "get <name>.npz, or train on frames alone",
                    [s.id for s in self.samples if parts and s.landmarks is None])
        self.size = self._size() if pictures is not None and self.samples else None

    def _check(self, wrong: str, do: str, without: list[str]) -> None:
        if without:
            raise Mistake(wrong, f"{len(without)} of {len(self.samples)} signs have none: {', '.join(without[:5])}", do)

    def _size(self) -> Size:
        """(h, w) of all frames; a picture is looked at where they stay as they are."""
        assert self.pictures is not None
        fixed = self.pictures.crop or self.pictures.resize
        first = self.samples[0]
        return self.pictures.size(*((0, 0) if fixed else read_pictures(first, [first.start])[0].shape[:2]))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        sample = self.samples[key.item]
        rng = generator(self.seed, key.epoch, sample.id) if self.train else None
        indices = sample_indices(sample.start, sample.stop, segments=self.segments, time=self.time, fps=sample.fps,
                                 rng=rng)
        labels = np.array([sample.labels.get(head, -1) for head in self.heads], np.int64)
        item: dict[str, Any] = {"ids": sample.id, "labels": labels, "length": np.int64(len(indices)),
                                "draws": no_draw(), "ghost": key.ghost}
        if self.pictures is not None:
            item["frames"] = padded(self._frames(sample, indices, self.pictures, rng), self.segments)
            item["draws"] = draw(rng, Augment(jitter=self.pictures.jitter)) if rng else no_draw()
        if self.parts:
            item["landmarks"] = padded(self._landmarks(sample, indices), self.segments)
        return item

    def _frames(self, sample: Sample, indices: np.ndarray, pictures: Pictures,
                rng: np.random.Generator | None) -> np.ndarray:
        frames = pictures.of(read_pictures(sample, indices), rng)
        if frames.shape[1:3] != self.size:
            raise Mistake(f"the pictures of {sample.id} are of another size than those of {self.samples[0].id}",
                          f"{frames.shape[1:3]} and {self.size}", "give resize_size or center_crop_size")
        return frames

    def _landmarks(self, sample: Sample, indices: np.ndarray) -> np.ndarray:
        assert sample.landmarks is not None
        first, last = int(indices[0]), int(indices[-1])
        return load_landmarks(sample.landmarks, self.parts, first, last)[indices - first]

    @property
    def landmark_size(self) -> int:
        """L: numbers of a frame's landmarks."""
        return landmark_size(self.parts)
