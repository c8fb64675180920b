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
import math
import re
import types
import typing
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from slr import catalogue, hamnosys
from slr.errors import Mistake
from slr.paths import Experiment, existing_experiments, shown
from slr.sections import (
    BEST_BY_LOSS,
    HEADS_OF,
    LANDMARK_NETS,
    LENGTHS,
    METRICS,
    OF_MULTIHEAD,
    OF_WORDS,
    OLD_KEYS,
    OPTIONAL,
    PUBLISHED_ENCODERS,
    RISING,
    SCHEDULER_KEYS,
    SECTIONS,
    AugmentationsSection,
    DataSection,
    DecodingSection,
    EarlyStoppingSection,
    EncoderSection,
    ExperimentSection,
    ExtractorSection,
    FreezeSection,
    HeadsSection,
    LanguageDecoderSection,
    MambaSection,
    ModelSection,
    MultiheadSection,
    OptimizerSection,
    PretrainingSection,
    SchedulerSection,
    SpatialSection,
    TrainingSection,
    TranscriptionSection,
    TransformerSection,
    TranslationSection,
)

WORDS = ("transcription", "pretraining")  # the tasks of those models


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
    spatial: SpatialSection | None
    encoder: EncoderSection | None
    language_decoder: LanguageDecoderSection | None
    transcription: TranscriptionSection | None
    pretraining: PretrainingSection | None
    data: DataSection
    decoding: DecodingSection | None
    multihead: MultiheadSection | None
    augmentations: AugmentationsSection | None
    feature_extractor: ExtractorSection | None
    transformer: TransformerSection | None
    heads: HeadsSection | None
    freeze_scheduler: FreezeSection | None
    scheduler: SchedulerSection | None
    early_stopping: EarlyStoppingSection | None
    notices: tuple[str, ...] = field(default=(), compare=False)

    @property
    def best_metric(self) -> tuple[str, str]:
        """(Name, min or max) of the validation figure that picks best.pth."""
        by_loss = self.experiment.task == "isolated" or self.model in BEST_BY_LOSS
        auto = "loss" if by_loss else METRICS[self.experiment.task][-1]
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
    task = catalogue.MODELS[model].task
    if task in DROPOUT:
        raw.setdefault("model_params", {}).setdefault("drop_p", DROPOUT[task])
    _understand_old_form(raw, notices, source)
    for name in raw:
        if name not in SECTIONS:
            raise _unknown(f"{source}: there is no section [{name}]", name, SECTIONS, "sections")
    for name, value in (overrides or {}).items():
        section, _, item = name.partition(".")
        raw.setdefault(section, {})[item] = _override(section, item, value)
    if task in FILLED_IN:
        FILLED_IN[task](raw, model, experiment.split)
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


def _fill_in_translation(raw: dict[str, dict[str, Any]], model: str, split: str) -> None:
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


def _fill_in_multihead(raw: dict[str, dict[str, Any]], model: str, split: str) -> None:
    """What follows from SPLIT and from one another: SET_hamnosys or SET_gloss says the set and the mode, the mode the
    heads and the annotation's name, [augmentations] the size of a picture."""
    for name in OF_MULTIHEAD:
        raw.setdefault(name, {})
    keys, sizes, data = raw["multihead"], raw["augmentations"], raw.setdefault("data", {})
    named = re.fullmatch(r"(.+)_(hamnosys|gloss)", split)
    if keys.get("mode", "auto") == "auto":
        keys["mode"] = named[2] if named else "hamnosys"
    mode = str(keys["mode"])
    if not keys.get("data_paths"):
        keys["data_paths"] = (named[1] if named else split,)
    if not keys.get("annotation_file"):
        keys["annotation_file"] = f"test_{mode}.txt"
    if not raw["heads"] and mode in HEADS_OF:
        raw["heads"] = {k: v for k, v in vars(HEADS_OF[mode]).items() if v}
    cut = sizes.get("center_crop_size") if sizes.get("apply_center_crop") else None
    given = [side for side in (*(cut if isinstance(cut, (tuple, list)) else (cut,)), sizes.get("resize_size"))
             if type(side) is int]
    data.setdefault("frame_size", given[0] if given else catalogue.MODELS["SignTransformer"].default_size)
    seen = raw["feature_extractor"].get("name", "cnn_extractor") not in LANDMARK_NETS
    raw["model_params"].setdefault("pretrained", seen and not raw["model_params"].get("init_from"))


