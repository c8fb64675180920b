"""What can go wrong by the user's hand, and the exit code that each kind of end has.

An error has three parts: what is wrong, what was found, what to do. Scripts wrap their `main` in `run`, so a
user's mistake ends with one readable message and no traceback; anything else is a bug and keeps its traceback.
"""

import sys
from collections.abc import Callable

DONE, BUG, MISTAKE, INTERRUPTED, OUT_OF_MEMORY, NON_FINITE, NOTHING = 0, 1, 2, 75, 76, 77, 78


class Mistake(Exception):
    """The user can mend this: `wrong` is what is wrong, `found` what was found, `do` what to do about it."""

    code = MISTAKE

    def __init__(self, wrong: str, found: str = "", do: str = ""):
        self.wrong, self.found, self.do = wrong, found, do
        super().__init__(wrong, found, do)

    def __str__(self) -> str:
        text = f"{self.wrong}: {self.found}" if self.found else self.wrong
        return f"{text}\n  {self.do}" if self.do else text


class Interrupted(Mistake):
    """Stopped by a signal after everything was saved: the same command with -r goes on."""

    code = INTERRUPTED


class OutOfMemory(Mistake):
    """The device has no memory left; `do` says which keys to change."""

    code = OUT_OF_MEMORY


class NonFinite(Mistake):
    """A loss or gradient became NaN or infinite; never resumed blindly."""

    code = NON_FINITE


class NothingToTrainOn(Mistake):
    """The data was read, and no clip of it is left to train on."""

    code = NOTHING


def ask(question: str) -> str:
    """What the person at the keyboard answers; Ctrl-C and the end of the input cancel."""
    try:
        return input(question).strip()
    except (EOFError, KeyboardInterrupt):
        print()
        raise Mistake("cancelled", "nothing was changed") from None


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and leave the process with its exit code: 0 unless it returns another or raises a Mistake."""
    try:
        code = main() or DONE
    except Mistake as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.code
    except BrokenPipeError:  # `testing.py board | head`: the reader has seen enough
        sys.stderr.close()
        code = DONE
    sys.exit(code)
