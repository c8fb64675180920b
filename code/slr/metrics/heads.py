"""Scores of several labels a clip: F1 and accuracy of every head, exact match, the look-up of glosses, the paired test.

A record is a dict: "id", "labels" {head: true class; a head whose label is not known is left out, or -1}, "scores"
{head: log-probabilities (K,)} of every head, "gloss" the number of what is signed or None. A missing label counts
nowhere.

    answers = answers_of(records)                 the true and the predicted class of every clip and head
    score(records, dictionary)                    {"mean_macro_f1": 0.61, "exact_match": 0.2, "heads": {...}, ...}
    intervals(answers)                            95 % bootstrap intervals of all of these
    look_up(scores, dictionary, glosses)          where the true gloss stands among those of a dictionary
    compare(answers_a, answers_b)                 which of two runs is better, and how surely

Rates are decimals between 0 and 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slr.errors import Mistake
from slr.hamnosys import GLOSS
from slr.metrics import topk

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Dictionary = Mapping[int, tuple[str, Mapping[str, int]]]  # gloss: (its name, {head: label})
Records = Sequence[Mapping[str, Any]]

FREQUENT = 10  # clips that make a label frequent
MISSING = -1
RESAMPLES = 2_000  # of all heads at once
LEVEL = 0.95
AT_ONCE = 2**22  # clips drawn, or pairs of clip and gloss, in one go: 32 MiB an array


@dataclass(frozen=True)
class Answers:
    """Of N clips the true class (MISSING where not known) and the predicted one, {head: (N,)} each."""

    ids: list[str]
    truth: dict[str, Ints]
    predicted: dict[str, Ints]

    def rows(self, order: ArrayLike) -> "Answers":
        """The clips of these numbers."""
        chosen = np.asarray(order, dtype=np.int64)
        return Answers([self.ids[i] for i in chosen], {head: row[chosen] for head, row in self.truth.items()},
                       {head: row[chosen] for head, row in self.predicted.items()})

    def only(self, heads: Sequence[str]) -> "Answers":
        """These heads alone."""
        return Answers(self.ids, {head: self.truth[head] for head in heads},
                       {head: self.predicted[head] for head in heads})

    def labelled(self) -> list[str]:
        """The heads of which any clip has a label."""
        return [head for head, row in self.truth.items() if (row != MISSING).any()]

    def pairs(self, head: str) -> tuple[Ints, Ints]:
        """(True, predicted) classes of the clips whose label is known."""
        known = self.truth[head] != MISSING
        return self.truth[head][known], self.predicted[head][known]


class Baseline(TypedDict):
    """What always the most frequent true label of this very set would get."""

    label: int
    accuracy: float
    macro_f1: float
    macro_f1_frequent: float | None


class HeadRes(TypedDict, total=False):
    """One head; see `head_result`."""

    clips: int
    classes: int
    classes_present: int
    classes_frequent: int
    accuracy: float
    macro_f1: float
    macro_f1_frequent: float | None
    chance: float
    majority: Baseline
    top1: float
    top5: float
    top10: float


class Comparison(TypedDict):
    """Two runs on the same clips and heads; differences are the first minus the second, `interval` of macro_f1's."""

    clips: int
    heads: list[str]
    heads_left_out: list[str]
    exact_match: topk.Comparison
    macro_f1_a: float
    macro_f1_b: float
    difference: float
    interval: list[float]
    per_head: dict[str, dict[str, float]]
    resamples: int
    seed: int


# --- records ------------------------------------------------------------------------------------------------


def answers_of(records: Records) -> Answers:
    """The classes that the records' scores make likeliest (of equal ones the lower), beside the true ones."""
    scores = scores_of(records)
    truth = {head: np.array([row["labels"].get(head, MISSING) for row in records], dtype=np.int64) for head in scores}
    for head, row in truth.items():
        _refuse_outside(row, scores[head].shape[1], head)
    return Answers([row["id"] for row in records], truth,
                   {head: table.argmax(axis=1).astype(np.int64) for head, table in scores.items()})


