"""Scores of single labels: top-k accuracy, per-class reports, bootstrap intervals, the paired test.

Everything starts from ranks: `ranks[i]` is how many classes the model puts before the true class of clip i:
clip i is a hit at k where `ranks[i] < k`. Ranks come from scores (`ranks_of`) or from ranked lists of classes
(`ranks_in`; such lists are all that predictions.csv holds). They agree: a tie goes to the lower class index.

    ranks = ranks_of(scores, labels)                  scores (N, K), labels (N,)
    per_instance(ranks)                               {"top1": 0.7, "top5": 0.9, "top10": 0.93}
    average_per_class(ranks, labels)                  the same keys, mean over the classes present
    intervals(ranks, labels, seed=42)                 95 % bootstrap intervals of both
    compare(ranks_a < 1, ranks_b < 1, ids_a, ids_b)   exact McNemar test and the interval of the difference
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slr.errors import Mistake

Ints = NDArray[np.int64]

KS = (1, 5, 10)
BEYOND = 2**31 - 1  # the rank of a true class that a ranked list does not name
RESAMPLES = 10_000
LEVEL = 0.95
DRAWS_AT_ONCE = 2**21  # clips drawn in one go: 16 MiB an array, whatever N and the number of resamples


class TopKRes(TypedDict):
    """Accuracies as decimals, e.g. 0.76."""

    top1: float
    top5: float
    top10: float


class BaseRes(TypedDict):
    """One set, one order of the frames."""

    top_k_average_per_class_acc: TopKRes
    top_k_per_instance_acc: TopKRes
    average_loss: float


class ShuffRes(BaseRes):
    """The same with every clip's frames in the order `perm`."""

    perm: list[int]
    shannon_entropy: float


class CompRes(TypedDict):
    """What `testing.py full` gives; the validation entries are None where the split has no validation set."""

    check_name: str
    best_val_acc: float | None  # in per cent, as training reports it
    best_val_loss: float | None
    test: BaseRes
    val: BaseRes | None
    test_shuff: ShuffRes


class ClassReport(TypedDict):
    """One entry a class, in the order of the labels; a class with support 0 has zeros and is in no mean."""

    classes: list[str]
    precision: list[float]
    recall: list[float]
    f1: list[float]
    support: list[int]
    macro_f1: float
    classes_present: int


class SignerRes(TypedDict):
    """Top-1 accuracy of one signer's clips."""

    clips: int
    correct: int
    acc: float
    interval: list[float]


class Comparison(TypedDict):
    """Two runs on the same clips; `difference` is the first's accuracy minus the second's."""

    clips: int
    both: int
    only_a: int
    only_b: int
    neither: int
    acc_a: float
    acc_b: float
    difference: float
    interval: list[float]
    p_value: float
    resamples: int
    seed: int


# --- ranks --------------------------------------------------------------------------------------------------


def ranks_of(scores: ArrayLike, labels: ArrayLike) -> Ints:
    """The number of classes before the true one, (N,), from scores (N, K): logits or probabilities.

    Of equal scores the lower class index goes first. Raises Mistake on scores that are not finite, on no
    clips and on labels outside K.
    """
    table, truth = _checked(scores, labels)
    own = table[np.arange(len(truth)), truth][:, None]
    before = np.arange(table.shape[1]) < truth[:, None]
    return ((table > own) | ((table == own) & before)).sum(axis=1, dtype=np.int64)


def ranked(scores: ArrayLike, depth: int = 10) -> Ints:
    """The best `depth` classes (all K, if fewer) of scores (N, K), best first, ties to the lower index."""
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    _refuse_non_finite(table)
    return np.argsort(-table, axis=1, kind="stable")[:, :depth].astype(np.int64)


