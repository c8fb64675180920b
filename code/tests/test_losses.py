"""Sums over items that hold over any cut of a batch."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from slr.errors import Mistake
from slr.losses import class_weights, ctc, mixed_cross_entropy, over_heads, smoothed_kl

torch.manual_seed(0)
LOGITS, LABELS = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 2, 1, 3])
SELF, ALL = torch.arange(6), torch.ones(6, dtype=torch.float64)


def test_without_mixup_it_is_the_sum_of_cross_entropies():
    for smoothing in (0.0, 0.1):
        expected = cross_entropy(LOGITS, LABELS, reduction="sum", label_smoothing=smoothing)
        assert torch.allclose(mixed_cross_entropy(LOGITS, LABELS, SELF, ALL, smoothing), expected)


def test_mixup_is_cross_entropy_with_mixed_targets():
    other, share = torch.tensor([1, 0, 3, 2, 5, 4]), torch.tensor([0.7, 0.7, 0.5, 0.5, 1.0, 1.0], dtype=torch.float64)
    own = one_hot(LABELS, 5).double()
    targets = share[:, None] * own + (1 - share[:, None]) * own[other]
    expected = cross_entropy(LOGITS, targets, reduction="sum")
    assert torch.allclose(mixed_cross_entropy(LOGITS, LABELS, other, share), expected)


def test_sums_add_up_over_a_cut():
    parts = [mixed_cross_entropy(LOGITS[i:j], LABELS[i:j], SELF[:j - i], ALL[i:j], 0.1) for i, j in ((0, 4), (4, 6))]
    assert torch.allclose(sum(parts), mixed_cross_entropy(LOGITS, LABELS, SELF, ALL, 0.1))


# --- CTC ----------------------------------------------------------------------------------------------------

def brute(log_probs: torch.Tensor, labels: tuple[int, ...]) -> float:
    """-ln of the summed probabilities of all paths (T, K) whose repeats merged and blanks dropped are `labels`."""
    steps, classes = log_probs.shape
    total = 0.0
    for path in itertools.product(range(classes), repeat=steps):
        if tuple(label for label, _ in itertools.groupby(path) if label) == labels:
            total += math.exp(sum(float(log_probs[t, k]) for t, k in enumerate(path)))
    return -math.log(total) if total else math.inf


def batch(seed: int, steps: int = 5, classes: int = 3, items: int = 4, most: int = 3) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, steps, classes, generator=random, dtype=torch.float64) * 2
    lengths = torch.randint(0, steps + 1, (items,), generator=random)
    targets = torch.randint(1, classes, (items, most), generator=random)
    return logits.log_softmax(-1), lengths, targets, torch.randint(0, most + 1, (items,), generator=random)


@given(st.integers(0, 10**6))
def test_ctc_sums_all_paths_and_counts_what_has_none(seed):
    log_probs, lengths, targets, target_lengths = batch(seed)
    losses = [brute(x[:n], tuple(y[:m].tolist())) for x, n, y, m in
              zip(log_probs, lengths.tolist(), targets, target_lengths.tolist(), strict=True)]
    total, infeasible = ctc(log_probs, lengths, targets, target_lengths)
    assert total.item() == pytest.approx(sum(x for x in losses if x < math.inf), abs=1e-9)
    assert infeasible.item() == sum(x == math.inf for x in losses)
    assert total.dtype == infeasible.dtype == torch.float64


def test_ctc_sums_add_up_over_a_cut_and_any_padding():
    log_probs, lengths, targets, target_lengths = batch(1, items=6)
    whole = torch.stack(ctc(log_probs, lengths, targets, target_lengths))
    parts = [torch.stack(ctc(*(x[i:j] for x in (log_probs, lengths, targets, target_lengths))))
             for i, j in ((0, 1), (1, 4), (4, 6))]
    assert torch.allclose(whole, torch.stack(parts).sum(0), rtol=1e-12)
    wider = torch.cat((log_probs, torch.full((6, 3, 3), torch.nan)), 1)
    padded = ctc(wider, lengths.int(), torch.cat((targets, torch.full((6, 2), -1)), 1), target_lengths.int())
    assert torch.allclose(whole, torch.stack(padded), rtol=1e-12)


def test_ctc_gradient():
    """Behind log_softmax, and zero for infeasible items and for steps behind an item's end."""
    logits = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    lengths, targets = torch.tensor([5, 3, 2, 0]), torch.tensor([[1, 2, 1], [2, 0, 0], [1, 1, 0], [1, 0, 0]])
    words = lengths, targets, torch.tensor([3, 1, 2, 1])
    assert torch.autograd.gradcheck(lambda x: ctc(x.log_softmax(-1), *words)[0], (logits,))
    total, infeasible = ctc(logits.log_softmax(-1), *words)
    used = torch.autograd.grad(total, logits)[0].abs().sum(-1) > 0
    assert used.tolist() == [[True] * 5, [True] * 3 + [False] * 2, [False] * 5, [False] * 5]
    assert infeasible.item() == 2


