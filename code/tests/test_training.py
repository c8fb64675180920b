"""training.py as its user and the queue see it: words in; exit code, messages and a run folder out."""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import micro
import pytest
import torch
import training
from children import Child, free_port, script
from conftest import write_split
from little_videos import write_video

from slr import checkpoint, paths
from slr.errors import Mistake
from slr.logbook import read_log
from slr.paths import Experiment

CODE = Path(training.__file__).parent
# A last batch of one clip would leave batch-norm a single value at this size: nine clips are three batches of three.
REAL = micro.INI.replace("max_epoch = 4", "max_epoch = 2").replace("save_every = 2", "save_every = 1").replace(
    "batch_size = 4", "batch_size = 3")


class Bench:
    """A folder for runs and the programs that write into it."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.count = folder, 0
        self.env = {"SLR_DATA": str(data), "SLR_RUNS": str(folder / "runs"), "WANDB_MODE": "disabled",
                    "PYTHONPATH": f"{CODE}{os.pathsep}{CODE / 'tests'}", "OMP_NUM_THREADS": "1"}

    def ini(self, text: str, name: str = "x") -> str:
        file = self.folder / f"{name}.ini"
        file.write_text(text)
        return str(file)

    def start(self, *words: str, real: bool = False, kill: int = 0, **env: str) -> Child:
        self.count += 1
        log, env = self.folder / f"said_{self.count}", {**self.env, **env}
        if real:
            return Child(script, "training", *words, log=log, **env)
        return Child(micro.run, words, kill, log=log, **env)

    def run(self, *words: str, expect: int = 0, **options) -> str:
        child = self.start(*words, **options)
        assert child.wait() == expect, child.said()
        return child.said()

    def folder_of(self, number: str, split: str = "little", model: str = "S3D") -> Path:
        return self.folder / "runs" / split / f"{model}_{number}"

    def status(self, number: str, **options: str) -> dict:
        return json.loads((self.folder_of(number, **options) / "status.json").read_text())

    def log(self, number: str, **options: str) -> list[dict]:
        return read_log(self.folder_of(number, **options) / "log.jsonl")

    def load(self, number: str, name: str, **options: str) -> dict:
        return checkpoint.load(self.folder_of(number, **options) / "checkpoints" / name)

    def pair(self, *words: str, **env: str) -> list[Child]:
        """Two processes of one run, as torchrun starts them."""
        group = {**env, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        return [self.start(*words, **group, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]

    def torchrun(self, *words: str, **env: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
        return subprocess.Popen([*command, *words], env={**os.environ, **self.env, **env}, cwd=self.folder, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture
def bench(tmp_path, little_data) -> Bench:
    return Bench(tmp_path, little_data)


def same(one: dict, other: dict) -> bool:
    one, other = one["model_state_dict"], other["model_state_dict"]
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def figures(rows: list[dict]) -> list[tuple]:
    return [(row["epoch"], row["train"], row["val"], row["lr"]) for row in rows]


# --- a whole run on real clips with a real model -------------------------------------------------------------

FULL_REAL = REAL.replace("drop_p = 0.0", "drop_p = 0.3").replace(
    "save_every = 1", "save_every = 1\nema = 0.9\nmixup = 0.3\nclip_norm = 1.0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, little_data) -> tuple[Bench, str]:
    """S3D for two epochs, uninterrupted, with everything on that has a state."""
    bench = Bench(tmp_path_factory.mktemp("trained"), little_data)
    said = bench.run("S3D", "little", "1", "-c", bench.ini(FULL_REAL), "-na", real=True)
    return bench, said


def test_a_run_folder(trained):
    bench, said = trained
    folder = bench.folder_of("001")
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "best.pth", "checkpoint_001.pth", "checkpoint_002.pth"]
    assert (folder / "results" / "curves.png").stat().st_size > 5000
    assert json.loads((folder / "data_info.json").read_text()) == {"num_frames": 8, "frame_size": 32}
    assert [row["epoch"] for row in bench.log("001")] == [1, 2]
    status = bench.status("001")
    assert (status["state"], status["exit_code"], status["epoch"], status["epochs"]) == ("done", 0, 2, 2)
    assert status["checkpoint"].endswith("best.pth") and status["best"]["metric"] == "loss" and status["pids"]
    assert "batch_size = 3" in said and "epoch   2/2" in said and "Traceback" not in said


def test_a_checkpoint_describes_itself(trained):
    bench, _ = trained
    file = bench.folder_of("001") / "checkpoints" / "best.pth"
    content = torch.load(file, weights_only=True)
    assert content["model"] == "S3D" and content["task"] == "isolated" and content["split"] == "little"
    assert content["meta"]["classes"] == ["sign 0", "sign 1", "sign 2"] and len(content["meta"]["mean"]) == 3
    assert content["meta"]["num_frames"] == 8 and content["config"]["training"]["mixup"] == 0.3
    assert len(content["data_hash"]) == 64 and content["versions"]["torch"] == str(torch.__version__)
    assert content["metrics"]["val"]["loss"] == min(row["val"]["loss"] for row in bench.log("001"))
    last = bench.load("001", "checkpoint_002.pth")
    assert {"optimizer", "schedule", "scaler", "ema", "rng", "stopper", "step", "totals", "best",
            "wandb_id"} <= set(last["resume"])
    assert content["weights"] in ("ema", "raw") and last["weights"] == "raw"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["TERM", "USR1"])
def test_interrupted_inside_an_epoch(trained, bench, number):
    whole, _ = trained
    words = ["S3D", "little", "1", "-c", bench.ini(FULL_REAL), "-na"]
    child = bench.start(*words, real=True)
    log = bench.folder_of("001") / "log.jsonl"
    code = child.signal_when(lambda: log.exists() and log.read_text().count("\n") == 1, number)
    assert code == 75, child.said()
    status = bench.status("001")
    assert status["state"] == "interrupted" and status["exit_code"] == 75 and number.name in status["reason"]
    assert "the same command with -r goes on" in child.said() and "Traceback" not in child.said()
    assert (bench.folder_of("001") / "checkpoints" / "resume.pth").exists()
    bench.run(*words, "-r", real=True)
    for name in ("checkpoint_002.pth", "best.pth"):
        assert same(bench.load("001", name), whole.load("001", name))
    assert figures(bench.log("001")) == figures(whole.log("001"))
    assert not (bench.folder_of("001") / "checkpoints" / "resume.pth").exists()
    assert bench.status("001")["state"] == "done"


def test_workers_change_nothing(trained, bench):
    """Two loader processes give the weights that none gives."""
    whole, _ = trained
    bench.run("S3D", "little", "1", "-c", bench.ini(FULL_REAL), "-na", "--set", "data.workers=2", real=True)
    assert same(bench.load("001", "checkpoint_002.pth"), whole.load("001", "checkpoint_002.pth"))


def test_dry_run_writes_nothing(bench):
    said = bench.run("S3D", "little", "1", "-c", bench.ini(REAL), "--dry_run", real=True)
    for word in ("parameters", "FLOPs", "peak memory", "2 steps an epoch", "validation   7 clips",
                 "nothing was written"):
        assert word in said
    assert not (bench.folder / "runs").exists()
    said = bench.run("S3D", "noval", "1", "-c", bench.ini(REAL), "--dry_run", real=True)
    assert "no validation set" in said


def test_overfit_learns_a_few_clips(bench):
    """The set-up can learn: the same two clips are trained and validated."""
    said = bench.run("S3D", "little", "1", "-c", bench.ini(REAL), "-na", "--overfit", "2",
                     "--set", "training.max_epoch=12", "--set", "data.min_scale=1.0",
                     "--set", "data.jitter=(0,0,0,0)", "--set", "training.batch_size=2",
                     "--set", "training.update_per_step=1", "--set", "training.save_every=12", real=True)
    rows = bench.log("001")
    assert rows[-1]["train"]["loss"] < 0.5 * rows[0]["train"]["loss"], said
    assert bench.status("001")["step"] == 0 and rows[-1]["val"]["acc"] in (0, 0.5, 1)


def test_without_a_validation_set(bench):
    said = bench.run("S3D", "noval", "1", "-c", bench.ini(REAL), "-na", real=True)
    assert said.count("no validation set") == 1
    best, last = (bench.load("001", name, split="noval") for name in ("best.pth", "checkpoint_002.pth"))
    assert best["epoch"] == 2 and same(best, last) and bench.log("001", split="noval")[-1]["val"] is None


def test_videos_that_go_wrong_meanwhile(bench, tmp_path):
    """A clip that was there when the data was prepared: no traceback, out of a worker neither."""
    write_split(tmp_path / "data", "little", {"train": 3, "val": 1, "test": 1})
    videos = tmp_path / "data" / "WLASL" / "WLASL2000"
    words = ["S3D", "little", "1", "-c", bench.ini(REAL), "-na"]
    env = {"SLR_DATA": str(tmp_path / "data")}
    (videos / "little_train_1.mp4").write_bytes(b"no video")
    said = bench.run(*words, "--set", "data.workers=1", real=True, expect=2, **env)
    assert "little_train_1.mp4" in said and "Traceback" not in said
    assert bench.status("001")["state"] == "failed" and bench.status("001")["exit_code"] == 2
    write_video(videos / "little_train_1.mp4", 12)  # shorter than prepared
    assert "is too short: frame" in bench.run(*words, real=True, expect=2, **env)
    (videos / "little_train_1.mp4").unlink()
    said = bench.run(*words, real=True, expect=2, **env)
    assert "1 of 3 clips of the train set are not there any more: little_train_1" in said


def test_data_that_changed_is_not_resumed(bench, tmp_path):
    write_split(tmp_path / "data", "little", {"train": 2, "val": 1, "test": 1})
    words, env = ["S3D", "little", "1", "-c", bench.ini(REAL), "-na"], {"SLR_DATA": str(tmp_path / "data")}
    bench.run(*words, "--set", "training.max_epoch=1", real=True, **env)
    write_split(tmp_path / "data", "little", {"train": 3, "val": 1, "test": 1})
    assert "the data changed" in bench.run(*words, "-r", "--set", "training.max_epoch=2", real=True, expect=2, **env)


# --- killed at any moment -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def whole(tmp_path_factory, little_data) -> Bench:
    """The micro task to its end: dropout, mixup, EMA, clipping, a plateau, early stopping, a remainder."""
    bench = Bench(tmp_path_factory.mktemp("whole"), little_data)
    bench.run("S3D", "little", "1", "-c", bench.ini(micro.FULL), "-na")
    assert len(bench.log("001")) == 4
    return bench


def ends_as(bench: Bench, whole: Bench) -> None:
    for name in ("best.pth", "checkpoint_002.pth", "checkpoint_004.pth"):
        ours, theirs = bench.load("001", name), whole.load("001", name)
        assert same(ours, theirs) and ours["epoch"] == theirs["epoch"] and ours["metrics"] == theirs["metrics"], name
    assert figures(bench.log("001")) == figures(whole.log("001"))
    names = {p.name for p in (bench.folder_of("001") / "checkpoints").iterdir()}
    assert names == {"best.pth", "checkpoint_002.pth", "checkpoint_004.pth"}
    assert bench.status("001")["state"] == "done"


# Of the 120 or so events of a run: in steps, inside the writing of each kind of file, and between any two of them.
@pytest.mark.parametrize("event", sorted(random.Random(4).sample(range(1, 120), 14)))
def test_killed_once(bench, whole, event):
    words = ["S3D", "little", "1", "-c", bench.ini(micro.FULL), "-na"]
    assert bench.start(*words, kill=event).wait() == -signal.SIGKILL
    bench.run(*words, "-r")
    ends_as(bench, whole)


SHORT = micro.FULL.replace("batch_size = 4\nupdate_per_step = 2", "batch_size = 3\nupdate_per_step = 1").replace(
    "clip_norm = 0.5", """clip_value = 0.05
