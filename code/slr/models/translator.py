"""From vectors that stand for what was signed to a spoken sentence, token by token; and a small one, from scratch.

    translator = SmallTranslator(2000, width=256)
    logits = translator(vectors, lengths, tokens)            # (N, S, width), (N,), (N, T) -> (N, T, V)
    best = search.beam_search([translator.decoder(vectors, lengths)], len(vectors), start=1, end=2, width=5)

An item's output is what it would be alone, whatever the batch is padded with and to.
"""

import math
from abc import ABC, abstractmethod
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from slr.models.sentence import sinusoids

PAD = 0  # behind a target's end: never predicted, never looked at


class Decoder(Protocol):
    """What `slr.search` asks: a row a hypothesis, and to begin with a row an item."""

    def step(self, tokens: Tensor) -> Tensor:
        """(R,) the last token of each row -> (R, V) log-probabilities of the next."""

    def select(self, rows: Tensor) -> None:
        """(R',) from now on the rows are these of the present ones."""


class Translator(nn.Module, ABC):
    """Vectors (N, S, width) of lengths (N,) and the tokens so far (N, T) -> logits (N, T, V) of the next ones.

    What stands behind an item's end is not looked at. Row t is about the token that follows tokens[:, :t + 1].
    width: of the vectors; vocabulary: V.
    """

    width: int
    vocabulary: int

    @abstractmethod
    def forward(self, vectors: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor: ...

    @abstractmethod
    def decoder(self, vectors: Tensor, lengths: Tensor) -> Decoder:
        """The same a token at a time; the vectors are encoded once."""


def with_suffix(vectors: Tensor, lengths: Tensor, suffix: Tensor) -> tuple[Tensor, Tensor]:
    """Append the rows of `suffix` (L, C) behind each item's own end: (N, S + L, C), and what is padding (N, S + L).

    Padding is filled with zeros, so that whatever stood there cannot become a nan.
    """
    count, (items, steps, width) = len(suffix), vectors.shape
    lengths = lengths.to(vectors.device)
    place = torch.arange(steps + count, device=vectors.device)
    wide = torch.cat([vectors, vectors.new_zeros(items, count, width)], 1)
    wide = wide.masked_fill((place >= lengths[:, None])[..., None], 0.0)
    at = lengths[:, None] + torch.arange(count, device=vectors.device)
    rows = suffix.to(wide.dtype).expand(items, -1, -1)
    return wide.scatter(1, at[..., None].expand(-1, -1, width), rows), place >= (lengths[:, None] + count)


class SmallTranslator(Translator):
    """A Transformer of a few million parameters: Vaswani et al., Attention Is All You Need (2017),
    https://arxiv.org/abs/1706.03762, layer-norm first, one table for the decoder's input and output.
    """

    def __init__(self, vocabulary: int, *, width: int = 256, layers: int = 3, heads: int = 4, ffn: int = 1024,
                 drop_p: float = 0.1):
        super().__init__()
        self.width, self.vocabulary = width, vocabulary
        shape = {"d_model": width, "nhead": heads, "dim_feedforward": ffn, "dropout": drop_p, "batch_first": True,
                 "norm_first": True}
        self.suffix = nn.Parameter(torch.randn(1, width) / math.sqrt(width))  # says that the signing is over
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**shape), layers,  # type: ignore[arg-type]
                                             nn.LayerNorm(width), enable_nested_tensor=False)
        self.text = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shape), layers,  # type: ignore[arg-type]
                                          nn.LayerNorm(width))
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=width ** -0.5)
        nn.init.zeros_(self.embedding.weight[PAD])
        self.dropout = nn.Dropout(drop_p)

    def encode(self, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder attends to (N, S + 1, width), and what of it is padding (N, S + 1)."""
        whole, padding = with_suffix(vectors, lengths, self.suffix)
        whole = whole * math.sqrt(self.width) + sinusoids(whole.shape[1], self.width, whole.device)
        return self.encoder(self.dropout(whole), src_key_padding_mask=padding), padding

    def decode(self, memory: Tensor, padding: Tensor, tokens: Tensor) -> Tensor:
        """Decoder's output (N, T, width)."""
        steps = tokens.shape[1]
        future = torch.ones(steps, steps, dtype=torch.bool, device=tokens.device).triu(1)
        return self.text(self.embed(tokens), memory, tgt_mask=future, memory_key_padding_mask=padding)

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Decoder's input (N, T, width) for tokens (N, T) at the positions from `first` on."""
        places = sinusoids(first + tokens.shape[1], self.width, tokens.device)[first:]
        return self.dropout(self.embedding(tokens) * math.sqrt(self.width) + places)

    def forward(self, vectors: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        return linear(self.decode(*self.encode(vectors, lengths), tokens), self.embedding.weight)

    def decoder(self, vectors: Tensor, lengths: Tensor) -> "Prefixes":
        return Prefixes(self, *self.encode(vectors, lengths))


class Prefixes:
    """Decoder of the small translator: a token at a time, what self-attention reads again is kept, a row a hypothesis.

    `seen`: of each layer the inputs of its self-attention so far (R, L, width).
    """

    def __init__(self, translator: SmallTranslator, memory: Tensor, padding: Tensor):
        self.translator, self.memory, self.padding = translator, memory, padding
        self.length = 0
        self.seen = [memory.new_empty(len(memory), 0, translator.width) for _ in translator.text.layers]

    def step(self, tokens: Tensor) -> Tensor:
        model = self.translator
        x = model.embed(tokens[:, None], self.length)
        self.length += 1
        for number, layer in enumerate(model.text.layers):
            x = self._through(number, cast(nn.TransformerDecoderLayer, layer), x)
        last = cast(nn.LayerNorm, model.text.norm)(x)[:, 0]
        return linear(last, model.embedding.weight).float().log_softmax(1)

    def _through(self, number: int, layer: nn.TransformerDecoderLayer, x: Tensor) -> Tensor:
        """What the layer makes of the newest token (R, 1, width): torch's forward, but for what is kept."""
        new = layer.norm1(x)
        self.seen[number] = seen = torch.cat([self.seen[number], new], 1)
        x = x + layer.dropout1(layer.self_attn(new, seen, seen, need_weights=False)[0])
        found, _ = layer.multihead_attn(layer.norm2(x), self.memory, self.memory, key_padding_mask=self.padding,
                                        need_weights=False)
        x = x + layer.dropout2(found)
        inner = layer.dropout(layer.activation(layer.linear1(layer.norm3(x))))
        return x + layer.dropout3(layer.linear2(inner))

    def select(self, rows: Tensor) -> None:
        self.memory, self.padding = self.memory[rows], self.padding[rows]
        self.seen = [seen[rows] for seen in self.seen]
