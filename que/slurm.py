"""Past one machine: a job is handed to Slurm as a plain sbatch script, and its states are read back into the folders.

The script trains, tests, extracts features where that is asked for, and has Slurm take the job back (`scontrol
requeue`) whenever training or extraction has saved and left with 75. Any other end is final: the que neither resubmits
nor halves batches there; `que recover` hands the job over anew. The state folder, the code
and the data have to lie where the nodes see them; no accounting (sacct) is needed.
"""

import contextlib
import math
import os
import re
import shlex
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from que import commands, disk, worker
from que.errors import DONE, INTERRUPTED, MISTAKE, NON_FINITE, NOTHING, OUT_OF_MEMORY, Changed, Mistake
from que.job import STAGES, Job
from que.store import Store

NOTICE = 120  # seconds between Slurm's signal and the time limit; a third of a short limit
SHORTEST = 180  # Slurm may signal a minute early: a shorter limit leaves no time to get anywhere
CPUS, MEMORY = 4, 16 << 30  # of each GPU (or of a job without), at most what a node has; --slurm_option says otherwise
PATIENCE = 30.0  # seconds for an answer of Slurm's
GRACE = 30.0  # seconds until an end file is seen through a network file system
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "SIGNALING", "RESIZING")
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
CAUSES = {DONE: "done", MISTAKE: "hopeless", NON_FINITE: "hopeless", NOTHING: "hopeless", OUT_OF_MEMORY: "ooms",
          INTERRUPTED: "interrupts"}
# What Slurm calls an end that the script did not decide on: (cause, sentence)
ENDS = {"CANCELLED": ("cancel", "cancelled in Slurm"), "TIMEOUT": ("timeouts", "killed at its time limit"),
        "PREEMPTED": ("interrupts", "another job took its node"), "NODE_FAIL": ("interrupts", "its node failed"),
        "OUT_OF_MEMORY": ("crashes", "killed for the node's memory: give more with --slurm_option=--mem=…")}


class Entry(NamedTuple):
    """A line of squeue; `mark` is the comment that the script gives the job."""

    number: str
    state: str
    reason: str
    mark: str


class End(NamedTuple):
    """What the script's last act tells; code -1: there is no end file."""

    code: int
    stage: str
    begun: float
    ended: float
    sentence: str


# --- handing over

def submit(store: Store, job: Job) -> Job:
    """Hand a held job to Slurm. One that an earlier, killed `submit` has handed over is only taken note of."""
    mark, files = commands.mark_of(job.id, store.folder), _files(store, job.id)
    with disk.lock(Path(files + ".lock")):
        job = store.find(job.id)
        if job.state != "held":  # somebody else has just done it
            return job
        known = {entry.number: entry.state for entry in queue() if entry.mark == mark}
        if old := known.pop(job.slurm.get("job", ""), ""):
            raise Mistake(f"Slurm has not yet ended {job.id}", f"job {job.slurm['job']} is {old}",
                          f"`que recover {job.id}` in a minute")
        number = next(iter(known), "")
        if not number:
            text = script_text(store, job, parents(store, job))
            for ending in (".end", ".trained", ".tested"):
                Path(files + ending).unlink(missing_ok=True)
            disk.write(Path(files + ".sh"), text, store.folder / "tmp" / f"{job.id}.sh")
            number = _ask("sbatch", "--parsable", files + ".sh").split(";")[0].strip()
        with contextlib.suppress(Changed):  # `sync` has seen it in Slurm already
            _note(store, job, number)
    return store.find(job.id)


def cancel(job: Job) -> None:
    """Slurm sends SIGTERM, so that training saves, and kills soon after; `sync` files the job then."""
    if not job.slurm.get("job"):
        raise Mistake(f"{job.id} is not in Slurm", "it was never submitted", "remove it")
    _ask("scancel", job.slurm["job"])


