"""List the files of a source: their names, order, frame numbers and identity.

Only names, sizes and modification times are read, never the content of a file.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from shards.errors import PretrackError

SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", max_length=30)]
"""The name of a source. It becomes part of file names and of member names in tars, which have at
most 100 bytes: 30 characters leave room for a clip that starts at frame 10^8 - 1."""

Root = Annotated[Path, AfterValidator(lambda path: path.expanduser())]
"""A source's folder; a leading ~ is replaced by the home folder."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")

_DIGITS = "0123456789"
_MOST_DIGITS = 18
"""Digits of a frame number at most, so that it fits an int64."""
_EPOCH_DIGITS = 9
"""Digits before the point from which a decimal number is a time: seconds since 1970."""
_NUMBERED_PART = re.compile(r"(.+)!([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")
_DECIMAL = re.compile(r"([0-9]+)\.([0-9]+)")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a source.

    name:  relative to the root; "some.zip!member" for a member of an archive
    size:  in bytes, unpacked
    stamp: changes with the content: the modification time in ns, or the CRC of a zip member
    """

    name: str
    size: int
    stamp: int

    @property
    def base(self) -> str:
        """The last part of the name: "a/frame1.jpg" → "frame1.jpg"."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The last part without its suffix: "a/frame1.jpg" → "frame1"."""
        return self.base.rsplit(".", 1)[0]


def check_root(root: Path, dataset: str) -> None:
    """Raise PretrackError unless `root` is a folder."""
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise PretrackError(
            f"the {dataset} root {root} {problem}: set 'root' to the folder that holds the dataset"
        )


def file_of_entry(entry: os.DirEntry[str], folder: str) -> ListedFile:
    """Return the file of a directory entry. Raises OSError if it is gone.

    `folder` is the folder that was scanned, relative to the root ("" for the root).
    """
    stat = entry.stat()
    return ListedFile(join_path(folder, entry.name), stat.st_size, stat.st_mtime_ns)


def file_at(root: Path, name: str) -> ListedFile:
    """Return the file `name`, relative to the root. Raises OSError if it is gone."""
    stat = os.stat(root / name)
    return ListedFile(name, stat.st_size, stat.st_mtime_ns)


def files_named(root: str, names: Iterable[str]) -> list[ListedFile]:
    """Return the files of these names, relative to the root; some may be members of zips.

    Numbered parts of a file have the size and the stamp of the whole file.

    A file that is not there, and the name "", has the size -1.
    """
    archives: dict[str, dict[str, zipfile.ZipInfo]] = {}
    whole: dict[str, ListedFile] = {}
    files = []
    for name in names:
        archive, bang, member = name.partition(".zip!")
        file = ListedFile(name, -1, 0)
        if bang:
            if archive not in archives:
                archives[archive] = _members(Path(root) / f"{archive}.zip")
            if info := archives[archive].get(member):
                file = ListedFile(name, info.file_size, info.CRC)
        elif name:
            path = numbered_part(name)[0] or name
            with suppress(OSError):
                if path not in whole:
                    whole[path] = file_at(Path(root), path)
                file = replace(whole[path], name=name)
        files.append(file)
    return files


def numbered_part(name: str) -> tuple[str, str]:
    """Split the name of a numbered part of a file: "a.h5!7" → ("a.h5", "7").

    It is a dataset of an HDF5 file, or the frame of a video at a time in seconds ("a.mkv!1.5").
    Returns ("", "") for all other names.
    """
    match = _NUMBERED_PART.fullmatch(name)
    return (match[1], match[2]) if match else ("", "")


