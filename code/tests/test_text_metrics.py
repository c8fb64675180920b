"""Scores of translations: sacrebleu's recorded figures, brute force, the interval and the paired test, the files."""

import itertools
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import testing
from hypothesis import example, given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from slr import errors
from slr.errors import Mistake
from slr.metrics import text
from slr.metrics.text import LEVELS, Smoothing, bleu4, compare, interval, rouge_l, scores

CORRUPTIONS = ("perfect", "light", "medium", "heavy")
SMOOTHINGS = {"none": Smoothing("none"), "exp": Smoothing("exp"), "floor": Smoothing("floor", 0.1)}
REFS = ["im süden regnet es .", "morgen scheint die sonne im norden und im osten .", "guten abend"]
HYPS = ["im süden scheint die sonne .", "morgen scheint die sonne im westen .", ""]

words = st.lists(st.sampled_from("abc"), max_size=9)
corpus = st.lists(st.tuples(words, words), min_size=1, max_size=5).filter(lambda pairs: any(ref for ref, _ in pairs))
smoothing = st.builds(Smoothing, st.sampled_from(["none", "floor", "exp"]), st.sampled_from([0.0, 0.1]), st.booleans())


def sides(pairs) -> tuple[list[str], list[str]]:
    refs, hyps = ([" ".join(tokens) for tokens in side] for side in zip(*pairs, strict=True))
    return refs, hyps


# --- recorded figures ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def phoenix(shared) -> Path:
    return shared / "metrics" / "translation_phoenix2014t_dev"


def recorded(folder: Path, corruption: str) -> dict:
    return json.loads((folder / "scores.json").read_text())["scores"][corruption]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_phoenix_dev_scores_are_the_recorded_ones(phoenix, corruption):
    theirs = recorded(phoenix, corruption)
    refs, hyps = text.read_pair(phoenix / "ref.txt", phoenix / f"hyp_{corruption}.txt")
    for name, how in SMOOTHINGS.items():
        found = scores(refs, hyps, smoothing=how)
        for n in range(1, 5):
            assert found[f"bleu{n}"] == pytest.approx(theirs[f"BLEU{n}_tok=none_smooth={name}"], rel=1e-12)
        assert theirs[f"signature_BLEU4_tok=none_smooth={name}"].rsplit("|", 1)[0] in found["signatures"]["bleu"]
    assert bleu4(refs, hyps, smoothing=how) == found["bleu4"]
    assert found["chrf"] == pytest.approx(theirs["chrF2"], rel=1e-12)
    assert theirs["signature_chrF2"].rsplit("|", 1)[0] in found["signatures"]["chrf"]
    assert found["rouge_l"] == pytest.approx(theirs["rougeL_beta1.2_sentence_mean_x100"], abs=1e-9)
    plain = rouge_l(refs, hyps, beta=1.0)
    assert plain == pytest.approx(theirs["rougeL_beta1.0_sentence_mean_x100"], abs=1e-9)
    assert plain == pytest.approx(theirs["rougeL_f1_rouge_score_whitespace_x100"], abs=1e-9)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_phoenix_dev_counts_are_the_recorded_ones(phoenix, corruption):
    theirs = recorded(phoenix, corruption)["BLEU4_details_tok=none"]
    refs, hyps = text.read_pair(phoenix / "ref.txt", phoenix / f"hyp_{corruption}.txt")
    table = text.statistics([line.split() for line in refs], [line.split() for line in hyps])
    assert table.sum(0).tolist() == [theirs["sys_len"], theirs["ref_len"], *theirs["counts"], *theirs["totals"]]
    found = scores(refs, hyps)
    assert (found["sentences"], found["ref_tokens"], found["hyp_tokens"]) == (519, theirs["ref_len"], theirs["sys_len"])


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_phoenix_dev_intervals_hold_the_score(phoenix, corruption):
    refs, hyps = text.read_pair(phoenix / "ref.txt", phoenix / f"hyp_{corruption}.txt")
    low, high = interval(refs, hyps)
    assert low - 1e-9 <= bleu4(refs, hyps) <= high + 1e-9 and high - low < 5
    assert (low == high) is (corruption == "perfect")


# --- by hand, and by brute force ----------------------------------------------------------------------------


