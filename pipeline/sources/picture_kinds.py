"""Tell the colour video in a folder of images from depth maps, masks and thumbnails beside it."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manifests.wording import pluralise
from pipeline.sources.listing import ListedFile

Channels = Literal["colour", "palette", "grey", "16-bit grey", "32-bit grey", "unknown"]
"""What the pixels of an image are. `unknown`: it cannot be opened, and belongs to any kind."""

_NOT_PICTURES = re.compile(
    r"(?<![a-z])(depths?|disp|disparity|masks?|seg|segmentations?|labels?|normals?|thumbs?"
    r"|thumbnails?)(?![a-z])"
)
"""Words in names of images that are made from a video, and are not the video."""
_PICTURES = re.compile(r"(?<![a-z])(colou?r|rgb|images?|img|frames?)(?![a-z])")
"""Words in names of a video's images."""

_RUN = 4
"""Consecutive files per run, so that a run contains kinds that alternate."""
_RUNS = 4
"""Runs of consecutive files whose headers are read, spread from the first file to the last."""
_FEWEST = 0.1
"""The smallest part of the most frequent kind's number of images that makes a kind the video."""
_SHOWN = 4
"""Kinds that a sentence lists."""


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image says of its pixels.

    alpha: whether they may be transparent
    """

    channels: Channels
    alpha: bool


@dataclass(frozen=True)
class PictureKind:
    """Images of one folder that belong together: alike in their names and in their pixels.

    pattern: their names with * for each number: "frame-*.color.png"
    alpha:   whether some of them may be transparent
    """

    pattern: str
    channels: Channels
    alpha: bool
    files: tuple[ListedFile, ...]

    def __str__(self) -> str:
        channels = "" if self.channels in ("colour", "unknown") else f" ({self.channels})"
        return f"{len(self.files):,} {self.pattern}{channels}"


def header_of(mode: str, has_transparency: bool) -> ImageHeader:
    """Describe pixels, given Pillow's mode and whether it finds transparency in a header."""
    channels: Channels = "colour"
    if mode.startswith("I;16"):
        channels = "16-bit grey"
    elif mode in ("I", "F"):
        channels = "32-bit grey"
    elif mode in ("L", "LA", "La", "1"):
        channels = "grey"
    elif mode in ("P", "PA"):
        channels = "palette"
    return ImageHeader(channels, has_transparency)


def main_channels(counts: Counter[Channels]) -> Channels:
    """Choose what a video's images are, by the number of images of each: colour if there is any.

    Fewer colour images than a tenth of the others do not count.
    """
    known = {channels: count for channels, count in counts.items() if channels != "unknown"}
    if not known:
        return "unknown"
    most = max(known.values())
    if known.get("colour", 0) >= _FEWEST * most:
        return "colour"
    return min(channels for channels, count in known.items() if count == most)


def picture_kinds(root: Path, files: Sequence[ListedFile]) -> list[PictureKind]:
    """Group the images of one folder by their names, and by their pixels where names do not tell.

    Names tell kinds apart by what is left without their numbers, and images of one name by their
    suffixes. If most names are unlike all others, they tell nothing. Reads the headers of a few
    images per group, and of all its images if these differ.
    """
    groups = _by_key(files, lambda file: re.sub("[0-9]+", "", file.stem).casefold())
    if 2 * len(groups) > len(files):
        groups = [list(files)]
    kinds = []
    for group in groups:
        stems = {file.stem.casefold() for file in group}
        by_suffix = [group] if len(stems) == len(group) else _by_key(group, _suffix)
        for alike in by_suffix:
            kinds += _by_pixels(root, alike)
    return kinds


