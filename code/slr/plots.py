"""Pictures of results: confusion matrix, per-class scores, training curves, signers. PNG files, no display.

Every function takes plain lists or arrays and a path, writes the picture aside and renames it, and returns
the path. Three sizes: up to FEW classes everything is named and every cell has its number; up to MANY all is
still named, on a large sheet; above, the whole is an overview and the extremes are named. matplotlib is
imported on the first drawing, seaborn on the first that has a matrix.
"""

import math
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEW, NUMBERED, MANY = 30, 45, 120  # NUMBERED: still with a number in every cell of a confusion matrix
NAME = 22  # the longest class name that is shown whole
CONFUSED = 25  # classes, and pairs of classes, in the panels of those confused most
WORST, BEST = 40, 20  # classes named in the overviews
DPI = 110
METRICS = ("precision", "recall", "f1")
# seaborn's "colorblind" palette: blue, orange, green, then vermilion, purple
BLUE, ORANGE, GREEN, RED, PURPLE = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"
LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"), (RED, (0, (5, 1, 1, 1))))
COLOURS = dict(zip(METRICS, (BLUE, ORANGE, GREEN), strict=True))
INK, GREY, LIGHT = "#303030", "#5a5a5a", "#e4e4e4"
WORDS = {"acc": "accuracy", "lr": "learning rate", "wer": "WER", "f1": "F1", "bleu": "BLEU", "bleu4": "BLEU-4"}
# drawn from where installed, for the glyphs that DejaVu Sans lacks
FALLBACKS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei",
             "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB",
             "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Thai")

Floats = NDArray[np.float64]


# --- confusion matrix ---------------------------------------------------------------------------------------


def confusion_matrix(matrix: ArrayLike, classes: Sequence[str], path: Path | str, title: str = "",
                     whose: str = "signs") -> Path:
    """Counts (K, K), row = true class, column = predicted; colour is the share of the row.

    Above FEW classes two more panels show, large and by name, the classes and the pairs confused most. `whose` is
    what the classes are called.
    """
    table = np.asarray(matrix, dtype=np.int64).reshape(len(classes), len(classes))
    clips, right = int(table.sum()), int(np.trace(table))
    if not clips:
        return _nothing(path, title, "no clip was tested")
    with _style():
        names = _names(classes)
        note = f"{clips:,} clips, {right:,} right ({_share(right / clips)})   rows: true   columns: predicted"
        fig = _small_matrix(table, names, title) if len(names) <= FEW else _large_matrix(table, names, whose)
        return _save(fig, path, title, note)


def _small_matrix(table: NDArray[np.int64], names: list[str], title: str) -> Any:
    side, label = 0.44 * max(4, len(names)), _inches(names, 9.5)
    fig = _figure(max(6.0, side + label + 1.9, 0.3 + 0.125 * len(title)), side + label + 1.0)  # titles are 14 point
    _cells(fig.subplots(), table, table.sum(axis=1), names, names, bar=True)
    return fig


def _large_matrix(table: NDArray[np.int64], names: list[str], whose: str) -> Any:
    """The whole at the left; the classes and the pairs confused most at the right."""
    named = len(names) <= MANY
    side = max(14.5, 0.172 * len(names)) + _inches(names, 8) if named else 16.5
    left, widths = (["whole"], [side]) if named else (["whole", "strip"], [side, 1.2])
    fig = _figure(sum(widths) + 12.5, side + 1.2)
    axes = fig.subplot_mosaic([[*left, "classes"], [*left, "pairs"]], width_ratios=[*widths, 12.5],
                              height_ratios=(10, 6.5))
    if named:
        _labelled_matrix(axes["whole"], table, names, whose)
    else:
        _block_matrix(fig, axes["whole"], table, whose)
        _right_strip(axes["strip"], table)
    pairs = _confused(table)
    if pairs:
        _confused_classes(axes["classes"], table, names, pairs, whose)
        _confused_pairs(axes["pairs"], table, names, pairs[:CONFUSED])
    else:
        axes["classes"].text(0.5, 0.5, "no clip is confused", ha="center", size=16, color=GREY)
        axes["classes"].axis("off")
        axes["pairs"].axis("off")
    return fig


def _confused(table: NDArray[np.int64]) -> list[tuple[int, int]]:
    """All pairs (true, predicted) that differ and occur, by count, then by share of the true class."""
    rows, columns = np.nonzero(table - np.diag(np.diag(table)))
    counts = table[rows, columns]
    order = np.lexsort((columns, rows, -counts / table.sum(axis=1)[rows], -counts))
    return [(int(rows[i]), int(columns[i])) for i in order]


