"""The built-in videos with subtitles: the drawn signer talks for a minute, in the Bundestag's form.

    place = draw(paths.data_root(), "demo_bundestag")       # data/BUNDESTAG/demo_bundestag
    found = read_samples(place)                             # of slr.datasets.bundestag: subtitles and their frames

    <place>/videos/<VideoID>.mp4, <VideoID>.srt             a person each, sentence after sentence
    <place>/metadata.csv                                    what preprocess.py --subtitles makes of them

Every sentence is one of slr.datasets.synthetic_translation, none of which holds what its training sets never have, and
its text is the subtitle while the signs last: from the first frame of the first sign to the last one of the last.
Between them the hands rest. No person is in another split. Who learns from these videos has seen the signs of
demo_continuous, but none of its people and none of its sentences' films.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from slr import paths
from slr.datasets import synthetic, synthetic_sentences, synthetic_translation
from slr.datasets.files import put
from slr.datasets.signs import blend
from slr.datasets.subtitles import METADATA, Row, Subtitle, metadata_text, srt_text, times_of
from slr.datasets.synthetic import Motion, write_video
from slr.datasets.synthetic_sentences import FPS, Film, as_word, chance, film, seeds_of, signs
from slr.datasets.wlasl_prepare import default_workers, spread
from slr.errors import Mistake

VERSION = 1  # of these videos: a split that an older one has drawn is drawn anew
MANIFEST, VIDEOS = "drawn.json", "videos"
REST = (0.25, 1.25)  # seconds between two sentences


@dataclass(frozen=True)
class Size:
    """How much a split has: videos, sentences of each, and pixels of a frame's side."""

    videos: int
    sentences: int
    pixels: int = 96


SIZES = {"demo_bundestag": Size(24, 12), "demo_bundestag_small": Size(6, 3, 64)}


@dataclass(frozen=True)
class Plan:
    """One video to draw: who says what in which order, and the seeds of everything else."""

    video: str
    signer_id: int
    said: tuple[tuple[str, ...], ...]  # the glosses of every sentence
    seed: tuple[int, int]  # the split's seed and its name's checksum

    @property
    def texts(self) -> list[str]:
        return [synthetic_translation.language()[gloss].text for gloss in self.said]


def plans(split: str, size: Size, seed: int) -> list[Plan]:
    """All videos of a split. No sentence is said twice.

    Raises:
        Mistake: there are not so many sentences.
    """
    count = size.videos * size.sentences
    said = synthetic_translation.sentences(split, synthetic_sentences.Size((count, 0, 0), (1, 0, 0)), seed)["train"]
    return [Plan(f"{split}-{k + 1:02d}", k, tuple(said[k * size.sentences:(k + 1) * size.sentences]),
                 seeds_of(split, seed)) for k in range(size.videos)]


# --- films --------------------------------------------------------------------------------------------------

def film_of(plan: Plan, pixels: int) -> Film:
    """Signer, room and motion of a plan: the films of its sentences, one after the other in the room of the first."""
    rng, numbers = chance(plan.seed, "rests", plan.signer_id), {as_word(sign): k for k, sign in enumerate(signs())}
    films = [film(synthetic_sentences.Plan(plan.video, "train", plan.signer_id, tuple(map(numbers.__getitem__, gloss)),
                                           plan.signer_id * len(plan.said) + k, plan.seed), pixels)
             for k, gloss in enumerate(plan.said)]
    rests = [round(seconds * FPS) for seconds in rng.uniform(*REST, len(films) - 1)]
    return Film(films[0].signer, films[0].scene, _joined([made.motion for made in films], rests))


def _joined(motions: Sequence[Motion], rests: Sequence[int]) -> Motion:
    """Motions that begin and end at rest, with so many frames between two in which one rest goes over into the other;
    their spans are those of the whole motions' signs."""
    poses, body, spans, at = [motions[0].poses], [motions[0].body], [_extent(motions[0], 0)], len(motions[0].poses)
    for before, after, rest in zip(motions, motions[1:], rests, strict=False):
        s = np.arange(1, rest + 1) / (rest + 1)
        poses += [blend(before.poses[-1], after.poses[0], s), after.poses]
        body += [before.body[-1] + (after.body[0] - before.body[-1]) * s[:, None], after.body]
        spans.append(_extent(after, at + rest))
        at += rest + len(after.poses)
    return Motion(np.concatenate(poses), np.concatenate(body), spans)


