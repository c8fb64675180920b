"""From videos to what a multi-head data set is made of: frames, key frames, the movement alone, landmarks.

    mine = Path("data/HEARAI/mine")
    print(to_frames(Path("videos"), mine))                          # <name>/<name>_<i>.jpg and <name>_properties.json
    print(cut_movement(mine, Path("data/HEARAI/mine_cut")))         # without the still beginning and end
    print(key_frames(mine, Path("data/HEARAI/mine_keys")))          # only the frames that matter
    print(landmarks(mine, mine))                                    # <name>/<name>.npz, by MediaPipe

Each takes a video, a folder of videos, a folder of frames, or a folder of such folders. What cannot be read is skipped
and listed; what is there already is kept, so that the same command goes on where it was stopped.

Motion. Frames are shrunk to a short side of SIDE pixels, in grey; the motion between two neighbours is the mean
absolute difference of their grey levels (0 to 255). Still is what the quietest twentieth of the clip does, noise of
the camera included; the loudest twentieth is full motion. A clip moves where two differences on end exceed
`still + max(FLOOR, SHARE * (full - still))`; the movement runs from the first such place to the last.

Landmarks are in the form of HearAI's files: of each point x, y, z, missing, missing, r, theta / pi, phi / pi. x, y, z
are in pixels (MediaPipe's z is in widths of the picture, as its x is) divided by the distance between the shoulders in
that frame. r, theta and phi are the spherical coordinates of the vector to the point from its neighbour, which is the
one of the lowest number among those that MediaPipe's drawings join it with. Points that were not seen are interpolated
over time (held at the ends) and flagged; a part that is never seen is NaN. Of the 468 points of the face's mesh the
128 are those of the contours that MediaPipe draws, by number: lips, eyes, brows and the face's oval.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slr.datasets.files import put
from slr.errors import Mistake
from slr.hamnosys import EDGES, PARTS, VALUES
from slr.paths import shown
from slr.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoError, frame_files, natural_key, playing

Bar = Callable[[Iterable[Any], int, str], Iterable[Any]]  # preprocess.py's progress bar
Seen = dict[str, np.ndarray | None]  # of one frame: part -> (points, 3), or None where MediaPipe did not see it

QUALITY = 95  # of the JPEG frames
SIDE = 64  # pixels: averaging over larger ones takes the camera's noise away
FLOOR = 0.25  # grey levels over still that are movement in any clip
SHARE = 0.15  # of the way from still to full motion that is movement
MARGIN = 2  # frames that a cut leaves before and behind the movement
DEPTH = 0.25  # of the way from still to full motion: how far motion falls and rises again around a key frame
TABLES = {"cut_movement": ("movement.txt", "name start end"), "key_frames": ("key_frames.txt", "name frames")}
MODEL_PLACE = ("https://storage.googleapis.com/mediapipe-models/holistic_landmarker/holistic_landmarker/float16/latest/"
               "holistic_landmarker.task")

# MediaPipe's face_mesh_connections.FACEMESH_CONTOURS as chains: lips, left eye and brow, right eye and brow, oval
CONTOURS = tuple(tuple(map(int, chain.split())) for chain in (
    "61 146 91 181 84 17 314 405 321 375 291", "61 185 40 39 37 0 267 269 270 409 291",
    "78 95 88 178 87 14 317 402 318 324 308", "78 191 80 81 82 13 312 311 310 415 308",
    "263 249 390 373 374 380 381 382 362", "263 466 388 387 386 385 384 398 362", "276 283 282 295 285",
    "300 293 334 296 336", "33 7 163 144 145 153 154 155 133", "33 246 161 160 159 158 157 173 133", "46 53 52 65 55",
    "70 63 105 66 107", "10 338 297 332 284 251 389 356 454 323 361 288 397 365 379 378 400 377 152 148 176 149 150 "
    "136 172 58 132 93 234 127 162 21 54 103 67 109 10"))
FACE = tuple(sorted({point for chain in CONTOURS for point in chain}))  # the 128 of MediaPipe's 468 points
# MediaPipe's HAND_CONNECTIONS: the fingers, the knuckles in a row, and the palm's two sides
_HAND = tuple((k - 1, k) for k in range(1, 21) if k % 4 != 1) + ((0, 1), (0, 5), (5, 9), (9, 13), (13, 17), (0, 17))


def _neighbours(points: int, edges: Iterable[tuple[int, int]]) -> np.ndarray:
    """int64 (points,): of each point its joined point of the lowest number."""
    joined = list(edges)
    return np.array([min(b if a == k else a for a, b in joined if k in (a, b)) for k in range(points)])


NEIGHBOURS = {
    "right_hand": _neighbours(21, _HAND), "left_hand": _neighbours(21, _HAND), "pose": _neighbours(33, EDGES["pose"]),
    "face": _neighbours(128, ((FACE.index(a), FACE.index(b)) for chain in CONTOURS
                              for a, b in zip(chain, chain[1:], strict=False)))}


# --- what all tools share -----------------------------------------------------------------------------------

@dataclass
class Done:
    """What became of every clip; `failed` says why, `notices` what is worth knowing."""

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notices: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = f"{len(self.written)} written, {len(self.kept)} were there, {len(self.failed)} skipped"
        return "\n".join([*(f"notice: {name}: {what}" for name, what in self.notices.items()),
                          *(f"skipped: {name}: {why}" for name, why in self.failed.items()), counts])


def clips_in(place: Path) -> dict[str, Path]:
    """{name: video file or frame folder}, in natural order: `place` itself, or what lies in it.

    Raises:
        Mistake: there is nothing, or two clips are of one name.
    """
    if not place.exists():
        raise Mistake("no videos and no frames", f"{shown(place)} does not exist", "give a video or a folder")
    if place.is_file() or _holds_frames(place):
        return {place.stem if place.is_file() else place.resolve().name: place}
    found: dict[str, Path] = {}
    for path in sorted(place.iterdir(), key=lambda p: natural_key(p.name)):
        video = path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES
        if path.name.startswith(".") or not (video or path.is_dir() and _holds_frames(path)):
            continue
        name = path.stem if video else path.name
        if name in found:
            raise Mistake(f"two clips are called {name}", f"{found[name].name} and {path.name} in {shown(place)}",
                          "rename one of them, or give one file at a time")
        found[name] = path
    if not found:
        raise Mistake(f"no videos and no frames in {shown(place)}", f"neither {', '.join(VIDEO_SUFFIXES)} files nor "
                      "folders of jpg or png", "give a video, a folder of videos, or a folder of frame folders")
    return found


def _holds_frames(folder: Path) -> bool:
    return folder.is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir())


def _process(place: Path, output: Path, tool: str, work: Callable[[str, Path], dict[str, Any] | None],
             bar: Bar | None) -> Done:
    """`work` on every clip: what it says of it (None: it was there); what cannot be read is skipped."""
    done, clips = Done(), clips_in(place)
    if output.exists() and not output.is_dir():
        raise Mistake("OUTPUT_DIR is no folder", f"{shown(output)} is a file", "give a folder, or a name for a new one")
    output.mkdir(parents=True, exist_ok=True)
    for name, source in bar(clips.items(), len(clips), tool) if bar else clips.items():
        try:
            facts = work(name, source)
        except (VideoError, OSError) as error:
            done.failed[name] = str(error).partition("\n")[0]
            continue
        (done.kept if facts is None else done.written).append(name)
        if facts and facts.get("notice"):
            done.notices[name] = facts["notice"]
    return done


def properties(folder: Path, name: str) -> dict[str, Any]:
    """HearAI's `<name>_properties.json`, in `folder` or beside it; {} where there is none that can be read."""
    for file in (folder / f"{name}_properties.json", folder.parent / f"{name}_properties.json"):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _is_whole(target: Path, name: str, source: Path, tool: str) -> bool:
    """Whether `target` holds what this tool made of this source, as the source is now."""
    file, found = target / f"{name}_properties.json", properties(target, name)
    return (_is_of(found, source, tool) and file.is_file() and file.stat().st_mtime >= _changed(source)
            and found.get("Frames") == sum(p.suffix == ".jpg" for p in target.iterdir()))


