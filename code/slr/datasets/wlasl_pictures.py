"""Two pictures of a prepared split: what its clips look like, and how many there are of what.

    contact_sheet(prepared, folder / "contact_sheet.png")
    statistics_sheet(prepared, folder / "statistics.png")

Readable at ten classes and at two thousand: few bars get names, many become a ranked outline.
"""

import textwrap
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from slr.datasets.wlasl import Clip
from slr.datasets.wlasl_prepare import Prepared, findings
from slr.paths import SETS
from slr.video import VideoError, find_video, read_frames

COLOURS = {"train": "#4c72b0", "val": "#dd8452", "test": "#55a868"}
NAMED = 40  # so many bars still have room for a name each
LEGEND: dict[str, Any] = {"loc": "upper right", "ncols": 3, "fontsize": 8}
TILE = 160  # pixels of a picture's short side on the contact sheet


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks shows as boxes
        figure.savefig(path, dpi=100)


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
    _save(figure, path)


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
    _lengths(frames, clips)
    _ranked(classes, clips, lambda clip: clip.gloss, "class")
    known = [clip for clip in clips if clip.signer is not None]
    _ranked(signers, known, lambda clip: str(clip.signer), "signer")
    infos = [facts.info for facts in prepared.facts.values() if facts.info]
    _bars(sizes, Counter(f"{info.width}x{info.height}" for info in infos), "frame sizes (pixels), videos")
    _bars(rates, Counter(f"{info.fps:.0f}" for info in infos), "frame rates (a second, rounded), videos")
    _bars(found, Counter({what: n for what, n in findings(prepared.report) if n}), "what was found")
    figure.suptitle(f"{prepared.origin['split']}: {len(clips)} clips of {len(prepared.classes)} classes")
    _save(figure, path)


def _lengths(axes: Axes, clips: list[Clip]) -> None:
    lengths = {name: [(c.stop or 0) - c.start for c in clips if c.set == name] for name in SETS}
    lengths = {name: values for name, values in lengths.items() if values}
    longest = max(max(values) for values in lengths.values())
    wide = -(-(longest + 1) // 40)  # whole frames, or neighbouring bars would count different numbers of them
    bins = np.arange(0, longest + wide + 1, wide) - 0.5
    labels = [f"{name}, median {np.median(values):g}" for name, values in lengths.items()]
    colours = [COLOURS[name] for name in lengths]
    axes.hist(list(lengths.values()), bins.tolist(), stacked=True, label=labels, color=colours)
    axes.set(title="frames a clip", xlabel="frames", ylabel="clips")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(**LEGEND)
    axes.set_ylim(top=1.18 * axes.get_ylim()[1])


def _ranked(axes: Axes, clips: list[Clip], key: Callable[[Clip], Any], what: str) -> None:
    """Clips of every class or signer, the sets stacked, largest first."""
    counted = {name: Counter(key(clip) for clip in clips if clip.set == name) for name in SETS}
    total = Counter(key(clip) for clip in clips)
    names = sorted(total, key=lambda n: (-total[n], *(-counted[s][n] for s in SETS)))
    base = np.zeros(len(names))
    for set_name, counts in counted.items():
        if counts:
            heights = np.array([counts[name] for name in names], float)
            _stack(axes, base, heights, color=COLOURS[set_name], label=set_name, linewidth=0)
            base += heights
    axes.set(title=f"clips a {what} ({len(names)})", ylabel="clips")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if not names:
        axes.text(0.5, 0.5, f"no {what} is named", ha="center", va="center", transform=axes.transAxes)
    elif len(names) <= NAMED:
        axes.set_xticks(np.arange(len(names)), [name[:16] for name in names], rotation=90, parse_math=False)
        axes.set_xlim(-0.6, max(len(names), 8) - 0.4)
    else:
        axes.set(xlabel=f"{what}, ranked by clips", xlim=(-0.5, len(names) - 0.5))
    if names:
        axes.legend(**LEGEND)
        axes.set_ylim(0, 1.18 * float(base.max()))


def _stack(axes: Axes, base: np.ndarray, heights: np.ndarray, **style: Any) -> None:
    if len(base) <= NAMED:
        axes.bar(np.arange(len(base)), heights, 0.85, bottom=base, **style)
    else:  # one outline: thousands of bars take seconds to draw, and none of them is seen
        edges = np.arange(len(base) + 1) - 0.5
        low, high = np.append(base, base[-1]), np.append(base + heights, base[-1] + heights[-1])
        axes.fill_between(edges, low, high, step="post", **style)


def _bars(axes: Axes, counts: Counter[str], title: str, most: int = 14) -> None:
    shown = counts.most_common(most)
    rest = sum(counts.values()) - sum(n for _, n in shown)
    if rest:
        shown.append((f"{len(counts) - most} others", rest))
    axes.set_title(title)
    if not shown:
        axes.text(0.5, 0.5, "nothing", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    names = [textwrap.fill(name, 24) for name, _ in shown]
    bars = axes.barh(names, [n for _, n in shown], color="#8172b3")
    axes.bar_label(bars, padding=3)
    axes.set_ylim(max(len(shown), 8) - 0.4, -0.6)  # the most frequent on top, no bar as thick as the panel
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.12)