def ranks_in(lists: Sequence[Sequence[int]], labels: ArrayLike, deepest: int = max(KS)) -> Ints:
    """Ranks (N,) from ranked lists of class indices, best first; BEYOND where a list lacks the true class.

    A list shorter than `deepest` must hold its true class (as it does where it names all classes): else the
    top-k accuracy would silently come out too low, and a Mistake says so.
    """
    truth = _labels(labels)
    if len(lists) != len(truth):
        raise ValueError(f"{len(lists)} ranked lists for {len(truth)} labels")
    ranks = [_position(names, label) for names, label in zip(lists, truth.tolist(), strict=True)]
    missed = [len(names) for names, rank in zip(lists, ranks, strict=True) if rank == BEYOND]
    if missed and min(missed) < deepest:
        raise Mistake(f"top-{deepest} cannot be told from the predictions",
                      f"a clip lists {min(missed)} classes, the true one not among them",
                      f"ask for k up to {min(missed)}, or test again")
    return np.array(ranks, dtype=np.int64)


def _position(names: Sequence[int], label: int) -> int:
    for position, name in enumerate(names):
        if name == label:
            return position
    return BEYOND


# --- accuracies ---------------------------------------------------------------------------------------------


def per_instance(ranks: ArrayLike, ks: Sequence[int] = KS) -> TopKRes:
    """Hits / N at each k, under the keys top<k>. `ranks` (N,), N > 0."""
    hits = _hits(ranks, ks)
    return _named(ks, hits.mean(axis=1))


def average_per_class(ranks: ArrayLike, labels: ArrayLike, ks: Sequence[int] = KS) -> TopKRes:
    """The mean of tp / (tp + fn) over the classes that `labels` holds: never NaN."""
    _, found, support = topk_counts(ranks, labels, ks)
    return _named(ks, (found / support).mean(axis=1))


def topk_counts(ranks: ArrayLike, labels: ArrayLike, ks: Sequence[int] = KS) -> tuple[Ints, Ints, Ints]:
    """(classes present (C,), hits at each k of each of these (len(ks), C), clips of each (C,))."""
    hits, truth = _hits(ranks, ks), _labels(labels)
    if hits.shape[1] != len(truth):
        raise ValueError(f"{hits.shape[1]} ranks for {len(truth)} labels")
    present, where, support = np.unique(truth, return_inverse=True, return_counts=True)
    found = np.stack([np.bincount(where[row], minlength=len(present)) for row in hits])
    return present, found.astype(np.int64), support.astype(np.int64)


def topk(scores: ArrayLike, labels: ArrayLike, ks: Sequence[int] = KS) -> tuple[TopKRes, TopKRes]:
    """(per instance, average per class) from scores (N, K) and labels (N,)."""
    ranks = ranks_of(scores, labels)
    return per_instance(ranks, ks), average_per_class(ranks, labels, ks)


