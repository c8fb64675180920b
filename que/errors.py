"""A user's mistake: what is wrong, what was found, what to do. Its exit code is 2, without a traceback.

The que shares no code with the scripts that it runs: their exit codes and status.json are the whole contract.
"""

DONE, BUG, MISTAKE, INTERRUPTED, OUT_OF_MEMORY, NON_FINITE, NOTHING = 0, 1, 2, 75, 76, 77, 78


class Mistake(Exception):
    def __init__(self, wrong: str, found: str = "", do: str = ""):
        self.wrong, self.found, self.do = wrong, found, do
        super().__init__(wrong, found, do)

    def __str__(self) -> str:
        text = f"{self.wrong}: {self.found}" if self.found else self.wrong
        return f"{text}\n  {self.do}" if self.do else text


class Changed(Mistake):
    """Another process was quicker: the job is no longer where it was expected."""


class Storage(Mistake):
    """The disk is full, the folder read-only or the lock cannot be had: nothing was changed."""
