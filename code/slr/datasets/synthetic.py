"""The built-in data: clips of a drawn signer, written in the data sets' own formats.

One generator makes every set. What a class looks like comes from its sign alone; signers, rooms, cameras, the
clip's length and its timing are drawn from generators that are never told the class, and every signer shows
every class equally often. The movement starts and ends at rest with approach and retraction of the same law,
so that a sign and its reversal consist of the same frames.

    write_wlasl(Path("data"), "demo")                    the demo's set: 10 signs, 60 + 10 + 24 signers
    draw(inventory(10)[0], make_signer(rng), rng, 96)    one clip in memory
"""

import json
import multiprocessing
import os
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from slr.datasets.signer import Image, Scene, Signer, make_scene, make_signer, render
from slr.datasets.signs import (
    FINGERS,
    POSITION,
    ROTATION,
    Array,
    Sign,
    blend,
    inventory,
    matrices,
    quaternion,
    rest_pose,
    stroke,
    turned,
)
from slr.errors import Mistake

__all__ = ["FPS", "VERSION", "Motion", "draw", "inventory", "make_scene", "make_signer", "sentence",
           "write_wlasl"]

VERSION = 3  # of the drawing: a set that an older one has drawn is drawn anew
FPS = 25


# ---------------------------------------------------------------- trajectories

@dataclass(frozen=True)
class Motion:
    """What a signer does: `poses` (T, 2, 27), `body` (T, BODY), and `spans`, first and last + 1 frame of each
    sign's own movement, without the transitions."""

    poses: Array
    body: Array
    spans: list[tuple[int, int]]

    def alignment(self) -> NDArray[np.int64]:
        """For every frame the index of the sign that it belongs to, -1 for rest and transitions; `(T,)`."""
        at = np.full(len(self.poses), -1)
        for k, (start, stop) in enumerate(self.spans):
            at[start:stop] = k
        return at


def _ease(s: Array) -> Array:
    """Minimum-jerk course from 0 to 1 (Flash and Hogan 1985); it is the same when time runs backwards."""
    s = np.clip(s, 0, 1)
    return s**3 * (10 - 15 * s + 6 * s * s)


@dataclass(frozen=True)
class _Style:
    """How a sign is made this time: the path's amplitude, its tilt in the picture `(3, 3)` and its offset
    `(3,)`, a small rotation of the hands `(4,)`, a curl of the fingers `(20,)`, and the course in time: how
    smoothly it starts and ends (0 .. 1) and where it hurries (two numbers)."""

    amplitude: float
    tilt: Array
    offset: Array
    turn: Array
    curl: Array
    smooth: float
    hurry: Array


def _style(signer: Signer, rng: np.random.Generator) -> _Style:
    axis, angle = rng.normal(size=3), rng.normal(0, np.radians(11))
    tilt = matrices(quaternion(np.array([0.0, 0.0, 1.0]), angle))
    offset = np.array([*signer.shift, 0.0]) + rng.normal(0, 0.05, 3)
    turn = quaternion(axis / np.linalg.norm(axis), rng.normal(0, np.radians(10)))
    return _Style(signer.amplitude * rng.uniform(0.75, 1.15), tilt, offset, turn, rng.normal(0, 0.06, 20),
                  rng.uniform(0.2, 0.9), rng.uniform(-0.06, 0.06, 2))


def _performed(sign: Sign, s: Array, rest: Array, style: _Style) -> Array:
    """Both hands `(T, 2, 27)` of the sign at the times `s` (T,) from 0 to 1; a hand at rest stays there."""
    u = s + (_ease(s) - s) * style.smooth
    u = np.clip(u + style.hurry[0] * np.sin(np.pi * s) + style.hurry[1] * np.sin(2 * np.pi * s), 0, 1)
    poses = stroke(sign, u, rest)
    middle = stroke(sign, np.linspace(0, 1, 9), rest)[..., POSITION].mean(axis=0)
    hands = slice(0, 1) if sign.symmetry == "one-handed" else slice(0, 2)
    mirror = np.array([[1.0, 1, 1], [-1, 1, 1]])[hands]
    path = (poses[:, hands, POSITION] - middle[hands]) * mirror * style.amplitude
    poses[:, hands, POSITION] = middle[hands] + (path @ style.tilt.T + style.offset) * mirror
    turn = poses[:, hands, ROTATION]
    poses[:, hands, ROTATION] = turned(np.broadcast_to(style.turn, turn.shape), turn)
    poses[:, hands, FINGERS] += style.curl
    return poses


