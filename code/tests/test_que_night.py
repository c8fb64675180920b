"""Nights of the que: a real daemon, real workers and signals; only the training is a stand-in (que_project)."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from que_project import ROOT, Project, make_home, script, weights_after

from que import commands, daemon, gpus, procs

GIB = 1 << 30


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def night(tmp_path, home):
    project = Project(tmp_path, home)
    yield project
    project.close()
    assert not list(project.runs.rglob("TWICE")), project.said()


def done(job, night: Project, epochs: int = 3, steps: int = 4) -> None:
    """Trained in order, every step once, tested, and filed in one place."""
    number = int(job.exp_no)
    assert job.state == "old_runs", night.said()
    trained = {"history": list(range(1, epochs + 1)), "step": 0, "weights": weights_after(epochs, steps)}
    assert night.state(number) == trained
    assert trained.items() <= json.loads((night.run(number) / "results.json").read_text()).items()
    assert len(list(night.store.folder.glob(f"*/{job.id}.json"))) == 1
    assert not job.claim and not job.request and all("ended" in attempt for attempt in job.attempts)


def causes(job) -> list[str]:
    return [f"{attempt['stage']} {attempt['cause']}" for attempt in job.attempts]


def worker_of(night: Project, job: str) -> int:
    return night.until(lambda: night.store.find(job).claim.get("pid"))


# --- kill -9 ---------------------------------------------------------------------------------------------------

def test_a_quiet_night(night):
    ids = [night.job(n) for n in (1, 2, 3)]
    night.daemon()
    for job in night.ended(*ids):
        done(job, night)
        assert causes(job) == ["train trained", "test done"] and job.reason == "trained and tested"
        assert job.last["epochs"] == 3
    assert night.que("daemon", "stop") == "the daemon has ended\n"
    night.until(lambda: not night.processes(), 10)


def test_killed_training_is_resumed_so_often(night):
    night.settings(crashes=2)
    job = night.job(wait=True)
    night.daemon()
    for epoch in (0, 1):
        night.kill(night.training(epoch=epoch))
        night.until(lambda n=epoch: len(night.store.find(job).attempts) == n + 2)
        night.go(epoch=epoch + 1)
    night.go()
    ended = night.ended(job)
    done(ended, night)
    assert causes(ended) == ["train crashes", "train crashes", "train trained", "test done"]
    assert ended.attempts[0]["reason"] == "killed by signal 9 (Killed)" and " -na -r" in night.said()


def test_killed_training_fails_in_the_end(night):
    night.settings(crashes=0)
    job = night.job(wait=True)
    night.daemon()
    night.kill(night.training())
    ended = night.ended(job)
    assert (ended.state, ended.attempts[-1]["cause"]) == ("fail_runs", "crashes")
    assert ended.reason == "killed by signal 9 (Killed) (once; the setting crashes allows 0)"


def test_killed_worker(night):
    """What it left behind saves and leaves first: no step is lost, nor trained twice."""
    job = night.job(wait=True)
    night.daemon()
    training = night.training()
    night.kill(worker_of(night, job))
    night.until(lambda: not procs.start_ticks(training))
    assert night.state()["step"] == 2
    night.go()
    ended = night.ended(job)
    done(ended, night)
    assert ended.attempts[0]["reason"] == "interrupted by SIGUSR1" and ended.tries == {"interrupts": 1}


def test_killed_worker_of_a_test(night):
    job = night.job(test_time=0.5)
    night.daemon()
    night.until(lambda: night.processes("testing.py"))
    night.kill(worker_of(night, job))
    ended = night.ended(job)
    done(ended, night)
    assert causes(ended) == ["train trained", "test interrupts", "test done"]


def test_training_ends_while_its_worker_is_dead(night):
    job = night.job(wait=True)
    first = night.daemon()
    night.training()
    night.kill(first.pid, worker_of(night, job))
    night.go()
    night.until(lambda: not night.processes("training.py"))
    assert night.store.find(job).state == "cur_run"
    assert "its worker is gone" in night.que("list", "cur")
    night.daemon()
    ended = night.ended(job)
    done(ended, night)
    assert causes(ended) == ["train trained", "test done"] and not ended.tries


def test_killed_daemon(night):
    """The job goes on without it; the next daemon leaves it alone."""
    job, waiting = night.job(1, wait=True), night.job(2)
    night.settings(slots=1)
    first = night.daemon()
    night.training()
    night.kill(first.pid)
    second = night.daemon()
    night.until(lambda: daemon.holder(night.store).get("pid") == second.pid)
    night.go()
    ended = night.ended(job, waiting)
    for one in ended:
        done(one, night)
        assert causes(one) == ["train trained", "test done"]


def test_everything_is_killed_at_once(night):
    jobs = [night.job(n, wait=True) for n in (1, 2)]
    night.daemon()
    for epoch in (0, 1):
        night.training(1, epoch), night.training(2, epoch)
        night.kill(*night.processes())
        assert [job.state for job in night.store.jobs()] == ["cur_run", "cur_run"]
        night.go(1, epoch + 1), night.go(2, epoch + 1)
        night.daemon()
    night.go(1), night.go(2)
    for job in night.ended(*jobs):
        done(job, night)
        assert job.tries == {"interrupts": 2}


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments(night, seed):
    draw = random.Random(seed)
    night.settings(interrupts=1000, crashes=1000)
    jobs = [night.job(n, step=0.01, test_time=0.05, crash=draw.choice([0, 2])) for n in range(1, 6)]
    master = night.daemon()
    for _ in range(20):
        time.sleep(draw.uniform(0, 0.2))
        victims = night.processes(*draw.choice([["daemon"], ["_work"], ["_work"], ["training.py"], ["testing.py"],
                                                ["daemon", "_work"], [""]]))
        night.kill(*(victims if draw.random() < 0.5 else draw.sample(victims, min(1, len(victims)))))
        if master.poll() is not None:
            master = night.daemon()
    for job in night.ended(*jobs):
        done(job, night)
    assert not night.store.jobs("to_run", "cur_run", "held", "fail_runs") and not night.store.quarantined()


# --- the machine -----------------------------------------------------------------------------------------------

def test_after_a_reboot(night):
    """Other boots, numbers that other processes have now, no claim at all: taken up. Another machine's: not touched."""
    here = procs.identity()
    claims = [{**here, "boot": "another", "devices": ["cpu:0"]},
              {**here, "start": here["start"] - 1, "devices": ["cpu:0"]}, {},
              {"host": here["host"], "devices": ["cpu:1"]}, {**here, "host": "renamed", "pid": 2**22 + 1}]
    attempt = {"stage": "train", "started": time.time() - 5, "before": None}
    jobs = [night.job(n, to="cur_run", job={"claim": claim, "attempts": [dict(attempt)] if n % 2 else []})
            for n, claim in enumerate(claims, 1)]
    foreign = night.job(9, to="cur_run", job={"claim": {**here, "host": "elsewhere", "boot": "another"}})
    night.daemon()
    for job in night.ended(*jobs):
        done(job, night)
        assert job.tries == {"interrupts": 1}
    assert night.store.find(foreign).state == "cur_run" and not night.run(9).exists()


