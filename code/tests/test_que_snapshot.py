"""que/snapshot.py on small repositories: what goes in, once for each content, and what a kill leaves."""

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from que import snapshot
from que.errors import Mistake, Storage

TRAINING, INI = "code/training.py", "configfiles/demo/S3D_001.ini"


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), "-c", "user.name=A", "-c", "user.email=a@example.org", *words],
                          check=True, capture_output=True, text=True).stdout


def write(root: Path, name: str, content: str | bytes = "x = 1\n") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def plain(tmp_path) -> Path:
    """A tree that is in no repository."""
    for name in (TRAINING, INI, "code/slr/errors.py", "code/tests/test_a.py", "code/pictures/a.png", "README.md"):
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


def copied(state: Path, name: str) -> set[str]:
    folder = state / "snapshots" / name
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def code(state: Path, name: str) -> set[str]:
    return copied(state, name) - {"snapshot.json", "dirty.diff"}


def text(state: Path, name: str, file: str) -> str:
    return (state / "snapshots" / name / file).read_text(encoding="utf-8")


def folders(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "snapshots").iterdir())


def child(act: Callable[[], None]) -> int:
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
    assert code(state, name) == {TRAINING, INI, "code/slr/errors.py"}
    found = snapshot.describe(state, name)
    assert found["commit"] == git(root, "rev-parse", "--short=12", "HEAD").strip()
    assert (found["untracked"], found["left_out"], found["no_git"]) == ([], {}, "")
    assert abs(found["created"] - time.time()) < 60
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
    found = snapshot.describe(state, name)
    assert found["commit"].endswith("+") and len(found["commit"]) == 13
    assert found["untracked"] == ["code/slr/new.py", "configfiles/demo/S3D_002.ini"]
    diff = text(state, name, "dirty.diff")
    assert "+changed" in diff and "deleted file" in diff and "staged.py" in diff and "new.py" not in diff


def test_the_difference_can_be_applied(root, state):
    for setting in ("diff.noprefix", "color.ui", "diff.mnemonicPrefix"):
        git(root, "config", setting, "always" if setting == "color.ui" else "true")
    write(root, TRAINING, "changed\n")
    name = snapshot.take(state, root)
    git(root, "checkout", "-q", TRAINING)
    git(root, "apply", str(state / "snapshots" / name / "dirty.diff"))
    assert (root / TRAINING).read_text() == "changed\n"


def test_what_is_not_copied_does_not_make_it_dirty(root, state):
    first = snapshot.take(state, root)
    write(root, "README.md", "changed")
    write(root, "code/tests/test_a.py", "changed")
    write(root, "code/tests/test_b.py")
    write(root, "code/slr/more.py")
    name = snapshot.take(state, root)
    assert name != first
    found = snapshot.describe(state, name)
    assert not found["commit"].endswith("+") and found["untracked"] == ["code/slr/more.py"]