def _fidgets(rng: np.random.Generator, frames: int) -> Array:
    """Small idle movements of both hands `(T, 2, 3)` at any time, whatever the sign."""
    clock, moved = np.arange(frames), np.zeros((frames, 2, 3))
    for _ in range(3):
        at, width = rng.uniform(0, frames), rng.uniform(3, 6)
        moved += np.exp(-(((clock - at) / width) ** 2))[:, None, None] * rng.normal(0, 0.07, (2, 3))
    return moved


def _sinusoids(rng: np.random.Generator, frames: int, scale: float, period: tuple[float, float]) -> Array:
    t = np.arange(frames)
    return scale * np.sin(2 * np.pi * (t / rng.uniform(*period) + rng.random())) * rng.uniform(0.2, 1.0)


def _body(rng: np.random.Generator, frames: int) -> Array:
    """Sway, nods and mouthing `(T, BODY)`, without any relation to the sign."""
    scales = ((0.025, (30, 90)), (0.012, (40, 90)), (0.025, (25, 80)), (0.03, (15, 60)), (1.0, (7, 16)),
              (1.0, (25, 80)))
    body = np.stack([_sinusoids(rng, frames, *scale) for scale in scales], axis=1)
    body[:, 4] = np.maximum(body[:, 4], 0) * float(rng.random() < 0.7)
    return body


def _durations(n: int, tempo: float, rng: np.random.Generator) -> Array:
    """Lengths in frames of rest, approach, sign, transition, sign, ..., retraction, rest: `(2 n + 3,)`. First
    and last follow the same law, for time reversal."""
    parts = [rng.uniform(0, 3), rng.uniform(6, 9)]
    for _ in range(n):
        parts += [rng.uniform(14, 20), rng.uniform(5, 8)]
    parts[-1] = rng.uniform(6, 9)
    return np.array([*parts, rng.uniform(0, 3)]) / tempo


def resting(signer: Signer, rng: np.random.Generator) -> Array:
    """Where this signer's hands `(2, 27)` rest this time."""
    rest = rest_pose(signer.hanging)
    rest[..., POSITION] += rng.normal(0, 0.03, (2, 3))
    return rest


