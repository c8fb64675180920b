"""Sums over items that hold over any cut of a batch."""

import torch
from torch.nn.functional import cross_entropy, one_hot

from slr.losses import mixed_cross_entropy

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