def parents(store: Store, job: Job) -> list[str]:
    """The Slurm jobs that have to be done first; what is done already is none."""
    found = []
    for parent in (store.find(job_id) for job_id in job.after):
        if parent.state in ("to_run", "cur_run") and parent.slurm.get("job"):
            found.append(parent.slurm["job"])
        elif parent.state in ("to_run", "cur_run", "held"):
            raise Mistake(f"Slurm cannot wait for {parent.id}", f"it is the que's own, in {parent.state}",
                          "wait for its end, or create it with --to slurm too")
        elif parent.state != "old_runs":
            raise Mistake(f"{job.id} would never start", f"{parent.id} is in {parent.state}", "recover that one first")
    return found


def script_text(store: Store, job: Job, dependency_ids: list[str]) -> str:
    """The sbatch script: what Slurm is asked for, the environment, the commands, then `_COURSE` as for every job."""
    folder, (gpus, lines) = store.folder, resources(job, dependency_ids)
    asked = [f"--job-name=que-{job.id}", f"--comment={commands.mark_of(job.id, folder)}",
             f"--output={str(store.log(job.id)).replace('%', '%%')}", "--open-mode=append",
             f"--chdir={commands.home(job, folder) / 'code'}", "--nodes=1", "--ntasks=1", "--requeue", *lines,
             *job.slurm.get("options", [])]
    environment = {**commands.environment(job, folder), **({"CUDA_VISIBLE_DEVICES": ""} if job.gpus == 0 else {})}
    train = commands.train(replace(job, recover=False), folder, gpus)
    words = {"train": train, "again": commands.train(replace(job, recover=True), folder, gpus),
             "test": commands.test(job, folder) if job.test else [],
             "extract": commands.extract(job, folder) if job.extract else [],
             "parents": [store.find(parent).run for parent in job.givers]}
    facts = {"python": train[0], "run": job.run, "files": _files(store, job.id), "recover": str(int(job.recover)),
             "stage": job.stage, "root": str(commands.ROOT)}
    return "\n".join((
        "#!/bin/bash", *(f"#SBATCH {_quoted(option)}" for option in asked), "",
        f"# {' '.join(job.title.split())}: job {job.id} of the que.", "",
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()), "",
        *(f"{name}={shlex.quote(value)}" for name, value in facts.items()),
        *(f"{name}=({shlex.join(value)})" for name, value in words.items()), _COURSE))


def resources(job: Job, dependency_ids: list[str]) -> tuple[int, list[str]]:
    """(GPUs, the options for them and for the rest). What the user's own options name is left to those.

    job.memory is of a GPU that is shared: it is no host memory, and Slurm gives GPUs whole.
    """
    nodes = _nodes()
    gpus = int(any(node[2] for node in nodes)) if job.gpus is None else job.gpus
    fit = [node for node in nodes if node[2] or not gpus]
    cpus, memory = (min(max(1, gpus) * wanted, max((node[i] for node in fit), default=0))
                    for i, wanted in enumerate((CPUS, MEMORY)))
    minutes = math.ceil((job.time_limit or 0) / 60)
    if 0 < 60 * minutes < SHORTEST:
        raise Mistake("Slurm needs more time than that", f"{job.time_limit:g} s", f"give {SHORTEST} s or more")
    ours = {("--gres", "--gpus", "-G"): f"--gres=gpu:{gpus}" if gpus else "",
            ("--cpus", "-c"): f"--cpus-per-task={cpus}" if cpus else "",
            ("--mem",): f"--mem={memory >> 20}M" if memory >= 1 << 30 else "",  # less: the nodes do not tell theirs
            ("--time", "-t"): f"--time={minutes // 60:02d}:{minutes % 60:02d}:00" if minutes else "",
            ("--signal",): f"--signal=B:USR1@{min(NOTICE, 20 * minutes) if minutes else NOTICE}",
            ("--dependency", "-d"): f"--dependency=afterok:{':'.join(dependency_ids)}" if dependency_ids else ""}
    given = job.slurm.get("options", [])
    return gpus, [line for names, line in ours.items() if line and not any(word.startswith(names) for word in given)]