keep_top = 2
save_minutes = 1e-9
limit_train_batches = 3
limit_val_batches = 1""")
TICKS = """[scheduler]
type = 'WarmupHoldDecay'
warmup_steps = 2
hold_steps = 3
tick_steps = 2
decay = 0.5
"""
SHORT = SHORT[:SHORT.index("[scheduler]")] + TICKS + SHORT[SHORT.index("[early_stopping]"):]


def test_killed_again_and_again_with_saves_by_the_clock(bench):
    """Steps, epochs of so many batches, rates by ticks, the best epochs' files: as without the kills."""
    words, rng = ["S3D", "little", "1", "-c", bench.ini(SHORT), "-na"], random.Random(7)
    whole = Bench(bench.folder / "whole", Path(bench.env["SLR_DATA"]))
    whole.folder.mkdir()
    whole.run(*words)
    rates = [row["lr"]["backbone"] for row in whole.log("001")]  # of the last of an epoch's three steps
    assert rates == pytest.approx([1e-2, 1e-2, 5e-3, 1.25e-3]) and whole.status("001")["steps"] == 3
    while bench.count < 60:
        child = bench.start(*words, "-r", kill=rng.randrange(40, 110))
        if child.wait() == 0:
            break
        assert child.process.exitcode == -signal.SIGKILL, child.said()
    assert bench.count > 2 and figures(bench.log("001")) == figures(whole.log("001"))
    folders = [one.folder_of("001") / "checkpoints" for one in (bench, whole)]
    names = [sorted(p.name for p in folder.iterdir()) for folder in folders]
    assert names[0] == names[1] and len(checkpoint.tops(folders[0])) == 2
    for name in names[0]:
        assert same(bench.load("001", name), whole.load("001", name)), name


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again(bench, whole, seed):
    words, rng = ["S3D", "little", "1", "-c", bench.ini(micro.FULL), "-na", "-r"], random.Random(seed)
    for _ in range(40):
        child = bench.start(*words, kill=rng.randrange(20, 60))
        if child.wait() == 0:
            break
        assert child.process.exitcode == -signal.SIGKILL, child.said()
    ends_as(bench, whole)


