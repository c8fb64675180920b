"""What a SignTransformer says of any video, or folder of frames: a symbol for each head, and the glosses that fit them.

    reader = SymbolReader(task, runtime)
    reader.read(Path("sign.mp4"), 0, None)      # {"heads": {head: [(symbol, probability), …]}, "glosses": […]}

A model that looks at landmarks finds them beside the video, as `preprocess.py --landmarks` writes them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from slr.datasets import hearai
from slr.datasets.hearai_clips import padded
from slr.errors import Mistake
from slr.metrics import heads
from slr.runtime import Runtime
from slr.tasks import multihead_report
from slr.tasks.multihead import Multihead, looks_at_frames, pictures_of
from slr.transforms import no_draw
from slr.video import VideoInfo, probe, read_frames

Box = tuple[int, int, int, int]


class SymbolReader:
    """`box`: where the signer is, in pixels of the frame."""

    def __init__(self, task: Multihead, runtime: Runtime, box: Box | None = None):
        self.task, self.runtime, self.box = task, runtime, box
        self.pictures = pictures_of(task.config) if looks_at_frames(task.config) else None
        task.model.eval()

    @torch.no_grad()
    def read(self, video: Path, first: int, last: int | None, fps: float | None = None) -> dict[str, Any]:
        """Frames `first` (from 0) up to `last` show the sign; None: up to the video's end. `fps`, else the file's own,
        counts only where the model was trained with seconds between its frames.

        Raises Mistake for frames that are not there, and where landmarks are looked at and there are none.
        """
        info = probe(video)
        stop = info.frames if last is None else last
        if not 0 <= first < stop <= info.frames:
            raise Mistake("there are no such frames", f"{first + 1} to {stop} of {video}, which has {info.frames}",
                          "give --first and --last within the video")
        batch = self._batch(video, info, first, stop, fps)
        output = self.task.forward(self.task.model, self.task.prepare(batch, train=False))
        return self._said(self.task.decode(output, batch)[0]["scores"])

    def _batch(self, video: Path, info: VideoInfo, first: int, stop: int, fps: float | None) -> dict[str, Any]:
        data = self.task.config.data
        indices = hearai.sample_indices(first, stop, segments=data.num_frames, time=self.task.keys.time,
                                        fps=fps or info.fps or None)
        batch: dict[str, Any] = {"ids": [str(video)], "length": torch.tensor([len(indices)]),
                                 "draws": torch.from_numpy(no_draw())[None], "ghost": False}
        if self.pictures:
            frames = self.pictures.of(list(read_frames(video, indices, self.box)))
            batch["frames"] = torch.from_numpy(padded(frames, data.num_frames))[None]
        if self.task.parts:
            found = hearai.load_landmarks(_landmarks_of(video), self.task.parts, first, stop - 1)
            batch["landmarks"] = torch.from_numpy(padded(found[indices - first], data.num_frames))[None]
        return batch

    def _said(self, scores: dict[str, np.ndarray]) -> dict[str, Any]:
        """Every head's classes with their probabilities, and the dictionary's glosses, the likeliest first."""
        known = self.task.known
        named = {head: [(multihead_report.label_name(head, int(k), **known), float(np.exp(row[k])))
                        for k in np.argsort(-row, kind="stable")] for head, row in scores.items()}
        glosses = heads.ranked(scores, known["dictionary"]) if known["dictionary"] else []
        return {"heads": named, "glosses": glosses}


def _landmarks_of(video: Path) -> Path:
    places = [video / f"{video.name}.npz"] if video.is_dir() else [video.with_suffix(".npz"),
                                                                    video.parent / video.stem / f"{video.stem}.npz"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise Mistake(f"{video} has no landmarks, and this model looks at them", f"{places[0]} is missing",
                      "make them with preprocess.py --to_frames and --landmarks")
    return found
