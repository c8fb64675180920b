"""Runs one job: training.py, testing.py full and, where that is asked for, extract_features.py, as plain child
processes, and files it where it then belongs.

A worker is a process of its own, which the daemon starts with the job's lease: a locked file that any kill sets free.
What the children leave behind, exit code and status.json, is judged in one place, `judge`.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from que import commands, gpus, plan, procs, settings
from que.errors import DONE, INTERRUPTED, MISTAKE, NON_FINITE, NOTHING, OUT_OF_MEMORY, Changed, Mistake, Storage
from que.job import STATES, Job, time_text
from que.store import Store

HOPELESS = (MISTAKE, NON_FINITE, NOTHING)
STOPS = {"pause": ("held", "paused"), "cancel": ("fail_runs", "cancelled"), "requeue": ("to_run", "put back")}
LEFT = 5.0  # seconds that a dead run's loader processes get to notice
PATIENCE = 10.0  # seconds from SIGTERM to SIGKILL
RETRY = 2.0  # seconds between two attempts to write to a full disk


@dataclass
class End:
    """Where a job goes now, why, and what is changed about it."""

    to: str
    cause: str
    reason: str
    change: dict[str, Any] = field(default_factory=dict)


class Worker:
    """`stopping` is why the children are being stopped: pause, cancel, requeue or timeout; "" as a rule."""

    def __init__(self, store: Store, job_id: str):
        self.store, self.job = store, store.find(job_id)
        self.mark = commands.mark_of(job_id, store.folder)
        self.stopping = ""
        self.ladder: procs.Ladder | None = None
        self._measured, self._missed, self._peak = 0.0, 0, 0

    @property
    def settings(self) -> dict[str, Any]:
        return settings.load(self.store.folder)

    # --- the course of a job

    def course(self, clear: bool) -> End:
        """Whatever happens to a worker, short of a kill, it leaves no process behind and says where the job belongs."""
        try:
            return self.clear() if clear else self.run()
        except Changed:
            raise
        except Mistake as error:
            end = End("fail_runs", "hopeless", str(error).replace("\n  ", "; "))
        except OSError as error:
            end = self._crashed(f"it could not be started: {error}")
        except Exception as error:
            procs.say(f"{self.job.id}: {traceback.format_exc()}")
            end = End("fail_runs", "hopeless", f"a bug of the que: {type(error).__name__}: {error}")
        self._stop_all()
        return end

    def run(self) -> End:
        """Train, test, extract; every stage that is over is on record before the next one starts."""
        while self.stopping in ("", "timeout"):  # a limit is that of one stage
            self.stopping, self.ladder = "", None
            end = self.judge(self.stage())
            if end.to != "cur_run":
                return end
            self.update(**end.change, attempts=self._attempts(end))
        return self._stopped()

    def clear(self) -> End:
        """After a worker that died: what it left running saves and leaves; then the job is judged as if by itself."""
        self._say("its worker is gone: stopping what it left behind")
        self._stop_all()
        self.stopping = self.store.find(self.job.id).request or self.stopping
        last = self.job.attempts[-1] if self.job.attempts else {"ended": None}
        if self.job.moving not in ("", "cur_run") and not (self.stopping and self.job.moving == "to_run"):
            return End(self.job.moving, str(last.get("cause")), self.job.reason)  # it had decided, and died on the way
        if "ended" in last:
            return self._stopped() if self.stopping else self._again("interrupts", "its worker died before it began")
        end = self.judge(None)
        if end.to == "cur_run":  # nobody was there to see it
            self.update(**end.change, attempts=self._attempts(end))
            return End("to_run", "interrupts", f"{end.reason}, its worker died; to be {self.job.stage}ed")
        return end

    def stage(self) -> int:
        """One child from its start to its end; its exit code (negative: the signal that killed it)."""
        self._stop_all()  # a person may have moved a job whose worker was dead, but not what it had started
        command, batch = self.command(), self.batch
        self.update(attempts=[*self.job.attempts, {
            "stage": self.job.stage, "started": time.time(), "before": commands.status(self.job).get("started"),
            "devices": self.job.claim.get("devices", []), **({"batch_size": batch} if batch else {})}])
        self._say(f"{self.job.stage}, attempt {len(self.job.attempts)}: {' '.join(command)}")
        with open(self.store.log(self.job.id), "ab") as log:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                     env={**os.environ, **self.environment()}, start_new_session=True,
                                     cwd=commands.home(self.job, self.store.folder) / "code")
        return self.watch(child)

    def watch(self, child: "subprocess.Popen[bytes]") -> int:
        """Wait for the child, and see to requests, the time limit and the memory meanwhile."""
        deadline = time.monotonic() + (self.job.time_limit or float("inf"))
        while (code := child.poll()) is None:
            self.hear()
            if time.monotonic() > deadline:
                self.stopping = self.stopping or "timeout"
            if self.stopping:
                self.ladder = self.ladder or self._new_ladder()
                self.ladder.step()
            self.measure()
            time.sleep(0.1)
        self._stop_all(min(LEFT, self.settings["grace"]))
        return code

    def hear(self) -> None:
        """What a person has asked for in the job's file. Who takes the file itself away wants an end, too."""
        job = None
        with contextlib.suppress(Mistake):
            job = self.store.find(self.job.id)
        self._missed = 0 if job and job.state == "cur_run" else self._missed + 1
        if self._missed > 20:  # no hiccup of a network's disk any more
            self.stopping = self.stopping or "requeue"
        elif job and job.request and self.stopping != "cancel":
            self.stopping = job.request

    def measure(self) -> None:
        """The job's memory on its fullest GPU: what it reserves from then on, and what others like it will."""
        on_gpu = any(device.startswith("GPU") for device in self.job.claim.get("devices", []))
        if not on_gpu or time.monotonic() - self._measured < 2:
            return
        self._measured = time.monotonic()
        mine = set(procs.marked(self.mark))
        with contextlib.suppress(Mistake):  # GPUs or a disk that do not answer now do so later
            used = max((sum(size for pid, size in gpu.used_by.items() if pid in mine) for gpu in gpus.read_gpus()),
                       default=0)
            self._peak = max(used, self._peak)
            whole = self.told.get("epoch") or self.job.stage != "train"  # before, most of it is still to come
            if whole and self._peak > 1.02 * self.job.peak:
                self.job = self.store.update(self.job.id, lambda job: vars(job).update(peak=self._peak),
                                             only=("cur_run",))

    # --- how it ended

    @property
    def told(self) -> dict[str, Any]:
        """status.json, where the present attempt wrote it. Its own stamp tells: clocks may jump."""
        content = commands.status(self.job) if self.job.stage == "train" else {}
        return content if content.get("started") != (self.job.attempts or [{}])[-1].get("before") else {}

    def judge(self, code: int | None) -> End:
        """From exit code, status.json and what was asked for to where the job goes; None: nobody saw it end."""
        told = self.told
        if told.get("exit_code") is not None:  # torchrun makes a 1 of every code
            code = told["exit_code"]
        reason = str(told.get("reason") or "") or last_line(self.store.log(self.job.id))
        if code == DONE and not self.job.next_stage:
            return End("old_runs", "done", self.job.done)
        if code == DONE:  # the next stage, by another worker if this one has to stop
            change: dict[str, Any] = {"stage": self.job.next_stage, "recover": False}
            word = f"{self.job.stage}ed"
            return self._stopped(**change) if self.stopping in STOPS else End("cur_run", word, word, change)
        if self.stopping:
            return self._stopped()
        if code in HOPELESS:
            return End("fail_runs", "hopeless", reason or f"exit code {code}")
        if code == OUT_OF_MEMORY:
            return self._out_of_memory(reason)
        if code in (None, INTERRUPTED):
            return self._again("interrupts", (reason or "interrupted") if code else "its worker or the machine died")
        return self._crashed(f"exit code {code}: {reason}" if code > 0 else
                             f"killed by signal {-code} ({signal.strsignal(-code)})")

    def _stopped(self, **change: Any) -> End:
        if self.stopping == "timeout":  # its turn comes again after the others'
            last = max((job.order for job in self.store.jobs("to_run")), default=self.job.order)
            return self._again("timeouts", f"its limit of {time_text(self.job.time_limit or 0)} was over",
                               order=last + 0.5, **change)
        to, reason = STOPS[self.stopping]
        return End(to, self.stopping, reason, {"recover": self.begun, **change})

    def _crashed(self, reason: str) -> End:
        wait = self.settings["backoff"] * 2 ** self.job.tries.get("crashes", 0)
        return self._again("crashes", reason, not_before=time.time() + min(wait, plan.LONGEST_WAIT))

    def _again(self, kind: str, reason: str, **change: Any) -> End:
        """Back to its place in to_run, as often as the settings allow."""
        tries, most = self.job.tries.get(kind, 0) + 1, self.settings[kind]
        if tries > most:
            times = "once" if tries == 1 else f"for the {tries}. time"
            return End("fail_runs", kind, f"{reason} ({times}; the setting {kind} allows {most})")
        return End("to_run", kind, reason,
                   {"recover": self.begun, "tries": {**self.job.tries, kind: tries}, **change})

    def _out_of_memory(self, reason: str) -> End:
        """Half the batch, and as many more steps to gather: the optimiser sees what it would have seen."""
        batch, half, extracts = self.batch, self.batch // 2, self.job.stage == "extract"
        if half < (1 if extracts else self.ranks):
            return End("fail_runs", "ooms", f"{reason} (the batch of {batch or 'unknown size'} cannot be halved)")
        if extracts:  # its batch is nobody else's: training keeps its own, should it ever go on
            return self._again("ooms", f"{reason} (batch {batch} -> {half})", extract_batch=half, peak=0)
        whole = (self.job.facts.get("batch_size") or batch) * (self.job.facts.get("update_per_step") or 1)
        changes = {**self.job.changes, "training.batch_size": str(half),
                   "training.update_per_step": str(max(1, round(whole / half)))}
        return self._again("ooms", f"{reason} (batch {batch} -> {half})", changes=changes, peak=0)

    @property
    def begun(self) -> bool:
        """Whether the next training has something to go on with."""
        return self.job.recover or (self.job.stage == "train" and bool(self.job.attempts))

    @property
    def batch(self) -> int:
        """Of the present stage; 0 where the config told none."""
        own = self.job.extract_batch if self.job.stage == "extract" else 0
        return int(own or self.job.changes.get("training.batch_size") or self.job.facts.get("batch_size") or 0)

    # --- children

    @property
    def ranks(self) -> int:
        return len(self.job.claim.get("devices", [])) or 1

    def command(self) -> list[str]:
        if self.job.stage == "test":
            return commands.test(self.job, self.store.folder)
        if self.job.stage == "extract":
            return commands.extract(self.job, self.store.folder)
        start_from = ", ".join(map(self._checkpoint_of, self.job.givers))
        return commands.train(self.job, self.store.folder, self.ranks, start_from)

    def environment(self) -> dict[str, str]:
        """GPUs by UUID: CUDA numbers them unlike NVML."""
        devices, slots = self.job.claim.get("devices", []), self.settings["slots"]
        on_cpu = [device for device in devices if device.startswith("cpu")]
        threads = {"OMP_NUM_THREADS": str(max(1, settings.cores() // slots))} if on_cpu and slots > 1 else {}
        return {**threads, **commands.environment(self.job, self.store.folder),
                "CUDA_VISIBLE_DEVICES": "" if on_cpu else ",".join(devices)}

    def _checkpoint_of(self, parent_id: str) -> str:
        parent = self.store.find(parent_id)
        checkpoint = commands.ROOT / (commands.status(parent).get("checkpoint") or parent.run)
        if not checkpoint.is_file():
            raise Mistake(f"{parent.id} ({parent.title}) has no checkpoint to start from", str(checkpoint),
                          "train it again, or give --set model_params.init_from=…")
        return str(checkpoint)

    def _new_ladder(self) -> procs.Ladder:
        grace = self.settings["grace"]
        return procs.Ladder(self.mark, lambda: self.told.get("pids", []), grace, min(grace, PATIENCE))

    def _stop_all(self, left: float = 0.0) -> None:
        """Until no process of this job is there any more; they have `left` seconds to go by themselves."""
        last, ladder = time.monotonic() + left, self.ladder or self._new_ladder()
        while procs.marked(self.mark):
            if time.monotonic() >= last:
                ladder.step()
            time.sleep(0.1)

    # --- records

    def update(self, change: Callable[[Job], None] | None = None, to: str = "", only: tuple[str, ...] = ("cur_run",),
               **values: Any) -> None:
        """Change the job's file; on a full disk wait until that can be done."""
        while True:
            try:
                self.job = self.store.update(self.job.id, change or (lambda job: vars(job).update(values)), to, only)
                return
            except Storage as error:
                procs.say(f"{self.job.id}: {error}; trying again")
                time.sleep(RETRY)

    def _attempts(self, end: End) -> list[dict[str, Any]]:
        """All attempts; the last one, if it is still open, with how it ended."""
        attempts = [dict(attempt) for attempt in self.job.attempts]
        if attempts and "ended" not in attempts[-1]:
            attempts[-1].update(ended=time.time(), cause=end.cause, reason=end.reason)
        return attempts

    def file(self, end: End) -> None:
        """Write down the end and move the job."""
        final, told = end.to in ("old_runs", "fail_runs"), commands.status(self.job)
        values = {**end.change, "attempts": self._attempts(end), "reason": end.reason, "claim": {},
                  "ended": time.time() if final else None, "last": {key: told.get(key) for key in commands.TOLD}}

        def close(job: Job) -> None:
            late = job.request if not final and job.request not in (self.stopping, "requeue") else ""
            vars(job).update(values, request=late)

        self._say(f"{end.cause}: {end.reason} -> {end.to}")
        try:
            self.update(close, end.to)
        except Changed:  # somebody has moved it by hand: there it stays, with what is known now
            self.update(close, only=STATES)
        if self.job.request:  # it came when all was over
            to, reason = STOPS[self.job.request]
            self.update(to=to, only=("to_run", "held"), request="", reason=reason,
                        ended=time.time() if to == "fail_runs" else None)
        if self.job.peak and end.cause == "done":
            with contextlib.suppress(Storage):  # another run of the kind is measured anyway
                gpus.learn(self.store.folder, self.job, self.job.peak)
        hook(self.store, self.job)

    def _say(self, text: str) -> None:
        note(self.store, self.job, text)


def note(store: Store, job: Job, text: str) -> None:
    """A line of the que's own in a job's log."""
    try:
        with open(store.log(job.id), "ab") as file:
            file.write(f"[que {datetime.now():%Y-%m-%d %H:%M:%S}] {job.id} {text}\n".encode())
    except OSError as error:  # a full disk must not end the job
        procs.say(f"{job.id} {text} ({error.strerror})")


def hook(store: Store, job: Job) -> None:
    """What a person wants to be told with when a job has ended. Its failure is theirs to see in the log."""
    command = settings.load(store.folder)["hook"]
    if not command or job.state not in ("old_runs", "fail_runs"):
        return
    content = json.dumps({**json.loads(job.to_json()), "state": job.state, "status": commands.status(job)})
    try:
        ran = subprocess.run(command, shell=True, input=content.encode(), timeout=60, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
        note(store, job, f"hook: exit code {ran.returncode} {ran.stdout.decode(errors='replace').strip()}")
    except (OSError, subprocess.TimeoutExpired) as error:
        note(store, job, f"hook: {error}")


def last_line(log: Path) -> str:
    """The last thing that a job's children said in this attempt: `error: …` where there is one near the end."""
    said = re.split(r"^\[que .*, attempt \d+: .*$", tail(log, 20_000), flags=re.M)[-1]
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("[que ")]
    errors = [line for line in lines[-8:] if line.startswith("error:") or "Error" in line.split(":")[0]]
    return (errors or lines or [""])[-1].strip()[:300]


def tail(log: Path, size: int) -> str:
    """The end of a log as text; a progress bar leaves only what it showed last."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - size))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def work(store: Store, job_id: str, clear: bool = False) -> int:
    """The process of a worker. A signal to it puts the job back: saved, and to be resumed."""
    try:
        worker = Worker(store, job_id)

        def put_back(number: int, frame: object) -> None:
            worker.stopping = worker.stopping or "requeue"

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, put_back)
        worker.update(claim={**worker.job.claim, **procs.identity()})
        worker.file(worker.course(clear))
    except Mistake as error:  # a person took the job away
        procs.say(f"{job_id}: {error}")
    return DONE
