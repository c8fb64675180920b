"""que/disk.py and que/store.py: killed, refused and cut short at every step, under many hands, with damaged files."""

import contextlib
import errno
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from que import disk, job, store, view
from que.errors import Changed, Mistake, Storage
from que.job import STATES, TRASH, Job, from_json
from que.store import Store

ROOT = Path(disk.__file__).parents[1]
PLACES = (*STATES, TRASH)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # thousands of fsyncs would only wear out a disk
Act = Callable[[Store], Any]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name) / "state"


def new(exp_no: str = "1", **facts) -> Job:
    return Job("S3D", "asl100", exp_no, **{"run": f"/nowhere/S3D_{exp_no}", "note": "é " * 200, **facts})


def fill(folder: Path) -> Store:
    """j1 to j3 in to_run, j4 to j6 in cur_run, and so on; in held there is no number between two orders any more."""
    made = Store(folder)
    for state in PLACES:
        made.add(*(new(f"{state}.{i}") for i in range(3)), state=state)
    orders = [math.nextafter(13.0, 0.0), 13.0, math.nextafter(13.0, 20.0)]
    for found, order in zip(made.jobs("held"), orders, strict=True):
        made.update(found.id, put(order=order))
    made.log("j16").write_text("a log\n")
    return made


def photograph(folder: Path) -> dict[str, tuple[str, bytes]]:
    """{file name: (state, content)}; no name is in two folders."""
    files = [path for place in (*PLACES, "quarantine") for path in (folder / place).iterdir() if path.suffix != ".why"]
    names = [path.name.rpartition("-")[2] for path in files]
    assert len(set(names)) == len(names)
    return {name: (path.parent.name, path.read_bytes()) for name, path in zip(names, files, strict=True)}


def put(**values: Any) -> Callable[[Job], None]:
    return lambda found: vars(found).update(values)


note = put(note="changed")


def add_two(s: Store) -> None:
    s.add(*(new(f"new.{i}") for i in range(2)), prepare=lambda j: disk.write(
        s.folder / "configs" / f"{j.id}.ini", "[training]\n", s.folder / "tmp" / f"{j.id}.ini"))


def damage(folder: Path) -> None:
    (folder / "to_run" / "j2.json").write_bytes(b'{"version": 1, "model": "S')


# What claims, workers, hold, release, cancel, recover and remove do; `move` does the same with other pairs.
TARGETS = {"to_run": ("cur_run", "held", "fail_runs", "trash"), "held": ("to_run", "fail_runs", "trash"),
           "cur_run": ("to_run", "held", "old_runs", "fail_runs", "trash"), "old_runs": ("to_run", "trash"),
           "fail_runs": ("to_run", "held", "trash"), "trash": ("to_run", "old_runs")}
PAIRS = [(a, b) for a, targets in TARGETS.items() for b in targets]
FIRST = {state: f"j{3 * number + 1}" for number, state in enumerate(PLACES)}
OPERATIONS: dict[str, Act] = {
    "add": add_two, "edit": lambda s: s.update("j2", note), "shuffle": lambda s: s.place("to_run", 2, 0),
    "shuffle to the end": lambda s: s.place("to_run", 0, 2), "renumber": lambda s: s.place("held", 2, 1),
    "purge": lambda s: s.purge(s.find("j16")), "settings": lambda s: s.write_json("settings.json", {"slots": 2}),
    "quarantine": lambda s: s.jobs(),
    **{f"{a} to {b}": lambda s, a=a, b=b: s.update(FIRST[a], note, b, (a,)) for a, b in PAIRS}}  # type: ignore[misc]


class Os:
    """Stands in for `os` in que.disk: `meet(n)` is called before and after each call that touches a file, with its
    number; writes are cut short."""

    CALLS = ("open", "write", "fsync", "rename", "unlink", "close")

    def __init__(self, before: Callable[[int, str], None], after: Callable[[int, str], None] = lambda n, name: None):
        self.before, self.after, self.number = before, after, 0

    def __getattr__(self, name: str) -> Any:
        return self._wrapped(name) if name in self.CALLS else getattr(os, name)

    def _wrapped(self, name: str) -> Callable:
        def call(*args: Any, **keys: Any) -> Any:
            self.number += 1
            number = self.number
            if name == "close":  # which closes the file even where it fails
                os.close(*args)
            self.before(number, name)
            if name == "write":
                args = args[0], args[1][:512]
            result = getattr(os, name)(*args, **keys) if name != "close" else None
            self.after(number, name)
            return result
        return call


