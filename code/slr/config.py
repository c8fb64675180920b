"""An experiment's settings: defaults <- .ini file <- `--set section.key=value`, checked and frozen. Free of torch.

    config = read_config(Experiment("S3D", "asl100", "4"), {"training.batch_size": "4"})
    config.training.batch_size

The file holds differences from the defaults only. Values are Python literals or plain words; `;` and `#` open
comments, at a line's start or behind a value. An unknown key, a value of the wrong type or an impossible combination
is a Mistake that names file, section, key and the keys that exist; what the old program's files hold is understood.
"""

import ast
import configparser
import dataclasses
import difflib
import re
import types
import typing
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from slr import catalogue
from slr.errors import Mistake
from slr.paths import Experiment, existing_experiments, shown

TASKS = {"isolated": "slr.tasks.isolated:Isolated", "continuous": "slr.tasks.continuous:Continuous",
         "translation": "slr.tasks.translation:Translation"}
# of a set, by task; the last one picks best.pth unless the .ini says otherwise (of signs the loss does)
METRICS = {"isolated": ("loss", "acc"), "continuous": ("loss", "wer"), "translation": ("loss", "bleu4")}
RISING = ("acc", "bleu4")  # the higher, the better
LENGTHS = 4  # frames of a sentence in training come in multiples of this


def key(default: Any = MISSING, *, choices: tuple = (), low: float | None = None, high: float | None = None,
        above: float | None = None) -> Any:
    """A key of a section: its default (none: required), its allowed values, its range (`above` is exclusive)."""
    return field(default=default, metadata={"choices": choices, "low": low, "high": high, "above": above})


@dataclass(frozen=True)
class ExperimentSection:
    """Which system this is, and the seed of everything that is drawn at random."""

    task: str = key("isolated", choices=tuple(TASKS))
    seed: int = key(42, low=0)


@dataclass(frozen=True)
class TrainingSection:
    """How long, in what portions, and with which numerics."""

    batch_size: int = key(low=1)  # clips of one forward pass, over all processes together
    update_per_step: int = key(low=1)  # forward passes of one optimiser step
    max_epoch: int = key(low=1)
    save_every: int = key(5, low=1)  # epochs between numbered checkpoints
    validate_every: int = key(0, low=0)  # steps between validations inside an epoch; 0: at its end alone
    best_metric: str = key("auto", choices=("auto", "loss", "acc", "wer", "bleu4"))  # of validation: picks best.pth
    precision: str = key("auto", choices=("auto", "fp32", "bf16", "fp16"))  # auto: bf16 on a GPU that has it
    clip_norm: float = key(0.0, low=0)  # largest gradient norm, 0 = no clipping
    label_smoothing: float = key(0.0, low=0, high=0.999)
    mixup: float = key(0.0, low=0)  # alpha of the Beta distribution, 0 = off
    ema: float = key(0.0, low=0, high=0.99999)  # decay of the weights' moving average, 0 = off
    channels_last: str = key("auto", choices=("auto", "on", "off"))  # auto: where it makes the model faster
    compile: bool = key(False)
    deterministic: bool = key(False)  # refuse operations that are not reproducible (the CPU's always are)
    tensorboard: bool = key(False)


@dataclass(frozen=True)
class OptimizerSection:
    """AdamW over two parameter groups."""

    eps: float = key(above=0)
    backbone_init_lr: float = key(low=0)
    backbone_weight_decay: float = key(low=0)
    classifier_init_lr: float = key(low=0)
    classifier_weight_decay: float = key(low=0)
    betas: tuple[float, float] = key((0.9, 0.999))
    layer_decay: float = key(1.0, above=0, high=1)  # of the rates, a factor for each layer towards the input; 1 = off
    mapper_init_lr: float | None = key(None, low=0)  # Sign2Text's mapper; None: the classifier's
    translator_init_lr: float | None = key(None, low=0)  # and its translator, or Gloss2Text; None: the classifier's
    translator_weight_decay: float | None = key(None, low=0)  # None: the classifier's


@dataclass(frozen=True)
class ModelSection:
    """The network's own settings, and the weights it starts from."""

    drop_p: float = key(low=0, high=1)
    drop_path: float | None = key(None, low=0, high=1)  # stochastic depth of Swin3D and MViT; None: the model's own
    pretrained: bool = key(True)  # Kinetics weights, from torchvision's cache or its server
    weights: str = key("")  # a file with them instead
    init_from: str = key("")  # a checkpoint of another experiment, or its MODEL/SPLIT/EXP_NO
    bn_momentum: float | None = key(None, above=0, high=1)  # None: 0.001 when pretrained, 0.1 from scratch
    frozen_blocks: int | None = key(None, low=0, high=4)  # S3D_CTC: stay as they start; None: 1, from scratch 0
    last_relu: bool | None = key(None)  # S3D_CTC's head: behind its last convolution; None: yes. SLRT's weights: no