def test_a_job_that_runs_is_never_taken_up(night):
    """Not even where its lease is gone: its claim tells."""
    job = night.job(wait=True)
    night.daemon()
    night.training()
    (night.store.folder / "leases" / job).unlink()
    time.sleep(0.3)
    night.go()
    ended = night.ended(job)
    done(ended, night)
    assert causes(ended) == ["train trained", "test done"]


def test_two_daemons(night):
    first = night.daemon()
    night.until(lambda: daemon.holder(night.store).get("pid") == first.pid)
    for words in (("daemon",), ("daemon", "start")):
        wrong, _, do = night.que(*words, code=2).strip().partition("\n")
        assert wrong.startswith(f"error: another daemon runs: pid {first.pid}") and "`que daemon stop`" in do
    night.kill(first.pid)
    begun = time.monotonic()
    assert json.loads(night.que("daemon", "start", "--json"))["pid"] != first.pid
    assert time.monotonic() - begun < 2
    night.que("daemon", "stop")


def test_readers_do_not_keep_a_daemon_from_its_lock(night):
    """`que list` asks for the lock's holder, and so holds it for an instant, time and again."""
    file = night.store.folder / "daemon.lock"
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom que import disk\nfrom pathlib import Path\n" \
           "while True: disk.locked(Path(sys.argv[2]))"
    look = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(file)])
    try:
        for _ in range(200):
            os.close(daemon.Daemon(night.store)._lock())  # a Mistake where it is held
        assert look.poll() is None  # it has been looking all the while
    finally:
        look.kill()
        look.wait()


