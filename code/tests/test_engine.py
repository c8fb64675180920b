"""The loop on a task of milliseconds: steps, remainders, averages, what stops it, and what it keeps."""

import dataclasses
import math
import os
import signal
from pathlib import Path

import micro
import pytest
import torch
from micro import Micro
from torch import nn

from slr import checkpoint, engine, rehearsal
from slr.config import parse_config
from slr.engine import FitPlan, Keeper
from slr.errors import Interrupted, Mistake, NonFinite, NothingToTrainOn, OutOfMemory
from slr.logbook import Logbook, read_log
from slr.paths import Experiment
from slr.runtime import Runtime
from slr.schedules import Plateau

CPU = Runtime(torch.device("cpu"))


def task(sizes: dict[str, int] | None = None, fail: str = "", **changes: object) -> Micro:
    CPU.seed(0)
    config = parse_config(micro.INI, Experiment("S3D", "little", "1"), {k.replace("__", "."): str(v) for k, v in
                                                                        changes.items()})
    return Micro(config, CPU, sizes, fail)


def plan(**changes) -> FitPlan:
    return FitPlan(**{"epochs": 3, "update_per_step": 2, **changes})


def fit(folder: Path, of: Micro, how: FitPlan, load: str = "") -> tuple[engine.Fit, list[dict]]:
    """Train into `folder`, from its checkpoint `load` on; the finished Fit and its log."""
    training = engine.start(of, how, CPU)
    if load:
        training.load(checkpoint.load(folder / load), load)
    book = Logbook(folder, how.epochs)
    book.keep_until(training.epoch)
    engine.fit(training, book, Keeper(folder, {"model": "Micro", "meta": of.meta()}))
    return training, read_log(folder / "log.jsonl")


def weights(of: Micro) -> torch.Tensor:
    return nn.utils.parameters_to_vector(of.model.parameters()).detach().clone()


def figures(rows: list[dict]) -> list[tuple]:
    return [(row["epoch"], row["train"], row["val"], row["lr"]) for row in rows]


# --- steps --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("whole", "batch", "portions"), [(4, 2, 2), (6, 2, 3), (4, 1, 4), (8, 2, 4)])
def test_accumulated_batches_are_one_large_batch(tmp_path, whole, batch, portions):
    """Eleven items leave a remainder each time, in the last group and in the last batch."""
    large, small = task(training__batch_size=whole), task(training__batch_size=batch)
    one = fit(tmp_path / "a", large, plan(update_per_step=1))[1]
    other = fit(tmp_path / "b", small, plan(update_per_step=portions))[1]
    assert torch.allclose(weights(large), weights(small), atol=1e-6)
    for a, b in zip(one, other, strict=True):
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], abs=1e-6)


def test_every_item_weighs_the_same_in_an_uneven_step():
    """Three batches of 4, 4 and 3 items: the gradient is the mean over the eleven."""
    of = task()
    training = engine.start(of, plan(update_per_step=3, clip_norm=0.0), CPU)
    loader = of.loader("train", train=True)
    loader.batch_sampler.start(0)
    batches = list(loader)
    whole = {k: torch.cat([b[k] for b in batches]) for k in ("points", "labels", "draws")}
    nn.functional.cross_entropy(of.model(whole["points"]), whole["labels"]).backward()
    expected = [p.grad.clone() for p in of.model.parameters()]
    of.model.zero_grad()
    found = []
    training.optimizer.step = lambda: found.extend(p.grad.clone() for p in of.model.parameters())
    sums = engine.optimise(training, batches, loader.batch_sampler.sizes())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))
    assert sums[:, 1].tolist() == [11, 11]


