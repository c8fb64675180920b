"""What is written about a set of translated sentences: figures, both sides as text, a table of examples."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slr.errors import Mistake
from slr.logbook import write_json, write_text
from slr.metrics import text as metrics
from slr.paths import shown

EXAMPLES = 20  # sentences in the table
FIGURES = ("bleu1", "bleu2", "bleu3", "bleu4", "chrf", "rouge_l")
Records = Sequence[dict[str, Any]]


def summary(found: dict[str, Any], records: Records, level: str) -> str:
    """BLEU-1 to 4, chrF, ROUGE-L; of BLEU-4 the 95 % bootstrap interval."""
    low, high = metrics.interval(*sides(records), level)
    how = found["search"]
    return "\n".join([
        f"{len(records)} sentences, BLEU-4 {found['bleu4']:.2f} [{low:.2f}, {high:.2f}] by {level}",
        "".join(name.rjust(9) for name in FIGURES) + "   greedy BLEU-4",
        "".join(f"{found[name]:9.2f}" for name in FIGURES) + f"{found['greedy_bleu4']:16.2f}",
        f"beam {how['beam_width']}, length penalty {how['length_penalty']:g}"])


def sides(records: Records) -> tuple[list[str], list[str]]:
    """(References, translations)."""
    return [row["text"] for row in records], [row["translation"] for row in records]


def write(records: Records, folder: Path, name: str, found: dict[str, Any], level: str, *,
          graphs: tuple[str, ...] = (), tables: bool = True) -> list[Path]:
    """The files of one set, each called `name`-something; their paths. There are no pictures of text."""
    if not tables:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    refs, hyps = sides(records)
    texts = {"predictions.jsonl": predictions(records), "reference.txt": _lines(refs), "hypothesis.txt": _lines(hyps),
             "examples.md": examples(records, level)}
    made = [folder / f"{name}-{ending}" for ending in texts]
    for path, content in zip(made, texts.values(), strict=True):
        write_text(path, content)
    details = folder / f"{name}-details.json"
    write_json(details, {**found, "interval": metrics.interval(refs, hyps, level)})
    return [*made, details]


def _lines(sentences: Sequence[str]) -> str:
    return "".join(f"{sentence}\n" for sentence in sentences)


def predictions(records: Records) -> str:
    """A sentence a line: its glosses (and those found, where any were), both texts."""
    keys = ("id", "reference", "hypothesis", "text", "translation", "greedy_translation")
    return "".join(json.dumps({key: row[key] for key in keys if key in row}, ensure_ascii=False) + "\n"
                   for row in records)


def read_predictions(path: Path) -> dict[str, tuple[str, str]]:
    """{id: (reference, translation)} of a predictions.jsonl. Raises Mistake where it is of something else."""
    found: dict[str, tuple[str, str]] = {}
    where = shown(path)
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            where, row = f"{shown(path)}, line {number}:", json.loads(line)
            found[row["id"]] = row["text"], row["translation"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Mistake(f"{where} no results of translation", f"{type(error).__name__}: {error}",
                      "run testing.py full for that run again") from None
    return found


def read_level(path: Path) -> str:
    """Of a predictions.jsonl: word or char, as the details.json beside it says; word where there is none.

    Raises Mistake where that is something else.
    """
    details = path.with_name(path.name.replace("predictions.jsonl", "details.json"))
    if details == path or not details.is_file():
        return "word"
    try:
        signature = str(json.loads(details.read_text(encoding="utf-8"))["signatures"]["bleu"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Mistake(f"{shown(details)} does not say how texts were scored", f"{type(error).__name__}: {error}",
                      "run testing.py full for that run again") from None
    return "char" if "|level:char|" in signature else "word"


def examples(records: Records, level: str) -> str:
    """A markdown table of sentences from all over the range of quality, the best first."""
    quality = {row["id"]: metrics.rouge_l([row["text"]], [row["translation"]], level=level) if row["text"] else 0.0
               for row in records}
    order = sorted(records, key=lambda row: -quality[row["id"]])
    count = min(EXAMPLES, len(order))
    rows = [order[round(k * (len(order) - 1) / max(1, count - 1))] for k in range(count)]
    lines = ["| ROUGE-L | id | signed | reference and translation |", "|---|---|---|---|"]
    for row in rows:
        signed = [_cell(" ".join(row["reference"]))]
        if "hypothesis" in row and row["hypothesis"] != row["reference"]:
            signed.append(f"*found:* {_cell(' '.join(row['hypothesis']))}")
        lines.append(f"| {quality[row['id']]:.0f} | {_cell(row['id'])} | {'<br>'.join(signed)} "
                     f"| {_cell(row['text'])}<br>**{_cell(row['translation'])}** |")
    return "\n".join(lines) + "\n"


def _cell(content: str) -> str:
    return content.replace("\\", "\\\\").replace("|", "\\|")
