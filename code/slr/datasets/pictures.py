"""What the pictures of prepared clips and of prepared sentences share: panels that count, and how a sheet is saved."""

import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slr import plots
from slr.paths import SETS

COLOURS = {"train": "#4c72b0", "val": "#dd8452", "test": "#55a868"}
NAMED = 40  # so many bars still have room for a name each
LEGEND: dict[str, Any] = {"loc": "upper right", "ncols": 3, "fontsize": 8}


def save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks shows as boxes
        plots.write(figure, path, dpi=100)


def lengths(axes: Axes, values: Mapping[str, Sequence[int]], what: str, of: str) -> None:
    """A histogram of {set: numbers of `what` in each `of`}, the sets stacked."""
    axes.set(title=f"{what} a {of}", xlabel=what, ylabel=f"{of}s")
    sets = {part: found for part, found in values.items() if found}
    if not sets:
        axes.text(0.5, 0.5, "not known", ha="center", va="center", transform=axes.transAxes)
        return
    longest = max(max(found) for found in sets.values())
    wide = -(-(longest + 1) // 40)  # whole numbers, or neighbouring bars would count different numbers of them
    labels = [f"{part}, median {np.median(found):g}" for part, found in sets.items()]
    axes.hist(list(sets.values()), (np.arange(0, longest + wide + 1, wide) - 0.5).tolist(), stacked=True, label=labels,
              color=[COLOURS[part] for part in sets])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(**LEGEND)
    axes.set_ylim(top=1.18 * axes.get_ylim()[1])


def ranked(axes: Axes, items: Sequence[Any], key: Callable[[Any], Any], what: str, of: str) -> None:
    """How many items (`of`), each of a `set`, every class or signer (`what`) has: the sets stacked, largest first."""
    counted = {name: Counter(key(item) for item in items if item.set == name) for name in SETS}
    total = Counter(key(item) for item in items)
    names = sorted(total, key=lambda n: (-total[n], *(-counted[s][n] for s in SETS)))
    base = np.zeros(len(names))
    for set_name, counts in counted.items():
        if counts:
            heights = np.array([counts[name] for name in names], float)
            _stack(axes, base, heights, color=COLOURS[set_name], label=set_name, linewidth=0)
            base += heights
    axes.set(title=f"{of} a {what} ({len(names)})", ylabel=of)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if not names:
        axes.text(0.5, 0.5, f"no {what} is named", ha="center", va="center", transform=axes.transAxes)
    elif len(names) <= NAMED:
        axes.set_xticks(np.arange(len(names)), [name[:16] for name in names], rotation=90, parse_math=False)
        axes.set_xlim(-0.6, max(len(names), 8) - 0.4)
    else:
        axes.set(xlabel=f"{what}, ranked by {of}", xlim=(-0.5, len(names) - 0.5))
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


def bars(axes: Axes, counts: Counter[str], title: str, most: int = 14) -> None:
    """A bar for each of the most frequent, and one for the others together."""
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
    drawn = axes.barh(names, [n for _, n in shown], color="#8172b3")
    axes.bar_label(drawn, padding=3)
    axes.set_ylim(max(len(shown), 8) - 0.4, -0.6)  # the most frequent on top, no bar as thick as the panel
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.12)
