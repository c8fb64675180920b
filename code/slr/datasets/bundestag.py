"""Long videos with their subtitles, in the Bundestag's form: the reader, and who trains.

    found = read_samples(paths.bundestag(root, "bundestag"))        # .samples, .left_out
    sets = split(found.samples, seed=42)                            # {"train": […], "val": […], "test": […]}, by video

<folder>/metadata.csv             VideoID, SubtitleLine, StartFrame, EndFrame: a text and its first and last frame
<folder>/videos/<VideoID>.mp4     frames are counted from 0, and the last one is the sample's too

The reader is strict: a bad row is a Mistake with file and line. What a video lacks is left out, with a reason; how long
a video is its header says, which costs milliseconds where counting costs minutes, unless `thorough` has it counted. No
torch in here.
"""

import csv
import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slr.datasets.subtitles import COLUMNS, METADATA
from slr.errors import Mistake
from slr.paths import SETS, shown
from slr.video import VideoError, playing, probe

SHARES = (0.9, 0.05, 0.05)  # of the videos: train, val and test
VIDEOS = "videos"

Sets = dict[str, list["Sample"]]


@dataclass(frozen=True)
class Sample:
    """A subtitle: its text, and frames `start` to `end` (inclusive, from 0) of `file`."""

    id: str  # <VideoID>/<start>-<end>
    video: str  # its VideoID
    start: int
    end: int
    text: str
    file: Path

    @property
    def num_frames(self) -> int:
        return self.end - self.start + 1


@dataclass(frozen=True)
class Found:
    """What a folder holds: samples in the order of its rows, and {id: reason} of what was left out."""

    samples: list[Sample]
    left_out: dict[str, str]

    def __str__(self) -> str:
        videos = len({sample.video for sample in self.samples})
        return "\n".join([*(f"left out: {name}: {why}" for name, why in self.left_out.items()),
                          f"{len(self.samples)} subtitles of {videos} videos, {len(self.left_out)} left out"])


# --- reading ------------------------------------------------------------------------------------------------

def read_samples(folder: Path, *, thorough: bool = False) -> Found:
    """The samples of a folder; those of missing, unreadable or too short videos are left out, and those that stand
    there twice.

    Args:
        thorough: every video is decoded once and its frames are counted.

    Raises:
        Mistake: no metadata.csv, or a row of it cannot be used: names file and line.
    """
    samples, left_out = list[Sample](), dict[str, str]()
    lengths: dict[Path, int | str] = {}
    seen: dict[str, int] = {}
    for line, sample in _rows(folder):
        if sample.id in seen:
            left_out[f"{sample.id}, line {line}"] = f"it stands in line {seen[sample.id]} already"
            continue
        seen[sample.id] = line
        if sample.file not in lengths:
            lengths[sample.file] = _length(sample.file, thorough)
        reason = _lacks(sample, lengths[sample.file])
        if reason:
            left_out[sample.id] = reason
        else:
            samples.append(sample)
    return Found(samples, left_out)


def _lacks(sample: Sample, length: int | str) -> str:
    if isinstance(length, str):
        return length
    return f"{shown(sample.file)} has {length} frames, and none of number {sample.end}" if sample.end >= length else ""


def _length(file: Path, thorough: bool) -> int | str:
    """How many frames a video has, or why that cannot be said."""
    if not file.is_file():
        return f"{shown(file)} is missing"
    try:
        return probe(file).frames if thorough else header_frames(file)
    except VideoError as error:
        return str(error).partition("\n")[0]


def header_frames(file: Path) -> int:
    """How many frames a video's header claims; its first one is decoded.

    Raises:
        VideoError: it is no video, or says nothing.
    """
    with playing(file) as (_, frames):
        if next(frames, None) is None:
            raise VideoError(f"cannot read {shown(file)}", "no frame of it decodes", "get it anew")
    import cv2
    capture = cv2.VideoCapture(str(file))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    if count < 1:
        raise VideoError(f"cannot read {shown(file)}", "its header names no number of frames", "encode it anew")
    return count


def _rows(folder: Path) -> Iterator[tuple[int, Sample]]:
    """(line, sample) of every row of metadata.csv."""
    file = folder / METADATA
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    header, line = _next(reader, file, 1), 1
    places = _places(file, header or [])
    while True:
        line = reader.line_num + 1
        row = _next(reader, file, line)
        if row is None:
            return
        if row:
            yield line, _sample(folder, row, places, _wrong(file, line))