def killed_at(point: int, act: Act, folder: Path) -> bool:
    """Run `act` in a fork that is killed at a point (two a call: before and after it); False: it came to its end."""
    def meet(n: int) -> None:
        if n == point:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if not pid:
        try:
            disk.os = Os(lambda n, name: meet(2 * n), lambda n, name: meet(2 * n + 1))  # type: ignore[assignment]
            act(Store(folder))
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def start_over(template: Path, folder: Path, name: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
    if name == "quarantine":
        damage(folder)


def expect_whole(folder: Path, old: dict, expected: dict, warned: bool) -> dict:
    """Each job is in one state, as it was or as it was to become, and all goes on."""
    now = photograph(folder)
    for file, (state, content) in now.items():
        sides = [side[file] for side in (old, expected) if file in side]
        assert state in {side[0] for side in sides} and content in {side[1] for side in sides}
    assert old.keys() & expected.keys() <= now.keys()
    assert not disk.locked(folder / "lock")
    s = Store(folder)
    assert len(s.jobs(*PLACES)) == len([1 for state, _ in photograph(folder).values() if state != "quarantine"])
    assert bool(s.warnings) <= warned
    added = s.add(new("later"))[0]
    assert f"{added.id}.json" not in now and s.jobs("to_run")[-1] == added
    assert s.update(added.id, note, "held", ("to_run",)).state == "held"
    return now


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return fill(tmp_path_factory.mktemp("template") / "state").folder


def outcome(template: Path, folder: Path, name: str) -> tuple[dict, dict]:
    """The files before, and after nobody was in the way."""
    start_over(template, folder, name)
    before = photograph(folder)
    OPERATIONS[name](Store(folder))
    return before, photograph(folder)


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_every_step(template, folder, name):
    old, expected = outcome(template, folder, name)
    assert old != expected or name == "settings"
    if (found := name.split(" to "))[0] in FIRST:  # what a daemon completes, should the kill come before the rename
        assert json.loads(expected[f"{FIRST[found[0]]}.json"][1])["moving"] == found[1]
    step = 2 if " to " in name else 1  # after a call of a move is before the next one: nothing lies between
    for point in itertools.count(2, step):
        start_over(template, folder, name)
        if not killed_at(point, OPERATIONS[name], folder):
            assert photograph(folder) == expected
            break
        now = expect_whole(folder, old, expected, warned=name == "quarantine")
        if name == "renumber":
            listed = [json.loads(now[f"j{n}.json"][1]) for n in (13, 14, 15)]
            others = sorted((entry for entry in listed if entry["id"] != "j15"), key=lambda entry: entry["order"])
            assert [entry["id"] for entry in others] == ["j13", "j14"]
    assert point > 12


@pytest.mark.parametrize(("name", "number"), [
    (name, number) for number in (errno.ENOSPC, errno.EIO) for name in OPERATIONS
    if number == errno.ENOSPC or name in ("add", "quarantine", "purge", "renumber", "to_run to cur_run")])
def test_refused_at_every_step(template, folder, monkeypatch, name, number):
    """A full and a failing disk: every call of the operation fails once."""
    old, expected = outcome(template, folder, name)
    opened = len(os.listdir("/proc/self/fd"))
    for point in itertools.count(1):
        start_over(template, folder, name)

        def refuse(n: int, call: str, point: int = point) -> None:
            if n == point:
                raise OSError(number, os.strerror(number))

        faults = Os(refuse)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "os", faults)
            if faults_end(lambda: OPERATIONS[name](Store(folder)), number) and faults.number < point:
                break
        assert len(os.listdir("/proc/self/fd")) == opened
        now = expect_whole(folder, old, expected, warned=name == "quarantine")
        if name == "add":  # all or none
            assert len(now.keys() - old.keys()) in (0, 2)
    assert point > 6


def faults_end(act: Callable[[], Any], number: int) -> bool:
    """Whether it ends well; else by an error that says what is wrong."""
    try:
        act()
    except Storage as error:
        assert os.strerror(number) in error.found and error.do
        return False
    except OSError as error:
        assert error.errno == number
        return False
    return True


def test_writes_cut_short_are_completed(template, folder, monkeypatch):
    for name in OPERATIONS:
        _, expected = outcome(template, folder, name)
        start_over(template, folder, name)
        monkeypatch.setattr(disk, "os", Os(lambda n, call: None))
        OPERATIONS[name](Store(folder))
        monkeypatch.undo()
        assert photograph(folder) == expected


