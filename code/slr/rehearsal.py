"""One batch of everything, nothing written: what a run will cost before it is started (training.py --dry_run)."""

import itertools
import math
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from slr import engine
from slr.engine import FitPlan
from slr.runtime import Runtime
from slr.task import Task

STEPS = 3  # the first one warms up, the others are timed


def rehearse(task: Task, plan: FitPlan, runtime: Runtime) -> str:
    """The report: parameters, FLOPs of a clip, seconds a step, memory, and the expected time of the whole run."""
    engine.refuse_empty(task)
    task.keeps = False
    training = engine.start(task, plan, runtime)
    loader = engine.loader_of(task, plan, "train")
    steps = training.steps = math.ceil(len(loader.batch_sampler) / plan.update_per_step)
    loader.batch_sampler.start(loader.batch_sampler.short_first)  # an epoch like most, not one that begins short
    training.model.train()
    started = time.time()
    groups = list(itertools.islice(engine.groups_of(iter(loader), plan.update_per_step), STEPS))
    loading = (time.time() - started) / len(groups)
    seconds = min(_timed(training, group) for group in groups)
    flops = _flops(task, groups[0][0], runtime)
    lines = [_parameters(task), f"FLOPs        {flops / 1e9:,.1f} G forward, a clip",
             f"step         {seconds:.2f} s for {sum(len(b['ids']) for b in groups[0])} clips, "
             f"data {loading:.2f} s with workers still starting",
             f"peak memory  {runtime.peak_memory() / 2**30:.2f} GiB",
             f"training     {steps} steps an epoch, about {_span(steps * seconds * plan.epochs)} for "
             f"{plan.epochs} epochs"]
    if task.size("val"):
        lines.append(f"validation   {_validated(task, runtime, plan)}")
    else:
        lines.append("validation   there is no validation set: the last epoch will be the best")
    return "\n".join([*lines, "dry run: nothing was written"])


def _timed(training: Any, group: list[dict[str, Any]]) -> float:
    started = time.time()
    engine.optimise(training, group, [len(batch["ids"]) for batch in group]).tolist()  # waits for the device
    training.step += 1
    return time.time() - started


def _flops(task: Task, batch: dict[str, Any], runtime: Runtime) -> float:
    """Multiply-adds times two of one item's forward pass."""
    ready = task.prepare(batch, train=False)
    task.model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        task.forward(task.model, ready)
    task.model.train()
    return counter.get_total_flops() / len(batch["ids"])


def _parameters(task: Task) -> str:
    groups = ", ".join(f"{g['name']} {sum(p.numel() for p in g['params']):,}" for g in task.groups())
    return f"parameters   {sum(p.numel() for p in task.model.parameters()):,} ({groups})"


def _validated(task: Task, runtime: Runtime, plan: FitPlan) -> str:
    loader = engine.loader_of(task, plan, "val")
    items = sum(loader.batch_sampler.sizes())
    loader.batch_sampler.start(0)
    batch = task.prepare(next(iter(loader)), train=False)
    task.model.eval()
    started = time.time()
    with torch.no_grad(), runtime.autocast(plan.dtype):
        total, count = task.losses(task.forward(task.model, batch), batch)["loss"]
    mean = float(total) / max(count, 1)
    per_clip = (time.time() - started) / len(batch["ids"])
    return f"{items} clips, about {_span(per_clip * items)} an epoch; untrained loss {mean:.3f}"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