def average_loss(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean plain cross-entropy in nats of logits (N, K), in float64: -log softmax(logits)[label]."""
    table, truth = _checked(logits, labels)
    top = table.max(axis=1)
    total = np.log(np.exp(table - top[:, None]).sum(axis=1)) + top
    return float((total - table[np.arange(len(truth)), truth]).mean())


def base_result(logits: ArrayLike, labels: ArrayLike) -> BaseRes:
    """The result of one set from its logits (N, K) and labels (N,)."""
    instance, average = topk(logits, labels)
    return {"top_k_average_per_class_acc": average, "top_k_per_instance_acc": instance,
            "average_loss": average_loss(logits, labels)}


def shuffled_result(logits: ArrayLike, labels: ArrayLike, perm: Sequence[int]) -> ShuffRes:
    """The result of one set whose frames were put in the order `perm`."""
    return {**base_result(logits, labels), "perm": [int(p) for p in perm],
            "shannon_entropy": shannon_entropy(perm)}


# --- classes and signers ------------------------------------------------------------------------------------


def confusion(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> Ints:
    """Counts (K, K): row = true class, column = predicted class."""
    truth, guess = _pair(labels, predicted, num_classes)
    flat = np.bincount(truth * num_classes + guess, minlength=num_classes * num_classes)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def per_class(labels: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> ClassReport:
    """Precision, recall, F1 and support of each class, and macro-F1 over the classes that `labels` holds.

    A class that is never predicted has precision 0.
    """
    from sklearn.metrics import precision_recall_fscore_support  # here: it takes a second

    truth, guess = _pair(labels, predicted, len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, labels=range(len(classes)),
                                                                     zero_division=0)
    present = support > 0
    return {"classes": list(classes), "precision": precision.tolist(), "recall": recall.tolist(),
            "f1": f1.tolist(), "support": support.tolist(), "macro_f1": float(f1[present].mean()),
            "classes_present": int(present.sum())}


def confused(matrix: ArrayLike, classes: Sequence[str], most: int = 25) -> list[tuple[str, str, int, float]]:
    """The most confused pairs of a confusion matrix: (true, predicted, count, share of the true class).

    Ordered by count, then share, then the class indices.
    """
    table = np.asarray(matrix, dtype=np.int64)
    support = table.sum(axis=1)
    rows, columns = np.nonzero(table * (1 - np.eye(len(table), dtype=np.int64)))
    counts = table[rows, columns]
    shares = counts / support[rows]
    order = np.lexsort((columns, rows, -shares, -counts))[:most]
    return [(classes[rows[i]], classes[columns[i]], int(counts[i]), float(shares[i])) for i in order]


def per_signer(hits: ArrayLike, signers: Sequence[int | str | None], seed: int = 42,
               resamples: int = RESAMPLES, level: float = LEVEL) -> dict[str, SignerRes]:
    """Top-1 accuracy, counts and bootstrap interval of each signer; clips without one are under "unknown"."""
    right = np.asarray(hits, dtype=bool)
    if len(right) != len(signers):
        raise ValueError(f"{len(right)} hits for {len(signers)} signers")
    names = ["unknown" if signer is None else str(signer) for signer in signers]
    clips, correct = Counter(names), Counter(name for name, hit in zip(names, right, strict=True) if hit)
    rng = np.random.default_rng(seed)
    result: dict[str, SignerRes] = {}
    for name in sorted(clips, key=_natural):
        n, c = clips[name], correct[name]
        # resampling n clips of which c are hits draws from Binomial(n, c / n)
        interval = _percentiles(rng.binomial(n, c / n, size=resamples) / n, level)
        result[name] = {"clips": n, "correct": c, "acc": c / n, "interval": interval}
    return result


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers by value, then words, then "unknown"."""
    digits = name.isascii() and name.isdigit()
    return (name == "unknown" or not digits, int(digits and name), "~" if name == "unknown" else name)


# --- intervals and the paired test --------------------------------------------------------------------------


def intervals(ranks: ArrayLike, labels: ArrayLike, seed: int = 42, resamples: int = RESAMPLES,
              level: float = LEVEL, ks: Sequence[int] = KS) -> dict[str, Any]:
    """Percentile bootstrap intervals [low, high] of both accuracies at each k; clips are resampled.

    Efron & Tibshirani 1993, ch. 13. The average per class is taken anew over the classes present in each
    resample. Where all clips are hits (or none is), every resample agrees and the interval has no width.
    Returns {"top_k_per_instance_acc": {"top1": [low, high], ...}, "top_k_average_per_class_acc": ...,
    "level", "resamples", "seed", "clips"}.
    """
    instance, average = _bootstrap(ranks, labels, seed, resamples, ks)
    return {"top_k_per_instance_acc": _spans(ks, instance, level),
            "top_k_average_per_class_acc": _spans(ks, average, level),
            "level": level, "resamples": resamples, "seed": seed, "clips": len(_labels(labels))}


def _bootstrap(ranks: ArrayLike, labels: ArrayLike, seed: int, resamples: int,
               ks: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracies per instance and average per class of every resample, (len(ks), resamples) each."""
    truth = _labels(labels)
    order = np.argsort(truth, kind="stable")  # a class's clips side by side: reduceat sums over classes
    hits = _hits(ranks, ks)[:, order]
    starts = np.unique(truth[order], return_index=True)[1]
    rng, n = np.random.default_rng(seed), len(truth)
    instance, average = np.empty((2, len(ks), resamples))
    step = max(1, DRAWS_AT_ONCE // n)
    for start in range(0, resamples, step):
        drawn = _times_drawn(rng, min(step, resamples - start), n)
        some = slice(start, start + len(drawn))
        support = np.add.reduceat(drawn, starts, axis=1)
        for row, hit in enumerate(hits):
            found = np.add.reduceat(drawn * hit, starts, axis=1)
            instance[row, some] = found.sum(axis=1) / n
            average[row, some] = _share(found, support).sum(axis=1) / (support > 0).sum(axis=1)
    return instance, average


def _times_drawn(rng: np.random.Generator, rows: int, n: int) -> Ints:
    """How often each of n clips is among n draws with replacement, (rows, n)."""
    picks = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
    return np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n)


def compare(hits_a: ArrayLike, hits_b: ArrayLike, ids_a: Sequence[str], ids_b: Sequence[str], seed: int = 42,
            resamples: int = RESAMPLES, level: float = LEVEL) -> Comparison:
    """The paired test of two runs on the same clips, in any order: exact McNemar and a paired bootstrap.

    `p_value` is two-sided (McNemar 1947, the binomial form): how likely so uneven a split of the clips that
    only one run gets right would be, were both equally good. Raises Mistake where the clips are not the same.
    """
    order = _paired(ids_a, ids_b)
    first, second = _labels(hits_a).astype(bool), _labels(hits_b).astype(bool)
    if (len(first), len(second)) != (len(ids_a), len(ids_b)):
        raise ValueError(f"{len(first)} and {len(second)} hits for {len(ids_a)} and {len(ids_b)} clips")
    second = second[order]
    n, only_a, only_b = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    # resampling pairs draws the three kinds (only a, only b, the same) from a multinomial
    share = np.array([only_a, only_b, n - only_a - only_b]) / n
    draws = np.random.default_rng(seed).multinomial(n, share, size=resamples)
    return {"clips": n, "both": int((first & second).sum()), "only_a": only_a, "only_b": only_b,
            "neither": int((~first & ~second).sum()),
            "acc_a": float(first.mean()), "acc_b": float(second.mean()), "difference": (only_a - only_b) / n,
            "interval": _percentiles((draws[:, 0] - draws[:, 1]) / n, level),
            "p_value": mcnemar(only_a, only_b), "resamples": resamples, "seed": seed}


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of `only_a` against `only_b` clips: twice the binomial tail at 1/2, at most 1."""
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(fewer + 1))  # whole numbers: no rounding before the division
    return min(1.0, 2 * tail / 2**n)


def _paired(ids_a: Sequence[str], ids_b: Sequence[str]) -> list[int]:
    """Where each clip of the first run stands in the second; Mistake unless both hold the same clips."""
    for which, ids in (("first", ids_a), ("second", ids_b)):
        twice = [name for name, times in Counter(ids).items() if times > 1]
        if twice:
            raise Mistake(f"the {which} run names clips more than once",
                          f"{len(twice)} of them, such as {_some(twice)}", "test it again")
    only_a, only_b = sorted(set(ids_a) - set(ids_b)), sorted(set(ids_b) - set(ids_a))
    if only_a or only_b:
        found = (f"{len(only_a) + len(only_b)} differ: {len(only_a)} only in the first ({_some(only_a)}), "
                 f"{len(only_b)} only in the second ({_some(only_b)}); {len(ids_a) - len(only_a)} in both")
        raise Mistake("the two runs were not tested on the same clips", found,
                      "test both runs on the same set of the same split")
    where = {name: place for place, name in enumerate(ids_b)}
    return [where[name] for name in ids_a]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:3])) + (" …" if len(names) > 3 else "") if names else "none"


