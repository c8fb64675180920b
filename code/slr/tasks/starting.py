"""What tasks with a backbone and a classifier share: the weights that these start from, and how they are trained."""

from pathlib import Path
from typing import Any

from slr import paths
from slr.augment import UNCHANGED, Recipe
from slr.catalogue import MODELS
from slr.config import Config, DataSection
from slr.errors import Mistake
from slr.metrics.cleanup import CLEANUPS
from slr.models.classifier import TwoParts, parameter_groups
from slr.models.weights import kinetics_file
from slr.paths import Experiment


def pretrained(config: Config) -> Path | None:
    """The file of the Kinetics weights, where the config wants them and nothing else replaces them."""
    keys = config.model_params
    if keys.init_from or not (keys.pretrained or keys.weights):
        return None
    if keys.weights:
        return paths.HOME / Path(keys.weights).expanduser()
    return kinetics_file(config.model)


def checkpoints_of(where: str) -> list[Path]:
    """The same of several, with commas between them."""
    whole = paths.HOME / Path(where).expanduser()
    names = [where] if whole.exists() else [name.strip() for name in where.split(",")]
    return [checkpoint_of(name) for name in names if name]


def checkpoint_of(where: str) -> Path:
    """What `init_from` names: a checkpoint file, or MODEL/SPLIT/EXP_NO for its best.pth."""
    path, parts = paths.HOME / Path(where).expanduser(), where.split("/")
    if len(parts) == 3 and not path.exists():
        path = Experiment(parts[0], parts[1], parts[2]).newest_checkpoints().checkpoints / "best.pth"
    return path


def refuse_to_watch_nothing(config: Config, items: int) -> None:
    """Raises Mistake where early stopping looks at what only a validation set has, and that has no `items`."""
    stopping = config.early_stopping
    if stopping and stopping.metric in (("val", "wer"), ("val", "bleu4")) and not items:
        raise Mistake(f"early stopping cannot watch the {stopping.metric[1].upper()}", "there is no validation set",
                      "watch the loss")


def groups(config: Config, model: TwoParts) -> list[dict[str, Any]]:
    """Optimiser groups of a model with a backbone and a classifier, each with its rate and weight decay."""
    keys = config.optimizer
    rates = {"backbone": (keys.backbone_init_lr, keys.backbone_weight_decay),
             "classifier": (keys.classifier_init_lr, keys.classifier_weight_decay)}
    return [{"name": name, "params": group.params, "lr": group.scale * rates[group.part][0], "scale": group.scale,
             "weight_decay": rates[group.part][1] if group.decay else 0.0}
            for name, group in parameter_groups(model, keys.layer_decay).items()]


def momentum(config: Config) -> float | None:
    """Batch-norm's momentum: S3D's own 0.001 only where it starts from Kinetics; None is the model's default."""
    keys, own = config.model_params, MODELS[config.model].pretrained_momentum
    if keys.bn_momentum is not None or own is None:
        return keys.bn_momentum
    return own if keys.pretrained or keys.weights else 0.1


def cleanup(config: Config) -> str:
    """Whose rules clean the glosses that are scored."""
    assert config.decoding
    if config.decoding.cleanup != "auto":
        return config.decoding.cleanup
    return config.split if config.split in CLEANUPS else "none"


def recipe(data: DataSection, train: bool) -> Recipe:
    """RandAugment and random erasing; of evaluation neither."""
    keys = (data.rand_augment, data.rand_augment_n, data.rand_augment_p, data.erase_p)
    return Recipe(*keys) if train else UNCHANGED


def channels_last(config: Config, device: str) -> bool:
    """Whether the model takes that memory format on a cpu or on cuda."""
    entry, choice = MODELS[config.model], config.training.channels_last
    if choice != "auto":
        return choice == "on"
    return entry.channels_last_gpu if device == "cuda" else entry.channels_last_cpu
