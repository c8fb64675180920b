"""Videos in, uint8 frames out: decoding, frame sampling, and the frame store. Frames are RGB, (T, H, W, 3).

    info = probe("69241.mp4")                                        # VideoInfo(frames=65, width=256, ...)
    frames = read_frames("69241.mp4", sample_indices(info.frames, 32))
    source = open_source("jpeg", videos, store)                      # or "raw", or "video"
    frames = source.read(clip, sample_indices(source.length(clip), 32))

A folder of jpg or png images is a video too. The number of frames is the number that decodes: headers lie.
OpenCV's seeking is ten times slower than decoding a clip from its start, and may land on other frames: only what comes
late in a long video is sought, and only in a file where that was found to be right.
"""

import fcntl
import functools
import hashlib
import json
import os
import re
import typing
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slr.errors import Mistake

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in the file's pixels; x1 and y1 are one past the last
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".swf", ".gif")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
STORES = ("jpeg", "raw")
FAR = 1000  # frames: decoding so many takes less than a seek may
TRIED = (37, 101)  # frames that a seek is tried with


class VideoError(Mistake):
    """A video or a stored clip cannot be read: names the file and the reason."""


class Located(Protocol):
    """What a source has to know about a clip; `stem` is the video file's name without its ending."""

    @property
    def id(self) -> str: ...
    @property
    def stem(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int | None: ...
    @property
    def box(self) -> Box | None: ...


@functools.cache
def _cv2() -> Any:
    """OpenCV, imported when the first frame is wanted, its own complaints about bad files switched off."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        import cv2
    except ImportError as error:
        do = "install Debian's libgl1 (apt-get install libgl1), or opencv-python-headless"
        raise Mistake("OpenCV cannot be imported", str(error), do) from error
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)  # for an OpenCV that was imported before the variable was set
    return cv2


# --- decoding -----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class VideoInfo:
    """What a video really holds; `header_frames` is what its header claims, `fps` is 0 where unknown."""

    frames: int
    width: int
    height: int
    fps: float
    header_frames: int


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    cv2 = _cv2()
    if not path.is_file():
        raise VideoError(f"no video {path}", "there is no such file")
    # One thread a decoder: loaders run one process a core, and more threads are slower even for a single one.
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise VideoError(f"cannot read {path}", f"{path.stat().st_size} bytes that are no video")
        yield capture
    finally:
        capture.release()


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts frame2 before frame10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in parts]


def frame_files(folder: Path) -> list[Path]:
    """The images of a frame folder, in the natural order of their names."""
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not files:
        raise VideoError(f"no frames in {folder}", "there is no jpg or png file in it")
    return sorted(files, key=lambda p: natural_key(p.name))


def _image(file: Path) -> np.ndarray:
    cv2 = _cv2()
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise VideoError(f"cannot read {file}", f"{file.stat().st_size} bytes that are no image")
    return image


def probe(path: Path | str) -> VideoInfo:
    """Decode the whole of `path` once and say what is in it.

    Raises:
        VideoError: no file, no video, or no frame of it decodes.
    """
    path = Path(path)
    if path.is_dir():
        files = frame_files(path)
        height, width = _image(files[0]).shape[:2]
        return VideoInfo(len(files), width, height, 0.0, len(files))
    cv2 = _cv2()
    with _opened(path) as capture:
        fine, first = capture.read()
        if not fine:
            raise VideoError(f"cannot read {path}", "no frame of it decodes")
        frames = 1
        while capture.grab():
            frames += 1
        rate, header = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return VideoInfo(frames, first.shape[1], first.shape[0], float(rate), int(header))


def _decoded(path: Path, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """The frames at `wanted` (sorted, each once), BGR: all from the first one on are grabbed, only these are converted.

    What comes late in a video is sought where that is right, else the frames before it are counted.
    """
    if path.is_dir():
        files = frame_files(path)
        for i in wanted[wanted < len(files)]:
            yield _image(files[i])
        return
    with _opened(path) as capture:
        position = -1
        if len(wanted) and wanted[0] >= FAR and _seeks_right(path, *_state(path)):
            capture.set(_cv2().CAP_PROP_POS_FRAMES, int(wanted[0]))
            position = int(wanted[0]) - 1
        for i in wanted:
            while position < i:
                if not capture.grab():
                    return
                position += 1
            fine, frame = capture.retrieve()
            if not fine:
                raise VideoError(f"cannot read {path}", f"frame {i} does not decode")
            yield frame


def _state(path: Path) -> tuple[int, int]:
    """Size and time of change: of another file there the answer is another."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def _seeks_right(path: Path, size: int, changed: int) -> bool:
    """Whether a seek arrives where counting does: tried with early frames, which must come at an even pace, since a
    seek goes by time."""
    cv2, counted, times = _cv2(), dict[int, np.ndarray](), list[float]()
    with _opened(path) as capture:
        rate = capture.get(cv2.CAP_PROP_FPS)
        for i in range(max(TRIED) + 1):
            if not rate or not capture.grab():
                return False
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
            if i in TRIED:
                counted[i] = capture.retrieve()[1]
        pace = np.arange(len(times)) * 1000 / rate
        if np.abs(np.array(times) - times[0] - pace).max() > 500 / rate:
            return False
        for i, frame in counted.items():
            capture.set(cv2.CAP_PROP_POS_FRAMES, i)
            fine, found = capture.read()
            if not fine or not np.array_equal(found, frame):
                return False
    return True


def _fitted(frame: np.ndarray, crop: Box | None, short_side: int) -> np.ndarray:
    if crop is not None:
        x0, y0, x1, y1 = crop
        frame = frame[max(y0, 0):y1, max(x0, 0):x1]
    height, width = frame.shape[:2]
    if not height or not width:
        raise ValueError(f"the crop {crop} lies outside the frame")
    scale = short_side / min(height, width)
    if not short_side or scale >= 1:
        return frame
    cv2 = _cv2()
    return cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def _asked(indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The distinct indices in order, and the way back to the order asked for (None: it is the same)."""
    asked = np.asarray(indices, dtype=np.int64)
    if asked.ndim != 1 or not len(asked) or asked.min() < 0:
        raise ValueError(f"indices are a non-empty list of numbers from 0 up, not {indices!r}")
    wanted, back = np.unique(asked, return_inverse=True)
    return wanted, None if np.array_equal(wanted, asked) else back


def read_frames(path: Path | str, indices: Sequence[int] | np.ndarray, crop: Box | None = None,
                short_side: int = 0) -> np.ndarray:
    """The frames of `path` at `indices` (0-based, any order, repeats allowed), cropped, then shrunk.

    Args:
        crop: x0, y0, x1, y1 in pixels of the file; None is the whole frame.
        short_side: shrink until the shorter side has this many pixels; never enlarges, 0 leaves the size.

    Returns:
        uint8 (T, H, W, 3), RGB, T = len(indices).

    Raises:
        VideoError: no such file, no video, or fewer frames decode than were asked for.
    """
    path, cv2 = Path(path), _cv2()
    wanted, back = _asked(indices)
    frames, found = np.empty((0, 0, 0, 3), np.uint8), 0
    for raw in _decoded(path, wanted):
        frame = _fitted(raw, crop, short_side)
        if not found:
            frames = np.empty((len(wanted), *frame.shape), np.uint8)
        if frame.shape != frames.shape[1:]:
            raise VideoError(f"cannot read {path}", f"frame {wanted[found]} is not of the first one's size")
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=frames[found])
        found += 1
    if found < len(wanted):
        raise VideoError(f"{path} is too short", f"frame {wanted[found]} was asked for and does not decode",
                         "run preprocess.py again: it counts the frames that do")
    return frames if back is None else frames[back]


@contextmanager
def playing(path: Path | str) -> Iterator[tuple[float, Iterator[np.ndarray]]]:
    """The frames of a video file or frame folder from the first to the last, as they are decoded.

    Yields:
        (frames a second, 0 where unknown; the frames, each uint8 (H, W, 3), RGB).

    Raises:
        VideoError: no file, or no video.
    """
    path, cv2 = Path(path), _cv2()
    if path.is_dir():
        yield 0.0, (cv2.cvtColor(_image(file), cv2.COLOR_BGR2RGB) for file in frame_files(path))
        return
    with _opened(path) as capture:
        yield float(capture.get(cv2.CAP_PROP_FPS)), _rest(capture)


@contextmanager
def filming(number: int) -> Iterator[Iterator[np.ndarray]]:
    """The frames of camera `number` (0 is the first), each uint8 (H, W, 3), RGB, until it is switched off.

    Raises:
        VideoError: there is no such camera.
    """
    cv2 = _cv2()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a missing camera is told below, in one line
    capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise VideoError(f"no camera {number}", "it does not open",
                             "plug it in, close the program that uses it, or give another number")
        yield _rest(capture)
    finally:
        capture.release()


def _rest(capture: Any) -> Iterator[np.ndarray]:
    cv2 = _cv2()
    while True:
        fine, frame = capture.read()
        if not fine:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def find_video(folder: Path, stem: str) -> Path:
    """The video file or frame folder called `stem` in `folder`.

    Raises:
        VideoError: there is none.
    """
    for candidate in (folder / f"{stem}{suffix}" for suffix in VIDEO_SUFFIXES):
        if candidate.is_file():
            return candidate
    if stem and (folder / stem).is_dir():
        return folder / stem
    raise VideoError(f"no video {folder / stem}.mp4", "there is no such file")


def sample_indices(length: int, n: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """`n` frame numbers spread evenly over a whole sign of `length` frames, its first and last always in.

    Neighbours lie equally far apart, to within one frame. A clip of fewer than `n` frames repeats each
    frame equally often, to within one. n = 1 gives the middle. With `rng` every inner number is drawn from
    its own of `n` equal segments (Wang et al., Temporal Segment Networks, ECCV 2016); a clip too short to
    choose from stays even.

    Returns:
        int64 (n,), never decreasing, in [0, length).
    """
    if length < 1 or n < 1:
        raise ValueError(f"cannot take {n} frames of {length}")
    steps = np.arange(n, dtype=np.int64)
    if n == 1:
        return np.array([(length - 1) // 2 if rng is None else int(rng.integers(length))], np.int64)
    if length <= n:
        return steps * length // n
    if rng is None:
        return (2 * steps * (length - 1) + (n - 1)) // (2 * (n - 1))
    indices = np.minimum(((steps + rng.random(n)) * length / n).astype(np.int64), length - 1)
    indices[0], indices[-1] = 0, length - 1
    return indices


# --- the frame store ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class StoreSettings:
    """What all clips of a store have in common. `crop`: to the person's `box`, or none of the `frame`."""

    kind: str = "jpeg"
    crop: str = "box"
    short_side: int = 256
    quality: int = 90

    def __post_init__(self) -> None:
        if self.kind not in STORES or self.crop not in ("box", "frame"):
            raise ValueError(f"no such frame store: {self}")


@dataclass(frozen=True)
class StoredClip:
    """One line of index.jsonl. Frame i of a jpeg clip is bytes offsets[i] to offsets[i + 1] of its file."""

    id: str
    file: str
    frames: int
    height: int
    width: int
    bytes: int
    sha256: str
    offsets: list[int] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def frame_bytes(self) -> int:
        return self.height * self.width * 3


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; of a frame folder: over its files' names and bytes, in order."""
    if path.is_dir():
        whole = hashlib.sha256()
        for file in frame_files(path):
            whole.update(f"{file.name}\n{file_sha256(file)}\n".encode())
        return whole.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_clip(folder: Path, settings: StoreSettings, clip_id: str, frames: np.ndarray,
               source: dict[str, Any]) -> StoredClip:
    """Write the frames, uint8 (T, H, W, 3) RGB, of one clip; `StoreWriter.append` then enters its record.

    The file's name holds the hash of its content, so that no write touches a file that an index line speaks
    of: whatever moment a kill chooses, every line is true. Safe in worker processes.
    """
    if settings.kind == "raw":
        parts = [np.ascontiguousarray(frames).tobytes()]
    else:
        parts = [_jpeg(frame, settings.quality) for frame in frames]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    name = f"clips/{urllib.parse.quote(clip_id, safe='')}.{digest.hexdigest()[:12]}.{settings.kind}"
    _write_aside(folder / name, parts)
    offsets = [0, *np.cumsum([len(part) for part in parts]).tolist()]
    count, height, width = frames.shape[:3]
    return StoredClip(clip_id, name, count, height, width, offsets[-1], digest.hexdigest(),
                      offsets if settings.kind == "jpeg" else [], source)


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    cv2 = _cv2()
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    fine, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    if not fine:
        raise VideoError("cannot write a JPEG frame", f"of shape {frame.shape}")
    return data.tobytes()


def _write_aside(path: Path, parts: list[bytes]) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as stream:
        stream.writelines(parts)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, path)


class FrameStore:
    """The stored clips of a split, ready to read. Holds no open files: give it to any number of workers.

        store = FrameStore.open(folder)
        frames = store.read("69241", [0, 10, 20])        # uint8 (3, H, W, 3), RGB
    """

    def __init__(self, folder: Path, settings: StoreSettings, clips: dict[str, StoredClip]):
        self.folder, self.settings, self.clips = folder, settings, clips

    @classmethod
    def open(cls, folder: Path | str) -> "FrameStore":
        """Read the index of `folder`.

        Raises:
            VideoError: no store is there.
        """
        folder = Path(folder)
        settings, clips, _ = _read_index(folder / "index.jsonl")
        if settings is None:
            raise VideoError(f"no frame store in {folder}", "index.jsonl is missing or empty",
                             "write it: python preprocess.py -as SPLIT --store jpeg (or raw)")
        return cls(folder, settings, clips)

    def __len__(self) -> int:
        return len(self.clips)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self.clips

    def clip(self, clip_id: str) -> StoredClip:
        if clip_id not in self.clips:
            raise VideoError(f"clip {clip_id} is not in the frame store {self.folder}",
                             f"it holds {len(self)} others", "run preprocess.py with --store again")
        return self.clips[clip_id]

    def frames(self, clip_id: str) -> int:
        """How many frames of a clip are stored: its sign's, from the first to the last."""
        return self.clip(clip_id).frames

    def read(self, clip_id: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Reads only the frames at `indices` (0 is the sign's first): uint8 (T, H, W, 3), RGB."""
        return np.stack(self.images(clip_id, indices))

    def images(self, clip_id: str, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The same frame by frame, each uint8 (H, W, 3), without the copy into one array."""
        clip = self.clip(clip_id)
        wanted, back = _asked(indices)
        if wanted[-1] >= clip.frames:
            raise VideoError(f"clip {clip_id} in {self.folder} is too short",
                             f"frame {wanted[-1]} was asked for, it has {clip.frames}")
        read = self._raw if self.settings.kind == "raw" else self._jpeg
        try:
            with (self.folder / clip.file).open("rb", buffering=0) as stream:
                frames = [read(stream.fileno(), clip, i) for i in wanted.tolist()]
        except OSError as error:
            raise VideoError(f"cannot read {self.folder / clip.file}", error.strerror or str(error),
                             "run preprocess.py with --store again") from error
        return frames if back is None else [frames[i] for i in back]

    def _raw(self, descriptor: int, clip: StoredClip, i: int) -> np.ndarray:
        image = np.empty((clip.height, clip.width, 3), np.uint8)
        if os.preadv(descriptor, [image.data], i * clip.frame_bytes) != clip.frame_bytes:
            raise self._damaged(clip, i)
        return image

    def _jpeg(self, descriptor: int, clip: StoredClip, i: int) -> np.ndarray:
        cv2 = _cv2()
        data = os.pread(descriptor, clip.offsets[i + 1] - clip.offsets[i], clip.offsets[i])
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
        if image is None or image.shape != (clip.height, clip.width, 3):
            raise self._damaged(clip, i)
        return image

    def _damaged(self, clip: StoredClip, i: int) -> VideoError:
        return VideoError(f"{self.folder / clip.file} is damaged", f"frame {i} does not decode",
                          "run preprocess.py with --store KIND --verify: it writes damaged clips anew")

    def damage(self, clip_id: str, hashed: bool = True) -> str:
        """What is wrong with a clip's file, or ""; without `hashed` only its length is looked at."""
        clip = self.clip(clip_id)
        file = self.folder / clip.file
        if not file.is_file():
            return "its file is missing"
        if file.stat().st_size != clip.bytes:
            return f"{file.stat().st_size} bytes, {clip.bytes} were written"
        return "other bytes than were written" if hashed and file_sha256(file) != clip.sha256 else ""

    def check(self) -> dict[str, str]:
        """Read and hash every file: the damaged clips, each with what is wrong."""
        return {clip_id: wrong for clip_id in self.clips if (wrong := self.damage(clip_id))}


def _read_index(path: Path) -> tuple[StoreSettings | None, dict[str, StoredClip], int]:
    """Settings, clips, length of what is whole. The last line of a clip counts; a torn one ends the index."""
    clips: dict[str, StoredClip] = {}
    settings, whole = None, 0
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        try:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            if settings is None:
                settings = StoreSettings(**record)
            else:
                clip = StoredClip(**record)
                clips[clip.id] = clip
        except (TypeError, ValueError):
            break  # what was being written when the power went; its clips are simply not there
        whole += len(line)
    return settings, clips, whole


class StoreWriter(FrameStore):
    """A store being written: safe to kill at any moment and to go on with. One writer at a time.

        with StoreWriter(folder, StoreSettings("jpeg")) as store:
            if not store.holds(clip_id, source):
                store.add(clip_id, frames, source)

    A clip whose source (file, range, box) changed is written anew. A store of other settings is never mixed
    with or written over: that is a Mistake.
    """

    def __init__(self, folder: Path | str, settings: StoreSettings):
        folder = Path(folder)
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            self._acquire(folder)
            found, clips, whole = _read_index(folder / "index.jsonl")
            if found is not None and found != settings:
                raise Mistake(f"the frame store {folder} was written with other settings",
                              f"{_words(found)}, asked for: {_words(settings)}",
                              "ask for the same, or remove that folder first")
            super().__init__(folder, settings, clips)
            self._index = self._go_on(whole if found else 0)
        except BaseException:
            self._lock.close()
            raise

    def _acquire(self, folder: Path) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Mistake(f"the frame store {folder} is being written", "by another process",
                          "wait for it, or stop it") from error

    def _go_on(self, whole: int) -> typing.BinaryIO:
        """Cut the index behind its last whole line, and remove the files that no line speaks of."""
        index = (self.folder / "index.jsonl").open("ab")
        index.truncate(whole)
        if not whole:
            self._append(index, asdict(self.settings))
        known = {Path(clip.file).name for clip in self.clips.values()}
        for file in (self.folder / "clips").iterdir():
            if file.name not in known:
                file.unlink()
        return index

    @staticmethod
    def _append(index: typing.BinaryIO, record: dict[str, Any]) -> None:
        index.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        index.flush()
        os.fsync(index.fileno())

    def holds(self, clip_id: str, source: dict[str, Any], hashed: bool = False) -> bool:
        """Whether this clip of this very source is there and whole (`hashed`: byte for byte)."""
        return (clip_id in self and self.clips[clip_id].source == _plain(source)
                and not self.damage(clip_id, hashed))

    def append(self, clip: StoredClip) -> None:
        """Enter a clip that `write_clip` wrote; an older file of the same clip goes."""
        older = self.clips.get(clip.id)
        self._append(self._index, asdict(clip))
        self.clips[clip.id] = replace(clip, source=_plain(clip.source))
        if older and older.file != clip.file:
            (self.folder / older.file).unlink(missing_ok=True)

    def add(self, clip_id: str, frames: np.ndarray, source: dict[str, Any]) -> None:
        """Write frames, uint8 (T, H, W, 3) RGB, and enter them; `source` says what they were made of."""
        self.append(write_clip(self.folder, self.settings, clip_id, frames, source))

    def close(self) -> None:
        self._index.close()
        self._lock.close()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain(source: dict[str, Any]) -> dict[str, Any]:
    """As it comes back out of the index: tuples are lists."""
    return json.loads(json.dumps(source))


def _words(settings: StoreSettings) -> str:
    return ", ".join(f"{key} {value}" for key, value in asdict(settings).items())


# --- one way to read all three ------------------------------------------------------------------------------

class VideoFolder:
    """Clips straight from their video files, cropped to the person's `box` or the whole `frame`."""

    def __init__(self, folder: Path | str, crop: str = "frame", short_side: int = 0):
        self.folder, self.crop, self.short_side = Path(folder), crop, short_side

    def length(self, clip: Located) -> int:
        """How many frames the sign has: its range, decoded only where the clip does not say where it ends."""
        stop = clip.stop if clip.stop is not None else probe(find_video(self.folder, clip.stem)).frames
        return stop - clip.start

    def read(self, clip: Located, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The sign's frames at `indices` (0 is its first): uint8 (T, H, W, 3), RGB."""
        path = find_video(self.folder, clip.stem)
        crop = clip.box if self.crop == "box" else None
        return read_frames(path, np.asarray(indices) + clip.start, crop, self.short_side)

    def images(self, clip: Located, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The same frame by frame, as views of one array."""
        return list(self.read(clip, indices))

    def missing(self, clips: Sequence[Located]) -> list[str]:
        """The ids of clips whose file is not there."""
        return [clip.id for clip in clips if not _is_there(self.folder, clip.stem)]


def _is_there(folder: Path, stem: str) -> bool:
    try:
        return bool(find_video(folder, stem))
    except VideoError:
        return False


class StoredFrames:
    """Clips from a frame store."""

    def __init__(self, store: FrameStore):
        self.store = store

    def length(self, clip: Located) -> int:
        """How many frames the sign has.

        Raises:
            VideoError: the store holds another range of the video than the labels say.
        """
        frames = self.store.frames(clip.id)
        if clip.stop is not None and clip.stop - clip.start != frames:
            raise VideoError(f"clip {clip.id} in {self.store.folder} is not what the labels say",
                             f"{frames} frames, the labels say {clip.stop - clip.start}",
                             "run preprocess.py with --store again")
        return frames

    def read(self, clip: Located, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The sign's frames at `indices` (0 is its first): uint8 (T, H, W, 3), RGB."""
        return self.store.read(clip.id, indices)

    def images(self, clip: Located, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The same frame by frame, without the copy into one array."""
        return self.store.images(clip.id, indices)

    def missing(self, clips: Sequence[Located]) -> list[str]:
        """The ids of clips that are not in the store."""
        return [clip.id for clip in clips if clip.id not in self.store]


Source = VideoFolder | StoredFrames


def open_source(kind: str, videos: Path | str, store: Path | str, crop: str = "") -> Source:
    """Where frames come from: `video` reads the folder `videos`, `jpeg` and `raw` the frame store in `store`.

    `crop` is "box", "frame", or "" for whatever the store holds (of videos: the frame).

    Raises:
        Mistake: no store there, or one of another kind or crop.
    """
    if kind == "video":
        return VideoFolder(videos, crop or "frame")
    found = FrameStore.open(store)
    if found.settings.kind != kind or (crop and found.settings.crop != crop):
        asked = f"kind {kind}" + (f", crop {crop}" if crop else "")
        raise Mistake(f"the frame store {store} is not what was asked for",
                      f"{_words(found.settings)}, asked for: {asked}",
                      "ask for what is there, or remove that folder and run preprocess.py with --store again")
    return StoredFrames(found)