def test_figures_by_hand():
    found = scores(["a b c d e"], ["a b c d"], name="x")
    brevity = np.exp(1 - 5 / 4)
    assert [found[f"bleu{n}"] for n in range(1, 5)] == pytest.approx([100 * brevity] * 4)
    precision, recall = 1, 4 / 5
    assert found["rouge_l"] == pytest.approx(100 * 2.44 * precision * recall / (recall + 1.44 * precision))
    assert (found["sentences"], found["ref_tokens"], found["hyp_tokens"]) == (1, 5, 4)
    about = "|level:word|set:x|sentences:1|ref_tokens:5"
    assert list(found["signatures"]) == ["bleu", "chrf", "rouge_l"]
    assert found["signatures"]["bleu"].startswith(
        "bleu|nrefs:1|case:mixed|eff:no|tok:none|smooth:floor[0.00]|version:")
    assert found["signatures"]["rouge_l"] == f"rouge_l.1|beta:1.2|mean:sentences{about}"
    assert all(signature.endswith(about) for signature in found["signatures"].values())


def test_each_order_has_its_own_precision():
    found = scores(["a b x c d"], ["a b y c d"])
    assert [found[f"bleu{n}"] for n in range(1, 5)] == pytest.approx([80, 100 * (0.8 * 0.5) ** 0.5, 0, 0])
    assert scores(["a b x c d"], ["a b y c d"], smoothing=Smoothing("floor", 0.1))["bleu3"] == pytest.approx(
        100 * (0.8 * 0.5 * 0.1 / 3) ** (1 / 3))


def test_orders_that_no_hypothesis_is_long_enough_for():
    assert bleu4(["a b"], ["a b"]) == 0
    whole = Smoothing(effective_order=True)
    assert bleu4(["a b"], ["a b"], smoothing=whole) == pytest.approx(100)
    assert "|eff:yes|" in scores(["a b"], ["a b"], smoothing=whole)["signatures"]["bleu"]


def clipped(ref: list[str], hyp: list[str], n: int) -> tuple[int, int]:
    """(Matches, n-grams of the hypothesis): each n-gram of the reference is used up once."""
    left = [ref[i:i + n] for i in range(len(ref) - n + 1)]
    found = [hyp[i:i + n] for i in range(len(hyp) - n + 1)]
    right = 0
    for gram in found:
        if gram in left:
            left.remove(gram)
            right += 1
    return right, len(found)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_statistics_equal_a_brute_force_count(pairs):
    refs, hyps = map(list, zip(*pairs, strict=True))
    for row, (ref, hyp) in zip(text.statistics(refs, hyps).tolist(), pairs, strict=True):
        counts = [clipped(ref, hyp, n) for n in range(1, 5)]
        assert row == [len(hyp), len(ref), *(right for right, _ in counts), *(total for _, total in counts)]


@given(corpus, smoothing)
@example([(["a"], [])], Smoothing(effective_order=True))
@example([(["a", "b"], ["b", "a", "c"])], Smoothing("exp"))
def test_bleu_from_statistics_is_sacrebleus(pairs, how):
    refs, hyps = sides(pairs)
    table = text.statistics(*(list(side) for side in zip(*pairs, strict=True)))
    (mine,) = text._bleu4_from(table.sum(0, keepdims=True), how)
    theirs = BLEU(tokenize="none", smooth_method=how.method, smooth_value=how.value,
                  effective_order=how.effective_order).corpus_score(hyps, [refs]).score
    assert mine == pytest.approx(theirs, abs=1e-9) and bleu4(refs, hyps, smoothing=how) == theirs


@given(words, words)
def test_lcs_equals_the_recursion(a, b):
    @cache
    def longest(i: int, j: int) -> int:
        if not i or not j:
            return 0
        if a[i - 1] == b[j - 1]:
            return longest(i - 1, j - 1) + 1
        return max(longest(i - 1, j), longest(i, j - 1))

    assert text.lcs(a, b) == longest(len(a), len(b))


@given(corpus, st.sampled_from([1.0, 1.2, 2.0]))
def test_rouge_l_is_the_mean_of_f_over_sentences(pairs, beta):
    refs, hyps = sides(pairs)
    shares = []
    for ref, hyp in pairs:
        common = max((n for n in range(len(hyp) + 1) for some in itertools.combinations(hyp, n)
                      if is_part(some, ref)), default=0)
        p, r = common / max(1, len(hyp)), common / max(1, len(ref))
        shares.append((1 + beta**2) / (beta**2 / r + 1 / p) if common else float(not ref and not hyp))
    assert rouge_l(refs, hyps, beta=beta) == pytest.approx(100 * sum(shares) / len(shares), abs=1e-9)


