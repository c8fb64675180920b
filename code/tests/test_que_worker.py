"""What a worker makes of an end, and the parts that it stands on: command lines, signals, processes, settings."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from que import commands, daemon, gpus, plan, procs, settings, worker
from que.errors import Changed, Mistake, Storage
from que.job import Job
from que.store import Store
from que.worker import Worker, last_line


@pytest.fixture
def store(tmp_path) -> Store:
    return Store((tmp_path / "state").resolve())


def file_job(store: Store, state: str = "cur_run", **fields) -> str:
    run = store.folder.parent / "run"
    run.mkdir(exist_ok=True)
    values = {"run": str(run), "facts": {"batch_size": 8, "update_per_step": 1}, "claim": {"devices": ["cpu:0"]},
              "attempts": [{"stage": "train", "started": 1.0, "before": None}], **fields}
    return store.add(Job("S3D", "demo", "1", **values), state=state)[0].id


def make(store: Store, **fields) -> Worker:
    return Worker(store, file_job(store, **fields))


def tell(of: Worker, **status) -> None:
    (Path(of.job.run) / "status.json").write_text(json.dumps({"started": 2.0, "updated": 3.0, **status}))


# --- judge -----------------------------------------------------------------------------------------------------

CODES = (0, 1, 2, 75, 76, 77, 78, 143, -2, -9, -11, -15, -40, None)


FOLLOWS = {("train", "test"): (True, True), ("train", "extract"): (False, True), ("train", ""): (False, False),
           ("test", "extract"): (True, True), ("test", ""): (True, False), ("extract", ""): (True, True)}


def expected(code: int | None, told: int | None, asked: str, stage: str, after: str) -> tuple[str, str]:
    """Where a job goes and why, from the words of the spec; `after` is the stage that follows, if one does."""
    code = told if stage == "train" and told is not None else code
    if code == 0 and not after:
        return "old_runs", "done"
    if code == 0 and asked in ("", "timeout"):
        return "cur_run", {"train": "trained", "test": "tested"}[stage]
    if asked:
        return {"pause": ("held", "pause"), "cancel": ("fail_runs", "cancel"), "requeue": ("to_run", "requeue"),
                "timeout": ("to_run", "timeouts")}[asked]
    if code in (2, 77, 78):
        return "fail_runs", "hopeless"
    return "to_run", {76: "ooms", 75: "interrupts", None: "interrupts"}.get(code, "crashes")


def test_judge(store):
    """Every exit code, every status.json, everything that can be asked for, in every stage."""
    of = make(store)
    for told in (*CODES[:7], None, "stale"):
        tell(of, exit_code=told if told != "stale" else 0)
        of.job.attempts[-1]["before"] = 2.0 if told == "stale" else None
        for code, asked, (stage, after), in itertools.product(
                CODES, ("", "pause", "cancel", "requeue", "timeout"), FOLLOWS):
            of.stopping, of.job.stage, of.job.test, of.job.extract = asked, stage, *FOLLOWS[stage, after]
            end = of.judge(code)
            case = f"{code} {told} {asked} {stage} {after}"
            assert (end.to, end.cause) == expected(code, None if told == "stale" else told, asked, stage, after), case
            over = 0 in ((code,) if stage != "train" or told in (None, "stale") else (told,))
            if end.to in ("to_run", "held", "cur_run"):
                assert end.change.get("stage", "") == (after if over else ""), case
                assert end.change["recover"] == (stage == "train" and not over), case
            assert end.reason, case


@pytest.mark.parametrize(("test", "extract", "words"), [
    (False, False, "trained"), (True, False, "trained and tested"), (False, True, "trained and extracted"),
    (True, True, "trained, tested and extracted")])
def test_what_was_done(store, test, extract, words):
    of = make(store, test=test, extract=extract)
    while of.job.next_stage:
        of.job.stage = of.job.next_stage
    tell(of, exit_code=0)
    assert of.judge(0).reason == words


@pytest.mark.parametrize(("code", "kind"), [(1, "crashes"), (76, "ooms"), (75, "interrupts"), (-9, "crashes")])
def test_so_often_and_no_more(store, code, kind):
    of = make(store)
    store.write_json("settings.json", {kind: 2})
    for tries in (1, 2):
        end = of.judge(code)
        assert (end.to, end.change["tries"]) == ("to_run", {kind: tries})
        vars(of.job).update(end.change)
    end = of.judge(code)
    assert (end.to, end.cause) == ("fail_runs", kind) and f"for the 3. time; the setting {kind} allows 2" in end.reason


def test_a_crash_waits_longer_every_time_but_not_for_ever(store):
    of = make(store)
    store.write_json("settings.json", {"backoff": 100, "crashes": 50})
    waits = []
    for tries in range(10):
        of.job.tries = {"crashes": tries}
        waits.append(of.judge(1).change["not_before"] - time.time())
    assert waits[:3] == pytest.approx([100, 200, 400], abs=1) and waits[-1] == pytest.approx(plan.LONGEST_WAIT, abs=1)


def test_status_tells_more_than_the_code(store):
    of = make(store)
    tell(of, exit_code=76, reason="out of memory: 79 GiB in use; smaller batch")
    assert of.judge(1).reason == "out of memory: 79 GiB in use; smaller batch (batch 8 -> 4)"
    store.log(of.job.id).write_text("[que x] j1 train, attempt 1: y\nValueError: no\n")
    tell(of, exit_code=None, reason="")
    assert of.judge(1).reason == "exit code 1: ValueError: no"
    assert of.judge(-15).reason == "killed by signal 15 (Terminated)" and "signal 40" in of.judge(-40).reason


def test_a_job_that_was_never_begun_is_not_judged_by_an_older_run(store):
    """The daemon was killed between the move to cur_run and the worker's start."""
    ended = {"stage": "train", "started": 1.0, "ended": 2.0, "before": None, "cause": "ooms", "reason": "x"}
    for attempts in ([], [ended]):
        of = make(store, attempts=attempts)
        tell(of, exit_code=76)
        end = of.clear()
        assert (end.to, end.cause, end.change["recover"]) == ("to_run", "interrupts", bool(attempts))
        assert "changes" not in end.change


