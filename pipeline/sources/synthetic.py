"""Render scenes from photographs, with exact tracks (tracker `truth`) and cameras.

They are ground truth without a download.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import cv2
from pydantic import Field

from manifests.fingerprint import fingerprint
from manifests.rows import Failure
from manifests.settings import Settings
from pipeline.sources.listing import Root, SourceName
from pipeline.sources.synthetic_scene import (
    FRAMES_PER_SECOND,
    Scene,
    SceneId,
    check_photographs,
    make_scene,
    render,
)
from pipeline.sources.video import Video
from shards.errors import PretrackError

TERMS = (
    "Rendered from photographs in the public domain or CC0 that scikit-image ships: "
    "free to use and redistribute"
)


class Synthetic(Settings):
    """Rendered videos: photographs on planes that swing in front of a moving camera.

    Frames are rendered to `ROOT/VIDEO_ID/00000.png`, … by the workers that read them first, in a
    few seconds per video, and kept. A video's id holds every setting that determines its frames, so
    other settings add videos next to the old ones.
    """

    dataset: Literal["synthetic"]
    """The kind of dataset."""
    name: SourceName = "synthetic"
    """The name of this source. Every source of a build needs its own."""
    root: Root
    """The folder for the rendered frames; created if it does not exist."""
    videos: int = Field(8, ge=1, le=10_000)
    """Number of videos."""
    frames: int = Field(24, ge=2, le=999)
    """Frames per video, at 24 frames per second."""
    width: int = Field(320, ge=32, le=4096)
    """Width of the frames, in pixels."""
    height: int = Field(240, ge=32, le=4096)
    """Height of the frames, in pixels."""
    seed: int = Field(0, ge=0)
    """Other seeds give other scenes."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """Yield all videos in order. Nothing is rendered.

        Raises PretrackError if scikit-image's photographs are not installed or the root is a file.
        """
        if self.root.exists() and not self.root.is_dir():
            raise PretrackError(
                f"the synthetic root {self.root} is not a folder: "
                "set 'root' to one for the rendered frames"
            )
        check_photographs()
        for number in range(self.videos):
            yield self._video(SceneId(self.seed, number, self.frames, self.width, self.height))

    def _video(self, scene_id: SceneId) -> Video:
        """Describe a video. Content and identity follow from the id alone."""
        scene, video_id = make_scene(scene_id), str(scene_id)
        return Video(
            source=self.name,
            dataset=self.dataset,
            video_id=video_id,
            sequence=f"synthetic/seed{scene_id.seed}-scene{scene_id.number:04d}",
            root=str(self.root.absolute()),
            file="",
            image_files=tuple(f"{video_id}/{frame:05d}.png" for frame in range(scene_id.frames)),
            frame_numbers=tuple(range(scene_id.frames)),
            timestamps=tuple(frame / FRAMES_PER_SECOND for frame in range(scene_id.frames)),
            cameras=scene.cameras,
            identity=fingerprint(video_id),
            terms=TERMS,
        )


def render_files(names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Render frames, named as in `Video.image_files`: (name, PNG) each.

    Raises PretrackError if scikit-image's photographs are not installed.
    """
    for name in names:
        video_id, _, file = name.rpartition("/")
        picture = render(_scene(video_id), int(file.removesuffix(".png")))
        _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        yield name, data.tobytes()


@lru_cache(maxsize=1)
def _scene(video_id: str) -> Scene:
    return make_scene(SceneId.parse(video_id))
