"""PHOENIX-2014, PHOENIX-2014T and CSL-Daily: readers of every form in which people have their annotations.

    forms = find_annotations("data/PHOENIX-2014")        # {"csv": {"train": path, ...}, "npy": {...}, ...}
    entries = read_form("npy", forms["npy"])             # all three sets
    glosses = read_gloss_numbers("gloss_dict.npy")       # {gloss: number}, from 1
    features = read_features("head_rgb_input/train.pkl")

csv   the corpus file, <name>.corpus.csv: columns by their header, separated by |
map   CSL-Daily's video_map.txt, with the sets in split_1.txt beside it
npy   <set>_info.npy: {0: {fileid, folder, signer, label, num_frames, original_info}, ..., "prefix": ...}
slrt  gzipped pickles of the SLRT and neccam programs: [{name, signer, gloss, text, num_frames}, ...]
stm   sclite's references: <id> 1 <signer> <start> <stop> GLOSS GLOSS ...

Every reader is strict, and a hostile file can do no more than be refused: see unpickle.py.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slr import paths
from slr.datasets.sentences import is_inside
from slr.datasets.unpickle import load_npy, load_pickle
from slr.errors import Mistake
from slr.metrics import transcripts
from slr.paths import SETS

SET_NAMES = {"train": "train", "dev": "val", "val": "val", "test": "test"}
_SET = "(?P<set>train|dev|val|test)"
FORMS = {  # in the order of preference; a file is known by its name
    "csv": rf"(?:[\w-]+\.)?{_SET}\.corpus\.csv",
    "map": r"video_map\.txt",
    "npy": rf"{_SET}_info\.npy",
    "slrt": rf"(?:phoenix|csl)[\w-]*\.{_SET}",
    "stm": rf"[\w-]*groundtruth-{_SET}\.stm",
}
COLUMNS = {"id": ("id", "name"), "folder": ("folder", "video"), "signer": ("signer", "speaker"),
           "gloss": ("annotation", "orth", "gloss"), "text": ("translation", "text", "char"),
           "num_frames": ("num_frames",), "start": ("start",), "end": ("end",)}
NO_GLOSSES = {"<s>", "</s>", "<pad>", "<unk>", "<mask>", "<si>", "<blank>"}  # what programs add to a vocabulary
FEATURE_BYTES = 1 << 35  # of a feature file when unpacked: CSL-Daily's have 2 to 4 GB
FOREVER = "1.79769e+308"  # how these STM files say "to the end"


@dataclass(frozen=True)
class Entry:
    """A sentence as one annotation tells it; what that form does not say is "" or None. `set`: train, val or test."""

    id: str
    set: str = ""
    signer: str = ""
    gloss: tuple[str, ...] = ()
    text: str = ""
    folder: str = ""  # where its frames are, as the annotation has it
    num_frames: int | None = None


# --- what all readers do ------------------------------------------------------------------------------------

def _wrong(path: Path, where: str, found: str) -> Mistake:
    return Mistake(f"{paths.shown(path)} is no annotation of sentences", f"{where} {found}"[:300],
                   "mend that entry, or get the file anew")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """("line 3", text) of every line that is not empty; lines end where editors say so and nowhere else."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Mistake(f"cannot read {paths.shown(path)}", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise Mistake(f"{paths.shown(path)} is no UTF-8 text", str(error), "convert it, or get it anew") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", line.removesuffix("\r")


def _place(value: Any, path: Path, where: str) -> str:
    """A relative path out of an annotation, which may not lead anywhere else."""
    if not isinstance(value, str) or not is_inside(value):
        raise _wrong(path, where, f"names {str(value)[:80]!r}, which is no path below a folder")
    return value


def _id(value: Any, path: Path, where: str) -> str:
    """The id in a name: itself, or its folder where the name is a path of frames."""
    parts = _place(value, path, where).split("/")
    found = parts[-3] if len(parts) > 2 and parts[-2] == "1" else parts[-1]
    if found.split() != [found]:
        raise _wrong(path, where, f"has the id {found!r}")
    return found


def _signer(value: Any) -> str:
    """Signer05, which some files spell signer05."""
    text = str(value).strip() if isinstance(value, str | int) else ""
    known = re.fullmatch(r"(?i)signer(\d+)", text)
    return f"Signer{int(known[1]):02d}" if known else text


