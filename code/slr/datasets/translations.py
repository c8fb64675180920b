"""Sentences with their texts as torch data sets: glosses in, or extracted features, or (WithText) frames; tokens out.

Items are dicts as those of `sentence_clips.SentenceDataset`; they hold `text`, which is cleaned, and its `tokens`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from slr.datasets.sentence_clips import eval_indices
from slr.datasets.sentences import Sentence, steps_needed
from slr.loading import Key, collate

Clean = Callable[[str], str]
Encode = Callable[[str], list[int]]


class Written(Dataset):
    """The text side of sentences, and whose turn an item's input is.

    dealt: None, or for each item the number of the sentence whose input it is given in the place of its own: a control,
    since what is then said of the text cannot come from the input.
    """

    def __init__(self, sentences: Sequence[Sentence], clean: Clean, encode: Encode, dealt: Sequence[int] | None = None):
        self.sentences, self.clean, self.encode, self.dealt = list(sentences), clean, encode, dealt

    def __len__(self) -> int:
        return len(self.sentences)

    def shown(self, item: int) -> int:
        """The sentence whose input the item is given."""
        return item if self.dealt is None else self.dealt[item]

    def written(self, item: int, ghost: bool) -> dict[str, Any]:
        """What an item is called, and what is to be said of it."""
        sentence = self.sentences[item]
        text = self.clean(sentence.text)
        words = sentence.gloss if sentence.reference is None else sentence.reference
        return {"ids": sentence.id, "set": sentence.set, "reference": list(words), "text": text,
                "tokens": self.encode(text), "ghost": ghost}


class GlossDataset(Written):
    """Items with glosses list[int], 0 for one that `numbers` lacks."""

    def __init__(self, sentences: Sequence[Sentence], numbers: Mapping[str, int], clean: Clean, encode: Encode,
                 dealt: Sequence[int] | None = None):
        super().__init__(sentences, clean, encode, dealt)
        self.numbers = numbers

    def __getitem__(self, key: Key) -> dict[str, Any]:
        glosses = [self.numbers.get(gloss, 0) for gloss in self.sentences[self.shown(key.item)].gloss]
        return {**self.written(key.item, key.ghost), "glosses": glosses}

    def lengths(self, epoch: int) -> list[int]:
        """How many glosses each item has."""
        return [len(self.sentences[self.shown(item)].gloss) for item in range(len(self))]


class FeatureDataset(Written):
    """Items with features (T', C) float32, lengths T', and targets, needed and indices as SentenceDataset has them.

    features: {id: (T', C)}; `every` and `stride`: a time step stands for so many frames, and the model looked at every
    `every`-th of at most `most`.
    """

    def __init__(self, sentences: Sequence[Sentence], numbers: Mapping[str, int], clean: Clean, encode: Encode,
                 features: Mapping[str, torch.Tensor], *, stride: int, every: int = 1, most: int = 400,
                 dealt: Sequence[int] | None = None):
        super().__init__(sentences, clean, encode, dealt)
        self.numbers, self.features = numbers, features
        self.stride, self.every, self.most = stride, every, most

    def __getitem__(self, key: Key) -> dict[str, Any]:
        sentence, other = self.sentences[key.item], self.sentences[self.shown(key.item)]
        features = self.features[other.id]
        return {**self.written(key.item, key.ghost), "features": features.numpy(), "lengths": np.int64(len(features)),
                "needed": np.int64(steps_needed(sentence.gloss)), "indices": self._indices(other, len(features)),
                "targets": [self.numbers.get(gloss, 0) for gloss in sentence.gloss]}

    def _indices(self, sentence: Sentence, steps: int) -> np.ndarray:
        """The frames that the features are of; of other programs' features the least that there must have been."""
        if sentence.num_frames:
            indices = eval_indices(sentence.num_frames, self.most, self.every)
            if -(-len(indices) // self.stride) == steps:
                return indices
        return np.arange(steps * self.stride) * self.every

    def lengths(self, epoch: int) -> list[int]:
        """How many time steps each item has."""
        return [len(self.features[self.sentences[self.shown(item)].id]) for item in range(len(self))]


class WithText(Dataset):
    """The items of a SentenceDataset, with their texts."""

    def __init__(self, frames: Any, clean: Clean, encode: Encode, dealt: Sequence[int] | None = None):
        self.frames = frames
        self.written = Written(frames.sentences, clean, encode, dealt)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        own = self.written.written(key.item, key.ghost)
        shown = self.frames[key._replace(item=self.written.shown(key.item))]
        sentence = self.frames.sentences[key.item]
        needed = {"needed": np.int64(steps_needed(sentence.gloss)),
                  "targets": [self.frames.numbers.get(gloss, 0) for gloss in sentence.gloss]}
        return {**shown, **own, **needed}

    def lengths(self, epoch: int) -> list[int]:
        """How many frames each item has in this epoch."""
        found = self.frames.lengths(epoch)
        return [found[self.written.shown(item)] for item in range(len(self))]


def glosses_in_rows(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of GlossDataset's: glosses (N, S) int64, zeros behind an item's end, lengths (N,)."""
    rows = [torch.tensor(item["glosses"], dtype=torch.long) for item in items]
    batch = collate([{name: value for name, value in item.items() if name != "glosses"} for item in items])
    return batch | {"glosses": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
                    "lengths": torch.tensor([len(row) for row in rows])}


def dealt_out(count: int, seed: int) -> list[int]:
    """For each of so many items another one, every one once: a shuffled cycle. A single item gets itself."""
    order = np.random.default_rng(seed).permutation(count)
    dealt = np.empty(count, np.int64)
    dealt[order] = np.roll(order, 1)
    return dealt.tolist()
