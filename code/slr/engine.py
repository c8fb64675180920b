"""The only loop: `fit` trains a task, `evaluate` runs it over a set.

A step is `update_per_step` batches; each batch's losses are means over its items on all processes, and a batch weighs
in by its share of the step's items, so the epoch's remainder counts as much per item as the rest. Signals, checkpoints
and the checks of losses happen between steps.
"""

import copy
import itertools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from slr import checkpoint
from slr.batchnorm import mark_ghost, share_batch_norm
from slr.errors import Interrupted, Mistake, NonFinite, NothingToTrainOn, OutOfMemory
from slr.logbook import Logbook, git_commit
from slr.paths import shown
from slr.runtime import Runtime, rng_state, set_rng_state
from slr.schedules import EarlyStopping, FreezePlan, Schedule
from slr.task import Sums, Task


@dataclass(frozen=True)
class FitPlan:
    """How to train: what the engine takes from the config, and nothing of the task's."""

    epochs: int
    update_per_step: int = 1
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    dtype: torch.dtype = torch.float32
    clip_norm: float = 0.0
    clip_value: float = 0.0
    ema: float = 0.0
    compile: bool = False
    save_every: int = 5
    validate_every: int = 0  # steps, inside an epoch; 0: at its end alone
    save_minutes: float = 0.0  # since the last save, inside an epoch; 0: at its end alone
    keep_top: int = 0  # files of the best epochs
    limit_train_batches: int = 0  # 0: all
    limit_val_batches: int = 0
    best: tuple[str, str] = ("loss", "min")
    schedule: dict[str, Any] = field(default_factory=dict)
    stopping: dict[str, Any] | None = None
    freezing: FreezePlan | None = None
    bar: bool = False


class StopFlag:
    """Set by SIGINT, SIGTERM or SIGUSR1; the loop looks between steps. A second SIGINT stops at once."""

    def __init__(self) -> None:
        self.name = ""

    def __enter__(self) -> "StopFlag":
        self._old = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


class Keeper:
    """The checkpoints of one run: which to write, and what stands in each. `weights` says whose they are: "raw", or
    "ema", the moving average."""

    def __init__(self, folder: Path, facts: dict[str, Any], writes: bool = True):
        self.folder, self.facts, self.writes = folder, facts, writes
        self.saved = time.monotonic()  # when the run could last be resumed from where it stands

    def save(self, name: str, state: dict[str, torch.Tensor], epoch: int, metrics: dict[str, Any],
             resume: dict[str, Any] | None = None, weights: str = "raw") -> Path:
        path = self.folder / name
        if self.writes:
            content = {**self.facts, "epoch": epoch, "metrics": metrics, "weights": weights, "model_state_dict": state}
            checkpoint.save(path, content if resume is None else {**content, "resume": resume})
        if resume is not None:
            self.saved = time.monotonic()
        return path

    def due(self, minutes: float) -> bool:
        """Whether the last complete save is so long ago; 0 minutes: it never is."""
        return minutes > 0 and time.monotonic() - self.saved >= 60 * minutes

    def drop(self, name: str) -> None:
        if self.writes:
            (self.folder / name).unlink(missing_ok=True)


