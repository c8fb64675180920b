"""What is written about a set of sentences: figures of every mode, predictions, errors by gloss, pictures."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slr import plots
from slr.datasets.phoenix import Entry, stm_text
from slr.datasets.sentences import Sentence, read_images
from slr.errors import Mistake
from slr.logbook import write_json, write_text
from slr.metrics import wer
from slr.paths import shown

GRAPHS = ("bargraph", "alignment")
DRAWN = 4  # sentences on the picture of alignments
MOMENTS = 12  # frames of each
Records = Sequence[dict[str, Any]]


def figures(records: Records, cleanup: str, name: str, width: int) -> dict[str, Any]:
    """wer (of the mode that counts), the counts of every mode, and each mode's rate of the best paths."""
    refs = {row["id"]: row["reference"] for row in records}
    beam, greedy = (wer.score(refs, {row["id"]: row[key] for row in records}, cleanup, name)
                    for key in ("hypothesis", "greedy"))
    mode = wer.headline(cleanup)
    return {"wer": beam[mode]["wer"], "mode": mode, "beam_width": width, "modes": beam,
            "greedy": {mode: row["wer"] for mode, row in greedy.items()}}


def summary(found: dict[str, Any], records: Records, cleanup: str) -> str:
    """WER of every mode with S, D and I; of the one that counts the 95 % bootstrap interval."""
    low, high = wer.interval(steps_of(records, cleanup).values())
    lines = [f"{len(records)} sentences, {sum(len(row['reference']) for row in records)} glosses, "
             f"{found['mode']} WER {found['wer']:.2f} % [{low:.2f}, {high:.2f}]",
             f"{'mode':<10}{'sub':>7}{'del':>7}{'ins':>7}{'words':>8}{'beam':>9}{'best path':>11}"]
    for mode in wer.MODES:
        row = found["modes"][mode]
        lines.append(f"{mode:<10}{row['sub']:>7}{row['del']:>7}{row['ins']:>7}{row['ref_words']:>8}"
                     f"{row['wer']:>9.2f}{found['greedy'][mode]:>11.2f}")
    return "\n".join(lines)


def steps_of(records: Records, cleanup: str) -> dict[str, list[wer.Step]]:
    """{id: its alignment with the reference}, in the mode that counts."""
    return wer.alignments({row["id"]: row["reference"] for row in records},
                          {row["id"]: row["hypothesis"] for row in records}, wer.headline(cleanup), cleanup)


def write(records: Records, sentences: Sequence[Sentence], folder: Path, name: str, *, cleanup: str, split: str,
          fps: float, title: str = "", graphs: tuple[str, ...] = GRAPHS, tables: bool = True) -> list[Path]:
    """The files of one set, each called `name`-something; their paths. Without `tables` only the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    steps, made = steps_of(records, cleanup), list[Path]()
    rows = by_gloss(steps.values())
    if tables:
        texts = {"predictions.jsonl": predictions(records, steps, fps), "hypothesis.ctm": ctm(records, fps),
                 "reference.stm": stm(records, sentences), "glosses.csv": table(rows)}
        for ending, text in texts.items():
            made.append(folder / f"{name}-{ending}")
            write_text(made[-1], text)
        made.append(folder / f"{name}-details.json")
        write_json(made[-1], details(steps, cleanup, split))
    if "bargraph" in graphs:
        glosses = [gloss for gloss, row in rows.items() if row["ref_words"]]
        made.append(plots.per_class_bars(scores(rows, glosses), glosses, folder / f"{name}-bargraph.png", title))
    if "alignment" in graphs:
        made.append(alignment(records, sentences, folder / f"{name}-alignment.png", title))
    return made


# --- tables -------------------------------------------------------------------------------------------------

def predictions(records: Records, steps: dict[str, list[wer.Step]], fps: float) -> str:
    """A sentence a line: id, reference, hypothesis, errors, log-probability, and each gloss's frames."""
    lines = []
    for row in records:
        spans = [{"gloss": gloss, "first_frame": first, "stop_frame": stop, "start_s": round(first / fps, 3),
                  "stop_s": round(stop / fps, 3), "log_p": round(score, 4)}
                 for gloss, first, stop, score in row["spans"]]
        errors = sum(step.kind != "C" for step in steps[row["id"]])
        lines.append(json.dumps({
            "id": row["id"], "reference": row["reference"], "hypothesis": row["hypothesis"], "greedy": row["greedy"],
            "errors": errors, "log_p": round(row["score"], 4), "glosses": spans}, ensure_ascii=False) + "\n")
    return "".join(lines)