def test_groups_of():
    assert list(engine.groups_of(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
    assert list(engine.groups_of(iter([]), 2)) == []


def test_the_log_tells_the_truth(tmp_path):
    of = task()
    training, rows = fit(tmp_path, of, plan(ema=0.5))
    loader, chosen = of.loader("val", train=False), training.candidates[rows[-1]["weights"]]
    means, records = engine.evaluate(of, loader, CPU, model=chosen, decode=True)
    assert means == rows[-1]["val"] and [row["id"] for row in records] == [f"val{i}" for i in range(7)]
    labels = torch.arange(7) % 3
    logits = chosen.eval()(torch.cat([b["points"] for b in loader]))
    assert means["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)
    assert means["acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert rows[0]["lr"] == {"backbone": 0.01, "classifier": 0.01} and rows[0]["peak_memory"] > 0
    assert set(rows[0]) == {"epoch", "train", "val", "lr", "seconds", "clips_per_s", "peak_memory", "commit",
                            "weights", "val_raw", "val_ema"}


def test_evaluation_changes_nothing(tmp_path):
    of = task(model_params__drop_p=0.5)
    of.model.train()
    before, rng = weights(of), torch.get_rng_state()
    engine.evaluate(of, of.loader("val", train=False), CPU)
    assert of.model.training and torch.equal(before, weights(of)) and torch.equal(rng, torch.get_rng_state())


def test_validation_keeps_the_status_fresh():
    of, ticks = task(), []
    engine.evaluate(of, of.loader("val", train=False), CPU, tick=lambda: ticks.append(1))
    assert len(ticks) == 2


def test_rates_follow_the_plan(tmp_path):
    rows = fit(tmp_path, task(), plan(epochs=4, schedule={"type": "CosineAnnealingLR", "tmax": 2, "start_factor": 0.1,
                                                          "warmup_epochs": 2}))[1]
    assert [row["lr"]["backbone"] for row in rows] == pytest.approx([0.001, 0.0055, 0.01, 0.005])


def test_clipping_limits_the_step():
    of = task()
    training = engine.start(of, plan(clip_norm=1e-3), CPU)
    loader = of.loader("train", train=True)
    norms = []
    training.optimizer.step = lambda: norms.append(torch.cat([p.grad.flatten() for p in of.model.parameters()]).norm())
    engine.optimise(training, [next(iter(loader))], [4])
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)


def test_clipping_by_value_limits_every_entry():
    """Of the gradient in its own size, also where small formats scale it."""
    of, found = task(), []
    for limit in (0.0, 0.01):
        training = engine.start(of, plan(clip_value=limit, update_per_step=1), CPU)
        training.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        loader = of.loader("train", train=True)
        training.optimizer.step = lambda: found.append(
            torch.cat([p.grad.flatten() for p in of.model.parameters()]).clone())
        engine.optimise(training, [next(iter(loader))], [4])
    whole, clipped = found
    assert whole.abs().max() > 0.01 > whole.abs().min()
    assert torch.allclose(clipped, whole.clamp(-0.01, 0.01), atol=1e-7)


def test_the_average_follows_the_weights():
    of = task()
    training = engine.start(of, plan(ema=0.9), CPU)
    loader, mean, count = of.loader("train", train=True), None, 0
    loader.batch_sampler.start(0)
    for batch in loader:
        engine.optimise(training, [batch], [len(batch["ids"])])
        if mean is None:
            mean = weights(of)
        else:
            decay = min(0.9, (1 + count) / (10 + count))
            mean = decay * mean + (1 - decay) * weights(of)
        count += 1
    averaged = nn.utils.parameters_to_vector(training.candidates["ema"].parameters())
    assert torch.allclose(averaged, mean, atol=1e-6) and not torch.allclose(averaged, weights(of), atol=1e-4)


# --- what is kept -------------------------------------------------------------------------------------------

def test_files_of_a_run(tmp_path):
    of = task()
    training, rows = fit(tmp_path, of, plan(epochs=5, save_every=2, ema=0.5))
    names = sorted(p.name for p in tmp_path.glob("*.pth"))
    assert names == ["best.pth", "checkpoint_002.pth", "checkpoint_004.pth", "checkpoint_005.pth"]
    best, last = checkpoint.load(tmp_path / "best.pth"), checkpoint.load(tmp_path / "checkpoint_005.pth")
    losses = [row["val"]["loss"] for row in rows]
    assert best["epoch"] == 1 + losses.index(min(losses)) and best["metrics"]["val"] == rows[best["epoch"] - 1]["val"]
    assert "resume" not in best and last["resume"]["epoch"] == 5 and best["model"] == "Micro"
    assert all(torch.equal(v, of.model.state_dict()[k]) for k, v in last["model_state_dict"].items())


@pytest.mark.parametrize(("spoilt", "weights"), [("raw", "ema"), ("ema", "raw"), ("", "ema")])
def test_best_is_the_better_of_the_weights_and_their_average(tmp_path, monkeypatch, spoilt, weights):
    """Of equals the average. A numbered checkpoint holds the raw weights and their own figures, whichever is better."""
    of, real = task(), engine.evaluate

    def scored(task, loader, runtime, *, model, **options):
        means, records = real(task, loader, runtime, model=model, **options)
        name = "raw" if model is of.model else "ema"
        return ({**means, "loss": 9.0 if name == spoilt else 1.0} if spoilt else {**means, "loss": 1.0}), records

    monkeypatch.setattr(engine, "evaluate", scored)
    training, (row,) = fit(tmp_path, of, plan(epochs=1, ema=0.9))
    models = training.candidates
    best, last = checkpoint.load(tmp_path / "best.pth"), checkpoint.load(tmp_path / "checkpoint_001.pth")
    assert (best["weights"], last["weights"], row["weights"], training.best["weights"]) == (weights, "raw", weights,
                                                                                            weights)
    assert all(torch.equal(v, models[weights].state_dict()[k]) for k, v in best["model_state_dict"].items())
    assert not torch.equal(models["ema"].backbone[0].weight, of.model.backbone[0].weight)
    assert best["model_state_dict"].keys() == of.model.state_dict().keys()
    assert row["val"] == row[f"val_{weights}"] == best["metrics"]["val"] == training.best["val"]
    assert last["metrics"]["val"] == row["val_raw"] and (row["val_raw"] != row["val_ema"]) == bool(spoilt)


def test_a_best_from_before_the_choice_goes_on(tmp_path):
    """Old checkpoints: the average was scored alone, and nothing says so."""
    fit(tmp_path, task(), plan(epochs=1, ema=0.9))
    content = checkpoint.load(tmp_path / "checkpoint_001.pth")
    del content["weights"], content["resume"]["best"]["weights"]
    content["resume"]["best"] |= {"value": 0.0, "val": {"loss": 0.0, "acc": 1.0}}
    checkpoint.save(tmp_path / "checkpoint_001.pth", content)
    training, rows = fit(tmp_path, task(), plan(epochs=2, ema=0.9), "checkpoint_001.pth")
    assert len(rows) == 2 and training.best == content["resume"]["best"]


@pytest.mark.parametrize(("losses", "best"), [((3, 2, 2), 2), ((2, 3, 2), 1), ((3, 2, 1), 3)])
def test_of_equal_epochs_the_lower_loss_is_best_then_the_earlier(tmp_path, monkeypatch, losses, best):
    """As where a new model of sentences says nothing: its WER is 100, epoch for epoch."""
    found = iter(losses)
    monkeypatch.setattr(engine, "evaluate", lambda *_, **__: ({"loss": float(next(found)), "acc": 0.5}, []))
    training, _ = fit(tmp_path, task(), plan(best=("acc", "max")))
    assert training.best["epoch"] == checkpoint.load(tmp_path / "best.pth")["epoch"] == best


def test_best_by_accuracy(tmp_path):
    rows = fit(tmp_path, task(), plan(epochs=6, best=("acc", "max")))[1]
    order = sorted(rows, key=lambda row: (-row["val"]["acc"], row["val"]["loss"]))
    assert checkpoint.load(tmp_path / "best.pth")["epoch"] == order[0]["epoch"]


def test_without_validation_the_last_is_best(tmp_path):
    of = task({"train": 11, "val": 0})
    training, rows = fit(tmp_path, of, plan(save_every=9, ema=0.5))
    assert [row["val"] for row in rows] == [None] * 3 and training.best is None
    best = checkpoint.load(tmp_path / "best.pth")
    assert best["epoch"] == 3 and sorted(p.name for p in tmp_path.glob("*.pth")) == ["best.pth", "checkpoint_003.pth"]
    assert all(torch.equal(v, training.ema.module.state_dict()[k]) for k, v in best["model_state_dict"].items())


def test_early_stopping_ends_the_run_for_good(tmp_path):
    stopping = {"metric": ("val", "loss"), "mode": "min", "patience": 2, "min_delta": 100.0}
    rows = fit(tmp_path, task(), plan(epochs=9, stopping=stopping, save_every=50))[1]
    assert len(rows) == 3 and (tmp_path / "checkpoint_003.pth").exists()
    assert len(fit(tmp_path, task(), plan(epochs=9, stopping=stopping), "checkpoint_003.pth")[1]) == 3
    longer = plan(epochs=9, stopping={**stopping, "patience": 4})  # -r --set early_stopping.patience=4
    assert len(fit(tmp_path, task(), longer, "checkpoint_003.pth")[1]) == 5


def test_early_stopping_without_validation_watches_training(tmp_path):
    stopping = {"metric": ("val", "loss"), "mode": "min", "patience": 1, "min_delta": 100.0}
    assert len(fit(tmp_path, task({"train": 11, "val": 0}), plan(epochs=9, stopping=stopping))[1]) == 2


# --- going on -----------------------------------------------------------------------------------------------

FULL = {"epochs": 4, "ema": 0.9, "clip_norm": 0.5, "save_every": 2, "schedule": {
            "type": "ReduceLROnPlateau", "plateau": Plateau("min", 0.5, 0, 0.2, "rel", 0), "warmup_epochs": 1,
            "start_factor": 0.1, "every": "step"}}
STATEFUL = {"model_params__drop_p": 0.3, "training__mixup": 0.4, "training__label_smoothing": 0.1}


def full_plan(**changes) -> FitPlan:
    fresh = dataclasses.replace(FULL["schedule"]["plateau"])
    return plan(**{**FULL, "schedule": {**FULL["schedule"], "plateau": fresh}, **changes})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[torch.Tensor, list, Path]:
    folder, of = tmp_path_factory.mktemp("whole"), task(**STATEFUL)
    rows = fit(folder, of, full_plan())[1]
    return weights(of), figures(rows), folder


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_signal_in_any_step_and_the_same_end(tmp_path, uninterrupted, monkeypatch, steps):
    """Two steps an epoch, a dropout, mixup, an average, a plateau: interrupted after each step once."""
    number, done = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[steps % 3], []
    before, real = signal.getsignal(number), engine.optimise

    def interrupted(*words):
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), number)
        return real(*words)

    monkeypatch.setattr(engine, "optimise", interrupted)
    with pytest.raises(Interrupted, match=number.name) as caught:
        fit(tmp_path, task(**STATEFUL), full_plan())
    assert caught.value.code == 75 and "resume.pth" in str(caught.value) and len(done) == steps
    assert signal.getsignal(number) is before
    CPU.seed(99)
    again = task(**STATEFUL)
    torch.rand(steps)
    rows = fit(tmp_path, again, full_plan(), "resume.pth")[1]
    assert torch.equal(weights(again), uninterrupted[0]) and figures(rows) == uninterrupted[1]
    assert not (tmp_path / "resume.pth").exists()
    for name in ("best.pth", "checkpoint_002.pth", "checkpoint_004.pth"):
        ours, theirs = (checkpoint.load(folder / name) for folder in (tmp_path, uninterrupted[2]))
        assert ours["epoch"] == theirs["epoch"] and ours["metrics"] == theirs["metrics"]
        assert all(torch.equal(v, theirs["model_state_dict"][k]) for k, v in ours["model_state_dict"].items())


def test_a_signal_in_the_validation(tmp_path, uninterrupted, monkeypatch):
    real = engine.evaluate

    def interrupted(*words, **options):
        os.kill(os.getpid(), signal.SIGUSR1)
        return real(*words, **options)

    monkeypatch.setattr(engine, "evaluate", interrupted)
    with pytest.raises(Interrupted, match="step 2 of 2"):
        fit(tmp_path, task(**STATEFUL), full_plan())
    monkeypatch.undo()
    again = task(**STATEFUL)
    assert figures(fit(tmp_path, again, full_plan(), "resume.pth")[1]) == uninterrupted[1]
    assert torch.equal(weights(again), uninterrupted[0])


def test_settings_changed_on_the_way_take_effect(tmp_path):
    """-r with --set: rates, decay and eps are today's, moments and steps those of the checkpoint."""
    fit(tmp_path, task(), plan(epochs=1))
    changed = task(optimizer__backbone_init_lr=0.5, optimizer__classifier_weight_decay=0.25)
    training = engine.start(changed, plan(epochs=2, eps=1e-3, betas=(0.5, 0.6)), CPU)
    training.load(checkpoint.load(tmp_path / "checkpoint_001.pth"), "it")
    assert [group["weight_decay"] for group in training.optimizer.param_groups] == [0.01, 0.25]
    assert training.optimizer.param_groups[0]["eps"] == 1e-3
    assert training.optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    assert training.schedule.rates(1) == [0.5, 0.01] and training.epoch == 1
    assert all("exp_avg" in state for state in training.optimizer.state.values())


def test_another_metric_begins_anew(tmp_path):
    """-r --set: an accuracy is never compared with the best loss."""
    stopping = {"metric": ("val", "loss"), "mode": "min", "patience": 9, "min_delta": 0.0}
    falling = {"type": "ReduceLROnPlateau", "plateau": Plateau("min", 0.5, 0, 0.2, "rel", 0)}
    fit(tmp_path, task(), plan(epochs=1, stopping=stopping, schedule=falling))
    rising = {"type": "ReduceLROnPlateau", "plateau": Plateau("max", 0.5, 0, 0.2, "rel", 0)}
    how = plan(epochs=2, best=("acc", "max"), schedule=rising,
               stopping={**stopping, "metric": ("val", "acc"), "mode": "max"})
    training = engine.start(task(), how, CPU)
    content = checkpoint.load(tmp_path / "checkpoint_001.pth")
    notes = training.load(content, "it")
    assert [sum(word in note for note in notes) for word in ("best.pth", "early stopping", "plateau")] == [1, 1, 1]
    assert training.best is training.stopper.best is training.schedule.plateau.best is None
    assert engine.start(task(), plan(stopping=stopping, schedule=falling), CPU).load(content, "it") == []
    fit(tmp_path, task(), how, "checkpoint_001.pth")
    best = checkpoint.load(tmp_path / "best.pth")
    assert best["epoch"] == 2


def interrupted_after_the_first_step(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    real = engine.optimise

    def interrupted(*words):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*words)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(engine, "optimise", interrupted)
        fit(folder, task(**changes), plan(epochs=1))


@pytest.mark.parametrize(("batch", "portions", "anew"), [(4, 2, False), (8, 1, False), (2, 4, False), (4, 1, False),
                                                         (3, 1, True), (5, 2, True)])
def test_other_portions_inside_an_epoch(tmp_path, monkeypatch, capsys, batch, portions, anew):
    """Eight of eleven clips are through: every clip is seen once, or the epoch begins anew, which is said."""
    interrupted_after_the_first_step(tmp_path, monkeypatch)
    assert checkpoint.load(tmp_path / "resume.pth")["resume"]["clips"] == 8
    seen, real = [], Micro.prepare
    monkeypatch.setattr(Micro, "prepare", lambda of, batch, train: seen.extend(batch["ids"] if train else []) or
                        real(of, batch, train))
    training, rows = fit(tmp_path, task(training__batch_size=batch), plan(epochs=1, update_per_step=portions),
                         "resume.pth")
    assert len(seen) == len(set(seen)) == (11 if anew else 3)
    assert ("it begins anew" in capsys.readouterr().err) == anew and len(rows) == 1


def test_a_checkpoint_from_before_its_place_was_noted(tmp_path, monkeypatch, capsys):
    interrupted_after_the_first_step(tmp_path, monkeypatch)
    content = checkpoint.load(tmp_path / "resume.pth")
    for name in ("clips", "order", "changed"):
        del content["resume"][name]
    checkpoint.save(tmp_path / "resume.pth", content)
    assert len(fit(tmp_path, task(), plan(epochs=1), "resume.pth")[1]) == 1
    assert "anew" not in capsys.readouterr().err


def test_another_seed_inside_an_epoch(tmp_path, monkeypatch, capsys):
    interrupted_after_the_first_step(tmp_path, monkeypatch)
    fit(tmp_path, task(experiment__seed=7), plan(epochs=1), "resume.pth")
    assert "it begins anew" in capsys.readouterr().err


def test_only_a_complete_checkpoint_can_be_resumed(tmp_path):
    fit(tmp_path, task(), plan(epochs=1))
    with pytest.raises(Mistake, match="holds weights only"):
        fit(tmp_path, task(), plan(), "best.pth")


# --- what stops it ------------------------------------------------------------------------------------------

def test_a_loss_that_is_not_finite_names_its_clips(tmp_path):
    with pytest.raises(NonFinite) as caught:
        fit(tmp_path, task(fail="nan"), plan())
    said = str(caught.value)
    assert caught.value.code == 77 and "epoch 1" in said and "train5" in said and "clip_norm" in said
    named = said.partition("clips ")[2].partition("\n")[0].split(", ")
    assert len(named) <= 8 and not list(tmp_path.glob("*.pth"))  # the batches of one step, and nothing was saved


def test_weights_spoilt_by_the_last_step_are_not_saved(tmp_path, monkeypatch):
    of = task()
    real, steps = engine.optimise, []

    def spoil(*words):
        sums = real(*words)
        steps.append(1)
        if len(steps) == 4:  # the last step of epoch 2: its loss was still finite
            nn.init.constant_(of.model.classifier[1].weight, math.nan)
        return sums

    monkeypatch.setattr(engine, "optimise", spoil)
    with pytest.raises(NonFinite, match="validation loss is not finite: after epoch 2"):
        fit(tmp_path, of, plan())
    assert checkpoint.load(checkpoint.newest(tmp_path))["epoch"] == 1


def test_spoilt_weights_are_not_saved_without_a_validation_set_either(tmp_path, monkeypatch):
    of, real = task({"train": 11, "val": 0}), engine.optimise

    def spoil(*words):
        sums = real(*words)
        nn.init.constant_(of.model.classifier[1].weight, math.nan)
        return sums

    monkeypatch.setattr(engine, "optimise", spoil)
    with pytest.raises(NonFinite, match="the weights are not finite: after epoch 1"):
        fit(tmp_path, of, plan(update_per_step=3))
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
    RuntimeError("CUDA error: out of memory"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
])
def test_out_of_memory_says_what_to_change(error):
    with pytest.raises(OutOfMemory, match="training.update_per_step = 4") as caught:
        with engine.memory_explained(engine.smaller_portions(2)):
            raise error
    assert caught.value.code == 76 and caught.value.__cause__ is None


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes do not match"), engine.memory_explained("buy more"):
        raise RuntimeError("shapes do not match")


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(NothingToTrainOn) as caught:
        fit(tmp_path, task({"train": 0, "val": 3}), plan())
    assert caught.value.code == 78


