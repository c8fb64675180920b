"""The selective scan of Mamba-2: a linear recurrence whose decay depends on the input, over packed sequences.

    y = scan(x, dt, A, B, C, D, seq_idx)          # mamba-ssm's kernel where there is one that agrees, else chunks

For every head h, with g the group it belongs to:

    H_t = r_t exp(dt_t A_h) H_{t-1} + dt_t x_t B_{t,g}        y_t = C_{t,g} H_t + D_h x_t

where r_t is 0 at the first step of a sequence and else 1. Dao and Gu, Transformers are SSMs (2024),
https://arxiv.org/abs/2405.21060: the loop is its equation 1 with a scalar decay, the chunks are its section 6.

Shapes: x (N, L, H, P); dt (N, L, H), positive; A (H,), negative; B and C (N, L, G, M), G divides H; D (H,);
seq_idx (L,), a sequence starts wherever it changes (None: one sequence); y (N, L, H, P), of x's type. N are rows that
share their sequences, L steps, H heads, P channels of a head, M the state. With `reverse` time runs the other way.
"""

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 64  # at most; 400 steps become 7 chunks of 58, 197 become 4 of 50
KERNEL_CHUNK = 128  # of mamba-ssm: a power of two
KERNEL_DEVICES = ("cuda",)
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def segments(seq_idx: Tensor) -> Tensor:
    """(L,) -> (L,) int64: 0 for the steps of the first sequence, 1 for the next: goes up wherever seq_idx changes."""
    return pad((seq_idx[1:] != seq_idx[:-1]).long().cumsum(0), (1, 0))


def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, seq_idx: Tensor | None = None, *,
         reverse: bool = False) -> Tensor:
    """See the head of this file. Differentiable in the first six."""
    kernel = choose_kernel(x.device, x.dtype, x.shape[3], B.shape[3])
    if kernel is None:
        return scan_chunked(x, dt, A, B, C, D, seq_idx, reverse=reverse)
    return _run_kernel(kernel, x, dt, A, B, C, D, seq_idx, reverse=reverse)


# --- the reference ----------------------------------------------------------------------------------------------

