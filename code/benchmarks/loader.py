"""The loader and the device's transform against the old program's way, in one run.

    python code/benchmarks/loader.py                              one core against one core
    python code/benchmarks/loader.py --device cuda --workers 15   beside a GPU

The old way: OpenCV decodes the whole file, every `T // n`-th frame of it, the crop to the person's box, random crop
and flip, then float, normalisation and (C, T, H, W) a sample on the CPU (torchvision.transforms.v2), default layout.
Ours: ClipDataset reads the sampled frames from the video or the frame store and crops them in uint8, to_input makes
them floats on the device. Like for like, both cut --size out of 8/7 of it, flip one clip in two and stack batches.
`+ augmentation` is our training's default instead: frames drawn, random resized crop and colours, which the old way
never had; the floors are not judged by it.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import timing
from timing import Row, Side, Ways

from slr import errors, paths
from slr.catalogue import MODELS
from slr.config import DataSection
from slr.datasets.wlasl import Clip

FLOORS = {"jpeg": 4.0, "raw": 8.0}
STORES = ("video", "jpeg", "raw")
KINDS = {"drawn": "drawn clips (MPEG-4, which decodes twice as fast as the H.264 of real ones)",
         "small": "real clips of at most 320 x 240 (H.264, nearest to WLASL's usual 256 x 256 copies)",
         "real": "real clips of all sizes (H.264)"}


def main() -> None:
    args = parse()
    results: dict[str, list[Row]] = {}
    facts = timing.facts(args)
    print(f"loader: {args.frames} frames of {args.size}, batches of {args.batch}, {args.workers} workers, "
          f"{timing.conditions(args)}")
    with tempfile.TemporaryDirectory(prefix="loader-benchmark-") as folder:
        for name in KINDS if args.data == "all" else (args.data,):
            videos, clips = drawn(Path(folder), args) if name == "drawn" else real(args, small=name == "small")
            if clips:
                results[name] = compare(name, args, videos, clips, Path(folder) / f"{name}-stores")
    timing.write(args.json, facts, results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="loader and device transform against the old program's way")
    timing.add_arguments(parser, repeats=7)
    add = parser.add_argument
    add("--clips", type=int, default=16, help="how many of each kind")
    add("--length", type=int, default=64, help="frames of a drawn clip")
    add("--frames", type=int, default=32, help="frames of a sample")
    add("--size", type=int, default=224, help="their side in pixels; clips are stored 8/7 as large")
    add("--batch", type=int, default=8)
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=int, default=1, help="of every process, decoder and transform")
    add("--workers", type=int, default=0, help="loader processes; 0 loads in the measured process itself")
    add("--data", choices=("all", *KINDS), default="all",
        help="; ".join(f"{name}: {words}" for name, words in KINDS.items()))
    shared = Path(os.environ.get("SLR_SHARED") or paths.ROOT.parent / "shared")
    add("--real", type=Path, default=shared / "data" / "wlasl_real", help="folder of real WLASL clips")
    return parser.parse_args()


# --- clips ----------------------------------------------------------------------------------------------------

def drawn(folder: Path, args: argparse.Namespace) -> tuple[Path, list[Clip]]:
    """Clips of the synthetic signer, whole frames 8/7 of --size wide, as MPEG-4."""
    videos = folder / "drawn"
    videos.mkdir()
    size = stored_size(args.size)
    return videos, [draw(videos, index, args.length, size) for index in range(args.clips)]


def draw(videos: Path, index: int, length: int, size: int) -> Clip:
    """Write one clip; two signs each."""
    import cv2

    from slr.datasets.signer import make_scene, make_signer, render
    from slr.datasets.signs import inventory
    from slr.datasets.synthetic import sentence

    rng, signs = np.random.default_rng([1, index]), inventory(10)
    signer = make_signer(rng)
    scene = make_scene(signer, rng, size)
    motion = sentence([signs[index % 10], signs[(index + 3) % 10]], signer, rng, length)
    name = f"drawn{index:03d}"
    writer = cv2.VideoWriter(str(videos / f"{name}.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (size, size))
    for frame in render(signer, scene, motion.poses, motion.body):
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return Clip(name, "sign", index % 10, 0, length)


def real(args: argparse.Namespace, small: bool) -> tuple[Path, list[Clip]]:
    """Real WLASL clips, evenly out of the folder, with the boxes that fit their frames; `small`: no large ones."""
    file, videos = args.real / "WLASL_v0.3.subset.json", args.real / "videos"
    if not file.is_file():
        print(f"\nreal clips: skipped, {file} is not there")
        return videos, []
    from slr.datasets.wlasl_prepare import fit_box
    from slr.video import find_video, probe

    boxes = {i["video_id"]: i["bbox"] for entry in json.loads(file.read_text()) for i in entry["instances"]}
    stems = sorted(stem for stem in boxes if (videos / f"{stem}.mp4").is_file())
    stems = [stem for stem in stems if not small or pixels(videos / f"{stem}.mp4") <= 320 * 240]
    clips = []
    for stem in stems[::max(1, len(stems) // args.clips)][:args.clips]:
        info = probe(find_video(videos, stem))
        box, _ = fit_box(tuple(boxes[stem]), info.width, info.height)
        clips.append(Clip(stem, "sign", 0, 0, info.frames, box))
    return videos, clips


def pixels(video: Path) -> int:
    """Of a frame, by the header."""
    import cv2

    capture = cv2.VideoCapture(str(video))
    size = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    capture.release()
    return int(size)


def stored_size(size: int) -> int:
    """256 for frames of 224."""
    return round(size * 8 / 7)


def write_stores(videos: Path, clips: list[Clip], folder: Path, short_side: int) -> None:
    """Both frame stores, as preprocess.py --store writes them."""
    from slr.video import StoreSettings, StoreWriter, find_video, read_frames

    for kind in ("jpeg", "raw"):
        with StoreWriter(folder / kind, StoreSettings(kind, short_side=short_side)) as store:
            for clip in clips:
                frames = read_frames(find_video(videos, clip.stem), range(clip.stop or 0), clip.box, short_side)
                store.add(clip.id, frames, {})


# --- the old program's way --------------------------------------------------------------------------------------

def old_decode(file: Path, clip: Clip, frames: int, threads: int) -> np.ndarray:
    """uint8 (T, H, W, 3): the whole file decoded, every `T // frames`-th frame kept, cut to the box."""
    import cv2

    capture = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
    found = []
    while (read := capture.read())[0]:
        found.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    capture.release()
    taken = found[::max(1, len(found) // frames)][:frames]
    taken += [np.zeros_like(taken[0])] * (frames - len(taken))  # black, where the clip is too short
    x0, y0, x1, y1 = clip.box or (0, 0, *taken[0].shape[1::-1])
    return np.stack([frame[y0:y1, x0:x1] for frame in taken])


def old_steps(videos: Path, frames: int, size: int, threads: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(Clip -> uint8 sample (T, C, S, S), such a sample -> floats (C, T, S, S)), clip by clip as they are loaded."""
    import torch
    from torchvision.transforms import v2

    entry = MODELS["S3D"]
    resize, crop, flip = v2.Resize(stored_size(size)), v2.RandomCrop(size), v2.RandomHorizontalFlip()
    normalise = v2.Normalize(entry.mean, entry.std)

    def sample(clip: Clip) -> torch.Tensor:
        found = old_decode(videos / f"{clip.stem}.mp4", clip, frames, threads)
        pixels = torch.from_numpy(found).permute(0, 3, 1, 2)  # (T, C, H, W)
        if min(pixels.shape[2:]) != stored_size(size):
            pixels = resize(pixels)
        return flip(crop(pixels))

    def convert(pixels: torch.Tensor) -> torch.Tensor:
        return normalise(pixels.float() / 255).permute(1, 0, 2, 3)

    return sample, convert


