"""Word error rates: sclite's and jiwer's recorded counts, the known answers of PHOENIX, properties, the file forms."""

import json
import random
import re
import time
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import testing
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import word_error_rate

from slr import errors
from slr.errors import Mistake
from slr.metrics import wer
from slr.metrics.cleanup import CLEANUPS, collapse
from slr.metrics.transcripts import read_ctm, read_pair, read_stm, read_trn
from slr.metrics.wer import EMPTY, MODES, SCLITE, UNIT, align, alignments, lower, score

LEVELS = ("perfect", "light", "medium", "heavy", "artefacts")
ALTERNATED = "ALTERNATED"

word = st.sampled_from(["A", "a", "B", "C", "Ä", "ä"])
sentence = st.lists(word, max_size=9)
style = st.sampled_from([SCLITE, UNIT])


def kinds(steps) -> Counter:
    return Counter(step.kind for step in steps)


def folded(steps) -> list[tuple]:
    return [(kind, ref and lower(ref), hyp and lower(hyp)) for kind, ref, hyp in steps]


# --- sclite's recorded counts -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_phoenix_dev_counts_are_sclites_and_jiwers(shared, level):
    folder = shared / "metrics" / "sclite_phoenix2014_dev"
    recorded = json.loads((folder / "sclite_scores.json").read_text())[f"phoenix2014/dev/{level}"]
    found = score(*read_pair(folder / "ref.stm", folder / f"hyp_{level}.ctm")[:2])
    for mode, name in (("plain", "plain"), ("sclite", "phoenix_cleanup")):
        theirs, mine = recorded[name], found[mode]
        assert {key: mine[key] for key in ("sub", "del", "ins", "err", "ref_words", "hyp_words")} == {
            key: theirs[key] for key in ("sub", "del", "ins", "err", "ref_words", "hyp_words")}
        assert round(mine["wer"], 1) == theirs["err_pct"]
        assert round(100 * mine["sentences_with_errors"] / 540, 1) == theirs["sent_with_errors_pct"]
    theirs = recorded["jiwer_plain"]
    assert [found["raw"][key] for key in ("sub", "del", "ins")] == [theirs[key] for key in ("sub", "del", "ins")]
    assert found["raw"]["wer"] == pytest.approx(theirs["wer_pct"], abs=5e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_their_own_cleaned_file_scores_as_ours(shared, level):
    """hyp_*.cleaned.ctm is what the script's clean-up made of hyp_*.ctm, [EMPTY] included."""
    folder = shared / "metrics" / "sclite_phoenix2014_dev"
    refs, hyps, _ = read_pair(folder / "ref.stm", folder / f"hyp_{level}.ctm")
    cleaned = read_pair(folder / "ref.stm", folder / f"hyp_{level}.cleaned.ctm").hyps
    assert {key: CLEANUPS["phoenix2014"].tokens(words) or [EMPTY] for key, words in hyps.items()} == cleaned


def test_every_phoenix_alignment_is_sclites_word_by_word(shared):
    folder = shared / "metrics" / "sclite_phoenix2014_dev"
    pair = read_pair(folder / "ref.stm", folder / "hyp_medium.ctm")
    mine = {lower(key): folded(steps) for key, steps in alignments(pair.refs, pair.hyps, "sclite").items()}
    theirs = {found["File"]: found["steps"] for found in read_pra(folder / "hyp_medium.cleaned.pra")}
    assert len(theirs) == 540 and mine == theirs


def read_pra(path: Path, encoding: str = "utf-8") -> list[dict]:
    """sclite's dump of alignments: id, File, the four counts and the steps, words in lower case.

    Where an optional word is left out (its -D) a column is blank, and the steps are None.
    """
    found = []
    for block in path.read_text(encoding).split("\nid: ")[1:]:
        lines = block.splitlines()
        fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        ref, hyp = (fields.get(side, "").split() for side in ("REF", "HYP"))
        found.append({"id": lines[0].strip("()"), "File": fields.get("File"),
                      "counts": [int(n) for n in fields["Scores"].split(")")[1].split()],
                      "steps": [step_of(lower(a), lower(b)) for a, b in zip(ref, hyp, strict=True)]
                      if len(ref) == len(hyp) else None})
    return found


def step_of(ref: str, hyp: str) -> tuple:
    if not ref.strip("*"):
        return "I", None, hyp
    return ("D", ref, None) if not hyp.strip("*") else ("C" if ref == hyp else "S", ref, hyp)


def test_suite_test1_trn_without_alternations(shared, tmp_path):
    folder = shared / "metrics" / "sclite_suite"
    expected = {found["id"]: found for found in read_pra(folder / "expected" / "test1.pra")}
    refs = (folder / "csrnab.ref").read_text().splitlines()
    plain = {lower(line.rsplit("(")[-1].strip(" )")) for line in refs if "{" not in line}
    for name in ("csrnab.ref", "csrnab.hyp"):
        lines = (folder / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join(x for x in lines if lower(x.rsplit("(")[-1].strip(" )")) in plain))
    pair = read_pair(tmp_path / "csrnab.ref", tmp_path / "csrnab.hyp")
    found = {lower(key): folded(steps) for key, steps in
             alignments(pair.refs, pair.hyps, "plain", mark_empty=pair.mark_empty).items()}
    assert len(found) == len(plain) == 45
    assert found == {key: expected[key]["steps"] for key in found}


def test_suite_test7_trn_cases_of_plain_words(shared, tmp_path):
    """The rest of test 7 needs alternations, or sclite's -D and -F (optional words, fragments)."""
    wanted = r"\((empty-[12]|alt-[78]|tags-[1234])\)"
    folder = shared / "metrics" / "sclite_suite"
    for name in ("tests.ref", "tests.hyp"):
        lines = (folder / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join(line for line in lines if re.search(wanted, line)))
    pair = read_pair(tmp_path / "tests.ref", tmp_path / "tests.hyp")
    found = alignments(pair.refs, pair.hyps, "plain", mark_empty=pair.mark_empty)
    expected = {x["id"]: x for x in read_pra(folder / "expected" / "test7.pra") if x["id"] in found}
    assert len(found) == 8 and {key: folded(steps) for key, steps in found.items()} == {
        key: x["steps"] for key, x in expected.items()}


def test_suite_test3_segments_of_a_ctm_without_alternations(shared, tmp_path):
    """Words go to segments by time: also those before, between and after segments."""
    folder = shared / "metrics" / "sclite_suite"
    stm = re.sub(r"\{[^\n]*\}", ALTERNATED, (folder / "lvc_ref.stm").read_text())
    ctm = re.sub(r"^\S+ +\S+ +\* +\* +<ALT_BEGIN>\n(.*?) \S+\n(?:.*\n)*?.*<ALT_END>\n", rf"\1 {ALTERNATED}\n",
                 (folder / "lvc_hyp.ctm").read_text(), flags=re.M)
    (tmp_path / "lvc.stm").write_text(stm)
    (tmp_path / "lvc.ctm").write_text(ctm)
    pair = read_pair(tmp_path / "lvc.stm", tmp_path / "lvc.ctm")
    assert not pair.mark_empty
    found = alignments(pair.refs, pair.hyps, "plain", mark_empty=pair.mark_empty)
    expected = read_pra(folder / "expected" / "test3.pra")
    assert len(found) == len(expected) == 61
    compared = 0
    for (key, steps), theirs in zip(found.items(), expected, strict=True):
        if ALTERNATED not in [*pair.refs[key], *pair.hyps[key]]:
            assert folded(steps) == theirs["steps"], key
            compared += 1
    assert compared == 17


@pytest.mark.parametrize("test, cut", [("test9", r"[\x21-\x7e]|[^\s]"), ("test10", r"[A-Za-z]+|[^\s]")])
def test_suite_tests_9_and_10_mandarin_by_character(shared, tmp_path, test, cut):
    """sclite's -c cuts words into characters; here the files are cut before."""
    folder = shared / "metrics" / "sclite_suite"
    stm, ctm = ((folder / name).read_bytes().decode("gb18030") for name in ("mand_ref.stm", "mand_hyp.ctm"))
    rows = [line.split(None, 5) for line in stm.splitlines() if not line.startswith(";;")]
    (tmp_path / "mand.stm").write_text("\n".join(" ".join([*r[:5], *re.findall(cut, "".join(r[5:]))]) for r in rows))
    (tmp_path / "mand.ctm").write_text("\n".join(" ".join([*f[:4], part]) for f in map(str.split, ctm.splitlines())
                                                 if f and not f[0].startswith(";;") for part in re.findall(cut, f[4])))
    pair = read_pair(tmp_path / "mand.stm", tmp_path / "mand.ctm")
    found = alignments(pair.refs, pair.hyps, "plain", mark_empty=pair.mark_empty)
    expected = read_pra(folder / "expected" / f"{test}.pra", encoding="gb18030")
    assert [[kinds(steps)[kind] for kind in "CSDI"] for steps in found.values()] == [x["counts"] for x in expected]
    assert [folded(steps) for steps in found.values()] == [x["steps"] for x in expected]


def test_suite_files_that_cannot_be_scored_say_so(shared):
    folder = shared / "metrics" / "sclite_suite"
    for names in (("lvc_ref.stm", "lvc_hyp.ctm"), ("tests.ref", "tests.hyp"), ("csrnab.ref", "csrnab.hyp")):
        with pytest.raises(Mistake, match="line [0-9]+: alternations are not scored"):
            read_pair(*(folder / name for name in names))
    with pytest.raises(Mistake, match="lvc_hyp.ctm, line 466: alternations"):
        read_ctm(folder / "lvc_hyp.ctm")
    with pytest.raises(Mistake, match="mand_ref.stm, line 2: this is no UTF-8"):
        read_stm(folder / "mand_ref.stm")
    ref = folder.parent / "sclite_phoenix2014_dev" / "ref.stm"
    with pytest.raises(Mistake, match="nothing to score: .*missall.ctm"):
        read_pair(ref, folder / "stm2ctm_missing.hyp-missall.ctm")


# --- the known answers on PHOENIX-2014's training labels ----------------------------------------------------


@pytest.fixture(scope="module")
def train(shared) -> tuple[dict, dict]:
    """(Cleaned references, raw labels) of the 5671 sentences that the references have."""
    folder = shared / "phoenix" / "phoenix2014"
    refs = {s.file: s.words for s in read_stm(folder / "evaluation" / "phoenix2014-groundtruth-train.stm")}
    rows = (folder / "annotations" / "manual" / "train.corpus.csv").read_text().splitlines()[1:]
    raw = {row.split("|")[0]: row.split("|")[3].split() for row in rows}
    return refs, {key: raw[key] for key in refs}


def test_known_answers(train):
    refs, raw = train
    rates = {mode: round(row["wer"], 2) for mode, row in score(refs, raw).items()}
    assert rates == {"sclite": 7.96, "official": 0.62, "merged": 0.50, "slt": 0.00, "plain": 19.40, "raw": 19.40}


@pytest.mark.parametrize("change, low, high", [(collapse, 11.855, 11.865),
                                               (CLEANUPS["phoenix2014"].sentence, 0.155, 0.175)])
def test_known_answers_of_half_the_way(train, change, low, high):
    """Only merged as a CTC decoder does; only the hypothesis cleaned as the translation papers do."""
    refs, raw = train
    steps = alignments(refs, {key: change(words) for key, words in raw.items()}, "plain")
    assert low < wer.figures(steps.values(), "")["wer"] < high


def test_phoenix_references_are_clean_already(shared):
    for name, corpus, count in (("phoenix2014", "phoenix2014/evaluation/phoenix2014", 6840),
                                ("phoenix2014t", "phoenix2014T/evaluation/phoenix2014-T", 8257)):
        files = [shared / "phoenix" / f"{corpus}-groundtruth-{part}.stm" for part in ("train", "dev", "test")]
        found = [segment.words for file in files for segment in read_stm(file)]
        assert len(found) == count and all(CLEANUPS[name].tokens(words) == words for words in found)


# --- clean-up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, before, after", [
    ("phoenix2014", "loc-NORD cl-KOMMEN qu-WAS poss-MEIN lh-GEBEN loc-poss-IX", "NORD KOMMEN WAS MEIN GEBEN IX"),
    ("phoenix2014", "S0NNE HABEN2 WIE AUSSEHEN", "SONNE HABEN WIE AUSSEHEN"),
    ("phoenix2014", "__EMOTION__ X__PU__ __LEFTHAND__ __ON__ __OFF__", "X __ON__ __OFF__"),
    ("phoenix2014", "ZEIGEN WIND-ZEIGEN ZEIGEN-BILDSCHIRM lh-ZEIGEN ZEIGEN-PLUSPLUS",
     "ZEIGEN-BILDSCHIRM WIND-ZEIGEN-BILDSCHIRM ZEIGEN-BILDSCHIRM ZEIGEN-BILDSCHIRM ZEIGEN"),
    ("phoenix2014", "NORDRAUM ARAUM RAUM ALPENRAUMX REGEN-PLUSPLUS", "NORD ARAUM RAUM ALPENX REGEN"),
    ("phoenix2014", "__EPENTHESIS__ loc-X__EPENTHESIS__ loc- A A", "A A"),
    ("phoenix2014t", "__ON__ X__PU__ __LEFTHAND____EMOTION__ X__EPENTHESIS__", "X X"),
    ("phoenix2014t", "loc-NORD cl-KOMMEN REGEN-PLUSPLUS poss-MEIN", "NORD KOMMEN REGEN poss-MEIN"),
    ("phoenix2014t", "NORDRAUM ARAUM RAUM ALPENRAUMX NORDRAUM-PLUSPLUS", "NORD A RAUM ALPENRAUMX NORD"),
    ("none", "loc-NORD __EPENTHESIS__ A A", "loc-NORD __EPENTHESIS__ A A"),
])
def test_word_by_word(name, before, after):
    assert CLEANUPS[name].tokens(before.split()) == after.split()


