"""A task of milliseconds for the engine's tests: eleven noisy points of three classes, and a small perceptron.

Under torchrun, `micro.py WORDS` is training.py with this task in the place of the real one.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

import slr.task
from slr.config import Config
from slr.errors import Mistake
from slr.loading import EpochBatches, Key, build_loader
from slr.losses import mixed_cross_entropy
from slr.runtime import Runtime, generator
from slr.task import Sums, Task
from slr.transforms import mixup

INI = """
[training]
batch_size = 4
update_per_step = 2
max_epoch = 4
save_every = 2
[optimizer]
eps = 1e-8
backbone_init_lr = 1e-2
backbone_weight_decay = 1e-2
classifier_init_lr = 1e-2
classifier_weight_decay = 0
[model_params]
drop_p = 0.0
pretrained = False
[data]
num_frames = 8
frame_size = 32
workers = 0
"""

# Everything that has a state: dropout, mixup, the average of the weights, clipping, a plateau, early stopping.
FULL = INI.replace("drop_p = 0.0", "drop_p = 0.3").replace("save_every = 2", """save_every = 2
ema = 0.9
mixup = 0.4
label_smoothing = 0.1
clip_norm = 0.5""") + """
[scheduler]
type = 'ReduceLROnPlateau'
factor = 0.5
patience = 0
threshold = 0.2
start_factor = 0.1
warmup_epochs = 1
every = 'step'
[early_stopping]
metric = ('val', 'loss')
mode = 'min'
patience = 3
min_delta = 0.0
"""


class Points(Dataset):
    """Item i: 8 numbers around the corner i % 3, other noise in every epoch."""

    def __init__(self, part: str, count: int):
        self.part, self.count = part, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Key) -> dict[str, Any]:
        name = f"{self.part}{key.item}"
        rng = generator(1, key.epoch, name)
        point = generator(1, 0, self.part + str(key.item)).normal(size=8) + 0.3 * rng.normal(size=8)
        point[key.item % 3] += 2
        return {"ids": name, "points": point.astype(np.float32), "labels": np.int64(key.item % 3),
                "draws": np.array([0, 1, 1, 1, 0, rng.uniform(0.5, 1)], np.float32), "ghost": key.ghost}


class Net(nn.Module):
    """Backbone and classifier, no batch-norm."""

    def __init__(self, drop_p: float):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU())
        self.classifier = nn.Sequential(nn.Dropout(drop_p), nn.Linear(16, 3))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(points))


class Micro(Task):
    """`fail` makes the training go wrong on purpose: nan, oom, bug, mistake or slow; build and wait its making.

    $MICRO_RANKS: in which processes.
    """

    def __init__(self, config: Config, runtime: Runtime, sizes: dict[str, int] | None = None, fail: str = ""):
        self.config, self.runtime, self.fail = config, runtime, fail
        self.sizes = sizes or {"train": 11, "val": 7}
        self.model = Net(config.model_params.drop_p).to(runtime.device)

    @classmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "Micro":
        sizes = dict(zip(("train", "val"), map(int, os.environ.get("MICRO_SIZES", "11 7").split()), strict=True))
        fails = os.environ.get("MICRO_FAIL", "") if str(runtime.rank) in os.environ.get("MICRO_RANKS", "01") else ""
        if fails == "build":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if fails == "wait":
            time.sleep(60)
        return cls(config, runtime, sizes, fails)

    def meta(self) -> dict[str, Any]:
        return {"classes": ["a", "b", "c"], "data_hash": str(self.sizes)}

    def groups(self) -> list[dict[str, Any]]:
        keys = self.config.optimizer
        return [{"name": "backbone", "params": list(self.model.backbone.parameters()), "lr": keys.backbone_init_lr,
                 "weight_decay": keys.backbone_weight_decay},
                {"name": "classifier", "params": list(self.model.classifier.parameters()),
                 "lr": keys.classifier_init_lr, "weight_decay": keys.classifier_weight_decay}]

    def size(self, part: str) -> int:
        return self.sizes.get(part, 0)

    def keep_first_items(self, first: int) -> None:
        self.sizes = {"train": first, "val": first}

    def loader(self, part: str, train: bool) -> Any:
        keys = self.config.training
        batches = EpochBatches(self.size(part), keys.batch_size, shuffle=train, seed=self.config.experiment.seed,
                               rank=self.runtime.rank, world=self.runtime.world, pairs=train and keys.mixup > 0)
        return build_loader(Points(part, self.size(part)), batches, workers=self.config.data.workers, prefetch=2,
                            pin_memory=False)

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        if train and self.fail:
            _go_wrong(self.fail, batch)
        ready = {**batch, "inputs": batch["points"], "train": train}
        if train and self.config.training.mixup:
            ready["inputs"], ready["other"], ready["share"] = mixup(batch["points"], batch["draws"])
        return ready

    def losses(self, output: torch.Tensor, batch: dict[str, Any]) -> Sums:
        n, labels = len(output), batch["labels"]
        other, share = batch.get("other", torch.arange(n)), batch.get("share", torch.ones(n))
        smoothing = self.config.training.label_smoothing if batch["train"] else 0.0
        loss = mixed_cross_entropy(output, labels, other, share, smoothing)
        return {"loss": (loss, n), "acc": ((output.detach().argmax(1) == labels).sum(), n)}

    def decode(self, output: torch.Tensor, batch: dict[str, Any], **search: Any) -> list[dict[str, Any]]:
        return [{"id": name, "predicted": int(best)} for name, best in
                zip(batch["ids"], output.argmax(1), strict=True)]

    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {"items": len(records)}

    def summary(self, records: list[dict[str, Any]]) -> str:
        return f"{len(records)} items"

    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(self.summary(records))
        return [folder / f"{name}.txt"]


def _go_wrong(how: str, batch: dict[str, Any]) -> None:
    if how == "nan" and "train5" in batch["ids"]:
        batch["points"][batch["ids"].index("train5")] = float("nan")
    if how == "oom":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you "
                           "tried to allocate 123456789 bytes. Error code 12 (Cannot allocate memory)")
    if how == "bug":
        raise ZeroDivisionError("a bug of ours")
    if how == "mistake":
        raise Mistake("the video does not decode", "train5.mp4", "look at it")
    if how == "slow":
        time.sleep(0.02)


def run(words: tuple[str, ...], kill: int = 0) -> Any:
    """training.py with this task; killed at its n-th event where `kill` is given."""
    from children import kill_at, script

    from slr import plots

    slr.task.build_task = Micro.build
    plots.curves = lambda log, path, title, best=None: path  # drawing takes longer than all the rest
    if kill:
        kill_at(kill)
    return script("training", *words)


if __name__ == "__main__":
    import sys

    from slr import errors

    torch.set_num_threads(1)
    errors.run(lambda: run(tuple(sys.argv[1:])))
