"""Render the files of videos that pretrack makes itself, where they are read and not before."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.failures import DecodeError, MachineError, Reason
from pipeline.sources import scenes, synthetic
from shards.clip import RENDERED_DATASETS
from shards.errors import PretrackError
from shards.files import TEMPORARY, atomic_write

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WRITE_TRIES = 100
"""How often a file is written whose temporary file other processes delete. Each of them deletes it
once per video that it begins, and a loaded machine may begin many while one file is synced."""


def is_rendered(dataset: str) -> bool:
    """Tell whether a dataset's files are rendered. Its videos' content follows from their ids."""
    return dataset in RENDERED_DATASETS


def render_missing(
    dataset: str, root: str, names: Sequence[str], on_progress: Callable[[], None]
) -> None:
    """Render those files of a video, named as in its row, that are not in the root yet or damaged.

    Each file is written atomically, and is the same whoever renders it: several processes may
    render one video. What killed ones left half-written is removed. Calls `on_progress` after each
    file, and on the way to the first, so that a busy machine is not taken for one that hangs.
    Raises DecodeError if a file cannot be read or written, and MachineError if this machine cannot
    render.
    """
    folder, missing = Path(root), []
    _remove_leftovers({(folder / name).parent for name in names})
    for name in names:
        if _is_intact(folder / name):
            on_progress()
        else:
            missing.append(name)
    if not missing:
        return
    for name, data in _render(dataset, missing, on_progress):
        _write(folder / name, data)
        on_progress()


def _remove_leftovers(folders: set[Path]) -> None:
    """Delete temporary files, those of other processes at work included: they write them again."""
    for path in (path for folder in folders for path in folder.glob(f"{TEMPORARY}*")):
        with suppress(OSError):  # where nothing can be deleted, nothing needs to be
            path.unlink()


def _is_intact(file: Path) -> bool:
    """Tell whether a file is a whole PNG whose checksums are right. Raises DecodeError."""
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DecodeError(
            f"{file} cannot be read ({error.strerror or error}): delete it to render it again",
            Reason.NOT_RENDERED,
        ) from error
    # Chunks follow one another: the size of the content, a type of 4 bytes, the content, a checksum
    # of both. The last has the type IEND.
    start, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        end = start + 12 + int.from_bytes(data[start : start + 4])
        kind, checksum = data[start + 4 : start + 8], int.from_bytes(data[end - 4 : end])
        if end > len(data) or zlib.crc32(data[start + 4 : end - 4]) != checksum:
            return False
        start = end
    return data.startswith(_PNG_SIGNATURE) and start == len(data)


def _write(file: Path, data: bytes) -> None:
    """Write a file atomically. Raises DecodeError."""
    for tries_left in reversed(range(_WRITE_TRIES)):
        try:
            atomic_write(file, data)
            return
        except OSError as error:
            # Another process may have taken the temporary file for a leftover.
            if isinstance(error, FileNotFoundError) and tries_left:
                continue
            raise DecodeError(
                f"{file} cannot be written ({error.strerror or error}): see that "
                "'root' is on a disk that this machine may write to, with space left",
                Reason.NOT_RENDERED,
            ) from error


def _render(
    dataset: str, names: Sequence[str], on_progress: Callable[[], None]
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of each file."""
    try:
        if dataset == "scenes":
            yield from scenes.render_files(names, on_progress)
        else:
            yield from synthetic.render_files(names)
    except PretrackError as error:  # such as photographs that are not installed
        raise MachineError(str(error)) from error
