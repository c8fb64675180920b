"""What SLRT published of its stages, as checkpoints of ours: what preprocess.py --import_published does.

    failed = import_published("phoenix2014t", root, ["pretrained_models"], "data/pretrained/phoenix2014t")

Each file that is written is taken as training.py's are: --checkpoint of the scripts, and model_params.init_from. Its
settings are those of experiment 1 of MODEL on the split, its classes those of the prepared split.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slr import checkpoint, paths
from slr.catalogue import MODELS, builder_of
from slr.config import Config, TranslationSection, read_config
from slr.datasets import sentences
from slr.datasets.features import PICKLES
from slr.datasets.unpickle import load_pickle
from slr.errors import Mistake
from slr.models import mbart, published
from slr.models.published import Piece, Report
from slr.models.s3d_ctc import ENDS
from slr.paths import Experiment, shown
from slr.runtime import Runtime
from slr.task import Task, build_task
from slr.tasks.sign2text import CLIP
from slr.tasks.speech import languages
from slr.tasks.translators import settled

State = dict[str, Tensor]
Content = dict[str, Any]
EXPERIMENT = "1"  # whose .ini gives the settings
AS_THERE = {"model_params.last_relu": "False"}  # their head has no ReLU behind its second convolution
# How SLRT's folders call the data sets (its experiments/configs): what names another one is of no use.
DATA_SETS = {"phoenix2014": r"phoenix-?2014(?!-?t(?![a-z]))", "phoenix2014t": r"phoenix-?2014-?t(?![a-z])",
             "csl_daily": r"csl[-_]?daily"}
FEATURES, DEPTH = "head_rgb_input", 5  # its folder of extracted features; folders that it is looked for in
# Of two files with as many numbers: the single-stream experiments on PHOENIX-2014T use this one (the same configs).
OF_SINGLE_STREAM = "gloss2ids_old.pkl"
HEAD, BACKBONE = "recognition_network.visual_head.", "recognition_network.visual_backbone."
CLASS_ROWS, GLOSS_TABLE = f"{HEAD}gloss_output_layer.weight", "translation_network.gloss_embedding.weight"
MAPPER = "mapper.embedding"  # (K, C) here, and there the weight of a linear layer, (C, K)
UNKNOWN = "<unk>"


# --- what there is ------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Sources:
    """The published pieces that are of use for a split. `data` is the data folder where it is not the usual one."""

    split: str
    root: Path
    folders: tuple[Path, ...]
    pieces: tuple[Piece, ...]
    classes: tuple[str, ...]
    data: str = ""

    @classmethod
    def find(cls, split: str, root: Path, folders: Iterable[Path | str], data: str = "") -> "Sources":
        """Raises Mistake where the split is not prepared, or a folder is not there."""
        places = tuple(paths.HOME / Path(folder).expanduser() for folder in folders)
        for place in places:
            if not place.is_dir():
                raise Mistake("there is no folder of published weights", shown(place),
                              "get them from their source and name their folder, such as pretrained_models")
        found = {piece.path: piece for place in places for piece in published.find(place)
                 if is_of(piece.path.relative_to(place), split)}
        return cls(split, root, places, tuple(found.values()), tuple(sentences.load_vocabulary(root, split)), data)

    def all(self, kind: str) -> list[Path]:
        return [piece.path for piece in self.pieces if piece.kind == kind]

    def one(self, kind: str) -> Path | None:
        """None where there is none. Raises Mistake where there are several."""
        found = self.all(kind)
        if len(found) > 1:
            raise Mistake(f"there are several published files of the kind {kind}", ", ".join(map(shown, found[:4])),
                          "name the folder that holds the one that counts")
        return found[0] if found else None

    def settings(self, model: str, changes: dict[str, str]) -> Config:
        """The .ini of the model's experiment, with some settings changed, {"section.key": value}."""
        root = {"data.root": repr(self.data)} if self.data else {}
        return read_config(Experiment(model, self.split, EXPERIMENT), {**changes, **root})


def is_of(place: Path, split: str) -> bool:
    """Whether a path can be of this split: it names no other data set, and no mBART of another language."""
    name, spoken = str(place).lower(), languages(TranslationSection(), split)[0][:2]
    if split not in DATA_SETS:
        return True
    named = [other for other, pattern in DATA_SETS.items() if re.search(pattern, name)]
    language = re.search(r"mbart_([a-z]{2})\b", name)
    return (not named or split in named) and (language is None or language[1] == spoken)