@pytest.mark.parametrize("before, after", [
    ("WIE AUSSEHEN WIE WIE AUSSEHEN", "WIE-AUSSEHEN WIE WIE-AUSSEHEN"),
    ("SO-WIE AUSSEHEN-X", "SO-WIE AUSSEHEN-X"),
    ("K L A SCH NN REGEN M M", "K+L+A+SCH+NN REGEN M+M"),
    ("A+B C D+E IX F", "A+B+C+D+E IX F"),
    ("REGEN loc-REGEN __EPENTHESIS__ REGEN WIND", "REGEN WIND"),
    ("ARD A NNX SCHNEE SCH", "ARD A NNX SCHNEE SCH"),
    ("", ""),
    ("__EPENTHESIS__", ""),
])
def test_whole_sentences(before, after):
    assert CLEANUPS["phoenix2014"].sentence(before.split()) == after.split()


@given(st.lists(st.sampled_from(["A", "SCH", "NN", "WIE", "AUSSEHEN", "loc-A", "NORDRAUM", "__ON__", "__EPENTHESIS__",
                                 "A+B", "ZEIGEN-PLUSPLUS", "REGEN"]), max_size=12),
       st.sampled_from(sorted(CLEANUPS)))
def test_merging_leaves_no_repeats_and_cleaning_no_marks(words, name):
    cleaned = CLEANUPS[name].sentence(words)
    assert cleaned == collapse(cleaned)
    assert name == "none" or not any("EPENTHESIS" in gloss or "loc-" in gloss or not gloss for gloss in cleaned)


