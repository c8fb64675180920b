"""What pixels alone tell: the nearest training clip by pixels names each test clip. A figure to stand beside others.

    python code/benchmarks/nearest.py karsl30
    python code/benchmarks/nearest.py slovak_mit --size 24 --frames 16
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from slr import errors, paths
from slr.datasets import wlasl
from slr.metrics import topk
from slr.transforms import center_box, crop_resize
from slr.video import VideoFolder, sample_indices


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", metavar="SPLIT", help="a prepared split")
    parser.add_argument("--size", type=int, default=24, help="pixels of a side (default 24)")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip (default 16)")
    return parser.parse_args(words)


def pixels(clips: list[wlasl.Clip], source: VideoFolder, frames: int, size: int) -> np.ndarray:
    """(N, frames x size x size x 3) float: every clip's central square, shrunk."""
    rows = []
    for clip in clips:
        read = source.read(clip, sample_indices(source.length(clip), frames))
        box = center_box(read.shape[1], read.shape[2], 1.0)
        rows.append(crop_resize(read, box, size).astype(np.float64).ravel())
    return np.stack(rows)


def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    root = paths.data_root()
    source = VideoFolder(wlasl.videos_folder(root, args.split), "box")
    train, test = (wlasl.load_clips(root, args.split, part) for part in ("train", "test"))
    if not train or not test:
        raise errors.NothingToTrainOn(f"{args.split} has no clips to compare", f"{len(train)} train, {len(test)} test")
    known, asked = (pixels(clips, source, args.frames, args.size) for clips in (train, test))
    distance = (asked**2).sum(1)[:, None] - 2 * asked @ known.T + (known**2).sum(1)
    nearest = distance.argmin(axis=1)
    ranks = np.array([0 if train[i].label == clip.label else 1 for i, clip in zip(nearest.tolist(), test, strict=True)])
    labels = [clip.label for clip in test]
    low, high = topk.intervals(ranks, labels)["top_k_per_instance_acc"]["top1"]
    share = float((ranks == 0).mean())
    print(f"{args.split}: nearest neighbour on {args.size}x{args.size} pixels of {args.frames} frames: top-1 "
          f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {len(test)} clips")
    return 0


if __name__ == "__main__":
    errors.run(main)