def scan_loop(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, seq_idx: Tensor | None = None, *,
              reverse: bool = False) -> Tensor:
    """The recurrence as it is written, one step after the other: in float64 what the other forms are measured by."""
    rows, length, heads, width = x.shape
    B, C = (each.repeat_interleave(heads // each.shape[2], dim=2) for each in (B, C))
    numbers = [0] * length if seq_idx is None else seq_idx.tolist()
    steps = list(zip(numbers, *(each.unbind(1) for each in ((dt * A).exp(), x * dt[..., None], B, C)), strict=True))
    state, before = x.new_zeros(rows, heads, width, B.shape[3]), None
    outputs: list[Tensor] = []
    for number, decay, driven, b, c in steps[::-1] if reverse else steps:
        if number != before:  # r_t = 0
            state, before = torch.zeros_like(state), number
        state = state * decay[:, :, None, None] + driven[..., None] * b[:, :, None]
        outputs.append((state @ c[..., None]).squeeze(-1))
    return torch.stack(outputs[::-1] if reverse else outputs, dim=1) + x * D[:, None]


# --- chunks -----------------------------------------------------------------------------------------------------

def scan_chunked(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, seq_idx: Tensor | None = None, *,
                 reverse: bool = False, chunk: int = CHUNK) -> Tensor:
    """The same in matrix products over chunks of at most `chunk` steps, all of one length.

    Decays are summed and exponentiated in float32 or wider, whatever autocast says; the products have x's type.
    """
    if reverse:
        x, dt, B, C = (each.flip(1) for each in (x, dt, B, C))
        seq_idx = None if seq_idx is None else seq_idx.flip(0)
        return scan_chunked(x, dt, A, B, C, D, seq_idx, chunk=chunk).flip(1)
    with torch.autocast(x.device.type, enabled=False):
        return _scan_chunked(x, dt, A, B, C, D, seq_idx, chunk)


def _scan_chunked(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, seq_idx: Tensor | None,
                  chunk: int) -> Tensor:
    length, groups = x.shape[1], B.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    size = -(-length // -(-length // chunk))  # all chunks alike, so that little is padded
    if x.is_cuda:
        size = -(-size // 8) * 8  # tensor cores want it
    count = -(-length // size)
    numbers = torch.zeros(length, device=x.device) if seq_idx is None else segments(seq_idx)
    numbers = _cut(numbers[None], count, size)[0]
    dt = dt.to(wide)
    sums = _cut(dt * A.to(wide), count, size).transpose(2, 3).cumsum(3)  # (N, c, H, Q)
    driven = _cut((x * dt[..., None]).to(x.dtype), count, size).unflatten(3, (groups, -1))
    driven = driven.permute(0, 1, 3, 4, 2, 5).contiguous()  # (N, c, G, H/G, Q, P)
    B, C = (_cut(each.to(x.dtype), count, size).transpose(2, 3) for each in (B, C))  # (N, c, G, Q, M)
    y = _within(driven, sums, B, C, numbers)
    if count > 1:
        y[:, 1:] += _across(driven, sums, B, C, numbers)
    y = y.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)[:, :length].flatten(2, 3)
    return (y + x * D.to(wide)[:, None]).to(x.dtype)


def _cut(steps: Tensor, count: int, size: int) -> Tensor:
    """(N, L, ...) -> (N, count, size, ...), zeros behind the end: with dt = 0 they leave the state as it is."""
    missing = count * size - steps.shape[1]
    if missing:
        steps = pad(steps, (0, 0) * (steps.dim() - 2) + (0, missing))
    return steps.unflatten(1, (count, size))


def _within(driven: Tensor, sums: Tensor, B: Tensor, C: Tensor, numbers: Tensor) -> Tensor:
    """(N, c, G, H/G, Q, P): what each step gets from its own chunk, itself included.

    The mask comes before exp: above the diagonal the gaps are positive, and 0 x exp(large) is no number.
    """
    seen = (numbers[:, :, None] == numbers[:, None, :]).tril()
    gaps = sums[..., :, None] - sums[..., None, :]
    decay = gaps.masked_fill_(~seen[:, None], -torch.inf).exp_().unflatten(2, (B.shape[2], -1))
    scores = C @ B.transpose(3, 4)
    return (decay * scores[:, :, :, None]).to(driven.dtype) @ driven


def _across(driven: Tensor, sums: Tensor, B: Tensor, C: Tensor, numbers: Tensor) -> Tensor:
    """(N, c - 1, G, H/G, Q, P): what each step from the second chunk on gets from the chunks before its own."""
    ends, last = sums[..., -1:], numbers[:, -1:]
    left = _decay((ends - sums)[:, :-1], numbers[:-1] == last[:-1], B)  # of a step, at the end of its chunk
    whole = _decay(ends[:, 1:], last[1:] == last[:-1], B)  # of a state that passes a chunk
    come = _decay(sums[:, 1:], numbers[1:] == last[:-1], B)  # of the state before a chunk, at a step
    given = (B[:, :-1, :, None] * left).to(B.dtype)  # heads weigh B and C, which are narrower than x
    local = (given.transpose(4, 5) @ driven[:, :-1]).to(sums.dtype)  # (N, c - 1, G, H/G, M, P)
    states = [local[:, 0]]
    for i in range(1, local.shape[1]):
        states.append(states[-1] * whole[:, i - 1] + local[:, i])
    return (C[:, 1:, :, None] * come).to(C.dtype) @ torch.stack(states, dim=1).to(C.dtype)


def _decay(sums: Tensor, seen: Tensor, B: Tensor) -> Tensor:
    """exp of sums (N, c, H, Q), 0 where not seen (c, Q) -> (N, c, G, H/G, Q, 1)."""
    return sums.masked_fill(~seen[:, None], -torch.inf).exp().unflatten(2, (B.shape[2], -1))[..., None]


# --- mamba-ssm --------------------------------------------------------------------------------------------------

Kernel = Callable[..., Tensor]


@torch.compiler.assume_constant_result
def choose_kernel(device: torch.device, dtype: torch.dtype, width: int, state: int) -> Kernel | None:
    """mamba-ssm's scan for such tensors, if it is installed and its check agrees; else None.

    The check runs once for each device, type and shape of a head. A kernel that is there and cannot be used warns.
    """
    if device.type not in KERNEL_DEVICES or dtype not in KERNEL_TYPES:
        return None
    return _checked_kernel(device, dtype, width, state, torch.get_float32_matmul_precision())


@cache
def _checked_kernel(device: torch.device, dtype: torch.dtype, width: int, state: int, precision: str) -> Kernel | None:
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined as kernel
    except ImportError as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == "mamba_ssm"):
            warnings.warn(f"mamba-ssm cannot be imported, the scan runs in chunks: {error}", stacklevel=2)
        return None
    try:
        worst, which = kernel_error(kernel, device, dtype, width, state)
    except Exception as error:  # whatever a foreign kernel dies of, there is a form that works
        warnings.warn(f"mamba-ssm's scan fails, it runs in chunks: {type(error).__name__}: {error}", stacklevel=2)
        return None
    # bf16 and fp16 have 8 and 11 bits, TF32 has 11: a kernel that forgets a boundary is wrong by tenths.
    allowed = 3e-2 if dtype != torch.float32 else 1e-4 if precision == "highest" else 5e-3
    if not worst <= allowed:
        warnings.warn(f"mamba-ssm's scan does not agree with the reference, it runs in chunks: {which} is off by "
                      f"{worst:.1e} of its norm, more than {allowed:g}", stacklevel=2)
        return None
    return kernel


def kernel_error(kernel: Kernel, device: torch.device, dtype: torch.dtype, width: int,
                 state: int) -> tuple[float, str]:
    """How far `kernel` is from the loop in float64 on a small ragged problem, in either direction.

    The largest of |theirs - ours| / |ours| over the values and the six gradients, and which it was.
    """
    found = []
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for reverse in (False, True):
            *inputs, weight, seq_idx = _problem(device, dtype, width, state)
            theirs = _outcome(partial(_run_kernel, kernel), inputs, weight, seq_idx, reverse)
            ours = _outcome(scan_loop, [each.double() for each in inputs], weight.double(), seq_idx, reverse)
            found += [(float((a.double() - b).norm() / b.norm()), name)
                      for name, a, b in zip(("y", "dx", "ddt", "dA", "dB", "dC", "dD"), theirs, ours, strict=True)]
    return max(found, key=lambda pair: pair[0] if pair[0] == pair[0] else torch.inf)  # NaN is the worst


def _outcome(run: Callable[..., Tensor], inputs: list[Tensor], weight: Tensor, seq_idx: Tensor,
             reverse: bool) -> list[Tensor]:
    leaves = [each.detach().requires_grad_() for each in inputs]
    y = run(*leaves, seq_idx, reverse=reverse)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


def _problem(device: torch.device, dtype: torch.dtype, width: int, state: int) -> list[Tensor]:
    """x, dt, A, B, C, D, a weight of every output, seq_idx: 300 steps in 5 sequences, some longer than a chunk.

    Drawn on the CPU by a generator of its own: a run goes on with the random numbers that it would have had.
    """
    draw = torch.Generator().manual_seed(0)
    rows, length, heads, groups = 2, 300, 4, 2
    x, weight = (torch.randn(rows, length, heads, width, generator=draw) for _ in range(2))
    B, C = (torch.randn(rows, length, groups, state, generator=draw) for _ in range(2))
    dt = torch.rand(rows, length, heads, generator=draw) * 0.1
    A, D = -(1 + 3 * torch.rand(heads, generator=draw)), torch.rand(heads, generator=draw)
    seq_idx = torch.arange(5).repeat_interleave(torch.tensor([1, 66, 3, 135, 95]))
    x, weight, B, C = (each.to(device, dtype) for each in (x, weight, B, C))
    return [x, dt.to(device), A.to(device), B, C, D.to(device), weight, seq_idx.to(device)]


def _run_kernel(kernel: Kernel, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                seq_idx: Tensor | None, *, reverse: bool) -> Tensor:
    """mamba-ssm's chunked scan with our arguments: it knows one direction, and int32 numbers of sequences a row."""
    given: dict[str, Any] = {"D": D.float()}
    if reverse:
        x, dt, B, C = (each.flip(1) for each in (x, dt, B, C))
    if seq_idx is not None:
        numbers = segments(seq_idx.flip(0) if reverse else seq_idx).int()
        given["seq_idx"] = numbers.expand(len(x), -1).contiguous()
    y = kernel(x, dt.float(), A.float(), B.to(x.dtype), C.to(x.dtype), KERNEL_CHUNK, **given)
    return y.flip(1) if reverse else y