def scores_of(records: Records) -> dict[str, Floats]:
    """{head: log-probabilities (N, K)}. Raises Mistake on no records and where scores are not finite."""
    if not records:
        raise Mistake("nothing to score", "0 clips", "the set is empty: see the report of preprocess.py")
    heads = list(records[0]["scores"])
    if any(set(row["scores"]) != set(heads) for row in records):
        raise ValueError("the records have not all the same heads")
    found = {head: np.stack([row["scores"][head] for row in records]).astype(np.float64) for head in heads}
    for head, table in found.items():
        _refuse_no_log_probabilities(table, head)
    return found


def _refuse_no_log_probabilities(table: Floats, head: str) -> None:
    """A single -inf is a masked class; NaN, +inf or nothing but -inf is a model that has diverged."""
    bad = int((~np.isfinite(table.max(axis=1))).sum())
    if bad:
        raise Mistake(f"the model's scores of {head} are not finite", f"{bad} of {len(table)} clips",
                      "its training has diverged: test an earlier checkpoint")
    if table.max() > 1e-3:
        raise ValueError(f"scores of {head} up to {table.max():g}: a log-probability is not above 0")


def _refuse_outside(labels: Ints, classes: int, head: str) -> None:
    outside = np.unique(labels[(labels < MISSING) | (labels >= classes)])
    if outside.size:
        raise Mistake(f"the labels do not fit the classes of {head}", f"label {outside[-1]} of {classes} classes",
                      "test on the data that the model was trained for")


# --- one head -----------------------------------------------------------------------------------------------


class Table(TypedDict):
    """One entry a label that occurs as true or predicted class, in the order of the labels."""

    labels: list[int]
    precision: list[float]
    recall: list[float]
    f1: list[float]
    support: list[int]
    predicted: list[int]


def per_label(truth: ArrayLike, predicted: ArrayLike) -> Table:
    """Precision, recall, F1, true clips (support) and predicted ones of each label that occurs; 0 for 0 / 0.

    Clips without a label must have been left out.
    """
    labels, right, true, said = _counts(truth, predicted)
    return {"labels": labels.tolist(), "precision": (right / np.maximum(said, 1)).tolist(),
            "recall": (right / np.maximum(true, 1)).tolist(), "f1": (2 * right / (true + said)).tolist(),
            "support": true.tolist(), "predicted": said.tolist()}


def _counts(truth: ArrayLike, predicted: ArrayLike) -> tuple[Ints, Ints, Ints, Ints]:
    """(Labels that occur, of each of them the clips that are right, those it is true of, those it is said of)."""
    true, said = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if true.shape != said.shape or true.ndim != 1:
        raise ValueError(f"predictions of shape {said.shape} for labels of {true.shape}")
    if not true.size:
        raise Mistake("nothing to score", "0 clips with a label", "see the annotation file and its heads")
    labels, place = np.unique(np.concatenate([true, said]), return_inverse=True)
    a, b = place[:len(true)], place[len(true):]
    counts = (np.bincount(where, minlength=len(labels)) for where in (a[a == b], a, b))
    right, of_true, of_said = (count.astype(np.int64) for count in counts)
    return labels, right, of_true, of_said


def macro_f1(truth: ArrayLike, predicted: ArrayLike) -> float:
    """The plain mean of F1 over the labels that occur as true or predicted class: scikit-learn's f1_score(average=
    "macro"). A label that is only ever predicted so counts with F1 0."""
    _, right, true, said = _counts(truth, predicted)
    return float((2 * right / (true + said)).mean())


def macro_f1_frequent(truth: ArrayLike, predicted: ArrayLike, least: int = FREQUENT) -> float | None:
    """The plain mean of F1 over the labels that at least `least` (10) clips of the tested set truly have: the
    project's headline. None where there is no such label.

    Each of these labels' F1 is over all labelled clips: a clip of a rare label that is taken for a frequent one lowers
    the precision of that; clips of rare labels change nothing else. As scikit-learn's f1_score(labels=the frequent
    ones, average="macro", zero_division=0).
    """
    _, right, true, said = _counts(truth, predicted)
    frequent = true >= least
    return float((2 * right / (true + said))[frequent].mean()) if frequent.any() else None


