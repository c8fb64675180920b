"""CTC decoding against the sum over all paths, and against prefix beam search written as a loop over dictionaries."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import ctc_loss

from slr import search
from slr.decoding import Alignment, Hypothesis, Prefixes, Table, align, beam_search, bigrams, greedy
from slr.errors import Mistake

UNBOUNDED = 10**9
NEVER = -math.inf
Labels = tuple[int, ...]


def draw(seed: int, items: int, steps: int, classes: int, sharpness: float = 2.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(items, steps, classes, generator=random, dtype=torch.float64) * sharpness).log_softmax(-1)


def some_lengths(seed: int, items: int, steps: int) -> torch.Tensor:
    lengths = torch.randint(0, steps + 1, (items,), generator=torch.Generator().manual_seed(seed + 1))
    lengths[seed % items] = steps
    return lengths


def full(log_probs: torch.Tensor) -> torch.Tensor:
    return torch.full(log_probs.shape[:1], log_probs.shape[1])


def places(alignment: Alignment) -> list[tuple[int, int, int]]:
    return [(x.label, x.start, x.stop) for x in alignment.spans]


def add(*values: float) -> float:
    """ln of the sum of exp."""
    high = max(values)
    return high if high == NEVER else high + math.log(sum(math.exp(x - high) for x in values))


def collapse(path: Labels) -> Labels:
    return tuple(label for label, _ in itertools.groupby(path) if label)


def paths(log_probs: torch.Tensor) -> list[tuple[Labels, float]]:
    """Every path of (T, K) and its log-probability."""
    rows = log_probs.tolist()
    every = itertools.product(range(log_probs.shape[1]), repeat=len(rows))
    return [(path, sum(rows[t][k] for t, k in enumerate(path))) for path in every]


def labellings(log_probs: torch.Tensor) -> dict[Labels, float]:
    """Every labelling of (T, K) that has a path, and its log-probability."""
    found: dict[Labels, float] = {}
    for path, score in paths(log_probs):
        found[collapse(path)] = add(found.get(collapse(path), NEVER), score)
    return {labels: score for labels, score in found.items() if score > NEVER}


def looped(log_probs: torch.Tensor, width: int, lm: Callable[[Labels, int], float] = lambda labels, k: 0.0,
           prune_to: int | None = None) -> list[Hypothesis]:
    """Prefix beam search over (T, K) by the letter: a dictionary of prefixes, every class tried for each."""
    beams: dict[Labels, tuple[float, float]] = {(): (0.0, NEVER)}
    added: dict[Labels, float] = {(): 0.0}
    for row in log_probs.tolist():
        found: dict[Labels, list[float]] = {}
        allowed = sorted(range(1, len(row)), key=lambda k: -row[k])[:prune_to]
        for labels, (blank, label) in beams.items():
            cell = found.setdefault(labels, [NEVER, NEVER])
            cell[0] = add(cell[0], add(blank, label) + row[0])
            if labels:
                cell[1] = add(cell[1], label + row[labels[-1]])
            for k in range(1, len(row)):
                longer = (*labels, k)
                if k in allowed or longer in beams:
                    cell = found.setdefault(longer, [NEVER, NEVER])
                    cell[1] = add(cell[1], (blank if labels[-1:] == (k,) else add(blank, label)) + row[k])
                    added[longer] = added[labels] + lm(labels, k)
        kept = sorted(found, key=lambda labels: -add(*found[labels]) - added[labels])[:width]
        beams = {labels: (found[labels][0], found[labels][1]) for labels in kept
                 if add(*found[labels]) + added[labels] > NEVER}
    last = [Hypothesis(labels, add(*cell), added[labels] + lm(labels, 0)) for labels, cell in beams.items()]
    return sorted((x for x in last if x.score + x.lm > NEVER), key=lambda x: -x.score - x.lm)


def same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [x.labels for x in found] == [x.labels for x in expected]
    assert [x.score for x in found] == pytest.approx([x.score for x in expected], abs=1e-9)
    assert [x.lm for x in found] == pytest.approx([x.lm for x in expected], abs=1e-9)


def table_of(seed: int, order: int, classes: int) -> tuple[Table, Callable[[Labels, int], float]]:
    """A random n-gram table, and the same as a plain function of a prefix and the next label."""
    scores = draw(seed + 2, 1, classes ** (order - 1), classes)[0].reshape([classes] * order)

    def plain(labels: Labels, k: int) -> float:
        context = ((0,) * order + labels)[len(labels) + 1:]
        return float(scores[(*context, k)])

    return Table(scores), plain


# --- exact --------------------------------------------------------------------------------------------------

@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(1, 4), st.booleans())
def test_unbounded_search_is_exhaustive(seed, steps, classes, gaps):
    """All labellings that have a path, with their log-probabilities; classes of probability zero too."""
    log_probs, lengths = draw(seed, 3, steps, classes), some_lengths(seed, 3, steps)
    if gaps and classes > 1:
        random = torch.Generator().manual_seed(seed)
        away = torch.rand(log_probs.shape, generator=random) < 0.4
        away[:, :, seed % classes] = False
        log_probs = log_probs.masked_fill(away, NEVER)
    for n, hypotheses in enumerate(beam_search(log_probs, lengths, UNBOUNDED)):
        expected = labellings(log_probs[n, :lengths[n]])
        assert {x.labels: x.score for x in hypotheses} == pytest.approx(expected, abs=1e-9)
        assert len(hypotheses) == len(expected)
        assert all(a.score >= b.score for a, b in itertools.pairwise(hypotheses))


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_unbounded_search_with_a_language_model_is_exhaustive(seed, order):
    """It ranks by the labelling's score + what the model says of all its labels and of its end."""
    log_probs, (table, plain) = draw(seed, 2, 4, 4), table_of(seed, order, 4)
    for n, hypotheses in enumerate(beam_search(log_probs, full(log_probs), UNBOUNDED, lm=table)):
        expected = {labels: (score, sum(plain(labels[:i], k) for i, k in enumerate((*labels, 0))))
                    for labels, score in labellings(log_probs[n]).items()}
        assert hypotheses[0].labels == max(expected, key=lambda labels: sum(expected[labels]))
        assert {x.labels: pytest.approx((x.score, x.lm)) for x in hypotheses} == expected


