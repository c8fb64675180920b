"""slr/metrics/topk.py against scikit-learn, torchmetrics, scipy and plain loops."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from slr.errors import Mistake
from slr.metrics import topk
from slr.metrics.topk import KS

frugal = settings(max_examples=60, deadline=None)


@st.composite
def scored(draw, distinct=False, most_classes=15):
    """(scores (N, K), labels (N,)); without `distinct` most rows hold ties."""
    n, k = draw(st.integers(1, 40)), draw(st.integers(2, most_classes))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(k, dtype=float), (n, 1)), axis=1) if distinct else None
    if scores is None:
        scores = draw(hnp.arrays(np.float64, (n, k), elements=st.sampled_from([-1.5, 0.0, 0.25, 3.0])))
    return scores, rng.integers(k, size=n)


def brute_rank(row, label):
    """The place of `label` when the classes are sorted by falling score, then by index."""
    return sorted(range(len(row)), key=lambda c: (-row[c], c)).index(label)


# --- ranks --------------------------------------------------------------------------------------------------


@frugal
@given(scored())
def test_ranks_are_those_of_a_sort_with_ties_to_the_lower_index(data):
    scores, labels = data
    expected = [brute_rank(row, label) for row, label in zip(scores, labels, strict=True)]
    assert topk.ranks_of(scores, labels).tolist() == expected


@frugal
@given(scored())
def test_ranked_lists_give_the_same_hits_as_scores(data):
    scores, labels = data
    ranks, listed = topk.ranks_of(scores, labels), topk.ranks_in(topk.ranked(scores, 10).tolist(), labels)
    for k in range(1, 11):
        assert ((ranks < k) == (listed < k)).all()


def test_ranked_has_all_classes_where_there_are_fewer_than_the_depth():
    assert topk.ranked([[0.1, 0.7, 0.7]]).tolist() == [[1, 2, 0]]


def test_too_short_lists_are_refused_unless_they_hold_the_truth():
    assert topk.ranks_in([[3, 1], [2, 0]], [1, 2]).tolist() == [1, 0]
    with pytest.raises(Mistake, match="top-10 cannot be told"):
        topk.ranks_in([[3, 1], [2, 0]], [1, 7])
    assert topk.ranks_in([[3, 1], [2, 0]], [1, 7], deepest=2).tolist() == [1, topk.BEYOND]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(Mistake, match="1 of 2 clips"):
        topk.ranks_of([[0.0, 1.0], [bad, 0.0]], [0, 1])
    with pytest.raises(Mistake, match="not finite"):
        topk.ranks_of([[-math.inf, -math.inf]], [0])
    assert topk.ranks_of([[-math.inf, 0.0]], [0]).tolist() == [1]  # one masked class is fine


def test_wrong_labels_and_empty_sets_are_the_users_mistakes_and_wrong_shapes_are_bugs():
    with pytest.raises(Mistake, match="label 2 of 2 classes"):
        topk.ranks_of([[0.0, 1.0]], [2])
    with pytest.raises(Mistake, match="label -1"):
        topk.confusion([-1], [0], 2)
    for empty in (lambda: topk.ranks_of(np.zeros((0, 3)), []), lambda: topk.per_instance([]),
                  lambda: topk.average_loss(np.zeros((0, 3)), [])):
        with pytest.raises(Mistake, match="nothing to score"):
            empty()
    for crooked in (lambda: topk.ranks_of([[0.0, 1.0]], [0, 1]), lambda: topk.ranks_in([[0]], [0, 1]),
                    lambda: topk.average_per_class([0], [0, 1]), lambda: topk.confusion([0], [0, 1], 2),
                    lambda: topk.per_signer([True], [1, 2]),
                    lambda: topk.compare([True], [True], ["a", "b"], ["a", "b"])):
        with pytest.raises(ValueError):
            crooked()


# --- accuracies ---------------------------------------------------------------------------------------------


@frugal
@given(scored(distinct=True))
def test_topk_equals_scikit_learn_torchmetrics_and_a_loop(data):
    scores, labels = data
    k_all = scores.shape[1]
    ks = [k for k in KS if k < k_all]
    instance, average = topk.topk(scores, labels, ks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about classes that are absent
        for k in ks:
            reference = top_k_accuracy_score(labels, scores, k=k, labels=range(k_all)) if k_all > 2 else None
            mean = multiclass_accuracy(torch.from_numpy(scores), torch.from_numpy(labels), k_all, "micro", k)
            assert instance[f"top{k}"] == pytest.approx(float(mean))
            assert reference is None or instance[f"top{k}"] == pytest.approx(reference)
            assert average[f"top{k}"] == pytest.approx(loop_average(scores, labels, k))


def loop_average(scores, labels, k):
    """The mean over the classes present of each class's own top-k accuracy."""
    rates = []
    for c in sorted(set(labels.tolist())):
        own = [row for row, label in zip(scores, labels, strict=True) if label == c]
        rates.append(sum(brute_rank(row, c) < k for row in own) / len(own))
    return sum(rates) / len(rates)