def test_the_modes_prepare_what_they_say():
    rules, hyp = CLEANUPS["phoenix2014"], ["N", "N", "loc-IX", "IX", "__EPENTHESIS__", "IX"]
    prepared = {mode: wer.prepare(["A", "A"], hyp, mode, rules) for mode in MODES}
    assert {mode: " ".join(words) for mode, (_, words) in prepared.items()} == {
        "sclite": "N N IX IX IX", "official": "N IX IX IX", "merged": "N IX", "slt": "N+N IX",
        "plain": "N N loc-IX IX __EPENTHESIS__ IX", "raw": "N N loc-IX IX __EPENTHESIS__ IX"}
    assert [" ".join(ref) for ref, _ in prepared.values()] == ["A A", "A A", "A A", "A+A", "A A", "A A"]


# --- alignment: properties ----------------------------------------------------------------------------------


def cheapest(ref, hyp, style) -> int:
    """By trying every step, without a table."""
    @lru_cache(None)
    def rest(i: int, j: int) -> int:
        if i == len(ref) or j == len(hyp):
            return (len(ref) - i) * style.dele + (len(hyp) - j) * style.ins
        same = same_word(ref[i], hyp[j], style)
        return min(rest(i + 1, j + 1) + style.sub * (not same), rest(i + 1, j) + style.dele, rest(i, j + 1) + style.ins)

    return rest(0, 0)


