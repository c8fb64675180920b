"""How often every symbol of an annotation occurs: a picture of each head, all of them at a glance, and the counts.

    print(draw_statistics(Path("data/HEARAI/pjm/test_hamnosys.txt"), Path("statistics")))

Writes <head>.png for every head, overview.png, counts.csv, and statistics.json, by which it knows its own files again:
what is there and is not listed in it is never written over. Up to NAMED classes each has a bar with its name and count;
above, the most frequent are named, and the others are seen by rank.
"""

import csv
import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slr.datasets import hearai
from slr.datasets.files import put
from slr.datasets.pictures import NAMED, save
from slr.errors import Mistake
from slr.hamnosys import COLUMNS, DISTANCE, GLOSS, HEADS
from slr.paths import shown

MOST = 20_000  # classes that are counted whether or not they occur
TOP = 30  # classes that are named where there are too many
BAR, REST = "#4c72b0", "#c9c9c9"
OPEN = {DISTANCE: hearai.ANY_GLOSS, GLOSS: hearai.ANY_GLOSS}  # heads whose classes the file itself tells
MANIFEST = "statistics.json"


@dataclass(frozen=True)
class Head:
    """How often each class of a head occurs, and what the classes are called (their number, where nothing says)."""

    name: str
    counts: np.ndarray  # int64 (classes,)
    names: list[str]
    missing: int  # rows without a label

    @property
    def title(self) -> str:
        unseen = int((self.counts == 0).sum())
        parts = [f"{self.counts.sum():,} labels", f"{len(self.counts):,} classes",
                 f"{unseen:,} never occur" * bool(unseen), f"{self.missing:,} rows without" * bool(self.missing)]
        return f"{self.name.replace('_', ' ')}: {', '.join(filter(None, parts))}"


def draw_statistics(annotations: Path, output: Path, separator: str | None = None) -> str:
    """Draw everything into the folder `output`; the counts, for a person to read.

    Raises:
        Mistake: the annotation is wrong, or `output` holds files of these names that are none of this function's.
    """
    rows, notices = hearai.read_annotations(annotations, _heads_of(annotations, separator), separator)
    heads = count(rows, names_beside(annotations))
    if output.exists() and not output.is_dir():
        raise Mistake("OUTPUT_DIR is no folder", f"{shown(output)} is a file", "give a folder, or a name for a new one")
    lengths = [row.end - row.start + 1 for row in rows]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for head in heads:
            picture(head, folder / f"{head.name}.png", annotations.name)
        overview(heads, lengths, folder / "overview.png", annotations.name)
        (folder / "counts.csv").write_text(as_csv(heads), encoding="utf-8")
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    _write(files, output)
    notices = [notice for notice in notices if "has no column for" not in notice]  # every head was asked for
    return "\n".join([*(f"notice: {notice}" for notice in notices), as_text(heads, rows),
                      f"{shown(output)}: {', '.join([*files, MANIFEST])}"])


def _heads_of(file: Path, separator: str | None) -> dict[str, int]:
    """What to ask the file for: every head, or, of rows with one label and no header that says which, the gloss."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        lines = []  # the reader says what is wrong
    first, last = (lines[at].split(separator) if lines else [] for at in (0, -1))
    headed = {"name", "start", "end"} <= {name.strip(' "').casefold() for name in first} and len(first) > 3
    return HEADS | OPEN if headed else {GLOSS: OPEN[GLOSS]} if len(last) == 4 else HEADS | {DISTANCE: OPEN[DISTANCE]}


def names_beside(annotations: Path) -> dict[str, dict[int, str]]:
    """{head: {class: name}}, from symbols.json and, of glosses, dictionary.csv, where they are."""
    names: dict[str, dict[int, str]] = {}
    if dictionary := hearai.find_beside(annotations.parent, hearai.DICTIONARY):
        names[GLOSS] = {gloss: name for gloss, (name, _) in hearai.read_dictionary(dictionary).items()}
    if symbols := hearai.find_beside(annotations.parent, hearai.SYMBOLS):
        names |= {head: dict(enumerate(words)) for head, words in hearai.read_symbols(symbols).items()}
    return names


def count(rows: Sequence[hearai.Row], names: Mapping[str, Mapping[int, str]]) -> list[Head]:
    """The heads that any row labels, in the annotation's order."""
    found = []
    for name in (*COLUMNS, GLOSS):
        labels = Counter(row.labels[name] for row in rows if name in row.labels)
        if labels:
            known = names.get(name, {})
            top = HEADS.get(name) or max([*labels, *known]) + 1
            classes = range(top) if top <= MOST else sorted({*labels, *known})  # numbers of glosses may be any
            counts = np.array([labels[label] for label in classes], np.int64)
            called = [f"{label} {known[label]}" if label in known else str(label) for label in classes]
            found.append(Head(name, counts, called, len(rows) - int(counts.sum())))
    if not found:
        raise Mistake("the annotation has no labels", f"{len(rows)} rows, all of them missing", "name another file")
    return found


