"""A job: one experiment to train and test, as its file holds it. The folder it lies in is its state."""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any

from que.errors import Mistake

VERSION = 1
STATES = ("to_run", "cur_run", "old_runs", "fail_runs", "held")
TRASH = "trash"  # removed jobs, until `clear trash`
STAGES = ("train", "test", "extract")  # in this order; the later ones are fields of the job, true where it has them
SHORT = {"new": "to_run", "tr": "to_run", "cur": "cur_run", "cr": "cur_run", "old": "old_runs", "or": "old_runs",
         "fail": "fail_runs", "fr": "fail_runs", "hold": "held"}


@dataclass
class Job:
    """`state` is the folder's name and stands in no file. Times are seconds since 1970, memory is in bytes."""

    model: str
    split: str
    exp_no: str
    id: str = ""                        # j1, j2, …: never used twice
    options: list[str] = field(default_factory=list)    # training.py's own, as they were given
    env: dict[str, str] = field(default_factory=dict)   # $SLR_DATA and others, as they were at `create`
    run: str = ""                       # the run folder, absolute
    facts: dict[str, Any] = field(default_factory=dict)     # batch_size, num_frames, … of the resolved .ini
    snapshot: str = ""                  # the code as it was; "" = live
    test: bool = True                   # testing.py full afterwards
    extract: bool = False               # extract_features.py at last
    extract_batch: int = 0              # its --batch_size, where memory was too small for training's
    order: float = 0.0
    priority: int = 0
    gpus: int | None = None             # None: one where there is one, else a CPU slot; 0: a CPU slot
    memory: int | None = None           # of each GPU, shared with others; None: the GPU is the job's alone
    time_limit: float | None = None     # seconds of one attempt
    after: list[str] = field(default_factory=list)      # ids that have to be done first
    init_from: str = ""                 # "parent": the best checkpoint of the last of `after`; "parents": of all
    note: str = ""
    user: str = ""
    created: float = 0.0
    ended: float | None = None
    stage: str = "train"                # one of STAGES
    recover: bool = False               # the next training goes on with -r
    changes: dict[str, str] = field(default_factory=dict)   # what the que set: {"training.batch_size": "4"}
    not_before: float = 0.0
    tries: dict[str, int] = field(default_factory=dict)     # ends by class: {"crash": 1}
    attempts: list[dict[str, Any]] = field(default_factory=list)
    claim: dict[str, Any] = field(default_factory=dict)     # of whoever runs it: host, boot, pid, start, devices
    request: str = ""                   # to its worker: pause, cancel or requeue
    peak: int = 0                       # measured memory of its fullest GPU
    reason: str = ""                    # of its state, in a sentence
    last: dict[str, Any] = field(default_factory=dict)  # of status.json when it ended: epoch, epochs, best, wandb_url
    moving: str = ""                    # the folder that it is on its way to, should a kill come between
    slurm: dict[str, Any] = field(default_factory=dict)     # job, script, options: run by Slurm, not by our daemon
    state: str = field(default="", compare=False)

    @property
    def words(self) -> list[str]:
        return [self.model, self.split, self.exp_no]

    @property
    def title(self) -> str:
        return " ".join(self.words)

    @property
    def number(self) -> int:
        return int(self.id[1:])

    @property
    def next_stage(self) -> str:
        """What is to be done when the present stage is; "" where nothing is."""
        return next((stage for stage in STAGES[STAGES.index(self.stage) + 1:] if getattr(self, stage)), "")

    @property
    def done(self) -> str:
        """All that it does, as done: `trained`, `trained and tested`, `trained, tested and extracted`."""
        words = [f"{stage}ed" for stage in STAGES if stage == "train" or getattr(self, stage)]
        return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))

    @property
    def givers(self) -> list[str]:
        """The ids of those whose best checkpoints it starts from."""
        return {"parent": self.after[-1:], "parents": [*dict.fromkeys(self.after)]}.get(self.init_from, [])

    def to_json(self) -> str:
        content = {k: v for k, v in vars(self).items() if k != "state"}
        return json.dumps({"version": VERSION, **content}, ensure_ascii=False) + "\n"


