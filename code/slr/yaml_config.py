"""HearAI's train_config.yml read as one of our .ini files. No torch in here.

    ini, notices = convert(Path("train_config.yml").read_text(), "train_config.yml")

Every key that HearAI's documentation names has its place, in RULES; `notices` say what takes the place of those that
mean nothing here. An unknown key and a value of the wrong kind are Mistakes. Of a value's range the .ini's reader is
the judge: slr/config.py.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slr.errors import Mistake
from slr.hamnosys import COLUMNS, GLOSS

PARTS = "right_hand left_hand pose face"  # what landmarks: True reads, by HearAI's documentation
MODES = ("hamnosys", "gloss")
WITH_WEIGHTS = ("cnn_extractor", "resnet50_extractor")  # these start from ImageNet's in HearAI's program
SECTIONS = ("experiment", "training", "optimizer", "model_params", "data", "multihead", "augmentations",
            "feature_extractor", "transformer", "heads", "freeze_scheduler", "scheduler")


@dataclass(frozen=True)
class Rule:
    """A key of the YAML: its value as ours (a ValueError says what it must be), and where it stands in the .ini.

    Without a place it does nothing here, and `notice` says why; {} in it is the value.
    """

    read: Callable[[Any], Any]
    places: tuple[str, ...] = ()
    notice: str = ""
    needed: bool = False


# --- values -------------------------------------------------------------------------------------------------

def _text(value: Any) -> str:
    if isinstance(value, str) and value and value.isprintable():
        return value
    raise ValueError("a text")


def _separator(value: Any) -> str:
    if isinstance(value, str) and value and not set(value) & set('"\r\n'):
        return value
    raise ValueError("a character")


def _texts(value: Any) -> tuple[str, ...]:
    found = tuple(map(_text, value if isinstance(value, list) else [value]))
    if not found:
        raise ValueError("a text, or a list of them")
    return found


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("True or False")


def _number(value: Any) -> float:
    """YAML 1.1 reads 1e-4, which has no point, as a text."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a number")
    return number


def _whole(value: Any) -> int:
    number = None if isinstance(value, str) else value if type(value) is int else _number(value)
    if number is None or number != int(number):
        raise ValueError("a whole number")
    return int(number)


def _time(value: Any) -> float:
    return 0.0 if value is None else _number(value)


def _size(value: Any) -> int | tuple[int, int]:
    """A number, (number) or (height, width)."""
    if isinstance(value, list) and len(value) == 1:
        return _whole(value[0])
    if isinstance(value, list):
        if len(value) != 2:
            raise ValueError("a whole number, or two in a list")
        return _whole(value[0]), _whole(value[1])
    return _whole(value)


def _jitter(value: Any) -> float | tuple[float, float]:
    """A number, or the two ends of a range."""
    if isinstance(value, list):
        if len(value) != 2:
            raise ValueError("a number, or two in a list")
        return _number(value[0]), _number(value[1])
    return _number(value)


def _mode(value: Any) -> str:
    if value in MODES:
        return str(value)
    raise ValueError(" or ".join(map(repr, MODES)))


def _landmarks(value: Any) -> str:
    return PARTS if _flag(value) else ""


