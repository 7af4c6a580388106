"""List the videos in any folder tree: video files, and folders of images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from manifests.rows import Failure
from manifests.settings import Settings
from manifests.wording import pluralise
from pipeline.failures import Reason
from pipeline.sources.listing import (
    IMAGE_SUFFIXES,
    ListedFile,
    Root,
    SourceName,
    check_root,
    file_of_entry,
    identity_of,
    is_folder,
    is_image,
    join_path,
    number_frames,
)
from pipeline.sources.picture_kinds import (
    PictureKind,
    choose_video,
    describe_others,
    picture_kinds,
)
from pipeline.sources.video import Video
from shards.errors import PretrackError

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv"),
    *(".mts", ".m2ts", ".3gp", ".gif", ".ogv"),
)

_BUILD_MARK = "build.lock"
"""The file that every output folder of a build holds from the start of its first build."""
_OF_A_BUILD = {
    *(_BUILD_MARK, "build.log", "build.json", "current.json"),
    *("catalog", "receipts", "shards", "snapshots"),
}
"""What a build writes into its output folder: not part of a source that surrounds it."""
_SHOWN_SUFFIXES = 6


@dataclass
class _Seen:
    """What a walk through a folder tree has come across.

    folders:   the (device, inode) of every folder read so far, so that a loop of links ends
    ignored:   number of files that are not read, by suffix
    first:     the first of them
    """

    folders: set[tuple[int, int]] = field(default_factory=set)
    ignored: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def ignore(self, name: str, note: str = "") -> None:
        """Count a file that is not read; `note` says why, where its suffix does not."""
        suffix = os.path.splitext(name)[1].lower() or "without a suffix"
        self.ignored[f"{suffix}{note}"] += 1
        self.first = self.first or name


class VideoFolder(Settings):
    """A folder tree of video files, or of folders with images.

    Every video file is a video; so is every folder that directly holds two or more images.

    An image's frame number is the number that its name ends in, if the names differ in nothing
    else. Otherwise the images are numbered from 0 in natural order. If a folder holds several kinds
    of pictures, such as depth maps beside colour images, the colour images are the video. Hidden
    files and folders are left out. A folder that is reached twice, through links, is read once.
    """

    dataset: Literal["video_folder"]
    """The kind of dataset."""
    name: SourceName = "video_folder"
    """The name of this source. Every source of a build needs its own."""
    root: Root
    """The folder at the top of the tree."""
    terms: str = "not stated"
    """What may be done with the footage, in one sentence; stored with every clip."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """Yield all videos, sorted by id, then what could not be listed.

        Raises PretrackError if the root does not exist or nothing is in it.
        """
        check_root(self.root, "video_folder")
        seen = _Seen()
        items = sorted(
            self._walk("", seen), key=lambda item: (isinstance(item, Failure), item.video_id)
        )
        if not items:
            ignored = f" ({_describe_ignored(seen)})" if seen.ignored else ""
            raise PretrackError(
                f"{self.root} holds no videos: expected files with one of the suffixes "
                f"{' '.join(VIDEO_SUFFIXES)}, or folders with two or more images "
                f"({' '.join(IMAGE_SUFFIXES)}), at any depth{ignored}"
            )
        yield from items
        if seen.ignored:
            detail = f"{_describe_ignored(seen)} in {self.root}"
            yield self._failure("", Reason.IGNORED_FILES, detail)

    def _walk(self, folder: str, seen: _Seen) -> Iterator[Video | Failure]:
        """Yield what is in a folder, relative to the root, and below it."""
        try:
            entries = self._entries(folder, seen.folders)
        except OSError as error:
            detail = f"the folder cannot be listed ({error.strerror})"
            yield self._path_failure(folder or ".", Reason.UNREADABLE_FOLDER, detail)
            return
        images = []  # those directly in this folder: together they are one video
        for entry in entries:
            name = join_path(folder, entry.name)
            if is_folder(entry):
                yield from self._walk(name, seen)
                continue
            if not (entry.name.lower().endswith(VIDEO_SUFFIXES) or is_image(entry.name)):
                with suppress(OSError):  # a link to itself
                    if entry.is_file():
                        seen.ignore(name)
                continue
            try:
                file = file_of_entry(entry, folder)
            except OSError as error:
                detail = f"the file cannot be opened ({error.strerror})"
                yield self._path_failure(name, Reason.UNREADABLE_FILE, detail)
                continue
            if is_image(entry.name):
                images.append(file)
            else:
                yield self._video(name, [file], name, ())
        if len(images) >= 2:
            yield from self._image_video(folder or ".", images)
        elif images:
            seen.ignore(images[0].name, " alone in its folder")

    def _image_video(self, video_id: str, images: list[ListedFile]) -> Iterator[Video | Failure]:
        """Yield the video that a folder's images are, and what is special about them."""
        kinds = picture_kinds(self.root, images)
        video = choose_video(kinds)
        if others := [kind for kind in kinds if kind is not video]:
            detail = describe_others(video, others)
            yield self._path_failure(video_id, Reason.OTHER_PICTURES, detail)
        if video is None:
            return
        yield from self._conversions(video_id, video)
        frames = number_frames(video.files)
        files = [file for _, file in frames]
        yield self._video(video_id, files, "", tuple(number for number, _ in frames))

    def _conversions(self, video_id: str, video: PictureKind) -> Iterator[Failure]:
        """Yield how the pixels of a video's images are converted, if that loses something."""
        if video.alpha:
            detail = "its images have an alpha channel: they are composed over mid grey"
            yield self._path_failure(video_id, Reason.TRANSPARENT_IMAGES, detail)
        if video.channels == "16-bit grey":
            detail = "its images have 16 bits per pixel: 0 to 65535 is scaled to 0 to 255"
            yield self._path_failure(video_id, Reason.SCALED_TO_EIGHT_BITS, detail)

    def _entries(self, folder: str, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
        """List the entries of a folder by name, without hidden ones; none if it is in `seen`.

        Adds the folder to `seen`. Raises OSError if it cannot be listed.
        """
        stat = os.stat(self.root / folder)
        if (stat.st_dev, stat.st_ino) in seen:
            return []
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(self.root / folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        if any(entry.name == _BUILD_MARK for entry in visible):
            visible = [entry for entry in visible if entry.name not in _OF_A_BUILD]
        return sorted(visible, key=lambda entry: entry.name)

    def _video(
        self, video_id: str, files: list[ListedFile], file: str, numbers: tuple[int, ...]
    ) -> Video:
        """Describe a video: the video file `file`, or ("") the image `files` with their numbers."""
        return Video(
            source=self.name,
            dataset=self.dataset,
            video_id=video_id,
            sequence=f"video_folder/{video_id}",
            root=str(self.root.absolute()),
            file=file,
            image_files=() if file else tuple(image.name for image in files),
            frame_numbers=numbers,
            timestamps=None,
            cameras=None,
            identity=identity_of(files),
            terms=self.terms,
        )

    def _path_failure(self, video_id: str, reason: Reason, detail: str) -> Failure:
        """Report a path below the root that cannot be used; the detail is prefixed with it."""
        return self._failure(video_id, reason, f"{self.root}/{video_id}: {detail}")

    def _failure(self, video_id: str, reason: Reason, detail: str) -> Failure:
        return Failure(
            source=self.name, video_id=video_id, stage="catalog", reason=reason, detail=detail
        )


def _describe_ignored(seen: _Seen) -> str:
    """Say how many files are ignored, by suffix: "3 files are ignored: 2 .txt, 1 .json …"."""
    common = sorted(seen.ignored.items(), key=lambda pair: (-pair[1], pair[0]))
    listed = ", ".join(f"{count:,} {suffix}" for suffix, count in common[:_SHOWN_SUFFIXES])
    more = " …" if len(common) > _SHOWN_SUFFIXES else ""
    total = sum(seen.ignored.values())
    verb = "is" if total == 1 else "are"
    return f"{pluralise(total, 'file')} {verb} ignored: {listed}{more} (first: {seen.first})"