def _fill_in_words(raw: dict[str, dict[str, Any]], model: str, split: str) -> None:
    """The sections of a model that transcribes or is pre-trained for it, its published sizes, one rate for all parts
    where only one is given; DINOv2 alone is pretrained unless the .ini says otherwise."""
    for name in OF_WORDS[model]:
        raw.setdefault(name, {})
    data, rates, keys = raw.setdefault("data", {}), raw.setdefault("optimizer", {}), raw.get("encoder", {})
    data.setdefault("num_frames", catalogue.MODELS[model].default_frames)
    data.setdefault("frame_size", catalogue.MODELS[model].default_size)
    for end in ("init_lr", "weight_decay"):
        given = [rates[f"{part}_{end}"] for part in ("classifier", "backbone") if f"{part}_{end}" in rates]
        for part in ("classifier", "backbone") if given else ():
            rates.setdefault(f"{part}_{end}", given[0])
    if "encoder" in OF_WORDS[model]:
        published = PUBLISHED_ENCODERS[model.removesuffix("Pretrain")]
        if "spatial" in OF_WORDS[model]:
            published = {**published, "width": raw["spatial"].get("width", SpatialSection().width)}
        for name, value in published.items():
            if keys.get(name) is None:
                keys[name] = value
    raw["model_params"].setdefault("pretrained", "spatial" in OF_WORDS[model])


# What an .ini of a task need not say: the gloss head's dropout (others have rates in sections of their own), and more.
DROPOUT = {"translation": 0.1, "multihead": 0.0, "transcription": 0.0, "pretraining": 0.0}
FILLED_IN = {"translation": _fill_in_translation, "multihead": _fill_in_multihead, "transcription": _fill_in_words,
             "pretraining": _fill_in_words}


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
            k: _as_type(v, hints[k])[0] for k, v in held.items() if k in hints})
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
    if value is None or isinstance(value, (str, bool, dict)):
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
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            return value, False
        each = {str(k): _as_type(v, get_args(hint)[1]) for k, v in value.items()}
        return {k: done for k, (done, _) in each.items()}, all(fits for _, fits in each.values())
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
    if get_origin(hint) is dict:
        return f"{{name: {_words(get_args(hint)[1])}}}"
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
    if config.training.clip_norm and config.training.clip_value:
        raise Mistake(f"{source}: gradients are clipped twice", f"training.clip_norm = {config.training.clip_norm}, "
                      f"clip_value = {config.training.clip_value}", "keep one of them")
    if config.scheduler:
        _check_scheduler(config.scheduler, source)
    _check_metrics(config, source)
    _check_heatmaps(config, source)
    _check_jitter(config.data, source)
    checks = {"isolated": _check_signs, "multihead": _check_multihead}
    checks.get(config.experiment.task, _check_sentences)(config, source)
    _check_translation(config, source)
    _check_words(config, source)
    if config.experiment.task != "multihead" and (those := [n for n in (*OF_MULTIHEAD, "freeze_scheduler")
                                                            if getattr(config, n)]):
        raise Mistake(f"{source}: [{those[0]}] is of SignTransformer", f"the model is {config.model}", "leave it out")
    if any(not 0 <= beta < 1 for beta in config.optimizer.betas):
        raise Mistake(f"{source}: optimizer.betas out of range", repr(config.optimizer.betas), "each is in [0, 1)")


def _check_jitter(keys: DataSection, source: str) -> None:
    if any(j < 0 for j in keys.jitter) or keys.jitter[3] > 0.5:
        raise Mistake(f"{source}: data.jitter out of range", repr(keys.jitter),
                      "brightness, contrast and saturation are at least 0, hue is at most 0.5")
    if not 0 < keys.jitter_length[0] <= keys.jitter_length[1] < math.inf:
        raise Mistake(f"{source}: data.jitter_length is no range", repr(keys.jitter_length),
                      "give the lowest and the highest number of frames, as shares of the sentence's")