def test_average_per_class_equals_torchmetrics_macro_where_all_classes_are_present():
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=(90, 12)), np.resize(np.arange(12), 90)
    average = topk.topk(scores, labels)[1]
    for k in KS:
        macro = multiclass_accuracy(torch.from_numpy(scores), torch.from_numpy(labels), 12, "macro", k)
        assert average[f"top{k}"] == pytest.approx(float(macro), abs=1e-6)


@frugal
@given(scored(most_classes=4))
def test_k_above_the_number_of_classes_is_a_hit_and_nothing_is_nan(data):
    instance, average = topk.topk(*data)
    assert set(instance) == set(average) == {"top1", "top5", "top10"}
    assert instance["top5"] == instance["top10"] == average["top10"] == 1.0
    assert 0.0 <= average["top1"] <= 1.0


def test_an_absent_class_does_not_count_in_the_average():
    # class 0: 1 of 2, class 2: 1 of 1, class 1 absent (but predicted)
    scores = [[9, 0, 0], [0, 9, 0], [0, 0, 9]]
    assert topk.topk(scores, [0, 0, 2])[1]["top1"] == 0.75
    present, found, support = topk.topk_counts([0, 1, 0], [0, 0, 2])
    assert (present.tolist(), found[0].tolist(), support.tolist()) == ([0, 2], [1, 1], [2, 1])


@frugal
@given(scored(), st.sampled_from([1.0, 300.0]))
def test_average_loss_equals_torch_also_for_large_logits(data, scale):
    logits, labels = data[0] * scale, data[1]
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert topk.average_loss(logits, labels) == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


def test_results_have_the_promised_shape_and_are_plain_json():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 12)).astype(np.float32), rng.integers(12, size=20)
    base = topk.base_result(logits, labels)
    assert list(base) == ["top_k_average_per_class_acc", "top_k_per_instance_acc", "average_loss"]
    perm = topk.permutation(16, 42)
    shuffled = topk.shuffled_result(logits, labels, np.array(perm))
    assert {**base, "perm": perm, "shannon_entropy": topk.shannon_entropy(perm)} == shuffled
    assert json.loads(json.dumps(shuffled)) == shuffled


# --- classes and signers ------------------------------------------------------------------------------------


def loop_class(pairs, c):
    """(precision, recall, F1, support) of class c by counting."""
    right = sum(a == b == c for a, b in pairs)
    support, named = sum(a == c for a, _ in pairs), sum(b == c for _, b in pairs)
    return right / max(named, 1), right / max(support, 1), 2 * right / max(support + named, 1), support


@pytest.mark.filterwarnings("ignore:A single label was found")  # scikit-learn's confusion_matrix, of one class
@frugal
@given(st.integers(1, 8).flatmap(lambda k: st.tuples(st.just(k), st.lists(
    st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=50))))
