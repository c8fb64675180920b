"""The selective scan: the chunked form and a foreign kernel are what the plain loop is, and sequences never meet."""

import json
import re
import subprocess
import sys
import warnings
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slr.models import scan as module
from slr.models.scan import scan, scan_chunked, scan_loop, segments
from slr.paths import ROOT

NAMES = ("y", "dx", "ddt", "dA", "dB", "dC", "dD")


def problem(length, *, rows=2, heads=4, width=3, groups=2, state=4, steps=0.2, dtype=torch.float64):
    """x, dt, A, B, C, D with A between -16 and -1 and dt up to `steps`."""
    torch.manual_seed(length)
    x = torch.randn(rows, length, heads, width)
    dt = torch.rand(rows, length, heads) * steps
    A, D = -torch.empty(heads).uniform_(1, 16), torch.randn(heads)
    B, C = (torch.randn(rows, length, groups, state) for _ in range(2))
    return [each.to(dtype) for each in (x, dt, A, B, C, D)]


def numbers(lengths):
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


def outcome(form, inputs, seq_idx, **options):
    """The values, and the gradients of a sum with fixed random weights."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    y = form(*leaves, seq_idx, **options)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


def assert_agree(found, expected, tolerance):
    """Everything within `tolerance`, of the largest value where that is above 1."""
    for name, a, b in zip(NAMES, found, expected, strict=True):
        scale = max(1.0, float(b.abs().max()))
        assert float((a.double() - b).abs().max()) <= tolerance * scale, name


# --- the loop is the formula ------------------------------------------------------------------------------------

def test_the_loop_by_hand():
    """Two sequences of 2 and 1 steps, one head of one channel and one state: H and y written out."""
    x, dt, B, C = (torch.tensor(row, dtype=torch.float64).view(1, 3, 1, -1) for row in
                   ([1.0, 2.0, 3.0], [0.5, 0.25, 1.0], [1.0, -1.0, 2.0], [3.0, 1.0, 0.5]))
    A, D = torch.tensor([-2.0]).double(), torch.tensor([10.0]).double()
    first = 0.5 * 1 * 1
    second = torch.exp(torch.tensor(0.25 * -2.0)).item() * first + 0.25 * 2 * -1
    expected = torch.tensor([3 * first + 10, 1 * second + 20, 0.5 * (1 * 3 * 2) + 30]).double()
    y = scan_loop(x, dt[..., 0], A, B, C, D, torch.tensor([4, 4, 1]))
    assert torch.allclose(y.flatten(), expected)
    back = scan_loop(*(each.flip(1) for each in (x, dt[..., 0])), A, B.flip(1), C.flip(1), D, torch.tensor([1, 4, 4]),
                     reverse=True)
    assert torch.allclose(back.flatten(), expected.flip(0))


def test_segments_count_changes():
    assert segments(torch.tensor([5, 5, 2, 2, 2, 5])).tolist() == [0, 0, 1, 1, 1, 2]
    assert segments(torch.tensor([3])).tolist() == [0]


# --- chunks -----------------------------------------------------------------------------------------------------

CASES = [[1], [7], [16], [17], [1, 15, 1], [16, 16], [3, 40, 1, 1, 20], [13, 50], [30, 30, 30, 7]]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", CASES, ids=str)
def test_chunked_is_the_loop(lengths, reverse):
    """Values and gradients, in float64 to 1e-12: one step, lengths that no chunk divides, borders everywhere."""
    inputs, seq_idx = problem(sum(lengths)), numbers(lengths)
    expected = outcome(scan_loop, inputs, seq_idx, reverse=reverse)
    assert_agree(outcome(scan_chunked, inputs, seq_idx, reverse=reverse, chunk=16), expected, 1e-12)


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), chunk=st.integers(1, 20), reverse=st.booleans(),
       groups=st.sampled_from([1, 2, 4]))
def test_chunked_is_the_loop_whatever_the_cut(lengths, chunk, reverse, groups):
    inputs, seq_idx = problem(sum(lengths), groups=groups, width=2, state=3), numbers(lengths)
    expected = outcome(scan_loop, inputs, seq_idx, reverse=reverse)
    assert_agree(outcome(scan_chunked, inputs, seq_idx, reverse=reverse, chunk=chunk), expected, 1e-12)


def test_without_numbers_all_is_one_sequence():
    inputs = problem(40)
    assert torch.equal(scan_chunked(*inputs, chunk=16), scan_chunked(*inputs, torch.zeros(40), chunk=16))
    assert_agree(outcome(scan_chunked, inputs, None, chunk=16), outcome(scan_loop, inputs, None), 1e-12)


@pytest.mark.parametrize("steps", [0.1, 1.0])
def test_single_precision(steps):
    """float32 to 1e-4 of the loop in float64, at the length of a sentence, also where almost all decays at once."""
    lengths = [57, 1, 200, 142]
    inputs = problem(400, heads=4, width=16, state=32, steps=steps)
    expected = outcome(scan_loop, inputs, numbers(lengths))
    found = outcome(scan_chunked, [each.float() for each in inputs], numbers(lengths))
    assert found[0].dtype == torch.float32
    assert_agree(found, expected, 1e-4)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", [scan_loop, scan_chunked])
def test_gradients_are_those_of_the_values(form, reverse):
    inputs = [each.requires_grad_() for each in problem(7, rows=1, heads=2, width=2, groups=1, state=2)]
    options = {} if form is scan_loop else {"chunk": 3}
    assert torch.autograd.gradcheck(lambda *given: form(*given, numbers([2, 4, 1]), reverse=reverse, **options), inputs)


@pytest.mark.parametrize("form", [scan_loop, scan_chunked])
def test_sequences_never_meet(form):
    """A sequence is what it is alone; another one a million times larger does not change a bit of it."""
    lengths = [20, 33, 11]
    inputs, seq_idx = problem(64), numbers(lengths)
    y = form(*inputs, seq_idx)
    x, dt, A, B, C, D = inputs
    for part in range(3):
        own = seq_idx == part
        alone = form(x[:, own], dt[:, own], A, B[:, own], C[:, own], D)
        assert torch.allclose(y[:, own], alone, rtol=0, atol=1e-12)
        louder = torch.where(own[:, None, None], x, 1e6 * x)
        assert torch.equal(form(louder, dt, A, B, C, D, seq_idx)[:, own], y[:, own])


def test_the_mask_comes_before_exp():
    """Above the diagonal exp would overflow, and a mask behind it would make 0 x inf."""
    inputs = problem(50, steps=400.0, dtype=torch.float32)
    found = outcome(scan_chunked, inputs, numbers([20, 30]))
    assert all(each.isfinite().all() for each in found)
    assert_agree(found[:1] * 7, outcome(scan_loop, [each.double() for each in inputs], numbers([20, 30]))[:1] * 7, 1e-4)


def test_sums_are_exact_under_autocast():
    """400 decays of 0.01 summed in bfloat16 would stall at 2; products are bfloat16's all the same."""
    inputs = problem(400, rows=1, width=8)
    inputs[1], inputs[2] = torch.full_like(inputs[1], 0.01), torch.full_like(inputs[2], -1.0)
    expected = scan_loop(*inputs)
    x, dt, A, B, C, D = (each.float() for each in inputs)
    plain = scan_chunked(x, dt, A, B, C, D, chunk=400)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = scan_chunked(x.bfloat16(), dt, A, B.bfloat16(), C.bfloat16(), D, chunk=400)
        whole = scan_chunked(x, dt, A, B, C, D, chunk=400)
    assert half.dtype == torch.bfloat16 and whole.dtype == torch.float32
    assert torch.equal(whole, plain) and float((whole.double() - expected).norm() / expected.norm()) < 1e-5
    assert float((half.double() - expected).norm() / expected.norm()) < 1e-2