@dataclass(frozen=True)
class DataSection:
    """What a clip is, where it comes from, and what is done to it in training."""

    num_frames: int = key(low=1)
    frame_size: int = key(low=1)  # pixels, both sides
    root: str = key("")  # "": $SLR_DATA, else data/
    store: str = key("video", choices=("video", "jpeg", "raw"))
    crop: str = key("box", choices=("box", "frame"))  # the person's box, where the annotation has one that fits
    eval_resize: float = key(1.143, low=1)  # evaluation: short side = this x frame_size (256 / 224), then a centre crop
    min_scale: float = key(0.7, above=0, high=1)  # training: smallest area of the random crop
    max_aspect: float = key(1.333, low=1)  # training: largest aspect of the random crop
    hflip: float = key(0.0, low=0, high=1)  # chance of a mirrored clip; signs have handedness
    jitter: tuple[float, float, float, float] = key((0.2, 0.2, 0.2, 0.05))  # brightness, contrast, saturation, hue
    jitter_p: float = key(1.0, low=0, high=1)  # share of the clips whose colours are changed
    rand_augment: float = key(0.0, low=0, high=10)  # magnitude of RandAugment's operations, of 10; 0 = off
    rand_augment_n: int = key(2, low=1, high=15)  # operations drawn for a clip
    rand_augment_p: float = key(0.5, low=0, high=1)  # with which each of them is carried out
    erase_p: float = key(0.0, low=0, high=1)  # chance of one erased rectangle, the same in all frames
    keypoints: str = key("")  # sentences: a pickle of the points on every frame; from the data folder on
    heatmap: str = key("none", choices=("none", "max", "points"))  # all points in one channel, or one each
    frame_stride: int = key(1, low=1)  # sentences: only every n-th frame
    short_first: int = key(0, low=0)  # sentences: epochs, the first ones, that go from the shortest to the longest
    jitter_frames: bool = key(True)  # training: each frame from anywhere in its even segment; sentences: other lengths
    subtract_clip_mean: bool = key(False)  # takes the still picture away: learns from scratch far sooner
    workers: int = key(-1, low=-1)  # loader processes; -1: one a core, at most 8
    prefetch: int = key(2, low=1)  # batches that each worker prepares ahead
    pin_memory: bool = key(True)  # only where there is a GPU


@dataclass(frozen=True)
class DecodingSection:
    """How glosses are read off a sentence's time steps, and how they are scored; of the task `continuous`."""

    beam_width: int = key(10, low=1)  # in tests; validation takes the best path
    cleanup: str = key("auto", choices=("auto", "phoenix2014", "phoenix2014t", "none"))  # auto: as SPLIT is called
    fps: float = key(25.0, above=0)  # frames a second, for times in files


@dataclass(frozen=True)
class MambaSection:
    """The sizes of MambaSLR; the defaults are the model's own."""

    dim: int = key(512, low=4)  # channels of a token
    depth: int = key(12, low=1)  # blocks
    expand: int = key(2, low=1)  # channels of a scan, times dim
    headdim: int = key(64, low=1)  # channels of a head of the scans
    spatial_state: int = key(16, low=1)  # numbers that a scan over patches keeps of each channel
    temporal_state: int = key(32, low=1)  # the same of a scan over frames
    attn_layers: tuple[int, ...] = key((4,))  # blocks, from 0, that attend instead of scanning the patches
    attn_heads: int = key(8, low=1)
    stem_depth: int = key(3, low=0)  # convolution blocks on each of the stem's first two scales
    downsample: tuple[int, ...] = key(())  # blocks before which time is halved, e.g. (4, 8); none is faithful
    recompute: bool = key(False)  # blocks are computed again in the backward pass: a third more time, far less memory


