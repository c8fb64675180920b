"""Sentences with texts: what an item holds, whose input it is given, and how a batch is put together."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slr.datasets.sentence_clips import eval_indices, packed, split
from slr.datasets.sentences import Sentence
from slr.datasets.translations import FeatureDataset, GlossDataset, WithText, dealt_out, glosses_in_rows
from slr.loading import Key

NUMBERS = {"A": 1, "B": 2, "C": 3}
SENTENCES = [Sentence("a", "val", ("A", "A", "X"), 10, text="Ein Satz"),
             Sentence("b", "val", ("C",), 9, text="Noch ein Satz", reference=("C", "D")),
             Sentence("c", "val", (), 0, text="")]
DEALT = [1, 2, 0]
FEATURES = {"a": torch.arange(6.0).view(3, 2), "b": torch.arange(4.0).view(2, 2) + 10, "c": torch.full((1, 2), 20.0)}
TEXTS = [("ein satz", [3, 4]), ("noch ein satz", [4, 3, 4]), ("", [])]


def encode(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def glosses(dealt=None) -> GlossDataset:
    return GlossDataset(SENTENCES, NUMBERS, str.lower, encode, dealt)


def features(dealt=None, sentences=SENTENCES, **options) -> FeatureDataset:
    return FeatureDataset(sentences, NUMBERS, str.lower, encode, FEATURES, **{"stride": 4, "dealt": dealt} | options)


@dataclass
class Pictures:
    """A SentenceDataset without pictures: 4, 5, 6 frames in epoch 0, one more in each epoch."""

    sentences: list[Sentence] = field(default_factory=lambda: SENTENCES)
    numbers: dict[str, int] = field(default_factory=lambda: NUMBERS)

    def __len__(self) -> int:
        return len(self.sentences)

    def lengths(self, epoch: int) -> list[int]:
        return [4 + item + epoch for item in range(len(self))]

    def __getitem__(self, key: Key) -> dict[str, Any]:
        count = self.lengths(key.epoch)[key.item]
        return {"ids": self.sentences[key.item].id, "set": "val", "lengths": np.int64(count),
                "frames": np.full((count, 2, 2, 3), key.item, np.uint8), "indices": np.arange(count),
                "reference": ["wrong"], "targets": [9], "needed": np.int64(9),
                "draws": np.full(6, key.item, np.float32), "ghost": key.ghost}


def with_text(dealt=None) -> WithText:
    return WithText(Pictures(), str.lower, encode, dealt)


# --- items --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make", [glosses, features, with_text])
@pytest.mark.parametrize("dealt", [None, DEALT], ids=["own", "dealt"])
def test_the_text_side_is_the_items_own(make, dealt):
    """Also where the input is another's; a corpus's own reference goes before the glosses."""
    dataset = make(dealt)
    assert len(dataset) == 3
    for item, reference in enumerate([["A", "A", "X"], ["C", "D"], []]):
        for ghost in (False, True):
            found = dataset[Key(0, item, ghost)]
            assert (found["ids"], found["set"], found["ghost"]) == ("abc"[item], "val", ghost)
            assert (found["text"], found["tokens"]) == TEXTS[item] and found["reference"] == reference


@pytest.mark.parametrize("make", [features, with_text])
@pytest.mark.parametrize("dealt", [None, DEALT], ids=["own", "dealt"])
def test_the_targets_are_the_items_own(make, dealt):
    dataset = make(dealt)
    found = [dataset[Key(0, item)] for item in range(3)]
    assert [x["targets"] for x in found] == [[1, 1, 0], [3], []]
    assert [x["needed"] for x in found] == [4, 1, 0]


@pytest.mark.parametrize("dealt", [None, DEALT], ids=["own", "dealt"])
def test_the_input_is_that_of_the_sentence_it_is_given(dealt):
    for item, shown in enumerate(dealt or range(3)):
        assert glosses(dealt)[Key(0, item)]["glosses"] == [[1, 1, 0], [3], []][shown]
        seen = features(dealt)[Key(0, item)]
        assert np.array_equal(seen["features"], FEATURES["abc"[shown]].numpy()) and seen["features"].dtype == np.float32
        pictures = with_text(dealt)[Key(2, item)]
        assert len(pictures["frames"]) == len(pictures["indices"]) == pictures["lengths"] == 4 + shown + 2
        assert (pictures["frames"] == shown).all() and (pictures["draws"] == shown).all()


@pytest.mark.parametrize("dealt", [None, DEALT], ids=["own", "dealt"])
def test_lengths_are_those_of_the_items(dealt):
    assert glosses(dealt).lengths(0) == [len(glosses(dealt)[Key(0, item)]["glosses"]) for item in range(3)]
    assert features(dealt).lengths(0) == [features(dealt)[Key(0, item)]["lengths"] for item in range(3)]
    for epoch in range(2):
        assert with_text(dealt).lengths(epoch) == [with_text(dealt)[Key(epoch, i)]["lengths"] for i in range(3)]


@pytest.mark.parametrize(("options", "frames"), [
    ({}, [list(range(10)), [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3]]),  # 9 frames of b would be 3 time steps, not 2
    ({"most": 9}, [list(range(9)), [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3]]),
    ({"stride": 2, "every": 2}, [[0, 2, 4, 6, 8], [0, 2, 4, 6], [0, 2]]),
])
def test_indices_are_the_frames_behind_the_features(options, frames):
    """Where the sentence has frames of which a model makes that many time steps: those that evaluation looks at."""
    dataset = features(**options)
    assert [dataset[Key(0, item)]["indices"].tolist() for item in range(3)] == frames
    dealt = features(DEALT, **options)
    assert [dealt[Key(0, item)]["indices"].tolist() for item in range(3)] == [frames[shown] for shown in DEALT]


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 3), st.integers(1, 30))
def test_indices_of_our_own_features(count, stride, every, most):
    looked_at = eval_indices(count, most, every)
    rows = {"x": torch.zeros(-(-len(looked_at) // stride), 1)}
    dataset = FeatureDataset([Sentence("x", "val", (), count)], {}, str, encode, rows, stride=stride, every=every,
                             most=most)
    assert np.array_equal(dataset[Key(0, 0)]["indices"], looked_at)


# --- the control --------------------------------------------------------------------------------------------

@given(st.integers(2, 50), st.integers(0, 10**6))
def test_every_item_is_dealt_to_another(count, seed):
    dealt = dealt_out(count, seed)
    assert sorted(dealt) == list(range(count)) and all(given != item for item, given in enumerate(dealt))
    assert dealt == dealt_out(count, seed) and all(type(given) is int for given in dealt)


def test_too_few_to_deal():
    assert dealt_out(0, 3) == [] and dealt_out(1, 3) == [0]
    assert len({tuple(dealt_out(6, seed)) for seed in range(20)}) > 10


# --- batches ------------------------------------------------------------------------------------------------

def test_glosses_in_rows():
    batch = glosses_in_rows([glosses()[Key(0, item)] for item in range(3)])
    assert batch["glosses"].tolist() == [[1, 1, 0], [3, 0, 0], [0, 0, 0]] and batch["glosses"].dtype == torch.int64
    assert batch["lengths"].tolist() == [3, 1, 0] and batch["lengths"].dtype == torch.int64
    assert batch["ids"] == ["a", "b", "c"] and batch["tokens"] == [x for _, x in TEXTS] and batch["ghost"] is False
    assert batch["reference"] == [["A", "A", "X"], ["C", "D"], []] and batch["text"] == [x for x, _ in TEXTS]
    alone = glosses_in_rows([glosses()[Key(0, 2, True)]])
    assert alone["glosses"].shape == (1, 0) and alone["lengths"].tolist() == [0] and alone["ghost"] is True


def test_features_in_a_batch():
    batch = packed([features(DEALT)[Key(0, item)] for item in range(3)])
    assert batch["features"].shape == (6, 2) and batch["lengths"].tolist() == [2, 1, 3]
    for found, shown in zip(split(batch, "features"), DEALT, strict=True):
        assert torch.equal(found, FEATURES["abc"[shown]])
    assert batch["indices"] == [list(range(8)), [0, 1, 2, 3], list(range(10))]
    assert batch["targets"] == [[1, 1, 0], [3], []] and batch["needed"].tolist() == [4, 1, 0]
    assert batch["ids"] == ["a", "b", "c"] and batch["text"] == [x for x, _ in TEXTS]


def test_frames_in_a_batch():
    batch = packed([with_text()[Key(0, item)] for item in range(3)])
    assert [x.shape for x in split(batch)] == [(n, 2, 2, 3) for n in (4, 5, 6)]
    assert batch["tokens"] == [x for _, x in TEXTS] and batch["targets"] == [[1, 1, 0], [3], []]
    assert batch["draws"].tolist() == [[0.0] * 6, [1.0] * 6, [2.0] * 6]
