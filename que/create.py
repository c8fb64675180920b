"""`create` and `add`: what a person asks for becomes job files, after training.py itself has checked the words."""

import ast
import configparser
import getpass
import itertools
import os
import re
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from que import commands, disk, gpus, snapshot
from que.errors import Mistake
from que.job import STATES, Job, parse_memory, parse_time
from que.store import Store

FACTS = {"experiment": ("task",), "training": ("batch_size", "update_per_step", "precision"),
         "data": ("num_frames", "frame_size")}
EXTRACTED = "continuous"  # the task whose models extract_features.py takes
NOT_QUEUED = {"--print_config": "it trains nothing", "--test_best": "the que tests anyway"}


def create(store: Store, args: Namespace, options: list[str]) -> list[Job]:
    """File the jobs of one `create`; with --dry_run only say what they would be."""
    options, recover, enumerate_run = own_words(options)
    template = Job(
        args.model, args.split, args.exp_no, options=options, env=commands.kept_environment(), recover=recover,
        test=not args.no_test, extract=args.extract, priority=args.priority, gpus=args.gpus,
        memory=parse_memory(args.memory) if args.memory else None,
        time_limit=parse_time(args.time) if args.time else None, after=parents(store, args.after),
        init_from=args.init_from or "", note=args.note or "", user=getpass.getuser(), created=time.time(),
        slurm={"options": args.slurm_option} if args.to else {})
    if template.init_from and not template.after:
        raise Mistake(f"--init_from {template.init_from} needs a parent", "no --after", "give --after ID")
    drafts, configs = [], []
    for words in sweep(args.seeds, args.sweep):
        draft = replace(template, options=[*options, *words], env=dict(template.env))
        configs.append(resolve(store, draft))
        check_extraction(draft)
        draft.options = own_config(draft, args.live)
        drafts.append(draft)
    place_runs(store, drafts, enumerate_run or len(drafts) > 1)
    if args.share:
        for draft in drafts:
            draft.memory = draft.memory or gpus.learned(store.folder, draft) or _unknown_peak()
    if args.dry_run:
        return drafts
    code = "" if args.live else snapshot.take(store.folder, commands.ROOT)
    for draft in drafts:
        draft.snapshot = code
    texts = dict(zip(map(id, drafts), configs, strict=True))
    return store.add(*drafts, state="held" if args.hold or args.to == "slurm" else "to_run",
                     prepare=lambda job: keep_config(store, job, texts[id(job)]))


def check_extraction(job: Job) -> None:
    """Mistake where extract_features.py would refuse the model, when all else is done."""
    task = job.facts.get("task", EXTRACTED)  # nobody asked of older jobs
    if job.extract and task != EXTRACTED:
        raise Mistake("only models of sentences have features to extract", f"{job.title} is of the task {task}",
                      "leave --extract out")


def keep_config(store: Store, job: Job, text: str) -> None:
    file = commands.config_file(job, store.folder)
    disk.write(file, text, store.folder / "tmp" / file.name)


def own_words(options: list[str]) -> tuple[list[str], bool, bool]:
    """(training.py's options that stay, whether -r was among them, whether -ee was)."""
    for word in options:
        if word in NOT_QUEUED:
            raise Mistake(f"{word} cannot be queued", NOT_QUEUED[word], "leave it out")
    flags = {"-r", "--recover", "-ee", "--enum_exp", "-na", "--no_ask"}
    kept = [word for word in options if word not in flags]
    return kept, bool({"-r", "--recover"} & set(options)), bool({"-ee", "--enum_exp"} & set(options))


def own_config(job: Job, live: bool) -> list[str]:
    """The options without `-c FILE`, since the job keeps what that file said; a live job keeps its place."""
    kept, words = list[str](), iter(job.options)
    for word in words:
        given = re.fullmatch(r"(?:-c|--config_path)(?:=(.*))?|-c(.+)", word)
        if not given:
            kept.append(word)
        elif (file := given[1] or given[2] or next(words, "")) and live:
            kept += ["-c", str(Path(file).resolve())]
    return kept


def parents(store: Store, given: str | None) -> list[str]:
    """The ids of `--after j3,j5` or `--after last`, all of them there."""
    ids = []
    for word in (given or "").replace(" ", "").split(","):
        if word == "last":
            newest = max(store.jobs(), key=lambda job: job.number, default=None)
            if not newest:
                raise Mistake("there is no last job", "the que is empty", "give the id of a job")
            word = newest.id
        ids += [store.find(word).id] if word else []
    return ids