@dataclass(frozen=True)
class TranslationSection:
    """From what is signed to a spoken sentence; of the task `translation`."""

    translator: str = key("small", choices=("small", "mbart"))
    language: str = key("auto")  # of the text: de_DE, zh_CN, en_XX, …; auto: as SPLIT is called
    gloss_language: str = key("auto")  # de_DGS, zh_CSL, …; auto: the one that goes with SPLIT
    # the small translator
    tokens: str = key("auto", choices=("auto", "word", "char", "pieces"))  # auto: of Chinese characters, else words
    pieces: int = key(1000, low=16)  # SentencePiece's vocabulary, where tokens = 'pieces'
    width: int = key(256, low=4)
    layers: int = key(3, low=1)  # of the encoder, and as many of the decoder
    heads: int = key(4, low=1)
    ffn: int = key(1024, low=1)
    dropout: float = key(0.3, low=0, high=1)  # of either translator
    # mBART
    mbart: str = key("facebook/mbart-large-cc25")  # a folder (pruned: preprocess.py --prune_mbart), or the hub's name
    attention_dropout: float = key(0.1, low=0, high=1)
    freeze_text: bool = key(False)  # its table of tokens stays as it is
    freeze_gloss: bool = key(False)  # Gloss2Text: so do the glosses' embeddings
    # signing to text
    features: str = key("")  # extract_features.py's folder, MODEL/SPLIT/EXP_NO or SLRT's pickles; "": from the video
    visual: str = key("S3D_CTC")  # whose gloss head reads them, where no checkpoint says it
    mapper: str = key("projection", choices=("projection", "embedding"))  # of gloss features, or of probabilities
    scratch: bool = key(False)  # start without the checkpoints of model_params.init_from
    # losses
    smoothing: float = key(0.2, low=0, high=0.999)
    per_token: bool = key(False)  # a sentence's loss is the mean over its tokens, not the sum
    ctc_weight: float = key(1.0, low=0)
    text_weight: float = key(1.0, low=0)
    # search
    beam_width: int = key(5, low=1)  # in tests; validation takes the likeliest token each time
    length_penalty: float = key(1.0, low=-50, high=50)  # log-probabilities are divided by length to this power
    max_length: int = key(100, low=2)  # tokens of a sentence
    sweep_beams: tuple[int, ...] = key((), low=1)  # tests try these on the validation set, with these
    sweep_penalties: tuple[float, ...] = key((), low=-50, high=50)  # penalties; the test set gets the best pair


@dataclass(frozen=True)
class SchedulerSection:
    """The learning rate's plan; an absent section is a constant rate."""

    type: str = key(choices=("CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ReduceLROnPlateau", "WarmOnly"))
    tmax: int | None = key(None, low=1)
    t0: int | None = key(None, low=1)
    tmult: int | None = key(None, low=1)
    eta_min: float = key(0.0, low=0)
    mode: str = key("min", choices=("min", "max"))
    factor: float = key(0.1, above=0, high=0.999999)
    patience: int = key(10, low=0)
    threshold: float = key(1e-4, low=0)
    threshold_mode: str = key("rel", choices=("rel", "abs"))
    cooldown: int = key(0, low=0)
    min_lr: float = key(0.0, low=0)
    eps: float = key(1e-8, low=0)
    start_factor: float = key(1.0, above=0, high=1)
    end_factor: float = key(1.0, above=0, high=1)
    warmup_epochs: int = key(0, low=0)
    every: str = key("epoch", choices=("epoch", "step"))  # when the rate moves; plateau: always by epoch


@dataclass(frozen=True)
class EarlyStoppingSection:
    """Stop when the metric has not improved by min_delta for `patience` epochs; absent = off."""

    metric: tuple[str, str] = key()
    mode: str = key(choices=("min", "max"))
    patience: int = key(low=1)
    min_delta: float = key(low=0)


SECTIONS: dict[str, type] = {
    "experiment": ExperimentSection, "training": TrainingSection, "optimizer": OptimizerSection,
    "model_params": ModelSection, "mamba": MambaSection, "translation": TranslationSection, "data": DataSection,
    "decoding": DecodingSection, "scheduler": SchedulerSection, "early_stopping": EarlyStoppingSection,
}
# mamba: there for MambaSLR, decoding: for sentences, translation: for their texts, and only there
OPTIONAL = ("mamba", "translation", "decoding", "scheduler", "early_stopping")

# Which keys each plan reads; the others of its section are accepted (old files hold them) and do nothing.
_WARMUP = {"type", "start_factor", "end_factor", "warmup_epochs", "every"}
SCHEDULER_KEYS = {
    "CosineAnnealingLR": _WARMUP | {"tmax", "eta_min"},
    "CosineAnnealingWarmRestarts": _WARMUP | {"t0", "tmult", "eta_min"},
    "ReduceLROnPlateau": _WARMUP | {"mode", "factor", "patience", "threshold", "threshold_mode", "cooldown",
                                    "min_lr", "eps"},
    "WarmOnly": _WARMUP,
}

# Keys that the old program knew for a while.
OLD_KEYS = {
    "data": {"frame_size_strategy", "spatial_aug", "temporal_aug", "sampler", "frame_sampler", "augmentation",
             "aug_strategy", "norm", "normalise", "strict_size", "target_length"},
    "training": {"max_steps", "batch_size_equivalent"},
    "model_params": {"frozen", "name"},
}


