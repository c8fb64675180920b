"""How the que behaves: settings.json of the state folder, changed by `que settings KEY VALUE`, obeyed at once."""

import os
from pathlib import Path
from typing import Any

from que.commands import read_json
from que.errors import Mistake
from que.job import memory_text, parse_memory, parse_time

# name: (default, how its text is read, meaning)
KEYS: dict[str, tuple[Any, Any, str]] = {
    "slots": (1, int, "jobs at once on the CPU, where there is no GPU or a job asks for none"),
    "settle": (3.0, parse_time, "seconds a GPU has to be free before a job gets it"),
    "grace": (120.0, parse_time, "seconds from SIGUSR1 (save and leave) to SIGTERM"),
    "headroom": (512 << 20, parse_memory, "memory of a shared GPU that nobody gets"),
    "disk": (1 << 30, parse_memory, "free space under the runs below which nothing new starts"),
    "crashes": (2, int, "times that a job which crashed is resumed"),
    "ooms": (4, int, "times that the batch is halved after running out of memory"),
    "interrupts": (20, int, "times that a job whose worker or machine died is resumed"),
    "timeouts": (20, int, "times that a job is resumed after its time limit"),
    "backoff": (10.0, parse_time, "seconds before a job that crashed is tried again; doubled every time"),
    "hook": ("", str, "command run when a job ends, with the job as JSON on its standard input"),
    "poll": (0.5, parse_time, "seconds between two looks of the daemon"),
}


def load(folder: Path) -> dict[str, Any]:
    """All settings; what the file does not have, or has wrongly, is the default."""
    saved = read_json(folder / "settings.json")
    return {name: saved[name] if isinstance(saved.get(name), type(default) if not isinstance(default, float)
                                            else (int, float)) else default
            for name, (default, _, _) in KEYS.items()}


def parse(name: str, text: str) -> Any:
    if name not in KEYS:
        raise Mistake("there is no such setting", name, f"there are {', '.join(KEYS)}")
    try:
        value = 0 if text.strip() == "0" and name not in ("poll", "hook") else KEYS[name][1](text)
    except ValueError:
        raise Mistake(f"{name} is no such value", repr(text), KEYS[name][2]) from None
    if not isinstance(value, str) and value < 0:
        raise Mistake(f"{name} is too small", text, KEYS[name][2])
    return value


def shown(name: str, value: Any) -> str:
    return memory_text(value) if KEYS[name][1] is parse_memory else str(value)


def cores() -> int:
    return len(os.sched_getaffinity(0))