def test_compiles_in_one_piece():
    inputs, seq_idx = problem(40), numbers([15, 25])
    compiled = torch.compile(lambda *given: scan(*given), backend="eager", fullgraph=True)
    assert torch.allclose(compiled(*inputs, seq_idx), scan_loop(*inputs, seq_idx), rtol=0, atol=1e-12)


# --- mamba-ssm --------------------------------------------------------------------------------------------------

def honest(x, dt, A, B, C, chunk_size, D=None, seq_idx=None):
    """What mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined does, by our loop."""
    assert seq_idx is None or (seq_idx.dtype == torch.int32 and seq_idx.shape == x.shape[:2])
    assert dt.dtype == A.dtype == D.dtype == torch.float32 and B.dtype == C.dtype == x.dtype
    honest.calls += 1
    return scan_loop(x.float(), dt, A, B.float(), C.float(), D, None if seq_idx is None else seq_idx[0]).to(x.dtype)


def forgets_borders(*given, seq_idx=None, **options):
    return honest(*given, **options)


def breaks(*given, **options):
    raise RuntimeError("no kernel image is available")


def no_number(*given, **options):
    return honest(*given, **options) * float("nan")


@pytest.fixture
def install(monkeypatch):
    """Puts a module mamba_ssm with this kernel in place; a CPU counts as a device for it."""
    module._checked_kernel.cache_clear()
    honest.calls = 0

    def put(kernel):
        parts = "mamba_ssm", "ops", "triton", "ssd_combined"
        for depth in range(1, 5):
            monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(parts[depth - 1]))
        if kernel:
            sys.modules[".".join(parts)].mamba_chunk_scan_combined = kernel
        monkeypatch.setattr(module, "KERNEL_DEVICES", ("cuda", "cpu"))

    yield put
    module._checked_kernel.cache_clear()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_agreeing_kernel_is_used(install, dtype, reverse):
    install(honest)
    inputs, seq_idx = problem(50, dtype=torch.float32), numbers([20, 30])
    inputs = [each.to(dtype) if place in (0, 3, 4) else each for place, each in enumerate(inputs)]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        scan(*inputs, seq_idx, reverse=reverse)
    checked = honest.calls
    assert checked == 3  # the check in both directions, then the scan
    expected = outcome(scan_loop, [each.double() for each in inputs], seq_idx, reverse=reverse)
    assert_agree(outcome(scan, inputs, seq_idx, reverse=reverse), expected, 1e-4 if dtype == torch.float32 else 2e-2)
    assert honest.calls == checked + 1  # checked once
    assert_agree(outcome(scan, inputs, None), outcome(scan_loop, [each.double() for each in inputs], None), 2e-2)


