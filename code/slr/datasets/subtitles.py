"""Subtitles and their videos to rows of frames: what the Bundestag's form has as metadata.csv.

    found = read_srt(Path("videos/7605085.srt"))                    # .subtitles, and what is wrong with .left_out
    rows = list(rows_of("7605085", found.subtitles, fps=25.0, frames=90000))
    print(subtitles(Path("videos"), Path("bundestag")))             # every name.mp4 with its name.srt -> metadata.csv

SubRip has no standard: a block is a number, a line with two times and lines of text, and an empty line ends it. Read
here are UTF-8, and UTF-16 with its mark, any line ends, blocks without a number, times with a point in place of the
comma and with positions behind them. Tags go, several lines become one. Blocks may overlap, as two people do who talk
at once, and stand in any order. A block that cannot be used is left out and named by file and line.

Frame i is shown from i / fps seconds on. A subtitle's frames are those from the edge nearest to its start to the one
nearest to its end, so that neither a time rounded to milliseconds nor a neighbour that follows at once costs or shares
a frame. No torch in here.
"""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from slr.datasets.files import put
from slr.datasets.hearai_tools import Bar, Done
from slr.errors import Mistake
from slr.paths import shown
from slr.video import VideoError, natural_key, probe

COLUMNS = ("VideoID", "SubtitleLine", "StartFrame", "EndFrame")
METADATA, MANIFEST = "metadata.csv", "metadata.json"  # the second says what the first was when it was written here
NAMED = 5  # blocks of a file that are named, of the rest how many there are

_TIME = r"([0-9]{1,4}):([0-9]{1,2}):([0-9]{1,2})(?:[,.]([0-9]{1,3}))?"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_NUMBER = re.compile(r"\s*[0-9]+\s*")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|\{\\[^{}]*\}")  # <i>, </font>, and {\an8} of other players
_LINE = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Subtitle:
    """A text and when it is shown, in milliseconds: `stop` is when it goes. `line` is where its block begins."""

    start: int
    stop: int
    text: str
    line: int = 0


@dataclass(frozen=True)
class Subtitles:
    """What a file holds: the subtitles in the order of their times, and why blocks were left out, by file and line."""

    subtitles: list[Subtitle]
    left_out: list[str]


class Row(NamedTuple):
    """A row of metadata.csv: a text and its first and last frame (inclusive, from 0)."""

    video: str
    text: str
    start: int
    end: int


# --- SubRip -------------------------------------------------------------------------------------------------

def plain(text: str) -> str:
    """Text without tags, in one line, with single spaces."""
    while (bare := _TAG.sub("", text)) != text:
        text = bare
    return " ".join(text.split())


def read_srt(file: Path) -> Subtitles:
    """The subtitles of a file.

    Raises:
        Mistake: it cannot be read, is no text, or no block of it can be used.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise Mistake(f"cannot read {shown(file)}", error.strerror or str(error), "get it anew") from error
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return parse_srt(data.decode(coding), shown(file))
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise Mistake(f"{shown(file)}, line {line} is no {error.encoding.upper()}", repr(data[error.start:][:8]),
                      "save the file as UTF-8") from error


def parse_srt(text: str, name: str = "subtitles") -> Subtitles:
    """The subtitles of a file's text; `name` is what messages call the file.

    Raises:
        Mistake: no block of it can be used.
    """
    found, left_out = list[Subtitle](), list[str]()
    for line, block in _blocks(text.removeprefix("\ufeff")):
        made = _subtitle(line, block)
        if isinstance(made, Subtitle):
            found.append(made)
        else:
            left_out.append(f"{name}, line {line}: {made}")
    if not found:
        raise Mistake(f"{name} has no subtitles", left_out[0] if left_out else "it is empty",
                      "a block is a number, a line such as 00:00:01,000 --> 00:00:02,500, and lines of text")
    return Subtitles(sorted(found, key=lambda one: (one.start, one.stop)), left_out)


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines) of what stands between empty lines."""
    block: list[str] = []
    lines = [*_LINE.split(text), ""]
    for number, line in enumerate(lines):
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block) + 1, block
            block = []


