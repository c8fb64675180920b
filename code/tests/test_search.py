"""Sequence beam search against enumeration, against a loop over dictionaries, and against transformers' generate."""

import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slr.errors import Mistake
from slr.search import Average, Hypothesis, Weighted, beam_search

UNBOUNDED = 10**9
NEVER = -math.inf
START, END = 90, 0
PENALTIES = (-1.5, -0.3, 0.0, 0.6, 1.0, 2.5)
Tokens = tuple[int, ...]
Model = Callable[[int, Tokens], list[float]]  # item, what was said -> log-probabilities of the next token


def random_model(seed: int, size: int, sharpness: float = 2.0, gaps: bool = False, coarse: bool = False) -> Model:
    """A table of random distributions for every item and history: with impossible tokens, or with many ties."""
    @functools.cache
    def model(item: int, said: Tokens) -> list[float]:
        draw = random.Random(f"{seed} {item} {said}")
        logits = [draw.randint(0, 1) if coarse else draw.gauss(0, sharpness) for _ in range(size)]
        if gaps:
            logits = [NEVER if draw.random() < 0.3 else x for x in logits]
        total = sum(map(math.exp, logits))
        return [x - math.log(total) if x > NEVER else x for x in logits]

    return model


class Rows:
    """A decoder that keeps the whole history of its rows in place of a cache, and what it was asked for."""

    def __init__(self, model: Model, items: Sequence[int], dtype: torch.dtype = torch.float64):
        self.model, self.dtype = model, dtype
        self.rows: list[tuple[int, Tokens]] = [(item, ()) for item in items]
        self.asked: list[list[tuple[int, Tokens]]] = []

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        assert tokens.dtype == torch.int64 and tokens.shape == (len(self.rows),)
        self.rows = [(item, (*said, token)) for (item, said), token in zip(self.rows, tokens.tolist(), strict=True)]
        assert all(said[0] == START and END not in said for _, said in self.rows)
        self.asked.append(self.rows)
        return torch.tensor([self.model(item, said[1:]) for item, said in self.rows], dtype=self.dtype)

    def select(self, rows: torch.Tensor) -> None:
        assert rows.dtype == torch.int64
        self.rows = [self.rows[row] for row in rows.tolist()]


def search(model: Model, items: Sequence[int] = (0,), **options) -> list[list[Hypothesis]]:
    return beam_search([Rows(model, items)], len(items), start=START, end=END, **options)


def every(model: Model, item: int, size: int, longest: int, penalty: float,
          banned: Sequence[int] = ()) -> dict[Tokens, float]:
    """All hypotheses of positive probability, and their scores."""
    found = {}
    words = [token for token in range(size) if token != END and token not in banned]
    for length in range(longest):
        for said in itertools.product(words, repeat=length):
            total = sum(model(item, said[:i])[token] for i, token in enumerate((*said, END)))
            if total > NEVER:
                found[said] = total / (length + 1) ** penalty
    return found


def looped(model: Model, item: int, size: int, width: int, longest: int, penalty: float,
           banned: Sequence[int] = ()) -> list[tuple[Tokens, float]]:
    """The search by the letter, for one item, to the greatest length: it never stops early, but for width 1."""
    live: list[tuple[float, Tokens]] = [(0.0, ())]
    found: list[tuple[Tokens, float]] = []
    for length in range(1, longest + 1):
        allowed = [END] if length == longest else [token for token in range(size) if token not in banned]
        grown = []
        for place, (total, said) in enumerate(live):
            row = model(item, said)
            grown += [(-(total + row[token]), place, -row[token], token, said) for token in allowed
                      if row[token] > NEVER]
        grown.sort()
        found += [(said, -total / length ** penalty) for total, _, _, token, said in grown[:width] if token == END]
        live = [(-total, (*said, token)) for total, _, _, token, said in grown if token != END][:width]
        if width == 1 and found:
            break
    return sorted(found, key=lambda x: -x[1])[:width]


def same(found: list[Hypothesis], expected: Sequence[tuple[Tokens, float]], within: float = 1e-9) -> None:
    assert [x.tokens for x in found] == [tokens for tokens, _ in expected]
    assert [x.score for x in found] == pytest.approx([score for _, score in expected], abs=within)