def test_a_second_interrupt_stops_at_once():
    with pytest.raises(KeyboardInterrupt), engine.StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)


# --- so many batches, and rates by ticks --------------------------------------------------------------------

def noted(monkeypatch: pytest.MonkeyPatch, what: str = "ids") -> list:
    """From now on the items of training, or the rates of its steps, are noted in this list."""
    seen, prepare, optimise = [], Micro.prepare, engine.optimise
    if what == "ids":
        monkeypatch.setattr(Micro, "prepare", lambda of, batch, train: seen.extend(batch["ids"] if train else []) or
                            prepare(of, batch, train))
        return seen

    def stepping(training, *words):
        sums = optimise(training, *words)
        seen.append([group["lr"] for group in training.optimizer.param_groups])
        return sums

    monkeypatch.setattr(engine, "optimise", stepping)
    return seen


@pytest.mark.parametrize(("batch", "most", "portions", "steps"), [(4, 2, 1, 2), (4, 2, 2, 1), (2, 3, 2, 2),
                                                                  (4, 9, 2, 2)])
def test_an_epoch_of_so_many_batches(tmp_path, monkeypatch, batch, most, portions, steps):
    seen = noted(monkeypatch)
    of = task(training__batch_size=batch)
    training, rows = fit(tmp_path, of, plan(update_per_step=portions, limit_train_batches=most))
    items = min(11, batch * most)
    assert len(seen) == 3 * items == 3 * training.items and training.steps == steps
    epochs = [seen[i * items:(i + 1) * items] for i in range(3)]
    assert all(len(set(epoch)) == items for epoch in epochs)
    assert (len({frozenset(epoch) for epoch in epochs}) > 1) == (items < 11)
    assert all(set(row["val"]) == {"loss", "acc"} for row in rows)
    assert rows[0]["train"]["acc"] * items == pytest.approx(round(rows[0]["train"]["acc"] * items))