def _check_metrics(config: Config, source: str) -> None:
    task = config.experiment.task
    known = ("loss",) if config.model == "VideoMAEPretrain" else METRICS[task]
    if config.best_metric[0] not in known:
        raise Mistake(f"{source}: training.best_metric cannot be {config.training.best_metric}", f"the task is {task}",
                      f"it is {' or '.join(known)}")
    if config.early_stopping:
        part, metric = config.early_stopping.metric
        generated = ("wer", "bleu4", "exact", "f1")
        if metric in (*generated[1:], "accuracy") and config.early_stopping.mode == "min":
            raise Mistake(f"{source}: early_stopping.mode cannot be min", f"{metric} is to rise", "give mode = 'max'")
        if part not in ("train", "val") or metric not in known or (part == "train" and metric in generated):
            raise Mistake(f"{source}: early_stopping.metric cannot be {config.early_stopping.metric}", "",
                          f"it is ('val' or 'train', {' or '.join(map(repr, known))}); "
                          + (f"{' and '.join(only)} only of val" if (only := [n for n in generated if n in known])
                             else "of either set"))


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
    mirrors = config.decoding is not None and config.decoding.mirror
    for key, given, off in (("data.hflip", data.hflip, 0.0), ("decoding.mirror", mirrors, False)):
        if data.heatmap == "points" and given:
            raise Mistake(f"{source}: {key} cannot be with a channel for every point", str(given),
                          f"in a mirrored clip left points would be right ones: give {key} = {off}, or "
                          "data.heatmap = 'max'")


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
    assert config.decoding
    for name, value, default in (("optimizer.layer_decay", config.optimizer.layer_decay, 1),
                                 ("decoding.mirror", config.decoding.mirror, False)):
        if value != default:
            raise Mistake(f"{source}: {name} does nothing to {config.model}", repr(value), "leave the key out")


