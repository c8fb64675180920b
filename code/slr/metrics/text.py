"""Translations: BLEU-1 to BLEU-4, chrF and ROUGE-L, in per cent.

    scores(refs, hyps)                     a string a sentence: {"bleu1": 54.5, ..., "rouge_l": 53.1, "signatures": ...}
    bleu4(refs, hyps, "char")              BLEU-4 alone; of Chinese, where every character is a token
    interval(refs, hyps)                   95 % bootstrap interval of BLEU-4, over sentences
    compare({"a": (ref, hyp), ...}, ...)   which of two systems is better in BLEU-4, and how surely
    read_pair(ref, hyp)                    both lists from files with a sentence a line

BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040) is of the whole corpus, and chrF (Popović 2015,
https://aclanthology.org/W15-3049) too; both are sacrebleu's (Post 2018, https://aclanthology.org/W18-6319) with
`tokenize none`: texts are compared as they stand, white space apart. Interval and paired test count n-grams themselves.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from slr.errors import Mistake

LEVELS = ("word", "char")
METHODS = ("floor", "none", "exp")
ORDER = 4
BETA = 1.2  # of the translation papers' ROUGE-L, which they took from the MS COCO caption evaluation
DRAWS = 1000
PAIRED_DRAWS = 10_000
CONFIDENCE = 0.95
SEED = 42
AT_ONCE = 2**20  # sentences drawn in one go
ROUNDING = 1e-9  # two ways to swap sentences may differ by the last bits

Texts = Sequence[str]
Pairs = Mapping[str, tuple[str, str]]
Tokens = list[list[str]]
Table = NDArray[np.float64]


class Smoothing(NamedTuple):
    """What BLEU puts for the matches of an order that has none, in sacrebleu's words; the default: 0, as papers report.

    method: `floor` puts `value`, `none` nothing, `exp` 1/2, then 1/4, and so on. effective_order: orders that no
    hypothesis is long enough for are left out of the mean; else they make BLEU 0.
    """

    method: str = "floor"
    value: float = 0.0
    effective_order: bool = False


FLOOR_0 = Smoothing()


class TextRes(TypedDict):
    """Scores in per cent; tokens are words, or characters."""

    bleu1: float
    bleu2: float
    bleu3: float
    bleu4: float
    chrf: float
    rouge_l: float
    sentences: int
    ref_tokens: int
    hyp_tokens: int
    signatures: dict[str, str]


class Comparison(TypedDict):
    """Two systems on the same sentences; `difference` is the first's BLEU-4 minus the second's, in points.

    same: sentences in which both say the same.
    """

    sentences: int
    ref_tokens: int
    bleu4_a: float
    bleu4_b: float
    difference: float
    interval: list[float]
    p_value: float
    same: int
    draws: int
    seed: int
    signature: str


# --- scores -------------------------------------------------------------------------------------------------


def scores(refs: Texts, hyps: Texts, level: str = "word", name: str = "", smoothing: Smoothing = FLOOR_0) -> TextRes:
    """Everything of one system; `name` says in the signatures what was scored.

    An empty hypothesis has no n-grams, and makes the corpus shorter; the n-grams of one whose reference is empty are
    wrong in BLEU, and left out of chrF. Raises Mistake where there are not as many hypotheses as references, where
    the references hold no token at all, and where sacrebleu is missing.
    """
    said = _both(refs, hyps, level)
    bleu, bleu_signature = _bleu_of(*said, smoothing)
    chrf, chrf_signature = _chrf_of(*said)
    signed = {"bleu": f"bleu|{bleu_signature}", "chrf": f"chrf2|{chrf_signature}",
              "rouge_l": f"rouge_l.1|beta:{BETA}|mean:sentences"}
    ref_tokens, hyp_tokens = (sum(map(len, side)) for side in said)
    about = f"level:{level}|set:{name or 'unnamed'}|sentences:{len(refs)}|ref_tokens:{ref_tokens}"
    return {"bleu1": bleu[0], "bleu2": bleu[1], "bleu3": bleu[2], "bleu4": bleu[3], "chrf": chrf,
            "rouge_l": _rouge_l_of(*said, BETA), "sentences": len(refs), "ref_tokens": ref_tokens,
            "hyp_tokens": hyp_tokens, "signatures": {key: f"{text}|{about}" for key, text in signed.items()}}


def bleu4(refs: Texts, hyps: Texts, level: str = "word", smoothing: Smoothing = FLOOR_0) -> float:
    """BLEU-4 alone, as in `scores`."""
    return _bleu_of(*_both(refs, hyps, level), smoothing)[0][-1]


def rouge_l(refs: Texts, hyps: Texts, level: str = "word", beta: float = BETA) -> float:
    """The mean over sentences of (1 + beta^2) P R / (R + beta^2 P), in per cent (Lin 2004,
    https://aclanthology.org/W04-1013).

    P and R: the longest common subsequence's share of the hypothesis and of the reference. 0 where only one of the two
    is empty, 100 where both are.
    """
    return _rouge_l_of(*_both(refs, hyps, level), beta)


def tokens(text: str, level: str = "word") -> list[str]:
    """What stands between white space; or every character that is none."""
    if level not in LEVELS:
        raise ValueError(f"no level: {level}")
    return text.split() if level == "word" else list("".join(text.split()))


def _both(refs: Texts, hyps: Texts, level: str) -> tuple[Tokens, Tokens]:
    """The tokens of every sentence of both sides."""
    for side in (refs, hyps):
        if isinstance(side, str) or not all(isinstance(text, str) for text in side):
            raise TypeError("a side is a list of sentences, a sentence a string")
    if len(refs) != len(hyps):
        raise Mistake("references and hypotheses are not of the same sentences",
                      f"{len(refs)} references, {len(hyps)} hypotheses",
                      "score the whole set, empty hypotheses included, and nothing else")
    said = [tokens(text, level) for text in refs]
    if not any(said):
        raise Mistake("the references have no words", f"{len(refs)} sentences", "a score needs words to compare with")
    return said, [tokens(text, level) for text in hyps]


def _bleu_of(refs: Tokens, hyps: Tokens, smoothing: Smoothing) -> tuple[list[float], str]:
    """(BLEU-1 to BLEU-4, all four from one count of the n-grams; sacrebleu's signature).

    `force`: German text ends in " .", which sacrebleu would warn of.
    """
    _refuse_unknown(smoothing)
    how = {"smooth_method": smoothing.method, "smooth_value": smoothing.value,
           "effective_order": smoothing.effective_order}
    bleu = _sacrebleu().BLEU(tokenize="none", force=True, max_ngram_order=ORDER, **how)
    found = bleu.corpus_score(_joined(hyps), [_joined(refs)])
    values = [bleu.compute_bleu(found.counts[:n], found.totals[:n], found.sys_len, found.ref_len, max_ngram_order=n,
                                **how).score for n in range(1, ORDER + 1)]
    return [float(value) for value in values], bleu.get_signature().format()


def _chrf_of(refs: Tokens, hyps: Tokens) -> tuple[float, str]:
    """(chrF of n-grams of 1 to 6 characters, recall weighing twice; sacrebleu's signature), the same at both levels."""
    chrf = _sacrebleu().CHRF()
    found = chrf.corpus_score(_joined(hyps), [_joined(refs)])
    return float(found.score), chrf.get_signature().format()


def _refuse_unknown(smoothing: Smoothing) -> None:
    if smoothing.method not in METHODS:
        raise ValueError(f"no smoothing: {smoothing.method}")


def _joined(side: Tokens) -> list[str]:
    return [" ".join(words) for words in side]


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise Mistake("BLEU and chrF are counted by sacrebleu", "it is not installed",
                      "pip install sacrebleu") from None
    return metrics


def _rouge_l_of(refs: Tokens, hyps: Tokens, beta: float) -> float:
    shares = [_rouge_l(ref, hyp, beta) for ref, hyp in zip(refs, hyps, strict=True)]
    return 100 * sum(shares) / len(shares)


def _rouge_l(ref: list[str], hyp: list[str], beta: float) -> float:
    if not ref or not hyp:
        return float(ref == hyp)
    common = lcs(ref, hyp)
    precision, recall = common / len(hyp), common / len(ref)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if common else 0.0


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    A bit a word of `a`: it turns 0 where the table of lengths steps up, so the zeros in the end are the length
    (Hyyrö 2004, Bit-parallel LCS-length computation revisited).
    """
    places: dict[str, int] = defaultdict(int)
    for place, word in enumerate(a):
        places[word] |= 1 << place
    full = row = (1 << len(a)) - 1
    for word in b:
        here = row & places.get(word, 0)
        row = ((row + here) | (row - here)) & full
    return len(a) - row.bit_count()


# --- interval and paired test -------------------------------------------------------------------------------


def interval(refs: Texts, hyps: Texts, level: str = "word", draws: int = DRAWS, seed: int = SEED,
             smoothing: Smoothing = FLOOR_0, confidence: float = CONFIDENCE) -> list[float]:
    """Percentile bootstrap interval [low, high] of BLEU-4; sentences are drawn (Koehn 2004,
    https://aclanthology.org/W04-3250).

    A draw without a word of a reference has no score and is left out.
    """
    table = statistics(*_both(refs, hyps, level))
    found = [_bleu4_from(sums[sums[:, 1] > 0], smoothing) for sums in _resampled(table, draws, seed)]
    return _percentiles(np.concatenate(found), confidence)


def compare(a: Pairs, b: Pairs, level: str = "word", draws: int = PAIRED_DRAWS, seed: int = SEED,
            smoothing: Smoothing = FLOOR_0, confidence: float = CONFIDENCE) -> Comparison:
    """{id: (reference, hypothesis)} of two systems, in any order.

    `interval` is the percentile bootstrap's of the difference: sentences are drawn with what both systems say.
    `p_value` is two-sided, by approximate randomisation (Noreen 1989; Riezler and Maxwell 2005,
    https://aclanthology.org/W05-0908): were both equally good, a sentence's two hypotheses could change places, and the
    difference would be as far from zero as it is in this share of the draws, the one that was found counted in.
    Raises Mistake where sentences or references are not the same.
    """
    _refuse_others(a, b, level)
    (refs, first), (_, second) = (_both([a[key][0] for key in a], [of[key][1] for key in a], level) for of in (a, b))
    tables = statistics(refs, first), statistics(refs, second)
    (*_, bleu_a), signed = _bleu_of(refs, first, smoothing)
    (*_, bleu_b), _ = _bleu_of(refs, second, smoothing)
    words = sum(map(len, refs))
    about = f"level:{level}|sentences:{len(refs)}|ref_tokens:{words}"
    return {"sentences": len(refs), "ref_tokens": words, "bleu4_a": bleu_a, "bleu4_b": bleu_b,
            "difference": bleu_a - bleu_b, "interval": _difference(*tables, draws, seed, smoothing, confidence),
            "p_value": _randomisation(*tables, draws, seed, smoothing),
            "same": sum(x == y for x, y in zip(first, second, strict=True)), "draws": draws, "seed": seed,
            "signature": f"bleu|{signed}|{about}"}


def statistics(refs: Tokens, hyps: Tokens) -> Table:
    """What BLEU-4 is made of, each sentence a row, (N, 10): tokens of the hypothesis and of the reference, n-grams that
    both have (each as often as in the one that has fewer of it) and n-grams of the hypothesis, n = 1 to 4.

    Whole numbers; floats, since sums of drawn rows are products of matrices.
    """
    table = np.zeros((len(refs), 2 + 2 * ORDER))
    for row, ref, hyp in zip(table, refs, hyps, strict=True):
        row[:2] = len(hyp), len(ref)
        for n in range(1, ORDER + 1):
            wanted, found = _ngrams(ref, n), _ngrams(hyp, n)
            row[1 + n] = sum(min(times, wanted[key]) for key, times in found.items() if key in wanted)
            row[1 + ORDER + n] = max(0, len(hyp) - n + 1)
    return table


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _bleu4_from(sums: Table, smoothing: Smoothing) -> Table:
    """BLEU-4 of each row of summed statistics (R, 10), as sacrebleu computes it, (R,)."""
    _refuse_unknown(smoothing)
    hyp, ref, right, total = sums[:, 0], sums[:, 1], sums[:, 2:2 + ORDER], sums[:, 2 + ORDER:]
    counted = total > 0
    right_or_put = np.where(right > 0, right, _instead(right, smoothing))
    shares = np.divide(right_or_put, total, out=np.zeros_like(total), where=counted)
    with np.errstate(divide="ignore"):
        logs = np.log(shares)  # -inf makes BLEU 0
    if smoothing.effective_order:
        mean = np.where(counted, logs, 0).sum(1) / np.maximum(1, counted.sum(1))
    else:
        mean = logs.mean(1)
    brevity = np.minimum(0, 1 - ref / np.maximum(1, hyp))
    return np.where((right > 0).any(1), 100 * np.exp(mean + brevity), 0)


def _instead(right: Table, smoothing: Smoothing) -> Table | float:
    """What takes the place of no match."""
    if smoothing.method == "exp":
        return 0.5 ** (right == 0).cumsum(1)
    return smoothing.value if smoothing.method == "floor" else 0.0


def _resampled(table: Table, draws: int, seed: int) -> Iterator[Table]:
    """Sums (R, columns) of N rows drawn with replacement from N, R at a time."""
    rng, n = np.random.default_rng(seed), len(table)
    for rows in _steps(draws, n):
        picks = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64) @ table


def _steps(draws: int, n: int) -> Iterator[int]:
    step = max(1, AT_ONCE // n)
    return (min(step, draws - first) for first in range(0, draws, step))


def _difference(a: Table, b: Table, draws: int, seed: int, smoothing: Smoothing, confidence: float) -> list[float]:
    found = []
    for sums in _resampled(np.hstack([a, b]), draws, seed):
        sums = sums[sums[:, 1] > 0]
        first, second = (_bleu4_from(part, smoothing) for part in np.hsplit(sums, 2))
        found.append(first - second)
    return _percentiles(np.concatenate(found), confidence)


def _randomisation(a: Table, b: Table, draws: int, seed: int, smoothing: Smoothing) -> float:
    """The share of the draws, and of what was found, in which the two are as far apart."""
    def apart(first: Table, second: Table) -> Table:
        return np.abs(_bleu4_from(first, smoothing) - _bleu4_from(second, smoothing))

    rng, sum_a, sum_b = np.random.default_rng(seed), a.sum(0, keepdims=True), b.sum(0, keepdims=True)
    seen, as_far = apart(sum_a, sum_b)[0], 1
    for rows in _steps(draws, len(a)):
        moved = rng.integers(2, size=(rows, len(a))).astype(np.float64) @ (b - a)
        as_far += int((apart(sum_a + moved, sum_b - moved) >= seen - ROUNDING).sum())
    return as_far / (draws + 1)


def _percentiles(values: Table, confidence: float) -> list[float]:
    return np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()


def _refuse_others(a: Pairs, b: Pairs, level: str) -> None:
    lacking = [(which, [key for key in one if key not in other]) for which, one, other in
               (("first", a, b), ("second", b, a))]
    if any(keys for _, keys in lacking):
        found = "; ".join(f"{len(keys)} only in the {which} ({', '.join(keys[:3])})" for which, keys in lacking if keys)
        raise Mistake("the two runs were not tested on the same sentences", found,
                      "test both runs on the same set of the same split")
    other = [key for key in a if tokens(a[key][0], level) != tokens(b[key][0], level)]
    if other:
        raise Mistake("the two runs were not scored against the same references",
                      f"{len(other)} sentences have another one, such as {other[0]}", "test both again")


# --- files --------------------------------------------------------------------------------------------------


def read_pair(ref: Path, hyp: Path) -> tuple[list[str], list[str]]:
    """The sentences of both files, UTF-8, one a line; an empty line is an empty sentence.

    Raises Mistake on unreadable or empty files and where they do not have as many lines.
    """
    refs, hyps = read_lines(ref), read_lines(hyp)
    if len(refs) != len(hyps):
        raise Mistake("these files do not have as many lines", f"{len(refs)} in {ref}, {len(hyps)} in {hyp}",
                      "give a sentence a line in the same order, an empty line for an empty sentence, "
                      "and end the last line")
    return refs, hyps


def read_lines(path: Path) -> list[str]:
    """Lines without their ends; the last one may lack it. A byte order mark is dropped."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise Mistake("this file cannot be read", f"{path}: {error.strerror}", "check the path") from None
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise Mistake(f"{path}, line {number}: this is no UTF-8", repr(data[error.start:error.start + 8]),
                      "convert the file") from None
    if not text:
        raise Mistake("this file has nothing to score", str(path), "give a sentence a line")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
