"""What stands in several places says the same: versions, .ini files, commands, options and config keys."""

import argparse
import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slr import config, paths
from slr.config import SECTIONS, parse_config, read_config
from slr.paths import ROOT, Experiment

SCRIPTS = ("training", "testing", "preprocess", "predict", "extract_features", "export", "utils")
INIS = sorted(paths.CONFIGS.glob("*/*.ini"))
PAGES = ("README.md", "data/README.md", "runs/README.md", "code/README.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")


# --- versions -----------------------------------------------------------------------------------------------


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def required() -> dict[str, list[str]]:
    """{group: requirements} of pyproject.toml; `` is what every run needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[ ]", requirement)[0]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_constraints_pin_what_pyproject_asks_for_and_no_more():
    asked = {name_of(r) for group in required().values() for r in group}
    assert set(pinned()) == asked


def test_pinned_versions_satisfy_pyproject():
    for requirement in (r for group in required().values() for r in group):
        name, _, least = requirement.partition(">=")
        assert numbers(pinned()[name]) >= numbers(least), requirement


def test_conda_gives_the_same_versions():
    environment = yaml.safe_load((ROOT / "wlasl_gpu.yml").read_text())
    (pip,) = (part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    expected = [f"{name_of(r)}=={pinned()[name_of(r)]}" for r in required()[""]]
    assert environment["name"] == "wlasl"
    assert pip == [*expected, "-e ."]
    assert "python=3.11" in environment["dependencies"]


def test_dependencies_are_the_ones_that_are_imported():
    imports = "\n".join(p.read_text(encoding="utf-8") for folder in ("code", "que")
                        for p in (ROOT / folder).glob("**/*.py") if "state" not in p.parts)
    modules = {"opencv-python": "cv2", "scikit-learn": "sklearn", "nvidia-ml-py": "pynvml"}
    for requirement in required()[""]:
        name = name_of(requirement)
        module = modules.get(name, name)
        assert re.search(rf"^\s*(?:import|from) {module}\b", imports, re.M), f"nothing imports {name}"


# --- configfiles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", INIS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_ini_loads_without_a_notice(file):
    found = re.fullmatch(r"(.+)_(\d{3})", file.stem)
    assert found, "MODEL_NNN.ini"
    experiment = Experiment(found[1], file.parent.name, found[2])
    assert experiment.config_file == file
    assert read_config(experiment).notices == ()
    assert file.read_text().startswith("; "), "an .ini opens with what it is for"


def test_every_model_of_isolated_signs_has_an_experiment_on_every_wlasl_split():
    from slr.catalogue import MODELS

    isolated = [name for name, entry in MODELS.items() if entry.task == "isolated"]
    for split in ("asl100", "asl300", "asl1000", "asl2000"):
        for model in isolated:
            assert Experiment(model, split, "0").config_file.is_file(), (model, split)


def test_chained_experiments_start_from_one_that_there_is():
    from slr.catalogue import MODELS

    chained = [f for f in INIS if "init_from" in f.read_text()]
    assert chained
    for file in chained:
        model, _, number = file.stem.rpartition("_")
        starts = read_config(Experiment(model, file.parent.name, number)).model_params.init_from
        for start in starts.split(", "):
            parts = start.split("/")
            if len(parts) == 3:
                entry = MODELS[_canonical(model)]
                older = (f"{model}Pretrain", "LanguageDecoder") if entry.task == "transcription" else ()
                assert model == "Sign2Text" or parts[0] in (model, entry.starts_from, *older), file
                assert Experiment(*parts).config_file.is_file(), file


# --- the README's commands ----------------------------------------------------------------------------------


def fenced(text: str, language: str) -> Iterator[str]:
    for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S):
        yield from block.splitlines()


def commands(page: str) -> list[tuple[str, list[str]]]:
    """(script, its words) of every command in the page's bash blocks that runs one of the scripts."""
    found = []
    for line in fenced((ROOT / page).read_text(encoding="utf-8"), "bash"):
        words = shlex.split(line, comments=True)
        bare = [word.removeprefix("code/").removesuffix(".py") for word in words]
        at = next((i for i, word in enumerate(bare) if word in SCRIPTS), None)
        if at is not None and words[0] in ("python", "torchrun"):
            found.append((bare[at], words[at + 1:]))
    return found


def parser_call(script: str) -> Any:
    module = importlib.import_module(script)
    return module.parse_arguments if hasattr(module, "parse_arguments") else module.parser().parse_args


COMMANDS = [(page, script, words) for page in PAGES for script, words in commands(page)]


@pytest.mark.parametrize(("page", "script", "words"), COMMANDS)
def test_documented_commands_parse(page, script, words):
    args = parser_call(script)(words)
    if script == "training" and not args.config_path:
        experiment = Experiment(_canonical(args.model), args.split, args.exp_no)
        config_file = experiment.config_file
        assert config_file.is_file(), f"{page} names an experiment without an .ini: {config_file}"
        read_config(experiment, config.read_changes(args.changes))


