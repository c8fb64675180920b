"""Two pictures of a prepared split: what its clips look like, and how many there are of what.

    contact_sheet(prepared, folder / "contact_sheet.png")
    statistics_sheet(prepared, folder / "statistics.png")

Readable at ten classes and at two thousand: few bars get names, many become a ranked outline.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from slr.datasets.pictures import COLOURS, bars, lengths, ranked, save
from slr.datasets.wlasl import Clip
from slr.datasets.wlasl_prepare import Prepared, findings
from slr.paths import SETS
from slr.video import VideoError, find_video, read_frames

TILE = 160  # pixels of a picture's short side on the contact sheet


def spread_over_classes(clips: list[Clip], count: int) -> list[Clip]:
    """At most `count` clips, from all over the classes and, within a class, from all over its sets."""
    classes: dict[int, list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: (clip.label, SETS.index(clip.set))):
        classes.setdefault(clip.label, []).append(clip)
    groups = list(classes.values())
    each, rest = divmod(count, len(groups))
    if not each:
        return [_evenly(groups[i * len(groups) // count], 1, i)[0] for i in range(count)]
    return [clip for i, group in enumerate(groups) for clip in _evenly(group, each + (i < rest))]


def _evenly(clips: list[Clip], count: int, shift: int = 0) -> list[Clip]:
    count = min(count, len(clips))
    return [clips[(i * len(clips) // count + shift) % len(clips)] for i in range(count)]


def contact_sheet(prepared: Prepared, path: Path, count: int = 48) -> None:
    """The middle frames of up to `count` clips with gloss, set and id, and the box that a crop would take."""
    chosen = spread_over_classes(prepared.clips, count)
    columns = min(8, len(chosen))
    rows = -(-len(chosen) // columns)
    aspect = float(np.median([prepared.info(c).height / prepared.info(c).width for c in chosen]))
    figure = Figure(figsize=(max(1.9 * columns, 6), (1.9 * aspect + 0.5) * rows + 0.5), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, clip in zip(figure.axes, chosen, strict=False):
        _tile(axes, prepared, clip)
    count_text = f"{len(chosen)} of {len(prepared.clips)} clips"
    figure.suptitle(f"{prepared.origin['split']}: {count_text}, middle frames, the person's box in yellow")
    save(figure, path)


def _tile(axes: Axes, prepared: Prepared, clip: Clip) -> None:
    text = f"{clip.gloss[:24]}\n{clip.set} {clip.id}"
    axes.set_title(text, fontsize=8, color=COLOURS[clip.set], parse_math=False)
    try:
        file = find_video(prepared.videos, clip.stem)
        frame = read_frames(file, [(clip.start + (clip.stop or 1)) // 2], short_side=TILE)[0]
    except VideoError:
        axes.text(0.5, 0.5, "unreadable", ha="center", va="center", transform=axes.transAxes)
        return
    axes.imshow(frame)
    axes.spines[:].set(visible=True, color="#bbbbbb")  # the edge of a white picture
    if clip.box:
        scale = frame.shape[1] / prepared.info(clip).width
        x0, y0, x1, y1 = (value * scale for value in clip.box)
        box = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color="#ffd400", linewidth=1.5)
        axes.add_patch(box)


def statistics_sheet(prepared: Prepared, path: Path) -> None:
    """Frames a clip, clips a class and a signer, sizes, rates, and what was found, in one picture."""
    figure = Figure(figsize=(18, 10), layout="constrained")
    (frames, classes, signers), (sizes, rates, found) = figure.subplots(2, 3)
    clips = prepared.clips
    counts = {part: [(c.stop or 0) - c.start for c in clips if c.set == part] for part in SETS}
    lengths(frames, counts, "frames", "clip")
    ranked(classes, clips, lambda clip: clip.gloss, "class", "clips")
    known = [clip for clip in clips if clip.signer is not None]
    ranked(signers, known, lambda clip: str(clip.signer), "signer", "clips")
    infos = [facts.info for facts in prepared.facts.values() if facts.info]
    bars(sizes, Counter(f"{info.width}x{info.height}" for info in infos), "frame sizes (pixels), videos")
    bars(rates, Counter(f"{info.fps:.0f}" for info in infos), "frame rates (a second, rounded), videos")
    bars(found, Counter({what: n for what, n in findings(prepared.report) if n}), "what was found")
    figure.suptitle(f"{prepared.origin['split']}: {len(clips)} clips of {len(prepared.classes)} classes")
    save(figure, path)
