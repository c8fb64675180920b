"""The machine a run has: device, number format, its place among several processes, and every source of randomness.

One object works on a CPU, one GPU and under torchrun (which sets RANK, WORLD_SIZE and LOCAL_RANK). Samples draw from
`generator(seed, epoch, item)` only, so a clip looks the same whatever the batch size, worker or number of processes.
"""

import ctypes
import hashlib
import os
import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from slr.errors import Mistake

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def generator(seed: int, epoch: int, item: str) -> np.random.Generator:
    """The random numbers of one item in one epoch: a Philox stream keyed by a hash of the three."""
    digest = hashlib.blake2b(f"{seed}|{epoch}|{item}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


@dataclass(frozen=True)
class Runtime:
    """Where this process computes, and how it talks to its sisters."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @classmethod
    def start(cls, device: str = "auto", seed: int = 42, deterministic: bool = False) -> "Runtime":
        """Choose the device, join the process group under torchrun, and seed the global generators."""
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        chosen = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
        if chosen.type == "cpu":
            _keep_freed_memory()
            _keep_kernels()
        if world > 1:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
        if deterministic != torch.are_deterministic_algorithms_enabled():  # asking torch loads its compiler: seconds
            torch.use_deterministic_algorithms(deterministic)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False
        elif chosen.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions have it anyway
        runtime = cls(chosen, rank, world)
        runtime.seed(seed)
        return runtime

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def seed(self, seed: int) -> None:
        """The generators of Python, numpy and torch (dropout, initial weights); each rank its own."""
        random.seed(seed + self.rank)
        np.random.seed((seed + self.rank) % 2**32)
        torch.manual_seed(seed + self.rank)

    def precision(self, name: str) -> torch.dtype:
        """The number format that `name` means here; auto is bf16 on a GPU that computes with it, else fp32."""
        if name != "auto":
            return DTYPES[name]
        able = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] >= 8
        return torch.bfloat16 if able else torch.float32

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager:
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def peak_memory(self) -> int:
        """Bytes: the most that tensors took on the GPU, on the CPU the most this process took at all."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones.

    It hands blocks of over 32 MB back to the kernel at once; a training step on a CPU then spends a quarter of its
    time on pages that are fetched and cleared anew (S3D at 16x112: 4.1 -> 3.1 s a step of 8 on one thread).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries have their own ways
        for option, value in ((-4, 0), (-1, -1), (-2, 64 << 20)):  # M_MMAP_MAX none, M_TRIM_THRESHOLD never, M_TOP_PAD
            libc.mallopt(option, value)


def _keep_kernels() -> None:
    """Let oneDNN keep the kernels that it has made for shapes it has seen, whatever lengths the sentences have.

    Left alone it keeps the last 1,024. S3D_CTC asks for some 190 a step, others for every length, so most of them would
    be made anew in most steps (48 pixels, batches of 4, 21 lengths on two threads: 0.90 -> 0.69 s a step).
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "65536")  # read when the first kernel is made


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
    except RuntimeError:
        raise Mistake("--device is no device", repr(name), "give cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise Mistake("there is no GPU to be had", f"--device {name}", "leave --device out, or give cpu")
        index = device.index if device.index is not None else local_rank
        if index >= torch.cuda.device_count():
            raise Mistake("there is no such GPU", f"cuda:{index} of {torch.cuda.device_count()}",
                          "start as many processes as there are GPUs, or name another one")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of every global generator, as tensors and plain lists (what `weights_only=True` admits)."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(), "python": [version, list(internal), gauss],
        "numpy": [str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `rng_state` took."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