def _confused_classes(ax: Any, table: NDArray[np.int64], names: list[str], pairs: list[tuple[int, int]],
                      whose: str) -> None:
    """The classes of the first pairs, the two of a pair side by side, and what went to all the others."""
    chosen = list(dict.fromkeys(c for pair in pairs for c in pair))[:CONFUSED]
    inside, support = table[np.ix_(chosen, chosen)], table[chosen].sum(axis=1)
    counts = np.column_stack([inside, support - inside.sum(axis=1)])
    some = [names[c] for c in chosen]
    _cells(ax, counts, support, some, [*some, "all others"])
    ax.axvline(len(chosen), color=GREY, lw=1.5)
    ax.set_title(f"The {len(chosen)} {whose} confused most (clips; colour: share of the row)", loc="left",
                 size=14)


def _confused_pairs(ax: Any, table: NDArray[np.int64], names: list[str],
                    pairs: list[tuple[int, int]]) -> None:
    counts = [int(table[pair]) for pair in pairs]
    ax.barh(range(len(pairs)), counts, height=0.7, color=BLUE, alpha=0.8)
    for place, (count, (true, _)) in enumerate(zip(counts, pairs, strict=True)):
        ax.text(count + 0.01 * max(counts), place, f"{count} of {table[true].sum()}", va="center", size=9.5,
                color=GREY)
    ax.set_yticks(range(len(pairs)), [f"{names[a]} → {names[b]}" for a, b in pairs], size=9.5)
    ax.set(xlim=(0, 1.12 * max(counts)), ylim=(CONFUSED - 0.5, -0.5), xticks=())
    ax.tick_params(length=0)
    ax.spines["bottom"].set_visible(False)
    ax.set_title("The pairs confused most (true → predicted, clips)", loc="left", size=14)


def _cells(ax: Any, counts: NDArray[np.int64], support: NDArray[np.int64], rows: list[str],
           columns: list[str], bar: bool = False, size: float = 9.5) -> None:
    """Annotated cells, coloured by their share of the row; cells of no clip stay empty."""
    import seaborn as sns

    share = counts / np.maximum(support, 1)[:, None]
    text = np.where(counts > 0, counts.astype(str), "")
    # seaborn draws the whole figure to see whether its own tick labels would overlap: ours come after it
    sns.heatmap(share, ax=ax, vmin=0, vmax=1, cmap=_ramp(), annot=text, fmt="", annot_kws={"size": size},
                linewidths=0.6, linecolor=LIGHT, xticklabels=False, yticklabels=False, cbar=bar,
                cbar_kws=_bar("share of the row") if bar else None)
    _label_cells(ax, [f"{name}  ({n})" for name, n in zip(rows, support, strict=True)], columns, size)


def _labelled_matrix(ax: Any, table: NDArray[np.int64], names: list[str], whose: str) -> None:
    support, numbered = table.sum(axis=1), len(names) <= NUMBERED
    if numbered:
        _cells(ax, table, support, names, names)
    else:
        ax.pcolormesh(table / np.maximum(support, 1)[:, None], cmap=_ramp(), vmin=0, vmax=1)
        ax.set(xlim=(0, len(names)), ylim=(len(names), 0))
        for line in range(5, len(names), 5):
            ax.axhline(line, color=LIGHT, lw=0.7)
            ax.axvline(line, color=LIGHT, lw=0.7)
        _label_cells(ax, names, names, 8)
    what = "clips; colour: share of the row" if numbered else "colour: share of the row"
    ax.set_title(f"All {len(names)} {whose} ({what})", loc="left", size=14)


def _label_cells(ax: Any, rows: list[str], columns: list[str], size: float) -> None:
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90, size=size)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, rotation=0, size=size)
    ax.tick_params(length=0)
    _frame(ax)


def _blocks(n: int) -> NDArray[np.int64]:
    """The first class of each block, at most 250 blocks."""
    return np.arange(0, n, math.ceil(n / 250))


