"""Transcription's two short cuts against the obvious ways: DINOv2's features read back from the disk against seeing the
frames anew, and a decoder that keeps its keys and values against one that reads the whole sentence for every word.

    python code/benchmarks/transcription.py                            16 frames of 224, DINOv2 of full size, CPU
    python code/benchmarks/transcription.py --frames 100 --device cuda
    python code/benchmarks/transcription.py --layers 1 --width 192 --heads 3

Weights are untrained, frames are noise: neither changes the time.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timing
from loader import settle
from timing import Row, Side, Ways

from slr import errors

FLOOR = 2.0
SIZES = ("frames", "size", "width", "layers", "heads", "words", "beam", "device", "threads")


def main() -> None:
    args = parse()
    facts = timing.facts(args)
    print(f"transcription: {args.frames} frames of {args.size}, {args.words} words, {timing.conditions(args)}")
    timing.write(args.json, facts, {"transcription": compare(args)})


def parse() -> argparse.Namespace:
    import torch

    parser = argparse.ArgumentParser(description="kept features and kept keys against the obvious ways")
    timing.add_arguments(parser, repeats=3)
    add = parser.add_argument
    add("--frames", type=int, default=16, help="of a clip (default 16)")
    add("--size", type=int, default=224, help="pixels of a frame's side (default 224)")
    add("--width", type=int, default=768, help="of DINOv2 (default 768)")
    add("--layers", type=int, default=12)
    add("--heads", type=int, default=12)
    add("--words", type=int, default=20, help="of a sentence (default 20)")
    add("--beam", type=int, default=5, help="hypotheses (default 5)")
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU (default: one a core)")
    return parser.parse_args()


def side(*, frames: int, size: int, width: int, layers: int, heads: int, words: int, beam: int, device: str,
         threads: int) -> Ways:
    """`anew`, `kept`: frames; `whole sentence`, `kept keys`: words of one sentence."""
    import torch

    from slr.runtime import Runtime

    Runtime.start(device)  # with the allocator that a run has
    torch.set_num_threads(threads)
    return {**seeing(frames, size, width, layers, heads, device), **saying(frames, words, beam, device)}


def seeing(frames: int, size: int, width: int, layers: int, heads: int, device: str) -> Ways:
    import numpy as np
    import torch

    from slr.datasets.footage import SeenCache
    from slr.datasets.sentences import Sentence
    from slr.models.masked import Frames
    from slr.models.spatio_temporal import spatial_net

    eye = spatial_net(width=width, layers=layers, heads=heads).to(device)
    clip, valid = torch.randn(1, 3, frames, size, size, device=device), Frames(torch.tensor([frames]), frames,
                                                                               torch.device(device))
    cache, sentence = SeenCache(Path(tempfile.mkdtemp()), {}, Path()), Sentence("clip", "train", (), frames)
    cache.add(sentence, np.zeros((frames, width), np.float32))

    def anew() -> float:
        eye(clip, valid)
        settle(device)
        return frames

    def kept() -> float:
        torch.from_numpy(cache.read(sentence)).to(device)
        settle(device)
        return frames

    return {"anew": anew, "kept": kept}


def saying(frames: int, words: int, beam: int, device: str) -> Ways:
    import torch

    from slr import search
    from slr.models.language_decoder import LanguageDecoder

    torch.manual_seed(0)
    model = LanguageDecoder(1297).to(device).eval()
    vectors, lengths = torch.randn(1, frames, model.width, device=device), torch.tensor([frames])

    class Whole:
        """The same decoder, which reads the whole sentence for every word."""

        def __init__(self) -> None:
            self.tokens = torch.zeros(1, 0, dtype=torch.long, device=device)

        def step(self, tokens: Any) -> Any:
            self.tokens = torch.cat([self.tokens, tokens[:, None]], 1)
            rows = len(self.tokens)
            return model(vectors.expand(rows, -1, -1), lengths.expand(rows), self.tokens)[:, -1].log_softmax(1)

        def select(self, rows: Any) -> None:
            self.tokens = self.tokens[rows]

    def say(decoder: Any) -> float:
        # The end is banned until the last word, so both ways say as many.
        with torch.no_grad():
            search.beam_search([decoder], 1, start=1, end=2, width=beam, max_length=words, length_penalty=50.0,
                               device=device)
        settle(device)
        return words

    return {"whole sentence": lambda: say(Whole()), "kept keys": lambda: say(model.decoder(vectors, lengths))}


def compare(args: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    with Side(side, **{key: getattr(args, key) for key in SIZES}) as own:
        for part, old, new in (("frames", "anew", "kept"), ("words", "whole sentence", "kept keys")):
            found = timing.measure({way: (own, way) for way in (old, new)}, part, args.repeats, args.clock)
            found[new].compare(found[old], FLOOR if part == "frames" else None)
            rows += found.values()
            timing.show(list(found.values()), f"{part}/s")
    return rows


if __name__ == "__main__":
    errors.run(main)
