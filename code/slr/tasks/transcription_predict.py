"""What a model of the task `transcription` says of a video: its glosses, without times.

    reader = TranscriptReader(task, runtime)        # as slr.tasks.continuous_predict.SentenceReader
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from slr.datasets.sentence_clips import eval_indices
from slr.runtime import Runtime
from slr.tasks.continuous_predict import Box, SentenceReader, batch_of
from slr.tasks.transcription import Transcription


class TranscriptReader(SentenceReader):
    """A sentence is looked at as a whole; of a longer one those frames in the middle that the model can look at."""

    def __init__(self, task: Transcription, runtime: Runtime, box: Box | None = None):
        config = task.config
        assert config.decoding
        self.transcription, self.runtime, self.box = task, runtime, box
        self.task = task  # type: ignore[assignment]
        self.data, self.fps = config.data, config.decoding.fps
        # With a cache DINOv2 has seen all frames of a clip in training and in tests, and so it does here.
        self.whole = task.cache is not None
        self.rate, self.most = self.fps / (1 if self.whole else self.data.frame_stride), self.data.num_frames
        self.dtype = runtime.precision(config.training.precision)

    @torch.no_grad()
    def read(self, frames: Iterable[tuple[int, np.ndarray]]) -> dict[str, Any]:
        """The record that `Transcription.decode` makes of it, no spans, and `cut`: whether frames were left out."""
        found = list(frames)
        every = self.data.frame_stride if self.whole else 1
        chosen = eval_indices(len(found), self.most, every)
        seen = found if self.whole else [found[i] for i in chosen]
        batch = {**batch_of(np.stack([frame for _, frame in seen]), [number for number, _ in seen]),
                 "epoch": torch.zeros(1, dtype=torch.long)}
        self.task.model.eval()
        if self.whole:
            features = self.transcription.see(batch, whole=True)[0].cpu()[chosen]
            batch |= {"features": features, "lengths": torch.tensor([len(chosen)])}
        ready = self.task.prepare(batch, train=False)
        with self.runtime.autocast(self.dtype):
            output = self.task.forward(self.task.model, ready)
        record = self.task.decode(output, ready)[0]
        return {**record, "spans": [], "windows": 1, "cut": len(chosen) * every < len(found)}
