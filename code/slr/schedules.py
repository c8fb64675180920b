"""Learning-rate plans and early stopping: small closed forms with a state that fits into a checkpoint.

A plan answers "which rates at this moment of training", so a run resumed anywhere has the rate it would have had.
The forms are PyTorch's schedulers of the same names behind a linear warm-up (LinearLR in SequentialLR), see
Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, for the cosine ones and Smith and Topin 2018,
https://arxiv.org/abs/1708.07120, for OneCycleLR. WarmupHoldDecay has the three states of wav2vec 2.0's fine-tuning
(Baevski et al. 2020, https://arxiv.org/abs/2006.11477, section 4.3: up, constant, down), with two differences: they
last so many steps, not shares of the run, and the last one is exponential in ticks, not linear.
"""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Plateau:
    """The factor that ReduceLROnPlateau has arrived at; `observe` one metric value an epoch."""

    mode: str
    factor: float
    patience: int
    threshold: float
    threshold_mode: str
    cooldown: int
    best: float | None = None
    bad: int = 0
    cooling: int = 0

    def better(self, value: float) -> bool:
        if self.best is None:
            return not math.isnan(value)
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "rel":
            return sign * value > sign * self.best * (1 + sign * self.threshold)
        return sign * value > sign * self.best + self.threshold

    def observe(self, value: float) -> bool:
        """Whether the rates are to be multiplied by `factor` now."""
        if self.better(value):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad = 0
        if self.bad <= self.patience:
            return False
        self.bad, self.cooling = 0, self.cooldown
        return True