def _block_matrix(fig: Any, ax: Any, table: NDArray[np.int64], whose: str) -> None:
    """Clips summed over blocks of classes, on a logarithmic scale."""
    from matplotlib.colors import LogNorm

    n, starts = len(table), _blocks(len(table))
    blocks = np.add.reduceat(np.add.reduceat(table, starts, axis=0), starts, axis=1)
    most, size = max(2, int(blocks.max())), math.ceil(n / 250)
    edges = np.append(starts, n)
    image = ax.pcolormesh(edges, edges, np.ma.masked_equal(blocks, 0), cmap=_ramp(0.25),
                          norm=LogNorm(1, most))
    bar = fig.colorbar(image, ax=ax, location="bottom", **_bar(
        f"clips in a block of {size} x {size} {whose}" if size > 1 else "clips"))
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10000) if t <= most]
    bar.set_ticks(ticks, labels=[str(t) for t in ticks])
    bar.ax.minorticks_off()
    ax.set(ylim=(n, 0), xlabel="predicted (label number)", ylabel="true (label number)")
    ax.set_title(f"All {n:,} {whose}", loc="left", size=14)
    _frame(ax)


def _right_strip(ax: Any, table: NDArray[np.int64]) -> None:
    """The share that is right in each block of true classes; the line is the share of all clips."""
    n, starts = len(table), _blocks(len(table))
    right, support = (np.add.reduceat(x, starts) for x in (np.diag(table), table.sum(axis=1)))
    ax.barh(starts, right / np.maximum(support, 1), height=np.diff(np.append(starts, n)), align="edge",
            color=BLUE, alpha=0.75)
    ax.axvline(right.sum() / support.sum(), color=ORANGE, lw=2)
    ax.set(xlim=(0, 1), ylim=(n, 0), yticks=())
    ax.set_xticks((0, 0.5, 1), ("0", "50", "100"), size=8)
    ax.set_title("% right", loc="left")
    _frame(ax)


# --- per-class scores ---------------------------------------------------------------------------------------


def per_class_bars(report: Mapping[str, Any], classes: Sequence[str], path: Path | str,
                   title: str = "") -> Path:
    """Precision, recall and F1 of each class, best F1 first; `report` as metrics.topk.per_class gives it.

    Above MANY classes: the sorted curves, and by name the BEST and the WORST. Classes without a clip are left
    out.
    """
    with _style():
        names, scores, support, note = _scores(report, classes)
        if not names:
            return _nothing(path, title, "no sign has a clip")
        if len(names) <= MANY:
            order = np.lexsort((-scores[:, 1], -support, -scores[:, 2]))
            fig = _bar_columns([names[i] for i in order], scores[order])
        else:
            fig = _bar_overview(names, scores, support)
        below = (1, 1 - 0.27 / fig.get_figheight())  # the title, which may be as wide as the picture
        legend = fig.legend(*fig.axes[-1].get_legend_handles_labels(), loc="upper right", ncols=3, bbox_to_anchor=below)
        legend.set_in_layout(False)
        return _save(fig, path, title, note)


def _scores(report: Mapping[str, Any],
            classes: Sequence[str]) -> tuple[list[str], Floats, NDArray[np.int64], str]:
    """Of the C classes that have clips: names, scores (C, 3), clips (C,); and the line under the title."""
    support = np.asarray(report["support"], dtype=np.int64).reshape(len(classes))
    present = np.flatnonzero(support)
    scores = np.array([report[m] for m in METRICS], dtype=np.float64).reshape(3, len(classes)).T[present]
    names = _names(classes)
    note = f"{len(present):,} signs, signed {support.sum():,} times (in brackets)"
    if len(present):
        note += f"   macro F1 {_share(scores[:, 2].mean())}"
    if len(present) < len(classes):
        note += f"   left out, having no clip: {len(classes) - len(present):,}"
    return [f"{names[i]}  ({support[i]})" for i in present], scores, support[present], note


def _extremes(scores: Floats, support: NDArray[np.int64]) -> list[tuple[str, NDArray[np.int64]]]:
    """The BEST and WORST classes by F1 in columns; of equal ones first those with more clips."""
    best, worst = np.lexsort((-support, -scores[:, 2])), np.lexsort((-support, scores[:, 2]))
    half = WORST // 2
    return [(f"The {BEST} best", best[:BEST]), (f"The {WORST} worst: 1 to {half}", worst[:half]),
            (f"{half + 1} to {WORST}", worst[half:WORST])]


def _bar_columns(names: list[str], scores: Floats) -> Any:
    columns = math.ceil(len(names) / 50)
    rows = math.ceil(len(names) / columns)
    fig = _figure(max(7.5, 4.8 * columns), 1.3 + max(4, rows) * (0.34 if len(names) <= FEW else 0.27))
    for i, ax in enumerate(np.atleast_1d(fig.subplots(1, columns))):
        _bars(ax, names[i * rows:(i + 1) * rows], scores[i * rows:(i + 1) * rows], rows)
    return fig


