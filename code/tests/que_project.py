"""A stand-in project for the tests of the que: a training.py, testing.py and extract_features.py that keep the contract
of exit codes and status.json in milliseconds, without torch, and misbehave when asked to with `--set play.…`; and a que
to run them."""

import argparse
import configparser
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEFAULTS: dict[str, dict[str, Any]] = {
    "training": {"batch_size": 8, "update_per_step": 1, "max_epoch": 3, "precision": "fp32"},
    "data": {"num_frames": 16, "frame_size": 112}, "model_params": {"init_from": None},
    "play": {
        "steps": 4,     # of an epoch
        "step": 0.005,  # seconds
        "late": 0.0,    # seconds before any signal is handled, as an import of torch takes
        "crash": 0,     # a bug in this epoch, once
        "bug": 0,       # a bug in this epoch, always
        "code": 0,      # the first step ends with this exit code
        "fits": 0,      # the largest batch that does not run out of memory
        "wait": False,  # in every epoch, until `Project.go` has let it through; signals are heard there
        "deaf": False,  # signals are not heard
        "child": False,  # a process in a session of its own, which does not hear SIGTERM
        "loud": 0,      # bytes of output
        "last": "",     # the last words, without an end of line
        "gpu": 0,       # bytes that it takes of its fake GPU
        "test": 0,      # testing.py's exit code
        "test_time": 0.0,
        "extract": 0,   # extract_features.py's exit code
        "sentences": 3,  # that it has to extract
        "sentence": 0.0,  # seconds
        "stay": False,  # after two of them, until there is a file `on` in the run folder
        "holds": 0,     # the largest batch that it has memory for
    }}


# --- the scripts, as processes of their own


def training(version: str = "1") -> int:
    parser = argparse.ArgumentParser()
    for name in ("model", "split", "exp_no"):
        parser.add_argument(name)
    for name in ("-r", "-na", "--print_config"):
        parser.add_argument(name, action="store_true")
    for name in ("-c", "--device", "--seed"):
        parser.add_argument(name)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    run = Path(os.environ["SLR_RUNS"]) / args.split / f"{args.model}_{args.exp_no.zfill(3)}"
    own = run / "config.ini"
    config = _config(args.set, own if args.r and own.exists() else Path(args.c) if args.c else None)
    if args.print_config:
        print(f"; run folder: {run}\n{_ini(config)}", end="")
        return 0
    return Training(run, config, version).main(args.r)


def _config(changes: list[str], file: Path | None) -> dict[str, dict[str, Any]]:
    config = {section: dict(keys) for section, keys in DEFAULTS.items()}
    pairs = [(name, value) for name, _, value in (change.partition("=") for change in changes)]
    if file:
        ini = configparser.ConfigParser(interpolation=None)
        ini.read_string(file.read_text())
        pairs = [(f"{part}.{key}", value) for part in ini.sections() for key, value in ini[part].items()] + pairs
    for name, value in pairs:
        section, _, key = name.partition(".")
        if key not in config.get(section, {}):
            sys.exit(_mistake(f"there is no setting {name}"))
        config[section][key] = _literal(value)
    return config


def _literal(text: str) -> Any:
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _ini(config: dict[str, dict[str, Any]]) -> str:
    return "".join(f"[{section}]\n" + "".join(f"{key} = {value!r}\n" for key, value in keys.items())
                   for section, keys in config.items())


