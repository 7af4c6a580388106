"""List YouTube-VOS 2018, 2019 and 2022: folders of frames taken from 30 Hz videos.

The splits hold every fifth frame, those named `…_all_frames` every frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from manifests.rows import Failure
from manifests.settings import Settings
from pipeline.failures import Reason
from pipeline.sources.listing import (
    ListedFile,
    Root,
    SourceName,
    check_root,
    folders_in,
    identity_of,
    images_in,
    join_path,
    trailing_number,
)
from pipeline.sources.video import Video
from shards.errors import PretrackError

TERMS = (
    "YouTube-VOS: non-commercial research only; the frames belong to their owners on YouTube "
    "and must not be redistributed (annotations: CC BY 4.0)"
)
_FRAMES_PER_SECOND = 30


class YoutubeVos(Settings):
    """One split of YouTube-VOS: `SPLIT/JPEGImages/ID/00000.jpg` under the root.

    The root may also be the split's own folder, and the split's folder may be doubled
    (`SPLIT/SPLIT/JPEGImages`). A frame's number is the number in its file name. It counts frames of
    the 30 Hz original, so the frame's time is number / 30 s. The masks are not used. `meta.json`,
    if present, only serves to notice what is missing on disk.
    """

    dataset: Literal["youtube_vos"]
    """The kind of dataset."""
    name: SourceName = "youtube_vos"
    """The name of this source. Every source of a build needs its own."""
    root: Root
    """The folder that holds the splits."""
    split: str = Field(default="train", pattern=r"^[A-Za-z0-9_-]+$")
    """The split's folder: `train`, `valid` or `test` (6 frames per second), or `train_all_frames`
    and the like (30 frames per second)."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """Yield what is missing from the split as a whole, then its videos, sorted by id.

        Raises PretrackError if the root or the split does not exist, or the split is empty.
        """
        check_root(self.root, "youtube_vos")
        folder = self._split_folder()
        frames = join_path(folder, "JPEGImages")
        videos = folders_in(self.root, frames)
        if not videos:
            raise PretrackError(
                f"{self.root / frames} holds no videos: expected folders of numbered .jpg files"
            )
        expected, failures = self._expected(folder)
        yield from failures
        missing = sorted(expected.keys() - {Path(video).name for video in videos})
        if missing:
            detail = (
                f"{len(missing)} videos of {self.root / folder / 'meta.json'} "
                f"have no folder in {frames} (first: {missing[0]})"
            )
            yield self._failure("", Reason.MISSING_VIDEOS, detail)
        for video in videos:
            yield from self._find(video, expected.get(Path(video).name, set()))

    def _split_folder(self) -> str:
        """Return the folder that holds JPEGImages, relative to the root. Raises PretrackError."""
        for folder in (self.split, f"{self.split}/{self.split}", ""):
            if (self.root / folder / "JPEGImages").is_dir():
                return folder
        splits = [
            folder
            for folder in folders_in(self.root)
            if (self.root / folder / "JPEGImages").is_dir()
        ]
        hint = f" (there is {', '.join(splits)}: set 'split' to one of them)" if splits else ""
        raise PretrackError(
            f"{self.root} holds no YouTube-VOS split '{self.split}': "
            f"expected {self.split}/JPEGImages/ID/00000.jpg{hint}"
        )

    def _expected(self, folder: str) -> tuple[dict[str, set[int]], list[Failure]]:
        """Read which frame numbers meta.json names for each video, and the failure if it is broken.

        Returns an empty mapping if the file is absent, as it is in re-packed copies, or broken.
        """
        path = self.root / folder / "meta.json"
        if not path.is_file():
            return {}, []
        try:
            videos = json.loads(path.read_text(encoding="utf-8"))["videos"]
            return {
                name: {
                    int(frame)
                    for entry in video.get("objects", {}).values()
                    for frame in entry.get("frames", ())
                }
                for name, video in videos.items()
            }, []
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            detail = f"{path} cannot be read ({error}): the frames on disk are used as they are"
            return {}, [self._failure("", Reason.UNREADABLE_META_JSON, detail)]

    def _find(self, folder: str, expected: set[int]) -> Iterator[Video | Failure]:
        """Yield what is missing from one video's folder or superfluous in it, then the video."""
        video_id = Path(folder).name
        frames, unnumbered = self._frames(folder)
        if unnumbered:
            detail = (
                f"{len(unnumbered)} images of {folder} have no frame number of their own "
                f"in their name (first: {unnumbered[0]})"
            )
            yield self._failure(video_id, Reason.IMAGES_WITHOUT_FRAME_NUMBER, detail)
        if absent := sorted(expected - frames.keys()):
            detail = (
                f"{len(absent)} frames of {video_id} in meta.json are not on disk "
                f"(first: {absent[0]:05d})"
            )
            yield self._failure(video_id, Reason.MISSING_IMAGES, detail)
        if not frames:
            yield self._failure(
                video_id, Reason.NO_IMAGES, f"{self.root / folder} holds no numbered .jpg files"
            )
            return
        numbers = tuple(sorted(frames))
        files = [frames[number] for number in numbers]
        yield Video(
            source=self.name,
            dataset=self.dataset,
            video_id=video_id,
            sequence=f"youtube_vos/{video_id}",
            root=str(self.root.absolute()),
            file="",
            image_files=tuple(file.name for file in files),
            frame_numbers=numbers,
            timestamps=tuple(number / _FRAMES_PER_SECOND for number in numbers),
            cameras=None,
            identity=identity_of(files),
            terms=TERMS,
        )

    def _frames(self, folder: str) -> tuple[dict[int, ListedFile], list[str]]:
        """Map frame numbers to the images of a folder.

        Also returns the names of the images that are left out: those without a number, and those
        whose number an earlier name has.
        """
        frames: dict[int, ListedFile] = {}
        unnumbered = []
        for file in sorted(images_in(self.root, folder), key=lambda file: file.name):
            number = trailing_number(file.stem)
            if number is None or number in frames:
                unnumbered.append(file.base)
            else:
                frames[number] = file
        return frames, unnumbered

    def _failure(self, video_id: str, reason: Reason, detail: str) -> Failure:
        return Failure(
            source=self.name, video_id=video_id, stage="catalog", reason=reason, detail=detail
        )
