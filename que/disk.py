"""The few file operations that the que's state rests on. Any of them can fail, or be the last one before a kill:
what was there stays whole, and what is new appears at once."""

import contextlib
import errno
import fcntl
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from que.errors import Storage

WAIT = 30.0  # seconds for the lock, which is held for milliseconds
_ADVICE = {errno.ENOSPC: "make room there; nothing is lost", errno.EDQUOT: "your quota is used up there: make room; "
           "nothing is lost", errno.EROFS: "it is mounted read-only; nothing is lost",
           errno.EACCES: "see who may use it; nothing is lost", errno.EPERM: "see who may use it; nothing is lost"}


@contextlib.contextmanager
def explained(path: Path, doing: str = "write") -> Iterator[None]:
    """A full disk, a read-only folder or a failing disk is no bug: Storage says what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "see what is wrong there; nothing is lost")
        raise Storage(f"the que cannot {doing}", f"{path}: {error.strerror}", advice) from None


def write(path: Path, text: str, aside: Path) -> None:
    """Write `text` to `aside`, which only this process uses, and rename it to `path`."""
    with explained(path):
        file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            data = text.encode(errors="surrogatepass")  # names that are no UTF-8 come as surrogates
            while data:
                data = data[os.write(file, data):]
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(aside, path)
        sync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """One rename: the file is in the one folder or the other, whatever happens."""
    with explained(target):
        os.rename(source, target)
        sync_folder(target.parent)
        sync_folder(source.parent)


def remove(path: Path) -> None:
    with explained(path):
        os.unlink(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def lock(path: Path, shared: bool = False) -> Iterator[None]:
    """Keep the others out; a kill frees it. Readers of a folder that they may not write to go without, if need be."""
    file = _open_lock(path, shared)
    try:
        if file is not None:
            _acquire(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, path)
        yield
    finally:
        if file is not None:
            os.close(file)


def _open_lock(path: Path, shared: bool) -> int | None:
    with explained(path):
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            if not shared:
                raise
            return os.open(path, os.O_RDONLY) if path.exists() else None


def _acquire(file: int, kind: int, path: Path) -> None:
    deadline = time.monotonic() + WAIT
    while not _locks(file, kind, path):
        if time.monotonic() > deadline:
            raise Storage("another process keeps the que's lock", f"{path}, for {WAIT:.0f} s", "`que doctor` names it")
        time.sleep(random.uniform(0.0002, 0.002))  # who waits longer must not ask less often


def _locks(file: int, kind: int, path: Path) -> bool:
    with explained(path):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def try_lock(path: Path) -> int | None:
    """The open, locked file, to be kept or handed on to a child; None where somebody else holds it."""
    with explained(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(5):  # somebody may just be asking whether it is `locked`
        if _locks(file, fcntl.LOCK_EX, path):
            return file
        time.sleep(0.002)
    os.close(file)
    return None


def locked(path: Path) -> bool:
    """Whether some process holds the lock. Asking shared: two who ask at once do not take each other for a holder."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _locks(file, fcntl.LOCK_SH, path)
    finally:
        os.close(file)
