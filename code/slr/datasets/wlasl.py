"""WLASL-form data: isolated signs as clips, out of every annotation file that people hold for them.

    split = read_annotations("data/WLASL/splits/asl100.json")        # as published, nothing checked yet
    clips = load_clips(paths.data_root(), "asl100", "train")         # as preprocess.py prepared them

Source: Li et al., Word-level Deep Sign Language Recognition from Video (WACV 2020), and its repository's
`WLASL_v0.3.json` and `nslt_<n>.json`. A class number is the gloss's position in the split file.
"""

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slr import paths
from slr.errors import Mistake
from slr.paths import SETS
from slr.video import Box

OLDER = "{set}_instances_fixed_frange_bboxes_len.json"
PREPARED = "{set}_instances.json"


@dataclass(frozen=True)
class Clip:
    """One sign in one video: frames start to stop of it, 0-based, stop one past the last (None: to the end).

    `box` is x0, y0, x1, y1: in the file's pixels once prepared, in the source's as an annotation gives it.
    """

    id: str
    gloss: str
    label: int
    start: int = 0
    stop: int | None = None
    box: Box | None = None
    signer: int | None = None
    set: str = "train"
    video: str = ""  # the file's name without its ending, where `id` is not it

    @property
    def stem(self) -> str:
        return self.video or self.id


@dataclass(frozen=True)
class Annotations:
    """A split as its file tells it. `sizes`: width, height of the source video that its box refers to."""

    file: Path
    form: str  # wlasl | nslt | labels
    classes: list[str]
    clips: list[Clip]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


# --- reading, strictly --------------------------------------------------------------------------------------