@dataclass(frozen=True)
class Config:
    """The merged settings of one experiment. `notices` are remarks for the user, one a line."""

    model: str
    split: str
    exp_no: str
    experiment: ExperimentSection
    training: TrainingSection
    optimizer: OptimizerSection
    model_params: ModelSection
    mamba: MambaSection | None
    translation: TranslationSection | None
    data: DataSection
    decoding: DecodingSection | None
    scheduler: SchedulerSection | None
    early_stopping: EarlyStoppingSection | None
    notices: tuple[str, ...] = field(default=(), compare=False)

    @property
    def best_metric(self) -> tuple[str, str]:
        """(Name, min or max) of the validation figure that picks best.pth."""
        auto = "loss" if self.experiment.task == "isolated" else METRICS[self.experiment.task][-1]
        name = auto if self.training.best_metric == "auto" else self.training.best_metric
        return name, "max" if name in RISING else "min"

    def sections(self) -> dict[str, Any]:
        """The sections that are there, by name."""
        found = {name: getattr(self, name) for name in SECTIONS}
        return {name: section for name, section in found.items() if section is not None}

    def as_dict(self) -> dict[str, Any]:
        """Plain types only: what a checkpoint and wandb keep."""
        plain: dict[str, Any] = {"model": self.model, "split": self.split, "exp_no": self.exp_no}
        for name, section in self.sections().items():
            plain[name] = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(section).items()}
        return plain

    def as_ini(self) -> str:
        """The text of an .ini file that reads back as this config."""
        parts = [f"; {self.model} {self.split} {self.exp_no}: every setting, defaults included"]
        for name, section in self.sections().items():
            used = SCHEDULER_KEYS[section.type] if name == "scheduler" else vars(section)
            lines = [f"{k} = {v!r}" for k, v in dataclasses.asdict(section).items() if k in used]
            parts.append("\n".join([f"[{name}]", *lines]))
        return "\n\n".join(parts) + "\n"


def read_config(experiment: Experiment, overrides: dict[str, str] | None = None, file: Path | None = None) -> Config:
    """The checked config of an experiment: its .ini (or `file`), then `overrides` ("section.key" -> text)."""
    path = file or experiment.config_file
    if not path.is_file():
        raise _no_such_file(experiment, path, given=file is not None)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{shown(path)} cannot be read", str(error), "save it as UTF-8 text") from None
    return parse_config(text, experiment, overrides, source=shown(path))


def parse_config(text: str, experiment: Experiment, overrides: dict[str, str] | None = None,
                 source: str = "config") -> Config:
    """The same from the text of a file; `source` is what error messages call it."""
    raw = _parse_ini(text, source)
    notices: list[str] = []
    model = catalogue.canonical(experiment.model)
    translates = catalogue.MODELS[model].task == "translation"
    if translates:
        raw.setdefault("model_params", {}).setdefault("drop_p", 0.1)  # of the gloss head
    _understand_old_form(raw, notices, source)
    for name in raw:
        if name not in SECTIONS:
            raise _unknown(f"{source}: there is no section [{name}]", name, SECTIONS, "sections")
    for name, value in (overrides or {}).items():
        section, _, item = name.partition(".")
        raw.setdefault(section, {})[item] = _override(section, item, value)
    if translates:
        _fill_in(raw, model)
    sections = {name: _build(name, raw.get(name), notices, source) for name in SECTIONS}
    if sections["experiment"].task in ("continuous", "translation") and not sections["decoding"]:
        sections["decoding"] = DecodingSection()
    if sections["experiment"].task == "translation" and not sections["translation"]:
        sections["translation"] = TranslationSection()
    if model == "MambaSLR" and not sections["mamba"]:
        sections["mamba"] = MambaSection()
    if sections["scheduler"]:
        sections["scheduler"] = _without_idle_keys(sections["scheduler"], notices)
    config = Config(model, experiment.split, experiment.exp_no, **sections)
    _check(config, source)
    return dataclasses.replace(config, notices=tuple(notices))


def _fill_in(raw: dict[str, dict[str, Any]], model: str) -> None:
    """What a translation's .ini need not say: clips that no translator sees, rates of parts that it does not have, and
    pretrained weights that only mBART has."""
    data, rates = raw.setdefault("data", {}), raw.setdefault("optimizer", {})
    data.setdefault("num_frames", catalogue.MODELS[model].default_frames)
    data.setdefault("frame_size", catalogue.MODELS[model].default_size)
    seen = raw.get("translation", {}).get("features")
    lacks = ("backbone", "classifier") if model == "Gloss2Text" else ("backbone",) if seen else ()
    for end in ("init_lr", "weight_decay"):
        given = [rates[f"{part}_{end}"] for part in ("classifier", "translator") if f"{part}_{end}" in rates]
        for part in lacks if given else ():
            rates.setdefault(f"{part}_{end}", given[0])
        if model == "Gloss2Text" and not given:
            raise Mistake(f"[optimizer] lacks translator_{end}", "Gloss2Text has no other part",
                          f"add `translator_{end} = …` to [optimizer]")
    raw["model_params"].setdefault("pretrained", raw.get("translation", {}).get("translator") == "mbart")


