"""A decoder of glosses: a language model, or with cross-attention what an encoder's vectors are transcribed by.

    decoder = LanguageDecoder(1297)                                 # 9.8 M parameters
    logits = decoder(vectors, lengths, tokens)                      # (N, S, 256), (N,), (N, T) -> (N, T, V)
    total, count = token_loss(logits[:, :-1], tokens[:, 1:])        # tokens begin with the start, and end in the end
    best = search.beam_search([decoder.decoder(vectors, lengths)], len(vectors), start=1, end=2, width=5)

    model = LanguageDecoder(1297, cross_attention=False)            # 8.0 M parameters
    logits = model(None, None, tokens)
    decoder.start_from(model.state_dict(), "LanguageDecoder phoenix2014 001")

Vaswani et al., Attention Is All You Need (2017), https://arxiv.org/abs/1706.03762, layer-norm first, one table for
input and output. The places are learned: with them 9.8 million parameters train for 1,297 words and 1,024 places, with
sinusoids 9.5. An item's output is what it would be alone, whatever the batch is padded with and to.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention

from slr.errors import Mistake
from slr.models.masked import Frames
from slr.models.translator import PAD, Translator

CROSS = (".cross_norm.", ".cross.")  # in the names of what a language model does not have


def token_loss(logits: Tensor, wanted: Tensor, pad: int = PAD) -> tuple[Tensor, Tensor]:
    """(Sum of -ln p of each wanted token, how many they are), padding left out.

    logits (N, T, V) about wanted (N, T), the tokens that follow those that were read. Float32, whatever the logits are.
    """
    wanted = wanted.to(logits.device)
    total = cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=pad, reduction="sum")
    return total, (wanted != pad).sum()


class Attention(nn.Module):
    """Several heads of attention: queries (N, T, width), keys and values as `keep` gives them -> (N, T, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def keep(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is looked at (N, S, width) -> its keys and values (N, heads, S, width / heads)."""
        return self._by_head(self.key(x)), self._by_head(self.value(x))

    def forward(self, x: Tensor, kept: tuple[Tensor, Tensor], mask: Tensor | None = None,
                causal: bool = False) -> Tensor:
        seen = scaled_dot_product_attention(self._by_head(self.query(x)), *kept, mask, is_causal=causal)
        return self.out(seen.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Attention to the tokens so far, to the vectors where there are some, and two linear layers about a ReLU."""

    def __init__(self, width: int, heads: int, ffn: int, drop_p: float, cross_attention: bool):
        super().__init__()
        self.own_norm, self.own = nn.LayerNorm(width), Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width) if cross_attention else None
        self.cross = Attention(width, heads) if cross_attention else None
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.dropout = nn.Dropout(drop_p)

    def forward(self, x: Tensor, memory: "Memory", number: int, before: tuple[Tensor, Tensor] | None = None,
                ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (N, T, width); before: keys and values of the tokens before these, of which x is then the next one.

        Returns the same of x, and keys and values with those of x.
        """
        normed = self.own_norm(x)
        new = self.own.keep(normed)
        kept = new if before is None else (torch.cat([before[0], new[0]], 2), torch.cat([before[1], new[1]], 2))
        x = x + self.dropout(self.own(normed, kept, causal=x.shape[1] > 1))
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), memory.kept[number], memory.mask))
        return x + self.dropout(self.fc2(self.fc1(self.norm(x)).relu())), kept


class Memory:
    """What the layers make of the vectors, once for all tokens: of each layer keys and values; where one may look.

    kept: none for a language model. mask (N, 1, 1, S) bool, None where there is no padding.
    """

    def __init__(self, kept: list[tuple[Tensor, Tensor]], mask: Tensor | None):
        self.kept, self.mask = kept, mask

    def rows(self, rows: Tensor) -> "Memory":
        return Memory([(key[rows], value[rows]) for key, value in self.kept],
                      None if self.mask is None else self.mask[rows])


class LanguageDecoder(Translator):
    """See Translator; with `cross_attention` False a language model, which takes None for vectors and lengths.

    tokens (N, T) up to `positions`; what stands behind an item's end, `PAD` or anything, changes nothing before it.
    Raises Mistake for too many tokens, for vectors where none are taken, for none where some are, and for lengths that
    are not from 1 to S.
    """

    def __init__(self, vocabulary: int, *, width: int = 256, layers: int = 7, heads: int = 4, ffn: int = 1536,
                 positions: int = 1024, cross_attention: bool = True, drop_p: float = 0.1):
        super().__init__()
        if width < 1 or width % heads:
            raise Mistake("the decoder's width is no multiple of its heads", f"{width} and {heads}")
        self.width, self.vocabulary, self.positions = width, vocabulary, positions
        self.cross_attention = cross_attention
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.places = nn.Parameter(torch.randn(positions, width) / math.sqrt(width))
        self.layers = nn.ModuleList(Layer(width, heads, ffn, drop_p, cross_attention) for _ in range(layers))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(drop_p)
        nn.init.normal_(self.embedding.weight, std=width ** -0.5)
        nn.init.zeros_(self.embedding.weight[PAD])

    def forward(self, vectors: Tensor | None, lengths: Tensor | None, tokens: Tensor) -> Tensor:
        memory, x = self.memory(vectors, lengths), self.embed(tokens)
        for number, layer in enumerate(self.layers):
            x, _ = layer(x, memory, number)
        return self.logits(x)

    def decoder(self, vectors: Tensor | None = None, lengths: Tensor | None = None) -> "Prefixes":
        return Prefixes(self, self.memory(vectors, lengths))

    def memory(self, vectors: Tensor | None, lengths: Tensor | None) -> Memory:
        if (vectors is None) == self.cross_attention or (vectors is None) != (lengths is None):
            wants = "attends to an encoder's vectors" if self.cross_attention else "is a language model alone"
            raise Mistake(f"the decoder {wants}", f"vectors and lengths: {vectors is not None}, {lengths is not None}",
                          "give both, or with cross_attention = False neither")
        if vectors is None or lengths is None:
            return Memory([], None)
        valid = Frames(lengths, vectors.shape[1], vectors.device)
        clean = valid.zero(vectors, 1)  # NaN times a weight of 0 would be NaN
        kept = [layer.cross.keep(clean) for layer in self.layers]  # type: ignore[union-attr, operator]
        return Memory(kept, None if valid.full else valid.valid[:, None, None])

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Tokens (N, T) at the places from `first` on -> (N, T, width)."""
        last = first + tokens.shape[1]
        if last > self.positions:
            raise Mistake("a sequence is too long for the decoder", f"{last} tokens, it has {self.positions} places",
                          "leave out the longest sentences, or search with a smaller max_length")
        return self.dropout(self.embedding(tokens) * math.sqrt(self.width) + self.places[first:last])

    def logits(self, x: Tensor) -> Tensor:
        return linear(self.norm(x), self.embedding.weight)

    def start_from(self, state: Mapping[str, Tensor], source: str) -> list[str]:
        """Take over a trained decoder's or language model's weights; the names of what it lacks, which stay as they
        were: at most all of the cross-attention. What only the source has is of its cross-attention, too.

        Raises Mistake for anything else, a tensor of another shape among it; nothing is changed then.
        """
        mine = self.state_dict()
        missing = [name for name in mine if name not in state]
        wrong = [name for name in (*missing, *(name for name in state if name not in mine)) if not _is_cross(name)]
        wrong += [name for name, value in mine.items() if name in state and state[name].shape != value.shape]
        if missing and len(missing) < sum(map(_is_cross, mine)):
            wrong += missing
        if wrong:
            raise Mistake(f"the language decoder of {source} is another one",
                          f"{wrong[0]} and {len(wrong) - 1} more tensors are missing, left over or of another shape",
                          "give both experiments the same vocabulary and sizes of the decoder")
        self.load_state_dict({name: state.get(name, value) for name, value in mine.items()})
        return missing


def _is_cross(name: str) -> bool:
    return any(part in name for part in CROSS)


class Prefixes:
    """The decoder a token at a time (`slr.search.Decoder`): keys and values of what was said are kept, a row a
    hypothesis. A language model's rows are as many as it is first given.
    """

    def __init__(self, model: LanguageDecoder, memory: Memory):
        self.model, self.memory, self.length = model, memory, 0
        self.kept: list[tuple[Tensor, Tensor]] = []  # of each layer (R, heads, L, width / heads)

    def step(self, tokens: Tensor) -> Tensor:
        x = self.model.embed(tokens[:, None], self.length)
        kept = []
        for number, layer in enumerate(self.model.layers):
            x, both = layer(x, self.memory, number, self.kept[number] if self.kept else None)
            kept.append(both)
        self.kept, self.length = kept, self.length + 1
        return self.model.logits(x)[:, 0].float().log_softmax(1)

    def select(self, rows: Tensor) -> None:
        self.memory = self.memory.rows(rows)
        self.kept = [(keys[rows], values[rows]) for keys, values in self.kept]
