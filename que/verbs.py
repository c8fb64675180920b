"""What a person can do with jobs. Each verb takes the store and its words, and answers with text and plain values."""

import json
import os
import re
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from que import commands, create, daemon, disk, settings, slurm, view, worker
from que.errors import Mistake
from que.job import STATES, TRASH, Job, from_json, memory_text, parse_memory, parse_time, state_named, time_text
from que.store import Store


@dataclass
class Answer:
    """`text` for people; `data` for programs, with --json: by default the jobs it is about."""

    text: str
    jobs: list[Job] = field(default_factory=list)
    data: Any = None

    def plain(self) -> Any:
        return self.data if self.data is not None else [
            {**json.loads(job.to_json()), "state": job.state} for job in self.jobs]


def pick(store: Store, words: list[str]) -> list[Job]:
    """The jobs that `LOC IDX` or ids mean: `to_run 2`, `new 0-3`, `old all`, `j12`, `j3 j5`."""
    ids = [word for part in words for word in part.split(",") if word]
    if ids and all(re.fullmatch(r"j\d+", word) for word in ids):
        return [store.find(word) for word in ids]
    if len(words) == 2:
        return store.select(state_named(words[0]), words[1])
    raise Mistake("which job?", " ".join(words) or "nothing was given",
                  "give LOC IDX, such as `new 0`, or an id, such as j3")


def one(store: Store, words: list[str]) -> Job:
    jobs = pick(store, words)
    if len(jobs) != 1:
        raise Mistake("one job is wanted", f"{len(jobs)} are meant", "give one place or one id")
    return jobs[0]


def named(jobs: list[Job]) -> str:
    if len(jobs) > 4:
        return f"{len(jobs)} jobs, {jobs[0].id} to {jobs[-1].id}"
    return ", ".join(f"{job.id} {job.title}" for job in jobs) or "nothing"


# --- filing and moving


def do_create(store: Store, args: Namespace, options: list[str]) -> Answer:
    jobs = create.create(store, args, options)
    if args.to == "slurm" and not args.dry_run:
        jobs = [slurm.submit(store, job) for job in jobs]
    lines = [_created(store, job, args.dry_run) for job in jobs]
    if not args.dry_run and not args.to and not args.hold and not daemon.holder(store):
        lines.append("no daemon runs: `que daemon start` starts what waits")
    return Answer("\n".join(lines), jobs)


def _created(store: Store, job: Job, dry: bool) -> str:
    learned = create.gpus.learned(store.folder, job)
    peak = f"; such a run took {memory_text(learned)} of a GPU" if learned else ""
    where = f"Slurm job {job.slurm['job']}" if job.slurm.get("job") else job.state or "to_run"
    if dry:
        return f"would file {job.title} {' '.join(job.options)} -> {job.run}{peak}"
    return f"{job.id} {job.title} in {where} -> {job.run}{peak}"


def do_add(store: Store, args: Namespace) -> Answer:
    jobs = create.add(store, args)
    return Answer(f"filed in old_runs: {named(jobs)}", jobs)


def do_remove(store: Store, args: Namespace) -> Answer:
    jobs = [_take_out(store, job, TRASH) for job in pick(store, args.where)]
    return Answer(f"removed: {named(jobs)}\n  `que move trash to_run ID` brings one back", jobs)


def do_clear(store: Store, args: Namespace) -> Answer:
    state = state_named(args.location)
    jobs = store.jobs(state)
    if jobs and not args.yes:
        _confirm(f"{'Remove for good' if state == TRASH else 'Remove'} all {len(jobs)} jobs of {state}?")
    for job in jobs:
        store.purge(job) if state == TRASH else _take_out(store, job, TRASH)
    back = "" if state == TRASH or not jobs else "\n  `que move trash to_run all` brings them back"
    return Answer(f"cleared {state}: {named(jobs)}{back}", jobs)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise Mistake("nobody is there to confirm", question, "give --yes")
    if input(f"{question} y/n: ").strip().lower() not in ("y", "yes"):
        raise Mistake("cancelled", "nothing was changed")


