"""Who starts where, and why everybody else waits: decided from what is known, nothing is read or touched.

Strict order on GPUs and on CPU slots, each for itself: whoever waits for one lets nobody pass who comes later, so that
no job starves, unless what it asks for is not in this machine at all. Waiting for others and for a time blocks nobody.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from que.gpus import Gpu
from que.job import Job, memory_text, time_text

ALONE = 0.9  # of a GPU's memory is live free before a job gets it for itself
LONGEST_WAIT = 3600.0  # seconds; a `not_before` further ahead comes from a clock that was wrong
_DOES = {"to_run": "is queued", "cur_run": "runs", "held": "is held"}


class Start(NamedTuple):
    job: Job
    devices: list[str]  # uuids in NVML's order, or one cpu:<slot>
    reserve: int | None  # bytes of each GPU; None: they are the job's alone, or it has a CPU slot


@dataclass(frozen=True)
class Decision:
    """Each waiting job is in one of them."""

    starts: list[Start]
    reasons: dict[str, str]  # by id


def decide(waiting: Sequence[Job], running: Sequence[Job], gpus: Sequence[Gpu], *, slots: int, now: float,
           headroom: int, find: Callable[[str], Job | None], settled: Callable[[str, int], bool],
           learned: Callable[[Job], int | None], used: Callable[[Gpu, Job], int], lost: Sequence[str] = ()) -> Decision:
    """`waiting` comes in order, best first. Memory in bytes, times in seconds since 1970.

    find: a job by id with its state, None where it is gone.    learned: the peak of earlier runs of this kind.
    settled: whether the GPU of this uuid has had so much live free memory for the settle time.
    used: what a running job holds of a GPU now.    lost: sentences on the GPUs that do not answer at present.
    """
    table = _Table([_Room(gpu, gpu.total - headroom) for gpu in gpus], slots, settled, learned, lost)
    for job in running:
        table.seat(job, used)
    starts, reasons = list[Start](), dict[str, str]()
    for job in waiting:
        found = _early(job, find, now) or table.place(job)
        if isinstance(found, str):
            reasons[job.id] = found
        else:
            starts.append(found)
    return Decision(starts, reasons)


def _early(job: Job, find: Callable[[str], Job | None], now: float) -> str:
    """Why it is not this job's turn, whatever is free; "" where it is."""
    if job.slurm:
        return f"Slurm job {job.slurm['job']}" if job.slurm.get("job") else "is handed to Slurm"
    for name in job.after:
        parent = find(name)
        if parent and parent.state == "fail_runs":
            return f"{name} failed: recover it, or remove this one"
        if not parent or parent.state not in (*_DOES, "old_runs"):
            return f"{name} is gone: remove this one"
        if parent.state in _DOES:
            return f"waits for {name} ({parent.title}), which {_DOES[parent.state]}"
    rest = job.not_before - now
    return f"tries again in {time_text(math.ceil(rest))}" if 0 < rest <= LONGEST_WAIT else ""


@dataclass
class _Room:
    """A GPU, and what our jobs hold of it."""

    gpu: Gpu
    most: int  # that shared jobs can have of it together
    owners: list[str] = field(default_factory=list)
    alone: bool = False
    reserved: int = 0
    unused: int = 0  # reserved, and still part of the live free memory

    def claim(self, job_id: str, reserve: int | None, used: int = 0) -> None:
        self.owners.append(job_id)
        self.alone |= reserve is None
        self.reserved += reserve or 0
        self.unused += max(0, (reserve or 0) - used)

    @property
    def left(self) -> int:
        return max(0, min(self.most - self.reserved, self.gpu.free - self.unused))

    def refusal(self, need: int | None, settled: Callable[[str, int], bool]) -> str:
        """Why a job cannot have `need` bytes of it (None: all of it), or ""."""
        owners = " and ".join(self.owners)
        if self.alone or need is None and owners:
            return f"is {owners}'s"
        if need is not None and self.most < need:
            return "is too small"
        if need is not None and owners and self.left < need:
            return f"has {memory_text(self.left)} left beside {owners}"
        least = math.ceil(ALONE * self.gpu.total) if need is None else need + self.unused
        if self.gpu.free < least:
            return f"has {memory_text(self.gpu.total - self.gpu.free)} in use by others"
        return "" if settled(self.gpu.uuid, least) else "has just come free, settles"


