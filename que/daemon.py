"""Starts jobs on free devices and takes up those whose worker has died. Jobs are files: without a daemon nothing is
lost, only nothing starts; workers are processes of their own and outlive it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from que import commands, disk, gpus, plan, procs, settings, slurm
from que.errors import DONE, Changed, Mistake, Storage
from que.job import Job, memory_text
from que.store import Store


def holder(store: Store) -> dict[str, Any]:
    """daemon.json of the daemon that runs; {} where none does."""
    return commands.read_json(store.folder / "daemon.json") if disk.locked(store.folder / "daemon.lock") else {}


def last_note(store: Store) -> str:
    """Why the last daemon ended, in its own words."""
    return str(commands.read_json(store.folder / "daemon.json").get("note", ""))


class Daemon:
    """`say` prints a line with the time. The lock file is locked as long as this process lives."""

    def __init__(self, store: Store, stop_on_fail: bool = False):
        self.store, self.stop_on_fail, self.note = store, stop_on_fail, ""
        self.settings = settings.load(store.folder)
        self.seen: dict[str, deque[tuple[float, int]]] = {}
        self.workers: list[subprocess.Popen[bytes]] = []
        self.failed = {job.id for job in store.jobs("fail_runs")} if stop_on_fail else set()
        self._said: dict[str, str] = {}
        self._slurm_at = 0.0

    def run(self) -> int:
        lock = disk.try_lock(self.store.folder / "daemon.lock")
        if lock is None:
            who = holder(self.store)
            raise Mistake("another daemon runs", f"pid {who.get('pid')} for {self.store.folder}",
                          "`que daemon status` shows it, `que daemon stop` ends it")
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

    def _hear(self, number: int, frame: object) -> None:
        self.note = f"stopped by {signal.Signals(number).name}"

    def _record(self) -> None:
        self.store.write_json("daemon.json", {**procs.identity(), "since": time.time(), "note": self.note,
                                              "stop_on_fail": self.stop_on_fail})

    def guarded(self, act: Callable[[], None]) -> None:
        """A full disk or a lock that somebody keeps is waited out; it is said once."""
        try:
            act()
            self._said.pop("storage", None)
        except Storage as error:
            self._say_once("storage", f"{error}; trying again")

    def turn(self) -> None:
        """One look at everything."""
        self.settings = settings.load(self.store.folder)
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        if time.monotonic() - self._slurm_at > 10:
            self._slurm_at = time.monotonic()
            for text in slurm.sync(self.store):
                self._say_once("slurm", text)
        for job in self.store.jobs("cur_run"):
            if not job.slurm and abandoned(self.store, job):
                self.take_up(job)
        for number, text in enumerate(self.store.warnings):
            self._say_once(f"warning {number}", text)
        if self.stop_on_fail and (new := {job.id for job in self.store.jobs("fail_runs")} - self.failed):
            self.note = f"{', '.join(sorted(new))} failed, and it was started with --stop_on_fail"
        else:
            self.start_jobs()

    def start_jobs(self) -> None:
        waiting, running = self.store.jobs("to_run"), self.store.jobs("cur_run")
        if not waiting or (lack := disk_lack(self.settings)):
            if waiting:
                self._say_once("disk", lack)
            return
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
        host = procs.identity()["host"]
        try:
            self.store.update(job.id, lambda j: vars(j).update(
                claim={"host": host, "devices": devices, "reserve": reserve}, request="", reason=""),
                "cur_run", ("to_run",))
            self._launch(job.id, lease)
            say(f"{job.id} {job.title} on {', '.join(devices)}")
        except Changed:
            say(f"{job.id} was taken away meanwhile")
        finally:
            os.close(lease)

    def take_up(self, job: Job) -> None:
        """A job whose worker died: its last move is completed, or a worker stops what is left and judges it."""
        lease = disk.try_lock(self.store.folder / "leases" / job.id)
        if lease is None:
            return
        try:
            if job.moving not in ("", "cur_run"):
                self.store.update(job.id, to=job.moving, only=("cur_run",))
                say(f"{job.id} {job.title}: its move to {job.moving} is completed")
            else:
                self._launch(job.id, lease, "--clear")
                say(f"{job.id} {job.title}: its worker is gone; it is taken up")
        finally:
            os.close(lease)

    def _launch(self, job_id: str, lease: int, *options: str) -> None:
        self.workers.append(subprocess.Popen(
            [sys.executable, str(Path(__file__).parent), "_work", job_id, *options], pass_fds=(lease,),
            stdin=subprocess.DEVNULL, env=plain_environment(self.store), start_new_session=True))

    def _say_once(self, what: str, text: str) -> None:
        if self._said.get(what) != text:
            self._said[what] = text
            say(text)


def abandoned(store: Store, job: Job) -> bool:
    """Whether nobody runs a job of cur_run any more: its lease is free, its worker dead, and it was on this machine."""
    here = job.claim.get("host") in (None, procs.identity()["host"])
    return here and not disk.locked(store.folder / "leases" / job.id) and not procs.alive(job.claim)


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


def say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


# --- from the command line


def start(store: Store, stop_on_fail: bool = False) -> dict[str, Any]:
    """A daemon in the background, once it holds its lock; what it says goes to logs/daemon.log."""
    if who := holder(store):
        raise Mistake("another daemon runs", f"pid {who.get('pid')}", "`que daemon stop` ends it")
    with open(store.log("daemon"), "ab") as log:
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent), "daemon", *(["--stop_on_fail"] if stop_on_fail else [])],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=plain_environment(store), start_new_session=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and child.poll() is None:
        if (who := holder(store)).get("pid") == child.pid:
            return who
        time.sleep(0.02)
    raise Mistake("the daemon did not start", f"exit code {child.poll()}", f"see {store.log('daemon')}")


def stop(store: Store, hard: bool = False, timeout: float | None = None) -> str:
    """End the daemon; with `hard` also put back what runs, saved. A sentence on how it went."""
    who = holder(store)
    if who and procs.alive(who):
        os.kill(who["pid"], signal.SIGTERM)
    gone = _until(lambda: not holder(store), 60)
    if not gone:
        raise Mistake("the daemon does not end", f"pid {who['pid']}", f"see {store.log('daemon')}, or kill it")
    running = [job for job in store.jobs("cur_run") if not job.slurm]
    begun = "the daemon has ended" if who else "no daemon was running"
    if not hard:
        left = f"; {len(running)} running go on to their end (--hard puts them back, saved)" if running else ""
        return begun + left
    for job in running:
        request(store, job, "requeue")
    limit = timeout if timeout is not None else settings.load(store.folder)["grace"] + 30
    _until(lambda: all(abandoned(store, job) for job in running if _runs(store, job)), limit)
    for job in running:
        if _runs(store, job) and not abandoned(store, job):
            procs.send(procs.marked(commands.mark_of(job.id, store.folder)), signal.SIGKILL)
    _until(lambda: not any(_runs(store, job) and not abandoned(store, job) for job in running), 15)
    back = [job.id for job in running if not _runs(store, job)]
    return f"{begun}; put back: {', '.join(back) or 'nothing'}"


def request(store: Store, job: Job, what: str) -> None:
    """Ask the worker of a running job to pause, cancel or requeue it."""
    store.update(job.id, lambda j: vars(j).update(request=what), only=("cur_run",))


def _runs(store: Store, job: Job) -> bool:
    return any(other.id == job.id for other in store.jobs("cur_run"))


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
ExecStart={python} {que} daemon
Environment=QUE_DIR={state}
# workers and what they train outlive a restart of the daemon
KillMode=process
Restart=on-failure

[Install]
WantedBy=default.target
"""


def unit(store: Store) -> str:
    return UNIT.format(python=sys.executable, que=Path(__file__).parent, state=store.folder)
