"""The closed forms against PyTorch's schedulers of the same names."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedules

from slr.schedules import EarlyStopping, FreezePlan, Plateau, Schedule

BASE = [1e-3, 0.02]
EPOCHS = 40


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in BASE], lr=1)


def torch_rates(build, epochs: int = EPOCHS) -> list[list[float]]:
    sgd = optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR's own use of step(epoch)
        plan = build(sgd)
        rows = []
        for _ in range(epochs):
            rows.append([group["lr"] for group in sgd.param_groups])
            sgd.step()
            plan.step()
    return rows


def ours(plan: Schedule, epochs: int = EPOCHS) -> list[list[float]]:
    return [plan.rates(epoch) for epoch in range(epochs)]


def close(one: list[list[float]], other: list[list[float]]) -> bool:
    return torch.allclose(torch.tensor(one), torch.tensor(other), rtol=1e-6, atol=1e-12)


def test_constant():
    assert ours(Schedule(BASE)) == [BASE] * EPOCHS


def test_cosine():
    """Past tmax it rises again, as PyTorch's closed form does."""
    theirs = torch_rates(lambda o: torch_schedules.CosineAnnealingLR(o, 30, eta_min=1e-4))
    assert close(ours(Schedule(BASE, "CosineAnnealingLR", tmax=30, eta_min=1e-4)), theirs)


@pytest.mark.parametrize("tmult", [1, 2, 3])
def test_warm_restarts(tmult):
    theirs = torch_rates(lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, 5, tmult, eta_min=1e-5))
    assert close(ours(Schedule(BASE, "CosineAnnealingWarmRestarts", t0=5, tmult=tmult, eta_min=1e-5)), theirs)


@pytest.mark.parametrize("kind", ["CosineAnnealingLR", "CosineAnnealingWarmRestarts"])
def test_behind_a_warm_up(kind):
    def build(o):
        then = (torch_schedules.CosineAnnealingLR(o, 20) if kind == "CosineAnnealingLR"
                else torch_schedules.CosineAnnealingWarmRestarts(o, 6, 2))
        first = torch_schedules.LinearLR(o, start_factor=0.1, end_factor=0.8, total_iters=4)
        return torch_schedules.SequentialLR(o, [first, then], milestones=[4])

    plan = Schedule(BASE, kind, tmax=20, t0=6, tmult=2, start_factor=0.1, end_factor=0.8, warmup_epochs=4)
    assert close(ours(plan), torch_rates(build))


def test_warm_only():
    plan = Schedule(BASE, "WarmOnly", start_factor=0.01, end_factor=0.5, warmup_epochs=7)
    assert close(ours(plan), torch_rates(lambda o: torch_schedules.LinearLR(o, 0.01, 0.5, 7)))


@given(st.sampled_from(["min", "max"]), st.sampled_from(["rel", "abs"]), st.integers(0, 3), st.integers(0, 2),
       st.lists(st.floats(0.01, 10) | st.just(float("nan")), min_size=20, max_size=20))
def test_plateau(mode, threshold_mode, patience, cooldown, values):
    sgd = optimizer()
    torchs = torch_schedules.ReduceLROnPlateau(sgd, mode, 0.3, patience, 0.05, threshold_mode, cooldown, 1e-6, 1e-8)
    plan = Schedule(BASE, "ReduceLROnPlateau", min_lr=1e-6,
                    plateau=Plateau(mode, 0.3, patience, 0.05, threshold_mode, cooldown))
    for epoch, value in enumerate(values):
        torchs.step(value)
        plan.observe(epoch, value)
        plan.load_state_dict(plan.state_dict())
        assert plan.rates(epoch + 1) == pytest.approx([group["lr"] for group in sgd.param_groups], rel=1e-9)


def test_the_lowest_rate_decays_with_the_layers():
    """A group at a quarter of the rate is at a quarter of it all the way, and never rises."""
    for plan in (Schedule([1e-3, 2.5e-4], "CosineAnnealingLR", tmax=8, eta_min=4e-4, scales=[1.0, 0.25]),
                 Schedule([1e-3, 2.5e-4], "ReduceLROnPlateau", min_lr=4e-4, scales=[1.0, 0.25],
                          plateau=Plateau("min", 0.5, 0, 0.0, "abs", 0))):
        rates = []
        for epoch in range(9):
            rates.append(plan.rates(epoch))
            plan.observe(epoch, 1.0)
        assert all(low == pytest.approx(high / 4) for high, low in rates)
        assert rates[-1] == pytest.approx([4e-4, 1e-4]) and rates == sorted(rates, reverse=True)


def test_by_step_it_passes_through_the_epochs():
    for plan in (Schedule(BASE, "CosineAnnealingLR", tmax=9, start_factor=0.1, warmup_epochs=2, every="step"),
                 Schedule(BASE, "CosineAnnealingWarmRestarts", t0=3, tmult=2, every="step")):
        whole = Schedule(**{**vars(plan), "every": "epoch"})
        assert ours(plan) == ours(whole)
        fine = [plan.rates(epoch, step, 10)[0] for epoch in range(3) for step in range(10)]
        assert len(set(fine)) == 30
        assert all(whole.rates(epoch, step, 10) == whole.rates(epoch) for epoch in range(3) for step in range(10))