@pytest.mark.parametrize(("moving", "request_", "to"), [
    ("old_runs", "", "old_runs"), ("fail_runs", "", "fail_runs"), ("to_run", "", "to_run"), ("held", "", "held"),
    ("to_run", "cancel", "fail_runs"), ("to_run", "pause", "held"), ("old_runs", "cancel", "old_runs")])
def test_a_worker_died_in_the_middle_of_its_last_move(store, moving, request_, to):
    """The move is completed, with the hook; what was asked for meanwhile counts where the job would go on."""
    ended = [{"stage": "train", "started": 1.0, "ended": 2.0, "before": None, "cause": "done", "reason": "trained"}]
    store.write_json("settings.json", {"hook": f"cat > {store.folder}/told"})
    job = file_job(store, moving=moving, attempts=ended, request=request_, reason="trained", tries={"crashes": 1})
    worker.work(store, job, clear=True)
    filed = store.find(job)
    assert (filed.state, filed.request, filed.claim, filed.tries) == (to, "", {}, {"crashes": 1})
    assert [attempt["ended"] for attempt in filed.attempts] == [2.0]
    assert (store.folder / "told").exists() == (to in ("old_runs", "fail_runs"))


@given(batch=st.integers(1, 300), gather=st.integers(1, 16), ranks=st.integers(1, 8))
def test_halved_batches(batch, gather, ranks):
    """Down to one item of each rank; a step gathers what it did at first, as nearly as the halves allow."""
    of = Worker.__new__(Worker)
    of.store = Store.__new__(Store)
    of.store.folder = Path("/nowhere")
    of.job = Job("S3D", "demo", "1", facts={"batch_size": batch, "update_per_step": gather}, peak=5,
                 claim={"devices": [f"GPU-{i}" for i in range(ranks)]}, attempts=[{}])
    for half in (batch // 2, batch // 4, batch // 8, batch // 16):
        end = of._out_of_memory("no memory")
        if end.to == "fail_runs":
            assert half < ranks
            return
        vars(of.job).update(end.change)
        assert of.batch == half >= ranks and of.job.peak == 0
        assert abs(half * int(of.job.changes["training.update_per_step"]) - batch * gather) <= half / 2


def test_an_extractions_batch_is_halved_by_itself(store):
    """Down to one sentence, however many GPUs training had; what training is told stays as it is."""
    of = make(store, stage="extract", extract=True, claim={"devices": ["GPU-0", "GPU-1"]},
              changes={"training.batch_size": "4"})
    assert commands.extract(of.job, store.folder)[-2:] == ["--batch_size", "4"]
    for half in ("2", "1"):
        end = of.judge(76)
        vars(of.job).update(end.change)
        assert (end.to, end.cause, of.job.changes) == ("to_run", "ooms", {"training.batch_size": "4"})
        assert of.command()[-2:] == ["--batch_size", half] and of.batch == int(half)
    assert of.judge(76).to == "fail_runs"
    of.job.stage = "train"
    assert of.batch == 4


def test_a_batch_that_nobody_told(store):
    of = make(store, facts={})
    assert of.judge(76).reason.endswith("(the batch of unknown size cannot be halved)")


# --- filing ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("asked", "to"), [("pause", "held"), ("cancel", "fail_runs"), ("requeue", "to_run")])
def test_a_request_at_the_last_moment(store, asked, to):
    """It came between the judgement and the move: a job that would be tried again is not."""
    of = make(store)
    end = of.judge(1)
    daemon.request(store, of.job, asked)
    of.file(end)
    filed = store.find(of.job.id)
    assert (filed.state, filed.request, filed.claim) == (to, "", {}) and bool(filed.ended) == (asked == "cancel")
    assert filed.attempts[-1]["cause"] == "crashes" and filed.recover


def test_a_request_after_the_end_changes_nothing(store):
    of = make(store, stage="test")
    daemon.request(store, of.job, "cancel")
    of.file(of.judge(0))
    assert (of.job.state, of.job.request, of.job.reason) == ("old_runs", "", "trained and tested")


def test_putting_back_does_not_undo_a_pause(store):
    job = store.find(file_job(store))
    for what, asked in (("requeue", "requeue"), ("pause", "pause"), ("requeue", "pause"), ("cancel", "cancel")):
        daemon.request(store, job, what)
        assert store.find(job.id).request == asked


def test_no_room_to_write(store, monkeypatch, capsys):
    """The end of a job is kept until there is room for it."""
    of, update, failures = make(store), store.update, [Storage("the que cannot write", "full", "make room")] * 3

    def full(*args, **kwargs):
        if failures:
            raise failures.pop()
        return update(*args, **kwargs)

    monkeypatch.setattr(store, "update", full)
    monkeypatch.setattr(worker, "RETRY", 0)
    of.file(of.judge(2))
    assert store.find(of.job.id).state == "fail_runs" and capsys.readouterr().out.count("trying again") == 3


def test_the_peak_is_told_after_the_first_epoch(store, monkeypatch):
    """Before it most of the memory is still to be taken: the declared share stays. A full disk ends nothing."""
    of, epoch = make(store, claim={"devices": ["GPU-0"]}), {"started": 5.0, "epoch": 0}
    monkeypatch.setattr(commands, "status", lambda job: epoch)
    monkeypatch.setattr(gpus, "read_gpus", lambda: [gpus.Gpu("GPU-0", 0, "fake", 10, 5, {1: 3, 2: 2, 9: 9})])
    monkeypatch.setattr(procs, "marked", lambda mark: [1, 2])
    of.measure()
    assert store.find(of.job.id).peak == 0
    epoch["epoch"], of._measured = 1, 0
    with monkeypatch.context() as patch:
        patch.setattr(store, "update", lambda *a, **k: (_ for _ in ()).throw(Storage("full")))
        of.measure()
    assert store.find(of.job.id).peak == 0
    of._measured = 0
    of.measure()
    assert store.find(of.job.id).peak == 5


def test_a_job_that_somebody_moved(store):
    """It stays where it was put, with what is known; one that is gone is not brought back."""
    for to in ("held", "to_run", "fail_runs"):
        of = make(store)
        store.update(of.job.id, to=to)
        of.file(of.judge(None))
        assert (of.job.state, of.job.claim, of.job.recover) == (to, {}, True)
        assert of.job.attempts[-1]["cause"] == "interrupts"
    of = make(store)
    (store.folder / "cur_run" / f"{of.job.id}.json").unlink()
    with pytest.raises(Changed):
        of.file(of.judge(None))
    assert worker.work(store, of.job.id) == 0 and worker.work(store, "j99") == 0


def test_a_bug_of_the_que_fails_the_job_and_leaves_nothing(store, monkeypatch, capsys):
    """An endless round of new workers would be worse."""
    of = make(store)
    child = subprocess.Popen(["sleep", "60"], env={"QUE_JOB": of.mark})
    monkeypatch.setattr(Worker, "clear", lambda self: 1 / 0)
    store.write_json("settings.json", {"grace": 0})
    worker.work(store, of.job.id, clear=True)
    filed = store.find(of.job.id)
    assert (filed.state, filed.reason) == ("fail_runs", "a bug of the que: ZeroDivisionError: division by zero")
    assert child.wait(5) == -signal.SIGTERM and "in course" in capsys.readouterr().out


def test_what_cannot_be_started(store, monkeypatch):
    """A folder that is gone for now is tried again; a parent without a checkpoint is hopeless."""
    of = make(store, snapshot="0123456789ab", attempts=[])
    end = of.course(clear=False)
    assert (end.to, end.cause) == ("to_run", "crashes") and "No such file or directory" in end.reason
    parent = file_job(store, state="old_runs", attempts=[])
    of = make(store, after=[parent], init_from="parent")
    end = of.course(clear=False)
    assert (end.to, end.cause) == ("fail_runs", "hopeless") and f"{parent} (S3D demo 1) has no checkpoint" in end.reason


def test_what_the_parents_hand_over(store, tmp_path):
    """One is the last of them; several are theirs in order, none twice, as one quoted string."""
    names = []
    for number in (1, 2, 3):
        run = tmp_path / f"run {number}"
        run.mkdir()
        (run / "best.pth").touch()
        (run / "status.json").write_text(json.dumps({"checkpoint": str(run / "best.pth")}))
        names.append(file_job(store, state="old_runs", run=str(run)))
    first, second, third = (str(tmp_path / f"run {number}" / "best.pth") for number in (1, 2, 3))
    for init_from, found in (("parent", third), ("parents", f"{first}, {second}, {third}")):
        of = make(store, after=[*names[:2], names[0], names[2]], init_from=init_from)
        assert of.command()[-2:] == ["--set", f"model_params.init_from={found!r}"]
    assert "init_from" not in " ".join(make(store, after=names).command())
    (tmp_path / "run 2" / "best.pth").unlink()
    end = of.course(clear=False)
    assert (end.to, end.cause) == ("fail_runs", "hopeless") and f"{names[1]} (S3D demo 1) has no check" in end.reason


def test_a_hook_that_does_not_end(store, monkeypatch):
    of = make(store)
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: real(*a, **{**k, "timeout": 0.1}))
    store.write_json("settings.json", {"hook": "sleep 30 & wait"})
    of.file(of.judge(2))
    assert "timed out after 0.1 seconds" in store.log(of.job.id).read_text() and of.job.state == "fail_runs"


