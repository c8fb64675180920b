"""The command lines of a job and their environment. Exit codes and status.json are all that comes back."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from que.job import Job

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("SLR_DATA", "SLR_RUNS", "WANDB_MODE")  # of the environment in which a job was created; no secrets
_NUMBERS = ("epoch", "epochs", "step", "steps", "eta_s", "peak_memory")
_KINDS: dict[str, Any] = {**dict.fromkeys(_NUMBERS, int | float | None),
                          "best": dict | None, "pids": list, "exit_code": int | None}  # of status.json
TOLD = ("epoch", "epochs", "best", "wandb_url", "peak_memory")  # of status.json, kept with a job that has ended
MARK = "QUE_JOB"  # in the environment of every process of a job, however deep: <state folder>#<id>


def home(job: Job, state: Path) -> Path:
    """The tree that holds the job's code/ and configfiles/: its snapshot, or the live one."""
    return state / "snapshots" / job.snapshot if job.snapshot else ROOT


def config_file(job: Job, state: Path) -> Path:
    """The resolved .ini, stored at `create`."""
    return state / "configs" / f"{job.id}.ini"


def train(job: Job, state: Path, ranks: int = 1, start_from: str = "", python: str = sys.executable) -> list[str]:
    """training.py's command line; `start_from` is what the parents hand over: a checkpoint, or several with commas."""
    script = _script(job, state, "training")
    launch = [python, script] if ranks < 2 else [
        python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), script]
    changes = dict(job.changes)
    if start_from:
        changes["model_params.init_from"] = repr(start_from)
    begun = job.recover and (Path(job.run) / "config.ini").is_file()  # -r goes on with that one
    config = ["-c", str(config_file(job, state))] if job.snapshot and not begun else []
    once = ("-ec", "--enum_chck") if job.recover else ()  # -r goes on with what it began
    return [*launch, *job.words, "-na", *(["-r"] if job.recover else []), *config,
            *(word for word in job.options if word not in once), *settings(changes)]


def settings(changes: dict[str, str]) -> list[str]:
    return [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]


def test(job: Job, state: Path, python: str = sys.executable) -> list[str]:
    """testing.py's command line, with the device and the batch that training had."""
    return [python, _script(job, state, "testing"), "full", *job.words, *_as_trained(job)]


def extract(job: Job, state: Path, python: str = sys.executable) -> list[str]:
    """extract_features.py's command line. It takes up what is there by itself; its batch may have been halved."""
    return [python, _script(job, state, "extract_features"), *job.words, *_as_trained(job, job.extract_batch)]


def _as_trained(job: Job, batch: int = 0) -> list[str]:
    """The device that training had, and its batch where the que changed that, or else this one."""
    given = [word for place, word in enumerate(job.options)
             if word.partition("=")[0] == "--device" or job.options[place - 1:place] == ["--device"]]
    size = str(batch or job.changes.get("training.batch_size", ""))
    return [*given, *(["--batch_size", size] if size else [])]


def _script(job: Job, state: Path, name: str) -> str:
    return str(home(job, state) / "code" / f"{name}.py")


def environment(job: Job, state: Path) -> dict[str, str]:
    """What a job's processes find in their environment beside the caller's own."""
    env = {"SLR_DATA": str(ROOT / "data"), "SLR_RUNS": str(ROOT / "runs"), "PYTHONUNBUFFERED": "1", **job.env,
           "PYTHONSAFEPATH": "", MARK: mark_of(job.id, state)}  # a snapshot's scripts must import what lies beside them
    if job.snapshot:
        env["SLR_HOME"] = str(ROOT)
        env["SLR_COMMIT"] = str(read_json(home(job, state) / "snapshot.json").get("commit", ""))
    return env


def mark_of(job_id: str, state: Path) -> str:
    return f"{state}#{job_id}"


def status(job: Job) -> dict[str, Any]:
    """status.json of the run, without what is not of its kind; {} where there is none."""
    content = read_json(Path(job.run) / "status.json") if job.run else {}
    return {key: value for key, value in content.items() if isinstance(value, _KINDS.get(key, object))}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file that others rewrite atomically; {} where there is none, or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def kept_environment() -> dict[str, str]:
    """The part of the present environment that a job remembers; folders as absolute paths."""
    found = {name: os.environ[name] for name in KEPT if os.environ.get(name)}
    return {name: str(ROOT / Path(value).expanduser()) if name.startswith("SLR_") else value
            for name, value in found.items()}