def test_the_loss_of_a_short_epoch_is_the_mean_over_what_it_saw(tmp_path):
    of = task(optimizer__backbone_init_lr=0, optimizer__classifier_init_lr=0)
    _, (row,) = fit(tmp_path, of, plan(epochs=1, limit_train_batches=2))
    loader = of.loader("train", train=True)
    batches = list(loader)[:2]
    points, labels = (torch.cat([b[name] for b in batches]) for name in ("points", "labels"))
    assert row["train"]["loss"] == pytest.approx(nn.functional.cross_entropy(of.model(points), labels).item(), abs=1e-6)


def test_validation_in_training_sees_so_many_batches_and_a_test_all(tmp_path):
    of = task()
    _, rows = fit(tmp_path, of, plan(limit_val_batches=1))
    loader = of.loader("val", train=False)
    batch = next(iter(loader))
    loss = nn.functional.cross_entropy(of.model.eval()(batch["points"]), batch["labels"]).item()
    assert rows[-1]["val"]["loss"] == pytest.approx(loss, abs=1e-6)
    assert len(engine.evaluate(of, loader, CPU, decode=True)[1]) == 7


def test_a_rehearsal_counts_so_many_batches():
    said = rehearsal.rehearse(task(), plan(limit_train_batches=2, limit_val_batches=1), CPU)
    assert "training     1 steps an epoch" in said and "validation   4 clips" in said
    assert "2 steps an epoch" in rehearsal.rehearse(task(), plan(), CPU)


