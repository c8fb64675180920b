"""The built-in sentences: the drawn signer says several signs in a row, filmed and annotated as PHOENIX-2014 is.

    place = draw(paths.data_root(), "demo_continuous")      # data/SYNTHETIC/demo_continuous; preprocess.py reads it
    times = read_times(place)                               # {id: [(start, stop), ...]}, a pair for every gloss
    points = keypoints.load(place / KEYPOINTS)              # where body, hands and face are in every frame

The order of the glosses is chance: every gloss is as frequent as any other in every set, and what was said tells
nothing of what follows, so that frames alone can be learned from. Signs follow each other without a cut: the hands move
from where one sign ends to where the next begins, sometimes they wait where they are or sink to rest in between. No
signer and no sentence is in two sets, and none of the signers is in a set of isolated signs. As in
slr.datasets.synthetic nothing but the hands' movement, and how long their ways take, comes from the glosses.
"""

import functools
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from slr import paths
from slr.datasets import synthetic
from slr.datasets.files import put
from slr.datasets.phoenix import Entry, corpus_text, stm_text
from slr.datasets.signer import Image, Scene, Signer, keypoints, make_scene, make_signer, render
from slr.datasets.signs import POSITION, Array, Sign, blend, inventory
from slr.datasets.synthetic import Motion, write_video
from slr.datasets.wlasl_prepare import default_workers, spread
from slr.errors import Mistake
from slr.paths import SETS

VERSION = 1  # of these sentences: a set that an older one has drawn is drawn anew
FPS = 16
FASTEST = 6  # shoulder widths a second: the mean speed of a hand from one sign to the next
LENGTHS = (2, 3, 4, 5, 6, 7)  # glosses of a sentence, all equally often
# Twenty of the inventory's first 52, far apart in hand shape, place and path; GO and COME, SUNRISE and SUNSET are each
# other's reversal, so that no single frame tells them apart.
CHOSEN = ("go", "come", "sunrise", "sunset", "tomorrow", "open", "thank you", "drink", "before", "chair", "cousin",
          "school", "mother", "garden", "water", "weather", "rain", "winter", "street", "teacher")
NAMES = {"train": "train", "val": "dev", "test": "test"}  # of the sets, in PHOENIX's files
MANIFEST, TIMES, KEYPOINTS = "drawn.json", "annotations/times.jsonl", "annotations/keypoints.pkl"


@dataclass(frozen=True)
class Size:
    """How much a split has: sentences and signers of train, val and test, and pixels of a frame's side."""

    sentences: tuple[int, int, int]
    signers: tuple[int, int, int]
    pixels: int = 96

    def __post_init__(self) -> None:
        if any(sentences and not signers for sentences, signers in zip(self.sentences, self.signers, strict=True)):
            raise ValueError(f"sentences that nobody signs: {self}")


SIZES = {"demo_continuous": Size((1200, 100, 200), (120, 10, 20)),
         "demo_continuous_small": Size((60, 12, 24), (12, 4, 6), 64)}


@functools.cache
def signs() -> tuple[Sign, ...]:
    """The signs that the sentences are made of; `seed` never changes them."""
    known = {sign.gloss: sign for sign in inventory(52)}
    return tuple(known[gloss] for gloss in CHOSEN)


def as_word(sign: Sign) -> str:
    """Its gloss as corpora of sentences write it, one word: THANK-YOU."""
    return sign.gloss.upper().replace(" ", "-")


# --- what is said -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Plan:
    """One sentence to film: who says what in which set, and the seeds of everything else."""

    id: str
    set: str
    signer_id: int
    said: tuple[int, ...]  # of `signs()`
    index: int
    seed: tuple[int, int]  # the split's seed and its name's checksum
    text: str = ""  # the same in a spoken language, where it has one

    @property
    def gloss(self) -> tuple[str, ...]:
        return tuple(as_word(signs()[number]) for number in self.said)

    @property
    def video(self) -> str:
        return f"{NAMES[self.set]}/{self.id}.mp4"


def seeds_of(split: str, seed: int) -> tuple[int, int]:
    """What all chance of a split comes from: its seed and its name."""
    return seed, zlib.crc32(split.encode())


def chance(seeds: tuple[int, int], purpose: str, number: int = 0) -> np.random.Generator:
    """The generator of one purpose and no other."""
    return np.random.default_rng([*seeds, zlib.crc32(purpose.encode()), number])


