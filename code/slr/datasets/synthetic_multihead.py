"""The built-in signs with symbols: the drawn signer shows combinations of HamNoSys' values, in HearAI's form.

    place = draw(paths.data_root(), "demo_multihead")       # data/HEARAI/demo_multihead: three data paths

The place has a data path of every set, with frames, landmarks and annotations (as slr.datasets.hearai reads them), and
the names of all classes and signs. What is to be learned are the values, not the signs: eight signs are in the test set
alone, combinations of values that other signs of training have, and its signers are in no other set. Only values are
taken that a frame shows: hands are large and near, movements small, the fingers point within the picture's plane, a
spread hand never stands edgewise, a thumb or a bend differs from the default only where it is seen. Everybody is
right-handed: HamNoSys is written for the dominant hand, and MediaPipe tells a right hand from a left one.
"""

import csv
import functools
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from slr import hamnosys, paths
from slr.datasets import synthetic
from slr.datasets.files import put
from slr.datasets.signer import HAND, Scene, Signer, keypoints, limb, make_scene, make_signer
from slr.datasets.signs import SYMBOLS, Array, Sign, rest_pose
from slr.datasets.synthetic import Motion
from slr.datasets.synthetic_sentences import Film, chance, seeds_of
from slr.datasets.wlasl_prepare import default_workers, spread
from slr.errors import Mistake
from slr.paths import SETS

VERSION = 1  # of these clips: a split that an older one has drawn is drawn anew
FPS = 12.5  # every second frame of what the signer does
QUALITY = 92  # of the JPEGs
MANIFEST, SYMBOLS_FILE, DICTIONARY, SIGNERS = "drawn.json", "symbols.json", "dictionary.csv", "signers.txt"
ANNOTATIONS, GLOSSES = "test_hamnosys.txt", "test_gloss.txt"
TEST_ONLY = 8  # of the signs, the last: no training clip shows them
HANDS = (1.5, 1.65)  # length of a hand, 1 = average
VIEW, TOP = 2.45, 1.25  # a frame's side and what lies above the shoulders, in shoulder widths
RESTS = (0.55, 1.06)  # where a hand rests, aside and below: the hands leave the places of the signs free
MISSING, STRETCH = 0.1, (2, 5)  # share of a hand's frames that the detector misses, a few frames at a time
JITTER = 0.01  # of the landmarks, in hand lengths

# name: symmetry, base form, thumb, bending, fingers' direction, palm, location's x and y. Found by search: every value
# of a head goes with every value of another about as often as chance has it, where hands and pictures allow it.
_SIGNS = """
book: dominance flat, pinchall, default, none, up-left, left, centre, chin
drink: dominance, finger23spread, out, none, up-left, back, centre, forehead
computer: one-handed, pinchall, default, none, up, left, left, stomach
before: dominance flat, finger23spread, default, none, up, back, centre, forehead
chair: one-handed, flat, across, none, down, front, left, stomach
walk: one-handed, finger2345, across, none, up-right, front, right, stomach
cousin: mirror, pinchall, default, none, up, left, right, chest
help: one-handed, fist, out, none, down, front, centre, chest
thin: one-handed, finger2, default, bent, left, left, left, chest
candy: one-handed, flat, out, none, left, back, right beside, chin
school: dominance, pinchall, default, none, left, left, right beside, forehead
mother: one-handed, ceeall, default, none, up-left, left, right beside, stomach
father: mirror, finger2, default, none, left, back, right beside, stomach
apple: one-handed, pinch12open, default, none, up, left, centre, forehead
bread: dominance, pinch12open, default, none, up-right, front, right, chest
water: one-handed, pinchall, default, none, down, right, right beside, chest
house: one-handed, flat, default, hooked, up-left, left, right beside, forehead
garden: one-handed, flat, default, none, up-right, back, right, stomach
weather: one-handed, pinch12open, default, none, left, right, centre, chin
rain: one-handed, flat, default, hooked, up, left, left, chest
snow: dominance flat, finger23spread, default, hooked, up-right, front, right beside, forehead
wind: dominance flat, finger2345, default, bent, up, front, right beside, chin
cloud: dominance flat, ceeall, default, none, left, right, centre, forehead
sun: mirror, finger2, default, hooked, down, right, right beside, stomach
morning: dominance flat, finger2, out, none, up-left, front, right beside, chin
evening: mirror, pinch12open, default, none, down, back, right, stomach
summer: dominance, finger2, default, bent, left, right, centre, chin
winter: mirror, fist, default, none, up-left, left, right beside, forehead
north: dominance, ceeall, default, none, up, left, centre, chin
south: one-handed, finger23spread, out, none, left, back, right, stomach
river: mirror, finger23spread, default, hooked, up-left, front, right beside, chin
mountain: one-handed, finger2345, across, none, up-left, front, centre, forehead
street: dominance flat, finger2345, default, none, left, back, right beside, chin
city: one-handed, fist, default, none, up-left, front, left, chest
train: mirror, flat, default, bent, down, right, right, chest
bicycle: one-handed, ceeall, default, none, left, right, left, chest
friend: mirror, finger2, out, none, down, front, right, chest
family: mirror, finger2345, across, none, up, front, right beside, forehead
brother: dominance, fist, out, none, up, front, centre, forehead
sister: mirror, fist, default, none, up-right, back, right beside, chin
child: one-handed, flat, out, none, up, back, centre, chin
teacher: one-handed, finger2, default, hooked, down, right, centre, chest
doctor: mirror, flat, across, none, up-right, front, right beside, chin
letter: mirror, finger2345, default, bent, down, front, right, stomach
number: one-handed, pinch12open, default, none, up-left, back, left, stomach
question: dominance flat, fist, out, none, up-right, back, right, chest
answer: dominance flat, finger2, default, bent, left, left, centre, forehead
music: dominance, finger23spread, default, hooked, up, front, right, chest
"""
_PATHS = ("hold", "line", "circle", "tap")  # of the signs in turn, small: they tell nothing of the values
_WAYS = ("right", "down", "up-right")


