"""Which of two systems makes fewer word errors on the same sentences, and how surely.

    compare({"a": (3, 7), ...}, {"a": (2, 7), ...})      errors and words of each sentence: rates, interval, p

Sentences are the units, since errors within one depend on each other: the idea of sclite's matched-pair test MAPSSWE
(Gillick and Cox 1989, https://doi.org/10.1109/ICASSP.1989.266481), which takes a normal distribution for the mean
difference; here its distribution is counted out, and the interval is a paired bootstrap's (Bisani and Ney 2004,
https://doi.org/10.1109/ICASSP.2004.1326009).
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from slr.errors import Mistake

RESAMPLES = 10_000
LEVEL = 0.95
AT_ONCE = 2**20  # sentences drawn in one go

Counts = Mapping[str, tuple[int, int]]


class Comparison(TypedDict):
    """Two systems on the same sentences; rates and differences in per cent, `difference` the first minus the second.

    fewer_a, fewer_b, equal: sentences in which the first makes fewer errors, the second, or both as many.
    """

    sentences: int
    ref_words: int
    errors_a: int
    errors_b: int
    wer_a: float
    wer_b: float
    difference: float
    interval: list[float]
    p_value: float
    fewer_a: int
    fewer_b: int
    equal: int
    resamples: int
    seed: int


def compare(a: Counts, b: Counts, seed: int = 42, resamples: int = RESAMPLES, level: float = LEVEL) -> Comparison:
    """{id: (errors, words of the reference)} of two systems, in any order.

    `interval` is the percentile bootstrap's of the difference: sentences are drawn with both systems' errors in them.
    `p_value` is `sign_flips`. Raises Mistake where sentences or their numbers of words are not the same, or there are
    no words at all.
    """
    _refuse_others(a, b)
    first, second, words = np.array([(a[key][0], b[key][0], a[key][1]) for key in a], np.int64).reshape(-1, 3).T
    if not words.sum():
        raise Mistake("nothing to compare", "0 words", "the set is empty")
    change, total = first - second, int(words.sum())
    span = _interval(change, words, seed, resamples, level)
    return {"sentences": len(words), "ref_words": total, "errors_a": int(first.sum()), "errors_b": int(second.sum()),
            "wer_a": 100 * float(first.sum()) / total, "wer_b": 100 * float(second.sum()) / total,
            "difference": 100 * float(change.sum()) / total, "interval": span,
            "p_value": sign_flips(change.tolist()), "fewer_a": int((change < 0).sum()),
            "fewer_b": int((change > 0).sum()), "equal": int((change == 0).sum()), "resamples": resamples, "seed": seed}


def sign_flips(changes: Sequence[int]) -> float:
    """Two-sided exact p of a sum of differences: of all ways to give each of them a sign, the share whose sum is as far
    from zero (Fisher 1935, The Design of Experiments, section 21).

    For where the systems are equally good, a sentence's two results can change places. Whole numbers only; the
    distribution of the sum is built up difference by difference.
    """
    sizes = [abs(int(change)) for change in changes if change]
    shares = np.ones(1)  # of the sums -reach, 2 - reach, …, reach: all have the parity of reach
    for size in sizes:
        wider = np.zeros(len(shares) + size)
        wider[:len(shares)] += shares / 2
        wider[size:] += shares / 2
        shares = wider
    reach, seen = sum(sizes), abs(sum(int(change) for change in changes))
    sums = 2 * np.arange(len(shares)) - reach
    return float(min(1.0, shares[np.abs(sums) >= seen].sum()))


def _interval(change: NDArray[np.int64], words: NDArray[np.int64], seed: int, resamples: int,
              level: float) -> list[float]:
    """A resample's difference is divided by its own words; one without any has no rate and is left out."""
    rng, n, found = np.random.default_rng(seed), len(words), []
    for first in range(0, resamples, step := max(1, AT_ONCE // n)):
        drawn = rng.integers(n, size=(min(step, resamples - first), n))
        sums, total = change[drawn].sum(1), words[drawn].sum(1)
        found.append(sums[total > 0] / total[total > 0])
    return (100 * np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])).tolist()


def _refuse_others(a: Counts, b: Counts) -> None:
    lacking = [(which, [key for key in one if key not in other]) for which, one, other in
               (("first", a, b), ("second", b, a))]
    if any(keys for _, keys in lacking):
        found = "; ".join(f"{len(keys)} only in the {which} ({', '.join(keys[:3])})" for which, keys in lacking if keys)
        raise Mistake("the two runs were not tested on the same sentences", found,
                      "test both runs on the same set of the same split")
    other = [key for key in a if a[key][1] != b[key][1]]
    if other:
        raise Mistake("the two runs were not scored against the same references",
                      f"{len(other)} sentences have other numbers of words, such as {other[0]}", "test both again")
