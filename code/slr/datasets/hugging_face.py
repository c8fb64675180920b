"""Sentences out of a Hugging Face data set: parquet files in a folder, or a name on the hub, written as PHOENIX-2014's.

    place = convert("rwth_phoenix_weather_2014/data", paths.data_root(), "phoenix2014")       # a clone's folder
    place = convert("lukasbraach/rwth_phoenix_weather_2014:multisigner", paths.data_root(), "phoenix2014")
    print(summary(place))
    source = read_source(place)                                     # from here on as any other sentences

Every row is a sentence: `id`, `transcription` (glosses parted by blanks) and `frames`, a list of images as
`datasets.Image` stores them, {bytes, path}, or of their bytes alone. Rows are streamed, one after the other, to

    data/HUGGING_FACE/<split>/annotations/{train,dev,test}.corpus.csv
                             /features/{train,dev,test}/<id>/000000.png, ...    jpg and png byte for byte
                             /hugging_face.json                         what was read, every row left out and why

A sentence's folder is written aside and renamed. Stopped at any time, the same call goes on: sets that are done are not
read again, and of the others the folders that hold what the row says are kept. No row ends it, whatever is in it.
"""

import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from slr import paths
from slr.datasets.files import put
from slr.datasets.phoenix import Entry, corpus_text
from slr.datasets.sentences import BLANK, LARGEST, LONGEST, decode
from slr.errors import Mistake
from slr.paths import SETS
from slr.video import VIDEO_SUFFIXES, VideoError

COLUMNS = ("id", "transcription", "frames")
REPORT, ANNOTATIONS, FEATURES = "hugging_face.json", "annotations", "features"
SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
FOLDERS = {"train": "train", "val": "dev", "test": "test"}
MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff"}
ROWS = 4  # that a parquet file's reader hands over at once: one is some 10 MB of frames
LONGEST_ID = 200  # bytes: file systems take names of 255
CONVERTED = "of a data set with a script the hub has them in the branch refs/convert/parquet"