def _nodes() -> list[tuple[int, int, bool]]:
    """(CPUs, bytes of memory, whether there are GPUs) of each kind of node."""
    rows = [line.split() for line in _ask("sinfo", "-h", "-a", "-e", "-o", "%c %m %G").splitlines() if line.strip()]
    return [(int(cpus.rstrip("+")), int(memory.rstrip("+")) << 20, "gpu" in gres) for cpus, memory, gres in rows]


def _note(store: Store, job: Job, number: str) -> None:
    def change(job: Job) -> None:
        kept = {k: v for k, v in job.slurm.items() if k != "gone"}
        job.slurm = {"options": [], **kept, "job": number, "script": _files(store, job.id) + ".sh", "reason": ""}
        job.reason, job.ended = f"Slurm job {number}", None

    store.update(job.id, change, "to_run", only=(job.state,))


def _files(store: Store, job_id: str) -> str:
    """.sh, the script; .trained and .tested, how far it has got; .end, how it ended; .lock, of `submit`."""
    return str(store.folder / "slurm" / job_id)


def _quoted(option: str) -> str:
    """As sbatch reads its lines."""
    if "\n" in option or not option.startswith("-"):
        raise Mistake("this is no option of sbatch", repr(option), "give each as --slurm_option=--name=value")
    return option if re.fullmatch(r"[\w@%+=:,./-]+", option) else '"' + re.sub(r'(["\\])', r"\\\1", option) + '"'