@pytest.mark.parametrize(("kernel", "found"), [(forgets_borders, "does not agree .* is off by"),
                                               (no_number, "does not agree .* nan"),
                                               (breaks, "RuntimeError: no kernel image"), (None, "cannot be imported")])
def test_a_kernel_that_does_not_agree_is_told_and_left(install, kernel, found):
    install(kernel)
    inputs, seq_idx = problem(50, dtype=torch.float32), numbers([20, 30])
    with pytest.warns(UserWarning, match=found):
        y = scan(*inputs, seq_idx)
    assert torch.equal(y, scan_chunked(*inputs, seq_idx))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        scan(*inputs, seq_idx)


def test_the_check_draws_no_random_numbers_of_the_run(install):
    install(honest)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert module.choose_kernel(torch.device("cpu"), torch.float32, 4, 4) is honest
    assert torch.equal(torch.get_rng_state(), before)


def test_the_check_works_where_gradients_are_off(install):
    install(honest)
    with torch.inference_mode():
        assert module.choose_kernel(torch.device("cpu"), torch.float32, 5, 4) is honest


def test_float64_and_the_cpu_never_ask(install, monkeypatch):
    install(breaks)
    assert module.choose_kernel(torch.device("cpu"), torch.float64, 4, 4) is None
    monkeypatch.setattr(module, "KERNEL_DEVICES", ("cuda",))
    assert module.choose_kernel(torch.device("cpu"), torch.float32, 4, 4) is None


def test_nothing_installed_is_no_news(monkeypatch):
    module._checked_kernel.cache_clear()
    monkeypatch.setattr(module, "KERNEL_DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(sys, "path", [])
    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.choose_kernel(torch.device("cpu"), torch.float32, 4, 4) is None
    module._checked_kernel.cache_clear()


# --- the benchmark ----------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_benchmark(tmp_path):
    """It runs and prints ratios, at settings so small that the figures mean nothing; none is asserted."""
    words = "--rows 1 --steps 60 --heads 2 --headdim 8 --state 4 --repeats 1 --threads 1 --json out.json"
    done = subprocess.run([sys.executable, str(ROOT / "code" / "benchmarks" / "scan.py"), *words.split()], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"([\d.]+) x  \(rounds", done.stdout)) == 2
    assert "kept for backward" in done.stdout and "mamba-ssm" in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["way"] for row in written["results"]["scan"]] == ["loop", "chunked"] * 2
    assert set(written["kept_bytes"]) == {"loop", "chunked"} and min(written["kept_bytes"].values()) > 0
