"""Render rooms of textured objects, with exact tracks (tracker `truth`), depth and cameras.

They are ground truth without a download.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from typing import Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from manifests.fingerprint import fingerprint
from manifests.rows import DepthFiles, Failure
from manifests.settings import Settings
from pipeline.scenes.scene import Scene, cameras_of, make_scene, parts_of
from pipeline.scenes.scene_id import LARGEST_ORBIT, Lighting, Motion, SceneId, Split
from pipeline.sources.listing import Root, SourceName
from pipeline.sources.video import Video
from shards.errors import PretrackError

FRAMES_PER_SECOND = 8
TERMS = (
    "Rendered from procedural shapes and textures, and from photographs in the public domain or "
    "CC0 that scikit-image ships: free to use and redistribute"
)
DEPTH_SCALE = 2.0**-13
"""Metres, the world's unit, per step of the stored depth: an eighth of a millimetre, up to 8 m."""


class Scenes(Settings):
    """Rendered videos of textured objects in a room, around which the camera moves.

    Frames are rendered to `ROOT/VIDEO_ID/00000.png`, … by the workers that read them first, and
    kept. A video's id holds every setting that determines its content, so other settings add videos
    next to the old ones.
    """

    dataset: Literal["scenes"]
    """The kind of dataset."""
    name: SourceName = "scenes"
    """The name of this source. Every source of a build needs its own."""
    root: Root
    """The folder for the rendered frames; created if it does not exist. All workers must see it."""
    split: Split = "train"
    """The split of these scenes: `train` or `eval`. No shape, texture or photograph is in both. The
    build's settings `split` do not apply to scenes."""
    count: int = Field(8, ge=1, le=1_000_000)
    """Number of scenes, each a video."""
    frames: int = Field(16, ge=2)
    """Frames per scene, at 8 frames per second."""
    size: tuple[int, int] = (128, 128)
    """[width, height] of the frames, in pixels."""
    objects: int = 10
    """Objects per scene, 1 to 15; a third of them are thin."""
    orbit: int = LARGEST_ORBIT
    """The angle that the camera covers around the objects, 0 to 120 degrees."""
    motion: Motion = "static"
    """`static`: only the camera moves. `moving`: most objects move too."""
    light: Lighting = "normal"
    """`normal`; `dim`; `harsh`, with dark shadows; or `varied`, which changes from frame to
    frame."""
    occluders: int = 0
    """Thin or small bodies between the camera and the objects, 0 to 10. They hide points, and
    change nothing else in the room."""
    seed: int = 0
    """Other seeds give other scenes."""

    @model_validator(mode="after")
    def _check(self) -> Scenes:
        try:
            self._scene_id(self.count - 1)
        except PretrackError as error:
            raise ValueError(str(error)) from error
        return self

    def find_videos(self) -> Iterator[Video | Failure]:
        """Yield all videos in order. Nothing is rendered.

        Raises PretrackError if MuJoCo is not installed or the root is a file.
        """
        if self.root.exists() and not self.root.is_dir():
            raise PretrackError(
                f"the scenes root {self.root} is not a folder: "
                "set 'root' to one for the rendered frames"
            )
        if not find_spec("mujoco"):
            raise PretrackError(
                "scenes are rendered by MuJoCo, which is not installed here: "
                "pip install 'pretrack[scenes]'"
            )
        for number in range(self.count):
            yield self._video(self._scene_id(number))

    def _scene_id(self, number: int) -> SceneId:
        """Return the id of a scene. Raises PretrackError for values out of their limits."""
        return SceneId(
            split=self.split,
            seed=self.seed,
            number=number,
            objects=self.objects,
            orbit=self.orbit,
            motion=self.motion,
            light=self.light,
            occluders=self.occluders,
            frames=self.frames,
            width=self.size[0],
            height=self.size[1],
        )

    def _video(self, scene_id: SceneId) -> Video:
        """Describe a video. Content and identity follow from the id alone."""
        video_id = str(scene_id)
        names = [f"{frame:05d}.png" for frame in range(scene_id.frames)]
        return Video(
            source=self.name,
            dataset=self.dataset,
            video_id=video_id,
            sequence=f"scenes/{scene_id.split}-seed{scene_id.seed}-scene{scene_id.number:04d}",
            root=str(self.root.absolute()),
            file="",
            image_files=tuple(f"{video_id}/{name}" for name in names),
            frame_numbers=tuple(range(scene_id.frames)),
            timestamps=tuple(frame / FRAMES_PER_SECOND for frame in range(scene_id.frames)),
            cameras=cameras_of(scene_id),
            identity=fingerprint(video_id),
            terms=TERMS,
            parts=parts_of(scene_id),
            depth=DepthFiles(
                encoding="linear",
                files=tuple(f"{video_id}/depth/{name}" for name in names),
                scales=(DEPTH_SCALE,) * len(names),
            ),
            mask_files=tuple(f"{video_id}/instances/{name}" for name in names),
        )


def split_of_scene(sequence: str) -> Split:
    """Return the split of a scene, given its sequence: its shapes and textures are in no other."""
    return cast(Split, sequence.removeprefix("scenes/").partition("-")[0])


def render_files(
    names: Sequence[str], on_progress: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, bytes]]:
    """Render files of scenes: (name, PNG) each; calls `on_progress` on the way to a first one.

    VIDEO_ID/00000.png is a picture, VIDEO_ID/depth/00000.png its depth in 16 bits, in steps of
    `DEPTH_SCALE` with 0 where there is none, VIDEO_ID/instances/00000.png the object at each pixel,
    0 for the room. Raises MachineError if this machine cannot render.
    """
    from pipeline.scenes.render import Renderer

    for video_id, of_video in groupby(names, key=lambda name: name.partition("/")[0]):
        with Renderer(_scene(video_id), on_progress) as renderer:
            for name in of_video:
                *_, kind, file = name.split("/")
                frame = int(file.removesuffix(".png"))
                if kind == "depth":
                    pixels: NDArray[np.integer] = encoded_depth(renderer.depth(frame))
                elif kind == "instances":
                    pixels = renderer.instances(frame)
                else:
                    pixels = renderer.picture(frame)[..., ::-1]
                yield name, cv2.imencode(".png", pixels)[1].tobytes()


def encoded_depth(depth: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Round depth to steps of `DEPTH_SCALE`; 0 where there is no surface, or it is too far."""
    steps = np.rint(depth / DEPTH_SCALE)
    return np.where(steps < 1 << 16, steps, 0).astype(np.uint16)


@lru_cache(maxsize=1)
def _scene(video_id: str) -> Scene:
    return make_scene(SceneId.parse(video_id))