# --- exact --------------------------------------------------------------------------------------------------

@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.sampled_from(PENALTIES), st.booleans())
def test_unbounded_search_is_exhaustive(seed, size, longest, penalty, gaps):
    """Every hypothesis with its score, best first; impossible tokens, dead rows and banned tokens too."""
    model, banned = random_model(seed, size, gaps=gaps), [size - 1] if seed % 3 == 0 and size > 1 else []
    found = search(model, (0, 1), width=UNBOUNDED, max_length=longest, length_penalty=penalty, banned=banned)
    for item, hypotheses in enumerate(found):
        expected = every(model, item, size, longest, penalty, banned)
        assert {x.tokens: x.score for x in hypotheses} == pytest.approx(expected, abs=1e-9)
        assert len(hypotheses) == len(expected)
        assert all(a.score >= b.score for a, b in itertools.pairwise(hypotheses))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 6), st.integers(1, 8), st.sampled_from(PENALTIES),
       st.sampled_from([0.5, 2.0, 5.0]), st.booleans())
def test_every_width_equals_the_loop(seed, size, width, longest, penalty, sharpness, gaps):
    """The loop goes on to the greatest length, so stopping early has changed nothing."""
    model, banned = random_model(seed, size, sharpness, gaps), [size - 1] if seed % 3 == 0 else []
    found = search(model, (0, 1, 2), width=width, max_length=longest, length_penalty=penalty, banned=banned)
    for item, hypotheses in enumerate(found):
        same(hypotheses, looped(model, item, size, width, longest, penalty, banned))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 5), st.sampled_from(PENALTIES))
def test_ties_go_to_the_better_beam_and_then_to_the_lower_token(seed, size, width, penalty):
    model = random_model(seed, size, coarse=True)
    for item, hypotheses in enumerate(search(model, (0, 1), width=width, max_length=5, length_penalty=penalty)):
        same(hypotheses, looped(model, item, size, width, 5, penalty))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 8), st.sampled_from(PENALTIES))
def test_width_one_is_the_greedy_path(seed, size, longest, penalty):
    model = random_model(seed, size)
    said, total = (), 0.0
    while len(said) + 1 < longest and (token := max(range(size), key=model(0, said).__getitem__)) != END:
        said, total = (*said, token), total + model(0, said)[token]
    expected = (total + model(0, said)[END]) / (len(said) + 1) ** penalty
    same(search(model, max_length=longest, length_penalty=penalty)[0], [(said, expected)])


@pytest.mark.parametrize("penalty", [-1.5, -0.5, 0.0, 1.0])
def test_no_stop_before_the_best(penalty):
    """Two hypotheses are there after two steps, one of them poor, and the best comes at the third."""
    def model(item: int, said: Tokens) -> list[float]:
        rows = {(): (0.2, 0.79, 0.01), (1,): (1e-6, 0.999, 1e-6), (2,): (0.999, 1e-6, 1e-6)}
        return [math.log(x) for x in rows.get(said, (0.999, 1e-6, 1e-6))]

    found = search(model, width=2, max_length=100, length_penalty=penalty)[0]
    assert [x.tokens for x in found] == [(1, 1), ()]
    same(found, looped(model, 0, 3, 2, 12, penalty))


# --- a batch ------------------------------------------------------------------------------------------------

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.lists(st.integers(1, 7), min_size=1, max_size=6), st.randoms())
def test_same_for_any_batch(seed, width, limits, shuffled):
    """Alone or among others, in any order, each with a greatest length of its own: the same to the bit."""
    model, items = random_model(seed, 5, gaps=True), list(range(len(limits)))
    whole = search(model, items, width=width, max_length=limits)
    shuffled.shuffle(items)
    again = search(model, items, width=width, max_length=[limits[item] for item in items])
    assert again == [whole[item] for item in items]
    for item, longest in enumerate(limits):
        assert search(model, [item], width=width, max_length=longest)[0] == whole[item]
        assert all(len(x.tokens) < longest for x in whole[item])