def test_names_of_all_kinds(root, state):
    names = {"code/with space.py", "configfiles/ž š/R(2+1)D_18_000.ini", "code/手話.py", "code/line\nbreak.py",
             "code/'quote\".py"}
    for name in names:
        write(root, name)
    raw = os.fsdecode(b"code/\xff.py")
    write(root, raw)
    taken = snapshot.take(state, root)
    assert names | {raw} <= code(state, taken)
    assert set(snapshot.describe(state, taken)["untracked"]) == names | {raw}


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
    for name in ("code/.hidden.py", "code/.cache/a.py", "code/__pycache__/a.py", "code/a.pyc", "code/tests/b/c.py"):
        write(plain, name)
    if not git_there:
        monkeypatch.setenv("PATH", str(plain / "empty"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(plain.parent))
    name = snapshot.take(state, plain)
    assert code(state, name) == {TRAINING, INI, "code/slr/errors.py"}
    found = snapshot.describe(state, name)
    assert found["commit"] == "" and ("not a git repository" if git_there else "'git'") in found["no_git"]


def test_the_same_inside_and_outside(root, state):
    inside = snapshot.take(state, root)
    os.rename(root / ".git", root / "git")
    assert snapshot.take(state, root) == inside


def test_an_outer_repository_that_ignores_everything(plain, state):
    write(plain.parent, ".gitignore", "*\n")
    git(plain.parent, "init", "-q")
    git(plain.parent, "commit", "-q", "--allow-empty", "-m", "home")
    name = snapshot.take(state, plain)
    assert TRAINING in code(state, name)
    assert snapshot.describe(state, name)["commit"] == "" and snapshot.describe(state, name)["no_git"]


def test_a_part_of_an_outer_repository(plain, state):
    git(plain.parent, "init", "-q")
    git(plain.parent, "add", "home/code", "home/configfiles")
    git(plain.parent, "commit", "-qm", "all")
    write(plain, TRAINING, "changed\n")
    name = snapshot.take(state, plain)
    assert code(state, name) == {TRAINING, INI, "code/slr/errors.py"}
    assert snapshot.describe(state, name)["commit"].endswith("+")


def test_no_commit_yet(plain, state):
    git(plain, "init", "-q")
    name = snapshot.take(state, plain)
    found = snapshot.describe(state, name)
    assert TRAINING in found["untracked"] and found["commit"] == "" and found["no_git"]


def test_called_by_a_git_hook(root, state, monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    before = snapshot.take(state, root)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert snapshot.take(state, root) == before
    assert snapshot.describe(state, before)["commit"]


def test_large_files_are_named(root, state):
    write(root, "code/limit.bin", bytes(1_000_000))
    first = snapshot.take(state, root)
    write(root, "code/weights.pth", bytes(1_500_000))
    second = snapshot.take(state, root)
    assert first != second and "code/limit.bin" in code(state, second)
    assert snapshot.describe(state, second)["left_out"] == {"code/weights.pth": "1.5 MB"}
    write(root, "code/weights.pth", bytes(2_500_000))
    assert snapshot.take(state, root) == second


def test_too_much(root, state, monkeypatch):
    monkeypatch.setattr(snapshot, "LARGEST", 1_000_000)
    for i in range(3):
        write(root, f"code/{i}.jpg", bytes(400_000))
    with pytest.raises(Mistake, match="too much"):
        snapshot.take(state, root)
    assert not state.exists()


def test_links(root, state, tmp_path):
    write(tmp_path, "outside/secret.txt")
    write(root, "more/ini/S3D_009.ini")
    write(root, "shared.py", "shared = 1\n")
    for link, target in {"code/shared.py": "../shared.py", "code/out": "../../outside", "code/gone": "nowhere",
                         "code/out.txt": "../../outside/secret.txt", "code/slr/round": "round", "code/slr/etc": "/etc",
                         "configfiles/mine": "../more/ini", "more/ini/back": "..", "code/slr/up": ".."}.items():
        os.symlink(target, root / link)
    name = snapshot.take(state, root)
    found = code(state, name)
    assert {x for x in found if "/up/" not in x and "/back/" not in x} == {
        TRAINING, INI, "code/slr/errors.py", "code/shared.py", "configfiles/mine/S3D_009.ini"}
    assert "code/slr/up/training.py" in found and not any("up/slr/up/" in x for x in found)  # no circle
    assert not (state / "snapshots" / name / "code" / "shared.py").is_symlink()
    assert text(state, name, "code/shared.py") == "shared = 1\n"
    left_out = snapshot.describe(state, name)["left_out"]
    assert set(left_out) >= {"code/out", "code/out.txt", "code/slr/etc", "code/gone", "code/slr/round",
                             "configfiles/mine/back/ini"}


def test_a_repository_within(root, state):
    write(root, "code/within/a.py")
    git(root / "code/within", "init", "-q")
    assert "code/within/a.py" in code(state, snapshot.take(state, root))


def test_unmerged_files_are_copied_as_they_lie(root, state):
    git(root, "checkout", "-qb", "other")
    write(root, TRAINING, "theirs\n")
    git(root, "commit", "-qam", "theirs")
    git(root, "checkout", "-q", "-")
    write(root, TRAINING, "ours\n")
    git(root, "commit", "-qam", "ours")
    assert subprocess.run(["git", "-C", str(root), "-c", "user.name=A", "-c", "user.email=a@example.org", "merge", "-q",
                           "other"], capture_output=True).returncode
    assert "<<<<<<<" in text(state, name := snapshot.take(state, root), TRAINING) and len(code(state, name)) == 3


def test_our_own_state_never_goes_in(root):
    state = root / "code" / "state"
    first = snapshot.take(state, root)
    assert snapshot.take(state, root) == first and folders(state) == [first]
    assert code(state, first) == {TRAINING, INI, "code/slr/errors.py"}


def test_a_damaged_snapshot_is_made_anew(root, state):
    name = snapshot.take(state, root)
    file = state / "snapshots" / name / TRAINING
    file.unlink()
    assert snapshot.take(state, root) == name and file.exists()
    file.chmod(0o644)
    file.write_text("edited")
    assert snapshot.take(state, root) == name and file.read_text() == f"# {TRAINING}\n"
    (state / "snapshots" / name / "snapshot.json").unlink()
    with pytest.raises(Mistake, match="gone"):
        snapshot.describe(state, name)
    assert snapshot.take(state, root) == name and folders(state) == [name]


def test_bytecode_in_it_does_no_harm(root, state):
    name = snapshot.take(state, root)
    write(state / "snapshots" / name, "code/slr/__pycache__/errors.cpython-312.pyc")
    assert snapshot.take(state, root) == name and "code/slr/__pycache__/errors.cpython-312.pyc" in copied(state, name)


def test_two_at_once(root, state):
    """Eight processes, over and over: each gets the name, and there is one whole folder."""
    for round_ in range(3):
        write(root, TRAINING, f"round {round_}")
        begin = time.time() + 0.05

        def act(begin: float = begin) -> None:
            time.sleep(max(0.0, begin - time.time()))
            if not snapshot.take(state, root):
                os._exit(3)

        assert [code_of(pid) for pid in [child(act) for _ in range(8)]] == [0] * 8
    assert len(folders(state)) == 3 and not any(x.startswith(".") for x in folders(state))
    assert text(state, snapshot.take(state, root), TRAINING) == "round 2"


def test_a_sister_was_quicker(root, state, monkeypatch):
    """The other process puts its folder there just before our rename."""
    replace = os.replace
    inner: list[str] = []

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        inner.append(snapshot.take(state, root))
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
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

    for owner, name in ((os, "replace"), (os, "rename"), (os, "utime"), (os, "fsync"), (Path, "mkdir"),
                        (Path, "write_bytes"), (Path, "chmod")):
        monkeypatch.setattr(owner, name, deadly(getattr(owner, name)))


def test_a_kill_at_every_step(plain, state, monkeypatch):
    """Before each call in turn, of a first take and of one that mends a damaged snapshot."""
    monkeypatch.setenv("PATH", "")  # without git it is quicker
    root, name = plain, snapshot.take(state, plain)
    for damaged in (False, True):
        for n in range(1, 200):
            snapshot.remove(state / "snapshots" / name)
            if damaged:
                write(state / "snapshots" / name, TRAINING, "damaged")

            def act(n: int = n) -> None:
                kill_at(monkeypatch, n)
                snapshot.take(state, root)

            ended = code_of(child(act))
            assert ended in (0, 99)
            whole = [x for x in folders(state) if not x.startswith(".")]
            assert whole in ([], [name])
            if whole and (state / "snapshots" / name / "snapshot.json").exists():
                assert len(code(state, name)) == 3 and text(state, name, TRAINING) == f"# {TRAINING}\n"
            snapshot.tidy(state)
            assert [x for x in folders(state) if x.startswith(".")] == []
            assert snapshot.take(state, root) == name
            if ended == 0:
                break
        assert 20 < n < 199


def test_killed_at_the_rename(root, state, monkeypatch):
    def act() -> None:
        monkeypatch.setattr(os, "replace", lambda *_: os._exit(99))
        snapshot.take(state, root)

    pid = child(act)
    assert code_of(pid) == 99
    (left,) = folders(state)
    assert left.startswith(f".{pid}.") and left.endswith(".part")
    assert snapshot.unused(state, set()) == []
    assert snapshot.tidy(state) == [state / "snapshots" / left]
    assert folders(state) == []


def test_tidy_leaves_the_living_alone(root, state):
    name = snapshot.take(state, root)
    own = write(state / "snapshots", f".{os.getpid()}.ab.part/code/a.py").parents[1]
    odd = write(state / "snapshots", ".mine.part/code/a.py").parents[1]
    assert snapshot.tidy(state) == [] and own.exists() and odd.exists()
    assert name in folders(state)
    assert snapshot.tidy(state / "nowhere") == []


def test_unused_and_remove(root, state):
    first = snapshot.take(state, root)
    write(root, TRAINING, "changed")
    second = snapshot.take(state, root)
    folder = state / "snapshots"
    assert snapshot.unused(state, set()) == []  # young: their jobs may be about to come
    for name in (first, second):
        os.utime(folder / name, (0, 0))
    assert snapshot.unused(state, {second}) == [folder / first]
    assert snapshot.take(state, root) == second
    assert snapshot.unused(state, set()) == [folder / first]  # asked for again
    snapshot.remove(folder / first)
    snapshot.remove(folder / first)
    assert folders(state) == [second]
    assert snapshot.unused(state / "nowhere", set()) == []


def test_describe_what_is_gone(root, state):
    with pytest.raises(Mistake, match="gone") as caught:
        snapshot.describe(state, "0123456789ab")
    assert "--live" in caught.value.do and "0123456789ab" in caught.value.found


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk(root, state, monkeypatch, number):
    def full(path: Path, content: bytes) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Storage, match=os.strerror(number)):
        snapshot.take(state, root)
    assert folders(state) == []


def test_the_state_folder_is_a_file(root, state):
    write(state.parent, state.name)
    with pytest.raises(Storage, match="Not a directory"):
        snapshot.take(state, root)


def test_snapshot_json_is_json(root, state):
    name = snapshot.take(state, root)
    keys = {"commit", "no_git", "untracked", "left_out", "created"}
    assert set(json.loads(text(state, name, "snapshot.json"))) == set(snapshot.describe(state, name)) == keys


_ENTRIES = st.dictionaries(st.text("ab/\n é", min_size=1, max_size=4),
                           st.tuples(st.binary(max_size=4), st.sampled_from([0o644, 0o755])), max_size=3)


@given(_ENTRIES, _ENTRIES)
def test_the_name_tells_contents_apart(one, other):
    same = {k: (c, m & 0o100) for k, (c, m) in one.items()} == {k: (c, m & 0o100) for k, (c, m) in other.items()}
    assert (snapshot._hash(one, []) == snapshot._hash(other, [])) == same
    assert snapshot._hash(dict(reversed(one.items())), []) == snapshot._hash(one, [])
    assert snapshot._hash(one, ["a"]) != snapshot._hash(one, [])
