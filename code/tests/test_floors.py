"""Imports only go down the floors, every module has one, and nothing shadows the standard library."""

import ast
import sys
from pathlib import Path

import pytest

CODE = Path(__file__).resolve().parents[1]
ROOT = CODE.parent

FLOORS = {
    0: ("catalogue", "hamnosys", "sections", "paths", "runtime", "batchnorm", "text", "search", "decoding", "losses",
        "schedules", "video"),
    1: ("config", "yaml_config", "checkpoint", "logbook", "loading", "augment", "transforms", "streaming", "plots",
        "metrics"),
    2: ("datasets", "models", "engine", "task"),
    3: ("tasks", "trained", "rehearsal"),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
GROUND = "errors"
ENGINE_USERS = ("rehearsal",)  # beside the scripts: tasks never see the engine
SCRIPTS = [*CODE.glob("*.py"), *CODE.glob("benchmarks/*.py")]
MODULES = sorted(path for path in (CODE / "slr").rglob("*.py") if path.name != "__init__.py")


def room_of(path: Path) -> str:
    """slr/metrics/topk.py -> metrics, slr/paths.py -> paths."""
    return path.relative_to(CODE / "slr").with_suffix("").parts[0]


def imported(path: Path) -> list[str]:
    """The dotted names that a file imports, lazily too: `from slr import paths` is slr.paths."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            whole = [f"slr.{alias.name}" for alias in node.names]
            names += whole if node.module == "slr" else [str(node.module)]
    return names


def may_import(room: str, other: str) -> bool:
    if other in (GROUND, room):
        return True
    if other == "engine" and FLOOR[other] < FLOOR[room]:
        return room in ENGINE_USERS
    if {room, other} == {"datasets", "models"}:
        return False
    return FLOOR[other] < FLOOR[room] or (room, other) == ("engine", "task")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(CODE).as_posix())
def test_imports_go_down(path):
    room = room_of(path)
    others = {name.split(".")[1] for name in imported(path) if name.startswith("slr.")}
    if room == GROUND:
        assert not others
        return
    assert room in FLOOR, f"slr/{room} stands on no floor: list it in DESIGN's table and here"
    up = [other for other in others if not may_import(room, other)]
    assert not up, f"slr/{room} (floor {FLOOR[room]}) may not import {', '.join(sorted(up))}"


def test_slr_knows_neither_scripts_nor_queue():
    beside = {path.stem for path in SCRIPTS} | {"que", "benchmarks"}
    for path in MODULES:
        assert not beside & {name.split(".")[0] for name in imported(path)}, path


def test_queue_knows_nothing_of_slr():
    for path in (ROOT / "que").glob("*.py"):  # not the snapshots in its state
        assert "slr" not in {name.split(".")[0] for name in imported(path)}, path


def test_code_is_no_package():
    """With it `pdb` and `python -m pytest` break: `code` is a standard-library module too."""
    assert not (CODE / "__init__.py").exists()


def test_no_script_shadows_the_standard_library():
    """A queue.py beside the scripts breaks `import torch`."""
    assert not [path for path in SCRIPTS if path.stem in sys.stdlib_module_names]


def test_floors_tell_up_from_down():
    """The test above tested: what it must allow and refuse."""
    assert may_import("tasks", "models") and may_import("config", "catalogue") and may_import("losses", GROUND)
    for room, other in (("losses", "video"), ("paths", "config"), ("datasets", "models"), ("models", "datasets"),
                        ("tasks", "engine"), ("engine", "tasks"), ("transforms", "loading"), ("plots", "metrics")):
        assert not may_import(room, other), (room, other)
