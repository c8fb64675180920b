"""Sentences of signing in the one form that training reads, whatever corpus they come from.

    sentences = load_sentences(paths.data_root(), "phoenix2014t", "train")
    glosses = load_vocabulary(paths.data_root(), "phoenix2014t")      # number 0 is the blank of CTC
    frames = read_frames(sentences[0], range(sentences[0].num_frames))      # uint8 (T, H, W, 3), RGB

preprocess.py writes data/SENTENCES/<split>/{train,dev,test}.jsonl, a sentence a line, vocabulary.txt and report.json.
The sets are called train, val and test here; `dev` is what the corpora call the second. Files from elsewhere are not
trusted: what they name is looked for below the frames' own folder only.
"""

import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from slr import paths
from slr.datasets.files import put
from slr.datasets.wlasl import read_class_list
from slr.errors import Mistake
from slr.paths import SETS
from slr.video import VideoError
from slr.video import read_frames as read_video

FILES = {"train": "train.jsonl", "val": "dev.jsonl", "test": "test.jsonl"}
VOCABULARY = "vocabulary.txt"
BLANK = "<blank>"
KINDS = ("folder", "zip", "video")
LONGEST = 100_000  # frames: an hour at 25 a second
LARGEST = 1 << 26  # bytes of one image: a small zip can unpack to anything
NUMBERED = re.compile(r"([^%\0]*)%(?:0[1-9])?d([^%\0]*)")  # frame names with one number in them: images%04d.png


# --- records ------------------------------------------------------------------------------------------------

def is_inside(place: str) -> bool:
    """Whether a path out of a file stays below the folder that it is meant for, on any system."""
    parts = place.split("/")
    return bool(place) and not re.search(r"[\0\\]|^.:", place) and not {"", ".", ".."} & set(parts)


@dataclass(frozen=True)
class Frames:
    """Where the frames of a sentence are, below the folder that all frames of its split are in.

    `names` are those of the images in a folder or a zip: numbered from `first` on (images%04d.png), or one by one.
    """

    kind: str  # of KINDS
    place: str
    names: str | tuple[str, ...] = ""
    first: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not is_inside(self.place) or self.first < 0:
            raise ValueError(f"frames in {self.kind} {self.place!r}")
        fine = not self.names if self.kind == "video" else all(map(self._is_name, self._listed()))
        if not fine or (isinstance(self.names, str) and self.names and not NUMBERED.fullmatch(self.names)):
            raise ValueError(f"frames called {self.names!r}"[:120])

    def _listed(self) -> tuple[str, ...]:
        return (self.names,) if isinstance(self.names, str) else self.names

    def _is_name(self, name: str) -> bool:
        return is_inside(name) and ("/" not in name or self.kind == "zip")

    def name(self, index: int) -> str:
        """The file of frame `index`, which is 0-based."""
        return self.names % (self.first + index) if isinstance(self.names, str) else self.names[index]


@dataclass(frozen=True)
class Sentence:
    """One recorded sentence. `num_frames` are those that there are, whatever its annotation says."""

    id: str
    set: str  # train | val | test
    gloss: tuple[str, ...]
    num_frames: int = 0
    frames: Frames | None = None  # None: prepared without frames
    signer: str = ""
    text: str = ""
    reference: tuple[str, ...] | None = None  # what the corpus scores against, where that is not `gloss`
    root: Path = field(default=Path(), compare=False, repr=False)  # where `frames` start

    @property
    def path(self) -> Path:
        """The folder, zip file or video that its frames are in."""
        return self.root / (self.frames.place if self.frames else "")


def steps_needed(gloss: Sequence[str]) -> int:
    """The fewest time steps in which CTC can say this: a blank has to part the same gloss from itself."""
    return len(gloss) + sum(a == b for a, b in zip(gloss, gloss[1:], strict=False))


