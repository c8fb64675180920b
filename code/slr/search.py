"""Beam search over autoregressive decoders: the most probable token sequences of each item, best first.

A hypothesis is a sequence of at most max_length tokens that ends in `end`, which counts; at the last place nothing
else is allowed. Its score is ln p / length ** length_penalty, the form of transformers' generate: a penalty of 0 ranks
by probability, more of it favours long sequences. Nothing here is differentiated.
"""

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from slr.errors import Mistake

NEVER = -math.inf
ROUNDING = 1e-3  # a log-probability may be that much above 0: a log_softmax in half precision


class Decoder(Protocol):
    """What continues sequences. It begins with one row an item, and remembers what each row was given."""

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (R,), the last one of each row -> log-probabilities (R, V) of the next, of any float type."""

    def select(self, rows: Tensor) -> None:
        """rows (R',) of the present ones are the rows from now on; one may come several times, or not at all."""


@dataclass(frozen=True)
class Hypothesis:
    """A sequence that ended."""

    tokens: tuple[int, ...]  # without start and end
    score: float  # ln p / length ** length_penalty, where end counts in both


class Average:
    """An ensemble as one decoder: the mean of the members' probabilities, as its logarithm.

    Raises Mistake for no members, and for members that differ in vocabulary.
    """

    def __init__(self, decoders: Sequence[Decoder]):
        if not decoders:
            raise Mistake("there is nothing to decode with", "no decoders", "give at least one")
        self.decoders = list(decoders)

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (R,) -> log-probabilities (R, V), in float32 at least, on the first member's device."""
        found = [decoder.step(tokens) for decoder in self.decoders]
        shapes = {tuple(x.shape) for x in found}
        if len(shapes) > 1:
            raise Mistake("the models of an ensemble differ in what they put out", f"shapes {sorted(shapes)}",
                          "take models that were trained with the same vocabulary")
        if len(found) == 1:
            return found[0]
        return torch.stack([_wide(x).to(found[0].device) for x in found]).logsumexp(0) - math.log(len(found))

    def select(self, rows: Tensor) -> None:
        for decoder in self.decoders:
            decoder.select(rows)


class Weighted:
    """Decoders that weigh differently as one: the sum of their weighted log-probabilities, which is no distribution.

    Hori, Watanabe and Hershey (2017), https://doi.org/10.18653/v1/P17-1048, for attention and CTC. What
    one of them forbids is forbidden, if it weighs anything.
    """

    def __init__(self, decoders: Sequence[Decoder], weights: Sequence[float]):
        self.parts = [(decoder, weight) for decoder, weight in zip(decoders, weights, strict=True) if weight]

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (R,) -> (R, V), in float32 at least."""
        return torch.stack([weight * _wide(decoder.step(tokens)) for decoder, weight in self.parts]).sum(0)

    def select(self, rows: Tensor) -> None:
        for decoder, _ in self.parts:
            decoder.select(rows)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class _Rules:
    """What the search was asked for."""

    end: int
    width: int
    limits: tuple[int, ...]  # the most tokens of each item
    penalty: float
    banned: tuple[int, ...]

    def score(self, total: float, length: int) -> float:
        return total / length ** self.penalty

    def bound(self, total: float, length: int, limit: int) -> float:
        """No hypothesis that a live beam with so many tokens leads to has a higher score.

        Its sum, below 0, can only fall; dividing by L ** penalty raises it most at the greatest length for a positive
        penalty, and lowers it least at the next one for a negative penalty.
        """
        return self.score(total, limit if self.penalty > 0 else length + 1)


@dataclass(frozen=True)
class _Beams:
    """The B best open sequences of each of N items, best first; behind an item's own stand dead ones."""

    items: Tensor  # (N,) which items these are
    tokens: Tensor  # (N, B, L) int64
    sums: Tensor  # (N, B) float64 ln p, -inf for dead ones


@dataclass(frozen=True)
class _Ranked:
    """The best continuations of the N items' beams, best first; -inf where there are no more."""

    totals: Tensor  # (N, C) float64 ln p
    parents: Tensor  # (N, C) which beam goes on
    tokens: Tensor  # (N, C) with which token


@torch.no_grad()
def beam_search(decoders: Sequence[Decoder], items: int, *, start: int, end: int, width: int = 1,
                max_length: int | Sequence[int] = 100, length_penalty: float = 1.0, banned: Sequence[int] = (),
                device: torch.device | str = "cpu") -> list[list[Hypothesis]]:
    """The best hypotheses of each item, best first: at most `width`; none where all that could end has probability 0.

    decoders: fresh ones, with a row for each of the items; several are an ensemble (see `Average`). They are given
    tokens and rows as int64 on `device`. max_length: for all items, or one for each. banned: tokens that never come,
    such as padding; what the others have is not scaled up for it.

    As in transformers' generate (early_stopping="never"), a step ranks all continuations of an item's beams. Those by
    `end` among the first `width` become hypotheses, and the first `width` others go on, so that ended ones take no
    room. An item is done when no beam of it can still beat its worst of `width` hypotheses, whatever is to come, and
    its rows leave the decoders. A width that drops nothing is exhaustive. Width 1 is greedy search: the most probable
    token at every place, and done at the first `end`.

    Sums are taken in float64. Of equal continuations that of the better beam is first, then that of the lower token; of
    equal hypotheses the shorter. What an item gets does not depend on the others, as far as the decoders' rows don't.

    Raises Mistake for settings out of range, and for decoders that put out NaN or no log-probabilities.
    """
    rules = _Rules(end, width, _limits(items, max_length), length_penalty, tuple(banned))
    _check(rules)
    decoder = Average(decoders)
    hypotheses: list[list[Hypothesis]] = [[] for _ in range(items)]
    beams = _Beams(torch.arange(items), torch.empty(items, 1, 0, dtype=torch.int64), torch.zeros(items, 1).double())
    tokens = torch.full((items,), start)
    while len(beams.items):
        values, ids = _choices(decoder.step(tokens.to(device)), beams, rules)
        ranked = _ranked(beams, values, ids, rules)
        _gather_ended(hypotheses, beams, ranked, rules)
        rows, beams = _go_on(hypotheses, beams, ranked, rules)
        tokens = beams.tokens[:, :, -1].flatten()
        if len(rows) and not torch.equal(rows, torch.arange(values.shape[0])):
            decoder.select(rows.to(device))
    return hypotheses


def _limits(items: int, max_length: int | Sequence[int]) -> tuple[int, ...]:
    limits = (max_length,) * items if isinstance(max_length, int) else tuple(map(int, max_length))
    if len(limits) != items:
        raise Mistake("items and their maximal lengths differ in number", f"{len(limits)} for {items} items")
    if min(limits, default=1) < 1:
        raise Mistake("a maximal length leaves no room", str(min(limits)), "give 1 or more: the end counts")
    return limits


def _check(rules: _Rules) -> None:
    if rules.width < 1:
        raise Mistake("the beam has no room", f"width {rules.width}", "give 1 or more")
    if not -50 <= rules.penalty <= 50:  # what a power of a length can bear; NaN is refused too
        raise Mistake("the length penalty is out of range", str(rules.penalty), "give -50 to 50; 1 is usual")
    if rules.end in rules.banned:
        raise Mistake("no sequence could end", f"the end, {rules.end}, is banned", "leave it out of banned")


# --- a step -------------------------------------------------------------------------------------------------

def _choices(log_probs: Tensor, beams: _Beams, rules: _Rules) -> tuple[Tensor, Tensor]:
    """log_probs (R, V) -> the highest of what is allowed in each row (R, K) and its tokens (R, K), on the CPU.

    Of a row no more than `width` go on or rank among the first `width`, so that `width` + 1 are enough, one being end.
    """
    _check_step(log_probs, beams, rules)
    values, ids = _best(_wide(log_probs).masked_fill(_shut(log_probs, beams, rules), NEVER),
                        min(log_probs.shape[1], rules.width + 1))
    return values.cpu().double().clamp(max=0.0), ids.cpu()


def _check_step(log_probs: Tensor, beams: _Beams, rules: _Rules) -> None:
    rows = beams.sums.numel()
    if log_probs.dim() != 2 or len(log_probs) != rows or not log_probs.is_floating_point():
        raise Mistake("a decoder put out no log-probabilities of its rows",
                      f"{tuple(log_probs.shape)} {log_probs.dtype}", f"give ({rows}, V) floats")
    outside = [token for token in (rules.end, *rules.banned) if not 0 <= token < log_probs.shape[1]]
    if outside:
        raise Mistake("a token is out of range", f"{outside} of {log_probs.shape[1]}",
                      "take the tokenizer that the model was trained with")
    highest = log_probs.amax()  # NaN where any is
    if highest.isnan():
        raise Mistake("a decoder put out NaN", "its weights or its input are not finite",
                      "look at how the training of this checkpoint went")
    if highest > ROUNDING:
        raise Mistake("a decoder put out no log-probabilities", f"{highest.item():.3g} is above 0",
                      "put a log_softmax behind its logits")


def _shut(log_probs: Tensor, beams: _Beams, rules: _Rules) -> Tensor:
    """Which tokens are not allowed: (R, V), or (V,) the same in all rows."""
    shut = torch.zeros(log_probs.shape[1], dtype=torch.bool)
    shut[list(rules.banned)] = True
    length = beams.tokens.shape[2] + 1
    last = torch.tensor([rules.limits[item] == length for item in beams.items.tolist()])
    if not last.any():
        return shut.to(log_probs.device)
    others = torch.ones_like(shut)
    others[rules.end] = False
    rows = last.repeat_interleave(beams.sums.shape[1])
    return torch.where(rows[:, None], others, shut).to(log_probs.device)


def _best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """values (R, V) -> each row's `count` highest (R, count) and their columns, of equal ones the first.

    topk alone leaves open which of equal values it takes.
    """
    least = values.topk(count).values[:, -1:]
    above, equal = values > least, values == least
    kept = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
    columns = kept.nonzero()[:, 1].view(-1, count)
    found, order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return found, columns.gather(1, order)


def _ranked(beams: _Beams, values: Tensor, ids: Tensor, rules: _Rules) -> _Ranked:
    """Every beam has one end, so that the first 2 x width hold all that may end or go on."""
    items, room = beams.sums.shape
    totals = (beams.sums.flatten()[:, None] + values).view(items, -1)
    totals, order = totals.sort(dim=1, descending=True, stable=True)
    order = order[:, :2 * rules.width]
    return _Ranked(totals[:, :2 * rules.width], order // ids.shape[1], ids.view(items, -1).gather(1, order))


def _gather_ended(hypotheses: list[list[Hypothesis]], beams: _Beams, ranked: _Ranked, rules: _Rules) -> None:
    """Put what ends among the first `width` into the items' lists, which stay in order and within `width`."""
    ended = (ranked.tokens == rules.end) & (ranked.totals > NEVER)
    places = ended[:, :rules.width].nonzero(as_tuple=True)
    lists = [hypotheses[item] for item in beams.items[places[0]].tolist()]
    sequences = beams.tokens[places[0], ranked.parents[places]].tolist()
    for found, tokens, total in zip(lists, sequences, ranked.totals[places].tolist(), strict=True):
        insort(found, Hypothesis(tuple(tokens), rules.score(total, len(tokens) + 1)), key=lambda x: -x.score)
        del found[rules.width:]


def _go_on(hypotheses: list[list[Hypothesis]], beams: _Beams, ranked: _Ranked, rules: _Rules) -> tuple[Tensor, _Beams]:
    """The decoders' rows that go on, and the beams of these rows.

    Where an item has fewer beams than another, its first one fills the rows: a decoder is never asked about a sequence
    that ended or that holds a banned token.
    """
    live = (ranked.tokens != rules.end) & (ranked.totals > NEVER)
    order = live.int().sort(dim=1, descending=True, stable=True).indices[:, :rules.width]
    sums = ranked.totals.masked_fill(~live, NEVER).gather(1, order)
    length = beams.tokens.shape[2] + 1
    going = torch.tensor([_open(hypotheses[item], best, length, rules.limits[item], rules)
                          for item, best in zip(beams.items.tolist(), sums[:, 0].tolist(), strict=True)])
    room = int((sums[going] > NEVER).sum(1).amax()) if going.any() else 0
    sums, order = sums[going, :room], order[going, :room]
    order = torch.where(sums > NEVER, order, order[:, :1])
    parents, tokens = ranked.parents[going].gather(1, order), ranked.tokens[going].gather(1, order)
    places = going.nonzero()
    rows = (places * beams.sums.shape[1] + parents).flatten()
    longer = pad(beams.tokens[places, parents], (0, 1))
    longer[:, :, -1] = tokens
    return rows, _Beams(beams.items[going], longer, sums)


def _open(found: list[Hypothesis], best: float, length: int, limit: int, rules: _Rules) -> bool:
    """Whether an item's best live beam, `best` in ln p after `length` tokens, may lead to a hypothesis that counts."""
    if best == NEVER or len(found) < rules.width:
        return best > NEVER
    return rules.width > 1 and rules.bound(best, length, limit) > found[-1].score
