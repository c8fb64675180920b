"""Tiny experiments of transcription and its pre-training, on `little_footage`: each trains in seconds on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from children import leaving_at

from slr import checkpoint, engine
from slr.catalogue import MODELS
from slr.config import parse_config
from slr.errors import Interrupted
from slr.logbook import Logbook
from slr.paths import Experiment
from slr.runtime import Runtime
from slr.task import build_task
from slr.trained import Trained, find_trained

FRAMES = """num_frames = 24
frame_size = 16
eval_resize = 1.0
jitter_p = 0.5
"""
RUN = """
[training]
batch_size = 2
update_per_step = 1
max_epoch = 2
save_every = 1
[optimizer]
eps = 1e-8
backbone_init_lr = 3e-3
backbone_weight_decay = 0.0
[data]
workers = 0
""" + FRAMES + """[experiment]
task = """
SPATIAL = {"model_params.pretrained": "False", "spatial.width": "32", "spatial.layers": "1", "spatial.heads": "2",
           "spatial.patch": "8", "spatial.image": "16", "encoder.layers": "1", "encoder.heads": "2",
           "encoder.ffn": "64", "encoder.kernel": "4", "encoder.groups": "2"}
TUBES = {"encoder.layers": "1", "encoder.heads": "2", "encoder.ffn": "64", "encoder.width": "32", "encoder.patch": "8"}
DECODER = {f"language_decoder.{name}": value for name, value in
           (("width", "32"), ("layers", "1"), ("heads", "2"), ("ffn", "64"), ("positions", "16"))}
CODES = {"pretraining.codes": "6", "pretraining.code_dim": "8", "pretraining.compare_dim": "16",
         "pretraining.negatives": "4"}
DRAWS = {"pretraining.mask_ratio": "0.5", "pretraining.decoder_width": "32", "pretraining.decoder_layers": "1",
         "pretraining.decoder_heads": "2", "pretraining.decoder_ffn": "64"}
SMALL = {"SpatioTemporal": SPATIAL | DECODER, "VideoMAE": TUBES | DECODER, "ViViT": TUBES | DECODER,
         "SpatioTemporalPretrain": SPATIAL | CODES, "VideoMAEPretrain": TUBES | DRAWS, "LanguageDecoder": DECODER}
# nothing is drawn at random, so that a set is soon known by heart
BY_HEART = {"data.jitter_frames": "False", "data.jitter_p": "0.0", "data.min_scale": "1.0", "data.max_aspect": "1.0"}
NO_DROPOUT = {"encoder.dropout": "0.0", "language_decoder.dropout": "0.0", "encoder.layerdrop": "0.0",
              "encoder.mask_share": "0.0", "encoder.mask_least": "0"}
CPU = Runtime.start("cpu", 3)


def config_of(model: str, split: str = "words", **changes: Any) -> Any:
    """`a__b` is the key b of the section a."""
    given = {name.replace("__", "."): str(value) for name, value in changes.items()}
    text = RUN if model != "LanguageDecoder" else RUN.replace(FRAMES, "")
    return parse_config(text + repr(MODELS[model].task), Experiment(model, split, "1"), SMALL[model] | given)


def a_task(model: str, split: str = "words", meta: dict[str, Any] | None = None, seed: int = 3, **changes: Any) -> Any:
    CPU.seed(seed)
    return build_task(config_of(model, split, **changes), CPU, meta)


def still(model: str) -> dict[str, str]:
    """The changes after which a model's training draws nothing at random."""
    return {name.replace(".", "__"): value for name, value in (BY_HEART | NO_DROPOUT).items()
            if (name.partition(".")[0] != "language_decoder" or "language_decoder.width" in SMALL[model])
            and (not name.startswith("encoder.") or "encoder.layers" in SMALL[model])
            and (name == "encoder.dropout" or not name.startswith("encoder.") or "encoder.kernel" in SMALL[model])
            and not (name.startswith("encoder.mask") and model.endswith("Pretrain"))
            and not (name.startswith("data.") and model == "LanguageDecoder")}


def batches(task: Any, part: str, train: bool = False, epoch: int = 0) -> list[dict[str, Any]]:
    task.model.train(train)
    loader = task.loader(part, train)
    loader.batch_sampler.start(epoch)
    return [task.prepare(batch, train) for batch in loader]


def learn(task: Any, epochs: int, rate: float = 3e-3, anew: bool = False) -> list[float]:
    """Each epoch's mean loss on the training set. Batches are those of epoch 0, or drawn anew in every one."""
    given, found = batches(task, "train", train=True), []
    optimizer = torch.optim.AdamW(task.groups(), lr=rate)
    for group in optimizer.param_groups:
        group["lr"] = rate
    for done in range(epochs):
        task.tick(done)
        sums = [0.0, 0.0]
        for batch in batches(task, "train", True, done) if anew else given:
            parts = task.losses(task.forward(task.model, batch), batch)
            optimizer.zero_grad()
            sum(weight * parts[name][0] / parts[name][1] for name, weight in task.weights.items()).backward()
            optimizer.step()
            sums = [sums[0] + float(parts["loss"][0].detach()), sums[1] + parts["loss"][1]]
        found.append(sums[0] / sums[1])
    return found


def evaluated(task: Any, part: str = "val", **search: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    return engine.evaluate(task, task.loader(part, train=False), task.runtime, decode=True, **search)


def kept(task: Any) -> dict[str, Any]:
    """What training.py puts into a checkpoint of this task."""
    config = task.config
    return {"model": config.model, "split": config.split, "task": config.experiment.task, "meta": task.meta(),
            "config": config.as_dict(), "metrics": {}, "model_state_dict": task.model.state_dict()}


def saved(task: Any, path: Path) -> Path:
    checkpoint.save(path, kept(task))
    return path


def as_trained(file: Path) -> Trained:
    """What testing.py makes of a checkpoint's file."""
    return find_trained(None, None, None, file)


@contextmanager
def interrupted(step: int) -> Iterator[None]:
    """The training within is asked to leave when its `step`-th step (from 1) begins, and does."""
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        patched.setattr(engine, "optimise", leaving_at(step, engine.optimise))
        yield


def fit(task: Any, folder: Path, load: str = "") -> engine.Fit:
    """Train as the task's config says, into `folder`, from its checkpoint `load` on."""
    plan = training.plan_of(task.config, task.runtime)
    going = engine.start(task, plan, task.runtime)
    if load:
        going.load(checkpoint.load(folder / load), load)
    book = Logbook(folder, plan.epochs)
    book.keep_until(going.epoch, going.step)
    return engine.fit(going, book, engine.Keeper(folder, kept(task)))
