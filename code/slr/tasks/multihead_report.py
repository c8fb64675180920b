"""What is written about a set of clips with several labels each: figures of every head, predictions, the look-up of
glosses, pictures."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slr import plots
from slr.errors import Mistake
from slr.hamnosys import GLOSS
from slr.logbook import write_json, write_text
from slr.metrics import heads, topk
from slr.metrics.heads import MISSING, Answers, Dictionary, Records
from slr.paths import shown

GRAPHS = ("bargraph", "confmat")
FIRST = ("id", "signer", "gloss", "gloss_name", "rank_by_distance", "found_by_distance", "rank_by_log_p",
         "found_by_log_p")
OF_A_HEAD = ("_true", "_predicted", "_p")
Symbols = Mapping[str, Sequence[str]]


def score(records: Records, symbols: Symbols | None = None, dictionary: Dictionary | None = None) -> dict[str, Any]:
    """`metrics.heads.score`, with the name of each head's most frequent label in its majority.

    symbols: {head: [name of class 0, ...]}; dictionary: {gloss: (name, {head: label})}.
    """
    found = heads.score(records, dictionary)
    for head, row in found["heads"].items():
        row["majority"]["name"] = label_name(head, row["majority"]["label"], symbols, dictionary)
    return found


def label_name(head: str, label: int, symbols: Symbols | None, dictionary: Dictionary | None) -> str:
    """"3 flat hand", its number first as names can be alike; "3" where it has no name. The gloss head's classes have
    their names from the dictionary."""
    names = (symbols or {}).get(head, ())
    name = names[label] if 0 <= label < len(names) else ""
    if not name and head == GLOSS and dictionary and label in dictionary:
        name = dictionary[label][0]
    return f"{label} {name}" if name else str(label)


def summary(records: Records, symbols: Symbols | None = None, dictionary: Dictionary | None = None) -> str:
    """Mean macro-F1 and exact match with their 95 % bootstrap intervals, then a line a head; beside all of them what
    always the most frequent label of the set gets."""
    found = score(records, symbols, dictionary)
    spans, most = heads.intervals(heads.answers_of(records)), found["majority"]
    lines = [f"{found['clips']} clips ({found['clips_complete']} with a label of every head), "
             f"{len(found['heads'])} heads; in brackets 95 % intervals, then always the most frequent label"]
    for key, words in (("mean_macro_f1", "mean macro-F1"),
                       ("mean_macro_f1_frequent", f"mean macro-F1 of labels with {heads.FREQUENT}+ clips"),
                       ("mean_accuracy", "mean accuracy"), ("exact_match", "exact match")):
        lines.append(f"{words + ':':<41}{_percent(found[key])} % {_bracket(spans[key])}  {_percent(most[key])} %")
    width = max(map(len, found["heads"]))
    lines.append(f"{'':<{width}}{'clips':>8}{'labels':>9}{'macro-F1':>10}{'always':>8}{'frequent':>10}{'always':>8}"
                 f"{'accuracy':>10}{'always':>8}{'chance':>8}")
    lines += [_head_line(head, row, width) for head, row in found["heads"].items()]
    if found["heads_without_labels"]:
        lines.append(f"no clip has a label of {', '.join(found['heads_without_labels'])}")
    if GLOSS in found["heads"]:
        lines.append("gloss head: " + _top(found["heads"][GLOSS]))
    return "\n".join([*lines, *_lookup_lines(found["lookup"], dictionary)])


def _head_line(head: str, row: Mapping[str, Any], width: int) -> str:
    most = row["majority"]
    labels = f"{row['classes_present']}/{row['classes']}"
    return (f"{head:<{width}}{row['clips']:>8}{labels:>9}{_percent(row['macro_f1']):>10}"
            f"{_percent(most['macro_f1']):>8}{_percent(row['macro_f1_frequent']):>10}"
            f"{_percent(most['macro_f1_frequent']):>8}{_percent(row['accuracy']):>10}{_percent(most['accuracy']):>8}"
            f"{_percent(row['chance']):>8}")


def _lookup_lines(found: Mapping[str, Any] | None, dictionary: Dictionary | None) -> list[str]:
    if found is None:
        return ["no gloss look-up: no clip's gloss is in the dictionary, or no head"] if dictionary else []
    outside = f", {found['clips_outside']} more clips of glosses outside" if found["clips_outside"] else ""
    head = (f"gloss look-up among {found['glosses']} glosses ({found['glosses_alike']} share all their labels with "
            f"others), {found['clips']} clips{outside}")
    words = {"distance": "by distance", "log_p": "by log-probability", "ceiling": "all labels right",
             "chance": "chance"}
    return [head, *(f"  {word:<20}{_top(found[key])}" for key, word in words.items())]


def _top(row: Mapping[str, Any]) -> str:
    return "  ".join(f"top-{k} {_percent(row[f'top{k}']):>5} %" for k in topk.KS)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _bracket(span: Sequence[float] | None) -> str:
    return "[-]" if span is None else f"[{100 * span[0]:.1f}, {100 * span[1]:.1f}]"


def write(records: Records, folder: Path, name: str, symbols: Symbols | None = None,
          dictionary: Dictionary | None = None, title: str = "", graphs: tuple[str, ...] = GRAPHS,
          tables: bool = True) -> list[Path]:
    """The files of one set, each called `name`-something; their paths. Without `tables` only the pictures.

    Of every head a confusion matrix, as a picture and a table, of the labels that occur; all of them in one picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answers, made = heads.answers_of(records), list[Path]()
    found = details(records, symbols, dictionary)
    if tables:
        made.append(folder / f"{name}-predictions.csv")
        write_text(made[-1], predictions(records, symbols, dictionary))
        made.append(folder / f"{name}-details.json")
        write_json(made[-1], found)
    if "bargraph" in graphs:
        made.append(plots.per_head(found, folder / f"{name}-bargraph.png", title))
    matrices: dict[str, tuple[list[str], Any]] = {}
    for head in found["heads"]:
        labels, matrix = heads.confusion(*answers.pairs(head))
        names = [label_name(head, label, symbols, dictionary) for label in labels]
        matrices[head] = names, matrix
        if tables:
            made.append(folder / f"{name}-{head}-confmat.csv")
            write_text(made[-1], _table([["true \\ predicted", *names], *([row, *counts] for row, counts in zip(
                names, matrix.tolist(), strict=True))]))
        if "confmat" in graphs:
            made.append(plots.confusion_matrix(matrix, names, folder / f"{name}-{head}-confmat.png",
                                               f"{title}, {head}" if title else head, whose="labels"))
    if "confmat" in graphs and len(matrices) > 1:
        made.append(plots.confusion_matrices(matrices, folder / f"{name}-confmats.png", title))
    return made