def _canonical(model: str) -> str:
    from slr.catalogue import canonical

    return canonical(model)


def test_the_commands_were_found():
    assert {script for page, script, _ in COMMANDS if page == "README.md"} == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_docstring_commands_parse(script):
    module = importlib.import_module(script)
    lines = re.findall(r"^    (?:python|torchrun .*?) \w+\.py(.*?)(?:   .*)?$", module.__doc__ or "", re.M)
    assert lines, "the docstring opens with commands"
    for line in lines:
        parser_call(script)(shlex.split(line))


# --- the README's tables ------------------------------------------------------------------------------------


def section(heading: str) -> str:
    """The README from the line `heading` to the next heading of the same or a higher level."""
    level = len(heading.split()[0])
    found = re.search(rf"^{re.escape(heading)}[^\n]*\n(.*?)(?=^#{{1,{level}}} |\Z)", README, re.M | re.S)
    assert found, heading
    return found[1]


def parsers_of(script: str, monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """Every parser that the script makes, sub-parsers among them."""
    made: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.__init__

    def note(self, *args, **keys):
        original(self, *args, **keys)
        made.append(self)

    monkeypatch.setattr(argparse.ArgumentParser, "__init__", note)
    monkeypatch.setattr(sys, "stdout", open(os.devnull, "w"))
    with pytest.raises(SystemExit):
        parser_call(script)(["-h"])
    sys.stdout.close()
    return made


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_readme_names_every_option_and_no_other(script, monkeypatch):
    made = parsers_of(script, monkeypatch)
    real = {word for parser in made for action in parser._actions for word in action.option_strings}
    rows = re.findall(r"^\| (`-[^|]*) \|", section(f"### {script}.py"), re.M)
    named = {word for row in rows for word in re.findall(r"`(-[^`]+)`", row)}
    assert named == real


def documented_keys(name: str) -> dict[str, str]:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", section(f"#### `[{name}]`"), re.M)
    return {key: default.strip("`") for key, default in rows}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_config_reference_is_the_config(name):
    fields = dataclasses.fields(SECTIONS[name])
    real = {f.name: "required" if f.default is dataclasses.MISSING else repr(f.default) for f in fields}
    assert documented_keys(name) == real


def test_the_readmes_shortest_config_works():
    text = "\n".join(fenced(README, "ini"))
    assert parse_config(text, Experiment("S3D", "asl100", "4")).notices == ()


def test_the_exit_codes_are_the_programs():
    from slr import errors

    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    rows = re.findall(r"^\| (\d+) \|", section("## Exit codes and status.json"), re.M)
    assert {int(row) for row in rows} == codes


def test_the_status_keys_are_the_logbooks(tmp_path):
    from slr.logbook import Logbook

    rows = re.findall(r"^\| (`[^|]+`) \|", section("## Exit codes and status.json"), re.M)
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert named == set(Logbook(tmp_path, 1).status)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in file:
            continue
        place = (ROOT / page).parent / file if file else ROOT / page
        assert place.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.M)
            anchors = [re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings]
            assert anchor in anchors, target


# --- scripts ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_torch(script, tmp_path):
    """Run by path, from elsewhere."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "code" / f"{script}.py"), "--help"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "usage: " in ran.stdout and f"python {script}.py " in ran.stdout
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", ran.stderr, re.M))
    assert "slr.errors" in imported
    assert not imported & {"torch", "torchvision", "cv2", "matplotlib", "wandb", "sklearn"}


def test_the_plan_of_the_code_is_the_code():
    """The floors of code/README.md are those that test_floors.py guards; its tree names every module."""
    from test_floors import FLOORS

    text = (ROOT / "code" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", text, re.M)
    drawn = {int(floor): set(rooms.replace("/", "").split(", ")) for floor, rooms in rows}
    there = {path.stem for path in (ROOT / "code" / "slr").iterdir()}
    assert {floor: drawn[floor] for floor in FLOORS} == {n: set(rooms) & there for n, rooms in FLOORS.items()}
    tree = text[:text.index("## Floors")]
    for path in (ROOT / "code" / "slr").rglob("*.py"):
        assert path.name == "__init__.py" or path.name in tree, path


def test_ci_runs_make_test():
    runner = ROOT / ".ci" / "run"
    assert os.access(runner, os.X_OK)
    assert "make test" in runner.read_text()


@pytest.mark.parametrize("target", ["demo", "test", "quick", "nightly", "bench", "clean", "help"])
def test_the_makefile_has(target):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:.*## ", makefile, re.M)


def test_the_top_level_holds_what_was_agreed():
    allowed = {"code", "configfiles", "data", "runs", "que", "wlasl_gpu.yml", "LICENSE", "README.md",
               "Makefile", "pyproject.toml", "constraints.txt", ".ci", ".gitignore"}
    ran = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, timeout=60)
    if ran.returncode:
        pytest.skip("no git repository")
    assert {Path(line).parts[0] for line in ran.stdout.splitlines()} <= allowed