def test_ctrl_c_in_a_sweep_leaves_none_of_it(folder):
    s = fill(folder)
    before = photograph(folder)

    def interrupt(found: Job) -> None:
        if found.exp_no == "c":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        s.add(new("a"), new("b"), new("c"), prepare=interrupt)
    assert photograph(folder) == before
    assert s.add(new("d"))[0].id == "j22"


# --- many hands


def together(*acts: Callable[[], Any]) -> list[Any]:
    """What each returns, from a process of its own."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name, str(i)) for i in range(len(acts))]

        def run(file: Path, act: Callable[[], Any]) -> None:
            file.write_text(json.dumps(act()))

        children = [context.Process(target=run, args=pair) for pair in zip(files, acts, strict=True)]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
        assert {child.exitcode for child in children} == {0}
        return [json.loads(file.read_text()) for file in files]


def test_eight_processes_claim_two_hundred_jobs(tmp_path):
    """On a real disk. All of them go for the head of the list."""
    Store(tmp_path).add(*(new(str(i), note="") for i in range(200)))

    def claim() -> list[str]:
        s, mine = Store(tmp_path), list[str]()
        while waiting := s.jobs("to_run"):
            for found in waiting[:3]:
                try:
                    s.update(found.id, put(claim={"pid": os.getpid()}), "cur_run", ("to_run",))
                    mine.append(found.id)
                except Changed:
                    continue
        return mine

    claims = together(*[claim] * 8)
    assert Counter(itertools.chain(*claims)) == {f"j{n}": 1 for n in range(1, 201)}
    assert sum(map(bool, claims)) > 2, "no contention"
    claimed = Store(tmp_path).jobs()
    assert {found.state for found in claimed} == {"cur_run"} and len({found.claim["pid"] for found in claimed}) > 2


INITIAL = 40
SECONDS = 3.0


def one_of(jobs: list[Job]) -> str:
    return random.choice(jobs).id if jobs else "j0"


def claimer(folder: Path) -> dict[str, int]:
    """Claim, run (nobody else does meanwhile), file: as a worker."""
    s, claims = Store(folder), 0
    for target in hands(folder, "old_runs", "fail_runs", "to_run", "held"):
        with contextlib.suppress(Changed):
            mine = s.update(one_of(s.jobs("to_run")), to="cur_run", only=("to_run",)).id
            os.close(os.open(folder.parent / mine, os.O_CREAT | os.O_EXCL))
            claims += 1
            time.sleep(random.random() / 500)
            os.unlink(folder.parent / mine)
            s.update(mine, to=target, only=("cur_run",))
    return {"claims": claims}


def hands(folder: Path, *targets: str) -> Iterator[str]:
    random.seed(os.getpid())
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        yield random.choice(targets)


def mover(folder: Path) -> dict[str, int]:
    s, moved = Store(folder), 0
    for target in hands(folder, "held", "trash", "to_run", "to_run"):
        with contextlib.suppress(Changed):
            s.update(one_of(s.jobs(*PLACES)), to=target, only=tuple({*PLACES} - {"cur_run"}))
            moved += 1
    return {"moved": moved}


def editor(folder: Path) -> dict[str, int]:
    s, edits = Store(folder), Counter[str]()
    for _ in hands(folder, ""):
        chosen = one_of(s.jobs(*PLACES))
        s.update(chosen, lambda found: put(note=found.note + "x")(found))
        edits[chosen] += 1
    return dict(edits)


def shuffler(folder: Path) -> dict[str, int]:
    s, shuffled = Store(folder), 0
    for state in hands(folder, "to_run", "held"):
        with contextlib.suppress(Mistake):
            s.place(state, random.randrange(8), random.randrange(8))
            shuffled += 1
    return {"shuffled": shuffled}


def adder(folder: Path) -> list[str]:
    s, added = Store(folder), list[str]()
    for state in hands(folder, "to_run", "held"):
        added += [found.id for found in s.add(new(note=""), new(note=""), state=state)]
        time.sleep(0.05)
    return added


def lister(folder: Path) -> dict[str, int]:
    """Nothing that exists throughout is missing from a listing, or in it twice."""
    s, listings = Store(folder), 0
    constant = {f"j{n}" for n in range(1, INITIAL + 1)}
    for _ in hands(folder, ""):
        found = [j.id for j in s.jobs(*PLACES)]
        assert len(found) == len(set(found)) and constant <= set(found)
        s.find(random.choice(found))
        listings += 1
    assert not s.warnings
    return {"listings": listings}


def test_many_hands(folder):
    Store(folder).add(*(new(str(i), note="") for i in range(INITIAL)))
    acts = [claimer, claimer, mover, editor, editor, shuffler, adder, lister, lister]
    said = together(*(lambda act=act: act(folder) for act in acts))
    added, edits = said[6], Counter(said[3]) + Counter(said[4])
    now = photograph(folder)
    assert now.keys() == {f"j{n}.json" for n in range(1, INITIAL + 1)} | {f"{name}.json" for name in added}
    assert len(set(added)) == len(added) > 3
    assert {name.removesuffix(".json"): json.loads(content)["note"] for name, (_, content) in now.items()} == {
        name.removesuffix(".json"): "x" * edits[name.removesuffix(".json")] for name in now}
    assert min(said[0]["claims"], said[2]["moved"], said[5]["shuffled"], said[7]["listings"]) > 3


def test_a_lock_that_is_kept_is_named(folder, monkeypatch):
    s = fill(folder)
    monkeypatch.setattr(disk, "WAIT", 0.05)
    with disk.lock(folder / "lock"):
        with pytest.raises(Storage, match="another process keeps the que's lock") as error:
            s.add(new())
        assert "doctor" in error.value.do and disk.locked(folder / "lock")
    assert s.add(new()) and not disk.locked(folder / "lock")


def test_readers_do_not_keep_each_other_out(folder):
    s = fill(folder)
    with disk.lock(folder / "lock", shared=True):
        assert len(s.jobs()) == 15


def test_asking_does_not_take_a_lease(folder):
    """Whoever looks whether a lease is held never makes another believe it."""
    path = Store(folder).folder / "leases" / "j1"

    def ask() -> int:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            disk.locked(path)
            time.sleep(0.0005)
        return 0

    def take() -> int:
        until, failures = time.monotonic() + 0.5, 0
        while time.monotonic() < until:
            lease = disk.try_lock(path)
            failures += lease is None
            if lease is not None:
                os.close(lease)
        return failures

    assert together(ask, ask, take)[2] == 0


# --- damaged files


def text(**changes: Any) -> bytes:
    content = {**json.loads(new(id="j2", order=2.0).to_json()), **changes}
    return json.dumps({key: value for key, value in content.items() if value != "LEFT OUT"}).encode()


DAMAGED = {
    "empty": b"", "half": text()[:100], "binary": bytes(range(256)), "zeros": b"\0" * 500, "list": b"[]",
    "null": b"null", "number": b"5", "no version": text(version="LEFT OUT"), "new version": text(version=2),
    "unknown key": text(colour="red"), "another id": text(id="j3"), "no id": text(id="LEFT OUT"),
    "bad id": text(id="../j2"), "id 0": text(id="j02"), "model": text(model=5), "no model": text(model="LEFT OUT"),
    "after": text(after="j1"), "after within": text(after=[1]), "options": text(options=[["-r"]]),
    "env": text(env={"A": 1}), "changes": text(changes={"a.b": 4}), "attempts": text(attempts=["train"]),
    "tries": text(tries={"crashes": None}), "priority": text(priority="high"), "flag": text(priority=True),
    "order": text(order="first"), "no order": text(order=None), "nan": text(order=math.nan),
    "infinite": text(order=math.inf), "beyond": text(order=1e300), "deep": b"[" * 100_000, "state": text(state="held"),
    "two": text() + text(), "latin-1": text().replace(b"S3D", b"S\xe93D")}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_go_to_quarantine(folder, name):
    s = fill(folder)
    s.jobs()
    (folder / "to_run" / "j2.json").write_bytes(DAMAGED[name])
    assert [found.id for found in s.jobs("to_run")] == ["j1", "j3"]
    assert len(s.warnings) == 1 and "to_run/j2.json" in s.warnings[0] and "quarantine" in s.warnings[0]
    assert [path.name for path in s.quarantined()] == ["to_run-j2.json"]
    assert s.quarantined()[0].read_bytes() == DAMAGED[name]
    assert (folder / "quarantine" / "to_run-j2.json.why").read_text().strip()
    assert "1 in quarantine: to_run-j2.json" in " ".join(view.state_of(Store(folder))["warnings"])
    with pytest.raises(Mistake, match="no such job"):
        s.find("j2")


@pytest.mark.parametrize("act", [lambda s: s.find("j2"), lambda s: s.update("j2", note),
                                 lambda s: s.update("j2", note, "held", ("to_run",))])
def test_a_damaged_job_is_not_written_over(folder, act):
    s = fill(folder)
    damage(folder)
    damaged = (folder / "to_run" / "j2.json").read_bytes()
    with pytest.raises(Mistake):
        act(s)
    assert s.quarantined()[0].read_bytes() == damaged and s.warnings
    assert not any((folder / place / "j2.json").exists() for place in PLACES)


def test_quarantine_keeps_several_of_a_name(folder):
    s = fill(folder)
    for content in (b"1", b"2", b"3"):
        (folder / "to_run" / "j2.json").write_bytes(content)
        s.jobs()
    assert sorted(path.read_bytes() for path in s.quarantined()) == [b"1", b"2", b"3"]


@given(st.data())
def test_no_proper_part_of_a_file_is_a_job(data):
    whole = new(id="j2", order=2.0).to_json().strip().encode()
    with pytest.raises(ValueError):
        from_json(whole[:data.draw(st.integers(0, len(whole) - 1))])


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                                  max_size=3), max_leaves=5)


@given(st.dictionaries(st.sampled_from(sorted(job._FIELDS)), VALUES, max_size=3))
@examples(max_examples=100)
def test_a_changed_file_is_a_job_or_none(changes):
    """What is read can be written again, and is the same then."""
    try:
        found = from_json(text(**changes))
    except ValueError:
        return
    assert from_json(found.to_json()) == found and isinstance(found.number, int)


def test_a_file_of_before_features_could_be_extracted(folder):
    """It lacks the keys that are new since: the job has their defaults, and gets them when it is written next."""
    lacking = {key: value for key, value in json.loads(text(id="j3", stage="test", note="old")).items()
               if not key.startswith("extract")}
    s = Store(folder)
    (folder / "to_run" / "j3.json").write_text(json.dumps(lacking))
    found, = s.jobs()
    assert (found.extract, found.extract_batch, found.stage, found.next_stage) == (False, 0, "test", "")
    assert found.done == "trained and tested" and not s.warnings
    s.update("j3", put(priority=1))
    assert json.loads((folder / "to_run" / "j3.json").read_text()).items() >= {"extract": False, "version": 1}.items()


def test_a_stage_that_nobody_knows():
    with pytest.raises(ValueError, match="stage is 'dream'"):
        from_json(text(stage="dream"))


@given(st.text(), st.lists(st.text()), st.dictionaries(st.text(), st.text()))
def test_any_text_comes_back(words, options, env):
    found = new(id="j7", note=words, options=options, env=env)
    assert from_json(found.to_json().encode(errors="surrogatepass")) == found


def test_names_that_are_no_utf_8(folder):
    s = Store(folder)
    odd = os.fsdecode(b"/runs/S\xe93D")
    s.add(new(run=odd, note=odd))
    assert Store(folder).jobs()[0].run == odd


def test_a_job_in_two_folders(folder):
    """It is reported, counts as where it ran or ended, and what is written over it is kept."""
    s = fill(folder)
    for copied, target in (("cur_run/j4", "to_run"), ("old_runs/j7", "to_run"), ("trash/j16", "to_run")):
        shutil.copy(folder / f"{copied}.json", folder / target)
    assert [found.id for found in s.jobs("to_run")] == ["j1", "j2", "j3", "j16"]
    assert len(s.warnings) == 3 and "j4.json lies in cur_run and in to_run" in sorted(s.warnings)[1]
    for name in ("j4", "j7"):
        with pytest.raises(Changed):
            s.update(name, to="cur_run", only=("to_run",))
    assert len(s.jobs(*PLACES)) == 18
    assert s.place("to_run", 0, 3).id == "j1" and [found.id for found in s.jobs("to_run")][-1] == "j1"
    before = (folder / "to_run" / "j4.json").read_bytes()
    s.update("j4", note, "to_run", ("cur_run",))
    assert s.find("j4").note == "changed" and not (folder / "cur_run" / "j4.json").exists()
    assert [path.read_bytes() for path in s.quarantined()] == [before]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"null", b'{"id": 3}', b'{"id": "x", "order": 1}',
                                     b'{"id": -5, "order": -5}', b'{"id": 1e999, "order": 1}', b"\xff\xfe\0",
                                     b'{"id": null, "order": null}', b'{"id": 0, "order": 0}', b"[" * 100_000,
                                     b'{"id": 99999999999999999999, "order": 99999999999999999999}'])
def test_a_counter_lost_or_damaged_gives_no_id_twice(folder, content):
    s = fill(folder)
    used = {path.stem for place in PLACES for path in (folder / place).glob("*.json")}
    s.log("j30").write_text("of a job that is purged\n")
    if content is None:
        (folder / "counter.json").unlink()
    else:
        (folder / "counter.json").write_bytes(content)
    added = s.add(new("a"), new("b"))
    assert not used & {found.id for found in added} and len({found.id for found in added}) == 2
    assert content == b'{"id": 0, "order": 0}' or (s.warnings and added[0].id == "j31")
    assert len(s.jobs(*PLACES)) == 20


def test_a_first_job_warns_of_nothing(folder):
    s = Store(folder)
    assert s.add(new())[0].id == "j1" and not s.warnings


def test_foreign_files_do_not_disturb(folder):
    s = fill(folder)
    for place in PLACES:
        for name in ("README", ".j1.json.swp", ".j1.json", "j1.json~", "j1.json.bak"):
            (folder / place / name).write_text("not ours")
        (folder / place / "x.json").mkdir()
        (folder / place / "j99.json").mkdir()
    os.mkfifo(folder / "to_run" / "pipe.json")
    (folder / "to_run" / "gone.json").symlink_to("/nowhere")
    assert len(s.jobs(*PLACES)) == 18 and not s.quarantined()
    assert all("cannot be read" in warning or "lies in" in warning for warning in s.warnings)
    s.update("j1", note, "held")
    s.place("to_run", 0, 1)
    assert (folder / "to_run" / "README").read_text() == "not ours"
    with pytest.raises(Mistake):
        s.find("j99")


def test_a_job_whose_file_is_a_link(folder, tmp_path):
    """As some lay them out: it is read; a change replaces the link."""
    s = fill(folder)
    shutil.move(folder / "to_run" / "j1.json", tmp_path / "elsewhere.json")
    (folder / "to_run" / "j1.json").symlink_to(tmp_path / "elsewhere.json")
    assert s.find("j1").id == "j1" and s.update("j1", note).note == Store(folder).find("j1").note == "changed"


# --- order, places, caches


def ids(s: Store, state: str = "to_run") -> list[str]:
    return [found.id for found in s.jobs(state)]


def test_new_jobs_are_last_however_one_shuffled(folder):
    s = Store(folder)
    s.add(*(new(str(i)) for i in range(3)))
    for _ in range(3):
        s.place("to_run", 0, 2)
    assert ids(s) == ["j1", "j2", "j3"]
    s.add(new())
    assert ids(s) == ["j1", "j2", "j3", "j4"]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8), st.integers(0, 3))
@examples(max_examples=30)
def test_any_shuffle(pairs, dense):
    """As with a list; also where orders lie so close that nothing goes between."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        s = Store(Path(name))
        s.add(*(new(str(i)) for i in range(5)), state="old_runs")
        order = 1.0
        for found in s.jobs("old_runs")[:dense + 1]:
            s.update(found.id, put(order=order))
            order = math.nextafter(order, 9.0)
        expected = ids(s, "old_runs")
        for old, place in pairs:
            expected.insert(place, expected.pop(old))
            s.place("old_runs", old, place)
            assert ids(s, "old_runs") == expected