def test_a_clock_that_was_wrong(night):
    """Years ahead when the last attempt was written down: nothing waits for that, and nothing old is believed."""
    later = time.time() + 1e8
    job = night.job(wait=True, job={"not_before": later, "recover": True, "attempts": [
        {"stage": "train", "started": later, "ended": later + 1, "cause": "crashes", "reason": "x", "before": None}]})
    night.run().mkdir(parents=True)
    status = {"started": later, "updated": later + 1, "exit_code": 76, "pids": [1], "epoch": 0}
    (night.run() / "status.json").write_text(json.dumps(status))
    night.settings(interrupts=3, crashes=0)
    night.daemon()
    training = night.training()
    night.kill(worker_of(night, job))
    night.until(lambda: not procs.start_ticks(training))
    night.go()
    ended = night.ended(job)
    done(ended, night)
    assert not ended.changes and ended.attempts[1]["reason"] == "interrupted by SIGUSR1"


def test_a_daemon_from_a_jobs_own_shell(night):
    """It carries the job's mark, and so do its workers, if it does not shed it: they would be stopped with the job."""
    job = night.job()
    master = night.daemon(env={"QUE_JOB": commands.mark_of(job, night.store.folder)})
    done(night.ended(job), night)
    assert master.poll() is None and not procs.job_of(master.pid)


def test_workers_that_cannot_start(tmp_path, night):
    """While somebody mends the que itself: no job is lost, and the machine is not busy with trying."""
    night.home = make_home(tmp_path / "broken")
    broken = night.home / "que" / "worker.py"
    whole = broken.read_text()
    night.settings(backoff=0.3)
    job = night.job()
    night.daemon()
    night.until(lambda: daemon.holder(night.store))
    broken.write_text("1 / 0\n")
    night.until(lambda: "is taken up" in night.said())
    time.sleep(1)
    assert 2 <= night.said().count("is taken up") <= 5
    broken.write_text(whole)
    done(night.ended(job), night)