# --- logs ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "line"), [
    ("", ""), ("one\ntwo\n\n \n", "two"), ("10 %\r50 %\r100 %", "100 %"), ("a\r\nb\r\n", "b"),
    ("Traceback\n  File x\nKeyError: 'a'\nexception ignored\n", "KeyError: 'a'"),
    ("error: no data: x\n  make it\n", "error: no data: x"), ("\xff\xfe", "\xff\xfe"), ("x" * 50_000, "x" * 300),
    ("[que t] j1 train, attempt 1: c\nerror: old\n[que t] j1 crashes: x\n[que t] j1 train, attempt 2: c\n", ""),
    ("said[que t] j1 train, attempt 1: c\nnew\n[que t] j1 its worker is gone\n", "new"),
])
def test_last_line(tmp_path, text, line):
    (tmp_path / "log").write_text(text, encoding="utf-8")
    assert last_line(tmp_path / "log") == line


def test_last_line_of_no_log(tmp_path):
    assert last_line(tmp_path / "none") == ""


# --- signals ---------------------------------------------------------------------------------------------------

class Street:
    """Processes that leave at a signal of theirs, and a clock that the steps move."""

    def __init__(self, monkeypatch, **leaves: str):
        self.left = {int(name[1:]): number for name, number in leaves.items()}
        self.sent: list[tuple[float, str, list[int]]] = []
        self.now = 0.0
        monkeypatch.setattr(procs, "marked", lambda mark: list(self.left))
        monkeypatch.setattr(procs, "send", self.send)
        monkeypatch.setattr(procs.time, "monotonic", lambda: self.now)

    def send(self, pids: list[int], number: signal.Signals) -> None:
        self.sent.append((round(self.now, 1), number.name[3:], list(pids)))
        for pid in pids:
            if self.left.get(pid) in (number.name[3:], None) or number == signal.SIGKILL:
                self.left.pop(pid, None)

    def climb(self, ladder: procs.Ladder) -> list[tuple[float, str, list[int]]]:
        while self.left and self.now < 1000:
            ladder.step()
            self.now += 0.1
        return self.sent