def _changed(source: Path) -> float:
    """When a video, or the newest frame of a folder, was written (seconds)."""
    return max(path.stat().st_mtime for path in (frame_files(source) if source.is_dir() else [source]))


def _is_of(found: Mapping[str, Any], source: Path, tool: str) -> bool:
    return found.get("File") == str(source) and found.get("Tool", "to_frames") == tool


@contextmanager
def _frames_of(output: Path, name: str, source: Path, tool: str) -> Iterator[Path]:
    """A folder to write into, which becomes `output/name` when it is whole; what others put there stays."""
    target, aside = output / name, output / f".{name}.part"
    if target.exists() and not _is_of(properties(target, name), source, tool):
        raise VideoError(f"{shown(target)} is there already", "and was made from something else, or by hand")
    own = re.compile(re.escape(name) + r"(_\d+\.jpg|_properties\.json|\.npz)")
    foreign = [p.name for p in target.iterdir() if not own.fullmatch(p.name)] if target.exists() else []
    if foreign:
        raise VideoError(f"{shown(target)} is to be made anew", f"and {foreign[0]} in it is not this tool's")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    aside.mkdir()
    try:
        yield aside
        if target.exists():
            shutil.rmtree(target)
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_jpeg(file: Path, frame: np.ndarray) -> None:
    """A frame, uint8 (H, W, 3) RGB."""
    import cv2
    fine, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not fine:
        raise VideoError(f"cannot write {file.name}", f"a frame of shape {frame.shape}")
    file.write_bytes(data.tobytes())


