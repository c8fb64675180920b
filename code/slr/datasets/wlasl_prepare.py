"""What `preprocess.py` does: look at every video of a split, keep the usable clips, say why not the others.

    prepared = prepare("asl100", read_annotations(file), videos, workers=4)
    write_labels(prepared, paths.labels(root, "asl100"))
    write_store(prepared, paths.store(root, "jpeg", "asl100"), StoreSettings("jpeg"), workers=4)

No video can end it: one that is missing, is no video, or kills its decoder's process is a clip left out.
"""

import json
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import statistics
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from slr import paths
from slr.datasets.files import put
from slr.datasets.wlasl import OLDER, PREPARED, Annotations, Clip, class_list_beside, read_annotations
from slr.errors import Mistake
from slr.paths import SETS
from slr.video import (
    Box,
    StoredClip,
    StoreSettings,
    StoreWriter,
    VideoError,
    VideoInfo,
    file_sha256,
    find_video,
    probe,
    read_frames,
    write_clip,
)

MIN_FRAMES = 10  # a shorter clip holds no sign
BOX_SLACK = 2  # pixels that a box may stand out of its frame by rounding
REASONS = {
    "missing": "no such video",
    "unreadable": "the video does not decode",
    "out_of_range": "the sign lies outside the video",
    "too_short": f"fewer than {MIN_FRAMES} frames",
}
Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]  # (items, total, what) -> items