def same_word(a: str, b: str, style) -> bool:
    return a == b or (not style.cased and a.isascii() and a.lower() == b.lower())


@given(sentence, sentence, style)
def test_the_cost_is_the_least_and_the_steps_are_the_sentences(ref, hyp, style):
    steps = align(ref, hyp, style)
    count = kinds(steps)
    assert [step.ref for step in steps if step.kind != "I"] == ref
    assert [step.hyp for step in steps if step.kind != "D"] == hyp
    assert all(same_word(s.ref, s.hyp, style) == (s.kind == "C") for s in steps if s.kind in "CS")
    assert count["S"] + count["D"] + count["C"] == len(ref) and count["S"] + count["I"] + count["C"] == len(hyp)
    assert count["S"] * style.sub + count["D"] * style.dele + count["I"] * style.ins == cheapest(ref, hyp, style)


def by_the_rule(ref, hyp) -> list[str]:
    """sclite's choice written down as the specification has it, forwards, whole paths in every cell."""
    cells = {(0, 0): (0, "")}
    for i in range(len(ref) + 1):
        for j in range(len(hyp) + 1):
            if i and j:
                same = same_word(ref[i - 1], hyp[j - 1], SCLITE)
                (diagonal, a), (deletion, b), (insertion, c) = cells[i - 1, j - 1], cells[i - 1, j], cells[i, j - 1]
                diagonal, deletion, insertion = diagonal + 4 * (not same), deletion + 3, insertion + 3
                if diagonal <= deletion and diagonal <= insertion:
                    cells[i, j] = diagonal, a + "SC"[same]
                else:
                    cells[i, j] = (deletion, b + "D") if deletion < insertion else (insertion, c + "I")
            elif i or j:
                cells[i, j] = 3 * (i + j), "D" * i + "I" * j
    return list(cells[len(ref), len(hyp)][1])