def _members(archive: Path) -> dict[str, zipfile.ZipInfo]:
    """List the members of a zip by name; none if it cannot be read."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(archive) as opened:
        return {info.filename: info for info in opened.infolist()}
    return {}


def join_path(folder: str, name: str) -> str:
    """Join a folder, relative to the root ("" for the root), and the name of something in it."""
    return f"{folder}/{name}" if folder else name


def path_inside(value: object) -> str:
    """Return a path of an annotation; "" for what is no path, or leads out of the root."""
    inside = isinstance(value, str) and not value.startswith("/") and ".." not in value.split("/")
    return value if inside else ""  # type: ignore[return-value]


def folders_in(root: Path, folder: str = "") -> list[str]:
    """List the folders directly in `folder`, relative to the root, sorted, without hidden ones."""
    with os.scandir(root / folder) as entries:
        return sorted(
            join_path(folder, entry.name)
            for entry in entries
            if is_folder(entry) and not entry.name.startswith(".")
        )


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether a directory entry is a folder or a link to one. A link to itself is neither."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def images_in(root: Path, folder: str) -> list[ListedFile]:
    """List the image files directly in `folder`, unordered, without hidden files and dead links."""
    files = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if is_image(entry.name):
                with suppress(OSError):  # a link to nothing, or a file that was just removed
                    if entry.is_file():
                        files.append(file_of_entry(entry, folder))
    return files


def is_image(name: str) -> bool:
    """Tell whether a name is an image's: macOS puts hidden files, '._x.jpg', next to 'x.jpg'."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.rsplit("/", 1)[-1].startswith(".")


def trailing_number(stem: str) -> int | None:
    """Return the number that a name ends in ("frame000012" → 12), or None."""
    match = re.search(r"[0-9]+$", stem)
    if match is None or len(match.group().lstrip("0")) > _MOST_DIGITS:
        return None
    return int(match.group())


def number_frames(files: Iterable[ListedFile]) -> list[tuple[int, ListedFile]]:
    """Order image files and give each its frame number: [(number, file), …], increasing.

    A file's number is the one that its name ends in, if everything before that number is the same
    in all names and no two numbers are equal. Otherwise the files are numbered from 0, in natural
    order ("2" before "10", "9.07.37" before "10.01.02"); times in seconds are compared as decimal
    numbers ("0.08" before "0.2").
    """
    listed = list(files)
    numbers = [trailing_number(file.stem) for file in listed]
    numbered = [
        (number, file) for number, file in zip(numbers, listed, strict=True) if number is not None
    ]
    distinct = len({number for number, _ in numbered}) == len(listed)
    if distinct and len({file.stem.rstrip(_DIGITS).casefold() for file in listed}) <= 1:
        return sorted(numbered, key=lambda pair: pair[0])
    decimal = _are_times([file.stem for file in listed])
    return list(enumerate(sorted(listed, key=lambda file: _natural(file.name, decimal))))


def _are_times(stems: list[str]) -> bool:
    """Whether the names hold times in seconds, one decimal number each: "1341847980.72", "0.2".

    As opposed to two counters ("1.9", "1.10"): a time has nine or more digits before the point, or
    the digits after it vary in number and never end in a zero that could be left out.
    """
    decimals = [_DECIMAL.findall(stem) for stem in stems]
    if any(
        len(found) != 1 or stem.count(".") != 1 for found, stem in zip(decimals, stems, strict=True)
    ):
        return False
    wholes, fractions = zip(*(found[0] for found in decimals), strict=True)
    if all(len(whole) >= _EPOCH_DIGITS for whole in wholes):
        return True
    no_zeros = all(len(fraction) == 1 or fraction[-1] != "0" for fraction in fractions)
    return no_zeros and len({len(fraction) for fraction in fractions}) > 1


def identity_of(files: Iterable[ListedFile]) -> str:
    """Digest the names, sizes and stamps of files, in the order given: 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(
            f"{file.name}\0{file.size}\0{file.stamp}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


def _natural(name: str, decimal: bool = False) -> tuple[list[tuple[bool, int, str]], str]:
    """Make a sort key that compares runs of digits as numbers; ties ("1", "01") go by the name.

    decimal: compare the digits after a point as those of a decimal number ("0.08" before "0.2")
    """
    if decimal:
        # Zeros at the end make all fractions equally long, so that they compare as whole numbers.
        name = _DECIMAL.sub(lambda match: f"{match[1]}.{match[2]:0<{_MOST_DIGITS}}", name)
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    # Per part: (is text, number, text). Numbers and texts are never compared with each other.
    return [
        (False, int(part), "") if part[0] in _DIGITS else (True, 0, part) for part in parts
    ], name