_SAFE = re.compile(r"\w[\w.+-]*")
_TAKEN = {*SPLITS, ANNOTATIONS, FEATURES}  # folders of these names are looked into when frames are searched by id
_HUB = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<config>[\w.-]+))?", re.ASCII)
_SPLIT = re.compile(rf"(?<![a-z0-9])({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)
_END: dict[str, Any] = {}  # after the last row


def convert(source: str | Path, root: Path, split: str, *, progress: bool = False, limit: int = 0,
            replace: bool = False) -> Path:
    """Write the sentences of a data set once, in a form that preprocess.py reads; the folder that they are in.

    Args:
        source: a folder with parquet files of train, validation (or val, dev) and test; or ACCOUNT/NAME of the hub,
            ACCOUNT/NAME:CONFIG of a data set with several configurations.
        split: what the sentences are called from here on; the folder is `paths.hugging_face(root, split)`.
        limit: only the first rows of each set.
        replace: throw away what was converted from another source under that name.

    Raises:
        Mistake: there is no such data set, it lacks a column, none of its rows can be used, a file of it is damaged,
            the folder holds another one, or the package `datasets` is missing.
    """
    load = _loader()
    streams, origin = _folder(load, Path(source)) if Path(source).is_dir() else _hub(load, str(source))
    place = paths.hugging_face(root, split)
    report = _begin(place, origin, replace)
    for part, stream in streams.items():
        if _is_done(report["sets"].get(part), limit):
            continue
        report["whole"] = False
        _put_report(place, report)
        report["sets"][part] = _convert_set(_bar(_rows(stream, part), part, progress), place, part, limit)
        _put_report(place, report)
    for part in set(SETS) - set(streams):
        _put_annotation(place, part, [])
    report["whole"] = True
    _put_report(place, report)
    _check_any(report, origin["source"])
    return place


def _loader() -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise Mistake("Hugging Face data sets need the package datasets", str(error), "pip install datasets") from None
    return load_dataset


def _bar(rows: Iterator[dict[str, Any]], part: str, progress: bool) -> Iterable[dict[str, Any]]:
    from tqdm import tqdm
    return tqdm(rows, desc=part, unit=" sentences", disable=not progress)


# --- where rows come from -----------------------------------------------------------------------------------

def _folder(load: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """({set: its rows}, what is noted of the source) of a folder of parquet files."""
    streams, sizes = {}, {}
    for part, files in parquet_files(folder).items():
        names = [glob.escape(str(path.absolute())) for path in files]
        opened = partial(load, "parquet", data_files={part: names}, streaming=True, batch_size=ROWS, split=part)
        wrong = f"cannot open the parquet files of {part} in {paths.shown(folder)}"
        streams[part] = _tried(partial(_stream, _tried(opened, wrong, "get them anew")), wrong, "get them anew")
        sizes[part] = [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in files]
    return streams, {"source": str(folder.resolve()), "files": sizes}


def _tried(call: Callable[[], Any], wrong: str, do: str) -> Any:
    """What `call` returns. What datasets, the hub, its transport and the readers of files raise is no closed list.

    Raises:
        Mistake: in place of whatever they raise.
    """
    try:
        return call()
    except Mistake:
        raise
    except Exception as error:
        raise Mistake(wrong, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", do) from error


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """{set: its parquet files} in a folder and below. The set is what the file's or a folder's name says,
    train-00000-of-00005.parquet or validation/0000.parquet.

    Raises:
        Mistake: there are none, those of several configurations, or a file is no parquet file.
    """
    found: dict[str, list[Path]] = {}
    bases: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.parquet")):
        inside = path.relative_to(folder).with_suffix("").parts
        named = next((match[1] for part in reversed(inside) if (match := _SPLIT.search(part))), None)
        if named is None or any(part.startswith(".") for part in inside):
            continue
        found.setdefault(SPLITS[named.lower()], []).append(path)
        bases["/".join(part for part in inside[:-1] if not _SPLIT.search(part)) or "."] = path
    if not found:
        raise Mistake(f"no data set in {paths.shown(folder)}",
                      "no *.parquet of train, validation or test is there or in its folders",
                      f"name the folder of the parquet files; {CONVERTED}")
    if len(bases) > 1:
        raise Mistake(f"several data sets in {paths.shown(folder)}", f"parquet files in {', '.join(bases)}",
                      "name the folder of one of them")
    for path in (path for paths_of in found.values() for path in paths_of):
        _check_parquet(path)
    return {part: found[part] for part in SETS if part in found}


def _check_parquet(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(4)
        stream.seek(max(stream.seek(0, os.SEEK_END) - 4, 0))
        tail = stream.read()
    if (head, tail) != (b"PAR1", b"PAR1"):
        pointer = "a pointer of git lfs" if head == b"vers" else "cut short, or something else"
        raise Mistake(f"{paths.shown(path)} is no parquet file", f"it is {pointer}",
                      "get it anew; in a clone: git lfs pull")


def _hub(load: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `_folder`, of a data set of the hub, which is read while it is fetched."""
    found = _HUB.fullmatch(name)
    if not found or Path(name).exists():
        raise Mistake("there is no such data set", f"{name} is no folder, and no name on the hub",
                      "give a folder of parquet files, ACCOUNT/NAME or ACCOUNT/NAME:CONFIG")
    wrong = f"no folder is called {name}, and it cannot be opened on the hub"
    sets = _tried(lambda: load(found["name"], found["config"], streaming=True), wrong,
                  f"give a folder of parquet files, ACCOUNT/NAME or ACCOUNT/NAME:CONFIG; {CONVERTED}")
    streams: dict[str, Any] = {}
    for split, rows in sets.items():
        part = SPLITS.get(str(split).lower())
        if part in streams:
            raise Mistake(f"{name} has two sets for {part}", ", ".join(map(str, sets)), "convert a copy with one")
        if part:
            streams[part] = _tried(partial(_stream, rows), wrong, "look at it on the hub")
    if not streams:
        raise Mistake(f"{name} has no set to train or test on", f"there are {', '.join(map(str, sets))}",
                      "they have to be called train, validation (or val, dev) and test")
    return {part: streams[part] for part in SETS if part in streams}, {"source": name, "files": {}}


def _stream(rows: Any) -> Any:
    """The three columns alone, with images as they are stored."""
    names = rows.column_names
    if names is None:  # of files that say no types
        names = list(next(iter(rows), dict.fromkeys(COLUMNS)))
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise Mistake("this is no data set of sentences", f"it has no {', '.join(missing)}, but {', '.join(names)}",
                      "its columns have to be id, transcription and frames")
    chosen = rows.select_columns(list(COLUMNS))
    return chosen.decode(False) if chosen.features else chosen


def _rows(stream: Any, part: str) -> Iterator[dict[str, Any]]:
    rows = iter(stream)
    wrong, do = f"cannot read on in {part}", "get its files anew; the same command goes on where it stopped"
    while (row := _tried(lambda: next(rows, _END), wrong, do)) is not _END:
        yield row


# --- the report ---------------------------------------------------------------------------------------------

def _begin(place: Path, origin: dict[str, Any], replace: bool) -> dict[str, Any]:
    """The report to go on with: what it says is done is still true."""
    before = read_report(place)
    if before and before["source"] != origin["source"] and (before["files"] != origin["files"] or not origin["files"]):
        if not replace:
            raise Mistake(f"{paths.shown(place)} was made from another data set", f"{before['source']}, not "
                          f"{origin['source']}", "say --replace to throw it away, or choose another name behind -as")
        for name in (FEATURES, ANNOTATIONS):
            shutil.rmtree(place / name, ignore_errors=True)
        before = {}
    elif not before and place.exists() and any(place.iterdir()):
        raise Mistake(f"{paths.shown(place)} is not written into", f"it has no {REPORT}, so something else made it",
                      "move it away, or choose another name behind -as")
    done = before["sets"] if before and before["files"] == origin["files"] else {}
    return {**origin, "whole": False, "sets": dict(done)}


def read_report(place: Path) -> dict[str, Any]:
    """What `convert` wrote of its source, the rows and those that it left out; {} where there is none.

    Raises:
        Mistake: it is damaged.
    """
    file = place / REPORT
    if not file.is_file():
        return {}
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        if not {"source", "files", "whole", "sets"} <= report.keys():
            raise ValueError(f"it has {', '.join(report)}")
    except (OSError, ValueError, AttributeError) as error:
        raise Mistake(f"{paths.shown(file)} is no report of preprocess.py", str(error),
                      f"remove {paths.shown(place)} and convert the data set again") from error
    return report


def _put_report(place: Path, report: dict[str, Any]) -> None:
    put(place / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _is_done(row: dict[str, Any] | None, limit: int) -> bool:
    """Whether a set has as much as is asked for."""
    return row is not None and (not row["limit"] or 0 < limit <= row["limit"])


def _check_any(report: dict[str, Any], source: str) -> None:
    if not any(row["sentences"] for row in report["sets"].values()):
        left = [left for row in report["sets"].values() for left in row["left_out"]]
        raise Mistake(f"no sentence of {source} can be used",
                      f"row {left[0]['row']}: {left[0]['reason']}" if left else "it has no rows",
                      f"{REPORT} names every row")


def check_whole(place: Path) -> None:
    """Raises:
        Mistake: the conversion was stopped before its end.
    """
    report = read_report(place)
    if not report.get("whole"):
        raise Mistake(f"{paths.shown(place)} is not whole", "its conversion was stopped",
                      f"go on with it: --hf_dataset {report.get('source', 'SOURCE')}")


def guard(labels: Path, split: str, limit: int) -> None:
    """Refuse before the work what could not be replaced after it.

    Raises:
        Mistake: a split of that name is prepared from something else, or from more.
    """
    file = labels / "report.json"
    if not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    where, do = f"{paths.shown(labels)} was made", "say --replace to write over it, or choose another name behind -as"
    if before.get("annotations") != paths.hugging_face(Path(), split).as_posix():
        raise Mistake(f"{where} from another annotation", str(before.get("annotations")), do)
    if limit and before.get("limit") != limit:
        raise Mistake(f"{where} from other sentences", f"--limit {before.get('limit') or 'was not given'}", do)


def summary(place: Path, verbose: bool = False) -> str:
    """What became of the rows, as a person wants it; `verbose`: a line for each that was left out."""
    lines = []
    for part, row in read_report(place)["sets"].items():
        lines.append(f"{part}: {row['rows']} rows, {row['sentences']} sentences ({row['written']} written, "
                     f"{row['sentences'] - row['written']} were there), {len(row['left_out'])} left out")
        if verbose:
            lines += [f"  left out: row {left['row']} ({left['id']}): {left['reason']}" for left in row["left_out"]]
    return "\n".join(lines)


# --- writing ------------------------------------------------------------------------------------------------

def _convert_set(rows: Iterable[dict[str, Any]], place: Path, part: str, limit: int) -> dict[str, Any]:
    """Write a set's frames and annotation; the report's lines on it."""
    folder, number, written = place / FEATURES / FOLDERS[part], -1, 0
    entries, left_out = dict[str, Entry](), list[dict[str, Any]]()
    for number, row in enumerate(islice(rows, limit or None)):
        try:
            entry = entry_of(row, part)
            if entry.id in entries:
                raise ValueError("its id stands twice; the first one stays")
            written += _put_frames(folder / entry.id, row["frames"])
            entries[entry.id] = entry
        except (ValueError, VideoError) as error:
            reason = f"{error.wrong}: {error.found}" if isinstance(error, VideoError) else str(error)
            left_out.append({"row": number, "id": str(row["id"])[:80], "reason": reason})
    if not limit:
        _prune(folder, set(entries))
    _put_annotation(place, part, list(entries.values()))
    return {"limit": limit, "rows": number + 1, "sentences": len(entries), "written": written, "left_out": left_out}


def entry_of(row: dict[str, Any], part: str) -> Entry:
    """What a row says of a sentence.

    Raises:
        ValueError: its id cannot be a folder's name, or its glosses cannot stand in an annotation.
    """
    name, words = row["id"], row["transcription"]
    if not isinstance(name, str) or not _SAFE.fullmatch(name) or len(name.encode()) > LONGEST_ID:
        raise ValueError(f"its id is no name of a folder: {str(name)[:80]!r}")
    if name in _TAKEN or name.lower().endswith(VIDEO_SUFFIXES):
        raise ValueError(f"its id would be taken for a set or a video: {name}")
    if not isinstance(words, str):
        raise ValueError("its transcription is no text")
    gloss = tuple(words.split())
    if "|" in words or BLANK in gloss:
        raise ValueError(f"its glosses hold | or {BLANK}, which have a meaning of their own")
    return Entry(name, part, gloss=gloss, folder=f"{name}/*")


def _put_annotation(place: Path, part: str, entries: list[Entry]) -> None:
    """A corpus csv; none of a set without a sentence, which would be an error to its reader."""
    file = place / ANNOTATIONS / f"{FOLDERS[part]}.corpus.csv"
    if entries:
        put(file, corpus_text(entries))
    else:
        file.unlink(missing_ok=True)


def _put_frames(folder: Path, frames: Any) -> bool:
    """Write a sentence's frames, if they are not there: whether they were written.

    Raises:
        ValueError, VideoError: they cannot be used.
    """
    stored = _stored(frames)
    if _are_there(folder, stored):
        return False
    images = _decoded(stored)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, data in images.items():
        (aside / name).write_bytes(data)
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    return True


def _stored(frames: Any) -> list[bytes]:
    """The encoded images of a row. A path to a file elsewhere is not followed."""
    if not isinstance(frames, list) or not frames:
        raise ValueError("it has no frames")
    if len(frames) > LONGEST:
        raise ValueError(f"it has {len(frames)} frames")
    found = list[bytes]()
    for number, frame in enumerate(frames):
        data = frame.get("bytes") if isinstance(frame, dict) else frame
        if not isinstance(data, bytes) or not 0 < len(data) <= LARGEST:
            raise ValueError(f"frame {number} holds no bytes of an image")
        found.append(data)
    return found


def _suffix(data: bytes) -> str:
    return next((suffix for suffix, magic in MAGIC.items() if data.startswith(magic)), "")


def _are_there(folder: Path, stored: list[bytes]) -> bool:
    """Whether a folder holds these images, by their names and sizes; of those that are not kept as they are by name."""
    if not folder.is_dir():
        return False
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    names = [f"{number:06d}{_suffix(data) or '.png'}" for number, data in enumerate(stored)]
    return len(sizes) == len(names) and all(
        sizes.get(name, 0) == len(data) if _suffix(data) else name in sizes
        for name, data in zip(names, stored, strict=True))


def _decoded(stored: list[bytes]) -> dict[str, bytes]:
    """{name: png or jpg} of images that all decode and are of one size; other formats become png."""
    import cv2
    found, sizes = dict[str, bytes](), set()
    for number, data in enumerate(stored):
        image, suffix = decode(data, f"frame {number}"), _suffix(data)
        sizes.add(image.shape)
        if not suffix:
            data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
        found[f"{number:06d}{suffix or '.png'}"] = data
    if len(sizes) > 1:
        raise ValueError(f"its frames are of {len(sizes)} sizes")
    return found


def _prune(folder: Path, ids: set[str]) -> None:
    """Remove what a stopped conversion left half, and sentences that the source has no more."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and path.name not in ids:
            shutil.rmtree(path)
