"""Processes: who is alive, which ones belong to a job, and how they are stopped without losing what they know."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from que import commands


def boot_id() -> str:
    """Changes with every boot: a process id from before says nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot, which no change of the clock moves; None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def identity(pid: int | None = None) -> dict[str, Any]:
    """What tells a process from any other that ever had its number."""
    pid = pid or os.getpid()
    return {"host": socket.gethostname(), "boot": boot_id(), "pid": pid, "start": start_ticks(pid)}


def alive(who: dict[str, Any]) -> bool:
    """Whether the very process of an `identity` still runs on this machine."""
    return bool(who.get("pid")) and who.get("boot") == boot_id() and who.get("start") is not None \
        and start_ticks(who["pid"]) == who["start"]


def marked(mark: str) -> list[int]:
    """The processes whose environment carries the mark of a job, in whatever session or group they are."""
    wanted = f"{commands.MARK}={mark}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            environment = _environment(int(entry.name))
            if wanted in environment and start_ticks(int(entry.name)) is not None:
                found.append(int(entry.name))
    return found


def job_of(pid: int) -> str:
    """The mark that a process carries; "" for a stranger."""
    prefix = f"{commands.MARK}=".encode()
    return next((entry[len(prefix):].decode(errors="replace") for entry in _environment(pid)
                 if entry.startswith(prefix)), "")


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has gone, or is somebody else's
        return []


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; or it has become somebody else's
            os.kill(pid, number)


def say(text: str) -> None:
    """A line with the time, for the daemon's log. On a full disk nobody can be told, and the work goes on."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


class Ladder:
    """SIGUSR1 to the ranks (save and leave), then TERM, then KILL to whatever is left; one `step` at a time.

    ranks: the processes that train, as status.json names them: signals to torchrun or to loader processes lose the run.
    """

    def __init__(self, mark: str, ranks: Callable[[], list[int]], grace: float, patience: float = 10.0):
        self.mark, self.ranks, self.grace, self.patience = mark, ranks, grace, patience
        self.rung, self.next = 0, 0.0

    def step(self) -> None:
        """Climb when the time of the last rung is over; to be called until nobody of `mark` is left."""
        if time.monotonic() < self.next:
            return
        everybody = marked(self.mark)
        ranks = [pid for pid in self.ranks() if pid in everybody]
        if self.rung == 0 and ranks:
            send(ranks, signal.SIGUSR1)
            self.next = time.monotonic() + self.grace
        elif self.rung <= 1:  # those that have nothing to save yet leave by it too
            self.rung = 1
            send(ranks or everybody, signal.SIGTERM)
            self.next = time.monotonic() + self.patience
        else:
            send(everybody, signal.SIGKILL)
            self.next = time.monotonic() + 0.5
        self.rung += 1
