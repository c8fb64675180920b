"""Signs labelled by their symbols, as HearAI keeps them: readers, which frames are looked at, and who trains.

    found = read_samples(Path("data/HEARAI/pjm"), "test_hamnosys.txt", HEADS)
    sets = split(found.samples, (0.8, 0.1, 0.1), by="signer", seed=42)      # {"train": […], "val": […], "test": […]}
    indices = sample_indices(sample.start, sample.stop, segments=8)
    landmarks = load_landmarks(sample.landmarks, ("right_hand", "pose"), sample.start, sample.stop - 1)

<data path>/<annotation file>                rows: name, first and last frame (inclusive), then a class for every head
<data path>/<name>/<name>_<i>.jpg            the frames, from 0; png and jpeg are read too
<data path>/<name>/<name>_properties.json    of the video that they are of; may also lie in the data path itself
<data path>/<name>/<name>.npz                landmarks, face, pose, left_hand, right_hand: (N, 8 x points); likewise
<data path>/test_gloss.txt                   rows: name, first and last frame, number of the gloss; not needed
<data path>/signers.txt                      rows: name, signer; not needed
symbols.json, dictionary.csv                 in the data path or above it: names of classes, glosses by symbols

Readers are strict: a bad row is a Mistake with file and line. A row without frames or landmarks is left out, with a
reason. No torch in here.
"""

import csv
import hashlib
import json
import math
import os
import re
import struct
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slr import paths
from slr.datasets.sentences import LONGEST, ZIP_ERRORS, is_inside
from slr.errors import Mistake
from slr.hamnosys import COLUMNS, FLAGS, GLOSS, HEADS, PARTS, VALUES
from slr.paths import SETS

GLOSS_FILE, SIGNERS, SYMBOLS, DICTIONARY = "test_gloss.txt", "signers.txt", "symbols.json", "dictionary.csv"
SUFFIXES = (".jpg", ".jpeg", ".png")  # of one frame's pictures the first is taken
PLACE = ("name", "start", "end")
MISSING = ("-1", "nan", "none", "")
ANY_GLOSS = 10**9  # classes of a gloss that is only looked up

# what a header may call a column, in small letters with single spaces; the second words are those of HearAI's files
_CALLED = {name.replace("_", " "): name for name in (*PLACE, *COLUMNS, GLOSS)} | dict(zip((
    "symmetry operator", "dom hand handshape base form", "dom hand handshape thumb position",
    "dom hand handshape bending", "dom hand handposition ext finger direction",
    "dom hand handposition palm orientation", "dom hand handlocation frontal plane l r",
    "dom hand handlocation frontal plane t b", "dom hand handlocation distance from the body"), COLUMNS, strict=True))


@dataclass(frozen=True)
class Row:
    """A row of an annotation: a sign and its first and last frame (inclusive); labels that it lacks are left out."""

    name: str
    start: int
    end: int
    labels: dict[str, int]


@dataclass(frozen=True)
class Sample:
    """A sign to learn from: frames `start` to `stop` (exclusive) of those called `name` in the data path `folder`."""

    id: str
    name: str
    folder: Path
    start: int
    stop: int
    labels: dict[str, int]
    signer: str | None = None
    gloss: int | None = None
    fps: float | None = None
    frames: int = 0  # pictures on the disk for this name
    landmarks: Path | None = None


@dataclass(frozen=True)
class Found:
    """What a data path holds: samples, {id: reason} of what was left out, and what a person should know."""

    samples: list[Sample]
    left_out: dict[str, str]
    notices: list[str]


# --- lines of text ------------------------------------------------------------------------------------------

