"""The GPUs of this machine as NVML tells of them, and the memory that runs of a kind were seen to need."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from que import disk
from que.errors import Mistake, Storage
from que.job import Job

FAKE = "QUE_FAKE_GPUS"  # a file: a JSON list of Gpu's fields, or {"lost": "why"} for a GPU that does not answer
NEWEST = 5  # runs of a kind whose largest peak counts

_ready = False  # whether NVML is initialised: a driver that is gone later is trouble, not a machine without GPUs
_missing: list[str] = []


@dataclass(frozen=True)
class Gpu:
    """Jobs are given GPUs by `uuid`: CUDA numbers them otherwise than NVML, whose `index` is for people. In bytes."""

    uuid: str
    index: int
    name: str
    total: int
    free: int
    used_by: dict[int, int] = field(default_factory=dict)  # process id: bytes, 0 where the driver does not tell
    utilization: int | None = None  # per cent


def read_gpus() -> list[Gpu]:
    """The GPUs that answer, in NVML's order; [] without a driver. `lost` has the others."""
    global _missing
    fake = os.environ.get(FAKE)
    gpus, _missing = _read_fake(Path(fake)) if fake else _read_driver()
    return gpus


def lost() -> list[str]:
    """A sentence on each GPU that the last `read_gpus` left out: "GPU 2: GPU is lost"."""
    return list(_missing)


def _read_driver() -> tuple[list[Gpu], list[str]]:
    global _ready
    try:
        import pynvml as nvml
    except ImportError:
        return [], []
    try:
        if not _ready:
            nvml.nvmlInit()
            _ready = True
        return _ask(nvml)
    except nvml.NVMLError as error:
        absent = isinstance(error, (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded))
        return [], [] if absent and not _ready else [f"the NVIDIA driver: {error}"]


def _ask(nvml: Any) -> tuple[list[Gpu], list[str]]:
    gpus, missing = list[Gpu](), list[str]()
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpus.append(_gpu(nvml, index))
        except (nvml.NVMLError, Mistake) as error:
            missing.append(f"GPU {index}: {error}")
    return gpus, missing


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    if _told(nvml, nvml.nvmlDeviceGetMigMode, handle, [0])[0]:
        raise Mistake("divided by MIG, which the que leaves alone")
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    processes = _told(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle, [])
    rates = _told(nvml, nvml.nvmlDeviceGetUtilizationRates, handle, None)
    return Gpu(nvml.nvmlDeviceGetUUID(handle), index, nvml.nvmlDeviceGetName(handle), memory.total, memory.free,
               {process.pid: process.usedGpuMemory or 0 for process in processes}, rates and rates.gpu)


def _told(nvml: Any, ask: Callable[[Any], Any], handle: Any, otherwise: Any) -> Any:
    """What old drivers, old GPUs and guests of a virtual machine do not tell is no reason to do without the GPU."""
    try:
        return ask(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return otherwise


def _read_fake(path: Path) -> tuple[list[Gpu], list[str]]:
    try:
        entries = list(enumerate(json.loads(path.read_text(encoding="utf-8"))))
        gpus = [Gpu(**{"index": i, "name": "fake", "free": entry["total"], **entry,
                       "used_by": {int(pid): size for pid, size in entry.get("used_by", {}).items()}})
                for i, entry in entries if "lost" not in entry]
        return gpus, [f"GPU {i}: {entry['lost']}" for i, entry in entries if "lost" in entry]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"${FAKE} names no list of GPUs", f"{path}: {error}", f"unset {FAKE} for the real ones") from None


# --- peaks.json: {kind: [bytes of the newest runs]}


def key(job: Job) -> str:
    """What the memory of a run depends on, with what the que itself changed (a halved batch) in its place."""
    facts = job.facts | {name.rpartition(".")[2]: value for name, value in job.changes.items()}
    names = ("num_frames", "frame_size", "batch_size", "precision")
    return " ".join([job.model, *(f"{name}={facts.get(name, '?')}" for name in names), f"gpus={job.gpus or 1}"])


def learned(folder: Path, job: Job) -> int | None:
    """The most that one GPU held in the newest runs of this kind; None where there were none."""
    return max(_peaks(folder).get(key(job), []), default=None)


def learn(folder: Path, job: Job, size: int) -> None:
    """Keep the measured peak of a run's fullest GPU; Storage where the disk is full or read-only."""
    with disk.lock(folder / "peaks.lock"):  # not the store's own, which the caller may hold
        peaks = _peaks(folder)
        peaks[key(job)] = [*peaks.get(key(job), []), size][-NEWEST:]
        disk.write(folder / "peaks.json", json.dumps(peaks, indent=0) + "\n", folder / "peaks.json.new")


def _peaks(folder: Path) -> dict[str, list[int]]:
    """Peaks are learned anew where the file is corrupt; what was in it may still be wanted by a person."""
    path = folder / "peaks.json"
    try:
        return {kind: [int(size) for size in sizes] for kind, sizes in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        print(f"warning: {path} cannot be read ({error}): it goes to quarantine/", file=sys.stderr)
        with contextlib.suppress(Storage):  # a sister was quicker, or nothing can be moved there
            disk.move(path, folder / "quarantine" / f"peaks-{time.time_ns()}.json")
        return {}
