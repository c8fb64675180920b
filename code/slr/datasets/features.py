"""What a model sees in sentences, kept on the disk: a file a sentence, in a folder named by what they were made with.

    features = read_features("runs/phoenix2014t/S3D_CTC_001", "train")              # {id: (T', C) float32}
    features = read_features("S3D_CTC/phoenix2014t/1", "val", "gloss_feature")
    features = read_features("pretrained/head_rgb_input", "test")                   # SLRT's {train,dev,test}.pkl

extract_features.py writes <run folder>/features/<hash>/<set>/<id>.safetensors, and <hash>/<set>.json: what the hash is
of, and of every sentence its file, frames, time steps and SHA-256. A file is there whole or not at all, says itself
whose and whence it is, and so survives whoever wrote it. Files from elsewhere are data: nothing in them is run.
"""

import fcntl
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from slr import paths
from slr.catalogue import canonical
from slr.datasets.files import put
from slr.datasets.phoenix import read_features as read_pickle
from slr.datasets.sentences import Sentence
from slr.errors import Mistake
from slr.paths import Experiment, shown

if TYPE_CHECKING:
    from torch import Tensor

BACKBONE, GLOSS, LOGITS = NAMES = ("head_rgb_input", "gloss_feature", "logits")  # of arrays; the first as SLRT has it
FORMATS = ("safetensors", "npz")
PICKLES = {"train": "train.pkl", "val": "dev.pkl", "test": "test.pkl"}  # of SLRT, by our sets
ABOUT = "about"  # the text in each file: whose features these are
LONGEST_NAME = 150
AGAIN = "run extract_features.py again: it keeps what is whole"

Arrays = dict[str, np.ndarray]


# --- one file -----------------------------------------------------------------------------------------------

def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_name(sentence: str, form: str) -> str:
    """The file of a sentence's id, whatever stands in the id: one name without a folder, a different one for each."""
    safe = quote(sentence, safe="+,=@()", errors="surrogatepass")
    safe = f"%2E{safe[1:]}" if safe.startswith(".") else safe
    if len(safe) > LONGEST_NAME:
        safe = f"{safe[:LONGEST_NAME - 20]}-{sha256(sentence.encode('utf-8', 'surrogatepass'))[:16]}"
    return f"{safe}.{form}"


def source_of(sentence: Sentence, root: Path) -> str:
    """A hash of where its frames are (below `root`, where they are) and which: other frames, other features."""
    base = sentence.root.relative_to(root) if sentence.root.is_relative_to(root) else sentence.root
    frames = sentence.frames
    whence = [frames.kind, frames.place, frames.names, frames.first] if frames else None
    return sha256(json.dumps([base.as_posix(), whence, sentence.num_frames]).encode())[:16]


def to_bytes(arrays: Arrays, about: Mapping[str, Any], form: str) -> bytes:
    """A file of these arrays; the same bytes for the same content."""
    text = json.dumps(about)
    if form == "safetensors":
        from safetensors.numpy import save

        return save(arrays, {ABOUT: text})  # of several entries safetensors writes them in any order
    stream = io.BytesIO()
    np.savez(stream, **arrays, **{ABOUT: np.array(text)})  # type: ignore[arg-type]
    return stream.getvalue()


def from_bytes(data: bytes, form: str, path: Path) -> tuple[Arrays, dict[str, Any]]:
    """What `to_bytes` took. Raises Mistake for anything else, or arrays that are not (T', C) float32, T' the same."""
    from safetensors import SafetensorError

    try:
        arrays, text = (_safetensors if form == "safetensors" else _npz)(data)
        about = json.loads(text)
        if not isinstance(about, dict) or any(a.ndim != 2 or a.dtype != np.float32 for a in arrays.values()):
            raise ValueError("it has other things than arrays (T', C) of float32")
        if len({len(array) for array in arrays.values()}) != 1:
            raise ValueError("its arrays have different time steps, or there is none")
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, OSError, EOFError, MemoryError,
            zipfile.BadZipFile, zlib.error, NotImplementedError, RecursionError) as error:
        raise Mistake(f"{shown(path)} holds no features", str(error)[:200] or type(error).__name__,
                      f"remove it, then {AGAIN}") from error
    return arrays, about


def _safetensors(data: bytes) -> tuple[Arrays, str]:
    from safetensors.numpy import load

    arrays = load(data)  # checks the header's lengths against the file's
    return arrays, json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"][ABOUT]


def _npz(data: bytes) -> tuple[Arrays, str]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, str(arrays.pop(ABOUT))


# --- one set ------------------------------------------------------------------------------------------------