# --- pruned to a beam ---------------------------------------------------------------------------------------

@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.5, 2, 4]))
def test_every_width_equals_the_loop(seed, steps, classes, width, sharpness):
    """The loop tries every class for every prefix; the search the width + 1 best of a step."""
    log_probs, lengths = draw(seed, 3, steps, classes, sharpness), some_lengths(seed, 3, steps)
    for n, hypotheses in enumerate(beam_search(log_probs, lengths, width)):
        same(hypotheses, looped(log_probs[n, :lengths[n]], width))


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 6), st.one_of(st.none(), st.integers(1, 5)))
def test_language_model_and_pruning_equal_the_loop(seed, order, width, prune_to):
    log_probs, lengths, (table, plain) = draw(seed, 3, 8, 5), some_lengths(seed, 3, 8), table_of(seed, order, 5)
    for n, hypotheses in enumerate(beam_search(log_probs, lengths, width, lm=table, prune_to=prune_to)):
        same(hypotheses, looped(log_probs[n, :lengths[n]], width, plain, prune_to))
    for n, hypotheses in enumerate(beam_search(log_probs, lengths, width, prune_to=prune_to)):
        same(hypotheses, looped(log_probs[n, :lengths[n]], width, prune_to=prune_to))


def test_a_prefix_that_comes_back_is_known_again():
    """One that fell out of the beam while a longer one stayed, and was then extended into again, must hand its own
    extensions to the longer one and not make a second of it. The cases drawn here are sure to meet that."""
    random, met = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        log_probs = (torch.randn(1, 9, 3, generator=random, dtype=torch.float64) * 2).log_softmax(-1)
        steps = [[x.labels for x in looped(log_probs[0, :t], 3)] for t in range(1, 10)]
        seen = [{labels for beam in steps[:t] for labels in beam} for t in range(9)]
        met += any(labels in seen[t] and labels not in steps[t - 1] and
                   any(x[:len(labels)] == labels for x in steps[t - 1] if len(x) > len(labels))
                   for t in range(1, 9) for labels in steps[t])
        same(beam_search(log_probs, full(log_probs), 3)[0], looped(log_probs[0], 3))
    assert met >= 20