def _take_out(store: Store, job: Job, to: str) -> Job:
    """Move a job that nobody runs."""
    _not_slurms(job)
    if job.state == "cur_run" and (to not in ("to_run", "held") or not daemon.abandoned(store, job)):
        raise Mistake(f"{job.id} is in cur_run", job.title, f"`que cancel {job.id}` or `que pause {job.id}` first")
    left = job.state == "cur_run"
    return store.update(job.id, lambda j: vars(j).update(claim={}, request="", recover=j.recover or left), to,
                        (job.state,))


def _not_slurms(job: Job) -> None:
    if job.slurm.get("job") and job.state in ("to_run", "cur_run"):
        raise Mistake(f"{job.id} is in Slurm's hands", f"Slurm job {job.slurm['job']}",
                      f"`que cancel {job.id}`, and later `que recover {job.id}`")


def do_move(store: Store, args: Namespace) -> Answer:
    source, to = state_named(args.source), state_named(args.to)
    if to == "cur_run":
        raise Mistake("only the daemon moves jobs to cur_run", f"{source} -> cur_run", "`que daemon start`")
    index = f"{args.index}-{args.of_index}" if args.of_index is not None else args.index
    jobs = [_take_out(store, job, to) for job in store.select(source, index)]
    return Answer(f"moved to {to}: {named(jobs)}", jobs)


def do_shuffle(store: Store, args: Namespace) -> Answer:
    state = state_named(args.location)
    job = store.place(state, args.old, args.new)
    return Answer(f"{job.id} {job.title} is at place {args.new} of {state} now", [job])


def do_recover(store: Store, args: Namespace) -> Answer:
    """Failed jobs (or interrupted ones, without a daemon) run again, from their last checkpoint."""
    where = args.where or [args.o_location, str(args.index)]
    words = where if len(where) > 1 or where[0][:1] == "j" else [*where, "0"]
    if (to := state_named(args.n_location)) not in ("to_run", "held"):
        raise Mistake("nothing is recovered to there", to, "give -nl to_run or held")

    def renew(job: Job) -> None:
        job.recover = not args.clean_slate and job.stage == "train"
        job.stage = "train" if args.clean_slate else job.stage
        job.tries, job.not_before, job.ended, job.request, job.claim = {}, 0.0, None, "", {}
        job.snapshot = "" if args.live else job.snapshot

    jobs = []
    for job in pick(store, words):
        if job.state == "cur_run" and not daemon.abandoned(store, job):
            raise Mistake(f"{job.id} runs", job.title, "only what has ended can be recovered")
        if job.slurm:
            jobs.append(slurm.submit(store, store.update(job.id, renew, "held", (job.state,))))
        else:
            jobs.append(store.update(job.id, renew, to, (job.state,)))
    return Answer(f"recovered: {named(jobs)}", jobs)


# --- looking


def do_list(store: Store, args: Namespace) -> Answer:
    warned = slurm.sync(store)
    state = view.state_of(store, (state_named(args.location),) if args.location else STATES)
    state["warnings"] += warned
    if args.sort:
        state["jobs"].sort(key=lambda job: _sort_key(job, args.sort))
    if args.reverse:
        state["jobs"].reverse()
    limit = args.limit if args.limit is not None else 50 if sys.stdout.isatty() else None
    return Answer("" if args.json else view.listing(state, limit), data=state)


def _sort_key(job: dict[str, Any], names: list[str]) -> tuple:
    """`best value` goes into the dict under best; what is missing comes last."""
    value: Any = job
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    number = isinstance(value, int | float)
    return (value is None, not number, value if number else str(value))


def do_display(store: Store, args: Namespace) -> Answer:
    content: Any = view.sheet(store, one(store, args.where))
    for name in args.key_set or []:
        if not isinstance(content, dict) or name not in content:
            keys = ", ".join(content) if isinstance(content, dict) else "none below this one"
            raise Mistake("there is no such key", name, f"there are {keys}")
        content = content[name]
    return Answer(json.dumps(content, indent=2, ensure_ascii=False), data=content)


def do_logs(store: Store, args: Namespace) -> Answer:
    """The log of a job (else of the one that runs, or ran last), or with -s the daemon's."""
    job = None if args.server else one(store, args.where) if args.where else _current(store)
    path = store.log(job.id if job else "daemon")
    if not path.exists():
        raise Mistake("there is no log yet", str(path), "it begins with the first start")
    lines = worker.tail(path, 200_000 if args.lines <= 1000 else os.path.getsize(path)).rstrip("\n").split("\n")
    lines = lines[-args.lines or len(lines):]
    if args.follow and not args.json:
        print("\n".join(lines), flush=True)
        follow(store, path, job)
        return Answer("")
    return Answer("\n".join(lines), data={"log": str(path), "lines": lines})