@dataclass
class Fit:
    """A training in progress: everything that a checkpoint has to bring back."""

    task: Task
    plan: FitPlan
    runtime: Runtime
    model: nn.Module  # the wrapped one (DDP, compiled)
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    stopper: EarlyStopping | None
    ema: AveragedModel | None
    epoch: int = 0  # epochs that are finished
    step: int = 0  # steps of the running epoch that are finished
    steps: int = 1
    items: int = 1  # clips of an epoch
    clips: int = 0  # clips of the running epoch that are through
    order: list[int] | None = None  # what the epoch's order follows from, as `EpochBatches.origin` says
    totals: dict[str, list[float]] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    top: list[dict[str, Any]] = field(default_factory=list)  # files of the best epochs and their standing, best first
    metrics: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()  # what the freezing plan keeps from training now, by the beginnings of its names

    @property
    def candidates(self) -> dict[str, nn.Module]:
        """What validation scores: the weights, and first of all their moving average where there is one."""
        return ({"ema": self.ema.module} if self.ema else {}) | {"raw": self.task.model}

    def standing(self, val: dict[str, float]) -> tuple[float, float]:
        """The lower, the better: by the metric that chooses best.pth; of equals (all-blank answers) by the loss."""
        name, direction = self.plan.best
        return val[name] if direction == "min" else -val[name], val["loss"]

    def resume_state(self, book: Logbook) -> dict[str, Any]:
        return {
            "epoch": self.epoch, "step": self.step, "clips": self.clips, "order": self.order, "totals": self.totals,
            "best": self.best, "top": self.top, "limit_val_batches": self.plan.limit_val_batches,
            "changed": book.changed, "wandb_id": book.wandb_id,
            "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(), "stopper": self.stopper.state_dict() if self.stopper else None,
            "ema": self.ema.state_dict() if self.ema else None,
            "rng": self.runtime.gather(rng_state(self.runtime.device)),
        }

    def load(self, content: dict[str, Any], source: str) -> list[str]:
        """Take up where a checkpoint's `resume` left off. Returns a line for each thing that --set made begin anew."""
        state = content.get("resume")
        if state is None:
            raise Mistake(f"{source} holds weights only", "it has no optimiser state",
                          "start afresh, or set model_params.init_from to this file")
        if len(state["optimizer"]["param_groups"]) != len(self.optimizer.param_groups):
            raise Mistake(f"{source} was trained with other parameter groups", "", "start afresh")
        checkpoint.load_weights(self.task.model, content["model_state_dict"], source)
        asked = [{k: group[k] for k in ("weight_decay", "eps", "betas")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, today in zip(self.optimizer.param_groups, asked, strict=True):
            group.update(today)  # -r with --set changes them
        self.scaler.load_state_dict(state["scaler"])
        if self.ema and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.step, self.totals = state["epoch"], state["step"], state["totals"]
        self.clips, self.order = state.get("clips", 0), state.get("order")
        self.metrics = content.get("metrics", {})
        rank = min(self.runtime.rank, len(state["rng"]) - 1)
        set_rng_state(state["rng"][rank], self.runtime.device)
        return self._load_scores(state)

    def _load_scores(self, state: dict[str, Any]) -> list[str]:
        """The best values so far, of those metrics that are still the ones to watch, over the same batches."""
        notes = []
        if self.task.size("val") and state.get("limit_val_batches", 0) != self.plan.limit_val_batches:
            notes.append("validation sees other batches now: best epochs, early stopping and plateau begin anew")
            state = {**state, "best": None, "top": [], "stopper": None,
                     "schedule": {**state["schedule"], "plateau": None}}
        if not self.schedule.load_state_dict(state["schedule"]):
            notes.append("scheduler.mode changed: the plateau is looked for anew")
        if self.stopper and state["stopper"] and not self.stopper.load_state_dict(state["stopper"]):
            notes.append("early stopping watches something else now: it counts anew")
        self.best, self.top = state["best"], state.get("top", [])
        if self.best and self.best["metric"] != self.plan.best[0]:
            notes.append(f"best.pth was chosen by {self.best['metric']}: the next epoch replaces it, from then on "
                         f"{self.plan.best[0]} chooses" + "; the files top_*.pth of before stay" * bool(self.top))
            self.best, self.top = None, []
        return notes


def start(task: Task, plan: FitPlan, runtime: Runtime) -> Fit:
    """Optimiser, schedule and wrappers around a fresh task."""
    if plan.freezing:
        _refuse_unknown(task.model, plan.freezing)
    model = _wrapped(task, plan, runtime)
    groups = task.groups()
    optimizer = torch.optim.AdamW(groups, eps=plan.eps, betas=plan.betas, fused=True)
    schedule = Schedule(base=[group["lr"] for group in groups], scales=[group.get("scale", 1.0) for group in groups],
                        **plan.schedule)
    stopper = EarlyStopping(**plan.stopping) if plan.stopping else None
    ema = AveragedModel(task.model, multi_avg_fn=_Average(plan.ema)) if plan.ema else None
    scaler = torch.amp.GradScaler(runtime.device.type, enabled=plan.dtype == torch.float16)
    return Fit(task, plan, runtime, model, optimizer, schedule, scaler, stopper, ema)


class _Average:
    """The moving average of weights, its decay rising from 0.1 so that early weights are forgotten soon."""

    def __init__(self, decay: float):
        self.decay = decay

    def __call__(self, averages: Any, values: Any, count: Any) -> None:
        updates = float(count)
        torch._foreach_lerp_(averages, values, 1 - min(self.decay, (1 + updates) / (10 + updates)))


def _wrapped(task: Task, plan: FitPlan, runtime: Runtime) -> nn.Module:
    if runtime.world > 1:
        task.model = share_batch_norm(task.model)
    if plan.compile:
        task.model.compile()  # in place: the names of the weights stay
    if runtime.world == 1:
        return task.model
    devices = [runtime.device.index] if runtime.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(task.model, device_ids=devices,
                                               find_unused_parameters=plan.freezing is not None)


def fit(training: Fit, book: Logbook, keeper: Keeper) -> Fit:
    """Train to the plan's end, from wherever `training` stands. Returns it finished.

    Raises Interrupted after a signal (everything is saved), NonFinite, NothingToTrainOn.
    """
    task, plan, runtime = training.task, training.plan, training.runtime
    refuse_empty(task)
    loaders = {part: loader_of(task, plan, part) for part in ("train", "val") if task.size(part)}
    batches = loaders["train"].batch_sampler
    _refuse_idle(batches, runtime.world)
    training.steps, training.items = math.ceil(len(batches) / plan.update_per_step), sum(batches.sizes())
    _find_place(training, batches)
    if keeper.writes:
        checkpoint.sweep(keeper.folder)
        _tidy_top(training, keeper)
    clock = _Clock()
    with StopFlag() as stop:  # before anyone is told whom to signal
        book.tell(state="running", epoch=training.epoch, steps=training.steps,
                  pids=runtime.gather(book.status["pids"][0]))
        try:
            check_gradients(training, loaders["train"])
            while training.epoch < plan.epochs and not (training.stopper and training.stopper.over):
                started = time.time()
                train = _train_epoch(training, loaders, stop, book, keeper, clock)
                val = _validate(training, loaders.get("val"), stop, book, keeper)
                _end_epoch(training, train, val, time.time() - started, book, keeper)
        finally:
            for loader in loaders.values():
                loader.close()
    keeper.drop("resume.pth")
    return training


def loader_of(task: Task, plan: FitPlan, part: str) -> Any:
    """The task's loader over "train" or "val" as training sees it: of so many batches as the plan says."""
    loader = task.loader(part, train=part == "train")
    if most := plan.limit_train_batches if part == "train" else plan.limit_val_batches:
        loader.batch_sampler.limit(most)
    return loader


def refuse_empty(task: Task) -> None:
    """Raises NothingToTrainOn, with the reason, where no item can be learnt from."""
    if not task.size("train"):
        left = [f"{len(task.left_out())} are left out, such as {item}: {why}" for item, why in task.left_out().items()]
        raise NothingToTrainOn("the training set is empty", left[0] if left else "0 clips",
                               "see report.json of preprocess.py")


def _refuse_idle(batches: Any, world: int) -> None:
    if batches.batch_size < world:
        raise Mistake("there are more processes than items in a batch",
                      f"{world}, and training.batch_size = {batches.batch_size} over all of them",
                      "give a larger batch_size and a smaller update_per_step")


def _find_place(training: Fit, batches: Any) -> None:
    """The step where today's batches go on with the running epoch; it begins anew where no step begins there."""
    before, training.order = training.order, batches.origin()
    if before is None or not training.step:
        return
    ends = list(itertools.accumulate(map(sum, groups_of(iter(batches.sizes()), training.plan.update_per_step))))
    if before == training.order and training.clips in ends:
        training.step = ends.index(training.clips) + 1
        return
    training.step, training.clips, training.totals = 0, 0, {}
    if training.runtime.main:
        tqdm.write("note: items, seed, size of a step or limit_train_batches changed inside epoch "
                   f"{training.epoch + 1}: it begins anew", file=sys.stderr)


def check_gradients(training: Fit, loader: Any) -> None:
    """Compare one batch's gradients in a short number format with fp32's, where a CPU computes them.

    Some kernels are wrong there (Conv3d's weight gradients in bf16 at two time steps, torch 2.14). Without dropout
    and with batch-norm's running statistics rounding alone stays below 0.7 of a weight's gradient, garbage above 1.

    Raises Mistake naming the first layer whose gradient is not finite, or further off than it is long.
    """
    plan, runtime = training.plan, training.runtime
    if runtime.device.type != "cpu" or plan.dtype == torch.float32:
        return
    state = rng_state(runtime.device)
    loader.batch_sampler.start(training.epoch)
    batch = training.task.prepare(next(iter(loader)), train=True)
    right, short = (_gradients(training, batch, dtype) for dtype in (torch.float32, plan.dtype))
    set_rng_state(state, runtime.device)
    least = 1e-6 * max(float(gradient.norm()) for gradient in right.values())
    for name, gradient in right.items():
        off = float((short[name] - gradient).norm() / (gradient.norm() + least))
        if not off < 1:
            raise Mistake(f"gradients in {str(plan.dtype)[6:]} are wrong on this CPU",
                          f"those of {name} are off by {off:.3g} times their own size",
                          "set training.precision = 'fp32'")


def _gradients(training: Fit, batch: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Of one batch for all weights of two or more dimensions, float64; the model is left as it is."""
    task, scale = training.task, 1024.0 if dtype == torch.float16 else 1.0  # fp16's small gradients would be zeros
    model = copy.deepcopy(task.model).eval()
    with training.runtime.autocast(dtype):
        output = task.forward(model, batch)
    parts = task.losses(output, batch)
    means = [weight * parts[name][0] / parts[name][1] for name, weight in task.weights.items()]
    (scale * torch.stack(means).sum()).backward()
    return {name: p.grad.double() / scale for name, p in model.named_parameters() if p.grad is not None and p.ndim > 1}


class _Clock:
    """Seconds a step takes, smoothed: for the time that is left."""

    def __init__(self) -> None:
        self.last = time.time()
        self.step: float | None = None

    def tick(self) -> None:
        now = time.time()
        took, self.last = now - self.last, now
        self.step = took if self.step is None else 0.9 * self.step + 0.1 * took


def _train_epoch(training: Fit, loaders: dict[str, Any], stop: StopFlag, book: Logbook, keeper: Keeper,
                 clock: _Clock) -> dict[str, float]:
    """The rest of the running epoch; the means of its losses over all items of the epoch."""
    plan, watch, loader = training.plan, _Watch(training), loaders["train"]
    batches, sizes = loader.batch_sampler, loader.batch_sampler.sizes()
    batches.start(training.epoch, training.step * plan.update_per_step)
    training.model.train()
    todo = groups_of(iter(loader), plan.update_per_step) if training.step < training.steps else iter(())
    with _bar(training, f"epoch {training.epoch + 1}/{plan.epochs}", training.steps, training.step) as bar:
        clock.last = time.time()
        for group in todo:
            first = training.step * plan.update_per_step
            items = sizes[first:first + len(group)]
            sums = optimise(training, group, items)
            watch.take(sums, [name for batch in group for name in batch["ids"]], stop, keeper.due(plan.save_minutes))
            training.step += 1
            training.clips += sum(items)
            clock.tick()
            bar.update()
            left = (plan.epochs - training.epoch) * training.steps - training.step
            book.tell(now=False, step=training.step, eta_s=round(left * (clock.step or 0)))
            if watch.stopped:
                watch.settle()
                _leave(training, stop, book, keeper)
            if plan.validate_every and training.step % plan.validate_every == 0 and training.step < training.steps:
                watch.settle()
                _look_in_between(training, loaders.get("val"), stop, book, keeper)
            if watch.due:
                watch.settle()
                _save_place(training, book, keeper)
                watch.due = False
    watch.settle()
    if watch.stopped or (stop.name and training.runtime.world == 1):
        _leave(training, stop, book, keeper)
    return {name: total / count for name, (total, count) in training.totals.items() if count}


def groups_of(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Batches by `size`; the last group may be smaller."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _bar(training: Fit, text: str, total: int, done: int = 0) -> tqdm:
    shown = training.plan.bar and training.runtime.main
    return tqdm(total=total, initial=done, desc=text, unit="step", leave=False, disable=not shown)


def optimise(training: Fit, group: list[dict[str, Any]], sizes: list[int]) -> torch.Tensor:
    """One optimiser step over the batches of `group`; (losses, 2) float64 sums and counts over all processes.

    `sizes` are the items of the global batches, so nothing has to be asked of the device.
    """
    plan, runtime = training.plan, training.runtime
    training.task.tick(training.epoch * training.steps + training.step)
    if plan.freezing:
        freeze(training, plan.freezing)
    for param, rate in zip(training.optimizer.param_groups,
                           training.schedule.rates(training.epoch, training.step, training.steps), strict=True):
        param["lr"] = rate
    totals = torch.zeros(0)
    for number, (batch, size) in enumerate(zip(group, sizes, strict=True)):
        last = number == len(group) - 1
        with training.model.no_sync() if runtime.world > 1 and not last else nullcontext():  # type: ignore[operator]
            found = _forward_backward(training, batch, size / sum(sizes))
        totals = found if not number else totals + found
    training.scaler.unscale_(training.optimizer)
    if plan.clip_norm:
        nn.utils.clip_grad_norm_(training.task.model.parameters(), plan.clip_norm)
    if plan.clip_value:
        nn.utils.clip_grad_value_(training.task.model.parameters(), plan.clip_value)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    if training.ema:
        training.ema.update_parameters(training.task.model)
    return runtime.sum(totals)


def freeze(training: Fit, plan: FreezePlan) -> None:
    """Keep from training, or let train again, what the plan says for this step."""
    names = plan.frozen(training.epoch, training.step, training.steps)
    modules = dict(training.task.model.named_modules())
    if names == training.frozen:
        for name in names:  # validation sets all of them to train
            if name in modules:
                modules[name].eval()
        return
    training.task.model.train()
    for name in names:  # so its batch-norm and dropout stay as they are, too
        if name in modules:
            modules[name].eval()
    for name, weight in training.task.model.named_parameters():
        if any(_begins(name, start) for start in plan.patterns):
            weight.requires_grad_(not any(_begins(name, start) for start in names))
    training.frozen = names
    if plan.verbose and training.runtime.main:
        tqdm.write(f"epoch {training.epoch + 1}, step {training.step + 1}: "
                   f"{', '.join(names) + ' stay as they are' if names else 'everything trains'}", file=sys.stderr)


def _begins(name: str, start: str) -> bool:
    return name == start or name.startswith(f"{start}.")


def _refuse_unknown(model: nn.Module, plan: FreezePlan) -> None:
    """Raises Mistake for a name that no weight of the model has."""
    names = [name for name, _ in model.named_parameters()]
    for start in plan.patterns:
        if not any(_begins(name, start) for name in names):
            parts = list(dict.fromkeys(name.partition(".")[0] for name in names))
            raise Mistake("freeze_scheduler.model_params names no weight of this model", start,
                          f"its parts are {', '.join(parts)}; {names[0]} would do as well")
    for i in range(len(plan.repeats)):
        held = [start for start, flags in plan.patterns.items() if flags[i]]
        if all(any(_begins(name, start) for start in held) for name in names):
            raise Mistake("freeze_scheduler leaves nothing that trains", f"pattern {i + 1} freezes {', '.join(held)}",
                          "set one of them to False")


def _forward_backward(training: Fit, batch: dict[str, Any], share: float) -> torch.Tensor:
    """Gradients of one batch, scaled by its share of the step; its (losses, 2) sums and counts, this process's."""
    task, runtime = training.task, training.runtime
    ghost = 0.0 if batch["ghost"] else 1.0
    if runtime.world > 1:
        mark_ghost(task.model, batch["ghost"])
    batch = task.prepare(batch, train=True)
    with runtime.autocast(training.plan.dtype):
        output = task.forward(training.model, batch)
    parts = task.losses(output, batch)
    _name_totals(training, parts)
    counts = torch.tensor([count * ghost for _, count in parts.values()], dtype=torch.float64)
    everywhere = runtime.sum(counts.to(runtime.device, copy=True)) if runtime.world > 1 else counts
    means = [weight * parts[name][0] / everywhere[list(parts).index(name)].clamp(min=1).float()
             for name, weight in task.weights.items()]
    training.scaler.scale(torch.stack(means).sum() * (share * ghost * runtime.world)).backward()
    sums = torch.stack([value.detach().double() for value, _ in parts.values()]) * ghost
    return torch.stack([sums, counts.to(sums.device, non_blocking=True)], dim=1)


def _name_totals(training: Fit, parts: Sums) -> None:
    if not training.totals:
        training.totals = {name: [0.0, 0.0] for name in parts}


class _Watch:
    """Adds a step's sums to the epoch's one step late, so that the GPU is never waited for; they must be finite."""

    def __init__(self, training: Fit):
        self.training = training
        self.pending: tuple[torch.Tensor, torch.Tensor | None, list[str]] | None = None
        self.stopped = self.due = False

    def take(self, sums: torch.Tensor, ids: list[str], stop: StopFlag, due: bool) -> None:
        """`due`: whether it is time to save; of several processes the main one's word counts."""
        runtime = self.training.runtime
        flags = None
        if runtime.world > 1:  # all processes leave, and save, after the same step
            flags = runtime.sum(torch.tensor([float(bool(stop.name)), float(due and runtime.main)],
                                             device=runtime.device))
        before, self.pending = self.pending, (sums, flags, ids)
        self._add(before)
        if runtime.world == 1:
            self.stopped, self.due = bool(stop.name), due

    def settle(self) -> None:
        before, self.pending = self.pending, None
        self._add(before)

    def _add(self, pending: tuple[torch.Tensor, torch.Tensor | None, list[str]] | None) -> None:
        if pending is None:
            return
        sums, flags, ids = pending
        rows = sums.tolist()
        if not all(math.isfinite(value) for row in rows for value in row):
            names = [name for part in self.training.runtime.gather(ids) for name in part]
            raise NonFinite("the loss is not finite",
                            f"in epoch {self.training.epoch + 1}, at the clips {', '.join(names)}",
                            "look at those clips; lower the learning rates, set training.clip_norm = 1, or "
                            "training.precision = 'fp32'")
        for total, row in zip(self.training.totals.values(), rows, strict=True):
            total[0] += row[0]
            total[1] += row[1]
        if flags is not None:
            stopped, due = flags.tolist()
            self.stopped, self.due = self.stopped or stopped > 0, self.due or due > 0


def _save_place(training: Fit, book: Logbook, keeper: Keeper) -> Path:
    """resume.pth, from which the run goes on at this step."""
    return keeper.save("resume.pth", training.task.model.state_dict(), training.epoch, training.metrics,
                       training.resume_state(book))


def _leave(training: Fit, stop: StopFlag, book: Logbook, keeper: Keeper) -> None:
    """Save resume.pth and raise Interrupted."""
    path = _save_place(training, book, keeper)
    training.runtime.wait()
    raise Interrupted(f"interrupted by {stop.name or 'a signal to a sister process'}",
                      f"epoch {training.epoch + 1}, step {training.step} of {training.steps}; saved as {shown(path)}",
                      "the same command with -r goes on")


def _validate(training: Fit, loader: Any, stop: StopFlag, book: Logbook, keeper: Keeper) -> dict[str, dict[str, float]]:
    """The figures of each of the candidates; of none without a validation set."""
    if loader is None:
        return {}
    task, found = training.task, dict[str, dict[str, float]]()
    try:
        for name, model in training.candidates.items():
            means, records = evaluate(
                task, loader, training.runtime, model=model, dtype=training.plan.dtype, bar=training.plan.bar,
                stop=stop, tick=lambda: book.tell(now=False), decode=task.generates, quick=True)
            found[name] = task.validation(means, records)
            book.samples(training.epoch + 1, training.step, name, task.examples(records))
        return found
    except Interrupted:  # the trained epoch is kept, its validation starts over
        _leave(training, stop, book, keeper)
        raise


def _look_in_between(training: Fit, loader: Any, stop: StopFlag, book: Logbook, keeper: Keeper) -> None:
    """Validate inside an epoch, for best.pth alone: rates and early stopping go by whole epochs."""
    found = _validate(training, loader, stop, book, keeper)
    if not found:
        return
    _check_finite(training, found)
    weights = _better(training, found)
    train = {name: total / count for name, (total, count) in training.totals.items() if count}
    _keep_best(training, keeper, {"train": train, "val": found[weights]}, weights, done=False)
    book.tell(best=training.best)
    if training.runtime.main:
        tqdm.write(f"  step {training.step:>5}/{training.steps}  val " +
                   " ".join(f"{k} {v:.4f}" for k, v in found[weights].items()))


def _end_epoch(training: Fit, train: dict[str, float], found: dict[str, dict[str, float]], seconds: float,
               book: Logbook, keeper: Keeper) -> None:
    """Log, schedule, early stopping, checkpoints. The better of the candidates gives the epoch's validation figures."""
    plan = training.plan
    _check_finite(training, found)
    weights = _better(training, found)
    val, row = found.get(weights), _row(training, train, found, weights, seconds)
    metrics = training.metrics = {"train": train, "val": found.get("raw")}  # of the weights that go on
    training.epoch, training.step, training.clips, training.totals = training.epoch + 1, 0, 0, {}
    scored = val or train
    if training.schedule.plateau:
        watched = "loss" if training.schedule.plateau.mode == "min" else "acc"
        training.schedule.observe(training.epoch - 1, scored[watched])
    if training.stopper:
        part, name = training.stopper.metric
        training.stopper.observe((train if part == "train" or val is None else val)[name])
    done = training.epoch == plan.epochs or bool(training.stopper and training.stopper.over)
    _keep_best(training, keeper, {"train": train, "val": val}, weights, done)
    _keep_top(training, keeper, {"train": train, "val": val}, weights)
    book.epoch(row)
    resume = training.resume_state(book)
    if done or training.epoch % plan.save_every == 0:
        path = keeper.save(f"checkpoint_{training.epoch:03d}.pth", training.task.model.state_dict(), training.epoch,
                           metrics, resume)
        keeper.drop("resume.pth")
    else:  # so that a kill loses one epoch at most
        path = keeper.save("resume.pth", training.task.model.state_dict(), training.epoch, metrics, resume)
    _drop_fallen(training, keeper)
    left = 0 if done else (plan.epochs - training.epoch) * seconds
    book.tell(epoch=training.epoch, step=0, eta_s=round(left), best=training.best, peak_memory=row["peak_memory"],
              checkpoint=shown(keeper.folder / "best.pth" if training.best or done else path))
    if training.runtime.main:
        tqdm.write(_line(row, plan.epochs, training.best))


def _better(training: Fit, found: dict[str, dict[str, float]]) -> str:
    """Whose figures are the epoch's: those of the candidate that stands better, of equals the average's."""
    return min(found or training.candidates, key=lambda name: training.standing(found[name]) if found else ())


def _row(training: Fit, train: dict[str, float], found: dict[str, dict[str, float]], weights: str,
         seconds: float) -> dict[str, Any]:
    """The epoch in the log; where there are two candidates, the figures of both."""
    rates = {group["name"]: group["lr"] for group in training.optimizer.param_groups}
    row = {"epoch": training.epoch + 1, "train": train, "val": found.get(weights), "lr": rates,
           "seconds": round(seconds, 2), "clips_per_s": round(training.items / seconds, 2),
           "peak_memory": training.runtime.peak_memory(), "commit": _commit()}
    both = {"weights": weights, **{f"val_{name}": figures for name, figures in found.items()}}
    return row | both if len(found) > 1 else row


def _check_finite(training: Fit, found: dict[str, dict[str, float]]) -> None:
    """Weights that a last step has spoilt show in the validation, or else in themselves: they are not saved."""
    advice = "lower the learning rates, set training.clip_norm = 1, or precision = 'fp32'"
    for val in found.values():
        if not all(math.isfinite(value) for value in val.values()):
            raise NonFinite("the validation loss is not finite", f"after epoch {training.epoch + 1}: {val}", advice)
    if not found and not all(bool(weight.isfinite().all()) for weight in training.task.model.parameters()):
        raise NonFinite("the weights are not finite", f"after epoch {training.epoch + 1}", advice)


def _keep_best(training: Fit, keeper: Keeper, metrics: dict[str, Any], weights: str, done: bool) -> None:
    """best.pth whenever the validation's metric has improved; without a validation set the last epoch is best."""
    best, val, name = training.best, metrics["val"], training.plan.best[0]
    if val and (best is None or training.standing(val) < training.standing(best["val"])):
        training.best = {"metric": name, "value": val[name], "epoch": training.epoch, "weights": weights, "val": val}
        training.best |= {"step": training.step} if training.step else {}  # inside the epoch after that one
    elif best is not None or not done:
        return
    keeper.save("best.pth", training.candidates[weights].state_dict(), training.epoch, metrics, weights=weights)


def _keep_top(training: Fit, keeper: Keeper, metrics: dict[str, Any], weights: str) -> None:
    """A file of the epoch that has just ended, where it is among the best ones; of equals the earlier is better.

    The file that falls out for it stays in the list until a checkpoint has told so: a kill leaves one too many at most.
    """
    most, val, name = training.plan.keep_top, metrics["val"], training.plan.best[0]
    if not most or not val:
        return
    row: dict[str, Any] = {"file": checkpoint.top_name(training.epoch, name, val[name]),
                           "standing": list(training.standing(val))}
    ranked = sorted([*training.top, row], key=lambda one: one["standing"])
    if row in ranked[:most]:
        keeper.save(row["file"], training.candidates[weights].state_dict(), training.epoch, metrics, weights=weights)
        training.top = ranked


def _drop_fallen(training: Fit, keeper: Keeper) -> None:
    """Remove the files that are not among the best epochs' any more."""
    if not training.plan.keep_top:
        return
    fallen, training.top = training.top[training.plan.keep_top:], training.top[:training.plan.keep_top]
    for row in fallen:
        keeper.drop(row["file"])


def _tidy_top(training: Fit, keeper: Keeper) -> None:
    """Make list and files agree after a kill: files of epochs that are still to come go, they are written anew."""
    if not training.plan.keep_top:
        return
    there = checkpoint.tops(keeper.folder)
    training.top = [row for row in training.top if row["file"] in there]
    for name in (name for name, epoch in there.items() if epoch > training.epoch):
        keeper.drop(name)
    _drop_fallen(training, keeper)


_COMMIT: list[str] = []


def _commit() -> str:
    if not _COMMIT:
        _COMMIT.append(git_commit())
    return _COMMIT[0]


def _line(row: dict[str, Any], epochs: int, best: dict[str, Any] | None) -> str:
    """The epoch as one line for a person."""
    parts = [f"epoch {row['epoch']:>3}/{epochs}"]
    for part in ("train", "val"):
        if row[part]:
            title = f"{part} ({row['weights']})" if part == "val" and "weights" in row else part
            parts.append(title + " " + " ".join(f"{k} {v:.4f}" for k, v in row[part].items()))
    marker = "  * best" if best and best["epoch"] == row["epoch"] else ""
    return "  ".join(parts) + f"  {row['seconds']:.1f} s  {row['clips_per_s']:.1f} clips/s{marker}"


@contextmanager
def memory_explained(advice: str) -> Iterator[None]:
    """Turn the allocator's errors, and no others, into OutOfMemory, which says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        signs = ("allocate memory", "out of memory", "ALLOC_FAILED")
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not any(s in str(error) for s in signs):
            raise
        found = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise OutOfMemory("out of memory", found, advice) from None


def smaller_portions(update_per_step: int) -> str:
    """The advice to who trains with too little memory."""
    return (f"halve training.batch_size and set training.update_per_step = {2 * update_per_step}: the same step in "
            "smaller portions; or take fewer or smaller frames")


@torch.no_grad()
def evaluate(task: Task, loader: Any, runtime: Runtime, *, model: nn.Module | None = None,
             dtype: torch.dtype = torch.float32, bar: bool = False, stop: StopFlag | None = None,
             tick: Callable[[], None] | None = None, decode: bool = False,
             **search: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The means of the task's losses over a set, and where `decode` is true its records, process after process.

    `tick` is called before each batch. Raises Interrupted when `stop` is set before the end.
    """
    model = model or task.model
    was_training = model.training
    model.eval()
    loader.batch_sampler.start(0)
    totals: dict[str, torch.Tensor] = {}
    records: list[dict[str, Any]] = []
    for batch in tqdm(loader, desc="evaluate", unit="batch", leave=False, disable=not (bar and runtime.main)):
        if stop is not None and runtime.world == 1 and stop.name:
            raise Interrupted(f"interrupted by {stop.name}")
        if tick is not None:
            tick()
        if batch["ghost"]:
            continue
        batch = task.prepare(batch, train=False)
        with runtime.autocast(dtype):
            output = task.forward(model, batch)
        for name, (total, count) in task.losses(output, batch).items():
            pair = torch.stack([total.double(), torch.tensor(count, dtype=torch.float64, device=total.device)])
            totals[name] = totals.get(name, torch.zeros_like(pair)) + pair
        if decode:
            records += task.decode(output, batch, **search)
    model.train(was_training)
    return _means(totals, runtime), [row for part in runtime.gather(records) for row in part] if decode else []


def _means(totals: dict[str, torch.Tensor], runtime: Runtime) -> dict[str, float]:
    """Over all processes; one that saw no batch still takes part."""
    names = list(dict.fromkeys(name for part in runtime.gather(list(totals)) for name in part))
    means = {}
    for name in names:
        zero = torch.zeros(2, dtype=torch.float64, device=runtime.device)
        total, count = runtime.sum(totals.get(name, zero)).tolist()
        means[name] = total / count if count else math.nan
    return means
