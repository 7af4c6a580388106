"""Write an export beside its target, and give it the target's name once it is whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import PretrackError
from shards.files import TEMPORARY

_EXPORT, _LOCK = "export", "lock"
"""Names in the temporary folder: that of what is exported, and that of the lock."""


@contextmanager
def atomic_export(target: Path) -> Iterator[Path]:
    """Give a path for a file or folder; it becomes `target` if the block succeeds.

    It lies in the folder `.tmp-NAME` next to the target, which is deleted at the end. A killed
    process leaves this folder, and the next export to the target deletes what is in it. Raises
    PretrackError if another process is writing to the target.
    """
    folder = target.parent / f"{TEMPORARY}{target.name}"
    lock = _lock(folder, target)
    try:
        _empty(folder)
        yield folder / _EXPORT
        os.replace(folder / _EXPORT, target)
    finally:
        # The lock is the last file: whoever finds it gone starts with an empty folder.
        _empty(folder)
        (folder / _LOCK).unlink()
        with suppress(OSError):  # another export has begun in it
            folder.rmdir()
        os.close(lock)


def _lock(folder: Path, target: Path) -> int:
    """Make the folder if need be, and lock it; the process's end, or closing the file, unlocks it.

    Raises PretrackError if another process holds the lock.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:  # another export has just ended
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(folder / _LOCK)):
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise PretrackError(
                f"another export is writing {target}: wait for it, or name another file with --file"
            ) from error
        except FileNotFoundError:
            pass
        os.close(lock)


def _empty(folder: Path) -> None:
    """Delete all but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()
