"""Build a dataset of your own without changing pretrack.

    python examples/custom_dataset.py CONFIG [key=value ...]

The example reads DAVIS 2017: frames in `JPEGImages/480p/SEQUENCE/00000.jpg`, and lists of sequences
in `ImageSets/2017/train.txt`. A config names it like any other dataset:

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
FRAMES_PER_SECOND = 24


class Davis(Settings):
    """The settings of the dataset, which also list its videos."""

    dataset: Literal["davis"]
    """The dataset's name in a config."""
    name: SourceName = "davis"
    """The name of this source. Two sources of a build need different names."""
    root: Root
    """The folder that holds JPEGImages and ImageSets."""
    list: str = "train"
    """The list of sequences to read: train or val."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """Yield the videos of the list, in its order. No image is opened here.

        What cannot be used is yielded as a failure. Raises PretrackError if the root or the list is
        missing.
        """
        check_root(self.root, "davis")
        path = self.root / "ImageSets" / "2017" / f"{self.list}.txt"
        if not path.is_file():
            raise PretrackError(f"there is no file {path}: set 'list' to a list in that folder")
        for sequence in path.read_text().split():
            folder = f"JPEGImages/480p/{sequence}"
            if not (self.root / folder).is_dir():  # reported as a failure; the build continues
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
                timestamps=tuple(number / FRAMES_PER_SECOND for number, _ in frames),
                cameras=None,
                identity=identity_of(file for _, file in frames),
                terms=TERMS,
            )


AnySource = Annotated[Source | Davis, Field(discriminator="dataset")]


class Build(BuildSettings):
    """The settings of a build, with `dataset: davis` as one more choice."""

    sources: tuple[AnySource, ...] = Field(min_length=1)  # type: ignore[assignment]
    """The datasets to read."""


if __name__ == "__main__":
    try:
        built = build(load_settings(Build, Path(sys.argv[1]), sys.argv[2:]), Progress())
        print(f"{built.made} shards made, {built.kept} kept: {built.snapshot.folder}")
    except PretrackError as error:
        sys.exit(f"pretrack: {error}")
