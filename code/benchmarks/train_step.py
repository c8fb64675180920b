"""A training step and inference against the old program's way, in one run.

    python code/benchmarks/train_step.py                          S3D at 16 x 112, batches of 8, on the CPU
    python code/benchmarks/train_step.py --models S3D R3D_18 MViTv2_S
    python code/benchmarks/train_step.py --device cuda            32 x 224, batches of 32; and how steps wait for data

The old way: the same network in fp32 and the default layout, AdamW. Ours: what config, catalogue and engine choose on
the device: channels_last_3d where it helps, bf16 on a GPU, the engine's own step; inference in bf16. Both get batches
that lie ready on the device.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timing
from loader import draw, settle, stored_size, write_stores
from timing import Row, Side, Ways

from slr import errors
from slr.catalogue import builder_of, canonical

CLASSES = 100
FLOORS = {("train", "cpu"): 1.25, ("train", "cuda"): 3.0, ("inference", "cpu"): 3.0}
WAITS = 0.05  # of a step, at most, on a GPU


def main() -> None:
    args = parse()
    facts = timing.facts(args)
    print(f"train_step: {args.frames} frames of {args.size}, batches of {args.batch}, {timing.conditions(args)}")
    results = {name: compare(name, args) for name in map(canonical, args.models)}
    if args.wait or args.device != "cpu":
        facts["wait"] = {name: wait(name, args) for name in results}
    timing.write(args.json, facts, results)


def parse() -> argparse.Namespace:
    import torch

    parser = argparse.ArgumentParser(description="training step and inference against the old program's way")
    timing.add_arguments(parser, repeats=7)
    add = parser.add_argument
    add("--models", nargs="+", default=["S3D"], metavar="MODEL")
    add("--frames", type=int, help="of a clip (default 16, on a GPU 32)")
    add("--size", type=int, help="pixels (default 112, on a GPU 224)")
    add("--batch", type=int, help="clips (default 8, on a GPU 32)")
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU (default: one a core)")
    add("--steps", type=int, default=1, help="that one run consists of")
    add("--wait", action="store_true", help="measure how long steps wait for data (on a GPU always)")
    add("--workers", type=int, default=8, help="loader processes for that")
    add("--clips", type=int, default=64, help="drawn clips for that, stored as JPEG")
    args = parser.parse_args()
    for name, small, large in (("frames", 16, 32), ("size", 112, 224), ("batch", 8, 32)):
        if getattr(args, name) is None:
            setattr(args, name, small if args.device == "cpu" else large)
    return args


# --- the old program's way --------------------------------------------------------------------------------------

def old_side(*, model: str, frames: int, size: int, batch: int, device: str, threads: int, steps: int) -> Ways:
    """`train`: a step of AdamW; `inference`: a forward pass. fp32, default layout."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = builder_of(model)(CLASSES, frames=frames, size=size, drop_p=0.5).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    inputs = torch.randn(batch, 3, frames, size, size, device=device)
    labels = torch.arange(batch, device=device) % CLASSES

    def train() -> float:
        net.train()
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(net(inputs), labels).backward()
            optimizer.step()
        settle(device)
        return batch * steps

    @torch.no_grad()
    def inference() -> float:
        net.eval()
        for _ in range(steps):
            net(inputs)
        settle(device)
        return batch * steps

    return {"train": train, "inference": inference}


# --- ours -------------------------------------------------------------------------------------------------------

def our_training(model: str, frames: int, size: int, batch: int, device: str, threads: int) -> tuple[Any, Any]:
    """The isolated task and the engine's Fit of it, as training.py makes them from a five-section .ini."""
    import torch

    from slr import engine
    from slr.config import parse_config
    from slr.paths import Experiment
    from slr.runtime import Runtime
    from slr.tasks.isolated import Isolated

    text = (f"[training]\nbatch_size = {batch}\nupdate_per_step = 1\nmax_epoch = 1\n[optimizer]\neps = 1e-8\n"
            "backbone_init_lr = 1e-4\nbackbone_weight_decay = 1e-2\nclassifier_init_lr = 1e-4\n"
            "classifier_weight_decay = 1e-2\n[model_params]\ndrop_p = 0.5\npretrained = False\n"
            f"[data]\nnum_frames = {frames}\nframe_size = {size}\n")
    torch.set_num_threads(threads)
    config, runtime = parse_config(text, Experiment(model, "benchmark", "0")), Runtime.start(device)
    task = Isolated.build(config, runtime, {"classes": [str(i) for i in range(CLASSES)]})
    training = engine.start(task, engine.FitPlan(epochs=1, dtype=runtime.precision(config.training.precision)), runtime)
    return task, training


