"""Word error rate of gloss sentences, as sclite counts and as others do.

    found = score(refs, hyps, "phoenix2014")      refs and hyps {id: words}: {mode: counts, wer in per cent, signature}
    steps = alignments(refs, hyps, "official")    {id: [("C", "ICH", "ICH"), ("D", "NORD", None), ...]}
    per_gloss(gloss_errors(steps.values()))       right, confused, left out and put in, gloss by gloss
    interval(steps.values())                      95 % bootstrap interval of the rate, over sentences

Modes: `sclite` cleans the hypothesis word by word, as the script of PHOENIX-2014 does; `official` merges immediate
repeats of the raw hypothesis first, as CTC decoders do: what papers report; `merged` merges once more after it; `slt`
cleans reference and hypothesis as whole sentences; `plain` cleans nothing; `raw` does not either, and counts as jiwer.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from slr.errors import Mistake
from slr.metrics.cleanup import CLEANUPS, Cleanup, collapse

MODES = ("sclite", "official", "merged", "slt", "plain", "raw")
EMPTY = "[EMPTY]"  # what PHOENIX's script puts for a sentence without a word, since a CTM cannot hold it
MARKED = ("sclite", "official", "merged", "plain")  # the modes that do so
ASCII_LOWER = str.maketrans({chr(code): chr(code + 32) for code in range(ord("A"), ord("Z") + 1)})
RESAMPLES = 10_000
LEVEL = 0.95

Words = Sequence[str]
WerRes = TypedDict("WerRes", {"sub": int, "del": int, "ins": int, "err": int, "ref_words": int, "hyp_words": int,
                              "sentences": int, "sentences_with_errors": int, "wer": float, "signature": str})


class Step(NamedTuple):
    """One place of an alignment: (C)orrect, (S)ubstituted, (D)eleted (hyp is None) or (I)nserted (ref is None)."""

    kind: str
    ref: str | None
    hyp: str | None


class Style(NamedTuple):
    """What an edit costs, whether the case of ASCII counts, and which of several cheapest alignments is taken.

    `choose(diagonal, deletion, insertion, same)`: which last steps are cheapest, whether the two words are equal.
    """

    sub: int
    ins: int
    dele: int
    cased: bool
    choose: Callable[[bool, bool, bool, bool], str]


def _as_sclite(diagonal: bool, deletion: bool, insertion: bool, same: bool) -> str:
    """The diagonal, else deletion only where it is strictly cheaper than insertion."""
    return "CS"[not same] if diagonal else "I" if insertion else "D"


def _as_jiwer(diagonal: bool, deletion: bool, insertion: bool, same: bool) -> str:
    """The order that gives jiwer's S, D and I too, found by its recorded counts."""
    return "D" if deletion else "I" if insertion and (same or not diagonal) else "CS"[not same]


SCLITE = Style(sub=4, ins=3, dele=3, cased=False, choose=_as_sclite)
UNIT = Style(sub=1, ins=1, dele=1, cased=True, choose=_as_jiwer)


# --- alignment ----------------------------------------------------------------------------------------------


def align(ref: Words, hyp: Words, style: Style = SCLITE) -> list[Step]:
    """A cheapest alignment of two sentences: sclite's with its costs and its order among equals, or jiwer's."""
    a, b = (list(words) if style.cased else [lower(word) for word in words] for words in (ref, hyp))
    if a == b:  # the only alignment without cost
        return [Step("C", x, y) for x, y in zip(ref, hyp, strict=True)]
    table, i, j, steps = _costs(a, b, style), len(a), len(b), []
    while i or j:
        kind = _last_step(table, a, b, i, j, style)
        i, j = i - (kind != "I"), j - (kind != "D")
        steps.append(Step(kind, None if kind == "I" else ref[i], None if kind == "D" else hyp[j]))
    return steps[::-1]


def lower(word: str) -> str:
    """ASCII only: sclite leaves umlauts as they are."""
    return word.lower() if word.isascii() else word.translate(ASCII_LOWER)


