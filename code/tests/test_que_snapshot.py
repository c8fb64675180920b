"""que/snapshot.py on small repositories: what goes in, once for each content, and what a kill leaves."""

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from que import snapshot
from que.errors import Storage

TRAINING, INI = "code/training.py", "configfiles/demo/S3D_001.ini"
ALL = {TRAINING, INI, "code/slr/errors.py"}


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), "-c", "user.name=A", "-c", "user.email=a@example.org", *words],
                          check=True, capture_output=True, text=True).stdout


def write(root: Path, name: str, content: str | bytes = "x = 1\n") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def plain(tmp_path, monkeypatch) -> Path:
    """A tree that is in no repository."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in (*ALL, "code/tests/test_a.py", "code/pictures/a.png", "README.md"):
        write(tmp_path / "home", name, f"# {name}\n")
    return tmp_path / "home"


@pytest.fixture
def root(plain) -> Path:
    """The same tree, committed."""
    write(plain, ".gitignore", "/que/state/\n__pycache__/\n*.log\n")
    git(plain, "init", "-q")
    git(plain, "add", "-A")
    git(plain, "commit", "-qm", "first")
    return plain


@pytest.fixture
def state(plain) -> Path:
    return plain / "que" / "state"


def code(state: Path, name: str) -> set[str]:
    folder = state / "snapshots" / name
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        "snapshot.json", "dirty.diff"}


def text(state: Path, name: str, file: str) -> str:
    return (state / "snapshots" / name / file).read_text(encoding="utf-8")


def facts(state: Path, name: str) -> dict[str, Any]:
    return json.loads(text(state, name, "snapshot.json"))


def folders(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "snapshots").iterdir())


def age(state: Path) -> None:
    for path in (state / "snapshots").iterdir():
        os.utime(path, (0, 0))


def child(act: Callable[[], Any]) -> int:
    """A forked process that does `act`."""
    pid = os.fork()
    if pid:
        return pid
    try:
        act()
        os._exit(0)
    except BaseException:
        os._exit(1)


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_clean_tree(root, state):
    name = snapshot.take(state, root)
    assert code(state, name) == ALL
    found = facts(state, name)
    assert found["commit"] == git(root, "rev-parse", "--short=12", "HEAD").strip()
    assert (found["untracked"], found["left_out"]) == ([], []) and abs(found["created"] - time.time()) < 60
    assert text(state, name, "dirty.diff") == ""


def test_once_for_each_content(root, state):
    first = snapshot.take(state, root)
    assert snapshot.take(state, root) == first and folders(state) == [first]
    write(root, TRAINING, "changed")
    second = snapshot.take(state, root)
    assert second != first and len(folders(state)) == 2
    write(root, TRAINING, f"# {TRAINING}\n")
    assert snapshot.take(state, root) == first
    assert text(state, second, TRAINING) == "changed"


def test_dirty_untracked_deleted_and_ignored(root, state):
    write(root, "code/staged.py")
    git(root, "add", "code/staged.py")
    write(root, TRAINING, "changed\n")
    write(root, "code/slr/new.py")
    write(root, "configfiles/demo/S3D_002.ini")
    write(root, "code/a.log")
    write(root, "code/__pycache__/a.pyc")
    (root / "code/slr/errors.py").unlink()
    name = snapshot.take(state, root)
    assert code(state, name) == {TRAINING, INI, "code/staged.py", "code/slr/new.py", "configfiles/demo/S3D_002.ini"}
    assert text(state, name, TRAINING) == "changed\n"
    found = facts(state, name)
    assert found["commit"].endswith("+") and len(found["commit"]) == 13
    assert found["untracked"] == ["code/slr/new.py", "configfiles/demo/S3D_002.ini"]
    git(root, "reset", "-q", "--hard")
    git(root, "apply", str(state / "snapshots" / name / "dirty.diff"))
    assert (root / TRAINING).read_text() == "changed\n" and (root / "code/staged.py").exists()
    assert not (root / "code/slr/errors.py").exists()


def test_what_is_not_copied_does_not_make_it_dirty(root, state):
    first = snapshot.take(state, root)
    write(root, "README.md", "changed")
    write(root, "code/tests/test_a.py", "changed")
    write(root, "code/tests/test_b.py")
    assert snapshot.take(state, root) == first
    write(root, "code/slr/more.py")
    found = facts(state, snapshot.take(state, root))
    assert not found["commit"].endswith("+") and found["untracked"] == ["code/slr/more.py"]


def test_names_of_all_kinds(root, state):
    names = {"code/with space.py", "configfiles/ž š/R(2+1)D_18_000.ini", "code/手話.py", "code/line\nbreak.py",
             "code/'quote\".py", os.fsdecode(b"code/\xff.py")}
    for name in names:
        write(root, name)
    taken = snapshot.take(state, root)
    assert names <= code(state, taken) and set(facts(state, taken)["untracked"]) == names


def test_executable_bit_and_permissions(root, state):
    first = snapshot.take(state, root)
    (root / TRAINING).chmod(0o750)
    (root / INI).chmod(0o600)
    second = snapshot.take(state, root)
    assert first != second
    folder = state / "snapshots" / second
    assert [oct((folder / name).stat().st_mode & 0o777) for name in (TRAINING, INI, "snapshot.json")] == [
        "0o550", "0o400", "0o444"]
    (root / INI).chmod(0o644)
    assert snapshot.take(state, root) == second  # as git: only the executable bit counts


@pytest.mark.parametrize("git_there", [True, False])
def test_outside_a_repository(plain, state, monkeypatch, git_there):
    for name in ("code/.hidden.py", "code/.cache/a.py", "code/__pycache__/a.py", "code/tests/b/c.py"):
        write(plain, name)
    if not git_there:
        monkeypatch.setenv("PATH", str(plain / "empty"))
    name = snapshot.take(state, plain)
    assert code(state, name) == ALL and facts(state, name)["commit"] == ""


def test_the_same_inside_and_outside(root, state):
    inside = snapshot.take(state, root)
    os.rename(root / ".git", root / "git")
    assert snapshot.take(state, root) == inside


def test_an_outer_repository_that_ignores_everything(plain, state):
    write(plain.parent, ".gitignore", "*\n")
    git(plain.parent, "init", "-q")
    git(plain.parent, "commit", "-q", "--allow-empty", "-m", "home")
    name = snapshot.take(state, plain)
    assert code(state, name) == ALL and facts(state, name)["commit"] == ""


def test_a_part_of_an_outer_repository(plain, state):
    git(plain.parent, "init", "-q")
    git(plain.parent, "add", "home/code", "home/configfiles")
    name = snapshot.take(state, plain)
    assert code(state, name) == ALL and facts(state, name)["commit"] == ""  # no commit yet
    git(plain.parent, "commit", "-qm", "all")
    write(plain, TRAINING, "changed\n")
    name = snapshot.take(state, plain)
    assert code(state, name) == ALL and facts(state, name)["commit"].endswith("+")


def test_large_files_and_linked_folders_are_named(root, state, monkeypatch):
    monkeypatch.setattr(snapshot, "LARGE", 1000)  # else three megabytes of the disk
    write(root, "code/limit.bin", bytes(1000))
    write(root, "code/weights.pth", bytes(1001))
    write(root, "shared.py", "shared = 1\n")
    for link, target in {"shared.py": "../shared.py", "folder": "..", "gone": "nowhere"}.items():
        os.symlink(target, root / "code" / link)
    name = snapshot.take(state, root)
    assert code(state, name) == {*ALL, "code/limit.bin", "code/shared.py"}
    assert text(state, name, "code/shared.py") == "shared = 1\n"
    assert facts(state, name)["left_out"] == ["code/folder", "code/weights.pth"]


def test_unmerged_files_are_copied_as_they_lie(root, state):
    git(root, "checkout", "-qb", "other")
    write(root, TRAINING, "theirs\n")
    git(root, "commit", "-qam", "theirs")
    git(root, "checkout", "-q", "-")
    write(root, TRAINING, "ours\n")
    git(root, "commit", "-qam", "ours")
    with pytest.raises(subprocess.CalledProcessError):
        git(root, "merge", "-q", "other")
    name = snapshot.take(state, root)
    assert "<<<<<<<" in text(state, name, TRAINING) and code(state, name) == ALL


def test_two_at_once(root, state):
    """Eight processes at once: each gets the name, and there is one whole folder."""
    begin = time.time() + 0.05

    def act() -> None:
        time.sleep(max(0.0, begin - time.time()))
        snapshot.take(state, root)

    assert [code_of(pid) for pid in [child(act) for _ in range(8)]] == [0] * 8
    assert folders(state) == [snapshot.take(state, root)]


def test_a_sister_was_quicker(root, state, monkeypatch):
    """The other process puts its folder there just before our rename."""
    rename = os.rename
    inner: list[str] = []

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        inner.append(snapshot.take(state, root))
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert snapshot.take(state, root) == inner[0]
    assert folders(state) == inner


def kill_at(monkeypatch, n: int) -> None:
    """End this process at the n-th call of those that change the disk."""
    calls = [0]

    def deadly(act: Callable) -> Callable:
        def at(*args, **kwargs):
            calls[0] += 1
            if calls[0] == n:
                os._exit(99)
            return act(*args, **kwargs)
        return at

    for owner, name in ((os, "rename"), (os, "utime"), (os, "fsync"), (os, "fchmod"), (Path, "mkdir")):
        monkeypatch.setattr(owner, name, deadly(getattr(owner, name)))


def test_a_kill_at_every_step(plain, state, monkeypatch):
    """Before each call in turn: there is the whole snapshot or none, and `tidy` finds the rest."""
    monkeypatch.setenv("PATH", "")  # without git it is quicker, and so it is without
    monkeypatch.setattr(os, "fsync", lambda file: None)
    name = snapshot.take(state, plain)
    for n in range(1, 100):
        snapshot.remove(state / "snapshots" / name)

        def act(n: int = n) -> None:
            kill_at(monkeypatch, n)
            snapshot.take(state, plain)

        ended = code_of(child(act))
        whole = [x for x in folders(state) if not x.endswith(".part")]
        assert ended in (0, 99) and whole in ([], [name])
        assert not whole or code(state, name) == ALL and facts(state, name)
        assert snapshot.tidy(state) == []  # young: perhaps it is still written
        age(state)
        snapshot.tidy(state)
        assert folders(state) == whole and snapshot.take(state, plain) == name
        if ended == 0:
            break
    assert 20 < n < 99


def test_unused_remove_and_tidy(root, state):
    first = snapshot.take(state, root)
    write(root, TRAINING, "changed")
    second = snapshot.take(state, root)
    part = write(state / "snapshots", "17.ab.part/code/a.py").parents[1]
    folder = state / "snapshots"
    assert snapshot.unused(state, set()) == snapshot.tidy(state) == []  # young: their jobs may be about to come
    age(state)
    assert snapshot.unused(state, {second}) == [folder / first]
    assert snapshot.take(state, root) == second
    assert snapshot.unused(state, set()) == [folder / first]  # asked for again
    snapshot.remove(folder / first)
    snapshot.remove(folder / first)
    assert folders(state) == [part.name, second]
    assert snapshot.tidy(state) == [part] and folders(state) == [second]
    assert snapshot.unused(state / "nowhere", set()) == snapshot.tidy(state / "nowhere") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk(root, state, monkeypatch, number):
    def full(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Storage, match=os.strerror(number)):
        snapshot.take(state, root)
    assert folders(state) == []


def test_code_that_cannot_be_read_is_named(root, state, monkeypatch):
    def locked(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(Storage, match="Permission denied: .*code/"):
        snapshot.take(state, root)


_ENTRIES = st.dictionaries(st.text("ab/\n é", min_size=1, max_size=4),
                           st.tuples(st.binary(max_size=4), st.sampled_from([0o644, 0o755])), max_size=3)


@given(_ENTRIES, _ENTRIES)
def test_the_name_tells_contents_apart(one, other):
    assert (snapshot._hash(one) == snapshot._hash(other)) == (one == other)
    assert snapshot._hash(dict(reversed(one.items()))) == snapshot._hash(one)