def test_more_width_is_never_worse_on_average():
    """The true log-probability of the best labelling found, in the mean over 2,000 random items, grows with the width.

    Single items may lose by more width, as in any beam search, so it is the mean that is held to it, to 1e-3 nats.
    """
    widths, log_probs = (1, 2, 3, 5, 8, 12, 20, 50), draw(7, 2000, 10, 6, 1.5)
    truth, claimed = [], []
    for width in widths:
        best = [x[0] for x in beam_search(log_probs, full(log_probs), width)]
        claims = torch.tensor([x.score for x in best], dtype=torch.float64)
        targets = torch.tensor([x.labels + (0,) * (10 - len(x.labels)) for x in best])
        counts = torch.tensor([len(x.labels) for x in best])
        scores = -ctc_loss(log_probs.transpose(0, 1), targets, full(log_probs), counts, reduction="none")
        assert (claims <= scores + 1e-9).all()  # a beam can only miss paths
        truth.append(scores.mean().item())
        claimed.append(claims.mean().item())
    for means in (truth, claimed):
        assert all(more >= less - 1e-3 for less, more in itertools.pairwise(means)), means
        assert means[-1] > means[0] + 0.05


def test_pruning_is_off_unless_asked_for():
    log_probs = draw(1, 4, 9, 7)
    plain = beam_search(log_probs, full(log_probs), 5)
    assert beam_search(log_probs, full(log_probs), 5, prune_to=6) == plain
    tight = beam_search(log_probs, full(log_probs), 5, prune_to=1)
    assert tight != plain
    for n, hypotheses in enumerate(tight):
        tops = set((log_probs[n, :, 1:].argmax(-1) + 1).tolist())
        assert all(set(x.labels) <= tops for x in hypotheses)


# --- any batch, any input -----------------------------------------------------------------------------------

@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 5))
def test_same_for_any_batch_and_padding(seed, width, more):
    log_probs, lengths = draw(seed, 5, 9, 6), some_lengths(seed, 5, 9)
    words = [(1, 2), (3,), (), (), ()]
    lengths[:2] = lengths[:2].clamp(min=2)
    best, whole = greedy(log_probs, lengths), beam_search(log_probs, lengths, width)
    aligned = align(log_probs, lengths.clamp(min=1), words)
    padded = torch.cat((log_probs, torch.full((5, more, 6), torch.nan)), 1)
    for n in range(5):
        padded[n, lengths[n]:] = torch.nan
    assert greedy(padded, lengths) == best
    for n, hypotheses in enumerate(beam_search(padded, lengths, width)):
        same(hypotheses, whole[n])
    for n in range(5):
        alone = log_probs[n:n + 1, :lengths[n]], lengths[n:n + 1]
        assert greedy(*alone) == best[n:n + 1]
        same(beam_search(*alone, width)[0], whole[n])
        single = align(log_probs[n:n + 1], lengths[n:n + 1].clamp(min=1), words[n:n + 1])[0]
        assert places(single) == places(aligned[n])
        assert single.score == pytest.approx(aligned[n].score)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_float_type(dtype):
    """What a type holds is taken as it is, and summed in float64."""
    log_probs = draw(3, 2, 8, 5).to(dtype)
    words = [(1, 2), (3, 3)]
    assert greedy(log_probs, full(log_probs)) == greedy(log_probs.double(), full(log_probs))
    assert beam_search(log_probs, full(log_probs)) == beam_search(log_probs.double(), full(log_probs))
    assert align(log_probs, full(log_probs), words) == align(log_probs.double(), full(log_probs), words)


