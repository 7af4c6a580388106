"""List the videos in any folder tree: video files, and folders of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

from manifests.rows import Failure
from manifests.settings import Settings
from pipeline.failures import Reason
from pipeline.sources.listing import (
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
from pipeline.sources.video import Video
from shards.errors import PretrackError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m4v")


class VideoFolder(Settings):
    """A folder tree of video files, or of folders with images.

    Every video file is a video; so is every folder that directly holds two or more images.

    An image's frame number is the number that its name ends in. If the names of a folder's images
    do not all end in distinct numbers, the images are numbered from 0 in natural order. Hidden
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
        items = sorted(
            self._walk("", set()), key=lambda item: (isinstance(item, Failure), item.video_id)
        )
        if not items:
            raise PretrackError(
                f"{self.root} holds no videos: expected files with one of the suffixes "
                f"{' '.join(VIDEO_SUFFIXES)}, or folders with two or more .jpg or .png images, "
                "at any depth"
            )
        yield from items

    def _walk(self, folder: str, seen: set[tuple[int, int]]) -> Iterator[Video | Failure]:
        """Yield what is in a folder, relative to the root, and below it.

        `seen` holds the (device, inode) of every folder read so far, so that a loop of links ends.
        """
        try:
            entries = self._entries(folder, seen)
        except OSError as error:
            detail = f"the folder cannot be listed ({error.strerror})"
            yield self._failure(folder or ".", Reason.UNREADABLE_FOLDER, detail)
            return
        images = []  # those directly in this folder: together they are one video
        for entry in entries:
            name = join_path(folder, entry.name)
            if is_folder(entry):
                yield from self._walk(name, seen)
                continue
            if not (entry.name.lower().endswith(VIDEO_SUFFIXES) or is_image(entry.name)):
                continue
            try:
                file = file_of_entry(entry, folder)
            except OSError as error:
                detail = f"the file cannot be opened ({error.strerror})"
                yield self._failure(name, Reason.UNREADABLE_FILE, detail)
                continue
            if is_image(entry.name):
                images.append(file)
            else:
                yield self._video(name, [file], name, ())
        if len(images) >= 2:
            frames = number_frames(images)
            yield self._video(
                folder or ".",
                [file for _, file in frames],
                "",
                tuple(number for number, _ in frames),
            )

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

    def _failure(self, video_id: str, reason: Reason, detail: str) -> Failure:
        """Report a path below the root that cannot be used; the detail is prefixed with it."""
        return Failure(
            source=self.name,
            video_id=video_id,
            stage="catalog",
            reason=reason,
            detail=f"{self.root}/{video_id}: {detail}",
        )
