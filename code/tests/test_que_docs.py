"""What the READMEs say of the que is what it does; it starts fast and needs little."""

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys

import pytest
from test_project import ROOT, fenced

from que import cli, settings
from que.errors import Mistake

PAGES = ("README.md", "que/README.md")
TOUR = (ROOT / "que" / "README.md").read_text(encoding="utf-8")


def que_commands(page: str) -> list[list[str]]:
    """The words after `que` of every command in a page's bash blocks."""
    found = []
    for line in fenced((ROOT / page).read_text(encoding="utf-8"), "bash"):
        words = shlex.split(line, comments=True)
        if words[:1] == ["que"]:
            found.append(words[1:])
        elif words[:1] == ["python"] and (words[1:3] == ["-m", "que"] or words[1] == "../que"):
            found.append(words[3 if words[1] == "-m" else 2:])
    return found


def whole_parser() -> argparse.ArgumentParser:
    top = cli.parser()
    cli.add_create_options(verbs(top)["create"])
    return top


def verbs(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(cli._subparsers(top))


@pytest.mark.parametrize(("page", "words"), [(page, words) for page in PAGES for words in que_commands(page)])
def test_documented_commands_parse(page, words):
    args, rest = whole_parser().parse_known_args(words)
    assert args.verb == words[0]
    assert not rest or args.verb == "create"


def test_the_pages_show_commands():
    assert len(que_commands("README.md")) >= 4 and len(que_commands("que/README.md")) >= 8


def test_the_table_names_every_verb():
    named = set(re.findall(r"`(\w+)[ `\[]", "".join(re.findall(r"^\| (`[^|]+`) \|", TOUR, re.M))))
    assert set(verbs(cli.parser())) - {"server", "worker"} <= named


def test_the_table_names_every_option_of_create():
    real = {word for action in verbs(whole_parser())["create"]._actions for word in action.option_strings}
    row = next(line for line in TOUR.splitlines() if line.startswith("| `create "))
    assert set(re.findall(r"`(--\w+)", row)) == real - {"-h", "--help", "--json", "--slurm_option"}


def test_the_settings_that_the_page_names_are_there():
    for name in ("slots", "settle", "grace", "crashes", "ooms", "interrupts", "timeouts", "hook"):
        assert name in settings.KEYS and f"`{name}`" in TOUR or f"settings {name}" in TOUR, name


@pytest.mark.parametrize("start", [["-m", "que"], ["{root}/que"]])
def test_help_is_fast_and_light(start, tmp_path):
    """By module and by path, from elsewhere; torch and the other big ones are nowhere near."""
    words = [word.format(root=ROOT) for word in start]
    ran = subprocess.run([sys.executable, "-X", "importtime", *words, "--help"], cwd=tmp_path, capture_output=True,
                         text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ran.returncode == 0 and "usage: que" in ran.stdout
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", ran.stderr, re.M))
    assert "que.cli" in imported
    assert not {name.split(".")[0] for name in imported} & {"torch", "numpy", "rich", "pynvml", "slr"}


def test_the_que_stands_on_the_standard_library_and_two_packages():
    outside = set()
    for path in (ROOT / "que").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            outside |= {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside == {"que", "rich", "pynvml"}


@pytest.mark.parametrize("word", ["server", "worker"])
def test_the_old_rpc_says_where_to_look(word, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("QUE_DIR", str(tmp_path))
    with pytest.raises(Mistake, match="no .* any more"):
        cli.run([word])
