"""CTC decoding: the best path, prefix beam search, and the alignment of a labelling to the time steps.

A path gives every time step one class, 0 being the blank; its labelling is what is left when repeats are merged and
then blanks are dropped (Graves et al. 2006, https://doi.org/10.1145/1143844.1143891, section 3.1). That is all that
is merged here: "A A" with a blank between stays "A A". The probability of a labelling is the sum over its paths.

Everywhere: `log_probs` (N, T, K) are natural logarithms of the classes' probabilities, of any float type, on any
device; `lengths` (N,) say how many time steps of an item are valid (0 to T), and what lies behind them is never
looked at. Sums are taken in float64. Nothing here is differentiated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from slr.errors import Mistake

BLANK = 0
NEVER = -torch.inf

# A language model: prefixes (N, B, L) int64, 0 behind the end of each, and lengths (N, B) -> log scores (N, B, K).
# Column k says what it adds to append label k to the prefix, column 0 (no label is 0) what it adds to end there.
LanguageModel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Hypothesis:
    """A labelling that the beam search found."""

    labels: tuple[int, ...]
    score: float  # log-probability of the labelling: the sum over those of its paths that stayed in the beam
    lm: float = 0.0  # what the language model added; hypotheses are ranked by score + lm


@dataclass(frozen=True)
class Span:
    """A label and the time steps [start, stop) that emit it."""

    label: int
    start: int
    stop: int
    score: float  # mean log-probability of the label over these steps


@dataclass(frozen=True)
class Alignment:
    """The most probable path of a labelling, as one span a label; the steps between them are blanks."""

    score: float  # log-probability of that path, blanks included
    spans: tuple[Span, ...]


# --- best path ----------------------------------------------------------------------------------------------

@torch.no_grad()
def greedy(log_probs: Tensor, lengths: Tensor) -> list[tuple[int, ...]]:
    """The labelling of each item's most probable path: best path decoding (Graves et al. 2006, section 3.2).

    log_probs (N, T, K), lengths (N,) -> N labellings. Raises Mistake as `beam_search` does.
    """
    best = _frames(log_probs, lengths).argmax(-1)
    before = pad(best, (1, 0))[:, :-1]
    kept = (best != BLANK) & (best != before)
    labels = best[kept].tolist()
    stops = kept.sum(1).cumsum(0).tolist()
    return [tuple(labels[start:stop]) for start, stop in zip([0, *stops], stops, strict=False)]


def _frames(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """log_probs up to the longest item (N, T', K), where every step behind an item's end is a certain blank.

    A certain blank changes no labelling's probability and no path's, so nothing below has to know the lengths.
    """
    if log_probs.dim() != 3 or not log_probs.shape[2] or lengths.shape != log_probs.shape[:1]:
        raise Mistake("these are no log-probabilities of a batch",
                      f"log_probs {tuple(log_probs.shape)}, lengths {tuple(lengths.shape)}", "give (N, T, K) and (N,)")
    low, high = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
    if low < 0 or high > log_probs.shape[1]:
        raise Mistake("a length is out of range", f"{low} to {high} of {log_probs.shape[1]} time steps", "give 0 to T")
    behind = torch.arange(high, device=log_probs.device) >= lengths.to(log_probs.device)[:, None]
    frames = log_probs[:, :high].masked_fill(behind[:, :, None], NEVER)
    frames[:, :, BLANK].masked_fill_(behind, 0.0)
    if not frames.amax(-1).isfinite().all():  # the highest is NaN where any is, -inf where all are
        raise Mistake("log_probs holds a step that is no distribution", "NaN, +inf, or -inf for every class",
                      "look at what the model puts out there")
    return frames


# --- prefix beam search -------------------------------------------------------------------------------------

@dataclass
class _Beams:
    """The B best prefixes of each item after some time steps."""

    labels: Tensor  # (N, B, L), 0 behind the end
    lengths: Tensor  # (N, B)
    last: Tensor  # (N, B) the last label, 0 for the empty prefix
    blank: Tensor  # (N, B) log-probability of the prefix's paths that end in a blank
    label: Tensor  # (N, B) and of those that end in its last label
    lm: Tensor  # (N, B)
    begins: Tensor  # (N, B, B) whether prefix i is the beginning of prefix j, or j itself

    @property
    def total(self) -> Tensor:
        return torch.logaddexp(self.blank, self.label)


@torch.no_grad()
def beam_search(log_probs: Tensor, lengths: Tensor, width: int = 10, *, lm: LanguageModel | None = None,
                prune_to: int | None = None) -> list[list[Hypothesis]]:
    """The most probable labellings of each item, best first: at most `width` of them, at least one.

    log_probs (N, T, K), lengths (N,). The prefix search of Graves et al. 2006 (section 3.2) in step with time, as
    Hannun et al. 2014 (https://arxiv.org/abs/1408.2873, algorithm 1) prune it to a beam: all paths of a prefix are
    summed, in two parts, those that end in a blank and those that end in a label.
    With a width that drops nothing the result is exact; else a score lacks the paths whose prefix fell out of the
    beam on the way, and is at most the labelling's log-probability.

    lm: scores extensions (see `LanguageModel`, `Table`); prefixes are then ranked by score + lm. Weigh it yourself.
    prune_to: only this many labels of a time step, its most probable ones, may open new prefixes. Off by default,
    and no loss without a language model where it is more than the width.
    Hypotheses with zero probability are left out. Labellings of equal score come in no promised order.

    Raises Mistake for wrong shapes, lengths outside 0 to T, a valid step that is NaN or impossible as a whole, a
    width or prune_to below 1, a language model of the wrong shape or one that forbids all that was found.
    """
    if width < 1 or (prune_to is not None and prune_to < 1):
        raise Mistake("the beam has no room", f"width {width}, prune_to {prune_to}", "give 1 or more")
    frames = _frames(log_probs, lengths)
    tokens = _tokens(frames, _most(frames.shape[2] - 1, width, lm, prune_to))
    beams = _start(frames)
    for t in range(frames.shape[1]):
        beams = _step(beams, frames[:, t].double(), tokens[:, t], width, lm)
    return _ranked(beams, lm, frames.shape[2])


def _most(classes: int, width: int, lm: LanguageModel | None, prune_to: int | None) -> int:
    """How many labels of a step need be tried.

    Without a language model a prefix's extensions are in the order of the step's labels, but for its own last
    label, which is behind its place. So the width + 1 most probable labels hold the `width` best extensions of every
    prefix, and those that lead to a prefix in the beam make that one as good: the rest cannot enter the beam.
    """
    exact = classes if lm is not None else min(classes, width + 1)
    return min(exact, prune_to or exact)


def _tokens(frames: Tensor, most: int) -> Tensor:
    """The classes to try at each step (N, T, 1 + most): the blank, then the most probable labels in ascending order."""
    if most == frames.shape[2] - 1:
        return torch.arange(frames.shape[2], device=frames.device).expand(frames.shape)
    labels = frames[:, :, 1:].topk(most, sorted=False).indices.sort().values + 1
    return pad(labels, (1, 0), value=BLANK)


def _start(frames: Tensor) -> _Beams:
    """The empty prefix, certain before the first step."""
    one = frames.new_zeros(len(frames), 1, dtype=torch.float64)
    none = torch.zeros_like(one, dtype=torch.int64)
    return _Beams(none[:, :, None][:, :, :0], none, none, one, one + NEVER, one,
                  torch.ones_like(one, dtype=torch.bool)[:, :, None])


def _step(beams: _Beams, frame: Tensor, tokens: Tensor, width: int, lm: LanguageModel | None) -> _Beams:
    """One time step: frame (N, K), tokens (N, C).

    A candidate is a cell of (N, B, C): prefix b as it is (column 0) or with token c appended.
    """
    total, repeat = beams.total, frame.gather(1, beams.last)
    parents = _parents(beams, total)
    again = beams.last[:, :, None] == tokens[:, None]  # "AA" comes only of paths that parted the two by a blank
    found = torch.where(again, beams.blank[:, :, None], total[:, :, None]) + frame.gather(1, tokens)[:, None]
    places = torch.zeros_like(frame, dtype=torch.int64).scatter_(1, tokens, _counted(tokens))
    found.scatter_(2, torch.where(parents, places.gather(1, beams.last)[:, None], 0), NEVER)
    found[:, :, 0] = total + frame[:, :1]
    label = torch.logaddexp(beams.label + repeat, _inflow(beams, total, parents) + repeat)
    scores = beams.lm[:, :, None] + _lm_scores(beams, tokens, frame.shape[1], lm)
    rank = found + scores
    rank[:, :, 0] = torch.logaddexp(found[:, :, 0], label) + beams.lm
    room = min(width, rank.shape[1] * rank.shape[2], 1 + rank.shape[1] * (frame.shape[1] - 1))
    chosen = rank.flatten(1).topk(room, sorted=False).indices.sort().values
    return _chosen(beams, chosen, tokens, found, label, scores)


def _counted(tokens: Tensor) -> Tensor:
    """0, 1, 2 ... along the last axis."""
    return torch.arange(tokens.shape[-1], device=tokens.device).expand_as(tokens)


def _parents(beams: _Beams, total: Tensor) -> Tensor:
    """(N, B, B) whether prefix i plus one label is prefix j, a live one: of dead ones there may be several alike."""
    longer = beams.lengths[:, None] == beams.lengths[:, :, None] + 1
    return beams.begins & longer & (total + beams.lm > NEVER)[:, None]


def _inflow(beams: _Beams, total: Tensor, parents: Tensor) -> Tensor:
    """(N, B) what the parent of each prefix, where it is in the beam too, hands down before the label's own share."""
    again = beams.last[:, :, None] == beams.last[:, None]
    given = torch.where(again, beams.blank[:, :, None], total[:, :, None])
    return given.masked_fill(~parents, NEVER).amax(1)  # there is one parent at most


def _lm_scores(beams: _Beams, tokens: Tensor, classes: int, lm: LanguageModel | None) -> Tensor:
    """(N, B, C) what the language model adds for each candidate; nothing for a prefix that stays as it is."""
    shape = (*beams.last.shape, tokens.shape[1])
    if lm is None:
        return beams.lm.new_zeros(1).expand(shape)
    scores = _asked(lm, beams, classes).gather(2, tokens[:, None].expand(shape))
    scores[:, :, 0] = 0.0
    return scores


def _asked(lm: LanguageModel, beams: _Beams, classes: int) -> Tensor:
    scores, wanted = lm(beams.labels, beams.lengths), (*beams.last.shape, classes)
    if scores.shape != wanted:
        raise Mistake("the language model's scores have the wrong shape", f"{tuple(scores.shape)} instead of {wanted}",
                      "give one score for every prefix and class")
    return scores.to(beams.lm)


def _chosen(beams: _Beams, chosen: Tensor, tokens: Tensor, found: Tensor, label: Tensor, scores: Tensor) -> _Beams:
    """The beams of the candidates `chosen` (N, R), cells of the flattened (B, C) in ascending order."""
    source, column = chosen // tokens.shape[1], chosen % tokens.shape[1]
    token, stays, value = tokens.gather(1, column), column == 0, found.flatten(1).gather(1, chosen)
    length = beams.lengths.gather(1, source)
    labels = pad(beams.labels.gather(1, source[:, :, None].expand(-1, -1, beams.labels.shape[2])), (0, 1))
    labels.scatter_(2, length[:, :, None], token[:, :, None])
    return _Beams(labels, length + ~stays, torch.where(stays, beams.last.gather(1, source), token),
                  torch.where(stays, value, NEVER), torch.where(stays, label.gather(1, source), value),
                  scores.flatten(1).gather(1, chosen), _begins(beams, source, labels, length, token))


def _begins(beams: _Beams, source: Tensor, labels: Tensor, length: Tensor, token: Tensor) -> Tensor:
    """`begins` of the chosen (N, R, R), from that of their sources.

    A prefix that stayed begins what its source began; an extended one only those of them that go on with its token.
    This is exact, and knows a prefix again that fell out of the beam while a longer one was in it.
    """
    room = source.shape[1]
    rows = beams.begins.gather(1, source[:, :, None].expand(-1, -1, beams.begins.shape[2]))
    begins = rows.gather(2, source[:, None].expand(-1, room, -1))
    goes_on = labels.gather(2, length[:, None].expand(-1, room, -1)).transpose(1, 2)
    return begins & ((token == BLANK)[:, :, None] | (goes_on == token[:, :, None]))


def _ranked(beams: _Beams, lm: LanguageModel | None, classes: int) -> list[list[Hypothesis]]:
    total = beams.total
    added = beams.lm if lm is None else beams.lm + _asked(lm, beams, classes)[:, :, BLANK]
    rank, order = (total + added).sort(dim=1, descending=True, stable=True)
    labels = beams.labels.gather(1, order[:, :, None].expand_as(beams.labels)).tolist()
    columns = [x.gather(1, order).tolist() for x in (beams.lengths, total, added)]
    if not (rank < torch.inf).all():
        raise Mistake("the language model's scores are no log scores", "NaN or +inf")
    lists = []
    for n, live in enumerate((rank > NEVER).sum(1).tolist()):
        if not live:
            raise Mistake("the language model forbids all that the search found", f"item {n}", "widen the beam")
        rows = list(zip(labels[n], *(column[n] for column in columns), strict=True))[:live]
        lists.append([Hypothesis(tuple(row[:length]), score, own) for row, length, score, own in rows])
    return lists


# --- a label at a time --------------------------------------------------------------------------------------

class Prefixes:
    """CTC as what continues a labelling, for `slr.search`: p(next label | labels so far), exactly, or p(their end).

    A prefix's probability is that of all labellings which begin with it, so it is the sum of its extensions' and of the
    labelling's own: Graves et al. 2006, section 3.2; as the half of a joint search Watanabe et al. 2017,
    https://doi.org/10.1109/JSTSP.2017.2763455.

    `end` is the class that says so, whose own probabilities are not looked at; the blank never comes. Every time step
    is taken to be a whole distribution.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor, end: int):
        """log_probs (N, T, K), lengths (N,): a row an item. Raises Mistake as `beam_search` does."""
        self.frames, self.end = _frames(log_probs, lengths).double(), end
        blank = self.frames.new_zeros(len(self.frames), self.frames.shape[1] + 1)
        blank[:, 1:] = self.frames[:, :, BLANK].cumsum(1)
        # (R, T + 1) paths of the prefix after each time step, which end in a blank, and in its last label.
        self.blank, self.label = blank, torch.full_like(blank, NEVER)
        self.total = blank.new_zeros(len(blank))  # (R,) of the prefix
        self.last: Tensor | None = None  # (R,) the last label; None: the prefixes are empty

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (R,), what each row goes on with, at first whatever it starts with -> (R, K)."""
        if self.last is None:
            self.last = torch.zeros_like(tokens)  # no label is the blank
        else:
            self._append(tokens)
        either = torch.logaddexp(self.blank, self.label)
        before = either[:, :-1, None].expand_as(self.frames).clone()
        again = self.last[:, None, None].expand(-1, before.shape[1], 1)
        before.scatter_(2, again, self.blank[:, :-1, None])
        longer = (before + self.frames).logsumexp(1) if before.shape[1] else self.frames.new_full(
            (len(tokens), self.frames.shape[2]), NEVER)
        longer[:, BLANK], longer[:, self.end] = NEVER, either[:, -1]
        # A prefix that cannot be has no extensions; a sum of parts may be above the whole by its rounding.
        return (longer - self.total[:, None]).nan_to_num(nan=NEVER, neginf=NEVER).clamp(max=0.0)

    def _append(self, tokens: Tensor) -> None:
        assert self.last is not None
        either = torch.logaddexp(self.blank, self.label)
        before = torch.where((tokens == self.last)[:, None], self.blank, either)[:, :-1]
        own = self.frames.gather(2, tokens[:, None, None].expand(-1, self.frames.shape[1], 1))[:, :, 0]
        blank, label = (torch.full_like(self.blank, NEVER) for _ in range(2))
        for t in range(self.frames.shape[1]):
            label[:, t + 1] = torch.logaddexp(label[:, t], before[:, t]) + own[:, t]
            blank[:, t + 1] = torch.logaddexp(blank[:, t], label[:, t]) + self.frames[:, t, BLANK]
        self.total = (before + own).logsumexp(1) if own.shape[1] else torch.full_like(self.total, NEVER)
        self.blank, self.label, self.last = blank, label, tokens

    def select(self, rows: Tensor) -> None:
        """rows (R',) of the present ones are the rows from now on."""
        for name in ("frames", "blank", "label", "total", "last"):
            setattr(self, name, getattr(self, name)[rows])


# --- language models ----------------------------------------------------------------------------------------

class Table:
    """An n-gram language model as a table of log scores with one axis of K for every label of an n-gram.

    `scores[a, b, k]` is what it adds that k follows "a b"; 0 stands for the place before the first label, and as k for
    the end. Two axes make a bigram, one axis scores labels alone.
    """

    def __init__(self, scores: Tensor):
        self.scores = scores

    def __call__(self, labels: Tensor, lengths: Tensor) -> Tensor:
        """labels (N, B, L), lengths (N, B) -> scores (N, B, K)."""
        self.scores = self.scores.to(labels.device)
        order = self.scores.dim()
        if order == 1:
            return self.scores.expand(*lengths.shape, -1)
        before = pad(labels, (order - 1, 0))  # so that the n-1 places that end at a prefix's end are always there
        return self.scores[tuple(before.gather(2, lengths[:, :, None] + i)[:, :, 0] for i in range(order - 1))]


def bigrams(labellings: Sequence[Sequence[int]], classes: int, share: float = 0.8) -> Tensor:
    """Log-probabilities (K, K) for `Table` that a label (column) follows another (row), counted in sentences.

    share x c(a, b) / c(a) + (1 - share) x (c(b) + 1) / (c + K): bigrams interpolated with unigrams (Jelinek and Mercer
    1980), these with one added; 0 is the start as a row and the end as a column. Rows of labels that were never seen
    are the unigrams. Raises Mistake for a label outside 1 to K - 1.
    """
    pairs = torch.zeros(classes, classes, dtype=torch.float64)
    for n, labels in enumerate(labellings):
        _check_labels(labels, classes, n)
        for a, b in zip([0, *labels], [*labels, 0], strict=True):
            pairs[a, b] += 1
    single = (pairs.sum(0) + 1) / (pairs.sum() + classes)
    seen = pairs.sum(1, keepdim=True)
    weight = torch.where(seen > 0, share, 0.0)
    return (weight * pairs / seen.clamp(min=1) + (1 - weight) * single).log()


# --- alignment ----------------------------------------------------------------------------------------------

@torch.no_grad()
def align(log_probs: Tensor, lengths: Tensor, labellings: Sequence[Sequence[int]]) -> list[Alignment]:
    """When each label of a given labelling is emitted: the most probable of its paths, by Viterbi's recursion.

    log_probs (N, T, K), lengths (N,), N labellings of classes 1 to K - 1 -> N alignments. The lattice is that of the
    CTC forward pass (Graves et al. 2006, section 4.1) with maxima for sums: the labels with a blank before, between
    and behind them. Of equally probable paths one is returned.

    Raises Mistake for a labelling that no path of the item's length has (it needs a step for every label and one for
    every repeat of the label before), for one of probability zero, for labels out of range, and as `beam_search` does.
    """
    frames = _frames(log_probs, lengths)
    _check_feasible(labellings, lengths.tolist(), log_probs.shape[2])
    states = _states(labellings, frames.device)
    ends = torch.tensor([2 * len(labels) for labels in labellings], device=frames.device)
    shares = frames.double().gather(2, states[:, None].expand(-1, frames.shape[1], -1))
    best, moves = _viterbi(shares, states)
    finals = torch.stack((ends, (ends - 1).clamp(min=0)), 1)
    score, which = best.gather(1, finals).max(1)
    path = _traced(moves, finals.gather(1, which[:, None])[:, 0])
    for n, value in enumerate(score.tolist()):
        if value == NEVER:
            raise Mistake("a labelling has probability zero and cannot be aligned", f"item {n}: {list(labellings[n])}")
    return _spans(path, shares, score, labellings)


def _check_labels(labels: Sequence[int], classes: int, item: int) -> None:
    for label in labels:
        if not 0 < label < classes:
            raise Mistake("a label is out of range", f"{label} in item {item}",
                          f"give 1 to {classes - 1}; 0 is the blank")


def _check_feasible(labellings: Sequence[Sequence[int]], lengths: list[int], classes: int) -> None:
    if len(labellings) != len(lengths):
        raise Mistake("labellings and items differ in number", f"{len(labellings)} for {len(lengths)} items")
    for n, (labels, steps) in enumerate(zip(labellings, lengths, strict=True)):
        _check_labels(labels, classes, n)
        repeats = sum(a == b for a, b in zip(labels, labels[1:], strict=False))
        if steps < len(labels) + repeats:
            raise Mistake(f"item {n} is too short for its labelling",
                          f"{steps} time steps for {len(labels)} labels with {repeats} adjacent repeats",
                          "leave it out, or lessen the temporal stride: a label takes a step, a repeat one more")


def _states(labellings: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(N, S) the class of every state: blank, label, blank, label ... blank; blanks behind an item's own."""
    states = torch.full((len(labellings), 2 * max(map(len, labellings), default=0) + 1), BLANK)
    for row, labels in zip(states, labellings, strict=True):
        row[1:2 * len(labels):2] = torch.tensor(labels, dtype=torch.int64)
    return states.to(device)


def _viterbi(shares: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """shares (N, T, S), states (N, S) -> the best score of a path to each state (N, S), and its moves (T, N, S).

    A move is by how many states the path came up at that step: two only past a blank between different labels.
    """
    closed = torch.where(states == pad(states, (2, 0))[:, :-2], NEVER, 0.0).double()
    best = shares.new_full(states.shape, NEVER)
    best[:, 0] = 0.0  # before the first step: a step up from here is label 1, none is a blank
    moves = states.new_empty((shares.shape[1], *states.shape), dtype=torch.uint8)
    for t in range(shares.shape[1]):
        below = pad(best, (2, 0), value=NEVER)
        best, move = torch.stack((best, below[:, 1:-1], below[:, :-2] + closed)).max(0)
        best, moves[t] = best + shares[:, t], move
    return best, moves


def _traced(moves: Tensor, state: Tensor) -> Tensor:
    """The states (N, T) of the path that ends in `state` (N,)."""
    path = state.new_empty(len(state), len(moves))
    for t in range(len(moves) - 1, -1, -1):
        path[:, t] = state
        state = state - moves[t].gather(1, state[:, None])[:, 0]
    return path


def _spans(path: Tensor, shares: Tensor, score: Tensor, labellings: Sequence[Sequence[int]]) -> list[Alignment]:
    """A path's states never fall, so those of one label are a run that a binary search finds."""
    odd = torch.arange(1, shares.shape[2], 2, device=path.device).expand(len(path), -1).contiguous()
    starts, stops = torch.searchsorted(path, odd), torch.searchsorted(path, odd, right=True)
    sums = pad(shares.gather(2, path[:, :, None])[:, :, 0].cumsum(1), (1, 0))
    means = (sums.gather(1, stops) - sums.gather(1, starts)) / (stops - starts)
    rows = zip(labellings, starts.tolist(), stops.tolist(), means.tolist(), score.tolist(), strict=True)
    return [Alignment(total, tuple(Span(int(label), a, b, mean) for label, a, b, mean in
                                   zip(labels, first, last, mean, strict=False)))
            for labels, first, last, mean, total in rows]