@dataclass(frozen=True)
class Size:
    """How much a split has: signers of train, val and test, pixels of a frame's side, and every so manieth sign."""

    signers: tuple[int, int, int]
    pixels: int = 128
    every: int = 1


SIZES = {"demo_multihead": Size((24, 4, 10)), "demo_multihead_small": Size((3, 1, 2), 64, 2)}


@functools.cache
def signs() -> tuple[Sign, ...]:
    """All signs; the last `TEST_ONLY` are those that nobody shows in training. A sign's place is its gloss."""
    found = []
    for number, line in enumerate(_SIGNS.strip().split("\n")):
        name, values = line.split(": ")
        symmetry, shape, thumb, bending, fingers, palm, x, y = values.split(", ")
        found.append(Sign(name, shape, thumb, bending, fingers, palm, x, y, _PATHS[number % len(_PATHS)],
                          _WAYS[number % len(_WAYS)], 0.10, symmetry))
    return tuple(found)


# --- who shows what -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Plan:
    """One clip to draw: who shows which sign in which set, and the seeds of everything else."""

    name: str
    set: str
    signer_id: int
    gloss: int  # of `signs()`
    seed: tuple[int, int]  # the split's seed and its name's checksum


def plans(split: str, size: Size, seed: int) -> list[Plan]:
    """All clips of a split, numbered from 1: every signer shows each sign of the set once, in an order of their own. No
    signer is in two sets, and only the test set has the last `TEST_ONLY` signs."""
    seeds, out, people = seeds_of(split, seed), list[Plan](), count()
    shown = {part: np.arange(len(signs()) - (0 if part == "test" else TEST_ONLY))[::size.every] for part in SETS}
    for part, signers in zip(SETS, size.signers, strict=True):
        for person in (next(people) for _ in range(signers)):
            for gloss in chance(seeds, "order", person).permutation(shown[part]).tolist():
                out.append(Plan(str(len(out) + 1), part, person, gloss, seeds))
    return out


# --- what that looks like -----------------------------------------------------------------------------------

def _signer(plan: Plan) -> Signer:
    """A person with large hands, who stands still enough for small differences of places to be seen."""
    rng = chance(plan.seed, "signer", plan.signer_id)
    signer = make_signer(rng)
    return replace(signer, hand=float(rng.uniform(*HANDS)), left_handed=False, hanging=False,
                   shift=(signer.shift[0] / 2, signer.shift[1] / 2))


