"""The paired comparison of two systems' word errors."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slr.errors import Mistake
from slr.metrics import paired


def counts(errors, words=5):
    return {f"s{i}": (error, words) for i, error in enumerate(errors)}


@given(st.lists(st.integers(-6, 6), max_size=9))
def test_sign_flips_equal_all_ways_to_give_signs(changes):
    sums = [abs(sum(sign * change for sign, change in zip(signs, changes, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(changes))]
    assert paired.sign_flips(changes) == pytest.approx(sum(s >= abs(sum(changes)) for s in sums) / len(sums), rel=1e-12)


def test_sign_flips_of_single_errors_are_mcnemars_test():
    from slr.metrics.topk import mcnemar

    for a, b in ((3, 9), (40, 71), (0, 0), (5, 5), (300, 120)):
        assert paired.sign_flips([1] * a + [-1] * b + [0] * 7) == pytest.approx(mcnemar(a, b), rel=1e-9)


def test_figures_by_hand():
    found = paired.compare(counts([1, 0, 3, 2]), dict(reversed(counts([2, 0, 1, 0]).items())), resamples=500)
    assert (found["sentences"], found["ref_words"], found["errors_a"], found["errors_b"]) == (4, 20, 6, 3)
    assert (found["wer_a"], found["wer_b"], found["difference"]) == (30, 15, 15)
    assert (found["fewer_a"], found["fewer_b"], found["equal"]) == (1, 2, 1)
    assert found["p_value"] == 4 / 8  # of -1, 2 and 2 with signs: 3 or 5 and their opposites
    low, high = found["interval"]
    assert -20 <= low < 15 < high <= 40 and paired.compare(counts([1]), counts([1]))["interval"] == [0, 0]


def test_the_interval_covers_and_the_seed_decides():
    import numpy as np

    rng = np.random.default_rng(3)
    a, b = (counts(rng.binomial(8, rate, 3000).tolist(), 8) for rate in (0.30, 0.28))
    found, again, other = (paired.compare(a, b, seed=seed, resamples=1000) for seed in (1, 1, 2))
    assert found == again != other
    low, high = found["interval"]
    deviation = 100 * np.sqrt((0.3 * 0.7 + 0.28 * 0.72) / (8 * 3000))  # of a difference of two rates
    assert low < 2 < high and (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.1)
    assert paired.compare(a, a)["p_value"] == 1 and found["p_value"] < 0.01


@pytest.mark.parametrize(("a", "b", "said"), [
    ({"x": (0, 1), "y": (0, 1)}, {"x": (0, 1)}, r"1 only in the first \(y\)"),
    ({"x": (0, 1)}, {"y": (0, 1)}, "only in the second"),
    ({"x": (0, 1)}, {"x": (0, 2)}, "not scored against the same references"),
    ({"x": (0, 0)}, {"x": (0, 0)}, "nothing to compare"), ({}, {}, "nothing to compare")])
def test_what_cannot_be_compared(a, b, said):
    with pytest.raises(Mistake, match=said):
        paired.compare(a, b)