def time_steps(frames: int, stride: int = 4) -> int:
    """ceil(frames / stride): for 4 also ceil(ceil(frames / 2) / 2), the steps of S3D."""
    return -(-frames // stride)


# --- the prepared files -------------------------------------------------------------------------------------

def to_row(sentence: Sentence) -> dict[str, Any]:
    """A line of a prepared file. What is unknown is left out."""
    row: dict[str, Any] = {"id": sentence.id, "set": sentence.set}
    if sentence.frames:
        row["frames"] = {"kind": sentence.frames.kind, "place": sentence.frames.place}
        if sentence.frames.names:
            row["frames"]["names"] = sentence.frames.names
        if isinstance(sentence.frames.names, str) and sentence.frames.names:
            row["frames"]["first"] = sentence.frames.first
    row |= {"num_frames": sentence.num_frames, "signer": sentence.signer}
    row |= {"gloss": sentence.gloss, "text": sentence.text}
    return row if sentence.reference is None else row | {"reference": sentence.reference}


def _field(row: Any, key: str, kind: type, default: Any = None) -> Any:
    value = row.get(key, default) if isinstance(row, dict) else None
    if type(value) is not kind:
        raise ValueError(f"{key} is {str(value)[:60]!r}, no {kind.__name__}" if value is not None else f"no {key!r}")
    return value


def _words(row: Any, key: str) -> tuple[str, ...]:
    words = tuple(_field(row, key, list))
    if not all(isinstance(word, str) and word.split() == [word] for word in words):
        raise ValueError(f"{key} is {str(words)[:60]}, which are not glosses")
    return words


def _frames(row: dict[str, Any], count: int) -> Frames | None:
    if row.get("frames") is None:
        return None
    found = _field(row, "frames", dict)
    names = found.get("names", "")
    if isinstance(names, list):
        names = tuple(names)
        if len(names) != count or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{len(names)} names for {count} frames")
    elif not isinstance(names, str):
        raise ValueError("names of frames that are no text")
    return Frames(_field(found, "kind", str), _field(found, "place", str), names, _field(found, "first", int, 0))


def from_row(row: Any) -> Sentence:
    """What `to_row` made.

    Raises:
        ValueError: it lacks something, or names frames outside of their folder.
    """
    part, count = _field(row, "set", str), _field(row, "num_frames", int)
    frames = _frames(row, count)
    if part not in SETS or not (1 if frames else 0) <= count <= LONGEST:
        raise ValueError(f"set {part!r}, {count} frames")
    reference = _words(row, "reference") if "reference" in row else None
    return Sentence(_field(row, "id", str), part, _words(row, "gloss"), count, frames, _field(row, "signer", str, ""),
                    _field(row, "text", str, ""), reference)


def write_sentences(path: Path, sentences: Iterable[Sentence]) -> None:
    put(path, "".join(json.dumps(to_row(sentence), ensure_ascii=False) + "\n" for sentence in sentences))


def read_sentences(path: Path, part: str, root: Path = Path()) -> list[Sentence]:
    """The sentences of one prepared file, all of the set `part`; their frames are below `root`.

    Raises:
        Mistake: it cannot be read, or a line is damaged or stands twice; names file and line.
    """
    found: dict[str, Sentence] = {}
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line:
            continue
        try:
            sentence = from_row(json.loads(line))
            if sentence.set != part or sentence.id in found:
                raise ValueError(f"{sentence.id} {'stands twice' if sentence.id in found else 'is of another set'}")
        except (ValueError, RecursionError) as error:
            raise Mistake(f"{paths.shown(path)}, line {number} is no sentence", str(error) or "nested too deeply",
                          "prepare the split again") from error
        found[sentence.id] = replace(sentence, root=root)
    return list(found.values())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"cannot read {paths.shown(path)}", str(error), "prepare the split again") from error


def _needed(root: Path, split: str, name: str) -> Path:
    path = paths.sentences(root, split) / name
    if not path.is_file():
        raise Mistake(f"{split} is not prepared", f"{paths.shown(path)} is missing",
                      f"run: python preprocess.py -as {split}")
    return path


def frames_root(root: Path, split: str) -> Path:
    """The folder that the frames of a prepared split are below, as its report says."""
    path = _needed(root, split, "report.json")
    try:
        return root / json.loads(_text(path))["frames"]
    except (ValueError, KeyError, TypeError) as error:
        raise Mistake(f"{paths.shown(path)} is no report of preprocess.py", f"its folder of frames: {error}",
                      "prepare the split again") from error


def load_sentences(root: Path, split: str, part: str, frames: Path | None = None) -> list[Sentence]:
    """The sentences of one set of a prepared split; [] where it has none.

    Args:
        part: train, val or test.
        frames: where the frames are, if not where they were when the split was prepared.

    Raises:
        Mistake: the split is not prepared, or its files are damaged.
    """
    path = _needed(root, split, FILES[part])
    return read_sentences(path, part, frames_root(root, split) if frames is None else frames)