def _scene(signer: Signer, rng: np.random.Generator, pixels: int) -> Scene:
    """A room, and a camera near the signer: the frame ends above a hand at the forehead and below one at rest."""
    scale = pixels / VIEW * float(rng.uniform(0.95, 1.0))
    place = np.array([pixels / 2, TOP * scale]) + rng.uniform(-0.01, 0.01, 2) * pixels
    return replace(make_scene(signer, rng, pixels), scale=scale, place=(float(place[0]), float(place[1])))


def _motion(sign: Sign, signer: Signer, rng: np.random.Generator) -> Motion:
    """Rest, the sign, rest: every second frame of it."""
    rest = synthetic.resting(signer, rng)
    rest[:, :2] += (np.array(RESTS) - np.abs(rest_pose()[:, :2])) * np.sign(rest_pose()[:, :2])
    whole = synthetic.sentence([sign], signer, rng, rest=rest)
    (start, stop), = whole.spans
    return Motion(whole.poses[::2], whole.body[::2], [((start + 1) // 2, (stop + 1) // 2)])


def film(plan: Plan, pixels: int) -> Film:
    """Signer, scene and motion of a plan; the sign decides of the hands' poses and nothing else."""
    rng, signer = chance(plan.seed, "film", int(plan.name)), _signer(plan)
    return Film(signer, _scene(signer, rng, pixels), _motion(signs()[plan.gloss], signer, rng))


# --- landmarks ----------------------------------------------------------------------------------------------

# Every point's parent in MediaPipe's numbering, as HearAI's files have them; the face's 128 points are not known: the
# figure's are the first, and hang on its nose.
PARENTS: dict[str, tuple[int, ...]] = {
    "pose": (1, 0, 1, 2, 0, 4, 5, 3, 6, 10, 9, 12, 11, 11, 12, 13, 14, 15, 16, 15, 16, 15, 16, 11, 12, 23, 24, 25, 26,
             27, 28, 27, 28),
    "right_hand": (1, 0, 1, 2, 3, 0, 5, 6, 7, 5, 9, 10, 11, 9, 13, 14, 15, 0, 17, 18, 19),
    "left_hand": (1, 0, 1, 2, 3, 0, 5, 6, 7, 5, 9, 10, 11, 9, 13, 14, 15, 0, 17, 18, 19),
    "face": (1, *[0] * 127),
}
_MOUTH, _LEFT, _RIGHT, _FACE = slice(11, 21), slice(21, 42), slice(42, 63), slice(63, 79)  # of signer.keypoints
# where MediaPipe's points of the pose are among those: head, mouth's corners, shoulders .. wrists, and of each hand the
# knuckles of little finger, index finger and thumb
_POSE = (0, 77, 1, 78, 76, 2, 75, 3, 4, 14, 11, 5, 6, 7, 8, 9, 10, 38, 59, 26, 47, 23, 44)


def spherical(points: Array) -> Array:
    """r, theta / pi, phi / pi `(..., 3)` of vectors `(..., 3)`, as HearAI's files have them: theta from the z axis, phi
    in the plane of x and y."""
    x, y, z = np.moveaxis(points, -1, 0)
    r = np.sqrt(x * x + y * y + z * z)
    theta = np.arccos(np.clip(z / np.where(r > 0, r, 1), -1, 1))
    return np.stack([r, theta / np.pi, np.arctan2(y, x) / np.pi], axis=-1)


def _points(made: Film) -> Array:
    """x, y, z (T, 79, 3) of the points of signer.keypoints, in frame sides; z is, as MediaPipe's, smaller the nearer a
    point is, and 0 at the shoulders and in the whole face."""
    poses, scene = made.motion.poses, made.scene
    found = keypoints(made.signer, scene, poses, made.motion.body)[..., :2] / scene.size
    z = np.zeros(found.shape[:2])
    for other, places, hand in ((False, (6, 8, 10), _RIGHT), (True, (5, 7, 9), _LEFT)):
        arm = limb(made.signer, poses[:, int(other)], other)
        for place, joint in zip(places, (arm.shoulder, arm.elbow, arm.wrist), strict=True):
            z[:, place] = joint[:, 2]
        z[:, hand] = np.concatenate([arm.wrist[:, None], arm.fingers.reshape(len(poses), 20, 3)], axis=1)[..., 2]
    return np.concatenate([found, -z[..., None] * scene.scale / scene.size], axis=2)


def _missed(frames: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Frames (T,) in which a detector loses a hand: whole stretches, MISSING of all frames on average."""
    lost, (least, most) = np.zeros(frames, dtype=np.bool_), STRETCH
    starts = rng.random(frames) < MISSING / ((least + most) / 2)
    for start, length in zip(np.flatnonzero(starts), rng.integers(least, most + 1, starts.sum()), strict=True):
        lost[start:start + length] = True
    return lost


def _with_values(part: str, points: Array) -> NDArray[np.float32]:
    """The numbers of a part's points (T, points, 3), NaN where missing: float32 (T, 8 * points)."""
    missing = np.isnan(points).any(axis=2, keepdims=True)
    vectors = spherical(points - points[:, list(PARENTS[part])])
    values = np.where(missing, np.nan, np.concatenate([points, np.zeros((*points.shape[:2], 2)), vectors], axis=2))
    values[..., hamnosys.FLAGS] = missing
    return values.reshape(len(points), -1).astype(np.float32)


def landmarks(made: Film, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """{part: float32 (T, 8 * points)} as a detector would give them, MediaPipe's points with HearAI's numbers. Missing
    are hips and legs, most of the face, hands that are mostly outside the frame, and some others for a moment."""
    hand = HAND * made.signer.hand * made.scene.scale / made.scene.size
    points = _points(made)
    points += rng.normal(0, JITTER * hand, points.shape)
    frames = len(points)
    parts = {part: np.full((frames, size, 3), np.nan) for part, size in hamnosys.PARTS.items()}
    parts["pose"][:, :len(_POSE)] = points[:, list(_POSE)]
    seen = np.concatenate([points[:, [0]], points[:, _FACE], points[:, _MOUTH]], axis=1)
    parts["face"][:, :seen.shape[1]] = seen
    for part, where in (("right_hand", _RIGHT), ("left_hand", _LEFT)):
        inside = ((points[:, where, :2] >= 0) & (points[:, where, :2] <= 1)).all(axis=2).mean(axis=1)
        parts[part] = points[:, where].copy()
        parts[part][_missed(frames, rng) | (inside < 0.5)] = np.nan
    return {part: _with_values(part, found) for part, found in parts.items()}


# --- files --------------------------------------------------------------------------------------------------

def _npz(arrays: dict[str, NDArray[np.float32]]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _write(folder: Path, plan: Plan, made: Film) -> None:
    """A clip's frames, properties and landmarks, all of them or none."""
    aside, frames = folder.with_name(f".{folder.name}.{os.getpid()}"), made.frames()
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for number, frame in enumerate(frames):
        file = aside / f"{plan.name}_{number}.jpg"
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(file), bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]):
            raise Mistake("a frame cannot be written", paths.shown(file), "is the disk full?")
    properties = {"File": f"{plan.name}.mp4", "Codec": "mjpg", "Frames": len(frames), "FPS": FPS,
                  "Width": made.scene.size, "Height": made.scene.size}
    (aside / f"{plan.name}_properties.json").write_text(json.dumps(properties), encoding="utf-8")
    points = landmarks(made, chance(plan.seed, "detector", int(plan.name)))
    (aside / f"{plan.name}.npz").write_bytes(_npz(points))
    os.replace(aside, folder)


def _work(place: Path, pixels: int, plan: Plan) -> tuple[int, int]:
    """Draw one clip where it is missing; the first and the last frame of its sign."""
    made, folder = film(plan, pixels), place / plan.set / plan.name
    if not folder.exists():
        _write(folder, plan, made)
    (start, stop), = made.motion.spans
    return start, stop - 1


def _cleared(place: Path, parameters: str) -> None:
    """Make `place` ready: what other parameters or a broken run have left there goes.

    Raises:
        Mistake: something is there that was not drawn.
    """
    manifest = place / MANIFEST
    if not manifest.exists() and place.is_dir() and any(place.iterdir()):
        raise Mistake("these signs were not drawn here and are left alone", paths.shown(place),
                      "move them, or choose another name")
    if not manifest.exists() or manifest.read_text(encoding="utf-8") != parameters:
        for part in SETS:
            shutil.rmtree(place / part, ignore_errors=True)
    for part in SETS:
        for left in (place / part).glob(".*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    put(manifest, parameters)


def _names() -> Iterator[tuple[Path, str]]:
    """What lies beside the data paths: the classes' names, and the signs with theirs."""
    yield Path(SYMBOLS_FILE), json.dumps(SYMBOLS, indent=1) + "\n"
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["gloss", "name", *hamnosys.HEADS])
    writer.writerows([gloss, sign.gloss, *sign.labels().values()] for gloss, sign in enumerate(signs()))
    yield Path(DICTIONARY), stream.getvalue()


def _tables(todo: Sequence[Plan], spans: dict[str, tuple[int, int]]) -> Iterator[tuple[Path, str]]:
    """The annotations and signers of every data path."""
    for part in SETS:
        own = [plan for plan in todo if plan.set == part]
        labels = [[plan.name, *spans[plan.name], *signs()[plan.gloss].labels().values()] for plan in own]
        glosses = [[plan.name, *spans[plan.name], plan.gloss] for plan in own]
        yield Path(part, SIGNERS), _rows([plan.name, f"signer{plan.signer_id + 1:02d}"] for plan in own)
        yield Path(part, GLOSSES), _rows([["name", "start", "end", hamnosys.GLOSS], *glosses])
        yield Path(part, ANNOTATIONS), _rows([["name", "start", "end", *hamnosys.HEADS], *labels])


def _rows(rows: Any) -> str:
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def draw(root: Path, split: str = "demo_multihead", seed: int = 42, size: Size | None = None,
         workers: int | None = None, progress: bool = False) -> Path:
    """Draw a split in HearAI's form, `<root>/HEARAI/<split>`: data paths train, val and test, SYMBOLS_FILE and
    DICTIONARY. What the same parameters have drawn is kept; annotations come last.

    Args:
        size: how much of it; else what SIZES says of this split, or of demo_multihead.
        workers: processes, by default one a core; 0: this one.

    Returns:
        The folder of the data paths.

    Raises:
        Mistake: something else is in the folder, or a clip cannot be drawn.
    """
    size = size or SIZES.get(split, SIZES["demo_multihead"])
    place, todo = paths.hearai(root) / split, plans(split, size, seed)
    parameters = {"version": [VERSION, synthetic.VERSION], "split": split, "seed": seed, **asdict(size)}
    _cleared(place, json.dumps(parameters) + "\n")
    for part in SETS:
        (place / part).mkdir(parents=True, exist_ok=True)
    spans = _drawn(place, size, todo, default_workers() if workers is None else workers, progress)
    for file, text in (*_names(), *_tables(todo, spans)):
        if not (place / file).exists() or (place / file).read_text(encoding="utf-8") != text:
            put(place / file, text)
    return place


def summary(root: Path, split: str, size: Size | None = None) -> str:
    """What `draw` makes of a split: clips, signers and signs of every data path, a line each."""
    size, lines = size or SIZES.get(split, SIZES["demo_multihead"]), list[str]()
    todo = plans(split, size, seed=0)  # the numbers are those of every seed
    trained = {plan.gloss for plan in todo if plan.set == "train"}
    for part in SETS:
        own = [plan for plan in todo if plan.set == part]
        new = len({plan.gloss for plan in own} - trained)
        lines.append(f"{paths.shown(paths.hearai(root) / split / part)}: {len(own)} clips, "
                     f"{len({plan.signer_id for plan in own})} signers, {len({plan.gloss for plan in own})} signs" +
                     (f", {new} of them in no training clip" if new else ""))
    return "\n".join(lines)


def _drawn(place: Path, size: Size, todo: Sequence[Plan], workers: int, progress: bool) -> dict[str, tuple[int, int]]:
    """Where the sign is in every clip, by the clips' names; all of them are then there."""
    missing = sum(not (place / plan.set / plan.name).exists() for plan in todo)
    workers = min(workers, missing // 32)  # a few clips are not worth a process
    spans = dict[str, tuple[int, int]]()
    with tqdm(total=len(todo), desc=f"drawing {place.name}", unit="clip", disable=not progress) as bar:
        for plan, span in spread(functools.partial(_work, place, size.pixels), todo, workers):
            if span is None:
                raise Mistake(f"clip {plan.name} cannot be drawn", "its process died",
                              "run it again, with fewer --workers")
            spans[plan.name] = span
            bar.update()
    return spans