def test_warm_up_by_step_is_linear():
    plan = Schedule([1.0], "WarmOnly", start_factor=0.1, end_factor=1.0, warmup_epochs=2, every="step")
    fine = [plan.rates(epoch, step, 5)[0] for epoch in range(2) for step in range(5)]
    assert fine == pytest.approx([0.1 + 0.09 * i for i in range(10)]) and plan.rates(2) == [1.0]


def test_plateau_waits_for_the_warm_up():
    plan = Schedule([1.0], "ReduceLROnPlateau", warmup_epochs=3, start_factor=0.1,
                    plateau=Plateau("min", 0.1, 0, 0.0, "rel", 0))
    for epoch in range(3):
        plan.observe(epoch, 1.0)
    assert plan.rates(3) == [1.0]  # the first value it saw is epoch 2's
    plan.observe(3, 1.0)
    assert plan.rates(4) == pytest.approx([0.1])


def test_a_base_rate_that_was_changed_stays_changed():
    old = Schedule([1.0, 2.0], "ReduceLROnPlateau", plateau=Plateau("min", 0.1, 0, 0.0, "rel", 0))
    old.observe(0, 1.0)
    old.observe(1, 1.0)
    new = Schedule([1.0, 4.0], "ReduceLROnPlateau", plateau=Plateau("min", 0.1, 0, 0.0, "rel", 0))
    new.load_state_dict(old.state_dict())
    assert new.rates(2) == pytest.approx([0.1, 0.4])
    constant = Schedule([5.0])
    constant.load_state_dict(Schedule([1.0]).state_dict())
    assert constant.rates(0) == [5.0]


def test_early_stopping_waits_and_counts_from_the_best():
    stop = EarlyStopping(("val", "loss"), "min", patience=2, min_delta=0.1)
    told = []
    for value in (1.0, 0.95, 0.8, 0.75, 0.69, 0.68, 0.66):
        told.append(stop.observe(value))
        copy = EarlyStopping(("val", "loss"), "min", patience=2, min_delta=0.1)
        copy.load_state_dict(stop.state_dict())
        stop = copy
    assert told == [False, False, False, False, False, False, True] and stop.over and stop.best == 0.69


def test_early_stopping_upwards_and_through_nan():
    stop = EarlyStopping(("val", "acc"), "max", patience=2, min_delta=0.0)
    assert [stop.observe(v) for v in (math.nan, 0.1, 0.2, 0.2, 0.3, 0.1, 0.1)] == [False] * 6 + [True]


def test_states_of_another_metric_are_left_out():
    old, new = (EarlyStopping(("val", name), mode, 3, 0.0) for name, mode in (("loss", "min"), ("acc", "max")))
    old.observe(1.0)
    assert not new.load_state_dict(old.state_dict()) and new.best is None
    assert new.load_state_dict({"best": 0.5, "waited": 1}) and new.best == 0.5  # from before this was noted
    falling, rising = (Schedule([1.0], plateau=Plateau(mode, 0.1, 0, 0.0, "rel", 0)) for mode in ("min", "max"))
    falling.observe(0, 1.0)
    falling.observe(1, 1.0)
    assert not rising.load_state_dict(falling.state_dict())
    assert rising.plateau.best is None and rising.rates(2) == pytest.approx([0.1])


# --- plans by steps -----------------------------------------------------------------------------------------

def by_steps(plan: Schedule, epochs: int, steps: int) -> list[list[float]]:
    return [plan.rates(epoch, step, steps) for epoch in range(epochs) for step in range(steps)]


@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("steps", [1, 7])
def test_one_cycle(pct_start, steps):
    theirs = torch_rates(lambda o: torch_schedules.OneCycleLR(o, BASE, total_steps=20 * steps, pct_start=pct_start,
                                                              div_factor=10, final_div_factor=100), 20 * steps - 1)
    mine = Schedule(BASE, "OneCycleLR", tmax=20, pct_start=pct_start, div_factor=10, final_div_factor=100)
    assert close(by_steps(mine, 20, steps)[:-1], theirs)
    assert mine.rates(25, 3, steps) == pytest.approx([rate / 1000 for rate in BASE])  # behind its end: as at its end


def test_one_cycle_that_rises_for_a_single_step():
    rows = by_steps(Schedule(BASE, "OneCycleLR", tmax=10, pct_start=0.1), 10, 1)
    assert rows[0] == pytest.approx(BASE) and rows[-1] == pytest.approx([rate / 25e4 for rate in BASE])


