"""que/verbs.py, create.py, cli.py and shell.py: what a person types, and what comes of it."""

import contextlib
import gc
import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from que import cli, create, disk, gpus, procs, shell, snapshot
from que.errors import Mistake
from que.job import SHORT, STATES, TRASH, Job, memory_text, parse_memory, parse_time, state_named, time_text
from que.store import Store

ROOT = Path(cli.__file__).parents[1]
PLACES = (*STATES, TRASH)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # fsync costs nothing there
SIZES = {"R3D": 8}


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Input(io.StringIO):
    """What is typed; on a terminal or not."""

    terminal = False

    def isatty(self) -> bool:
        return self.terminal


def que(*words: str, stdin: str = "") -> Said:
    """A command in this process; its words may be one string."""
    if len(words) == 1:
        words = tuple(shlex.split(words[0]))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch("sys.stdin", Input(stdin)):
        try:
            code = cli.main(list(words))
        except SystemExit as leave:  # of argparse
            code = int(leave.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def fake_resolve(store: Store, job: Job) -> str:
    """Does as training.py --print_config would, without starting it."""
    if job.model == "Wrong":
        raise Mistake("training.py does not take this", "no such model: Wrong", "nothing was changed")
    whole, _, part = job.exp_no.partition(".")
    folder = Path(os.environ["SLR_RUNS"]) / job.split
    job.run = str(folder / f"{job.model}_{whole.zfill(3)}{'.' + part if part else ''}")
    job.facts = {"batch_size": SIZES.get(job.model, 4), "num_frames": 32, "frame_size": 224, "precision": "fp32"}
    return f"; run folder: {job.run}\n[training]\n; {' '.join(job.options)}\n"


@pytest.fixture
def place(monkeypatch) -> Iterator[Path]:
    """An empty state folder at `state`, runs at `runs`; training.py, git and NVML are not asked."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        monkeypatch.setenv("QUE_DIR", f"{name}/state")
        monkeypatch.setenv("SLR_RUNS", f"{name}/runs")
        for word in ("SLR_DATA", gpus.FAKE, "WANDB_MODE"):
            monkeypatch.delenv(word, raising=False)
        monkeypatch.setattr(create, "resolve", fake_resolve)
        monkeypatch.setattr(snapshot, "take", lambda state, root: "0123456789ab")
        monkeypatch.setattr(gpus, "read_gpus", list)
        monkeypatch.chdir(name)
        yield Path(name)


@pytest.fixture
def filled(place) -> Store:
    """j1 to j4 in to_run, j5 and j6 in cur_run (one with its lease held by this process), and so on."""
    store = Store(place / "state")
    mine = {**procs.identity(), "devices": ["cpu:0"]}
    for state, count in (("to_run", 4), ("cur_run", 1), ("old_runs", 3), ("fail_runs", 2), ("held", 2), (TRASH, 2)):
        run = place / "runs" / "asl100"
        store.add(*(Job("S3D", "asl100", f"{state[0]}{i}", run=str(run / f"S3D_{state}_{i}"), claim=mine if state ==
                        "cur_run" else {}, attempts=[] if state in ("to_run", "held") else
                        [{"stage": "train", "started": 1000.0, "ended": 4600.0, "cause": "done", "reason": "a reason"}],
                        ended=4600.0 if state in ("old_runs", "fail_runs") else None, reason="a reason",
                        last={"epoch": 2, "epochs": 4, "best": {"metric": "top1", "value": 0.1 * i, "epoch": 1},
                              "wandb_url": "https://wandb.example/run"} if state == "old_runs" else {})
                    for i in range(count)), state=state)
    store.log("j5").write_text("one\ntwo\n10 %\r20 %\r30 %\nthree\n")
    store.log("daemon").write_text("the daemon's\n")
    return store


def put(**values: Any) -> Callable[[Job], None]:
    return lambda job: vars(job).update(values)


def ids(store: Store, state: str = "to_run") -> list[str]:
    return [job.id for job in store.jobs(state)]


def expect_mistake(said: Said, *words: str) -> None:
    """Exit code 2 and no traceback. A mistake of ours: what is wrong, what was found, what to do."""
    assert said.code == 2 and not said.out and "Traceback" not in said.err, said
    assert all(word in said.err for word in words), said.err
    if not said.err.startswith("usage: "):
        first, *rest = said.err.rstrip("\n").split("\n")
        assert first.startswith("error: ") and rest and all(line.startswith("  ") for line in rest), said.err


# --- names and numbers


@pytest.mark.parametrize(("word", "state"), [*SHORT.items(), *((state, state) for state in PLACES), ("NEW", "to_run")])
def test_locations_by_all_their_names(filled, word, state):
    rows = que("list", word, "--json").json["jobs"]
    assert [row["id"] for row in rows] == ids(filled, state) != []
    assert [row["index"] for row in rows] == list(range(len(rows))) and {row["state"] for row in rows} == {state}
    assert que("display", word, "0", "-ks", "id", "--json").json == ids(filled, state)[0]


@pytest.mark.parametrize(("words", "expected"), [
    ("new 0", "j1"), ("tr 3", "j4"), ("new 1-2", "j2 j3"), ("new all", "j1 j2 j3 j4"), ("new 3,0", "j4 j1"),
    ("j3", "j3"), ("j3 j1", "j3 j1"), ("j3,j1", "j3 j1"), ("new j2", "j2"), ("new 0-1,3", "j1 j2 j4")])
def test_what_is_selected(filled, words, expected):
    said = que(f"hold {words} --json")
    assert [job["id"] for job in said.json] == expected.split() and {job["state"] for job in said.json} == {"held"}
    assert not set(expected.split()) & set(ids(filled))


def test_move_keeps_the_order(filled):
    assert que("move new held 1-2").code == 0 and ids(filled) == ["j1", "j4"]
    assert ids(filled, "held") == ["j2", "j3", "j11", "j12"]
    assert que("move held new all").code == 0 and ids(filled)[:4] == ["j1", "j2", "j3", "j4"]
    assert que("move fail to_run 0 -of 1").code == 0 and ids(filled)[-2:] == ["j9", "j10"]


@pytest.mark.parametrize(("old", "new"), [(0, 3), (3, 0), (1, 2), (2, 2)])
def test_shuffle(filled, old, new):
    expected = ids(filled)
    expected.insert(new, expected.pop(old))
    assert que(f"shuffle new {old} {new}").code == 0 and ids(filled) == expected


def test_remove_clear_and_back(filled):
    assert "move trash to_run" in que("remove new 1-2").out and ids(filled, TRASH)[-2:] == ["j2", "j3"]
    assert que("move trash new j3").code == 0 and ids(filled) == ["j1", "j4", "j3"]
    assert que("clear old -y").code == 0 and not ids(filled, "old_runs") and "j6" in ids(filled, TRASH)
    assert que("clear trash --yes").code == 0 and not ids(filled, TRASH)
    assert filled.log("j5").exists() and len(filled.jobs()) == 8


def test_clear_asks(filled, monkeypatch):
    expect_mistake(que("clear new"), "nobody is there to confirm", "--yes")
    for answer, left in (("n", 4), ("", 4), ("y", 0)):
        with mock.patch.object(Input, "terminal", True):
            said = que("clear", "new", stdin=f"{answer}\n")
        assert said.code == (2 if left else 0) and len(ids(filled)) == left
    with mock.patch.object(Input, "terminal", True):
        assert que("clear", "held").code == 130, "Ctrl-D"
    assert len(ids(filled, "held")) == 2


def test_what_runs_is_not_taken_away(filled):
    for words in ("remove cur 0", "move cur new 0", "clear cur -y", "recover j5", "edit j5 note x"):
        expect_mistake(que(words), "j5 ")
    assert que("pause cur 0 --json").json[0]["request"] == "pause"
    assert que("cancel j5 --json").json[0]["request"] == "cancel" and filled.find("j5").state == "cur_run"


def test_whose_worker_is_gone(filled):
    filled.update("j5", lambda job: job.claim.update(pid=1, start=1))
    assert "its worker is gone" in que("list cur").out
    expect_mistake(que("cancel j5 --wait"), "nobody runs j5", "daemon start")
    assert que("move cur new 0").code == 0
    job = filled.find("j5")
    assert job.recover and not job.claim and not job.request


def test_pause_and_cancel_of_what_waits(filled):
    assert que("pause new 0").code == 0 and filled.find("j1").reason == "paused"
    assert que("cancel new 0").code == 0 and filled.find("j2").reason == "cancelled" and filled.find("j2").ended
    assert que("resume held j1").code == 0 and ids(filled) == ["j1", "j3", "j4"]
    assert que("release held all").code == 0 and not ids(filled, "held")


@pytest.mark.parametrize(("words", "expected", "recovers"), [
    ("recover", "j9", True), ("recover fail 1", "j10", True), ("recover j10", "j10", True),
    ("recover fail", "j9", True),
    ("recover -i 1", "j10", True), ("recover -ol old -i 2", "j8", True), ("recover -cs", "j9", False),
    ("recover -nl held", "j9", True), ("recover --live j9", "j9", True)])
def test_recover(filled, words, expected, recovers):
    filled.update(expected, put(tries={"crashes": 2}, request="cancel", snapshot="abc"))
    assert [job["id"] for job in que(f"{words} --json").json] == [expected]
    job = filled.find(expected)
    assert job.state == ("held" if "held" in words else "to_run") and job.recover == recovers
    assert (job.tries, job.request, job.ended, job.claim) == ({}, "", None, {})
    assert job.snapshot == ("" if "--live" in words else "abc")


def test_a_recovered_test_is_tested_again(filled):
    filled.update("j9", put(stage="test"))
    que("recover j9")
    assert filled.find("j9").stage == "test" and not filled.find("j9").recover
    que("move new fail j9")
    que("recover -cs j9")
    assert filled.find("j9").stage == "train" and not filled.find("j9").recover


@pytest.mark.parametrize(("key", "text", "value"), [
    ("priority", "-5", -5), ("gpus", "2", 2), ("gpus", "none", None), ("memory", "8G", 8 << 30),
    ("memory", "None", None),
    ("time_limit", "12h", 43200.0), ("time_limit", "none", None), ("note", "a b", "a b"), ("note", "none", "none"),
    ("test", "false", False), ("test", "True", True), ("extract", "true", True), ("extract", "False", False),
    ("after", "j2,j3", ["j2", "j3"]), ("after", "none", [])])
def test_edit(filled, key, text, value):
    assert que("edit", "new", "0", key, text).code == 0
    assert getattr(filled.find("j1"), key) == value


def test_edit_of_what_it_starts_from(filled):
    que("edit j4 after j1")
    for word in ("parent", "Parents"):
        assert que(f"edit j4 init_from {word}").code == 0 and filled.find("j4").init_from == word.lower()
        expect_mistake(que("edit j4 after none"), f"init_from {word.lower()} needs a parent")
    assert que("edit j4 init_from none").code == que("edit j4 after none").code == 0
    que("edit j1 after j2")
    que("edit j2 after j3")
    for words in ("edit j3 after j1", "edit j1 after j1", "edit j2 after j3,j1"):
        expect_mistake(que(words), "cannot wait for itself")


def test_priority(filled):
    assert que("priority new 2-3 7").code == 0 and ids(filled) == ["j3", "j4", "j1", "j2"]
    assert que("priority j1 9 --json").json[0]["priority"] == 9 and ids(filled)[0] == "j1"
    assert que("priority", "j1", "-1").code == 0 and ids(filled)[-1] == "j1"


# --- looking


def test_logs(filled):
    assert que("logs j5").out == que("logs cur 0").out == que("logs").out == que("logs -w").out == \
        "one\ntwo\n30 %\nthree\n"
    assert que("logs -n 1").out == "three\n" and que("logs -n 0").out == ""
    assert que("logs -s").out == "the daemon's\n"
    assert que("logs --json").json == {"log": str(filled.log("j5")), "lines": ["one", "two", "30 %", "three"]}
    expect_mistake(que("logs j1"), "there is no log yet")


def test_attach_follows_to_the_end(filled):
    filled.update("j5", to="old_runs")
    assert que("attach j5").out == "one\ntwo\n30 %\nthree\n"
    expect_mistake(que("attach"), "no job runs")
    expect_mistake(que("logs"), "there is no log yet")


def test_wandb(filled):
    with mock.patch("webbrowser.open", return_value=True) as opened:
        assert que("wandb old 0").out == "https://wandb.example/run\n" and opened.called
    with mock.patch("webbrowser.open", return_value=False):
        assert "no browser" in que("wandb old 0").out
    assert que("wandb old 0 --json").json == {"url": "https://wandb.example/run"}
    expect_mistake(que("wandb fail 0"), "no wandb page")


def test_display(filled):
    said = que("display old 1 --json").json
    assert said["id"] == "j7" and said["state"] == "old_runs" and json.loads(que("display j7").out) == said
    assert que("display j7 -ks last best value").out == "0.1\n"
    expect_mistake(que("display j7 -ks last nothing"), "there is no such key", "wandb_url")
    expect_mistake(que("display j7 -ks id more"), "none below this one")


def test_list_sorted_and_cut(filled):
    def rows(words: str) -> list[str]:
        return [row["id"] for row in que(f"list {words} --json").json["jobs"]]

    assert rows("old -ks best value -r") == ["j8", "j7", "j6"] and rows("old -r") == ["j8", "j7", "j6"]
    assert len(rows("-ks best")) == len(rows("-ks priority")) == len(rows("-ks no such key")) == 12
    assert "to_run (4, 2 shown: --limit N shows more)" in que("list -n 2").out
    assert "j6" not in que("list old -n 1").out and "j8" in que("list old -n 1").out
    assert "j8" not in que("list -n 0").out


def test_lists_when_piped(filled):
    """Plain columns, no colours, nothing cut."""
    que("edit", "j1", "note", "a long note " * 30)
    said = que("list")
    assert said.out.isascii() and "\x1b" not in said.out and "a long note " * 29 in said.out
    lines = said.out.splitlines()
    assert lines[:2] == ["to_run (4)", lines[1]] and lines[1].split()[:3] == ["idx", "id", "experiment"]
    assert [line.split()[:2] for line in lines[2:6]] == [[str(n), f"j{n + 1}"] for n in range(4)]
    assert lines[-1].startswith("no daemon runs")


def test_lists_on_a_terminal(filled):
    """As a table, no wider than it is."""
    main, inner = pty.openpty()
    child = subprocess.Popen([sys.executable, str(ROOT / "que"), "list"], stdin=inner, stdout=inner, stderr=inner,
                             env={**os.environ, "COLUMNS": "70", "TERM": "xterm-256color"})
    os.close(inner)
    said = b""
    with contextlib.suppress(OSError):  # its end
        while more := os.read(main, 65536):
            said += more
    os.close(main)
    assert child.wait() == 0
    text = said.decode()
    assert "╭" in text and "\x1b[" in text and all(name in text for name in ("to_run (4)", "fail_runs (2)", "j12"))
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= 70


def test_warnings_are_seen(filled):
    (filled.folder / "to_run" / "j1.json").write_text("{")
    said = que("hold new 0")
    assert said.code == 0 and "warning: to_run/j1.json lies in quarantine/ now" in said.err
    assert "warning: 1 in quarantine: to_run-j1.json" in que("list").out
    assert "1 in quarantine" in " ".join(que("list --json").json["warnings"])


def test_names_that_the_terminal_cannot_show(filled):
    filled.update("j1", put(note="caf\xe9 \udcff"))
    ran = subprocess.run([sys.executable, str(ROOT / "que"), "list"], capture_output=True,
                         env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ran.returncode == 0 and rb"caf\xe9 \udcff" in ran.stdout


def test_a_reader_that_has_seen_enough(filled):
    out, end = os.pipe()
    os.close(out)
    ran = subprocess.run([sys.executable, str(ROOT / "que"), "list"], stdout=end, stderr=subprocess.PIPE)
    os.close(end)
    assert not ran.stderr


# --- every verb as JSON, every mistake with a message

JSON = ["create S3D asl100 9", "create S3D asl100 9 --dry_run --seeds 1-2", "add S3D asl100 8", "remove new 0",
        "clear new -y", "move new held 0", "shuffle new 0 1", "recover fail 0", "list", "list old", "display j1",
        "logs j5", "attach j5", "wandb old 0", "edit j1 note x", "priority j1 3", "hold new 0", "release held 0",
        "resume held 0", "pause new 0", "cancel new 0", "daemon status", "daemon stop", "save file.json",
        "load file.json", "settings", "settings slots", "settings slots 2", "doctor", "install"]
WITHOUT = {"web", "shell", "quit", "server", "worker"}  # they answer nothing


@pytest.mark.parametrize("words", JSON)
def test_json_of_every_verb(filled, place, words):
    (place / "runs" / "asl100" / "S3D_008").mkdir(parents=True)
    (place / "runs" / "asl100" / "S3D_008" / "status.json").write_text('{"state": "done", "updated": 5.0, "epoch": 3}')
    if words.startswith("load"):
        assert que("save file.json").code == 0
    said = que(f"{words} --json")
    assert said.code == 0 and not said.err, said
    assert isinstance(said.json, list | dict)
    if isinstance(said.json, list) and words.split()[0] not in ("load", "doctor"):
        assert said.json and all(job["state"] in ("", *PLACES) and job["model"] == "S3D" for job in said.json)


def test_json_is_tried_of_every_verb():
    verbs = set(next(cli._subparsers(cli.parser())))
    assert {words.split()[0] for words in JSON} == verbs - WITHOUT


MISTAKES = [
    "bogus", "create", "create S3D", "create S3D asl100", "create Wrong asl100 1", "create S3D asl100 9 --seeds x",
    "create S3D asl100 9 --seeds 3-1", "create S3D asl100 9 --sweep x", "create S3D asl100 9 --sweep lr=1",
    "create S3D asl100 9 --gpus -1", "create S3D asl100 9 --gpus x", "create S3D asl100 9 --memory 0",
    "create S3D asl100 9 --memory much", "create S3D asl100 9 --time never", "create S3D asl100 9 --after j99",
    "create S3D asl100 9 --init_from parent", "create S3D asl100 9 --init_from parents",
    "create S3D asl100 9 --after j1 --init_from j1",
    "create S3D asl100 9 --share", "create S3D asl100 9 --print_config", "create S3D asl100 9 --test_best",
    "create S3D asl100 9 --priority high", "create S3D asl100 9 --to moon", "add S3D asl100 9", "add Wrong asl100 1",
    "remove", "remove new", "remove new 9", "remove new x", "remove nowhere 0", "remove j99", "remove new 0 1",
    "clear", "clear nowhere", "clear new", "move", "move new held", "move new cur 0", "move nowhere new 0",
    "move new nowhere 0", "move new held 3-9", "move new held 2 -of 1", "move new held x -of 1",
    "move new held 0 -of x", "shuffle new 0", "shuffle new 0 4", "shuffle new 4 0", "shuffle new -1 0",
    "shuffle new a b", "shuffle old 0 9", "recover new 9", "recover j99", "recover -i 9", "recover -ol nowhere",
    "recover -nl cur", "recover -nl nowhere", "recover -i x", "list nowhere", "list new old", "list -n -1",
    "list -n x", "display", "display new 0-1", "display j99", "display j1 -ks nothing", "logs j99", "logs -n x",
    "logs -w -s", "logs new 0", "attach j1", "wandb fail 0", "wandb j99", "edit j1", "edit j1 priority",
    "edit j1 priority x", "edit j1 gpus -2", "edit j1 gpus many", "edit j1 memory 0", "edit j1 time_limit -5",
    "edit j1 test maybe", "edit j1 extract maybe", "edit j1 init_from parents",
    "edit j1 id j2", "edit j1 after j99", "edit j1 after j1", "edit j1 init_from j2",
    "edit j1 init_from parent", "edit new all note x", "edit new 9 note x", "edit j1 order 5", "priority j1",
    "priority j1 high", "priority j99 1", "hold", "hold held 0", "hold j99", "hold cur 0", "release new 0",
    "release nothing", "resume j1", "pause old 0", "pause j99", "cancel old 0", "cancel", "daemon go",
    "daemon stop --timeout x", "load", "load nothing.json", "load damaged.json", "load list.json", "save there.json",
    "save no/such/folder/x.json", "settings nothing", "settings slots many", "settings slots -1",
    "settings settle never", "settings slots 1 2", "web -p x", "web -p 99999999", "quit", "server", "server start",
    "worker", "display j\u0663", "priority j1 99999999999999999999x", "remove new 99999999999"]


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes(filled, place, words):
    Path("there.json").write_text("{}")
    Path("list.json").write_text('{"version": 1, "jobs": [{"state": 5, "job": {}, "config": ""}]}')
    Path("damaged.json").write_text('{"version": 1, "jobs": [')
    before = photograph(place)
    expect_mistake(que(words))
    assert photograph(place) == before


def photograph(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@given(st.lists(st.sampled_from([*JSON, *MISTAKES]).map(str.split).flatmap(lambda words: st.sampled_from(words)) |
                st.text(max_size=4), min_size=1, max_size=5))
@examples(max_examples=60)
def test_no_words_end_in_a_traceback(words):
    """Whatever is typed: it works, or is answered by a mistake."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY))
        stack.enter_context(mock.patch.dict(os.environ, {"QUE_DIR": f"{folder}/state", "SLR_RUNS": f"{folder}/runs"}))
        stack.enter_context(contextlib.chdir(folder))
        for name, act in (("create.resolve", fake_resolve), ("create.snapshot.take", lambda state, root: "ab"),
                          ("gpus.read_gpus", list), ("daemon.start", fake_start), ("daemon.Daemon.run", int)):
            stack.enter_context(mock.patch(f"que.{name}", act))
        stack.enter_context(mock.patch("que.web.serve", lambda *words: None))
        Store(Path(folder, "state")).add(Job("S3D", "asl100", "1"), Job("S3D", "asl100", "2"))
        said = que(*words) if len(words) > 1 else que(words[0], "--json")
        assert said.code in (0, 2) and "Traceback" not in said.err
        assert len(Store(Path(folder, "state")).jobs(*PLACES)) >= 2 or "trash" in words


def fake_start(store: Store, stop_on_fail: bool = False) -> dict:
    return {"pid": 1}


# --- create and add


def made(words: str) -> list[dict]:
    said = que(f"create {words} --json")
    assert said.code == 0, said.err
    return said.json


def test_create(place):
    job, = made("S3D asl100 4 --note hello --priority 3 --gpus 2 --memory 8G --time 1h --no_test --seed 5")
    assert (job["id"], job["state"], job["run"]) == ("j1", "to_run", str(place / "runs/asl100/S3D_004"))
    assert (job["note"], job["priority"], job["gpus"], job["memory"], job["time_limit"], job["test"]) == (
        "hello", 3, 2, 8 << 30, 3600.0, False)
    assert job["options"] == ["--seed", "5"] and job["facts"]["batch_size"] == 4
    assert job["snapshot"] == "0123456789ab" and job["env"] == {"SLR_RUNS": str(place / "runs")}
    assert (place / "state/configs/j1.ini").read_text().startswith("; run folder: ")
    said = que("create S3D asl100 5")
    assert said.out.startswith("j2 S3D asl100 5 in to_run -> ") and "no daemon runs" in said.out


def test_the_same_experiment_twice(filled, place):
    made("S3D asl100 4")
    expect_mistake(que("create S3D asl100 4"), "j15 in to_run is this experiment already", "-ee")
    que("hold j15")
    expect_mistake(que("create S3D asl100 4"), "j15 in held")
    filled.update("j15", to="cur_run")
    expect_mistake(que("create S3D asl100 4"), "j15 in cur_run")
    filled.update("j15", to="old_runs")
    assert made("S3D asl100 4")[0]["id"] == "j16", "it has never run, as far as its folder tells"


def test_what_has_run_before(place):
    run = place / "runs/asl100/S3D_004"
    run.mkdir(parents=True)
    assert made("S3D asl100 4")[0]["run"] == str(run), "an empty folder is no run"
    que("remove j1")
    (run / "status.json").write_text('{"state": "failed"}')
    expect_mistake(que("create S3D asl100 4"), "has run before", "-r goes on", "-ee")
    job, = made("S3D asl100 4 -r")
    assert job["recover"] and job["options"] == [] and job["run"] == str(run)
    expect_mistake(que("create S3D asl100 4 -r"), "j2 in to_run is this experiment already")


def test_enumerated(place):
    (place / "runs/asl100/S3D_004.1").mkdir(parents=True)
    names = [made(f"S3D asl100 4 {flag}")[0]["exp_no"] for flag in ("", "-ee", "--enum_exp", "-ee")]
    assert names == ["4", "4.2", "4.3", "4.4"]
    assert Store(place / "state").find("j4").run == str(place / "runs/asl100/S3D_004.4")
    assert made("R3D asl100 4 -ee")[0]["exp_no"] == "4"


def test_seeds_and_sweeps(place):
    jobs = made("S3D asl100 4 --seeds 1-3")
    assert [job["options"] for job in jobs] == [["--seed", "1"], ["--seed", "2"], ["--seed", "3"]]
    assert [job["exp_no"] for job in jobs] == ["4", "4.1", "4.2"] and len({job["run"] for job in jobs}) == 3
    jobs = made("S3D asl100 4 --seeds 1,7-8 --sweep training.lr=0.1,0.2 --sweep 'a.b=(1, 2),(3, 4)' --set c.d=1")
    assert len(jobs) == 12 and jobs[0]["options"] == [
        "--set", "c.d=1", "--seed", "1", "--set", "training.lr=0.1", "--set", "a.b=(1, 2)"]
    assert [job["exp_no"] for job in jobs] == [f"4.{n}" for n in range(3, 15)]
    assert jobs[-1]["options"][2:] == ["--seed", "8", "--set", "training.lr=0.2", "--set", "a.b=(3, 4)"]
    assert ids(Store(place / "state")) == [f"j{n}" for n in range(1, 16)]


def test_dry_run_files_nothing(place):
    said = que("create S3D asl100 4 --seeds 1-2 --dry_run")
    assert said.code == 0 and said.out.count("would file") == 2 and "S3D_004.1" in said.out
    assert not photograph(place).keys() - {str(place / "state/lock")}


def test_after(place):
    expect_mistake(que("create S3D asl100 1 --after last"), "there is no last job")
    made("S3D asl100 1")
    made("S3D asl100 2 --priority 5")
    assert made("S3D asl300 1 --after last --init_from parent")[0]["after"] == ["j2"]
    both, = made("S3D asl300 2 --after j1,last --init_from parents")
    assert (both["after"], both["init_from"]) == (["j1", "j3"], "parents")
    que("remove j4")
    assert made("S3D asl300 3 --after last")[0]["after"] == ["j3"]
    assert "waits for j2" in que("list").out


def test_features_at_last(place, monkeypatch):
    """Asked for at `create` or later; of a model that has none, both refuse."""
    assert [made(f"S3D asl100 {words}")[0]["extract"] for words in ("1", "2 --extract", "3 --no_test --extract")] == [
        False, True, True]

    def isolated(store: Store, job: Job) -> str:
        text = fake_resolve(store, job)
        job.facts["task"] = "isolated"
        return text

    monkeypatch.setattr(create, "resolve", isolated)
    expect_mistake(que("create S3D asl100 4 --extract"), "only models of sentences", "of the task isolated")
    made("S3D asl100 4")
    expect_mistake(que("edit j4 extract true"), "only models of sentences")
    assert not Store(place / "state").find("j4").extract and que("edit j1 extract true").code == 0


def test_lists_name_the_stage(filled):
    for stage, word in (("test", "testing"), ("extract", "extracting")):
        filled.update("j5", put(stage=stage, last={}))
        assert f" {word} " in que("list cur").out and que("list cur --json").json["jobs"][0]["stage"] == stage
        assert que("display j5 -ks stage --json").json == stage


def test_live_hold_and_config(place):
    (place / "my.ini").write_text("")
    assert made("S3D asl100 1 --live -c my.ini")[0]["options"] == ["-c", str(place / "my.ini")]
    assert made("S3D asl100 2 -c my.ini --seed 1")[0]["options"] == ["--seed", "1"]
    assert made("S3D asl100 3 --config_path=my.ini")[0]["options"] == []
    live, kept = (Store(place / "state").find(name) for name in ("j1", "j2"))
    assert (live.snapshot, kept.snapshot) == ("", "0123456789ab")
    assert made("S3D asl100 5 --hold")[0]["state"] == "held"


def test_shared_by_what_was_measured(place):
    for size in (3 << 30, 5 << 30):
        gpus.learn(place / "state", Job("S3D", "", "", facts={"batch_size": 4, "num_frames": 32, "frame_size": 224,
                                                              "precision": "fp32"}), size) \
            if (place / "state").exists() else que("list")
    said = que("create S3D asl100 1 --share")
    assert said.code == 0 and "5.0 GiB" in said.out and Store(place / "state").find("j1").memory == 5 << 30
    assert made("S3D asl100 2 --share --memory 1G")[0]["memory"] == 1 << 30
    expect_mistake(que("create R3D asl100 1 --share"), "nobody has measured")


def test_a_create_that_fails_files_nothing(place):
    """Of a sweep whose third value is refused, none is filed."""
    que("list")
    before = photograph(place)

    def refuse(store: Store, job: Job) -> str:
        if "training.lr=x" in job.options:
            raise Mistake("training.py does not take this", "x", "nothing was changed")
        return fake_resolve(store, job)

    with mock.patch.object(create, "resolve", refuse):
        expect_mistake(que("create S3D asl100 4 --sweep training.lr=1,2,x"))
    assert photograph(place) == before


def test_add(place):
    run = place / "runs/asl100/S3D_004"
    run.mkdir(parents=True)
    expect_mistake(que("add S3D asl100 4"), "this run is not finished", "no status.json")
    (run / "status.json").write_text('{"state": "running"}')
    expect_mistake(que("add S3D asl100 4"), "running")
    (run / "status.json").write_text(json.dumps({
        "state": "done", "updated": 50.0, "started": 10.0, "epoch": 2, "epochs": 2,
        "best": {"metric": "top1", "value": 0.5, "epoch": 1}}))
    assert que("add S3D asl100 4 --note mine").code == 0
    row = que("list old --json").json["jobs"][0]
    assert (row["note"], row["best"]["value"], row["ended"], row["progress"]) == ("mine", 0.5, 50.0, 1.0)
    expect_mistake(que("add S3D asl100 4"), "in the que already")
    assert que("clear old -y").code == 0 and que("add S3D asl100 4").code == 0


# --- the whole


def test_save_and_load(filled, place, monkeypatch):
    que("shuffle new 3 0")
    que("edit j1 after j3")  # a parent that comes later in the list
    que("priority j2 5")
    filled.update("j4", put(after=["j6"]))
    assert que("save all.json").code == 0
    expect_mistake(que("save all.json"), "there already", "--yes")
    assert que("save all.json -y").code == 0 and not list(place.glob(".*"))
    assert que("load all.json --json").json == []

    def seen(store: Store) -> list[tuple]:
        names = {job.id: job.title for job in store.jobs(*PLACES)}
        return [("to_run" if job.state == "cur_run" else job.state, job.title, [names[i] for i in job.after],
                 job.priority) for job in store.jobs(*PLACES)]

    expected = seen(filled)
    monkeypatch.setenv("QUE_DIR", str(place / "other"))
    que("create R3D asl100 1")
    assert "14 jobs loaded, 0 were here" in que("load all.json").out
    other = Store(place / "other")
    found = [entry for entry in seen(other) if not entry[1].startswith("R3D")]
    assert sorted(found) == sorted(expected) and not other.jobs("cur_run")
    for state in PLACES[2:]:
        assert [entry for entry in found if entry[0] == state] == [entry for entry in expected if entry[0] == state]
    ran = next(job for job in other.jobs() if job.title == "S3D asl100 c0")
    assert ran.recover and not ran.claim
    assert "0 jobs loaded, 14 were here" in que("load all.json").out


def test_settings(place):
    assert que("settings slots --json").json == {"slots": 1}
    assert que("settings slots 3 --json").json == {"slots": 3} and que("settings --json").json["slots"] == 3
    assert que("settings settle 2m --json").json == {"settle": 120.0}
    assert que("settings", "hook", "mail me", "--json").json == {"hook": "mail me"}
    (place / "state/settings.json").write_text('{"slots": "many", "settle": 5}')
    assert que("settings --json").json["slots"] == 1 and que("settings --json").json["settle"] == 5
    for state in ("{", "[]", ""):
        (place / "state/settings.json").write_text(state)
        assert que("settings slots --json").json == {"slots": 1}


def test_shell(filled):
    typed = ["hold new 0", "list held", "", "help", "bogus", "'", "hold j99", "release held 0 ", "list -h", "quit",
             "hold j2"]
    said = que("shell", stdin="\n".join(typed))
    assert said.code == 0 and "j1 S3D asl100 t0" in said.out and "Traceback" not in said.err
    assert "error: this line cannot be read" in said.err and "error: there is no such job: j99" in said.err
    assert "invalid choice: 'bogus'" in said.err and "usage: que list" in said.out
    assert ids(filled) == ["j1", "j2", "j3", "j4"], "quit has left it"
    assert que("shell", stdin="").code == 0, "the end of the input"


def test_completion(filled):
    it = shell.Shell(filled)
    assert it.completenames("re") == ["remove", "recover", "release", "resume"]
    assert it.completedefault("o", "list o", 5, 6) == ["old_runs", "old", "or"]
    assert it.completedefault("--li", "list --li", 5, 9) == ["--limit"]
    assert {"--seeds", "--sweep"} <= set(it.completedefault("--s", "create --s", 7, 10))
    assert it.completedefault("j1", "hold j1", 5, 7) == ["j1", "j10", "j11", "j12"]
    assert it.completedefault("st", "daemon st", 7, 9) == ["start", "stop", "status"]
    assert it.completedefault("-", "bogus -", 6, 7) == []


def test_completion_by_the_tab_key(filled):
    main, inner = pty.openpty()
    child = subprocess.Popen([sys.executable, str(ROOT / "que"), "shell"], stdin=inner, stdout=inner, stderr=inner,
                             env={**os.environ, "TERM": "dumb", "COLUMNS": "200"})
    os.close(inner)
    said = b""
    for typed, wanted in ((b"", b"(que) "), (b"sett\t\n", b"headroom"), (b"list fai\t --js\t\n", b'"jobs"'),
                          (b"quit\n", b"")):
        os.write(main, typed)
        deadline = time.monotonic() + 20
        while wanted not in said and time.monotonic() < deadline:
            said += os.read(main, 65536)
        assert wanted in said
        said = said.rpartition(wanted)[2] if typed != b"quit\n" else said
    assert child.wait(20) == 0
    os.close(main)


def test_a_terminal_without_words_is_a_shell(filled):
    with mock.patch.object(Input, "terminal", True), mock.patch("que.shell.Shell.cmdloop") as loop:
        que(*[])
    assert loop.called
    assert "to_run (4)" in que(*[]).out, "else a list"
    assert gc.isenabled()


# --- the real training.py


def real(*words: str, cwd: Path = ROOT, code: int = 0, by: tuple[str, ...] = ("-m", "que"), **env: str) -> str:
    ran = subprocess.run([sys.executable, *by, *words], capture_output=True, text=True, cwd=cwd, timeout=60,
                         stdin=subprocess.DEVNULL, env={**os.environ, **env})
    assert ran.returncode == code and "Traceback" not in ran.stderr, ran.stderr
    return ran.stdout if not code else ran.stderr


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("QUE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("SLR_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SLR_DATA", str(tmp_path / "data"))
    return tmp_path


def test_create_edit_and_list_for_real(home):
    """By every way to call it; settings of `-c` stay through an edit."""
    mine = (ROOT / "configfiles/asl100/S3D_004.ini").read_text()
    (home / "my.ini").write_text(re.sub(r"max_epoch *=.*", "max_epoch = 7", mine))
    created = json.loads(real("create", "S3D", "asl100", "4", "-c", "my.ini", "--json", cwd=home,
                              by=(str(ROOT / "que"),)))[0]
    config = home / "state/configs/j1.ini"
    assert created["run"] == str(home / "runs/asl100/S3D_004") and re.search(r"max_epoch *= *7\n", config.read_text())
    assert (home / "state/snapshots" / created["snapshot"] / "code/training.py").is_file()
    facts = created["facts"]
    assert {"batch_size", "num_frames", "frame_size", "precision"} <= facts.keys()
    edited = json.loads(real("edit", "new", "0", "training.batch_size", "2", "--json", cwd=ROOT / "code",
                             by=("../que",)))[0]
    assert edited["facts"] == facts | {"batch_size": 2} and edited["options"] == ["--set", "training.batch_size=2"]
    assert re.search(r"max_epoch *= *7\n", config.read_text()) and re.search(r"batch_size *= *2\n", config.read_text())
    before = config.read_text()
    said = real("edit", "j1", "training.batch_size", "none", code=2)
    assert said.startswith("error: training.py does not take this: ") and config.read_text() == before
    assert "S3D asl100 4" in real("list")


def test_refused_by_training_for_real(home):
    for words, found in ((("S3D", "asl100", "4", "--set", "training.nothing=1"), "no key nothing"),
                         (("S3D", "asl100", "4", "--bogus"), "unrecognized arguments: --bogus"),
                         (("S3D", "nosuch", "4"), "nosuch"), (("Nobody", "asl100", "4"), "Nobody")):
        said = real("create", *words, code=2)
        assert said.startswith("error: training.py does not take this: ") and found in said
    assert not Store(home / "state").jobs()


# --- words and numbers


@given(st.integers(1, 10 ** 6), st.sampled_from(["", "k", "K", "M", "G", "GB", "GiB", "mib", "T", " g"]))
def test_memory(number, unit):
    scale = 1024 ** " kmgt".index((unit.strip().lower() or " ")[0])
    assert parse_memory(f"{number}{unit}") == number * scale
    assert parse_memory(f" {number}.5{unit} ") == int((number + 0.5) * scale)


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_time(days, hours, minutes, seconds):
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    forms = [f"{days}d{hours}h{minutes}m{seconds}s", f"{days}-{hours}:{minutes:02d}:{seconds:02d}", f"{total}",
             f"{total}s", f"{total / 60:.9f}m"]
    for form in forms:
        if total:
            assert parse_time(form) == pytest.approx(total, abs=1e-3)
        else:
            with pytest.raises(Mistake):
                parse_time(form)
    assert time_text(total)


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{0,400}[smhdkgtb:-]{0,3}", fullmatch=True))
def test_any_text_is_a_number_or_a_mistake(text):
    for parse, show, least in ((parse_memory, memory_text, 1), (parse_time, time_text, 0)):
        with contextlib.suppress(Mistake):
            found = parse(text)
            assert least <= found < 1e22 and show(found)


@given(st.text(max_size=10))
def test_any_text_is_a_location_or_a_mistake(text):
    with contextlib.suppress(Mistake):
        assert state_named(text) in PLACES


ATOMS = st.integers(-9, 9).map(str) | st.sampled_from(["0.1", "'a, b'", '"c(d"', "true", "x-y"])
VALUES = st.recursive(ATOMS, lambda inner: st.lists(inner, min_size=1, max_size=3).map(
    lambda parts: f"({', '.join(parts)})") | st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]"),
    max_leaves=6)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_split_values(values):
    assert create.split_values(",".join(values)) == values
    assert create.split_values(" , ".join(values)) == values


@given(st.text(max_size=20))
def test_split_values_loses_nothing(text):
    values = create.split_values(text)
    assert len(values) <= text.count(",") + 1
    assert re.sub(r"[\s,]", "", "".join(values)) == re.sub(r"[\s,]", "", text)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4))