def test_ctc_of_nothing_to_say():
    """An empty labelling is all blanks; no steps and no labels cost nothing; targets may have no column at all."""
    log_probs, *_ = batch(2, items=2)
    for targets in (torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)):
        total, infeasible = ctc(log_probs, torch.tensor([4, 0]), targets, torch.tensor([0, 0]))
        assert total.item() == pytest.approx(-log_probs[0, :4, 0].sum().item()) and infeasible.item() == 0


def test_ctc_in_half_precision_is_float32():
    log_probs, lengths, targets, target_lengths = batch(3)
    half = log_probs.bfloat16()
    total, _ = ctc(half, lengths, targets, target_lengths)
    assert total.dtype == torch.float32
    assert torch.equal(total, ctc(half.float(), lengths, targets, target_lengths)[0])


@pytest.mark.parametrize(("lengths", "targets", "target_lengths", "what"), [
    ([5, 6], [[1, 2], [1, 1]], [2, 1], "time steps"), ([5, -1], [[1, 2], [1, 1]], [2, 1], "time steps"),
    ([5, 5], [[1, 2], [1, 1]], [2, 3], "labels"), ([5, 5], [[1, 2], [1, 1]], [2, -1], "labels"),
    ([5, 5], [[1, 2], [0, 1]], [2, 1], "classes"), ([5, 5], [[1, 2], [1, 3]], [2, 2], "classes"),
])
def test_ctc_refuses_what_is_out_of_range(lengths, targets, target_lengths, what):
    words = torch.tensor(lengths), torch.tensor(targets), torch.tensor(target_lengths)
    with pytest.raises(Mistake, match=f"{what} of a CTC item are out of range: item 1"):
        ctc(batch(0, items=2)[0], *words)


# --- the translators' loss ----------------------------------------------------------------------------------

def said(seed: int, items: int = 3, steps: int = 4, size: int = 6, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, T, V), and targets (N, T) that end anywhere, at the beginning too."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, size - 1, (items, steps), generator=random)
    targets += targets >= pad
    lengths = torch.randint(0, steps + 1, (items, 1), generator=random)
    logits = torch.randn(items, steps, size, generator=random, dtype=torch.float64) * 2
    return logits, targets.masked_fill(torch.arange(steps) >= lengths, pad)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(3, 7),
       st.just(0.0) | st.floats(1e-6, 0.9), st.data())
def test_smoothed_kl_is_that_of_the_whole_distribution(seed, items, steps, size, smoothing, data):
    pad = data.draw(st.integers(0, size - 1))
    logits, targets = said(seed, items, steps, size, pad)
    wanted = torch.full((items, steps, size), smoothing / (size - 2), dtype=torch.float64)
    wanted.scatter_(2, targets[..., None], 1 - smoothing)
    wanted[..., pad] = 0
    wanted[targets == pad] = 0
    assert torch.allclose(wanted.sum(2), (targets != pad).double())
    log_probs = logits.log_softmax(2)
    found = smoothed_kl(log_probs, targets, pad, smoothing)
    assert found.shape == (items,)
    assert found.sum().item() == pytest.approx(nn.KLDivLoss(reduction="sum")(log_probs, wanted).item(), abs=1e-9)


@given(st.integers(0, 10**6), st.integers(0, 5))
def test_without_smoothing_it_is_the_cross_entropy(seed, pad):
    logits, targets = said(seed, pad=pad)
    expected = cross_entropy(logits.movedim(2, 1), targets, ignore_index=pad, reduction="none").sum(1)
    assert torch.allclose(smoothed_kl(logits.log_softmax(2), targets, pad), expected)