def test_full_disk_while_a_job_ends(night, tmp_path, home):
    """Nothing can be written, not even to the logs: the worker waits for room."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(small)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted by this user")
    tight = Project(small, home)
    try:
        tight.runs = tight.folder.parent / "runs"
        tight.env["SLR_RUNS"] = str(tight.runs)
        job, next_job = tight.job(1, wait=True), tight.job(2, to="held")
        master = tight.daemon()
        tight.training()
        with open(small / "filler", "wb", buffering=0) as filler:
            with pytest.raises(OSError):
                while True:
                    filler.write(bytes(512))
        assert "No space left" in tight.que("release", next_job, code=2)
        tight.go()
        tight.until(lambda: not tight.processes("training.py"))
        time.sleep(0.5)
        assert tight.store.find(job).state == "cur_run" and master.poll() is None and tight.processes("_work")
        (small / "filler").unlink()
        done(tight.ended(job), tight)
        tight.que("release", next_job)
        done(tight.ended(next_job), tight)
        assert master.poll() is None
    finally:
        tight.close()
        subprocess.run(["umount", str(small)], check=True)


# --- how jobs end ----------------------------------------------------------------------------------------------

def test_out_of_memory(night):
    job = night.job(fits=2)
    night.daemon()
    ended = night.ended(job)
    done(ended, night)
    assert ended.changes == {"training.batch_size": "2", "training.update_per_step": "4"} and ended.tries == {"ooms": 2}
    assert [attempt["batch_size"] for attempt in ended.attempts] == [8, 4, 2, 2]
    assert ended.attempts[0]["reason"] == "CUDA out of memory with 8 (batch 8 -> 4)"
    assert json.loads((night.run() / "results.json").read_text())["args"]["batch_size"] == "2"


def test_out_of_memory_with_a_batch_of_one(night):
    job = night.job(fits=0.5)
    night.daemon()
    ended = night.ended(job)
    assert (ended.state, ended.changes["training.batch_size"]) == ("fail_runs", "1")
    assert ended.reason == "CUDA out of memory with 1 (the batch of 1 cannot be halved)"


def test_a_bug_is_tried_again_and_then_told(night):
    job = night.job(bug=2, loud=50_000)
    night.daemon()
    ended = night.ended(job)
    assert (ended.state, ended.reason) == (
        "fail_runs", "exit code 1: ZeroDivisionError: in epoch 2 (for the 3. time; the setting crashes allows 2)")
    assert causes(ended) == ["train crashes"] * 3 and night.state()["history"] == [1]


@pytest.mark.parametrize("code", [2, 77, 78])
def test_hopeless(night, code):
    job = night.job(code=code)
    night.daemon()
    ended = night.ended(job)
    assert (ended.state, ended.reason) == ("fail_runs", f"asked to end with {code}")
    assert causes(ended) == ["train hopeless"]


def test_a_test_that_fails(night):
    job = night.job(test=1)
    night.daemon()
    ended = night.ended(job)
    assert causes(ended) == ["train trained"] + ["test crashes"] * 3
    assert ended.reason.startswith("exit code 1: error: asked to fail") and ended.stage == "test"
    (night.run() / "config.ini").write_text((night.run() / "config.ini").read_text().replace("test = 1", "test = 0"))
    night.que("recover", job)
    ended = night.ended(job)
    done(ended, night)
    assert causes(ended).count("train trained") == 1


def test_time_limit(night):
    job = night.job(step=0.04, job={"time_limit": 0.4})
    night.daemon()
    ended = night.ended(job)
    done(ended, night)
    assert "train timeouts" in causes(ended) and ended.attempts[0]["reason"] == "its limit of 0 s was over"
    night.settings(timeouts=1)
    ended = night.ended(night.job(2, wait=True, job={"time_limit": 0.4}))
    assert ended.state == "fail_runs" and causes(ended) == ["train timeouts"] * 2 and ended.tries == {"timeouts": 1}


def test_after_its_time_others_come_first(night):
    night.settings(slots=1)
    slow, other = night.job(1, wait=True, job={"time_limit": 0.5}), night.job(2)
    night.daemon()
    done(night.ended(other), night)
    assert night.store.find(slow).state in ("to_run", "cur_run")
    night.go()
    done(night.ended(slow), night)


def test_words_without_an_end(night):
    job = night.job(last="farewell", job={"test": False})
    night.daemon()
    ended = night.ended(job)
    assert (ended.state, ended.reason) == ("old_runs", "trained") and causes(ended) == ["train done"]
    assert "farewell[que " in night.said()


def test_a_grandchild_that_does_not_hear(night):
    """It is stopped with its job, and before the job starts anew."""
    night.settings(grace=0.3)
    job = night.job(child=True, crash=2)
    night.daemon()
    ended = night.ended(job)
    done(ended, night)
    assert causes(ended) == ["train crashes", "train trained", "test done"]
    assert not procs.marked(commands.mark_of(job, night.store.folder))


# --- what people ask for ---------------------------------------------------------------------------------------

def test_pause_and_resume(night):
    job = night.job(wait=True)
    night.daemon()
    night.training()
    night.que("pause", job, "--wait")
    paused = night.store.find(job)
    assert (paused.state, paused.reason, paused.recover, causes(paused)) == ("held", "paused", True, ["train pause"])
    assert commands.status(paused)["exit_code"] == 75 and night.state()["step"] == 2
    night.go()
    night.que("resume", job)
    ended = night.until(lambda: night.resting(job, "old_runs"))
    done(ended, night)
    assert not ended.tries


@pytest.mark.parametrize("late", [0.0, 0.6])
def test_cancel(night, late):
    """Also before the training hears anything."""
    job = night.job(wait=True, late=late)
    night.daemon()
    night.until(lambda: night.processes("training.py")) if late else night.training()
    night.que("cancel", job, "--wait")
    ended = night.store.find(job)
    assert (ended.state, ended.reason) == ("fail_runs", "cancelled") and ended.ended
    assert not night.processes("training.py", "testing.py")


def test_deaf_training_is_killed(night):
    night.settings(grace=0.2)
    job = night.job(wait=True, deaf=True)
    night.daemon()
    night.training()
    night.que("cancel", job, "--wait")
    assert night.store.find(job).state == "fail_runs" and not night.processes("training.py")


@pytest.mark.parametrize(("verb", "state"), [("pause", "held"), ("cancel", "fail_runs")])
def test_requests_to_a_dead_worker(night, verb, state):
    job = night.job(wait=True)
    first = night.daemon()
    night.training()
    night.kill(first.pid, worker_of(night, job))
    night.que(verb, job)
    night.daemon()
    ended = night.until(lambda: night.resting(job))
    assert (ended.state, ended.request, causes(ended)) == (state, "", [f"train {verb}"])
    assert commands.status(ended)["exit_code"] == 75 and not night.processes("training.py")


def test_a_signal_to_the_worker_puts_the_job_back(night):
    job = night.job(wait=True)
    night.daemon()
    night.training()
    night.kill(worker_of(night, job), number=signal.SIGTERM)
    night.until(lambda: len(night.store.find(job).attempts) == 2)  # or the first could reach its end unasked
    night.go()
    ended = night.ended(job)
    done(ended, night)
    assert causes(ended) == ["train requeue", "train trained", "test done"] and not ended.tries


def test_daemon_stop(night):
    job, waiting = night.job(1, wait=True), night.job(2)
    night.settings(slots=1)
    night.que("daemon", "start")
    night.training()
    assert night.que("daemon", "stop").startswith("the daemon has ended; 1 running go on to their end")
    night.go()
    done(night.ended(job), night)
    time.sleep(0.2)
    assert night.store.find(waiting).state == "to_run" and "no daemon runs (stopped by SIGTERM)" in night.que("list")


@pytest.mark.parametrize("dead", [False, True])
def test_daemon_stop_hard(night, dead):
    """Also where daemon and worker are dead, and only the training is left."""
    job = night.job(wait=True)
    master = night.daemon()
    night.training()
    if dead:
        night.kill(master.pid, worker_of(night, job))
    said = night.que("daemon", "stop", "--hard")
    assert said == f"{'no daemon was running' if dead else 'the daemon has ended'}; put back: {job}\n"
    back = night.store.find(job)
    assert (back.state, back.recover) == ("to_run", True) and commands.status(back)["exit_code"] == 75
    night.until(lambda: not night.processes(), 10)  # its worker may still be on its way out


def test_daemon_stop_hard_of_a_deaf_one(night):
    night.settings(grace=30)
    job = night.job(wait=True, deaf=True)
    night.daemon()
    night.training()
    assert f"put back: {job}" in night.que("daemon", "stop", "--hard", "--timeout", "0.3")
    assert night.store.find(job).state == "to_run"


def test_stop_on_fail(night):
    """Also when it is a job that failed before, and was recovered."""
    night.settings(slots=1)
    job, other = night.job(1, code=77), night.job(2)
    first = night.daemon("--stop_on_fail")
    assert first.wait(20) == 0
    assert f"{job} failed, and it was started with --stop_on_fail" in night.que("daemon", "status")
    assert night.store.find(other).state == "to_run"
    second = night.daemon("--stop_on_fail")
    done(night.ended(other), night)
    night.que("cancel", night.job(3, to="held"))
    night.que("recover", job)
    assert second.wait(20) == 0


def test_hooks(night, tmp_path):
    """It gets the job as JSON; what goes wrong in it is in the log, and nowhere else."""
    night.settings(hook=f"cat > {tmp_path}/told.$$; printf '\\377 sorry'; exit 3")
    jobs = [night.job(1), night.job(2, code=78)]
    night.daemon()
    ended = night.ended(*jobs)
    night.until(lambda: night.said().count("hook: exit code 3 � sorry") == 2)
    told = {entry["id"]: entry for entry in (json.loads(path.read_text()) for path in tmp_path.glob("told.*"))}
    assert [told[job.id]["state"] for job in ended] == ["old_runs", "fail_runs"]
    assert told[jobs[1]]["reason"] == "asked to end with 78" and told[jobs[0]]["status"]["epoch"] == 3


def test_settings_from_the_command_line(night):
    for key, text in {"poll": "0.1", "settle": "0", "grace": "1s", "backoff": "0", "disk": "0", "slots": "3"}.items():
        night.que("settings", key, text)
    assert json.loads(night.que("settings", "--json"))["settle"] == 0
    assert "error: this is no length of time: '0'" in night.que("settings", "poll", "0", code=2)
    night.job(), night.daemon()
    done(night.ended("j1"), night)


# --- moved by hand ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("to", ["held", ""])
def test_the_file_of_a_running_job_is_taken_away(night, to):
    """Who moves or removes it wants an end: nothing runs unseen."""
    job = night.job(wait=True)
    night.daemon()
    night.training()
    file = night.store.folder / "cur_run" / f"{job}.json"
    file.rename(night.store.folder / to / f"{job}.json") if to else file.unlink()
    night.until(lambda: not night.processes("training.py", "_work"))
    assert commands.read_json(night.run() / "status.json")["exit_code"] == 75
    if to:
        moved = night.store.find(job)
        assert (moved.state, moved.recover, moved.claim, causes(moved)) == (to, True, {}, ["train requeue"])


def test_left_over_training_of_a_job_that_was_moved(night):
    """Its worker is dead and the job back in to_run: what still trains has to leave before it starts."""
    job = night.job(wait=True)
    first = night.daemon()
    training = night.training()
    night.kill(first.pid, worker_of(night, job))
    night.que("move", "cur", "new", "0")
    assert procs.start_ticks(training)
    night.daemon()
    night.until(lambda: not procs.start_ticks(training))
    night.go()
    moved = night.ended(job)
    assert moved.state == "old_runs" and night.state()["weights"] == weights_after(3)


# --- code, chains ----------------------------------------------------------------------------------------------

def test_code_as_it_was(tmp_path, night):
    night.home = make_home(tmp_path / "home")
    night.que("create", "S3D", "demo", "1", "--set", "training.max_epoch=2")
    night.que("create", "S3D", "demo", "2", "--live")
    for name in ("training", "testing"):
        script(night.home, name, version="2")
    night.daemon()
    night.ended("j1", "j2")
    assert [commands.read_json(night.run(n) / "status.json")["version"] for n in (1, 2)] == ["1", "2"]
    assert [commands.read_json(night.run(n) / "results.json")["version"] for n in (1, 2)] == ["1", "2"]
    assert night.state(1)["history"] == [1, 2]


def test_a_resumed_run_keeps_its_config(tmp_path, night):
    """Killed before it could write its config.ini: the one that was stored when it was queued still counts."""
    night.home = make_home(tmp_path / "home")
    (tmp_path / "mine.ini").write_text("[training]\nmax_epoch = 2\n[play]\nlate = 0.5\n")
    night.que("create", "S3D", "demo", "1", "-c", str(tmp_path / "mine.ini"))
    (tmp_path / "mine.ini").unlink()
    night.daemon()
    night.kill(night.until(lambda: night.processes("training.py"))[0])
    ended = night.ended("j1")
    done(ended, night, epochs=2)
    assert causes(ended)[0] == "train crashes" and " -r -c " in night.said()


def test_a_chain(night):
    night.settings(crashes=0)
    parent = night.job(1, crash=2)
    night.que("create", "S3D", "demo", "2", "--live", "--after", parent, "--init_from", "parent")
    night.daemon()
    assert night.ended(parent).state == "fail_runs"
    rows = {row["id"]: row for row in json.loads(night.que("list", "--json"))["jobs"]}
    assert rows["j2"]["reason"] == "j1 failed: recover it, or remove this one"
    night.que("recover", parent)
    first, second = [night.until(lambda i=i: night.resting(i, "old_runs")) for i in (parent, "j2")]
    done(first, night)
    assert night.state(2)["weights"] == weights_after(3, weights=weights_after(3))


# --- GPUs ------------------------------------------------------------------------------------------------------

def spans(jobs) -> dict[str, list[tuple[float, float, str]]]:
    """When which job had a device."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for job in jobs:
        for attempt in job.attempts:
            for device in attempt["devices"]:
                found.setdefault(device, []).append((attempt["started"], attempt["ended"], job.id))
    return {device: sorted(times) for device, times in found.items()}