def test_shuffling_sixty_times_into_the_same_gap(folder):
    s = Store(folder)
    s.add(*(new(str(i)) for i in range(4)))
    expected = ids(s)
    for _ in range(60):
        expected.insert(1, expected.pop())
        s.place("to_run", 3, 1)
        assert ids(s) == expected


def test_shuffle_takes_the_priority_that_the_place_asks_for(folder):
    s = Store(folder)
    s.add(*(new(str(i), priority=p) for i, p in enumerate((9, 5, 5, 1))))
    assert s.place("to_run", 3, 1).priority == 5 and ids(s) == ["j1", "j4", "j2", "j3"]
    assert s.place("to_run", 0, 3).priority == 5 and ids(s)[-1] == "j1"


def test_a_reader_sees_each_change_at_once(folder):
    """However quickly they follow one another, and although it keeps what it has read."""
    reader, writer = Store(folder), Store(folder)
    writer.add(new())
    for n in range(100):
        writer.update("j1", put(priority=n))
        assert reader.jobs()[0].priority == reader.find("j1").priority == n


def test_changes_within_a_tick_of_the_clock(folder, monkeypatch):
    """Two files of the same time and inode: a young one is not trusted, however like the known one it looks."""
    writer, reader, real = fill(folder), Store(folder), os.stat

    def blurred(path: Any, **keys: Any) -> Any:
        facts = real(path, **keys)
        return SimpleNamespace(st_mode=facts.st_mode, st_ino=7, st_mtime=math.floor(facts.st_mtime), st_mtime_ns=0,
                               st_size=facts.st_size) if str(path).endswith(".json") else facts

    monkeypatch.setattr(store.os, "stat", blurred)
    monkeypatch.setattr(store, "time", SimpleNamespace(time=lambda: math.floor(time.time())))
    for n in range(5):
        writer.update("j1", put(priority=n))
        assert reader.find("j1").priority == n