def _override(section: str, item: str, text: str) -> Any:
    """The value of one --set, checked by itself: its mistakes are none of the file's."""
    if section not in SECTIONS:
        raise _unknown(f"--set: there is no section [{section}]", section, SECTIONS, "sections")
    fields = {f.name: f for f in dataclasses.fields(SECTIONS[section])}
    if item not in fields:
        raise _unknown(f"--set: [{section}] has no key {item}", item, fields, "keys")
    hint = typing.get_type_hints(SECTIONS[section])[item]
    return _checked(_literal(text), hint, fields[item].metadata, f"--set: {section}.{item}")


def changes_between(before: Config, after: Config) -> dict[str, list[Any]]:
    """{"section.key": [old, new]} of every setting that differs; None where its section is absent."""
    old, new = before.as_dict(), after.as_dict()
    changed = {}
    for name, keys in after.sections().items():
        for item in vars(keys):
            pair = [plain.get(name, {}).get(item) for plain in (old, new)]
            if pair[0] != pair[1]:
                changed[f"{name}.{item}"] = pair
    return changed


def read_changes(words: list[str]) -> dict[str, str]:
    """What --set was given: ["section.key=value"] -> {"section.key": "value"}."""
    changes = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or "." not in name:
            raise Mistake("--set takes SECTION.KEY=VALUE", repr(word), "for example --set training.batch_size=4")
        changes[name.strip()] = value.strip()
    return changes


def config_from_dict(plain: dict[str, Any]) -> Config:
    """The config that a checkpoint carries (`Config.as_dict()`); keys this version does not know are left out."""
    sections: dict[str, Any] = {}
    for name, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls)
        held = plain.get(name)
        sections[name] = None if held is None else cls(**{
            k: tuple(v) if isinstance(v, list) and get_origin(hints[k]) is tuple else v
            for k, v in held.items() if k in hints})
    return Config(plain["model"], plain["split"], plain["exp_no"], **sections)


def _no_such_file(experiment: Experiment, path: Path, given: bool) -> Mistake:
    if given:
        return Mistake("the config file is missing", shown(path), "check the path behind -c")
    there = existing_experiments(experiment.model, experiment.split)
    return Mistake(f"no experiment {experiment.exp_no} for {experiment.model} on {experiment.split}",
                   f"{shown(path)} is missing ({there})", "write that file, or name another experiment")


def _parse_ini(text: str, source: str) -> dict[str, dict[str, Any]]:
    """Sections of literal values. The standard parser, its defaults, interpolation and comments switched off."""
    parser = configparser.RawConfigParser(default_section="\0", comment_prefixes=(";", "#"), delimiters=("=",),
                                          inline_comment_prefixes=None, empty_lines_in_values=False)
    try:
        parser.read_string(text, source)
    except configparser.Error as error:
        raise Mistake(f"{source} is no .ini file", " ".join(str(error).split()),
                      "it holds [section] lines and `key = value` lines") from None
    return {section.strip(): {k: _literal(_without_comment(v)) for k, v in parser.items(section)}
            for section in parser.sections()}


def _without_comment(value: str) -> str:
    """`value` up to a `;` or `#` that stands behind white space and outside quotes."""
    kept = []
    for line in value.splitlines():
        match = re.match(r"""((?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?!\s[;#]).)*)""", " " + line)
        kept.append((match[1] if match else line).strip())
    return "\n".join(kept).strip()