class OldClips:
    """A map-style data set: (what `make` makes of a clip, its label)."""

    def __init__(self, clips: list[Clip], make: Callable[[Clip], Any]):
        self.clips, self.make = clips, make

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.make(self.clips[index]), self.clips[index].label


def old_side(*, videos: Path, clips: list[Clip], frames: int, size: int, batch: int, device: str, threads: int,
             workers: int) -> Ways:
    """`loader` (uint8 batches), `transform` (floats from uint8 samples), `together`."""
    import cv2
    import torch
    from torch.utils.data import DataLoader, default_collate

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    sample, convert = old_steps(videos, frames, size, threads)
    options: dict[str, Any] = {"batch_size": batch, "shuffle": True, "num_workers": workers,
                               "pin_memory": device != "cpu", "persistent_workers": workers > 0}
    plain = DataLoader(cast(Any, OldClips(clips, sample)), **options)
    whole = DataLoader(cast(Any, OldClips(clips, lambda clip: convert(sample(clip)))), **options)
    samples = [(sample(clip).contiguous(), clip.label) for clip in clips]

    def transform() -> Iterable[Any]:
        for first in range(0, len(samples), batch):
            yield default_collate([(convert(pixels), label) for pixels, label in samples[first:first + batch]])

    def run(batches: Callable[[], Iterable[Any]], to_device: bool) -> float:
        for inputs, _ in batches():
            if to_device:
                inputs.to(device, non_blocking=True)
        settle(device)
        return len(clips)

    return {"loader": partial(run, lambda: plain, False), "transform": partial(run, transform, True),
            "together": partial(run, lambda: whole, True)}


