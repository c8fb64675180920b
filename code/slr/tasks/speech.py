"""The text side of a translation: what a sentence is cleaned to, its tokens, the loss of what a translator says of it,
and the search for what it would say itself."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from slr import search, text
from slr.config import TranslationSection
from slr.losses import smoothed_kl
from slr.metrics import text as metrics
from slr.models.sign2text import Source
from slr.models.translator import Translator

LANGUAGES = {"phoenix2014t": ("de_DE", "de_DGS"), "csl_daily": ("zh_CN", "zh_CSL")}  # by split: of text, of signing
BUILT_IN = ("en_XX", "en_ASL")
Records = Sequence[dict[str, Any]]


def languages(keys: TranslationSection, split: str) -> tuple[str, str]:
    """(Of the text, of the glosses): as the config says, else as the split is called."""
    own = next((pair for name, pair in LANGUAGES.items() if split.startswith(name)), BUILT_IN)
    pairs = zip((keys.language, keys.gloss_language), own, strict=True)
    spoken, signed = (default if given == "auto" else given for given, default in pairs)
    return spoken, signed


def cleaned(sentence: str, language: str) -> str:
    """What is trained on and scored against: `text.clean`; Chinese in half-width forms, since mBART says no others."""
    half = unicodedata.normalize("NFKC", sentence) if language.startswith("zh") else sentence
    return text.clean(half, language)


def in_and_out(rows: Sequence[Sequence[int]], tokenizer: Any, device: torch.device) -> dict[str, Tensor]:
    """tokens_in (N, T), the start and a row's tokens, which a decoder is given, and tokens_out (N, T), the tokens and
    the end, which it is to say."""
    start, end = tokenizer.start, tokenizer.end
    both = {"tokens_in": [[start, *row] for row in rows], "tokens_out": [[*row, end] for row in rows]}
    return {name: pad_sequence([torch.tensor(row) for row in held], batch_first=True, padding_value=tokenizer.pad)
            .to(device, non_blocking=True) for name, held in both.items()}


class Speech:
    """`tokenizer` as in slr.text; `language` of the text. The search can be changed by `use`."""

    def __init__(self, keys: TranslationSection, language: str, tokenizer: Any):
        self.keys, self.language, self.tokenizer = keys, language, tokenizer
        self.level = "char" if language.startswith("zh") else "word"

    def use(self, beam_width: int, length_penalty: float) -> None:
        """Search like this from now on."""
        self.keys = replace(self.keys, beam_width=beam_width, length_penalty=length_penalty)

    def sweep(self) -> list[dict[str, Any]]:
        """The searches among which the validation set chooses; none: there is no choice."""
        return [{"beam_width": width, "length_penalty": penalty} for width in self.keys.sweep_beams
                for penalty in (self.keys.sweep_penalties if width > 1 else (self.keys.length_penalty,))]

    @property
    def search(self) -> dict[str, Any]:
        return {name: getattr(self.keys, name) for name in ("beam_width", "length_penalty", "max_length")}

    def clean(self, sentence: str) -> str:
        return cleaned(sentence, self.language)

    def written(self, said: str) -> str:
        """What was generated as `clean` would write it; nothing is added to it, but a blank before a final dot."""
        if self.language.startswith("zh"):
            return self.clean(said)
        return re.sub(r"(?<=[^\s.])\.$", " .", " ".join(said.split()))

    # --- training -------------------------------------------------------------------------------------------

    def targets(self, tokens: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
        return in_and_out(tokens, self.tokenizer, device)

    def loss(self, logits: Tensor, targets: Tensor, smoothed: bool) -> tuple[Tensor, int]:
        """(Sum over the items, their number); in evaluation without smoothing."""
        smoothing = self.keys.smoothing if smoothed else 0.0
        sums = smoothed_kl(logits.log_softmax(2), targets, self.tokenizer.pad, smoothing)
        if self.keys.per_token:
            sums = sums / (targets != self.tokenizer.pad).sum(1)
        return sums.sum(), len(sums)

    # --- generation -----------------------------------------------------------------------------------------

    def say(self, heard: Sequence[tuple[Translator, Source]], width: int = 1) -> list[str]:
        """A text an item; of several translators, each with its own source, their probabilities are averaged."""
        tokenizer, items = self.tokenizer, len(heard[0][1].vectors)
        decoders = [translator.decoder(*source) for translator, source in heard]
        most = [_longest(translator, self.keys.max_length) for translator, _ in heard]
        found = search.beam_search(decoders, items, start=tokenizer.start, end=tokenizer.end, width=width,
                                   max_length=min(most), length_penalty=self.keys.length_penalty,
                                   device=heard[0][1].vectors.device,
                                   banned=[n for n in (tokenizer.pad, tokenizer.start) if n != tokenizer.end])
        return [self.written(tokenizer.decode(beam[0].tokens)) if beam else "" for beam in found]

    def texts(self, heard: Sequence[tuple[Translator, Source]], quick: bool) -> list[dict[str, str]]:
        """Of each item {translation, greedy_translation}: what the search finds, and the likeliest token each time.

        `quick`: that alone, as both.
        """
        greedy = self.say(heard)
        wide = self.keys.beam_width > 1 and not quick
        best = self.say(heard, self.keys.beam_width) if wide else greedy
        return [{"translation": whole, "greedy_translation": short}
                for whole, short in zip(best, greedy, strict=True)]

    # --- scores ---------------------------------------------------------------------------------------------

    def bleu4(self, records: Records, name: str) -> float:
        """Of the records' texts called `name`."""
        return metrics.bleu4([row["text"] for row in records], [row[name] for row in records], self.level)

    def score(self, records: Records, split: str) -> dict[str, Any]:
        """BLEU, chrF and ROUGE-L of the translations, BLEU-4 of the greedy ones, and how was searched."""
        found = metrics.scores([row["text"] for row in records], [row["translation"] for row in records], self.level,
                               split)
        return {**found, "greedy_bleu4": self.bleu4(records, "greedy_translation"), "search": self.search}


def _longest(translator: Translator, asked: int) -> int:
    """A translator with a table of positions cannot say more than these."""
    return min(asked, getattr(translator, "positions", asked))
