"""What several processes of a group do in test_batchnorm.py: importable, so that they can be started with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from children import Child, free_port
from torch import nn

from slr import batchnorm, engine
from slr.config import parse_config
from slr.engine import FitPlan
from slr.paths import Experiment
from slr.runtime import Runtime
from slr.task import build_task


def everywhere(target: Callable[..., Any], folder: Path, world: int, *args: Any, **env: str) -> list[dict[str, Any]]:
    """What `target(file, *args)` saves, of `world` processes in a group."""
    group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **env}
    files = [folder / f"{world}_{rank}.pth" for rank in range(world)]
    children = [Child(target, file, *args, log=file.with_suffix(".txt"), **group, RANK=str(rank), LOCAL_RANK=str(rank))
                for rank, file in enumerate(files)]
    for child in children:
        assert child.wait() == 0, child.said()
    return [torch.load(file) for file in files]


# --- the layer ----------------------------------------------------------------------------------------------

def rows(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    """(count, *shape), far from zero: a difference of sums of squares would not stand that."""
    return 50 + torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def a_norm(dims: int, momentum: float | None) -> nn.Module:
    norm = (nn.BatchNorm1d if dims == 2 else nn.BatchNorm3d)(3, momentum=momentum)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(2))
    return norm


def second_pass(norm: nn.Module, x: torch.Tensor, counts: bool = True) -> dict[str, Any]:
    """Outputs and gradients of a pass through `norm`, behind another one."""
    found: dict[str, Any] = {}
    for _ in range(2):
        norm.zero_grad()
        own = x.clone().requires_grad_(True)
        out = norm(own)
        wave = torch.linspace(-1, 2, out[0].numel()).view_as(out[0]) * out.detach().tanh()
        ((out * wave).sum() * float(counts)).backward()
        found = {"out": out.detach(), "grad": own.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
                 "state": norm.state_dict()}
    return found


def one_share(file: Path, shares: list[int], shape: tuple[int, ...], momentum: float | None) -> None:
    """This process's rows through the shared form; where it has none, the first row as a ghost."""
    dist.init_process_group("gloo")
    net = batchnorm.share_batch_norm(nn.Sequential(a_norm(1 + len(shape), momentum)))
    own = shares[dist.get_rank()]
    batchnorm.mark_ghost(net, not own)
    x = rows(sum(shares), shape)
    torch.save(second_pass(net[0], x.split(shares)[dist.get_rank()] if own else x[:1], bool(own)), file)
    dist.destroy_process_group()


# --- a task in the engine -----------------------------------------------------------------------------------

def an_epoch(file: Path, ini: str, model: str, split: str, dtype: torch.dtype) -> None:
    """An epoch of training in this format: each step's losses and gradients, the lengths of this process's items, and
    the weights and buffers at the end."""
    runtime = Runtime.start("cpu", 3)
    task = build_task(parse_config(ini, Experiment(model, split, "1")), runtime)
    task.model.to(dtype)
    prepare = task.prepare
    task.prepare = lambda batch, train: cast_inputs(prepare(batch, train), dtype)  # type: ignore[method-assign]
    task.forward = lambda model, batch: model(batch["inputs"], batch["lengths"])  # type: ignore[method-assign]
    training = engine.start(task, FitPlan(epochs=1, eps=1e-4), runtime)
    loader = task.loader("train", train=True)
    loader.batch_sampler.start(0)
    training.model.train()
    gradients, step = list[dict[str, Any]](), training.optimizer.step

    def watched(*words: Any, **options: Any) -> Any:
        gradients.append({name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None})
        return step(*words, **options)

    training.optimizer.step = watched  # type: ignore[method-assign]
    losses, lengths = [], []
    for batch, size in zip(loader, loader.batch_sampler.sizes(), strict=True):
        losses.append(engine.optimise(training, [batch], [size]))
        lengths.append([] if batch["ghost"] else batch["lengths"].tolist())
    torch.save({"losses": torch.stack(losses), "gradients": gradients, "lengths": lengths,
                "state": task.model.state_dict()}, file)
    runtime.close()


def cast_inputs(batch: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {**batch, "inputs": batch["inputs"].to(dtype)}
