"""References and hypotheses in sclite's file forms, UTF-8: STM with CTM, or two trn files.

    STM    <file> <channel> <speaker> <start> <stop> [<labels>] WORD WORD …      a segment a line
    CTM    <file> <channel> <start> <duration> WORD [confidence]                 a word a line
    trn    WORD WORD … (id)                                                      a sentence a line

Lines that start with `;;` are comments; `;tag` after a word, labels and speakers are left out; files and channels are
compared without the case of ASCII, as sclite does. Every malformed line is a Mistake that names file and line.
Alternations (`{ a / b }`, `<ALT_BEGIN>`) are refused.
"""

import re
from collections.abc import Collection, Iterator
from itertools import groupby, pairwise
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from slr.errors import Mistake
from slr.metrics.wer import lower

WORDS = re.compile(r"\S+", re.ASCII)  # other spaces are parts of words
LABELS = re.compile("<.*>")  # a word that sclite takes for these, <O,M>, where the words of an STM begin
TAG = re.compile(r"(?<!\\);.*")
IGNORED = "IGNORE_TIME_SEGMENT_IN_SCORING"
NO_WORD = "@"
Found = TypeVar("Found", bound=Collection[Any])
FORMS = "STM: file channel speaker start stop words; CTM: file channel start duration word; trn: words (id)"


class Line(NamedTuple):
    """Where something stands, for messages."""

    file: Path
    number: int

    def mistake(self, wrong: str, found: str = "", do: str = FORMS) -> Mistake:
        return Mistake(f"{self.file}, line {self.number}: {wrong}", found, do)


class Segment(NamedTuple):
    """One line of an STM; times in seconds."""

    line: Line
    file: str
    channel: str
    speaker: str
    start: float
    stop: float
    words: list[str]


class Timed(NamedTuple):
    """One line of a CTM; times in seconds."""

    line: Line
    file: str
    channel: str
    start: float
    duration: float
    word: str


class Pair(NamedTuple):
    """The same sentences twice, {id: words}.

    `mark_empty`: each recording is one sentence of a CTM, so one without a word is scored as `[EMPTY]`, as PHOENIX's
    script does; with several segments a recording, and in trn, sclite sees an empty sentence as it is.
    """

    refs: dict[str, list[str]]
    hyps: dict[str, list[str]]
    mark_empty: bool


def read_pair(ref: Path, hyp: Path) -> Pair:
    """Both files, matched; NAME.stm goes with NAME.ctm, all other names are trn.

    A recording that the CTM does not name has an empty hypothesis there; a trn has to name every sentence. Raises
    Mistake on malformed or unreadable files, on ids that stand twice or on one side only.
    """
    forms = {path.suffix.lower() for path in (ref, hyp)}
    if forms & {".stm", ".ctm"}:
        if (ref.suffix.lower(), hyp.suffix.lower()) != (".stm", ".ctm"):
            raise Mistake("these two forms do not go together", f"{ref.name} and {hyp.name}",
                          "give REF.stm and HYP.ctm, or two trn files")
        return _cut(_some(read_stm(ref), ref), _some(read_ctm(hyp), hyp))
    refs, hyps = _some(read_trn(ref), ref), _some(read_trn(hyp), hyp)
    name = {lower(key): key for key in refs}
    return Pair(refs, {name.get(lower(key), key): words for key, words in hyps.items()}, mark_empty=False)


def read_stm(path: Path) -> list[Segment]:
    """All segments; those of one recording are ordered by time and may not overlap."""
    return _apart([segment._replace(words=_bare(segment.words, segment.line)) for segment in segments(path)])


def segments(path: Path) -> Iterator[Segment]:
    """The segments as they come, without labels, their words as they stand, with all that sclite leaves out."""
    for line, text in _lines(path):
        fields = WORDS.findall(text)
        if len(fields) < 5:
            raise line.mistake("an STM line has at least five fields", text[:80])
        start, stop = (_number(field, line) for field in fields[3:5])
        if stop < start:
            raise line.mistake("the segment ends before it starts", " ".join(fields[3:5]))
        labels = fields[5:6] if fields[5:6] and LABELS.fullmatch(fields[5]) else []
        yield Segment(line, fields[0], fields[1], fields[2], start, stop, fields[5 + len(labels):])


def read_ctm(path: Path) -> list[Timed]:
    """All words; those of one recording stand together, in the order of their starts."""
    found = []
    for line, text in _lines(path):
        fields = WORDS.findall(text)
        if fields[4:] and fields[4].startswith("<ALT"):
            raise line.mistake("alternations are not scored", fields[4], "leave one word of them")
        if not 5 <= len(fields) <= 6:
            raise line.mistake("a CTM line has five fields, or six with a confidence", text[:80])
        start, duration = (_number(field, line) for field in fields[2:4])
        if len(fields) == 6 and fields[5] != "NA":
            _number(fields[5], line)
        for word in _bare(fields[4:5], line):
            found.append(Timed(line, fields[0], fields[1], start, duration, word))
    _refuse_scattered(found)
    return found