# --- shuffled frames ----------------------------------------------------------------------------------------


def permutation(n: int, seed: int) -> list[int]:
    """One order of n frames from the seed; never the identity where n > 1, which would test nothing."""
    if n < 1:
        raise ValueError(f"a permutation of {n} frames")
    rng, identity = np.random.default_rng(seed), list(range(n))
    perm = identity
    while perm == identity and n > 1:
        perm = rng.permutation(n).tolist()
    return perm


def shannon_entropy(perm: Sequence[int]) -> float:
    """-sum f log2 f, in bits, over the cyclic differences (p[i+1] - p[i]) mod n, the last p[0] - p[n-1].

    The identity (and any rotation) gives 0, the most mixed order at most log2 n.
    https://stats.stackexchange.com/questions/78591/correlation-between-two-decks-of-cards
    """
    n = len(perm)
    if sorted(perm) != list(range(n)) or not n:
        raise ValueError(f"not a permutation of 0 .. n-1: {list(perm)}")
    steps = Counter((perm[(i + 1) % n] - perm[i]) % n for i in range(n))
    return sum(times / n * math.log2(n / times) for times in steps.values())


# --- small parts --------------------------------------------------------------------------------------------


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], Ints]:
    table, truth = np.asarray(scores, dtype=np.float64), _labels(labels)
    if table.ndim != 2 or len(table) != len(truth):
        raise ValueError(f"scores of shape {table.shape} for {len(truth)} labels")
    _refuse_outside(truth, table.shape[1])
    _refuse_non_finite(table)
    return table, truth


