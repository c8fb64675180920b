"""Every item once an epoch, however many processes there are and wherever the run was cut."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from slr import loading
from slr.errors import Mistake
from slr.loading import EpochBatches, Key, build_loader, collate
from slr.runtime import generator


def batches(rank: int, world: int, items: int, size: int, *, shuffle=True, epoch=0, done=0, pairs=False) -> list:
    sampler = EpochBatches(items, size, shuffle=shuffle, seed=7, rank=rank, world=world, pairs=pairs)
    sampler.start(epoch, done)
    return list(sampler)


def real(keys: list[Key]) -> list[int]:
    return [key.item for key in keys if not key.ghost]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5), st.booleans(), st.integers(0, 3), st.booleans())
def test_every_item_once_and_the_same_batches_for_any_world(items, size, world, shuffle, epoch, pairs):
    whole = batches(0, 1, items, size, shuffle=shuffle, epoch=epoch)
    assert sorted(i for batch in whole for i in real(batch)) == list(range(items))
    sampler = EpochBatches(items, size, shuffle=shuffle, seed=7)
    assert [len(batch) for batch in whole] == sampler.sizes() and len(sampler) == len(whole)
    ranks = [batches(rank, world, items, size, shuffle=shuffle, epoch=epoch, pairs=pairs) for rank in range(world)]
    for number, batch in enumerate(whole):
        parts = [rank[number] for rank in ranks]
        assert [i for part in parts for i in real(part)] == real(batch)
        assert all(part and len({key.ghost for key in part}) == 1 for part in parts)
        assert all(key.epoch == epoch for part in parts for key in part)
        if pairs:
            assert all(len(part) % 2 == 0 for part in parts[:-1] if len(real(part)) != len(real(batch)) and real(part)
                       and real(part)[-1] != real(batch)[-1])


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 3), st.data())
def test_resumed_it_hands_out_the_rest(items, size, world, data):
    done = data.draw(st.integers(0, -(-items // size)))
    for rank in range(world):
        assert batches(rank, world, items, size, done=done) == batches(rank, world, items, size)[done:]


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 3), st.integers(1, 12), st.booleans(), st.data())
def test_a_limited_epoch_is_the_first_batches(items, size, world, most, shuffle, data):
    """On every process as many, also where a stopped epoch goes on."""
    done = data.draw(st.integers(0, min(most, -(-items // size))))
    for rank in range(world):
        sampler = EpochBatches(items, size, shuffle=shuffle, seed=7, rank=rank, world=world)
        whole, sizes, origin = batches(rank, world, items, size, shuffle=shuffle, epoch=2), sampler.sizes(), \
            sampler.origin()
        sampler.limit(most)
        sampler.start(2, done)
        assert list(sampler) == whole[done:most] and sampler.sizes() == sizes[:most]
        assert len(sampler) == len(sizes[:most]) and sampler.origin() == origin


def test_a_limited_epoch_is_no_choice_by_length():
    """Other items every epoch, also while short ones come first; then items of one length are brought together."""
    seen = []
    for epoch in range(4):
        limited = of_lengths(short_first=2)
        limited.limit(2)
        limited.start(epoch)
        items = [key.item for batch in limited for key in batch]
        drawn = generator(3, epoch, "order").permutation(40)[:16]
        assert sorted(items) == sorted(drawn.tolist()) and limited.sizes() == [8, 8]
        lengths = [limited.lengths(epoch)[item] for item in items]
        assert (lengths == sorted(lengths)) == (epoch < 2)
        seen.append(frozenset(items))
    assert len(set(seen)) == 4
    assert limited.origin() != of_lengths(short_first=2).origin()  # the order is another one
    ordered = EpochBatches(40, 8, shuffle=False, seed=3, lengths=of_lengths().lengths)
    ordered.limit(2)
    assert sorted(key.item for batch in ordered for key in batch) == list(range(16))


def test_order_depends_on_epoch_and_seed_only():
    def order(epoch, size):
        return [i for batch in batches(0, 1, 30, size, epoch=epoch) for i in real(batch)]

    assert order(0, 4) == order(0, 7) != order(1, 4)
    assert order(0, 4) != list(range(30))
    assert [real(b) for b in batches(0, 1, 5, 2, shuffle=False, epoch=3)] == [[0, 1], [2, 3], [4]]


def of_lengths(size: int = 8, short_first: int = 0, plus: int = 0, **options) -> EpochBatches:
    return EpochBatches(40, size, shuffle=True, seed=3, short_first=short_first, **options,
                        lengths=lambda epoch: [4 + (7 * item * (epoch + 1)) % 13 + plus for item in range(40)])


def test_short_items_come_first_as_long_as_they_shall():
    batches = of_lengths(short_first=2)
    for epoch in range(4):
        batches.start(epoch)
        found = [[batches.lengths(epoch)[key.item] for key in batch] for batch in batches]
        assert (sum(found, []) == sorted(sum(found, []))) == (epoch < 2)
        assert sorted(key.item for batch in batches for key in batch) == list(range(40))


def test_the_origin_of_an_order_tells_other_orders():
    """Where it is equal a stopped epoch goes on with the items that are left."""
    same = [of_lengths(), of_lengths(world=2, rank=1), of_lengths()]
    others = [of_lengths(4), of_lengths(short_first=1), of_lengths(plus=1)]
    assert len({tuple(batches.origin()) for batches in same}) == 1
    assert len({tuple(batches.origin()) for batches in [of_lengths(), *others]}) == 4
    assert EpochBatches(40, 8, shuffle=True, seed=3).origin() == EpochBatches(40, 4, shuffle=True, seed=3).origin()


def test_an_even_share_only_where_pairs_matter():
    assert [len(batches(rank, 2, 2, 2)[0]) for rank in (0, 1)] == [1, 1]
    assert real(batches(1, 2, 2, 2, pairs=True)[0]) == []


def test_collate():
    items = [{"ids": str(i), "x": np.full((2,), i, np.float32), "labels": np.int64(i), "t": torch.tensor(i),
              "box": None, "ghost": i > 0} for i in range(3)]
    batch = collate(items)
    assert batch["ids"] == ["0", "1", "2"] and batch["x"].shape == (3, 2) and batch["x"].dtype == torch.float32
    assert batch["labels"].tolist() == [0, 1, 2] == batch["t"].tolist() and batch["labels"].dtype == torch.int64
    assert batch["box"] == [None] * 3 and batch["ghost"] is False and collate(items[1:])["ghost"] is True


class Numbers(Dataset):
    """Items that say who they are; asked for `wrong`, a mistake of the user's, asked for `bug`, another error."""

    def __init__(self, wrong: int = -1, bug: int = -1):
        self.wrong, self.bug = wrong, bug

    def __getitem__(self, key: Key) -> dict:
        if key.item == self.wrong:
            raise Mistake("the video does not decode", f"clip {key.item}", "look at it")
        if key.item == self.bug:
            raise ZeroDivisionError("a bug")
        return {"ids": str(key.item), "epoch": np.int64(key.epoch), "pid": os.getpid(), "ghost": key.ghost}


