"""The hinge: a task binds one data set, one model, its losses and its metric. The engine receives it, imports none.

A new system is a subclass in `slr/tasks/` and a line in `sections.TASKS`; scripts, engine, checkpoints and the queue
stay as they are.
"""

from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from slr.checkpoint import load_weights
from slr.config import Config
from slr.errors import Mistake
from slr.runtime import Runtime
from slr.sections import TASKS

Sums = dict[str, tuple[torch.Tensor, float]]


class Task(ABC):
    """What `engine.fit` and `engine.evaluate` need to know.

    config: the settings, with what follows from the checkpoints that the task starts from.
    model: all that trains; the engine wraps it (DDP, compile, EMA).
    split: whose prepared labels `loader` reads; or the path of a folder with labels.
    weights: of the named losses in the total; a name that `losses` gives and `weights` lacks is only reported.
    passes: of a full test, {name in the result: (set, options of `vary`)}.
    headline: the figure of the validation set that training reports and a test must find again: its name among the
        losses, and what makes per cent of it.
    table: what the files of a set's figures are called.
    generates: whether validation decodes, too, for figures that are no means over items.
    graphs: the pictures that `report` can draw.
    keeps: whether it may write into the data folder (a rehearsal must not).
    """

    config: Config
    model: nn.Module
    split: str
    weights: dict[str, float] = {"loss": 1.0}
    passes: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {"test": ("test", {}), "val": ("val", {})}
    headline: ClassVar[tuple[str, float]] = ("acc", 100.0)
    table: ClassVar[str] = "top-k"
    generates: ClassVar[bool] = False
    graphs: ClassVar[tuple[str, ...]] = ()
    keeps: bool = True

    @classmethod
    @abstractmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "Task":
        """The task for training; from a checkpoint's `meta` no data and no pretrained weights are needed."""

    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """Classes, normalisation, clip …: plain types that go into the checkpoint and rebuild the model."""

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups: {"name", "params", "lr", "weight_decay"}, and "scale" where layer decay has
        scaled the rate."""

    def load(self, state: dict[str, torch.Tensor], source: str) -> None:
        """Take over the weights of a checkpoint of this very model; Mistake where they do not fit."""
        load_weights(self.model, state, source)

    @abstractmethod
    def size(self, part: str) -> int:
        """How many items the set `part` (train, val, test) has; 0 where there is none."""

    def left_out(self) -> dict[str, str]:
        """{id: reason} of the training items that cannot be learnt from, and are not."""
        return {}

    @abstractmethod
    def keep_first_items(self, first: int) -> None:
        """Train on the first items alone, and validate on the same: a check of the set-up."""

    @abstractmethod
    def loader(self, part: str, train: bool) -> Any:
        """A DataLoader over `part` whose batch_sampler is a `loading.EpochBatches`; batches are dicts with `ids`."""

    @abstractmethod
    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        """The batch on the device with `inputs`, augmented where it trains, from the items' own random numbers."""

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """What `model` (the task's, as the engine has wrapped it) says of a prepared batch, in fp32."""
        return model(batch["inputs"]).float()

    def tick(self, done: int) -> None:
        """So many steps of the optimiser are done, and the next one begins: for what is annealed."""
        return None

    @abstractmethod
    def losses(self, output: Any, batch: dict[str, Any]) -> Sums:
        """{name: (sum over the items, count)}: a differentiable sum for what trains, a detached one for the rest."""

    @abstractmethod
    def decode(self, output: Any, batch: dict[str, Any], **search: Any) -> list[dict[str, Any]]:
        """One record an item: id, expected, predicted, scores. `quick`: only what `validation` looks at."""

    def validation(self, means: dict[str, float], records: list[dict[str, Any]]) -> dict[str, float]:
        """The figures of the validation set: the means of the losses, and where the task generates those of the
        records; of quick ones the same as of others."""
        return means

    def examples(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        """Of a few of the validation's quick records what a person would like to read after an epoch; [] for none."""
        return []

    def sweep(self) -> list[dict[str, Any]]:
        """Searches, for `use_search`, among which a test lets the validation set choose; none: there is no choice."""
        return []

    def use_search(self, **options: Any) -> None:
        """Decode like this from now on: with one of `sweep`'s."""
        raise Mistake("this task has one way to search", ", ".join(options), "leave them out")

    def vary(self, **options: Any) -> None:
        """What a test changes about the input from now on: `shuffle`, `black`; nothing can be by default."""
        for name, words in (("shuffle", ("shuffled frames", "-sf")), ("black", ("black frames", "-bf"))):
            if options.get(name):
                raise Mistake(f"this task has no test with {words[0]}", type(self).__name__, f"leave {words[1]} out")

    @abstractmethod
    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The figures of a set."""

    @abstractmethod
    def summary(self, records: list[dict[str, Any]]) -> str:
        """The figures of a set for a person: a few lines, with what they can be compared with."""

    @abstractmethod
    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        """Pictures and tables of one set into `folder`, each file's name starting with `name`; what was made."""


def build_task(config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> Task:
    """The task that the config names."""
    name = config.experiment.task
    if name not in TASKS:
        raise Mistake("no such task", repr(name), f"the tasks are {', '.join(TASKS)}")
    module, _, cls = TASKS[name].partition(":")
    return getattr(import_module(module), cls).build(config, runtime, meta)
