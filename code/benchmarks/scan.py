"""The selective scan in chunks against the plain loop, and against mamba-ssm's kernel where that imports.

    python code/benchmarks/scan.py                              400 steps in 3 sequences, 16 heads of 64, state 32, CPU
    python code/benchmarks/scan.py --rows 1 --threads 1
    python code/benchmarks/scan.py --device cuda --rows 197 --heads 8 --dtype bf16      MambaSLR's own, on a GPU

A row is one of the tokens that share their sequences. `kept` is what a form holds between forward and backward pass,
its inputs aside.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timing
from loader import settle
from timing import Row, Side, Ways

from slr import errors

FLOOR = 2.0
SIZES = ("rows", "steps", "heads", "headdim", "state", "groups", "dtype", "device", "threads")


def main() -> None:
    args = parse()
    facts = timing.facts(args)
    print(f"scan: {args.rows} rows of {args.steps} steps, {args.heads} heads of {args.headdim}, state {args.state}, "
          f"{args.dtype}, {timing.conditions(args)}")
    rows, facts["kept_bytes"] = compare(args)
    timing.write(args.json, facts, {"scan": rows})


def parse() -> argparse.Namespace:
    import torch

    parser = argparse.ArgumentParser(description="the selective scan in chunks against the plain loop")
    timing.add_arguments(parser, repeats=5)
    add = parser.add_argument
    add("--rows", type=int, default=8, help="tokens that share their sequences (default 8)")
    add("--steps", type=int, default=400, help="of all sequences (default 400)")
    add("--heads", type=int, default=16)
    add("--headdim", type=int, default=64)
    add("--state", type=int, default=32)
    add("--groups", type=int, default=2, help="of heads that share B and C (default 2)")
    add("--dtype", choices=("fp32", "bf16"), default="fp32")
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU (default: one a core)")
    return parser.parse_args()


def forms(device: str) -> dict[str, str]:
    """{label: function of slr.models.scan}; mamba-ssm's only where it imports and runs."""
    found = {"loop": "scan_loop", "chunked": "scan_chunked"}
    if not device.startswith("cuda"):
        print("  mamba-ssm: its kernels need a GPU")
        return found
    try:
        import mamba_ssm  # noqa: F401
    except ImportError as error:
        print(f"  mamba-ssm: {error}")
        return found
    return {**found, "mamba-ssm": "scan"}


def side(*, form: str, rows: int, steps: int, heads: int, headdim: int, state: int, groups: int, dtype: str,
         device: str, threads: int) -> Ways:
    """`forward`, `forward + backward`: steps done; `kept`: bytes."""
    import torch

    from slr.models import scan
    from slr.runtime import DTYPES, Runtime

    Runtime.start(device)  # with the allocator that a run has
    torch.set_num_threads(threads)
    inputs, seq_idx = problem(rows, steps, heads, headdim, state, groups, DTYPES[dtype], device)
    if form == "scan" and not scan.choose_kernel(inputs[0].device, inputs[0].dtype, headdim, state):
        raise SystemExit("mamba-ssm's kernel is there, and is not used: see the warning above")
    run = partial(getattr(scan, form), *inputs, seq_idx)

    def forward() -> float:
        with torch.no_grad():
            run()
        settle(device)
        return rows * steps

    def both() -> float:
        torch.autograd.grad(run().float().square().mean(), inputs)
        settle(device)
        return rows * steps

    return {"forward": forward, "forward + backward": both, "kept": partial(kept, run, inputs)}


def problem(rows: int, steps: int, heads: int, headdim: int, state: int, groups: int, dtype: Any,
            device: str) -> tuple[list[Any], Any]:
    """x, dt, A, B, C and D as a fresh model has them, and the sequences: 3, not of one length."""
    import torch

    torch.manual_seed(0)
    x, B, C = (torch.randn(rows, steps, *shape) for shape in ((heads, headdim), (groups, state), (groups, state)))
    dt = torch.exp(torch.empty(rows, steps, heads).uniform_(-7, -2))
    A, D = -torch.empty(heads).uniform_(1, 16), torch.ones(heads)
    x, B, C = (each.to(dtype) for each in (x, B, C))
    inputs = [each.to(device).requires_grad_() for each in (x, dt, A, B, C, D)]
    borders = torch.tensor([steps // 7, steps // 2], device=device)
    return inputs, torch.bucketize(torch.arange(steps, device=device), borders, right=True)


def kept(run: Callable[[], Any], inputs: list[Any]) -> float:
    """Bytes that a forward pass leaves for the backward pass, each piece of memory once, the inputs' not at all."""
    from torch.autograd.graph import saved_tensors_hooks

    sizes: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        y = run()  # as long as y lives, so does what was saved: no address is used twice
    for each in inputs:
        sizes.pop(each.untyped_storage().data_ptr(), None)
    del y
    return float(sum(sizes.values()))


def compare(args: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    settings = {key: getattr(args, key) for key in SIZES}
    sides = {label: Side(side, form=form, **settings) for label, form in forms(args.device).items()}
    rows: list[Row] = []
    for part in ("forward", "forward + backward"):
        found = timing.measure({label: (each, part) for label, each in sides.items()}, part, args.repeats, args.clock)
        for label, row in found.items():
            if label != "loop":
                row.compare(found["loop"], FLOOR)
        timing.show(list(found.values()), "steps/s")
        rows += found.values()
    held = {label: each.run("kept")[0] for label, each in sides.items()}
    for label, amount in held.items():
        print(f"  {'kept for backward':<22} {label:<22} {amount / 2**20:9.1f} MiB      {amount / held['loop']:6.3f} "
              "of the loop's")
    for each in sides.values():
        each.__exit__()
    return rows, held


if __name__ == "__main__":
    errors.run(main)