def _literal(text: str) -> Any:
    """A Python literal where `text` is one, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _understand_old_form(raw: dict[str, dict[str, Any]], notices: list[str], source: str) -> None:
    """Bring what older files say to today's sections, a notice for each."""
    stopping = raw.get("training", {}).pop("early_stopping", None)
    if stopping is not None:
        if not isinstance(stopping, dict):
            raise Mistake(f"{source}: training.early_stopping is no dict", repr(stopping),
                          "write a section [early_stopping] with metric, mode, patience, min_delta")
        if "early_stopping" in raw:
            raise Mistake(f"{source}: early stopping stands in two places",
                          "[early_stopping] and training.early_stopping", "keep the section")
        raw["early_stopping"] = dict(stopping)
        notices.append("training.early_stopping is read as the section [early_stopping]")
    plan = raw.get("scheduler")
    if plan is not None and "type" not in plan:
        kind = "CosineAnnealingWarmRestarts" if "t0" in plan else "CosineAnnealingLR" if "tmax" in plan else None
        if kind:
            plan["type"] = kind
            notices.append(f"[scheduler] has no type: its keys make it {kind}")
    if "model_params" not in raw or "drop_p" not in raw["model_params"]:
        raw.setdefault("model_params", {})["drop_p"] = 0.0
        notices.append("[model_params] has no drop_p: 0 is taken")
    for section in ("admin", "wandb"):
        if raw.pop(section, None) is not None:
            notices.append(f"[{section}] does nothing here")
    for section, keys in OLD_KEYS.items():
        for name in sorted(keys & set(raw.get(section, {}))):
            del raw[section][name]
            notices.append(f"{section}.{name} was the old program's: it does nothing here")


def _build(name: str, values: dict[str, Any] | None, notices: list[str], source: str) -> Any:
    """One section's dataclass from its raw values; None for an optional section that is absent."""
    cls = SECTIONS[name]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if values is None and name in OPTIONAL:
        return None
    values = values or {}
    unknown = [k for k in values if k not in fields]
    if unknown:
        raise _unknown(f"{source}: [{name}] has no key {unknown[0]}", unknown[0], fields, "keys")
    missing = [k for k, f in fields.items() if f.default is MISSING and k not in values]
    if missing:
        raise Mistake(f"{source}: [{name}] lacks {', '.join(missing)}",
                      f"it holds {', '.join(values) or 'nothing'}", f"add `{missing[0]} = …` to [{name}]")
    hints = typing.get_type_hints(cls)
    return cls(**{k: _checked(v, hints[k], fields[k].metadata, f"{source}: {name}.{k}") for k, v in values.items()})


def _unknown(wrong: str, name: str, known: Any, what: str) -> Mistake:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return Mistake(wrong, "", f"{hint}the {what} are {', '.join(known)}")


def _checked(value: Any, hint: Any, rules: typing.Mapping[str, Any], where: str) -> Any:
    """`value` as the type `hint`, within its rules, or a Mistake."""
    done, fits = _as_type(value, hint)
    if not fits:
        raise Mistake(f"{where} must be {_words(hint)}", f"{value!r} is {type(value).__name__}",
                      "quotes make a text, none make a number")
    for number in done if isinstance(done, tuple) else (done,):
        _check_range(number, rules, where)
    return done