@dataclass
class Shelf:
    """The features of one set in the folder of one hash: files in <set>/, and what is known of them in <set>.json.

    `facts` open that file: hash, names (of the arrays in a file), format, and whatever they were made with. `root` is
    the data folder. Each of `items` has file, frames (that were looked at), steps, bytes, sha256 and source;
    `left_out` has the reasons.
    """

    folder: Path
    part: str
    facts: dict[str, Any]
    root: Path
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, part: str, facts: dict[str, Any], root: Path) -> "Shelf":
        """With what <set>.json says, if it is there; without it the files still speak for themselves."""
        shelf = cls(folder, part, facts, root)
        shelf._read()
        return shelf

    def _read(self) -> None:
        if self.index.is_file():
            found = read_index(self.index)
            self.items, self.left_out = found["items"], found["left_out"]

    @property
    def index(self) -> Path:
        return self.folder / f"{self.part}.json"

    def file(self, sentence: str) -> Path:
        return self.folder / self.part / file_name(sentence, self.facts["format"])

    def has(self, sentence: Sentence) -> bool:
        """Whether its file is there, whole, and of these frames. One that <set>.json does not know of is taken up."""
        path, entry = self.file(sentence.id), self.items.get(sentence.id)
        if not path.is_file():
            return False
        data = path.read_bytes()
        if entry:
            return entry["sha256"] == sha256(data) and entry.get("source") == source_of(sentence, self.root)
        try:
            arrays, about = from_bytes(data, self.facts["format"], path)
        except Mistake:
            return False
        frames = about.get("frames", 0)
        if set(arrays) != set(self.facts["names"]) or about != self._about(sentence, frames):
            return False
        self._note(sentence, data, frames, len(next(iter(arrays.values()))))
        return True

    def _about(self, sentence: Sentence, frames: Any) -> dict[str, Any]:
        return {"id": sentence.id, "set": self.part, "frames": frames, "source": source_of(sentence, self.root),
                "hash": self.facts["hash"]}

    def add(self, sentence: Sentence, arrays: Arrays, frames: int) -> None:
        """Write the file of a sentence of which so many frames were looked at: arrays (T', C) float32 by name."""
        data = to_bytes(arrays, self._about(sentence, frames), self.facts["format"])
        self._put(self.file(sentence.id), data)
        self._note(sentence, data, frames, len(next(iter(arrays.values()))))

    def _note(self, sentence: Sentence, data: bytes, frames: int, steps: int) -> None:
        self.left_out.pop(sentence.id, None)
        self.items[sentence.id] = {
            "file": f"{self.part}/{self.file(sentence.id).name}", "frames": frames, "steps": steps,
            "bytes": len(data), "sha256": sha256(data), "source": source_of(sentence, self.root)}

    def leave_out(self, sentence: str, reason: str) -> None:
        self.items.pop(sentence, None)
        self.left_out[sentence] = reason

    def save(self, sentences: Sequence[Sentence]) -> None:
        """Write <set>.json if it changes: these sentences in this order, complete when all have a file or a reason."""
        ids = [sentence.id for sentence in sentences]
        self.items = {name: self.items[name] for name in ids if name in self.items}
        self.left_out = {name: self.left_out[name] for name in ids if name in self.left_out}
        complete = len(self.items.keys() | self.left_out.keys()) == len(ids)
        text = json.dumps({**self.facts, "set": self.part, "complete": complete, "items": self.items,
                           "left_out": self.left_out}, indent=1) + "\n"
        if not self.index.is_file() or self.index.read_bytes() != text.encode():
            self._put(self.index, text)

    @staticmethod
    def _put(path: Path, content: str | bytes) -> None:
        try:
            put(path, content)
        except OSError as error:
            raise Mistake(f"{shown(path)} cannot be written", error.strerror or str(error),
                          "make room, or give --out another folder; the same command goes on") from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process writes here meanwhile; what a killed one has left half-written goes."""
        lock = self._lock()
        try:
            for path in (*(self.folder / self.part).glob(".*"), *self.folder.glob(f".{self.index.name}.*")):
                path.unlink()
            self._read()
            yield
        finally:
            os.close(lock)

    def _lock(self) -> int:
        try:
            (self.folder / self.part).mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / f".{self.part}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise Mistake(f"nothing can be written to {shown(self.folder)}", error.strerror or str(error),
                          "give --out another folder") from error
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: its loaders do not hold it
        except (BlockingIOError, PermissionError):
            os.close(lock)
            raise Mistake(f"another process writes the features of the {self.part} set", shown(self.folder),
                          "wait for its end, or give other --sets") from None
        return lock


def read_index(path: Path) -> dict[str, Any]:
    """A <set>.json. Raises Mistake where it is damaged, or something else."""
    wanted = {"hash": str, "names": list, "format": str, "complete": bool, "items": dict, "left_out": dict}
    try:
        found = json.loads(path.read_bytes())
        wrong = [key for key, kind in wanted.items() if type(found[key]) is not kind]
        items = found["items"].values()
        if wrong or found["format"] not in FORMATS or any(type(item["sha256"]) is not str for item in items):
            raise ValueError(f"{', '.join(wrong) or 'its format or items'} cannot be read")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise Mistake(f"{shown(path)} is no index of features", str(error)[:200],
                      f"remove it, then {AGAIN}") from error
    return found


# --- all that a task needs ----------------------------------------------------------------------------------

def read_features(where: Path | str, part: str, name: str = BACKBONE) -> dict[str, "Tensor"]:
    """The features of a set, {id: (T', C) float32}, one C.

    Args:
        where: a folder of extract_features.py (that of a hash, or a run's, if there is one of them in it), a folder of
            SLRT's feature pickles, or MODEL/SPLIT/EXP_NO.
        part: train, val or test; SLRT's `dev` is val.
        name: of NAMES; a folder of SLRT's holds what it is called.

    Raises:
        Mistake: there are none, several, or they are not complete; or a file is damaged, which is named.
    """
    from torch import from_numpy

    place = _place(where)
    pickle = place / PICKLES[part]
    if pickle.is_file():
        if name not in (BACKBONE, place.name):
            raise Mistake(f"{shown(pickle)} holds no {name}", "SLRT's pickles hold one array each",
                          f"give {BACKBONE}, or a folder called {name}")
        found = read_pickle(pickle)
    else:
        found = dict(_read_shelf(find_shelf(place, part, name), part, name))
    widths = {value.shape[1] for value in found.values()}
    if len(widths) > 1:
        raise Mistake(f"the features in {shown(place)} do not belong together", f"widths {sorted(widths)}",
                      "extract them into an empty folder")
    return {sentence: from_numpy(value) for sentence, value in found.items()}


def made_with(where: Path | str, part: str, name: str = BACKBONE) -> str | None:
    """The hash of the weights that a set's features were extracted with; None of SLRT's pickles, which do not say."""
    place = _place(where)
    if (place / PICKLES[part]).is_file():
        return None
    return read_index(find_shelf(place, part, name) / f"{part}.json").get("of", {}).get("weights")


def of_other_frames(where: Path | str, sentences: Sequence[Sentence], root: Path) -> list[str]:
    """The sentences whose features were made when their frames were others; of SLRT's pickles nobody can tell."""
    place, other = _place(where), list[str]()
    for part in sorted({sentence.set for sentence in sentences}):
        if (place / PICKLES[part]).is_file():
            continue
        items = read_index(find_shelf(place, part, BACKBONE) / f"{part}.json")["items"]
        other += [sentence.id for sentence in sentences if sentence.set == part and sentence.frames
                  and items.get(sentence.id, {}).get("source", "") not in ("", source_of(sentence, root))]
    return other


def _place(where: Path | str) -> Path:
    place, parts = paths.HOME / Path(where).expanduser(), str(where).split("/")
    if not place.exists() and len(parts) == 3 and parts[2][:1].isdecimal():
        place = Experiment(canonical(parts[0]), parts[1], parts[2]).run
    if not place.is_dir():
        raise Mistake("there is no folder of features", shown(place), "run extract_features.py, or give its folder")
    return place


def find_shelf(place: Path, part: str, name: str) -> Path:
    """The folder, in or below `place`, whose files of the set hold `name`. Raises Mistake unless there is one."""
    found = {path.parent: read_index(path) for pattern in (".", "*", "features/*")
             for path in sorted(place.glob(f"{pattern}/{part}.json"))}
    fitting = [folder for folder, index in found.items() if name in index["names"]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise Mistake(f"there are several features of the {part} set in {shown(place)}",
                      ", ".join(folder.name for folder in fitting), "give the folder of one of them")
    others = ", ".join(f"{folder.name}: {' '.join(index['names'])}" for folder, index in found.items())
    raise Mistake(f"there is no {name} of the {part} set in {shown(place)}", others or "no features at all",
                  f"run extract_features.py with --sets {part} --name {name}")


def _read_shelf(folder: Path, part: str, name: str) -> Iterator[tuple[str, np.ndarray]]:
    index = read_index(folder / f"{part}.json")
    if not index["complete"]:
        raise Mistake(f"the features of the {part} set in {shown(folder)} are not complete",
                      f"{len(index['items'])} sentences are there", AGAIN)
    for sentence, entry in index["items"].items():
        path = folder / part / file_name(sentence, index["format"])
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Mistake(f"cannot read {shown(path)}", error.strerror or str(error), AGAIN) from error
        if sha256(data) != entry["sha256"]:
            raise Mistake(f"{shown(path)} is damaged", "its SHA-256 is not the index's", AGAIN)
        arrays, _ = from_bytes(data, index["format"], path)
        if name not in arrays:
            raise Mistake(f"{shown(path)} holds no {name}", ", ".join(arrays), AGAIN)
        yield sentence, arrays[name]
