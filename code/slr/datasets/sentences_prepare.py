"""What preprocess.py does for sentences: find every sentence's frames, keep what can be used, say why not the rest.

    source = read_source(paths.sentence_data(root, "PHOENIX2014T"))          # all annotations there, one of them leads
    prepared = prepare("phoenix2014t", source, frames, workers=4, root=root)
    write_prepared(prepared, paths.sentences(root, "phoenix2014t"))

Frames are found by the sentence's id, whatever the folders above are called: a folder <id>, <set>/<id> or either with
1/ in it, the same in a zip, or a video <id>.mp4. A layout in words, as in

    features/fullFrame-256x256px/{set}/{id}/1/*.png        videos.zip@images/{set}/{id}/images%04d.png

decides where several are there. {set} is train, dev or test.
"""

import fnmatch
import functools
import hashlib
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from slr import paths
from slr.datasets.files import put
from slr.datasets.phoenix import (
    SET_NAMES,
    Entry,
    differences,
    find_annotations,
    read_form,
    read_gloss_numbers,
    shared_numbers,
    walk,
)
from slr.datasets.sentences import (
    BLANK,
    FILES,
    LARGEST,
    LONGEST,
    NUMBERED,
    VOCABULARY,
    Frames,
    Sentence,
    archive,
    decode,
    is_inside,
    steps_needed,
    time_steps,
    unzipped,
    write_sentences,
)
from slr.datasets.unpickle import load_pickle
from slr.datasets.wlasl_prepare import Progress, default_workers, silent, spread
from slr.errors import Mistake
from slr.paths import SETS
from slr.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoError, file_sha256, natural_key, probe

REASONS = {
    "twice": "its id stands twice",
    "missing": "no frames of it",
    "empty": "its folder has no frame",
    "unreadable": "a frame does not decode",
    "no_gloss": "no gloss",
    "unknown_gloss": "a gloss the vocabulary lacks",
    "infeasible": "too few frames for its glosses",
    "too_long": f"more than {LONGEST} frames",
}
STRIDE = 4  # of S3D: fewer steps than this leaves are reported, and left out by the models that it is true for


# --- annotations --------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Source:
    """The annotations of a data set: `entries` of the leading form, completed from the others beside it."""

    place: Path
    form: str
    files: list[Path]  # all that were read
    entries: list[Entry]
    references: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)  # of gloss_dict.npy, where it is there
    notes: dict[str, Any] = field(default_factory=dict)  # what the report says of the other forms

    @property
    def sha256(self) -> str:
        whole = hashlib.sha256()
        for path in self.files:
            whole.update(f"{path.name} {file_sha256(path)}\n".encode())
        return whole.hexdigest()


def read_source(place: Path) -> Source:
    """All annotations in a folder (or those of one file's form) as one. Of those that have most of the sets csv leads,
    else npy, pickles, STM.

    Raises:
        Mistake: there is none, or one is damaged.
    """
    found = find_annotations(place)
    forms = {name: read_form(name, sets) for name, sets in found.items()}
    form = max(found, key=lambda name: len({entry.set for entry in forms[name]} - {""}))  # of several the first
    entries, others = forms[form], {name: other for name, other in forms.items() if name != form}
    numbers, shared, vocabularies = _numbers(place if place.is_dir() else place.parent)
    notes = {"forms": {name: dict(Counter(e.set or "none" for e in other)) for name, other in forms.items()},
             "differences": {name: differences(entries, other) for name, other in others.items()},
             "glosses_of_one_number": shared}
    references = {(e.set, e.id): e.gloss for e in others.get("stm", ())}
    files = [path for sets in found.values() for path in sets.values()] + vocabularies
    completed = _completed(entries, [e for other in others.values() for e in other])
    return Source(place, form, files, completed, references, numbers, notes)


