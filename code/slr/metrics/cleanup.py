"""What is wiped off PHOENIX glosses before they are scored.

The rules are those of the corpora's own evaluation scripts. `tokens` cleans word by word, as a CTM with its one word
a line is cleaned; `sentence` has the rules over several words too, as the translation papers clean.

    CLEANUPS["phoenix2014"].tokens(["loc-NORD", "ZEIGEN", "__EPENTHESIS__"])     ["NORD", "ZEIGEN-BILDSCHIRM"]
    CLEANUPS["phoenix2014"].sentence(["WIE", "AUSSEHEN", "N", "N", "ICH", "ICH"])  ["WIE-AUSSEHEN", "N+N", "ICH"]
"""

import re
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import NamedTuple

SPELLED = re.compile(r"(?<!\S)(?:[A-Z]|SCH|NN)(?:[ +](?:[A-Z]|SCH|NN))+(?!\S)")
HOW_IT_LOOKS = re.compile(r"(?<!\S)WIE AUSSEHEN(?!\S)")


class Cleanup(NamedTuple):
    """A set of rules; `version` goes into the signature and changes whenever a result can."""

    name: str
    version: int
    clean: Callable[[str], str] | None  # one word; an empty answer drops it

    @property
    def signature(self) -> str:
        return f"{self.name}.{self.version}" if self.clean else self.name

    def tokens(self, words: Iterable[str]) -> list[str]:
        """Each word by itself; what is empty then goes."""
        return [word for word in map(self.clean, words) if word] if self.clean else list(words)

    def sentence(self, words: Iterable[str]) -> list[str]:
        """Word by word, then WIE AUSSEHEN and spelled letters, at last immediate repeats."""
        if not self.clean:
            return collapse(words)
        text = HOW_IT_LOOKS.sub("WIE-AUSSEHEN", " ".join(self.tokens(words)))
        return collapse(SPELLED.sub(lambda found: found[0].replace(" ", "+"), text).split(" ") if text else [])


def collapse(words: Iterable[str]) -> list[str]:
    """Immediate repeats merged, as CTC decoders do."""
    return [word for word, _ in groupby(words)]


def clean_2014(word: str) -> str:
    """One gloss of PHOENIX-2014 by the rules of its evaluation script, in its order; substrings, not whole words."""
    for part in ("loc-", "cl-", "qu-", "poss-", "lh-"):
        word = word.replace(part, "")
    word = word.replace("S0NNE", "SONNE").replace("HABEN2", "HABEN")
    for mark in ("__EMOTION__", "__PU__", "__LEFTHAND__"):
        word = word.replace(mark, "")
    if word.endswith("ZEIGEN"):
        word += "-BILDSCHIRM"
    word = re.sub("([A-Z]{2})RAUM", r"\1", word).replace("-PLUSPLUS", "")
    return "" if "__EPENTHESIS__" in word else word


def clean_2014t(word: str) -> str:
    """One gloss of PHOENIX-2014T: marks (`__ON__` too), then prefixes, -PLUSPLUS and the suffix RAUM."""
    word = re.sub("__.+?__", "", word)
    for part in ("loc-", "cl-", "-PLUSPLUS"):
        word = word.replace(part, "")
    return re.sub(r"(?<=[A-Z])RAUM\Z", "", word)


CLEANUPS = {rules.name: rules for rules in (Cleanup("phoenix2014", 1, clean_2014),
                                            Cleanup("phoenix2014t", 1, clean_2014t), Cleanup("none", 0, None))}