def is_part(some, ref) -> bool:
    rest = iter(ref)
    return all(word in rest for word in some)


@given(corpus)
def test_the_right_answer_is_100_and_nothing_exceeds_it(pairs):
    refs, hyps = sides(pairs)
    right, found = scores(refs, refs), scores(refs, hyps)
    assert right["rouge_l"] == 100 and right["chrf"] == pytest.approx(100) == right["bleu1"]
    assert all(-1e-9 <= found[key] <= 100 + 1e-9 for key in ("bleu1", "bleu2", "bleu3", "bleu4", "chrf", "rouge_l"))


# --- characters, empty sentences ----------------------------------------------------------------------------


def test_characters_are_tokens_and_white_space_is_none():
    refs, hyps = ["明天 早上 下 雨。", "天气好"], ["明天早上下雪。", "天 气 好"]
    split = [[" ".join("".join(sentence.split())) for sentence in side] for side in (refs, hyps)]
    found, spread = scores(refs, hyps, "char"), scores(*split)
    assert (found["ref_tokens"], found["hyp_tokens"]) == (10, 10)
    for key in ("bleu1", "bleu2", "bleu3", "bleu4", "chrf", "rouge_l"):
        assert found[key] == spread[key] > 0, key
    assert found["bleu1"] == pytest.approx(100 * 9 / 10) and found["rouge_l"] == pytest.approx(100 * (6 / 7 + 1) / 2)
    assert all("|level:char|" in signature for signature in found["signatures"].values())
    assert bleu4(refs, hyps, "char") == found["bleu4"] and rouge_l(refs, hyps, "char") == found["rouge_l"]
    assert interval(refs, hyps, "char") == interval(*split)
    assert rouge_l(refs, hyps) == 0  # as words, nothing is right


def test_white_space_does_not_count():
    assert scores([" a  b\tc d\N{NO-BREAK SPACE}e \r"], ["a b c d e"]) == scores(["a b c d e"], ["a b c d e"])


def test_empty_sentences_of_either_side():
    found = scores(["a b c d", "", ""], ["a b c d", "", "x y"])
    assert found["bleu1"] == pytest.approx(100 * 4 / 6) and found["rouge_l"] == pytest.approx(100 * 2 / 3)
    assert (found["sentences"], found["ref_tokens"], found["hyp_tokens"]) == (3, 4, 6)
    nothing = scores(["a b c d", "e"], ["", ""])
    assert [nothing[key] for key in ("bleu1", "bleu4", "chrf", "rouge_l", "hyp_tokens")] == [0] * 5
    assert interval(["a b c d", "e"], ["", ""]) == [0, 0]
    low, high = interval(["a b c d", ""], ["a b c d", ""])  # draws of only the empty one are left out
    assert low == high == pytest.approx(100)


@pytest.mark.parametrize(("refs", "hyps", "said"), [
    (["a", "b"], ["a"], "not of the same sentences: 2 references, 1 hypotheses"),
    ([], [], "the references have no words: 0 sentences"),
    (["", " "], ["a", "b"], "the references have no words: 2 sentences")])
def test_what_cannot_be_scored_is_a_mistake(refs, hyps, said):
    for score in (scores, bleu4, interval, rouge_l):
        with pytest.raises(Mistake, match=said):
            score(refs, hyps)


def test_bugs_stay_bugs():
    for refs, hyps in (("a b", "a b"), ([["a"]], [["a"]])):
        with pytest.raises(TypeError, match="a list of sentences"):
            scores(refs, hyps)
    with pytest.raises(ValueError, match="no level: words"):
        scores(["a"], ["a"], "words")
    for score in (scores, bleu4, interval):
        with pytest.raises(ValueError, match="no smoothing: add-k"):
            score(["a"], ["a"], smoothing=Smoothing("add-k", 1))


def test_without_sacrebleu_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(Mistake, match="not installed\n  pip install sacrebleu"):
        bleu4(["a"], ["a"])
    assert rouge_l(["a"], ["a"]) == 100


# --- interval and paired test -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [Smoothing(), Smoothing("floor", 0.1), Smoothing("exp", effective_order=True)])
def test_the_interval_is_that_of_sacrebleus_scores_of_the_draws(how):
    picks = np.random.default_rng(7).integers(3, size=(40, 3))
    drawn = [bleu4([REFS[i] for i in row], [HYPS[i] for i in row], smoothing=how) for row in picks]
    assert interval(REFS, HYPS, draws=40, seed=7, smoothing=how) == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    assert interval(REFS, HYPS, draws=40, seed=7, smoothing=how, confidence=0.5) == pytest.approx(
        np.quantile(drawn, [0.25, 0.75]))