@pytest.mark.parametrize("count", [0, 1, 4, 8])
def test_a_device_each(night, count):
    night.gpus(*[{}] * count)
    jobs = [night.job(n, step=0.01) for n in range(1, 6)]
    night.daemon()
    ended = night.ended(*jobs)
    used = spans(ended)
    assert set(used) <= ({f"GPU-{i}" for i in range(count)} if count else {"cpu:0", "cpu:1"})
    assert len(used) == min(count or 2, 5)
    for times in used.values():
        assert all(a[1] <= b[0] for a, b in zip(times, times[1:], strict=False))
    for job in ended:
        done(job, night)
        seen = commands.read_json(night.run(int(job.exp_no)) / "results.json")["devices"]
        assert seen == ("" if not count else job.attempts[-1]["devices"][0])


def test_two_gpus_through_torchrun(night):
    """Its code is 1 for everything, SIGUSR1 kills it: status.json decides, and the ranks are signalled."""
    night.gpus({}, {}, {})
    job = night.job(1, wait=True, fits=4, job={"gpus": 2})
    night.daemon()
    night.until(lambda: len(night.store.find(job).attempts) == 2)
    night.training()
    night.que("pause", job, "--wait")
    paused = night.store.find(job)
    assert causes(paused) == ["train ooms", "train pause"] and commands.status(paused)["exit_code"] == 75
    assert "-m torch.distributed.run --standalone --nproc_per_node 2" in night.said()
    night.go()
    night.que("resume", job)
    ended = night.until(lambda: night.resting(job, "old_runs"))
    done(ended, night)
    assert not ended.tries.get("crashes") and ended.attempts[0]["devices"] == ["GPU-0", "GPU-1"]
    assert commands.read_json(night.run() / "results.json")["devices"] == "GPU-0,GPU-1"


