"""Pre-training for transcription: contrastive, by masked tubes, or of the language decoder; MODEL says which."""

from typing import Any

from slr.config import Config
from slr.runtime import Runtime
from slr.task import Task
from slr.tasks.contrastive import ContrastivePretraining
from slr.tasks.language_model import LanguageModel
from slr.tasks.reconstruction import Reconstruction

KINDS: dict[str, type[ContrastivePretraining] | type[Reconstruction] | type[LanguageModel]] = {
    "SpatioTemporalPretrain": ContrastivePretraining, "VideoMAEPretrain": Reconstruction,
    "LanguageDecoder": LanguageModel}


class Pretraining:
    """The task `pretraining`, of either of the three."""

    @staticmethod
    def build(config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> Task:
        return KINDS[config.model].build(config, runtime, meta)
