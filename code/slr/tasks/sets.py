"""The sets of a task on sentences: read once, the training set without what cannot be learnt from."""

from abc import abstractmethod

from slr.datasets.sentences import Sentence
from slr.task import Task


class OnSets(Task):
    """A subclass says in `read` what a set is: (the sentences to look at, {id: reason} of those that are left out)."""

    def __init__(self) -> None:
        self._sets: dict[str, list[Sentence]] = {}
        self._left_out: dict[str, str] = {}

    @abstractmethod
    def read(self, part: str) -> tuple[list[Sentence], dict[str, str]]: ...

    def sentences(self, part: str) -> list[Sentence]:
        """The sentences of a set that are looked at."""
        if part not in self._sets:
            self._sets[part], reasons = self.read(part)
            if part == "train":
                self._left_out = reasons
        return self._sets[part]

    def left_out(self) -> dict[str, str]:
        self.sentences("train")
        return self._left_out

    def keep_first_items(self, first: int) -> None:
        self._sets["train"] = self._sets["val"] = self.sentences("train")[:first]

    def size(self, part: str) -> int:
        return len(self.sentences(part))