def _check_words(config: Config, source: str) -> None:
    """The sections of transcription and pre-training: those of the model, sizes that come out even, no idle keys."""
    own = OF_WORDS.get(config.model, ())
    everywhere = {name for names in OF_WORDS.values() for name in names} - {"decoding"}
    everywhere |= {"decoding"} if own else set()
    if there := sorted(name for name in everywhere if getattr(config, name) and name not in own):
        raise Mistake(f"{source}: [{there[0]}] does nothing to {config.model}", "a section", "leave it out")
    if not own:
        return
    for whole, part, found in _shares(config):
        if found[0] % found[1]:
            raise Mistake(f"{source}: {whole} is no multiple of {part}", f"{found[0]} and {found[1]}",
                          f"give {max(found[0] // found[1], 1) * found[1]}")
    idle = _idle_words(config)
    if idle:
        name, value = next(iter(idle.items()))
        raise Mistake(f"{source}: {name} does nothing to {config.model}", repr(value), "leave the key out")
    _check_cache(config, source)
    if (said := config.transcription) and said.ctc_share and not said.ctc_weight:
        raise Mistake(f"{source}: transcription.ctc_share gives a part to a CTC that does not learn",
                      f"{said.ctc_share}, and ctc_weight = 0", "set ctc_weight too, or leave ctc_share out")
    keys = config.pretraining
    if keys and keys.temperature_end > keys.temperature:
        raise Mistake(f"{source}: pretraining.temperature rises", f"from {keys.temperature} to {keys.temperature_end}",
                      "give temperature_end at most temperature")
    if config.model == "VideoMAEPretrain" and keys and config.encoder:
        cells = (config.data.frame_size // config.encoder.patch) ** 2
        if math.floor(keys.mask_ratio * cells + 1e-9) < 1:
            raise Mistake(f"{source}: pretraining.mask_ratio hides nothing", f"{keys.mask_ratio} of {cells} tubes",
                          "give a higher one, or larger frames")


def _check_cache(config: Config, source: str) -> None:
    """Frames that were seen once, before training, are not augmented."""
    for name in ("hflip", "rand_augment", "erase_p") if config.spatial and config.spatial.cache else ():
        if value := getattr(config.data, name):
            raise Mistake(f"{source}: data.{name} does nothing to frames that are kept as DINOv2 has seen them",
                          f"{value}, and spatial.cache = True", "leave one of them out")


def _shares(config: Config) -> list[tuple[str, str, tuple[int, int]]]:
    """(Name of the whole, of what divides it, both numbers): a clip's frames into tubelets, a width into heads …"""
    found, data = [], config.data
    if (see := config.spatial) and not config.model_params.pretrained:
        found.append(("spatial.width", "spatial.heads", (see.width, see.heads)))
    if (keys := config.encoder) and config.spatial:
        both = math.lcm(keys.heads or 1, keys.groups)
        found.append(("spatial.width", "encoder.heads and encoder.groups", (config.spatial.width, both)))
    elif keys:
        found += [("data.num_frames", "encoder.tubelet", (data.num_frames, keys.tubelet)),
                  ("data.frame_size", "encoder.patch", (data.frame_size, keys.patch)),
                  ("encoder.width", "encoder.heads", (keys.width or 1, keys.heads or 1))]
    if said := config.language_decoder:
        found.append(("language_decoder.width", "language_decoder.heads", (said.width, said.heads)))
    if (learnt := config.pretraining) and config.spatial:
        found.append(("pretraining.code_dim", "pretraining.code_groups", (learnt.code_dim, learnt.code_groups)))
    elif learnt:
        found.append(("pretraining.decoder_width", "pretraining.decoder_heads",
                      (learnt.decoder_width, learnt.decoder_heads)))
    return found


OF_FRAMES = ("crop", "eval_resize", "min_scale", "max_aspect", "hflip", "jitter", "jitter_p", "rand_augment",
             "rand_augment_n", "rand_augment_p", "erase_p", "frame_stride", "short_first", "jitter_frames",
             "jitter_length", "subtract_clip_mean")  # of [data]
OF_TUBELETS = ("patch", "tubelet")  # of [encoder]
OF_TIME = ("kernel", "groups", "layerdrop", "mask_share", "mask_length", "mask_least")
OF_CODES = ("mask_share", "mask_length", "negatives", "code_groups", "codes", "code_dim", "compare_dim", "diversity",
            "temperature", "temperature_end", "temperature_decay")  # of [pretraining]
OF_TUBES = ("mask_ratio", "decoder_width", "decoder_layers", "decoder_heads", "decoder_ffn")


def _idle_words(config: Config) -> dict[str, Any]:
    """What is set and does nothing to this model."""
    over_time = config.spatial is not None
    idle: list[tuple[str, tuple[str, ...]]] = [
        ("encoder", OF_TUBELETS if over_time else OF_TIME), ("pretraining", OF_TUBES if over_time else OF_CODES),
        ("data", ("crop",) if config.encoder else OF_FRAMES), ("model_params", ("drop_p",)),
        ("optimizer", ("layer_decay",)), ("training", ("channels_last",)), ("decoding", ("beam_width", "mirror"))]
    if config.model == "LanguageDecoder":
        idle.append(("data", ("num_frames", "frame_size")))
    if config.spatial:
        pretrained = config.model_params.pretrained
        idle.append(("spatial", ("layers", "heads", "patch", "image", "seed") if pretrained else ("dinov2",)))
    if config.model.endswith("Pretrain"):
        idle += [("encoder", ("mask_share", "mask_length", "mask_least")), ("data", ("jitter_length",))]
    found = dict[str, Any]()
    for section, names in idle:
        if (keys := getattr(config, section)) is None:
            continue
        entry = catalogue.MODELS[config.model]
        defaults = {f.name: f.default for f in dataclasses.fields(keys)} | {
            "drop_p": 0.0, "num_frames": entry.default_frames, "frame_size": entry.default_size}
        found |= {f"{section}.{name}": getattr(keys, name) for name in names if getattr(keys, name) != defaults[name]}
    if over_time and config.encoder and config.spatial and config.encoder.width != config.spatial.width:
        found["encoder.width"] = config.encoder.width
    return found


def _check_signs(config: Config, source: str) -> None:
    if config.decoding:
        raise Mistake(f"{source}: [decoding] is of sentences", f"the task is {config.experiment.task}",
                      "leave the section out")
    if config.data.frame_stride != 1:
        raise Mistake(f"{source}: data.frame_stride is of sentences", str(config.data.frame_stride),
                      "leave the key out: data.num_frames says how many frames a clip of one sign has")
    for name in ("short_first", "jitter_length"):
        if (value := getattr(config.data, name)) != getattr(DataSection, name):
            raise Mistake(f"{source}: data.{name} is of sentences", str(value),
                          "leave the key out: all clips of signs have data.num_frames frames")


IN_AUGMENTATIONS = ("store", "crop", "eval_resize", "min_scale", "max_aspect", "hflip", "jitter", "jitter_p",
                    "rand_augment", "rand_augment_n", "rand_augment_p", "erase_p", "keypoints", "heatmap",
                    "frame_stride", "short_first", "jitter_frames", "jitter_length")


def _check_multihead(config: Config, source: str) -> None:
    """Heads that are there and weigh something, landmarks that exist, lists of one length; keys that do nothing."""
    keys, heads, training = config.multihead, config.heads, config.training
    assert keys and heads and config.feature_extractor and config.augmentations
    held = {name: value for name, value in vars(heads).items() if value}
    if not held or not any(weight for _, weight in held.values()):
        raise Mistake(f"{source}: no head has a weight, so nothing would be learnt",
                      ", ".join(f"{name} = {value}" for name, value in held.items()) or "[heads] is empty",
                      "give at least one head a weight above 0")
    if few := [name for name, (classes, _) in held.items() if classes < 2]:
        raise Mistake(f"{source}: heads.{few[0]} has too few classes", str(held[few[0]]), "give 2 or more")
    _check_landmarks(keys, config.feature_extractor, source)
    defaults = {f.name: f.default for f in dataclasses.fields(DataSection)}
    idle = {f"data.{name}": getattr(config.data, name) for name in IN_AUGMENTATIONS
            if getattr(config.data, name) != defaults[name]}
    smoothed = training.label_smoothing if keys.loss == "bce" else 0.0
    idle |= {name: value for name, value in (("training.mixup", training.mixup),
                                             ("training.label_smoothing", smoothed),
                                             ("training.channels_last", training.channels_last),
                                             ("model_params.drop_p", config.model_params.drop_p))
             if value not in (0, "auto")}
    if config.decoding:
        idle["[decoding]"] = "a section"
    idle |= _idle_heads(config)
    if idle:
        name, value = next(iter(idle.items()))
        raise Mistake(f"{source}: {name} does nothing here", repr(value),
                      "leave it out; pictures have [augmentations], dropout is transformer.dropout_rate")
    if config.optimizer.layer_decay != 1:
        raise Mistake(f"{source}: optimizer.layer_decay does nothing to {config.model}",
                      repr(config.optimizer.layer_decay), "leave the key out")
    _check_sizes(config.augmentations, config.data.frame_size, source)
    over_time = config.transformer
    if over_time and over_time.model_path and over_time.name != "hubert_transformer":
        raise Mistake(f"{source}: transformer.model_path is of hubert_transformer", f"name = {over_time.name!r}",
                      "leave the key out")
    if config.freeze_scheduler:
        _check_freezing(config.freeze_scheduler, source)


def _idle_heads(config: Config) -> dict[str, Any]:
    """What is set and does nothing: about pictures where landmarks alone are looked at, and so on."""
    keys, sizes, over_time = config.multihead, config.augmentations, config.transformer
    assert keys and sizes and over_time and config.feature_extractor
    plain, idle = AugmentationsSection(), dict[str, Any]()
    if config.feature_extractor.name in LANDMARK_NETS:
        idle |= {f"augmentations.{name}": value for name, value in vars(sizes).items() if value != getattr(plain, name)}
        idle |= {name: value for name, value in (("model_params.pretrained", config.model_params.pretrained),
                                                 ("data.subtract_clip_mean", config.data.subtract_clip_mean)) if value}
    if over_time.name != "hubert_transformer" and over_time.hidden_size != TransformerSection().hidden_size:
        idle["transformer.hidden_size"] = over_time.hidden_size
    if keys.val_paths and keys.test_paths and keys.split_by != "ratio":
        idle["multihead.split_by"] = keys.split_by
    return idle


def _check_landmarks(keys: MultiheadSection, extractor: ExtractorSection, source: str) -> None:
    parts = keys.landmarks.split()
    unknown = [part for part in parts if part not in hamnosys.PARTS]
    if unknown or len(set(parts)) < len(parts):
        raise Mistake(f"{source}: multihead.landmarks has no such parts", repr(keys.landmarks),
                      f"name some of {' '.join(hamnosys.PARTS)}, each once")
    alone = extractor.name in LANDMARK_NETS
    if alone and not parts:
        raise Mistake(f"{source}: {extractor.name} looks at landmarks, and there are none", "multihead.landmarks = ''",
                      "give multihead.landmarks = 'right_hand left_hand pose'")
    if extractor.model_path and extractor.name != "cnn_extractor":
        raise Mistake(f"{source}: feature_extractor.model_path is of cnn_extractor", f"name = {extractor.name!r}",
                      "leave the key out")
    if extractor.name == "cnn_extractor" and not extractor.model_path:
        raise Mistake(f"{source}: cnn_extractor needs feature_extractor.model_path", "it is empty",
                      "give the name of a model of timm, such as 'resnet18'")
    if extractor.landmark_net != "landmark_extractor" and (alone or not parts):
        raise Mistake(f"{source}: feature_extractor.landmark_net is of landmarks beside frames",
                      f"name = {extractor.name!r}, landmarks = {keys.landmarks!r}", "leave the key out")


def _check_sizes(keys: AugmentationsSection, frame_size: int, source: str) -> None:
    cut = keys.center_crop_size
    if keys.apply_center_crop and cut is None:
        raise Mistake(f"{source}: augmentations.apply_center_crop lacks center_crop_size", "it is None",
                      "give the crop's side, or (height, width)")
    for name in ("brightness", "contrast", "saturation", "hue"):
        far = getattr(keys, f"color_jitter_{name}")
        if far[0] > far[1] if isinstance(far, tuple) else far < 0:
            raise Mistake(f"{source}: augmentations.color_jitter_{name} is no range", repr(far),
                          "give one number from 0 up, or the lower and the higher end")
    side = keys.resize_size or frame_size
    if keys.apply_center_crop and keys.apply_resize and max(cut if isinstance(cut, tuple) else (cut or 0,)) > side:
        raise Mistake(f"{source}: the crop is larger than the picture", f"{cut} of {side} pixels",
                      "give a larger augmentations.resize_size")


def _check_freezing(keys: FreezeSection, source: str) -> None:
    lengths = {name: len(pattern) for name, pattern in keys.model_params.items()}
    if not lengths or any(n != len(keys.freeze_pattern_repeats) for n in lengths.values()):
        raise Mistake(f"{source}: the lists of [freeze_scheduler] are of unequal length",
                      f"freeze_pattern_repeats has {len(keys.freeze_pattern_repeats)}, "
                      + (", ".join(f"{name} has {n}" for name, n in lengths.items()) or "model_params is empty"),
                      "give each name of model_params as many of True and False as there are repeats")


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
    own = entry.task == "multihead"  # timm's and torchvision's, of its extractor
    if own and keys.weights:
        raise Mistake(f"{source}: model_params.weights does nothing to {config.model}", keys.weights,
                      "model_params.pretrained takes timm's or torchvision's, init_from a checkpoint of yours")
    words = entry.task in WORDS
    if words and (keys.weights and not config.encoder or keys.pretrained and not config.spatial):
        raise Mistake(f"{source}: there are no such weights of {config.model}",
                      f"model_params.{'weights' if keys.weights else 'pretrained'}",
                      "set model_params.pretrained = False; weights is for a folder of an encoder, as transformers "
                      "saves it, init_from for checkpoints of yours")
    if not (own or words or entry.weights) and (keys.weights or keys.pretrained and not (keys.init_from or mbart)):
        raise Mistake(f"{source}: there are no pretrained weights of {config.model}",
                      f"model_params.{'weights' if keys.weights else 'pretrained'}",
                      "set model_params.pretrained = False; model_params.init_from takes a checkpoint of yours")
    if config.mamba and config.model != "MambaSLR":
        raise Mistake(f"{source}: [mamba] is of MambaSLR", f"the model is {config.model}", "leave the section out")


def _check_scheduler(plan: SchedulerSection, source: str) -> None:
    needed = {"CosineAnnealingLR": ("tmax",), "OneCycleLR": ("tmax",), "CosineAnnealingWarmRestarts": ("t0", "tmult"),
              "WarmOnly": () if plan.warmup_steps else ("warmup_epochs",),
              "WarmupHoldDecay": ("tick_steps",)}.get(plan.type, ())
    lacking = [k for k in needed if not getattr(plan, k)]
    if lacking:
        raise Mistake(f"{source}: [scheduler] of type {plan.type} lacks {', '.join(lacking)}", "",
                      f"add `{lacking[0]} = …`")
    if plan.warmup_epochs and plan.warmup_steps:
        raise Mistake(f"{source}: the warm-up is said twice", f"warmup_epochs = {plan.warmup_epochs}, warmup_steps = "
                      f"{plan.warmup_steps}", "keep one of them")
    if plan.warmup_steps and plan.start_factor != 1:
        raise Mistake(f"{source}: scheduler.start_factor does nothing beside warmup_steps", repr(plan.start_factor),
                      "leave it out: step k of n has k / n of the rate")
    if plan.warmup_epochs and plan.start_factor > plan.end_factor:
        raise Mistake(f"{source}: the warm-up goes down", f"from {plan.start_factor} to {plan.end_factor}",
                      "start_factor is at most end_factor")