def _ask(*words: str) -> str:
    """What one of Slurm's commands says; a person's own defaults for squeue could hide jobs from us."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SINFO_"))}
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL,
                             env=environment)
    except FileNotFoundError:
        raise Mistake("Slurm is not here", f"no {words[0]} on the PATH", "go to a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise Mistake("Slurm does not answer", f"{words[0]} took over {PATIENCE:.0f} s",
                      "try again: nothing is handed over twice") from None
    if ran.returncode:
        said = " ".join(ran.stderr.split()) or f"exit code {ran.returncode}"
        raise Mistake(f"Slurm refuses {words[0]}", said, f"try it by hand: {shlex.join(words)}")
    return ran.stdout


# --- reading back

def queue() -> list[Entry]:
    """What Slurm still has of this user."""
    lines = _ask("squeue", "-h", "-a", "--me", "-o", "%i|%T|%r|%k").splitlines()
    return [Entry(*line.split("|", 3)) for line in lines if line.count("|") >= 3]


def sync(store: Store) -> list[str]:
    """Move the job files to where Slurm says they belong; warnings. Nothing moves while Slurm does not answer."""
    jobs = [job for job in store.jobs() if job.slurm and job.state in ("to_run", "cur_run", "held")]  # before squeue
    if not jobs:
        return []
    try:
        entries = queue()
    except Mistake as error:
        return [f"jobs in Slurm are shown as they last were. {error.wrong}: {error.found}"]
    for job in jobs:
        with contextlib.suppress(Changed):  # somebody else was quicker
            _follow(store, job, entries)
    return []


def _follow(store: Store, job: Job, entries: list[Entry]) -> None:
    number, mark = job.slurm.get("job"), commands.mark_of(job.id, store.folder)
    mine = next((entry for entry in entries if entry.number == number), None)
    if job.state == "held" or not number:  # a submit may have been killed before it could take note
        lost = next((entry.number for entry in entries if entry.mark == mark and entry is not mine), "")
        if lost:
            _note(store, job, lost)
    elif not mine:
        _ended(store, job)
    elif mine.state in WAITING and (job.state, job.slurm.get("reason")) != ("to_run", mine.reason):
        store.update(job.id, lambda job: _waits(job, mine), "to_run", only=(job.state,))
    elif mine.state in RUNNING and job.state != "cur_run":
        store.update(job.id, lambda job: _runs(job, mine), "cur_run", only=(job.state,))


def _waits(job: Job, entry: Entry) -> None:
    _check(job, entry.number)
    if job.state == "cur_run" and job.attempts:
        job.attempts[-1].update(ended=time.time(), cause="interrupts", reason="requeued by Slurm")
    never = "; cancel it, and recover it after its parent" if entry.reason == "DependencyNeverSatisfied" else ""
    job.slurm["reason"], job.reason = entry.reason, f"Slurm job {entry.number}: {entry.reason}{never}"


def _runs(job: Job, entry: Entry) -> None:
    _check(job, entry.number)
    job.attempts.append({"stage": job.stage, "started": time.time(), "devices": []})
    job.slurm["reason"], job.reason = "", f"Slurm job {entry.number}"


def _check(job: Job, number: str) -> None:
    if job.slurm.get("job") != number:
        raise Changed(f"{job.id} is another Slurm job now", str(job.slurm.get("job")), "look with `que list`")


def _ended(store: Store, job: Job) -> None:
    """A job that Slurm no longer has: its end file tells how it went, or else Slurm where it still knows."""
    number, now, end = job.slurm["job"], time.time(), _end_file(_files(store, job.id))
    gone = job.slurm.get("gone", now)
    if end.code == -1 and now - gone < GRACE and not _slurm_says(number, "")[0]:
        if gone == now:
            store.update(job.id, lambda job: job.slurm.update(gone=now), only=(job.state,))
        return
    cause, reason = _judged(job, end)

    def close(job: Job) -> None:
        _check(job, number)
        if not job.attempts or "ended" in job.attempts[-1]:  # nobody saw it run
            job.attempts.append({"stage": job.stage, "started": end.begun or end.ended, "devices": []})
        job.stage, job.ended, job.reason = end.stage or job.stage, end.ended, reason
        job.attempts[-1].update(stage=job.stage, ended=end.ended, cause=cause, reason=reason)
        job.slurm.pop("gone", None)

    worker.hook(store, store.update(job.id, close, "fail_runs" if end.code else "old_runs", only=(job.state,)))


def _judged(job: Job, end: End) -> tuple[str, str]:
    """(Cause, reason) of an end."""
    if end.code == DONE:
        last = end.stage == "extract"
        return "done", replace(job, test=end.stage == "test" or last and job.test, extract=last and job.extract).done
    cause, why = CAUSES.get(end.code, "crashes"), ""
    if end.code in (-1, INTERRUPTED) or end.code > 128:  # the script and its children were killed, or told to end
        cause, why = _slurm_says(job.slurm["job"], cause)
    status = commands.status(job)
    told = status.get("reason") if end.stage == "train" and (status.get("updated") or 0) >= end.begun else ""
    if end.code == -1:
        return cause, why or "Slurm no longer has it, and it left no word: see its log"
    return cause, "; ".join(text for text in (
        why, end.sentence or str(told or f"{end.stage}ing ended with exit code {end.code}")) if text)


def _slurm_says(number: str, cause: str) -> tuple[str, str]:
    """(Cause, sentence) where Slurm itself ended the job, and still remembers."""
    try:
        found = re.search(r"JobState=(\w+)", _ask("scontrol", "-o", "show", "job", number))
    except Mistake:  # it forgets after some minutes
        return cause, ""
    return ENDS.get(found[1], (cause, "")) if found else (cause, "")


def _end_file(files: str) -> End:
    try:
        code, stage, begun, ended, *words = Path(files + ".end").read_text(encoding="utf-8").split()
        return End(int(code), stage if stage in STAGES else "", float(begun), float(ended), " ".join(words))
    except (OSError, ValueError):
        return End(-1, "", 0.0, time.time(), "")


_COURSE = r'''
look() {  # KEY: a value of this attempt's status.json, nothing where it has none
  "$python" -c 'import json, sys
status = json.load(open(sys.argv[1] + "/status.json"))
value = status.get(sys.argv[2]) if (status.get("started") or 0) >= float(sys.argv[3]) else None
print(*value if isinstance(value, list) else [] if value is None else [value])' "$run" "$1" "$begun" 2>/dev/null
}

hand_on() {  # the signal goes to the ranks alone: torchrun's agent and the data workers would die of it
  signalled=1
  case $stage in
    test) [ "$tested_before" ] || kill -TERM "$!"; return;;  # a whole attempt was too short: so would be the next
    extract) kill -TERM "$!"; return;;  # what is extracted is kept: each attempt gets further
  esac
  until pids=$(look pids); [ "$pids" ]; do  # until training can hear it
    kill -0 "$!" 2>/dev/null || return
    sleep 0.5
  done
  kill -USR1 $pids
}

attempt() {  # a command beside this shell, which hears signals meanwhile; they end `wait` early
  [ "$signalled" ] && return 75
  "$@" &
  while [ "$(jobs -pr)" ]; do wait "$!"; done
  wait "$!"
}

finish() {  # CODE [SENTENCE]: the end file is what the que reads
  printf '%s %s %s %s %s\n' "$1" "$stage" "$begun" "$(date +%s)" "$2" >"$files.part" && mv "$files.part" "$files.end"
  exit "$1"
}

requeue() {  # Slurm ends this shell when it takes the job back
  [ "$stopped" ] && finish 75 'saved; `que recover` goes on'
  scontrol requeue "$SLURM_JOB_ID" && sleep 600
  [ "$stopped" ] || finish 75 'saved, but Slurm does not take the job back; `que recover` goes on'
  exit 75
}

begun=$(date +%s)
signalled= stopped= tested_before=
trap hand_on USR1      # before the time limit, or from whoever wants the node
trap 'stopped=1' TERM  # Slurm ends the job: training has got this signal too, and saves
rm -f "$files.end"
[ "$stage" = train ] && [ -e "$files.trained" ] && stage=test
[ "$stage" = test ] && { [ -e "$files.tested" ] || [ ${#test[@]} -eq 0 ]; } && [ ${#extract[@]} -gt 0 ] && stage=extract
[ "$stage" = test ] && tested_before=1

if [ "$stage" = train ]; then
  if (( recover || ${SLURM_RESTART_COUNT:-0} )) && [ -e "$run/config.ini" ]; then
    train=("${again[@]}")  # what it started from stands in the run's own config.ini
  elif [ ${#parents[@]} -gt 0 ]; then
    start=$("$python" -c 'import json, os, sys
found = []
for run in sys.argv[2:]:
    try:
        found.append(os.path.join(sys.argv[1], json.load(open(run + "/status.json"))["checkpoint"]))
    except (OSError, ValueError, LookupError, TypeError):
        sys.exit(print(run) or 1)
print(repr(", ".join(found)))' "$root" "${parents[@]}") ||
      finish 2 "there is no checkpoint to start from in $start"
    train+=(--set "model_params.init_from=$start")
  fi
  attempt "${train[@]}"
  code=$?
  told=$(look exit_code)  # torchrun makes a 1 of every code
  code=${told:-$code}
  [ "$code" = 75 ] && requeue
  [ "$code" = 0 ] || finish "$code"
  touch "$files.trained"
fi

if [ ${#test[@]} -gt 0 ] && [ "$stage" != extract ]; then
  stage=test
  attempt "${test[@]}"
  code=$?
  [ "$code" != 0 ] && [ "$signalled" ] && [ ! "$tested_before" ] && requeue
  [ "$code" = 0 ] || finish "$code"
  touch "$files.tested"
fi

if [ ${#extract[@]} -gt 0 ]; then
  stage=extract
  attempt "${extract[@]}"
  code=$?
  [ "$code" = 75 ] && requeue
  [ "$code" = 143 ] && [ "$signalled" ] && requeue  # the signal came before it could hear any
  [ "$code" = 0 ] || finish "$code"
fi
finish 0
'''
