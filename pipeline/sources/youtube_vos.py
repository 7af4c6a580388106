"""YouTube-VOS 2018, 2019 and 2022: folders of frames, every fifth or (`…_all_frames`) every one of a 30 Hz video."""

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
    "YouTube-VOS: non-commercial research only; the frames belong to their owners on YouTube and must not be redistributed "
    "(annotations: CC BY 4.0)"
)
_FRAMES_A_SECOND = 30


class YoutubeVos(Settings):
    """One split: `SPLIT/JPEGImages/ID/00000.jpg` under the root, or the split's own folder as root, or the split's folder doubled.

    A frame's number is that of its file and counts frames of the 30 Hz original, so its time is number / 30 s. The masks are not
    used; `meta.json`, if it is there, only serves to notice what is missing on disk.
    """

    dataset: Literal["youtube_vos"]
    """Which dataset this is."""
    name: SourceName = "youtube_vos"
    """The name of this source; two sources need different ones."""
    root: Root
    """The folder that holds the splits."""
    split: str = Field(default="train", pattern=r"^[A-Za-z0-9_-]+$")
    """Which folder: train, valid or test (6 frames a second), or train_all_frames, … (30 a second)."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """The split's videos, sorted by id. Raises PretrackError if the root or the split is not there, or the split is empty."""
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
            detail = f"{len(missing)} videos of {self.root / folder / 'meta.json'} have no folder in {frames} (first: {missing[0]})"
            yield self._failure("", Reason.MISSING_VIDEOS, detail)
        for video in videos:
            yield from self._find(video, expected.get(Path(video).name, set()))

    def _split_folder(self) -> str:
        """The folder, relative to the root, in which JPEGImages lies."""
        for folder in (self.split, f"{self.split}/{self.split}", ""):
            if (self.root / folder / "JPEGImages").is_dir():
                return folder
        splits = [
            folder
            for folder in folders_in(self.root)
            if (self.root / folder / "JPEGImages").is_dir()
        ]
        there = f" (there is {', '.join(splits)}: set 'split' to one of them)" if splits else ""
        raise PretrackError(
            f"{self.root} holds no YouTube-VOS split '{self.split}': expected {self.split}/JPEGImages/ID/00000.jpg{there}"
        )

    def _expected(self, folder: str) -> tuple[dict[str, set[int]], list[Failure]]:
        """The frame numbers that meta.json names for each video: nothing if the file is absent (re-packed copies lack it)."""
        path = self.root / folder / "meta.json"
        if not path.is_file():
            return {}, []
        try:
            videos = json.loads(path.read_text())["videos"]
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
        """One video, and what of it is missing or odd."""
        video_id = Path(folder).name
        frames: dict[int, ListedFile] = {}
        odd = []
        for file in sorted(images_in(self.root, folder), key=lambda file: file.name):
            number = trailing_number(file.stem)
            if number is None or number in frames:
                odd.append(file.base)
            else:
                frames[number] = file
        if odd:
            detail = f"{len(odd)} images of {folder} have no frame number of their own in their name (first: {odd[0]})"
            yield self._failure(video_id, Reason.IMAGES_WITHOUT_FRAME_NUMBER, detail)
        if absent := sorted(expected - frames.keys()):
            detail = f"{len(absent)} frames of {video_id} in meta.json are not on disk (first: {absent[0]:05d})"
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
            timestamps=tuple(number / _FRAMES_A_SECOND for number in numbers),
            cameras=None,
            identity=identity_of(files),
            terms=TERMS,
        )

    def _failure(self, video_id: str, reason: Reason, detail: str) -> Failure:
        return Failure(
            source=self.name, video_id=video_id, stage="catalog", reason=reason, detail=detail
        )
