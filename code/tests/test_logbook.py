"""log.jsonl and status.json, whatever happens; wandb and TensorBoard where asked for."""

import json
import os
import subprocess
import sys

import pytest

from slr import logbook
from slr.errors import Mistake
from slr.logbook import Logbook, read_log, start_wandb


def row(epoch: int) -> dict:
    return {"epoch": epoch, "train": {"loss": 1.0 / epoch}, "val": None, "lr": {"backbone": 0.1}}


class Ear:
    id, url = "abc", "https://example.org/abc"

    def __init__(self):
        self.heard: list = []

    def log(self, values, epoch):
        self.heard.append((epoch, values))

    def close(self, code):
        self.heard.append(code)


def test_epochs_are_lines(tmp_path):
    book, ear = Logbook(tmp_path / "run", 3), Ear()
    book.listen(ear)
    for epoch in (1, 2):
        book.epoch(row(epoch))
    book.close(0)
    assert read_log(book.log_file) == [row(1), row(2)]
    assert ear.heard[0] == (1, {"train/loss": 1.0, "lr/backbone": 0.1}) and ear.heard[-1] == 0
    assert book.wandb_id == "abc" and book.status["wandb_url"] == Ear.url


def test_a_cut_last_line_is_left_out_and_another_is_not(tmp_path):
    file = tmp_path / "log.jsonl"
    assert read_log(file) == []
    file.write_text('{"epoch": 1}\n{"epo')
    assert read_log(file) == [{"epoch": 1}]
    file.write_text('{"epo\n{"epoch": 1}\n')
    with pytest.raises(Mistake, match="line 1 of .*log.jsonl is no JSON"):
        read_log(file)


def test_a_resumed_run_writes_its_epochs_anew(tmp_path):
    book = Logbook(tmp_path, 9)
    for epoch in (1, 2, 3):
        book.epoch(row(epoch))
    with open(book.log_file, "a") as file:
        file.write('{"epoch": 4, "tr')
    book.keep_until(2)
    book.epoch(row(3))
    assert [r["epoch"] for r in read_log(book.log_file)] == [1, 2, 3]
    book.keep_until(0)
    assert read_log(book.log_file) == []


def test_status_is_rewritten_whole_and_not_too_often(tmp_path):
    book = Logbook(tmp_path / "run", 9, every=1000)
    assert not book.status_file.exists()
    book.tell(state="running", epoch=1)
    told = json.loads(book.status_file.read_text())
    assert told["state"] == "running" and told["epochs"] == 9 and told["updated"] >= told["started"]
    assert {"state", "exit_code", "reason", "epoch", "epochs", "eta_s", "best", "peak_memory", "wandb_url", "pids",
            "checkpoint"} <= set(told)
    book.tell(now=False, step=5)
    assert json.loads(book.status_file.read_text())["step"] == 0
    book.tell(reason="a ü")
    assert json.loads(book.status_file.read_text())["step"] == 5
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"status.json", ".lock"}


def test_the_next_row_names_what_changed_once(tmp_path):
    book, ear = Logbook(tmp_path, 9), Ear()
    book.listen(ear)
    book.changed = {"training.max_epoch": [2, 9]}
    for epoch in (1, 2):
        book.epoch(row(epoch))
    assert read_log(book.log_file) == [{**row(1), "changed": {"training.max_epoch": [2, 9]}}, row(2)]
    assert set(ear.heard[0][1]) == {"train/loss", "lr/backbone"}


def test_one_process_at_a_time(tmp_path):
    """The lock is another process's; it ends with `close`."""
    program = ("import sys; from pathlib import Path; from slr.logbook import Logbook\n"
               "Logbook(Path(sys.argv[1]), 1).hold()")
    book = Logbook(tmp_path, 9)
    (tmp_path / "status.rank1.json").write_text("{}")
    book.hold()
    assert not (tmp_path / "status.rank1.json").exists()  # of the run before
    command = [sys.executable, "-c", program, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(logbook.ROOT / "code")}
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert "Mistake" in second.stderr and "another process is at work in this run folder" in second.stderr
    book.close(0)
    assert subprocess.run(command, timeout=60, env=env).returncode == 0


def test_the_end_of_another_process(tmp_path):
    book = Logbook(tmp_path, 9)
    book.hold()
    assert book.sister_end() is None
    for rank, code, reason in ((1, 1, "connection closed"), (2, 76, "out of memory")):
        sister = Logbook(tmp_path, 9, writes=False)
        sister.rank = rank
        sister.end(code, reason)
    assert book.sister_end() == (76, "rank2: out of memory")
    assert json.loads((tmp_path / "status.rank2.json").read_text())["state"] == "failed"
    assert Logbook(tmp_path, 9).sister_end() is None  # not yet its folder: it may be an earlier run's


def test_who_does_not_write_writes_nothing(tmp_path):
    book = Logbook(tmp_path / "run", 9, writes=False)
    book.tell(state="running")
    book.epoch(row(1))
    book.keep_until(0)
    book.hold()
    book.end(1, "a bug")
    assert not (tmp_path / "run").exists()


def test_wandb_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert isinstance(start_wandb(tmp_path), logbook.Silent)
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    silent = start_wandb(tmp_path)  # no login: nobody asks, nothing is written
    silent.log({}, 1)
    silent.close(0)
    assert silent.id is None and not list(tmp_path.iterdir())
    assert capsys.readouterr().err.startswith("note: no wandb: ")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert isinstance(start_wandb(tmp_path), logbook.Silent)
    assert "note: no wandb: it cannot be imported" in capsys.readouterr().err


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = start_wandb(tmp_path / "run", project="WLASL-3", id="abc123", resume="allow", tags=["exp-001"])
    book = Logbook(tmp_path / "run", 3)
    book.listen(run)
    book.epoch(row(1))
    book.close(0)
    assert run.id == "abc123" and list((tmp_path / "run" / "wandb").glob("offline-run-*-abc123/*.wandb"))


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    board = logbook.TensorBoard(tmp_path)
    board.log({"train/loss": 1.0}, 1)
    board.close(0)
    assert next(tmp_path.glob("events*")).stat().st_size > 100


def test_commit_is_said_only_inside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert logbook.git_commit() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "a").write_text("1")
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    commit = logbook.git_commit()
    assert len(commit) == 12
    (tmp_path / "a").write_text("2")
    assert logbook.git_commit() == commit + "+"