def settle(device: str) -> None:
    """Wait for the GPU."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


# --- ours -------------------------------------------------------------------------------------------------------

def our_side(*, videos: Path, clips: list[Clip], stores: Path, frames: int, size: int, batch: int, device: str,
             threads: int, workers: int) -> Ways:
    """`loader STORE` (uint8 batches), `transform` (floats from them), `together STORE`; these also `+ augmentation`."""
    import cv2
    import torch

    from slr.datasets.clips import ClipDataset
    from slr.loading import EpochBatches, build_loader
    from slr.runtime import Runtime
    from slr.transforms import Augment, to_input
    from slr.video import open_source

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    there, entry = Runtime.start(device).device, MODELS["S3D"]
    defaults = DataSection(num_frames=frames, frame_size=size)
    training = Augment(defaults.min_scale, defaults.max_aspect, hflip=0.5, jitter=defaults.jitter)

    def loader(store: str, augment: Augment | None) -> Any:
        source = open_source(store, videos, stores / store, "box")
        data = ClipDataset(clips, source, num_frames=frames, frame_size=size, eval_resize=8 / 7, augment=augment,
                           jitter_frames=True)
        return build_loader(data, EpochBatches(len(clips), batch, shuffle=True, seed=0), workers=workers,
                            prefetch=defaults.prefetch, pin_memory=device != "cpu")

    def run(batches: Any, augmented: bool, to_device: bool = True) -> float:
        if hasattr(batches, "batch_sampler"):
            batches.batch_sampler.start(batches.batch_sampler.epoch + 1)
        for part in batches:
            if not augmented:
                part["draws"][::2, 0] = 1  # one in two is flipped
            if to_device:
                to_input(part["frames"].to(there, non_blocking=True), part["draws"], entry.mean, entry.std)
        settle(device)
        return len(clips)

    ways: Ways = {}
    for store in STORES:
        ways[f"loader {store}"] = partial(run, loader(store, None), False, False)
        ways[f"together {store}"] = partial(run, loader(store, None), False)
        ways[f"together {store} + augmentation"] = partial(run, loader(store, training), True)
    ways["transform"] = partial(run, list(loader("raw", None)), False)
    ways["transform + augmentation"] = partial(run, list(loader("raw", training)), True)
    return ways


# --- side by side -----------------------------------------------------------------------------------------------

def compare(name: str, args: argparse.Namespace, videos: Path, clips: list[Clip], stores: Path) -> list[Row]:
    """The parts one after the other, in each the old way and ours in turn."""
    write_stores(videos, clips, stores, stored_size(args.size))
    lengths = [clip.stop or 0 for clip in clips]
    print(f"\n{KINDS[name]}: {len(clips)} of {min(lengths)} to {max(lengths)} frames, "
          f"stored at {stored_size(args.size)} pixels, files in the page cache")
    common = {"videos": videos, "clips": clips, "frames": args.frames, "size": args.size, "batch": args.batch,
              "device": args.device, "threads": args.threads, "workers": args.workers}
    rows: list[Row] = []
    with Side(old_side, **common) as old, Side(our_side, **common, stores=stores) as ours:
        for part in ("loader", "transform", "together"):
            ways = {"old": (old, part)} | {way: (ours, way) for way in ours.ways if way.split()[0] == part}
            found = timing.measure(ways, part, args.repeats, args.clock)
            for way, row in found.items():
                if way != "old":
                    row.way = way.removeprefix(part).strip() or "ours"
                    row.compare(found["old"], FLOORS.get(row.way) if part == "together" else None)
            timing.show(list(found.values()))
            rows += found.values()
    return rows


if __name__ == "__main__":
    errors.run(main)
