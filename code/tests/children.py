"""Programs in processes of their own that start at once: forks of a server that has torch loaded, its threads not
started. They can be signalled, killed and killed by themselves at a chosen moment, as a script of a user can."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torchvision", "cv2", "matplotlib.pyplot", "seaborn", "torch._dynamo",
                                 "torch.utils.flop_counter"])
LIMIT = 120.0


class Child:
    """`target(*args)` in a process with `env`; its exit code is that of a script, `said()` what it printed."""

    def __init__(self, target: Callable[..., Any], *args: Any, log: Path, **env: str):
        self.log = log
        self.process = _context.Process(target=_serve, args=(target, args, env, str(log)))
        self.process.start()

    def wait(self, limit: float = LIMIT) -> int:
        self.process.join(limit)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"it hangs:\n{self.said()}")
        return self.process.exitcode

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def signal_when(self, ready: Callable[[], bool], number: signal.Signals) -> int:
        """Send a signal as soon as `ready()`; the exit code."""
        deadline = time.monotonic() + LIMIT
        while not ready() and self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.process.is_alive() and self.process.pid, f"it ended too soon:\n{self.said()}"
        os.kill(self.process.pid, number)
        return self.wait()


def _serve(target: Callable[..., Any], args: tuple, env: dict[str, str], log: str) -> None:
    import torch

    from slr import errors

    os.environ.update(env)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    errors.run(lambda: target(*args))


def script(name: str, *words: str) -> Any:
    """A script of code/ with these words on its command line."""
    from importlib import import_module

    sys.argv = [f"{name}.py", *words]
    return import_module(name).main()


def leaving_at(step: int, optimise: Callable[..., Any]) -> Callable[..., Any]:
    """A step of training whose `step`-th call (from 1) is told by a SIGTERM to be the last one."""
    done = list[int]()

    def optimised(*given: Any) -> Any:
        done.append(1)
        if len(done) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return optimise(*given)

    return optimised


def interrupted_script(step: int, name: str, *words: str) -> Any:
    """The same as `script`, which a SIGTERM reaches inside its `step`-th step of training."""
    from slr import engine

    engine.optimise = leaving_at(step, engine.optimise)
    return script(name, *words)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def write_checkpoint_on_a_full_disk(path: Path) -> None:
    import resource

    import torch

    from slr import checkpoint

    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    checkpoint.save(path, {"model_state_dict": {"a": torch.zeros(100_000)}})


def kill_at(event: int) -> None:
    """From now on SIGKILL this process at its n-th event: a step, write, rename or removal begins or ends."""
    import torch

    count = 0

    def happen() -> None:
        nonlocal count
        count += 1
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            happen()
            result = function(*args, **kwargs)
            happen()
            return result

        return wrapper

    for place, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (torch.optim.AdamW, "step"), (torch, "save")):
        setattr(place, name, watched(getattr(place, name)))