@given(sentence, sentence)
def test_ties_go_as_sclites(ref, hyp):
    assert [step.kind for step in align(ref, hyp)] == by_the_rule(ref, hyp)


@given(sentence, sentence)
def test_symmetry(a, b):
    """Swapping the sentences swaps deletions and insertions in number of errors, and never changes the cost."""
    for style in (SCLITE, UNIT):
        one, two = kinds(align(a, b, style)), kinds(align(b, a, style))
        assert one["D"] - one["I"] == two["I"] - two["D"] == len(a) - len(b)
        assert cheapest(a, b, style) == cheapest(b, a, style)
    assert sum(one.values()) - one["C"] == sum(two.values()) - two["C"]  # unit costs: as many errors
    assert kinds(align(a, a)).keys() <= {"C"}


@given(st.lists(st.tuples(st.lists(word, min_size=1, max_size=8), sentence), min_size=1, max_size=4))
def test_raw_is_torchmetrics(pairs):
    refs, hyps = ({str(i): pair[side] for i, pair in enumerate(pairs)} for side in (0, 1))
    theirs = word_error_rate([" ".join(hyp) for hyp in hyps.values()], [" ".join(ref) for ref in refs.values()])
    assert score(refs, hyps, "none")["raw"]["wer"] == pytest.approx(100 * float(theirs), rel=1e-5)


@given(st.lists(st.tuples(sentence, sentence), min_size=1, max_size=4).filter(lambda ps: any(p[0] for p in ps)),
       st.sampled_from(sorted(CLEANUPS)))
def test_every_mode_adds_up(pairs, cleanup):
    refs, hyps = ({str(i): pair[side] for i, pair in enumerate(pairs)} for side in (0, 1))
    found = score(refs, hyps, cleanup)
    assert tuple(found) == MODES and json.loads(json.dumps(found)) == found
    for mode, row in found.items():
        assert row["err"] == row["sub"] + row["del"] + row["ins"] and row["wer"] == 100 * row["err"] / row["ref_words"]
        assert row["ref_words"] - row["del"] == row["hyp_words"] - row["ins"]
        assert f"mode:{mode}|" in row["signature"] and f"ref_words:{row['ref_words']}" in row["signature"]
    assert found["plain"]["err"] >= found["raw"]["err"] or any(lower(x) != x for x in sum(map(sum_of, pairs), []))


def sum_of(pair) -> list[str]:
    return pair[0] + pair[1]


def test_hundreds_of_wrong_words_do_not_overflow():
    steps = align(["A"] * 300, ["B"] * 350)
    assert kinds(steps) == {"S": 300, "I": 50}
    assert wer.figures([steps], "")["wer"] == pytest.approx(100 * 350 / 300)


def test_only_ascii_loses_its_case():
    assert lower("ÄB-c") == "Äb-c" and lower("ABC") == "abc"
    assert kinds(align(["ICH", "Ä"], ["ich", "ä"])) == {"C": 1, "S": 1}
    assert kinds(align(["ICH"], ["ich"], UNIT)) == {"S": 1}


def test_an_empty_hypothesis_is_one_word_where_phoenix_has_it_so():
    refs, hyps = {"a": ["ICH", "IX", "DU"], "b": ["IX"]}, {"a": ["__EPENTHESIS__"], "b": ["IX"]}
    found = score(refs, hyps)
    assert [(m, r["sub"], r["del"], r["ins"]) for m, r in found.items()] == [
        ("sclite", 1, 2, 0), ("official", 1, 2, 0), ("merged", 1, 2, 0), ("slt", 0, 3, 0), ("plain", 1, 2, 0),
        ("raw", 1, 2, 0)]
    unmarked = score(refs, hyps, mark_empty=False)["sclite"]
    assert (unmarked["sub"], unmarked["del"]) == (0, 3) and "empty:deleted" in unmarked["signature"]
    assert "empty:[EMPTY]" in found["sclite"]["signature"]
    assert score({"a": ["X"], "b": []}, {"a": ["X"], "b": []})["plain"]["err"] == 0  # nothing is put into nothing


