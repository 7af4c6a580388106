"""Listing the files of a source: their names, order, numbers and identity. Names and sizes only; no content is read."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from shards.errors import PretrackError

SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", max_length=30)]
"""The name of a source: it becomes part of file names, and of names in tars, which have 100 bytes: there is room for a clip that
starts at frame 10^8 - 1."""

Root = Annotated[Path, AfterValidator(lambda path: path.expanduser())]
"""A source's folder."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

_LARGEST_NUMBER_DIGITS = 18  # what fits an int64


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a source. `name` is relative to the root ("some.zip!member" in an archive); `stamp` changes with the content: the
    modification time in ns, or the CRC of a zip member."""

    name: str
    size: int
    stamp: int

    @property
    def base(self) -> str:
        """The last part of the name."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The same without its suffix."""
        return self.base.rsplit(".", 1)[0]


def check_root(root: Path, dataset: str) -> None:
    """Raises PretrackError unless `root` is a folder."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise PretrackError(
            f"the {dataset} root {root} {what}: set 'root' to the folder that holds the dataset"
        )


def file_of_entry(entry: os.DirEntry[str], folder: str) -> ListedFile:
    """The file behind a directory entry of `folder` (relative to the root, "" for the root). Raises OSError if it is gone."""
    stat = entry.stat()
    return ListedFile(join_path(folder, entry.name), stat.st_size, stat.st_mtime_ns)


def file_at(root: Path, name: str) -> ListedFile:
    """The file `name` of a source. Raises OSError if it is gone."""
    stat = os.stat(root / name)
    return ListedFile(name, stat.st_size, stat.st_mtime_ns)


def join_path(folder: str, name: str) -> str:
    """A relative path in `folder`, which may be "" for the root."""
    return f"{folder}/{name}" if folder else name


def folders_in(root: Path, folder: str = "") -> list[str]:
    """The relative paths of the folders directly in `folder`, sorted; hidden ones are left out."""
    with os.scandir(root / folder) as entries:
        return sorted(
            join_path(folder, entry.name)
            for entry in entries
            if is_folder(entry) and not entry.name.startswith(".")
        )


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a directory entry is a folder or leads to one; a link to itself does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def images_in(root: Path, folder: str) -> list[ListedFile]:
    """The image files directly in `folder`, in no order. A link to nothing is no file. Hidden files are left out."""
    files = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if is_image(entry.name):
                with suppress(OSError):
                    if entry.is_file():
                        files.append(file_of_entry(entry, folder))
    return files


def is_image(name: str) -> bool:
    """Whether a file name is that of an image; hidden files (macOS leaves '._x.jpg' next to 'x.jpg') are none."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.rsplit("/", 1)[-1].startswith(".")


def trailing_number(stem: str) -> int | None:
    """The number a name ends in ("frame000012" → 12), if it has one."""
    match = re.search(r"[0-9]+$", stem)
    return (
        int(match.group())
        if match and len(match.group().lstrip("0")) <= _LARGEST_NUMBER_DIGITS
        else None
    )


def number_frames(files: Iterable[ListedFile]) -> list[tuple[int, ListedFile]]:
    """Files in order, each with its frame number: the number its name ends in, or its place in natural order ("2" before "10")
    where some have no number or two have the same."""
    ordered = sorted(files, key=lambda file: _natural(file.name))
    numbers = [trailing_number(file.stem) for file in ordered]
    distinct = {number for number in numbers if number is not None}
    if len(distinct) < len(ordered):
        return list(enumerate(ordered))
    return sorted(
        (
            (number, file)
            for number, file in zip(numbers, ordered, strict=True)
            if number is not None
        ),
        key=lambda n: n[0],
    )


def identity_of(files: Iterable[ListedFile]) -> str:
    """Digest of names, sizes and modification times (or CRCs), in the order given: 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(
            f"{file.name}\0{file.size}\0{file.stamp}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """A sort key that takes runs of digits as numbers; the name itself decides between "1" and "01"."""
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return [
        (False, int(part), "") if part[0] in "0123456789" else (True, 0, part) for part in parts
    ], name