def test_ladder(monkeypatch):
    """The ranks alone are asked to save; then they are told to end; then all are killed, until they are gone."""
    street = Street(monkeypatch, p1="KILL", p2="KILL", p3="KILL")
    sent = street.climb(procs.Ladder("m", lambda: [2, 3, 999], grace=20, patience=10))
    assert [(name, pids) for _, name, pids in sent] == [("USR1", [2, 3]), ("TERM", [2, 3]), ("KILL", [1, 2, 3])]
    assert [when for when, _, _ in sent] == pytest.approx([0, 20, 30], abs=0.2)


def test_ladder_where_nobody_trains(monkeypatch):
    """Testing, or a training that has said nothing yet; numbers in status.json that are others' now get no signal."""
    sent = Street(monkeypatch, p1="TERM", p2="KILL").climb(procs.Ladder("m", lambda: [77], grace=20, patience=10))
    assert [(name, pids) for _, name, pids in sent] == [("TERM", [1, 2]), ("KILL", [2])]
    assert sent[1][0] == pytest.approx(10, abs=0.2)


def test_ladder_of_the_obedient(monkeypatch):
    sent = Street(monkeypatch, p1="USR1", p2="USR1").climb(procs.Ladder("m", lambda: [1, 2], grace=20))
    assert sent == [(0.0, "USR1", [1, 2])]