def read_predictions(path: Path) -> tuple[dict[str, tuple[int, int]], str]:
    """Of a predictions.jsonl {id: (errors, words of the reference)}, and how these were counted: the beginning of the
    signature in the details.json beside it, "" where there is none."""
    details = path.with_name(path.name.replace("predictions.jsonl", "details.json"))
    counts: dict[str, tuple[int, int]] = {}
    where, signature = shown(path), ""
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            where, row = f"{shown(path)}, line {number}:", json.loads(line)
            counts[row["id"]] = int(row["errors"]), len(row["reference"])
        if details != path and details.is_file():
            where = shown(details)
            signature = str(json.loads(details.read_text(encoding="utf-8"))["signature"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Mistake(f"{where} no results of sentences", f"{type(error).__name__}: {error}",
                      "run testing.py full for that run again") from None
    return counts, signature.partition("|set:")[0]


def ctm(records: Records, fps: float) -> str:
    """<id> 1 <start> <duration> GLOSS, seconds; a sentence without a gloss has no line."""
    return "".join(f"{row['id']} 1 {first / fps:.3f} {(stop - first) / fps:.3f} {_escaped(gloss)}\n"
                   for row in records for gloss, first, stop, _ in row["spans"])


def stm(records: Records, sentences: Sequence[Sentence]) -> str:
    """What the hypotheses are scored against."""
    return stm_text(Entry(row["id"], row["set"], sentence.signer.replace(" ", "_"), tuple(row["reference"]))
                    for row, sentence in zip(records, sentences, strict=True))


def _escaped(word: str) -> str:
    """`;` opens a tag in a CTM."""
    return word.replace(";", "\\;")


def by_gloss(steps: Any) -> dict[str, dict[str, int]]:
    """{gloss: ref_words, correct, sub, del, ins, and how often it was said: hyp_words}, most errors first."""
    errors = wer.gloss_errors(steps)
    rows, said = wer.per_gloss(errors), Counter[str]()
    names = {wer.lower(gloss): gloss for gloss in reversed(rows)}
    for (_, _, hyp), times in errors.items():
        if hyp is not None:
            said[names.get(wer.lower(hyp), hyp)] += times
    empty = dict.fromkeys(("ref_words", "correct", "sub", "del", "ins"), 0)
    return {gloss: {**rows.get(gloss, empty), "hyp_words": said[gloss]} for gloss in {**rows, **said}}


def scores(rows: dict[str, dict[str, int]], glosses: list[str]) -> dict[str, Any]:
    """Precision, recall and F1 of each gloss, as `plots.per_class_bars` takes them."""
    counts = np.array([[rows[gloss][key] for key in ("correct", "hyp_words", "ref_words")] for gloss in glosses], float)
    correct, said, there = counts.reshape(-1, 3).T
    return {"precision": correct / np.maximum(said, 1), "recall": correct / np.maximum(there, 1),
            "f1": 2 * correct / np.maximum(said + there, 1), "support": there.astype(int)}


def table(rows: dict[str, dict[str, int]]) -> str:
    """The errors of each gloss as csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("ref_words", "hyp_words", "correct", "sub", "del", "ins")
    writer.writerow(["gloss", *columns])
    writer.writerows([gloss, *(row[column] for column in columns)] for gloss, row in rows.items())
    return text.getvalue()


def details(steps: dict[str, list[wer.Step]], cleanup: str, split: str) -> dict[str, Any]:
    """How it was counted, the interval, and what is taken for what, left out and put in, the most frequent first."""
    mode, errors = wer.headline(cleanup), wer.gloss_errors(steps.values())
    found: dict[str, Any] = dict(wer.figures(steps.values(), wer.signature(mode, cleanup, split)))
    found["interval"] = wer.interval(steps.values())
    for name, kind in (("confused", "S"), ("omitted", "D"), ("inserted", "I")):
        found[name] = [{"ref": step.ref, "hyp": step.hyp, "times": times} for step, times in errors.most_common()
                       if step.kind == kind]
    return found


# --- pictures -----------------------------------------------------------------------------------------------

def chosen(records: Records, count: int = DRAWN) -> list[int]:
    """Sentences from all over the range of log-probability a gloss, the surest first."""
    order = sorted(range(len(records)), key=lambda i: -records[i]["score"] / max(1, len(records[i]["hypothesis"])))
    count = min(count, len(order))
    return [order[round(k * (len(order) - 1) / max(1, count - 1))] for k in range(count)]


def alignment(records: Records, sentences: Sequence[Sentence], path: Path, title: str = "") -> Path:
    """For a few sentences: frames, the posteriors of the glosses that were said, and where each of them is."""
    from matplotlib.figure import Figure

    rows = chosen(records)
    tall = 4.2 if "translation" in records[rows[0]] else 3.8
    figure = Figure(figsize=(15, tall * len(rows) + 0.5), layout="constrained", dpi=plots.DPI)
    figure.suptitle(title, parse_math=False)
    for place, row in zip(np.ravel(figure.subfigures(len(rows), 1, squeeze=False)), rows, strict=True):
        _sentence(place, records[row], sentences[row])
    return plots.write(figure, path)


def _sentence(figure: Any, record: dict[str, Any], sentence: Sentence) -> None:
    edges = record["steps"]
    first, last = edges[0], edges[-1]
    grid = figure.subplots(2, 1, height_ratios=(1, 1.2))
    lines = [record["id"], f"reference: {' '.join(record['reference'])}", f"found: {' '.join(record['hypothesis'])}"]
    if "translation" in record:
        lines += [f"text: {record['text']}", f"translation: {record['translation']}"]
    figure.suptitle("\n".join(lines), fontsize=10, x=0.01, ha="left", parse_math=False)
    shown = np.unique(np.linspace(first, last - 1, min(MOMENTS, last - first)).round().astype(int))
    width = (last - first) / len(shown)
    for k, image in enumerate(read_images(sentence, shown)):
        grid[0].imshow(image, extent=(first + k * width, first + (k + 1) * width, 0, 1), aspect="auto")
    grid[0].set(xlim=(first, last), ylim=(0, 1), xticks=(), yticks=())
    _posteriors(grid[1], record)
    grid[1].set(xlim=(first, last), ylim=(0, 1.35), yticks=(0, 0.5, 1), ylabel="probability", xlabel="frame")


def _posteriors(ax: Any, record: dict[str, Any]) -> None:
    """One step line a gloss, the blank in grey; a bar with its name where the best path has it."""
    blank, *said = record["posteriors"]
    ax.stairs(blank, record["steps"], color=plots.GREY, lw=0.8, ls=":", baseline=None)
    for k, (line, (gloss, start, stop, _)) in enumerate(zip(said, record["spans"], strict=True)):
        colour = plots.LINES[k % len(plots.LINES)][0]
        ax.stairs(line, record["steps"], color=colour, lw=1.4, baseline=None)
        ax.axvspan(start, stop, color=colour, alpha=0.15, lw=0)
        ax.text((start + stop) / 2, 1.06 + 0.13 * (k % 2), gloss, ha="center", size=8, color=colour, parse_math=False)