def read_numbers(path: Path) -> dict[str, int]:
    """{gloss: number} of a gloss2ids.pkl, special tokens and all. Raises Mistake where it holds something else."""
    found = load_pickle(path)
    if not isinstance(found, dict) or not all(isinstance(name, str) and type(number) is int and number >= 0
                                              for name, number in found.items()) or not found:
        raise Mistake(f"{shown(path)} holds no numbers of glosses", f"a {type(found).__name__}",
                      "get SLRT's gloss2ids.pkl anew")
    return found


def class_numbers(sources: Sources, count: int) -> dict[str, int]:
    """SLRT's numbers of its `count` classes: of data/<data set>/gloss2ids.pkl there, below the folders or ours.

    Raises Mistake where there are none for so many classes, or different ones.
    """
    beside = {path.parent for path in sources.all("id map")}  # those are the rows of the gloss embedding
    places = [path for path in [*sources.all("gloss numbers"), *_annotations(sources)] if path.parent not in beside]
    found = {path: read_numbers(path) for path in places}
    fitting = {path: numbers for path, numbers in found.items() if max(numbers.values()) + 1 == count}
    fitting = {path: fitting[path] for path in fitting if path.name == OF_SINGLE_STREAM} or fitting
    if not fitting:
        seen = ", ".join(f"{shown(path)} of {max(numbers.values()) + 1}" for path, numbers in found.items())
        raise Mistake(f"the numbers of the {count} published classes are missing", seen or "no gloss2ids.pkl",
                      "name SLRT's data folder of this data set, too, which has its gloss2ids.pkl: "
                      f"--import_published {' '.join(map(shown, sources.folders))} FOLDER")
    numbers = list(fitting.values())
    if any(other != numbers[0] for other in numbers):
        raise Mistake("there are different numbers of the published classes", ", ".join(map(shown, fitting)),
                      "name the folder of those that came with the weights")
    return numbers[0]


def _annotations(sources: Sources) -> list[Path]:
    """The numbers that lie with the annotations of the split's own data set."""
    places = [paths.sentence_data(sources.root, name) for name in paths.SENTENCE_DATA if name.lower() == sources.split]
    return [path for place in places for depth in ("", "*/") for path in sorted(place.glob(f"{depth}gloss2ids*.pkl"))]


def feature_folders(sources: Sources) -> list[Path]:
    """SLRT's folders of feature pickles of this split, as translation.features takes them."""
    below = ((place, path) for place in sources.folders for depth in range(DEPTH)
             for path in sorted(place.glob(f"{'*/' * depth}{FEATURES}/*.pkl")))
    return list({path.parent: None for place, path in below
                 if path.name in PICKLES.values() and is_of(path.relative_to(place), sources.split)})


# --- from their weights to ours -----------------------------------------------------------------------------

def weights_of(path: Path, *needed: str) -> State:
    """The tensors of a published checkpoint. Raises Mistake unless those are there that its stage must have."""
    found = published.weights_in(published.read(path))
    lacking = [name for name in needed if name not in found]
    if lacking:
        raise Mistake(f"{shown(path)} is not of this stage", f"it has no {lacking[0]}",
                      "it may be of another of SLRT's models, such as that with two streams")
    return found


def fill(task: Task, state: State, path: Path) -> None:
    """Load converted weights. Raises Mistake where some of the model would stay random; tied ones count as one."""
    own = task.model.state_dict()
    taken = {own[name].data_ptr() for name in state}
    lacking = [name for name, value in own.items()
               if value.data_ptr() not in taken and not name.endswith("num_batches_tracked")]
    if lacking:
        raise Mistake(f"{shown(path)} lacks weights of {type(task.model).__name__}",
                      f"{len(lacking)}, such as {lacking[0]}", "give the published checkpoint of this stage")
    task.model.load_state_dict(state, strict=False)


def as_checkpoint(task: Task, path: Path) -> Content:
    """What training.py would keep of the task, with the published file that it comes from."""
    config, meta = task.config, task.meta()
    return {"model": config.model, "split": config.split, "task": config.experiment.task, "meta": meta,
            "config": config.as_dict(), "data_hash": meta["data_hash"], "versions": checkpoint.versions(),
            "published": shown(path), "epoch": 0, "metrics": {}, "weights": "raw",
            "model_state_dict": task.model.state_dict()}


def _start(config: Config, meta: dict[str, Any]) -> Task:
    if config.translation and "translator" in meta:
        config = replace(config, translation=settled(config.translation, meta["translator"]))
    return build_task(config, Runtime.start("cpu", config.experiment.seed), meta)


# --- the stages ---------------------------------------------------------------------------------------------