def _glosses(value: Any, path: Path, where: str) -> tuple[str, ...]:
    """Glosses of a label, which may hold double spaces, or of a list of them."""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    if not isinstance(value, str):
        raise _wrong(path, where, f"has glosses that are {type(value).__name__}")
    return tuple(value.split())


def _count(value: Any, path: Path, where: str) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < 10**9:
        raise _wrong(path, where, f"has {str(value)[:40]!r} frames")
    return value


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _mapping(value: Any, keys: Iterable[str], path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(path, where, f"is {type(value).__name__}, no entry")
    missing = [key for key in keys if key not in value]
    if missing:
        raise _wrong(path, where, f"has no {', '.join(missing)}")
    return value


# --- csv ----------------------------------------------------------------------------------------------------

def read_corpus(path: Path, part: str = "") -> list[Entry]:
    """A corpus csv of PHOENIX-2014 (id|folder|signer|annotation), of 2014T or CSL-Daily (name|video|start|end|
    speaker|orth|translation), or CSL-Daily's video_map.txt (index|name|length|gloss|char|word|postag).

    Raises:
        Mistake: no such file, no such columns, a row that has more or fewer, or a range of a longer video.
    """
    lines = list(_lines(path))
    header = lines[0][1].split("|") if lines else []
    columns = {key: next((header.index(name) for name in names if name in header), None)
               for key, names in COLUMNS.items()}
    if columns["id"] is None or columns["gloss"] is None:
        raise _wrong(path, "its header", f"is {'|'.join(header)[:100]!r}, without a name or glosses")
    return [_corpus_row(line.split("|"), len(header), columns, part, path, where, header) for where, line in lines[1:]]


def _corpus_row(fields: list[str], width: int, columns: dict[str, int | None], part: str, path: Path, where: str,
                header: list[str]) -> Entry:
    if len(fields) != width:
        raise _wrong(path, where, f"has {len(fields)} fields instead of {width}")
    row = {key: fields[at] for key, at in columns.items() if at is not None}
    for key in ("start", "end"):
        if row.get(key, "-1") not in ("-1", ""):
            raise _wrong(path, where, f"has {key} = {row[key]!r}; only -1, the whole recording, is known")
    text = row.get("text", "")
    if "char" in header and columns["text"] == header.index("char"):
        text = text.replace(" ", "")
    name = _id(row["id"], path, where)
    folder = _place(row["folder"], path, where) if row.get("folder") else ""
    signer = _signer(row.get("signer", "")) or _signer_in(name)
    return Entry(name, part, signer, _glosses(row["gloss"], path, where), _text(text), folder,
                 _count(row.get("num_frames"), path, where))


def _signer_in(name: str) -> str:
    """CSL-Daily writes the signer into the name: S000196_P0004_T00."""
    found = re.fullmatch(r"S\d+_(P\d+)_T\d+", name)
    return found[1] if found else ""


def read_map(path: Path) -> list[Entry]:
    """CSL-Daily as it is given out: video_map.txt, and split_1.txt (name|split) beside it. What split_1.txt does not
    name is in no set, "".

    Raises:
        Mistake: as read_corpus, or split_1.txt is missing or names another set.
    """
    beside = path.with_name("split_1.txt")
    sets: dict[str, str] = {}
    for where, line in list(_lines(beside))[1:]:
        name, _, part = line.strip().partition("|")
        if part not in SET_NAMES:
            raise _wrong(beside, where, f"is {line!r}, no <name>|<set>")
        sets[name] = SET_NAMES[part]
    return [replace(entry, set=sets.get(entry.id, "")) for entry in read_corpus(path)]


def corpus_text(entries: Iterable[Entry], translated: bool = False) -> str:
    """A corpus csv of these entries: PHOENIX-2014's columns, or 2014T's with the translation."""
    if translated:
        rows = [[e.id, e.folder or f"{e.id}/1/*.png", "-1", "-1", e.signer, " ".join(e.gloss), e.text] for e in entries]
        return _table("name|video|start|end|speaker|orth|translation", rows)
    rows = [[e.id, e.folder or f"{e.id}/1/*.png", e.signer, " ".join(e.gloss)] for e in entries]
    return _table("id|folder|signer|annotation", rows)


def _table(header: str, rows: list[list[str]]) -> str:
    odd = next((field for row in rows for field in row if re.search(r"[|\r\n]", field)), None)
    if odd is not None:
        raise ValueError(f"{odd!r} cannot stand in a corpus csv")
    return "".join(f"{line}\n" for line in [header, *("|".join(row) for row in rows)])


# --- npy ----------------------------------------------------------------------------------------------------

def read_info(path: Path, part: str = "") -> list[Entry]:
    """<set>_info.npy, in the order of its numbers. A translation is taken from the csv row that it keeps.

    Raises:
        Mistake: no such file, it names more than data (see unpickle.py), or an entry lacks something.
    """
    found = load_npy(path)
    if not isinstance(found, dict):
        raise _wrong(path, "it", f"holds {type(found).__name__}, no entries")
    numbers = sorted(key for key in found if type(key) is int)
    odd = [key for key in found if type(key) is not int and key != "prefix"]
    if odd or numbers != list(range(len(numbers))):
        raise _wrong(path, "its entries", f"are not numbered 0 to {len(numbers) - 1}")
    return [_info_entry(found[number], part, path, f"entry {number}") for number in numbers]


def _info_entry(value: Any, part: str, path: Path, where: str) -> Entry:
    row = _mapping(value, ("fileid", "label"), path, where)
    name = _id(row["fileid"], path, where)
    original = str(row.get("original_info", "")).split("|")
    folder = _place(row["folder"], path, where) if row.get("folder") else ""
    return Entry(name, part, _signer(row.get("signer")), _glosses(row["label"], path, where),
                 _text(original[6]) if len(original) == 7 else "", folder, _count(row.get("num_frames"), path, where))


def read_gloss_numbers(path: Path) -> dict[str, int]:
    """{gloss: number} of gloss_dict.npy ({gloss: [number, count]}) or gloss2ids.pkl ({gloss: number}).

    What programs add (<s>, <pad>, <mask>, …) is left out: SLRT's file of PHOENIX-2014 gives REGEN the number of
    <mask>.

    Raises:
        Mistake: no such file, no such form, or two glosses have one number.
    """
    found = load_npy(path) if path.suffix == ".npy" else load_pickle(path)
    if not isinstance(found, dict) or not found:
        raise _wrong(path, "it", f"holds {type(found).__name__}, no glosses")
    numbers = {}
    for gloss, value in found.items():
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(gloss, str) or gloss.split() != [gloss] or type(value) is not int or value < 0:
            raise _wrong(path, f"gloss {str(gloss)[:40]!r}", "has no number, or is none")
        if gloss not in NO_GLOSSES:
            numbers[gloss] = value
    shared = [group for group in shared_numbers(numbers)]
    if shared:
        raise _wrong(path, "the glosses", f"{' and '.join(shared[0])} have one number")
    return dict(sorted(numbers.items(), key=lambda item: item[1]))


def shared_numbers(numbers: Mapping[str, int]) -> list[list[str]]:
    """The groups of glosses that have one number."""
    groups: dict[int, list[str]] = defaultdict(list)
    for gloss, number in numbers.items():
        groups[number].append(gloss)
    return [group for group in groups.values() if len(group) > 1]


# --- pickles of SLRT and neccam -----------------------------------------------------------------------------

def read_slrt(path: Path, part: str = "") -> list[Entry]:
    """A gzipped pickle of SLRT or neccam. The " ." that they end every translation with is taken off again.

    Raises:
        Mistake: no such file, it names more than data (see unpickle.py), or an entry lacks something.
    """
    found = _listed(path, load_pickle(path))
    return [_slrt_entry(value, part, path, f"entry {number}") for number, value in enumerate(found)]


def _listed(path: Path, found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise _wrong(path, "it", f"holds {type(found).__name__}, no list of entries")
    return found


def _slrt_entry(value: Any, part: str, path: Path, where: str) -> Entry:
    row = _mapping(value, ("name", "gloss"), path, where)
    name = _id(row["name"], path, where)
    folder = _place(row["folder"], path, where) if row.get("folder") else ""
    return Entry(name, part, _signer(row.get("signer", "")) or _signer_in(name), _glosses(row["gloss"], path, where),
                 _text(str(row.get("text") or "").removesuffix(" .")), folder or row["name"],
                 _count(row.get("num_frames"), path, where))


def read_features(path: Path, limit: int = FEATURE_BYTES) -> dict[str, np.ndarray]:
    """{id: (T, C) float32} of a feature pickle of SLRT, such as head_rgb_input/train.pkl: T / 4 steps, 832 channels.

    Raises:
        Mistake: no such file, it names more than data, features of different widths, or two of one id.
    """
    found: dict[str, np.ndarray] = {}
    for number, value in enumerate(_listed(path, load_pickle(path, limit))):
        where = f"entry {number}"
        row = _mapping(value, ("name", "sign"), path, where)
        name, features = _id(row["name"], path, where), row["sign"]
        if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.kind != "f":
            raise _wrong(path, where, f"has no features (T, C) but {type(features).__name__}")
        if name in found or (found and features.shape[1] != next(iter(found.values())).shape[1]):
            raise _wrong(path, where, f"({name}) stands twice, or its features have another width")
        found[name] = features.astype(np.float32, copy=False)
    return found


def read_keypoints(path: Path,
                   limit: int = FEATURE_BYTES) -> dict[str, tuple[np.ndarray, tuple[int, int] | None]]:
    """{id: ((T, K, 3) float32, size)} of a pickle {"<folders>/<id>": {"keypoints": …}}: x, y and confidence of K
    points, and of a name with fullFrame-210x260px in it the width and height of the frames that they are on.

    Raises:
        Mistake: no such file, it names more than data, an entry has no such points, or two are of one id.
    """
    entries = load_pickle(path, limit)
    if not isinstance(entries, dict):
        raise _wrong(path, "it", f"holds {type(entries).__name__}, no entries by name")
    found: dict[str, tuple[np.ndarray, tuple[int, int] | None]] = {}
    for name, value in entries.items():
        points = _mapping(value, ("keypoints",), path, f"entry {str(name)[:80]!r}")["keypoints"]
        if not isinstance(points, np.ndarray) or points.ndim != 3 or points.shape[2] != 3 or points.dtype.kind != "f":
            raise _wrong(path, f"entry {str(name)[:80]!r}", "has no points (T, K, 3)")
        entry, size = _id(name, path, "an entry"), re.search(r"fullFrame-([1-9]\d{0,4})x([1-9]\d{0,4})px", name)
        if entry in found:
            raise _wrong(path, f"entry {name[:80]!r}", "is of a sentence that had one")
        found[entry] = points.astype(np.float32, copy=False), (int(size[1]), int(size[2])) if size else None
    return found


# --- STM, CTM -----------------------------------------------------------------------------------------------

def read_stm(path: Path, part: str = "") -> list[Entry]:
    """The references of an STM, one segment a sentence, glosses as they stand. (transcripts.read_stm reads one to score
    it, with all that sclite makes of words.)

    Raises:
        Mistake: no such file, or a malformed line.
    """
    return [Entry(_id(segment.file, path, f"line {segment.line.number}"), part, _signer(segment.speaker),
                  tuple(" ".join(segment.words).split())) for segment in transcripts.segments(path)]


def stm_text(entries: Iterable[Entry]) -> str:
    """An STM of these entries, each one segment from 0 to the end."""
    rows = [[e.id, "1", e.signer or "unknown", "0.0", FOREVER, *e.gloss] for e in entries]
    if any(transcripts.LABELS.fullmatch(gloss) for row in rows for gloss in row[5:6]):
        raise ValueError("a first gloss in <> would be read as labels")
    return "".join(" ".join(map(_word, row)) + "\n" for row in rows)


def read_ctm(path: Path) -> dict[str, list[tuple[float, float, str]]]:
    """{id: [(start, duration, gloss), ...]}, seconds, in the order of time.

    Raises:
        Mistake: no such file, or a malformed line.
    """
    found: dict[str, list[tuple[float, float, str]]] = {}
    for word in transcripts.read_ctm(path):
        found.setdefault(word.file, []).append((word.start, word.duration, word.word))
    return found


def ctm_text(words: Mapping[str, Iterable[tuple[float, float, str]]]) -> str:
    """A CTM of {id: [(start, duration, gloss), ...]}, seconds."""
    return "".join(f"{_word(name)} 1 {start:.3f} {duration:.3f} {_word(gloss)}\n"
                   for name, spoken in words.items() for start, duration, gloss in spoken)


def _word(text: str) -> str:
    if text.split() != [text] or text.startswith(";;"):
        raise ValueError(f"{text!r} cannot stand in an STM or CTM")
    return text


# --- which files there are ----------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path, str], list[Entry]]] = {
    "csv": read_corpus, "map": lambda path, _: read_map(path), "npy": read_info, "slrt": read_slrt, "stm": read_stm}


def form_of(path: Path) -> tuple[str, str] | None:
    """("npy", "train") of train_info.npy; the set of a form that has all in one file is ""."""
    for form, pattern in FORMS.items():
        if found := re.fullmatch(pattern, path.name):
            return form, SET_NAMES[found["set"]] if "set" in found.re.groupindex else ""
    return None


def walk(folder: Path, known: Callable[[str, list[str]], bool],
         depth: int = 6) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, its folders, its files) from the top down, not below a folder of which `known(name, folders)`."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        here = Path(place)
        yield here, list(folders), sorted(files)
        if len(here.relative_to(folder).parts) >= depth or known(here.name, folders):
            folders.clear()


