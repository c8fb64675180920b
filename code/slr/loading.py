"""From a data set to batches: which items, in which order, on which process; the same however the run is cut.

The sampler hands out `Key(epoch, item)`, so a worker knows the epoch its random numbers come from. A global batch is
cut into contiguous slices of one size, one a process: all processes together see what one process would see.
"""

import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from slr.errors import Mistake
from slr.runtime import generator

POOL = 256  # batches among which items are sorted by length: so most have one length, and need no masks


class Key(NamedTuple):
    """What a data set is asked for. A ghost keeps a process in step that has no share of the last batch."""

    epoch: int
    item: int
    ghost: bool = False


class EpochBatches(Sampler[list[Key]]):
    """The batches of one epoch for one process; `start` says which epoch, and how many batches are done already.

    pairs: neighbours (0 1)(2 3) … of a global batch stay on one process, as mixup wants them.
    lengths: of all items in an epoch. Where it is given, items of one length come together: the order is cut into pools
    of so many batches, each sorted, and where the order was shuffled the batches are too.
    short_first: epochs, the first ones, in which the shortest items come first and the longest last, as in SortaGrad
    (Amodei et al. 2016, Deep Speech 2, section 3.2).
    """

    def __init__(self, items: int, batch_size: int, *, shuffle: bool, seed: int, rank: int = 0, world: int = 1,
                 pairs: bool = False, lengths: Callable[[int], Sequence[int]] | None = None, short_first: int = 0):
        self.items, self.batch_size, self.shuffle, self.seed = items, batch_size, shuffle, seed
        self.rank, self.world, self.pairs, self.lengths = rank, world, pairs, lengths
        self.short_first, self.taken = short_first, items
        self.epoch = self.done = 0

    def start(self, epoch: int, done: int = 0) -> None:
        self.epoch, self.done = epoch, done

    def limit(self, batches: int) -> None:
        """From now on an epoch is only so many batches: the first ones of its order, so shuffled ones see other items
        in every epoch. Items of one length are brought together among these."""
        self.taken = min(self.items, batches * self.batch_size)

    def __len__(self) -> int:
        return -(-self.taken // self.batch_size)

    def origin(self) -> list[int]:
        """What the order of every epoch follows from: where it is equal, so are the orders."""
        if not self.lengths:
            return [self.items, self.seed]
        own = zlib.crc32(np.asarray(self.lengths(0), np.int64).tobytes())
        return [self.taken, self.seed, self.batch_size, self.short_first, own]

    def sizes(self) -> list[int]:
        """Items of each global batch of an epoch."""
        return [min(self.batch_size, self.taken - first) for first in range(0, self.taken, self.batch_size)]

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.arange(self.items)
        if self.shuffle:
            order = generator(self.seed, self.epoch, "order").permutation(self.items)
        order = order[:self.taken]
        if self.lengths:
            order = self._by_length(order, np.asarray(self.lengths(self.epoch)))
        for first in range(self.done * self.batch_size, self.taken, self.batch_size):
            yield self._slice([int(i) for i in order[first:first + self.batch_size]])

    def _by_length(self, order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The order with items of about one length in a batch; a smaller last batch stays the last."""
        if self.epoch < self.short_first:
            return order[np.argsort(lengths[order], kind="stable")]
        pools = np.split(order, range(POOL * self.batch_size, len(order), POOL * self.batch_size))
        order = np.concatenate([pool[np.argsort(-lengths[pool], kind="stable")] for pool in pools])
        whole = len(order) // self.batch_size * self.batch_size
        batches = order[:whole].reshape(-1, self.batch_size)
        if self.shuffle:
            batches = batches[generator(self.seed, self.epoch, "batches").permutation(len(batches))]
        return np.concatenate([batches.ravel(), order[whole:]])

    def _slice(self, batch: Sequence[int]) -> list[Key]:
        """This process's part; where others have all of a last batch, a ghost."""
        share = -(-len(batch) // self.world)
        share += share % 2 if self.pairs else 0
        mine = batch[self.rank * share:(self.rank + 1) * share]
        return [Key(self.epoch, i) for i in mine] or [Key(self.epoch, batch[0], ghost=True)]


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors and arrays stacked along a new first axis, everything else in a list; `ghost` is one flag a batch."""
    batch: dict[str, Any] = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if isinstance(first, (np.ndarray, np.generic)):
            values = [torch.as_tensor(value) for value in values]
        batch[name] = torch.stack(values) if isinstance(values[0], torch.Tensor) else values
    batch["ghost"] = bool(items[0].get("ghost"))
    return batch


class _Told(Dataset):
    """A data set that returns a Mistake in an item's place: raised in a worker it would arrive as a traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key: Key) -> Any:
        try:
            return self.dataset[key]
        except Mistake as error:
            return error


def _collate(collate_fn: Any, items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, Mistake)), None) or collate_fn(items)


class Loader(DataLoader):
    """A DataLoader that raises the Mistakes of its workers, and whose workers can be sent home.

    torch turns the one into a traceback's text, and leaves the other to the garbage collector.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, Mistake):
                raise batch
            yield batch

    def close(self) -> None:
        iterator, self._iterator = self._iterator, None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


def build_loader(dataset: Dataset, batches: EpochBatches, *, workers: int, prefetch: int,
                 pin_memory: bool, collate_fn: Any = collate) -> Loader:
    """A loader over `batches`; its workers stay alive between epochs and leave signals to the main process."""
    extra: dict[str, Any] = {"prefetch_factor": prefetch, "persistent_workers": True} if workers else {}
    return Loader(_Told(dataset), batch_sampler=batches, num_workers=workers, pin_memory=pin_memory,
                  collate_fn=partial(_collate, collate_fn), worker_init_fn=_start_worker,
                  generator=torch.Generator().manual_seed(0), **extra)


def worker_count(asked: int, device: str) -> int:
    """Loader processes; by default (-1) one a core beside a GPU, and half the cores where they train as well."""
    if asked >= 0:
        return asked
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(1, cores if device == "cuda" else cores // 2))


GRACE = 60.0  # seconds that a worker outlives a SIGTERM


def _start_worker(_: int) -> None:
    """A signal to the whole group must not take the workers from a main process that is about to save.

    A SIGTERM ends a worker all the same, a while later, so that none is left behind.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)
    import cv2

    cv2.setNumThreads(0)


def _leave_later(*_: object) -> None:
    timer = threading.Timer(GRACE, os._exit, args=(0,))
    timer.daemon = True
    timer.start()
