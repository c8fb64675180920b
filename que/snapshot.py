"""The code as it was when a job was queued: `snapshots/<hash>/` holds code/ and configfiles/, once for each content.

A snapshot lies inside the repository, where git would name the home's commit: its own stands in its snapshot.json.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from que import disk
from que.errors import Storage

TOPS = ("code", "configfiles")
NO_CODE = re.compile(r"code/(tests|pictures)/|.*__pycache__/|.*/\.")
LARGE = 1_000_000  # bytes: a larger file is no code
YOUNG = 3600.0  # seconds in which a snapshot may still be written, or wait for its job

Files = dict[str, tuple[bytes, int]]  # by path below the root: content and mode


def take(state: Path, root: Path) -> str:
    """Copy the code that lies in `root` now, where there is no such copy yet; the name of its folder."""
    try:
        tracked, untracked = _listed(root, "--cached"), _listed(root, "--others")
        files, left_out = _read(root, tracked | untracked or _walked(root))
        folder = state / "snapshots" / _hash(files)
        if not folder.exists():
            commit, diff = _commit(root) if tracked else ("", b"")  # an outer repository may ignore all of this
            facts = {"commit": commit, "untracked": sorted(untracked), "left_out": left_out, "created": time.time()}
            _add(folder, {**files, "snapshot.json": (json.dumps(facts).encode(), 0o644), "dirty.diff": (diff, 0o644)})
        os.utime(folder)  # young again, for `unused`
        disk.sync_folder(folder.parent)
    except OSError as error:
        raise Storage("the code cannot be copied for the job", f"{error.strerror}: {error.filename or state}",
                      "make room there or mend its permissions, or queue with --live") from None
    return folder.name


def unused(state: Path, used: set[str]) -> list[Path]:
    """Snapshots that no job names, but for young ones: a job may be about to."""
    return [path for path in _old(state) if path.suffix != ".part" and path.name not in used]


def remove(folder: Path) -> None:
    """Rename, then delete: a kill between leaves no half snapshot."""
    aside = _aside(folder.parent)
    with contextlib.suppress(FileNotFoundError):  # a sister was quicker
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)  # what is left of it, `tidy` finds


def tidy(state: Path) -> list[Path]:
    """Remove what killed processes left half written or half deleted; the folders that are gone."""
    parts = [path for path in _old(state) if path.suffix == ".part"]
    for path in parts:
        shutil.rmtree(path, ignore_errors=True)
    return [path for path in parts if not path.exists()]


def _old(state: Path) -> list[Path]:
    return [path for path in sorted((state / "snapshots").glob("*")) if time.time() - path.stat().st_mtime > YOUNG]


def _aside(snapshots: Path) -> Path:
    return snapshots / f"{os.getpid()}.{os.urandom(4).hex()}.part"


def _git(root: Path, *words: str) -> bytes:
    """b"" where there is no git, no repository or no commit: what lies there is code all the same."""
    try:
        done = subprocess.run(["git", "--no-optional-locks", "-C", str(root), *words], capture_output=True)
    except FileNotFoundError:
        return b""
    return b"" if done.returncode else done.stdout


def _listed(root: Path, which: str) -> set[str]:
    return _code(os.fsdecode(_git(root, "ls-files", which, "--exclude-standard", "-z", "--", *TOPS)).split("\0"))


def _walked(root: Path) -> set[str]:
    return _code(str(path.relative_to(root)) for top in TOPS for path in (root / top).rglob("*") if path.is_file())


def _code(names: Iterable[str]) -> set[str]:
    return {name for name in names if name and not NO_CODE.match(name)}


def _read(root: Path, names: set[str]) -> tuple[Files, list[str]]:
    """Everything at once, so that what is copied is what was hashed; large files and linked folders are left out."""
    there = [name for name in sorted(names) if (root / name).exists()]  # others are deleted and not committed
    left_out = [name for name in there if (root / name).is_dir() or (root / name).stat().st_size > LARGE]
    return {name: ((root / name).read_bytes(), (root / name).stat().st_mode)
            for name in there if name not in left_out}, left_out


def _hash(files: Files) -> str:
    """Over path, executable bit and content."""
    digest = hashlib.sha256()
    for name, (content, mode) in sorted(files.items()):
        digest.update(b"%s\0%d %d\0%s" % (os.fsencode(name), bool(mode & 0o100), len(content), content))
    return digest.hexdigest()[:12]


def _commit(root: Path) -> tuple[str, bytes]:
    """With a + where the code differs from it, and how it differs."""
    commit = _git(root, "rev-parse", "--short=12", "HEAD").decode().strip()
    diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--no-color", "--", *TOPS, ":!code/tests", ":!code/pictures")
    return commit + ("+" if diff else ""), diff


def _add(folder: Path, files: Files) -> None:
    """At once or not at all: a kill leaves a .part folder, and of two processes with the same content both succeed."""
    part = _aside(folder.parent)
    try:
        for name, (content, mode) in files.items():
            _write(part / name, content, mode & 0o555)  # nobody is to edit what a job will run
        for place, _, _ in os.walk(part):
            disk.sync_folder(Path(place))
        os.rename(part, folder)
    except OSError:
        if not folder.exists():  # else a sister was quicker
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