# --- processes -------------------------------------------------------------------------------------------------

def test_marked(tmp_path):
    """By the whole mark, in any session, whatever the program is called; the dead are not counted."""
    odd = tmp_path / "x) R 1 1"
    odd.symlink_to("/bin/sleep")
    mark = f"{tmp_path}#j1"
    mine = subprocess.Popen([str(odd), "60"], env={"QUE_JOB": mark}, start_new_session=True)
    other = subprocess.Popen(["sleep", "60"], env={"QUE_JOB": f"{mark}0"})
    try:
        assert procs.marked(mark) == [mine.pid] and procs.job_of(mine.pid) == mark and not procs.job_of(os.getpid())
        who = procs.identity(mine.pid)
        assert procs.alive(who) and not procs.alive({**who, "start": who["start"] + 1})
        assert not procs.alive({**who, "boot": "other"}) and not procs.alive({})
        mine.kill()
        os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        assert not procs.marked(mark) and not procs.alive(who) and procs.identity(mine.pid)["start"] is None
        procs.send([mine.pid, 2**22 + 1], signal.SIGTERM)
    finally:
        for child in (mine, other):
            child.kill()
            child.wait()


def test_looking_for_a_jobs_processes_is_quick():
    """A worker that stops its children does it ten times a second."""
    procs.marked("x")
    begun = time.perf_counter()
    for _ in range(5):
        procs.marked("x")
    assert (time.perf_counter() - begun) / 5 < 0.0005 * len(os.listdir("/proc")) + 0.05