def test_any_layout_and_nothing_is_changed():
    log_probs = draw(4, 3, 7, 5)
    kept, turned = log_probs.clone(), log_probs.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    for decode in (greedy, beam_search):
        assert decode(turned, full(log_probs).int()) == decode(log_probs, full(log_probs))
    assert torch.equal(log_probs, kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same():
    log_probs, lengths = draw(5, 4, 30, 50), torch.tensor([30, 12, 1, 0])
    there, (table, _) = log_probs.cuda(), table_of(5, 2, 50)
    assert greedy(there, lengths) == greedy(log_probs, lengths)
    for lm in (None, table):
        expected = beam_search(log_probs, lengths, lm=lm)
        for n, hypotheses in enumerate(beam_search(there, lengths.cuda(), lm=lm)):
            same(hypotheses, expected[n])
    words = [(1, 1, 4), (3,), (2,), ()]
    assert list(map(places, align(there, lengths, words))) == list(map(places, align(log_probs, lengths, words)))


def test_nothing_to_decode():
    nothing, no_steps, none = torch.zeros(0, 5, 3), torch.zeros(2, 0, 3), torch.zeros(0, dtype=torch.int64)
    assert greedy(nothing, none) == beam_search(nothing, none) == align(nothing, none, []) == []
    assert greedy(no_steps, full(no_steps)) == [(), ()]
    assert beam_search(no_steps, full(no_steps)) == [[Hypothesis((), 0.0)]] * 2
    assert [(x.score, x.spans) for x in align(no_steps, full(no_steps), [(), ()])] == [(0.0, ())] * 2


# --- best path ----------------------------------------------------------------------------------------------

@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(1, 4))
def test_greedy_is_the_most_probable_path_collapsed(seed, steps, classes):
    log_probs, lengths = draw(seed, 3, steps, classes), some_lengths(seed, 3, steps)
    expected = [collapse(max(paths(log_probs[n, :lengths[n]]), key=lambda x: x[1])[0]) for n in range(3)]
    assert greedy(log_probs, lengths) == expected


def test_repeats_merge_only_without_a_blank_between():
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 0, 2, 1]])
    log_probs = torch.nn.functional.one_hot(path, 3).double().log()
    assert greedy(log_probs, full(log_probs)) == [(1, 1, 2, 2, 1)]
    assert beam_search(log_probs, full(log_probs)) == [[Hypothesis((1, 1, 2, 2, 1), 0.0)]]
    spans = align(log_probs, full(log_probs), [(1, 1, 2, 2, 1)])[0].spans
    assert [(x.start, x.stop, x.score) for x in spans] == [(0, 2, 0), (3, 4, 0), (4, 6, 0), (8, 9, 0), (9, 10, 0)]


# --- language models ----------------------------------------------------------------------------------------

def test_bigrams():
    """Every row sums to one; a pair seen always is near its share; an unseen row is the unigrams."""
    table = bigrams([(1, 2), (1, 2, 2), ()], 4, share=0.8).exp()
    assert table.sum(1).tolist() == pytest.approx([1] * 4)
    single = [(3 + 1) / 12, (2 + 1) / 12, (3 + 1) / 12, 1 / 12]  # the end, 1, 2, 3: of 8 events and 4 more
    assert table[3].tolist() == pytest.approx(single)
    assert table[1].tolist() == pytest.approx([0.2 * p + 0.8 * (k == 2) for k, p in enumerate(single)])
    first = (1 / 3, 2 / 3, 0, 0)
    assert table[0].tolist() == pytest.approx([0.2 * p + 0.8 * x for p, x in zip(single, first, strict=True)])


def test_bigrams_decide_between_equals():
    log_probs = torch.tensor([[0.1, 0.45, 0.45], [0.98, 0.01, 0.01], [0.1, 0.45, 0.45]]).log()[None]
    for labels in ((1, 2), (2, 1)):
        table = Table(bigrams([labels], 3))
        assert beam_search(log_probs, torch.tensor([3]), lm=table)[0][0].labels == labels