def test_the_signature_tells_everything():
    assert score({"a": ["X"]}, {"a": ["X"]}, "phoenix2014t", "dev")["official"]["signature"] == (
        "wer.1|mode:official|cleanup:phoenix2014t.1|costs:sub4,ins3,del3|case:ascii-lower|empty:[EMPTY]|set:dev"
        "|sentences:1|ref_words:1")
    assert "cleanup:none|costs:sub1,ins1,del1|case:kept" in score({"a": ["X"]}, {"a": ["X"]})["raw"]["signature"]
    assert (wer.headline("phoenix2014"), wer.headline("phoenix2014t"), wer.headline("none")) == (
        "official", "official", "plain")


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refs, hyps, said", [
    ({"a": ["X"], "b": ["X"]}, {"a": ["X"]}, r"1 only in the references \(b\)"),
    ({"a": ["X"]}, {"a": ["X"], "c": [], "d": [], "e": [], "f": []}, r"4 only in the hypotheses \(c, d, e, …\)"),
    ({"a": []}, {"a": ["X"]}, "the references have no words: 1 sentences"),
    ({}, {}, "the references have no words: 0 sentences"),
])
def test_what_cannot_be_scored_is_a_mistake(refs, hyps, said):
    with pytest.raises(Mistake, match=said):
        score(refs, hyps)


def test_bugs_stay_bugs():
    with pytest.raises(TypeError, match="not a string"):
        score({"a": "X Y"}, {"a": ["X"]})
    with pytest.raises(ValueError, match="no mode"):
        alignments({"a": ["X"]}, {"a": ["X"]}, "wer")
    with pytest.raises(Mistake, match="no such clean-up: phoenix"):
        score({"a": ["X"]}, {"a": ["X"]}, "phoenix")


# --- reports ------------------------------------------------------------------------------------------------


def test_gloss_errors_name_confusions_and_omissions():
    refs = {"a": ["NORD", "WIND", "REGEN"], "b": ["NORD", "WIND"], "c": ["SONNE"]}
    hyps = {"a": ["NORD", "STURM", "REGEN", "IX"], "b": ["nord", "STURM"], "c": []}
    found = wer.gloss_errors(alignments(refs, hyps, "official").values())
    assert found == {("C", "NORD", "NORD"): 1, ("C", "NORD", "nord"): 1, ("S", "WIND", "STURM"): 2,
                     ("C", "REGEN", "REGEN"): 1, ("I", None, "IX"): 1, ("D", "SONNE", None): 1}
    rows = wer.per_gloss(found)
    assert list(rows) == ["WIND", "IX", "SONNE", "NORD", "REGEN"]
    assert rows["WIND"] == {"ref_words": 2, "correct": 0, "sub": 2, "del": 0, "ins": 0}
    assert rows["IX"]["ins"] == 1 and rows["IX"]["ref_words"] == 0 and rows["SONNE"]["del"] == 1
    assert rows["NORD"] == {"ref_words": 2, "correct": 2, "sub": 0, "del": 0, "ins": 0}


@given(st.lists(st.tuples(sentence, sentence), min_size=1, max_size=5))
def test_gloss_errors_are_all_the_errors(pairs):
    steps = [align(*pair) for pair in pairs]
    rows = wer.per_gloss(wer.gloss_errors(steps))
    total = sum((kinds(sentence) for sentence in steps), Counter())
    for kind, name in (("C", "correct"), ("S", "sub"), ("D", "del"), ("I", "ins")):
        assert sum(row[name] for row in rows.values()) == total[kind]
    assert {name: row["ref_words"] for name, row in rows.items() if row["ref_words"]} == Counter(
        gloss for ref, _ in pairs for gloss in ref)


def test_intervals_cover_the_rate_and_depend_on_the_seed_alone():
    rng = random.Random(3)
    pairs = [[rng.choices("ABCD", k=rng.randrange(2, 9)) for _ in range(2)] for _ in range(60)]
    steps = [align(*pair) for pair in pairs]
    low, high = wer.interval(steps, resamples=2000)
    rate = wer.figures(steps, "")["wer"]
    assert low < rate < high and [low, high] == wer.interval(steps, resamples=2000)
    assert [low, high] != wer.interval(steps, seed=1, resamples=2000)
    # the ratio's own standard error, by linearisation
    wrong, words = (np.array([sum(test(s) for s in sentence) for sentence in steps]) for test in
                    (lambda s: s.kind != "C", lambda s: s.ref is not None))
    error = 100 * np.sqrt(((wrong - rate / 100 * words) ** 2).sum()) / words.sum()
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.1)


def test_intervals_at_the_edges():
    right, wrong, nothing = align(["A"], ["A"]), align(["A", "B"], []), align([], ["A"])
    assert wer.interval([right] * 5, resamples=50) == [0, 0] and wer.interval([wrong], resamples=50) == [100, 100]
    assert np.isfinite(wer.interval([right, nothing], resamples=200)).all()  # draws of only the empty one are left out
    for empty in ([], [nothing]):
        with pytest.raises(Mistake, match="nothing to score"):
            wer.interval(empty)