def silent(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    return items


# --- many processes, none of which can take the others down -------------------------------------------------

def _start_worker() -> None:
    """Ctrl-C is the parent's to handle, and a worker whose parent was killed does not stay."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def spread(work: Callable[[Item], Result], items: Sequence[Item],
           workers: int) -> Generator[tuple[Item, Result | None], None, None]:
    """(item, work(item)) in any order, by `workers` processes (0: this one).

    A decoder that crashes takes its process with it: those that were under way are then tried one by one, and
    whoever crashes alone gives None.
    """
    if not workers:
        yield from ((item, work(item)) for item in items)
        return
    queue = iter(items)
    while batch := (yield from _pooled(work, queue, workers)):
        for item in batch:
            if (yield from _pooled(work, iter([item]), 1)):
                yield item, None


def _pooled(work: Callable[[Item], Result], queue: Iterator[Item],
            workers: int) -> Generator[tuple[Item, Result | None], None, list[Item]]:
    """As `spread`, until a process dies; returns what was under way then."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit OpenCV's threads in whatever state
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        busy: dict[Future[Result], Item] = {}
        try:
            while True:
                for item in islice(queue, 2 * workers - len(busy)):
                    busy[pool.submit(work, item)] = item
                if not busy:
                    return []
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield busy.pop(future), result
        except BrokenProcessPool:
            return list(busy.values())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# --- looking at one video, judging one clip -----------------------------------------------------------------

@dataclass(frozen=True)
class Facts:
    """What was found at a video's name: `problem` is "", "missing" or "unreadable", `detail` the reason."""

    info: VideoInfo | None = None
    sha256: str = ""
    problem: str = ""
    detail: str = ""


def inspect(folder: Path, stem: str) -> Facts:
    """Decode and hash one video. Never raises for what it finds there."""
    try:
        path = find_video(folder, stem)
    except VideoError as error:
        return Facts(problem="missing", detail=error.wrong)
    try:
        return Facts(probe(path), file_sha256(path))
    except VideoError as error:
        return Facts(problem="unreadable", detail=error.found or error.wrong)
    except OSError as error:
        return Facts(problem="unreadable", detail=error.strerror or str(error))


@dataclass(frozen=True)
class Verdict:
    """Whether a clip is used: `clip` with its real range and box, or `reason` (of REASONS) and `detail`."""

    clip: Clip | None
    reason: str = ""
    detail: str = ""
    clamped: bool = False
    box: str = "none"  # none | kept | rescaled | ignored


def judge(clip: Clip, facts: Facts, source: tuple[int, int] | None = None) -> Verdict:
    """Hold one annotated clip against its video. `source`: width, height that its box refers to, if known."""
    if facts.info is None:
        return Verdict(None, facts.problem, facts.detail)
    frames = facts.info.frames
    stop = frames if clip.stop is None else min(clip.stop, frames)
    range_text = f"frames {clip.start + 1} to {'the end' if clip.stop is None else clip.stop} of {frames}"
    if clip.start < 0 or clip.start >= frames or (clip.stop is not None and clip.stop <= clip.start):
        return Verdict(None, "out_of_range", range_text)
    if stop - clip.start < MIN_FRAMES:
        return Verdict(None, "too_short", range_text)
    box, how = fit_box(clip.box, facts.info.width, facts.info.height, source)
    clamped = clip.stop is not None and clip.stop > frames
    return Verdict(replace(clip, stop=stop, box=box), clamped=clamped, box=how)


def fit_box(box: Box | None, width: int, height: int,
            source: tuple[int, int] | None = None) -> tuple[Box | None, str]:
    """The box in the pixels of a file of width x height, and what was done (as in Verdict.box)."""
    if box is None:
        return None, "none"
    how, (x0, y0, x1, y1) = "kept", box
    if source and source != (width, height):
        across, down = width / source[0], height / source[1]
        how = "rescaled"
        x0, y0 = math.floor(x0 * across), math.floor(y0 * down)
        x1, y1 = math.ceil(x1 * across), math.ceil(y1 * down)
    inside = (x0 >= -BOX_SLACK and y0 >= -BOX_SLACK and x1 <= width + BOX_SLACK and y1 <= height + BOX_SLACK)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if not inside or x1 - x0 < 2 or y1 - y0 < 2:
        return None, "ignored"
    return (x0, y0, x1, y1), how


# --- a whole split ------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Prepared:
    """A split that was looked at. `origin`: what it was made from, the first lines of its report."""

    videos: Path
    classes: list[str]
    verdicts: list[tuple[Clip, Verdict]]
    facts: dict[str, Facts]
    origin: dict[str, Any]

    @property
    def clips(self) -> list[Clip]:
        """The clips that can be used, with their real ranges and boxes."""
        return [verdict.clip for _, verdict in self.verdicts if verdict.clip is not None]

    @cached_property
    def report(self) -> dict[str, Any]:
        """All that was found, JSON-able: counts, every left-out clip with its reason, duplicates, sets."""
        return {**self.origin, **_findings(self.classes, self.verdicts, self.facts)}

    def without(self, failed: dict[str, str]) -> "Prepared":
        """The same less these clips (id: why), which turned out unreadable when their frames were wanted."""
        verdicts = [(clip, Verdict(None, "unreadable", failed[clip.id]) if clip.id in failed else verdict)
                    for clip, verdict in self.verdicts]
        return replace(self, verdicts=verdicts)

    def info(self, clip: Clip) -> VideoInfo:
        info = self.facts[clip.stem].info
        assert info is not None, clip  # judge() keeps no other
        return info


def default_workers() -> int:
    """One process a core that this process may use, at most 8."""
    return min(len(os.sched_getaffinity(0)), 8)


def prepare(split: str, found: Annotations, videos: Path, workers: int | None = None, limit: int = 0,
            progress: Progress = silent, root: Path | None = None) -> Prepared:
    """Look at every video of a split; `limit` takes that many clips of each set, spread over the file.

    What lies under `root` is named relative to it in the report, so that the data can be moved.
    """
    clips = _limited(found.clips, limit)
    stems = sorted({clip.stem for clip in clips})
    workers = default_workers() if workers is None else workers
    looked = progress(spread(partial(inspect, videos), stems, workers), len(stems), "videos")
    crashed = Facts(problem="unreadable", detail="the decoder crashed on it")
    facts = {stem: result or crashed for stem, result in looked}
    verdicts = [(clip, judge(clip, facts[clip.stem], found.sizes.get(clip.stem))) for clip in clips]
    origin = {"split": split, "annotations": _place(found.file, root), "videos": _place(videos, root),
              "form": found.form, "annotations_sha256": annotations_hash(found.file), "limit": limit}
    return Prepared(videos, found.classes, verdicts, facts, origin)


def _limited(clips: list[Clip], limit: int) -> list[Clip]:
    if not limit:
        return clips
    chosen = set()
    for name in SETS:
        ids = [clip.id for clip in clips if clip.set == name]
        count = min(limit, len(ids))
        chosen |= {ids[i * len(ids) // count] for i in range(count)}
    return [clip for clip in clips if clip.id in chosen]


def _place(path: Path, root: Path | None) -> str:
    path = path.absolute()
    return str(path.relative_to(root.absolute()) if root and path.is_relative_to(root.absolute()) else path)


def _findings(classes: list[str], verdicts: list[tuple[Clip, Verdict]],
              facts: dict[str, Facts]) -> dict[str, Any]:
    kept = [verdict.clip for _, verdict in verdicts if verdict.clip is not None]
    infos = [f.info for f in facts.values() if f.info is not None]
    left_out = [{**_named(clip), "reason": v.reason, "detail": v.detail}
                for clip, v in verdicts if v.clip is None]
    boxes = Counter(v.box for _, v in verdicts if v.clip is not None)
    reasons = Counter(str(row["reason"]) for row in left_out)
    return {
        "clips": len(verdicts),
        "kept": len(kept),
        "left_out_by_reason": {reason: reasons[reason] for reason in REASONS},
        "clamped": sum(v.clamped for _, v in verdicts),
        "header_lies": sum(info.header_frames != info.frames for info in infos),
        "boxes": {how: boxes[how] for how in ("kept", "rescaled", "ignored", "none")},
        "frame_rates": dict(sorted(Counter(f"{info.fps:.0f}" for info in infos).items())),
        "sets": {name: _set_summary([c for c in kept if c.set == name], classes) for name in SETS},
        "signers_in_two_sets": _in_two_sets(kept, lambda clip: clip.signer),
        "videos_in_two_sets": _in_two_sets(kept, lambda clip: clip.stem),
        "duplicates": _duplicates(kept, facts),
        "left_out": left_out,
    }


def annotations_hash(file: Path) -> str:
    """What a split was made from: the hash of its file, or of the older program's label files in a folder."""
    if file.is_file():
        return file_sha256(file)
    return "".join(file_sha256(path) for path in sorted(file.glob(OLDER.format(set="*"))))


def _set_summary(clips: list[Clip], classes: list[str]) -> dict[str, Any]:
    seen = {clip.label for clip in clips}
    without = [gloss for label, gloss in enumerate(classes) if label not in seen]
    lengths = [(clip.stop or 0) - clip.start for clip in clips]
    return {
        "clips": len(clips),
        "classes": len(seen),
        "signers": len({clip.signer for clip in clips} - {None}),
        "frames": _spread(lengths) if clips else None,
        "classes_without_a_clip": without if clips else [],  # a set that there is not lacks nothing
    }


def _spread(numbers: list[int]) -> dict[str, float]:
    return {"min": min(numbers), "median": statistics.median(numbers), "max": max(numbers)}


def _named(clip: Clip) -> dict[str, str]:
    return {"clip_id": clip.id, "gloss": clip.gloss, "set": clip.set}


def _in_two_sets(clips: list[Clip], key: Callable[[Clip], Any]) -> dict[str, list[str]]:
    places: dict[Any, set[str]] = defaultdict(set)
    for clip in clips:
        if key(clip) is not None:
            places[key(clip)].add(clip.set)
    shared = (k for k in sorted(places) if len(places[k]) > 1)
    return {str(k): [name for name in SETS if name in places[k]] for k in shared}


def _duplicates(clips: list[Clip], facts: dict[str, Facts]) -> list[dict[str, Any]]:
    """Clips with the same bytes: under two glosses they teach nonsense, in two sets they flatter."""
    same: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        same[facts[clip.stem].sha256].append(clip)
    return [{"clips": [_named(clip) for clip in group],
             "across_glosses": len({c.label for c in group}) > 1,
             "across_sets": len({c.set for c in group}) > 1}
            for group in same.values() if len({c.stem for c in group}) > 1]


def summary(report: dict[str, Any]) -> str:
    """The report as a person wants it on a terminal."""
    lines = [f"{'':8}{'clips':>8}{'classes':>9}{'signers':>9}   frames (min / median / max)"]
    for name, row in report["sets"].items():
        frames = row["frames"]
        text = f"{frames['min']} / {frames['median']:g} / {frames['max']}" if frames else "-"
        lines.append(f"{name:8}{row['clips']:8}{row['classes']:9}{row['signers']:9}   {text}")
    lines.append(f"{report['kept']} of {report['clips']} clips kept")
    return "\n".join([*lines, *(f"  {n:6} {what}" for what, n in findings(report) if n)])


def details(report: dict[str, Any]) -> str:
    """A line for every clip that is left out, and for every group of duplicates."""
    lines = [f"left out: {_words(row)}: {REASONS[row['reason']]}: {row['detail']}"
             for row in report["left_out"]]
    for group in report["duplicates"]:
        lines.append("same bytes: " + " = ".join(_words(row) for row in group["clips"]))
    return "".join(f"{line}\n" for line in lines)


def _words(row: dict[str, str]) -> str:
    return f"{row['clip_id']} ({row['gloss']}, {row['set']})"


def findings(report: dict[str, Any]) -> list[tuple[str, int]]:
    """What a person should know of the split, each with its number."""
    sets, doubles = report["sets"], report["duplicates"]
    left_out = [(f"left out: {REASONS[why]}", n) for why, n in report["left_out_by_reason"].items()]
    return left_out + [
        ("ranges end past the last frame: cut there", report["clamped"]),
        ("headers tell another frame count: counted", report["header_lies"]),
        ("boxes rescaled from the source's size", report["boxes"]["rescaled"]),
        ("boxes do not fit the video: whole frame", report["boxes"]["ignored"]),
        ("groups of clips with the same bytes", len(doubles)),
        ("such groups under several glosses", sum(d["across_glosses"] for d in doubles)),
        ("such groups in several sets", sum(d["across_sets"] for d in doubles)),
        ("videos stand in several sets", len(report["videos_in_two_sets"])),
        ("signers stand in several sets", len(report["signers_in_two_sets"])),
        ("classes without a training clip", len(sets["train"]["classes_without_a_clip"])),
        ("classes without a validation clip", len(sets["val"]["classes_without_a_clip"])),
        ("classes without a test clip", len(sets["test"]["classes_without_a_clip"])),
    ]


# --- writing ------------------------------------------------------------------------------------------------

def write_labels(prepared: Prepared, folder: Path) -> None:
    """{train,val,test}_instances.json, class_list.txt and report.json, each put in place whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        rows = [_row(prepared, clip) for clip in prepared.clips if clip.set == name]
        write_json(folder / PREPARED.format(set=name), rows)
    class_list = "".join(f"{n}\t{gloss}\n" for n, gloss in enumerate(prepared.classes))
    put(folder / "class_list.txt", class_list)
    write_json(folder / "report.json", prepared.report)


def adopt(file: Path, root: Path, split: str, replace: bool = False) -> Path:
    """Copy an annotation from anywhere to where the split of that name is looked for; returns that place.

    Raises:
        Mistake: another annotation of that name is there, and not `replace`.
    """
    found = read_annotations(file)
    copies = {file: root / "WLASL" / "splits" / f"{split}.json"}
    target = copies[file]
    if found.form == "labels":
        target = paths.labels(root, split)
        copies = {path: target / path.name for path in found.file.glob(OLDER.format(set="*"))}
    elif found.form == "nslt" and (beside := class_list_beside(file)):
        copies[beside] = target.with_name(f"{split}_class_list.txt")
    for path, place in copies.items():
        if place.exists() and not replace and place.read_bytes() != path.read_bytes():
            raise Mistake(f"another annotation is called {split} already", paths.shown(place),
                          "choose another name behind -as, or say --replace")
    for path, place in copies.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        put(place, path.read_text(encoding="utf-8"))
    return target


def guard(folder: Path, annotations: Path | None, limit: int) -> None:
    """Refuse to replace labels that were made from another annotation (None: it may differ), or by a part.

    Raises:
        Mistake: the labels in `folder` are such.
    """
    report = folder / "report.json"
    if not report.is_file():
        return
    before = json.loads(report.read_text(encoding="utf-8"))
    do = "say --replace to write over them, or choose another name behind -as"
    where = f"the labels in {paths.shown(folder)} were made"
    if annotations is not None and before["annotations_sha256"] != annotations_hash(annotations):
        raise Mistake(f"{where} from another annotation",
                      f"{before['annotations']} was not what {paths.shown(annotations)} is now", do)
    if limit and before["limit"] != limit:
        raise Mistake(f"{where} from other clips", f"--limit {before['limit'] or 'was not given'}", do)


def _row(prepared: Prepared, clip: Clip) -> dict[str, Any]:
    info = prepared.info(clip)
    return {"clip_id": clip.id, "gloss": clip.gloss, "label_num": clip.label, "video_id": clip.stem,
            "frame_start": clip.start + 1, "frame_end": clip.stop, "bbox": clip.box, "signer_id": clip.signer,
            "frames": info.frames, "width": info.width, "height": info.height}


def write_json(path: Path, data: Any) -> None:
    put(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _source(prepared: Prepared, settings: StoreSettings, clip: Clip) -> dict[str, Any]:
    """What the stored frames of a clip were made of: if any of it changes they are written anew."""
    box = list(clip.box) if clip.box and settings.crop == "box" else None
    return {"sha256": prepared.facts[clip.stem].sha256, "start": clip.start, "stop": clip.stop, "box": box}


def _store_one(videos: Path, folder: Path, settings: StoreSettings,
               item: tuple[Clip, dict[str, Any]]) -> StoredClip | str:
    clip, source = item
    try:
        frames = read_frames(find_video(videos, clip.stem), range(clip.start, clip.stop or 0),
                             clip.box if source["box"] else None, settings.short_side)
        return write_clip(folder, settings, clip.id, frames, source)
    except VideoError as error:
        return str(error)


def write_store(prepared: Prepared, folder: Path, settings: StoreSettings, workers: int | None = None,
                verify: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Write every clip that the store does not hold yet; `verify` also hashes those it holds.

    Returns:
        {"written": clips, "kept": clips, "failed": {clip id: reason}, "bytes": of the whole store}

    Raises:
        Mistake: the store there has other settings, another process writes it, or the disk is full.
    """
    workers = default_workers() if workers is None else workers
    failed: dict[str, str] = {}
    written = 0
    try:
        with StoreWriter(folder, settings) as store:
            items = [(clip, _source(prepared, settings, clip)) for clip in prepared.clips]
            wanted = [(clip, source) for clip, source in items if not store.holds(clip.id, source, verify)]
            work = partial(_store_one, prepared.videos, folder, settings)
            for (clip, _), stored in progress(spread(work, wanted, workers), len(wanted), "stored"):
                if isinstance(stored, StoredClip):
                    store.append(stored)
                    written += 1
                else:
                    failed[clip.id] = stored or "the decoder crashed on it"
            size = sum(clip.bytes for clip in store.clips.values())
    except OSError as error:
        raise Mistake(f"cannot write the frame store {folder}", error.strerror or str(error),
                      "make room and run the same command again: it goes on where it stopped") from error
    return {"written": written, "kept": len(prepared.clips) - len(wanted), "failed": failed, "bytes": size}