TICKS = {"type": "WarmupHoldDecay", "warmup_steps": 2, "hold_steps": 1, "tick_steps": 2, "decay": 0.5, "min_lr": 2e-3}


def short_plan(**changes) -> FitPlan:
    return plan(**{"epochs": 4, "update_per_step": 1, "clip_value": 0.05, "limit_train_batches": 2, "save_every": 2,
                   "limit_val_batches": 1, "keep_top": 2, "schedule": TICKS, **changes})


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_short_epoch_stopped_anywhere_goes_on_with_the_same_rates(tmp_path, monkeypatch, steps):
    """Two steps an epoch, three files of epochs; the rates are those of the plan at every step."""
    seen, real = noted(monkeypatch, "rates"), engine.optimise
    whole = task(**STATEFUL)
    expected = figures(fit(tmp_path / "whole", whole, short_plan())[1])
    shares = [1 / 2, 1, 1, 1, 1, 1 / 2, 1 / 2, 1 / 4]
    assert seen == [pytest.approx([max(0.01 * share, 2e-3)] * 2) for share in shares]

    def interrupted(*words):
        if len(seen) == 8 + steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*words)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(engine, "optimise", interrupted)
        fit(tmp_path / "cut", task(**STATEFUL), short_plan())
    again = task(**STATEFUL)
    rows = fit(tmp_path / "cut", again, short_plan(), "resume.pth")[1]
    assert torch.equal(weights(again), weights(whole)) and figures(rows) == expected
    assert len(seen) == 16 and seen[8:] == seen[:8]
    names = [sorted(p.name for p in (tmp_path / folder).glob("*.pth")) for folder in ("whole", "cut")]
    assert names[0] == names[1] and sum(name.startswith("top_e") for name in names[0]) == 2