# --- files --------------------------------------------------------------------------------------------------

STM = ";; a comment\nF1 1 signer 0.0 1.79769e+308 <O,A> ICH  NORD\n\nF2 1 signer 0.0 1.79769e+308 WIND\n"
CTM = "f1 1 0.00 0.01 ich\nf1 1 0.01 0.01 SUED 0.98\n"


def write(folder: Path, **texts: str | bytes) -> list[Path]:
    """ref_stm="…" becomes ref.stm."""
    files = []
    for name, text in texts.items():
        files.append(folder / name.replace("_", "."))
        files[-1].write_bytes(text if isinstance(text, bytes) else text.encode())
    return files


def test_a_recording_that_the_ctm_does_not_name_is_empty(tmp_path):
    pair = read_pair(*write(tmp_path, ref_stm=STM, hyp_ctm=CTM))
    assert pair == ({"F1": ["ICH", "NORD"], "F2": ["WIND"]}, {"F1": ["ich", "SUED"], "F2": []}, True)


def test_segments_of_one_recording_share_its_words(tmp_path):
    stm = ("F A x 5 9 C\nF A x 1 3 A B\nF A x 3.5 5 IGNORE_TIME_SEGMENT_IN_SCORING\nF B x 0 9 <O> E\n")
    ctm = "".join(f"F A {start} {length} {name}\n" for start, length, name in (
        (0.1, 0.2, "before"), (1.0, 0.2, "a"), (2.9, 0.19, "b"), (2.95, 0.2, "later"), (4.0, 0.1, "ignored"),
        (4.8, 0.4, "edge"), (20, 1, "after")))
    pair = read_pair(*write(tmp_path, ref_stm=stm, hyp_ctm=ctm))
    assert pair.hyps == {"F A 1": ["before", "a", "b"], "F A 5": ["edge", "after"], "F B 0": []}
    assert pair.refs == {"F A 1": ["A", "B"], "F A 5": ["C"], "F B 0": ["E"]} and not pair.mark_empty


def test_bom_crlf_tags_and_other_spaces(tmp_path):
    bom = "\N{BYTE ORDER MARK}F1 1 s 0 9 a\\;b;tag c\N{NO-BREAK SPACE}d\r\n"
    (segment,) = read_stm(*write(tmp_path, ref_stm=bom))
    assert segment.words == ["a;b", "c\N{NO-BREAK SPACE}d"] and segment.file == "F1"
    assert read_trn(*write(tmp_path, ref_trn="a @ b (x) c (s-1)  \n(s-2)\n ( ) - / < > (s-3)\n")) == {
        "s-1": ["a", "b", "(x)", "c"], "s-2": [], "s-3": ["(", ")", "-", "/", "<", ">"]}


def test_trn_files_match_ids_without_case(tmp_path):
    pair = read_pair(*write(tmp_path, ref_trn="A B (S-1)\n", hyp_trn="(s-1)\n"))
    assert pair == ({"S-1": ["A", "B"]}, {"S-1": []}, False)
    assert score(*pair[:2], mark_empty=pair.mark_empty)["sclite"]["del"] == 2


@pytest.mark.parametrize("stm, ctm, said", [
    ("F1 1 s 0.0\n", CTM, "ref.stm, line 1: an STM line has at least five fields: F1 1 s 0.0"),
    ("\n;;\nF1 1 s 0 x A\n", CTM, "ref.stm, line 3: this is no number: x"),
    ("F1 1 s nan 1 A\n", CTM, "line 1: this is no number: nan"),
    ("F1 1 s 2 1 A\n", CTM, "line 1: the segment ends before it starts: 2 1"),
    ("F1 1 s 0 1 { A / B }\n", CTM, "line 1: alternations are not scored"),
    (STM + "f1 1 s 0 9 A\n", CTM, "line 5: this segment stands twice, or overlaps another one: f1 1, see line 2"),
    ("F1 1 s 1 1 A\nF1 1 s 1 1 A\n", CTM, "line 2: this segment stands twice"),
    (b"F1 1 s 0 9 A\nF2 1 s 0 9 \xc4\n", CTM, r"line 2: this is no UTF-8: b'\\xc4"),
    (STM, "F1 1 0.0 0.1\n", "hyp.ctm, line 1: a CTM line has five fields, or six with a confidence"),
    (STM, "F1 1 0.0 0.1 WIE AUSSEHEN\n", "hyp.ctm, line 1: this is no number: AUSSEHEN"),
    (STM, "F1 1 0.0 0.1 ICH 1 x\n", "line 1: a CTM line has five fields"),
    (STM, "F1 1 a 0.1 ICH\n", "line 1: this is no number: a"),
    (STM, "F1 1 * * <ALT_BEGIN>\n", "line 1: alternations are not scored"),
    (STM, CTM + "F2 1 0 1 A\nF1 1 0.5 1 A\n", "line 4: the words of a recording stand in two places: F1, .* line 2"),
    (STM, CTM + CTM, "line 3: the words do not stand in the order of their starts: 0 after 0.01"),
    (STM, CTM + "F3 1 0 1 A\nF4 1 0 1 A\n", "line 3: the references have no such recording: F3 1, and 1 more"),
    (STM, "F1 2 0 1 A\n", "no such recording: F1 2"),
    (STM, "\n;; nothing\n", "this file has nothing to score: .*hyp.ctm"),
    ("", CTM, "this file has nothing to score: .*ref.stm"),
])
def test_malformed_files_say_where(tmp_path, stm, ctm, said):
    with pytest.raises(Mistake, match=said):
        read_pair(*write(tmp_path, ref_stm=stm, hyp_ctm=ctm))


