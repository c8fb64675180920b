"""`que doctor`: whether everything that the que stands on is as it should be."""

import importlib.util
import os
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from que import commands, daemon, disk, gpus, procs, settings, snapshot
from que.errors import Mistake
from que.job import memory_text, time_text
from que.store import FOLDERS, Store
from que.verbs import Answer

Finding = tuple[str, str, str]  # (ok, note or bad; what was looked at; what was found and what to do)


def examine(store: Store) -> Answer:
    """All findings; Mistake (and so exit code 2) where one of them is bad."""
    found = [finding for look in (_folders, _lock, _daemon, _jobs, _left_over, _room, _devices, _versions, _scripts)
             for finding in look(store)]
    text = "\n".join(f"{state:5} {what}: {said}" for state, what, said in found)
    bad = [what for state, what, _ in found if state == "bad"]
    data = [{"state": state, "what": what, "found": said} for state, what, said in found]
    if bad:
        print(text)
        raise Mistake(f"{len(bad)} of {len(found)} checks failed", ", ".join(bad), "see the lines that begin with bad")
    return Answer(text, data=data)


def _folders(store: Store) -> list[Finding]:
    """Written to for real: permissions, full disks and quotas show in no other way."""
    try:
        disk.write(store.folder / "tmp" / "doctor", "well\n", store.folder / "tmp" / "doctor.part")
        disk.remove(store.folder / "tmp" / "doctor")
    except (Mistake, OSError) as error:
        return [("bad", "folders", str(error).replace("\n  ", "; "))]
    return [("ok", "folders", f"{store.folder}, {len(FOLDERS)} folders, can be written")]


def _lock(store: Store) -> list[Finding]:
    for _ in range(100):
        if not disk.locked(store.folder / "lock"):
            return [("ok", "lock", "free")]
        time.sleep(0.01)
    holders = _who_locks(store.folder / "lock")
    return [("bad", "lock", f"kept by {', '.join(holders) or 'somebody on another machine'}: end that process")]


def _who_locks(path: Path) -> list[str]:
    """The processes that /proc/locks names for a file."""
    number = f":{path.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines() if Path("/proc/locks").exists() else []
    return [f"pid {line.split()[4]}" for line in lines if number in line and "->" not in line]


def _daemon(store: Store) -> list[Finding]:
    who = daemon.holder(store)
    if not who:
        note = daemon.last_note(store)
        return [("note", "daemon", f"none runs{f' ({note})' if note else ''}: `que daemon start`")]
    if not procs.alive(who):
        return [("bad", "daemon", f"the lock is held, but not by pid {who.get('pid')}, which daemon.json names")]
    return [("ok", "daemon", f"pid {who['pid']}, for {time_text(time.time() - who['since'])}")]


def _jobs(store: Store) -> list[Finding]:
    jobs = store.jobs()
    found: list[Finding] = [("ok", "jobs", f"{len(jobs)} can be read")]
    found += [("bad", "jobs", text) for text in store.warnings]
    found += [("note", "quarantine", f"{path}: {_why(path)}") for path in store.quarantined()]
    left = [job.id for job in jobs if job.state == "cur_run" and not job.slurm and daemon.abandoned(store, job)]
    found += [("note", "jobs", f"{', '.join(left)}: the worker is gone; a daemon takes them up")] if left else []
    gone = [job.id for job in jobs if job.snapshot and not commands.home(job, store.folder).is_dir()
            and job.state in ("to_run", "held", "fail_runs")]
    if gone:
        found.append(("bad", "snapshots", f"gone of {', '.join(gone)}: `que recover ID --live` runs the code as it is"))
    return found


def _why(path: Path) -> str:
    note = path.with_name(path.name + ".why")
    return note.read_text().strip() if note.exists() else "no reason on record"


def _left_over(store: Store) -> list[Finding]:
    """Of killed processes: removed here, since nobody else looks for it."""
    removed = snapshot.tidy(store.folder)
    used = {job.snapshot for job in store.jobs() if job.snapshot} | {job.snapshot for job in store.jobs("trash")}
    unused = snapshot.unused(store.folder, used)
    for folder in unused:
        snapshot.remove(folder)
    said = f"{len(removed)} unfinished and {len(unused)} unused snapshots removed"
    return [("ok", "left over", said if removed or unused else "nothing")]


def _room(store: Store) -> list[Finding]:
    lack, usage = daemon.disk_lack(settings.load(store.folder)), shutil.disk_usage(store.folder)
    files = os.statvfs(store.folder)
    if lack:
        return [("bad", "disk", f"{lack}: nothing new starts")]
    if files.f_files and files.f_favail < 1000:
        return [("bad", "disk", f"room for {files.f_favail} more files only")]
    return [("ok", "disk", f"{memory_text(usage.free)} of {memory_text(usage.total)} free")]


def _devices(store: Store) -> list[Finding]:
    devices = gpus.read_gpus()
    found: list[Finding] = [("bad", "GPU", text) for text in gpus.lost()]
    found += [("ok", f"GPU {gpu.index}", f"{gpu.name}, {memory_text(gpu.free)} of {memory_text(gpu.total)} free")
              for gpu in devices]
    slots = settings.load(store.folder)["slots"]
    return found or [("note", "GPU", f"none: {slots} CPU slot{'s' if slots > 1 else ''} on {settings.cores()} cores")]


def _versions(store: Store) -> list[Finding]:
    found: list[Finding] = [("ok", "python", f"{sys.version.split()[0]}, {sys.executable}")]
    for name in ("torch", "nvidia-ml-py", "rich"):
        try:
            found.append(("ok", name, version(name)))
        except PackageNotFoundError:
            found.append(("bad", name, f"not installed for this python: {sys.executable} -m pip install {name}"))
    return found


def _scripts(store: Store) -> list[Finding]:
    missing = [name for name in ("training.py", "testing.py", "extract_features.py")
               if not (commands.ROOT / "code" / name).is_file()]
    if missing or importlib.util.find_spec("torch") is None:
        return [("bad", "scripts", f"{', '.join(missing) or 'torch'} is missing")]
    return [("ok", "scripts", f"{commands.ROOT / 'code'}")]
