"""Pre-training without labels: tell a masked frame's own code from those of other masked frames of the same clip.

    model = Contrastive(SpatioTemporalEncoder())
    masked = draw_masked(frames, rngs)                             # rngs: a numpy generator an item
    contrast = model(features, frames, masked, temperature=2.0)    # features (N, T, 768)
    total = sum(WEIGHTS.get(name, 0.0) * value / max(count, 1) for name, (value, count) in losses(contrast).items())

Baevski et al., wav2vec 2.0 (2020), https://arxiv.org/abs/2006.11477. A clip with fewer than two masked frames has no
negatives, so none of its frames is masked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, gumbel_softmax, one_hot

from slr.errors import Mistake
from slr.models import spatio_temporal
from slr.models.masked import Frames
from slr.models.spatio_temporal import Spans, SpatioTemporalEncoder

SPANS = Spans(share=0.3, length=2, least=1)
NEGATIVES = 10
COSINE_TEMPERATURE = 0.1
WEIGHTS = {"contrastive": 1.0, "diversity": 0.1}  # of the losses in the total; the others are only reported


# --- which frames, and which others -------------------------------------------------------------------------

@dataclass(frozen=True)
class Masked:
    """mask (N, T) bool; index (M,) where its frames are among the N T of the batch; negatives (M, K) which of the M
    frames each is told from.
    """

    mask: Tensor
    index: Tensor
    negatives: Tensor


def draw_masked(frames: Frames, rngs: Sequence[np.random.Generator], spans: Spans = SPANS,
                negatives: int = NEGATIVES) -> Masked:
    """Spans of valid frames, and for each frame other masked ones of its clip, drawn evenly and with replacement.

    All of an item's come from its own generator, so neighbours and padding change nothing. On the frames' device.
    Raises Mistake for less than one negative.
    """
    if negatives < 1:
        raise Mistake("a code is told from no other", f"{negatives} negatives", "give 1 or more")
    mask, others, before = np.zeros((len(frames.lengths), frames.steps), bool), [np.empty((0, negatives), np.int64)], 0
    for row, length, rng in zip(mask, frames.lengths.tolist(), rngs, strict=True):
        drawn = spans.draw(length, rng)
        count = int(drawn.sum())
        if count < 2:
            continue
        row[:length] = drawn
        picked = rng.integers(0, count - 1, (count, negatives))
        others.append(before + picked + (picked >= np.arange(count)[:, None]))
        before += count
    index = np.flatnonzero(mask)
    return Masked(*(torch.from_numpy(part).to(frames.device, non_blocking=True)
                    for part in (mask, index, np.concatenate(others))))


# --- codes --------------------------------------------------------------------------------------------------

class Codes(NamedTuple):
    """vectors (M, dim); chosen (M, G) the number of each group's code; shares (M, G, V) of the codes: in training their
    probabilities without noise, in evaluation 1 for the chosen ones.
    """

    vectors: Tensor
    chosen: Tensor
    shares: Tensor


class GumbelQuantizer(nn.Module):
    """Rows (M, width) -> Codes: in each of G groups one of V learned vectors, beside one another `dim` numbers.

    Product quantisation with a straight-through Gumbel softmax, wav2vec 2.0, equation 1; Jang et al. (2016),
    https://arxiv.org/abs/1611.01144. In evaluation the most probable code is chosen, and the temperature has no say.
    Raises Mistake for a dim that the groups do not divide.
    """

    def __init__(self, width: int = 768, *, groups: int = 2, codes: int = 320, dim: int = 256):
        super().__init__()
        if dim % groups:
            raise Mistake("the groups of codes share a vector", f"{groups} groups, {dim} numbers",
                          f"give a multiple of {groups}")
        self.groups, self.codes, self.dim = groups, codes, dim
        self.choose = nn.Linear(width, groups * codes)
        nn.init.normal_(self.choose.weight)
        nn.init.zeros_(self.choose.bias)
        self.codebook = nn.Parameter(torch.rand(groups * codes, dim // groups))

    def forward(self, rows: Tensor, temperature: float) -> Codes:
        logits = self.choose(rows).unflatten(1, (self.groups, self.codes)).float()
        if self.training:
            picked, shares = gumbel_softmax(logits, temperature, hard=True), logits.softmax(2)
        else:
            picked = shares = one_hot(logits.argmax(2), self.codes).to(logits)
        codebook = self.codebook.unflatten(0, (self.groups, self.codes))
        vectors = torch.einsum("mgv,gvd->mgd", picked, codebook).flatten(1)
        return Codes(vectors, picked.argmax(2), shares)


# --- the task -----------------------------------------------------------------------------------------------

class Contrast(NamedTuple):
    """logits (M, 1 + K): of a masked frame's own code and of its negatives', -inf for those that are the same code;
    usage (G, V): the sum over the M frames of their codes' shares. Both float32. Of several batches, usages add up.
    """

    logits: Tensor
    usage: Tensor


class Contrastive(nn.Module):
    """The encoder with what only its pre-training needs: the quantiser, and two linear layers to where they compare."""

    def __init__(self, encoder: SpatioTemporalEncoder, *, groups: int = 2, codes: int = 320, dim: int = 256,
                 compared: int = 256):
        super().__init__()
        self.encoder = encoder
        self.quantizer = GumbelQuantizer(encoder.width, groups=groups, codes=codes, dim=dim)
        self.project_context, self.project_codes = nn.Linear(encoder.width, compared), nn.Linear(dim, compared)

    def forward(self, features: Tensor, frames: Frames, masked: Masked, temperature: float) -> Contrast:
        """features (N, T, width); temperature: of the Gumbel softmax."""
        normed = self.encoder.normed(features, frames)
        context = self.encoder.over_time(normed, frames, masked.mask)
        rows, context = (x.flatten(0, 1).index_select(0, masked.index) for x in (normed, context))
        codes = self.quantizer(rows, temperature)
        logits = contrastive_logits(self.project_context(context), self.project_codes(codes.vectors), codes.chosen,
                                    masked.negatives)
        return Contrast(logits, codes.shares.sum(0))


def contrastive_logits(context: Tensor, targets: Tensor, chosen: Tensor, negatives: Tensor) -> Tensor:
    """(M, 1 + K) float32: cosine of each context (M, D) with its own target (M, D) and with those of its negatives
    (M, K), over 0.1; wav2vec 2.0, equation 3. A negative of the same code, chosen (M, G), is no other: -inf.
    """
    candidates = torch.cat([targets[:, None], targets[negatives]], 1).float()
    logits = cosine_similarity(context[:, None].float(), candidates, dim=2) / COSINE_TEMPERATURE
    same = (chosen[negatives] == chosen[:, None]).all(2)
    return torch.cat([logits[:, :1], logits[:, 1:].masked_fill(same, -torch.inf)], 1)


# --- losses: sums over the masked frames, and how many those are --------------------------------------------

Sum = tuple[Tensor, int]


def contrastive_loss(logits: Tensor) -> Sum:
    """Cross-entropy of the own code among the candidates: wav2vec 2.0, equation 3."""
    return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="sum"), len(logits)


def perplexity(usage: Tensor, count: int) -> Tensor:
    """How many codes are in use, from G to G V: exp of the entropy of a group's mean shares, summed over the groups.

    usage (G, V), summed over `count` frames.
    """
    shares = usage / max(count, 1)
    return torch.exp(-torch.xlogy(shares, shares).sum(1)).sum()


def diversity_loss(usage: Tensor, count: int) -> Sum:
    """The share of the codes that are not in use, (G V - perplexity) / G V, for each frame.

    As fairseq and transformers have it; the paper's equation 4 is the entropy itself. It is about all frames of a batch
    together: unlike the other losses its mean depends on how a batch is cut.
    """
    return (1 - perplexity(usage, count) / usage.numel()) * count, count


def hits(logits: Tensor) -> Sum:
    """How often the own code comes first, ahead of every other; never where all negatives are the same code.

    So a codebook that has collapsed to one code is right about nothing.
    """
    best = logits[:, 1:].amax(1)
    return ((logits[:, 0] > best) & best.isfinite()).sum().to(logits), len(logits)


def losses(contrast: Contrast) -> dict[str, Sum]:
    """{name: (sum over the masked frames, how many)}; WEIGHTS says which are trained on. Sums are 0 without a frame."""
    logits, usage = contrast
    count = len(logits)
    return {"contrastive": contrastive_loss(logits), "diversity": diversity_loss(usage, count),
            "perplexity": (perplexity(usage, count) * count, count), "accuracy": hits(logits)}


# --- transformers' names ------------------------------------------------------------------------------------

_NAMES = {"quantizer.codebook": "quantizer.codevectors",
          **{f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")
             for ours, theirs in (("quantizer.choose", "quantizer.weight_proj"), ("project_context", "project_hid"),
                                  ("project_codes", "project_q"))}}
_ENCODER = "encoder."


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contrastive's tensors under the names that Wav2Vec2ForPreTraining has for them.

    Raises Mistake for a name that Contrastive does not have.
    """
    encoder = spatio_temporal.to_transformers({name.removeprefix(_ENCODER): tensor for name, tensor in state.items()
                                               if name not in _NAMES})
    heads = {_NAMES[name]: tensor for name, tensor in state.items() if name in _NAMES}
    if _NAMES["quantizer.codebook"] in heads:
        heads[_NAMES["quantizer.codebook"]] = heads[_NAMES["quantizer.codebook"]][None]
    return {f"wav2vec2.{name}": tensor for name, tensor in encoder.items()} | heads


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a Wav2Vec2ForPreTraining under Contrastive's names, but for the parts that hear sound.

    Raises Mistake for other names: the weights of another model.
    """
    encoder = spatio_temporal.from_transformers({name: tensor for name, tensor in state.items()
                                                 if name not in _NAMES.values()})
    heads = {ours: state[theirs] for ours, theirs in _NAMES.items() if theirs in state}
    if "quantizer.codebook" in heads:
        heads["quantizer.codebook"] = heads["quantizer.codebook"][0]
    return {_ENCODER + name: tensor for name, tensor in encoder.items()} | heads