def _check_range(value: Any, rules: typing.Mapping[str, Any], where: str) -> None:
    if rules["choices"] and value not in rules["choices"]:
        close = difflib.get_close_matches(str(value), rules["choices"], n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise Mistake(f"{where} has no such value", repr(value), f"{hint}it is one of {', '.join(rules['choices'])}")
    if value is None or isinstance(value, (str, bool)):
        return
    low, high, above = rules["low"], rules["high"], rules["above"]
    if value != value or abs(value) == float("inf"):
        raise Mistake(f"{where} is no finite number", repr(value), "give a number")
    below = (low is not None and value < low) or (above is not None and value <= above)
    if below or (high is not None and value > high):
        bounds = [f"at least {low}" * (low is not None), f"above {above}" * (above is not None),
                  f"at most {high}" * (high is not None)]
        raise Mistake(f"{where} is out of range", repr(value), "it is " + " and ".join(filter(None, bounds)))


def _as_type(value: Any, hint: Any) -> tuple[Any, bool]:
    """(`value` as `hint`, whether it fits). An int is a fine float; a bool is neither."""
    if isinstance(hint, types.UnionType):
        tries = [_as_type(value, part) for part in get_args(hint)]
        return next((t for t in tries if t[1]), (value, False))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if parts[-1] is ... and isinstance(value, (tuple, list)):
            parts = parts[:1] * len(value)
        if not isinstance(value, (tuple, list)) or len(value) != len(parts):
            return value, False
        done = [_as_type(v, part) for v, part in zip(value, parts, strict=True)]
        return tuple(d[0] for d in done), all(d[1] for d in done)
    if hint is float:
        fits = type(value) is float or type(value) is int and abs(value) < 1e300
        return (float(value), True) if fits else (value, False)
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true", True
    if hint is str:  # a bare word, or one that happens to read as a number (`root = 2024`)
        return (str(value), True) if isinstance(value, (str, int)) and type(value) is not bool else (value, False)
    return value, type(value) is hint


def _words(hint: Any) -> str:
    """A type in words a person uses."""
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
    if isinstance(hint, types.UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        count, each = len(get_args(hint)), _words(get_args(hint)[0])
        return f"values in parentheses, each {each}" if get_args(hint)[-1] is ... else \
            f"{count} values in parentheses, each {each}"
    return names[hint]


def _without_idle_keys(plan: SchedulerSection, notices: list[str]) -> SchedulerSection:
    """The plan with the keys that its type does not read at their defaults; old files hold such keys."""
    idle: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(plan)
                            if f.name not in SCHEDULER_KEYS[plan.type] and getattr(plan, f.name) != f.default}
    if idle:
        notices.append(f"[scheduler] {plan.type} does not use {', '.join(idle)}")
    return dataclasses.replace(plan, **idle)


def _check(config: Config, source: str) -> None:
    """The combinations that cannot be: each message names the settings."""
    if catalogue.MODELS[config.model].task != config.experiment.task:
        raise Mistake(f"{source}: {config.model} does not do this task", config.experiment.task,
                      f"its task is {catalogue.MODELS[config.model].task}")
    catalogue.check_clip(config.model, config.data.num_frames, config.data.frame_size)
    _check_model(config, source)
    if config.scheduler:
        _check_scheduler(config.scheduler, source)
    _check_metrics(config, source)
    _check_heatmaps(config, source)
    (_check_signs if config.experiment.task == "isolated" else _check_sentences)(config, source)
    _check_translation(config, source)
    if any(not 0 <= beta < 1 for beta in config.optimizer.betas):
        raise Mistake(f"{source}: optimizer.betas out of range", repr(config.optimizer.betas), "each is in [0, 1)")
    if any(j < 0 for j in config.data.jitter) or config.data.jitter[3] > 0.5:
        raise Mistake(f"{source}: data.jitter out of range", repr(config.data.jitter),
                      "brightness, contrast and saturation are at least 0, hue is at most 0.5")


def _check_metrics(config: Config, source: str) -> None:
    task, known = config.experiment.task, METRICS[config.experiment.task]
    if config.best_metric[0] not in known:
        raise Mistake(f"{source}: training.best_metric cannot be {config.training.best_metric}", f"the task is {task}",
                      f"it is {' or '.join(known)}")
    if config.early_stopping:
        part, metric = config.early_stopping.metric
        rising = metric == "bleu4" and config.early_stopping.mode == "min"
        if rising:
            raise Mistake(f"{source}: early_stopping.mode cannot be min", "BLEU-4 is to rise", "give mode = 'max'")
        if part not in ("train", "val") or metric not in known or (part == "train" and metric in ("wer", "bleu4")):
            raise Mistake(f"{source}: early_stopping.metric cannot be {config.early_stopping.metric}", "",
                          f"it is ('val' or 'train', {' or '.join(map(repr, known))}); wer and bleu4 only of val")


def _check_heatmaps(config: Config, source: str) -> None:
    """Keypoints and what is drawn of them are there together, or neither; and the model looks at them."""
    data = config.data
    if data.heatmap == "none" and not data.keypoints:
        return
    if not catalogue.MODELS[config.model].heatmaps:
        those = ", ".join(name for name, entry in catalogue.MODELS.items() if entry.heatmaps)
        name, value = ("keypoints", data.keypoints) if data.keypoints else ("heatmap", data.heatmap)
        raise Mistake(f"{source}: {config.model} takes no heatmaps", f"data.{name} = {value!r}",
                      f"leave the key out: heatmaps are for {those or 'no model'}")
    if data.heatmap == "none" or not data.keypoints:
        raise Mistake(f"{source}: data.keypoints and data.heatmap belong together",
                      f"keypoints = {data.keypoints!r}, heatmap = {data.heatmap!r}",
                      "name the file of points and what to draw of them, 'max' or 'points', or leave both out")
    if data.heatmap == "points" and data.hflip:
        raise Mistake(f"{source}: data.hflip cannot be with a channel for every point", str(data.hflip),
                      "in a mirrored clip left points would be right ones: give hflip = 0, or heatmap = 'max'")


def _check_sentences(config: Config, source: str) -> None:
    """What sentences cannot have, or not so."""
    data = config.data
    if data.num_frames % LENGTHS:
        raise Mistake(f"{source}: data.num_frames is no multiple of {LENGTHS}", str(data.num_frames),
                      f"the longest sentences have so many: give {max(data.num_frames // LENGTHS, 1) * LENGTHS}")
    for name, has, none in (("data.store", data.store, "video"), ("training.mixup", config.training.mixup, 0.0),
                            ("training.label_smoothing", config.training.label_smoothing, 0.0)):
        if has != none:
            raise Mistake(f"{source}: sentences have no {name}", repr(has), "leave the key out")
    if config.scheduler and config.scheduler.type == "ReduceLROnPlateau" and config.scheduler.mode != "min":
        raise Mistake(f"{source}: scheduler.mode cannot be max", "sentences have no accuracy to watch", "give min")


def _check_translation(config: Config, source: str) -> None:
    """[translation] is there for that task alone; a key that would do nothing to the model is a mistake."""
    keys, gloss2text = config.translation, config.model == "Gloss2Text"
    own = ("mapper_init_lr", "translator_init_lr", "translator_weight_decay")
    if config.experiment.task != "translation":
        held = [f"optimizer.{name}" for name in own if getattr(config.optimizer, name) is not None]
        if keys or held:
            raise Mistake(f"{source}: {'[translation]' if keys else held[0]} is of Gloss2Text and Sign2Text",
                          f"the model is {config.model}", "leave it out")
        return
    assert keys
    if keys.translator == "small" and keys.width % (2 * keys.heads):
        raise Mistake(f"{source}: translation.width is no multiple of twice its heads", f"{keys.width}, {keys.heads}",
                      f"give {keys.width // (2 * keys.heads) * 2 * keys.heads or 2 * keys.heads}")
    if bool(keys.sweep_beams) != bool(keys.sweep_penalties):
        raise Mistake(f"{source}: translation.sweep_beams and sweep_penalties belong together",
                      f"{keys.sweep_beams} and {keys.sweep_penalties}", "give both, or neither")
    idle: dict[str, Any] = {"freeze_gloss": False}
    if gloss2text:
        idle = {"features": "", "visual": "S3D_CTC", "scratch": False, "mapper": "projection", "ctc_weight": 1.0,
                "text_weight": 1.0, **({"freeze_text": False} if keys.translator == "small" else {})}
    for name, default in idle.items():
        if getattr(keys, name) != default:
            raise Mistake(f"{source}: translation.{name} does nothing to {config.model}",
                          repr(getattr(keys, name)), "leave the key out")
    if config.optimizer.layer_decay != 1:
        raise Mistake(f"{source}: optimizer.layer_decay does nothing to {config.model}",
                      repr(config.optimizer.layer_decay), "leave the key out")


def _check_signs(config: Config, source: str) -> None:
    if config.decoding:
        raise Mistake(f"{source}: [decoding] is of sentences", f"the task is {config.experiment.task}",
                      "leave the section out")
    if config.data.frame_stride != 1:
        raise Mistake(f"{source}: data.frame_stride is of sentences", str(config.data.frame_stride),
                      "leave the key out: data.num_frames says how many frames a clip of one sign has")
    if config.data.short_first:
        raise Mistake(f"{source}: data.short_first is of sentences", str(config.data.short_first),
                      "leave the key out: all clips of signs have data.num_frames frames")


def _check_model(config: Config, source: str) -> None:
    """A key that would do nothing to this model is a mistake."""
    entry, keys = catalogue.MODELS[config.model], config.model_params
    for name, has, what in (("bn_momentum", entry.batch_norm, "batch-norm"),
                            ("drop_path", entry.drop_path is not None, "stochastic depth"),
                            ("frozen_blocks", entry.freezable, "blocks that can be frozen"),
                            ("last_relu", entry.freezable, "head with one ReLU more or less")):
        if getattr(keys, name) is not None and not has:
            raise Mistake(f"{source}: {config.model} has no {what}", f"model_params.{name} = {getattr(keys, name)}",
                          "leave the key out")
    mbart = config.translation and config.translation.translator == "mbart"
    if entry.weights is None and (keys.weights or keys.pretrained and not (keys.init_from or mbart)):
        raise Mistake(f"{source}: there are no pretrained weights of {config.model}",
                      f"model_params.{'weights' if keys.weights else 'pretrained'}",
                      "set model_params.pretrained = False; model_params.init_from takes a checkpoint of yours")
    if config.mamba and config.model != "MambaSLR":
        raise Mistake(f"{source}: [mamba] is of MambaSLR", f"the model is {config.model}", "leave the section out")


def _check_scheduler(plan: SchedulerSection, source: str) -> None:
    needed = {"CosineAnnealingLR": ("tmax",), "CosineAnnealingWarmRestarts": ("t0", "tmult"),
              "WarmOnly": ("warmup_epochs",)}.get(plan.type, ())
    lacking = [k for k in needed if not getattr(plan, k)]
    if lacking:
        raise Mistake(f"{source}: [scheduler] of type {plan.type} lacks {', '.join(lacking)}", "",
                      f"add `{lacking[0]} = …`")
    if plan.warmup_epochs and plan.start_factor > plan.end_factor:
        raise Mistake(f"{source}: the warm-up goes down", f"from {plan.start_factor} to {plan.end_factor}",
                      "start_factor is at most end_factor")
