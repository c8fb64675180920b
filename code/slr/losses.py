"""Losses as sums over items, so that means hold over any cut of a batch."""

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, ctc_loss, one_hot

from slr.errors import Mistake


def mixed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, other: torch.Tensor, share: torch.Tensor,
                        smoothing: float = 0.0) -> torch.Tensor:
    """The sum over items of share x CE(own label) + (1 - share) x CE(partner's label): mixup's loss.

    logits (N, K), labels (N,), other (N,) indices of the partners, share (N,). Zhang et al. 2018,
    https://arxiv.org/abs/1710.09412, equation 1, as the equivalent mixture of losses.
    """
    own = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    partner = cross_entropy(logits, labels[other], reduction="none", label_smoothing=smoothing)
    return (share * own + (1 - share) * partner).sum()


def over_heads(logits: Sequence[torch.Tensor], labels: torch.Tensor, weights: Sequence[float], *, binary: bool = False,
               rare: Sequence[torch.Tensor | None] | None = None,
               smoothing: float = 0.0) -> tuple[torch.Tensor, int]:
    """(Sum over the items of their heads' weighted mean loss, how many items have a label of any head that weighs).

    logits: of each head (N, classes); labels (N, K), -1 where one is missing, which then counts nowhere; weights of the
    K heads. The loss is cross-entropy, or with `binary` the mean over the classes of the binary one on one-hot labels.
    rare: of each head (classes,) factors of its labels' losses. smoothing: of the cross-entropy's labels.

    Raises Mistake where no head weighs anything.
    """
    if not any(weights):
        raise Mistake("no head has a weight", ", ".join(map(str, weights)), "give at least one a weight above 0")
    known = labels >= 0
    share = known * labels.new_tensor(weights, dtype=torch.float32)
    total = share.sum(1)
    found = torch.stack([_of_head(head, labels[:, k].clamp(min=0), binary, rare[k] if rare else None, smoothing)
                         for k, head in enumerate(logits)], 1)
    return ((found * share).sum(1) / total.clamp(min=1e-12)).sum(), int((total > 0).sum())


def _of_head(logits: torch.Tensor, labels: torch.Tensor, binary: bool, rare: torch.Tensor | None,
             smoothing: float) -> torch.Tensor:
    """(N,) of one head."""
    if not binary:
        return cross_entropy(logits, labels, weight=rare, reduction="none", label_smoothing=smoothing)
    target = one_hot(labels, logits.shape[1]).to(logits)
    loss = binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    return loss if rare is None else loss * rare[labels]


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(classes,) float32: n / (classes that occur x n of this one), as scikit-learn's `balanced`; 1 where none is.

    labels (N,), below 0 where one is missing.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=classes).float()
    return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp(min=1)), 1.0)


def ctc(log_probs: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor,
        target_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over items of -ln p(labelling), and how many items were infeasible: two numbers of log_probs' type.

    log_probs (N, T, K), a log_softmax (what torch calls the gradient is right only behind one); lengths (N,) of the
    items in time steps, 0 to T; targets (N, S), classes 1 to K - 1, anything behind an item's own;
    target_lengths (N,), 0 to S. Half precision is computed in float32. Class 0 is the blank. Graves et al. 2006,
    https://doi.org/10.1145/1143844.1143891, equation 8.

    An item is infeasible where it has fewer time steps than labels and adjacent repeats. Its loss, like every infinite
    one, is 0 and has no gradient. Divide by N, infeasible items included, for the mean over the batch.

    Raises Mistake for lengths and labels out of range: torch reads beside its memory for the latter.
    """
    device, (_, steps, classes) = log_probs.device, log_probs.shape
    lengths, targets, target_lengths = lengths.to(device), targets.to(device), target_lengths.to(device)
    _check_ranges(lengths, targets, target_lengths, steps, classes)
    wide = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32)).transpose(0, 1)
    # A length of 0 makes torch read before its memory, so such an item is given a step and then left out.
    losses = ctc_loss(wide, targets, lengths.clamp(min=1), target_lengths, reduction="none", zero_infinity=True)
    total = torch.where(lengths > 0, losses, torch.zeros_like(losses)).sum()
    return total, (lengths < _needed(targets, target_lengths)).sum().to(total)


def smoothed_kl(log_probs: torch.Tensor, targets: torch.Tensor, pad: int, smoothing: float = 0.0) -> torch.Tensor:
    """(N,) of each item the sum over its tokens of KL(target || model), the target smoothed.

    log_probs (N, T, V), a log_softmax; targets (N, T), `pad` behind an item's end. A target has 1 - smoothing, and each
    of the other V - 2 tokens, `pad` left out, smoothing / (V - 2): Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567, section 7, as the Transformer of Joey NMT has it (Kreutzer et al. 2019,
    https://arxiv.org/abs/1907.12484). With smoothing 0 it is the cross-entropy.
    """
    others = log_probs.shape[2] - 2
    right = log_probs.gather(2, targets[..., None])[..., 0]
    loss = -(1 - smoothing) * right
    if smoothing:
        rest = log_probs.sum(2) - right - log_probs[..., pad]
        known = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(smoothing / others)
        loss = loss - smoothing / others * rest + known
    return loss.masked_fill(targets == pad, 0.0).sum(1)


def _needed(targets: torch.Tensor, target_lengths: torch.Tensor) -> torch.Tensor:
    """(N,) the fewest time steps of a path: one for each label and one between a label and its repeat."""
    second = torch.arange(1, max(targets.shape[1], 1), device=targets.device)
    repeats = (targets[:, 1:] == targets[:, :-1]) & (second < target_lengths[:, None])
    return target_lengths + repeats.sum(1)


def _check_ranges(lengths: torch.Tensor, targets: torch.Tensor, target_lengths: torch.Tensor, steps: int,
                  classes: int) -> None:
    own = torch.arange(targets.shape[1], device=targets.device) < target_lengths[:, None]
    wrong = {"time steps": (lengths < 0) | (lengths > steps),
             "labels": (target_lengths < 0) | (target_lengths > targets.shape[1]),
             "classes": (((targets < 1) | (targets >= classes)) & own).any(1)}
    if torch.stack(list(wrong.values())).any():  # one wait for the device, not three
        item, what = next((int(rows.nonzero()[0]), name) for name, rows in wrong.items() if rows.any())
        found = f"{int(lengths[item])} time steps, labels {targets[item].tolist()}[:{int(target_lengths[item])}]"
        raise Mistake(f"the {what} of a CTC item are out of range", f"item {item}: {found}",
                      f"give up to {steps} time steps, {targets.shape[1]} labels and the classes 1 to {classes - 1}")