def test_a_factor_for_every_step():
    theirs = torch_rates(lambda o: torch_schedules.MultiplicativeLR(o, lambda _: 0.97), 60)
    assert close(by_steps(Schedule(BASE, "MultiplicativeLR", multiply_lr_step=0.97), 6, 10), theirs)


@given(st.integers(1, 30), st.integers(1, 9), st.sampled_from(["MultiplicativeLR", "CosineAnnealingLR", "constant"]))
def test_warm_up_by_steps(warm, steps, kind):
    """Step k of n has k / n of the rate, and then the plan begins; whatever the steps of an epoch."""
    plan = Schedule(BASE, kind, tmax=10, multiply_lr_step=0.9, warmup_steps=warm, every="step")
    rows = by_steps(plan, 40, steps)[:40]
    for k, row in enumerate(rows[:warm]):
        assert row == pytest.approx([rate * (k + 1) / warm for rate in BASE])
    alone = by_steps(Schedule(BASE, kind, tmax=10, multiply_lr_step=0.9, every="step"), 40, steps)
    for row, other in zip(rows[warm:], alone, strict=False):
        assert row == pytest.approx(other)


def test_a_factor_for_every_step_behind_epochs_of_warm_up():
    plan = Schedule(BASE, "MultiplicativeLR", multiply_lr_step=0.9, warmup_epochs=2, start_factor=0.5)
    assert plan.rates(1, 3, 4) == pytest.approx([0.75 * rate for rate in BASE])
    assert plan.rates(2, 0, 4) == pytest.approx(BASE)
    assert plan.rates(3, 1, 4) == pytest.approx([rate * 0.9 ** 5 for rate in BASE])


@settings(max_examples=40)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 5), st.sampled_from([0.5, 0.97, 1.0]), st.integers(1, 9),
       st.sampled_from([0.0, 5e-4]))
def test_warm_up_hold_and_ticks(warm, hold, tick, decay, steps, lowest):
    """Against a loop of LambdaLR; whatever the steps of an epoch, and in a schedule that a checkpoint has brought."""
    def factor(done: int) -> float:
        if done < warm:
            return (done + 1) / warm
        fallen = 1.0
        for _ in range(max(done - warm - hold, 0) // tick):
            fallen *= decay
        return fallen

    theirs = torch_rates(lambda o: torch_schedules.LambdaLR(o, factor))
    theirs = [[max(rate, lowest) if done >= warm else rate for rate in row] for done, row in enumerate(theirs)]
    keys = {"warmup_steps": warm, "hold_steps": hold, "tick_steps": tick, "decay": decay, "min_lr": lowest}
    resumed = Schedule(BASE, "WarmupHoldDecay", **keys)
    resumed.load_state_dict(Schedule(BASE, "WarmupHoldDecay", **keys).state_dict())
    for plan in (Schedule(BASE, "WarmupHoldDecay", **keys), resumed):
        assert close(by_steps(plan, EPOCHS, steps)[:EPOCHS], theirs)


def test_ticks_alone_are_steps_of_pytorch():
    theirs = torch_rates(lambda o: torch_schedules.StepLR(o, 7, 0.6))
    assert close(by_steps(Schedule(BASE, "WarmupHoldDecay", tick_steps=7, decay=0.6), 10, 4), theirs)


def test_the_lowest_rate_of_ticks_decays_with_the_layers_and_raises_none():
    plan = Schedule([1e-3, 2.5e-4, 0.0, 1e-6], "WarmupHoldDecay", tick_steps=1, decay=0.1, min_lr=4e-4,
                    scales=[1.0, 0.25, 1.0, 1.0])
    assert plan.rates(0) == [1e-3, 2.5e-4, 0.0, 1e-6]
    assert plan.rates(5) == pytest.approx([4e-4, 1e-4, 0.0, 1e-6]) == plan.rates(10 ** 6)


# --- freezing -----------------------------------------------------------------------------------------------

def test_the_documented_freezing():
    """Ten epochs the extractor, five the transformer, and then everything trains."""
    plan = FreezePlan({"feature_extractor": (True, False), "transformer": (False, True)}, (10, 5))
    frozen = [plan.frozen(epoch, 0, 100) for epoch in range(20)]
    assert frozen == [("feature_extractor",)] * 10 + [("transformer",)] * 5 + [()] * 5


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 6)), min_size=1, max_size=4),
       st.integers(1, 5), st.sampled_from(["epoch", "step"]))
def test_freezing_is_a_list_of_moments(rows, steps, mode):
    """Against writing out each pattern as often as it lasts."""
    plan = FreezePlan({"a": tuple(a for a, _, _ in rows), "b": tuple(b for _, b, _ in rows)},
                      tuple(n for _, _, n in rows), mode)
    written = [tuple(name for name, flag in (("a", a), ("b", b)) if flag) for a, b, n in rows for _ in range(n)]
    for moment in range(len(written) + 6):
        epoch, step = (moment, steps - 1) if mode == "epoch" else divmod(moment, steps)
        assert plan.frozen(epoch, step, steps) == (written[moment] if moment < len(written) else ())
