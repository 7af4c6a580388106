"""Any tree of video files, or of folders with images."""

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
    """A folder tree: every video file is a video, and so is every folder with two or more images directly in it.

    An image's frame number is the number its name ends in where all have distinct ones, else its place in natural order. Hidden
    files and folders are left out; a folder that links lead to twice is read once.
    """

    dataset: Literal["video_folder"]
    """Which dataset this is."""
    name: SourceName = "video_folder"
    """The name of this source; two sources need different ones."""
    root: Root
    """The top of the tree."""
    terms: str = "not stated"
    """What may be done with the footage, in a sentence; stored with every clip."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """All videos, sorted by id, then what could not be listed. Raises PretrackError if there is no root or nothing in it."""
        check_root(self.root, "video_folder")
        found = sorted(
            self._walk("", set()), key=lambda item: (isinstance(item, Failure), item.video_id)
        )
        if not found:
            raise PretrackError(
                f"{self.root} holds no videos: expected files with one of the suffixes {' '.join(VIDEO_SUFFIXES)}, "
                "or folders with two or more .jpg or .png images, at any depth"
            )
        yield from found

    def _walk(self, folder: str, seen: set[tuple[int, int]]) -> Iterator[Video | Failure]:
        """What is in a folder and below it. `seen` are the folders read so far, so that a loop of links ends."""
        try:
            stat = os.stat(self.root / folder)
            if (stat.st_dev, stat.st_ino) in seen:
                return
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(self.root / folder) as scan:
                entries = sorted(
                    (entry for entry in scan if not entry.name.startswith(".")),
                    key=lambda entry: entry.name,
                )
        except OSError as error:
            yield self._failure(
                folder or ".",
                Reason.UNREADABLE_FOLDER,
                f"the folder cannot be listed ({error.strerror})",
            )
            return
        images = []
        for entry in entries:
            name = join_path(folder, entry.name)
            if is_folder(entry):
                yield from self._walk(name, seen)
            elif entry.name.lower().endswith(VIDEO_SUFFIXES) or is_image(entry.name):
                try:
                    file = file_of_entry(entry, folder)
                except OSError as error:
                    yield self._failure(
                        name,
                        Reason.UNREADABLE_FILE,
                        f"the file cannot be opened ({error.strerror})",
                    )
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

    def _video(
        self, video_id: str, files: list[ListedFile], file: str, numbers: tuple[int, ...]
    ) -> Video:
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
        return Failure(
            source=self.name,
            video_id=video_id,
            stage="catalog",
            reason=reason,
            detail=f"{self.root}/{video_id}: {detail}",
        )