@pytest.mark.parametrize(("most", "anew", "rest"), [(3, False, 3), (0, False, 3), (2, False, 0), (1, True, 4)])
def test_another_limit_inside_an_epoch(tmp_path, monkeypatch, capsys, most, anew, rest):
    """Eight clips of an epoch of two batches are through: it goes on where today's epoch reaches as far."""
    real = engine._validate
    monkeypatch.setattr(engine, "_validate", lambda *words: os.kill(os.getpid(), signal.SIGTERM) or real(*words))
    with pytest.raises(Interrupted, match="step 1 of 1"):
        fit(tmp_path, task(), plan(epochs=1, limit_train_batches=2))
    monkeypatch.undo()
    seen = noted(monkeypatch)
    _, rows = fit(tmp_path, task(), plan(epochs=1, limit_train_batches=most), "resume.pth")
    assert len(seen) == rest and len(rows) == 1
    assert ("limit_train_batches changed inside epoch 1: it begins anew" in capsys.readouterr().err) == anew


def test_other_batches_of_validation_choose_anew(tmp_path):
    stopping = {"metric": ("val", "loss"), "mode": "min", "patience": 9, "min_delta": 0.0}

    def how(**changes) -> FitPlan:
        falling = {"type": "ReduceLROnPlateau", "plateau": Plateau("min", 0.5, 0, 0.2, "rel", 0)}
        return plan(epochs=2, stopping=stopping, keep_top=1, schedule=falling, **changes)

    fit(tmp_path, task(), how())
    content = checkpoint.load(tmp_path / "checkpoint_002.pth")
    training = engine.start(task(), how(limit_val_batches=1), CPU)
    (note,) = training.load(content, "it")
    assert "other batches" in note and training.best is training.stopper.best is training.schedule.plateau.best is None
    assert training.top == [] and training.schedule.reduced == content["resume"]["schedule"]["reduced"]
    assert engine.start(task(), how(), CPU).load(content, "it") == []
    alone = engine.start(task({"train": 11, "val": 0}), how(limit_val_batches=1), CPU)
    assert alone.load(content, "it") == [] and alone.best


# --- the best epochs ----------------------------------------------------------------------------------------