def _next(reader: Iterator[list[str]], file: Path, line: int) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise _wrong(file, line)(str(error)) from error


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        do = f"it has the columns {', '.join(COLUMNS)}; preprocess.py --subtitles writes it from videos with SRT files"
        raise Mistake(f"cannot read {shown(file)}", error.strerror or str(error), do) from error
    except UnicodeDecodeError as error:
        raise Mistake(f"{shown(file)} is no UTF-8 text", str(error), "convert it, or get it anew") from error


def _wrong(file: Path, line: int) -> Callable[[str], Mistake]:
    return lambda found: Mistake(f"{shown(file)}, line {line} cannot be used", found[:300],
                                 "mend that line, or get the file anew")


def _places(file: Path, header: Sequence[str]) -> dict[str, int]:
    """{column: where it stands}; columns of other names are not looked at."""
    missing = [name for name in COLUMNS if header.count(name) != 1]
    if missing:
        raise _wrong(file, 1)(f"a header with {', '.join(COLUMNS)} is expected, each once; {', '.join(missing)} "
                              f"is not in {','.join(header)!r}")
    return {name: header.index(name) for name in COLUMNS}


def _sample(folder: Path, row: Sequence[str], places: Mapping[str, int], wrong: Callable[[str], Mistake]) -> Sample:
    if len(row) <= max(places.values()):
        raise wrong(f"{len(row)} fields are too few: {','.join(row)}")
    video, text, start, end = (row[places[name]] for name in COLUMNS)
    if not video or video.startswith(".") or not video.isprintable() or set(video) & set("/\\"):
        raise wrong(f"{video!r} is no VideoID: a file's name without .mp4")
    numbers = [_whole(one) for one in (start, end)]
    if numbers[0] is None or numbers[1] is None:
        raise wrong(f"StartFrame and EndFrame are numbers from 0 up, not {start!r} and {end!r}")
    if numbers[1] < numbers[0]:
        raise wrong(f"it ends before it begins: StartFrame {start}, EndFrame {end}")
    name = f"{video}/{numbers[0]}-{numbers[1]}"
    return Sample(name, video, numbers[0], numbers[1], " ".join(text.split()), folder / VIDEOS / f"{video}.mp4")


def _whole(text: str) -> int | None:
    """A number from 0 up; 3.0 is one too: so pandas writes a column in which one is missing."""
    found = re.fullmatch(r"\s*([0-9]{1,9})(?:\.0*)?\s*", text)
    return int(found[1]) if found else None


# --- who trains, on which frames ----------------------------------------------------------------------------

def split(samples: Iterable[Sample], shares: Sequence[float] = SHARES, seed: int = 0) -> Sets:
    """The samples as train, val and test by video, whatever order they come in; each set sorted by video and frame.

    No video is in two sets, and every set with a share has one.

    Args:
        shares: of the videos; their sum is 1.

    Raises:
        Mistake: these are no shares, or there are fewer videos than sets.
    """
    fine = len(shares) == len(SETS) and all(0 <= share <= 1 for share in shares)
    if not fine or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise Mistake("these are no shares of train, val and test", ", ".join(map(str, shares)),
                      "give three numbers that sum up to 1")
    ordered = sorted(samples, key=lambda sample: (sample.video, sample.start, sample.end))
    videos = sorted({sample.video for sample in ordered}, key=lambda video: _lot(seed, video))
    wanted = sum(share > 0 for share in shares)
    if len(videos) < wanted:
        raise Mistake(f"{len(videos)} videos are too few for {wanted} sets", "each needs one",
                      "get more videos, or give a set the share 0")
    places = np.repeat(SETS, _counts(len(videos), shares)).tolist()
    part_of = dict(zip(videos, places, strict=True))
    return {part: [sample for sample in ordered if part_of[sample.video] == part] for part in SETS}


def _lot(seed: int, video: str) -> bytes:
    """What a shuffled order is sorted by: it depends on nothing but the seed and the name."""
    return hashlib.blake2b(f"{seed}|{video}".encode(), digest_size=16).digest()


def _counts(videos: int, shares: Sequence[float]) -> list[int]:
    """How many videos each set has: its share rounded, at least one, and what is left for the largest."""
    counts = [max(1, round(videos * share)) if share else 0 for share in shares]
    largest = int(np.argmax(shares))
    counts[largest] -= sum(counts) - videos
    return counts
