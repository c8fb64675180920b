"""What is written about a set of transcribed sentences: figures, predictions, samples, errors by gloss."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slr import plots
from slr.config import TranscriptionSection
from slr.logbook import as_table, write_json, write_text
from slr.metrics import wer
from slr.tasks import continuous_report
from slr.tasks.continuous_report import by_gloss, details, scores, steps_of, table

GRAPHS = ("bargraph",)
SAMPLES = 8  # sentences of the table that training keeps
EXAMPLES = 20  # and of that of a test
Records = Sequence[dict[str, Any]]


def figures(records: Records, cleanup: str, name: str, keys: TranscriptionSection) -> dict[str, Any]:
    """Those of a set of sentences, how was searched, and with joint CTC what its best paths say: ctc_wer."""
    found = continuous_report.figures(records, cleanup, name, keys.beam_width)
    found["search"] = {key: getattr(keys, key) for key in ("beam_width", "length_penalty", "max_length", "ctc_share")}
    if records and "ctc" in records[0]:
        refs, heard = ({row["id"]: row[key] for row in records} for key in ("reference", "ctc"))
        found["ctc_wer"] = wer.score(refs, heard, cleanup, name)[found["mode"]]["wer"]
    return found


def summary(found: dict[str, Any], records: Records, cleanup: str) -> str:
    """WER of what is generated, in every mode, by beam and by greedy search; of joint CTC's best paths."""
    lines = [continuous_report.summary(found, records, cleanup).replace("best path", "   greedy")]
    if "ctc_wer" in found:
        lines.append(f"joint CTC's best path: {found['ctc_wer']:.2f} %")
    search = found["search"]
    joint = f", CTC's share {search['ctc_share']:g}" if search["ctc_share"] else ""
    return "\n".join([*lines, f"beam {search['beam_width']}, length penalty {search['length_penalty']:g}{joint}"])


def write(records: Records, folder: Path, name: str, *, cleanup: str, split: str, title: str = "",
          graphs: tuple[str, ...] = GRAPHS, tables: bool = True) -> list[Path]:
    """The files of one set, each called `name`-something; their paths. Without `tables` only the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    steps, made = steps_of(records, cleanup), list[Path]()
    rows = by_gloss(steps.values())
    if tables:
        texts = {"predictions.jsonl": predictions(records, steps), "reference.trn": trn(records, "reference"),
                 "hypothesis.trn": trn(records, "hypothesis"), "glosses.csv": table(rows),
                 "samples.md": as_table(samples(records, EXAMPLES))}
        made = [folder / f"{name}-{ending}" for ending in texts]
        for path, text in zip(made, texts.values(), strict=True):
            write_text(path, text)
        made.append(folder / f"{name}-details.json")
        write_json(made[-1], details(steps, cleanup, split))
    if "bargraph" in graphs:
        glosses = [gloss for gloss, row in rows.items() if row["ref_words"]]
        made.append(plots.per_class_bars(scores(rows, glosses), glosses, folder / f"{name}-bargraph.png", title))
    return made


def predictions(records: Records, steps: dict[str, list[wer.Step]]) -> str:
    """A sentence a line: id, reference, hypothesis, that of greedy search, errors, log-probability by length."""
    return "".join(json.dumps({
        "id": row["id"], "reference": row["reference"], "hypothesis": row["hypothesis"], "greedy": row["greedy"],
        "errors": sum(step.kind != "C" for step in steps[row["id"]]), "log_p": round(row["score"], 4)},
        ensure_ascii=False) + "\n" for row in records)


def trn(records: Records, key: str) -> str:
    """sclite's form, for testing.py score: the words, and the id in parentheses."""
    return "".join(" ".join([*row[key], f"({row['id']})"]) + "\n" for row in records)


def samples(records: Records, count: int = SAMPLES) -> list[dict[str, str]]:
    """Sentences evenly from all over a set: what was signed, and what was said of it."""
    count = min(count, len(records))
    chosen = [records[round(k * (len(records) - 1) / max(1, count - 1))] for k in range(count)]
    return [{"id": row["id"], "reference": " ".join(row["reference"]), "hypothesis": " ".join(row["hypothesis"])}
            for row in chosen]