def _dealt(count: int, rng: np.random.Generator, taken: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """So many sentences, none of `taken`: the glosses are a shuffled deck that holds all equally often.

    Raises:
        Mistake: there are not that many others.
    """
    if not count:
        return []
    ends = np.cumsum(rng.permutation(np.resize(rng.permutation(LENGTHS), count)))
    deck = rng.permutation(np.resize(rng.permutation(len(CHOSEN)), ends[-1]))
    for _ in range(1000):
        sentences = [tuple(part.tolist()) for part in np.split(deck, ends[:-1])]
        known = [end - 1 for end, sentence in zip(ends, sentences, strict=True) if sentence in taken]
        if not known:
            return sentences
        for at in known:  # its last gloss changes places with any other
            other = int(rng.integers(len(deck)))
            deck[[at, other]] = deck[[other, at]]
    raise Mistake(f"no {count} sentences that no other set has", f"of {len(CHOSEN)} glosses",
                  "draw fewer: there are few sentences of two glosses")


def plans(split: str, size: Size, seed: int) -> list[Plan]:
    """All sentences of a split. The signers of a set say equally many; sets share neither signers nor sentences."""
    taken, sets = set[tuple[int, ...]](), dict[str, list[tuple[tuple[int, ...], str]]]()
    for part, count in zip(SETS, size.sentences, strict=True):
        dealt = _dealt(count, chance(seeds_of(split, seed), f"sentences of {part}"), taken)
        taken.update(dealt)
        sets[part] = [(said, "") for said in dealt]
    return cast(split, size, seed, sets)


def cast(split: str, size: Size, seed: int, sets: Mapping[str, Sequence[tuple[tuple[int, ...], str]]]) -> list[Plan]:
    """Plans of the sentences of every set, each what is said (of `signs()`) and its text: who signs which is chance,
    every signer of a set equally many, and no signer is in two sets."""
    seeds, out, people = seeds_of(split, seed), list[Plan](), np.cumsum([0, *size.signers])
    for k, part in enumerate(SETS):
        who = chance(seeds, f"turns of {part}").permutation(np.resize(np.arange(*people[k:k + 2]), len(sets[part])))
        out += [Plan(f"{split}-{len(out) + i + 1:05d}", part, int(person), said, len(out) + i, seeds, text)
                for i, ((said, text), person) in enumerate(zip(sets[part], who, strict=True))]
    return out


# --- how it is said -----------------------------------------------------------------------------------------

def _joined(first: Motion, second: Motion, pause: int) -> Motion:
    """Two motions that end and begin at rest, with a pause of so many frames in which one goes over into the other."""
    s = np.arange(1, pause + 1) / (pause + 1)
    body = first.body[-1] + (second.body[0] - first.body[-1]) * s[:, None]
    shift = len(first.poses) + pause
    return Motion(np.concatenate([first.poses, blend(first.poses[-1], second.poses[0], s), second.poses]),
                  np.concatenate([first.body, body, second.body]),
                  [*first.spans, *((start + shift, stop + shift) for start, stop in second.spans)])


def _eased(motion: Motion) -> Motion:
    """Between two signs of which one ends about where the other begins the hands sink and rise again by up to two
    fifths of the way to rest: else a sign that returns to its start would, said twice, be a long one."""
    poses = motion.poses.copy()
    for (_, start), (stop, _) in zip(motion.spans, motion.spans[1:], strict=False):
        way = np.linalg.norm(np.diff(poses[[start - 1, stop]][..., POSITION], axis=0), axis=-1).max()
        depth = 0.4 * max(0.0, 1 - way / 0.5) * np.sin(np.pi * np.arange(1, stop - start + 1) / (stop - start + 1)) ** 2
        poses[start:stop] = blend(poses[start:stop], poses[0], depth)
    return Motion(poses, motion.body, motion.spans)


def _course(motion: Motion, rng: np.random.Generator) -> tuple[Array, Array]:
    """Moments of the film in seconds, in order, and the frames of `motion` that are then shown: when each sign begins
    and ends. A way takes the longer the farther it leads, the speed of everything varies, and hands may wait."""
    edges = np.array([0, *(at for start, stop in motion.spans for at in (start, stop - 1)), len(motion.poses) - 1])
    ways = np.linalg.norm(np.diff(motion.poses[edges][..., POSITION], axis=0)[::2], axis=-1).max(axis=1)
    took, count = np.diff(edges) / synthetic.FPS / rng.uniform(1.0, 1.3), len(motion.spans)
    took[1::2] *= rng.uniform(0.9, 1.15, count)
    took[::2] = np.maximum(took[::2] * (0.2 + 1.1 * np.sqrt(np.maximum(ways, 0.6))), ways / FASTEST)
    waits = np.zeros(len(edges))
    waits[[0, -1]] = rng.uniform(0, 0.4, 2)
    waits[2:-2:2] = rng.uniform(0.2, 0.7, count - 1) * (rng.random(count - 1) < 0.1)
    leaves = np.cumsum(waits + [0, *took])
    return np.stack([leaves - waits, leaves], axis=1).ravel(), np.repeat(edges, 2)


def _filmed(motion: Motion, rng: np.random.Generator) -> Motion:
    """The motion as a film of FPS shows it; while the hands wait the body goes on moving."""
    moments, shown = _course(motion, rng)
    frames = int(moments[-1] * FPS) + 1
    at = np.interp(np.arange(frames) / FPS, moments, shown)
    low = np.minimum(at.astype(int), len(motion.poses) - 2)
    clock, every = np.linspace(0, len(motion.body) - 1, frames), np.arange(len(motion.body))
    body = np.stack([np.interp(clock, every, track) for track in motion.body.T], axis=1)
    begins, ends = moments[3:-2:4] * FPS, moments[4:-2:4] * FPS
    spans = [(int(np.ceil(a)), int(b) + 1) for a, b in zip(begins, ends, strict=True)]
    return Motion(blend(motion.poses[low], motion.poses[low + 1], at - low), body, spans)


def _said(said: list[Sign], signer: Signer, rng: np.random.Generator) -> Motion:
    """The signs as a film of FPS shows them; the hands of one longer sentence in four sink to rest once on the way."""
    rest = synthetic.resting(signer, rng)
    falls, cut, pause = rng.random() < 0.25, int(rng.integers(1, max(len(said), 2))), int(rng.integers(1, 6))
    parts = [said[:cut], said[cut:]] if falls and len(said) > 2 else [said]
    films = [_filmed(_eased(synthetic.sentence(part, signer, rng, rest=rest)), rng) for part in parts]
    return films[0] if len(films) == 1 else _joined(films[0], films[1], pause)


@dataclass(frozen=True)
class Film:
    """What a plan comes to: `motion` at FPS, its `spans` being the first frame and the last + 1 of every sign (in
    other built-in data of whatever is annotated there)."""

    signer: Signer
    scene: Scene
    motion: Motion

    def frames(self) -> Image:
        """uint8 (T, H, W, 3), RGB."""
        return render(self.signer, self.scene, self.motion.poses, self.motion.body)

    def keypoints(self) -> Array:
        """float32 (T, 79, 3): x and y in pixels, and 1."""
        return keypoints(self.signer, self.scene, self.motion.poses, self.motion.body).astype(np.float32)


def film(plan: Plan, pixels: int) -> Film:
    """Signer, scene and motion of a plan."""
    rng, signer = chance(plan.seed, "film", plan.index), make_signer(chance(plan.seed, "signer", plan.signer_id))
    scene = make_scene(signer, rng, pixels)
    return Film(signer, scene, _said([signs()[number] for number in plan.said], signer, rng))


# --- files --------------------------------------------------------------------------------------------------

def _work(folder: Path, pixels: int, plan: Plan) -> tuple[dict[str, Any], Array]:
    """Draw one sentence where it is missing; its line of TIMES, and its keypoints."""
    made, path = film(plan, pixels), folder / plan.video
    if not path.exists():
        write_video(path, made.frames(), FPS)
    line = {"id": plan.id, "set": plan.set, "gloss": plan.gloss, "num_frames": len(made.motion.poses),
            "spans": made.motion.spans}
    return line, made.keypoints()


def _annotations(place: Path) -> dict[str, tuple[Path, Path]]:
    """The corpus csv and the STM of every set."""
    return {part: (place / "annotations" / "manual" / f"{name}.corpus.csv",
                   place / "evaluation" / f"synthetic-groundtruth-{name}.stm") for part, name in NAMES.items()}


def _videos(place: Path, size: Size) -> Path:
    return place / "features" / f"fullFrame-{size.pixels}x{size.pixels}px"


def _cleared(place: Path, parameters: str) -> None:
    """Make `place` ready: what other parameters or a broken run have left there goes.

    Raises:
        Mistake: something is there that was not drawn.
    """
    manifest = place / MANIFEST
    if not manifest.exists() and place.is_dir() and any(place.iterdir()):
        raise Mistake("these sentences were not drawn here and are left alone", paths.shown(place),
                      "move them, or choose another name")
    same = manifest.exists() and manifest.read_text(encoding="utf-8") == parameters
    if not same:
        written = [file for files in _annotations(place).values() for file in files]
        for path in (place / TIMES, place / KEYPOINTS, *written):
            path.unlink(missing_ok=True)
    for path in place.glob("features/fullFrame-*/*/*.mp4"):
        if not same or path.name.startswith("."):
            path.unlink()
    put(manifest, parameters)


def draw(root: Path, split: str = "demo_continuous", seed: int = 42, size: Size | None = None,
         workers: int | None = None, progress: bool = False) -> Path:
    """Draw a split of sentences in PHOENIX-2014's form, `<root>/SYNTHETIC/<split>`: a corpus csv and an STM of every
    set, a video a sentence, TIMES and KEYPOINTS. What the same parameters have drawn is kept; the csv files come last.

    Args:
        size: how much of it; else what SIZES says of this split, or of demo_continuous.
        workers: processes, by default one a core; 0: this one.

    Returns:
        The folder, which preprocess.py reads as annotations and frames.

    Raises:
        Mistake: something else is in the folder, a sentence cannot be drawn, or there are not so many.
    """
    size = size or SIZES.get(split, SIZES["demo_continuous"])
    return draw_plans(root, split, seed, size, plans(split, size, seed), [VERSION, synthetic.VERSION], workers,
                      progress)


def draw_plans(root: Path, split: str, seed: int, size: Size, todo: list[Plan], version: list[int],
               workers: int | None = None, progress: bool = False) -> Path:
    """As `draw`, of any plans that follow from `version`, `split`, `seed` and `size`: what these have drawn is kept.
    Where sentences have texts the corpus csv files are PHOENIX-2014T's."""
    place, parameters = root / "SYNTHETIC" / split, {"version": version, "split": split, "seed": seed, **asdict(size)}
    _cleared(place, json.dumps(parameters) + "\n")
    workers = default_workers() if workers is None else workers
    missing = [plan for plan in todo if not (_videos(place, size) / plan.video).exists()]
    tables = [place / KEYPOINTS, *(file for files in _annotations(place).values() for file in files)]
    if missing or not all(file.exists() for file in tables):
        lines, points = _drawn(place, size, todo, len(missing), workers, progress)
        put(place / KEYPOINTS, pickle.dumps(points))
        _write_annotations(place, todo, lines)
    return place


def _drawn(place: Path, size: Size, todo: list[Plan], missing: int, workers: int,
           progress: bool) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Array]]]:
    """The lines of TIMES by the ids of the plans, and the points as a corpus has them; every video is then there."""
    folder = _videos(place, size)
    for name in NAMES.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    workers = min(workers, missing // 32)  # a few videos are not worth a process
    lines, points = dict[str, dict[str, Any]](), dict[str, dict[str, Array]]()
    with tqdm(total=len(todo), desc=f"drawing {place.name}", unit="sentence", disable=not progress) as bar:
        for plan, found in spread(functools.partial(_work, folder, size.pixels), todo, workers):
            if found is None:
                raise Mistake(f"{plan.id} cannot be drawn", "its process died", "run it again, with fewer --workers")
            lines[plan.id], points[plan.id] = found[0], {"keypoints": found[1]}
            bar.update()
    return lines, {f"{folder.name}/{plan.video.removesuffix('.mp4')}": points[plan.id] for plan in todo}


def _write_annotations(place: Path, todo: list[Plan], lines: dict[str, dict[str, Any]]) -> None:
    put(place / TIMES, "".join(json.dumps(lines[plan.id]) + "\n" for plan in todo))
    for part, (corpus, stm) in _annotations(place).items():
        entries = [Entry(plan.id, part, f"Signer{plan.signer_id + 1:02d}", plan.gloss, plan.text, plan.video)
                   for plan in todo if plan.set == part]
        put(stm, stm_text(entries))
        put(corpus, corpus_text(entries, translated=any(plan.text for plan in todo)))


def read_times(place: Path) -> dict[str, list[tuple[int, int]]]:
    """{id: (start, stop) of every gloss}: 0-based frames, `stop` is one past the last. Transitions belong to none.

    Raises:
        Mistake: they are not there.
    """
    path = place / TIMES
    if not path.is_file():
        raise Mistake("no times of glosses", f"{paths.shown(path)} is missing", "only drawn sentences have them")
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["id"]: [(start, stop) for start, stop in row["spans"]] for row in rows}