def details(records: Records, symbols: Symbols | None = None, dictionary: Dictionary | None = None) -> dict[str, Any]:
    """The figures of `score`, and beside them intervals, every label's report, confused pairs, signers."""
    answers, scores, found = heads.answers_of(records), heads.scores_of(records), score(records, symbols, dictionary)
    places = heads.look_up(scores, dictionary, [row["gloss"] for row in records]) if dictionary else None
    reports: dict[str, Any] = {}
    for head in found["heads"]:
        labels, matrix = heads.confusion(*answers.pairs(head))
        names = [label_name(head, label, symbols, dictionary) for label in labels]
        reports[head] = {"classes": names, **heads.per_label(*answers.pairs(head)),
                         "confused": topk.confused(matrix, names)}
    spans = heads.intervals(answers, _hits(places, len(records)) if places else None)
    lookup = spans.pop("extra")
    return {**found, "intervals": {**spans, "lookup": lookup}, "reports": reports,
            "per_signer": per_signer(answers, [row["signer"] for row in records])}


def _hits(places: heads.Lookup, n: int) -> dict[str, np.ndarray]:
    """{"distance_top1": (n,), ...}: how surely each clip's gloss is found; NaN where it is not known."""
    found = {}
    for name, order in (("distance", places.distance), ("log_p", places.log_p)):
        for k in topk.KS:
            found[f"{name}_top{k}"] = np.full(n, np.nan)
            found[f"{name}_top{k}"][places.rows] = order.hits(k)
    return found


def per_signer(answers: Answers, signers: Sequence[str | None]) -> dict[str, Any]:
    """{signer: exact match as `topk.per_signer` has it, and the accuracy of each head}; {} where none is known."""
    right, known = heads.exact(answers)
    if not any(signer is not None for signer, there in zip(signers, known, strict=True) if there):
        return {}
    rows = topk.per_signer(right[known], [signer for signer, there in zip(signers, known, strict=True) if there])
    found: dict[str, Any] = {}
    for signer, row in rows.items():
        own = known & np.array([("unknown" if name is None else str(name)) == signer for name in signers])
        accuracy = {head: float((answers.predicted[head] == truth)[own & (truth != MISSING)].mean())
                    for head, truth in answers.truth.items() if (own & (truth != MISSING)).any()}
        found[signer] = {"clips": row["clips"], "exact": row["correct"], "exact_match": row["acc"],
                         "interval": row["interval"], "mean_accuracy": float(np.mean(list(accuracy.values()))),
                         "accuracy": accuracy}
    return found


