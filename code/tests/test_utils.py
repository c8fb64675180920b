"""utils.py: what goes, what stays, and that it asks first."""

import builtins
import json
import sys
from pathlib import Path

import pytest
import utils

from slr.errors import Mistake


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLR_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def fill(folder: Path, *names: str, size: int = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x" * size)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_keeps_the_best_and_the_last_by_number(runs, capsys):
    folder = fill(runs / "asl100" / "S3D_004" / "checkpoints", "best.pth", "best_acc.pth",
                  "checkpoint_005.pth", "checkpoint_99.pth", "checkpoint_0100.pth", "checkpoint_010.pth")
    assert utils.main(["-da"]) == 0
    assert names(folder) == ["best.pth", "best_acc.pth", "checkpoint_0100.pth"]
    assert "freed 30 bytes" in capsys.readouterr().out


def test_every_checkpoint_folder_has_its_own_last_one(runs):
    run = runs / "asl100" / "S3D_004"
    fill(run / "checkpoints", "checkpoint_005.pth", "checkpoint_010.pth")
    fill(run / "checkpoints.1", "checkpoint_002.pth", "checkpoint_003.pth")
    fill(runs / "asl100" / "S3D_exp005" / "checkpoints", "checkpoint_001.pth", "checkpoint_002.pth")
    utils.main(["-da"])
    assert names(run / "checkpoints") == ["checkpoint_010.pth"]
    assert names(run / "checkpoints.1") == ["checkpoint_003.pth"]
    assert names(runs / "asl100" / "S3D_exp005" / "checkpoints") == ["checkpoint_002.pth"]


def test_never_the_only_checkpoint_nor_resume_nor_a_stranger(runs, capsys):
    only = fill(runs / "demo" / "S3D_001" / "checkpoints", "checkpoint_005.pth")
    other = fill(runs / "demo" / "S3D_002" / "checkpoints", "resume.pth", "checkpoint_005.pth", "mine.pth",
                 "top_e003_wer_23.41.pth")
    assert utils.main(["-da"]) == 0
    assert names(only) == ["checkpoint_005.pth"]
    assert names(other) == ["checkpoint_005.pth", "mine.pth", "resume.pth", "top_e003_wer_23.41.pth"]
    assert "0 bytes freed" in capsys.readouterr().out


def test_half_written_files_go(runs):
    folder = fill(runs / "demo" / "S3D_001" / "checkpoints", "checkpoint_005.pth", ".best.pth.123.part")
    utils.main(["-da"])
    assert names(folder) == ["checkpoint_005.pth"]


@pytest.mark.parametrize("status", ['{"state": "running"}', '{"state": "starting"}', '{"sta', "[]"])
def test_a_running_run_is_left_alone(runs, capsys, status):
    run = runs / "demo" / "S3D_001"
    fill(run / "checkpoints", "checkpoint_005.pth", "checkpoint_010.pth")
    fill(run / "results", "a.csv")
    empty = fill(runs / "demo" / "S3D_002")
    for folder in (run, empty):
        (folder / "status.json").write_text(status)
    utils.main(["-da", "-re", "-rf", ".csv"])
    assert len(names(run / "checkpoints")) == 2 and names(run / "results") == ["a.csv"] and empty.is_dir()
    assert "left alone: " in capsys.readouterr().out


@pytest.mark.parametrize("state", ["done", "interrupted", "failed"])
def test_an_ended_run_is_cleaned(runs, state):
    run = runs / "demo" / "S3D_001"
    fill(run / "checkpoints", "checkpoint_005.pth", "checkpoint_010.pth")
    (run / "status.json").write_text(json.dumps({"state": state}))
    utils.main(["-da"])
    assert names(run / "checkpoints") == ["checkpoint_010.pth"]


def test_a_run_that_starts_meanwhile_is_left_alone(runs, capsys):
    run = runs / "demo" / "S3D_001"
    fill(run / "checkpoints", "checkpoint_005.pth", "checkpoint_010.pth")
    sweep = utils.look(runs)
    (run / "status.json").write_text('{"state": "running"}')
    assert utils.sweep_up(sweep, runs) == 0
    assert len(names(run / "checkpoints")) == 2
    assert "started meanwhile" in capsys.readouterr().out


def test_dry_run_lists_and_removes_nothing(runs, capsys):
    folder = runs / "demo" / "S3D_001" / "checkpoints"
    fill(folder, "checkpoint_005.pth", "checkpoint_010.pth", size=1234)
    assert utils.main(["--dry_run", "-da"]) == 0
    out = capsys.readouterr().out
    assert len(names(folder)) == 2
    assert "1,234" in out and "checkpoint_005.pth" in out and "0 bytes freed" in out


def test_remove_empty_takes_runs_without_any_checkpoint(runs):
    fill(runs / "demo" / "S3D_001", "log.jsonl")
    fill(runs / "demo" / "S3D_002" / "checkpoints", "best.pth")
    fill(runs / "demo" / "S3D_003" / "results", "a.csv")
    utils.main(["-da"])
    assert names(runs / "demo") == ["S3D_001", "S3D_002", "S3D_003"]
    utils.main(["-da", "-re"])
    assert names(runs / "demo") == ["S3D_002"]


def test_remove_files_by_their_ending(runs):
    run = runs / "demo" / "S3D_001"
    fill(run / "checkpoints", "best.pth")
    fill(run / "results", "best_test-heatmap.png", "best_test-confmat.png", "predictions.csv",
         "best_val_loss.json")
    utils.main(["-da", "-rf", ".csv", "heatmap.png"])
    assert names(run / "results") == ["best_test-confmat.png", "best_val_loss.json"]


@pytest.mark.parametrize("suffix", [".pth", "h", "", "resume.pth"])
def test_remove_files_takes_no_checkpoints(runs, suffix):
    with pytest.raises(Mistake, match="no checkpoints"):
        utils.main(["-da", "-rf", suffix])


def test_links_are_not_followed(runs, tmp_path):
    outside = fill(tmp_path / "elsewhere" / "checkpoints", "checkpoint_001.pth", "checkpoint_002.pth")
    (runs / "demo").mkdir()
    (runs / "demo" / "S3D_001").symlink_to(outside.parent)
    fill(runs / "demo" / "S3D_002")
    (runs / "demo" / "S3D_002" / "checkpoints").symlink_to(outside)
    utils.main(["-da"])
    assert len(names(outside)) == 2


@pytest.mark.parametrize(("answer", "left"), [("y", 1), ("yes", 1), ("", 2), ("n", 2), (EOFError, 2)])
def test_it_asks_first(runs, monkeypatch, answer, left):
    folder = fill(runs / "demo" / "S3D_001" / "checkpoints", "checkpoint_005.pth", "checkpoint_010.pth")

    def reply(question):
        assert "1 files and 0 folders, 10 bytes" in question
        if answer is EOFError:
            raise EOFError
        return answer

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", reply)
    if left == 2:
        with pytest.raises(Mistake, match="cancelled"):
            utils.main([])
    else:
        assert utils.main([]) == 0
    assert len(names(folder)) == left


def test_without_a_terminal_it_does_not_guess(runs, monkeypatch):
    fill(runs / "demo" / "S3D_001" / "checkpoints", "checkpoint_005.pth", "checkpoint_010.pth")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(Mistake, match="-da"):
        utils.main([])


def test_no_runs_is_said(runs, monkeypatch):
    monkeypatch.setenv("SLR_RUNS", str(runs / "nowhere"))
    with pytest.raises(Mistake, match="no runs"):
        utils.main([])
