"""Checkpoints: tensors and readable metadata in one file, written so that a kill never leaves half of one.

A file is a dict that `torch.load(weights_only=True)` admits:

    format, model, task, meta (classes, normalisation, clip), config, epoch, metrics, data_hash, versions,
    model_state_dict, and in numbered ones and resume.pth also `resume`: all that a run needs to go on

The old program's files load too: a bare state_dict, or a dict with `model_state_dict` and little else.
"""

import hashlib
import os
import platform
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from slr.errors import Mistake
from slr.paths import shown

FORMAT = 1
NUMBERED = re.compile(r"checkpoint_(\d+)\.pth")
TOP = re.compile(r"top_e(\d+)_.+\.pth")


def versions() -> dict[str, str]:
    """The libraries that a checkpoint was written with."""
    import numpy
    import torchvision

    return {"python": platform.python_version(), "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__), "numpy": numpy.__version__}


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and numbers of the weights, however their file was written."""
    whole = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return whole.hexdigest()


def save(path: Path, content: dict[str, Any]) -> None:
    """Write aside, flush to the disk, rename: `path` is either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch's writer hides a full disk
        if not isinstance(cause, OSError):
            raise
        raise Mistake(f"{shown(path)} cannot be written", str(cause), "make room on the disk, or move runs/ with "
                      "$SLR_RUNS; the run goes on from its last checkpoint with -r") from None
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove the half-written files of a run that was killed."""
    for path in folder.glob(".*.pth.*.part"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors on the CPU; an old bare state_dict becomes {"model_state_dict": …}."""
    if not path.is_file():
        raise Mistake("the checkpoint is missing", shown(path), _neighbours(path.parent))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise Mistake(f"{shown(path)} is no checkpoint", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
                      "it may be cut short, or hold pickled code, which is never run") from None
    if not isinstance(content, dict):
        raise Mistake(f"{shown(path)} is no checkpoint", f"it holds a {type(content).__name__}", "give another file")
    if content.get("format", FORMAT) > FORMAT:
        raise Mistake(f"{shown(path)} comes from a newer version", f"format {content['format']}", "update this toolkit")
    if "model_state_dict" not in content:
        if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise Mistake(f"{shown(path)} holds no weights", f"keys {', '.join(map(str, list(content)[:6]))}",
                          "give a checkpoint of training.py")
        content = {"model_state_dict": content}
    return content


def _neighbours(folder: Path) -> str:
    found = sorted(p.name for p in folder.glob("*.pth")) if folder.is_dir() else []
    return f"that folder holds {', '.join(found)}" if found else f"train first: {_command(folder)}"


def _command(folder: Path) -> str:
    """What trains the run whose checkpoints belong into this folder."""
    model, _, number = folder.parent.name.rpartition("_")
    if not folder.name.startswith("checkpoints") or not re.fullmatch(r"\d+(\.\d+)?", number) or not model:
        return "python training.py MODEL SPLIT EXP_NO"
    return f"python training.py {shlex.quote(model)} {folder.parents[1].name} {number.lstrip('0') or '0'}"


def numbered(folder: Path) -> dict[int, Path]:
    """The numbered checkpoints of a folder by epoch, in the order of the numbers, whatever their padding."""
    found = {int(m[1]): p for p in folder.glob("checkpoint_*.pth") if (m := NUMBERED.fullmatch(p.name))}
    return dict(sorted(found.items()))


def top_name(epoch: int, metric: str, value: float) -> str:
    """The name of one of the best epochs' files: top_e012_wer_23.41.pth."""
    return f"top_e{epoch:03d}_{metric}_{value:.4g}.pth"


def tops(folder: Path) -> dict[str, int]:
    """The files of the best epochs in a folder: {name: epoch}."""
    return {p.name: int(m[1]) for p in sorted(folder.glob("top_e*.pth")) if (m := TOP.fullmatch(p.name))}


def newest(folder: Path) -> Path | None:
    """The file that a run goes on from: the furthest of resume.pth and the numbered ones, by their own words."""
    last = list(numbered(folder).items())[-1:]
    resume = folder / "resume.pth"
    if not resume.is_file():
        return last[0][1] if last else None
    if last and last[0][0] > _epochs_done(resume):
        return last[0][1]
    return resume


def _epochs_done(path: Path) -> int:
    return int(load(path).get("epoch", 0))


def load_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], source: str,
                 may_miss: tuple[str, ...] = ()) -> None:
    """Load weights strictly; only keys that start with one of `may_miss` may be absent. Names what does not fit."""
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.startswith(may_miss or ("\0",))]
    extra = [k for k in state if k not in own]
    shapes = [k for k in state if k in own and state[k].shape != own[k].shape]
    if missing or extra or shapes:
        found = "; ".join(f"{what}: {', '.join(keys[:4])}{' …' if len(keys) > 4 else ''}" for what, keys in
                          (("missing", missing), ("unknown", extra), ("of another shape", shapes)) if keys)
        raise Mistake(f"the weights of {source} do not fit this model", found,
                      "give the checkpoint of the same MODEL with the same classes")
    model.load_state_dict(state, strict=False)