@dataclass
class _Table:
    """The machine while one decision is made: each start takes its part away."""

    rooms: list[_Room]
    slots: int
    settled: Callable[[str, int], bool]
    learned: Callable[[Job], int | None]
    lost: Sequence[str]
    busy: list[str] = field(default_factory=list)  # CPU slots
    blocked: dict[bool, str] = field(default_factory=dict)  # on GPUs, on CPU slots: behind whom the later ones wait

    def seat(self, job: Job, used: Callable[[Gpu, Job], int]) -> None:
        """A running job's measured peak counts in place of what it asked for."""
        devices, reserve = job.claim.get("devices", []), job.claim.get("reserve")
        self.busy += [name for name in devices if name.startswith("cpu:")]
        for room in self.rooms:
            if room.gpu.uuid in devices:
                room.claim(job.id, None if reserve is None else job.peak or reserve, used(room.gpu, job))

    def place(self, job: Job) -> Start | str:
        count = int(bool(self.rooms or self.lost)) if job.gpus is None else job.gpus
        if waits := self._impossible(job, count) or self.blocked.get(count > 0, ""):
            return waits
        found = self._on_gpus(job, count) if count else self._on_cpu(job)
        if isinstance(found, str):
            self.blocked[count > 0] = f"behind {job.id}, which {found.partition(':')[0]}"
        return found

    def _impossible(self, job: Job, count: int) -> str:
        """What this machine does not have. Such a job is passed."""
        if count > len(self.rooms):
            return f"asks for {_wish(count)}, {len(self.rooms) or 'none'} there" + "".join(f"; {x}" for x in self.lost)
        if count and (job.memory or 0) > (most := self._most(count)):
            return f"asks for {_wish(count, job.memory)}, there is {memory_text(most)}"
        return ""

    def _most(self, count: int) -> int:
        """What `count` GPUs can each give to shared jobs."""
        return sorted(room.most for room in self.rooms)[-count]

    def _on_cpu(self, job: Job) -> Start | str:
        if len(self.busy) >= self.slots:
            return f"waits for a CPU slot: {len(self.busy)} of {self.slots} in use"
        self.busy.append(next(name for i in range(self.slots) if (name := f"cpu:{i}") not in self.busy))
        return Start(job, [self.busy[-1]], None)

    def _on_gpus(self, job: Job, count: int) -> Start | str:
        """For itself those with the most free memory, to share those that it fills best."""
        need = job.memory
        if need is not None:  # a peak from when it had a larger GPU alone asks for all that can be shared of this one
            need = max(need, min(self.learned(job) or 0, self._most(count)))
        refusals = [(room, room.refusal(need, self.settled)) for room in self.rooms]
        fitting = [room for room, why in refusals if not why]
        if len(fitting) < count:
            each = ", ".join(f"GPU {room.gpu.index} {why or 'is free'}" for room, why in refusals)
            return f"waits for {_wish(count, need)}: {each}"
        fitting.sort(key=lambda room: (-room.gpu.free if need is None else room.left, room.gpu.index))
        chosen = sorted(fitting[:count], key=lambda room: room.gpu.index)
        for room in chosen:
            room.claim(job.id, need)
        return Start(job, [room.gpu.uuid for room in chosen], need)


def _wish(count: int, memory: int | None = None) -> str:
    gpus = "a GPU" if count == 1 else f"{count} GPUs"
    return gpus if memory is None else f"{memory_text(memory)} {'of' if count == 1 else 'on each of'} {gpus}"
