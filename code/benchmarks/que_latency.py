"""How long the que makes one wait at 10, 1,000 and 10,000 waiting jobs, beside task-spooler where that can do the same.

    python code/benchmarks/que_latency.py                         every length, some minutes
    python code/benchmarks/que_latency.py --jobs 10 --rounds 3    a quick look
    sudo apt-get install task-spooler                             Debian's package, for its column

Everything lies in a temporary folder, a stand-in project among it whose two scripts import nothing and end at once. The
waiting jobs ask for 1000 GPUs, so that the daemon looks at all of them in vain (task-spooler's: for two slots of one).
The GPU is a fake one ($QUE_FAKE_GPUS) with a settle time of 0. task-spooler runs the same two scripts. It keeps a
process and a connection for every waiting job and is built for 1,000 connections (TS_MAXCONN lowers that, nothing
raises it; TS_MAXFINISHED only limits finished jobs); full, it answers nobody. So it gets 950 jobs at most.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from que.commands import ROOT
from que.job import Job
from que.store import Store

FIGURES = {"help": "`que --help`",
           "real": "`create` of S3D asl100 in this project: snapshot, training.py --print_config, filing",
           "create": "the same in the stand-in project; tsp: `tsp COMMAND`",
           "list": "`list` into a pipe; tsp: `tsp`",
           "limit": "`list --limit 20` on a terminal",
           "dispatch": "from filing a job, GPU idle, to the first act of its training process",
           "testing": "from the last act of training to the first of the job's testing process",
           "next": "from the last act of testing to the first of the next job's training process",
           "daemon": "share of a core that the daemon takes while all of them wait"}
SPOOLED = 950  # jobs that task-spooler can hold and still answer
PATIENCE = 60.0  # seconds for anything that was started
STAND_IN = '''\
import time
began = time.time()
import json, os, sys
run = os.path.join(os.environ["SLR_RUNS"], [word for word in sys.argv[1:] if word != "full"][2])
if "--print_config" in sys.argv:
    sys.exit(print(f"; run folder: {run}\\n[training]\\nbatch_size = 4"))
os.makedirs(run, exist_ok=True)
with open(os.path.join(run, "status.json" if "full" not in sys.argv else "tested.json"), "w") as file:
    json.dump({"state": "done", "exit_code": 0, "pids": [os.getpid()], "started": began, "updated": time.time()}, file)
'''
Values = Iterator[tuple[str, float]]  # (one of FIGURES, seconds)


class Spooler:
    """task-spooler with jobs that wait. All processes of a side have its folder in their environment."""

    def __init__(self, folder: Path, jobs: int):
        self.folder, self.code, self.names = folder, folder / "project" / "code", map(str, itertools.count())
        self.code.mkdir(parents=True)
        for script in ("training.py", "testing.py"):
            (self.code / script).write_text(STAND_IN, encoding="utf-8")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("TS_")} | {
            "SLR_RUNS": str(folder), "QUE_DIR": str(folder / "state"), "QUE_FAKE_GPUS": str(folder / "gpus.json"),
            "TMPDIR": str(folder), "TS_SOCKET": str(folder / "socket"), "TS_SLOTS": "1"}
        self.fill(jobs)

    def fill(self, jobs: int) -> None:
        for _ in range(min(jobs, SPOOLED)):
            self.timed("tsp", "-N", "2", "true")

    def file(self, name: str) -> None:
        """A job that can start."""
        steps = [["training.py", "S3D", "demo", name], ["testing.py", "full", "S3D", "demo", name]]
        self.timed("tsp", "sh", "-c", " && ".join(f"{sys.executable} {self.code}/{shlex.join(step)}" for step in steps))

    def commands(self) -> Values:
        yield "create", self.timed("tsp", "-N", "2", "true")
        yield "list", self.timed("tsp")

    def timed(self, *command: str) -> float:
        began = time.perf_counter()
        ran = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
        if ran.returncode:
            raise SystemExit(f"{shlex.join(command)}: exit code {ran.returncode}\n{ran.stderr.decode()}")
        return time.perf_counter() - began

    def act(self, name: str, file: str, which: str) -> float:
        """When a script of a job `started`, or `updated` its file for the last time; waits for that."""
        path, deadline = self.folder / name / file, time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):  # not there, or not whole
                return json.loads(path.read_text())[which]
            time.sleep(0.01)
        raise SystemExit(f"{type(self).__name__}: {path} was not written for {PATIENCE:.0f} s")

    def dispatch(self, rounds: int) -> Values:
        for name in itertools.islice(self.names, rounds):
            time.sleep(1 + random.random())  # what ran before is filed; anywhere between two looks of the daemon
            began = time.time()
            self.file(name)
            self.act(name, "tested.json", "updated")
            yield "dispatch", self.act(name, "status.json", "started") - began
        chain = list(itertools.islice(self.names, rounds + 1))
        for name in chain:
            self.file(name)
        for before, name in itertools.pairwise(chain):
            yield "next", self.act(name, "status.json", "started") - self.act(before, "tested.json", "updated")
            yield "testing", self.act(name, "tested.json", "started") - self.act(name, "status.json", "updated")


class Que(Spooler):
    def fill(self, jobs: int) -> None:
        self.que = shutil.copytree(ROOT / "que", self.code.parent / "que", ignore=shutil.ignore_patterns("state"))
        (self.folder / "gpus.json").write_text(json.dumps([{"uuid": "GPU-fake", "total": 80 << 30}]))
        self.store = Store(self.folder / "state")
        self.store.write_json("settings.json", {"settle": 0.0, "disk": 0})
        with mock.patch("os.fsync"):  # filing thousands, each safe on the disk, would take minutes
            self.store.add(*(self.job(name, 1000) for name in itertools.islice(self.names, jobs)))
        os.sync()

    def job(self, name: str, gpus: int) -> Job:
        return Job("S3D", "demo", name, gpus=gpus, env={"SLR_RUNS": str(self.folder)}, created=time.time(),
                   run=str(self.folder / name))

    def file(self, name: str) -> None:
        self.store.add(self.job(name, 1))

    def commands(self) -> Values:
        que, real = [sys.executable, str(self.que)], [sys.executable, str(ROOT / "que")]
        yield "help", self.timed(*que, "--help")
        yield "real", self.timed(*real, "create", "S3D", "asl100", "0", "-ee", "--gpus", "1000")
        yield "create", self.timed(*que, "create", "S3D", "demo", next(self.names), "--gpus", "1000")
        yield "list", self.timed(*que, "list")
        yield "limit", self.timed("script", "-qec", shlex.join([*que, "list", "--limit", "20"]), "/dev/null")

    def dispatch(self, rounds: int) -> Values:
        with open(self.store.log("daemon"), "wb") as log, subprocess.Popen(
                [sys.executable, str(self.que), "daemon"], env=self.env, stdout=log, stderr=log) as daemon:
            try:
                time.sleep(2 + len(self.store.jobs()) / 3000)  # its first look reads every job
                before, clock = spent(daemon.pid), time.monotonic()
                time.sleep(4)
                yield "daemon", (spent(daemon.pid) - before) / (time.monotonic() - clock)
                yield from super().dispatch(rounds)
            finally:
                daemon.terminate()


def spent(pid: int) -> float:
    """Seconds that a process has had of a core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A folder; every process that has it in its environment is killed in the end."""
    with tempfile.TemporaryDirectory(prefix="que-latency-", ignore_cleanup_errors=True) as name:
        try:
            yield Path(name)
        finally:
            while found := subprocess.getoutput(f"grep -lsF {name} /proc/[0-9]*/environ").split():
                for path in found:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(path.split("/")[2]), signal.SIGKILL)


def compare(jobs: int, rounds: int) -> Iterator[tuple[str, int, str, float]]:
    """(figure, jobs, side, seconds): commands of both sides in turn, a round to warm up before; then jobs are run."""
    with temporary() as folder:
        sides: dict[str, Spooler] = {"que": Que(folder / "que", jobs)}
        if shutil.which("tsp") and jobs <= 1000:
            sides["tsp"] = Spooler(folder / "tsp", jobs)
        for number, (side, queue) in itertools.product(range(rounds + 1), sides.items()):
            yield from ((name, jobs, side, value) for name, value in queue.commands() if number)
        for side, queue in sides.items():
            yield from ((name, jobs, side, value) for name, value in queue.dispatch(rounds))


def show(rows: list[tuple[str, int, str, float]]) -> None:
    """One line a figure and length: medians, least to most, and how many times as long the que takes."""
    for name, words in FIGURES.items():
        print(f"\n  {name}: {words}")
        for jobs in dict.fromkeys(row[1] for row in rows):
            sides = {side: [row[3] for row in rows if row[:3] == (name, jobs, side)] for side in ("que", "tsp")}
            middle = {side: statistics.median(values) for side, values in sides.items() if values}
            texts = [f"{side} {middle[side]:7.3f}  ({min(sides[side]):.3f} to {max(sides[side]):.3f})"
                     for side in middle]
            texts += [f"que / tsp {middle['que'] / middle['tsp']:.1f}"] if "tsp" in middle else []
            print(f"    {jobs:6} jobs   " + "   ".join(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--jobs", type=int, nargs="+", default=[10, 1000, 10_000], help="how many wait (default 10 1000 10000)")
    add("--rounds", type=int, default=5, help="after one to warm up (default 5)")
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"que: seconds, medians of {args.rounds} rounds (least to most), load average {os.getloadavg()[0]:.2f}")
    if not shutil.which("tsp"):
        print("task-spooler is not installed, its column is left out: sudo apt-get install task-spooler")
    rows = [row for jobs in args.jobs for row in compare(jobs, args.rounds)]
    show(rows)
    if args.json:
        args.json.write_text(json.dumps({"words": FIGURES, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
