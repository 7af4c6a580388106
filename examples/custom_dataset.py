"""A dataset of your own, built without a change to pretrack: python examples/custom_dataset.py CONFIG [key=value ...]

DAVIS 2017 serves as the example: `JPEGImages/480p/SEQUENCE/00000.jpg`, and lists of sequences in `ImageSets/2017/train.txt`. A
config names it as any other dataset:

    sources:
      - {dataset: davis, root: /data/DAVIS, list: train}
    out: out/davis
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from manifests.rows import Failure
from manifests.settings import Settings, load_settings
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.monitoring.progress import Progress
from pipeline.sources import Source
from pipeline.sources.listing import (
    Root,
    SourceName,
    check_root,
    identity_of,
    images_in,
    number_frames,
)
from pipeline.sources.video import Video
from shards.errors import PretrackError

TERMS = "DAVIS 2017: the terms on its home page; frames belong to their owners"
FRAMES_A_SECOND = 24


class Davis(Settings):
    """The settings of the dataset are its reader: `find_videos` lists what is there, and reads no picture."""

    dataset: Literal["davis"]
    """Which dataset this is."""
    name: SourceName = "davis"
    """The name of this source; two sources need different ones."""
    root: Root
    """The folder that holds JPEGImages and ImageSets."""
    list: str = "train"
    """Which list of sequences: train or val."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """The list's videos, in its order. Raises PretrackError if the root or the list is not there."""
        check_root(self.root, "davis")
        path = self.root / "ImageSets" / "2017" / f"{self.list}.txt"
        if not path.is_file():
            raise PretrackError(f"there is no {path}: set 'list' to one of the lists beside it")
        for sequence in path.read_text().split():
            folder = f"JPEGImages/480p/{sequence}"
            if not (self.root / folder).is_dir():  # what is missing is named, and the rest goes on
                yield Failure(
                    source=self.name,
                    video_id=sequence,
                    stage="catalog",
                    reason="missing sequence",
                    detail=f"{self.root / folder} is not there",
                )
                continue
            frames = number_frames(images_in(self.root, folder))
            yield Video(
                source=self.name,
                dataset=self.dataset,
                video_id=sequence,
                sequence=f"davis/{sequence}",
                root=str(self.root.absolute()),
                file="",
                image_files=tuple(file.name for _, file in frames),
                frame_numbers=tuple(number for number, _ in frames),
                timestamps=tuple(number / FRAMES_A_SECOND for number, _ in frames),
                cameras=None,
                identity=identity_of(file for _, file in frames),
                terms=TERMS,
            )


class Build(BuildSettings):
    """A build's settings in which `dataset: davis` is known too."""

    sources: tuple[Annotated[Source | Davis, Field(discriminator="dataset")], ...] = Field(
        min_length=1
    )  # type: ignore[assignment]
    """The datasets to read."""


if __name__ == "__main__":
    try:
        built = build(load_settings(Build, Path(sys.argv[1]), sys.argv[2:]), Progress())
        print(f"{built.made} shards made, {built.kept} kept: {built.snapshot.folder}")
    except PretrackError as error:
        sys.exit(f"pretrack: {error}")
