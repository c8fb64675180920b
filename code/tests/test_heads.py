"""slr/metrics/heads.py against scikit-learn and plain loops."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import classification_report, confusion_matrix, f1_score

from slr.errors import Mistake
from slr.metrics import heads, topk
from slr.metrics.heads import MISSING, Answers

frugal = settings(max_examples=50, deadline=None)
SIZES = {"shape": 4, "place": 3, "turn": 2}
pairs = st.integers(1, 6).flatmap(lambda k: st.lists(
    st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=60))


def record(name, labels, scores, gloss=None, signer=None):
    """One record; scores {head: probabilities}."""
    with np.errstate(divide="ignore"):
        logs = {head: np.log(np.array(row, dtype=np.float32)) for head, row in scores.items()}
    return {"id": name, "signer": signer, "gloss": gloss, "labels": labels, "scores": logs}


def made(n, seed=0, share=0.6, gloss=0, missing=0.1, sizes=SIZES):
    """(n records of a model that is right for about `share`, a dictionary of `gloss` glosses)."""
    rng, rows = np.random.default_rng(seed), []
    entries = {10 + g: (f"G{g}", {head: int(rng.integers(k)) for head, k in sizes.items()}) for g in range(gloss)}
    for i in range(n):
        own = 10 + int(rng.integers(gloss)) if gloss else None
        labels = entries[own][1] if gloss else {head: int(rng.integers(k)) for head, k in sizes.items()}
        scores = {head: rng.dirichlet(np.ones(k)) + (np.arange(k) == labels[head]) * (rng.random() < share)
                  for head, k in sizes.items()}
        kept = {head: label for head, label in labels.items() if rng.random() >= missing}
        rows.append(record(f"c{i}", kept, {head: row / row.sum() for head, row in scores.items()}, own, f"s{i % 3}"))
    return rows, entries


def answers(truth, predicted, head="shape"):
    return Answers([f"c{i}" for i in range(len(truth))], {head: np.array(truth)}, {head: np.array(predicted)})


# --- one head -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:A single label was found")  # scikit-learn's confusion_matrix
@frugal
@given(pairs, st.integers(1, 12))
def test_f1_report_and_confusion_equal_scikit_learn(data, least):
    truth, said = [a for a, _ in data], [b for _, b in data]
    assert heads.macro_f1(truth, said) == pytest.approx(f1_score(truth, said, average="macro", zero_division=0))
    frequent = [label for label in sorted(set(truth)) if truth.count(label) >= least]
    mine = heads.macro_f1_frequent(truth, said, least)
    assert mine == (pytest.approx(f1_score(truth, said, labels=frequent, average="macro", zero_division=0))
                    if frequent else None)
    table = heads.per_label(truth, said)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = classification_report(truth, said, output_dict=True, zero_division=0)
    assert table["labels"] == sorted({*truth, *said})
    for i, label in enumerate(table["labels"]):
        row = theirs[str(label)]
        assert [table[key][i] for key in ("precision", "recall", "f1", "support")] == pytest.approx(
            [row["precision"], row["recall"], row["f1-score"], row["support"]])
        assert table["predicted"][i] == said.count(label)
    labels, matrix = heads.confusion(truth, said)
    assert labels == table["labels"] and (matrix == confusion_matrix(truth, said)).all()


def test_only_what_occurs_counts_and_what_is_frequent_has_ten_clips():
    # label 0: 10 clips, 9 right; label 1: 9 clips, all right; label 7 is only predicted, once
    truth, said = np.array([0] * 10 + [1] * 9), np.array([0] * 9 + [7] + [1] * 9)
    found = heads.head_result(truth, said, 12)
    assert found["macro_f1"] == pytest.approx((18 / 19 + 1 + 0) / 3)
    assert found["macro_f1_frequent"] == pytest.approx(18 / 19)
    assert (found["classes"], found["classes_present"], found["classes_frequent"]) == (12, 2, 1)
    assert found["chance"] == 1 / 12 and found["accuracy"] == 18 / 19
    assert found["majority"] == {"label": 0, "accuracy": 10 / 19, "macro_f1": pytest.approx((20 / 29) / 2),
                                 "macro_f1_frequent": pytest.approx(20 / 29)}
    assert heads.macro_f1_frequent([0] * 9, [0] * 9) is None
    assert heads.majority([2, 1, 1, 2, 0]) == 1  # of equally frequent ones the lowest


# --- all heads ----------------------------------------------------------------------------------------------


def test_the_likeliest_class_is_predicted_of_equal_ones_the_lower():
    found = heads.answers_of([record("a", {"x": 2}, {"x": [0.4, 0.4, 0.2], "y": [0, 1]}),
                              record("b", {"y": -1}, {"y": [0.5, 0.5], "x": [0.1, 0.2, 0.7]})])
    assert {head: row.tolist() for head, row in found.predicted.items()} == {"x": [0, 2], "y": [1, 0]}
    assert {head: row.tolist() for head, row in found.truth.items()} == {"x": [2, MISSING], "y": [MISSING, MISSING]}
    assert found.labelled() == ["x"]


@frugal
@given(st.integers(1, 40), st.integers(0, 999), st.sampled_from([0.0, 0.3, 0.8]))
def test_score_equals_plain_loops_that_leave_missing_labels_out(n, seed, missing):
    rows, _ = made(n, seed, missing=missing)
    used = [row for row in rows if row["labels"]]
    if not used:
        with pytest.raises(Mistake, match="no clip has a label of shape, place, turn"):
            heads.score(rows)
        return
    found, each = heads.score(rows), {}
    for head in SIZES:
        both = [(row["labels"][head], int(row["scores"][head].argmax())) for row in used if head in row["labels"]]
        if both:
            truth, said = zip(*both, strict=True)
            each[head] = f1_score(truth, said, average="macro", zero_division=0)
            row = found["heads"][head]
            assert (row["clips"], row["macro_f1"]) == (len(both), pytest.approx(each[head]))
            assert row["accuracy"] == pytest.approx(sum(a == b for a, b in both) / len(both))
    assert list(found["heads"]) == list(each) and len(each) + len(found["heads_without_labels"]) == 3
    assert found["mean_macro_f1"] == pytest.approx(sum(each.values()) / len(each))
    right = [all(row["scores"][head].argmax() == label for head, label in row["labels"].items()) for row in used]
    assert (found["clips"], found["exact_match"]) == (len(used), pytest.approx(sum(right) / len(right)))
    assert found["clips_complete"] == sum(len(row["labels"]) == len(each) for row in used)
    most = {head: heads.majority([row["labels"][head] for row in used if head in row["labels"]]) for head in each}
    lazy = [all(most[head] == label for head, label in row["labels"].items()) for row in used]
    assert found["majority"]["exact_match"] == pytest.approx(sum(lazy) / len(lazy))
    assert found["lookup"] is None and json.loads(json.dumps(found)) == found


def test_means_are_over_the_heads_that_have_the_figure():
    rows = [record(f"c{i}", {"a": 0} | ({"b": i % 2} if i < 6 else {}), {"a": [0.9, 0.1], "b": [0.8, 0.2]})
            for i in range(12)]
    found = heads.score(rows)
    assert found["heads"]["a"]["macro_f1_frequent"] == 1 and found["heads"]["b"]["macro_f1_frequent"] is None
    assert found["mean_macro_f1_frequent"] == 1
    assert found["mean_macro_f1"] == pytest.approx((1 + (2 * 3 / 9 + 0) / 2) / 2)
    assert found["majority"]["mean_macro_f1"] == found["mean_macro_f1"]


def test_a_gloss_head_has_its_top_k():
    rng = np.random.default_rng(4)
    scores = rng.dirichlet(np.ones(15), size=30)
    labels = rng.integers(15, size=30)
    rows = [record(f"c{i}", {"gloss": int(label)} if i else {}, {"gloss": row})
            for i, (label, row) in enumerate(zip(labels, scores, strict=True))]
    found = heads.score(rows)["heads"]["gloss"]
    expected = topk.per_instance(topk.ranks_of(scores[1:], labels[1:]))
    assert {key: found[key] for key in expected} == expected and found["top1"] == found["accuracy"]


def test_what_cannot_be_scored():
    good = record("a", {"x": 1}, {"x": [0.5, 0.5]})
    for rows, said in (([], "nothing to score"), ([record("a", {"x": 2}, {"x": [0.5, 0.5]})], "label 2 of 2 classes"),
                       ([good, record("b", {"x": 0}, {"x": [math.nan, 1]})], "x are not finite: 1 of 2"),
                       ([record("b", {"x": 0}, {"x": [0, 0]})], "not finite")):
        with pytest.raises(Mistake, match=said):
            heads.score(rows)
    for rows, said in (([good, record("b", {}, {"y": [1.0]})], "not all the same heads"),
                       ([record("a", {"x": 0}, {"x": [3.0, 0.5]})], "a log-probability is not above 0")):
        with pytest.raises(ValueError, match=said):
            heads.score(rows)
    assert heads.score([record("a", {"x": 1}, {"x": [0, 1]})])["exact_match"] == 1  # one masked class is fine
    with pytest.raises(ValueError, match="predictions of shape"):
        heads.macro_f1([1], [1, 2])
    with pytest.raises(Mistake, match="0 clips with a label"):
        heads.macro_f1([], [])


# --- the look-up --------------------------------------------------------------------------------------------


def loop_lookup(rows, dictionary, order):
    """[(before, tied, first gloss)] of the clips whose gloss is in the dictionary, one comparison at a time."""
    found = []
    for row in rows:
        if row["gloss"] not in dictionary:
            continue
        keys = {}
        for gloss, (_, labels) in dictionary.items():
            apart = [int(row["scores"][head].argmax()) != label for head, label in labels.items()]
            log_p = [float(row["scores"][head][label]) for head, label in labels.items()]
            keys[gloss] = (sum(apart) / len(apart) if order == "distance" else 0, -sum(log_p) / len(log_p))
        own = keys[row["gloss"]]
        found.append((sum(key < own for key in keys.values()), sum(key == own for key in keys.values()),
                      min(keys, key=lambda gloss: keys[gloss])))
    return found


@frugal
@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 999), st.booleans())
def test_look_up_equals_a_loop(n, glosses, seed, gaps):
    rows, dictionary = made(n, seed, gloss=glosses)
    if gaps:  # entries of which not all labels are known, but one
        dictionary = {gloss: (name, {"shape": labels["shape"], **({"turn": labels["turn"]} if gloss % 2 else {})})
                      for gloss, (name, labels) in dictionary.items()}
    found = heads.look_up(heads.scores_of(rows), dictionary, [row["gloss"] for row in rows])
    for order, places in (("distance", found.distance), ("log_p", found.log_p)):
        first = [found.glosses[i] for i in places.first]
        mine = list(zip(places.before.tolist(), places.tied.tolist(), first, strict=True))
        assert mine == loop_lookup(rows, dictionary, order)


@pytest.mark.parametrize("at_once", [1, 40, 10**6])
def test_blocks_change_nothing(monkeypatch, at_once):
    rows, dictionary = made(17, 2, gloss=8)
    expected = heads.score(rows, dictionary)
    monkeypatch.setattr(heads, "AT_ONCE", at_once)
    assert heads.score(rows, dictionary) == expected


@frugal
@given(st.integers(0, 5), st.integers(1, 4), st.integers(1, 12))
def test_a_tie_is_a_hit_as_often_as_in_random_order(before, tied, k):
    orders = list(itertools.permutations(range(tied)))  # the true one is number 0 of those tied
    hits = sum(before + order.index(0) < k for order in orders) / len(orders)
    places = heads.Places(np.array([before]), np.array([tied]), np.array([0]))
    assert places.hits(k)[0] == pytest.approx(hits)
    assert places.ranks()[0] == pytest.approx(sum(before + order.index(0) + 1 for order in orders) / len(orders))


def test_glosses_that_share_all_labels_are_tied_wherever_they_stand():
    same = {"x": 0, "y": 1}
    entries = {3: ("A", same), 1: ("B", same), 2: ("C", {"x": 1, "y": 1}), 8: ("none of the heads", {"z": 0})}
    rows = [record(f"c{gloss}", {}, {"x": [0.9, 0.1], "y": [0.2, 0.8]}, gloss) for gloss in (3, 1, 2, 8, 99, None)]
    scores = heads.scores_of(rows)
    found = heads.look_up(scores, entries, [row["gloss"] for row in rows])
    assert found.rows.tolist() == [0, 1, 2] and found.glosses == [3, 1, 2] and found.outside == 2
    assert found.distance.ranks().tolist() == [1.5, 1.5, 3] and found.distance.first.tolist() == [0, 0, 0]
    result = heads.lookup_result(found)
    assert (result["clips"], result["clips_outside"], result["glosses"], result["glosses_alike"]) == (3, 2, 3, 2)
    assert result["distance"] == {"top1": pytest.approx(1 / 3), "top5": 1, "top10": 1} == result["log_p"]
    assert result["ceiling"]["top1"] == pytest.approx(2 / 3) and result["chance"]["top1"] == pytest.approx(1 / 3)


def test_the_two_orders_differ_as_they_say():
    # gloss 0 misses one label by far, gloss 1 both by a hair; gloss 2 misses one by less than gloss 0
    entries = {0: ("near", {"x": 0, "y": 2}), 1: ("likely", {"x": 1, "y": 1}), 2: ("nearest", {"x": 2, "y": 0})}
    rows = [record("c", {}, {"x": [0.4, 0.39, 0.21], "y": [0.5, 0.49, 0.01]}, 1)]
    found = heads.look_up(heads.scores_of(rows), entries, [1])
    for places, expected in ((found.distance, [2, 1, 2]), (found.log_p, [0, 1, 1])):
        assert np.concatenate([places.before, places.tied, places.first]).tolist() == expected


def test_a_look_up_without_glosses_or_heads_is_none_and_a_wrong_label_a_mistake():
    rows, entries = made(4, gloss=3)
    scores, glosses = heads.scores_of(rows), [row["gloss"] for row in rows]
    assert heads.look_up(scores, entries, [None] * 4) is None
    for empty in ({10: ("A", {"other": 1})}, {}):
        assert heads.look_up(scores, empty, glosses) is None
    with pytest.raises(Mistake, match=r"shape \(in the dictionary\)"):
        heads.look_up(scores, {**entries, 77: ("wrong", {"shape": 4})}, glosses)


# --- intervals and the paired test --------------------------------------------------------------------------


def test_a_resample_is_scored_as_the_set_is():
    run = heads.answers_of(made(50, 7)[0])
    table = heads._Resampled(run)
    rng = np.random.default_rng(1)
    picks = rng.integers(50, size=(6, 50))
    drawn = np.stack([np.bincount(row, minlength=50) for row in picks], axis=1).astype(np.float32)
    accuracy, f1, frequent = table.figures(drawn)
    for r, row in enumerate(picks):
        chosen = run.rows(row)
        for h, head in enumerate(table.heads):
            truth, said = chosen.pairs(head)
            assert accuracy[h, r] == pytest.approx((truth == said).mean())
            assert f1[h, r] == pytest.approx(heads.macro_f1(truth, said))
            often = [label for label in range(4) if (run.truth[head] == label).sum() >= 10]
            expected = f1_score(truth, said, labels=often, average="macro", zero_division=0)
            assert frequent[h, r] == pytest.approx(expected)


def test_intervals_equal_a_loop_over_resamples():
    run, rng = heads.answers_of(made(80, 5)[0]), np.random.default_rng(9)
    found = heads.intervals(run, {"half": np.where(np.arange(80) < 40, 0.5, np.nan)})
    f1, right = [], []
    for _ in range(600):
        some = run.rows(rng.integers(80, size=80))
        f1.append(np.mean([heads.macro_f1(*some.pairs(head)) for head in some.labelled()]))
        hits, known = heads.exact(some)
        right.append(hits[known].mean())
    assert found["mean_macro_f1"] == pytest.approx(np.quantile(f1, [0.025, 0.975]).tolist(), abs=0.02)
    assert found["exact_match"] == pytest.approx(np.quantile(right, [0.025, 0.975]).tolist(), abs=0.03)
    assert found["extra"] == {"half": [0.5, 0.5]} and set(found["heads"]) == set(SIZES)
    assert found == heads.intervals(run, {"half": np.where(np.arange(80) < 40, 0.5, np.nan)})
    json.dumps(found)


def test_a_figure_that_no_resample_has_is_none_and_a_sure_one_has_no_width():
    found = heads.intervals(answers([0, 1, 0], [0, 1, 0]), resamples=50)
    assert found["mean_macro_f1_frequent"] is None and found["exact_match"] == found["mean_macro_f1"] == [1, 1]


def test_draws_are_n_a_resample_and_come_in_blocks(monkeypatch):
    monkeypatch.setattr(heads, "AT_ONCE", 30)
    blocks = list(heads._draws(10, 1, 7))
    assert [block.shape for block in blocks] == [(10, 3), (10, 3), (10, 1)]
    assert all((block.sum(axis=0) == 10).all() for block in blocks)


def test_compare_is_paired_whatever_the_order():
    rows = made(200, 3, share=0.5)[0]
    a, b = heads.answers_of(rows), heads.answers_of(made(200, 3, share=0.9)[0])
    b = Answers(a.ids, a.truth, {head: np.where(np.arange(200) % 4 == 0, b.predicted[head], np.maximum(truth, 0))
                                 for head, truth in a.truth.items()})
    found = heads.compare(a, b)
    assert found == heads.compare(a, b.rows(np.random.default_rng(0).permutation(200)))
    (right_a, known), (right_b, _) = heads.exact(a), heads.exact(b)
    only = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    assert found["exact_match"]["p_value"] == topk.mcnemar(*only) and found["clips"] == known.sum()
    means = [np.mean([heads.macro_f1(*run.pairs(head)) for head in SIZES]) for run in (a, b)]
    assert (found["macro_f1_a"], found["macro_f1_b"]) == pytest.approx(tuple(means))
    low, high = found["interval"]
    assert low < found["difference"] < high < 0  # the second is better
    assert sum(row["difference"] for row in found["per_head"].values()) / 3 == pytest.approx(found["difference"])
    same = heads.compare(a, a)
    assert (same["difference"], same["interval"], same["exact_match"]["p_value"]) == (0, [0, 0], 1)
    json.dumps(found)


def test_compare_takes_the_heads_that_both_have():
    rows = made(20, 1)[0]
    a, b = heads.answers_of(rows), heads.answers_of(rows).only(["turn", "shape"])
    found = heads.compare(a, b, resamples=20)
    assert (found["heads"], found["heads_left_out"]) == (["shape", "turn"], ["place"])
    with pytest.raises(Mistake, match="no head in common"):
        heads.compare(a.only(["place"]), b)


def test_what_cannot_be_compared():
    a = answers([0, 1, 2], [0, 0, 0])
    other = answers([0, 1, 1], [0, 0, 0])
    with pytest.raises(Mistake, match="same labels: 1 clips differ in shape, such as c2"):
        heads.compare(a, other)
    with pytest.raises(Mistake, match="1 only in the first"):
        heads.compare(a, answers([0, 1], [0, 0]))
    with pytest.raises(Mistake, match="more than once"):
        heads.compare(a.rows([0, 0]), a.rows([0, 0]))
    with pytest.raises(Mistake, match="nothing to score"):
        heads.compare(answers([MISSING], [0]), answers([MISSING], [0]))