def _poses(said: list[tuple[Sign, _Style]], rest: Array, edges: Array, frames: int) -> Array:
    """Poses `(T, 2, 27)` between the edges (in frames) of rest, approach, sign, transition, ..., retraction,
    rest. A transition runs from where one sign ends to where the next begins, whatever they are:
    coarticulation."""
    poses, clock = np.broadcast_to(rest, (frames, 2, 27)).copy(), np.arange(frames)
    ends = [_performed(sign, np.array([0.0, 1.0]), rest, style) for sign, style in said]
    limits = [(rest, rest), *((end[0], end[1]) for end in ends), (rest, rest)]
    for k, (start, stop) in enumerate(zip(edges[1:-2], edges[2:-1], strict=True)):
        now = (clock >= start) & (clock <= stop)
        s = (clock[now] - start) / (stop - start)
        if k % 2:
            sign, style = said[k // 2]
            poses[now] = _performed(sign, s, rest, style)
        else:
            poses[now] = blend(limits[k // 2][1], limits[k // 2 + 1][0], _ease(s))
    return poses


def sentence(signs: list[Sign], signer: Signer, rng: np.random.Generator, frames: int | None = None,
             rest: Array | None = None) -> Motion:
    """Rest, the signs with coarticulated transitions between them, rest; `render` draws it and
    `Motion.alignment` says which frame belongs to which sign. `frames` fixes the length (else it follows from
    the signer's tempo), `rest` (2, 27) where the hands rest. What is drawn from `rng` depends on the number
    of the signs, never on which they are."""
    rest = resting(signer, rng) if rest is None else rest
    parts = _durations(len(signs), signer.tempo, rng)
    total = frames or max(int(round(parts.sum())), 2)
    edges = np.concatenate([[0], np.cumsum(parts)]) * (total - 1) / parts.sum()
    said = [(sign, _style(signer, rng)) for sign in signs]
    spans = [(int(np.ceil(edges[2 * k + 2])), int(np.floor(edges[2 * k + 3])) + 1) for k in range(len(signs))]
    poses = _poses(said, rest, edges, total)
    poses[..., POSITION] += _fidgets(rng, total)
    return Motion(poses, _body(rng, total), spans)


def _length(signer: Signer, rng: np.random.Generator) -> int:
    """Frames of a clip of one sign: the signer's tempo and chance, nothing else."""
    return int(np.clip(round(rng.uniform(30, 42) / signer.tempo), 24, 48))


def draw(sign: Sign, signer: Signer, rng: np.random.Generator, size: int = 112) -> Image:
    """One clip `(T, size, size, 3)` uint8 RGB of a sign, 24 to 48 frames."""
    motion = sentence([sign], signer, rng, _length(signer, rng))
    return render(signer, make_scene(signer, rng, size), motion.poses, motion.body)


# ---------------------------------------------------------------- sets

@dataclass(frozen=True)
class Plan:
    """One clip to write: who shows which sign in which set, and the seeds of everything else. `shown` is the
    sign, or three where the clip is cut from a longer file: the middle one counts."""

    video_id: str
    set: str
    signer_id: int
    label: int
    shown: tuple[Sign, ...]
    index: int
    seed: tuple[int, int]  # the set's seed and the split name's checksum


@dataclass(frozen=True)
class Recording:
    """What a plan comes to: frames `first` .. `last` (from 1, inclusive) of the file show the sign."""

    signer: Signer
    scene: Scene
    motion: Motion
    first: int
    last: int


def _rng(seed: tuple[int, int], purpose: str, number: int) -> np.random.Generator:
    return np.random.default_rng([*seed, zlib.crc32(purpose.encode()), number])


def prefix(split: str) -> str:
    """What the video ids of a split begin with: never a digit, so that they cannot be one of WLASL's."""
    return "d" if split == "demo" else f"s{zlib.crc32(split.encode()):08x}_"


def plans(split: str, signs: list[Sign], signers: dict[str, int], repeats: int, seed: int) -> list[Plan]:
    """All clips of a split: every signer shows every sign `repeats` times, in an order of their own. One clip
    in twelve is cut from a longer file, in which the same person shows other signs before and after it."""
    seeds, out, person = (seed, zlib.crc32(split.encode())), list[Plan](), 0
    for name, people in signers.items():
        for _ in range(people):
            order = _rng(seeds, "order", person).permutation(np.repeat(np.arange(len(signs)), repeats))
            for label in order.tolist():
                rng = _rng(seeds, "file", len(out))
                before, after = (signs[int(k)] for k in rng.integers(0, len(signs), 2))
                shown = (before, signs[label], after) if rng.random() < 1 / 12 else (signs[label],)
                video = f"{prefix(split)}{len(out) + 1:05d}"
                out.append(Plan(video, name, person, label, shown, len(out), seeds))
            person += 1
    return out


def recording(plan: Plan, size: int) -> Recording:
    """Signer, scene and motion of a plan. Only the poses come from the class; nothing else is drawn with
    knowledge of it."""
    rng = _rng(plan.seed, "clip", plan.index)
    signer = make_signer(_rng(plan.seed, "signer", plan.signer_id))
    scene, rest = make_scene(signer, rng, size), resting(signer, rng)
    parts = [sentence([sign], signer, rng, _length(signer, rng), rest).poses for sign in plan.shown]
    first = len(parts[0]) + 1 if len(parts) > 1 else 1
    last, poses = first + len(parts[len(parts) // 2]) - 1, np.concatenate(parts)
    return Recording(signer, scene, Motion(poses, _body(rng, len(poses)), [(first - 1, last)]), first, last)


def _entry(plan: Plan, made: Recording) -> dict[str, Any]:
    """The clip's instance in the WLASL form; a whole file is 1 to -1."""
    whole = len(made.motion.poses) == made.last - made.first + 1
    return {"bbox": list(made.scene.box(made.signer)), "fps": FPS, "frame_end": -1 if whole else made.last,
            "frame_start": made.first, "instance_id": plan.index, "signer_id": plan.signer_id,
            "source": "synthetic", "split": plan.set, "url": "", "variation_id": 0, "video_id": plan.video_id}


def write_video(path: Path, frames: Image, fps: int = FPS) -> None:
    """Write frames `(T, H, W, 3)` RGB as MPEG-4, aside first."""
    aside = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    height, width = frames.shape[1:3]
    writer = cv2.VideoWriter(str(aside), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise Mistake("OpenCV cannot write MPEG-4 video", str(aside), "install opencv-python's own wheel")
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    os.replace(aside, path)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", suffix=".json", delete=False) as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def _work(task: tuple[Plan, int, Path]) -> dict[str, Any]:
    """Draw one plan's file where it is missing, and return its entry."""
    plan, size, folder = task
    made, path = recording(plan, size), folder / f"{plan.video_id}.mp4"
    if not path.exists():
        write_video(path, render(made.signer, made.scene, made.motion.poses, made.motion.body))
    return _entry(plan, made)


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _all_entries(tasks: list[tuple[Plan, int, Path]], workers: int, bar: tqdm) -> list[dict[str, Any]]:
    """Entries of all tasks in order, drawn by `workers` processes (1 = in this one)."""
    entries = []
    if workers <= 1:
        for task in tasks:
            entries.append(_work(task))
            bar.update()
        return entries
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        for entry in pool.map(_work, tasks, chunksize=8):
            entries.append(entry)
            bar.update()
    return entries


def _prepare(root: Path, split: str, parameters: dict[str, Any]) -> Path:
    """The folder for the clips, cleared of those that other parameters or a broken run have left."""
    folder, target = root / "WLASL" / "WLASL2000", root / "WLASL" / "splits" / f"{split}.json"
    manifest = root / "WLASL" / "synthetic" / f"{split}.json"
    if target.exists() and not manifest.exists():
        raise Mistake("this split was not drawn here and is left alone", str(target), "choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f".{prefix(split)}[0-9]*.mp4"):
        path.unlink()
    if not manifest.exists() or json.loads(manifest.read_text()) != parameters:
        target.unlink(missing_ok=True)
        for path in folder.glob(f"{prefix(split)}[0-9]*.mp4"):
            path.unlink()
        _write_json(manifest, parameters)
    return folder


def write_wlasl(root: Path, split: str = "demo", signs: int = 10, train_signers: int = 60,
                val_signers: int = 10, test_signers: int = 24, repeats: int = 1, seed: int = 42,
                size: int = 112, workers: int | None = None, progress: bool = True) -> None:
    """Draw a set in the WLASL form: `<root>/WLASL/splits/<split>.json` and
    `<root>/WLASL/WLASL2000/<video_id>.mp4` (`size` pixels square, 25 fps). Every signer shows every sign
    `repeats` times; no signer is in two sets. Clips that the same parameters have drawn already are kept; the
    json is written last. `workers` = processes, by default one a core. Raises Mistake where the split's file
    exists and is not from here."""
    signers = {"train": train_signers, "val": val_signers, "test": test_signers}
    parameters = {"version": VERSION, "signs": signs, "signers": signers, "repeats": repeats, "seed": seed,
                  "size": size}
    folder, chosen = _prepare(root, split, parameters), inventory(signs, seed)
    todo = plans(split, chosen, signers, repeats, seed)
    tasks = [(plan, size, folder) for plan in todo]
    missing = sum(not (folder / f"{plan.video_id}.mp4").exists() for plan in todo)
    workers = min(workers or os.cpu_count() or 1, 1 + missing // 64)  # a few clips are not worth a process
    with tqdm(total=len(tasks), desc=f"drawing {split}", unit="clip", disable=not progress) as bar:
        entries = _all_entries(tasks, workers, bar)
    content: list[dict[str, Any]] = [{"gloss": sign.gloss, "instances": []} for sign in chosen]
    for plan, entry in zip(todo, entries, strict=True):
        content[plan.label]["instances"].append(entry)
    _write_json(root / "WLASL" / "splits" / f"{split}.json", content)