def test_the_interval_depends_on_the_seed_alone(monkeypatch):
    refs = [f"a b c d e f {i}" for i in range(30)]
    hyps = [" ".join(ref.split()[i % 5:]) for i, ref in enumerate(refs)]
    found = interval(refs, hyps)
    assert found == interval(refs, hyps) != interval(refs, hyps, seed=1)
    monkeypatch.setattr(text, "AT_ONCE", 200)  # six draws of thirty at once
    assert found == interval(refs, hyps)


def systems(*hyps: list[str]) -> list[dict[str, tuple[str, str]]]:
    return [{f"s{i}": pair for i, pair in enumerate(zip(REFS, side, strict=True))} for side in hyps]


def test_a_system_equals_itself():
    a, b = systems(HYPS, HYPS)
    found = compare(a, dict(reversed(b.items())), draws=200)
    assert found["difference"] == 0 and found["interval"] == [0, 0] and found["p_value"] == 1
    assert found["same"] == found["sentences"] == 3 and found["bleu4_a"] == found["bleu4_b"] == bleu4(REFS, HYPS)


def test_the_paired_test_counts_out_all_swaps():
    rng = np.random.default_rng(5)
    refs = [" ".join(rng.choice(list("abcdef"), 9)) for _ in range(7)]
    first, second = ([" ".join(w if rng.random() > rate else "x" for w in ref.split()) for ref in refs]
                     for rate in (0.1, 0.2))
    pairs = [{str(i): (ref, hyp) for i, (ref, hyp) in enumerate(zip(refs, side, strict=True))}
             for side in (first, second)]
    found = compare(*pairs)
    seen = bleu4(refs, first) - bleu4(refs, second)
    as_far = 0
    for swaps in itertools.product((False, True), repeat=7):
        one, two = ([y if swap is other else x for x, y, swap in zip(first, second, swaps, strict=True)]
                    for other in (True, False))
        as_far += abs(bleu4(refs, one) - bleu4(refs, two)) >= abs(seen) - 1e-9
    assert found["difference"] == pytest.approx(seen) and 0.02 < as_far / 2**7 < 0.9
    assert found["p_value"] == pytest.approx(as_far / 2**7, abs=0.02)  # four standard errors of 10,000 draws
    assert found["interval"][0] < seen < found["interval"][1]
    again = compare(*reversed(pairs))
    assert again["p_value"] == found["p_value"] and again["difference"] == -found["difference"]
    assert again["interval"] == pytest.approx([-found["interval"][1], -found["interval"][0]])


def test_a_better_system_is_told_from_a_worse_one(phoenix):
    refs = text.read_lines(phoenix / "ref.txt")
    a, b = ({str(i): pair for i, pair in enumerate(zip(refs, text.read_lines(phoenix / f"hyp_{name}.txt"),
                                                       strict=True))} for name in ("light", "medium"))
    found = compare(a, b, draws=500)
    assert found["bleu4_a"] == recorded(phoenix, "light")["BLEU4_tok=none_smooth=none"]
    assert found["p_value"] == 1 / 501 and 0 < found["interval"][0] < found["difference"] < found["interval"][1]
    assert found["ref_tokens"] == 6820 and found["signature"].startswith("bleu|nrefs:1|")
    assert found == compare(a, b, draws=500) and found["interval"] != compare(a, b, draws=500, seed=1)["interval"]


@pytest.mark.parametrize(("a", "b", "said"), [
    ({"x": ("a", "a"), "y": ("a", "a")}, {"x": ("a", "a")}, r"1 only in the first \(y\)"),
    ({"x": ("a", "a")}, {"y": ("a", "a")}, "only in the second"),
    ({"x": ("a", "a")}, {"x": ("b", "a")}, "not scored against the same references: 1 sentences .* such as x"),
    ({"x": ("", "a")}, {"x": ("", "a")}, "no words"), ({}, {}, "no words")])
def test_what_cannot_be_compared(a, b, said):
    with pytest.raises(Mistake, match=said):
        compare(a, b)


# --- files --------------------------------------------------------------------------------------------------