def test_rows_of_finished_items_leave():
    """Item 0 says three words and is then certain of its end, item 1 goes on to the ninth place."""
    def model(item: int, said: Tokens) -> list[float]:
        ends = 0.97 if len(said) >= (3, 8)[item] else 1e-6
        return [math.log(ends), math.log((1 - ends) * 0.7), math.log((1 - ends) * 0.3)]

    decoder = Rows(model, (0, 1))
    found = beam_search([decoder], 2, start=START, end=END, width=2, max_length=50)
    assert [x[0].tokens for x in found] == [(1,) * 3, (1,) * 8]
    items = [sorted(item for item, _ in rows) for rows in decoder.asked]
    assert items[:2] == [[0, 1], [0, 0, 1, 1]]
    assert items[-1] == [1, 1] and len(items) < 20
    assert all(0 in a or 0 not in b for a, b in itertools.pairwise(items))


def test_decoders_are_asked_about_living_beams_alone():
    """At most `width` rows an item, none without probability; two of one history only to fill an item's rows up."""
    model, filled = random_model(5, 4, gaps=True), 0
    decoder = Rows(model, range(20))
    beam_search([decoder], 20, start=START, end=END, width=3, max_length=6, banned=[3])
    for rows in decoder.asked:
        counts = [sum(item == other for other, _ in rows) for item in {item for item, _ in rows}]
        assert len(set(counts)) == 1 and counts[0] <= 3
        filled += len(rows) - len(set(rows))
        for item, said in rows:
            assert all(model(item, said[1:i])[said[i]] > NEVER and said[i] != 3 for i in range(1, len(said)))
    assert filled


def test_no_selection_where_rows_stay():
    """Greedy search of one item never makes a decoder copy its cache."""
    class Counted(Rows):
        def select(self, rows: torch.Tensor) -> None:
            raise AssertionError("nothing has to move")

    decoder = Counted(lambda item, said: [math.log(0.1), math.log(0.9)], (0,))
    assert beam_search([decoder], 1, start=START, end=END, max_length=4)[0][0].tokens == (1, 1, 1)


def test_nothing_to_search():
    assert search(random_model(0, 3), ()) == []
    assert search(random_model(0, 3), (), max_length=[]) == []


def test_what_cannot_end_has_no_hypothesis():
    def model(item: int, said: Tokens) -> list[float]:
        return [(NEVER, NEVER, 0.0)[item], (NEVER, 0.0, NEVER)[item]]

    assert search(model, (0, 1, 2), width=2, max_length=3) == [[], [], [Hypothesis((), 0.0)]]


