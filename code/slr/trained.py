"""A trained model found again: the checkpoint that a person names, its settings, and the task rebuilt from them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from slr.catalogue import canonical
from slr.config import Config, config_from_dict, parse_config, read_config
from slr.errors import Mistake
from slr.paths import Experiment, shown


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint with its config, and where results about it go."""

    file: Path
    content: dict[str, Any]
    config: Config
    results: Path

    @property
    def name(self) -> str:
        return self.file.stem


def find_trained(model: str | None, split: str | None, exp_no: str | None, checkpoint: Path | None,
                 changes: dict[str, str] | None = None, name: str = "best.pth", results: Path | None = None) -> Trained:
    """The checkpoint `name` of MODEL SPLIT EXP_NO, or the file `checkpoint`; `changes` override its settings.

    Raises Mistake where there is none, or where an old one does not say its settings and no .ini does.
    """
    from slr import checkpoint as checkpoints

    experiment = None
    if model and split and exp_no:
        experiment = Experiment(canonical(model), split, exp_no).newest_checkpoints()
    if checkpoint:
        file, beside = checkpoint, _beside(checkpoint)
    elif experiment:
        file, beside = _of(experiment, name)
    else:
        raise Mistake("which experiment?", "MODEL SPLIT EXP_NO are not all there", "give them, or --checkpoint FILE")
    content = checkpoints.load(file)
    return Trained(file, content, _settings(content, experiment, file, changes or {}), results or beside)


def _beside(checkpoint: Path) -> Path:
    """The results folder of the run that a checkpoint file belongs to."""
    folder = checkpoint.resolve().parent
    if folder.name.startswith("checkpoints"):
        return folder.parent / folder.name.replace("checkpoints", "results")
    return folder / "results"


def _of(experiment: Experiment, name: str) -> tuple[Path, Path]:
    """(Checkpoint, results folder) of an experiment; the old program's run folder where ours is not there."""
    old = experiment.old_run
    if not experiment.checkpoints.is_dir() and (old / "checkpoints").is_dir():
        return old / "checkpoints" / name, old / "results"
    return experiment.checkpoints / name, experiment.results


def _settings(content: dict[str, Any], experiment: Experiment | None, file: Path, changes: dict[str, str]) -> Config:
    if "config" in content:
        config = config_from_dict(content["config"])
        named = Experiment(config.model, config.split, config.exp_no)
        return parse_config(config.as_ini(), named, changes, shown(file))
    if experiment is None:
        raise Mistake(f"{shown(file)} does not carry its settings", "it is the old program's",
                      "name its experiment too: MODEL SPLIT EXP_NO, which has an .ini")
    info = file.parent.parent / "data_info.json"
    trained = json.loads(info.read_text(encoding="utf-8")) if info.is_file() else {}
    known = {f"data.{key}": str(trained[key]) for key in ("num_frames", "frame_size") if key in trained}
    return read_config(experiment, {**known, **changes})


def rebuild(trained: Trained, device: str, seed: int, set_dir: Path | None = None) -> tuple[Any, Any]:
    """(the task with the checkpoint's weights, the runtime); pretrained weights are never fetched."""
    from slr.runtime import Runtime
    from slr.task import build_task

    runtime = Runtime.start(device, seed)
    keys = trained.config.model_params
    momentum = keys.bn_momentum or 0.1  # of no meaning in evaluation
    bare = dataclasses.replace(keys, pretrained=False, weights="", init_from="", bn_momentum=momentum)
    meta = trained.content.get("meta")
    task = build_task(dataclasses.replace(trained.config, model_params=bare), runtime, meta)
    if set_dir:
        if not set_dir.is_dir():
            raise Mistake("--set_dir is no folder", str(set_dir),
                          "give a folder with labels of preprocess.py, or of signs in HearAI's form")
        task.split = str(set_dir.resolve())
    task.load(trained.content["model_state_dict"], shown(trained.file))
    return task, runtime