def find_annotations(place: Path) -> dict[str, dict[str, Path]]:
    """{form: {set: file}} of all annotations in a folder and below; of a file: its form's in the same folder.

    Raises:
        Mistake: there is none, or two of one form and set.
    """
    if place.is_file():
        forms, files = [form for form in FORMS if _is(place, form)], sorted(place.parent.iterdir())
    else:
        forms, files = list(FORMS), [here / name for here, _, names in walk(place, _are_frames, 5) for name in names]
    found = {form: _one_each(form, [path for path in files if _is(path, form)]) for form in forms}
    found = {form: sets for form, sets in found.items() if sets}
    if not found:
        looked = "train.corpus.csv, train_info.npy, phoenix14t.train, …groundtruth-train.stm, video_map.txt"
        raise Mistake(f"no annotation in {paths.shown(place)}", f"looked for {looked} and the other sets",
                      "put it there, or name it: --annotations")
    return found


def _are_frames(name: str, folders: list[str]) -> bool:
    return len(folders) > 100 or name == "features" or name.startswith(("fullFrame", "frames_", "sentence_frames"))


def _is(path: Path, form: str) -> bool:
    found = form_of(path)
    return found is not None and found[0] == form


def _one_each(form: str, files: list[Path]) -> dict[str, Path]:
    sets: dict[str, Path] = {}
    for path in files:
        part = (form_of(path) or ("", ""))[1]
        if part in sets:
            raise Mistake(f"two annotations of the same {form} form", f"{paths.shown(sets[part])}, {paths.shown(path)}",
                          "name the one that counts, or its folder: --annotations")
        sets[part] = path
    return {part: sets[part] for part in ("", *SETS) if part in sets}


def read_form(form: str, files: Mapping[str, Path]) -> list[Entry]:
    """The entries of all sets, in their order.

    Raises:
        Mistake: a file is missing or damaged, or has no entry.
    """
    found = []
    for part, path in files.items():
        entries = READERS[form](path, part)
        if not entries:
            raise _wrong(path, "it", "has no entry")
        found += entries
    return found


def differences(entries: Iterable[Entry], others: Iterable[Entry]) -> dict[str, Any]:
    """What two forms of one annotation say differently: ids that one lacks, and glosses."""
    mine, theirs = ({(e.set, e.id): e for e in group} for group in (entries, others))
    both = mine.keys() & theirs.keys()
    glosses = Counter(part for part, name in both if mine[part, name].gloss != theirs[part, name].gloss)
    return {"not_there": sorted(f"{part}/{name}" for part, name in mine.keys() - theirs.keys()),
            "only_there": sorted(f"{part}/{name}" for part, name in theirs.keys() - mine.keys() if part),
            "other_glosses": {part: glosses[part] for part in SETS if glosses[part]}}