# --- pictures -----------------------------------------------------------------------------------------------

def picture(head: Head, path: Path, source: str) -> None:
    """One head: a bar a class; of many classes the most frequent, all by rank, and how many occur how often."""
    if len(head.counts) <= NAMED:
        figure = Figure(figsize=(10, 1.3 + 0.27 * max(len(head.counts), 4)), layout="constrained")
        _bars(figure.subplots(), head.counts, head.names)
    else:
        figure = Figure(figsize=(15, 9), layout="constrained")
        axes = figure.subplot_mosaic([["top", "rank"], ["top", "often"]], width_ratios=(1, 1.3))
        order = np.argsort(-head.counts, kind="stable")[:TOP]
        _bars(axes["top"], head.counts[order], [head.names[i] for i in order])
        axes["top"].set_title(f"the {len(order)} most frequent", loc="left", fontsize=10)
        _ranked(axes["rank"], head.counts)
        _often(axes["often"], head.counts)
    figure.suptitle(f"{head.title}\n{source}", fontsize=11, parse_math=False)
    save(figure, path)


def _bars(axes: Axes, counts: np.ndarray, names: Sequence[str]) -> None:
    """Lying bars, each with its name and count, from top to bottom."""
    places = np.arange(len(counts))
    drawn = axes.barh(places, counts, 0.75, color=BAR)
    axes.bar_label(drawn, [f"{n:,}" for n in counts], padding=3, fontsize=8, color="#303030")
    axes.set_yticks(places, [name[:32] for name in names], fontsize=8, parse_math=False)
    axes.set(xlabel="signs", ylim=(max(len(counts), 4) - 0.4, -0.6))
    axes.set_xlim(0, max(1.1 * float(counts.max()), 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def _ranked(axes: Axes, counts: np.ndarray) -> None:
    """One outline: thousands of bars take seconds to draw, and none of them is seen."""
    falling = np.sort(counts)[::-1]
    axes.fill_between(np.arange(len(falling) + 1) + 0.5, np.append(falling, falling[-1]), step="post", color=BAR)
    axes.set(xlim=(0.5, len(falling) + 0.5), ylim=(0, None), xlabel="class, by rank", ylabel="signs")
    axes.set_title("all classes", loc="left", fontsize=10)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _often(axes: Axes, counts: np.ndarray) -> None:
    """How many classes occur never, once, twice, …; from the tenth bar on in doubling ranges."""
    edges = [*range(10), 10]
    while edges[-1] <= counts.max():
        edges.append(2 * edges[-1])
    table = np.histogram(counts, edges)[0]
    labels = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in zip(edges, edges[1:], strict=False)]
    last = int(np.flatnonzero(table)[-1]) + 1
    drawn = axes.bar(np.arange(last), table[:last], 0.8, color=BAR)
    axes.bar_label(drawn, [f"{n:,}" if n else "" for n in table[:last]], fontsize=8)
    axes.set_xticks(np.arange(last), labels[:last], fontsize=8)
    axes.set(xlabel="signs of a class", ylabel="classes", xlim=(-0.6, max(last, 6) - 0.4))
    axes.set_title("how many classes have how many signs", loc="left", fontsize=10)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)