def test_killed_torchrun(night):
    """The ranks that it leaves behind save and leave."""
    night.settings(grace=0.5)
    night.gpus({}, {})
    job = night.job(1, wait=True, job={"gpus": 2})
    night.daemon()
    rank = night.training()
    night.kill(int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1]))
    night.until(lambda: not procs.start_ticks(rank))
    night.go()
    ended = night.ended(job)
    done(ended, night)
    assert ended.attempts[0]["reason"] == "interrupted by SIGUSR1" and not ended.tries.get("crashes")


def test_gpus_shared_by_memory(night):
    night.gpus({})
    jobs = [night.job(n, wait=True, job={"memory": 35 * GIB}) for n in (1, 2, 3)]
    night.daemon()
    night.training(1), night.training(2)
    assert "9.5 GiB left beside j1 and j2" in night.que("list", "new")
    night.go(2)
    night.training(3)
    night.go(1), night.go(3)
    assert set(spans(night.ended(*jobs))) == {"GPU-0"}


def test_a_gpu_that_disappears(night):
    """Idle: jobs wait for it. In use: the job is left alone, and the next one waits."""
    night.gpus({"lost": "GPU is lost"})
    first = night.job(1, wait=True)
    night.daemon()
    time.sleep(0.2)
    assert night.store.find(first).state == "to_run" and "GPU is lost" in night.que("list", "new")
    night.gpus({})
    night.training(1)
    night.gpus({"lost": "GPU is lost"})
    second = night.job(2)
    night.go()
    done(night.ended(first), night)
    assert night.store.find(second).state == "to_run"
    night.gpus({})
    done(night.ended(second), night)