def loader(workers: int, **wrong) -> loading.Loader:
    return build_loader(Numbers(**wrong), EpochBatches(7, 2, shuffle=True, seed=0), workers=workers, prefetch=2,
                        pin_memory=False)


def test_workers_change_nothing_and_go_home():
    alone, helped = loader(0), loader(2)
    for epoch in (0, 1):
        ids = []
        for one in (alone, helped):
            one.batch_sampler.start(epoch, done=1)
            batches = list(one)
            assert all((b["epoch"] == epoch).all() for b in batches)
            ids.append([b["ids"] for b in batches])
        assert ids[0] == ids[1] and len(ids[0]) == 3
        pids = {pid for b in batches for pid in b["pid"]}
        assert os.getpid() not in pids and len(pids) == 2
    helped.close()
    alone.close()
    assert not {child.pid for child in multiprocessing.active_children()} & pids


@pytest.mark.parametrize("workers", [0, 1])
def test_mistakes_of_workers_arrive_as_they_were(workers):
    one = loader(workers, wrong=3)
    with pytest.raises(Mistake) as caught:
        list(one)
    assert str(caught.value) == "the video does not decode: clip 3\n  look at it"
    one.close()


def test_bugs_of_workers_keep_their_traceback():
    one = loader(1, bug=3)
    with pytest.raises(ZeroDivisionError, match="Original Traceback"):
        list(one)
    one.close()


def test_a_signal_to_the_group_leaves_the_workers(monkeypatch):
    """A worker outlives SIGINT and SIGUSR1, and SIGTERM for a while, so that the main process can save."""
    monkeypatch.setattr(loading, "GRACE", 0.5)
    one = loader(1)
    batches = iter(one)
    pid = next(batches)["pid"][0]
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(pid, number)
    assert len(list(batches)) == 3
    worker = next(c for c in multiprocessing.active_children() if c.pid == pid)
    for _ in range(100):
        if not worker.is_alive():
            break
        time.sleep(0.05)
    assert not worker.is_alive()  # and is not left behind
    one.close()
