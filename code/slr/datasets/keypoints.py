"""Points on the frames of sentences, for heatmaps: read once from a pickle, looked up by sentence and frames.

    points = load(path)                      # {"fullFrame-210x260px/<folder>/<id>": {"keypoints": (T, K, 3)}}
    points.check(sentences)                  # a Mistake where a sentence has none, or not one set of points a frame
    found = points.at(sentence, indices, height, width)     # (T, K, 3) x, y, confidence, on frames of that size

The 133 points of COCO-WholeBody (Jin et al. 2020, https://arxiv.org/abs/2007.11858) become the 79 that Chen et al. use,
Two-Stream Network for Sign Language Recognition and Translation (2022), https://arxiv.org/abs/2211.01367: 11 of the
body down to the wrists, every second of the mouth, both hands, every third of the rest of the face. Of points of any
other number all are kept. They are held as float16: for 6000 sentences 0.4 GB, and exact to a sixteenth of a pixel
at 256.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slr.datasets.phoenix import read_keypoints
from slr.datasets.sentences import Sentence
from slr.errors import Mistake
from slr.paths import shown

WHOLE_BODY = 133
CHOSEN = (*range(11), *range(71, 91, 2), *range(91, 133), *range(23, 71, 3))

Size = tuple[int, int]


@dataclass(frozen=True)
class Keypoints:
    """The points of a file: `tracks` {id: (T, K, 3)} and `sizes`, width and height of the frames that they are on."""

    path: Path
    tracks: dict[str, np.ndarray]
    sizes: dict[str, Size | None]

    @property
    def count(self) -> int:
        """K: points of a frame."""
        return next(iter(self.tracks.values())).shape[1]

    def check(self, sentences: Iterable[Sentence]) -> None:
        """Raises Mistake where a sentence has no points, or they are of more or fewer frames than it has."""
        sentences = list(sentences)
        missing = [s.id for s in sentences if s.id not in self.tracks]
        if missing:
            raise Mistake(f"{len(missing)} of {len(sentences)} sentences have no keypoints in {shown(self.path)}",
                          ", ".join(missing[:5]), "get the file that has all sets of this corpus")
        wrong = [f"{s.id} ({len(self.tracks[s.id])} for {s.num_frames} frames)" for s in sentences
                 if len(self.tracks[s.id]) != s.num_frames]
        if wrong:
            raise Mistake(f"the keypoints of {len(wrong)} of {len(sentences)} sentences are of other frames",
                          f"{shown(self.path)}: {', '.join(wrong[:5])}", "get those of the frames that are prepared")

    def at(self, sentence: Sentence, indices: np.ndarray, height: int, width: int) -> np.ndarray:
        """(T, K, 3) float32: the points on the frames `indices`, in pixels of frames of height x width."""
        points, size = self.tracks[sentence.id][indices].astype(np.float32), self.sizes[sentence.id]
        if size not in (None, (width, height)):
            assert size
            points[..., :2] = (points[..., :2] + 0.5) * np.array([width / size[0], height / size[1]], np.float32) - 0.5
        return points


def load(path: Path) -> Keypoints:
    """The points in a file; kept, so that the sets of a split share them.

    Raises:
        Mistake: no such file, it names more than data, or entries with points of different numbers.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise Mistake(f"the keypoints {shown(path)} cannot be read", error.strerror or str(error),
                      "set data.keypoints to their file, from the data folder on") from error
    return _load(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _load(path: Path, _time: int, _size: int) -> Keypoints:
    found = read_keypoints(path)
    counts = {points.shape[1] for points, _ in found.values()}
    if len(counts) != 1 or 0 in counts:
        raise Mistake(f"{shown(path)} has no keypoints of one kind", f"entries of {sorted(counts)} points",
                      "every frame of every sentence has the same points")
    return Keypoints(path, {name: _compact(points) for name, (points, _) in found.items()},
                     {name: size for name, (_, size) in found.items()})


def _compact(points: np.ndarray) -> np.ndarray:
    """(T, K, 3) -> float16; what is nowhere, or too far away for that, has confidence 0."""
    if points.shape[1] == WHOLE_BODY:
        points = points[:, list(CHOSEN)]
    with np.errstate(over="ignore"):
        compact = points.astype(np.float16)
    compact[~np.isfinite(compact).all(-1)] = 0
    return compact