def majority(truth: ArrayLike) -> int:
    """The most frequent label, of equally frequent ones the lowest."""
    labels, times = np.unique(np.asarray(truth, dtype=np.int64), return_counts=True)
    return int(labels[times.argmax()])


def head_result(truth: Ints, predicted: Ints, classes: int) -> HeadRes:
    """The figures of one head of `classes` classes, of the clips whose label is known.

    `chance` is the accuracy of guessing all classes alike; `majority` always says the most frequent label of this very
    set, which no system can know, so that it is rather too good.
    """
    _, _, true, _ = _counts(truth, predicted)
    most = majority(truth)
    always = np.full_like(truth, most)
    return {"clips": len(truth), "classes": classes, "classes_present": int((true > 0).sum()),
            "classes_frequent": int((true >= FREQUENT).sum()), "accuracy": float((truth == predicted).mean()),
            "macro_f1": macro_f1(truth, predicted), "macro_f1_frequent": macro_f1_frequent(truth, predicted),
            "chance": 1 / classes,
            "majority": {"label": most, "accuracy": float((truth == most).mean()), "macro_f1": macro_f1(truth, always),
                         "macro_f1_frequent": macro_f1_frequent(truth, always)}}


def confusion(truth: ArrayLike, predicted: ArrayLike) -> tuple[list[int], Ints]:
    """(The labels that occur as true or predicted class, their counts (C, C): row = true, column = predicted)."""
    labels, _, _, _ = _counts(truth, predicted)
    rows, columns = (np.searchsorted(labels, np.asarray(some, dtype=np.int64)) for some in (truth, predicted))
    return labels.tolist(), topk.confusion(rows, columns, len(labels))


# --- all heads ----------------------------------------------------------------------------------------------