def _completed(entries: list[Entry], others: list[Entry]) -> list[Entry]:
    """What the leading form does not say, as the first of the others that does has it."""
    more: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for other in others:
        for key, value in (("num_frames", other.num_frames), ("text", other.text), ("signer", other.signer)):
            if value not in (None, ""):
                more[other.set, other.id].setdefault(key, value)
    return [replace(e, **{key: value for key, value in more[e.set, e.id].items() if getattr(e, key) in (None, "")})
            for e in entries]


def _numbers(folder: Path) -> tuple[dict[str, int], list[list[str]], list[Path]]:
    """{gloss: number} of the one gloss_dict.npy below a folder; glosses that share a number in others; the files."""
    names = ("gloss_dict.npy", "gloss2ids.pkl")
    files = [here / name for here, _, there in walk(folder, lambda _, folders: len(folders) > 100, 5)
             for name in names if name in there]
    ours = [path for path in files if path.name == names[0]]
    if len(ours) > 1:
        raise Mistake("two vocabularies", ", ".join(map(paths.shown, ours)),
                      "name the folder of the annotation that counts: --annotations")
    shared = [group for path in files if path.name == names[1] for group in shared_numbers(load_pickle(path))]
    return read_gloss_numbers(ours[0]) if ours else {}, shared, files


def vocabulary_of(source: Source) -> list[str]:
    """The blank, then the glosses: in gloss_dict's own order, or those of the training set, sorted."""
    if source.numbers:
        return [BLANK, *source.numbers]
    return [BLANK, *sorted({gloss for entry in source.entries if entry.set == "train" for gloss in entry.gloss})]


# --- finding frames -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Spot:
    """Where the frames of one sentence seem to be, below the frames' root. `base` is what all those of one layout
    share; `inner` the folder in a zip; `names` a zip's, or the pattern that a folder's have to match."""

    kind: str
    place: str
    base: str
    inner: str = ""
    names: str | tuple[str, ...] = "*"


Spots = dict[tuple[str, str], Spot]  # by set ("": any) and what `called` says


def called(entry: Entry) -> str:
    """The name of the folder or video of a sentence: its id, where the annotation does not say otherwise."""
    parts = [part for part in entry.folder.split("/") if "*" not in part] or [""]
    parts = parts[:-1] if len(parts) > 2 and parts[-2] == "1" else parts  # …/<id>/1/<broadcast>, as SLRT has it
    name = parts[-2] if len(parts) > 1 and parts[-1] == "1" else parts[-1]
    return PurePosixPath(name).stem if name.lower().endswith(VIDEO_SUFFIXES) else name or entry.id


def discover(root: Path, ids: set[str]) -> dict[str, Spots]:
    """{base: spots} of everything below `root`, a folder or a zip, that is called as a sentence is."""
    if root.is_file():
        return _in_zip(root, root.name, ids)
    found: dict[str, Spots] = defaultdict(dict)
    for here, folders, files in walk(root, lambda _, folders: not ids.isdisjoint(folders) or len(folders) > 1000):
        inside = PurePosixPath(*here.relative_to(root).parts)
        for name in folders:
            if name in ids:
                _add(found, inside, name, "folder", str(inside / name))
        for name in files:
            path = PurePosixPath(name)
            if path.suffix.lower() in VIDEO_SUFFIXES and path.stem in ids:
                _add(found, inside, path.stem, "video", str(inside / name))
            elif path.suffix.lower() == ".zip":
                found.update(_in_zip(here / name, str(inside / name), ids))
    return dict(found)


def _add(found: dict[str, Spots], inside: PurePosixPath, name: str, kind: str, place: str) -> None:
    part = SET_NAMES.get(inside.name, "")
    base = str(inside.parent if part else inside)
    found[base][part, name] = Spot(kind, place, base)


