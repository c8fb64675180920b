"""The code as it was when a job was queued: `snapshots/<hash>/` holds code/ and configfiles/, once for each content.

A snapshot lies inside the repository, where git would name the home's commit: its own stands in its snapshot.json.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from que.errors import Mistake, Storage

TOPS = ("code", "configfiles")
NOT_COPIED = ("code/tests", "code/pictures")
LARGE = 1_000_000  # bytes: a larger file is no code
LARGEST = 64_000_000  # of all files together
YOUNG = 3600.0  # seconds in which a snapshot may wait for its job
_UNWANTED = re.compile("|".join(f"{x}(/|$)" for x in NOT_COPIED) + r"|.*(\.pyc$|__pycache__/)")
_MISLEADING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")  # set where a git hook calls us

Files = dict[str, tuple[bytes, int]]  # by path below the root: content and mode


class _NoGit(Exception):
    """Why git says nothing about the code."""


def take(state: Path, root: Path) -> str:
    """Copy the code that lies in `root` now, where there is no such copy yet; the name of its folder.

    A kill leaves nothing but a .part folder, and of two processes that take the same content both succeed.
    """
    try:
        names, no_git = _names(root)
        files, left_out = _read(root, names, os.path.realpath(state))
        folder = state / "snapshots" / _hash(files, left_out)
        if not _whole(folder, files):
            _add(folder, files, *_facts(root, left_out, no_git))
        os.utime(folder)  # young again, for `unused`
        _sync(folder.parent)
    except OSError as error:
        raise Storage("the code cannot be copied for the job", f"{error.strerror}: {error.filename or state}",
                      "make room there or mend its permissions, or queue with --live") from None
    return folder.name


def describe(state: Path, name: str) -> dict[str, Any]:
    """commit, untracked, left_out ({path: why}) and created of a snapshot; no_git says why there is no commit."""
    file = state / "snapshots" / name / "snapshot.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Mistake("the code of this job is gone", f"{file} cannot be read",
                      "recover it with --live: it then runs the code as it is now") from None
    return found


def unused(state: Path, used: set[str]) -> list[Path]:
    """Snapshots that no job names, but for young ones: a job may be about to."""
    return [path for path in sorted((state / "snapshots").glob("*")) if re.fullmatch("[0-9a-f]{12}", path.name)
            and path.name not in used and time.time() - path.stat().st_mtime > YOUNG]


def remove(folder: Path) -> None:
    """Rename, then delete: a kill between leaves no half snapshot."""
    aside = _aside(folder.parent)
    with contextlib.suppress(FileNotFoundError):  # a sister was quicker
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)  # what is left of it, `tidy` finds


def tidy(state: Path) -> list[Path]:
    """Remove what killed processes left half written or half deleted; the folders that are gone."""
    import psutil
    parts = [(path, re.match(r"\.(\d{1,9})\.", path.name)) for path in (state / "snapshots").glob(".*.part")]
    dead = [path for path, pid in parts if pid and not psutil.pid_exists(int(pid[1]))]
    for path in dead:
        shutil.rmtree(path, ignore_errors=True)
    return [path for path in dead if not path.exists()]


def _git(root: Path, *words: str) -> bytes:
    env = {k: v for k, v in os.environ.items() if k not in _MISLEADING}
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, timeout=60,
                              env={**env, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"})
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NoGit(str(error)) from None
    if done.returncode:
        raise _NoGit(done.stderr.decode(errors="replace").strip().partition("\n")[0])
    return done.stdout


def _names(root: Path) -> tuple[set[str], str]:
    """What may go in, folders among it; and why git had no say."""
    try:
        names, why = _listed(root, "-co"), "git lists no code here"  # an outer repository may ignore all of this
    except _NoGit as error:
        names, why = set(), str(error)
    return (names, "") if names else (set(TOPS), why)


def _listed(root: Path, which: str) -> set[str]:
    return set(os.fsdecode(_git(root, "ls-files", which, "--exclude-standard", "-z", "--", *TOPS)).split("\0")) - {""}


def _files(root: Path, names: Iterable[str], above: tuple[str, ...]) -> Iterator[str]:
    """The names of code, those of its files in place of a folder that lies, or links, within the root.

    above: the real paths of the root and of the folders on the way; a link back to one of them is not gone into.
    """
    for name in sorted(names):
        real = os.path.realpath(root / name)
        if _UNWANTED.match(name):
            continue
        if os.path.isdir(real) and real.startswith(above[0] + os.sep) and real not in above:
            yield from _files(root, (os.path.join(name, x) for x in os.listdir(real) if x[0] != "."), (*above, real))
        else:
            yield name


def _read(root: Path, names: Iterable[str], own: str) -> tuple[Files, dict[str, str]]:
    """Everything at once, so that what is copied is what was hashed; what is left out, and why."""
    files: Files = {}
    left_out: dict[str, str] = {}
    total, home = 0, os.path.realpath(root)
    for name in _files(root, names, (home,)):
        path, real = root / name, os.path.realpath(root / name)
        if not os.path.lexists(path) or real.startswith(own + os.sep):  # deleted, or our own state
            continue
        if not real.startswith(home + os.sep) or not path.is_file():
            left_out[name] = "no file within the repository"
        elif path.stat().st_size > LARGE:
            left_out[name] = f"{path.stat().st_size / 1e6:.1f} MB"
        else:
            files[name] = path.read_bytes(), path.stat().st_mode
            total += len(files[name][0])
        if total > LARGEST:
            raise Mistake("this is too much to keep with a job", f"{LARGEST / 1e6:.0f} MB of files, up to {path}",
                          "let git ignore what is no code, or queue with --live")
    return files, left_out


def _hash(files: Files, left_out: Iterable[str]) -> str:
    """Over path, executable bit and content, and over the names of what is left out."""
    digest = hashlib.sha256()
    for name, (content, mode) in sorted(files.items()):
        digest.update(b"%s\0%d %d\0%s" % (os.fsencode(name), bool(mode & 0o100), len(content), content))
    for name in sorted(left_out):
        digest.update(b"%s\0-\0" % os.fsencode(name))
    return digest.hexdigest()[:12]


def _facts(root: Path, left_out: dict[str, str], no_git: str) -> tuple[dict[str, Any], bytes]:
    """snapshot.json, and how what is copied differs from the commit."""
    commit, diff, untracked = "", b"", list[str]()
    try:
        if not no_git:
            untracked = sorted(x for x in _listed(root, "-o") if not _UNWANTED.match(x))
            commit = _git(root, "rev-parse", "--short=12", "HEAD").decode().strip()
            diff = _git(root, "-c", "core.quotePath=false", "diff", "HEAD", "--no-ext-diff", "--no-textconv",
                        "--no-color", "--src-prefix=a/", "--dst-prefix=b/", "--", *TOPS,
                        *(f":(exclude){x}" for x in NOT_COPIED))
    except _NoGit as error:
        no_git = str(error)
    return {"commit": commit + ("+" if diff else ""), "no_git": no_git, "untracked": untracked, "left_out": left_out,
            "created": time.time()}, diff


def _whole(folder: Path, files: Files) -> bool:
    """Whether the snapshot is there and nobody has changed it."""
    try:
        return (folder / "snapshot.json").is_file() and all(
            (folder / name).read_bytes() == content for name, (content, _) in files.items())
    except OSError:
        return False


def _aside(snapshots: Path) -> Path:
    return snapshots / f".{os.getpid()}.{os.urandom(4).hex()}.part"


def _add(folder: Path, files: Files, facts: dict[str, Any], diff: bytes) -> None:
    part = _aside(folder.parent)
    more = {"snapshot.json": (json.dumps(facts, indent=1).encode() + b"\n", 0o644), "dirty.diff": (diff, 0o644)}
    try:
        _write(part, {**files, **more})
        if folder.exists() and not _whole(folder, files):
            remove(folder)
        os.replace(part, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # these: a sister was quicker
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(part: Path, files: Files) -> None:
    """Files that nobody is to write to, otherwise with the permissions that they had, safely on the disk."""
    part.mkdir(parents=True)
    for name, (content, mode) in files.items():
        path = part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode & 0o555)
    for place, _, found in os.walk(part):
        for entry in (*found, ""):
            _sync(Path(place, entry))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