def _subtitle(line: int, block: Sequence[str]) -> Subtitle | str:
    """A block's subtitle, or why there is none."""
    numbered = len(block) > 1 and _NUMBER.fullmatch(block[0]) is not None
    times, *texts = block[1:] if numbered else block
    found = _TIMES.fullmatch(times)
    if not found:
        return f"no times, but {times.strip()[:80]!r}"
    if any(_TIMES.fullmatch(text) for text in texts):
        return "two lines of times: an empty line is missing before the second"
    start, stop = _milliseconds(found.groups()[:4]), _milliseconds(found.groups()[4:])
    if start is None or stop is None:
        return f"{times.strip()[:80]} is no time: a minute has 60 seconds, an hour 60 minutes"
    if stop <= start:
        return f"it ends {'when' if stop == start else 'before'} it begins, {times.strip()[:80]}"
    text = plain("\n".join(texts))
    return Subtitle(start, stop, text, line) if text else "there is no text"


def _milliseconds(parts: Sequence[str | None]) -> int | None:
    hours, minutes, seconds = (int(part or 0) for part in parts[:3])
    if minutes > 59 or seconds > 59:
        return None
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + int((parts[3] or "0").ljust(3, "0"))


def _time(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{rest:03d}"


def srt_text(subtitles: Iterable[Subtitle]) -> str:
    """A file's text, which `parse_srt` reads back; their texts are `plain`."""
    return "\n".join(f"{number}\n{_time(one.start)} --> {_time(one.stop)}\n{one.text}\n"
                     for number, one in enumerate(subtitles, 1))


# --- frames -------------------------------------------------------------------------------------------------

def frames_of(start: int, stop: int, fps: float) -> tuple[int, int]:
    """First and last frame (inclusive) of what is shown from `start` to `stop`, in milliseconds; at least one."""
    first, past = (math.floor(at * fps / 1000 + 0.5) for at in (start, stop))
    return first, max(first, past - 1)


def times_of(first: int, last: int, fps: float) -> tuple[int, int]:
    """The milliseconds from which to which frames `first` .. `last` are shown."""
    return round(first / fps * 1000), round((last + 1) / fps * 1000)


def rows_of(video: str, subtitles: Iterable[Subtitle], fps: float, frames: int) -> Iterator[Row]:
    """The rows of a video of so many frames: a subtitle past its end has none, one that reaches past it ends there."""
    for one in subtitles:
        first, last = frames_of(one.start, one.stop, fps)
        if first < frames:
            yield Row(video, one.text, first, min(last, frames - 1))


def metadata_text(rows: Iterable[Row]) -> str:
    """metadata.csv."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    return stream.getvalue()


# --- a folder of videos -------------------------------------------------------------------------------------

def subtitles(place: Path, output: Path, bar: Bar | None = None) -> Done:
    """`output`/metadata.csv of every name.mp4 with its name.srt in `place`; bad pairs are left out, with a reason.

    Beside it lies metadata.json with a hash of it, by which the next run knows its own file. Where every pair is bad
    nothing is written.

    Raises:
        Mistake: no videos, or the metadata.csv that is there was not written here, or was changed since.
    """
    pairs = _pairs(place)
    if output.exists() and not output.is_dir():
        raise Mistake("OUTPUT_DIR is no folder", f"{shown(output)} is a file", "give a folder, or a name for a new one")
    before = _guarded(output)
    done, rows = Done(), list[Row]()
    for name, files in bar(pairs.items(), len(pairs), "subtitles") if bar else pairs.items():
        try:
            own, notices = _of_pair(name, files)
        except (Mistake, OSError) as error:
            done.failed[name.encode(errors="replace").decode()] = str(error).partition("\n")[0]
            continue
        rows += own
        done.written.append(name)
        done.notices |= {name: "; ".join(notices)} if notices else {}
    if rows:
        _write(output, metadata_text(rows).encode(), before, done)
        _say_where(place, output, done)
    return done


def _pairs(place: Path) -> dict[str, dict[str, Path]]:
    """{name: {.mp4: file, .srt: file}} in natural order; one of the two may be missing."""
    if not place.is_dir():
        raise Mistake("VIDEOS_FOLDER is no folder", shown(place), "name the folder with name.mp4 and name.srt")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(place.iterdir(), key=lambda p: natural_key(p.name)):
        if path.suffix in (".mp4", ".srt") and path.is_file() and not path.name.startswith("."):
            found.setdefault(path.stem, {})[path.suffix] = path
    if not found:
        raise Mistake("no videos and no subtitles", f"there is no mp4 and no srt file in {shown(place)}",
                      "put name.mp4 and name.srt there")
    return found


def _of_pair(name: str, files: dict[str, Path]) -> tuple[list[Row], list[str]]:
    """The rows of a pair, and what is worth knowing.

    Raises:
        Mistake: one of the files is missing or cannot be used.
    """
    if not name.isprintable():
        raise Mistake("its name cannot stand in a table", ascii(name), "rename both files")
    for suffix, what in ((".mp4", "no video"), (".srt", "no subtitles")):
        if suffix not in files:
            raise Mistake(what, f"{name}{suffix} is missing", "put it there")
    read, info = read_srt(files[".srt"]), probe(files[".mp4"])
    if not 0 < info.fps < 1000:
        raise VideoError(f"{shown(files['.mp4'])} has no frame rate", f"its header says {info.fps:g}", "encode it anew")
    rows = list(rows_of(name, read.subtitles, info.fps, info.frames))
    if not rows:
        raise Mistake(f"{shown(files['.srt'])} is of another video", "all its subtitles begin past the video's end")
    return rows, _notices(read, rows, info.fps, info.frames)


def _notices(read: Subtitles, rows: Sequence[Row], fps: float, frames: int) -> list[str]:
    left = read.left_out[:NAMED] + ([f"and {len(read.left_out) - NAMED} more"] if len(read.left_out) > NAMED else [])
    late = len(read.subtitles) - len(rows)
    cut = sum(frames_of(one.start, one.stop, fps)[1] >= frames for one in read.subtitles) - late
    overlaps = sum(two.start < one.stop for one, two in pairwise(read.subtitles))
    counted = ((late, "begin past the video's end and are left out"),
               (cut, "reach past the video's end and end with it"),
               (overlaps, "begin before the one before them ends"))
    return [*(f"left out: {one}" for one in left),
            *(f"{count} of {len(read.subtitles)} subtitles {what}" for count, what in counted if count)]


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _guarded(output: Path) -> bytes | None:
    """The metadata.csv that is there.

    Raises:
        Mistake: it is not what this command has written.
    """
    file = output / METADATA
    if not file.exists():
        return None
    there = file.read_bytes()
    try:
        known = json.loads((output / MANIFEST).read_bytes())["sha256"]
        own = _sha(there) in known
    except (OSError, ValueError, KeyError, TypeError):  # no manifest, or one of something else
        own = False
    if not own:
        raise Mistake(f"{shown(file)} is left alone", "it was not written by this command, or was changed since",
                      "move it away, or give another folder")
    return there


def _write(output: Path, data: bytes, before: bytes | None, done: Done) -> None:
    """metadata.csv, its hash first: killed between the two, the next run still knows the old file as its own."""
    if data == before:
        done.kept, done.written = done.written, []
        return
    known = [_sha(one) for one in (before, data) if one is not None]
    put(output / MANIFEST, json.dumps({"sha256": known}) + "\n")
    put(output / METADATA, data)


def _say_where(place: Path, output: Path, done: Done) -> None:
    if place.resolve() != (output / "videos").resolve():
        done.notices[METADATA] = f"training looks for its videos in {shown(output / 'videos')}: move or link them there"
