"""How the benchmarks measure: the ways in turn (A B C A B C ...), each side in a process of its own, medians."""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Ways = dict[str, Callable[[], float]]


@dataclass
class Row:
    """One way of doing one part: seconds of every run, and what it is compared with."""

    part: str
    way: str
    items: float  # that one run got through
    seconds: list[float]
    cpu_seconds: list[float]
    clock: str = "wall"
    ratio: float | None = None  # how much faster than the old way, by medians
    floor: float | None = None
    spread: tuple[float, float] = field(default=(0.0, 0.0))  # the ratio within single rounds: least and most

    @property
    def times(self) -> list[float]:
        return self.cpu_seconds if self.clock == "cpu" else self.seconds

    @property
    def each(self) -> float:
        """Seconds an item, the median of the runs."""
        return statistics.median(self.times) / self.items

    def compare(self, old: "Row", floor: float | None = None) -> None:
        rounds = [a / b * self.items / old.items for a, b in zip(old.times, self.times, strict=True)]
        self.ratio, self.spread, self.floor = old.each / self.each, (min(rounds), max(rounds)), floor


class Side:
    """One side of a comparison, as its own program would be: its imports, its allocator, its threads.

    `build(**settings)` runs in a fresh process and returns {way: function}; a function does the work once and returns
    how many items that was.
    """

    def __init__(self, build: Callable[..., Ways], **settings: Any):
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, build, settings))
        self._process.start()
        there.close()
        self.ways: list[str] = self._answer()

    def _answer(self) -> Any:
        try:
            return self._here.recv()
        except EOFError:
            raise SystemExit("one side of the benchmark broke off: see above") from None

    def run(self, way: str) -> tuple[float, float, float]:
        """Items done, seconds by the clock, seconds of processor time."""
        self._here.send(way)
        return self._answer()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._here.send(None)
        self._process.join()
        self._here.close()


def _serve(connection: Any, build: Callable[..., Ways], settings: dict[str, Any]) -> None:
    ways = build(**settings)
    connection.send(list(ways))
    while (way := connection.recv()) is not None:
        started, before = time.perf_counter(), time.process_time()
        items = ways[way]()
        connection.send((items, time.perf_counter() - started, time.process_time() - before))


def measure(sides: Mapping[str, tuple[Side, str]], part: str, repeats: int, clock: str) -> dict[str, Row]:
    """{label: (side, way)} -> {label: Row}: one round to warm up, then `repeats` rounds of every way in turn."""
    rows: dict[str, Row] = {}
    for number in range(repeats + 1):
        for label, (side, way) in sides.items():
            items, wall, cpu = side.run(way)
            if not number:
                rows[label] = Row(part, label, items, [], [], clock)
            else:
                rows[label].seconds.append(wall)
                rows[label].cpu_seconds.append(cpu)
    return rows


def add_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    add = parser.add_argument
    add("--repeats", type=int, default=repeats, help=f"rounds, after one to warm up (default {repeats})")
    add("--clock", choices=("wall", "cpu"), default="wall",
        help="what ratios are made of; cpu, the processor's own time, is for a busy machine, one thread and no workers")
    add("--json", type=Path, metavar="FILE", help="write every figure there")


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """What stands beside every figure: the machine and all settings."""
    import torch

    gpu = torch.cuda.get_device_name() if args.device.startswith("cuda") else None
    return {"machine": {"processor": _processor(), "cores": os.cpu_count(), "gpu": gpu, "threads": args.threads,
                        "python": platform.python_version(), "torch": torch.__version__, "load_average": _load()},
            "settings": {name: str(value) for name, value in vars(args).items()}}


def conditions(args: argparse.Namespace) -> str:
    """The same in a line."""
    return (f"{args.threads} thread(s) a process, device {args.device}, medians of {args.repeats} interleaved runs "
            f"({args.clock} clock), load average {_load()[0]}")


def _load() -> list[float]:
    return [round(x, 2) for x in os.getloadavg()]


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(rows: list[Row], unit: str = "clips/s") -> None:
    """One line a way: its rate, how much faster than the old way (and in single rounds), and the floor."""
    for row in rows:
        line = f"  {row.part:<22} {row.way:<22} {1 / row.each:9.2f} {unit}"
        if row.ratio is not None:
            line += f"   {row.ratio:6.2f} x  (rounds {row.spread[0]:.2f} to {row.spread[1]:.2f})"
        if row.ratio is not None and row.floor is not None:
            line += f"   floor {row.floor:g} x: {'reached' if row.ratio >= row.floor else 'MISSED'}"
        print(line, flush=True)


def write(file: Path | None, facts: dict[str, Any], rows: dict[str, list[Row]]) -> None:
    """Everything that was measured, as JSON."""
    if file is not None:
        tables = {name: [asdict(row) | {"items_per_s": 1 / row.each} for row in table] for name, table in rows.items()}
        file.write_text(json.dumps({**facts, "results": tables}, indent=1) + "\n", encoding="utf-8")