def backbone(sources: Sources, path: Path) -> tuple[Content, list[Report]]:
    """S3D's layers before its classifier, those that there are, for an S3D_CTC to start from.

    Raises Mistake where it lacks one that S3D_CTC has.
    """
    entry = MODELS["S3D"]
    target = builder_of("S3D")(1, frames=entry.default_frames, size=entry.default_size).state_dict()
    state, report = published.convert(published.read(path), target, parts=("backbone",), mean=entry.mean, std=entry.std)
    lacking = [name for name in report.missing if int(name.split(".")[2]) < ENDS[-1]]
    if lacking:
        raise Mistake(f"{shown(path)} lacks layers of S3D", f"{len(lacking)} tensors, such as {lacking[0]}",
                      "get the published file anew")
    meta = {"classes": [], "mean": list(entry.mean), "std": list(entry.std)}
    return {"model": "S3D", "task": "isolated", "meta": meta, "versions": checkpoint.versions(),
            "published": shown(path), "epoch": 0, "metrics": {}, "weights": "raw", "model_state_dict": state}, [report]


def sign2gloss(sources: Sources, path: Path) -> tuple[Content, list[Report]]:
    """S3D_CTC."""
    config, classes = sources.settings("S3D_CTC", AS_THERE), list(sources.classes)
    theirs = weights_of(path, CLASS_ROWS)
    numbers = class_numbers(sources, len(theirs[CLASS_ROWS]))
    task, entry = _start(config, {"classes": classes}), MODELS["S3D_CTC"]
    state, report = published.convert(theirs, task.model.state_dict(), glosses=numbers, classes=classes,
                                      mean=entry.mean, std=entry.std)
    fill(task, state, path)
    report.notes.clear()  # the ReLU that they speak of is left out: AS_THERE
    return as_checkpoint(task, path), [report]


def gloss2text(sources: Sources, path: Path) -> tuple[Content, list[Report]]:
    """Gloss2Text. What is no gloss that it knows is their <unk>."""
    config, classes = sources.settings("Gloss2Text", {}), list(sources.classes)
    theirs = weights_of(path, GLOSS_TABLE)
    spoken = spoken_part(sources, config)
    task = _start(config, {"classes": classes, **spoken.meta})
    state, report = published.convert(theirs, task.model.state_dict(), rows=[UNKNOWN, *classes[1:]], **spoken.tables)
    fill(task, state, path)
    return as_checkpoint(task, path), [report]


def sign2text(sources: Sources, path: Path) -> tuple[Content, list[Report]]:
    """Sign2Text, with the backbone of the sign2gloss stage where theirs has none; without both a bare head.

    It reads SLRT's features where a folder of them is found, else the video; a bare head those of the .ini.
    """
    theirs = weights_of(path, CLASS_ROWS, f"{HEAD}fc1.weight", GLOSS_TABLE)
    seeing = path if any(name.startswith(BACKBONE) for name in theirs) else sources.one("s2g")
    config, classes = sources.settings("Sign2Text", _features(sources, seeing)), list(sources.classes)
    numbers, spoken = class_numbers(sources, len(theirs[CLASS_ROWS])), spoken_part(sources, config)
    visual = seen_part(sources, theirs[f"{HEAD}fc1.weight"], seeing is not None)
    task, entry = _start(config, {"classes": classes, "visual": visual, **spoken.meta}), MODELS["S3D_CTC"]
    convert: Callable[..., tuple[State, Report]] = partial(
        published.convert, target=_turned(task.model.state_dict()), glosses=numbers, classes=classes, mean=entry.mean,
        std=entry.std, **spoken.tables)
    state, report = convert(theirs, parts=[part for part in published.PARTS if part != "backbone" or seeing == path])
    report.notes.clear()  # as for the first stage
    reports = [report]
    if seeing not in (None, path):
        seen, report = convert(published.read(seeing), parts=("backbone",))
        state, reports = {**state, **seen}, [*reports, report]
    fill(task, _turned(state), path)
    return as_checkpoint(task, path), reports


def _features(sources: Sources, seeing: Path | None) -> dict[str, str]:
    """translation.features, where it is not the .ini's."""
    found = feature_folders(sources)
    if len(found) == 1:
        return {"translation.features": repr(shown(found[0]))}
    return {} if seeing is None else {"translation.features": "''"}


def _turned(state: State) -> State:
    """The table of an `embedding` mapper as the weight of a linear layer, and back; the rest as it is."""
    names = {MAPPER: f"{MAPPER}.weight", f"{MAPPER}.weight": MAPPER}
    return {names.get(name, name): value.T if name in names else value for name, value in state.items()}


@dataclass(frozen=True)
class Spoken:
    """The published mBART: translator, tokenizer and language for a task's meta, and what `convert` has to know."""

    meta: dict[str, Any]
    tables: dict[str, Any]