# --- how it ends --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("fail", "code", "state", "words"), [
    ("nan", 77, "failed", ["the loss is not finite", "train5", "training.clip_norm = 1"]),
    ("oom", 76, "failed", ["out of memory", "training.update_per_step = 4"]),
    ("build", 76, "failed", ["out of memory", "training.update_per_step = 4"]),
    ("bug", 1, "failed", ["Traceback", "ZeroDivisionError: a bug of ours"]),
    ("mistake", 2, "failed", ["error: the video does not decode: train5.mp4\n  look at it"]),
])
def test_exit_codes(bench, fail, code, state, words):
    said = bench.run("S3D", "little", "1", "-c", bench.ini(micro.INI), "-na", expect=code, MICRO_FAIL=fail)
    assert all(word in said for word in words), said
    assert ("Traceback" in said) == (code == 1)
    status = bench.status("001")
    assert (status["state"], status["exit_code"]) == (state, code) and status["reason"]


def test_out_of_memory_in_a_dry_run(bench):
    said = bench.run("S3D", "little", "1", "-c", bench.ini(micro.INI), "--dry_run", expect=76, MICRO_FAIL="oom")
    assert "training.update_per_step = 4" in said and "Traceback" not in said
    assert not (bench.folder / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=["TERM", "USR1", "INT"])
