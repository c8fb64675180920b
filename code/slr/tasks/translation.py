"""Translation: glosses to text, or signing to glosses and text; MODEL says which."""

from typing import Any

from slr.config import Config
from slr.runtime import Runtime
from slr.task import Task
from slr.tasks.gloss2text import GlossToText
from slr.tasks.sign2text import SignToText

DIRECTIONS: dict[str, type[GlossToText] | type[SignToText]] = {"Gloss2Text": GlossToText, "Sign2Text": SignToText}


class Translation:
    """The task `translation`, in either direction."""

    @staticmethod
    def build(config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> Task:
        return DIRECTIONS[config.model].build(config, runtime, meta)
