"""Transcription: what an encoder makes of a clip, a linear layer, and the language decoder that says its glosses.

    model = Transcriber(OverTime(SpatioTemporalEncoder()), LanguageDecoder(1297))
    said = model(features, lengths, tokens, rngs)           # (N, T, 768), (N,), (N, U) -> logits (N, U, V)
    decoder = model.decoder.decoder(said.vectors, said.lengths)     # for slr.search

An encoder is `forward(inputs, lengths, rngs) -> (vectors (N, S, width), lengths (N,))`; rngs are the items' own numpy
generators, of which only the spatio-temporal one in training draws. `moments` says which of the vectors belong to which
moment, for CTC.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from slr.models.language_decoder import LanguageDecoder
from slr.models.masked import Frames
from slr.models.spatio_temporal import SpatioTemporalEncoder
from slr.models.video_mae import ClipEncoder
from slr.models.vivit import ViViT

Rngs = Sequence[np.random.Generator] | None


class OverTime(nn.Module):
    """The spatio-temporal encoder of features (N, T, width): a vector a frame."""

    def __init__(self, encoder: SpatioTemporalEncoder):
        super().__init__()
        self.net, self.width = encoder, encoder.width

    def forward(self, inputs: Tensor, lengths: Tensor, rngs: Rngs = None) -> tuple[Tensor, Tensor]:
        frames = Frames(lengths, inputs.shape[1], inputs.device)
        return self.net(inputs, frames, rngs=rngs), frames.lengths

    def moments(self, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, width) and (N,): a vector for each moment, and how many of them an item has."""
        return vectors, lengths


class OverTubelets(nn.Module):
    """VideoMAE or ViViT on clips (N, 3, T, H, W): a vector a tubelet, and ViViT's class token before them."""

    def __init__(self, encoder: ClipEncoder):
        super().__init__()
        self.net, self.width = encoder, encoder.width
        self.before = int(isinstance(encoder, ViViT))  # vectors that belong to no moment

    def forward(self, inputs: Tensor, lengths: Tensor, rngs: Rngs = None) -> tuple[Tensor, Tensor]:
        return self.net(inputs, lengths)

    def moments(self, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over the cells of each time step, (N, T', width), and how many steps an item has."""
        cells = self.net.sizes.cells
        return vectors[:, self.before:].unflatten(1, (-1, cells)).mean(2), (lengths - self.before) // cells


class Said(NamedTuple):
    """logits (N, U, V) of the next tokens; vectors (N, S, width) with their lengths (N,), which a search goes on with;
    ctc (N, S', V) and steps (N,) of the joint CTC, None without it; token 0, padding, is CTC's blank. decoder: what
    says the rest, of the very weights that have looked (a moving average has its own).
    """

    logits: Tensor
    vectors: Tensor
    lengths: Tensor
    ctc: Tensor | None
    steps: Tensor | None
    decoder: LanguageDecoder | None = None


class Transcriber(nn.Module):
    """encoder: OverTime or OverTubelets; joint: whether CTC looks at the encoder, too.

    After Kim et al. (2017), https://arxiv.org/abs/1609.06773: CTC on the encoder beside the attending decoder.
    """

    def __init__(self, encoder: OverTime | OverTubelets, decoder: LanguageDecoder, *, joint: bool = False):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.bridge = nn.Linear(encoder.width, decoder.width)
        self.head = nn.Linear(encoder.width, decoder.vocabulary) if joint else None

    def forward(self, inputs: Tensor, lengths: Tensor, tokens: Tensor, rngs: Rngs = None) -> Said:
        vectors, lengths = self.encoder(inputs, lengths, rngs)
        seen = self.bridge(vectors)
        logits = self.decoder(seen, lengths, tokens)
        if self.head is None:
            return Said(logits, seen, lengths, None, None)
        moments, steps = self.encoder.moments(vectors, lengths)
        return Said(logits, seen, lengths, self.head(moments), steps)