def test_interrupted_before_the_first_step(bench, number):
    words = ["S3D", "little", "1", "-c", bench.ini(micro.INI), "-na"]
    child = bench.start(*words, MICRO_FAIL="wait")
    status = bench.folder_of("001") / "status.json"
    assert child.signal_when(lambda: status.exists() and '"starting"' in status.read_text(), number) == 75
    told = bench.status("001")
    assert told["state"] == "interrupted" and told["exit_code"] == 75 and number.name in told["reason"]
    assert "the same command with -r goes on" in child.said() and "Traceback" not in child.said()
    bench.run(*words, "-r")


def test_what_was_not_finite_is_not_resumed_blindly(bench):
    words = ["S3D", "little", "1", "-c", bench.ini(micro.INI), "-na"]
    bench.run(*words, expect=77, MICRO_FAIL="nan")
    before = contents(bench.folder / "runs")
    assert "change something with --set" in bench.run(*words, "-r", expect=2)
    assert contents(bench.folder / "runs") == before
    bench.run(*words, "-r", "--set", "training.clip_norm=1")
    assert bench.status("001")["state"] == "done"


def test_two_runs_never_share_a_folder(bench):
    words = ["S3D", "little", "1", "-c", bench.ini(micro.INI), "-na"]
    first = bench.start(*words, MICRO_FAIL="slow")
    while not (bench.folder_of("001") / "status.json").exists() and first.process.is_alive():
        time.sleep(0.005)
    said = bench.run(*words, "-r", expect=2)
    assert "another process is at work in this run folder" in said and "Traceback" not in said
    assert first.wait() == 0 and bench.status("001")["state"] == "done" and len(bench.log("001")) == 4


def test_nothing_to_train_on(bench):
    said = bench.run("S3D", "little", "1", "-c", bench.ini(micro.INI), "-na", expect=78, MICRO_SIZES="0 3")
    assert "the training set is empty" in said and bench.status("001")["exit_code"] == 78


def test_a_stale_status_does_not_speak_for_a_run_that_cannot_start(bench, tmp_path):
    """The queue reads status.json: after an interruption a start that fails must not look interrupted again."""
    words = ["S3D", "little", "1", "-c", bench.ini(micro.INI), "-na"]
    child = bench.start(*words, MICRO_FAIL="slow")
    status = bench.folder_of("001") / "status.json"
    child.signal_when(lambda: status.exists() and '"running"' in status.read_text(), signal.SIGTERM)
    assert bench.status("001")["state"] == "interrupted"
    bench.run(*words, "-r", "--device", "cuda:77", expect=2)
    assert bench.status("001")["state"] == "failed" and bench.status("001")["exit_code"] == 2


# --- runs that are there already ----------------------------------------------------------------------------