def sweep(seeds: str | None, keys: list[str]) -> Iterator[list[str]]:
    """The options of every combination: `1-5` or `1,3,8` of seeds, and `section.key=value,value` of settings."""
    axes = []
    if seeds:
        spans = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in seeds.split(",")]
        if not all(spans):
            raise Mistake("these are no seeds", repr(seeds), "give them as 1-5 or 1,3,8")
        ranges = [range(int(span[1]), int(span[2] or span[1]) + 1) for span in spans if span]
        if not 0 < sum(map(len, ranges)) <= 1000:
            raise Mistake(f"these are {sum(map(len, ranges))} seeds", repr(seeds), "give 1 to 1000, lower ones first")
        axes.append([("--seed", str(number)) for numbers in ranges for number in numbers])
    for text in keys:
        key, equals, values = text.partition("=")
        if not equals or "." not in key:
            raise Mistake("this is no sweep", repr(text), "give it as section.key=value,value")
        axes.append([("--set", f"{key}={value}") for value in split_values(values)])
    for combination in itertools.product(*axes):
        yield [word for pair in combination for word in pair]


def split_values(text: str) -> list[str]:
    """At commas that stand outside brackets and quotes: `(0.9, 0.99),(0.8, 0.99)` are two."""
    values, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        depth += (sign in "([{") - (sign in ")]}") if not quote else 0
        if sign == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += sign
    return [value.strip() for value in values]


def resolve(store: Store, job: Job) -> str:
    """The whole .ini of a job as training.py reads it; sets the job's run folder and facts. Its mistakes are ours."""
    home = commands.home(job, store.folder)
    ran = subprocess.run(
        [sys.executable, str(home / "code" / "training.py"), *job.words, *job.options, *commands.settings(job.changes),
         "--print_config"], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        env={**os.environ, **commands.environment(job, store.folder)})
    folder = re.search(r"^; run folder: (.+)$", ran.stdout, re.M)
    if ran.returncode or not folder:
        said = (ran.stderr.strip() or ran.stdout.strip()).rpartition("training.py: ")[2]  # after argparse's usage
        raise Mistake("training.py does not take this", said.removeprefix("error: "), "nothing was changed")
    job.run = folder[1]
    job.facts = _facts(ran.stdout)
    return ran.stdout


def _facts(text: str) -> dict[str, Any]:
    """The task, and what a GPU's memory depends on, out of the resolved .ini."""
    ini = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=None)
    ini.read_string(text)
    found = {}
    for section, names in FACTS.items():
        for name in names:
            if ini.has_option(section, name):
                found[name] = ast.literal_eval(ini[section][name])
    return found


def place_runs(store: Store, drafts: list[Job], enumerate_run: bool) -> None:
    """Every job writes to a folder of its own: the next free MODEL_NNN.k where it is asked for, else one never used."""
    known = {job.run: job for job in store.jobs(*STATES)}
    for draft in drafts:
        base, (whole, _, part), k = draft.run, draft.exp_no.partition("."), 0
        while enumerate_run and (draft.run in known or Path(draft.run).exists()):
            k += 1
            draft.exp_no, draft.run = f"{whole}.{k}", f"{base.removesuffix('.' + part)}.{k}"
        other = known.get(draft.run)
        if other and other.state in ("to_run", "cur_run", "held"):
            raise Mistake(f"{other.id} in {other.state} is this experiment already", draft.run,
                          "-ee writes to a new run folder")
        anew = draft.recover or "-ec" in draft.options or "--enum_chck" in draft.options
        if not anew and (Path(draft.run) / "status.json").exists():
            raise Mistake("this experiment has run before", draft.run,
                          "-r goes on with it, -ee writes to a new run folder, `que add` files it as finished")
        known[draft.run] = draft


def _unknown_peak() -> int:
    raise Mistake("nobody has measured such a run", "--share", "give --memory 8G, or let one run alone first")


def add(store: Store, args: Namespace) -> list[Job]:
    """File a run that was trained by hand under old_runs."""
    job = Job(args.model, args.split, args.exp_no, env=commands.kept_environment(), user=getpass.getuser(),
              created=time.time(), stage="test", note=args.note or "", reason="filed by hand")
    text = resolve(store, job)
    told = commands.status(job)
    if told.get("state") != "done":
        raise Mistake("this run is not finished", f"{job.run}: {told.get('state', 'there is no status.json')}",
                      "`que create … -r` goes on with it")
    if any(other.run == job.run for other in store.jobs()):
        raise Mistake("this run is in the que already", job.run, "`que list` shows it")
    job.last = {key: told.get(key) for key in commands.TOLD}
    job.ended = told.get("updated")
    job.attempts = [{"stage": "train", "started": told.get("started"), "ended": job.ended, "cause": "done",
                     "reason": "filed by hand"}]
    return store.add(job, state="old_runs",
                     prepare=lambda job: keep_config(store, job, text))