def _bars(ax: Any, names: list[str], scores: Floats, rows: int) -> None:
    """One row a class, three bars a row; `rows` is the room, so that columns of a figure match."""
    y = np.arange(len(names))
    for i, metric in enumerate(METRICS):
        ax.barh(y + (i - 1) * 0.26, scores[:, i], height=0.26, color=COLOURS[metric], label=_word(metric))
    for line in y[1::2]:
        ax.axhspan(line - 0.5, line + 0.5, color="#f4f4f4", lw=0, zorder=0)
    for line in y[~scores.any(axis=1)]:
        ax.text(0.012, line, "0", va="center", size=9, color=GREY)
    ax.set(xlim=(0, 1), ylim=(rows - 0.5, -0.5))
    ax.set_yticks(y, names, size=9)
    _percent(ax.xaxis)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=LIGHT, lw=0.8)
    ax.set_axisbelow(True)


def _bar_overview(names: list[str], scores: Floats, support: NDArray[np.int64]) -> Any:
    fig = _figure(17, 13.5)
    axes = fig.subplot_mosaic([["curve"] * 3, [0, 1, 2]], height_ratios=(5, 8))
    _sorted_curves(axes.pop("curve"), scores)
    for ax, (head, some) in zip(axes.values(), _extremes(scores, support), strict=True):
        _bars(ax, [names[i] for i in some], scores[some], max(BEST, WORST // 2))
        ax.set_title(head, loc="left")
    return fig


def _sorted_curves(ax: Any, scores: Floats) -> None:
    """Each metric sorted by itself: read off how many classes reach a value."""
    for i, metric in enumerate(METRICS):
        ax.plot(np.arange(1, len(scores) + 1), np.sort(scores[:, i])[::-1], color=COLOURS[metric], lw=2.2)
    ax.fill_between(np.arange(1, len(scores) + 1), np.sort(scores[:, 2])[::-1], color=GREEN, alpha=0.10)
    none = int((scores[:, 2] == 0).sum())
    ax.set(xlim=(1, len(scores)), ylim=(0, 1.02), xlabel="signs, each score sorted by itself")
    _percent(ax.yaxis)
    ax.grid(color=LIGHT, lw=0.8)
    ax.set_title(f"How many signs reach which score   ({none:,} signs have F1 0)", loc="left")


def per_class_heatmap(report: Mapping[str, Any], classes: Sequence[str], path: Path | str,
                      title: str = "") -> Path:
    """Precision, recall and F1 in per cent of each class, in the order of the labels, to look a class up.

    Above MANY classes: one small cell a class at its label number, and by name the BEST and the WORST.
    """
    with _style():
        names, scores, support, note = _scores(report, classes)
        if not names:
            return _nothing(path, title, "no sign has a clip")
        if len(names) <= MANY:
            fig = _heat_columns(names, scores)
        else:
            fig = _heat_overview(report, names, scores, support)
        return _save(fig, path, title, note)


def _heat_columns(names: list[str], scores: Floats) -> Any:
    columns = math.ceil(len(names) / 34)
    rows = math.ceil(len(names) / columns)
    fig = _figure(max(5.8, 3.6 * columns + 1), 1.3 + 0.26 * max(rows, 6))
    axes = np.atleast_1d(fig.subplots(1, columns))
    for i, ax in enumerate(axes):
        _heat(ax, names[i * rows:(i + 1) * rows], scores[i * rows:(i + 1) * rows], rows)
    fig.colorbar(axes[-1].collections[0], ax=axes.tolist(), **_bar("per cent", fraction=0.06))
    return fig


def _heat(ax: Any, names: list[str], scores: Floats, rows: int) -> None:
    import seaborn as sns

    sns.heatmap(100 * scores, ax=ax, vmin=0, vmax=100, cmap="viridis", annot=True, fmt=".0f", cbar=False,
                xticklabels=False, yticklabels=False, linewidths=0.6, linecolor="white",
                annot_kws={"size": 8.5})
    ax.set_ylim(rows, 0)
    ax.set_xticks(np.arange(3) + 0.5, [_word(m) for m in METRICS], size=9)
    ax.set_yticks(np.arange(len(names)) + 0.5, names, rotation=0, size=9)
    ax.tick_params(length=0)
    ax.xaxis.tick_top()


def _heat_overview(report: Mapping[str, Any], names: list[str], scores: Floats,
                   support: NDArray[np.int64]) -> Any:
    present = np.asarray(report["support"]) > 0
    fig = _figure(20, 13)
    axes = fig.subplot_mosaic([list(METRICS), [0, 1, 2]], height_ratios=(1, 1.1))
    for metric in METRICS:
        image = _class_grid(axes[metric], np.where(present, report[metric], np.nan))
        axes[metric].set_title(f"{_word(metric)}: one cell a sign, at its label number", loc="left")
    fig.colorbar(image, ax=[axes[metric] for metric in METRICS], **_bar("per cent", fraction=0.03))
    for i, (head, some) in enumerate(_extremes(scores, support)):
        _heat(axes[i], [names[j] for j in some], scores[some], max(BEST, WORST // 2))
        axes[i].set_title(head, loc="left")
    return fig


def _class_grid(ax: Any, values: Floats) -> Any:
    """K values, NaN = none, in rows of 50 (or 25) cells; a label number is the row's plus the column's."""
    wide = 50 if len(values) > 600 else 25
    grid = np.full((math.ceil(len(values) / wide), wide), np.nan)
    grid.ravel()[:len(values)] = 100 * values
    image = ax.imshow(np.ma.masked_invalid(grid), cmap="viridis", vmin=0, vmax=100, aspect="auto",
                      interpolation="nearest", extent=(0, wide, len(grid), 0))
    for line in range(1, wide):
        ax.axvline(line, color="white", lw=0.5)
    for line in range(1, len(grid)):
        ax.axhline(line, color="white", lw=0.5)
    ax.set_xticks(np.arange(0, wide, 5) + 0.5, [f"+{c}" for c in range(0, wide, 5)], size=8)
    rows = np.arange(0, len(grid), math.ceil(len(grid) / 24))
    ax.set_yticks(rows + 0.5, [str(r * wide) for r in rows], size=8)
    ax.tick_params(length=0)
    return image


# --- heads --------------------------------------------------------------------------------------------------


def per_head(found: Mapping[str, Any], path: Path | str, title: str = "") -> Path:
    """Macro-F1 and accuracy of each head, under each a thin bar: always the most frequent label. `found` as
    metrics.heads.score gives it; its "intervals" (as metrics.heads.intervals gives them), if there, are drawn."""
    rows, most = found["heads"], found["majority"]
    with _style():
        fig = _figure(10.5, 1.9 + 0.72 * max(3, len(rows)))
        _head_bars(fig.subplots(), rows, (found.get("intervals") or {}).get("heads") or {})
        fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=4)
        note = (f"{found['clips']:,} clips   mean macro F1 {_share(found['mean_macro_f1'])} (most frequent label "
                f"{_share(most['mean_macro_f1'])})   all labels right {_share(found['exact_match'])} "
                f"({_share(most['exact_match'])})")
        return _save(fig, path, title, note)


def confusion_matrices(tables: Mapping[str, tuple[Sequence[str], ArrayLike]], path: Path | str,
                       title: str = "") -> Path:
    """All heads' matrices in one picture: {head: (names of its classes, counts (K, K) as in `confusion_matrix`)}."""
    if not tables:
        return _nothing(path, title, "no clip was tested")
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    with _style():
        fig = _figure(4.6 * columns, 4.6 * rows + 0.8)
        panels = list(fig.subplots(rows, columns, squeeze=False).flat)
        for ax in panels[len(tables):]:
            ax.axis("off")
        for ax, (head, (names, matrix)) in zip(panels, tables.items(), strict=False):
            table = np.asarray(matrix, dtype=np.int64).reshape(len(names), len(names))
            shown = _names(names)
            _cells(ax, table, table.sum(axis=1), shown, shown, size=min(9.5, 100 / max(len(shown), 1)))
            ax.set_title(f"{_clean(head)}: {_share(np.trace(table) / max(table.sum(), 1))} right", loc="left")
        return _save(fig, path, title, "colour: share of the row   rows: true   columns: predicted")


def _head_bars(ax: Any, rows: Mapping[str, Any], spans: Mapping[str, Any]) -> None:
    """Four bars a head: each score, and thin below it the baseline's."""
    names, y = list(rows), np.arange(len(rows))
    scores = (("macro_f1", "macro F1", BLUE, -0.2), ("accuracy", "accuracy", ORANGE, 0.2))
    for key, word, colour, shift in scores:
        own, base = (np.array([row[key] for row in some]) for some in (
            rows.values(), [row["majority"] for row in rows.values()]))
        ax.barh(y + shift - 0.05, own, height=0.22, color=colour, label=word)
        ax.barh(y + shift + 0.12, base, height=0.1, color=_paler(colour), label=f"{word} of always the most frequent")
        ends = own.copy()
        for place, head in enumerate(names):
            if span := (spans.get(head) or {}).get(key):
                ax.hlines(place + shift - 0.05, *span, color=INK, lw=1.1)
                ends[place] = max(own[place], span[1])
            ax.text(ends[place] + 0.008, place + shift - 0.045, f"{100 * own[place]:.1f}", va="center", size=8.5,
                    color=INK)
    for line in y[1::2]:
        ax.axhspan(line - 0.5, line + 0.5, color="#f4f4f4", lw=0, zorder=0)
    ax.set(xlim=(0, 1.06), ylim=(len(names) - 0.5, -0.5))
    ax.set_yticks(y, [f"{_clean(head)}\n{row['classes_present']} of {row['classes']} labels, {row['clips']:,} clips"
                      for head, row in rows.items()], size=9)
    _percent(ax.xaxis)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=LIGHT, lw=0.8)
    ax.set_axisbelow(True)


# --- training curves ----------------------------------------------------------------------------------------


def curves(log: Sequence[Mapping[str, Any]], path: Path | str, title: str = "",
           best: int | None = None) -> Path:
    """Every metric of log.jsonl over the epochs, one panel each, then the learning rates.

    A row is {"epoch": 1, "train": {"loss": .., "acc": ..}, "val": {..} or None, "lr": {"backbone": ..},
    "seconds": ..}; rows without an epoch are left out, of two rows of one epoch (a resumed run) the later
    counts, and what is missing or not finite is a gap. `best` is the epoch to mark: by default that of the
    lowest validation loss, without one the last.
    """
    latest = {row["epoch"]: row for row in log if "epoch" in row}
    rows = [latest[epoch] for epoch in sorted(latest)]
    if not rows:
        return _nothing(path, title, "no epoch is finished")
    best, why = _best_epoch(rows) if best is None else (best, "the best")
    panels = [*_metric_names(rows), *(["lr"] if any(row.get("lr") for row in rows) else [])]
    with _style():
        wide = min(3, len(panels))
        high = math.ceil(len(panels) / wide)
        fig = _figure(max(6.0, 5.4 * wide), 1.0 + 3.7 * high)
        axes = fig.subplots(high, wide, squeeze=False).ravel()
        for ax, name in zip(axes, panels, strict=False):
            _curve_panel(ax, rows, name, best)
        for ax in axes[len(panels):]:
            ax.axis("off")
        return _save(fig, path, title, _curve_note(rows, f"epoch {best}, {why}"))


def _metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those with a finite value: loss, accuracy, then the others as they come; at least the loss."""
    parts = [row.get(part) or {} for row in rows for part in ("train", "val")]
    names = dict.fromkeys(name for part in parts for name in part if math.isfinite(_number(part[name])))
    return [*(name for name in ("loss", "acc") if name in names),
            *(name for name in names if name not in ("loss", "acc"))] or ["loss"]


def _best_epoch(rows: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    losses = {row["epoch"]: _number((row.get("val") or {}).get("loss")) for row in rows}
    finite = {epoch: loss for epoch, loss in losses.items() if math.isfinite(loss)}
    if finite:
        return min(finite, key=lambda epoch: finite[epoch]), "the lowest validation loss"
    return rows[-1]["epoch"], "the last"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _curve_note(rows: Sequence[Mapping[str, Any]], marked: str) -> str:
    seconds = [s for row in rows if math.isfinite(s := _number(row.get("seconds")))]
    pace = f"   {np.median(seconds):.3g} s an epoch" if seconds else ""
    return f"{len(rows)} epoch{'s' * (len(rows) > 1)}{pace}   marked: {marked}"


def _curve_panel(ax: Any, rows: Sequence[Mapping[str, Any]], name: str, best: int) -> None:
    """One metric, train and val, or for "lr" every parameter group."""
    rates = name == "lr"
    parts = list(dict.fromkeys(g for row in rows for g in row.get("lr") or ())) if rates else ["train", "val"]
    epochs, drawn = [row["epoch"] for row in rows], []
    for i, part in enumerate(parts):
        values = np.array([_number((row.get("lr" if rates else part) or {}).get(part if rates else name))
                           for row in rows])
        if np.isfinite(values).any():
            drawn.append(values)
            colour, dash = LINES[i % len(LINES)]  # dashes, since learning rates often lie upon one another
            ax.plot(epochs, values, color=colour, ls=dash if rates else "-", lw=2, label=part,
                    marker="o" if len(rows) <= 40 else "", ms=4, mec=colour)
            at_best = values[np.array(epochs) == best]
            ax.plot([best] * len(at_best), at_best, "o", ms=9, mfc="none", mec=colour, mew=1.8)
    _curve_axes(ax, epochs, name, best, np.array(drawn))


def _curve_axes(ax: Any, epochs: list[int], name: str, best: int, values: Floats) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.axvline(best, color=GREY, ls=":", lw=1.4, zorder=0)
    margin = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
    ax.set(xlabel="epoch", xlim=(epochs[0] - margin, epochs[-1] + margin))
    ax.set_title(_word(name), loc="left")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    ax.grid(color=LIGHT, lw=0.8)
    if name == "lr" and values.size and np.nanmin(values) > 0 and np.nanmax(values) > 5 * np.nanmin(values):
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(_minor_rate)
    if name == "lr":
        ax.yaxis.set_major_formatter(_rate)
    if values.size:
        ax.legend(frameon=True, framealpha=0.85, edgecolor="none")


def _rate(value: float, _position: int | None = None) -> str:
    """2.5e-4 rather than 0.00025."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def _minor_rate(value: float, _position: int | None = None) -> str:
    """Between the powers of ten only 2 and 5, which leave room for each other."""
    return _rate(value) if _rate(value)[0] in "25" else ""


# --- signers ------------------------------------------------------------------------------------------------


def per_signer(acc: Mapping[str, Mapping[str, Any]], path: Path | str, title: str = "",
               most: int = 120) -> Path:
    """Top-1 accuracy, interval and correct/clips of each signer, as metrics.topk.per_signer gives it.

    Of more than `most` signers those with most clips.
    """
    if not acc:
        return _nothing(path, title, "no signer is known")
    chosen = set(sorted(acc, key=lambda name: -acc[name]["clips"])[:most])
    shown = [name for name in acc if name in chosen]
    mean = sum(row["correct"] for row in acc.values()) / sum(row["clips"] for row in acc.values())
    with _style():
        columns = math.ceil(len(shown) / 40)
        rows = math.ceil(len(shown) / columns)
        fig = _figure(max(6.5, 4.8 * columns), 1.4 + 0.3 * max(rows, 3))
        for i, ax in enumerate(np.atleast_1d(fig.subplots(1, columns))):
            _signer_bars(ax, {name: acc[name] for name in shown[i * rows:(i + 1) * rows]}, rows, mean)
        note = f"top-1, correct/clips, intervals; line: all clips, {_share(mean)}"
        if len(shown) < len(acc):
            note += f"   the {len(shown)} of {len(acc)} signers with most clips"
        return _save(fig, path, title, note)


def _signer_bars(ax: Any, acc: Mapping[str, Mapping[str, Any]], rows: int, mean: float) -> None:
    y, values = np.arange(len(acc)), np.array([row["acc"] for row in acc.values()])
    low, high = np.array([row["interval"] for row in acc.values()]).T
    ax.barh(y, values, height=0.7, color=BLUE, alpha=0.8)
    ax.hlines(y, low, high, color=INK, lw=1.3)
    ax.axvline(mean, color=ORANGE, lw=1.8)
    for place, row in zip(y, acc.values(), strict=True):
        ax.text(1.02, place, f"{row['correct']}/{row['clips']}", va="center", size=9, color=GREY)
    ax.set(xlim=(0, 1), ylim=(rows - 0.5, -0.5))
    ax.set_yticks(y, _names([f"signer {name}" if name.isdigit() else name for name in acc]), size=9)
    ax.tick_params(axis="y", length=0)
    _percent(ax.xaxis)


# --- display ------------------------------------------------------------------------------------------------


def show(paths: Sequence[Path | str]) -> bool:
    """Open pictures in the desktop's viewer; where there is none, print a line that says where they are."""
    opener, lack = _opener()
    where = ", ".join(str(path) for path in paths)
    if not opener:
        print(f"{lack}: nothing is shown; the pictures are {where}")
        return False
    for path in paths:
        subprocess.Popen([opener, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return True


def _opener() -> tuple[str, str]:
    """(program, "") or ("", what is lacking)."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not screen:
        return "", "no display"
    name = {"darwin": "open", "win32": "explorer"}.get(sys.platform, "xdg-open")
    return (name, "") if shutil.which(name) else ("", f"no {name} to open pictures with")


# --- small parts --------------------------------------------------------------------------------------------


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    # As seaborn's "ticks", which would take seconds to import for a curve.
    look: Any = {"axes.labelcolor": ".15", "text.color": ".15", "axes.axisbelow": True, "grid.color": ".8",
                 "lines.solid_capstyle": "round", "patch.edgecolor": "w", "patch.force_edgecolor": True,
                 "font.family": _families(), "text.parse_math": False, "font.size": 10,
                 "axes.titlesize": 11.5, "axes.spines.top": False, "axes.spines.right": False,
                 "axes.edgecolor": GREY, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False}
    with matplotlib.rc_context(look):
        yield


def _figure(width: float, height: float) -> Any:
    """A figure outside pyplot: no window, no global list, safe in threads; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _save(fig: Any, path: Path | str, title: str = "", note: str = "") -> Path:
    """The figure with a title and a note above it."""
    width, height = fig.get_size_inches()
    large = min(1.7, max(1.0, width / 14))  # a large sheet is looked at from further away
    look = {"va": "top", "in_layout": False}
    fig.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.62 * large / height), w_pad=0.12, h_pad=0.12)
    fig.text(0.15 / width, 1 - 0.12 * large / height, _clean(title), size=14 * large, weight="bold", **look)
    fig.text(0.15 / width, 1 - 0.42 * large / height, note, size=9.5 * large, color=GREY, **look)
    return write(fig, path)


def write(fig: Any, path: Path | str, dpi: int = DPI) -> Path:
    """A figure as png, written aside and renamed: a picture is whole or not there."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        fig.savefig(aside, format="png", dpi=dpi)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def _nothing(path: Path | str, title: str, why: str) -> Path:
    with _style():
        fig = _figure(6, 2.4)
        fig.text(0.5, 0.4, why, ha="center", size=13, color=GREY)
        return _save(fig, path, title)


def _ramp(start: float = 0.0) -> Any:
    """White to dark blue-green; `start` > 0 leaves out the palest, for counts of which 1 must be seen."""
    import seaborn as sns
    from matplotlib.colors import LinearSegmentedColormap

    colours = sns.color_palette("mako_r", as_cmap=True)(np.linspace(start, 0.85, 256))
    if not start:
        colours[:32] = np.linspace((1, 1, 1, 1), colours[32], 32)
    return LinearSegmentedColormap.from_list("ramp", colours)


def _bar(label: str, fraction: float = 0.04) -> dict[str, Any]:
    return {"label": label, "shrink": 0.6, "fraction": fraction, "pad": 0.02, "aspect": 30}


def _inches(names: Sequence[str], size: float) -> float:
    """About as long as the longest of `names` is in DejaVu Sans of `size` points."""
    return max(map(len, names)) * size * 0.6 / 72


def _frame(ax: Any) -> None:
    for spine in ax.spines.values():
        spine.set(visible=True, color=GREY, linewidth=0.8)


def _paler(colour: str) -> Any:
    """Half way to white, and opaque."""
    from matplotlib.colors import to_rgb

    return tuple(0.45 * part + 0.55 for part in to_rgb(colour))


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _percent(axis: Any) -> None:
    axis.set_ticks(np.linspace(0, 1, 5), labels=["0", "25", "50", "75", "100 %"])


def _word(name: str) -> str:
    return WORDS.get(name, _clean(name))


def _names(classes: Sequence[str]) -> list[str]:
    """Names that fit and can be drawn: cut at NAME characters; "class 12" where no font has any glyph."""
    drawn = [_clean(str(name)) for name in classes]
    cut = [name if len(name) <= NAME else name[:NAME - 1].rstrip() + "…" for name in drawn]
    return [name if set(name) - {"□", " "} else f"class {i}" for i, name in enumerate(cut)]


def _clean(text: str) -> str:
    """One line, composed characters, "□" for each that no installed font has."""
    known = _glyphs()
    words = " ".join(unicodedata.normalize("NFC", text).split())
    return "".join(c if ord(c) in known else "□" for c in words)


@lru_cache(maxsize=1)
def _families() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(code for family in _families() for code in get_font(findfont(family)).get_charmap())