def test_memory_that_others_use(night):
    night.gpus({"free": 10 * GIB, "used_by": {"1": 70 * GIB}})
    job = night.job()
    night.daemon()
    time.sleep(0.2)
    assert "GPU 0 has 70.0 GiB in use by others" in night.que("list", "new")
    night.gpus({})
    done(night.ended(job), night)


def test_settle_time(night):
    """Free memory counts once it has been free for so long, also after a time without jobs."""
    night.settings(settle=0.4)
    night.gpus({})
    night.daemon()
    for number in (1, 2):
        night.until(lambda: daemon.holder(night.store))
        begun = time.time()
        job = night.ended(night.job(number))
        assert 0.4 <= job.attempts[0]["started"] - begun < 1.4
        time.sleep(0.5)


def test_the_peak_is_learned(night):
    night.gpus({})
    job = night.job(step=0.25, gpu=20 * GIB, job={"memory": 30 * GIB})
    night.daemon()
    ended = night.ended(job)
    assert ended.peak == 20 * GIB
    night.until(lambda: gpus.learned(night.store.folder, ended) == 20 * GIB)


# --- with torch ------------------------------------------------------------------------------------------------

def real_training(home: Path) -> None:
    """training.py itself, with the micro task in the place of the real one."""
    shutil.rmtree(home / "code" / "torch")
    (home / "code" / "training.py").write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT / 'code')!r}, {str(ROOT / 'code' / 'tests')!r}]\n"
        "import micro\nimport torch\nfrom slr import errors\ntorch.set_num_threads(1)\n"
        "errors.run(lambda: micro.run(tuple(sys.argv[1:])))\n")