def _wrong(path: Path, number: int, found: str) -> Mistake:
    return Mistake(f"{paths.shown(path)}, line {number} cannot be used", found[:300],
                   "mend that line, or get the file anew")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Mistake(f"cannot read {paths.shown(path)}", error.strerror or str(error),
                      "name a file that is there (an .ini does in multihead.data_paths and annotation_file); what lies "
                      "where is in data/README.md, and preprocess.py -as demo_multihead draws signs") from error
    except UnicodeDecodeError as error:
        raise Mistake(f"{paths.shown(path)} is no UTF-8 text", str(error), "convert it, or get it anew") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that is not empty; lines end where editors say so and nowhere else."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _fields(line: str, separator: str | None) -> list[str]:
    """What stands between the separators (None: white space); what stands in double quotes is one."""
    if separator is None:
        return [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', line)]
    fields = [""]
    for token in re.findall(rf'{re.escape(separator)}|"[^"]*"|.', line, re.DOTALL):
        if token == separator:
            fields.append("")
        else:
            fields[-1] += token
    return [re.sub(r'^"(.*)"$', r"\1", field.strip(), flags=re.DOTALL) for field in fields]


def _whole(text: str) -> int | None:
    """A number from 0 on; 3.0 is one too: so pandas writes a column in which one is missing."""
    found = re.fullmatch(r"([0-9]{1,9})(?:\.0*)?", text)
    return int(found[1]) if found else None


# --- annotations --------------------------------------------------------------------------------------------

def read_annotations(file: Path, heads: Mapping[str, int], separator: str | None = None) -> tuple[list[Row], list[str]]:
    """The rows of an annotation and what a person should know of it.

    A header (it says name, start and end) may name the columns in any order, by our names or by HearAI's; columns that
    are not asked for are not read. Without one, or with one that is too short for its rows, places decide: after name,
    start and end come the eight columns of HEADS, or these and the distance; of any other number, `heads` in their
    order.

    Args:
        heads: {name: number of classes} of what is read.
        separator: between the fields; None is white space. A field may stand in double quotes.

    Raises:
        Mistake: no such file, no row, none of these heads, or a bad row: another number of fields than the first, no
            number where one belongs, a class that there is not, an end before its start, the same sign again.
    """
    rows, absent, notices = _read(file, heads, separator)
    if heads and len(absent) == len(heads):
        raise Mistake(f"{paths.shown(file)} labels none of the heads", ", ".join(heads),
                      "name another file, or other heads")
    return rows, notices + [f"{paths.shown(file)} has no column for {', '.join(absent)}"] * bool(absent)


def _read(file: Path, heads: Mapping[str, int],
          separator: str | None) -> tuple[list[Row], list[str], list[str]]:
    """Rows, heads without a column, and notices."""
    if separator is not None and (not separator or set(separator) & set('"\r\n')):
        raise Mistake("the separator of annotations is none", repr(separator), "give a character, or leave it out")
    lines = [(number, _fields(line, separator)) for number, line in _lines(file)]
    header = lines[0][1] if lines and {"name", "start", "end"} <= {name.casefold() for name in lines[0][1]} else None
    lines = lines[1:] if header else lines
    if not lines:
        raise Mistake(f"no sign in {paths.shown(file)}", "it has no row")
    width = len(lines[0][1])
    columns, notices = _columns(file, header, width, heads, lines[0][0])
    rows: dict[tuple[str, int, int], tuple[int, Row]] = {}
    for number, fields in lines:
        if len(fields) != width:
            raise _wrong(file, number, f"it has {len(fields)} fields instead of {width}")
        row = _row(dict(zip(columns, fields, strict=True)), heads, partial(_wrong, file, number))
        first, _ = rows.setdefault((row.name, row.start, row.end), (number, row))
        if first != number:
            raise _wrong(file, number, f"{row.name} {row.start} {row.end} stands in line {first} already")
    return [row for _, row in rows.values()], [head for head in heads if head not in columns], notices


def _columns(file: Path, header: list[str] | None, width: int, heads: Mapping[str, int],
             number: int) -> tuple[list[str], list[str]]:
    """The name of every column of rows of this width (an unknown one keeps its own, with a space), and notices."""
    if header and len(header) > width:
        raise _wrong(file, number, f"it has {width} fields, and the header names {len(header)}")
    if header and len(header) == width:
        return _named(file, header, heads)
    places, known = width - len(PLACE), set(heads) <= {*COLUMNS, GLOSS}
    if known and places in (len(HEADS), len(COLUMNS)):
        columns = COLUMNS[:places]
    elif places == len(heads):
        columns = tuple(heads)
    else:
        raise _wrong(file, number, f"it has {width} fields, and no header says which of {len(heads)} heads they are")
    notice = f"the header of {paths.shown(file)} names {len(header or [])} columns, its rows have {width}: taken by " \
             f"their places, {' '.join(columns)}"
    return [*PLACE, *columns], [notice] if header else []


def _named(file: Path, header: list[str], heads: Mapping[str, int]) -> tuple[list[str], list[str]]:
    own = {_plain(head): head for head in heads}
    columns = [own.get(_plain(name)) or _CALLED.get(_plain(name)) or f" {name} {at}" for at, name in enumerate(header)]
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise Mistake(f"the header of {paths.shown(file)} names a column twice", twice[0], "mend its first line")
    unknown = [header[at] for at, name in enumerate(columns) if name.startswith(" ")]
    return columns, [f"{paths.shown(file)} has columns that are not known: {', '.join(unknown)}"] * bool(unknown)


def _plain(name: str) -> str:
    """A column's name in small letters and single spaces. HearAI's files write Handhape once."""
    return " ".join(re.findall(r"[^\W_]+", name.casefold())).replace("handhape", "handshape")


def _row(fields: Mapping[str, str], heads: Mapping[str, int], wrong: Callable[[str], Mistake]) -> Row:
    name, start, end = fields["name"], _whole(fields["start"]), _whole(fields["end"])
    if not is_inside(name) or "/" in name:
        raise wrong(f"{name[:80]!r} is no name of a sign's folder")
    if start is None or end is None:
        raise wrong(f"its first and last frame are {fields['start'][:40]!r} and {fields['end'][:40]!r}, no numbers")
    if end < start:
        raise wrong(f"it ends at frame {end}, before it starts at {start}")
    labels = {head: _label(fields[head], head, heads[head], wrong) for head in heads if head in fields}
    return Row(name, start, end, {head: label for head, label in labels.items() if label is not None})


def _label(text: str, head: str, classes: int, wrong: Callable[[str], Mistake]) -> int | None:
    """A class of a head, None where it is missing."""
    if text.casefold() in MISSING or re.fullmatch(r"-1\.0*", text):
        return None
    label = _whole(text)
    if label is None:
        raise wrong(f"{head} is {text[:40]!r}, no number")
    if label >= classes:
        raise wrong(f"{head} is {label}, and has the classes 0 to {classes - 1}")
    return label


# --- what belongs to annotations ----------------------------------------------------------------------------

def read_signers(file: Path) -> dict[str, str]:
    """{name: signer} of rows `name signer`.

    Raises:
        Mistake: no such file, or a row of another form, or a name with two signers.
    """
    signers: dict[str, str] = {}
    for number, line in _lines(file):
        fields = _fields(line, None)
        if len(fields) != 2 or not all(fields):
            raise _wrong(file, number, f"{line.strip()[:80]!r} is no name and signer")
        if signers.setdefault(*fields) != fields[1]:
            raise _wrong(file, number, f"{fields[0]} is signed by {signers[fields[0]]} already")
    return signers


def find_beside(folder: Path, name: str) -> Path | None:
    """A file in a data path, or in the folder above it."""
    return next((file for file in (folder / name, folder.absolute().parent / name) if file.is_file()), None)


def read_symbols(file: Path) -> dict[str, list[str]]:
    """{head: names of its classes, from 0 on}.

    Raises:
        Mistake: no such file, or it is no such thing.
    """
    found = _json(file)
    fine = isinstance(found, dict) and all(
        isinstance(names, list) and names and all(isinstance(name, str) for name in names) for names in found.values())
    if not fine:
        raise Mistake(f"{paths.shown(file)} names no symbols", str(found)[:80],
                      'it should read {"<head>": ["name of class 0", …], …}')
    return found


def _json(file: Path) -> Any:
    try:
        return json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{paths.shown(file)} is no JSON", str(error) or "nested too deeply", "get it anew") from error


def read_dictionary(file: Path, heads: Mapping[str, int] = HEADS) -> dict[int, tuple[str, dict[str, int]]]:
    """{gloss: (its name, {head: class})} of a table gloss,name,<head>,…; a class that it lacks is left out.

    heads: {name: number of classes}; of others every class will do.

    Raises:
        Mistake: no such file, no gloss in it, or a bad row: other columns, no number, a gloss again.
    """
    reader = csv.reader(_text(file).split("\n"), strict=True)
    try:
        rows = [(reader.line_num, [field.strip() for field in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise _wrong(file, reader.line_num, str(error)) from error
    header = rows[0][1] if rows else []
    if header[:2] != ["gloss", "name"] or len(set(header)) < max(3, len(header)) or len(rows) < 2:
        raise Mistake(f"{paths.shown(file)} is no dictionary", f"{len(rows)} rows, the first {','.join(header)[:80]!r}",
                      "its header should read gloss,name,<head>,…")
    glosses: dict[int, tuple[str, dict[str, int]]] = {}
    for number, row in rows[1:]:
        gloss, entry = _gloss(row, header, heads, partial(_wrong, file, number))
        if gloss in glosses:
            raise _wrong(file, number, f"gloss {gloss} stands there already")
        glosses[gloss] = entry
    return glosses


def _gloss(row: list[str], header: list[str], heads: Mapping[str, int],
           wrong: Callable[[str], Mistake]) -> tuple[int, tuple[str, dict[str, int]]]:
    if len(row) != len(header):
        raise wrong(f"it has {len(row)} fields instead of {len(header)}")
    gloss = _whole(row[0])
    if gloss is None or not row[1]:
        raise wrong(f"gloss {row[0][:40]!r}, name {row[1][:40]!r}: no number, or no name")
    labels = {head: _label(text, head, heads.get(head, ANY_GLOSS), wrong)
              for head, text in zip(header[2:], row[2:], strict=True)}
    return gloss, (row[1], {head: label for head, label in labels.items() if label is not None})


def read_properties(file: Path) -> dict[str, Any]:
    """What is known of a video: File, Codec, Frames, FPS, Width, Height; any of them may be missing.

    Raises:
        Mistake: no such file, or FPS is no rate.
    """
    found = _json(file)
    if not isinstance(found, dict):
        raise Mistake(f"{paths.shown(file)} holds no properties of a video", str(found)[:80], "get it anew")
    fps = found.get("FPS")
    if fps is not None and (type(fps) not in (int, float) or not 0 < fps < 1e6):
        raise Mistake(f"{paths.shown(file)} holds no properties of a video", f"FPS is {str(fps)[:40]}", "get it anew")
    return found


# --- samples ------------------------------------------------------------------------------------------------

def read_samples(folder: Path, annotation_file: str, heads: Mapping[str, int], separator: str | None = None, *,
                 needs_frames: bool = True, needs_landmarks: bool = False, gloss_file: str = GLOSS_FILE,
                 parts: Sequence[str] = ()) -> Found:
    """The samples of one data path, in the order of its annotation.

    An id is <last folder of the data path>/<name>, and where a name has several rows …_<start>-<end>. The head `gloss`
    is read from the gloss file where the annotation has no column for it; a row finds its gloss by name, start and end.

    Args:
        needs_frames, needs_landmarks: leave out what has none, or too few.
        parts: whose landmarks are needed; none named: all that a file has.

    Raises:
        Mistake: as read_annotations, of any of the text files.
    """
    file, glosses = folder / annotation_file, dict[tuple[str, int, int], int]()
    rows, absent, notices = _read(file, heads, separator)
    beside = folder / gloss_file
    if gloss_file != annotation_file and beside.is_file():
        own, more = _glosses_beside(beside, heads, separator)
        glosses = {(row.name, row.start, row.end): row.labels[GLOSS] for row in own if row.labels}
        notices = notices + more
        without = sum((row.name, row.start, row.end) not in glosses for row in rows)
        notices += [f"{without} of {len(rows)} signs in {paths.shown(folder)} have no gloss in {gloss_file}"] * (
            without > 0)
        absent = [head for head in absent if head != GLOSS]
    if heads and len(absent) == len(heads):
        raise Mistake(f"{paths.shown(file)} labels none of the heads", ", ".join(heads),
                      "name another annotation file, or other heads")
    notices += [f"{paths.shown(file)} has no column for {', '.join(absent)}"] * bool(absent)
    signers = read_signers(folder / SIGNERS) if (folder / SIGNERS).is_file() else {}
    return _looked_for(folder, rows, glosses, signers, GLOSS in heads,
                       (needs_frames, needs_landmarks, tuple(parts)), notices)


def _glosses_beside(file: Path, heads: Mapping[str, int], separator: str | None) -> tuple[list[Row], list[str]]:
    """The rows of the gloss file; where no head asks for glosses a file that cannot be used is none."""
    try:
        return read_annotations(file, {GLOSS: heads.get(GLOSS, ANY_GLOSS)}, separator)
    except Mistake as error:
        if GLOSS in heads:
            raise
        return [], [f"glosses are not known: {error.wrong}: {error.found}"]


def _looked_for(folder: Path, rows: list[Row], glosses: Mapping[tuple[str, int, int], int], signers: Mapping[str, str],
                wants_gloss: bool, needs: tuple[bool, bool, tuple[str, ...]], notices: list[str]) -> Found:
    """The samples of rows whose files are there."""
    needs_frames, needs_landmarks, parts = needs
    samples, left_out, several = list[Sample](), dict[str, str](), Counter(row.name for row in rows)
    media: dict[str, _Media] = {}
    for row in rows:
        if row.name not in media:
            media[row.name] = _look(folder, row.name, parts if needs_landmarks else None)
            notices = notices + media[row.name].notices
        own = media[row.name]
        gloss = glosses.get((row.name, row.start, row.end), row.labels.get(GLOSS))
        labels = {GLOSS: gloss, **row.labels} if wants_gloss and gloss is not None else row.labels
        name = f"{folder.absolute().name}/{row.name}"
        name += f"_{row.start}-{row.end}" if several[row.name] > 1 else ""
        sample = Sample(name, row.name, folder, row.start, row.end + 1, labels, signers.get(row.name), gloss, own.fps,
                        len(own.numbers), own.landmarks)
        reason = (_lacking(sample, own.numbers) if needs_frames else "") or (
            _too_few(sample, own) if needs_landmarks else "")
        if reason:
            left_out[name] = reason
        else:
            samples.append(sample)
    return Found(samples, left_out, notices)


@dataclass(frozen=True)
class _Media:
    """What there is of one name: numbers of its pictures, landmarks and of how many frames, or why they are none."""

    numbers: set[int]
    fps: float | None
    landmarks: Path | None
    length: int
    trouble: str
    notices: list[str]


def _look(folder: Path, name: str, parts: tuple[str, ...] | None) -> _Media:
    """parts: None where landmarks are not needed and nobody opens them."""
    properties = paths.first_existing(folder / name / f"{name}_properties.json", folder / f"{name}_properties.json")
    fps, notices = None, list[str]()
    if properties.is_file():
        try:
            fps = read_properties(properties).get("FPS")
        except Mistake as error:
            notices = [f"{error.wrong}: {error.found}"]
    landmarks = paths.first_existing(folder / name / f"{name}.npz", folder / f"{name}.npz")
    if not landmarks.is_file():
        return _Media(picture_numbers(folder, name), fps, None, 0, f"{landmarks.name} is missing", notices)
    length, trouble = 0, ""
    if parts is not None:
        try:
            length = landmark_frames(landmarks, parts)
        except Mistake as error:
            trouble = f"{error.wrong}: {error.found}"
    return _Media(picture_numbers(folder, name), fps, landmarks, length, trouble, notices)


def picture_numbers(folder: Path, name: str) -> set[int]:
    """The numbers of the pictures <folder>/<name>/<name>_<i>.jpg (or jpeg, png) that are there."""
    pattern = re.compile(rf"{re.escape(name)}_(0|[1-9][0-9]{{0,8}})(?:{'|'.join(map(re.escape, SUFFIXES))})")
    try:
        with os.scandir(folder / name) as entries:
            return {int(found[1]) for entry in entries if (found := pattern.fullmatch(entry.name))}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise Mistake(f"cannot read {paths.shown(folder / name)}", error.strerror or str(error)) from error


def picture(sample: Sample, index: int) -> Path:
    """The picture of frame `index`; where there is none, what it would be called."""
    stem = sample.folder / sample.name / f"{sample.name}_{index}"
    return paths.first_existing(*(stem.with_name(stem.name + suffix) for suffix in SUFFIXES))


def _lacking(sample: Sample, numbers: set[int]) -> str:
    """Why its pictures do not do; "" where they do."""
    wanted = sample.stop - sample.start
    here = sum(sample.start <= number < sample.stop for number in numbers)
    if here == wanted:
        return ""
    first = next(number for number in range(sample.start, sample.stop) if number not in numbers)
    return f"{wanted - here} of its {wanted} pictures are missing, the first is {sample.name}_{first}.jpg"


def _too_few(sample: Sample, media: _Media) -> str:
    if media.trouble or media.length >= sample.stop:
        return media.trouble
    return f"it ends at frame {sample.stop - 1}, and there are landmarks of {media.length} frames"


# --- landmarks ----------------------------------------------------------------------------------------------

@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (*ZIP_ERRORS, ValueError, struct.error) as error:
        raise Mistake(f"cannot read the landmarks {paths.shown(file)}", str(error) or type(error).__name__,
                      "get it anew") from error


def _head(stream: Any, file: Path, part: str) -> tuple[np.dtype, int, bool]:
    """(number format, frames, Fortran order) of an array in the file; the stream is at its numbers then."""
    magic = stream.read(8)
    length = int.from_bytes(stream.read(2 if magic[6:7] == b"\1" else 4), "little")
    head = stream.read(min(length, 10_000)).decode("latin-1")
    code = re.search(r"'descr': '([<>]f[248])'", head)
    shape = re.search(r"'shape': \(([0-9]{1,9}), ([0-9]{1,9})\)", head)
    width = VALUES * PARTS[part]
    if magic[:6] != b"\x93NUMPY" or not code or not shape or int(shape[2]) != width or int(shape[1]) > LONGEST:
        raise Mistake(f"{part} in {paths.shown(file)} are no landmarks", head.strip()[:120] or "no array of numbers",
                      f"it has to be floating-point numbers, (frames, {width})")
    return np.dtype(code[1]), int(shape[1]), "'fortran_order': True" in head


def _member(archive: zipfile.ZipFile, file: Path, part: str) -> Any:
    if part not in PARTS:
        raise Mistake("there are no such landmarks", part, f"there are {', '.join(PARTS)}")
    if f"{part}.npy" not in archive.namelist():
        raise Mistake(f"{paths.shown(file)} has no landmarks of the {part}", ", ".join(archive.namelist())[:200],
                      "get those, or leave that part out")
    return archive.open(f"{part}.npy")


def landmark_frames(file: Path, parts: Sequence[str] = ()) -> int:
    """Of how many frames there are landmarks of these parts (none named: of all that it has).

    Raises:
        Mistake: it cannot be read, or lacks a part, or has one of another shape.
    """
    counts = []
    with _opened(file) as archive:
        for part in parts or [part for part in PARTS if f"{part}.npy" in archive.namelist()]:
            with _member(archive, file, part) as stream:
                counts.append(_head(stream, file, part)[1])
    if not counts:
        raise Mistake(f"{paths.shown(file)} has no landmarks", "none of " + ", ".join(PARTS), "get it anew")
    return min(counts)


def load_landmarks(file: Path, parts: Sequence[str], first: int, last: int) -> np.ndarray:
    """The landmarks of frames `first` to `last` (inclusive), part after part as they are named.

    A number that is none (NaN; infinite) is 0, and both flags of its point are 1.

    Returns:
        float32 (T, 8 x points), T = last - first + 1.

    Raises:
        Mistake: as landmark_frames, or there are too few frames.
    """
    if not parts or not 0 <= first <= last:
        raise ValueError(f"landmarks {parts}, frames {first} to {last}")
    with _opened(file) as archive:
        found = [_frames_of(archive, file, part, first, last) for part in parts]
    with np.errstate(over="ignore"):
        values = np.concatenate(found, axis=1).astype(np.float32)
    points = values.reshape(len(values), -1, VALUES)
    unseen = ~np.isfinite(points)
    points[unseen] = 0
    points[..., FLAGS][unseen.any(-1)] = 1
    return values


def _frames_of(archive: zipfile.ZipFile, file: Path, part: str, first: int, last: int) -> np.ndarray:
    """One part's rows: of an array in C order no more than these are read."""
    with _member(archive, file, part) as stream:
        kind, count, fortran = _head(stream, file, part)
        width = VALUES * PARTS[part]
        if last >= count:
            raise Mistake(f"{paths.shown(file)} is too short", f"{part} of {count} frames, asked for frame {last}",
                          "get those that belong to the annotation")
        skipped, stop = (0, count) if fortran else (first, last + 1)
        stream.read(skipped * width * kind.itemsize)
        data = stream.read((stop - skipped) * width * kind.itemsize)
    if len(data) < (stop - skipped) * width * kind.itemsize:
        raise Mistake(f"cannot read the landmarks {paths.shown(file)}", f"{part} ends early", "get it anew")
    rows = np.frombuffer(data, kind).reshape((stop - skipped, width), order="F" if fortran else "C")
    return rows[first - skipped:last + 1 - skipped]


# --- which frames -------------------------------------------------------------------------------------------

def sample_indices(start: int, stop: int, *, segments: int, time: float = 0.0, fps: float | None = None,
                   rng: np.random.Generator | None = None) -> np.ndarray:
    """The frames of a sign, `start` to `stop` (exclusive), that are looked at: sorted, each once.

    Without `time` one of each of `segments` equal parts (of Temporal Segment Networks, Wang et al. 2016,
    https://arxiv.org/abs/1608.00859): with `rng` any of it, else its middle; a sign of fewer frames gives all. With
    `time` (seconds) every max(1, int(fps * time))-th from the start, `segments` at most; nothing is drawn then.

    Returns:
        int64 (n,), 1 <= n <= segments.
    """
    length = stop - start
    if start < 0 or length < 1 or segments < 1:
        raise ValueError(f"cannot take {segments} frames of {start} to {stop}")
    if time > 0:
        if fps is None:
            raise Mistake("frames that lie so many seconds apart need a frame rate", f"time = {time}, and no FPS",
                          "get <name>_properties.json, or give num_segments alone")
        return np.arange(start, stop, max(1, int(fps * time)), dtype=np.int64)[:segments]
    if length <= segments:
        return np.arange(start, stop, dtype=np.int64)
    edges = np.arange(segments + 1, dtype=np.int64) * length // segments + start
    if rng is None:
        return (edges[:-1] + edges[1:] - 1) // 2
    return rng.integers(edges[:-1], edges[1:])


# --- who trains ---------------------------------------------------------------------------------------------

Sets = dict[str, list[Sample]]


def split(samples: Iterable[Sample], shares: Sequence[float], by: str = "ratio", seed: int = 0) -> Sets:
    """The samples as train, val and test, whatever order they come in; each set sorted by id.

    Every set with a share gets a sample, or a signer. All rows of one name are in one set: they may share frames.

    Args:
        shares: of train, val and test; their sum is 1.
        by: ratio draws them; signer draws signers, none of whom is in two sets; stratified keeps the share of every
            label of every head (Sechidis, Tsoumakas and Vlahavas 2011, On the Stratification of Multi-label Data).

    Raises:
        Mistake: no such shares or way, two samples of one id, a sample without a signer, too few for the sets.
    """
    ways = {"ratio": _by_ratio, "signer": _by_signer, "stratified": _stratified}
    if by not in ways:
        raise Mistake("there is no such way to split a data set", by, f"there are {', '.join(ways)}")
    fine = len(shares) == len(SETS) and all(0 <= share <= 1 for share in shares)
    if not fine or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise Mistake("these are no shares of train, val and test", ", ".join(map(str, shares)),
                      "give three numbers that sum up to 1")
    shuffled = sorted(samples, key=lambda sample: _lot(seed, sample.id))
    twice = [name for name, count in Counter(sample.id for sample in shuffled).items() if count > 1]
    if twice:
        where = sorted({paths.shown(sample.folder) for sample in shuffled if sample.id == twice[0]})
        raise Mistake("two samples have one id", f"{twice[0]} in {' and '.join(where)}",
                      "give the folders of the data sets different names")
    films: dict[tuple[Path, str], list[Sample]] = defaultdict(list)  # rows of one name may share frames
    for sample in shuffled:
        films[sample.folder, sample.name].append(sample)
    wanted = [at for at, share in enumerate(shares) if share]
    if len(films) < len(wanted):
        raise Mistake(f"{len(films)} signs are too few for {len(wanted)} sets", "each needs one",
                      "get more data, or give a set the share 0")
    if by == "signer":
        found = _by_signer(shuffled, shares, seed)
    else:
        firsts = ways[by]([rows[0] for rows in films.values()], shares, seed)
        found = [[row for first in part for row in films[first.folder, first.name]] for part in firsts]
    return {part: sorted(own, key=lambda sample: sample.id) for part, own in zip(SETS, found, strict=True)}


def _lot(seed: int, name: str) -> bytes:
    """What a shuffled order is sorted by: it depends on nothing but the seed and the name."""
    return hashlib.blake2b(f"{seed}|{name}".encode(errors="surrogatepass"), digest_size=16).digest()


def _by_ratio(shuffled: list[Sample], shares: Sequence[float], _: int) -> list[list[Sample]]:
    cuts = [round(len(shuffled) * sum(shares[:at])) for at in (1, 2)]
    return _none_empty([shuffled[:cuts[0]], shuffled[cuts[0]:cuts[1]], shuffled[cuts[1]:]], shares)


def _none_empty(parts: list[list[Sample]], shares: Sequence[float]) -> list[list[Sample]]:
    """Moves a sample into each set that has a share and nothing else, from the one that has most over its own."""
    total = sum(map(len, parts))
    for at, share in enumerate(shares):
        if share and not parts[at]:
            fullest = max((k for k in range(len(parts)) if len(parts[k]) > 1),
                          key=lambda k: len(parts[k]) - shares[k] * total)
            parts[at].append(parts[fullest].pop())
    return parts


def _by_signer(shuffled: list[Sample], shares: Sequence[float], seed: int) -> list[list[Sample]]:
    """Signers in a drawn order, each to the set that lacks most; the last ones to sets that have none yet."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in shuffled:
        if sample.signer is None:
            raise Mistake("a split by signers needs the signer of every sign", f"that of {sample.id} is not known",
                          f"write {SIGNERS} with rows `name signer`, or split in another way")
        groups[sample.signer].append(sample)
    parts, wanted = [list[Sample]() for _ in shares], [at for at, share in enumerate(shares) if share]
    if len(groups) < len(wanted):
        raise Mistake(f"{len(groups)} signers are too few for {len(wanted)} sets", ", ".join(sorted(groups)),
                      "split in another way, or give a set the share 0")
    for place, signer in enumerate(sorted(groups, key=lambda name: _lot(seed, name))):
        empty = [at for at in wanted if not parts[at]]
        among = empty if len(groups) - place <= len(empty) else wanted
        parts[max(among, key=lambda at: shares[at] * len(shuffled) - len(parts[at]))] += groups[signer]
    return parts


def _stratified(shuffled: list[Sample], shares: Sequence[float], _: int) -> list[list[Sample]]:
    """Iterative stratification: the rarest label first, each of its samples to the set that lacks it most."""
    left: dict[tuple[str, int], dict[int, Sample]] = defaultdict(dict)
    for at, sample in enumerate(shuffled):
        for pair in sample.labels.items():
            left[pair][at] = sample
    lacking = {pair: [share * len(own) for share in shares] for pair, own in left.items()}
    room = [share * len(shuffled) for share in shares]
    parts, wanted = [list[Sample]() for _ in shares], [at for at, share in enumerate(shares) if share]

    def place(at: int, sample: Sample, lacks: Sequence[float]) -> None:
        best = max(wanted, key=lambda k: (lacks[k], room[k]))
        parts[best].append(sample)
        room[best] -= 1
        for pair in sample.labels.items():
            left[pair].pop(at, None)
            lacking[pair][best] -= 1

    while any(left.values()):
        rarest = min((pair for pair, own in left.items() if own), key=lambda pair: (len(left[pair]), pair))
        for at, sample in list(left[rarest].items()):
            place(at, sample, lacking[rarest])
        del left[rarest]
    for at, sample in enumerate(shuffled):
        if not sample.labels:
            place(at, sample, room)
    return _none_empty(parts, shares)