def test_smoothed_kl_is_of_each_item_alone_whatever_its_padding():
    logits, targets = said(5, items=4)
    logits[targets == 0] = 1e4 * torch.randn(6, dtype=torch.float64)
    whole = smoothed_kl(logits.log_softmax(2), targets, 0, 0.2)
    for item, length in enumerate((targets != 0).sum(1).tolist()):
        alone = smoothed_kl(logits[item:item + 1, :length].log_softmax(2), targets[item:item + 1, :length], 0, 0.2)
        assert torch.allclose(alone[0], whole[item], rtol=1e-12)
    longer = torch.cat((logits, logits), 1), torch.cat((targets, torch.zeros_like(targets)), 1)
    assert torch.allclose(smoothed_kl(longer[0].log_softmax(2), longer[1], 0, 0.2), whole, rtol=1e-12)


def test_smoothed_kl_gradient():
    """Behind log_softmax; zero at padding, and everywhere where the model is the smoothed target itself."""
    logits, targets = said(5)
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: smoothed_kl(x.log_softmax(2), targets, 0, 0.2), (logits,))
    gradient = torch.autograd.grad(smoothed_kl(logits.log_softmax(2), targets, 0, 0.2).sum(), logits)[0]
    assert torch.equal(gradient.abs().sum(2) > 0, targets != 0)
    perfect = torch.full((1, 1, 6), 0.05, dtype=torch.float64).scatter(2, torch.tensor([[[3]]]), 0.8)
    perfect[..., 0] = 1e-300  # the pad's, which no target has
    perfect = perfect.log().requires_grad_(True)
    loss = smoothed_kl(perfect.log_softmax(2), torch.tensor([[3]]), 0, 0.2)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss.sum(), perfect)[0].abs().max() < 1e-12


# --- several heads ------------------------------------------------------------------------------------------

def heads(seed: int, items: int = 7) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Logits of heads of 3, 5 and 2 classes, and labels of which a third is missing."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(items, n, generator=generator, dtype=torch.float64) for n in (3, 5, 2)]
    labels = torch.stack([torch.randint(0, n, (items,), generator=generator) for n in (3, 5, 2)], 1)
    return logits, labels.masked_fill(torch.rand(labels.shape, generator=generator) < 1 / 3, -1)


@given(st.integers(0, 50), st.tuples(*[st.sampled_from([0.0, 0.1, 1.0, 2.0])] * 3).filter(any), st.booleans())
def test_loss_over_heads_against_a_loop(seed, weights, binary):
    logits, labels = heads(seed)
    rare = [torch.rand(head.shape[1], dtype=torch.float64) + 0.5 for head in logits]
    total, count = 0.0, 0
    for item, row in enumerate(labels.tolist()):
        each = [(weights[k], logits[k][item], label, rare[k][label]) for k, label in enumerate(row)
                if label >= 0 and weights[k]]
        if each:
            count += 1
            found = [weight * factor * (binary_cross_entropy_with_logits(head, one_hot(torch.tensor(label), len(head))
                                                                         .double())
                                        if binary else cross_entropy(head, torch.tensor(label)))
                     for weight, head, label, factor in each]
            total += sum(found) / sum(weight for weight, *_ in each)
    mine, items = over_heads(logits, labels, weights, binary=binary, rare=rare)
    assert items == count and float(mine) == pytest.approx(float(total), rel=1e-6)


def test_loss_over_heads_holds_over_any_cut_and_masks_what_is_missing():
    logits, labels = heads(3)
    weights = [1.0, 0.3, 0.0]
    whole = over_heads(logits, labels, weights)
    parts = [over_heads([head[cut] for head in logits], labels[cut], weights) for cut in (slice(0, 2), slice(2, 7))]
    assert whole[1] == sum(n for _, n in parts) and torch.allclose(whole[0], sum(x for x, _ in parts))
    leaves = [head.clone().requires_grad_() for head in logits]
    over_heads(leaves, labels, weights)[0].backward()
    for k, leaf in enumerate(leaves):
        assert torch.equal(leaf.grad.abs().sum(1) > 0, (labels[:, k] >= 0) & (weights[k] > 0))
    with pytest.raises(Mistake, match="no head has a weight"):
        over_heads(logits, labels, [0.0, 0.0, 0.0])


def test_class_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight
    labels = torch.tensor([0, 0, 0, 2, 2, 4, -1, -1])
    found = class_weights(labels, 6)
    theirs = compute_class_weight("balanced", classes=np.array([0, 2, 4]), y=[n for n in labels.tolist() if n >= 0])
    assert found[[0, 2, 4]].tolist() == pytest.approx(theirs.tolist()) and found[[1, 3, 5]].tolist() == [1, 1, 1]
