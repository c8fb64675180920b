"""What is written about a tested set of isolated signs: a few lines, predictions.csv, details.json, pictures."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slr import plots
from slr.logbook import write_json, write_text
from slr.metrics import topk

GRAPHS = ("bargraph", "confmat", "heatmap")
DEPTH = 10


def summary(logits: np.ndarray, labels: np.ndarray, classes: list[str]) -> str:
    """Accuracies in per cent with their 95 % bootstrap intervals, chance beside them. logits (N, K), labels (N,)."""
    ranks = topk.ranks_of(logits, labels)
    spans = topk.intervals(ranks, labels)
    figures: dict[str, Mapping[str, Any]] = {
        "top_k_per_instance_acc": topk.per_instance(ranks),
        "top_k_average_per_class_acc": topk.average_per_class(ranks, labels)}
    lines = [f"{len(labels)} clips, {len(set(labels.tolist()))} of {len(classes)} classes, "
             f"loss {topk.average_loss(logits, labels):.3f}"]
    for k in topk.KS:
        parts = [f"top-{k:<2}"]
        for name, words in (("top_k_per_instance_acc", "per instance"), ("top_k_average_per_class_acc", "per class")):
            low, high = spans[name][f"top{k}"]
            value = figures[name][f"top{k}"]
            parts.append(f"{words} {100 * value:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
        lines.append("  ".join([*parts, f"chance {100 * min(k, len(classes)) / len(classes):.1f} %"]))
    return "\n".join(lines)


def write(logits: np.ndarray, labels: np.ndarray, ids: list[str], signers: list[int | None], classes: list[str],
          folder: Path, name: str, title: str = "", graphs: tuple[str, ...] = GRAPHS,
          tables: bool = True) -> list[Path]:
    """The files of one set, each called `name`-something; their paths. Without `tables` only the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = topk.ranks_of(logits, labels)
    predicted = topk.ranked(logits, 1)[:, 0]
    report = topk.per_class(labels, predicted, classes)
    matrix = topk.confusion(labels, predicted, len(classes))
    by_signer = topk.per_signer(ranks < 1, signers)
    made: list[Path] = []
    if tables:
        made.append(_predictions(logits, labels, ids, signers, classes, folder / f"{name}-predictions.csv"))
        made.append(_details(ranks, labels, classes, folder / f"{name}-details.json", macro_f1=report["macro_f1"],
                             per_signer=by_signer, confused=topk.confused(matrix, classes)))
    if "bargraph" in graphs:
        made.append(plots.per_class_bars(report, classes, folder / f"{name}-bargraph.png", title))
    if "confmat" in graphs:
        made.append(plots.confusion_matrix(matrix, classes, folder / f"{name}-confmat.png", title))
    if "heatmap" in graphs:
        made.append(plots.per_class_heatmap(report, classes, folder / f"{name}-heatmap.png", title))
    if graphs and len(by_signer) > 1:
        made.append(plots.per_signer(by_signer, folder / f"{name}-signers.png", title))
    return made


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits (N, K) in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _details(ranks: np.ndarray, labels: np.ndarray, classes: list[str], path: Path, **figures: Any) -> Path:
    """What was tested, the intervals, and the `figures`."""
    write_json(path, {"signature": f"top-k, {len(labels)} clips, {len(classes)} classes, ties to the lower class",
                      "intervals": topk.intervals(ranks, labels), **figures})
    return path


def _predictions(logits: np.ndarray, labels: np.ndarray, ids: list[str], signers: list[int | None],
                 classes: list[str], path: Path) -> Path:
    """One line a clip: its true gloss, the true gloss's rank (1 = right), and the ten likeliest with probabilities."""
    depth = min(DEPTH, len(classes))
    ranked, shares, ranks = topk.ranked(logits, depth), probabilities(logits), topk.ranks_of(logits, labels)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["clip", "signer", "true", "rank", *(f"{what}{k}" for k in range(1, depth + 1)
                                                        for what in ("gloss", "p"))])
    for row, (clip, signer) in enumerate(zip(ids, signers, strict=True)):
        answers = [value for k in ranked[row] for value in (classes[k], f"{shares[row, k]:.6f}")]
        table.writerow([clip, "" if signer is None else signer, classes[labels[row]], int(ranks[row]) + 1, *answers])
    write_text(path, text.getvalue())
    return path


def read_predictions(path: Path) -> dict[str, Any]:
    """{"ids", "ranks"} of a predictions.csv; ranks from 0."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {"ids": [row["clip"] for row in rows], "ranks": [int(row["rank"]) - 1 for row in rows]}
