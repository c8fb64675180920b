"""Starts jobs on free devices and takes up those whose worker has died. Jobs are files: without a daemon nothing is
lost, only nothing starts; workers are processes of their own and outlive it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from que import commands, disk, gpus, plan, procs, settings, slurm
from que.errors import DONE, Changed, Mistake
from que.job import Job, memory_text
from que.procs import say
from que.store import Store


def holder(store: Store) -> dict[str, Any]:
    """daemon.json of the daemon that runs; {} where none does."""
    return commands.read_json(store.folder / "daemon.json") if disk.locked(store.folder / "daemon.lock") else {}


def last_note(store: Store) -> str:
    """Why the last daemon ended, in its own words."""
    return str(commands.read_json(store.folder / "daemon.json").get("note", ""))


class Daemon:
    """The lock file is locked as long as this process lives."""

    def __init__(self, store: Store, stop_on_fail: bool = False):
        self.store, self.stop_on_fail, self.note = store, stop_on_fail, ""
        self.settings = settings.load(store.folder)
        self.seen: dict[str, deque[tuple[float, int]]] = {}
        self.workers: list[subprocess.Popen[bytes] | None] = []
        self.taken: dict[str, float] = {}  # when a job was taken up last
        self.failed = self._failures() if stop_on_fail else set()
        self._said: dict[str, str] = {}
        self._slurm_at = 0.0

    def run(self) -> int:
        if commands.MARK in os.environ:  # started from within a job, it would be stopped as a part of that
            os.execve(sys.executable, _command("daemon", *["--stop_on_fail"] * self.stop_on_fail),
                      plain_environment(self.store))
        lock = self._lock()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._hear)
        self._record()
        say(f"daemon {os.getpid()} for {self.store.folder}")
        while not self.note:
            self.guarded(self.turn)
            time.sleep(self.settings["poll"])
        self.guarded(self._record)
        say(f"the daemon ends: {self.note}")
        os.close(lock)
        return DONE

    def _lock(self) -> int:
        for _ in range(20):  # who asks for its holder keeps it for an instant
            if (lock := disk.try_lock(self.store.folder / "daemon.lock")) is not None:
                return lock
            time.sleep(0.02)
        raise Mistake("another daemon runs", f"pid {holder(self.store).get('pid')} for {self.store.folder}",
                      "`que daemon status` shows it, `que daemon stop` ends it")

    def _hear(self, number: int, frame: object) -> None:
        self.note = f"stopped by {signal.Signals(number).name}"

    def _record(self) -> None:
        self.store.write_json("daemon.json", {**procs.identity(), "since": time.time(), "note": self.note,
                                              "stop_on_fail": self.stop_on_fail})

    def guarded(self, act: Callable[[], None]) -> None:
        """Nothing ends a night: a full disk, a lock that somebody keeps, even a bug is said once, and tried again."""
        try:
            act()
            self._said.pop("trouble", None)
        except Exception as error:
            known = isinstance(error, (Mistake, OSError))
            self._say_once("trouble", f"{error if known else traceback.format_exc()}; trying again")

    def turn(self) -> None:
        """One look at everything."""
        self.settings = settings.load(self.store.folder)
        self.workers = [worker for worker in self.workers if worker and worker.poll() is None]
        if time.monotonic() - self._slurm_at > 10:
            self._slurm_at = time.monotonic()
            for text in slurm.sync(self.store):
                self._say_once("slurm", text)
        for job in self.store.jobs("cur_run"):
            if abandoned(self.store, job) and self._due(job.id):
                say(f"{job.id} {job.title}: its worker is gone; it is taken up")
                self.workers.append(take_up(self.store, job.id))
        for number, text in enumerate(self.store.warnings):
            self._say_once(f"warning {number}", text)
        failed = self._failures() if self.stop_on_fail else set()
        if new := failed - self.failed:
            self.note = f"{', '.join(sorted(new))} failed, and it was started with --stop_on_fail"
        else:
            self.failed = failed  # without those that were recovered since, and may fail again
            self.start_jobs()

    def _failures(self) -> set[str]:
        return {job.id for job in self.store.jobs("fail_runs") if job.reason != "cancelled"}

    def _due(self, job_id: str) -> bool:
        """A job whose workers die at once must not keep the machine busy with starting them."""
        now, last = time.monotonic(), self.taken.get(job_id)
        if last is not None and now - last < self.settings["backoff"]:
            return False
        self.taken[job_id] = now
        return True

    def start_jobs(self) -> None:
        waiting, running = self.store.jobs("to_run"), self.store.jobs("cur_run")
        lack = disk_lack(self.settings) if waiting else ""
        if not waiting or lack:
            self.seen.clear()
            return self._say_once("disk", lack) if lack else None
        devices = gpus.read_gpus()
        self._watch(devices)
        decision = decide(self.store, waiting, running, devices, self.settings, self.settled)
        for job, names, reserve in decision.starts:
            self.start(job, names, reserve)

    def _watch(self, devices: list[gpus.Gpu]) -> None:
        """The free memory of each GPU during the settle time."""
        now = time.monotonic()
        for gpu in devices:
            seen = self.seen.setdefault(gpu.uuid, deque())
            seen.append((now, gpu.free))
            while len(seen) > 1 and now - seen[1][0] >= self.settings["settle"]:
                seen.popleft()
        self.seen = {gpu.uuid: self.seen[gpu.uuid] for gpu in devices}  # one that was away settles anew

    def settled(self, uuid: str, need: int) -> bool:
        seen = self.seen[uuid]
        return seen[-1][0] - seen[0][0] >= self.settings["settle"] and min(free for _, free in seen) >= need

    def start(self, job: Job, devices: list[str], reserve: int | None) -> None:
        """Take the lease, move the job, hand the lease on to a worker. A kill in between leaves a free lease."""
        lease = disk.try_lock(self.store.folder / "leases" / job.id)
        if lease is None:
            return
        who = procs.identity()
        claim = {"host": who["host"], "boot": who["boot"], "devices": devices, "reserve": reserve}
        try:
            self.store.update(job.id, lambda j: vars(j).update(claim=claim, request="", reason=""), "cur_run",
                              ("to_run",))
            self.workers.append(launch(self.store, job.id, lease))
            say(f"{job.id} {job.title} on {', '.join(devices)}")
        except Changed:
            say(f"{job.id} was taken away meanwhile")
        finally:
            os.close(lease)

    def _say_once(self, what: str, text: str) -> None:
        if self._said.get(what) != text:
            self._said[what] = text
            say(text)


def abandoned(store: Store, job: Job) -> bool:
    """Whether nobody runs a job of cur_run any more: its lease is free, its worker dead, and it was on this machine."""
    who = procs.identity()
    # A machine may have another name since, as containers do; the boot tells, too.
    here = job.claim.get("host") in (None, who["host"]) or bool(who["boot"]) and job.claim.get("boot") == who["boot"]
    return here and not job.slurm and not disk.locked(store.folder / "leases" / job.id) and not procs.alive(job.claim)


def take_up(store: Store, job_id: str) -> "subprocess.Popen[bytes] | None":
    """A job whose worker died gets one that stops what is left and judges it."""
    lease = disk.try_lock(store.folder / "leases" / job_id)
    if lease is None:
        return None
    try:
        ended = store.find(job_id).state != "cur_run"  # just now
        return None if ended else launch(store, job_id, lease, "--clear")
    finally:
        os.close(lease)


def launch(store: Store, job_id: str, lease: int, *options: str) -> "subprocess.Popen[bytes]":
    """Its words go to the daemon's log, which outlives every terminal."""
    with open(store.log("daemon"), "ab") as log:
        return subprocess.Popen(_command("_work", job_id, *options), pass_fds=(lease,), stdin=subprocess.DEVNULL,
                                stdout=log, stderr=log, env=plain_environment(store), start_new_session=True)