def test_per_class_equals_torchmetrics_and_a_loop_and_confusion_scikit_learn(data):
    k, pairs = data
    labels, predicted = [a for a, _ in pairs], [b for _, b in pairs]
    report = topk.per_class(labels, predicted, [f"sign {c}" for c in range(k)])
    names = ("precision", "recall", "f1", "support")
    expected = [loop_class(pairs, c) for c in range(k)]
    for c in range(k):
        assert [report[name][c] for name in names] == pytest.approx(expected[c])
    for name, function in zip(names, (multiclass_precision, multiclass_recall, multiclass_f1_score), strict=False):
        if k > 1:  # torchmetrics wants two classes
            theirs = function(torch.tensor(predicted), torch.tensor(labels), num_classes=k, average="none")
            assert report[name] == pytest.approx(theirs.tolist())
    present = [expected[c][2] for c in sorted(set(labels))]
    assert report["macro_f1"] == pytest.approx(sum(present) / len(present))
    assert report["classes_present"] == len(present)
    assert (topk.confusion(labels, predicted, k) == confusion_matrix(labels, predicted, labels=range(k))).all()
    json.dumps(report)


def test_confused_pairs_come_by_count_then_share_then_index():
    matrix = [[5, 2, 0], [2, 0, 1], [1, 0, 0]]
    assert topk.confused(matrix, ["a", "b", "c"]) == [
        ("b", "a", 2, 2 / 3), ("a", "b", 2, 2 / 7), ("c", "a", 1, 1.0), ("b", "c", 1, 1 / 3)]
    assert len(topk.confused(matrix, ["a", "b", "c"], most=1)) == 1
    assert topk.confused([[4]], ["a"]) == []


def test_per_signer_counts_every_clip_once_in_natural_order():
    signers, hits = [10, 2, None, 2, 10, 10], [True, False, True, True, True, True]
    result = topk.per_signer(hits, signers)
    assert list(result) == ["2", "10", "unknown"]
    assert {name: (row["clips"], row["correct"], row["acc"]) for name, row in result.items()} == {
        "2": (2, 1, 0.5), "10": (3, 3, 1.0), "unknown": (1, 1, 1.0)}
    assert result["10"]["interval"] == [1.0, 1.0] and result["2"]["interval"] == [0.0, 1.0]
    json.dumps(result)


# --- intervals and the paired test --------------------------------------------------------------------------


def test_intervals_equal_a_plain_loop_over_resamples():
    rng = np.random.default_rng(5)
    ranks, labels = rng.integers(14, size=60), rng.integers(9, size=60)
    mine = topk.intervals(ranks, labels, resamples=4000)
    loop = {"top_k_per_instance_acc": [], "top_k_average_per_class_acc": []}
    for _ in range(4000):
        picks = rng.integers(60, size=60)
        average = topk.average_per_class(ranks[picks], labels[picks])
        loop["top_k_per_instance_acc"].append(topk.per_instance(ranks[picks])["top5"])
        loop["top_k_average_per_class_acc"].append(average["top5"])
    for name, values in loop.items():
        assert mine[name]["top5"] == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), abs=0.02)


def test_a_resample_is_scored_as_the_accuracies_are(monkeypatch):
    ranks, labels = np.array([0, 3, 7, 0, 20]), np.array([4, 4, 1, 0, 1])
    monkeypatch.setattr(topk, "_times_drawn", lambda rng, rows, n: np.tile([0, 2, 1, 2, 0], (rows, 1)))
    order = np.argsort(labels, kind="stable")
    drawn = np.repeat(order, [0, 2, 1, 2, 0])
    result = topk.intervals(ranks, labels, resamples=3)
    for key, value in topk.per_instance(ranks[drawn]).items():
        assert result["top_k_per_instance_acc"][key] == [value, value]
    for key, value in topk.average_per_class(ranks[drawn], labels[drawn]).items():
        assert result["top_k_average_per_class_acc"][key] == pytest.approx([value, value])


def test_intervals_depend_on_the_seed_alone_and_not_on_the_memory_bound(monkeypatch):
    rng = np.random.default_rng(6)
    ranks, labels = rng.integers(12, size=101), rng.integers(30, size=101)
    first = topk.intervals(ranks, labels, resamples=500)
    assert topk.intervals(ranks, labels, resamples=500, seed=43) != first
    monkeypatch.setattr(topk, "DRAWS_AT_ONCE", 707)
    assert topk.intervals(ranks, labels, resamples=500) == first
    for name, point in (("top_k_per_instance_acc", topk.per_instance(ranks)),
                        ("top_k_average_per_class_acc", topk.average_per_class(ranks, labels))):
        for key, value in point.items():
            low, high = first[name][key]
            assert 0 <= low <= value <= high <= 1