def test_language_models_that_make_no_sense():
    log_probs = draw(0, 2, 4, 3)

    def run(scores: torch.Tensor) -> None:
        beam_search(log_probs, full(log_probs), lm=lambda labels, lengths: scores)

    with pytest.raises(Mistake, match="wrong shape"):
        run(torch.zeros(3))
    with pytest.raises(Mistake, match="forbids"):
        beam_search(log_probs, full(log_probs), lm=Table(torch.full((3,), NEVER)))
    with pytest.raises(Mistake, match="NaN"):
        beam_search(log_probs, full(log_probs), lm=Table(torch.full((3,), math.nan)))


# --- alignment ----------------------------------------------------------------------------------------------

@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 6), st.lists(st.integers(1, 2), max_size=4))
def test_alignment_is_the_best_path_of_the_labelling(seed, steps, labels):
    """Beside an item of another length and labelling."""
    log_probs, lengths = draw(seed, 2, 6, 3), torch.tensor([steps, 6])
    own = [(score, path) for path, score in paths(log_probs[0, :steps]) if collapse(path) == tuple(labels)]
    if not own:
        with pytest.raises(Mistake, match=f"item 0 is too short for its labelling: {steps} time steps"):
            align(log_probs, lengths, [labels, (2, 2)])
        return
    score, path = max(own)
    found = align(log_probs, lengths, [labels, (2, 2)])[0]
    assert found.score == pytest.approx(score, abs=1e-9)
    runs = [(k, [t for t, _ in steps]) for k, steps in itertools.groupby(enumerate(path), lambda x: x[1]) if k]
    assert places(found) == [(k, ts[0], ts[-1] + 1) for k, ts in runs]
    means = [float(log_probs[0, ts, k].mean()) for k, ts in runs]
    assert [x.score for x in found.spans] == pytest.approx(means, abs=1e-9)