@functools.lru_cache(2)
def _images_by_folder(path: Path) -> dict[str, list[str]]:
    """{folder: names of its images} in a zip; names that lead out of it are nobody's."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in archive(path).namelist():
        folder, _, last = name.rpartition("/")
        if last.lower().endswith(IMAGE_SUFFIXES) and folder and is_inside(name) and not last.startswith("."):
            folders[folder].append(name)
    return folders


def _in_zip(path: Path, place: str, ids: set[str]) -> dict[str, Spots]:
    found: dict[str, Spots] = defaultdict(dict)
    try:
        folders = _images_by_folder(path)
    except VideoError:
        return {}  # a zip of something else; where it is the only one, there are no frames
    for folder, names in folders.items():
        where = PurePosixPath(folder)
        where = where.parent if where.name == "1" else where
        if where.name not in ids:
            continue
        part = SET_NAMES.get(where.parent.name, "")
        base = f"{place}@{where.parent.parent if part else where.parent}"
        found[base][part, where.name] = Spot("zip", place, base, folder, tuple(names))
    return dict(found)


def choose(found: dict[str, Spots], root: Path) -> Spots:
    """The spots of the one layout that is there; of several that do not overlap, all; else whole frames.

    Raises:
        Mistake: there is none, or several of the same sentences.
    """
    if not found:
        raise Mistake(f"no frames in {paths.shown(root)}", "no folder, zip or video is called as the sentences are",
                      "put them there, or name their folder or zip: --videos; for glosses and text alone: --no_frames")
    whole = {base: spots for base, spots in found.items() if "fullframe" in base.lower()} or found
    spots: Spots = {}
    for base, more in sorted(whole.items()):
        both = spots.keys() & more.keys()
        if both:
            others = sorted({spots[key].base for key in both})
            raise Mistake("the same sentences have frames in several places", ", ".join([*others, base]),
                          "say which: --frames 'features/fullFrame-210x260px/{set}/{id}/1/*.png', or --videos")
        spots |= more
    return spots


def as_told(pattern: str, entries: Iterable[Entry]) -> Spots:
    """The spots that a layout in words means; {id} is what the annotation calls the folder of frames."""
    if not re.search(r"\{id\}", pattern) or not is_inside(pattern.replace("@", "/")):
        raise Mistake("--frames is no layout", repr(pattern),
                      "give a path below the frames' folder with {id} in it: features/{set}/{id}/1/*.png")
    return {(entry.set, called(entry)): _told(pattern, entry) for entry in entries}


def _told(pattern: str, entry: Entry) -> Spot:
    part = "dev" if entry.set == "val" else entry.set
    zipped, inside = (text.replace("{set}", part).replace("{id}", called(entry))
                      for text in (pattern.split("@", 1) if "@" in pattern else ("", pattern)))
    folder, _, last = inside.rpartition("/")
    if zipped:
        return Spot("zip", zipped, pattern, folder, last)
    if last.lower().endswith(VIDEO_SUFFIXES):
        return Spot("video", inside, pattern)
    return Spot("folder", folder, pattern, names=last)


# --- looking at one sentence's frames -----------------------------------------------------------------------

@dataclass(frozen=True)
class Look:
    """What was found at a spot; `problem` is one of REASONS or "", `gap` how many numbers its frames leave out."""

    frames: Frames | None = None
    count: int = 0
    width: int = 0
    height: int = 0
    sha256: str = ""  # of the middle frame and the count, or of the video
    gap: int = 0
    problem: str = ""
    detail: str = ""


def inspect(root: Path, thorough: bool, spot: Spot) -> Look:
    """List a sentence's frames and decode one (`thorough`: all). Never raises for what it finds there."""
    try:
        return _video(root, spot) if spot.kind == "video" else _images(root, spot, thorough)
    except (FileNotFoundError, NotADirectoryError) as error:
        return Look(problem="missing", detail=f"there is no {error.filename}")
    except VideoError as error:
        return Look(problem="unreadable", detail=f"{error.wrong}: {error.found}")
    except (OSError, ValueError) as error:  # ValueError: a name that no prepared file may hold
        return Look(problem="unreadable", detail=str(error))


def _video(root: Path, spot: Spot) -> Look:
    path = root / spot.place
    if not path.is_file():
        return Look(problem="missing", detail=f"there is no {path}")
    info = probe(path)
    return Look(Frames("video", spot.place), info.frames, info.width, info.height, file_sha256(path))