def exact(answers: Answers) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(Which clips have all their known labels right, which clips have any known label), (N,) each."""
    right = np.ones(len(answers.ids), dtype=bool)
    known = np.zeros(len(answers.ids), dtype=bool)
    for head, truth in answers.truth.items():
        labelled = truth != MISSING
        right &= ~labelled | (truth == answers.predicted[head])
        known |= labelled
    return right & known, known


def always(answers: Answers) -> Answers:
    """The answers of who always says the most frequent true label of each head of this very set."""
    said = {head: np.full(len(answers.ids), majority(answers.pairs(head)[0])) for head in answers.labelled()}
    return Answers(answers.ids, {head: answers.truth[head] for head in said}, said)


def score(records: Records, dictionary: Dictionary | None = None) -> dict[str, Any]:
    """All figures of a set, plain JSON.

    mean_macro_f1, mean_macro_f1_frequent, mean_accuracy: plain means over the heads that have labelled clips (the
        second over those that have frequent labels; None where none has).
    exact_match: the share of clips with all their known labels right, among `clips` that have any; `clips_complete`
        of them have one for every head.
    majority: the same four of always the most frequent label.
    heads: {head: HeadRes}; the `gloss` head has its top-k accuracy in it. heads_without_labels: not scored.
    lookup: see `look_up`; None without a dictionary, or where no clip's gloss is in it, or no head.
    """
    scores, answers = scores_of(records), answers_of(records)
    heads = answers.labelled()
    if not heads:
        raise Mistake("nothing to score", f"no clip has a label of {', '.join(answers.truth)}",
                      "see the annotation file and its heads")
    found: dict[str, Any] = {head: head_result(*answers.pairs(head), scores[head].shape[1]) for head in heads}
    if GLOSS in found:
        known = answers.truth[GLOSS] != MISSING
        found[GLOSS].update(topk.per_instance(topk.ranks_of(scores[GLOSS][known], answers.truth[GLOSS][known])))
    right, known = exact(answers)
    complete = np.all([answers.truth[head] != MISSING for head in heads], axis=0)
    rows = list(found.values())
    return {"signature": f"heads, {int(known.sum())} clips, missing labels left out, frequent from {FREQUENT} clips",
            "clips": int(known.sum()), "clips_complete": int(complete.sum()), **_means(rows),
            "exact_match": float(right[known].mean()),
            "majority": {**_means([row["majority"] for row in rows]),
                         "exact_match": float(exact(always(answers))[0][known].mean())},
            "heads": found, "heads_without_labels": [head for head in answers.truth if head not in heads],
            "lookup": _looked_up(scores, records, dictionary)}


def quick(records: Records) -> dict[str, float]:
    """{f1: the mean over the heads of their macro-F1, exact: the share of clips that are right in all heads}."""
    answers = answers_of(records)
    right, counted = exact(answers)
    found = [macro_f1(*answers.pairs(head)) for head in answers.labelled()]
    return {"f1": float(np.mean(found)) if found else 0.0,
            "exact": float(right[counted].mean()) if counted.any() else 0.0}


def _means(rows: Sequence[Any]) -> dict[str, float | None]:
    """The means over heads of what each row has."""
    found: dict[str, float | None] = {}
    for key in ("macro_f1", "macro_f1_frequent", "accuracy"):
        values = [row[key] for row in rows if row[key] is not None]
        found[f"mean_{key}"] = float(np.mean(values)) if values else None
    return found


# --- glosses by their labels --------------------------------------------------------------------------------


def ranked(scores: Mapping[str, Floats], dictionary: Dictionary) -> list[dict[str, Any]]:
    """The dictionary's glosses by the symbols of one clip, {head: (K,) log-probabilities}, the likeliest first:
    {gloss, name, log_probability: the mean over the heads, apart: how many symbols are others}."""
    best = {head: int(row.argmax()) for head, row in scores.items()}
    rows = []
    for gloss, (name, labels) in dictionary.items():
        shared = [(head, label) for head, label in labels.items() if head in scores and label < len(scores[head])]
        if shared:
            rows.append({"gloss": gloss, "name": name,
                         "log_probability": float(np.mean([scores[head][label] for head, label in shared])),
                         "apart": sum(best[head] != label for head, label in shared)})
    return sorted(rows, key=lambda row: -row["log_probability"])


@dataclass(frozen=True)
class Places:
    """Where the true gloss stands, (N,) each: glosses before it, those at its place (itself among them), and the number
    of the gloss that stands first (of tied ones the dictionary's first)."""

    before: Ints
    tied: Ints
    first: Ints

    def hits(self, k: int) -> Floats:
        """How likely the true gloss is among the first k, (N,), where tied ones stand in random order."""
        return np.clip((k - self.before) / self.tied, 0, 1)

    def ranks(self) -> Floats:
        """The mean place, from 1: 1.5 where two are tied for the first."""
        return self.before + (self.tied + 1) / 2


@dataclass(frozen=True)
class Lookup:
    """Of the M clips at `rows` of the records (those whose gloss is in the dictionary) the places in two orders."""

    rows: Ints
    glosses: list[int]  # that have any of the heads
    heads: list[str]
    alike: Ints  # (M,): glosses with the very labels of the true one, itself among them
    shared: int  # glosses that are not alone with their labels
    outside: int  # clips whose gloss is known and not among `glosses`
    distance: Places
    log_p: Places


def look_up(scores: Mapping[str, Floats], dictionary: Dictionary, glosses: Sequence[int | None]) -> Lookup | None:
    """The true gloss's place among a dictionary's, for the clips whose gloss is known. None where there is no such
    clip, or the dictionary has none of the heads.

    scores: {head: log-probabilities (N, K)}; glosses: (N,) what was signed.
    distance: glosses in the order of their Hamming distance, the number of heads whose predicted label is not theirs;
        of equally distant ones that with the higher log-probability first. log_p: in the order of the sum of the
        log-probabilities of their labels. Where a gloss lacks a label, both are of its other heads alone, as means, so
        that a gloss is not near for having few.
    Glosses that share all their labels cannot be told apart: they are tied, and at k the true one is found as often as
    it would be in random order (`Places.hits`), not by where it stands in the dictionary.
    """
    heads = [head for head in scores if any(head in labels for _, labels in dictionary.values())]
    names = [gloss for gloss, (_, labels) in dictionary.items() if any(head in labels for head in heads)]
    where = {gloss: place for place, gloss in enumerate(names)}
    rows = np.array([i for i, gloss in enumerate(glosses) if gloss in where], dtype=np.int64)
    if not rows.size:
        return None
    table = np.array([[dictionary[gloss][1].get(head, MISSING) for head in heads] for gloss in names], dtype=np.int64)
    for column, head in zip(table.T, heads, strict=True):
        _refuse_outside(column, scores[head].shape[1], f"{head} (in the dictionary)")
    own = np.array([where[gloss] for gloss in glosses if gloss in where], dtype=np.int64)
    _, group, size = np.unique(table, axis=0, return_inverse=True, return_counts=True)
    alike = size[group.reshape(-1)]
    outside = sum(gloss is not None for gloss in glosses) - len(rows)
    return Lookup(rows, names, heads, alike[own], int((alike > 1).sum()), outside,
                  *_places([scores[head][rows] for head in heads], table, own))


def _places(scores: Sequence[Floats], table: Ints, own: Ints) -> tuple[Places, Places]:
    """By distance and by log-probability; a block of clips at a time. scores: (M, K) a head; table (G, H)."""
    known = (table != MISSING).sum(axis=1)
    step = max(1, AT_ONCE // len(table))
    found: list[list[Ints]] = []
    for start in range(0, len(own), step):
        some = slice(start, start + step)
        apart, log_p = np.zeros((2, len(own[some]), len(table)))
        for head, column in zip(scores, table.T, strict=True):
            there = column != MISSING
            block = head[some]
            apart += there & (block.argmax(axis=1)[:, None] != column)
            log_p += np.where(there, block[:, np.where(there, column, 0)], 0.0)
        apart, log_p = apart / known, log_p / known
        found.append([*_place(own[some], apart, log_p), *_place(own[some], np.zeros_like(apart), log_p)])
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return Places(*columns[:3]), Places(*columns[3:])


def _place(own: Ints, apart: Floats, log_p: Floats) -> tuple[Ints, Ints, Ints]:
    """(before, tied, first): fewest `apart` first, then highest `log_p`; (M, G) each, `own` (M,) the true column."""
    mine = own[:, None]
    distance, chance = (np.take_along_axis(x, mine, axis=1) for x in (apart, log_p))
    before = ((apart < distance) | ((apart == distance) & (log_p > chance))).sum(axis=1)
    tied = ((apart == distance) & (log_p == chance)).sum(axis=1)
    nearest = apart == apart.min(axis=1, keepdims=True)
    best = np.where(nearest, log_p, -np.inf).max(axis=1, keepdims=True)
    return before, tied, (nearest & (log_p == best)).argmax(axis=1)


def _looked_up(scores: Mapping[str, Floats], records: Records, dictionary: Dictionary | None) -> dict[str, Any] | None:
    found = look_up(scores, dictionary, [row.get("gloss") for row in records]) if dictionary else None
    return None if found is None else lookup_result(found)


def lookup_result(found: Lookup) -> dict[str, Any]:
    """Top-k accuracy in both orders; `ceiling`: were all labels right; `chance`: any order."""
    n = len(found.glosses)
    return {"clips": len(found.rows), "clips_outside": found.outside, "glosses": n, "glosses_alike": found.shared,
            "heads": found.heads,
            "distance": {f"top{k}": float(found.distance.hits(k).mean()) for k in topk.KS},
            "log_p": {f"top{k}": float(found.log_p.hits(k).mean()) for k in topk.KS},
            "ceiling": {f"top{k}": float(np.minimum(1, k / found.alike).mean()) for k in topk.KS},
            "chance": {f"top{k}": min(1.0, k / n) for k in topk.KS}}


# --- intervals and the paired test --------------------------------------------------------------------------


class _Resampled:
    """Figures of resamples of one run's clips: sums over clips of what each adds, by one sparse product."""

    def __init__(self, answers: Answers):
        from scipy import sparse  # scikit-learn's own; here: it takes a moment

        self.heads = answers.labelled()
        self.sizes: list[int] = []
        self.frequent: list[NDArray[np.bool_]] = []
        rows, columns = list[Ints](), list[Ints]()
        for head in self.heads:
            truth, predicted = answers.pairs(head)
            clips = np.flatnonzero(answers.truth[head] != MISSING)
            labels, _, true, _ = _counts(truth, predicted)
            a, b = np.searchsorted(labels, truth), np.searchsorted(labels, predicted)
            size, first = len(labels), 3 * sum(self.sizes)
            rows += [first + a[a == b], first + size + a, first + 2 * size + b]  # right, true, said
            columns += [clips[a == b], clips, clips]
            self.sizes.append(size)
            self.frequent.append(true >= FREQUENT)
        where = np.concatenate(rows), np.concatenate(columns)
        shape = (3 * sum(self.sizes), len(answers.ids))
        self.sums = sparse.csr_matrix((np.ones(len(where[0]), np.float32), where), shape=shape)

    def figures(self, drawn: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
        """accuracy, macro_f1, macro_f1_frequent of each head and resample, (H, R) each; NaN where it has none.
        drawn: how often each clip is in each resample, (N, R)."""
        counts = self.sums @ drawn
        found, first = np.full((3, len(self.sizes), drawn.shape[1]), np.nan), 0
        for h, (size, frequent) in enumerate(zip(self.sizes, self.frequent, strict=True)):
            right, true, said = counts[first:first + 3 * size].astype(np.float64).reshape(3, size, -1)
            first += 3 * size
            f1, some = _ratio(2 * right, true + said), (true + said > 0).sum(axis=0)
            found[0, h] = _ratio(right.sum(axis=0), true.sum(axis=0), np.nan)
            found[1, h] = _ratio(f1.sum(axis=0), some, np.nan)
            if frequent.any():
                found[2, h] = f1[frequent].mean(axis=0)
        return found[0], found[1], found[2]


def _ratio(part: NDArray[Any], whole: NDArray[Any], empty: float = 0.0) -> Floats:
    return np.divide(part, whole, out=np.full(part.shape, empty), where=whole > 0)


def _draws(n: int, seed: int, resamples: int) -> Iterator[NDArray[np.float32]]:
    """How often each of n clips is among n draws with replacement, (n, some of the resamples) at a time."""
    rng = np.random.default_rng(seed)
    for first in range(0, resamples, step := max(1, AT_ONCE // n)):
        rows = min(step, resamples - first)
        picks = rng.integers(n, size=(n, rows)) * rows + np.arange(rows)
        yield np.bincount(picks.ravel(), minlength=n * rows).reshape(n, rows).astype(np.float32)


def _means_over_heads(values: Floats) -> Floats:
    """The mean over the heads (H, R) that have a figure, (R,); NaN where none has."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(axis=0), there.sum(axis=0), np.nan)


def _span(values: Floats, level: float) -> list[float] | None:
    """The percentile interval of what is not NaN."""
    some = values[~np.isnan(values)]
    return np.quantile(some, [(1 - level) / 2, (1 + level) / 2]).tolist() if some.size else None


def intervals(answers: Answers, extra: Mapping[str, Floats] | None = None, seed: int = 42, resamples: int = RESAMPLES,
              level: float = LEVEL) -> dict[str, Any]:
    """Percentile bootstrap intervals [low, high] (Efron & Tibshirani 1993, ch. 13); clips are resampled, each with all
    its heads, and labels that a resample lacks are not in its macro-F1. Which labels are frequent is the whole set's.

    extra: {name: a value for each clip (N,), NaN where it has none}, whose means get intervals too.
    Returns {"mean_macro_f1", "mean_macro_f1_frequent", "mean_accuracy", "exact_match": [low, high], "heads": {head:
    {"accuracy", "macro_f1", "macro_f1_frequent"}}, "extra": {name: ...}, "level", "resamples", "seed"}; None where
    there is no such figure.
    """
    run = _Resampled(answers)
    right, known = exact(answers)
    values = [np.where(known, right, np.nan), *(extra or {}).values()]
    table = np.nan_to_num(np.stack(values)).astype(np.float32), (~np.isnan(values)).astype(np.float32)
    figures, means = list[tuple[Floats, ...]](), list[Floats]()
    for drawn in _draws(len(answers.ids), seed, resamples):
        figures.append(run.figures(drawn))
        means.append(_ratio(table[0] @ drawn, table[1] @ drawn, np.nan))
    parts = dict(zip(("accuracy", "macro_f1", "macro_f1_frequent"),
                     (np.concatenate(part, axis=1) for part in zip(*figures, strict=True)), strict=True))
    singles = np.concatenate(means, axis=1)
    return {**{f"mean_{key}": _span(_means_over_heads(part), level) for key, part in parts.items()},
            "exact_match": _span(singles[0], level),
            "heads": {head: {key: _span(part[h], level) for key, part in parts.items()}
                      for h, head in enumerate(run.heads)},
            "extra": {name: _span(row, level) for name, row in zip(extra or {}, singles[1:], strict=True)},
            "level": level, "resamples": resamples, "seed": seed}


def compare(a: Answers, b: Answers, seed: int = 42, resamples: int = RESAMPLES, level: float = LEVEL) -> Comparison:
    """The paired test of two runs on the same clips, in any order, over the heads that both have.

    exact_match: the exact McNemar test (`topk.compare`) of who has all known labels of these heads right; `interval`
    is the percentile bootstrap's of the difference in mean macro-F1, clips drawn with both runs' answers. Raises
    Mistake where clips or true labels are not the same, or no head is.
    """
    heads = [head for head in a.truth if head in b.truth]
    if not heads:
        raise Mistake("the two runs have no head in common", f"{', '.join(a.truth)}; and {', '.join(b.truth)}",
                      "compare runs that predict the same")
    left_out = [*(head for head in a.truth if head not in heads), *(head for head in b.truth if head not in heads)]
    a, b = a.only(heads), b.only(heads)
    _refuse_other_labels(a, b)
    (right_a, known_a), (right_b, known_b) = exact(a), exact(b)
    ids_a, ids_b = ([name for name, there in zip(run.ids, known, strict=True) if there]
                    for run, known in ((a, known_a), (b, known_b)))
    tested = topk.compare(right_a[known_a], right_b[known_b], ids_a, ids_b, seed, resamples, level)
    place = {name: i for i, name in enumerate(b.ids)}
    a, b = a.rows(np.flatnonzero(known_a)), b.rows([place[name] for name in ids_a])
    macro = {head: (macro_f1(*a.pairs(head)), macro_f1(*b.pairs(head))) for head in a.labelled()}
    mean_a, mean_b = np.mean(list(macro.values()), axis=0).tolist()
    first, second = _Resampled(a), _Resampled(b)
    change = np.concatenate([_means_over_heads(first.figures(drawn)[1]) - _means_over_heads(second.figures(drawn)[1])
                             for drawn in _draws(len(a.ids), seed, resamples)])
    return {"clips": len(a.ids), "heads": list(macro), "heads_left_out": left_out, "exact_match": tested,
            "macro_f1_a": mean_a, "macro_f1_b": mean_b, "difference": mean_a - mean_b,
            "interval": _span(change, level) or [0.0, 0.0],
            "per_head": {head: {"macro_f1_a": x, "macro_f1_b": y, "difference": x - y}
                         for head, (x, y) in macro.items()},
            "resamples": resamples, "seed": seed}


def _refuse_other_labels(a: Answers, b: Answers) -> None:
    """Of the clips that both have."""
    place = {name: i for i, name in enumerate(b.ids)}
    shared = np.array([i for i, name in enumerate(a.ids) if name in place], dtype=np.int64)
    other = np.array([place[a.ids[i]] for i in shared], dtype=np.int64)
    for head in a.truth:
        bad = shared[a.truth[head][shared] != b.truth[head][other]]
        if bad.size:
            raise Mistake("the two runs were not scored against the same labels",
                          f"{bad.size} clips differ in {head}, such as {a.ids[bad[0]]}",
                          "test both again, on the same annotation file")