def spoken_part(sources: Sources, config: Config) -> Spoken:
    """What lies in the folder of the published mBART. Raises Mistake where something is not there."""
    keys = config.translation
    assert keys
    spoken, signed = languages(keys, sources.split)
    ids = sources.one("id map")
    if ids is None:
        raise Mistake("the published mBART is missing", "no map_ids.pkl of a pruned one", "name the folder that holds "
                      f"mBart_{spoken[:2]}, too, with {mbart.CONFIG}, {mbart.PIECES}, map_ids.pkl and gloss2ids.pkl")
    numbers = [path for path in sources.all("gloss numbers") if path.parent == ids.parent]
    if not numbers:
        raise Mistake("the rows of the published gloss embedding have no names",
                      f"no gloss2ids.pkl in {shown(ids.parent)}", "get it from where the mBART came from")
    kept = published.id_map(load_pickle(ids), ids)
    text = mbart.MBartText.load(ids.parent, spoken, kept)
    with torch.device("meta"):  # only its shape is wanted
        translator = mbart.build(ids.parent, text, gloss_language=signed, pretrained=False, dropout=keys.dropout,
                                 attention_dropout=keys.attention_dropout, vocab_size=text.size)
    meta = {"translator": translator.plain(), "tokenizer": text.plain(), "language": spoken}
    return Spoken(meta, {"row_glosses": read_numbers(numbers[0]), "ids": kept, "our_ids": kept,
                         "gloss_language": signed})


def seen_part(sources: Sources, project: Tensor, whole: bool) -> dict[str, Any]:
    """What Sign2Text's meta says of its visual part: S3D_CTC with its settings, or a bare head; `project` is the head's
    first layer (width, channels)."""
    settings = sources.settings("S3D_CTC", AS_THERE)
    assert settings.decoding
    bare = {} if whole else {"stride": MODELS["S3D_CTC"].stride}
    clip = {name: getattr(settings.data, name) for name in CLIP}
    return {"model": "S3D_CTC" if whole else "", "channels": project.shape[1], "width": project.shape[0],
            "last_relu": False, "fps": settings.decoding.fps, "clip": clip, **bare}


# --- all of them --------------------------------------------------------------------------------------------

Maker = Callable[[Sources, Path], tuple[Content, list[Report]]]
STAGES: dict[str, tuple[str, Maker, str]] = {  # what is written: kind of its piece, how it is made, where SLRT has it
    "S3D_actions": ("s3d actions", backbone, "s3ds_actioncls_ckpt/*.pt"),
    "S3D_glosses": ("s3d glosses", backbone, "s3ds_glosscls_ckpt/*.pth.tar"),
    "S3D_CTC": ("s2g", sign2gloss, "*_s2g/ckpts/best.ckpt"),
    "Gloss2Text": ("g2t", gloss2text, "*_g2t/ckpts/best.ckpt"),
    "Sign2Text": ("s2t", sign2text, "*_s2t/ckpts/best.ckpt"),
}


def import_published(split: str, root: Path, folders: Sequence[Path | str], target: Path | str, *, data: str = "",
                     replace: bool = False, say: Callable[[str], None] = print) -> list[Mistake]:
    """Write what is found in `folders` to `target` (both relative: to the project), and `say` what became of it.

    Returns what stood in the way of single pieces. Raises Mistake where there is no piece at all.
    """
    sources, target = Sources.find(split, root, folders, data), paths.HOME / Path(target).expanduser()
    lacking = {name: where for name, (kind, _, where) in STAGES.items() if not sources.all(kind)}
    if len(lacking) == len(STAGES):
        raise Mistake(f"nothing that was published for {split} is there", "looked in "
                      f"{', '.join(map(shown, sources.folders))} for {', '.join(lacking.values())}",
                      "name the folder that holds them as SLRT's program calls them")
    failed = []
    for name in STAGES:
        try:
            if name not in lacking:
                write_one(name, sources, target / f"{name}.pth", replace, say)
        except Mistake as error:
            failed.append(Mistake(f"{name}.pth: {error.wrong}", error.found, error.do))
    for name, where in lacking.items():
        say(f"{name}.pth: not found ({where})")
    return failed


def write_one(name: str, sources: Sources, file: Path, replace: bool, say: Callable[[str], None]) -> None:
    """One checkpoint. Raises Mistake where its piece does not serve."""
    kind, make, _ = STAGES[name]
    path = sources.one(kind)
    assert path
    if file.exists() and not replace:
        say(f"{shown(file)}: it is there already, --replace writes it anew")
        return
    content, reports = make(sources, path)
    checkpoint.save(file, content)
    say("\n  ".join([f"{shown(file)}: of {shown(path)}", *map(str, reports)]))
