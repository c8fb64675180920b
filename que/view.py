"""What a person sees: the state of everything as plain values, and tables of it."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from que import commands, daemon, gpus, procs, settings
from que.job import STATES, Job, time_text
from que.store import Store

COLUMNS = {"to_run": ("idx", "id", "experiment", "prio", "reason"),
           "cur_run": ("idx", "id", "experiment", "on", "progress", "eta", "best", "reason"),
           "old_runs": ("idx", "id", "experiment", "best", "took", "ended"),
           "fail_runs": ("idx", "id", "experiment", "progress", "ended", "reason"),
           "held": ("idx", "id", "experiment", "progress", "reason"), "trash": ("idx", "id", "experiment", "reason")}


def state_of(store: Store, states: tuple[str, ...] = STATES) -> dict[str, Any]:
    """Everything that `que list --json` and the page show."""
    keys, devices, now = settings.load(store.folder), gpus.read_gpus(), time.time()
    jobs = store.jobs(*states)
    running = [job for job in jobs if job.state == "cur_run"] if "cur_run" in states else store.jobs("cur_run")
    who = daemon.holder(store)
    rows, places = [], dict.fromkeys(states, 0)
    reasons = why(store, [job for job in jobs if job.state == "to_run"], running, devices, keys)
    for job in jobs:
        rows.append(row(store, job, places[job.state], reasons.get(job.id, job.reason), devices))
        places[job.state] += 1
    quarantined = store.quarantined()
    warnings = [*store.warnings, *([f"{len(quarantined)} in quarantine: {', '.join(p.name for p in quarantined[:5])}"]
                                   if quarantined else [])]
    disk = shutil.disk_usage(store.folder)
    return {"now": now, "warnings": warnings, "disk": {"free": disk.free, "total": disk.total},
            "daemon": {"state": "running" if who else "stopped", "pid": who.get("pid"), "since": who.get("since"),
                       "note": "" if who else daemon.last_note(store)},
            "gpus": [{"index": gpu.index, "name": gpu.name, "uuid": gpu.uuid, "total": gpu.total, "free": gpu.free,
                      "utilization": gpu.utilization,
                      "ours": sum(size for pid, size in gpu.used_by.items()
                                  if procs.job_of(pid).startswith(f"{store.folder}#")),
                      "jobs": [job.id for job in running if gpu.uuid in job.claim.get("devices", [])]}
                     for gpu in devices],
            "slots": {"total": keys["slots"], "used": sum(device.startswith("cpu") for job in running
                                                          for device in job.claim.get("devices", []))},
            "jobs": rows}


def why(store: Store, waiting: list[Job], running: list[Job], devices: list[gpus.Gpu],
        keys: dict[str, Any]) -> dict[str, str]:
    """The pending reasons, as the daemon would find them now."""
    if not waiting:
        return {}
    decision = daemon.decide(store, waiting, running, devices, keys)
    lack = daemon.disk_lack(keys)
    return {**decision.reasons, **{start.job.id: lack or "starts next" for start in decision.starts}}


def row(store: Store, job: Job, index: int, reason: str, devices: list[gpus.Gpu]) -> dict[str, Any]:
    attempt = job.attempts[-1] if job.attempts else {}
    begun = job.state in ("cur_run", "held", "to_run") and bool(attempt or job.recover)
    told = commands.status(job) if begun else job.last
    epoch, epochs = told.get("epoch"), told.get("epochs")
    step, steps = told.get("step") or 0, told.get("steps") or 0
    numbers = {gpu.uuid: str(gpu.index) for gpu in devices}
    if job.state == "cur_run" and daemon.abandoned(store, job) and not job.slurm:
        reason = "its worker is gone; the daemon takes it up"
    return {
        "id": job.id, "state": job.state, "index": index, "title": job.title, "model": job.model, "split": job.split,
        "exp_no": job.exp_no, "priority": job.priority, "note": job.note, "gpus": job.gpus, "memory": job.memory,
        "after": job.after, "reason": f"{job.request} asked for" if job.request else reason, "stage": job.stage,
        "run": job.run, "epoch": epoch, "epochs": epochs, "step": step, "steps": steps,
        "progress": min(1.0, (epoch + step / (steps or 1)) / epochs) if epochs and epoch is not None else None,
        "eta_s": told.get("eta_s") if job.state == "cur_run" and job.stage == "train" else None,
        "best": told.get("best"), "devices": [numbers.get(name, name) for name in job.claim.get("devices", [])],
        "peak": job.peak or told.get("peak_memory") or 0, "created": job.created, "ended": job.ended,
        "started": attempt.get("started") if job.state == "cur_run" else
        (job.attempts[0]["started"] if job.attempts else None),
        "attempts": len(job.attempts), "wandb_url": told.get("wandb_url"), "changes": job.changes,
        "slurm": job.slurm.get("job"), "has_log": bool(attempt), "has_curves": bool(attempt)}


# --- tables


def cells(job: dict[str, Any]) -> dict[str, str]:
    """A row as words."""
    best, now = job["best"] or {}, time.time()
    done = "" if job["progress"] is None else f"{100 * job['progress']:3.0f} %  {job['epoch']}/{job['epochs']}"
    doing = f"{job['stage']}ing" if job["stage"] != "train" and job["state"] == "cur_run" else done
    started, ended = job["started"], job["ended"]
    return {"idx": str(job["index"]), "id": job["id"], "experiment": job["title"] + (f"  {job['note']}" if job["note"]
                                                                                       else ""),
            "prio": str(job["priority"] or ""), "on": " ".join(job["devices"]), "progress": doing,
            "eta": "" if job["eta_s"] is None else time_text(job["eta_s"]), "reason": job["reason"],
            "best": f"{best['metric']} {best['value']:.4g}" if best.get("value") is not None else "",
            "took": time_text(ended - started) if ended and started else "",
            "ended": f"{time_text(now - ended)} ago" if ended else ""}


def listing(state: dict[str, Any], limit: int | None = None) -> str:
    """The lists of all states that have jobs; the last ones of a long list are counted, not shown."""
    parts = []
    for name in COLUMNS:
        rows = [job for job in state["jobs"] if job["state"] == name]
        if not rows:
            continue
        shown = rows if limit is None else rows[:limit]
        if name in ("old_runs", "fail_runs") and limit is not None:
            shown = rows[max(0, len(rows) - limit):]  # the newest stand last
        more = f", {len(shown)} shown: --limit N shows more" if len(shown) < len(rows) else ""
        parts.append(table(f"{name} ({len(rows)}{more})", COLUMNS[name], [cells(job) for job in shown]))
    return "\n".join([*parts, *footer(state)])


def footer(state: dict[str, Any]) -> list[str]:
    who, lines = state["daemon"], [f"warning: {text}" for text in state["warnings"]]
    if not state["jobs"]:
        lines.append("no jobs; `que create MODEL SPLIT EXP_NO` files one")
    if who["state"] == "running":
        return [*lines, f"the daemon runs (pid {who['pid']}, for {time_text(state['now'] - who['since'])})"]
    note = f" ({who['note']})" if who["note"] else ""
    return [*lines, f"no daemon runs{note}: `que daemon start` starts what waits"]


def table(title: str, columns: tuple[str, ...], rows: list[dict[str, str]]) -> str:
    """With lines and colours on a terminal, plain columns where the output goes into a file or a pipe."""
    if sys.stdout.isatty():
        return _rich_table(title, columns, rows)
    used = [name for name in columns if any(row[name] for row in rows)] or list(columns)
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) if rows else len(name) for name in used}
    lines = [{name: name for name in used}, *rows]
    return "\n".join([title, *("  ".join(line[name].ljust(widths[name]) for name in used).rstrip() for line in lines)])


def _rich_table(title: str, columns: tuple[str, ...], rows: list[dict[str, str]]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    used = [name for name in columns if any(row[name] for row in rows)]
    grid = Table(title=title, box=box.ROUNDED, title_justify="left", header_style="bold")
    for name in used:
        grid.add_column(name, justify="right" if name in ("idx", "prio") else "left", no_wrap=name in ("idx", "id"),
                        overflow="fold", style={"id": "cyan", "reason": "yellow"}.get(name))
    for row in rows:
        grid.add_row(*(Text(row[name]) for name in used))
    console = Console()
    with console.capture() as captured:
        console.print(grid)
    return captured.get().rstrip("\n")


def sheet(store: Store, job: Job) -> dict[str, Any]:
    """All that is known of one job: its file, status.json, the end of its log."""
    import json

    content = json.loads(job.to_json())
    return {**content, "state": job.state, "status": commands.status(job), "log": str(store.log(job.id)),
            "alive": job.state == "cur_run" and procs.alive(job.claim),
            "config": str(commands.config_file(job, store.folder)),
            "snapshot_folder": str(commands.home(job, store.folder)), "run_exists": Path(job.run).is_dir()}