# --- predictions --------------------------------------------------------------------------------------------


def predictions(records: Records, symbols: Symbols | None = None, dictionary: Dictionary | None = None) -> str:
    """A line a clip: who signs what; the true gloss's place in both orders of the look-up (from 1; the mean place of
    those that are tied) and the gloss that stands first; of every head the true class (empty: not known), the predicted
    one and its probability; at the end their names, where the head has any."""
    answers, scores = heads.answers_of(records), heads.scores_of(records)
    named = [head for head in scores if head in (symbols or {}) or (head == GLOSS and dictionary)]
    ends = [(head, end) for head in named for end in OF_A_HEAD[:2]]
    rows: list[list[Any]] = [[*FIRST, *(head + end for head in scores for end in OF_A_HEAD),
                              *(f"{head}{end}_name" for head, end in ends)]]
    looked_up = _lookup_cells(records, scores, dictionary)
    for i, row in enumerate(records):
        cells: dict[str, list[Any]] = {}
        for head, table in scores.items():
            true, said = int(answers.truth[head][i]), int(answers.predicted[head][i])
            cells[head] = ["" if true == MISSING else true, said, f"{np.exp(table[i, said]):.6f}"]
        gloss = row["gloss"]
        name = (dictionary or {}).get(gloss, ("", {}))[0] if gloss is not None else ""
        rows.append([row["id"], "" if row["signer"] is None else row["signer"], "" if gloss is None else gloss, name,
                     *looked_up[i], *(cell for head in scores for cell in cells[head]),
                     *(_only_name(head, cells[head][end == OF_A_HEAD[1]], symbols, dictionary) for head, end in ends)])
    return _table(rows)


def _only_name(head: str, label: Any, symbols: Symbols | None, dictionary: Dictionary | None) -> str:
    """Without its number; "" where there is none."""
    return "" if label == "" else label_name(head, label, symbols, dictionary).partition(" ")[2]


def _lookup_cells(records: Records, scores: Mapping[str, np.ndarray],
                  dictionary: Dictionary | None) -> list[list[str]]:
    """(rank, first gloss) by distance and by log-probability of every record; empty where the gloss is not known."""
    cells = [[""] * 4 for _ in records]
    found = heads.look_up(scores, dictionary, [row["gloss"] for row in records]) if dictionary else None
    if found is None or dictionary is None:
        return cells
    columns: list[list[str]] = []
    for order in (found.distance, found.log_p):
        columns.append([f"{rank:g}" for rank in order.ranks()])
        columns.append([dictionary[found.glosses[first]][0] or str(found.glosses[first]) for first in order.first])
    for row, *values in zip(found.rows, *columns, strict=True):
        cells[row] = values
    return cells


def _table(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def holds_heads(path: Path) -> bool:
    """Whether a predictions.csv is of several heads (isolated signs' begins with another column)."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return next(csv.reader(file), [])[:2] == list(FIRST[:2])


def read_predictions(path: Path) -> Answers:
    """The true and predicted classes of a predictions.csv, for `metrics.heads.compare`. Raises Mistake where it holds
    none."""
    where = shown(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            columns = list(table.fieldnames or ())
            names = [column.removesuffix("_p") for column in columns if column.endswith("_p")]
            names = [head for head in names if {head + "_true", head + "_predicted"} <= set(columns)]
            if not names or columns[:1] != ["id"]:
                raise ValueError("its columns are of something else")
            ids, rows = list[str](), list[list[tuple[int, int]]]()
            for number, row in enumerate(table, 2):
                where = f"{shown(path)}, line {number}:"
                ids.append(row["id"])
                rows.append([(int(row[head + "_true"] or MISSING), int(row[head + "_predicted"])) for head in names])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Mistake(f"{where} no results of several heads", f"{type(error).__name__}: {error}",
                      "run testing.py full for that run again") from None
    both = np.array(rows, dtype=np.int64).reshape(-1, len(names), 2)
    return Answers(ids, {head: both[:, h, 0] for h, head in enumerate(names)},
                   {head: both[:, h, 1] for h, head in enumerate(names)})