def _wrong(path: Path, found: str, do: str = "mend that entry, or get the file anew") -> Mistake:
    return Mistake(f"{paths.shown(path)} is no WLASL annotation", found, do)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Mistake(f"cannot read {paths.shown(path)}", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise Mistake(f"{paths.shown(path)} is no text", str(error), "get the file anew") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise Mistake(f"{paths.shown(path)} is no JSON", str(error), "get the file anew") from error


def _get(entry: Any, key: str, kinds: type | tuple[type, ...], path: Path, where: str) -> Any:
    """entry[key], which must be there and of one of `kinds`."""
    if not isinstance(entry, dict):
        raise _wrong(path, f"{where} is {type(entry).__name__}, not an object")
    if key not in entry:
        raise _wrong(path, f"{where} has no {key!r}, only {', '.join(map(repr, entry)) or 'nothing'}")
    value = entry[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise _wrong(path, f"{where} has {key} = {value!r}")
    return value


def _text(entry: Any, key: str, path: Path, where: str) -> str:
    value = " ".join(str(_get(entry, key, (str, int), path, where)).split())
    if not value:
        raise _wrong(path, f"{where} has an empty {key!r}")
    return value


def _video_id(entry: Any, path: Path, where: str) -> str:
    return _plain_id(_text(entry, "video_id", path, where), path, where)


def _plain_id(text: str, path: Path, where: str) -> str:
    if re.search(r"[/\\\0]", text) or text in (".", ".."):
        raise _wrong(path, f"{where} has video_id {text!r}, which is no file name")
    return text


def _set(entry: Any, key: str, path: Path, where: str) -> str:
    name = _get(entry, key, str, path, where)
    if name not in SETS:
        raise _wrong(path, f"{where} has {key} = {name!r}, which is none of {', '.join(SETS)}")
    return name


def _whole(entry: Any, key: str, path: Path, where: str) -> int:
    value = _get(entry, key, (int, float), path, where)
    if not math.isfinite(value) or value != int(value):
        raise _wrong(path, f"{where} has {key} = {value!r}")
    return int(value)


def _range(first: int, last: int) -> tuple[int, int | None]:
    """1-indexed, inclusive, -1 to the end -> 0-based, half open; the impossible is judged later."""
    return first - 1, None if last == -1 else last


def _box(entry: dict[str, Any], path: Path, where: str) -> Box | None:
    value = entry.get("bbox")
    if not value:
        return None
    if (not isinstance(value, list) or len(value) != 4
            or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)):
        raise _wrong(path, f"{where} has bbox = {value!r}, which is not four numbers")
    x0, y0, x1, y1 = (round(v) for v in value)
    return x0, y0, x1, y1


def _optional(entry: dict[str, Any], key: str, path: Path, where: str) -> int | None:
    return None if entry.get(key) is None else _whole(entry, key, path, where)


def read_annotations(path: Path | str) -> Annotations:
    """Read whichever form `path` has: WLASL's list, nslt_<n>.json, or prepared labels (file or folder).

    Raises:
        Mistake: no such file, no JSON, or an entry that lacks something; names the file and the entry.
    """
    path = Path(path)
    if path.is_dir() or re.fullmatch(r"(train|val|test)_instances.*", path.stem):
        return _read_labels(path if path.is_dir() else path.parent)
    if not path.is_file():
        raise Mistake(f"no annotation {paths.shown(path)}", "there is no such file")
    data = _json(path)
    if not isinstance(data, (list, dict)) or not data:
        raise _wrong(path, f"{str(data)[:40]!r}, not a list of glosses or an object of clips")
    found = _read_nslt(path, data) if isinstance(data, dict) else _read_wlasl(path, data)
    return replace(found, clips=_distinct(found.clips))


def _distinct(clips: list[Clip]) -> list[Clip]:
    """A video that is named twice gives two clips: 70001 and 70001.2."""
    seen: Counter[str] = Counter()
    result = []
    for clip in clips:
        seen[clip.id] += 1
        again = seen[clip.id]
        result.append(clip if again == 1 else replace(clip, id=f"{clip.id}.{again}", video=clip.id))
    return result


def _read_wlasl(path: Path, data: list[Any]) -> Annotations:
    classes: list[str] = []
    clips: list[Clip] = []
    sizes: dict[str, tuple[int, int]] = {}
    for label, entry in enumerate(data):
        gloss = _text(entry, "gloss", path, f"entry {label}")
        if gloss in classes:
            raise _wrong(path, f"entries {classes.index(gloss)} and {label} are both {gloss!r}")
        classes.append(gloss)
        for n, instance in enumerate(_get(entry, "instances", list, path, f"entry {label} ({gloss!r})")):
            where = f"instance {n} of {gloss!r}"
            clip = _instance(instance, gloss, label, path, where)
            clips.append(clip)
            width, height = (_optional(instance, key, path, where) for key in ("width", "height"))
            if width and height:
                sizes[clip.id] = width, height
    return Annotations(path, "wlasl", classes, clips, sizes)


def _instance(instance: Any, gloss: str, label: int, path: Path, where: str) -> Clip:
    video = _video_id(instance, path, where)
    where = f"{where} (video {video})"
    first = _optional(instance, "frame_start", path, where)
    last = _optional(instance, "frame_end", path, where)
    start, stop = _range(1 if first is None else first, -1 if last is None else last)
    return Clip(video, gloss, label, start, stop, _box(instance, path, where),
                _optional(instance, "signer_id", path, where), _set(instance, "split", path, where))


def _read_nslt(path: Path, data: dict[str, Any]) -> Annotations:
    rows = []
    for video, entry in data.items():
        where = f"clip {video!r}"
        action = _get(entry, "action", list, path, where)
        if len(action) != 3 or not all(type(v) is int for v in action) or action[0] < 0:
            raise _wrong(path, f"{where} has action = {action!r}, not [class, first frame, last frame]")
        rows.append((_plain_id(video, path, where), _set(entry, "subset", path, where), action))
    classes = _nslt_classes(path, 1 + max(action[0] for _, _, action in rows))
    clips = [Clip(video, classes[label], label, *_range(first, last), set=name)
             for video, name, (label, first, last) in rows]
    return Annotations(path, "nslt", classes, clips)


def class_list_beside(path: Path) -> Path | None:
    """The class list that belongs to an nslt file: its own, or WLASL's for the published nslt_<n>."""
    names = [f"{path.stem}_class_list.txt"]
    if re.fullmatch(r"nslt_\d+(\..*)?", path.stem):
        names.append("wlasl_class_list.txt")
    elif path.parent.name != "splits":  # where several splits lie together it may be any one's
        names.append("class_list.txt")
    return next((path.parent / name for name in names if (path.parent / name).is_file()), None)


def _nslt_classes(path: Path, least: int) -> list[str]:
    """nslt files number their classes; without a list of names the number is the name."""
    published = re.match(r"nslt_(\d+)", path.stem)
    count = max(least, int(published[1])) if published else least
    beside = class_list_beside(path)
    names = read_class_list(beside) if beside else []
    if beside and len(names) < least:
        raise Mistake(f"{paths.shown(beside)} does not fit {path.name}",
                      f"{len(names)} names for {least} classes", "get the list that belongs to it")
    return names[:count] if names else [str(label) for label in range(count)]


def read_class_list(path: Path) -> list[str]:
    """The glosses of a `<label><tab><gloss>` file in order; a gloss may be several words."""
    names: list[str] = []
    for n, line in enumerate(_read(path).split("\n")):
        if not line.strip():
            continue
        label, _, gloss = line.partition("\t") if "\t" in line else line.partition(" ")
        if label.strip() != str(n) or not gloss.strip():
            raise Mistake(f"{paths.shown(path)} is no class list", f"line {n + 1} is {line!r}",
                          f"it should read {n}<tab>gloss")
        names.append(gloss.strip())
    return names


def _read_labels(folder: Path) -> Annotations:
    """Prepared labels as annotations: the older program's where they are, else ours."""
    for pattern in (OLDER, PREPARED):
        files = {name: folder / pattern.format(set=name) for name in SETS}
        files = {name: file for name, file in files.items() if file.is_file()}
        if files:
            break
    else:
        raise Mistake(f"no labels in {paths.shown(folder)}", f"there is no {OLDER.format(set='train')}")
    beside = folder / "class_list.txt"
    names = read_class_list(beside) if beside.is_file() else []
    clips = [clip for name, file in files.items() for clip in _labelled(file, name, names)]
    if not clips:
        raise Mistake(f"no clips in {paths.shown(folder)}", f"{', '.join(f.name for f in files.values())}")
    if not names:
        named = {clip.label: clip.gloss for clip in clips}
        names = [named.get(label, str(label)) for label in range(1 + max(named))]
    return Annotations(folder, "labels", names, _distinct(clips))


def _labelled(path: Path, name: str, classes: list[str]) -> list[Clip]:
    """The clips of one prepared label file. Ours say clip_id, gloss and signer_id; the older ones do not."""
    data = _json(path)
    if not isinstance(data, list):
        raise _wrong(path, f"{type(data).__name__}, not a list of clips")
    return [_label(entry, path, f"entry {n}", name, classes) for n, entry in enumerate(data)]


def _label(entry: Any, path: Path, where: str, name: str, classes: list[str]) -> Clip:
    video = _video_id(entry, path, where)
    where = f"{where} (video {video})"
    label = _whole(entry, "label_num", path, where)
    if label < 0 or (classes and label >= len(classes)):
        raise _wrong(path, f"{where} has label_num {label}, there are {len(classes)} classes")
    named = classes[label] if classes else str(label)
    gloss = _text(entry, "gloss", path, where) if "gloss" in entry else named
    start, stop = _range(_whole(entry, "frame_start", path, where), _whole(entry, "frame_end", path, where))
    clip_id = _text(entry, "clip_id", path, where) if "clip_id" in entry else video
    return Clip(clip_id, gloss, label, start, stop, _box(entry, path, where),
                _optional(entry, "signer_id", path, where), name, "" if clip_id == video else video)


# --- prepared labels: what training and testing read --------------------------------------------------------

def _needed(path: Path, split: str) -> Path:
    if not path.is_file():
        raise Mistake(f"{split} is not prepared", f"{paths.shown(path)} is missing",
                      f"run: python preprocess.py -as {split}")
    return path


def load_clips(root: Path, split: str, part: str) -> list[Clip]:
    """The clips of one set of a prepared split, all checked to decode; [] where the split has no such set.

    Raises:
        Mistake: the split is not prepared, or its labels are damaged.
    """
    path = _needed(paths.labels(root, split) / PREPARED.format(set=part), split)
    return _labelled(path, part, load_classes(root, split))


def load_classes(root: Path, split: str) -> list[str]:
    """The glosses of a prepared split; a class number is the position in this list."""
    return read_class_list(_needed(paths.labels(root, split) / "class_list.txt", split))


def data_hash(root: Path, split: str) -> str:
    """SHA-256 over the prepared labels of all sets and the class list: on which data a model was trained."""
    whole = hashlib.sha256()
    folder = paths.labels(root, split)
    for name in ["class_list.txt", *(PREPARED.format(set=name) for name in SETS)]:
        whole.update(f"{name}\n".encode() + _needed(folder / name, split).read_bytes())
    return whole.hexdigest()


def videos_folder(root: Path, split: str) -> Path:
    """Where the videos of a prepared split lie: the folder it was prepared from, by default WLASL2000."""
    remembered = _report(root, split).get("videos")
    return root / remembered if remembered else paths.wlasl_videos(root)


def split_name(root: Path, split: str) -> str:
    """The name that the frame store of a prepared split goes by, where `split` may be a path to its labels."""
    return split if Path(split).name == split else _report(root, split).get("split") or Path(split).name


def _report(root: Path, split: str) -> dict[str, Any]:
    """preprocess.py's report.json of a split; nothing where the labels are from elsewhere."""
    file = paths.labels(root, split) / "report.json"
    found = _json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise Mistake(f"{paths.shown(file)} is no report of preprocess.py", f"{type(found).__name__}, not an object",
                      "prepare the split again")
    return found


def find_annotations(root: Path, split: str) -> Path:
    """The annotation of a split by its name: its .json, or the older program's prepared labels.

    Raises:
        Mistake: there is none; lists the splits that are there.
    """
    path = paths.split_file(root, split)
    if path.is_file():
        return path
    labels = paths.labels(root, split)
    if any((labels / OLDER.format(set=name)).is_file() for name in SETS):
        return labels
    folders = root / "WLASL" / "splits", root / "splits"
    there = ", ".join(sorted({p.stem for folder in folders for p in folder.glob("*.json")})) or "none"
    raise Mistake(f"no split {split}", f"{paths.shown(path)} is missing (there is {there})",
                  "put the annotation there, or name it: --annotations FILE --videos FOLDER; "
                  "`preprocess.py -as demo` draws its own data")