def _costs(ref: Words, hyp: Words, style: Style) -> list[array]:
    """table[i][j]: the cost of the first i words of the reference against the first j of the hypothesis."""
    sub, ins, dele = style.sub, style.ins, style.dele
    row = [j * ins for j in range(len(hyp) + 1)]
    table = [array("i", row)]
    for word in ref:
        cost = row[0] + dele
        new = [cost]
        for other, diagonal, above in zip(hyp, row, row[1:], strict=False):
            cost = min(cost + ins, above + dele, diagonal if word == other else diagonal + sub)
            new.append(cost)
        table.append(array("i", new))
        row = new
    return table


def _last_step(table: list[array], ref: Words, hyp: Words, i: int, j: int, style: Style) -> str:
    if not i or not j:
        return "D" if i else "I"
    same, cost = ref[i - 1] == hyp[j - 1], table[i][j]
    return style.choose(table[i - 1][j - 1] + (0 if same else style.sub) == cost,
                        table[i - 1][j] + style.dele == cost, table[i][j - 1] + style.ins == cost, same)


# --- scoring ------------------------------------------------------------------------------------------------


def headline(cleanup: str) -> str:
    """The mode that a system is judged by: `official` on PHOENIX, `plain` elsewhere."""
    return "plain" if cleanup == "none" else "official"


def score(refs: Mapping[str, Words], hyps: Mapping[str, Words], cleanup: str = "phoenix2014", name: str = "",
          mark_empty: bool = True) -> dict[str, WerRes]:
    """Every mode's counts; `name` says in the signature what was scored, the rest is as in `alignments`."""
    return {mode: figures(alignments(refs, hyps, mode, cleanup, mark_empty).values(),
                          signature(mode, cleanup, name, mark_empty)) for mode in MODES}


def alignments(refs: Mapping[str, Words], hyps: Mapping[str, Words], mode: str = "official",
               cleanup: str = "phoenix2014", mark_empty: bool = True) -> dict[str, list[Step]]:
    """{id: the steps of its sentence} in the order of `refs`.

    With `mark_empty` an empty hypothesis is the one word `[EMPTY]` in the modes of PHOENIX's script: one deletion
    becomes a substitution. Raises Mistake where the ids are not the same and where the references hold no word at
    all; a single empty reference makes its hypothesis insertions.
    """
    _refuse_other_ids(refs, hyps)
    found = {key: sentence_steps(refs[key], hyps[key], mode, cleanup, mark_empty) for key in refs}
    if not any(step.ref is not None for steps in found.values() for step in steps):
        raise Mistake("the references have no words", f"{len(refs)} sentences", "a rate needs words to divide by")
    return found


def sentence_steps(ref: Words, hyp: Words, mode: str = "official", cleanup: str = "phoenix2014",
                   mark_empty: bool = True) -> list[Step]:
    """The same of one sentence, whose reference may be empty."""
    ref, hyp = prepare(ref, hyp, mode, _rules(cleanup))
    if mark_empty and mode in MARKED and ref and not hyp:
        hyp = [EMPTY]
    return align(ref, hyp, UNIT if mode == "raw" else SCLITE)


def prepare(ref: Words, hyp: Words, mode: str, rules: Cleanup) -> tuple[list[str], list[str]]:
    """Both sentences as the mode compares them."""
    if mode not in MODES:
        raise ValueError(f"no mode: {mode}")
    if isinstance(ref, str) or isinstance(hyp, str):
        raise TypeError("a sentence is a list of words, not a string")
    if mode == "slt":
        return rules.sentence(ref), rules.sentence(hyp)
    hyp = collapse(hyp) if mode in ("official", "merged") else list(hyp)
    hyp = rules.tokens(hyp) if mode in ("sclite", "official", "merged") else hyp
    return list(ref), collapse(hyp) if mode == "merged" else hyp