def overview(heads: Sequence[Head], lengths: Sequence[int], path: Path, source: str) -> None:
    """All heads, a small panel each, and how long the signs are."""
    columns = min(3, len(heads) + 1)
    rows = -(-(len(heads) + 1) // columns)
    figure = Figure(figsize=(5.6 * columns, 3.1 * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, head in zip(panels, heads, strict=False):
        _small(axes, head)
    _lengths(panels[len(heads)], lengths)
    for axes in panels[len(heads) + 1:]:
        axes.set_visible(False)
    figure.suptitle(f"{source}: {len(lengths):,} signs", parse_math=False)
    save(figure, path)


def _small(axes: Axes, head: Head) -> None:
    if len(head.counts) > NAMED:
        _ranked(axes, head.counts)
    else:
        axes.bar(np.arange(len(head.counts)), head.counts, 0.8, color=[BAR if n else REST for n in head.counts])
        axes.set(xlabel="class", ylabel="signs", xlim=(-0.6, max(len(head.counts), 4) - 0.4))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    top = int(head.counts.argmax())
    share = head.counts[top] / head.counts.sum()
    axes.set_title(f"{head.name.replace('_', ' ')}\nmost: {head.names[top][:30]} ({share:.0%})", fontsize=9,
                   parse_math=False)


def _lengths(axes: Axes, lengths: Sequence[int]) -> None:
    wide = -(-(max(lengths) - min(lengths) + 1) // 40)  # whole numbers, or bars would count different numbers of them
    edges = np.arange(min(lengths), max(lengths) + wide + 1, wide) - 0.5
    axes.hist(lengths, edges.tolist(), color="#8172b3")
    axes.set(xlabel="frames of a sign", ylabel="signs", title=f"length, median {np.median(lengths):g} frames")
    axes.title.set_fontsize(9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


# --- numbers ------------------------------------------------------------------------------------------------

def as_csv(heads: Sequence[Head]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["head", "class", "name", "count"])
    for head in heads:
        for called, n in zip(head.names, head.counts.tolist(), strict=True):
            label, _, name = called.partition(" ")
            writer.writerow([head.name, label, name, n])
    return text.getvalue()


def as_text(heads: Sequence[Head], rows: Sequence[hearai.Row]) -> str:
    """Every head's counts in a line, or of many classes the most frequent."""
    lines = [f"{len(rows):,} signs of {len({row.name for row in rows}):,} names"]
    for head in heads:
        many = len(head.counts) > NAMED
        order = np.argsort(-head.counts, kind="stable")[:TOP // 3] if many else np.arange(len(head.counts))
        shown_counts = "  ".join(f"{head.names[i].replace(' ', ':', 1)} = {head.counts[i]:,}" for i in order)
        lines.append(f"{head.title}\n  {shown_counts}{'  …' * many}")
    return "\n".join(lines)


# --- files --------------------------------------------------------------------------------------------------

def _write(files: Mapping[str, bytes], output: Path) -> None:
    """Write over nothing but what an earlier call wrote and nobody changed since; heads that are gone go."""
    earlier = _earlier(output / MANIFEST)
    for name in files:
        path = output / name
        if path.exists() and earlier.get(name) != hashlib.sha256(path.read_bytes()).hexdigest():
            raise Mistake(f"{shown(path)} is there and no --stats wrote it so", "nothing was written",
                          "give another folder, or move it away")
    for name, written in earlier.items():
        path = output / name
        if name not in files and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == written:
            path.unlink()
    for name, content in files.items():
        put(output / name, content)
    listed = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    put(output / MANIFEST, json.dumps({"written by": "preprocess.py --stats", "files": listed}, indent=1))


def _earlier(manifest: Path) -> dict[str, str]:
    """{file: SHA-256} of an earlier call; {} where there was none."""
    if not manifest.exists():
        return {}
    foreign = Mistake(f"{shown(manifest)} is of something else", "nothing was written", "give another folder")
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        writer, files = found["written by"], {Path(name).name: str(digest) for name, digest in found["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise foreign from None
    if writer != "preprocess.py --stats":
        raise foreign
    return files
