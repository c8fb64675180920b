"""Spoken text: how it is cleaned, and the tokenizers that a small translator is trained with.

A tokenizer, whatever its kind, is what `Tokenizer` says. Those of this module have the special tokens first.
"""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from slr.errors import Mistake

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
LEVELS = ("word", "char")
MODELS = ("unigram", "bpe")
SENTENCES_WITH_STOP = ("de_DE", "en_XX")
WITHOUT_BLANKS = ("zh_CN",)


class Tokenizer(Protocol):
    """Text to numbers and back."""

    @property
    def size(self) -> int: ...

    @property
    def pad(self) -> int: ...

    @property
    def start(self) -> int:
        """What a decoder begins with."""

    @property
    def end(self) -> int: ...

    @property
    def unknown(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without start and end."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first end; special tokens are left out."""

    def plain(self) -> dict[str, Any]:
        """All of it in plain types, for a checkpoint and for `tokenizer_from`."""


# --- clean-ups ----------------------------------------------------------------------------------------------

def clean(text: str, language: str) -> str:
    """A sentence as the translation papers train and score it; cleaning twice changes nothing. `language` is mBART's.

    German and English are lower-cased and end in one " .", as the annotation of PHOENIX-2014T that comes with SLRT
    (Chen et al. 2022, https://arxiv.org/abs/2203.04287) does; nothing said stays nothing. Chinese loses all white
    space and keeps its full-width forms. Of other languages only the white space is put in order.
    """
    if language in WITHOUT_BLANKS:
        return "".join(text.split())
    words = " ".join(text.split())
    if language not in SENTENCES_WITH_STOP:
        return words
    said = words.lower().rstrip(" .")
    return f"{said} ." if said else ""


def gloss_words(glosses: str | Iterable[str]) -> list[str]:
    """The glosses of a sentence as a translator's vocabulary sees them, lower-cased: a list, or a text with blanks."""
    return [gloss.lower() for gloss in (glosses.split() if isinstance(glosses, str) else glosses)]


# --- vocabularies -------------------------------------------------------------------------------------------

class _Numbered:
    """The special tokens, and what is left of a sequence without them."""

    pad, start, end, unknown = range(len(SPECIALS))
    size: int

    def _said(self, ids: Sequence[int]) -> list[int]:
        """The tokens before the first end that are no special ones. Raises Mistake for what is no token."""
        said = []
        for token in map(int, ids):
            if not 0 <= token < self.size:
                raise Mistake("a token is out of range", f"{token} of {self.size}",
                              "take the tokenizer that the model was trained with")
            if token == self.end:
                break
            if token >= len(SPECIALS):
                said.append(token)
        return said


class WordVocabulary(_Numbered):
    """Words between blanks, or single characters (blanks among them, where a text has any): level `word` or `char`."""

    kind: ClassVar[str] = "words"

    def __init__(self, words: Sequence[str], level: str = "word"):
        """words: all but the special tokens, in the order of their ids."""
        if level not in LEVELS:
            raise Mistake("unknown level of a vocabulary", repr(level), f"there are {', '.join(LEVELS)}")
        if not words or len(set(words)) < len(words):
            raise Mistake("these words are no vocabulary", f"{len(words)}, {len(set(words))} of them different",
                          "build it from the training sentences")
        self.words, self.level = tuple(words), level
        self.size = len(SPECIALS) + len(self.words)
        self._ids = {word: number for number, word in enumerate(self.words, len(SPECIALS))}

    @classmethod
    def build(cls, texts: Iterable[str], level: str = "word", least: int = 1) -> "WordVocabulary":
        """All words that come `least` times or more in the training sentences, by frequency and then alphabet."""
        counts = Counter(word for text in texts for word in _split(text, level))
        words = sorted((word for word, count in counts.items() if count >= least and word not in SPECIALS),
                       key=lambda word: (-counts[word], word))
        if not words:
            raise Mistake("there are no words for a vocabulary", f"none comes {least} times in the training sentences",
                          "look whether the sentences have text, or lower `least`")
        return cls(words, level)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, self.unknown) for word in _split(text, self.level)]

    def decode(self, ids: Sequence[int]) -> str:
        joint = " " if self.level == "word" else ""
        return joint.join(self.words[token - len(SPECIALS)] for token in self._said(ids))

    def plain(self) -> dict[str, Any]:
        return {"kind": self.kind, "level": self.level, "words": list(self.words)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "WordVocabulary":
        return cls(plain["words"], plain["level"])


def _split(text: str, level: str) -> list[str]:
    return text.split() if level == "word" else list(text)


class PieceVocabulary(_Numbered):
    """Pieces of words, by a SentencePiece model (Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226).

    Text is taken as it is: SentencePiece's own normalisation would change full-width forms.
    """

    kind: ClassVar[str] = "pieces"

    def __init__(self, model: bytes):
        """model: the content of a SentencePiece file with our special tokens. Raises Mistake for anything else."""
        self.model = model
        try:
            self._pieces = _sentencepiece().SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise Mistake("this is no SentencePiece model", str(error), "build it anew") from error
        self.size = self._pieces.get_piece_size()
        first = tuple(self._pieces.id_to_piece(number) for number in range(min(self.size, len(SPECIALS))))
        if first != SPECIALS:
            raise Mistake("a SentencePiece model has other special tokens", " ".join(first),
                          f"build it here: they are {' '.join(SPECIALS)}")

    @classmethod
    def build(cls, texts: Iterable[str], size: int, model: str = "unigram") -> "PieceVocabulary":
        """A vocabulary of `size` pieces, special tokens included, or of as many as these sentences give; all their
        characters are in it. `model` is `unigram` or `bpe`. The same sentences give the same model, byte for byte.

        Raises Mistake for no text, a size too small for the characters, and an unknown model.
        """
        sentences = [" ".join(text.split()) for text in texts]
        _check_pieces(sentences, size, model)
        file = io.BytesIO()
        try:
            _sentencepiece().SentencePieceTrainer.train(
                sentence_iterator=iter(sentences), model_writer=file, vocab_size=size, model_type=model,
                hard_vocab_limit=False, character_coverage=1.0, normalization_rule_name="identity",
                max_sentence_length=2 ** 30,  # its greatest: longer ones would be left out in silence
                num_threads=1,  # several add up in no fixed order
                minloglevel=2, **_special_pieces())
        except RuntimeError as error:
            raise Mistake("sentencepiece makes no vocabulary of these sentences", str(error),
                          "look at the sentences, or try another size") from error
        return cls(file.getvalue())

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._pieces.decode(self._said(ids))

    def plain(self) -> dict[str, Any]:
        return {"kind": self.kind, "model": base64.b64encode(self.model).decode("ascii")}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "PieceVocabulary":
        return cls(base64.b64decode(plain["model"]))


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise Mistake("a vocabulary of pieces needs the package sentencepiece", str(error),
                      "pip install sentencepiece") from error
    return sentencepiece


def _special_pieces() -> dict[str, Any]:
    names = ("pad", "bos", "eos", "unk")
    return {f"{name}_id": number for number, name in enumerate(names)} | \
           {f"{name}_piece": piece for name, piece in zip(names, SPECIALS, strict=True)}


def _check_pieces(sentences: Sequence[str], size: int, model: str) -> None:
    if model not in MODELS:
        raise Mistake("unknown kind of SentencePiece model", repr(model), f"there are {', '.join(MODELS)}")
    characters = set("".join(sentences)) - {" "}
    if not characters:
        raise Mistake("there are no words for a vocabulary", f"{len(sentences)} sentences without text",
                      "look at the training sentences")
    needed = len(SPECIALS) + 1 + len(characters)  # and the mark that stands for a blank
    if size < needed:
        raise Mistake("the vocabulary is too small for the characters of the sentences", str(size),
                      f"give {needed} or more")


KINDS: dict[str, Any] = {vocabulary.kind: vocabulary for vocabulary in (WordVocabulary, PieceVocabulary)}


def tokenizer_from(plain: Mapping[str, Any]) -> Tokenizer:
    """The vocabulary that said this of itself by `plain`. Raises Mistake for a kind that is not of this module."""
    kind = plain.get("kind")
    if kind not in KINDS:
        raise Mistake("unknown kind of vocabulary", repr(kind), f"there are {', '.join(KINDS)}")
    return KINDS[kind].from_plain(plain)
