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
    dataset: str, root: str, names: Sequence[str], on_file: Callable[[], None]
) -> None:
    """Render those files of a video, named as in its row, that are not in the root yet.

    Each file is written atomically, and is the same whoever renders it: several processes may
    render one video. Calls `on_file` after each. Raises DecodeError if a file cannot be written,
    and MachineError if this machine cannot render.
    """
    folder = Path(root)
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return
    for name, data in _render(dataset, missing):
        try:
            atomic_write(folder / name, data)
        except OSError as error:
            raise DecodeError(
                f"{folder / name} cannot be written ({error.strerror or error}): see that "
                "'root' is on a disk that this machine may write to, with space left",
                Reason.NOT_RENDERED,
            ) from error
        on_file()


def _render(dataset: str, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of each file."""
    render = scenes.render_files if dataset == "scenes" else synthetic.render_files
    try:
        yield from render(names)
    except PretrackError as error:  # such as photographs that are not installed
        raise MachineError(str(error)) from error