def test_a_job_that_moves_while_one_looks_for_it(folder, monkeypatch):
    """The folders are searched one after the other: it leaves a later one for an earlier one just then."""
    s = fill(folder)
    real, mover = os.path.isfile, Store(folder)

    def slow(path: Any) -> bool:
        if str(path).endswith("held/j1.json"):
            monkeypatch.setattr(store.os.path, "isfile", real)
            mover.update("j1", to="cur_run")
        return real(path)

    monkeypatch.setattr(store.os.path, "isfile", slow)
    assert s.find("j1").state == "cur_run"


def test_an_old_file_is_read_once(folder, monkeypatch):
    s = fill(folder)
    for path in (folder / "to_run").iterdir():
        os.utime(path, (1e9, 1e9))
    first, real, read = s.jobs("to_run"), store.from_json, list[bytes]()

    def counted(content: bytes) -> Job:
        read.append(content)
        return real(content)

    monkeypatch.setattr(store, "from_json", counted)
    assert s.jobs("to_run") == first and not read
    (folder / "to_run" / "j1.json").write_bytes(text(id="j1", note="by hand"))
    assert s.jobs("to_run") != first and len(read) == 1


def test_the_clock_may_jump(folder, monkeypatch):
    s = fill(folder)
    for jump in (-1e8, 1e8):
        monkeypatch.setattr(store, "time", SimpleNamespace(time=lambda jump=jump: time.time() + jump))
        for n in range(5):
            s.update("j1", put(priority=n))
            assert s.find("j1").priority == n == Store(folder).find("j1").priority