def test_words_that_nobody_can_read(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.print", full)
    procs.say("hello")


# --- the daemon's parts ----------------------------------------------------------------------------------------

def test_abandoned(store):
    """The lease is free, the worker dead, and both were here: on this host, or on this boot of it."""
    here = procs.identity()
    dead = {**here, "start": 1}
    cases = [({}, True), (dead, True), (here, False), ({**dead, "host": "renamed"}, True),
             ({**here, "host": "x"}, False), ({**dead, "host": "other", "boot": "other"}, False),
             ({**dead, "boot": "before"}, True)]
    for claim, gone in cases:
        job = store.find(file_job(store, claim=claim))
        assert daemon.abandoned(store, job) == gone, claim
    job = store.find(file_job(store, claim={}, slurm={"job": "1"}))
    assert not daemon.abandoned(store, job)


def test_settled_again_after_a_rest(store, monkeypatch):
    """What a GPU had free before the que was empty says nothing about now."""
    clock = [100.0]
    monkeypatch.setattr(daemon.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpus, "read_gpus", lambda: [gpus.Gpu("GPU-0", 0, "fake", 80 << 30, 80 << 30)])
    monkeypatch.setenv("SLR_RUNS", str(store.folder))
    master = daemon.Daemon(store)
    started: list[str] = []
    monkeypatch.setattr(master, "start", lambda job, devices, reserve: started.append(job.id))
    master.settings = {**master.settings, "settle": 3, "disk": 0}
    first = file_job(store, "to_run", claim={})
    for now, running in ((100, 0), (102, 0), (103, 1)):
        clock[0] = now
        master.start_jobs()
        assert len(started) == running
    store.update(first, to="old_runs")
    master.start_jobs()
    file_job(store, "to_run", claim={})
    for now, running in ((200, 1), (202, 1), (203.5, 2)):
        clock[0] = now
        master.start_jobs()
        assert len(started) == running


def test_trouble_is_said_once_and_outlived(store, capsys):
    master = daemon.Daemon(store)
    for error in (Storage("full"), Storage("full"), OSError(11, "no more processes"), KeyError("a"), KeyError("a")):
        def act(error: Exception = error) -> None:
            raise error
        master.guarded(act)
    said = capsys.readouterr().out
    assert [said.count(text) for text in ("full", "no more processes", "Traceback")] == [1, 1, 1]


# --- command lines and settings --------------------------------------------------------------------------------

def test_training_words(store):
    job = store.find(file_job(store, snapshot="0123456789ab", options=["--seed", "3", "-ec"], changes={"a.b": "2"}))
    script, ini = store.folder / "snapshots/0123456789ab/code/training.py", store.folder / "configs" / f"{job.id}.ini"
    run = [sys.executable, str(script), "S3D", "demo", "1", "-na"]
    assert commands.train(job, store.folder) == [*run, "-c", str(ini), "--seed", "3", "-ec", "--set", "a.b=2"]
    job.recover = True
    assert commands.train(job, store.folder) == [*run, "-r", "-c", str(ini), "--seed", "3", "--set", "a.b=2"]
    (Path(job.run) / "config.ini").touch()
    assert commands.train(job, store.folder) == [*run, "-r", "--seed", "3", "--set", "a.b=2"]
    assert commands.train(job, store.folder, 2)[1:6] == ["-m", "torch.distributed.run", "--standalone",
                                                         "--nproc_per_node", "2"]
    assert commands.train(job, store.folder, 1, "/a b'c.pth")[-2:] == ["--set", 'model_params.init_from="/a b\'c.pth"']


@pytest.mark.parametrize("options", [["--device", "cpu"], ["--device=cpu"], ["--seed", "1", "--device", "cpu"]])
def test_testing_words(store, options):
    job = store.find(file_job(store, options=options))
    words = commands.test(job, store.folder)
    assert words[2:6] == ["full", "S3D", "demo", "1"] and "=".join(words[6:]) == "--device=cpu"
    job.changes = {"training.batch_size": "4"}
    assert commands.test(job, store.folder)[-2:] == ["--batch_size", "4"]


@pytest.mark.parametrize("options", [["--device", "cpu"], ["--device=cpu"], ["--seed", "1", "--device", "cpu"]])
def test_extracting_words(store, options):
    """By the snapshot's script; never -r."""
    job = store.find(file_job(store, options=options, snapshot="0123456789ab", recover=True, stage="extract"))
    script, *words = commands.extract(job, store.folder)[1:]
    assert script == str(store.folder / "snapshots/0123456789ab/code/extract_features.py")
    assert words[:3] == ["S3D", "demo", "1"] and "=".join(words[3:]) == "--device=cpu"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(settings.KEYS)), inner)))
def test_settings_of_any_file(tmp_path_factory, content):
    """Whatever stands there, each setting has a value of its kind."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "settings.json").write_text(json.dumps(content))
    for name, value in settings.load(folder).items():
        default = settings.KEYS[name][0]
        assert isinstance(value, (int, float) if isinstance(default, float) else type(default))


@pytest.mark.parametrize(("name", "text", "value"), [
    ("settle", "0", 0), ("grace", "2m", 120.0), ("disk", "0", 0), ("headroom", "1G", 1 << 30), ("slots", "0", 0),
    ("hook", "0", "0"), ("crashes", "0", 0), ("poll", "0.1", 0.1)])
def test_settings(name, text, value):
    assert settings.parse(name, text) == value


@pytest.mark.parametrize(("name", "text"), [("poll", "0"), ("slots", "-1"), ("slots", "many"), ("grace", "soon"),
                                            ("disk", "-5"), ("speed", "1")])
def test_settings_that_are_none(name, text):
    with pytest.raises(Mistake):
        settings.parse(name, text)
