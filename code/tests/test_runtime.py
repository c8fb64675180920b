"""Devices, number formats, and randomness that depends on seed, epoch and item alone."""

import io
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slr.errors import Mistake
from slr.runtime import Runtime, generator, rng_state, set_rng_state

CPU = Runtime(torch.device("cpu"))


def test_generator_is_keyed_by_all_three():
    def draw(*key):
        return generator(*key).random(4).tolist()

    assert draw(1, 2, "a") == draw(1, 2, "a")
    assert len({tuple(draw(*key)) for key in [(1, 2, "a"), (2, 2, "a"), (1, 3, "a"), (1, 2, "b"), (12, 1, "a")]}) == 5


@given(st.integers(0, 2**70), st.integers(0, 10**6), st.text(max_size=20))
def test_any_key_will_do(seed, epoch, item):
    assert 0 <= generator(seed, epoch, item).random() < 1


def test_generator_ignores_the_global_ones():
    first = generator(0, 0, "x").random()
    np.random.seed(5)
    random.seed(5)
    assert generator(0, 0, "x").random() == first


def test_every_global_generator_comes_back():
    CPU.seed(3)
    torch.rand(5), np.random.normal(size=3), random.gauss(0, 1)  # an odd number of normals: both keep a spare
    file = io.BytesIO()
    torch.save(rng_state(CPU.device), file)

    def draw():
        return torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1), random.random()

    before = draw()
    file.seek(0)
    set_rng_state(torch.load(file, weights_only=True), CPU.device)
    assert draw() == before


def test_ranks_draw_differently():
    CPU.seed(3)
    first = torch.rand(1)
    Runtime(CPU.device, rank=1, world=2).seed(3)
    assert torch.rand(1) != first
    CPU.seed(2**40)  # numpy takes 32 bits only


def test_precision_by_name():
    assert CPU.precision("auto") == CPU.precision("fp32") == torch.float32
    assert CPU.precision("bf16") == torch.bfloat16
    with CPU.autocast(torch.bfloat16):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    with CPU.autocast(torch.float32):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_alone_it_is_its_own_company():
    values = torch.ones(2)
    assert CPU.sum(values) is values and CPU.gather("x") == ["x"] and CPU.main
    CPU.wait()
    CPU.close()
    assert CPU.peak_memory() > 2**20


@pytest.mark.parametrize("name", ["tpu9", "meta", "mps", "cpu:x", ""])
def test_devices_that_are_none(name):
    with pytest.raises(Mistake, match="--device is no device"):
        Runtime.start(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu():
    with pytest.raises(Mistake, match="no GPU to be had"):
        Runtime.start("cuda")
    assert Runtime.start("auto").device.type == "cpu"


def test_deterministic_is_set_and_unset():
    Runtime.start("cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    Runtime.start("cpu")
    assert not torch.are_deterministic_algorithms_enabled()


SHAPES = """
import sys
import torch
from slr.runtime import Runtime
torch.set_num_threads(1)
Runtime.start("cpu")
conv = torch.nn.Conv3d(4, 4, 3, padding=1)
def see(shapes):
    with torch.no_grad():
        for steps in range(1, shapes + 1):
            clip = torch.zeros(1, 4, steps, 3, 3)
            torch.mkldnn_convolution(clip, conv.weight, conv.bias, [1] * 3, [1] * 3, [1] * 3, 1)
see(1100)
print("again", flush=True)
see(50)
"""


def test_kernels_of_more_shapes_than_onednn_keeps_are_not_made_again():
    """oneDNN itself says which it had: without Runtime.start they are all misses."""
    env = {key: value for key, value in os.environ.items() if key != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    said = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True,
                          env={**env, "ONEDNN_VERBOSE": "profile_create"}).stdout
    first, _, again = said.partition("again")
    assert "create:cache_miss" in first, "nothing was computed by oneDNN"
    assert "create:cache_hit" in again and "create:cache_miss" not in again


def test_kernels_are_kept_unless_somebody_says_how_many(monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.delenv(name, raising=False)
    Runtime.start("cpu")
    assert int(os.environ[name]) > 1024
    monkeypatch.setenv(name, "7")
    Runtime.start("cpu")
    assert os.environ[name] == "7"
