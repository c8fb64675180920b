"""What a Sign2Text model says of a video: glosses with their times, and the sentence.

    reader = TranslationReader(task, runtime)        # as slr.tasks.continuous_predict.SentenceReader

A model that was trained on extracted features sees with the backbone that it started from, which its checkpoint holds.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from slr.errors import Mistake
from slr.models.sign2text import Sign2Text
from slr.runtime import Runtime
from slr.tasks.continuous_predict import Box, SentenceReader
from slr.tasks.sign2text import Output, SignToText


class TranslationReader(SentenceReader):
    """Records also have `translation`."""

    def __init__(self, task: SignToText, runtime: Runtime, box: Box | None = None):
        if not task.visual["model"]:
            raise Mistake("this model cannot see videos", "it was trained on features alone, without the backbone that "
                          "made them", "start it from a checkpoint of S3D_CTC (model_params.init_from)")
        super().__init__(task, runtime, box)
        self.model = cast(Sign2Text, task.model)

    @torch.no_grad()
    def seen(self, frames: np.ndarray) -> Tensor:
        """(T', C), the backbone's features."""
        batch = self.ready(frames)
        with self.runtime.autocast(self.dtype):
            return self.model.visual.features(batch["inputs"], batch["lengths"])[0][0].float().cpu()  # type: ignore[operator]

    @torch.no_grad()
    def logits(self, frames: np.ndarray) -> Tensor:
        return self._read(self.seen(frames)).glosses[0].cpu()

    @torch.no_grad()
    def finished(self, seen: Tensor, batch: dict[str, Any]) -> dict[str, Any]:
        return self.task.decode(self._read(seen), {**batch, "text": [""]})[0]

    def _read(self, seen: Tensor) -> Output:
        """The output of one sentence, without the logits of a text that nobody has given."""
        inputs, steps = seen[None].to(self.runtime.device), torch.tensor([len(seen)])
        with self.runtime.autocast(self.dtype):
            glosses, steps, source = self.model.read(inputs, steps, features=True)
        return Output(glosses.float(), steps, torch.empty(0), self.model.translator, source)