def our_side(*, model: str, frames: int, size: int, batch: int, device: str, threads: int, steps: int) -> Ways:
    """`train`: the engine's step; `inference`: a forward pass in bf16, `inference fp32`: in fp32."""
    import numpy as np
    import torch

    from slr import engine
    from slr.transforms import no_draw

    task, training = our_training(model, frames, size, batch, device, threads)
    given = {"ids": [str(i) for i in range(batch)], "labels": torch.arange(batch) % CLASSES, "ghost": False,
             "frames": torch.randint(0, 256, (batch, frames, size, size, 3), dtype=torch.uint8),
             "draws": torch.tensor(np.stack([no_draw()] * batch))}
    ready = task.prepare(given, train=True)
    task.prepare = lambda batch, train: batch  # it lies ready on the device, as the old side's does

    def train() -> float:
        training.model.train()
        for _ in range(steps):
            engine.optimise(training, [ready], [batch])
        settle(device)
        return batch * steps

    @torch.no_grad()
    def inference(dtype: torch.dtype) -> float:
        training.model.eval()
        for _ in range(steps):
            with training.runtime.autocast(dtype):
                task.forward(training.model, ready)
        settle(device)
        return batch * steps

    return {"train": train, "inference": partial(inference, torch.bfloat16),
            "inference fp32": partial(inference, torch.float32)}


# --- side by side -----------------------------------------------------------------------------------------------

def compare(name: str, args: argparse.Namespace) -> list[Row]:
    """Training, then inference, in each the old way and ours in turn. The floors are S3D's."""
    print(f"\n{name}")
    settings = {key: getattr(args, key) for key in ("frames", "size", "batch", "device", "threads", "steps")}
    rows: list[Row] = []
    kind = args.device.split(":")[0]
    with Side(old_side, model=name, **settings) as old, Side(our_side, model=name, **settings) as ours:
        for part in ("train", "inference"):
            ways = {"old": (old, part)} | {way: (ours, way) for way in ours.ways if way.split()[0] == part}
            found = timing.measure(ways, part, args.repeats, args.clock)
            for way, row in found.items():
                if way != "old":
                    row.way = {"train": "ours", "inference": "ours, bf16", "inference fp32": "ours, fp32"}[way]
                    row.compare(found["old"], FLOORS.get((way, kind)) if name == "S3D" else None)
            timing.show(list(found.values()))
            rows += found.values()
    return rows


def wait(name: str, args: argparse.Namespace) -> dict[str, float]:
    """The share of a step that is spent waiting for the loader: JPEG store, our training's augmentation."""
    with tempfile.TemporaryDirectory(prefix="train-step-benchmark-") as folder:
        clips = [draw(Path(folder), i, 64, stored_size(args.size)) for i in range(args.clips)]
        write_stores(Path(folder), clips, Path(folder) / "stores", stored_size(args.size))
        with Side(waiting_side, model=name, folder=Path(folder), clips=clips, workers=args.workers, frames=args.frames,
                  size=args.size, batch=args.batch, device=args.device, threads=args.threads) as side:
            shares = [side.run("wait")[0] for _ in range(args.repeats + 1)][1:]
    share = sorted(shares)[len(shares) // 2]
    verdict = f"   at most {WAITS:.0%}: {'reached' if share <= WAITS else 'MISSED'}" if args.device != "cpu" else ""
    print(f"  {name}: {share:.1%} of a step is spent waiting for the loader ({args.workers} workers, JPEG store)"
          f"{verdict}")
    return {"share": share, "least": min(shares), "most": max(shares)}


def waiting_side(*, model: str, folder: Path, clips: list[Any], workers: int, frames: int, size: int, batch: int,
                 device: str, threads: int) -> Ways:
    """`wait`: an epoch of the engine's steps behind the real loader; returns the waiting share."""
    from slr import engine
    from slr.config import DataSection
    from slr.datasets.clips import ClipDataset
    from slr.loading import EpochBatches, build_loader
    from slr.transforms import Augment
    from slr.video import open_source

    _, training = our_training(model, frames, size, batch, device, threads)
    keys = DataSection(num_frames=frames, frame_size=size)
    data = ClipDataset(clips * 8, open_source("jpeg", folder, folder / "stores" / "jpeg", "box"), num_frames=frames,
                       frame_size=size, augment=Augment(keys.min_scale, keys.max_aspect, jitter=keys.jitter),
                       jitter_frames=True)
    batches = EpochBatches(len(data), batch, shuffle=True, seed=0)
    loader = build_loader(data, batches, workers=workers, prefetch=keys.prefetch, pin_memory=device != "cpu")

    def epoch() -> float:
        """The first step of an epoch fills the workers' queues and does not count."""
        training.model.train()
        batches.start(batches.epoch + 1)
        ahead, waited, begun = iter(loader), 0.0, 0.0
        for number, size_here in enumerate(batches.sizes()):
            asked = time.perf_counter()
            found = next(ahead)
            waited += time.perf_counter() - asked if number else 0.0
            engine.optimise(training, [found], [size_here])
            settle(device)
            begun = begun or time.perf_counter()
        return waited / (time.perf_counter() - begun)

    return {"wait": epoch}


if __name__ == "__main__":
    errors.run(main)