def _labels(labels: ArrayLike) -> Ints:
    truth = np.asarray(labels, dtype=np.int64)
    if not truth.size:
        raise Mistake("nothing to score", "0 clips", "the set is empty: see the report of preprocess.py")
    return truth


def _pair(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> tuple[Ints, Ints]:
    """True and predicted classes, as many of the one as of the other, all in 0 .. num_classes - 1."""
    truth, guess = _labels(labels), _labels(predicted)
    if len(truth) != len(guess):
        raise ValueError(f"{len(guess)} predictions for {len(truth)} labels")
    _refuse_outside(truth, num_classes)
    _refuse_outside(guess, num_classes)
    return truth, guess


def _refuse_outside(labels: Ints, num_classes: int) -> None:
    outside = np.unique(labels[(labels < 0) | (labels >= num_classes)])
    if outside.size:
        raise Mistake("the labels do not fit the classes", f"label {outside[-1]} of {num_classes} classes",
                      "test on the split that the model was trained for")


def _refuse_non_finite(table: NDArray[np.float64]) -> None:
    """A single -inf is a masked class; NaN, +inf or nothing but -inf is a model that has diverged."""
    bad = int((~np.isfinite(table.max(axis=1))).sum())
    if bad:
        raise Mistake("the model's scores are not finite", f"{bad} of {len(table)} clips",
                      "its training has diverged: test an earlier checkpoint")


def _hits(ranks: ArrayLike, ks: Iterable[int]) -> NDArray[np.bool_]:
    return _labels(ranks)[None, :] < np.array(list(ks), dtype=np.int64)[:, None]


def _share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def _named(ks: Sequence[int], values: NDArray[np.float64]) -> TopKRes:
    return cast(TopKRes, {f"top{k}": float(value) for k, value in zip(ks, values, strict=True)})


def _percentiles(values: NDArray[np.float64], level: float) -> list[float]:
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()


def _spans(ks: Sequence[int], table: NDArray[np.float64], level: float) -> dict[str, list[float]]:
    return {f"top{k}": _percentiles(row, level) for k, row in zip(ks, table, strict=True)}