def test_long_sums_stay_exact():
    """500 steps of float32 log-probabilities: the sum is that of these numbers in float64."""
    row = torch.tensor([0.001, 0.9989, 0.0001]).log()

    class Same:
        def step(self, tokens):
            return row.expand(len(tokens), -1)

        def select(self, rows):
            assert len(rows)

    found = beam_search([Same()], 1, start=START, end=END, max_length=500, length_penalty=0)[0][0]
    assert len(found.tokens) == 499
    assert found.score == pytest.approx(499 * row[1].item() + row[0].item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_float_type(dtype):
    """What a type holds is taken as it is."""
    model = random_model(3, 6)

    def rounded(item: int, said: Tokens) -> list[float]:
        return torch.tensor(model(item, said), dtype=dtype).tolist()

    found = beam_search([Rows(model, (0, 1), dtype)], 2, start=START, end=END, width=4, max_length=6)
    assert found == search(rounded, (0, 1), width=4, max_length=6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same():
    class There(Rows):
        def step(self, tokens):
            assert tokens.is_cuda
            return super().step(tokens).cuda()

        def select(self, rows):
            assert rows.is_cuda
            super().select(rows)

    for coarse in (False, True):
        model = random_model(3, 6, coarse=coarse)
        found = beam_search([There(model, (0, 1))], 2, start=START, end=END, width=4, max_length=[3, 7], device="cuda")
        assert found == search(model, (0, 1), width=4, max_length=[3, 7])


# --- ensembles ----------------------------------------------------------------------------------------------

def averaged(*models: Model) -> Model:
    def model(item: int, said: Tokens) -> list[float]:
        columns = zip(*(one(item, said) for one in models), strict=True)
        means = [sum(map(math.exp, column)) / len(models) for column in columns]
        return [math.log(x) if x else NEVER for x in means]

    return model


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(2, 3), st.sampled_from(PENALTIES), st.booleans())
def test_an_ensemble_averages_probabilities(seed, size, count, penalty, gaps):
    """Against enumeration, and at width 2 against the loop; a token that one member forbids is not forbidden."""
    models = [random_model(seed + n, size, gaps=gaps) for n in range(count)]
    mean = averaged(*models)
    for width in (2, UNBOUNDED):
        found = beam_search([Rows(model, (0, 1)) for model in models], 2, start=START, end=END, width=width,
                            max_length=4, length_penalty=penalty)
        for item, hypotheses in enumerate(found):
            exact = sorted(every(mean, item, size, 4, penalty).items(), key=lambda x: -x[1])
            same(hypotheses, exact if width > 2 else looped(mean, item, size, 2, 4, penalty))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_ensemble_of_one_model_is_that_model(count):
    model = random_model(11, 5, gaps=True)
    alone = search(model, (0, 1, 2), width=4, max_length=6)
    found = beam_search([Rows(model, (0, 1, 2)) for _ in range(count)], 3, start=START, end=END, width=4, max_length=6)
    for hypotheses, expected in zip(found, alone, strict=True):
        same(hypotheses, [(x.tokens, x.score) for x in expected])


def test_average_is_a_decoder_itself():
    models = [random_model(n, 4) for n in (1, 2)]
    one = beam_search([Average([Rows(model, (0,)) for model in models])], 1, start=START, end=END, width=3)
    assert one == beam_search([Rows(model, (0,)) for model in models], 1, start=START, end=END, width=3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.sampled_from((0.0, 0.2, 0.5, 1.0)), st.booleans())
def test_weighted_decoders_multiply(seed, size, share, gaps):
    """Against enumeration; what one of them forbids is forbidden, unless it weighs nothing."""
    models, weights = [random_model(seed + n, size, gaps=gaps) for n in range(2)], (1 - share, share)

    def both(item: int, said: Tokens) -> list[float]:
        return [sum(weight * x for weight, x in zip(weights, column, strict=True) if weight)
                for column in zip(*(model(item, said) for model in models), strict=True)]

    found = beam_search([Weighted([Rows(model, (0, 1)) for model in models], weights)], 2, start=START, end=END,
                        width=UNBOUNDED, max_length=4)
    for item, hypotheses in enumerate(found):
        same(hypotheses, sorted(every(both, item, size, 4, 1.0).items(), key=lambda x: -x[1]))


def test_half_precision_members_are_averaged_in_float32():
    rows = [Rows(random_model(n, 4), (0,), torch.float16) for n in (1, 2)]
    found = Average(rows).step(torch.tensor([START]))
    assert found.dtype == torch.float32
    expected = averaged(*(row.model for row in rows))(0, ())
    assert found[0].tolist() == pytest.approx(expected, abs=2e-3)


# --- transformers -------------------------------------------------------------------------------------------

WORDS, PADDING, FIRST, LAST, LONGEST = 12, 1, 0, 2, 20


@pytest.fixture(scope="module")
def bart():
    """A tiny encoder-decoder with random weights, sharp enough to end by itself."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=WORDS, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, init_std=0.6,
        pad_token_id=PADDING, bos_token_id=FIRST, eos_token_id=LAST, decoder_start_token_id=FIRST,
        forced_eos_token_id=None)
    torch.manual_seed(3)
    model = transformers.BartForConditionalGeneration(config).eval()
    model.final_logits_bias[0, LAST] = 6.0
    return model


class Bart:
    """Without a cache: the whole history through the model at every step."""

    def __init__(self, model, sources: torch.Tensor):
        self.model = model
        self.memory = model.get_encoder()(sources).last_hidden_state
        self.said = torch.empty(len(sources), 0, dtype=torch.int64)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.said = torch.cat((self.said, tokens[:, None]), 1)
        logits = self.model(decoder_input_ids=self.said, encoder_outputs=(self.memory,), use_cache=False).logits
        return logits[:, -1].log_softmax(-1)

    def select(self, rows: torch.Tensor) -> None:
        self.said, self.memory = self.said[rows], self.memory[rows]


def generated(model, sources: torch.Tensor, **options):
    """What generate finds, where the last place allows nothing but the end, at its own probability.

    Else generate lets what reaches the greatest length stand without an end, or with forced_eos_token_id takes that
    end for certain: there ours differs.
    """
    def ends(said: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        others = torch.arange(WORDS) != LAST
        return scores.masked_fill(others, NEVER) if said.shape[1] == LONGEST else scores

    return model.generate(sources, attention_mask=torch.ones_like(sources), do_sample=False, max_new_tokens=LONGEST,
                          suppress_tokens=[PADDING], logits_processor=[ends], **options)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [-0.5, 0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("width", [2, 4])
@torch.no_grad()
def test_equals_generate(bart, width, penalty):
    """All hypotheses and their scores, with early_stopping="never": its other settings stop before it is certain."""
    sources = torch.randint(3, WORDS, (16, 6), generator=torch.Generator().manual_seed(1))
    theirs = generated(bart, sources, num_beams=width, num_return_sequences=width, length_penalty=penalty,
                       early_stopping="never", return_dict_in_generate=True, output_scores=True)
    ours = beam_search([Bart(bart, sources)], 16, start=FIRST, end=LAST, width=width, max_length=LONGEST,
                       length_penalty=penalty, banned=[PADDING])
    expected = [tuple(row[:row.index(LAST)]) for row in theirs.sequences[:, 1:].tolist()]
    scored = list(zip(expected, theirs.sequences_scores.tolist(), strict=True))
    for item, hypotheses in enumerate(ours):
        same(hypotheses, scored[item * width:item * width + width], 1e-4)
    assert len({len(tokens) for tokens in expected}) > 3


@pytest.mark.slow
@torch.no_grad()
def test_width_one_equals_greedy_generate(bart):
    """Greedy search of generate gives no scores."""
    sources = torch.randint(3, WORDS, (16, 6), generator=torch.Generator().manual_seed(2))
    expected = [tuple(row[:row.index(LAST)]) for row in generated(bart, sources, num_beams=1)[:, 1:].tolist()]
    ours = beam_search([Bart(bart, sources)], 16, start=FIRST, end=LAST, max_length=LONGEST, banned=[PADDING])
    assert [x[0].tokens for x in ours] == expected
    assert len({len(tokens) for tokens in expected}) > 3


# --- mistakes -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, words", [
    ({"width": 0}, "no room"), ({"max_length": 0}, "leaves no room"), ({"max_length": [3, 0]}, "leaves no room"),
    ({"max_length": [3]}, "1 for 2 items"), ({"length_penalty": math.nan}, "out of range"),
    ({"length_penalty": math.inf}, "out of range"), ({"banned": [END]}, "is banned"), ({"banned": [4]}, "4] of 4"),
    ({"banned": [-1]}, "-1] of 4"),
])
def test_settings_out_of_range(options, words):
    with pytest.raises(Mistake) as caught:
        search(random_model(0, 4), (0, 1), **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("row, words", [
    ([0.0, math.nan], "NaN"), ([NEVER, math.nan], "NaN"), ([1.5, 0.0], "no log-probabilities"),
    ([math.inf, 0.0], "no log-probabilities"),
])
def test_decoders_that_put_out_no_log_probabilities(row, words):
    """In one row of many, and also where the token is banned."""
    for banned in ([], [1]):
        with pytest.raises(Mistake, match=words):
            search(lambda item, said: row if item == 3 else [-1.0, -1.0], range(5), width=2, banned=banned)


def test_rounding_above_zero_counts_as_zero():
    """log_softmax in half precision may come out so."""
    found = search(lambda item, said: [5e-4, -8.0] if said else [-8.0, 5e-4], width=2, max_length=2, length_penalty=0)
    assert found == [[Hypothesis((1,), 0.0), Hypothesis((), -8.0)]]


def test_ensembles_that_do_not_fit():
    unlike = [Rows(random_model(0, size), (0,)) for size in (3, 4)]
    for decoders, words in (([], "at least one"), (unlike, "same vocabulary")):
        with pytest.raises(Mistake, match=words):
            beam_search(decoders, 1, start=START, end=END)


def test_a_decoder_of_other_rows():
    with pytest.raises(Mistake, match=r"give \(2, V\)"):
        beam_search([type("One", (), {"step": lambda self, tokens: torch.zeros(1, 4)})()], 2, start=START, end=END)