def write(folder: Path, ref: str | bytes, hyp: str | bytes) -> list[str]:
    files = [folder / "ref.txt", folder / "hyp.txt"]
    for file, content in zip(files, (ref, hyp), strict=True):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [str(file) for file in files]


def test_ends_of_lines_and_marks(tmp_path):
    bom = "\N{BYTE ORDER MARK}"
    ref, hyp = map(Path, write(tmp_path, f"{bom}für a\r\n\r\n\N{LINE SEPARATOR}b\r\n", "für a\n\nb"))
    assert text.read_pair(ref, hyp) == (["für a", "", "\N{LINE SEPARATOR}b"], ["für a", "", "b"])
    assert text.read_lines(Path(write(tmp_path, "\n\n", "")[0])) == ["", ""]


@pytest.mark.parametrize(("ref", "hyp", "said"), [
    ("a\nb\n", "a\n", "not have as many lines: 2 in .*ref.txt, 1 in .*hyp.txt"),
    ("", "a\n", "nothing to score: .*ref.txt"), ("a\n", "", "nothing to score: .*hyp.txt"),
    ("a\nb\n", b"a\n\xe4\n", r"hyp.txt, line 2: this is no UTF-8: b'\\xe4"),
    ("\n\n", "a\nb\n", "the references have no words: 2 sentences")])
def test_malformed_files_say_where(tmp_path, ref, hyp, said):
    with pytest.raises(Mistake, match=said):
        testing.main(["score", "--text", *write(tmp_path, ref, hyp)])


# --- testing.py score --text --------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_score_prints_every_metric(tmp_path, capsys, level):
    files = write(tmp_path, "\n".join(REFS), "\n".join(HYPS) + "\n")
    assert testing.main(["score", *files, "--text", "--json", "--level", level]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    low, high = found.pop("bleu4_interval")
    assert [low, high] == interval(REFS, HYPS, level, found.pop("draws"), found.pop("seed"))
    assert found == scores(REFS, HYPS, level, "ref.txt+hyp.txt")
    assert said.err == "note: 1 of 3 sentences have an empty hypothesis\n"
    testing.main(["score", "--text", *files, "--level", level])
    lines = capsys.readouterr().out.splitlines()
    figures = {line.split()[0]: line.split()[1] for line in lines[1:7]}
    assert figures == {name: f"{found[key]:.2f}" for name, key in (
        ("BLEU-1", "bleu1"), ("BLEU-2", "bleu2"), ("BLEU-3", "bleu3"), ("BLEU-4", "bleu4"), ("chrF", "chrf"),
        ("ROUGE-L", "rouge_l"))}
    assert lines[4].endswith(f"  [{low:.2f}, {high:.2f}]") and lines[7:] == list(found["signatures"].values())


def test_words_are_the_default_level(tmp_path, capsys):
    testing.main(["score", "--text", "--json", *write(tmp_path, "a b\n", "a b\n")])
    assert json.loads(capsys.readouterr().out)["ref_tokens"] == 2


def test_phoenix_dev_on_the_command_line(phoenix, capsys):
    testing.main(["score", "--text", str(phoenix / "ref.txt"), str(phoenix / "hyp_medium.txt"), "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["bleu4"] == pytest.approx(
        recorded(phoenix, "medium")["BLEU4_tok=none_smooth=none"], abs=1e-9)
    assert "warning" not in said.err.lower() and "tokenized" not in said.err


@pytest.mark.parametrize(("options", "said"), [
    (["--text", "--cleanup", "phoenix2014"], "--cleanup has no meaning with --text: phoenix2014"),
    (["--level", "char"], "--level has a meaning only with --text: char")])
def test_options_that_do_not_go_together(tmp_path, options, said):
    with pytest.raises(Mistake, match=said):
        testing.main(["score", *write(tmp_path, "a\n", "a\n"), *options])


def test_wrong_words_leave_with_2(tmp_path, capsys):
    files = write(tmp_path, "a\n", "a\nb\n")
    for command, said in (([*files, "--text"], "error: these files do not have as many lines: 1 in"),
                          ([files[0], str(tmp_path / "absent.txt"), "--text"], "absent.txt: No such file"),
                          ([*files, "--text", "--level", "token"], "invalid choice: 'token'"),
                          (["--text", files[0]], "the following arguments are required: HYP")):
        with pytest.raises(SystemExit) as left:
            errors.run(lambda command=command: testing.main(["score", *command]))
        shown = capsys.readouterr()
        assert left.value.code == 2 and said in shown.err and not shown.out