_FIELDS = {f.name: f for f in dataclasses.fields(Job) if f.name != "state"}
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "None": (type(None),), "list": (list,),
    "dict": (dict,)}


def _allowed(annotation: Any) -> tuple[type, ...]:
    parts = re.sub(r"\[.*\]", "", getattr(annotation, "__name__", "") if annotation in (str, int, float, bool)
                   else str(annotation)).split(" | ")
    return tuple(kind for part in parts for kind in _KINDS[part])


_TYPES = {name: _allowed(f.type) for name, f in _FIELDS.items()}


_INSIDE = {"options": str, "env": str, "after": str, "changes": str, "tries": int, "attempts": dict}
_sound: set[tuple] = set()  # names and types that were found to be a job's: most files are alike


def from_json(text: str | bytes) -> Job:
    """The job of a file's text; ValueError where it is none."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("version", None) != VERSION:
        raise ValueError(f"no job of version {VERSION}")
    shape = (*content, *map(type, content.values()))
    if shape not in _sound:
        for name, value in content.items():
            if name not in _TYPES:
                raise ValueError(f"unknown key {name!r}")
            if type(value) not in _TYPES[name]:
                raise ValueError(f"{name} is {value!r}")
        if lacking := {"model", "split", "exp_no", "id"} - content.keys():
            raise ValueError(f"{', '.join(sorted(lacking))} missing")
        _sound.add(shape)
    if len(content) == len(_FIELDS):  # as we write them: what __init__ does, in a fifth of its time
        vars(job := Job.__new__(Job)).update(content, state="")
    else:
        job = Job(**content)
    for name, kind in _INSIDE.items():
        inside = content.get(name)
        if inside and {*map(type, inside.values() if type(inside) is dict else inside)} != {kind}:
            raise ValueError(f"{name} is {inside!r}")
    if not re.fullmatch(r"j[1-9]\d{0,14}", job.id) or not abs(job.order) < 1 << 50:
        raise ValueError(f"id is {job.id!r} and order {job.order}")
    if job.stage not in STAGES:
        raise ValueError(f"stage is {job.stage!r}")
    return job


def state_named(word: str) -> str:
    """to_run for to_run, new and tr, and so on; Mistake for another word."""
    state = SHORT.get(word.lower(), word.lower())
    if state not in (*STATES, TRASH):
        raise Mistake("no such location", repr(word),
                      f"give one of {', '.join((*STATES, TRASH))}, or new, cur, old, fail")
    return state


_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_memory(text: str) -> int:
    """Bytes of `8G`, `512M`, `7.5GiB`."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not found or float(found[1]) * _SIZES[found[2]] < 1:
        raise Mistake("this is no amount of memory", repr(text), "give it as 8G or 512M")
    return int(float(found[1]) * _SIZES[found[2]])


def parse_time(text: str) -> float:
    """Seconds of `90`, `90s`, `30m`, `12h`, `1d12h`, `12:00:00`."""
    text = text.strip().lower()
    clock = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9}):(\d\d)(?::(\d\d))?", text)
    if clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        total: float = days * 86400 + hours * 3600 + minutes * 60 + seconds
    elif re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        total = float(text)
    elif re.fullmatch(r"(\d{1,9}(\.\d+)?[smhd]){1,4}", text):
        total = sum(float(n) * _SECONDS[unit] for n, unit in re.findall(r"([\d.]+)([smhd])", text))
    else:
        total = 0
    if total <= 0:
        raise Mistake("this is no length of time", repr(text), "give it as 90s, 30m, 12h, 1d12h or 12:00:00")
    return total


def memory_text(size: float) -> str:
    if size < 1 << 30:
        return f"{size / (1 << 20):.0f} MiB"
    return f"{size / (1 << 30):.1f} GiB"


def time_text(seconds: float) -> str:
    """3 s, 12 min, 1 h 05, 2 d 3 h."""
    minutes, s = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d}"
    return f"{minutes} min" if minutes else f"{s} s"