def load_vocabulary(root: Path, split: str) -> list[str]:
    """The glosses of a prepared split by their numbers: the blank, then 1, 2, …"""
    path = _needed(root, split, VOCABULARY)
    glosses = read_class_list(path)
    if glosses[:1] != [BLANK] or len(set(glosses)) < len(glosses):
        raise Mistake(f"{paths.shown(path)} is no vocabulary",
                      f"its first line is {glosses[:1]}, or a gloss stands twice", "prepare the split again")
    return glosses


def data_hash(root: Path, split: str) -> str:
    """SHA-256 over the prepared sets and the vocabulary: on which data a model was trained."""
    whole = hashlib.sha256()
    for name in [VOCABULARY, *FILES.values()]:
        whole.update(f"{name}\n".encode() + _needed(root, split, name).read_bytes())
    return whole.hexdigest()


# --- frames -------------------------------------------------------------------------------------------------

_ARCHIVES: dict[tuple[int, Path], zipfile.ZipFile] = {}
# zipfile's own, and what it raises for a password (RuntimeError) or a method it does not know (NotImplementedError)
ZIP_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)


def archive(path: Path) -> zipfile.ZipFile:
    """An open zip file, opened once in every process: its list of names is long.

    Raises:
        VideoError: it is missing or no zip file.
    """
    key = os.getpid(), path  # a fork shares the position in the file, and two readers of it would read nonsense
    if key not in _ARCHIVES:
        try:
            _ARCHIVES[key] = zipfile.ZipFile(path)
        except ZIP_ERRORS as error:
            raise VideoError(f"cannot read {path}", str(error) or "it is no zip file", "get it anew") from error
    return _ARCHIVES[key]


def unzipped(path: Path, name: str) -> bytes:
    """One file of a zip.

    Raises:
        KeyError: there is no such file in it.
        VideoError: it cannot be unpacked, or is larger than an image can be.
    """
    info = archive(path).getinfo(name)
    if info.file_size > LARGEST:
        raise VideoError(f"cannot read {name} in {path}", f"{info.file_size} bytes are no frame")
    try:
        return archive(path).read(info)
    except ZIP_ERRORS as error:
        raise VideoError(f"cannot read {name} in {path}", str(error) or "it is damaged", "get the zip anew") from error


def _data(sentence: Sentence, frames: Frames, index: int) -> bytes:
    """The bytes of one image."""
    name = frames.name(index)
    try:
        if frames.kind == "zip":
            return unzipped(sentence.path, name)
        return (sentence.path / name).read_bytes()
    except (OSError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not in the zip"
        raise VideoError(f"frame {index} of {sentence.id} cannot be read", f"{sentence.path / name}: {reason}",
                         "get it, or prepare the split again") from error


def decode(data: bytes, name: str) -> np.ndarray:
    """A png or jpg as uint8 (H, W, 3), RGB.

    Raises:
        VideoError: these bytes are no image.
    """
    import cv2
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    except cv2.error as error:  # such as 2**30 pixels and more
        raise VideoError(f"cannot read {name}", f"OpenCV: {error.err}", "get it anew") from error
    if image is None:
        raise VideoError(f"cannot read {name}", f"{len(data)} bytes that are no image", "get it anew")
    return image


def read_images(sentence: Sentence, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """The frames at `indices` (0-based, any order, repeats allowed), each uint8 (H, W, 3), RGB; a repeat is one array.

    Raises:
        VideoError: a frame is missing or does not decode; names it.
    """
    frames, wanted = sentence.frames, np.asarray(indices, np.int64)
    if frames is None:
        raise VideoError(f"{sentence.id} has no frames", "it was prepared with --no_frames", "prepare the split again")
    if wanted.ndim != 1 or not len(wanted) or wanted.min() < 0 or wanted.max() >= sentence.num_frames:
        raise ValueError(f"{sentence.id} has frames 0 to {sentence.num_frames - 1}, asked for {indices!r}"[:200])
    if frames.kind == "video":
        return list(read_video(sentence.path, frames.first + wanted))
    asked = wanted.tolist()
    distinct = {i: decode(_data(sentence, frames, i), str(sentence.path / frames.name(i))) for i in set(asked)}
    return [distinct[i] for i in asked]


def read_frames(sentence: Sentence, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """The same as one array, uint8 (T, H, W, 3), RGB, T = len(indices).

    Raises:
        VideoError: also where two frames are not of the same size.
    """
    images = read_images(sentence, indices)
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise VideoError(f"cannot read {sentence.id}", f"frames of {len(sizes)} sizes in {sentence.path}")
    return np.stack(images)