def given(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """From now on validation finds these losses, one an epoch."""
    found = iter(losses)
    monkeypatch.setattr(engine, "evaluate", lambda *_, **__: ({"loss": next(found), "acc": 0.5}, []))


def tops(folder: Path) -> list[str]:
    return list(checkpoint.tops(folder))


def test_the_best_epochs_stay(tmp_path, monkeypatch):
    """Of equals the earlier; each file holds its epoch's weights and figures."""
    given(monkeypatch, 5.0, 3.0, 4.0, 3.0, 2.5, 9.0)
    of, kept, real = task(), {}, engine._end_epoch

    def end(training, *words):
        kept[training.epoch + 1] = {k: v.clone() for k, v in of.model.state_dict().items()}
        real(training, *words)

    monkeypatch.setattr(engine, "_end_epoch", end)
    training, _ = fit(tmp_path, of, plan(epochs=6, keep_top=3))
    assert tops(tmp_path) == ["top_e002_loss_3.pth", "top_e004_loss_3.pth", "top_e005_loss_2.5.pth"]
    assert [row["file"] for row in training.top] == [tops(tmp_path)[i] for i in (2, 0, 1)]
    for name, epoch in checkpoint.tops(tmp_path).items():
        content = checkpoint.load(tmp_path / name)
        assert content["epoch"] == epoch and content["weights"] == "raw" and "resume" not in content
        assert all(torch.equal(v, kept[epoch][k]) for k, v in content["model_state_dict"].items())
    assert checkpoint.newest(tmp_path).name == "checkpoint_006.pth"


def test_the_best_epochs_of_the_average_and_of_rising_metrics(tmp_path):
    of = task()
    training, rows = fit(tmp_path, of, plan(epochs=5, ema=0.5, keep_top=2, best=("acc", "max")))
    order = sorted(rows, key=lambda row: (-row["val"]["acc"], row["val"]["loss"]))[:2]
    assert sorted(checkpoint.tops(tmp_path).values()) == sorted(row["epoch"] for row in order)
    for row in order:
        (name,) = (name for name, epoch in checkpoint.tops(tmp_path).items() if epoch == row["epoch"])
        content = checkpoint.load(tmp_path / name)
        assert content["weights"] == row["weights"] and content["metrics"]["val"] == row["val"]


def test_the_best_epochs_after_a_kill(tmp_path, monkeypatch):
    """Killed behind the new file, and behind the checkpoint: neither more nor fewer files than without it."""
    losses = (5.0, 4.0, 3.0, 2.0)
    for spot, left in (("save", 3), ("drop", 3)):
        folder, real = tmp_path / spot, getattr(Keeper, spot)

        def dying(keeper, name, *words, real=real, spot=spot, **options):
            if (spot == "save" and name == "checkpoint_003.pth") or (spot == "drop" and name.startswith("top_e001")):
                raise KeyboardInterrupt
            return real(keeper, name, *words, **options)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            given(patch, *losses)
            patch.setattr(Keeper, spot, dying)
            fit(folder, task(), plan(epochs=4, keep_top=2, save_every=1))
        assert len(tops(folder)) == left
        last = checkpoint.newest(folder)
        with monkeypatch.context() as patch:
            given(patch, *losses[checkpoint.load(last)["epoch"]:])
            fit(folder, task(), plan(epochs=4, keep_top=2, save_every=1), last.name)
        assert tops(folder) == ["top_e003_loss_3.pth", "top_e004_loss_2.pth"]


def test_the_best_epochs_of_a_run_that_goes_on_otherwise(tmp_path, monkeypatch):
    """From an earlier checkpoint, with fewer files, with one lost, with none, by another metric, from before there
    were such files."""
    given(monkeypatch, 5.0, 4.0, 3.0, 6.0, 7.0, 8.0, 9.0, 9.0)
    fit(tmp_path, task(), plan(epochs=3, keep_top=2, save_every=1))
    fit(tmp_path, task(), plan(epochs=2, keep_top=2), "checkpoint_002.pth")  # epoch 3 was not, epoch 1's file is gone
    assert tops(tmp_path) == ["top_e002_loss_4.pth"]
    fit(tmp_path, task(), plan(epochs=4, keep_top=2), "checkpoint_002.pth")
    assert tops(tmp_path) == ["top_e002_loss_4.pth", "top_e003_loss_6.pth"]
    fit(tmp_path, task(), plan(epochs=4, keep_top=1), "checkpoint_004.pth")
    assert tops(tmp_path) == ["top_e002_loss_4.pth"]
    fit(tmp_path, task(), plan(epochs=5), "checkpoint_004.pth")  # 0: off, and nothing goes
    assert tops(tmp_path) == ["top_e002_loss_4.pth"]
    training = engine.start(task(), plan(epochs=6, keep_top=1, best=("acc", "max")), CPU)
    content = checkpoint.load(tmp_path / "checkpoint_005.pth")
    assert "top_*.pth of before stay" in training.load(content, "it")[0] and training.top == []
    del content["resume"]["top"], content["resume"]["limit_val_batches"]
    checkpoint.save(tmp_path / "checkpoint_005.pth", content)
    training, _ = fit(tmp_path, task(), plan(epochs=6, keep_top=1), "checkpoint_005.pth")
    assert tops(tmp_path) == ["top_e002_loss_4.pth", "top_e006_loss_9.pth"] and len(training.top) == 1


def test_without_validation_no_epoch_is_better(tmp_path):
    fit(tmp_path, task({"train": 11, "val": 0}), plan(keep_top=2))
    assert tops(tmp_path) == []


# --- saved by the clock -------------------------------------------------------------------------------------

@pytest.mark.parametrize("steps", range(2, 9))
def test_a_crash_loses_no_more_than_since_the_last_save(tmp_path, uninterrupted, monkeypatch, steps):
    """With a save after every step it goes on at the one that crashed, and ends as if nothing had been."""
    real, done = engine.optimise, []

    def crashing(*words):
        done.append(1)
        if len(done) == steps:
            raise ZeroDivisionError
        return real(*words)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(engine, "optimise", crashing)
        fit(tmp_path, task(**STATEFUL), full_plan(save_minutes=1e-9))
    last = checkpoint.newest(tmp_path)
    content = checkpoint.load(last)
    assert 2 * content["resume"]["epoch"] + content["resume"]["step"] == steps - 1
    again = task(**STATEFUL)
    rows = fit(tmp_path, again, full_plan(save_minutes=1e-9), last.name)[1]
    assert torch.equal(weights(again), uninterrupted[0]) and figures(rows) == uninterrupted[1]
    assert not (tmp_path / "resume.pth").exists()


@pytest.mark.parametrize(("minutes", "steps"), [(0, []), (1, [1, 2, 3]), (2, [2]), (3, [3]), (4, [])])
def test_so_many_minutes_after_the_last_save(tmp_path, monkeypatch, minutes, steps):
    """Three steps an epoch of a minute each; the end of an epoch saves as well."""
    now, places, optimise, place = [0.0], [], engine.optimise, engine._save_place

    def slow(*words):
        now[0] += 60.0
        return optimise(*words)

    monkeypatch.setattr(engine.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(engine, "optimise", slow)
    monkeypatch.setattr(engine, "_save_place", lambda training, *words: places.append(training.step) or
                        place(training, *words))
    fit(tmp_path, task(), plan(epochs=2, update_per_step=1, save_minutes=minutes))
    assert places == 2 * steps


# --- short number formats on a CPU --------------------------------------------------------------------------

class Wrong(torch.autograd.Function):
    """The identity, whose gradient is off by `factor` in short formats: what some CPU kernels do."""

    @staticmethod
    def forward(ctx, weight: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        return gradient * ctx.factor, None


class Odd(nn.Linear):
    factor = math.nan

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = torch.is_autocast_enabled("cpu")
        return nn.functional.linear(x, Wrong.apply(self.weight, self.factor if short else 1.0), self.bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_a_short_format_are_checked_first(tmp_path, dtype):
    of = task(model_params__drop_p=0.5)
    before, rng = weights(of), torch.get_rng_state()
    training = engine.start(of, plan(dtype=dtype), CPU)
    engine.check_gradients(training, of.loader("train", train=True))
    assert torch.equal(rng, torch.get_rng_state()) and torch.equal(before, weights(of))
    assert all(p.grad is None for p in of.model.parameters())
    assert len(fit(tmp_path, of, plan(dtype=dtype))[1]) == 3
    for factor in (math.nan, math.inf, 1e30, -2.0, 3.0):
        odd = task()
        odd.model.backbone[0] = Odd(8, 16)
        odd.model.backbone[0].factor = factor
        with pytest.raises(Mistake, match=r"gradients in \w+16 are wrong on this CPU: those of backbone.0.weight"):
            fit(tmp_path / str(factor), odd, plan(dtype=dtype))
        assert len(fit(tmp_path / f"{factor}32", odd, plan())[1]) == 3  # fp32 is not asked


def test_a_task_that_lacks_a_part_cannot_be_made():
    from slr.task import Task

    class Half(Task):
        def meta(self):
            return {}

    with pytest.raises(TypeError, match="losses"):
        Half()


# --- validation inside an epoch -----------------------------------------------------------------------------

def test_looking_in_between_changes_nothing_but_best(tmp_path):
    """The same weights and log; best.pth is the lowest loss that validation ever saw."""
    plain = task(model_params__drop_p=0.3)
    _, rows = fit(tmp_path / "a", plain, plan(update_per_step=1))
    looked = task(model_params__drop_p=0.3)
    training, others = fit(tmp_path / "b", looked, plan(update_per_step=1, validate_every=1))
    assert torch.equal(weights(plain), weights(looked)) and figures(rows) == figures(others)
    best = checkpoint.load(tmp_path / "b" / "best.pth")
    looked.model.load_state_dict(best["model_state_dict"])
    loss = engine.evaluate(looked, looked.loader("val", train=False), CPU)[0]["loss"]
    assert loss == pytest.approx(training.best["value"], abs=1e-6) == best["metrics"]["val"]["loss"]
    assert training.best["value"] <= min(row["val"]["loss"] for row in rows)


def test_the_best_may_lie_inside_an_epoch(tmp_path):
    of, losses = task(), iter([0.5, 0.3, 0.9])
    of.validation = lambda means, records: {**means, "loss": next(losses)}
    training, rows = fit(tmp_path, of, plan(epochs=1, update_per_step=1, validate_every=1))
    assert (training.best["value"], training.best["step"], training.best["epoch"]) == (0.3, 2, 0)
    assert [row["val"]["loss"] for row in rows] == [0.9]
    best, last = (checkpoint.load(tmp_path / name)["model_state_dict"] for name in ("best.pth", "checkpoint_001.pth"))
    assert any(not torch.equal(best[name], last[name]) for name in best)