def test_intervals_of_a_perfect_run_have_no_width():
    result = topk.intervals([0, 0, 0], [0, 1, 1], resamples=100)
    assert result["top_k_average_per_class_acc"]["top1"] == [1.0, 1.0]
    json.dumps(result)


@frugal
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_scipys_binomial_test(b, c):
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert topk.mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_thousands_does_not_overflow():
    assert topk.mcnemar(3000, 0) == 0.0 and topk.mcnemar(1500, 1500) == 1.0


def test_compare_pairs_by_clip_whatever_the_order():
    ids = [f"clip{i}" for i in range(40)]
    rng = np.random.default_rng(7)
    a, b, order = rng.random(40) < 0.8, rng.random(40) < 0.5, rng.permutation(40)
    result = topk.compare(a, b, ids, ids)
    assert topk.compare(a, b[order], ids, [ids[i] for i in order]) == result
    assert result["both"] + result["only_a"] + result["only_b"] + result["neither"] == 40
    assert result["difference"] == pytest.approx(result["acc_a"] - result["acc_b"])
    picks = rng.integers(40, size=(4000, 40))
    loop = np.quantile((a[picks].astype(int) - b[picks]).mean(axis=1), [0.025, 0.975])
    assert result["interval"] == pytest.approx(loop.tolist(), abs=0.03)
    swapped = topk.compare(b, a, ids, ids)
    assert swapped["difference"] == -result["difference"] and swapped["p_value"] == result["p_value"]
    json.dumps(result)


def test_compare_names_how_many_clips_differ():
    with pytest.raises(Mistake) as caught:
        topk.compare([1, 1, 0], [1, 0], ["a", "b", "c"], ["a", "d"])
    assert "3 differ: 2 only in the first (b, c), 1 only in the second (d); 1 in both" in str(caught.value)
    with pytest.raises(Mistake, match="second run names clips more than once"):
        topk.compare([1, 1], [1, 0], ["a", "b"], ["a", "a"])


# --- shuffled frames ----------------------------------------------------------------------------------------


@frugal
@given(st.integers(1, 70), st.integers(0, 2**32))
def test_permutation_is_one_order_per_seed_and_never_the_identity(n, seed):
    perm = topk.permutation(n, seed)
    assert sorted(perm) == list(range(n)) and perm == topk.permutation(n, seed)
    assert n == 1 or perm != list(range(n))
    assert all(type(p) is int for p in perm)


@frugal
@given(st.integers(1, 40).flatmap(lambda n: st.permutations(range(n))))
def test_entropy_equals_the_formula_and_stays_in_its_bounds(perm):
    n = len(perm)
    steps = [(b - a) % n for a, b in itertools.pairwise([*perm, perm[0]])]
    shares = [steps.count(step) / n for step in set(steps)]
    assert topk.shannon_entropy(perm) == pytest.approx(-sum(f * math.log2(f) for f in shares))
    assert 0 <= topk.shannon_entropy(perm) <= math.log2(n) + 1e-12


def test_entropy_of_known_orders():
    assert topk.shannon_entropy(range(52)) == 0.0 and topk.shannon_entropy([2, 3, 0, 1]) == 0.0
    assert topk.shannon_entropy([3, 2, 1, 0]) == 0.0  # all differences are -1
    # differences of [0, 2, 1, 3] mod 4 are 2, 3, 2, 1: shares 1/2, 1/4, 1/4
    assert topk.shannon_entropy([0, 2, 1, 3]) == 1.5
    for wrong in ([0, 0, 1], [1, 2], []):
        with pytest.raises(ValueError):
            topk.shannon_entropy(wrong)
    with pytest.raises(ValueError):
        topk.permutation(0, 1)