def _write_properties(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    (folder / f"{name}_properties.json").write_text(json.dumps(facts), encoding="utf-8")


# --- videos to frames ---------------------------------------------------------------------------------------

def to_frames(place: Path, output: Path, bar: Bar | None = None) -> Done:
    """Every frame of every video as `<name>/<name>_<i>.jpg`, and its `<name>_properties.json`: File, Codec, Frames
    (those that decode), FPS (null where it is not known), Width, Height."""
    def work(name: str, source: Path) -> dict[str, Any] | None:
        if _is_whole(output / name, name, source, "to_frames"):
            return None
        with _frames_of(output, name, source, "to_frames") as folder, playing(source) as (fps, _):
            height, width = _copy_frames(source, None, folder, name)
            count = sum(1 for _ in folder.iterdir())
            _write_properties(folder, name, {"File": str(source), "Codec": _codec(source), "Frames": count,
                                             "FPS": fps or None, "Width": width, "Height": height})
        return {}
    _refuse_source(place, output)
    return _process(place, output, "frames", work, bar)


def _codec(source: Path) -> str:
    """The four letters of a video's codec; of frames what their files are."""
    if source.is_dir():
        return frame_files(source)[0].suffix[1:].lower()
    import cv2
    capture = cv2.VideoCapture(str(source))
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    capture.release()
    return "".join(chr(code >> shift & 0xFF) for shift in (0, 8, 16, 24)).strip("\0")


def _refuse_source(place: Path, output: Path) -> None:
    """A clip is never written over itself."""
    for name, source in clips_in(place).items():
        if (output / name).resolve() == source.resolve():
            raise Mistake("OUTPUT_DIR is where the frames come from", shown(output), "give another folder")


# --- motion -------------------------------------------------------------------------------------------------

def motion(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Between neighbours of T frames, uint8 (H, W, 3): float64 (T - 1,), mean absolute difference in grey levels."""
    import cv2
    before: np.ndarray | None = None
    found = []
    for frame in frames:
        scale = SIDE / min(frame.shape[:2])
        size = (max(round(frame.shape[1] * scale), 1), max(round(frame.shape[0] * scale), 1))
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        now = cv2.resize(grey.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        if before is not None:
            if now.shape != before.shape:
                raise VideoError("its frames are not of one size", f"{before.shape} and {now.shape}, shrunk")
            found.append(float(np.abs(now - before).mean()))
        before = now
    return np.array(found, np.float64)


def movement(moved: np.ndarray) -> tuple[int, int] | None:
    """(First, last) frame of the movement, given the motion (T - 1,) between frames; None: nothing moves."""
    if len(moved) < 2:
        return None
    still, full = np.percentile(moved, (5, 95))
    over = moved > still + max(FLOOR, SHARE * (full - still))
    places = np.flatnonzero(over[:-1] & over[1:])
    return (int(places[0]), int(places[-1]) + 2) if len(places) else None


def choose_key_frames(moved: np.ndarray) -> list[int]:
    """The frames of least motion between movements, given the motion (T - 1,) between frames.

    A sign is a sequence of movements and holds (Liddell and Johnson 1989, "American Sign Language: the phonological
    base"): a hold shows hand shape and place. So: the motion at a frame is the mean of those before and behind it,
    smoothed by (1, 2, 1) / 4. From left to right, after the motion has fallen by DEPTH of the clip's range (still to
    full, as for `movement`) and has risen as much again, the lowest frame between the two is a key frame. Where there
    is none, the movement has no hold inside: its first and last frame are taken; where nothing moves, the middle one.
    """
    padded = np.concatenate([moved[:1], moved, moved[-1:]])
    found = movement(moved)
    if found is None:
        return [len(moved) // 2]
    curve = (padded[:-1] + padded[1:]) / 2
    curve = np.convolve(np.pad(curve, 1, mode="edge"), (0.25, 0.5, 0.25), mode="valid")
    still, full = np.percentile(moved, (5, 95))
    return valleys(curve, max(FLOOR, DEPTH * (full - still))) or list(found)


def valleys(curve: Sequence[float] | np.ndarray, depth: float) -> list[int]:
    """Lowest places of `curve` that it falls to by at least `depth` and rises from by as much."""
    found, falling, extreme = [], False, 0
    for i, value in enumerate(curve):
        if falling:
            if value < curve[extreme]:
                extreme = i
            elif value >= curve[extreme] + depth:
                found.append(extreme)
                falling, extreme = False, i
        elif value > curve[extreme]:
            extreme = i
        elif value <= curve[extreme] - depth:
            falling, extreme = True, i
    return found


def key_frames(place: Path, output: Path, bar: Bar | None = None) -> Done:
    """The key frames of every clip (the rule: `choose_key_frames`), numbered from 0, in `output/<name>/`; which ones of
    the clip they are stands in `output/key_frames.txt`: name, then the frames' numbers."""
    def choose(moved: np.ndarray) -> tuple[list[int], str]:
        return choose_key_frames(moved), "" if movement(moved) else "nothing moves: its middle frame is taken"
    return _select(place, output, "key_frames", choose, bar)


def cut_movement(place: Path, output: Path, bar: Bar | None = None) -> Done:
    """Every clip without its still beginning and end (the rule: this module's text), MARGIN frames left on either side,
    numbered from 0, in `output/<name>/`; `output/movement.txt` says where it was: name, first and last frame."""
    def choose(moved: np.ndarray) -> tuple[list[int], str]:
        found, last = movement(moved), len(moved)
        if found is None:
            return list(range(last + 1)), "nothing moves: it is kept whole"
        return list(range(max(found[0] - MARGIN, 0), min(found[1] + MARGIN, last) + 1)), ""
    return _select(place, output, "cut_movement", choose, bar)


def _select(place: Path, output: Path, tool: str, choose: Callable[[np.ndarray], tuple[list[int], str]],
            bar: Bar | None) -> Done:
    """Copies of the frames that `choose` takes, given the motion, and the table of them."""
    def work(name: str, source: Path) -> dict[str, Any] | None:
        if _is_whole(output / name, name, source, tool):
            return None
        with _frames_of(output, name, source, tool) as folder:
            with playing(source) as (fps, frames):
                chosen, notice = choose(motion(frames))
            shape = _copy_frames(source, chosen, folder, name)
            known = properties(source, name) if source.is_dir() else {}
            _write_properties(folder, name, {
                "File": str(source), "Codec": known.get("Codec") or _codec(source), "Frames": len(chosen),
                "FPS": known.get("FPS") or fps or None, "Width": shape[1], "Height": shape[0], "Tool": tool,
                "Of": chosen})
        return {"notice": notice}
    _refuse_source(place, output)
    table, header = TABLES[tool]
    file = output / table
    if file.exists() and file.read_text(encoding="utf-8", errors="replace").partition("\n")[0] != header:
        raise Mistake(f"{shown(file)} is of something else", f"its first line is not `{header}`",
                      "move it away, or give another folder")
    done = _process(place, output, tool.replace("_", " "), work, bar)
    put(file, "\n".join([header, *_rows(output, tool)]) + "\n")
    return done


def _copy_frames(source: Path, chosen: list[int] | None, folder: Path, name: str) -> tuple[int, int]:
    """Frames `chosen` (None: all) of `source` as `<name>_0.jpg`, …: JPEG files byte for byte. Their (height, width)."""
    wanted, shape = {frame: i for i, frame in enumerate(chosen or ())}, (0, 0)
    files = frame_files(source) if source.is_dir() else []
    with playing(source) as (_, frames):
        for number, frame in enumerate(frames):
            place = wanted.get(number) if chosen else number
            if place is None:
                continue
            target, shape = folder / f"{name}_{place}.jpg", frame.shape[:2]
            if files and files[number].suffix.lower() in (".jpg", ".jpeg"):
                shutil.copyfile(files[number], target)
            else:
                _write_jpeg(target, frame)
    if not any(shape):
        raise VideoError(f"cannot read {source}", "no frame of it decodes")
    return shape


def _rows(output: Path, tool: str) -> Iterator[str]:
    """The table's rows, of all clips that the tool ever wrote there."""
    for folder in sorted((p for p in output.iterdir() if p.is_dir()), key=lambda p: natural_key(p.name)):
        found = properties(folder, folder.name)
        if found.get("Tool") == tool and found.get("Of"):
            numbers = found["Of"] if tool == "key_frames" else (found["Of"][0], found["Of"][-1])
            yield " ".join([folder.name, *map(str, numbers)])


# --- landmarks ----------------------------------------------------------------------------------------------

def landmarks(place: Path, output: Path, model: Path | None = None, bar: Bar | None = None) -> Done:
    """MediaPipe's holistic landmarks of every frame of every clip: `output/<name>/<name>.npz`.

    Args:
        model: MediaPipe's holistic_landmarker.task; versions before 0.10.30 bring their own.

    Raises:
        Mistake: MediaPipe cannot be imported, or `model` is not there.
    """
    def work(name: str, source: Path) -> dict[str, Any] | None:
        target = output / name / f"{name}.npz"
        if target.exists():
            if not _is_ours(target):
                raise VideoError(f"{shown(target)} is there already", "and holds no landmarks of this form")
            if target.stat().st_mtime >= _changed(source):
                return None
        fps = float(properties(source, name).get("FPS") or 0)
        with playing(source) as (rate, frames), watching(mediapipe, model) as watch:
            seen, size = [], (0, 0)
            for i, frame in enumerate(frames):
                seen.append(points_seen(watch(frame, round(1000 * i / (rate or fps or 25)))))
                size = frame.shape[:2]
        arrays: dict[str, Any] = as_arrays(seen, size[1], size[0])
        target.parent.mkdir(exist_ok=True)
        aside = target.with_name(f".{target.name}.part.npz")
        np.savez_compressed(aside, **arrays)
        os.replace(aside, target)
        return {}
    mediapipe = import_mediapipe()
    return _process(place, output, "landmarks", work, bar)


def _is_ours(file: Path) -> bool:
    try:
        with np.load(file, allow_pickle=False) as found:
            return set(found) == set(PARTS) and all(found[part].shape[1] == VALUES * PARTS[part] for part in PARTS)
    except (OSError, ValueError, IndexError, EOFError):
        return False


def import_mediapipe() -> Any:
    try:
        import mediapipe
    except ImportError as error:
        raise Mistake("--landmarks needs MediaPipe, which cannot be imported", str(error),
                      f"pip install mediapipe, and for its newer versions the model: {MODEL_PLACE}") from None
    return mediapipe


@contextmanager
def watching(mediapipe: Any, model: Path | None) -> Iterator[Callable[[np.ndarray, int], Any]]:
    """A function of a frame, uint8 (H, W, 3) RGB, and its time in milliseconds: MediaPipe's result. One a clip: it
    tracks from frame to frame."""
    if getattr(mediapipe, "solutions", None) is not None:
        with mediapipe.solutions.holistic.Holistic(static_image_mode=False, model_complexity=1) as holistic:
            yield lambda frame, _: holistic.process(frame)
        return
    if model is None or not model.is_file():
        raise Mistake("this MediaPipe brings no model", f"{shown(model)} is missing" if model else "none is given",
                      f"download {MODEL_PLACE}, and name it: --landmark_model FILE")
    vision = mediapipe.tasks.vision
    options = vision.HolisticLandmarkerOptions(
        base_options=mediapipe.tasks.BaseOptions(model_asset_path=str(model)), running_mode=vision.RunningMode.VIDEO)
    with vision.HolisticLandmarker.create_from_options(options) as holistic:
        def watch(frame: np.ndarray, time: int) -> Any:
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
            return holistic.detect_for_video(image, time)
        yield watch


def points_seen(result: Any) -> Seen:
    """The points (points, 3) of each part in one of MediaPipe's results, old form (`.landmark`) or new (lists)."""
    seen: Seen = {}
    for part, count in PARTS.items():
        found = getattr(result, f"{part}_landmarks")
        points = list(getattr(found, "landmark", found) or ())
        if points and part == "face":
            points = [points[k] for k in FACE]
        if points and len(points) != count:
            raise VideoError(f"MediaPipe's {part} has other points than expected", f"{len(points)}, not {count}")
        seen[part] = np.array([(p.x, p.y, p.z) for p in points], np.float64) if points else None
    return seen


def as_arrays(seen: Sequence[Seen], width: int, height: int) -> dict[str, np.ndarray]:
    """{part: float32 (N, 8 * points)} of N frames of width x height pixels; the form is this module's.

    Raises:
        VideoError: no frame, or nobody is seen in any: there are no shoulders to measure by.
    """
    if not any(frame["pose"] is not None for frame in seen):
        raise VideoError("nobody is seen", f"no pose in any of {len(seen)} frames")
    scale = np.array([width, height, width], np.float64)
    filled = {part: _filled([frame[part] for frame in seen], count) for part, count in PARTS.items()}
    pose = filled["pose"][0] * scale
    shoulders = np.linalg.norm(pose[:, 11] - pose[:, 12], axis=-1)[:, None, None]
    if not shoulders.all():
        raise VideoError("nobody is seen well", "both shoulders are in one place")
    return {part: _with_angles(points * scale / shoulders, missing, NEIGHBOURS[part])
            for part, (points, missing) in filled.items()}


def _filled(frames: Sequence[np.ndarray | None], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, count, 3), gaps filled linearly over time, ends held, NaN if all is gap; and missing (N,), bool."""
    missing = np.array([points is None for points in frames])
    there = np.flatnonzero(~missing)
    if not len(there):
        return np.full((len(frames), count, 3), np.nan), missing
    known = np.stack([points for points in frames if points is not None]).reshape(len(there), -1)
    steps = np.arange(len(frames))
    filled = np.stack([np.interp(steps, there, column) for column in known.T], axis=-1)
    return filled.reshape(len(frames), count, 3), missing


def _with_angles(points: np.ndarray, missing: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """(N, points, 3) -> float32 (N, 8 * points)."""
    x, y, z = np.moveaxis(points - points[:, neighbours], -1, 0)
    flags = np.broadcast_to(missing[:, None, None], (*points.shape[:2], 2))
    level = np.hypot(x, y)
    angles = np.stack([np.hypot(level, z), np.arctan2(level, z) / np.pi, np.arctan2(y, x) / np.pi], axis=-1)
    return np.concatenate([points, flags, angles], axis=-1).reshape(len(points), -1).astype(np.float32)
