"""Two pictures of a prepared split of sentences: what they look like over time, and how many there are of what.

    contact_sheet(prepared, folder / "contact_sheet.png")
    statistics_sheet(prepared, folder / "statistics.png")
"""

import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slr.datasets.pictures import COLOURS, LEGEND, NAMED, bars, lengths, ranked, save
from slr.datasets.sentences import Sentence, read_images
from slr.datasets.sentences_prepare import Prepared, findings
from slr.paths import SETS
from slr.video import VideoError, sample_indices

MOMENTS = 8  # frames of a sentence on the contact sheet


@dataclass(frozen=True)
class Spoken:
    """One gloss of one sentence, to be counted."""

    gloss: str
    set: str


def spread_over_signers(sentences: list[Sentence], count: int) -> list[Sentence]:
    """At most `count` sentences, from all sets and, within a set, from all over its signers and file."""
    chosen: list[Sentence] = []
    for left, part in zip(range(len(SETS), 0, -1), SETS, strict=True):
        own = sorted((s for s in sentences if s.set == part), key=lambda s: s.signer)
        share = min(len(own), -(-(count - len(chosen)) // left))
        chosen += [own[i * len(own) // share] for i in range(share)]
    return chosen


def contact_sheet(prepared: Prepared, path: Path, count: int = 12) -> None:
    """A row for each of up to `count` sentences: frames from its first to its last, its glosses above them."""
    chosen = spread_over_signers([s for s in prepared.sentences if s.frames], count)
    figure = Figure(figsize=(1.5 * MOMENTS, 2.3 * max(len(chosen), 1) + 0.6), layout="constrained")
    figure.suptitle(f"{prepared.origin['split']}: {len(chosen)} of {len(prepared.sentences)} sentences, "
                    "frames from the first to the last")
    rows: Any = figure.subfigures(max(len(chosen), 1), 1, squeeze=False)
    for sentence, row in zip(chosen, rows[:, 0], strict=False):
        text = textwrap.shorten(" ".join(sentence.gloss), 110, placeholder=" …")
        named = f"{sentence.set} {sentence.id} {sentence.signer}, {sentence.num_frames} frames"
        row.suptitle(f"{text}\n{named}", fontsize=9, color=COLOURS[sentence.set], parse_math=False)
        _strip(list(row.subplots(1, MOMENTS)), sentence)
    if not chosen:
        figure.text(0.5, 0.3, "prepared without frames", ha="center")
    save(figure, path)


def _strip(strip: list[Axes], sentence: Sentence) -> None:
    for axes in strip:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    indices = sample_indices(sentence.num_frames, min(MOMENTS, sentence.num_frames))
    try:
        images = read_images(sentence, indices)
    except VideoError:
        strip[0].text(0.5, 0.5, "unreadable", ha="center", va="center", transform=strip[0].transAxes)
        return
    for axes, image, index in zip(strip, images, indices, strict=False):
        axes.imshow(image)
        axes.set_xlabel(str(index), fontsize=7, labelpad=1)


def statistics_sheet(prepared: Prepared, path: Path) -> None:
    """Frames and glosses a sentence, sentences a gloss and a signer, sizes, and what was found, in one picture."""
    figure = Figure(figsize=(18, 10), layout="constrained")
    (frames, glosses, signers), (spoken, sizes, found) = figure.subplots(2, 3)
    sentences = prepared.sentences
    sets = {part: [s for s in sentences if s.set == part] for part in SETS}
    lengths(frames, {part: [s.num_frames for s in found if s.num_frames] for part, found in sets.items()}, "frames",
            "sentence")
    lengths(glosses, {part: [len(s.gloss) for s in found] for part, found in sets.items()}, "glosses", "sentence")
    ranked(signers, [s for s in sentences if s.signer], lambda s: s.signer, "signer", "sentences")
    _frequencies(spoken, [Spoken(gloss, s.set) for s in sentences for gloss in s.gloss])
    bars(sizes, Counter(prepared.report["frame_sizes"]), "frame sizes (pixels), sentences")
    bars(found, Counter({what: n for what, n in findings(prepared.report) if n}), "what was found")
    vocabulary = prepared.report["vocabulary"]
    figure.suptitle(f"{prepared.origin['split']}: {len(sentences)} sentences of {vocabulary} glosses")
    save(figure, path)


def _frequencies(axes: Axes, said: list[Spoken]) -> None:
    """How often every gloss is signed: a bar each, or where they are many, a falling line of each set."""
    counts = {part: Counter(item.gloss for item in said if item.set == part) for part in SETS}
    if len({item.gloss for item in said}) <= NAMED:
        ranked(axes, said, lambda item: item.gloss, "gloss", "times")
    else:
        for part, found in counts.items():
            times = sorted(found.values(), reverse=True)
            axes.loglog(np.arange(1, len(times) + 1), times, color=COLOURS[part], label=f"{part}, {len(times)} glosses")
        axes.set_xlabel("gloss, ranked in its set")
        axes.legend(**LEGEND | {"ncols": 1})
    axes.set(title="times that a gloss is signed", ylabel="times")