def _current(store: Store) -> Job:
    running = store.jobs("cur_run")
    ended = [job for job in store.jobs("old_runs", "fail_runs", "held", "to_run") if job.attempts]
    if not running and not ended:
        raise Mistake("no job has run yet", "there is no log", "`que daemon start` starts what waits")
    return running[0] if running else max(ended, key=lambda job: job.attempts[-1].get("ended") or 0)


def follow(store: Store, path: Path, job: Job | None) -> None:
    """Print what comes, until the job has ended (a daemon's log: until Ctrl-C)."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        try:
            while True:
                ended = job is not None and store.find(job.id).state != "cur_run"
                sys.stdout.write(file.read().decode(errors="replace"))
                sys.stdout.flush()
                if ended:
                    return
                time.sleep(0.2)
        except KeyboardInterrupt:
            print()


def do_attach(store: Store, args: Namespace) -> Answer:
    running = store.jobs("cur_run")
    if not running and not args.where:
        raise Mistake("no job runs", "cur_run is empty", "`que logs` shows the last one's log")
    return do_logs(store, Namespace(where=args.where or [running[0].id], server=False, lines=20, follow=True,
                                    json=args.json))


def do_wandb(store: Store, args: Namespace) -> Answer:
    import webbrowser

    job = one(store, args.where) if args.where else _current(store)
    url = commands.status(job).get("wandb_url") or job.last.get("wandb_url")
    if not url:
        raise Mistake("this run has no wandb page", f"{job.id} {job.title}", "it ran without wandb, or has not begun")
    opened = False if args.json else webbrowser.open(url)
    return Answer(url if opened else f"{url}  (no browser could be opened)", [job], {"url": url})


# --- changing


def _count(text: str) -> int | None:
    if text.lower() != "none" and int(text) < 0:
        raise ValueError
    return None if text.lower() == "none" else int(text)


def _truth(text: str) -> bool:
    return {"false": False, "true": True}[text.lower()]


EDITABLE: dict[str, Any] = {  # how a value is read, and what it is
    "priority": (int, "a whole number"), "gpus": (_count, "a number of GPUs, or none"),
    "memory": (lambda text: None if text.lower() == "none" else parse_memory(text), "8G, or none"),
    "time_limit": (lambda text: None if text.lower() == "none" else parse_time(text), "12h, or none"),
    "note": (str, "any text"), "test": (_truth, "true or false"), "extract": (_truth, "true or false"),
    "init_from": (lambda text: {"none": "", "parent": "parent", "parents": "parents"}[text.lower()],
                  "parent, parents or none")}


def do_edit(store: Store, args: Namespace) -> Answer:
    """A field of the job, or with a dot in its name a setting of its .ini, which training.py checks."""
    job = one(store, args.where)
    if job.state == "cur_run":
        raise Mistake(f"{job.id} runs", job.title, "`que pause` it first")
    if "." in args.key:
        return _edit_setting(store, job, args.key, args.value)
    if args.key not in ("after", *EDITABLE):
        raise Mistake("this cannot be edited", args.key,
                      f"there are after, {', '.join(EDITABLE)}, and section.key")
    try:
        value = _parents(store, job, args.value) if args.key == "after" else EDITABLE[args.key][0](args.value)
    except (ValueError, KeyError):
        raise Mistake(f"{args.key} cannot be that", repr(args.value), f"give {EDITABLE[args.key][1]}") from None
    change: dict[str, Any] = {args.key: value}
    wanted = replace(job, **change)
    if wanted.init_from and not wanted.after:
        raise Mistake(f"init_from {wanted.init_from} needs a parent", f"{job.id} is after none",
                      "edit after, or init_from to none")
    create.check_extraction(wanted)
    job = store.update(job.id, lambda j: vars(j).update(change), only=(job.state,))
    return Answer(f"{job.id} {job.title}: {args.key} = {value}", [job])


def _parents(store: Store, job: Job, text: str) -> list[str]:
    """What `after` is to be: a circle would wait for ever."""
    parents = create.parents(store, "" if text.lower() == "none" else text)
    known, above = {j.id: j.after for j in store.jobs(*STATES, TRASH)}, set(parents)
    while more := {parent for name in above for parent in known.get(name, [])} - above:
        above |= more
    if job.id in above:
        raise Mistake("a job cannot wait for itself", f"{job.id} after {text}", "name jobs that do not wait for it")
    return parents


def _edit_setting(store: Store, job: Job, key: str, value: str) -> Answer:
    words = [*job.options]
    for place, word in reversed(list(enumerate(words))):
        if word == "--set" and words[place + 1].startswith(f"{key}="):
            del words[place:place + 2]
    draft, file = from_json(job.to_json()), commands.config_file(job, store.folder)
    draft.options = [*(["-c", str(file)] if job.snapshot and file.exists() else []), *words, "--set", f"{key}={value}"]
    text = create.resolve(store, draft)
    draft.options = create.own_config(draft, live=not job.snapshot)
    changes = {name: old for name, old in job.changes.items() if name != key}
    create.keep_config(store, job, text)
    job = store.update(job.id, lambda j: vars(j).update(options=draft.options, facts=draft.facts, changes=changes),
                       only=(job.state,))
    return Answer(f"{job.id} {job.title}: {key} = {value}", [job])


def do_priority(store: Store, args: Namespace) -> Answer:
    jobs = [store.update(job.id, lambda j: vars(j).update(priority=args.priority))
            for job in pick(store, args.where)]
    return Answer(f"priority {args.priority}: {named(jobs)}", jobs)


def do_hold(store: Store, args: Namespace) -> Answer:
    chosen = pick(store, args.where)
    for job in chosen:
        _not_slurms(job)
    jobs = [store.update(job.id, lambda j: vars(j).update(reason="held"), "held", ("to_run",)) for job in chosen]
    return Answer(f"held: {named(jobs)}", jobs)


def do_release(store: Store, args: Namespace) -> Answer:
    """Also `resume`: what was paused goes on from its checkpoint."""
    jobs = [slurm.submit(store, job) if job.slurm and job.state == "held" else
            store.update(job.id, lambda j: vars(j).update(reason=""), "to_run", ("held",))
            for job in pick(store, args.where)]
    return Answer(f"back in to_run: {named(jobs)}", jobs)


def do_pause(store: Store, args: Namespace) -> Answer:
    return _stop(store, args, "pause", "held", "paused")


def do_cancel(store: Store, args: Namespace) -> Answer:
    return _stop(store, args, "cancel", "fail_runs", "cancelled")


def _stop(store: Store, args: Namespace, what: str, to: str, reason: str) -> Answer:
    """A running job saves and leaves (its worker sees to that); one that waits is moved at once."""
    asked, moved, ended = [], [], time.time() if what == "cancel" else None
    for job in pick(store, args.where):
        if what == "pause":
            _not_slurms(job)
        if job.slurm.get("job") and job.state in ("to_run", "cur_run"):
            slurm.cancel(job)  # `sync` files it when Slurm has ended it
            asked.append(job)
        elif job.state == "cur_run":
            daemon.request(store, job, what)
            asked.append(job)
        else:
            moved.append(store.update(job.id, lambda j: vars(j).update(reason=reason, ended=ended), to,
                                      ("to_run", "held", "cur_run")))
    for job in asked if args.wait else []:
        while (found := store.find(job.id)).state == job.state:
            if not job.slurm and daemon.abandoned(store, found) and not daemon.holder(store):
                raise Mistake(f"nobody runs {job.id} any more", "no daemon either", "`que daemon start` takes it up")
            slurm.sync(store)
            time.sleep(0.1)
    lines = [f"{reason}: {named(moved)}"] if moved else []
    lines += [f"asked to save and leave, then it lies in {to}: {named(asked)}"] if asked else []
    return Answer("\n".join(lines), [store.find(job.id) for job in (*moved, *asked)])


# --- the whole


def do_save(store: Store, args: Namespace) -> Answer:
    """Every job with its state and config, and the settings, in one file."""
    jobs = store.jobs(*STATES, TRASH)
    file = Path(args.file or f"que-{time.strftime('%Y%m%d-%H%M%S')}.json")
    if file.exists() and not args.yes:
        raise Mistake("the file is there already", str(file), "give another name, or --yes to write over it")
    entries = [{"state": job.state, "job": json.loads(job.to_json()),
                "config": _text(commands.config_file(job, store.folder))} for job in jobs]
    content = {"version": 1, "saved": time.time(), "settings": commands.read_json(store.folder / "settings.json"),
               "jobs": entries}
    disk.write(file, json.dumps(content, indent=1), file.with_name(f".{file.name}.part"))
    return Answer(f"{len(jobs)} jobs in {file}", data={"file": str(file), "jobs": len(jobs)})


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def do_load(store: Store, args: Namespace) -> Answer:
    """Add the jobs of a saved file that are not here, under new ids; what ran then waits to be resumed."""
    if not Path(args.file).is_file():
        raise Mistake("there is no such file", args.file, "give one that `que save` wrote")
    content = commands.read_json(Path(args.file))
    if content.get("version") != 1 or not isinstance(content.get("jobs"), list):
        raise Mistake("this was not written by `que save`", args.file, "give such a file")
    try:
        entries = [(state_named(entry["state"]), from_json(json.dumps(entry["job"])), entry["config"] + "")
                   for entry in content["jobs"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake("this file is damaged", f"{args.file}: {error}", "nothing was loaded") from None
    known = {(job.run, job.created): job.id for job in store.jobs(*STATES, TRASH)}
    ids = {job.id: known[job.run, job.created] for _, job, _ in entries if (job.run, job.created) in known}
    pending, added = {job.id: (state, job, text) for state, job, text in entries if job.id not in ids}, list[Job]()

    def file(old: str) -> None:
        """In the order of the lists, but parents first, since children name them by their new ids."""
        state, job, text = pending.pop(old)
        for parent in job.after:
            if parent in pending:
                file(parent)
        job.after, job.claim, job.request, job.slurm = [ids.get(i, i) for i in job.after], {}, "", {}
        job.recover = job.recover or (state == "cur_run" and job.stage == "train")
        if job.snapshot and not commands.home(job, store.folder).is_dir():
            job.snapshot, job.note = "", f"{job.note} (with the code as it is: its own was not saved)".strip()
        added.extend(store.add(job, state="to_run" if state == "cur_run" else state,
                               prepare=lambda j: create.keep_config(store, j, text)))
        ids[old] = job.id

    while pending:
        file(next(iter(pending)))
    return Answer(f"{len(added)} jobs loaded, {len(entries) - len(added)} were here", added)


def do_settings(store: Store, args: Namespace) -> Answer:
    if args.value is not None:
        value = settings.parse(args.key, args.value)
        store.write_json("settings.json", {**commands.read_json(store.folder / "settings.json"), args.key: value})
    elif args.key:
        settings.parse(args.key, str(settings.KEYS[args.key][0]) if args.key in settings.KEYS else "")
    now = settings.load(store.folder)
    names = [args.key] if args.key else list(now)
    rows = [{"setting": name, "value": settings.shown(name, now[name]), "meaning": settings.KEYS[name][2]}
            for name in names]
    return Answer(view.table("settings", ("setting", "value", "meaning"), rows),
                  data={name: now[name] for name in names})


# --- the daemon


def do_daemon(store: Store, args: Namespace) -> Answer:
    if args.action == "start":
        who = daemon.start(store, args.stop_on_fail)
        return Answer(f"the daemon runs: pid {who['pid']}, its log is {store.log('daemon')}", data=who)
    if args.action == "stop":
        text = daemon.stop(store, args.hard, args.timeout)
        return Answer(text, data={"text": text})
    state = view.state_of(store, ("to_run", "cur_run"))
    lines = [*view.footer({**state, "jobs": [True]})]
    lines += [f"GPU {gpu['index']} {gpu['name']}: {memory_text(gpu['free'])} of {memory_text(gpu['total'])} free"
              + (f", {', '.join(gpu['jobs'])}" if gpu["jobs"] else "") for gpu in state["gpus"]]
    lines += [f"CPU slots: {state['slots']['used']} of {state['slots']['total']} in use"]
    running = [job for job in state["jobs"] if job["state"] == "cur_run"]
    lines += [f"{job['id']} {job['title']} runs" + (f", {time_text(job['eta_s'])} left" if job["eta_s"] else "")
              for job in running]
    return Answer("\n".join([*lines, f"{len(state['jobs']) - len(running)} waiting"]),
                  data={key: state[key] for key in ("daemon", "gpus", "slots", "warnings", "disk")})
