"""The two models of translation: glosses to text, and signing to glosses and text, over any Translator.

    model = Gloss2Text(1094, translator)
    logits = model(glosses, lengths, tokens)                          # (N, S), (N,), (N, T) -> (N, T, V)
    model = Sign2Text(visual, mapper, translator)
    said = model(features, lengths, tokens, features=True)            # or clips (N, 3, T, H, W) and their lengths

Chen et al., A Simple Multi-Modality Transfer Learning Baseline for Sign Language Translation (2022),
https://arxiv.org/abs/2203.04287, section 3: a visual encoder, a visual-language mapper, a translator.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from slr.models.sentence import GlossHead, SentenceModel
from slr.models.translator import Translator


class Source(NamedTuple):
    """What a translator reads: vectors (N, S, width), lengths (N,)."""

    vectors: Tensor
    lengths: Tensor


class Said(NamedTuple):
    """Of a batch: gloss logits (N, T', K) or None, time steps (N,), text logits (N, T, V), what the translator read."""

    glosses: Tensor | None
    steps: Tensor
    text: Tensor
    source: Source


class Gloss2Text(nn.Module):
    """Glosses by number -> text. Row 0, CTC's blank, also stands for a gloss that is not known."""

    def __init__(self, num_classes: int, translator: Translator):
        super().__init__()
        self.gloss_embedding = nn.Embedding(num_classes, translator.width)
        nn.init.normal_(self.gloss_embedding.weight, std=translator.width ** -0.5)
        self.translator = translator

    def forward(self, glosses: Tensor, lengths: Tensor, tokens: Tensor) -> Said:
        source = Source(self.gloss_embedding(glosses), lengths)
        return Said(None, lengths, self.translator(*source, tokens), source)


class Projection(nn.Module):
    """The mapper from gloss features: (N, T', channels) -> (N, T', width), one hidden layer."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(channels, width), nn.Linear(width, width)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        return self.second(self.first(features).relu())


class Expectation(nn.Module):
    """The mapper from gloss probabilities: the mean of the embeddings that they expect; the blank's begins as 0.

    Its table is (K, width): that of a gloss-to-text model, to begin with.
    """

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_classes, width) * width ** -0.5)
        with torch.no_grad():
            self.embedding[0] = 0

    def start_from(self, table: Tensor) -> None:
        """Take over a gloss embedding (K, width), but for the blank's row."""
        with torch.no_grad():
            self.embedding[1:] = table[1:].to(self.embedding)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        return logits.softmax(2) @ self.embedding


MAPPERS = {"projection": Projection, "embedding": Expectation}


class FeatureHead(nn.Module):
    """In the place of a SentenceModel where there is no backbone: features go in, no videos."""

    def __init__(self, classifier: GlossHead, stride: int):
        super().__init__()
        self.classifier, self.stride = classifier, stride


class Sign2Text(nn.Module):
    """A visual encoder with its gloss head, a mapper, a translator.

    learns_to_see: whether the backbone trains; else it stays as it is, its batch-norm too, and serves only videos that
    are read after the training on extracted features.
    """

    def __init__(self, visual: SentenceModel | FeatureHead, mapper: nn.Module, translator: Translator,
                 learns_to_see: bool):
        super().__init__()
        self.visual, self.mapper, self.translator = visual, mapper, translator
        self.learns_to_see = learns_to_see
        if not learns_to_see:
            self._backbone().requires_grad_(False)
            self.train()

    @property
    def stride(self) -> int:
        return self.visual.stride

    def _backbone(self) -> nn.Module:
        return self.visual.backbone if isinstance(self.visual, SentenceModel) else nn.Identity()

    def train(self, mode: bool = True) -> "Sign2Text":
        super().train(mode)
        if not self.learns_to_see:
            self._backbone().eval()
        return self

    def read(self, inputs: Tensor, lengths: Tensor, features: bool) -> tuple[Tensor, Tensor, Source]:
        """Gloss logits (N, T', K), time steps (N,), and what the translator is given."""
        seen, steps = (inputs, lengths) if features else self.visual.features(inputs, lengths)  # type: ignore[operator]
        head = self.visual.classifier
        gloss = head.gloss_features(seen, steps)
        logits = head.gloss(gloss)
        return logits, steps, Source(self.mapper(gloss, logits), steps)

    def forward(self, inputs: Tensor, lengths: Tensor, tokens: Tensor, features: bool) -> Said:
        logits, steps, source = self.read(inputs, lengths, features)
        return Said(logits, steps, self.translator(*source, tokens), source)
