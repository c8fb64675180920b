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

_ready = False  # whether NVML is initialised
_seen = False  # whether there were GPUs once: a driver that is gone later is trouble then
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


class _Divided(Exception):
    """A GPU whose parts are no GPUs of their own to us."""


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
    """Somebody's nvmlShutdown, or a driver that was loaded anew, costs one more initialisation."""
    try:
        import pynvml as nvml
    except ImportError:
        return [], []
    try:
        try:
            return _ask(nvml)
        except nvml.NVMLError_Uninitialized:
            _forget(nvml)
            return _ask(nvml)
    except nvml.NVMLError as error:
        _forget(nvml)
        absent = isinstance(error, (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded))
        return [], [] if absent and not _seen else [f"the NVIDIA driver: {error}"]


def _forget(nvml: Any) -> None:
    """NVML counts its initialisations: without a shutdown the next one would do nothing."""
    global _ready
    _ready = False
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlShutdown()


def _ask(nvml: Any) -> tuple[list[Gpu], list[str]]:
    global _ready, _seen
    if not _ready:
        nvml.nvmlInit()
        _ready = True
    gpus, missing = list[Gpu](), list[str]()
    for index in range(nvml.nvmlDeviceGetCount()):
        _seen = True
        try:
            gpus.append(_gpu(nvml, index))
        except nvml.NVMLError_Uninitialized:
            raise
        except (nvml.NVMLError, _Divided) as error:
            missing.append(f"GPU {index}: {error}")
    return gpus, missing


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    if _told(nvml, nvml.nvmlDeviceGetMigMode, handle, [0, 0])[0]:
        raise _Divided("divided by MIG, which the que leaves alone")
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
        entries = json.loads(path.read_text(encoding="utf-8"))
        missing = [f"GPU {i}: {entry['lost']}" for i, entry in enumerate(entries) if "lost" in entry]
        gpus = [Gpu(**{"index": i, "name": "fake", "free": entry["total"], **entry,
                       "used_by": {int(pid): size for pid, size in entry.get("used_by", {}).items()}})
                for i, entry in enumerate(entries) if "lost" not in entry]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"${FAKE} names no list of GPUs", f"{path}: {error}", f"unset {FAKE} for the real ones") from None
    return gpus, missing


# --- peaks.json: {kind: [bytes of the newest runs]}

_known: dict[Path, tuple[tuple[int, int, int], dict[str, list[int]]]] = {}


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
    if size <= 0:
        return
    with disk.lock(folder / "peaks.lock"):  # not the store's own, which the caller may hold
        peaks = dict(_peaks(folder))
        peaks[key(job)] = [*peaks.get(key(job), []), size][-NEWEST:]
        disk.write(folder / "peaks.json", json.dumps(peaks, indent=0) + "\n", folder / "peaks.json.new")


def _peaks(folder: Path) -> dict[str, list[int]]:
    """Asked for one waiting job after the other: each state of the file is parsed once, and complained of once."""
    path = folder / "peaks.json"
    try:
        facts = os.stat(path)
        version = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if _known.get(path, (None,))[0] != version:
            _known[path] = version, {}
            _known[path] = version, _checked(json.loads(path.read_bytes()))
        return _known[path][1]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _set_aside(path, error)
        return {}


def _checked(peaks: Any) -> dict[str, list[int]]:
    if not isinstance(peaks, dict) or not all(
            isinstance(sizes, list) and all(type(size) is int for size in sizes) for sizes in peaks.values()):
        raise ValueError("no lists of sizes")
    return peaks


def _set_aside(path: Path, why: Exception) -> None:
    """Peaks are learned anew; what was in the file may still be wanted by a person."""
    try:
        disk.move(path, path.parent / "quarantine" / f"peaks-{time.time_ns()}.json")
        done = "it lies in quarantine/ now, peaks are learned anew"
    except (OSError, Storage) as error:
        done = f"nor moved to quarantine/: {error}"
    print(f"warning: {path} cannot be read ({why}): {done}", file=sys.stderr)