def _list_of(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def reader(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError("a list")
        return tuple(map(read, value))
    return reader


def _patterns(value: Any) -> dict[str, tuple[bool, ...]]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError("a list of True and False for every name")
    return {_text(name): _list_of(_flag)(pattern) for name, pattern in value.items()}


# --- keys ---------------------------------------------------------------------------------------------------

def _same(section: str, **readers: Callable[[Any], Any]) -> dict[str, Rule]:
    """Keys that keep their names."""
    return {name: Rule(read, (f"{section}.{name}",)) for name, read in readers.items()}


RULES: dict[str, dict[str, Rule]] = {
    "general_parameters": {
        "data_path": Rule(_texts, ("multihead.data_paths",)),
        "data_paths": Rule(_texts, ("multihead.data_paths",)),
        **_same("multihead", annotation_file=_text, separator=_separator, ratio_train_test=_number),
        "workers": Rule(_whole, ("data.workers",)),
        "gpu": Rule(_whole, notice="{}: training.py takes a GPU where there is one; --device cuda:N or cpu chooses"),
        "path_to_save": Rule(_text, notice="{}: checkpoints lie in the run's folder, runs/SPLIT/SignTransformer_NNN"),
        "seed": Rule(_whole, ("experiment.seed",)),
        "neptune": Rule(_flag, notice="{}: wandb takes its place (wandb login; training.py --no_wandb does without)"),
    },
    "augmentations_parameters": _same(
        "augmentations", apply_resize=_flag, apply_center_crop=_flag, apply_random_erasing=_flag,
        apply_random_rotation=_flag, apply_color_jitter=_flag, resize_size=_whole, center_crop_size=_size,
        random_erasing_probability=_number, random_rotation_degree=_number, color_jitter_brightness=_jitter,
        color_jitter_contrast=_jitter, color_jitter_saturation=_jitter, color_jitter_hue=_jitter),
    "train_parameters": {
        "classification_mode": Rule(_mode, ("multihead.mode",), needed=True),
        "epochs": Rule(_whole, ("training.max_epoch",), needed=True),
        "batch_size": Rule(_whole, ("training.batch_size",), needed=True),
        "lr": Rule(_number, ("optimizer.backbone_init_lr", "optimizer.classifier_init_lr"), needed=True),
        "num_segments": Rule(_whole, ("data.num_frames",), needed=True),
        "fast_dev_run": Rule(_flag, ("training.fast_dev_run",)),
        "pre_training": Rule(_flag, ("multihead.pre_training",)),
        "landmarks": Rule(_landmarks, ("multihead.landmarks",)),
        "time": Rule(_time, ("multihead.time",)),
        "warmup_steps": Rule(_whole, ("scheduler.warmup_steps",)),
        "multiply_lr_step": Rule(_number, ("scheduler.multiply_lr_step",)),
    },
    "feature_extractor": _same("feature_extractor", name=_text, model_path=_text, representation_size=_whole),
    "transformer": _same("transformer", name=_text, feedforward_size=_whole, num_attention_heads=_whole,
                         num_encoder_layers=_whole, output_size=_whole, dropout_rate=_number),
    "freeze_scheduler": _same("freeze_scheduler", model_params=_patterns, freeze_pattern_repeats=_list_of(_whole),
                              freeze_mode=_text, verbose=_flag),
}
HEAD = {"num_class": _whole, "loss_weight": _number}
OWN = {"optimizer": {"eps": 1e-8, "backbone_weight_decay": 0.01, "classifier_weight_decay": 0.01}}  # PyTorch's AdamW


# --- the whole ----------------------------------------------------------------------------------------------

def convert(text: str, source: str = "train_config.yml") -> tuple[str, list[str]]:
    """The text of an .ini, and a line for everything that has no place in it. `source` is what messages call the file.

    Raises:
        Mistake: no YAML, unknown keys, values of the wrong kind, or nothing where something is needed.
    """
    known = (*RULES, "heads")
    given = {name: {} if keys in (None, "None") else keys for name, keys in _load(text, source).items()}
    _refuse_unknown(source, given, known, "sections")
    found: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    found["experiment"]["task"], found["training"]["update_per_step"] = "multihead", 1
    found["optimizer"].update(OWN["optimizer"])
    notices: list[str] = []
    for name, rules in RULES.items():
        _read_section(source, name, given.get(name, {}), rules, found, notices)
    found["heads"] = _heads(source, given.get("heads", {}), found["multihead"]["mode"], notices)
    relative = [path for path in found["multihead"].get("data_paths", ()) if not Path(path).is_absolute()]
    if relative:
        notices.append(f"multihead.data_paths: {', '.join(relative)} is looked for in HEARAI of the data folder")
    if found["scheduler"]:
        found["scheduler"] = {"type": "MultiplicativeLR", **found["scheduler"]}
    extractor = found["feature_extractor"].get("name", WITH_WEIGHTS[0])
    found["model_params"]["pretrained"] = extractor in WITH_WEIGHTS
    return _as_ini(found, source), notices


def _load(text: str, source: str) -> dict[str, dict[str, Any]]:
    try:
        import yaml
    except ImportError as error:
        raise Mistake("YAML files need PyYAML, which cannot be imported", str(error), "pip install pyyaml") from None
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not
        raise Mistake(f"{source} is no YAML", " ".join(str(error).split()), "mend it there") from None
    if not isinstance(found, dict):
        raise Mistake(f"{source} is no train_config.yml", f"it holds {_kind(found)}",
                      f"it holds sections: {', '.join(RULES)}, heads")
    return found


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"


def _refuse_unknown(where: str, given: Iterable[Any], known: Iterable[str], what: str) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise Mistake(f"{where} has something unknown", str(name), f"{hint}the {what} are {', '.join(known)}")


def _read_section(source: str, name: str, keys: Any, rules: Mapping[str, Rule], found: dict[str, dict[str, Any]],
                  notices: list[str]) -> None:
    where = f"{source}: {name}"
    if not isinstance(keys, dict):
        raise Mistake(f"{where} holds no keys", _kind(keys), f"its keys are {', '.join(rules)}")
    _refuse_unknown(where, keys, rules, "keys")
    lacking = [item for item, rule in rules.items() if rule.needed and item not in keys]
    if lacking:
        raise Mistake(f"{where} lacks {', '.join(lacking)}", f"it holds {', '.join(keys) or 'nothing'}",
                      f"add `{lacking[0]}: …` to {name}")
    if {"data_path", "data_paths"} <= set(keys):
        raise Mistake(f"{where} has both data_path and data_paths", str(keys["data_path"])[:60], "keep one of them")
    for item, value in keys.items():
        ours = _value(where, item, value, rules[item].read)
        for place in rules[item].places:
            section, _, key = place.partition(".")
            found[section][key] = ours
        if not rules[item].places:
            notices.append(f"{name}.{item} = " + rules[item].notice.format(ours))


def _value(where: str, item: str, value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise Mistake(f"{where}.{item} is not what it must be", _kind(value), f"give {error}") from None


def _heads(source: str, given: Any, mode: str, notices: list[str]) -> dict[str, tuple[int, float]]:
    """{head: (classes, weight)} of the mode's heads; those of the other mode are named in a notice."""
    where = f"{source}: heads"
    if not isinstance(given, dict) or not isinstance(given.get(mode), dict) or not given[mode]:
        raise Mistake(f"{where} has no heads for classification_mode {mode}", _kind(given),
                      f"add `{mode}:` and under it a name with num_class and loss_weight for every head")
    _refuse_unknown(where, given, MODES, "modes")
    others = [f"{other}.{name}" for other in given
              if other != mode and isinstance(given[other], dict) for name in given[other]]
    if others:
        notices.append(f"heads: {', '.join(others)} left out: classification_mode is {mode}")
    _refuse_unknown(f"{where}.{mode}", given[mode], (GLOSS,) if mode == GLOSS else COLUMNS, "heads")
    heads = {}
    for name, keys in given[mode].items():
        own = f"{where}.{mode}.{name}"
        if not isinstance(keys, dict):
            raise Mistake(f"{own} holds no keys", _kind(keys), f"its keys are {', '.join(HEAD)}")
        _refuse_unknown(own, keys, HEAD, "keys")
        if lacking := [key for key in HEAD if key not in keys]:
            raise Mistake(f"{own} lacks {lacking[0]}", _kind(keys), f"add `{lacking[0]}: …`")
        classes, weight = (_value(own, key, keys[key], read) for key, read in HEAD.items())
        heads[name] = (classes, weight)
    return heads


def _as_ini(found: Mapping[str, Mapping[str, Any]], source: str) -> str:
    parts = [f"; made of {Path(source).name}"]
    for name in SECTIONS:
        if found[name]:
            parts.append("\n".join([f"[{name}]", *(f"{key} = {value!r}" for key, value in found[name].items())]))
    return "\n\n".join(parts) + "\n"
