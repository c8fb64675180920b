"""What a run tells the world: log.jsonl and status.json always, wandb and TensorBoard where asked for.

status.json is the contract with whoever started the run (the que, a Slurm script): it is rewritten atomically, and its
state and exit code hold even where torchrun turns every child's code into 1.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slr.errors import BUG, INTERRUPTED, Mistake
from slr.paths import ROOT, shown


def write_json(path: Path, content: Any) -> None:
    """Write aside, then rename."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise Mistake(f"line {number} of {path} is no JSON", line[:60], "mend or remove that line") from None
    return rows


def git_commit() -> str:
    """The commit of the code that runs, with a + where files differ from it; "" outside a repository.

    $SLR_COMMIT tells it of a copy: git would answer for whatever repository the copy lies in.
    """
    if "SLR_COMMIT" in os.environ:
        return os.environ["SLR_COMMIT"]
    try:
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True,
                              text=True, timeout=10)
        dirty = subprocess.run(["git", "-C", str(ROOT), "status", "--porcelain", "-uno"], capture_output=True,
                               text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else ""


class Wandb:
    """A wandb run. `start` gives a Silent one where wandb is off, so nobody asks again."""

    def __init__(self, run: Any):
        self.run = run
        self.id: str | None = run.id
        self.url: str | None = run.url

    def log(self, row: dict[str, Any], epoch: int) -> None:
        self.run.log(row, step=epoch)

    def table(self, name: str, rows: list[dict[str, str]], epoch: int) -> None:
        import wandb

        self.run.log({name: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])}, step=epoch)

    def close(self, code: int) -> None:
        self.run.finish(exit_code=code)


def as_table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown: a line a row, under their keys."""
    if not rows:
        return ""
    cells = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


class Silent:
    """Takes everything and says nothing."""

    id: str | None = None
    url: str | None = None

    def log(self, row: dict[str, Any], epoch: int) -> None:
        """Nothing is listening."""

    def close(self, code: int) -> None:
        """Nothing to close."""


def start_wandb(folder: Path, **settings: Any) -> "Wandb | Silent":
    """A wandb run with `settings` of wandb.init, or a Silent one when there is no login (offline needs none).

    What turns it off is said, but for WANDB_MODE=disabled, which is somebody's wish.
    """
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "disabled":
        return Silent()
    try:
        import wandb
    except ImportError as error:
        return _without_wandb(f"it cannot be imported ({error})")
    if mode == "online" and not _wandb_login():
        return _without_wandb("there is no login; `wandb login` makes one")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return Wandb(wandb.init(dir=str(folder), **settings))
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        raise Mistake("wandb does not start", str(error).strip().splitlines()[0],
                      "give --no_wandb, or set WANDB_MODE=offline") from None


def _without_wandb(why: str) -> Silent:
    print(f"note: no wandb: {why}", file=sys.stderr)
    return Silent()


def _wandb_login() -> bool:
    """Whether a key is at hand: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("//")[2].split("/")[0]
    return netrc.is_file() and host in netrc.read_text(encoding="utf-8", errors="replace")


