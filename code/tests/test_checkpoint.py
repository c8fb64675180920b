"""Checkpoints: whole or not there, found by number, old forms read, code never run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from children import Child, write_checkpoint_on_a_full_disk
from torch import nn

from slr import checkpoint
from slr.errors import Mistake

WEIGHTS = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


def save(path: Path, **content) -> Path:
    checkpoint.save(path, {"model_state_dict": WEIGHTS, **content})
    return path


def test_round_trip(tmp_path):
    path = save(tmp_path / "deep" / "x.pth", epoch=3, metrics={"val": None}, config={"betas": [0.9, 0.999]})
    content = checkpoint.load(path)
    assert content["format"] == 1 and content["epoch"] == 3 and content["config"] == {"betas": [0.9, 0.999]}
    assert torch.equal(content["model_state_dict"]["a"], WEIGHTS["a"])
    assert [p.name for p in path.parent.iterdir()] == ["x.pth"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path / "x.pth", epoch=1)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Mistake, match="x.pth cannot be written.*No space left"):
        save(path, epoch=2)
    monkeypatch.undo()
    assert checkpoint.load(path)["epoch"] == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_no_bug(tmp_path):
    """torch's writer turns the system's error into one of its own."""
    path = save(tmp_path / "x.pth", epoch=1)
    child = Child(write_checkpoint_on_a_full_disk, path, log=tmp_path / "said")
    assert child.wait() == 2
    assert "cannot be written: [Errno 27] File too large" in child.said()
    assert checkpoint.load(path)["epoch"] == 1


def test_halves_of_a_killed_run_are_swept(tmp_path):
    path = save(tmp_path / "x.pth")
    (tmp_path / ".x.pth.123.part").write_bytes(b"half")
    checkpoint.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    checkpoint.sweep(tmp_path / "not there")


def test_newest_goes_by_number(tmp_path):
    assert checkpoint.newest(tmp_path) is None and checkpoint.newest(tmp_path / "none") is None
    for name in ("checkpoint_9.pth", "checkpoint_010.pth", "checkpoint_0002.pth", "checkpoint_x.pth", "best.pth"):
        save(tmp_path / name)
    (tmp_path / ".checkpoint_011.pth.77.part").write_bytes(b"half")
    assert list(checkpoint.numbered(tmp_path)) == [2, 9, 10]
    assert checkpoint.newest(tmp_path).name == "checkpoint_010.pth"


def test_files_of_the_best_epochs_are_no_numbered_ones(tmp_path):
    names = [checkpoint.top_name(*words) for words in ((12, "wer", 23.4123), (7, "loss", 0.123456), (1000, "acc", 1.0))]
    assert names == ["top_e012_wer_23.41.pth", "top_e007_loss_0.1235.pth", "top_e1000_acc_1.pth"]
    for name in (*names, "top_secret.pth", "top_e3.pth", "checkpoint_002.pth"):
        save(tmp_path / name, epoch=9)
    assert checkpoint.tops(tmp_path) == dict(sorted(zip(names, (12, 7, 1000), strict=True)))
    assert list(checkpoint.numbered(tmp_path)) == [2] and checkpoint.newest(tmp_path).name == "checkpoint_002.pth"


@pytest.mark.parametrize(("epoch", "chosen"), [(9, "checkpoint_010.pth"), (10, "resume.pth"), (11, "resume.pth")])
def test_newest_between_resume_and_numbered(tmp_path, epoch, chosen):
    """resume.pth of epoch 10 was saved inside the epoch after checkpoint_010."""
    save(tmp_path / "checkpoint_010.pth", epoch=10)
    save(tmp_path / "resume.pth", epoch=epoch)
    assert checkpoint.newest(tmp_path).name == chosen


def test_resume_alone(tmp_path):
    assert checkpoint.newest(save(tmp_path / "resume.pth", epoch=0).parent).name == "resume.pth"


def test_the_old_programs_files(tmp_path):
    torch.save(WEIGHTS, tmp_path / "best.pth")
    assert torch.equal(checkpoint.load(tmp_path / "best.pth")["model_state_dict"]["b"], WEIGHTS["b"])
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    torch.save({"epoch": 97, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(),
                "scheduler_state_dict": plan.state_dict()}, tmp_path / "checkpoint_097.pth")
    content = checkpoint.load(tmp_path / "checkpoint_097.pth")
    assert content["epoch"] == 97
    checkpoint.load_weights(nn.Linear(2, 2), content["model_state_dict"], "it")


class Runs:
    """Pickled, this would run a command when loaded."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": WEIGHTS, "x": Runs()}, "bad.pth")
    Path("raw.pth").write_bytes(pickle.dumps(Runs()))
    for name in ("bad.pth", "raw.pth"):
        with pytest.raises(Mistake, match="is no checkpoint"):
            checkpoint.load(Path(name))
    assert not Path("ran").exists()


def test_damaged_files(tmp_path):
    whole = save(tmp_path / "x.pth").read_bytes()
    for count in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "cut.pth"
        path.write_bytes(whole[:count])
        with pytest.raises(Mistake, match="cut.pth is no checkpoint"):
            checkpoint.load(path)


@pytest.mark.parametrize(("content", "words"), [
    ([1, 2], "holds a list"), ({}, "holds no weights"), ({"epoch": 3}, "holds no weights: keys epoch"),
    ({"format": 99, "model_state_dict": {}}, "comes from a newer version: format 99"),
])
def test_other_files(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(Mistake, match=words):
        checkpoint.load(tmp_path / "x.pth")


def test_a_missing_file_names_its_neighbours(tmp_path):
    save(tmp_path / "best.pth")
    with pytest.raises(Mistake, match="holds best.pth"):
        checkpoint.load(tmp_path / "last.pth")
    with pytest.raises(Mistake, match="train first"):
        checkpoint.load(tmp_path / "no" / "last.pth")


def test_weights_that_do_not_fit_are_named():
    model, state = nn.Linear(2, 3), nn.Linear(2, 3).state_dict()
    before = model.weight.clone()
    wrong = {"weight": torch.ones(4, 2), "bios": torch.ones(3)}
    with pytest.raises(Mistake, match="missing: bias; unknown: bios; of another shape: weight"):
        checkpoint.load_weights(model, wrong, "it")
    assert torch.equal(model.weight, before)
    del state["bias"]
    with pytest.raises(Mistake, match="missing: bias"):
        checkpoint.load_weights(model, state, "it")
    checkpoint.load_weights(model, state, "it", may_miss=("bi",))
    assert torch.equal(model.weight, state["weight"])


def test_versions_are_plain_words():
    found = checkpoint.versions()
    assert set(found) == {"python", "torch", "torchvision", "numpy"} and found["numpy"] == np.__version__
    assert all(type(value) is str for value in found.values())


@pytest.mark.parametrize(("folder", "command"), [
    ("demo/S3D_001/checkpoints", "python training.py S3D demo 1"),
    ("asl100/R(2+1)D_18_000/checkpoints.2", "python training.py 'R(2+1)D_18' asl100 0"),
    ("demo/S3D_004.1/checkpoints", "python training.py S3D demo 4.1"),
    ("somewhere/else", "python training.py MODEL SPLIT EXP_NO"),
])
def test_a_missing_checkpoint_says_what_trains_it(tmp_path, folder, command):
    with pytest.raises(Mistake) as caught:
        checkpoint.load(tmp_path / folder / "best.pth")
    assert caught.value.do == f"train first: {command}"
