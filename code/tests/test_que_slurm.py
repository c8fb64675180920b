"""que/slurm.py: the script as bash runs it, the states as a faked Slurm tells them, and a real one where asked for."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slurm_node import Node, missing, wait_for, write_stand_ins

from que import slurm
from que.commands import status
from que.errors import Mistake
from que.job import Job
from que.store import Store

FAKES = {
    "squeue": 'cat "$FAKE/queue"; exit "$(cat "$FAKE/down" 2>/dev/null || echo 0)"',
    "sbatch": 'echo "$@" >>"$FAKE/calls"; [ -e "$FAKE/refusal" ] && { cat "$FAKE/refusal" >&2; exit 1; }; echo "101;x"',
    "scancel": 'echo "scancel $*" >>"$FAKE/calls"',
    "sinfo": 'cat "$FAKE/nodes"',
    # As Slurm does, it ends the shell that asks for a requeue.
    "scontrol": 'echo "$@" >>"$FAKE/calls"; if [ "$1" = requeue ]; then [ -e "$FAKE/refusal" ] && exit 1; '
                'kill -KILL $PPID; else cat "$FAKE/shown" 2>/dev/null; fi'}


EXTRACTING = '''
import json, os, signal, sys, time
from pathlib import Path

model, split, number = sys.argv[1:4]
run = Path(os.environ["SLR_RUNS"]) / split / f"{model}_{int(number):03d}"
plan, heard = json.loads(os.environ.get("STAND_IN", "{}")), []  # sentences; extract_exit
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
print("extracting", *sys.argv[1:], flush=True)
there = run / "features"
there.mkdir(exist_ok=True)
for name in range(len(list(there.iterdir())), plan.get("sentences", 2)):
    (there / str(name)).touch()
    time.sleep(0.05)
    if heard:
        sys.exit(75)
sys.exit(plan.get("extract_exit", 0))
'''


class Place:
    """A store, its home of stand-in scripts, and a folder of fake Slurm commands that comes first on the PATH."""

    def __init__(self, folder: Path):
        self.folder, self.fake, self.store = folder, folder / "fake", Store(folder / "the state")
        self.fake.mkdir()
        for name, text in FAKES.items():
            (self.fake / name).write_text(f"#!/bin/bash\n{text}\n")
            (self.fake / name).chmod(0o755)
        self.says(queue="", nodes="8 64000 gpu:2\n32+ 32000+ (null)\n")
        write_stand_ins(self.store.folder / "snapshots" / "code1")
        (self.store.folder / "snapshots" / "code1" / "code" / "extract_features.py").write_text(EXTRACTING)

    def says(self, **files: str) -> None:
        for name, text in files.items():
            (self.fake / name).write_text(text)

    def calls(self) -> list[str]:
        file = self.fake / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def add(self, state: str = "held", **facts) -> Job:
        number = str(len(self.store.jobs()) + 1)
        job = Job("S3D", "asl100", number, **{
            "run": str(self.folder / "runs" / "asl100" / f"S3D_{number.zfill(3)}"), "snapshot": "code1",
            "env": {"SLR_RUNS": str(self.folder / "runs")}, "slurm": {"options": []}, **facts})
        return self.store.add(job, state=state)[0]

    def handed_over(self, state: str, **facts) -> Job:
        return self.add(state, slurm={"job": "101", "options": []}, **facts)

    def script(self, job: Job, *dependencies: str) -> str:
        return slurm.script_text(self.store, job, list(dependencies))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.setenv("FAKE", str(made.fake))
    monkeypatch.setenv("PATH", f"{made.fake}:{os.environ['PATH']}")
    return made


# --- the script's text

def asked_for(text: str) -> dict[str, str]:
    lines = [shlex.split(line[8:])[0] for line in text.splitlines() if line.startswith("#SBATCH ")]
    return dict(line.partition("=")[::2] for line in lines)


def test_what_slurm_is_asked_for(place):
    job = place.add(time_limit=12 * 3600 + 1.0, slurm={"options": ["--partition=gpu", "--comment2=two words \"q\" \\"]})
    options = asked_for(place.script(job, "7", "9"))
    assert options == {
        "--job-name": "que-j1", "--comment": f"{place.store.folder}#j1", "--output": str(place.store.log("j1")),
        "--open-mode": "append", "--chdir": str(place.store.folder / "snapshots" / "code1" / "code"), "--nodes": "1",
        "--ntasks": "1", "--requeue": "", "--gres": "gpu:1", "--cpus-per-task": "4", "--mem": "16384M",
        "--time": "12:01:00", "--signal": "B:USR1@120", "--dependency": "afterok:7:9", "--partition": "gpu",
        "--comment2": 'two words "q" \\'}


@pytest.mark.parametrize("facts, nodes, found", [
    ({}, "4 2000 (null)\n", {"--cpus-per-task": "4", "--mem": "2000M"}),
    ({}, "2 1 gpu:a100:8(S:0-1)\n", {"--gres": "gpu:1", "--cpus-per-task": "2"}),  # nodes that do not tell their memory
    ({"gpus": 0}, "64 512000 gpu:8\n", {"--cpus-per-task": "4", "--mem": "16384M"}),
    ({"gpus": 4}, "64 512000 gpu:8\n", {"--gres": "gpu:4", "--cpus-per-task": "16", "--mem": "65536M"}),
    ({"gpus": 4}, "", {"--gres": "gpu:4"}),
    ({"time_limit": 180.0}, "", {"--time": "00:03:00", "--signal": "B:USR1@60"}),
    ({"slurm": {"options": ["-G2", "--mem-per-gpu=8G", "-c", "--time=5", "--signal=B:USR1@9"]}}, "8 64000 gpu:2\n",
     {"-G2": "", "--mem-per-gpu": "8G", "-c": "", "--time": "5", "--signal": "B:USR1@9"}),
])
def test_resources(place, facts, nodes, found):
    place.says(nodes=nodes)
    known = asked_for(place.script(place.add(**facts)))
    common = {"--job-name", "--comment", "--output", "--open-mode", "--chdir", "--nodes", "--ntasks", "--requeue"}
    assert {k: v for k, v in known.items() if k not in common} == {"--signal": "B:USR1@120", **found}


def test_several_gpus_go_through_torchrun(place):
    text = place.script(place.add(gpus=2))
    assert "torch.distributed.run --standalone --nproc_per_node 2" in text
    assert "CUDA_VISIBLE_DEVICES=''" not in text and "CUDA_VISIBLE_DEVICES=''" in place.script(place.add(gpus=0))


def test_short_limits_and_strange_options_are_mistakes(place):
    with pytest.raises(Mistake, match="more time"):
        place.script(place.add(time_limit=60.0))
    for option in ("--a=b\n--c", "partition=gpu"):
        with pytest.raises(Mistake, match="no option of sbatch"):
            place.script(place.add(slurm={"options": [option]}))


def test_the_script_is_bash(place, tmp_path):
    file = tmp_path / "x.sh"
    file.write_text(place.script(place.add()))
    assert subprocess.run(["bash", "-n", file], capture_output=True, text=True).stderr == ""


# --- the script as it runs

def start(place: Place, job: Job, text: str = "", **env: str) -> "subprocess.Popen[bytes]":
    file = place.store.folder / "slurm" / f"{job.id}.sh"
    file.write_text(text or place.script(job))
    with open(place.store.log(job.id), "ab") as log:
        return subprocess.Popen(["bash", file], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True, env={**os.environ, "SLURM_JOB_ID": "101", **env})


def run(place: Place, job: Job, **env: str) -> int:
    return start(place, job, **env).wait(30)


def end_of(place: Place, job: Job) -> tuple[str, str, str]:
    """(Code, stage, sentence)"""
    code, stage, _, _, *words = (place.store.folder / "slurm" / f"{job.id}.end").read_text().split()
    return code, stage, " ".join(words)


def calls_of(job: Job) -> list[list[str]]:
    return [json.loads(line)["words"] for line in (Path(job.run) / "calls.jsonl").read_text().splitlines()]


def ready(job: Job) -> bool:
    """The stand-in hears signals."""
    return (Path(job.run) / "config.ini").exists()


def plan(**what) -> str:
    return json.dumps(what)


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))), max_size=6))
def test_words_survive_quoting(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("q")
    fake = folder / "it's a $(python)"
    fake.write_text('#!/bin/bash\n[ "$1" = -c ] || printf "%s\\0" "$@" >>"$OUT"\n')
    fake.chmod(0o755)
    store = Store(folder / "state")
    job = store.add(Job("S3D", "asl 100", "4", run="/it's/not", options=words, slurm={}), state="held")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm, "_nodes", list)
        patch.setattr(slurm.commands.train, "__defaults__", (1, "", str(fake)))
        text = slurm.script_text(store, job, [])
    (folder / "x.sh").write_text(text.replace("\ntest=(", "\ntest=() ignored=("))
    subprocess.run(["bash", folder / "x.sh"], env={**os.environ, "OUT": str(folder / "out")}, check=True, timeout=20)
    assert (folder / "out").read_bytes().decode().split("\0")[1:-1] == ["S3D", "asl 100", "4", "-na", *words]


def test_trains_tests_and_leaves_an_end_file(place):
    job = place.add()
    assert run(place, job) == 0
    assert end_of(place, job) == ("0", "test", "")
    assert [words[:4] for words in calls_of(job)] == [["S3D", "asl100", "1", "-na"]]
    assert "tested full S3D asl100 1" in place.store.log(job.id).read_text()


def test_a_signal_saves_and_requeues_and_the_restart_goes_on(place):
    job = place.add(env={"SLR_RUNS": str(place.folder / "runs"), "STAND_IN": plan(steps=[1000, 0])})
    shell = start(place, job)
    wait_for("training", lambda: ready(job))
    shell.send_signal(signal.SIGUSR1)
    assert shell.wait(30) == -signal.SIGKILL  # by the requeue
    assert place.calls() == ["requeue 101"] and not (place.store.folder / "slurm" / "j1.end").exists()
    assert run(place, job, SLURM_RESTART_COUNT="1") == 0
    assert ["-r" in words for words in calls_of(job)] == [False, True]
    assert end_of(place, job) == ("0", "test", "")


def test_a_signal_waits_until_training_hears_it(place):
    job = place.add(env={"SLR_RUNS": str(place.folder / "runs"), "STAND_IN": plan(deaf=1.0, steps=[1000, 0])})
    Path(job.run).mkdir(parents=True)
    (Path(job.run) / "status.json").write_text(json.dumps({"started": 1.0, "pids": [os.getpid()]}))  # earlier
    shell = start(place, job)
    wait_for("training", lambda: (Path(job.run) / "calls.jsonl").exists())
    shell.send_signal(signal.SIGUSR1)
    assert shell.wait(30) == -signal.SIGKILL
    assert (Path(job.run) / "saved.json").exists()


def test_a_signal_before_training_starts_is_not_lost(place):
    job = place.add()
    text = place.script(job).replace('attempt "${train[@]}"', 'kill -USR1 $$; attempt "${train[@]}"')
    assert start(place, job, text).wait(30) == -signal.SIGKILL
    assert not Path(job.run).exists() and place.calls() == ["requeue 101"]


@pytest.mark.parametrize("refused", [False, True])
def test_what_slurm_ends_or_does_not_take_back_is_said(place, refused):
    job = place.add(env={"SLR_RUNS": str(place.folder / "runs"), "STAND_IN": plan(steps=[1000, 0])})
    if refused:
        place.says(refusal="no")
    shell = start(place, job)
    wait_for("training", lambda: ready(job))
    if refused:
        shell.send_signal(signal.SIGUSR1)
    else:
        os.killpg(shell.pid, signal.SIGTERM)
    assert shell.wait(30) == 75
    code, stage, sentence = end_of(place, job)
    assert (code, stage) == ("75", "train")
    assert "que recover" in sentence and ("take the job back" in sentence) == refused
    assert bool(place.calls()) == refused


@pytest.mark.parametrize("told, code, found", [
    (["failed", 76, "out of memory"], 1, "76"),         # torchrun makes a 1 of every code
    (["done", 0, "trained to the end"], 3, "0"),
    (["failed", 77, "not finite"], 77, "77")])
def test_status_json_decides(place, told, code, found):
    job = place.add(env={"SLR_RUNS": str(place.folder / "runs"), "STAND_IN": plan(end=told, exit=code)}, test=False)
    assert run(place, job) == int(found)
    assert end_of(place, job)[:2] == (found, "train")


def test_the_parents_checkpoint_is_found_at_the_start(place):
    parent = place.add("old_runs")
    child = place.add(after=[parent.id], init_from="parent")
    text = place.script(child)
    assert start(place, child, text).wait(30) == 2
    assert "no checkpoint to start from" in end_of(place, child)[2]
    Path(parent.run).mkdir(parents=True)
    for told, found in (("/a b/it's.pth", '"/a b/it\'s.pth"'),
                        ("runs/x.pth", f"'{slurm.commands.ROOT}/runs/x.pth'")):
        (Path(parent.run) / "status.json").write_text(json.dumps({"checkpoint": told}))
        assert start(place, child, text).wait(30) == 0
        assert calls_of(child)[-1][-2:] == ["--set", f"model_params.init_from={found}"]
        (place.store.folder / "slurm" / f"{child.id}.trained").unlink()


def test_r_needs_something_to_go_on_from(place):
    job = place.add(recover=True)
    assert run(place, job, SLURM_RESTART_COUNT="2") == 0
    assert "-r" not in calls_of(job)[0]  # config.ini was not written before
    (place.store.folder / "slurm" / "j1.trained").unlink()
    (Path(job.run) / "saved.json").write_text("5")
    assert run(place, job) == 0
    assert "-r" in calls_of(job)[1]


def said_of(place: Place, job: Job) -> list[str]:
    """What the stages after training have said, in order."""
    lines = place.store.log(job.id).read_text().splitlines()
    return [line.split()[0] for line in lines if line.startswith(("tested", "extracting"))]


@pytest.mark.parametrize(("test", "said"), [(True, ["tested", "extracting"]), (False, ["extracting"])])
def test_features_are_extracted_at_last(place, test, said):
    job = place.add(extract=True, test=test, options=["--device", "cpu"])
    assert ("/testing.py" in place.script(job)) == test
    assert run(place, job) == 0 and end_of(place, job) == ("0", "extract", "")
    assert said_of(place, job) == said
    assert "extracting S3D asl100 1 --device cpu\n" in place.store.log(job.id).read_text()
    assert "extract_features.py" not in place.script(place.add())


def test_a_signal_to_an_extraction_requeues_and_the_restart_goes_on(place):
    job = place.add(extract=True, env={"SLR_RUNS": str(place.folder / "runs"), "STAND_IN": plan(sentences=1000)})
    features = Path(job.run) / "features"
    for attempt in (0, 1):  # as often as it takes: each gets further
        there = len(list(features.glob("*")))
        shell = start(place, job, SLURM_RESTART_COUNT=str(attempt))
        wait_for("extracting", lambda there=there: len(list(features.glob("*"))) > there)
        shell.send_signal(signal.SIGUSR1)
        assert shell.wait(30) == -signal.SIGKILL and not (place.store.folder / "slurm" / "j1.end").exists()
    for number in range(len(list(features.iterdir())), 1000):
        (features / str(number)).touch()
    assert run(place, job, SLURM_RESTART_COUNT="2") == 0
    assert said_of(place, job) == ["tested", *["extracting"] * 3] and len(calls_of(job)) == 1
    assert place.calls() == ["requeue 101"] * 2 and end_of(place, job) == ("0", "extract", "")


def test_an_extraction_that_slurm_ends(place):
    job = place.add(extract=True, env={"SLR_RUNS": str(place.folder / "runs"), "STAND_IN": plan(sentences=1000)})
    shell = start(place, job)
    wait_for("extracting", lambda: (Path(job.run) / "features" / "1").exists())
    os.killpg(shell.pid, signal.SIGTERM)
    assert shell.wait(30) == 75 and end_of(place, job) == ("75", "extract", "saved; `que recover` goes on")


def test_an_extraction_that_fails(place):
    """`recover` hands it over anew: what is trained and tested stays so."""
    job = place.add(extract=True, env={"SLR_RUNS": str(place.folder / "runs"), "STAND_IN": plan(extract_exit=2)})
    assert run(place, job) == 2 and end_of(place, job)[:2] == ("2", "extract")
    again = place.store.update(job.id, lambda job: vars(job).update(stage="extract"))
    (place.store.folder / "slurm" / "j1.trained").unlink()
    (place.store.folder / "slurm" / "j1.tested").unlink()
    assert run(place, again) == 2
    assert said_of(place, job) == ["tested", "extracting", "extracting"] and len(calls_of(job)) == 1


def test_several_parents(place):
    """Their checkpoints in order; the first that has none is named."""
    parents = [place.add("old_runs") for _ in range(3)]
    child = place.add(after=[parent.id for parent in parents], init_from="parents")
    for parent in parents[::2]:
        Path(parent.run).mkdir(parents=True)
        (Path(parent.run) / "status.json").write_text(json.dumps({"checkpoint": f"/a's/{parent.id}.pth"}))
    assert run(place, child) == 2
    assert end_of(place, child)[2] == f"there is no checkpoint to start from in {parents[1].run}"
    Path(parents[1].run).mkdir(parents=True)
    (Path(parents[1].run) / "status.json").write_text(json.dumps({"checkpoint": "runs/j2.pth"}))
    assert run(place, child) == 0
    expected = f"/a's/j1.pth, {slurm.commands.ROOT}/runs/j2.pth, /a's/j3.pth"
    assert calls_of(child)[-1][-2:] == ["--set", f"model_params.init_from={expected!r}"]


def test_testing_is_repeated_once_where_the_time_is_over(place):
    job = place.add(env={"SLR_RUNS": str(place.folder / "runs"), "STAND_IN": plan(test=2.0)})
    shell = start(place, job)
    wait_for("testing", lambda: (Path(job.run) / "testing").exists())
    shell.send_signal(signal.SIGUSR1)
    assert shell.wait(30) == -signal.SIGKILL and place.calls() == ["requeue 101"]
    (Path(job.run) / "testing").unlink()
    shell = start(place, job, SLURM_RESTART_COUNT="1")
    wait_for("testing", lambda: (Path(job.run) / "testing").exists())
    shell.send_signal(signal.SIGUSR1)  # it goes on: another attempt would be as short
    assert shell.wait(30) == 0
    assert len(calls_of(job)) == 1 and end_of(place, job) == ("0", "test", "")


def test_a_job_that_is_trained_is_only_tested(place):
    job = place.add(stage="test", env={"SLR_RUNS": str(place.folder / "runs"), "STAND_IN": plan(test_exit=2)})
    Path(job.run).mkdir(parents=True)
    (Path(job.run) / "status.json").write_text('{"state": "done"}')
    assert run(place, job) == 2
    assert end_of(place, job) == ("2", "test", "") and not (Path(job.run) / "calls.jsonl").exists()


# --- handing over

def test_submit(place):
    job = place.add()
    for name in ("end", "trained", "tested"):
        (place.store.folder / "slurm" / f"j1.{name}").write_text("of an earlier submit")
    submitted = slurm.submit(place.store, job)
    script = place.store.folder / "slurm" / "j1.sh"
    assert submitted.slurm == {"job": "101", "options": [], "script": str(script), "reason": ""}
    assert place.store.find("j1").state == "to_run" and place.calls() == [f"--parsable {script}"]
    assert not [name for name in ("end", "trained", "tested") if script.with_name(f"j1.{name}").exists()]


def test_a_submit_that_was_killed_half_way_is_not_repeated(place):
    place.says(queue=f"55|PENDING|None|{place.store.folder}#j2\n56|RUNNING|None|{place.store.folder}#j1\n")
    assert slurm.submit(place.store, place.add()).slurm["job"] == "56"
    assert place.calls() == []
    other = place.add()
    assert slurm.sync(place.store) == []
    assert place.store.find(other.id).slurm["job"] == "55" and place.store.find(other.id).state == "to_run"


def test_a_job_that_slurm_is_ending_is_not_handed_over_again(place):
    job = place.add(slurm={"options": [], "job": "56"})
    place.says(queue=f"56|COMPLETING|None|{place.store.folder}#j1\n")
    with pytest.raises(Mistake, match="not yet ended j1: job 56 is COMPLETING"):
        slurm.submit(place.store, job)
    place.says(queue="")
    assert slurm.submit(place.store, job).slurm["job"] == "101"


def test_a_sync_between_sbatch_and_its_note(place, monkeypatch):
    """The daemon may see the job in Slurm before `submit` has written its number down."""
    job, ask = place.add(), slurm._ask

    def and_sync(*words: str) -> str:
        said = ask(*words)
        if words[0] == "sbatch":
            place.says(queue=f"101|PENDING|None|{place.store.folder}#j1\n")
            assert slurm.sync(place.store) == []
        return said

    monkeypatch.setattr(slurm, "_ask", and_sync)
    submitted = slurm.submit(place.store, job)
    assert (submitted.state, submitted.slurm["job"]) == ("to_run", "101")
    assert slurm.submit(place.store, job).slurm["job"] == "101"
    assert len(place.calls()) == 1


def test_what_sbatch_says_is_told(place, monkeypatch):
    place.says(refusal="sbatch: error: invalid partition specified: gpuu\n")
    job = place.add()
    with pytest.raises(Mistake) as told:
        slurm.submit(place.store, job)
    assert "invalid partition specified: gpuu" in told.value.found and told.value.do and told.value.wrong
    assert place.store.find("j1").state == "held"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Mistake, match="Slurm is not here"):
        slurm.submit(place.store, job)


def test_a_slurm_that_hangs_is_told(place, monkeypatch):
    monkeypatch.setattr(slurm, "PATIENCE", 0.2)
    (place.fake / "squeue").write_text("#!/bin/bash\nexec sleep 5\n")
    with pytest.raises(Mistake, match="does not answer"):
        slurm.submit(place.store, place.add())


def test_parents(place):
    done, waits = place.add("old_runs"), place.handed_over("to_run")
    child = place.add(after=[done.id, waits.id])
    assert slurm.parents(place.store, child) == ["101"]
    for state, slurm_job, said in (("to_run", {}, "que's own"), ("held", {"options": []}, "que's own"),
                                   ("fail_runs", {"job": "3"}, "never start")):
        parent = place.add(state, slurm=slurm_job)
        with pytest.raises(Mistake, match=said):
            slurm.parents(place.store, place.add(after=[done.id, parent.id]))


def test_cancel(place):
    slurm.cancel(place.handed_over("cur_run"))
    assert place.calls() == ["scancel 101"]
    with pytest.raises(Mistake, match="not in Slurm"):
        slurm.cancel(place.add())


# --- reading back

def test_sync_is_free_without_slurm_jobs(place, monkeypatch):
    monkeypatch.setattr(slurm, "queue", lambda: pytest.fail("squeue was asked"))
    place.add("to_run", slurm={})
    assert slurm.sync(place.store) == []


@pytest.mark.parametrize("word, before, after", [
    *((word, before, "cur_run") for word in ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED")
      for before in ("to_run", "cur_run")),
    *((word, before, "to_run") for word in ("PENDING", "REQUEUED", "REQUEUE_HOLD") for before in ("to_run", "cur_run")),
    ("A_NEW_ONE", "to_run", "to_run"), ("A_NEW_ONE", "cur_run", "cur_run")])
def test_states(place, word, before, after):
    place.handed_over(before)
    place.says(queue=f"100|RUNNING|None|other\n101|{word}|ReqNodeNotAvail, UnavailableNodes:n1|\n")
    assert slurm.sync(place.store) == []
    job = place.store.find("j1")
    assert job.state == after
    if word == "PENDING":
        assert job.slurm["reason"] == "ReqNodeNotAvail, UnavailableNodes:n1" and "UnavailableNodes" in job.reason


def test_attempts_are_counted(place):
    place.handed_over("to_run")
    for word in ("RUNNING", "RUNNING", "PENDING", "PENDING", "RUNNING"):
        place.says(queue=f"101|{word}|None|\n")
        slurm.sync(place.store)
    first, second = place.store.find("j1").attempts
    assert first["reason"] == "requeued by Slurm" and "ended" in first and "ended" not in second


@pytest.mark.parametrize("end, shown, state, cause, words", [
    ("0 test 10 20", "", "old_runs", "done", "trained and tested"),
    ("0 train 10 20", "", "old_runs", "done", "trained"),
    ("76 train 10 20", "JobState=FAILED Reason=NonZeroExitCode", "fail_runs", "ooms", "out of memory, said training"),
    ("1 test 10 20", "", "fail_runs", "crashes", "testing ended with exit code 1"),
    ("0 extract 10 20", "", "old_runs", "done", "trained, tested and extracted"),
    ("2 extract 10 20", "", "fail_runs", "hopeless", "extracting ended with exit code 2"),
    ("75 train 10 20 saved, `que recover` goes on", "JobState=CANCELLED Reason=None", "fail_runs", "cancel",
     "cancelled in Slurm; saved, `que recover` goes on"),
    ("143 test 10 20", "JobState=TIMEOUT Reason=TimeLimit", "fail_runs", "timeouts", "killed at its time limit"),
    ("137 train 10 20", "JobState=OUT_OF_MEMORY Reason=OutOfMemory", "fail_runs", "crashes", "--mem="),
    ("2 train 10 20 there is no checkpoint", "", "fail_runs", "hopeless", "there is no checkpoint")])
def test_ends(place, end, shown, state, cause, words):
    job = place.handed_over("cur_run", attempts=[{"stage": "train", "started": 10.0, "devices": []}], extract=True)
    Path(job.run).mkdir(parents=True)
    (Path(job.run) / "status.json").write_text(json.dumps({
        "started": 11.0, "updated": 12.0, "reason": "out of memory, said training" if end.startswith("76") else ""}))
    (place.store.folder / "slurm" / "j1.end").write_text(end + "\n")
    place.says(shown=shown)
    assert slurm.sync(place.store) == []
    job = place.store.find("j1")
    assert job.state == state and words in job.reason and "\n" not in job.reason
    assert job.attempts == [{"stage": end.split()[1], "started": 10.0, "ended": 20.0, "devices": [], "cause": cause,
                             "reason": job.reason}]
    assert job.ended == 20.0


@pytest.mark.parametrize("shown, cause, words", [
    ("JobState=CANCELLED Reason=None", "cancel", "cancelled in Slurm"),
    ("JobState=TIMEOUT Reason=TimeLimit", "timeouts", "time limit"),
    ("JobState=NODE_FAIL Reason=NodeDown", "interrupts", "node failed"),
    ("JobState=COMPLETED Reason=None", "crashes", "left no word"),
    ("", "crashes", "left no word")])
def test_no_end_file(place, monkeypatch, shown, cause, words):
    place.handed_over("to_run")
    place.says(shown=shown)
    slurm.sync(place.store)
    if cause == "crashes":  # by itself: the file may take a while to be seen
        assert place.store.find("j1").state == "to_run"
        now = time.time()
        monkeypatch.setattr(slurm.time, "time", lambda: now + slurm.GRACE + 1)
        slurm.sync(place.store)
    job = place.store.find("j1")
    assert job.state == "fail_runs" and words in job.reason and job.attempts[-1]["cause"] == cause


def test_nothing_moves_while_slurm_is_down(place):
    place.handed_over("cur_run")
    (place.store.folder / "slurm" / "j1.end").write_text("0 test 10 20\n")
    place.says(down="1")
    warning, = slurm.sync(place.store)
    assert "squeue" in warning and "\n" not in warning
    assert place.store.find("j1").state == "cur_run"


def test_a_job_that_was_handed_over_anew_meanwhile_stays(place, monkeypatch):
    place.handed_over("cur_run")
    (place.store.folder / "slurm" / "j1.end").write_text("0 test 10 20\n")

    def meanwhile() -> list[slurm.Entry]:
        place.store.update("j1", lambda job: job.slurm.update(job="102"))
        return []

    monkeypatch.setattr(slurm, "queue", meanwhile)
    assert slurm.sync(place.store) == []
    assert place.store.find("j1").state == "cur_run"


# --- the real one

@pytest.mark.skipif(os.environ.get("QUE_TEST_SLURM") != "1", reason="QUE_TEST_SLURM=1 starts a Slurm, as root")
def test_a_real_slurm(tmp_path, monkeypatch):
    if missing():
        pytest.skip(missing())
    place, begun, times = Place(tmp_path), time.monotonic(), {}
    with Node(tmp_path / "node") as node:
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, node.environment[name])
        times["daemons"] = time.monotonic() - begun
        night(place, times)
    print("\n" + "\n".join(f"{name:>40} {seconds:6.1f} s" for name, seconds in times.items()))


def night(place: Place, times: dict[str, float]) -> None:
    """A chain of two, a time limit, a preemption, a cancellation."""
    runs = str(place.folder / "runs")

    def state(job: Job) -> str:
        assert slurm.sync(place.store) == []
        return place.store.find(job.id).state

    def until(job: Job, wanted: str, what: str, limit: float = 60.0) -> None:
        times[what] = wait_for(f"{what}: {place.store.log(job.id)}", lambda: state(job) == wanted, limit)

    limited = ["--time=1", "--signal=B:USR1@20"]  # Slurm may signal up to a minute early
    parent = slurm.submit(place.store, place.add(
        slurm={"options": limited}, env={"SLR_RUNS": runs, "STAND_IN": plan(steps=[100_000, 0])}))
    child = slurm.submit(place.store, place.add(after=[parent.id], init_from="parent", env={
        "SLR_RUNS": runs, "STAND_IN": plan(steps=[100_000, 0])}))
    until(parent, "cur_run", "submitted -> running")
    assert state(child) == "to_run" and place.store.find(child.id).slurm["reason"] == "Dependency"
    until(parent, "to_run", "signal before the limit -> requeued", 120)
    until(parent, "old_runs", "requeued -> resumed, tested, read back", 240)
    assert ["-r" in words for words in calls_of(parent)] == [False, True]
    assert json.loads((Path(parent.run) / "results.json").read_text()) == "done"
    reasons = [attempt["reason"] for attempt in place.store.find(parent.id).attempts]
    assert reasons == ["requeued by Slurm", "trained and tested"]

    until(child, "cur_run", "dependency met -> running")
    wait_for("training", lambda: ready(child))
    number = place.store.find(child.id).slurm["job"]
    subprocess.run(["scancel", "--signal=USR1", "--batch", number], check=True, timeout=30)
    until(child, "to_run", "preemption's signal -> requeued")
    until(child, "old_runs", "requeued -> done", 240)
    first, second = calls_of(child)
    assert f"{runs}/asl100/S3D_001/checkpoints/best.pth" in first[-1] and "-r" in second

    endless = place.add(gpus=2, env={"SLR_RUNS": runs, "STAND_IN": plan(steps=[100_000, 100_000])})  # by torchrun
    third = slurm.submit(place.store, endless)
    until(third, "cur_run", "another on both GPUs -> running")
    wait_for("training", lambda: ready(third))
    subprocess.run(["scancel", "--signal=USR1", "--batch", third.slurm["job"]], check=True, timeout=30)
    until(third, "to_run", "signal to torchrun's ranks -> requeued")
    wait_for("training with -r", lambda: state(third) == "cur_run" and len(calls_of(third)) == 2)
    subprocess.run(["scontrol", "requeue", third.slurm["job"]], check=True, timeout=30)
    until(third, "to_run", "requeued by others -> read back")
    wait_for("training with -r", lambda: state(third) == "cur_run" and len(calls_of(third)) == 3)
    assert all("-r" in words for words in calls_of(third)[1:])
    wait_for("a step", lambda: status(third)["state"] == "running")
    assert status(third)["step"] > 2 and len(status(third)["pids"]) == 2
    slurm.cancel(third)
    until(third, "fail_runs", "cancelled -> read back")
    ended = place.store.find(third.id)
    assert ended.reason == "cancelled in Slurm; saved; `que recover` goes on"
    assert [attempt["cause"] for attempt in ended.attempts] == ["interrupts", "interrupts", "cancel"]