def test_purge_leaves_what_has_left_the_trash(folder):
    s = fill(folder)
    gone, back = s.find("j17"), s.find("j16")
    s.update("j16", to="to_run")
    for found in (gone, gone, back):
        s.purge(found)
    assert s.find("j16").state == "to_run" and s.log("j16").exists() and len(s.jobs(TRASH)) == 1


def test_a_change_that_fails_changes_nothing(folder):
    s = fill(folder)
    before = photograph(folder)
    with pytest.raises(ZeroDivisionError):
        s.update("j1", put(note="half", priority=1 // 0), "held")
    assert photograph(folder) == before and s.find("j1").note != "half"


@pytest.mark.parametrize("words", ["3", "2-1", "0-3", "-1", "x", "", "all,", "j4", "0,,1", "9" * 5000])
def test_places_that_are_none(folder, words):
    with pytest.raises(Mistake, match="to_run has no such"):
        fill(folder).select("to_run", words)


@pytest.mark.parametrize(("words", "expected"), [("0", [1]), ("0-2", [1, 2, 3]), ("all", [1, 2, 3]), ("2,0", [3, 1]),
                                                 ("0-1,1-2", [1, 2, 3]), ("j2", [2]), ("j3,0", [3, 1])])
def test_places(folder, words, expected):
    assert [found.number for found in fill(folder).select("to_run", words)] == expected


# --- disks that are really full, read-only or in the way


NAMESPACE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
SCRIPT = """
set -u
mount -t tmpfs -o size=1m,mode=700 tmpfs "$DISK" || exit 99
cp -a "$STATE/." "$DISK"
export QUE_DIR="$DISK"
n=0
que() { "$PYTHON" "$ROOT/que" "$@" >"$OUT/$n.out" 2>"$OUT/$n.err" </dev/null; echo $? >"$OUT/$n.rc"; n=$((n+1)); }
fill() { dd if=/dev/zero of="$DISK/ballast" bs=64k; dd if=/dev/zero of="$DISK/more" bs=512; } 2>/dev/null
"""


def on_a_disk(template: Path, tmp_path: Path, script: str) -> list[tuple[int, str, str]]:
    """Run a script beside a little file system that ends with it; what each `que` of it answered."""
    disk_folder, out = tmp_path / "disk", tmp_path / "out"
    disk_folder.mkdir()
    out.mkdir()
    if not shutil.which("unshare") or not shutil.which("mount"):
        pytest.skip("there is no unshare or mount")
    ran = subprocess.run(
        [*NAMESPACE, "bash", "-c", SCRIPT + script + '\ncp -a "$DISK/." "$OUT/after"'], capture_output=True, text=True,
        timeout=60, env={**os.environ, "DISK": str(disk_folder), "STATE": str(template), "OUT": str(out),
                         "ROOT": str(ROOT), "PYTHON": sys.executable, "SLR_RUNS": str(tmp_path / "runs")})
    if ran.returncode == 99 or "unshare failed" in ran.stderr or "Operation not permitted" in ran.stderr:
        pytest.skip(f"no file system can be mounted here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    return [(int((out / f"{n}.rc").read_text()), (out / f"{n}.out").read_text(), (out / f"{n}.err").read_text())
            for n in range(len(list(out.glob("*.rc"))))]


def expect_message(answer: tuple[int, str, str], *words: str) -> None:
    """What is wrong, what was found, what to do; exit code 2."""
    code, _, said = answer
    assert code == 2 and said.startswith("error: ") and "Traceback" not in said
    assert len(said.strip().splitlines()) == 2 and said.splitlines()[1].startswith("  ")
    assert all(word in said for word in words)


def test_a_full_disk(template, tmp_path):
    answers = on_a_disk(template, tmp_path, """
fill; que priority j1 5; que hold j1; que settings slots 2; que list --json; que clear trash --yes
rm "$DISK/more" "$DISK/ballast"; que priority j1 7; que hold j1; que list --json""")
    for answer in answers[:3]:
        expect_message(answer, "the que cannot write", "No space left on device", "make room")
    assert [len(json.loads(answers[n][1])["jobs"]) for n in (3, 7)] == [15, 15]
    assert [answer[0] for answer in answers[3:]] == [0] * 5, "for good removed is without room"
    now, before = photograph(tmp_path / "out" / "after"), photograph(template)
    assert {name: value for name, value in before.items() if value[0] != TRASH and name != "j1.json"} == {
        name: value for name, value in now.items() if name != "j1.json"}
    assert now["j1.json"][0] == "held" and json.loads(now["j1.json"][1])["priority"] == 7


def test_a_full_disk_and_a_damaged_file(template, tmp_path):
    answers = on_a_disk(template, tmp_path, """
echo '{' >"$DISK/to_run/j2.json"; fill; que list --json; que list --json""")
    for code, said, _ in answers:
        content = json.loads(said)
        assert code == 0 and len(content["jobs"]) == 14 and "j2.json" in " ".join(content["warnings"])
    assert (tmp_path / "out" / "after" / "quarantine" / "to_run-j2.json").read_text() == "{\n"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_read_only_disk(template, tmp_path, damaged):
    answers = on_a_disk(template, tmp_path, f"""
{'echo x >"$DISK/to_run/j2.json"' if damaged else ''}
mount -o remount,ro "$DISK"
que list --json; que display j1 --json; que hold j1; que clear trash --yes; que shuffle new 0 1; que settings slots 2
que daemon; que doctor
""")
    assert answers[0][0] == answers[1][0] == 0
    content = json.loads(answers[0][1])
    assert len(content["jobs"]) == 15 - damaged
    assert not damaged or "cannot be put into quarantine" in " ".join(content["warnings"])
    for answer in answers[2:7]:
        said = [line for line in answer[2].splitlines() if not line.startswith("warning: ")]
        expect_message((answer[0], "", "\n".join(said)), "Read-only file system", "mounted read-only")
    assert "Traceback" not in answers[7][2]
    now = photograph(tmp_path / "out" / "after")
    assert now == photograph(template) | ({"j2.json": ("to_run", b"x\n")} if damaged else {})


def test_a_read_only_disk_without_a_lock_file(template, tmp_path):
    answers = on_a_disk(template, tmp_path,
                        'rm "$DISK/lock"; mount -o remount,ro "$DISK"; que list --json; que hold j1')
    assert answers[0][0] == 0 and len(json.loads(answers[0][1])["jobs"]) == 15
    expect_message(answers[1], "Read-only file system")


@pytest.mark.parametrize("place", ["file", "file/below", "dangling"])
def test_a_state_folder_that_cannot_be(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "dangling").symlink_to("/proc/nowhere/at/all")
    ran = subprocess.run([sys.executable, str(ROOT / "que"), "list"], capture_output=True, text=True,
                         env={**os.environ, "QUE_DIR": str(tmp_path / place)})
    expect_message((ran.returncode, ran.stdout, ran.stderr), str(tmp_path / place) if place != "dangling" else "proc")
    assert (tmp_path / "file").read_text() == "in the way"