def test_seeds(numbers):
    text = ",".join(f"{number}-{number + 2}" if number % 2 else str(number) for number in numbers)
    expected = [seed for number in numbers for seed in (range(number, number + 3) if number % 2 else [number])]
    assert list(create.sweep(text, [])) == [["--seed", str(seed)] for seed in expected]
    assert list(create.sweep(None, [])) == [[]]


# --- all of it at random, beside a model of lists


class Model(RuleBasedStateMachine):
    """What every verb does to the lists. Running jobs are held by leases of this process, as workers hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY)))
        self.stack.enter_context(mock.patch.dict(os.environ, {
            "QUE_DIR": str(self.folder / "state"), "SLR_RUNS": str(self.folder / "runs")}))
        for name, act in (("create.resolve", fake_resolve), ("gpus.read_gpus", list),
                          ("create.snapshot.take", lambda state, root: "0123456789ab")):
            self.stack.enter_context(mock.patch(f"que.{name}", act))
        self.store = Store(self.folder / "state")
        self.lists: dict[str, list[str]] = {state: [] for state in PLACES}
        self.given: set[str] = set()  # every id there ever was
        self.leases: dict[str, int] = {}
        self.facts: dict[str, dict[str, Any]] = {}

    def teardown(self) -> None:
        for lease in self.leases.values():
            os.close(lease)
        self.stack.close()

    # what the model knows

    def state_of(self, name: str) -> str:
        return next(state for state, names in self.lists.items() if name in names)

    def choose(self, data: st.DataObject, *states: str) -> tuple[str, int, str]:
        state = data.draw(st.sampled_from([state for state in states if self.lists[state]]))
        index = data.draw(st.integers(0, len(self.lists[state]) - 1))
        return state, index, self.lists[state][index]

    def any_in(self, *states: str) -> bool:
        return any(self.lists[state] for state in states)

    def go(self, name: str, to: str) -> None:
        """Ended jobs, and those that come back from there, go last; others keep their order."""
        state = self.state_of(name)
        self.lists[state].remove(name)
        ended = ("old_runs", "fail_runs", TRASH)
        if to in ended or state in ended:
            self.now_last(name)
        self.lists[to].append(name)
        self.sort(to)

    def now_last(self, name: str) -> None:
        """Its number is the store's own affair, as long as it is the highest."""
        order = self.store.find(name).order
        assert all(order > facts["order"] for facts in self.facts.values())
        self.facts[name]["order"] = order

    def sort(self, state: str) -> None:
        self.lists[state].sort(key=lambda name: (-self.facts[name]["priority"] if state == "to_run" else 0,
                                                 self.facts[name]["order"]))

    def free(self, name: str) -> bool:
        return name not in self.leases

    def said(self, *words: str, mistake: bool = False) -> Any:
        """The verb's answer as JSON; with `mistake` it is expected to refuse."""
        said = que(*words, "--json")
        assert "Traceback" not in said.err and said.code == (2 if mistake else 0), said
        assert not mistake or said.err
        return None if mistake else said.json

    # the verbs

    @rule(data=st.data(), count=st.integers(1, 3), priority=st.integers(-1, 2), hold=st.booleans())
    def create(self, data: st.DataObject, count: int, priority: int, hold: bool) -> None:
        made = self.said("create", "S3D", "asl100", "1", "-ee", "--seeds", f"1-{count}", "--priority", str(priority),
                         *(["--hold"] if hold else []))
        assert len(made) == count and len({job["run"] for job in made}) == count
        for job in made:
            assert job["id"] not in self.given
            self.given.add(job["id"])
            self.facts[job["id"]] = {"priority": priority, "order": -1, "note": "", "request": ""}
            self.now_last(job["id"])
            state = "held" if hold else "to_run"
            self.lists[state].append(job["id"])
            self.sort(state)

    @precondition(lambda self: self.any_in("to_run", "old_runs", "fail_runs", "held", TRASH))
    @rule(data=st.data(), to=st.sampled_from(("to_run", "old_runs", "fail_runs", "held", TRASH)))
    def move(self, data: st.DataObject, to: str) -> None:
        state, first, _ = self.choose(data, "to_run", "old_runs", "fail_runs", "held", TRASH)
        last = data.draw(st.integers(first, len(self.lists[state]) - 1))
        chosen = self.lists[state][first:last + 1]
        assert [job["id"] for job in self.said("move", state, to, f"{first}-{last}")] == chosen
        for name in chosen if to != state else []:
            self.go(name, to)

    @precondition(lambda self: self.any_in(*PLACES))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        state, index, name = self.choose(data, *PLACES)
        if state == "cur_run":  # even without a worker: what that one started may go on
            return self.said("remove", state, str(index), mistake=True)
        self.said("remove", state, str(index))
        self.facts[name]["request"] = ""
        if state != TRASH:
            self.go(name, TRASH)
        return None

    @rule(state=st.sampled_from(PLACES))
    def clear(self, state: str) -> None:
        if state == "cur_run" and self.lists[state]:
            return self.said("clear", state, "-y", mistake=True)
        self.said("clear", state, "-y")
        for name in list(self.lists[state]):
            self.facts[name]["request"] = ""
            if state == TRASH:
                self.lists[state].remove(name)
                del self.facts[name]
            else:
                self.go(name, TRASH)
        return None

    @precondition(lambda self: self.any_in(*PLACES))
    @rule(data=st.data())
    def shuffle(self, data: st.DataObject) -> None:
        state, old, name = self.choose(data, *PLACES)
        new = data.draw(st.integers(0, len(self.lists[state]) - 1))
        self.said("shuffle", state, str(old), str(new))
        names = self.lists[state]
        names.insert(new, names.pop(old))
        for other in names:
            job = self.store.find(other)
            assert other == name or job.priority == self.facts[other]["priority"]
            self.facts[other].update(priority=job.priority, order=job.order)

    @precondition(lambda self: self.any_in(*PLACES))
    @rule(data=st.data(), priority=st.integers(-1, 2))
    def prioritise(self, data: st.DataObject, priority: int) -> None:
        state, index, name = self.choose(data, *PLACES)
        self.said("priority", state, str(index), str(priority))
        self.facts[name]["priority"] = priority
        self.sort(state)

    @precondition(lambda self: self.any_in(*PLACES))
    @rule(data=st.data(), note=st.text("ab é\n", max_size=5))
    def edit(self, data: st.DataObject, note: str) -> None:
        state, index, name = self.choose(data, *PLACES)
        self.said("edit", state, str(index), "note", note, mistake=state == "cur_run")
        if state != "cur_run":
            self.facts[name]["note"] = note

    @precondition(lambda self: self.any_in(*PLACES))
    @rule(data=st.data(), verb=st.sampled_from(["hold", "release", "resume"]))
    def hold_or_release(self, data: st.DataObject, verb: str) -> None:
        state, index, name = self.choose(data, *PLACES)
        source, to = ("to_run", "held") if verb == "hold" else ("held", "to_run")
        self.said(verb, state, str(index), mistake=state != source)
        if state == source:
            self.go(name, to)

    @precondition(lambda self: self.any_in(*PLACES))
    @rule(data=st.data(), verb=st.sampled_from(["pause", "cancel"]))
    def stop(self, data: st.DataObject, verb: str) -> None:
        state, index, name = self.choose(data, *PLACES)
        self.said(verb, state, str(index), mistake=state not in ("to_run", "held", "cur_run"))
        if state == "cur_run":
            self.facts[name]["request"] = verb
        elif state in ("to_run", "held"):
            to = "held" if verb == "pause" else "fail_runs"
            if to != state:
                self.go(name, to)

    @precondition(lambda self: self.any_in("fail_runs", "old_runs", "held", "to_run", "cur_run"))
    @rule(data=st.data(), to=st.sampled_from(["new", "held"]))
    def recover(self, data: st.DataObject, to: str) -> None:
        state, index, name = self.choose(data, "fail_runs", "old_runs", "held", "to_run", "cur_run")
        self.said("recover", state, str(index), "-nl", to, mistake=not self.free(name))
        if self.free(name):
            self.facts[name]["request"] = ""
            if state_named(to) != state:
                self.go(name, state_named(to))

    # daemon and workers

    @precondition(lambda self: self.any_in("to_run"))
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        _, _, name = self.choose(data, "to_run")
        lease = disk.try_lock(self.store.folder / "leases" / name)
        assert lease is not None, "nobody runs it"
        self.store.update(name, put(claim=procs.identity(), request=""), "cur_run", ("to_run",))
        self.leases[name] = lease
        self.facts[name]["request"] = ""
        self.go(name, "cur_run")

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), dies=st.booleans(), to=st.sampled_from(["old_runs", "fail_runs", "to_run"]))
    def end(self, data: st.DataObject, dies: bool, to: str) -> None:
        """A worker files its job, where it was asked to if it was; or it dies and leaves it."""
        name = data.draw(st.sampled_from(sorted(self.leases)))
        job = self.store.find(name)
        assert job.request == self.facts[name]["request"]
        if dies:
            self.store.update(name, lambda job: job.claim.update(start=0))
        else:
            to = {"pause": "held", "cancel": "fail_runs"}.get(job.request, to)
            self.store.update(name, put(claim={}, request=""), to, ("cur_run",))
            self.facts[name]["request"] = ""
            self.go(name, to)
        os.close(self.leases.pop(name))

    @precondition(lambda self: any(map(self.free, self.lists["cur_run"])))
    @rule(data=st.data())
    def back_from_the_dead(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name in self.lists["cur_run"] if self.free(name)]))
        self.said("move", "cur", "new", name)
        assert self.store.find(name).recover
        self.facts[name]["request"] = ""
        self.go(name, "to_run")

    @rule()
    def save_and_load(self) -> None:
        """Here nothing is new; in an empty que the same jobs are in the same order."""
        file = str(self.folder / "saved.json")
        self.said("save", file, "-y")
        assert self.said("load", file) == []
        with tempfile.TemporaryDirectory(dir=self.folder) as name, mock.patch.dict(os.environ, QUE_DIR=name):
            self.said("load", file)
            runs = {job.id: job.run for job in self.store.jobs(*PLACES)}
            for state in ("old_runs", "fail_runs", "held", TRASH):
                assert [job.run for job in Store(Path(name)).jobs(state)] == [runs[x] for x in self.lists[state]]
            waiting = sorted(self.lists["to_run"] + self.lists["cur_run"], key=lambda x: -self.facts[x]["priority"])
            assert [job.run for job in Store(Path(name)).jobs("to_run")] == [runs[x] for x in waiting]

    @invariant()
    def lists_are_the_same(self) -> None:
        fresh = Store(self.folder / "state")
        jobs = fresh.jobs(*PLACES)
        for state in PLACES:
            assert [job.id for job in jobs if job.state == state] == self.lists[state], state
        for job in jobs:
            facts = self.facts[job.id]
            assert (job.priority, job.note, job.request) == (facts["priority"], facts["note"], facts["request"])
        assert not fresh.warnings and not fresh.quarantined() and not disk.locked(fresh.folder / "lock")
        assert jobs == self.store.jobs(*PLACES), "what a long-lived process sees"


def test_every_verb_at_random():
    run_state_machine_as_test(Model, settings=examples(max_examples=20, stateful_step_count=22, deadline=None))