@pytest.fixture
def done(bench) -> tuple[Bench, list[str]]:
    words = ["S3D", "little", "1", "-c", bench.ini(micro.INI), "-na", "--set", "training.max_epoch=2"]
    bench.run(*words)
    return bench, words


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_is_never_overwritten(done):
    bench, words = done
    before = contents(bench.folder / "runs")
    said = bench.run(*words, expect=2)
    assert "this experiment has run before" in said and "-ee and -ec" in said
    assert contents(bench.folder / "runs") == before
    for number in ("001.1", "001.2"):
        bench.run(*words, "-ee")
        assert bench.status(number)["state"] == "done"
    assert {k: v for k, v in contents(bench.folder / "runs").items() if "S3D_001/" in k} == before
    bench.run("S3D", "little", "1.1", *words[3:], "-r", "--set", "training.max_epoch=3")
    assert len(bench.log("001.1")) == 3 and len(bench.log("001")) == 2


def test_new_checkpoint_folders_leave_the_old_ones(done):
    bench, words = done
    folder = bench.folder_of("001")
    before = contents(folder)
    bench.run(*words, "-ec", "--seed", "7")
    after = contents(folder)
    assert all(after[k] == v for k, v in before.items() if k.startswith("checkpoints/"))
    assert after["checkpoints/log.jsonl"] == before["log.jsonl"]  # the record of the first set is kept beside it
    assert after["checkpoints/config.ini"] == before["config.ini"] != after["config.ini"]
    assert {"best.pth", "checkpoint_002.pth"} <= {p.name for p in (folder / "checkpoints.1").iterdir()}
    bench.run(*words, "-r", "--set", "training.max_epoch=3")  # goes on with the newest set
    assert (folder / "checkpoints.1" / "checkpoint_003.pth").exists() and len(bench.log("001")) == 3
    assert contents(folder)["checkpoints/log.jsonl"] == before["log.jsonl"]


def test_resuming_uses_the_saved_config_and_says_what_set_changes(done):
    bench, words = done
    bench.ini(micro.INI.replace("batch_size = 4", "batch_size = 5"))
    said = bench.run(*words[:-2], "-r", "--set", "training.max_epoch=3")
    assert "batch_size = 4" in said and "training.max_epoch: 2 -> 3" in said and "batch_size: " not in said
    assert [row["epoch"] for row in bench.log("001")] == [1, 2, 3]
    assert "max_epoch = 3" in (bench.folder_of("001") / "config.ini").read_text()
    assert [row.get("changed") for row in bench.log("001")] == [None, None, {"training.max_epoch": [2, 3]}]
    (bench.folder / "x.ini").unlink()
    bench.run(*words[:-2], "-r")  # the saved one is enough


def test_changes_are_logged_though_the_run_was_stopped_before_its_next_epoch(done):
    bench, words = done
    child = bench.start(*words[:-2], "-r", "--set", "training.max_epoch=3", "--seed", "7", MICRO_FAIL="slow")
    status = bench.folder_of("001") / "status.json"
    assert child.signal_when(lambda: '"running"' in status.read_text(), signal.SIGTERM) == 75
    said = bench.run(*words[:-2], "-r", "--set", "training.max_epoch=4")
    assert "-c is not read" in said
    assert bench.log("001")[2]["changed"] == {"training.max_epoch": [2, 4], "experiment.seed": [42, 7]}
    assert "changed" not in bench.log("001")[3]


def test_resuming_what_never_began_starts_afresh(bench):
    bench.run("S3D", "little", "1", "-c", bench.ini(micro.INI), "-na", "-r")
    assert len(bench.log("001")) == 4


class Answers:
    """A person at the keyboard."""

    def __init__(self, monkeypatch, *answers: str):
        self.answers = list(answers)
        monkeypatch.setattr("builtins.input", lambda _: self.answers.pop(0))
        monkeypatch.setattr(sys, "stdin", self)

    def isatty(self) -> bool:
        return True


@pytest.fixture
def old_run(little) -> Experiment:
    experiment = Experiment("S3D", "little", "1")
    experiment.checkpoints.mkdir(parents=True)
    (experiment.checkpoints / "best.pth").touch()
    return experiment


@pytest.mark.parametrize(("answers", "exp_no", "recover", "overwrite"), [
    (["r"], "1", True, False), (["enumerate"], "1.1", False, False), (["o", "yes"], "1", False, True)])
def test_it_asks(old_run, monkeypatch, answers, exp_no, recover, overwrite):
    Answers(monkeypatch, *answers)
    args = training.parse_arguments(["S3D", "little", "1"])
    assert training.choose_folder(args, old_run).exp_no == exp_no
    assert (args.recover, args.overwrite) == (recover, overwrite) and (old_run.checkpoints / "best.pth").exists()


