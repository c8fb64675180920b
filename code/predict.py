"""Name the sign in any video file, or folder of frames.

    python predict.py S3D asl100 4 my_video.mp4            the likeliest glosses with their probabilities
    python predict.py --checkpoint best.pth a.mp4 b.mp4 --json
    python predict.py S3D demo 1 frames/ -k 3 --first 10 --last 60
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slr import errors
from slr.catalogue import MODELS
from slr.errors import Mistake
from slr.trained import find_trained, rebuild

ADVICE = "try --device cpu, or a checkpoint that takes fewer or smaller frames"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] MODEL SPLIT EXP_NO VIDEO [VIDEO ...]\n"
              "       %(prog)s [options] --checkpoint FILE VIDEO [VIDEO ...]")
    add = parser.add_argument
    add("words", nargs="+", metavar="MODEL SPLIT EXP_NO VIDEO", help=f"MODEL is one of {', '.join(MODELS)}")
    add("--checkpoint", type=Path, metavar="FILE", help="instead of MODEL SPLIT EXP_NO")
    add("-k", "--top", type=int, default=5, metavar="K", help="how many glosses (default 5)")
    add("--first", type=int, default=1, metavar="N", help="first frame of the sign, counted from 1")
    add("--last", type=int, metavar="N", help="last frame of the sign (default: the video's last)")
    add("--box", type=int, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="where the signer is (default: the frame)")
    add("--json", action="store_true", help="one JSON list instead of a table")
    add("--device", default="auto", help="cpu, cuda or cuda:N")
    args = parser.parse_args(words)
    own = 0 if args.checkpoint else 3
    if len(args.words) <= own:
        parser.error("give MODEL SPLIT EXP_NO and at least one VIDEO, or --checkpoint FILE and a VIDEO")
    args.experiment, args.videos = args.words[:own], [Path(word) for word in args.words[own:]]
    return args


def read_clip(video: Path, args: argparse.Namespace, task: Any) -> Any:
    """(T, S, S, 3) uint8: the video's frames as a test clip has them."""
    from slr.transforms import center_box, crop_resize
    from slr.video import probe, read_frames, sample_indices

    data, info = task.config.data, probe(video)
    frames = info.frames
    first, last = args.first - 1, args.last or frames
    if not 0 <= first < last <= frames:
        raise Mistake("there are no such frames", f"{args.first} to {last} of {video}, which has {frames}",
                      "give --first and --last within the video")
    check_box(args.box, video, info.width, info.height)
    indices = first + sample_indices(last - first, data.num_frames)
    clip = read_frames(video, indices, tuple(args.box) if args.box else None)
    height, width = clip.shape[1:3]
    return crop_resize(clip, center_box(height, width, data.eval_resize), data.frame_size)


def check_box(box: Sequence[int] | None, video: Path, width: int, height: int) -> None:
    """Mistake where --box is no part of the video's frames; sizes in pixels."""
    if not box:
        return
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise Mistake("there is no such box", f"{x0} {y0} {x1} {y1} of {video}, which is {width} x {height}",
                      "give --box X0 Y0 X1 Y1 within the frame, X0 < X1 and Y0 < Y1")


def predict(task: Any, runtime: Any, clip: Any) -> list[tuple[str, float]]:
    """Every gloss with its probability, the likeliest first."""
    import torch

    from slr.transforms import no_draw

    batch = {"ids": ["clip"], "frames": torch.from_numpy(clip)[None], "draws": torch.from_numpy(no_draw())[None],
             "labels": torch.zeros(1, dtype=torch.long), "ghost": False}
    task.model.eval()
    with torch.no_grad():
        shares = task.model(task.prepare(batch, train=False)["inputs"]).double().softmax(1)[0]
    order = shares.argsort(descending=True, stable=True).tolist()
    return [(task.classes[k], float(shares[k])) for k in order]


def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    if args.top < 1:
        raise Mistake("-k is at least 1", str(args.top), "give -k 5")
    missing = [str(video) for video in args.videos if not video.exists()]
    if missing:
        raise Mistake("there is no such video", ", ".join(missing), "check the path")
    answers, code = answer(args)
    if args.json:
        json.dump(answers, sys.stdout, indent=1, ensure_ascii=False)
        print()
    return code


def answer(args: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """The glosses of every video that can be read, printed as they come (but with --json), and the exit code."""
    from slr.engine import memory_explained

    model, split, exp_no = args.experiment or (None, None, None)
    trained = find_trained(model, split, exp_no, args.checkpoint)
    if trained.config.experiment.task != "isolated":
        raise Mistake("this model does not name single signs", f"its task is {trained.config.experiment.task}",
                      "give one of isolated signs")
    with memory_explained(ADVICE):
        task, runtime = rebuild(trained, args.device, seed=42)
    answers, code = [], errors.DONE
    for video in args.videos:
        try:
            with memory_explained(ADVICE):
                found = predict(task, runtime, read_clip(video, args, task))[:args.top]
        except Mistake as error:  # one bad video does not cost the others' answers
            print(f"error: {error}", file=sys.stderr)
            code = max(code, error.code)
            continue
        answers.append({"video": str(video), "glosses": [{"gloss": g, "probability": round(p, 6)} for g, p in found]})
        if not args.json:
            print(f"{video}")
            print("\n".join(f"  {100 * p:5.1f} %  {gloss}" for gloss, p in found))
    return answers, code


if __name__ == "__main__":
    errors.run(main)