@pytest.mark.parametrize("hyp, said", [
    ("A B\n", r"hyp.trn, line 1: a trn line ends in its id, \(id\): A B"),
    ("A (s-1)\nB (s-2)\nC (S-1)\n", "line 3: this id stands twice: S-1, first in line 1"),
    ("{ A / B } (s-1)\n", "line 1: alternations are not scored"),
    ("", "this file has nothing to score: .*hyp.trn"),
    ("A (s-1)\n", r"1 only in the references \(s-2\)"),
    ("A (s-1)\nA (s-2)\nA (s-3)\n", r"1 only in the hypotheses \(s-3\)"),
])
def test_malformed_trn_files_say_where(tmp_path, hyp, said):
    with pytest.raises(Mistake, match=said):
        score(*read_pair(*write(tmp_path, ref_trn="A (s-1)\nB (s-2)\n", hyp_trn=hyp))[:2])


def test_forms_that_do_not_go_together(tmp_path):
    stm, ctm, trn = write(tmp_path, ref_stm=STM, hyp_ctm=CTM, hyp_trn="A (F1)\n")
    for pair in ((stm, trn), (ctm, stm), (trn, ctm), (stm, stm)):
        with pytest.raises(Mistake, match="do not go together"):
            read_pair(*pair)
    with pytest.raises(Mistake, match="cannot be read: .*absent.ctm"):
        read_pair(stm, tmp_path / "absent.ctm")


# --- testing.py score ---------------------------------------------------------------------------------------


def test_score_prints_every_mode(tmp_path, capsys):
    files = [str(file) for file in write(tmp_path, ref_stm=STM, hyp_ctm=CTM)]
    assert testing.main(["score", *files, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    pair = read_pair(*map(Path, files))
    assert found == score(pair.refs, pair.hyps, name="ref.stm+hyp.ctm")
    assert "note: 1 of 2 sentences have an empty hypothesis" in said.err
    for cleanup, marked in (("phoenix2014", "official"), ("phoenix2014t", "official"), ("none", "plain")):
        testing.main(["score", *files, "--cleanup", cleanup])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[1:7]] == list(MODES)
        assert [line.split()[0] for line in lines if line.endswith("]")] == [marked]
        assert "66.67  [" in next(line for line in lines if line.startswith(marked))
        assert sum("|cleanup:" in line for line in lines) == 6


def test_score_leaves_with_2_and_says_where(tmp_path, capsys):
    files = write(tmp_path, ref_stm=STM, hyp_ctm="F1 1 0.0\n")
    with pytest.raises(SystemExit) as left:
        errors.run(lambda: testing.main(["score", *map(str, files)]))
    said = capsys.readouterr()
    assert left.value.code == 2 and "hyp.ctm, line 1" in said.err and not said.out
    trn = write(tmp_path, ref_trn="(a)\n", hyp_trn="A (a)\n")
    with pytest.raises(Mistake, match="the references have no words"):
        testing.main(["score", *map(str, trn)])


def test_phoenix_dev_takes_well_under_a_second(shared):
    """On the process's own clock: 0.2 s for reading and all six modes of 540 sentences on this project's CPUs."""
    folder = shared / "metrics" / "sclite_phoenix2014_dev"
    took = []
    for _ in range(3):  # the least busy of three
        start = time.process_time()
        score(*read_pair(folder / "ref.stm", folder / "hyp_heavy.ctm")[:2])
        took.append(time.process_time() - start)
    assert min(took) < 1
