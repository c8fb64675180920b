"""Where the jobs lie: one JSON file a job, and the folder it lies in is its state.

Whoever changes anything holds the lock, which a kill frees, for some milliseconds. A change is written aside and
renamed; a move is one rename after it, and `moving` tells where to, should a kill come between. Nobody has to run.
"""

import contextlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from que import disk
from que.commands import ROOT
from que.errors import Changed, Mistake
from que.job import STATES, TRASH, Job, from_json

FOLDERS = (*STATES, TRASH, "quarantine", "tmp", "leases", "logs", "snapshots", "configs", "slurm")
# Of a file that a person copied into a second folder only the first counts: nothing runs twice.
LOOKED_AT = ("cur_run", "old_runs", "fail_runs", "held", "to_run", TRASH)


def state_folder() -> Path:
    """$QUE_DIR, else que/state."""
    return (ROOT / Path(os.environ.get("QUE_DIR") or "que/state").expanduser()).resolve()


class Store:
    """`warnings` gathers what was put into quarantine or could not be read."""

    def __init__(self, folder: Path):
        self.folder, self.warnings = folder, list[str]()
        self._cache: dict[str, tuple[tuple[int, int] | None, Job]] = {}  # what `jobs` read last
        self._lists: dict[tuple, list[Job]] = {}  # by states and the times at which their folders last changed
        with disk.explained(folder):
            if not all((folder / name).is_dir() for name in FOLDERS):
                for name in FOLDERS:
                    (folder / name).mkdir(parents=True, exist_ok=True)

    # --- reading

    def jobs(self, *states: str) -> list[Job]:
        """The jobs of these states (default: all but the trash), each state in order."""
        states = states or STATES
        with disk.lock(self.folder / "lock", shared=True):
            version = tuple(os.stat(self.folder / state).st_mtime for state in LOOKED_AT)
            if (version, states) in self._lists:  # every change is a rename into a folder or out of it
                return list(self._lists[version, states])
            places = self._places()
        found = (self._read(state, name) or self._unmoved(name.removesuffix(".json"), states)
                 for name, state in places.items() if state in states)
        listed = sorted((job for job in found if job), key=_place)
        if time.time() - max(version) > 0.1:  # as in _read
            self._lists = {key: jobs for key, jobs in self._lists.items() if key[0] == version}
            self._lists[version, states] = listed
        return list(listed)

    def find(self, job_id: str) -> Job:
        job = self._get(job_id) or self._unmoved(job_id)
        if not job:
            raise Mistake("there is no such job", job_id, "`que list` names those that there are")
        return job

    def select(self, state: str, words: str) -> list[Job]:
        """The jobs that `2`, `0-3`, `0,2,5`, `j12` or `all` mean in the list of a state. They count from 0, as ever."""
        listed = self.jobs(state)
        chosen: list[Job] = []
        for word in words.split(","):
            span = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word.strip())
            if word == "all":
                chosen += listed
            elif span:
                first, last = int(span[1]), int(span[2] or span[1])
                if not first <= last < len(listed):
                    raise Mistake(f"{state} has no such place", word, _span(listed))
                chosen += listed[first:last + 1]
            else:
                chosen += [job for job in listed if job.id == word] or _no_such(state, word, listed)
        return list({job.id: job for job in chosen}.values())

    def log(self, job_id: str) -> Path:
        return self.folder / "logs" / f"{job_id}.log"

    def quarantined(self) -> list[Path]:
        return sorted(p for p in (self.folder / "quarantine").iterdir() if p.suffix != ".why")

    # --- changing

    def add(self, *jobs: Job, state: str = "to_run", prepare: Callable[[Job], None] = lambda job: None) -> list[Job]:
        """File new jobs at the end of a state, each with an id that no job had before; `prepare` may use that."""
        with self._changing():
            numbers = self._numbers()
            for job in jobs:
                numbers = {"id": numbers["id"] + 1, "order": numbers["order"] + 1}
                while self._state_of(f"j{numbers['id']}"):  # counter.json is older than the jobs
                    numbers["id"] += 1
                job.id, job.order, job.state = f"j{numbers['id']}", float(numbers["order"]), state
            self._save_numbers(numbers)
            try:
                for job in jobs:
                    prepare(job)
                    self._write(job, state)
            except BaseException:  # all of them or none: a full disk, Ctrl-C
                for job in jobs:
                    with contextlib.suppress(OSError):
                        self._path(state, job.id).unlink(missing_ok=True)
                raise
        return list(jobs)

    def update(self, job_id: str, change: Callable[[Job], None] = lambda job: None, to: str = "",
               only: tuple[str, ...] = ()) -> Job:
        """Read, change, write and, with `to`, move a job in one step; Changed where it has left the states `only`."""
        with self._changing():
            job = self._get(job_id, fresh=True)
            if not job or (only and job.state not in only):
                raise Changed(f"{job_id} is not in {' or '.join(only) or 'the que'}",
                              f"it is in {job.state}" if job else "it is gone", "look with `que list`")
            state = job.state
            change(job)
            if not to or to == state:
                self._write(job, state)
                return job
            if _goes_last(state, to):
                job.order = float(self._next_order())
            job.moving, target = to, self._path(to, job_id)
            if target.exists():
                self._set_aside(target, f"{job_id} came there from {state}")
            self._write(job, state)
            disk.move(self._path(state, job_id), target)
            job.state = to
        return job

    def place(self, state: str, old: int, new: int) -> Job:
        """Move the job at place `old` of a list to place `new`; in to_run its priority follows where it has to."""
        with self._changing():
            listed = self._fresh(state)
            for index in (old, new):
                if not 0 <= index < len(listed):
                    raise Mistake(f"{state} has no such place", str(index), _span(listed))
            job = listed.pop(old)
            ahead, behind = listed[new - 1] if new else None, listed[new] if new < len(listed) else None
            if state == "to_run":
                job.priority = max(job.priority, behind.priority) if behind else job.priority
                job.priority = min(job.priority, ahead.priority) if ahead else job.priority
                ahead, behind = (x if x and x.priority == job.priority else None for x in (ahead, behind))
            if not behind:
                job.order = float(self._next_order())
            else:
                low = ahead.order if ahead else behind.order - 2
                if not low < (low + behind.order) / 2 < behind.order:
                    low = self._renumber([x for x in listed[:new] if _place(x)[:2] == _place(job)[:2]])
                job.order = (low + behind.order) / 2
            self._write(job, state)
        return job

    def _renumber(self, jobs: list[Job]) -> float:
        """Count these anew, below their present orders: whenever a kill comes, they stand as they stood."""
        start = math.floor(jobs[0].order) - len(jobs)
        for number, job in enumerate(jobs, start):
            job.order = float(number)
            self._write(job, job.state)
        return jobs[-1].order

    def purge(self, job: Job) -> None:
        """Remove a job of the trash for good, with its log and config; one that has left the trash stays."""
        with self._changing(), disk.explained(self.folder):
            if (path := self._path(TRASH, job.id)).exists():
                disk.remove(path)
                for name in (f"logs/{job.id}.log", f"configs/{job.id}.ini", f"leases/{job.id}"):
                    (self.folder / name).unlink(missing_ok=True)

    def write_json(self, name: str, content: dict) -> None:
        """A small file of the que's own beside the jobs, such as settings.json."""
        with self._changing():
            disk.write(self.folder / name, json.dumps(content, indent=1) + "\n", self.folder / "tmp" / name)

    # --- below the lock

    def _changing(self) -> AbstractContextManager[None]:
        return disk.lock(self.folder / "lock")

    def _fresh(self, state: str) -> list[Job]:
        """As `jobs`, to be changed by who holds the lock."""
        found = (self._read(state, name, fresh=True) for name, where in self._places().items() if where == state)
        return sorted((job for job in found if job), key=_place)

    def _places(self) -> dict[str, str]:
        """The state of each file."""
        places = dict[str, str]()
        with disk.explained(self.folder, "read"):
            for state in LOOKED_AT:
                for name in os.listdir(self.folder / state):
                    if name.endswith(".json") and name[0] != "." and places.setdefault(name, state) != state:
                        self._warn(f"{name} lies in {places[name]} and in {state}: remove one of the files")
        return places

    def _path(self, state: str, job_id: str) -> Path:
        return self.folder / state / f"{job_id}.json"

    def _state_of(self, job_id: str) -> str:
        if not re.fullmatch(r"j\d+", job_id):
            return ""
        return next((state for state in LOOKED_AT if os.path.isfile(self._path(state, job_id))), "")

    def _get(self, job_id: str, fresh: bool = False) -> Job | None:
        state = self._state_of(job_id)
        return self._read(state, f"{job_id}.json", fresh) if state else None

    def _unmoved(self, job_id: str, states: tuple[str, ...] = LOOKED_AT) -> Job | None:
        """A job that moved while we looked for it: under the lock none does."""
        with disk.lock(self.folder / "lock", shared=True):
            job = self._get(job_id)
        return job if job and job.state in states else None

    def _read(self, state: str, name: str, fresh: bool = False) -> Job | None:
        """The job in a file; None where it is not there, or in quarantine now. Only `fresh` ones may be changed."""
        path = f"{self.folder}/{state}/{name}"  # ten thousand of Path take their time
        try:
            facts = os.stat(path)
            version = (facts.st_ino, facts.st_mtime_ns)
            known, job = self._cache.get(path, (None, None))
            if fresh or known != version or not job:
                job = _parsed(path, name, facts)
                # Two changes within one tick of the file system's clock look alike: a young file is read again.
                settled = not fresh and time.time() - facts.st_mtime > 0.1
                self._cache[path] = version if settled else None, job
        except FileNotFoundError:
            self._cache.pop(path, None)
            return None
        except OSError as error:
            self._warn(f"{path} cannot be read: {error.strerror}")
            return None
        except (ValueError, RecursionError) as error:
            self._quarantine(Path(path), str(error))
            return None
        job.state = state
        return job

    def _quarantine(self, path: Path, why: str) -> None:
        try:
            self._set_aside(path, f"it is no job: {why}")
        except Mistake as error:
            if path.exists():  # else a sister was quicker
                self._warn(f"{path} is no job ({why}), and cannot be put into quarantine: {error.found}")

    def _set_aside(self, path: Path, why: str) -> None:
        target = self.folder / "quarantine" / f"{path.parent.name}-{path.name}"
        while target.exists():
            target = target.with_name(target.name + "~")
        disk.move(path, target)
        self._warn(f"{path.parent.name}/{path.name} lies in quarantine/ now: {why}")
        with contextlib.suppress(OSError):  # a full disk: the reason is told, if not on record
            target.with_name(target.name + ".why").write_text(why + "\n", encoding="utf-8", errors="backslashreplace")

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _write(self, job: Job, state: str) -> None:
        disk.write(self._path(state, job.id), job.to_json(), self.folder / "tmp" / f"{job.id}.json")

    def _numbers(self) -> dict[str, int]:
        """The last id and the last order that were given; counted anew where the file is lost."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
            content = json.loads((self.folder / "counter.json").read_bytes())
            numbers = {name: int(content[name]) for name in ("id", "order")}
            if all(0 <= number < 1 << 49 for number in numbers.values()):
                return numbers
        ids = [int(found[1]) for folder in FOLDERS for name in os.listdir(self.folder / folder)
               if (found := re.search(r"\bj(\d{1,15})\b", name))]
        orders = [job.order for state in LOOKED_AT for job in self._fresh(state)]
        if ids:
            self._warn("counter.json was lost or damaged: it is counted anew")
        return {"id": max(ids, default=0), "order": int(max(orders, default=0)) + 1}

    def _save_numbers(self, numbers: dict[str, int]) -> None:
        disk.write(self.folder / "counter.json", json.dumps(numbers) + "\n", self.folder / "tmp" / "counter.json")

    def _next_order(self) -> int:
        numbers = self._numbers()
        numbers["order"] += 1
        self._save_numbers(numbers)
        return numbers["order"]


def _parsed(path: str, name: str, facts: os.stat_result) -> Job:
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(0, "it is no file")
    with open(path, "rb", buffering=0) as file:
        job = from_json(file.read())
    if f"{job.id}.json" != name:
        raise ValueError(f"it holds {job.id}")
    return job


def _place(job: Job) -> tuple:
    """Sorts a list: states as they are listed, the waiting by priority, then by order."""
    return (LISTED[job.state], -job.priority if job.state == "to_run" else 0, job.order, job.number)


LISTED = {state: number for number, state in enumerate((*STATES, TRASH))}


def _goes_last(state: str, to: str) -> bool:
    """Jobs that are run, retried or held keep their place; ended ones, and those that come back from there, go last."""
    ended = ("old_runs", "fail_runs", TRASH)
    return to in ended or (to in ("to_run", "held") and state in ended)


def _span(listed: list[Job]) -> str:
    return f"it has 0 to {len(listed) - 1}" if listed else "it is empty"


def _no_such(state: str, word: str, listed: list[Job]) -> list[Job]:
    raise Mistake(f"{state} has no such job", repr(word),
                  f"give a place ({_span(listed)}), a range such as 0-3, an id or all")