def choose_video(kinds: Sequence[PictureKind]) -> PictureKind | None:
    """Choose the kind that is the video, or None if there is none.

    It has two images or more, in colour if there is such a kind, and is not named as depth, masks,
    segmentation, normals or thumbnails, unless it is the only one. Among several, the one with the
    most images is chosen, then one named as colour, images or frames, then the first by name.
    """
    candidates = [kind for kind in kinds if len(kind.files) >= 2]
    if len(candidates) > 1:
        candidates = [kind for kind in candidates if not _NOT_PICTURES.search(_words(kind))]
    most = max((len(kind.files) for kind in candidates), default=0)
    return min(
        (kind for kind in candidates if len(kind.files) >= _FEWEST * most),
        key=lambda kind: (
            kind.channels != "colour",
            -len(kind.files),
            not _PICTURES.search(_words(kind)),
            kind.pattern,
        ),
        default=None,
    )


def describe_others(video: PictureKind | None, others: Sequence[PictureKind]) -> str:
    """Say which kinds are left out beside the video: "6 depth*.png (16-bit grey)"."""
    by_number = sorted(others, key=lambda kind: (-len(kind.files), kind.pattern))
    more = f" and {len(others) - _SHOWN} more kinds" if len(others) > _SHOWN else ""
    listed = ", ".join(str(kind) for kind in by_number[:_SHOWN]) + more
    if video is None:
        return (
            f"none of its kinds of pictures is a colour video ({listed}): put the images of the "
            "video into a folder of their own"
        )
    count = pluralise(sum(len(kind.files) for kind in others), "image")
    return f"{count} beside the video's {video} are of other kinds and left out: {listed}"


def _by_pixels(root: Path, files: list[ListedFile]) -> list[PictureKind]:
    """Split images with similar names by what their headers say."""
    ordered = sorted(files, key=lambda file: file.name)
    headers = {file: _read_header(root, file) for file in _sample(ordered)}
    pattern = re.sub("[0-9]+", "*", ordered[0].base)
    if len(_known(headers.values())) > 1:
        headers = {file: headers.get(file) or _read_header(root, file) for file in ordered}
    # Images that cannot be opened stay with the video: decoding says what is wrong with them.
    counts = Counter(header.channels for header in headers.values())
    main = main_channels(counts)
    others = _known(headers.values()) - {main}
    return [
        PictureKind(
            pattern=pattern,
            channels=channels,
            alpha=any(h.alpha for h in headers.values() if h.channels == channels),
            files=tuple(
                file
                for file in ordered
                if _channels(headers.get(file), of_others=others, main=main) == channels
            ),
        )
        for channels in (main, *sorted(others))
    ]


def _channels(header: ImageHeader | None, *, of_others: set[Channels], main: Channels) -> Channels:
    """The kind of an image: its own, or the video's if that is not known."""
    return header.channels if header and header.channels in of_others else main


def _known(headers: Iterable[ImageHeader]) -> set[Channels]:
    return {header.channels for header in headers} - {"unknown"}


def _sample(files: list[ListedFile]) -> list[ListedFile]:
    """Pick runs of consecutive files, from the first to the last."""
    last = max(len(files) - _RUN, 0)
    starts = {last * run // (_RUNS - 1) for run in range(_RUNS)}
    indices = {start + step for start in starts for step in range(_RUN)}
    return [files[index] for index in sorted(indices) if index < len(files)]


def _read_header(root: Path, file: ListedFile) -> ImageHeader:
    """Read an image's header; `unknown` if it cannot be opened."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, which decoding checks
            with Image.open(root / file.name) as image:
                return header_of(image.mode, image.has_transparency_data)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ImageHeader("unknown", False)


def _by_key(
    files: Iterable[ListedFile], key: Callable[[ListedFile], str]
) -> list[list[ListedFile]]:
    """Group files by a key, in the order of the keys."""
    groups: dict[str, list[ListedFile]] = {}
    for file in files:
        groups.setdefault(key(file), []).append(file)
    return [groups[key] for key in sorted(groups)]


def _suffix(file: ListedFile) -> str:
    return file.base[len(file.stem) :].casefold()


def _words(kind: PictureKind) -> str:
    return kind.pattern.casefold()
