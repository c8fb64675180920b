"""Clips with words to them, in whichever form they come: prepared sentences, or long videos with subtitles.

    train = load(root, "phoenix2014", "train")          # data/SENTENCES/phoenix2014, by preprocess.py
    train = load(root, "bundestag", "train")            # data/BUNDESTAG/bundestag: metadata.csv and videos/
    cache = SeenCache(paths.seen(root, "phoenix2014"), "dinov2 …", root)

Either way a clip is a `Sentence`; a subtitle's glosses are its words.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slr import paths
from slr.datasets import bundestag, sentences
from slr.datasets.bundestag import METADATA, Sample
from slr.datasets.features import file_name, from_bytes, source_of, to_bytes
from slr.datasets.files import put
from slr.datasets.sentences import Frames, Sentence
from slr.errors import Mistake
from slr.paths import shown


def load(root: Path, split: str, part: str) -> list[Sentence]:
    """The clips of a set; [] where there is none. Raises Mistake where the split is in neither form, or damaged."""
    if not has_subtitles(root, split):
        if split == "bundestag" and not paths.sentences(root, split).is_dir():
            raise Mistake("the videos of bundestag are not there", shown(paths.bundestag(root, split)),
                          "put metadata.csv and videos/ there: see data/README.md, and preprocess.py --subtitles")
        return sentences.load_sentences(root, split, part)
    return list(_subtitles(paths.bundestag(root, split)).get(part, ()))


def has_subtitles(root: Path, split: str) -> bool:
    """Whether the split is one of long videos; prepared sentences of that name come first."""
    return not paths.sentences(root, split).is_dir() and paths.bundestag(root, split).is_dir()


def left_out(root: Path, split: str) -> dict[str, str]:
    """{id: reason} of the subtitles that cannot be looked at; what preprocess.py has left out is in its report."""
    return dict(_found(paths.bundestag(root, split)).left_out) if has_subtitles(root, split) else {}


def data_hash(root: Path, split: str) -> str:
    """Of what is said in which clips."""
    if not has_subtitles(root, split):
        return sentences.data_hash(root, split)
    return hashlib.sha256((paths.bundestag(root, split) / METADATA).read_bytes()).hexdigest()


@functools.lru_cache(maxsize=4)
def _found(folder: Path) -> bundestag.Found:
    return bundestag.read_samples(folder)


@functools.lru_cache(maxsize=4)
def _subtitles(folder: Path) -> dict[str, list[Sentence]]:
    sets = bundestag.split(_found(folder).samples)
    return {part: [_sentence(sample, part, folder) for sample in found] for part, found in sets.items()}


def _sentence(sample: Sample, part: str, folder: Path) -> Sentence:
    place = sample.file.relative_to(folder).as_posix()
    return Sentence(sample.id, part, tuple(sample.text.split()), sample.num_frames,
                    Frames("video", place, first=sample.start), signer=sample.video, text=sample.text, root=folder)


# --- what a frozen net has seen ---------------------------------------------------------------------------------

ARRAY = "seen"


class SeenCache:
    """What a net that does not train has seen in all frames of a clip, (frames, C) float32: a file a clip, below
    `folder` in one that is called by a hash of `made_with`, which says all that the numbers depend on.

    Files are written aside and renamed, and say whose and whence they are: several processes may fill one cache.
    """

    def __init__(self, folder: Path, made_with: dict[str, Any], root: Path):
        text = json.dumps(made_with, sort_keys=True)
        self.hash, self.root = hashlib.sha256(text.encode()).hexdigest()[:16], root
        self.folder, self.made_with = folder / self.hash, made_with

    def file(self, sentence: Sentence) -> Path:
        return self.folder / sentence.set / file_name(sentence.id, "safetensors")

    def missing(self, wanted: Sequence[Sentence]) -> list[Sentence]:
        """Those that have no file, or one of other frames."""
        return [sentence for sentence in wanted if not self._is_there(sentence)]

    def _is_there(self, sentence: Sentence) -> bool:
        try:
            with self.file(sentence).open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
                whole = 8 + length + header[ARRAY]["data_offsets"][1] == os.fstat(file.fileno()).st_size
            return whole and json.loads(header["__metadata__"]["about"]) == self._about(sentence)
        except (OSError, ValueError, LookupError, TypeError, MemoryError, OverflowError, RecursionError):
            return False  # a damaged file is written anew

    def _about(self, sentence: Sentence) -> dict[str, Any]:
        """Whose features these are, and in which state its video, zip or folder was: new frames are seen anew."""
        state = sentence.path.stat() if sentence.path.exists() else None
        size = state.st_size if state and sentence.path.is_file() else 0
        return {"id": sentence.id, "set": sentence.set, "source": source_of(sentence, self.root), "hash": self.hash,
                "size": size, "changed": state.st_mtime_ns if state else 0}

    def add(self, sentence: Sentence, seen: np.ndarray) -> None:
        """Raises Mistake where it cannot be written."""
        path = self.file(sentence)
        try:
            put(path, to_bytes({ARRAY: np.ascontiguousarray(seen, np.float32)}, self._about(sentence), "safetensors"))
        except OSError as error:
            raise Mistake(f"{shown(path)} cannot be written", error.strerror or str(error),
                          "make room, or set spatial.cache = False") from error

    def read(self, sentence: Sentence) -> np.ndarray:
        """Raises Mistake where the file is not there, or damaged."""
        path = self.file(sentence)
        try:
            arrays, _ = from_bytes(path.read_bytes(), "safetensors", path)
        except OSError as error:
            raise Mistake(f"{shown(path)} cannot be read", error.strerror or str(error),
                          "start again: what is missing is seen anew") from error
        return arrays[ARRAY]