def test_overwriting_waits_for_the_config_to_be_confirmed(old_run, little, monkeypatch, tmp_path):
    (tmp_path / "x.ini").write_text(micro.INI)
    (old_run.run / "results").mkdir()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr("slr.task.build_task", micro.Micro.build)
    monkeypatch.setattr(sys, "argv", ["training.py", "S3D", "little", "1", "-c", str(tmp_path / "x.ini")])
    Answers(monkeypatch, "o", "yes", "n")
    with pytest.raises(Mistake, match="nothing was changed"):
        training.main()
    assert contents(old_run.run) == {"checkpoints/best.pth": b""} and (old_run.run / "results").exists()
    monkeypatch.setattr(training, "_fit", lambda *_: None)
    Answers(monkeypatch, "o", "yes", "y")
    assert training.main() == 0
    assert {p.name for p in old_run.run.iterdir()} == {".lock", "status.json"}


@pytest.mark.parametrize("error", [EOFError, KeyboardInterrupt])
def test_the_end_of_the_input_cancels(old_run, monkeypatch, error):
    Answers(monkeypatch)
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(Mistake, match="cancelled: nothing was changed"):
        training.choose_folder(training.parse_arguments(["S3D", "little", "1"]), old_run)


@pytest.mark.parametrize("answers", [["c"], [""], ["o", "y"], ["what?"]])
def test_any_other_answer_cancels(old_run, monkeypatch, answers):
    Answers(monkeypatch, *answers)
    with pytest.raises(Mistake, match="cancelled"):
        training.choose_folder(training.parse_arguments(["S3D", "little", "1"]), old_run)
    assert (old_run.checkpoints / "best.pth").exists()


def test_the_config_is_confirmed(little, monkeypatch, capsys):
    args = training.parse_arguments(["S3D", "little", "1"])
    config = training.configuration.parse_config(micro.INI, Experiment("S3D", "little", "1"))
    Answers(monkeypatch, "y")
    training.confirm(args, config, Experiment("S3D", "little", "1"))
    assert "batch_size = 4" in capsys.readouterr().out
    Answers(monkeypatch, "n")
    with pytest.raises(Mistake, match="cancelled"):
        training.confirm(args, config, Experiment("S3D", "little", "1"))


# --- the user's mistakes ------------------------------------------------------------------------------------

@pytest.mark.parametrize(("words", "said"), [
    (["S4D", "little", "1"], ["no such model: 'S4D'", "S3D"]),
    (["S3D", "lit/tle", "1"], ["SPLIT is no name"]),
    (["S3D", "little", "one"], ["EXP_NO is no experiment number"]),
    (["S3D", "little", "99"], ["no experiment 99 for S3D on little", "S3D_099.ini is missing"]),
    (["S3D", "little", "1", "-c", "nowhere.ini"], ["the config file is missing", "-c"]),
    (["S3D", "little", "1", "INI", "-ds", "phoenix"], ["-ds does not fit SPLIT"]),
    (["S3D", "little", "1", "INI", "--set", "batch_size"], ["--set takes SECTION.KEY=VALUE"]),
    (["S3D", "little", "1", "INI", "--set", "training.batch_sise=3"], ["no key batch_sise", "did you mean batch_size"]),
    (["S3D", "little", "1", "INI", "--set", "training.batch_size=x"], ["training.batch_size must be a whole number"]),
    (["S3D", "little", "1", "INI", "--seed", "-1"], ["experiment.seed is out of range"]),
    (["S3D", "little", "1", "INI", "--seed", "x"], ["argument --seed: invalid int value"]),
    (["S3D", "little", "1", "INI", "--overfit", "0"], ["--overfit takes a number of clips"]),
    (["S3D", "little", "1", "INI", "-r", "-ee"], ["-r goes on, -ee and -ec begin anew"]),
    (["S3D", "little", "1", "INI", "-r", "-ec"], ["-r goes on, -ee and -ec begin anew"]),
    (["S3D", "little", "1", "INI", "--device", "tpu"], ["--device is no device"]),
    (["S3D", "little", "1", "INI", "--device", "cuda:99"], ["GPU"]),
    (["S3D", "unprepared", "1", "INI"], ["unprepared is not prepared", "preprocess.py -as unprepared"]),
    (["S3D", "little", "1", "INI", "--set", "data.store=raw"], ["little"]),
    (["S3D", "little", "1", "INI", "--set", "data.num_frames=6"], ["cannot be trained on clips this short on a CPU"]),
    (["S3D", "little", "1", "INI", "--set", "model_params.init_from=no.pth"], ["the checkpoint is missing", "no.pth"]),
    (["S3D", "little", "1", "INI", "--set", "model_params.weights=no.pth"], ["no.pth"]),
    (["S3D", "little"], ["the following arguments are required: EXP_NO"]),
    (["S3D", "little", "1", "INI", "--what"], ["unrecognized arguments: --what"]),
])
def test_mistakes_are_told_without_a_traceback(bench, words, said):
    words = [w for word in words for w in (["-c", bench.ini(REAL)] if word == "INI" else [word])]
    printed = bench.run(*words, "-na", real=True, expect=2)
    assert all(word in printed for word in said) and "Traceback" not in printed, printed
    assert not list(bench.folder.rglob("*.pth"))