class TensorBoard:
    """The scalars of each epoch as TensorBoard events."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise Mistake("TensorBoard is not installed", "training.tensorboard = True",
                          "pip install tensorboard") from None
        self.writer = SummaryWriter(str(folder))

    def log(self, row: dict[str, Any], epoch: int) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, epoch)

    def close(self, code: int) -> None:
        self.writer.close()


class Logbook:
    """The records of one run. Only the main process writes; the others hold one with `writes=False`.

    rank: of a process that does not write and tells its failure in a file of its own; 0 (dry runs too): tells nothing.
    changed: settings that differ since the last epoch, {"section.key": [old, new]}; the next row names them.
    """

    def __init__(self, folder: Path, epochs: int, writes: bool = True, every: float = 5.0):
        self.folder, self.writes, self.every, self.rank = folder, writes, every, 0
        self.changed: dict[str, list[Any]] = {}
        self.listeners: tuple[Any, ...] = ()
        self.log_file, self.status_file = folder / "log.jsonl", folder / "status.json"
        self.samples_file = folder / "samples.jsonl"
        self.lock_file = folder / ".lock"
        self.status: dict[str, Any] = {
            "state": "starting", "exit_code": None, "reason": "", "epoch": 0, "epochs": epochs, "step": 0, "steps": 0,
            "eta_s": None, "best": None, "peak_memory": 0, "wandb_url": None,
            "pids": [os.getpid()], "checkpoint": None, "started": time.time(), "updated": None,
        }
        self._written = 0.0
        self._lock: int | None = None

    def hold(self) -> None:
        """Keep other processes out of the run folder until `close`; Mistake where one is at work there.

        A record lock: a kill frees it, and loader processes that outlive the kill for a moment do not hold it.
        """
        if not self.writes or self._lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(lock)
            raise Mistake("another process is at work in this run folder", shown(self.folder),
                          "wait for its end, or stop it: status.json there names its pids") from None
        self._lock = lock
        for path in self.folder.glob("status.rank*.json"):
            path.unlink()

    def listen(self, *listeners: Any) -> None:
        """Tell these too from now on."""
        self.listeners += listeners
        self.status["wandb_url"] = next((x.url for x in self.listeners if getattr(x, "url", None)), None)

    def take_up(self) -> None:
        """A resumed run still knows the best score, the checkpoint and the peak memory that it had."""
        if self.status_file.is_file():
            before = json.loads(self.status_file.read_text(encoding="utf-8"))
            self.status.update({k: before[k] for k in ("best", "checkpoint", "peak_memory") if k in before})

    @property
    def wandb_id(self) -> str | None:
        return next((x.id for x in self.listeners if getattr(x, "id", None)), None)

    def keep_until(self, epoch: int, step: int = 0) -> None:
        """Forget what came after that step of the epoch behind `epoch`: a resumed run writes it anew."""
        if self.writes and self.log_file.exists():
            rows = [row for row in read_log(self.log_file) if row["epoch"] <= epoch]
            write_text(self.log_file, "".join(json.dumps(row) + "\n" for row in rows))
        if self.writes and self.samples_file.exists():
            self._write_samples([row for row in read_log(self.samples_file)
                                 if (row["epoch"], row["step"]) <= (epoch + 1, step)])

    def epoch(self, row: dict[str, Any]) -> None:
        """One JSON line, and the same numbers to wandb and TensorBoard as part/name."""
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log_file, "a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "changed": self.changed} if self.changed else row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.changed = {}
        flat = {f"{part}/{name}": value for part, values in row.items() if isinstance(values, dict)
                for name, value in values.items()}
        for listener in self.listeners:
            listener.log(flat, row["epoch"])

    def samples(self, epoch: int, step: int, weights: str, rows: list[dict[str, str]]) -> None:
        """What the model said of a few items after so many steps of an epoch (from 1): a line of samples.jsonl, and
        samples.md with the tables of all epochs, the last one first."""
        if not self.writes or not rows:
            return
        before = read_log(self.samples_file) if self.samples_file.exists() else []
        key = {"epoch": epoch, "step": step, "weights": weights}
        before = [row for row in before if not key.items() <= row.items()]  # said anew after an interruption
        self._write_samples([*before, {**key, "samples": rows}])
        for listener in self.listeners:
            if hasattr(listener, "table"):
                listener.table(f"samples_{weights}", rows, epoch)

    def _write_samples(self, all_rows: list[dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.samples_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in all_rows))
        parts = [f"## Epoch {row['epoch']}, step {row['step']}, weights: {row['weights']}\n\n{as_table(row['samples'])}"
                 for row in reversed(all_rows)]
        write_text(self.samples_file.with_suffix(".md"), "\n".join(parts))

    def tell(self, now: bool = True, **facts: Any) -> None:
        """Update status.json: at once, or where `now` is false at most every few seconds."""
        self.status.update(facts)
        moment = time.time()
        if not self.writes or (not now and moment - self._written < self.every):
            return
        self.hold()
        self._written = self.status["updated"] = moment
        write_json(self.status_file, self.status)

    def end(self, code: int, reason: str) -> None:
        """How the run failed: in status.json, or of a process that does not write, in status.rank<N>.json."""
        state = "interrupted" if code == INTERRUPTED else "failed"
        facts: dict[str, Any] = {"state": state, "exit_code": code, "reason": reason}
        if self.rank:
            write_json(self.folder / f"status.rank{self.rank}.json", {**facts, "pid": os.getpid()})
        self.tell(**facts)

    def sister_end(self) -> tuple[int, str] | None:
        """(Code, reason) of another process that has failed; one that knows more than "a bug" comes first.

        None before `hold`: what lies there then is about an earlier run.
        """
        if self._lock is None:
            return None
        ends = [(path.name.split(".")[1], json.loads(path.read_text(encoding="utf-8")))
                for path in sorted(self.folder.glob("status.rank*.json"))]
        name, end = min(ends, key=lambda found: found[1]["exit_code"] == BUG, default=("", None))
        return (end["exit_code"], f"{name}: {end['reason']}") if end else None

    def close(self, code: int) -> None:
        for listener in self.listeners:
            listener.close(code)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