def decide(store: Store, waiting: list[Job], running: list[Job], devices: list[gpus.Gpu], keys: dict[str, Any],
           settled: Callable[[str, int], bool] = lambda uuid, need: True) -> plan.Decision:
    """plan.decide with what the store and the machine know."""
    known: dict[str, Job | None] = {job.id: job for job in (*waiting, *running)}

    def find(job_id: str) -> Job | None:
        if job_id not in known:
            try:
                known[job_id] = store.find(job_id)
            except Mistake:
                known[job_id] = None
        return known[job_id]

    marks = {pid: procs.job_of(pid) for gpu in devices for pid in gpu.used_by}
    return plan.decide(
        waiting, running, devices, slots=keys["slots"], settled=settled, find=find, now=time.time(), lost=gpus.lost(),
        headroom=keys["headroom"], learned=lambda job: gpus.learned(store.folder, job),
        used=lambda gpu, job: sum(size for pid, size in gpu.used_by.items()
                                  if marks[pid] == commands.mark_of(job.id, store.folder)))


def disk_lack(keys: dict[str, Any]) -> str:
    """Why no job may start for want of room; "" where there is enough."""
    runs = Path(commands.kept_environment().get("SLR_RUNS") or commands.ROOT / "runs")
    place = next(folder for folder in (runs, *runs.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free >= keys["disk"]:
        return ""
    return f"{place} has {memory_text(free)} free, the setting disk asks for {memory_text(keys['disk'])}"


def plain_environment(store: Store) -> dict[str, str]:
    """For a daemon or worker: of this que, and no process of any job."""
    return {**{name: value for name, value in os.environ.items() if name != commands.MARK},
            "QUE_DIR": str(store.folder)}


def _command(*words: str) -> list[str]:
    return [sys.executable, str(Path(__file__).parent), *words]


# --- from the command line


def start(store: Store, stop_on_fail: bool = False) -> dict[str, Any]:
    """A daemon in the background, once it holds its lock; what it says goes to logs/daemon.log."""
    if who := holder(store):
        raise Mistake("another daemon runs", f"pid {who.get('pid')}", "`que daemon stop` ends it")
    with disk.explained(store.log("daemon")), open(store.log("daemon"), "ab") as log:
        child = subprocess.Popen(_command("daemon", *["--stop_on_fail"] * stop_on_fail), stdin=subprocess.DEVNULL,
                                 stdout=log, stderr=log, env=plain_environment(store), start_new_session=True)
    _until(lambda: child.poll() is not None or holder(store).get("pid") == child.pid, 20)
    who = holder(store)
    if who.get("pid") != child.pid:
        raise Mistake("the daemon did not start", f"exit code {child.poll()}", f"see {store.log('daemon')}")
    return who


def stop(store: Store, hard: bool = False, timeout: float | None = None) -> str:
    """End the daemon; with `hard` also put back what runs, saved. A sentence on how it went."""
    who = holder(store)
    if not _until(lambda: _sent_away(store), 60):
        raise Mistake("the daemon does not end", f"pid {who.get('pid')} on {who.get('host')}",
                      f"see {store.log('daemon')}, or kill it")
    running = [job for job in store.jobs("cur_run") if not job.slurm]
    begun = "the daemon has ended" if who else "no daemon was running"
    if not hard:
        left = f"; {len(running)} running go on to their end (--hard puts them back, saved)" if running else ""
        return begun + left
    for job in running:
        with contextlib.suppress(Changed):  # it has just ended
            request(store, job, "requeue")
    gone = _until(lambda: not _left(store, running), settings.load(store.folder)["grace"] + 30
                  if timeout is None else timeout)
    for job in [] if gone else running:
        procs.send(procs.marked(commands.mark_of(job.id, store.folder)), signal.SIGKILL)
    _until(lambda: not _left(store, running), 15)
    back = [job.id for job in running if store.find(job.id).state in ("to_run", "held")]
    return f"{begun}; put back: {', '.join(back) or 'nothing'}"


def _sent_away(store: Store) -> bool:
    """Whether there is no daemon; one that has its lock only just may not have said yet who it is."""
    who = holder(store)
    if procs.alive(who):
        procs.send([who["pid"]], signal.SIGTERM)
    return not who


def _left(store: Store, jobs: list[Job]) -> list[Job]:
    """Those that still run here. Nobody but we sees to one whose worker is dead."""
    running = [job for job in store.jobs("cur_run") if any(job.id == other.id for other in jobs)]
    for job in running:
        if abandoned(store, job):
            take_up(store, job.id)
    return running


def request(store: Store, job: Job, what: str) -> None:
    """Ask the worker of a running job to pause, cancel or requeue it; the last of these asks for the least."""
    def ask(job: Job) -> None:
        job.request = job.request or what if what == "requeue" else what

    store.update(job.id, ask, only=("cur_run",))


def _until(done: Callable[[], bool], limit: float) -> bool:
    deadline = time.monotonic() + limit
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


UNIT = """\
# systemd user unit of the que; nothing here needs sudo:
#   python -m que install > ~/.config/systemd/user/que.service
#   systemctl --user enable --now que.service && loginctl enable-linger
[Unit]
Description=The que: overnight jobs

[Service]
ExecStart="{python}" "{que}" daemon
Environment="QUE_DIR={state}"
# workers and what they train outlive a restart of the daemon
KillMode=process
Restart=on-failure

[Install]
WantedBy=default.target
"""


def unit(store: Store) -> str:
    return UNIT.format(python=sys.executable, que=Path(__file__).parent, state=store.folder)
