"""What is written about a set that a pre-trained model was tried on: figures of each item, and of all of them."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slr.logbook import write_json, write_text

Records = Sequence[dict[str, Any]]


def means(records: Records, weight: str, names: Sequence[str]) -> dict[str, float]:
    """Of each figure the mean over the items, an item weighing as much as its `weight`; 0 where none weighs."""
    total = sum(row[weight] for row in records)
    return {name: sum(row[name] * row[weight] for row in records) / total if total else 0.0 for name in names}


def write(records: Records, folder: Path, name: str, found: dict[str, Any], *, tables: bool = True) -> list[Path]:
    """`name`-items.csv and `name`-details.json."""
    if not tables:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"{name}-items.csv", folder / f"{name}-details.json"]
    write_text(made[0], as_csv(records))
    write_json(made[1], found)
    return made


def as_csv(records: Records) -> str:
    """A line an item: what is no array of it."""
    text = io.StringIO()
    names = [name for name, value in records[0].items() if isinstance(value, str | int | float)] if records else []
    table = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(records)
    return text.getvalue()