def _mistake(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


def _write(path: Path, content: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(content)
    os.replace(aside, path)


class Training:
    """`state` is what a checkpoint holds: the epochs that are finished, in order, and a number for the weights."""

    def __init__(self, run: Path, config: dict[str, dict[str, Any]], version: str):
        self.run, self.config, self.play, self.version = run, config, config["play"], version
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.stop = ""
        self.state: dict[str, Any] = {"history": [], "step": 0, "weights": 1}
        self.status: dict[str, Any] = {"state": "starting", "exit_code": None, "reason": "", "started": time.time(),
                                       "epoch": 0, "epochs": config["training"]["max_epoch"], "pids": [os.getpid()],
                                       "checkpoint": str(run / "state.json"), "version": version}

    def main(self, recover: bool) -> int:
        time.sleep(self.play["late"])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.hear)
        self.run.mkdir(parents=True, exist_ok=True)
        if self.rank:
            return self.follow()
        self.gather()
        with open(self.run / ".alone", "a") as lock:
            if not alone(lock):
                (self.run / "TWICE").write_text(f"{os.getpid()} training")
                return _mistake("another process trains here")
            if not recover and (self.run / "state.json").exists():
                return _mistake("this experiment has run before")
            return self.train()

    def hear(self, number: int, frame: object) -> None:
        if not self.play["deaf"]:
            self.stop = signal.Signals(number).name

    def follow(self) -> int:
        """A rank that is not the first; it lives as long as that one."""
        _write(self.run / f"rank{self.rank}", f"{os.getppid()} {os.getpid()}")
        while not self.stop and _there(int(os.environ["LEADER"])):
            time.sleep(0.005)
        return 75 if self.stop else 0

    def gather(self) -> None:
        for rank in range(1, self.world):
            file = self.run / f"rank{rank}"
            while not file.exists() or file.read_text().split()[0] != str(os.getppid()):
                time.sleep(0.005)
            self.status["pids"].append(int(file.read_text().split()[1]))

    def tell(self, **facts: Any) -> None:
        self.status.update(facts, updated=time.time(), epoch=len(self.state["history"]), step=self.state["step"])
        _write(self.run / "status.json", json.dumps(self.status))

    def end(self, code: int, state: str, reason: str) -> int:
        self.tell(exit_code=code, state=state, reason=reason)
        if code:
            print(f"error: {reason}", file=sys.stderr)
        return code

    def save(self) -> None:
        _write(self.run / "state.json", json.dumps(self.state))

    def train(self) -> int:
        _write(self.run / "config.ini", _ini(self.config))
        source = self.run / "state.json"
        if not source.exists() and self.config["model_params"]["init_from"]:
            names = self.config["model_params"]["init_from"].split(", ")
            self.state["weights"] = sum(json.loads(Path(name).read_text())["weights"] for name in names)
        elif source.exists():
            self.state = json.loads(source.read_text())
        self.tell(state="running")
        self.misbehave()
        for epoch in range(len(self.state["history"]) + 1, self.config["training"]["max_epoch"] + 1):
            for step in range(self.state["step"], self.play["steps"]):
                code = self.step(epoch, step)
                if code:
                    return code
            self.state["history"].append(epoch)
            self.state["step"] = 0
            self.save()
        print(self.play["last"], end="", flush=True)
        return self.end(0, "done", "trained to the end")

    def misbehave(self) -> None:
        if self.play["child"]:
            deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
            subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
        if self.play["gpu"]:
            file = Path(os.environ["QUE_FAKE_GPUS"])
            cards = json.loads(file.read_text())
            for card in cards:
                if card["uuid"] in os.environ["CUDA_VISIBLE_DEVICES"]:
                    card.update(used_by={os.getpid(): self.play["gpu"]}, free=card["total"] - self.play["gpu"])
            _write(file, json.dumps(cards))
        for _ in range(self.play["loud"] // 100):
            print("." * 99)

    def step(self, epoch: int, step: int) -> int:
        time.sleep(self.play["step"])
        batch = self.config["training"]["batch_size"]
        if self.play["code"]:
            return self.end(self.play["code"], "failed", f"asked to end with {self.play['code']}")
        if self.play["fits"] and batch > self.play["fits"]:
            return self.end(76, "failed", f"CUDA out of memory with {batch}")
        once = self.run / "crashed"
        if epoch == self.play["bug"] or epoch == self.play["crash"] and not once.exists():
            once.touch()
            self.tell()
            raise ZeroDivisionError(f"in epoch {epoch}")
        self.state.update(step=step + 1, weights=trained_on(self.state["weights"], epoch, step))
        self.tell()
        while self.play["wait"] and step == 1 and not self.stop and epoch > _number(self.run / "go"):
            time.sleep(0.002)
        if self.stop:
            self.save()
            return self.end(75, "interrupted", f"interrupted by {self.stop}")
        return 0


def trained_on(weights: int, epoch: int, step: int) -> int:
    return (weights * 31 + 100 * epoch + step) % 1_000_003


def _number(path: Path) -> int:
    return int(path.read_text()) if path.exists() else 0


def weights_after(epochs: int, steps: int = 4, weights: int = 1) -> int:
    for epoch in range(1, epochs + 1):
        for step in range(steps):
            weights = trained_on(weights, epoch, step)
    return weights


def alone(lock: Any) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def testing(version: str = "1") -> int:
    parser = argparse.ArgumentParser()
    for name in ("mode", "model", "split", "exp_no"):
        parser.add_argument(name)
    parser.add_argument("--device")
    parser.add_argument("--batch_size")
    args = parser.parse_args()
    run = Path(os.environ["SLR_RUNS"]) / args.split / f"{args.model}_{args.exp_no.zfill(3)}"
    config = _config([], run / "config.ini")
    with open(run / ".alone", "a") as lock:
        if not alone(lock):
            (run / "TWICE").write_text(f"{os.getpid()} testing")
            return _mistake("another process is at work here")
        state = json.loads((run / "state.json").read_text())
        time.sleep(config["play"]["test_time"])
        if config["play"]["test"]:
            print("error: asked to fail", file=sys.stderr)
            return config["play"]["test"]
        _write(run / "results.json", json.dumps({**state, "version": version, "args": vars(args),
                                                 "devices": os.environ["CUDA_VISIBLE_DEVICES"]}))
    return 0


def extract_features(version: str = "1") -> int:
    """A sentence after the other, each a line of features.txt; what is there is not extracted again."""
    parser = argparse.ArgumentParser()
    for name in ("model", "split", "exp_no"):
        parser.add_argument(name)
    parser.add_argument("--device")
    parser.add_argument("--batch_size", type=int)
    args = parser.parse_args()
    run = Path(os.environ["SLR_RUNS"]) / args.split / f"{args.model}_{args.exp_no.zfill(3)}"
    config, heard = _config([], run / "config.ini"), list[int]()
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    play, batch = config["play"], args.batch_size or config["training"]["batch_size"]
    with open(run / ".alone", "a") as lock, open(run / "features.txt", "a+") as features:
        if not alone(lock):
            (run / "TWICE").write_text(f"{os.getpid()} extracting")
            return _mistake("another process is at work here")
        if play["holds"] and batch > play["holds"]:
            print(f"error: out of memory with {batch}", file=sys.stderr)
            return 76
        if play["extract"]:
            print("error: 1 of 3 sentences is left out: b (no frames)\n  put its frames right", file=sys.stderr)
            return play["extract"]
        features.seek(0)
        for sentence in range(len(features.readlines()), play["sentences"]):
            time.sleep(play["sentence"])
            while play["stay"] and sentence == 2 and not heard and not (run / "on").exists():
                time.sleep(0.005)
            if heard:
                print("error: interrupted by SIGTERM: what is extracted is kept", file=sys.stderr)
                return 75
            print(f"{sentence} {os.getpid()}", file=features, flush=True)
        _write(run / "features.json", json.dumps({"version": version, "args": vars(args)}))
    return 0


def torchrun() -> int:
    """Like torch.distributed.run: dies of SIGUSR1, hands SIGTERM on, and makes a 1 of every code."""
    standalone, per_node, world, *words = sys.argv[1:]
    assert (standalone, per_node) == ("--standalone", "--nproc_per_node")
    ranks: list[subprocess.Popen] = []
    for rank in range(int(world)):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": world,
               "LEADER": str(ranks[0].pid if ranks else 0)}
        ranks.append(subprocess.Popen([sys.executable, *words], env=env))
    signal.signal(signal.SIGTERM, lambda *_: [rank.terminate() for rank in ranks])
    while all(rank.poll() is None for rank in ranks):
        time.sleep(0.005)
    time.sleep(0.02)
    if any(rank.poll() for rank in ranks):
        for rank in ranks:
            rank.terminate()
    return int(any([rank.wait() for rank in ranks]))


# --- the que that runs them


def make_home(folder: Path) -> Path:
    """A copy of the que beside the stand-in scripts: a que belongs to the tree that it lies in."""
    for file in (*(ROOT / "que").glob("*.py"), *(ROOT / "que").glob("*.html")):
        (folder / "que").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / "que")
    for name in ("training", "testing", "extract_features"):
        script(folder, name)
    fake = folder / "code" / "torch" / "distributed"  # found before the real one: the folder of -m is code/
    fake.mkdir(parents=True)
    for package in (fake.parent, fake):
        (package / "__init__.py").touch()
    (fake / "run.py").write_text(_script("torchrun()"))
    return folder


