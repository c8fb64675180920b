"""Clips with words to them, drawn in milliseconds: a gloss is a pattern of coloured cells for a few frames."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from slr import paths
from slr.datasets import bundestag, sentences
from slr.datasets.sentences import BLANK, Frames, Sentence

GLOSSES = ("RAIN", "SUN", "WIND", "SNOW", "CLOUD", "NORTH")
SAID = {"train": ("RAIN SUN", "WIND RAIN SNOW", "SUN CLOUD", "NORTH WIND SUN CLOUD"), "val": ("SUN WIND", "RAIN CLOUD"),
        "test": ("SNOW SUN", "WIND SUN RAIN")}
SIZE = 16  # pixels of a frame's sides
EACH = (3, 4, 5)  # frames of a gloss


def pattern(gloss: str) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8."""
    rng = np.random.default_rng(sum(map(ord, gloss)))
    cells = rng.integers(0, 2, (4, 4, 3)) * 200 + 20
    return np.kron(cells, np.ones((SIZE // 4, SIZE // 4, 1), int)).astype(np.uint8)


def film(glosses: Sequence[str], seed: int = 0) -> np.ndarray:
    """(T, SIZE, SIZE, 3) uint8: its signs one after the other, a little noise on all of them."""
    rng = np.random.default_rng(seed)
    frames = np.concatenate([np.repeat(pattern(gloss)[None], rng.choice(EACH), 0) for gloss in glosses])
    return (frames + rng.integers(0, 20, frames.shape)).astype(np.uint8)


def prepare(root: Path, split: str, said: Mapping[str, Sequence[str]] = SAID) -> None:
    """A prepared split, as preprocess.py leaves it, of PNG files; its words are those of the training set."""
    place = paths.sentences(root, split)
    place.mkdir(parents=True, exist_ok=True)
    (place / "report.json").write_text(json.dumps({"frames": f"FRAMES/{split}"}))
    words = sorted({word for text in said["train"] for word in text.split()})
    (place / sentences.VOCABULARY).write_text("".join(f"{n}\t{word}\n" for n, word in enumerate([BLANK, *words])))
    for part, name in sentences.FILES.items():
        found = [_prepared(root / "FRAMES" / split, part, number, text.split())
                 for number, text in enumerate(said.get(part, ()))]
        sentences.write_sentences(place / name, found)


def _prepared(folder: Path, part: str, number: int, glosses: Sequence[str]) -> Sentence:
    frames, name = film(glosses, number), f"{part}-{number}"
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / name / f"{i:03d}.png"), frame[..., ::-1])
    return Sentence(name, part, tuple(glosses), len(frames), Frames("folder", name, "%03d.png"))


def write_long(root: Path, split: str, videos: int = 4, said: Sequence[str] = SAID["train"]) -> Path:
    """The same in the Bundestag's form: so many videos of all these sentences, between which two frames are black."""
    folder, rows = paths.bundestag(root, split), ["VideoID,SubtitleLine,StartFrame,EndFrame"]
    (folder / bundestag.VIDEOS).mkdir(parents=True, exist_ok=True)
    for video in range(videos):
        writer = cv2.VideoWriter(str(folder / bundestag.VIDEOS / f"v{video}.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25,
                                 (SIZE, SIZE))
        at = 0
        for number, text in enumerate(said):
            frames = film(text.split(), 10 * video + number)
            for frame in (*frames, *np.zeros((2, SIZE, SIZE, 3), np.uint8)):
                writer.write(np.ascontiguousarray(frame[..., ::-1]))
            rows.append(f"v{video},{text},{at},{at + len(frames) - 1}")
            at += len(frames) + 2
        writer.release()
    (folder / bundestag.METADATA).write_text("\n".join(rows) + "\n")
    return folder