@dataclass
class Schedule:
    """The rates of all parameter groups. `type` is one of PyTorch's names, "WarmOnly", "WarmupHoldDecay" or "constant".

    scales: of each group's lowest rate, eta_min or min_lr, as its own rate is scaled (layer decay); absent: 1.
    """

    base: list[float]
    type: str = "constant"
    tmax: int = 1
    t0: int = 1
    tmult: int = 1
    eta_min: float = 0.0
    min_lr: float = 0.0
    eps: float = 1e-8
    start_factor: float = 1.0
    end_factor: float = 1.0
    warmup_epochs: int = 0
    warmup_steps: int = 0
    multiply_lr_step: float = 1.0
    hold_steps: int = 0
    tick_steps: int = 1
    decay: float = 1.0
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    every: str = "epoch"
    plateau: Plateau | None = None
    reduced: list[float] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reduced = self.reduced or list(self.base)
        self.scales = self.scales or [1.0] * len(self.base)

    def rates(self, epoch: int, step: int = 0, steps: int = 1) -> list[float]:
        """The rate of each group in epoch (from 0) at optimiser step `step` of `steps`."""
        done = epoch * steps + step  # steps before this one
        if self.type == "OneCycleLR":
            return self._one_cycle(done, self.tmax * steps)
        if done < self.warmup_steps:
            return [rate * (done + 1) / self.warmup_steps for rate in self.base]
        if self.type == "WarmupHoldDecay":
            return self._ticks(done - self.warmup_steps - self.hold_steps)
        if self.type == "MultiplicativeLR" and not self.warmup_epochs:
            return [rate * self.multiply_lr_step ** (done - self.warmup_steps) for rate in self.base]
        moment = epoch + (step / steps if self.every == "step" else 0.0)
        if self.warmup_steps:  # the plan begins behind them
            return self._after_warmup(max(0.0, moment - self.warmup_steps / steps))
        if moment < self.warmup_epochs:
            share = moment / self.warmup_epochs
            factor = self.start_factor + (self.end_factor - self.start_factor) * share
            return [rate * factor for rate in self.base]
        if self.type == "MultiplicativeLR":
            return [rate * self.multiply_lr_step ** (done - self.warmup_epochs * steps) for rate in self.base]
        return self._after_warmup(moment - self.warmup_epochs)

    def _one_cycle(self, done: int, total: int) -> list[float]:
        """Up to the rate by half a cosine in pct_start of `total` steps, and down to nearly nothing by another."""
        peak = self.pct_start * total - 1
        rises = done < peak
        share = done / peak if rises else (done - peak) / max(total - 1 - peak, 1e-9)
        turn = (1 - math.cos(math.pi * min(share, 1.0))) / 2
        low = 1 / self.div_factor
        start, end = (low, 1.0) if rises else (1.0, low / self.final_div_factor)
        return [rate * (start + (end - start) * turn) for rate in self.base]

    def _ticks(self, behind: int) -> list[float]:
        """At step `behind` (from 0) after the hold: the rate times decay ^ floor(behind / tick_steps), so the first
        tick_steps steps still have the whole rate, as in StepLR; not below min_lr, or a rate that is lower already."""
        factor = self.decay ** (max(behind, 0) // self.tick_steps)
        return [max(rate * factor, min(rate, self.min_lr * scale))
                for rate, scale in zip(self.base, self.scales, strict=True)]

    def _after_warmup(self, moment: float) -> list[float]:
        if self.type == "CosineAnnealingLR":
            return self._cosine(moment, self.tmax)
        if self.type == "CosineAnnealingWarmRestarts":
            return self._cosine(*self._cycle(moment))
        if self.type == "WarmOnly":
            return [rate * self.end_factor for rate in self.base]
        return list(self.reduced)

    def _cosine(self, moment: float, length: float) -> list[float]:
        share = (1 + math.cos(math.pi * moment / length)) / 2
        lowest = [self.eta_min * scale for scale in self.scales]
        return [low + (rate - low) * share for rate, low in zip(self.base, lowest, strict=True)]

    def _cycle(self, moment: float) -> tuple[float, float]:
        """(Time since the last restart, this cycle's length): lengths t0, t0 tmult, t0 tmult^2 …"""
        length = float(self.t0)
        while moment >= length:
            moment -= length
            length *= self.tmult
        return moment, length

    def observe(self, epoch: int, value: float) -> None:
        """Tell a plateau plan the metric of an epoch that has just ended."""
        if self.plateau is None or epoch + 1 < self.warmup_epochs or not self.plateau.observe(value):
            return
        lowered = [max(rate * self.plateau.factor, self.min_lr * scale)
                   for rate, scale in zip(self.reduced, self.scales, strict=True)]
        self.reduced = [new if old - new > self.eps else old for old, new in zip(self.reduced, lowered, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        held = self.plateau
        return {"base": list(self.base), "reduced": list(self.reduced),
                "plateau": [held.best, held.bad, held.cooling] if held else None, "mode": held.mode if held else None}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Base rates that were changed since (-r with --set) stay changed; what was reduced stays so in proportion.

        False: a plateau of the other mode, which watches another metric; its best value and count are left out.
        """
        held = zip(self.base, state["base"], state["reduced"], strict=True)
        self.reduced = [low if base == old or not old else base * low / old for base, old, low in held]
        if not self.plateau or not state["plateau"]:
            return True
        if state.get("mode", self.plateau.mode) != self.plateau.mode:
            return False
        self.plateau.best, self.plateau.bad, self.plateau.cooling = state["plateau"]
        return True


@dataclass(frozen=True)
class FreezePlan:
    """Which named weights stay as they are when: pattern i lasts `repeats[i]` epochs or steps, True is frozen, and
    afterwards everything trains. A function of the moment, so that a checkpoint's epoch and step are all its state.

    patterns: {what a weight's name begins with, up to a dot: its flags}, all as long as `repeats`; mode: epoch or step.
    """

    patterns: dict[str, tuple[bool, ...]]
    repeats: tuple[int, ...]
    mode: str = "epoch"
    verbose: bool = True

    def frozen(self, epoch: int, step: int, steps: int) -> tuple[str, ...]:
        """What is frozen in epoch (from 0) at optimiser step `step` of `steps`."""
        left = epoch if self.mode == "epoch" else epoch * steps + step
        for i, lasts in enumerate(self.repeats):
            if left < lasts:
                return tuple(name for name, flags in self.patterns.items() if flags[i])
            left -= lasts
        return ()


@dataclass
class EarlyStopping:
    """Stop when `metric` (part, name) has not improved by more than min_delta for `patience` epochs."""

    metric: tuple[str, str]
    mode: str
    patience: int
    min_delta: float
    best: float | None = None
    waited: int = 0

    def observe(self, value: float) -> bool:
        """Whether to stop after an epoch with this value."""
        if self._better(value):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.over

    def _better(self, value: float) -> bool:
        if self.best is None:
            return not math.isnan(value)
        return (value - self.best) * (1 if self.mode == "max" else -1) > self.min_delta

    @property
    def over(self) -> bool:
        """Whether it has waited long enough."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "watches": [*self.metric, self.mode]}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """False: the state is about another metric or mode, and is left out."""
        watches = [*self.metric, self.mode]
        if state.get("watches", watches) != watches:
            return False
        self.best, self.waited = state["best"], state["waited"]
        return True