def _images(root: Path, spot: Spot, thorough: bool) -> Look:
    place, names = _names(root, spot)
    if not names:
        return Look(problem="empty", detail=f"no image in {'/'.join(filter(None, (place, spot.inner)))}")
    if len(names) > LONGEST:
        return Look(problem="too_long", detail=f"{len(names)} frames")
    numbered, gap = compact(names)
    frames = Frames(spot.kind, place, *numbered)
    middle = _bytes(root, frames, names[len(names) // 2])
    image = decode(middle, names[len(names) // 2])
    for name in names if thorough else ():
        if decode(_bytes(root, frames, name), name).shape != image.shape:
            return Look(problem="unreadable", detail=f"{name} is not of the others' size")
    sha256 = hashlib.sha256(middle + str(len(names)).encode()).hexdigest()
    return Look(frames, len(names), image.shape[1], image.shape[0], sha256, gap)


def _bytes(root: Path, frames: Frames, name: str) -> bytes:
    path = root / frames.place
    if frames.kind == "zip":
        return unzipped(path, name)
    if (path / name).stat().st_size > LARGEST:
        raise VideoError(f"cannot read {path / name}", "so large a file is no frame")
    return (path / name).read_bytes()


def _names(root: Path, spot: Spot) -> tuple[str, list[str]]:
    """The place and the images of a spot, in their order; a zip's with their folders."""
    place, pattern, names = spot.place, spot.names, spot.names
    if spot.kind == "zip" and isinstance(pattern, str):
        names = tuple(_images_by_folder(root / place).get(spot.inner, ()))
    elif spot.kind == "folder":
        place = f"{place}/1" if pattern == "*" and (root / place / "1").is_dir() else place
        names = tuple(path.name for path in (root / place).iterdir() if not path.name.startswith("."))
    if isinstance(pattern, str):
        fits = re.compile(fnmatch.translate(re.sub(r"%\d*d", "*", pattern)))
        names = tuple(name for name in names if fits.match(name.rpartition("/")[2]))
    return place, sorted((name for name in names if name.lower().endswith(IMAGE_SUFFIXES)), key=natural_key)


def compact(names: list[str]) -> tuple[tuple[str | tuple[str, ...], int], int]:
    """((pattern, first number) or (every name, 0), numbers left out) of images in their order."""
    for digits in re.finditer(r"\d+", names[0]):
        head, tail, first = names[0][:digits.start()], names[0][digits.end():], int(digits[0])
        pattern = f"{head}%0{len(digits[0])}d{tail}" if len(digits[0]) > 1 else f"{head}%d{tail}"
        numbers = [_number(name, head, tail) for name in names]
        if None in numbers or not NUMBERED.fullmatch(pattern):
            continue
        if all(name == pattern % (first + i) for i, name in enumerate(names)):
            return (pattern, first), 0
        if len(names) > 1 and len(set(numbers)) == len(names):
            return (tuple(names), 0), max(n or 0 for n in numbers) - first + 1 - len(names)
    return (tuple(names), 0), 0


def _number(name: str, head: str, tail: str) -> int | None:
    middle = name[len(head):len(name) - len(tail)]
    fits = name.startswith(head) and name.endswith(tail) and middle.isascii() and middle.isdecimal()
    return int(middle) if fits and len(middle) < 10 else None


# --- judging, and a whole split -----------------------------------------------------------------------------

@dataclass(frozen=True)
class Verdict:
    """Whether a sentence is used: `sentence`, or `reason` (of REASONS) and `detail`."""

    sentence: Sentence | None
    reason: str = ""
    detail: str = ""


def judge(entry: Entry, look: Look | None, known: set[str], reference: tuple[str, ...] | None = None) -> Verdict:
    """Hold one entry against what was found of its frames (None: it is prepared without them).

    Sentences to validate and test on are never left out for what a model cannot do with them.
    """
    if look is not None and look.problem:
        return Verdict(None, look.problem, look.detail)
    if not entry.gloss:
        return Verdict(None, "no_gloss", "its label is empty")
    count = (entry.num_frames or 0) if look is None else look.count
    if count > LONGEST:
        return Verdict(None, "too_long", f"{count} frames")
    unknown = [gloss for gloss in entry.gloss if gloss not in known]
    if entry.set == "train" and unknown:
        return Verdict(None, "unknown_gloss", " ".join(unknown))
    needed = steps_needed(entry.gloss)
    if entry.set == "train" and count and count < needed:
        return Verdict(None, "infeasible", f"{count} frames for {len(entry.gloss)} glosses that need {needed} steps")
    return Verdict(Sentence(entry.id, entry.set, entry.gloss, count, look.frames if look else None, entry.signer,
                            entry.text, None if reference == entry.gloss else reference))


@dataclass(frozen=True)
class Prepared:
    """A split that was looked at. `origin`: what it was made from, the first lines of its report."""

    root: Path  # of the frames
    vocabulary: list[str]
    verdicts: list[tuple[Entry, Verdict]]
    looks: dict[tuple[str, str], Look]
    origin: dict[str, Any]

    @property
    def sentences(self) -> list[Sentence]:
        """Those that can be used, with where their frames are."""
        return [replace(v.sentence, root=self.root) for _, v in self.verdicts if v.sentence is not None]

    @functools.cached_property
    def report(self) -> dict[str, Any]:
        """All that was found, JSON-able."""
        return {**self.origin, **_findings(self)}


def prepare(split: str, source: Source, frames: Path | None, *, layout: str = "", workers: int | None = None,
            limit: int = 0, thorough: bool = False, progress: Progress = silent, root: Path | None = None) -> Prepared:
    """Look at the frames of every sentence.

    Args:
        frames: the folder that they are somewhere below, or a zip; None prepares glosses and text alone.
        layout: where they are, in words; else they are found by the ids.
        limit: take that many of each set, spread over it.
        thorough: decode every frame instead of one of each sentence.
        root: what lies below it is named relative to it, so that the data can be moved.

    Raises:
        Mistake: no frames at all, or the same ones in several places.
    """
    entries = _limited([entry for entry in source.entries if entry.set], limit)
    looks = _look(entries, frames, layout, workers, thorough, progress) if frames else {}
    vocabulary = vocabulary_of(source)
    known, verdicts, seen = set(vocabulary), [], set()
    for entry in entries:
        key = entry.set, entry.id
        verdict = judge(entry, looks[key] if frames else None, known, source.references.get(key))
        verdicts.append((entry, Verdict(None, "twice", "the first one stays") if key in seen else verdict))
        seen.add(key)
    base = frames.parent if frames and frames.is_file() else frames
    origin = {"split": split, "annotations": _shown(source.place, root), "form": source.form,
              "annotations_sha256": source.sha256, "frames": _shown(base, root) if base else "",
              "layout": layout, "limit": limit, "without_a_set": sum(not e.set for e in source.entries),
              "vocabulary_from": "gloss_dict.npy" if source.numbers else "training set", **source.notes}
    return Prepared(base or Path(), vocabulary, verdicts, looks, origin)


def _limited(entries: list[Entry], limit: int) -> list[Entry]:
    if not limit:
        return entries
    chosen = []
    for part in SETS:
        own = [entry for entry in entries if entry.set == part]
        count = min(limit, len(own))
        chosen += [own[i * len(own) // count] for i in range(count)]
    return chosen


def _shown(path: Path, root: Path | None) -> str:
    path = path.absolute()
    inside = root is not None and path.is_relative_to(root.absolute())
    return str(path.relative_to(root.absolute()) if root and inside else path)


def _look(entries: list[Entry], frames: Path, layout: str, workers: int | None, thorough: bool,
          progress: Progress) -> dict[tuple[str, str], Look]:
    """What is found of every entry, by its set and id."""
    names = {(e.set, e.id): called(e) for e in reversed(entries)}  # of an id that stands twice the first
    spots = as_told(layout, entries) if layout else choose(discover(frames, set(names.values())), frames)
    base = frames.parent if frames.is_file() else frames
    found = {key: spots.get((key[0], name)) or spots.get(("", name)) for key, name in names.items()}
    wanted = {key: spot for key, spot in found.items() if spot}
    places = sorted(set(wanted.values()), key=lambda spot: (spot.place, spot.inner))
    work = spread(functools.partial(inspect, base, thorough), places, default_workers() if workers is None else workers)
    crashed = Look(problem="unreadable", detail="the decoder crashed on it")
    seen = {spot: look or crashed for spot, look in progress(work, len(places), "sentences")}
    gone = Look(problem="missing", detail=f"nothing in {paths.shown(frames)} is called so")
    return {key: seen[wanted[key]] if key in wanted else gone for key in names}


# --- the report ---------------------------------------------------------------------------------------------

def _findings(prepared: Prepared) -> dict[str, Any]:
    verdicts, looks = prepared.verdicts, prepared.looks
    kept = prepared.sentences
    left_out = [{**_named(e), "reason": v.reason, "detail": v.detail} for e, v in verdicts if v.sentence is None]
    reasons = Counter(str(row["reason"]) for row in left_out)
    sizes = Counter(f"{look.width}x{look.height}" for look in looks.values() if look.width)
    known = set(prepared.vocabulary)
    return {
        "sentences": len(verdicts),
        "kept": len(kept),
        "left_out_by_reason": {reason: reasons[reason] for reason in REASONS},
        "vocabulary": len(prepared.vocabulary) - 1,
        "sets": {part: _set_summary([s for s in kept if s.set == part], known) for part in SETS},
        "unknown_glosses": {part: _unknown([s for s in kept if s.set == part], known) for part in SETS},
        "untrained_glosses": _untrained(kept),
        "infeasible": [_tight(s) for s in kept if s.num_frames and time_steps(s.num_frames) < steps_needed(s.gloss)],
        "other_frame_counts": [{**_named(e), "annotated": e.num_frames, "found": v.sentence.num_frames}
                               for e, v in verdicts if looks and v.sentence and e.num_frames is not None
                               and e.num_frames != v.sentence.num_frames],
        "gaps": [{**_named(e), "numbers_left_out": looks[e.set, e.id].gap}
                 for e, v in verdicts if v.sentence and looks and looks[e.set, e.id].gap],
        "frame_sizes": dict(sizes.most_common()),
        "ids_in_two_sets": _in_two_sets(kept, lambda s: s.id),
        "sentences_in_two_sets": len(_in_two_sets(kept, lambda s: s.gloss)),
        "signers_in_two_sets": _in_two_sets(kept, lambda s: s.signer or None),
        "same_frames": _same_frames(kept, looks),
        "text": _text(kept),
        "left_out": left_out,
    }


def _named(item: Entry | Sentence) -> dict[str, Any]:
    return {"id": item.id, "set": item.set}


def _tight(sentence: Sentence) -> dict[str, Any]:
    return {**_named(sentence), "frames": sentence.num_frames, "steps": time_steps(sentence.num_frames),
            "needed": steps_needed(sentence.gloss)}


def _set_summary(sentences: list[Sentence], known: set[str]) -> dict[str, Any]:
    lengths = [s.num_frames for s in sentences if s.num_frames]
    return {
        "sentences": len(sentences),
        "glosses": sum(len(s.gloss) for s in sentences),
        "vocabulary": len({gloss for s in sentences for gloss in s.gloss}),
        "signers": len({s.signer for s in sentences} - {""}),
        "frames": {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths),
                   "all": sum(lengths)} if lengths else None,
        "with_unknown_glosses": sum(not known.issuperset(s.gloss) for s in sentences),
    }


def _unknown(sentences: list[Sentence], known: set[str]) -> dict[str, int]:
    return dict(Counter(gloss for s in sentences for gloss in s.gloss if gloss not in known).most_common())


def _untrained(sentences: list[Sentence]) -> dict[str, int]:
    """Glosses of the other sets that no training sentence has: nothing can learn them."""
    trained = {gloss for s in sentences if s.set == "train" for gloss in s.gloss}
    return dict(Counter(gloss for s in sentences if s.set != "train" for gloss in s.gloss if gloss not in trained))


def _text_words(text: str) -> list[str]:
    """The words of a text; of Chinese, which does not part them, the characters."""
    return re.findall(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+", text)


def _text(sentences: list[Sentence]) -> dict[str, Any] | None:
    """What a translation is learned from; None of a corpus without any."""
    told = [s for s in sentences if s.text]
    known = {word for s in told if s.set == "train" for word in _text_words(s.text)}
    unknown = {part: Counter(word for s in told if s.set == part for word in _text_words(s.text) if word not in known)
               for part in SETS}
    return {"without": [_named(s) for s in sentences if not s.text], "vocabulary": len(known),
            "unknown_words": {part: dict(words.most_common()) for part, words in unknown.items()},
            "in_two_sets": len(_in_two_sets(told, lambda s: s.text))} if told else None


def _in_two_sets(sentences: list[Sentence], key: Any) -> dict[str, list[str]]:
    places: dict[Any, set[str]] = defaultdict(set)
    for sentence in sentences:
        if key(sentence) is not None:
            places[key(sentence)].add(sentence.set)
    return {str(k): [part for part in SETS if part in found] for k, found in places.items() if len(found) > 1}


def _same_frames(sentences: list[Sentence], looks: Mapping[tuple[str, str], Look]) -> list[dict[str, Any]]:
    """Groups with equally many frames and the same one in the middle."""
    groups: dict[str, list[Sentence]] = defaultdict(list)
    for sentence in sentences:
        if (sentence.set, sentence.id) in looks:
            groups[looks[sentence.set, sentence.id].sha256].append(sentence)
    return [{"sentences": [_named(s) for s in group], "across_glosses": len({s.gloss for s in group}) > 1,
             "across_sets": len({s.set for s in group}) > 1} for group in groups.values() if len(group) > 1]


def summary(report: dict[str, Any]) -> str:
    """The report as a person wants it on a terminal."""
    lines = [f"{'':8}{'sentences':>10}{'glosses':>9}{'distinct':>10}{'signers':>9}   frames (min / median / max)"]
    for part, row in report["sets"].items():
        frames = row["frames"]
        text = f"{frames['min']} / {frames['median']:g} / {frames['max']}" if frames else "-"
        counts = f"{row['sentences']:10}{row['glosses']:9}{row['vocabulary']:10}{row['signers']:9}"
        lines.append(f"{part:8}{counts}   {text}")
    lines.append(f"{report['kept']} of {report['sentences']} sentences kept, a vocabulary of {report['vocabulary']} "
                 f"glosses ({report['vocabulary_from']})" +
                 (f", texts of {report['text']['vocabulary']} words (training set)" if report["text"] else ""))
    return "\n".join([*lines, *(f"  {n:6} {what}" for what, n in findings(report) if n)])


def findings(report: dict[str, Any]) -> list[tuple[str, int]]:
    """What a person should know of the split, each with its number."""
    sets, doubles, others = report["sets"], report["same_frames"], report["differences"].values()
    unknown = sum(len(found) for found in report["unknown_glosses"].values())
    left_out = [(f"left out: {REASONS[why]}", n) for why, n in report["left_out_by_reason"].items()]
    text = report["text"] or {"without": [], "unknown_words": {}, "in_two_sets": 0}
    return left_out + [
        ("left out: in no set", report["without_a_set"]),
        ("scored glosses that the vocabulary lacks", unknown),
        ("sentences with such a gloss", sum(row["with_unknown_glosses"] for row in sets.values())),
        ("scored glosses that training lacks", len(report["untrained_glosses"])),
        (f"need more steps than a stride of {STRIDE} leaves", len(report["infeasible"])),
        ("have another number of frames than annotated", len(report["other_frame_counts"])),
        ("have a gap in their frames' numbers", len(report["gaps"])),
        ("ids in several sets", len(report["ids_in_two_sets"])),
        ("same glosses in several sets", report["sentences_in_two_sets"]),
        ("signers in several sets", len(report["signers_in_two_sets"])),
        ("groups with the same frames", len(doubles)),
        ("such groups under several labels", sum(d["across_glosses"] for d in doubles)),
        ("such groups in several sets", sum(d["across_sets"] for d in doubles)),
        ("missing in another form of the annotation", len({i for d in others for i in d["not_there"]})),
        ("only in another form of the annotation", len({i for d in others for i in d["only_there"]})),
        ("glosses share a number in gloss2ids.pkl", sum(map(len, report["glosses_of_one_number"]))),
        ("have no text", len(text["without"])),
        ("words of texts that training lacks", len(set().union(*text["unknown_words"].values()))),
        ("same text in several sets", text["in_two_sets"]),
    ]


def details(report: dict[str, Any]) -> str:
    """A line for everything that was found of one sentence or gloss."""
    lines = [f"left out: {row['id']} ({row['set']}): {REASONS[row['reason']]}: {row['detail']}"
             for row in report["left_out"]]
    lines += [f"infeasible: {row['id']} ({row['set']}): {row['frames']} frames are {row['steps']} steps, "
              f"{row['needed']} are needed" for row in report["infeasible"]]
    lines += [f"unknown gloss: {gloss}, {n} times in {part}" for part, found in report["unknown_glosses"].items()
              for gloss, n in found.items()]
    text = report["text"] or {"without": [], "unknown_words": {}}
    lines += [f"no text: {row['id']} ({row['set']})" for row in text["without"]]
    lines += [f"unknown word: {word}, {n} times in {part}" for part, found in text["unknown_words"].items()
              for word, n in found.items()]
    lines += [f"frames: {row['id']} ({row['set']}): {row['annotated']} annotated, {row['found']} found"
              for row in report["other_frame_counts"]]
    lines += [f"gap: {row['id']} ({row['set']}): {row['numbers_left_out']} numbers left out" for row in report["gaps"]]
    lines += [f"in several sets: {name} ({', '.join(sets)})" for name, sets in report["ids_in_two_sets"].items()]
    lines += ["same frames: " + " = ".join(f"{s['id']} ({s['set']})" for s in group["sentences"])
              for group in report["same_frames"]]
    lines += [f"not in {form}: {name}" for form, found in report["differences"].items() for name in found["not_there"]]
    lines += [f"one number: {' = '.join(group)}" for group in report["glosses_of_one_number"]]
    return "".join(f"{line}\n" for line in lines)


# --- writing ------------------------------------------------------------------------------------------------

def write_prepared(prepared: Prepared, folder: Path) -> None:
    """{train,dev,test}.jsonl, vocabulary.txt and report.json, each put in place whole; the report first, for it
    says where the frames are."""
    put(folder / "report.json", json.dumps(prepared.report, indent=1, ensure_ascii=False) + "\n")
    put(folder / VOCABULARY, "".join(f"{n}\t{gloss}\n" for n, gloss in enumerate(prepared.vocabulary)))
    for part, name in FILES.items():
        write_sentences(folder / name, [s for s in prepared.sentences if s.set == part])


def guard(folder: Path, source: Source, limit: int, frames: bool = True) -> None:
    """Refuse to replace what was prepared from another annotation, from more of it, or with frames by one without.

    Raises:
        Mistake: what is in `folder` is such.
    """
    file = folder / "report.json"
    if not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    where, do = f"{paths.shown(folder)} was made", "say --replace to write over it, or choose another name behind -as"
    if before.get("annotations_sha256") != source.sha256:
        raise Mistake(f"{where} from another annotation",
                      f"{before.get('annotations')} was not what {paths.shown(source.place)} is now", do)
    if limit and before.get("limit") != limit:
        raise Mistake(f"{where} from other sentences", f"--limit {before.get('limit') or 'was not given'}", do)
    if before.get("frames") and not frames:
        raise Mistake(f"{where} with frames", f"they are in {before['frames']}", do)
