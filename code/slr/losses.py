"""Losses as sums over items, so that means hold over any cut of a batch."""

import torch
from torch.nn.functional import cross_entropy


def mixed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, other: torch.Tensor, share: torch.Tensor,
                        smoothing: float = 0.0) -> torch.Tensor:
    """The sum over items of share x CE(own label) + (1 - share) x CE(partner's label): mixup's loss.

    logits (N, K), labels (N,), other (N,) indices of the partners, share (N,). Zhang et al. 2018,
    https://arxiv.org/abs/1710.09412, equation 1, as the equivalent mixture of losses.
    """
    own = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    partner = cross_entropy(logits, labels[other], reduction="none", label_smoothing=smoothing)
    return (share * own + (1 - share) * partner).sum()