def read_trn(path: Path) -> dict[str, list[str]]:
    """{id: words}."""
    found: dict[str, list[str]] = {}
    first: dict[str, int] = {}
    for line, text in _lines(path):
        parts = re.fullmatch(r"(.*)\(([^()\s]+)\)\s*", text)
        if not parts:
            raise line.mistake("a trn line ends in its id, (id)", text[-80:])
        if lower(parts[2]) in first:
            raise line.mistake("this id stands twice", f"{parts[2]}, first in line {first[lower(parts[2])]}",
                               "score every sentence once")
        first[lower(parts[2])] = line.number
        found[parts[2]] = _bare(WORDS.findall(parts[1]), line)
    return found


def _some(found: Found, path: Path) -> Found:
    """An empty file is no system that is wrong everywhere."""
    if not found:
        raise Mistake("this file has nothing to score", str(path), FORMS)
    return found


# --- lines --------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[Line, str]]:
    """Every line that is neither empty nor a comment."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise Mistake("this file cannot be read", f"{path}: {error.strerror}", "check the path") from None
    except UnicodeDecodeError as error:
        line = Line(path, data.count(b"\n", 0, error.start) + 1)
        raise line.mistake("this is no UTF-8", repr(data[error.start:error.start + 8]), "convert the file") from None
    for number, content in enumerate(text.split("\n"), 1):
        if content.strip() and not content.startswith(";;"):
            yield Line(path, number), content


def _bare(words: list[str], line: Line) -> list[str]:
    """Words without tags; an escaped `;` belongs to the word, a lone @ stands for none."""
    for word in words:
        if "{" in word or "}" in word:
            raise line.mistake("alternations are not scored", word, "leave one of the alternatives")
    return [TAG.sub("", word).replace("\\;", ";") for word in words if word != NO_WORD]


def _number(field: str, line: Line) -> float:
    try:
        value = float(field)
    except ValueError:
        value = nan
    if isnan(value):
        raise line.mistake("this is no number", field)
    return value


# --- recordings ---------------------------------------------------------------------------------------------


def _recording(item: Segment | Timed) -> tuple[str, str]:
    return lower(item.file), lower(item.channel)


def _apart(segments: list[Segment]) -> list[Segment]:
    """The segments in the order of their recordings' first lines, then of time."""
    first: dict[tuple[str, str], int] = {}
    for place, segment in enumerate(segments):
        first.setdefault(_recording(segment), place)
    ordered = sorted(segments, key=lambda segment: (first[_recording(segment)], segment.start))
    for one, two in pairwise(ordered):
        if _recording(one) == _recording(two) and (two.start < one.stop or two.start == one.start):
            raise two.line.mistake("this segment stands twice, or overlaps another one",
                                   f"{two.file} {two.channel}, see line {one.line.number}", "score every sentence once")
    return ordered


def _refuse_scattered(words: list[Timed]) -> None:
    """A recording in two places is a sentence that was written twice, or a file that was sorted by something else."""
    last: dict[tuple[str, str], int] = {}
    for key, group in groupby(words, _recording):
        block = list(group)
        for one, two in pairwise(block):
            if two.start < one.start:
                raise two.line.mistake("the words do not stand in the order of their starts",
                                       f"{two.start:g} after {one.start:g}", "sort them; or is a sentence here twice?")
        if key in last:
            raise block[0].line.mistake("the words of a recording stand in two places",
                                        f"{block[0].file}, before up to line {last[key]}", "score every sentence once")
        last[key] = block[-1].line.number


def _cut(segments: list[Segment], words: list[Timed]) -> Pair:
    """Words to the segments of their recording: each to the first that ends after the word's middle, else the last."""
    blocks = {key: list(group) for key, group in groupby(words, _recording)}
    known = {_recording(segment) for segment in segments}
    strange = [block for key, block in blocks.items() if key not in known]
    if strange:
        word = strange[0][0]
        raise word.line.mistake("the references have no such recording", f"{word.file} {word.channel}, and "
                                f"{len(strange) - 1} more", "score the set that the references are of")
    single = len({lower(segment.file) for segment in segments}) == len(segments)
    pair = Pair({}, {}, mark_empty=single)
    for key, group in groupby(segments, _recording):
        own, rest = list(group), blocks.get(key, [])
        for segment in own:
            count = len(rest) if segment is own[-1] else next(
                (i for i, word in enumerate(rest) if word.start + word.duration / 2 >= segment.stop), len(rest))
            here, rest = rest[:count], rest[count:]
            if IGNORED not in segment.words:
                name = segment.file if single else f"{segment.file} {segment.channel} {segment.start:.12g}"
                pair.refs[name], pair.hyps[name] = segment.words, [word.word for word in here]
    return pair
