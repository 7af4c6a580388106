"""Render the files of videos that pretrack makes itself, where they are read and not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.failures import DecodeError, MachineError, Reason
from pipeline.sources import scenes, synthetic
from shards.errors import PretrackError
from shards.files import atomic_write


def is_rendered(dataset: str) -> bool:
    """Tell whether a dataset's files are rendered. Its videos' content follows from their ids."""
    return dataset in ("synthetic", "scenes")


def render_missing(
    dataset: str, root: str, names: Sequence[str], on_progress: Callable[[], None]
) -> None:
    """Render those files of a video, named as in its row, that are not in the root yet.

    Each file is written atomically, and is the same whoever renders it: several processes may
    render one video. Calls `on_progress` after each, and on the way to the first, so that a busy
    machine is not taken for one that hangs. Raises DecodeError if a file cannot be written, and
    MachineError if this machine cannot render.
    """
    folder = Path(root)
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return
    for name, data in _render(dataset, missing, on_progress):
        try:
            atomic_write(folder / name, data)
        except OSError as error:
            raise DecodeError(
                f"{folder / name} cannot be written ({error.strerror or error}): see that "
                "'root' is on a disk that this machine may write to, with space left",
                Reason.NOT_RENDERED,
            ) from error
        on_progress()


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