def _extent(motion: Motion, shift: int) -> tuple[int, int]:
    return motion.spans[0][0] + shift, motion.spans[-1][1] + shift


# --- files --------------------------------------------------------------------------------------------------

def _work(folder: Path, pixels: int, plan: Plan) -> list[tuple[int, int]]:
    """Draw one video where it is missing; the first and the last frame of its sentences."""
    made, path = film_of(plan, pixels), folder / f"{plan.video}.mp4"
    if not path.exists():
        write_video(path, made.frames(), FPS)
    return [(start, stop - 1) for start, stop in made.motion.spans]


def _cleared(place: Path, parameters: str) -> None:
    """Make `place` ready: what other parameters or a broken run have left there goes.

    Raises:
        Mistake: something is there that was not drawn.
    """
    manifest = place / MANIFEST
    if not manifest.exists() and place.is_dir() and any(place.iterdir()):
        raise Mistake("these videos were not drawn here and are left alone", paths.shown(place),
                      "move them, or choose another name")
    same = manifest.exists() and manifest.read_text(encoding="utf-8") == parameters
    if not same:
        (place / METADATA).unlink(missing_ok=True)
    for path in (place / VIDEOS).glob("*"):
        if path.suffix in (".mp4", ".srt") and (not same or path.name.startswith(".")):
            path.unlink()
    put(manifest, parameters)


def draw(root: Path, split: str = "demo_bundestag", seed: int = 42, size: Size | None = None,
         workers: int | None = None, progress: bool = False) -> Path:
    """Draw a split in the Bundestag's form, `<root>/BUNDESTAG/<split>`: videos, their subtitles and metadata.csv. What
    the same parameters have drawn is kept; metadata.csv comes last.

    Args:
        size: how much of it; else what SIZES says of this split, or of demo_bundestag.
        workers: processes, by default one a core; 0: this one.

    Returns:
        The folder.

    Raises:
        Mistake: something else is in the folder, or a video cannot be drawn.
    """
    size = size or SIZES.get(split, SIZES["demo_bundestag"])
    place, todo = paths.bundestag(root, split), plans(split, size, seed)
    version = [VERSION, synthetic_translation.VERSION, synthetic_sentences.VERSION, synthetic.VERSION]
    _cleared(place, json.dumps({"version": version, "split": split, "seed": seed, **asdict(size)}) + "\n")
    (place / VIDEOS).mkdir(parents=True, exist_ok=True)
    spans = _drawn(place, size, todo, default_workers() if workers is None else workers, progress)
    for file, text in _texts(todo, spans).items():
        if not (place / file).exists() or (place / file).read_bytes() != text.encode():
            put(place / file, text)
    return place


def _texts(todo: Sequence[Plan], spans: dict[str, list[tuple[int, int]]]) -> dict[Path, str]:
    """What stands in the srt files and, last, in metadata.csv."""
    out, rows = dict[Path, str](), list[Row]()
    for plan in todo:
        said = list(zip(spans[plan.video], plan.texts, strict=True))
        out[Path(VIDEOS, f"{plan.video}.srt")] = srt_text(
            Subtitle(*times_of(first, last, FPS), text) for (first, last), text in said)
        rows += [Row(plan.video, text, first, last) for (first, last), text in said]
    return out | {Path(METADATA): metadata_text(rows)}


def _drawn(place: Path, size: Size, todo: Sequence[Plan], workers: int,
           progress: bool) -> dict[str, list[tuple[int, int]]]:
    """Where the sentences are in every video, by their names; all videos are then there."""
    missing = sum(not (place / VIDEOS / f"{plan.video}.mp4").exists() for plan in todo)
    workers = min(workers, missing // 4)  # a few videos are not worth a process
    spans = dict[str, list[tuple[int, int]]]()
    with tqdm(total=len(todo), desc=f"drawing {place.name}", unit="video", disable=not progress) as bar:
        for plan, found in spread(functools.partial(_work, place / VIDEOS, size.pixels), todo, workers):
            if found is None:
                raise Mistake(f"{plan.video} cannot be drawn", "its process died", "run it again, with fewer --workers")
            spans[plan.video] = found
            bar.update()
    return spans


def summary(root: Path, split: str, size: Size | None = None) -> str:
    """What `draw` makes of a split, in a line."""
    size = size or SIZES.get(split, SIZES["demo_bundestag"])
    return (f"{paths.shown(paths.bundestag(root, split))}: {size.videos} videos, a person each, of {size.sentences} "
            "sentences; training splits them by video")