def figures(steps: Iterable[list[Step]], signed: str) -> WerRes:
    """The counts of a set of alignments; `wer` is in per cent of the references' words and may exceed 100."""
    kinds = [Counter(step.kind for step in sentence) for sentence in steps]
    right, sub, dele, ins = (sum(kind[name] for kind in kinds) for name in "CSDI")
    words = right + sub + dele
    return {"sub": sub, "del": dele, "ins": ins, "err": sub + dele + ins, "ref_words": words,
            "hyp_words": right + sub + ins, "sentences": len(kinds),
            "sentences_with_errors": sum(bool(kind.keys() - {"C"}) for kind in kinds),
            "wer": 100 * (sub + dele + ins) / words, "signature": f"{signed}|sentences:{len(kinds)}|ref_words:{words}"}


def signature(mode: str, cleanup: str, name: str = "", mark_empty: bool = True) -> str:
    """How a rate was counted, in one line: figures with other signatures are not comparable."""
    style = UNIT if mode == "raw" else SCLITE
    rules = "none" if mode in ("plain", "raw") else _rules(cleanup).signature
    empty = EMPTY if mark_empty and mode in MARKED else "deleted"
    return (f"wer.1|mode:{mode}|cleanup:{rules}|costs:sub{style.sub},ins{style.ins},del{style.dele}"
            f"|case:{'kept' if style.cased else 'ascii-lower'}|empty:{empty}|set:{name or 'unnamed'}")


def _rules(cleanup: str) -> Cleanup:
    if cleanup not in CLEANUPS:
        raise Mistake("no such clean-up", cleanup, f"give one of {', '.join(CLEANUPS)}")
    return CLEANUPS[cleanup]


def _refuse_other_ids(refs: Mapping[str, Words], hyps: Mapping[str, Words]) -> None:
    missing, unknown = [key for key in refs if key not in hyps], [key for key in hyps if key not in refs]
    found = [f"{len(keys)} only in the {side} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
             for keys, side in ((missing, "references"), (unknown, "hypotheses")) if keys]
    if found:
        raise Mistake("references and hypotheses are not of the same sentences", "; ".join(found),
                      "score the whole set, empty hypotheses included, and nothing else")


# --- reports ------------------------------------------------------------------------------------------------


def gloss_errors(steps: Iterable[list[Step]]) -> Counter[Step]:
    """How often each step occurs: confusions are its S, omissions its D, what was not signed its I; `[EMPTY]` omits."""
    return Counter(Step("D", step.ref, None) if step.hyp == EMPTY else step for sentence in steps for step in sentence)


def per_gloss(errors: Counter[Step]) -> dict[str, dict[str, int]]:
    """{gloss as the references write it: its words, correct, sub, del, ins}, those with the most errors first."""
    names, rows = {"C": "correct", "S": "sub", "D": "del", "I": "ins"}, dict[str, dict[str, int]]()
    for (kind, ref, hyp), times in errors.items():
        row = rows.setdefault(str(hyp if ref is None else ref), dict.fromkeys(("ref_words", *names.values()), 0))
        row[names[kind]] += times
        row["ref_words"] += times * (ref is not None)
    return dict(sorted(rows.items(), key=lambda it: (it[1]["correct"] - it[1]["ref_words"] - it[1]["ins"], it[0])))


def interval(steps: Iterable[list[Step]], seed: int = 42, resamples: int = RESAMPLES,
             level: float = LEVEL) -> list[float]:
    """Percentile bootstrap interval [low, high] of the rate in per cent; sentences are resampled.

    Bisani & Ney 2004. A resample's errors are divided by its own words; one without any has no rate and is left out.
    """
    counts = np.array([[sum(step.kind != "C" for step in sentence), sum(step.ref is not None for step in sentence)]
                       for sentence in steps]).reshape(-1, 2)
    if not counts[:, 1].any():
        raise Mistake("nothing to score", "0 words", "the set is empty")
    rng, n = np.random.default_rng(seed), len(counts)
    sums = np.array([counts[rng.integers(n, size=n)].sum(axis=0) for _ in range(resamples)])
    errors, words = sums[sums[:, 1] > 0].T
    return (100 * np.quantile(errors / words, [(1 - level) / 2, (1 + level) / 2])).tolist()