def test_bf16_is_checked_before_it_is_believed(bench):
    """Either this CPU's gradients are right, or the layer is named; wrong ones are never trained with."""
    child = bench.start("S3D", "little", "1", "-c", bench.ini(REAL), "-na", "--set", "training.precision=bf16",
                        real=True)
    code, said = child.wait(), child.said()
    assert code == 0 or (code == 2 and "gradients in bfloat16 are wrong on this CPU: those of backbone." in said
                         and "training.precision = 'fp32'" in said), said


# --- --print_config -----------------------------------------------------------------------------------------

def test_print_config_needs_no_torch(bench):
    program = ("import sys; sys.argv = ['training.py', *sys.argv[1:]]; import training\n"
               "code = training.main()\nprint('heavy:', *{'torch', 'numpy', 'cv2', 'matplotlib'} & set(sys.modules))\n"
               "sys.exit(code)")
    words = ["S3D", "little", "1", "-c", bench.ini(micro.INI), "--set", "training.batch_size=7", "--print_config"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **bench.env})
    assert done.returncode == 0 and done.stdout.endswith("heavy:\n"), done.stderr
    assert "batch_size = 7" in done.stdout and not (bench.folder / "runs").exists()
    text = done.stdout.rpartition("heavy:")[0]
    assert training.configuration.parse_config(text, Experiment("S3D", "little", "1")).training.batch_size == 7


def test_print_config_says_what_it_understood(bench, monkeypatch, capsys):
    file = bench.ini("[admin]\nmodel = S3D\n" + micro.INI)
    monkeypatch.setattr(sys, "argv", ["training.py", "S3D", "little", "1", "--print_config", "-c", file])
    assert training.main() == 0
    printed = capsys.readouterr()
    assert printed.err == "note: [admin] does nothing here\n" and "batch_size = 4" in printed.out


def test_print_config_of_a_wrong_file(bench):
    command = [sys.executable, str(CODE / "training.py"), "S3D", "little", "1", "--print_config", "-c"]
    done = subprocess.run([*command, bench.ini("[training]\nbatch_size = 4")], capture_output=True, text=True,
                          timeout=60, env={**os.environ, **bench.env})
    assert done.returncode == 2 and done.stdout == "" and "[training] lacks" in done.stderr
    assert "Traceback" not in done.stderr


# --- several processes --------------------------------------------------------------------------------------

SWIN = REAL.replace("batch_size = 3", "batch_size = 4").replace("drop_p = 0.0", "drop_p = 0.0\ndrop_path = 0.0")
SWIN = SWIN.replace("num_frames = 8", "num_frames = 2").replace("eps = 1e-8", "eps = 1e-6").replace("1e-2", "1e-3")


def test_two_processes_equal_one(bench):
    """Swin3D_T, nine clips in batches of four (the last of one clip: fewer than processes), seven in validation."""
    words = ["Swin3D_T", "little", "1", "-c", bench.ini(SWIN), "-na", "--no_wandb"]
    runner = bench.torchrun(str(CODE / "training.py"), *words, "--test_best", SLR_RUNS=str(bench.folder / "two"))
    bench.run(*words, real=True)
    said = runner.communicate(timeout=200)[0]
    assert runner.returncode == 0, said
    one = bench.log("001", model="Swin3D_T")
    two = read_log(bench.folder / "two" / "little" / "Swin3D_T_001" / "log.jsonl")
    assert len(one) == len(two) == 2
    for a, b, near in zip(one, two, (1e-5, 1e-4), strict=True):  # AdamW makes steps of what is rounding
        for part in ("train", "val"):
            assert a[part]["loss"] == pytest.approx(b[part]["loss"], rel=near, abs=near)
            assert a[part]["acc"] == b[part]["acc"]
    assert said.count("epoch   1/2") == 1  # one of them speaks
    results = bench.folder / "two" / "little" / "Swin3D_T_001" / "results"
    assert json.loads((results / "best_val_loss.json").read_text())["test"]  # and tests, alone


