"""Batch-norm over several processes: alone, and under a sentence model in the engine, against one process."""

import preprocess
import pytest
import torch
import torch.distributed as dist
from shares import a_norm, an_epoch, everywhere, one_share, rows, second_pass
from test_continuous import INI, SPLIT
from torch import nn

from slr import batchnorm
from slr.datasets import synthetic_sentences as drawn
from slr.errors import Mistake


@pytest.mark.parametrize(("shares", "shape", "momentum"), [([5, 2], (3,), 0.1), ([2, 1], (3, 4, 2, 2), None),
                                                           ([4, 0], (3, 2, 2, 2), 0.001)])
def test_two_processes_normalise_as_one(tmp_path, shares, shape, momentum):
    """Outputs, gradients and running statistics, to 1e-5 at inputs around 50; of four rows and a ghost too."""
    right = second_pass(a_norm(1 + len(shape), momentum), rows(sum(shares), shape))
    parts = everywhere(one_share, tmp_path, 2, shares, shape, momentum)
    for part, share, out, grad in zip(parts, shares, right["out"].split(shares), right["grad"].split(shares),
                                      strict=True):
        if share:
            torch.testing.assert_close(part["out"], out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(part["grad"], grad if share else torch.zeros(1, *shape), rtol=1e-5, atol=1e-5)
        for name, value in right["state"].items():
            torch.testing.assert_close(part["state"][name], value, rtol=1e-5, atol=1e-5)
    for name in ("weight", "bias"):
        torch.testing.assert_close(sum(part[name] for part in parts), right[name], rtol=1e-4, atol=1e-4)


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_single_value_is_refused(group):
    (norm,) = batchnorm.share_batch_norm(nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.raises(Mistake, match="no batch-norm over a single value"):
        norm(torch.zeros(1, 3))
    assert norm.eval()(torch.zeros(1, 3)).shape == (1, 3) and not norm.num_batches_tracked


def test_short_formats_and_what_does_not_learn(group):
    """bf16 rows stay bf16, as in nn.BatchNorm3d; inputs without a gradient leave the weights theirs."""
    x, own = rows(4, (3, 2, 2, 2)).bfloat16(), a_norm(5, 0.1)
    (shared,) = batchnorm.share_batch_norm(nn.Sequential(a_norm(5, 0.1)))
    for norm in (own, shared):
        norm(x).float().pow(2).sum().backward()
    assert shared(x).dtype == torch.bfloat16
    torch.testing.assert_close(shared(x), own(x), rtol=0.02, atol=0.02)
    torch.testing.assert_close(shared.weight.grad, own.weight.grad, rtol=0.02, atol=0.02)
    batchnorm.mark_ghost(nn.Sequential(shared), True)
    before = shared.running_mean.clone()
    with pytest.raises(Mistake, match="single value"):  # a ghost is nobody's
        shared(x)
    assert torch.equal(before, shared.running_mean)


# --- a sentence model in the engine ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """A data root with five sentences to train on: in batches of four the last one leaves a process without a share."""
    root = tmp_path_factory.mktemp("five")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(drawn.SIZES, SPLIT, drawn.Size((5, 1, 1), (2, 1, 1), 32))
        assert preprocess.main(["-as", SPLIT, "--data", str(root), "--workers", "0"]) == 0
    return root


def worst(one: dict, other: dict) -> float:
    """The largest distance of two tensors of one name, as a share of their length; those of less than 1 count as 1."""
    assert one.keys() == other.keys()
    return max(float((value - other[name]).norm() / value.norm().clamp(min=1)) for name, value in one.items()
               if value.is_floating_point())


def test_sentences_on_two_processes_equal_one(five, tmp_path):
    """S3D_CTC with all of its batch-norm in training, items of other lengths on each process, and a ghost.

    In float64, where a wrong statistic cannot pass for rounding: that of float32 is 3e-2 of some gradients here, on
    one process as on two.
    """
    ini = INI.replace("drop_p = 0.1", "drop_p = 0.0").replace("num_frames = 96", "num_frames = 48")
    (one,), (first, second) = (everywhere(an_epoch, tmp_path, world, ini, "S3D_CTC", SPLIT, torch.float64,
                                          SLR_DATA=str(five)) for world in (1, 2))
    whole, last = one["lengths"]
    assert len(set(whole)) > 2 and len(last) == 1
    assert (first["lengths"], second["lengths"]) == ([whole[:2], last], [whole[2:], []])
    torch.testing.assert_close(first["losses"], one["losses"], rtol=1e-10, atol=0)
    for a, b in zip(one["gradients"], first["gradients"], strict=True):
        assert worst(a, b) < 1e-8
    assert worst(one["state"], first["state"]) < 1e-8 and worst(first["state"], second["state"]) == 0
