"""What a model of the task `continuous` says of a video: frames read, cropped and resampled as evaluation has them.

    reader = SentenceReader(task, runtime)
    with video.playing(path) as (fps, images):
        record = reader.read(reader.frames(images, fps))        # as Continuous.decode gives it, and `windows`
    look = reader.best_path                                     # for slr.streaming

A video of another rate than the config's `decoding.fps` gives the frames that one of that rate would have.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from slr import decoding, streaming, video
from slr.datasets import sentence_clips
from slr.datasets.sentence_clips import on_frame
from slr.errors import Mistake
from slr.runtime import Runtime
from slr.streaming import Ticked
from slr.tasks.continuous import Continuous
from slr.transforms import center_box, crop_resize, no_draw

Box = tuple[int, int, int, int]
FASTEST = 1000.0  # frames a second; what a header says beyond that is no rate
SAME = 0.002  # rates that differ by less are one: 29.97 and 30


class SentenceReader:
    """A trained task that reads videos; `rate` is how many frames a second it looks at, `most` how many at once."""

    def __init__(self, task: Continuous, runtime: Runtime, box: Box | None = None):
        config = task.config
        assert config.decoding
        if config.data.heatmap != "none":
            raise Mistake("this model looks at keypoints too, which a video does not have",
                          f"data.heatmap = {config.data.heatmap!r}", "give a model of frames alone")
        self.task, self.runtime, self.box = task, runtime, box
        self.data, self.fps = config.data, config.decoding.fps
        self.rate = self.fps / self.data.frame_stride
        self.stride: int = cast(Any, task.model).stride
        self.most = self.data.num_frames // self.stride * self.stride
        self.dtype = runtime.precision(config.training.precision)

    # --- frames ---------------------------------------------------------------------------------------------

    def rate_of(self, place: Path | str, found: float, given: float | None) -> float:
        """Frames a second of a video: as given, else of a folder the config's, of a file those of its header, `found`.

        Raises Mistake where nothing says.
        """
        if given is not None or Path(place).is_dir():
            return given or self.fps
        if not 0 < found <= FASTEST:
            raise Mistake(f"{place} does not say how many frames a second it has", f"{found:g}", "give --fps")
        return found

    def note_on(self, place: Path | str, fps: float) -> str:
        """What a person should know about a video of `fps` frames a second; "" where there is nothing."""
        if abs(fps / self.fps - 1) < SAME:
            return ""
        return (f"{place} has {fps:.4g} frames a second, the model learned from {self.fps:g}: it is resampled to that; "
                "times are the video's own")

    def cropped(self, image: np.ndarray) -> np.ndarray:
        """A frame (H, W, 3) as evaluation shows it to the model, (S, S, 3), both uint8; of `box` where there is one.

        Raises Mistake where the box is no part of the frame.
        """
        if self.box:
            x0, y0, x1, y1 = self.box
            if not (0 <= x0 < x1 <= image.shape[1] and 0 <= y0 < y1 <= image.shape[0]):
                raise Mistake("there is no such box", f"{x0} {y0} {x1} {y1} of frames of {image.shape[1]} x "
                              f"{image.shape[0]}", "give --box X0 Y0 X1 Y1 within the frame, X0 < X1 and Y0 < Y1")
            image = image[y0:y1, x0:x1]
        height, width = image.shape[:2]
        side = max(height, width)
        box = on_frame(center_box(side, side, self.data.eval_resize), side, height, width)
        return crop_resize([image], box, self.data.frame_size)[0]

    def frames(self, images: Iterable[np.ndarray], fps: float, first: int = 0,
               last: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """What the model looks at of the images `first` to `last` (not included): (number of the image, the frame).

        Raises Mistake where there are not so many images.
        """
        count = 0

        def counted() -> Iterator[tuple[float, tuple[int, np.ndarray]]]:
            nonlocal count
            for count, image in enumerate(islice(images, last), 1):
                if count > first:
                    yield (count - 1 - first) / fps, (count - 1, image)

        for _, (number, image) in streaming.ticks(counted(), self.rate):
            yield number, self.cropped(image)
        if count < (first + 1 if last is None else last):
            raise Mistake("there are no such frames",
                          f"{first + 1} to {'the last' if last is None else last} of {count}",
                          "give --first and --last within the video")

    def coming(self, place: str, fps: float | None, realtime: bool, tell: Callable[[str], None]) -> Iterator[Ticked]:
        """The frames of a stream for the model, with their numbers: of a camera, or a file (at its own pace)."""
        number = camera_of(place)
        if number is not None:
            with video.filming(number) as images:
                yield from self._ticked(streaming.filmed(images))
            return
        with video.playing(place) as (found, images):
            fps = self.rate_of(place, found, fps)
            tell(self.note_on(place, fps))
            frames = streaming.timed(images, fps)
            empty = True
            for ticked in self._ticked(streaming.paced(frames) if realtime else frames):
                empty = False
                yield ticked
        if empty:
            raise Mistake(f"cannot read {place}", "no frame of it decodes", "give another video")

    def _ticked(self, frames: Iterator[streaming.Timed]) -> Iterator[Ticked]:
        return ((tick, self.cropped(image)) for tick, image in streaming.ticks(frames, self.rate))

    # --- what the model says --------------------------------------------------------------------------------

    def ready(self, frames: np.ndarray) -> dict[str, Any]:
        """Frames (T, S, S, 3) uint8 as a prepared batch of one sentence; the model is in evaluation."""
        self.task.model.eval()
        return Continuous.prepare(self.task, batch_of(frames, list(range(len(frames)))), train=False)

    @torch.no_grad()
    def logits(self, frames: np.ndarray) -> Tensor:
        """Frames (T, S, S, 3) uint8, `most` at most -> logits (T', K) on the CPU."""
        batch = self.ready(frames)
        with self.runtime.autocast(self.dtype):
            return self.task.forward(self.task.model, batch)[0][0].cpu()

    def seen(self, frames: np.ndarray) -> Tensor:
        """What is taken from every window, (T', C), and is put together for `finished`: the logits."""
        return self.logits(frames)

    def finished(self, seen: Tensor, batch: dict[str, Any]) -> dict[str, Any]:
        """The record of the whole sentence; its batch has the numbers of the frames."""
        return self.task.decode((seen[None], torch.tensor([len(seen)])), batch)[0]

    def warm_up(self, frames: int) -> None:
        """Look at so many black frames: the first look takes longer than the others."""
        self.logits(np.zeros((frames, self.data.frame_size, self.data.frame_size, 3), np.uint8))

    def best_path(self, frames: np.ndarray) -> list[decoding.Span]:
        """The spans of the most probable path, in time steps."""
        log_probs = self.logits(frames)[None].log_softmax(2)
        steps = torch.tensor([log_probs.shape[1]])
        return list(decoding.align(log_probs, steps, decoding.greedy(log_probs, steps))[0].spans)

    def read(self, frames: Iterable[tuple[int, np.ndarray]]) -> dict[str, Any]:
        """The record that `Continuous.decode` makes of a sentence, spans in numbers of the images; and `windows`.

        A sentence of more than `most` frames is looked at in windows of so many that overlap by half. Each time step is
        taken from the window in whose middle it is, so no gloss is cut or said twice; the search goes over them all.
        """
        numbers: list[int] = []
        held: list[np.ndarray] = []
        parts: list[Tensor] = []
        steps = self.most // self.stride
        hop, done = max(1, steps // 2), 0  # of a window: by how much it moves, and where the one before it was left
        for number, frame in frames:
            if len(held) == self.most:
                middle = (steps + hop) // 2  # of what it shares with the next
                parts.append(self.seen(np.stack(held))[done:middle])
                held, done = held[hop * self.stride:], middle - hop
            numbers.append(number)
            held.append(frame)
        whole = torch.cat([*parts, self.seen(np.stack(held))[done:]])
        return {**self.finished(whole, batch_of(held[0][None], numbers)), "windows": len(parts) + 1}


def camera_of(place: str) -> int | None:
    """The number in `camera:N`; None where `place` is a file. Raises Mistake where N is no number."""
    kind, colon, number = place.partition(":")
    if kind != "camera" or not colon:
        return None
    if not number.isdecimal():
        raise Mistake("this is no camera", place, "give camera:0 for the first one")
    return int(number)


def batch_of(frames: np.ndarray, numbers: list[int]) -> dict[str, Any]:
    """A batch of one sentence of which nothing is known but its frames (T, S, S, 3) and their numbers."""
    return sentence_clips.packed([{
        "ids": "video", "set": "test", "frames": frames, "indices": np.asarray(numbers), "targets": [],
        "lengths": np.int64(len(frames)), "needed": np.int64(0), "reference": [], "draws": no_draw(), "ghost": False}])