def test_two_processes_interrupted_by_a_signal_to_one(bench):
    """All leave after the same step; resumed they end where one process ends. Uneven batches, mixup, accumulation."""
    ini = micro.FULL.replace("drop_p = 0.3", "drop_p = 0.0").replace("max_epoch = 4", "max_epoch = 3").replace(
        "mode = 'min'\npatience = 3", "mode = 'min'\npatience = 9").replace(
        "save_every = 2", "save_every = 2\nsave_minutes = 1e-9\nkeep_top = 1")
    words = ["S3D", "little", "1", "-c", bench.ini(ini), "-na", "--no_wandb"]
    script, env = str(CODE / "tests" / "micro.py"), {"SLR_RUNS": str(bench.folder / "two")}
    runner = bench.torchrun(script, *words, MICRO_FAIL="slow", **env)
    bench.run(*words)
    status = bench.folder / "two" / "little" / "S3D_001" / "status.json"
    told: dict = {}
    while told.get("state") != "running" and runner.poll() is None:
        told = json.loads(status.read_text()) if status.exists() else {}
    assert len(told["pids"]) == 2
    os.kill(told["pids"][1], signal.SIGUSR1)
    said = runner.communicate(timeout=200)[0]
    assert runner.returncode == 1 and "interrupted by" in said, said  # torchrun's own code for any child's
    told = json.loads(status.read_text())
    assert told["state"] == "interrupted" and told["exit_code"] == 75
    assert (status.parent / "checkpoints" / "resume.pth").exists()
    runner = bench.torchrun(script, *words, "-r", **env)
    said = runner.communicate(timeout=200)[0]
    assert runner.returncode == 0, said
    one, two = bench.log("001"), read_log(status.parent / "log.jsonl")
    tops = checkpoint.tops(bench.folder_of("001") / "checkpoints")
    assert len(tops) == 1 and list(checkpoint.tops(status.parent / "checkpoints").values()) == list(tops.values())
    assert [row["epoch"] for row in two] == [1, 2, 3]
    for a, b in zip(one, two, strict=True):
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], abs=1e-5)
        assert a["val"]["loss"] == pytest.approx(b["val"]["loss"], abs=1e-5)


@pytest.mark.parametrize(("fail", "code", "reason"), [("oom", 76, "rank1: out of memory"),
                                                      ("mistake", 2, "rank1: the video does not decode"),
                                                      ("build", 76, "rank1: out of memory")])
def test_the_failure_of_another_process_is_told(bench, fail, code, reason):
    words = ["S3D", "little", "1", "-c", bench.ini(micro.INI), "-na", "--no_wandb"]
    first, second = bench.pair(*words, MICRO_FAIL=fail, MICRO_RANKS="1")
    assert second.wait() == code, second.said()
    first.wait()
    status = bench.status("001")
    assert (status["state"], status["exit_code"]) == ("failed", code) and status["reason"].startswith(reason)
    assert json.loads((bench.folder_of("001") / "status.rank1.json").read_text())["exit_code"] == code
    bench.run(*words, "-r")
    assert not (bench.folder_of("001") / "status.rank1.json").exists()


# --- what wandb hears ---------------------------------------------------------------------------------------

def test_wandb_project_and_tags(little, monkeypatch):
    heard: dict = {}
    monkeypatch.setattr(training.logbook, "start_wandb", lambda folder, **settings: heard.update(settings) or
                        training.logbook.Silent())
    config = training.configuration.parse_config(micro.INI, Experiment("S3D", "asl100", "4"))
    for words, project in (([], "WLASL-100"), (["-p", "mine"], "mine")):
        args = training.parse_arguments(["S3D", "asl100", "4", "-t", "a", "b", "-et", "lab", *words])
        book = training.logbook.Logbook(little / "run", 3)
        training.attach_loggers(args, config, Experiment("S3D", "asl100", "4"), book, 100, "old")
        assert heard["project"] == project and heard["tags"] == ["asl100", "S3D", "exp-004", "a", "b"]
        assert heard["entity"] == "lab" and heard["id"] == "old" and heard["resume"] == "allow"
    heard.clear()
    training.attach_loggers(argparse.Namespace(**{**vars(args), "no_wandb": True}), config,
                            Experiment("S3D", "asl100", "4"), book, 100, None)
    assert not heard


def test_options_of_the_seed():
    args = training.parse_arguments("S3D asl100 4 -ds WLASL -r -ri abc -p x -et y -ee -ec -t a -c f -na".split())
    assert args.recover and args.run_id == "abc" and args.enum_exp and args.enum_chck and args.no_ask
    assert paths.ROOT == CODE.parent