def test_alignment_of_a_long_sentence():
    """12 signs of 5 steps, 8 apart, the third one twice, are found where they are."""
    labels = [1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    logits = torch.zeros(1, 100, 1100)
    logits[:, :, 0] = 10
    for n, k in enumerate(labels):
        logits[0, 8 * n + 2:8 * n + 7, k] = 20
    log_probs = logits.log_softmax(-1)
    found = align(log_probs, torch.tensor([100]), [labels])[0]
    assert places(found) == [(k, 8 * n + 2, 8 * n + 7) for n, k in enumerate(labels)]
    assert greedy(log_probs, torch.tensor([100])) == [tuple(labels)]
    assert beam_search(log_probs, torch.tensor([100]))[0][0].labels == tuple(labels)


def test_alignment_refuses_what_cannot_be():
    log_probs, lengths = draw(0, 2, 4, 3), torch.tensor([4, 3])
    with pytest.raises(Mistake, match="item 1 is too short for its labelling: 2 time steps for 2 labels with 1"):
        align(log_probs, torch.tensor([4, 2]), [(1, 2), (1, 1)])
    for label in (0, 3, -1):
        with pytest.raises(Mistake, match=f"a label is out of range: {label} in item 1"):
            align(log_probs, lengths, [(1,), (2, label)])
    with pytest.raises(Mistake, match="1 for 2 items"):
        align(log_probs, lengths, [(1,)])
    with pytest.raises(Mistake, match="probability zero"):
        align(log_probs.index_fill(2, torch.tensor([2]), NEVER), lengths, [(1,), (2,)])


# --- a label at a time --------------------------------------------------------------------------------------

def with_end(log_probs: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A last class more, which no step has: what `Prefixes` says the end with."""
    return torch.nn.functional.pad(log_probs, (0, 1), value=NEVER), log_probs.shape[2]


def begun(known: dict[Labels, float], prefix: Labels) -> float:
    return add(NEVER, *(score for labels, score in known.items() if labels[:len(prefix)] == prefix))


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(2, 4), st.booleans())
def test_prefixes_are_the_sums_of_what_begins_with_them(seed, steps, classes, gaps):
    log_probs = draw(seed, 1, steps, classes)
    if gaps and steps:
        log_probs[0, seed % steps, 1 + seed % (classes - 1)] = NEVER
        log_probs = log_probs.log_softmax(-1)
    known = labellings(log_probs[0])
    frames, end = with_end(log_probs)
    for labels, score in known.items():
        ctc, said = Prefixes(frames, full(frames), end), 0.0
        for place, token in enumerate((end, *labels)):  # anything does as the start
            row = ctc.step(torch.tensor([token]))[0]
            prefix, wanted = labels[:place], (*labels, end)[place]
            expected = [begun(known, (*prefix, k)) for k in range(1, classes)]
            whole = begun(known, prefix)
            assert row[1:end].exp().tolist() == pytest.approx([math.exp(x - whole) for x in expected], abs=1e-9)
            assert row[0] == NEVER and float(row.exp().sum()) == pytest.approx(1, abs=1e-9)
            said += float(row[wanted])
        assert said == pytest.approx(score, abs=1e-9)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 5), st.integers(2, 4))
def test_a_wide_search_over_prefixes_finds_the_likeliest_labelling(seed, items, steps, classes):
    """What it finds is what prefix beam search in step with time finds, whatever the items' lengths."""
    log_probs, lengths = draw(seed, items, steps, classes), some_lengths(seed, items, steps)
    frames, end = with_end(log_probs)
    found = search.beam_search([Prefixes(frames, lengths, end)], items, start=end, end=end, width=500,
                               max_length=steps + 1, length_penalty=0, banned=(0,))
    for own, wanted in zip(found, beam_search(log_probs, lengths, UNBOUNDED), strict=True):
        assert [x.score for x in own] == pytest.approx([x.score for x in wanted][:len(own)], abs=1e-9)
        assert len(own) == min(500, len(wanted))
        assert {x.tokens: round(x.score, 6) for x in own} == {x.labels: round(x.score, 6) for x in wanted}


def test_a_prefix_that_cannot_be_goes_nowhere():
    frames, end = with_end(draw(3, 2, 2, 3))
    ctc = Prefixes(frames, torch.tensor([2, 1]), end)
    ctc.step(torch.tensor([end, end]))
    ctc.step(torch.tensor([1, 1]))
    row = ctc.step(torch.tensor([1, 1]))  # "1 1" takes three time steps
    assert row.tolist() == [[NEVER] * 4] * 2
    ctc.select(torch.tensor([1, 1, 0]))
    assert ctc.step(torch.tensor([2, 1, 2])).tolist() == [[NEVER] * 4] * 3


# --- what is refused ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("decode", [greedy, beam_search, lambda x, n: align(x, n, [()] * len(n))])
def test_input_that_makes_no_sense(decode):
    log_probs = draw(0, 2, 4, 3)
    for lengths in ([4, 5], [-1, 2]):
        with pytest.raises(Mistake, match="length is out of range"):
            decode(log_probs, torch.tensor(lengths))
    for shape in (log_probs[0], log_probs[:1], log_probs[:, :, :0]):
        with pytest.raises(Mistake, match="no log-probabilities"):
            decode(shape, torch.tensor([4, 4]))
    for bad in (math.nan, math.inf, NEVER):
        broken = log_probs.clone()
        broken[1, 3, 0 if bad != NEVER else slice(None)] = bad
        assert decode(broken, torch.tensor([4, 3]))  # behind the end: never looked at
        with pytest.raises(Mistake, match="no distribution"):
            decode(broken, torch.tensor([4, 4]))


def test_no_room():
    log_probs = draw(0, 1, 2, 3)
    for width, prune_to in ((0, None), (1, 0)):
        with pytest.raises(Mistake, match="no room"):
            beam_search(log_probs, full(log_probs), width, prune_to=prune_to)