def micro_job(night: Project, number: int, ini: Path, *options: str, **fields) -> str:
    env = {"SLR_RUNS": str(night.runs), "WANDB_MODE": "disabled", "MICRO_FAIL": "slow", "MICRO_SIZES": "100 7",
           "OMP_NUM_THREADS": "1"}
    return night.job(number, job={"env": env, "test": False, "options": ["-c", str(ini), "--device", "cpu", *options],
                                  **fields})


@pytest.mark.slow
def test_the_weights_of_a_night_with_kills(tmp_path, night):
    """Training, worker and daemon are killed in turn: not a bit differs from an undisturbed run."""
    import micro
    import torch

    from slr import checkpoint

    night.home = make_home(tmp_path / "home")
    real_training(night.home)
    (tmp_path / "micro.ini").write_text(micro.FULL)
    night.settings(grace=20)
    quiet, other = (micro_job(night, n, tmp_path / "micro.ini") for n in (1, 2))
    master = night.daemon()
    night.kill(night.training(2, epoch=1, step=0))
    night.until(lambda: len(night.store.find(other).attempts) == 2)
    night.training(2, epoch=2, step=0)
    night.kill(worker_of(night, other))
    night.until(lambda: len(night.store.find(other).attempts) == 3, 60)
    night.kill(master.pid)
    night.daemon()
    for job in night.ended(quiet, other, limit=60):
        assert job.state == "old_runs", night.said()
    assert causes(night.store.find(other)) == ["train crashes", "train interrupts", "train done"]
    names = sorted(path.name for path in (night.run(1) / "checkpoints").glob("*.pth"))
    assert names == sorted(path.name for path in (night.run(2) / "checkpoints").glob("*.pth")) and "best.pth" in names
    for name in names:
        one, two = (checkpoint.load(night.run(n) / "checkpoints" / name)["model_state_dict"] for n in (1, 2))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_real_torchrun_is_paused(tmp_path, night):
    import micro

    night.home = make_home(tmp_path / "home")
    real_training(night.home)
    (tmp_path / "micro.ini").write_text(micro.INI)
    night.settings(grace=20)
    night.gpus({}, {})
    job = micro_job(night, 1, tmp_path / "micro.ini", gpus=2)
    night.daemon()
    night.training(1, epoch=1, step=0)
    night.que("pause", job, "--wait")
    paused = night.store.find(job)
    assert (paused.state, commands.status(paused)["exit_code"]) == ("held", 75), night.said()
    assert len(commands.status(paused)["pids"]) == 2 and causes(paused) == ["train pause"]
    assert (night.run() / "checkpoints" / "resume.pth").exists() and not night.processes("training.py", "run")


def test_dispatch_latency(night):
    """From `create` to a running child, with the daemon's usual pace."""
    night.settings(poll=0.5)
    night.daemon()
    night.until(lambda: daemon.holder(night.store))
    time.sleep(0.3)
    begun = time.time()
    assert night.ended(night.job()).attempts[0]["started"] - begun < 1 + float(os.environ.get("QUE_SLACK", 1))
