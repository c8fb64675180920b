"""A Slurm of one node for the tests: munged, slurmctld and slurmd of its own, with a key, ports and folders of its own.

Needs root, and the programs of Debian's slurm-wlm and munge; nothing of a Slurm that the machine may have is touched.
`STAND_IN` is a training.py that keeps the contract of the real one: status.json, exit codes, SIGUSR1, -r.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")

# cred_expire is also how long a requeued job has to wait, 120 s otherwise (5 is the least); the GPUs are none.
CONFIG = """
ClusterName=que
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ctld}
SlurmdPort={slurmd}
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/slurmd
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=60
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

STAND_IN = '''
import json, os, signal, subprocess, sys, time
from pathlib import Path

model, split, number = sys.argv[1:4]
run = Path(os.environ["SLR_RUNS"]) / split / f"{model}_{int(number):03d}"
run.mkdir(parents=True, exist_ok=True)
rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if not rank:
    with open(run / "calls.jsonl", "a") as file:
        file.write(json.dumps({"words": sys.argv[1:], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\\n")
plan = json.loads(os.environ.get("STAND_IN", "{}"))  # deaf: seconds without ears; steps: [at first, with -r]; end; exit
time.sleep(plan.get("deaf", 0))
heard = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: heard.append(number))
loader = subprocess.Popen(["sleep", "300"])  # as data workers do, it dies of any signal
step = json.loads((run / "saved.json").read_text()) if "-r" in sys.argv else 0
last = plan.get("steps", [2, 5])["-r" in sys.argv]
begun = time.time()
files = [run / f".pid.{os.getppid()}.{i}" for i in range(ranks)]
files[rank].write_text(str(os.getpid()))
while not all(file.exists() and file.read_text() for file in files):
    time.sleep(0.01)
pids = [int(file.read_text()) for file in files]

def tell(state, code=None, reason=""):
    if rank:
        return
    status = {"state": state, "exit_code": code, "reason": reason, "step": step, "steps": last, "pids": pids,
              "checkpoint": str(run / "checkpoints" / "best.pth"), "started": begun, "updated": time.time()}
    (run / ".part").write_text(json.dumps(status))
    os.replace(run / ".part", run / "status.json")

def leave(state, code, reason):
    if signal.SIGTERM not in heard and loader.poll() is not None:
        state, code, reason = "failed", 1, "the signal has hit the data workers"
    loader.kill()
    tell(state, code, reason)
    sys.exit(plan.get("exit", code))

tell("starting")
(run / "config.ini").write_text("")
while step < last:
    time.sleep(0.05)
    step += 1
    tell("running")
    if heard:
        if not rank:
            (run / "saved.json").write_text(json.dumps(step))
        leave("interrupted", 75, "saved at step %d" % step)
leave(*plan.get("end", ["done", 0, "trained to the end"]))
'''

TESTING = '''
import json, os, sys, time
from pathlib import Path

model, split, number = sys.argv[2:5]
run = Path(os.environ["SLR_RUNS"]) / split / f"{model}_{int(number):03d}"
(run / "testing").write_text("begun")
plan = json.loads(os.environ.get("STAND_IN", "{}"))
time.sleep(plan.get("test", 0))
print("tested", *sys.argv[1:])
(run / "results.json").write_text(json.dumps(json.loads((run / "status.json").read_text())["state"]))
sys.exit(plan.get("test_exit", 0))
'''


def write_stand_ins(home: Path) -> None:
    """training.py and testing.py in the code/ of `home`."""
    (home / "code").mkdir(parents=True)
    (home / "code" / "training.py").write_text(STAND_IN)
    (home / "code" / "testing.py").write_text(TESTING)


def missing() -> str:
    """Why no Slurm can be started here; "" where one can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian's slurm-wlm and munge)"
    return "" if os.geteuid() == 0 else "the private Slurm has to be started by root"


def wait_for(what: str, ready: Callable[[], object], limit: float = 60.0) -> float:
    """Seconds until `ready()`."""
    begun = time.monotonic()
    while not ready():
        assert time.monotonic() - begun < limit, f"{what}: not within {limit:.0f} s"
        time.sleep(0.2)
    return time.monotonic() - begun


class Node:
    """The three daemons, children of this process; `with` stops them and everything that they have started."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, list[subprocess.Popen]()
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"),
                            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

    def __enter__(self) -> "Node":
        try:
            self._configure()
            self._munge()
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            wait_for("an idle node", lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.ask("scancel", "--me")
        deadline = time.monotonic() + 15
        while self.ask("squeue", "-h", "--me") and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert not self.left(), f"processes of the private Slurm are left: {self.left()}"

    def ask(self, *words: str) -> str:
        """What a Slurm command says; "" where it fails."""
        ran = subprocess.run(words, capture_output=True, text=True, timeout=30, env=self.environment)
        return ran.stdout.strip() if ran.returncode == 0 else ""

    def left(self) -> list[str]:
        """Command lines of processes that name this node's folder, in arguments or environment."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and int(entry.name) != os.getpid() and (
                        f"SLURM_CONF={self.folder}/".encode() in (entry / "environ").read_bytes()
                        or f"{self.folder}/".encode() in (entry / "cmdline").read_bytes()):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:  # it has gone meanwhile
                continue
        return found

    def _configure(self) -> None:
        for name in ("ctld", "slurmd", "munge"):
            (self.folder / name).mkdir(parents=True)
        ports = _free_ports(2)
        (self.folder / "slurm.conf").write_text(CONFIG.format(
            host=socket.gethostname().split(".")[0], folder=self.folder, ctld=ports[0], slurmd=ports[1]))
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/tty[0-1]\n")

    def _munge(self) -> None:
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key-file": key, "socket": self.folder / "munge.socket", "pid-file": self.folder / "munge" / "pid",
                 "log-file": self.folder / "munge" / "log", "seed-file": self.folder / "munge" / "seed"}
        self._start("munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items()))
        wait_for("munge's socket", files["socket"].exists, 10)

    def _start(self, *words: str) -> None:
        with open(self.folder / f"{words[0]}.out", "wb") as log:
            self.processes.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                                   env=self.environment))


def _free_ports(count: int) -> list[int]:
    with_ports = [socket.socket() for _ in range(count)]
    try:
        for held in with_ports:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in with_ports]
    finally:
        for held in with_ports:
            held.close()