def script(home: Path, name: str, version: str = "1") -> None:
    path = home / "code" / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(_script(f"{name}({version!r})"))


def _script(call: str) -> str:
    return f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport que_project\n" \
           f"sys.exit(que_project.{call})\n"


QUICK = {"poll": 0.05, "settle": 0, "grace": 1.0, "backoff": 0.05, "disk": 0, "slots": 2}


class Project:
    """A que of its own: state, runs, fake GPUs (none at first) and every process that belongs to it."""

    def __init__(self, folder: Path, home: Path):
        from que.store import Store

        self.folder, self.home, self.runs = folder, home, folder / "runs"
        self.store = Store((folder / "state").resolve())
        self.fake = folder / "gpus.json"
        self.env = {**os.environ, "QUE_DIR": str(self.store.folder), "SLR_RUNS": str(self.runs),
                    "SLR_DATA": str(folder / "data"), "QUE_FAKE_GPUS": str(self.fake),
                    "PYTHONWARNINGS": "error,ignore::ResourceWarning"}
        self.daemons: list[subprocess.Popen] = []
        self.gpus()
        self.settings()

    def settings(self, **changes: Any) -> None:
        self.store.write_json("settings.json", {**QUICK, **changes})

    def gpus(self, *cards: dict[str, Any]) -> None:
        _write(self.fake, json.dumps([{"uuid": f"GPU-{i}", "total": 80 << 30, **card} for i, card in enumerate(cards)]))

    def que(self, *words: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        ran = subprocess.run([sys.executable, str(self.home / "que"), *words], env={**self.env, **(env or {})},
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             timeout=60)
        assert ran.returncode == code, ran.stdout
        return ran.stdout

    def job(self, number: int = 1, *, to: str = "to_run", job: dict[str, Any] | None = None, **play: Any) -> str:
        """File a job as `create --live` does, at once; its id."""
        from que.job import Job

        options = [word for name, value in play.items() for word in ("--set", f"play.{name}={value}")]
        made = Job("S3D", "demo", str(number), **{
            "options": options, "created": time.time(), "user": "me", "env": {"SLR_RUNS": str(self.runs)},
            "run": str(self.run(number)), "facts": {"batch_size": 8, "update_per_step": 1}, **(job or {})})
        return self.store.add(made, state=to)[0].id

    def run(self, number: int = 1) -> Path:
        return self.runs / "demo" / f"S3D_{number:03d}"

    def state(self, number: int = 1) -> dict[str, Any]:
        return json.loads((self.run(number) / "state.json").read_text())

    def daemon(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen:
        with open(self.store.log("daemon"), "ab") as log:
            self.daemons.append(subprocess.Popen([sys.executable, str(self.home / "que"), "daemon", *words], stdout=log,
                                                 stderr=log, env={**self.env, **(env or {})}, start_new_session=True))
        return self.daemons[-1]

    def until(self, ready: Callable[[], Any], limit: float = 30) -> Any:
        deadline = time.monotonic() + limit
        while not (found := ready()):
            if time.monotonic() > deadline:
                raise AssertionError(f"it takes too long\n{self.said()}")
            time.sleep(0.005)
        return found

    def ended(self, *ids: str, limit: float = 30) -> list[Any]:
        """The jobs, once nothing of them runs or waits to run."""
        jobs = [self.until(lambda i=i: self.resting(i), limit) for i in ids]
        return jobs if len(jobs) > 1 else jobs[0]

    def resting(self, job_id: str, *states: str) -> Any:
        job = self.store.find(job_id)
        return job if job.state in (states or ("old_runs", "fail_runs", "held")) else None

    def training(self, number: int = 1, epoch: int = 0, step: int = 2) -> int:
        """The pid of a training that has finished so many epochs, and is in the middle of the next."""
        def ready() -> int:
            from que.commands import read_json

            status = read_json(self.run(number) / "status.json")
            pid = (status.get("pids") or [0])[0]
            there = status.get("exit_code") is None and status.get("epoch", -1) >= epoch and status["step"] >= step
            return pid if there and _there(pid) else 0

        return self.until(ready)

    def go(self, number: int = 1, epoch: int = 99) -> None:
        """Let a training that waits go on, up to the middle of the epoch after this one."""
        self.run(number).mkdir(parents=True, exist_ok=True)
        _write(self.run(number) / "go", str(epoch))

    def said(self) -> str:
        logs = sorted((self.store.folder / "logs").glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def processes(self, *words: str) -> list[int]:
        """The processes of this que, or those whose command line has a word that ends so."""
        mine, found = f"QUE_DIR={self.store.folder}".encode(), []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mine in (entry / "environ").read_bytes().split(b"\0"):
                    line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    if not words or any(part.endswith(word) for word in words for part in line):
                        found.append(int(entry.name))
            except OSError:
                continue
        return [pid for pid in found if _there(pid)]

    def kill(self, *pids: int, number: int = signal.SIGKILL) -> None:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        for daemon in self.daemons:
            if daemon.pid in pids and number == signal.SIGKILL:
                daemon.wait()

    def close(self) -> None:
        while left := self.processes():
            self.kill(*left)
            time.sleep(0.01)
        for daemon in self.daemons:
            daemon.wait()
