"""List DL3DV-10K: images with COLMAP poses, or the raw videos.

The images come at 480P, 960P, 2K and 4K, and as the benchmark.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from manifests.rows import Failure
from manifests.settings import Settings
from pipeline.failures import Reason
from pipeline.sources.cameras import opencv_camera, with_poses
from pipeline.sources.listing import (
    ListedFile,
    Root,
    SourceName,
    check_root,
    file_at,
    folders_in,
    identity_of,
    images_in,
    join_path,
    number_frames,
)
from pipeline.sources.video import Video
from shards.clip import Camera
from shards.errors import PretrackError

TERMS = (
    "DL3DV-10K: DL3DV Terms of Use and CC BY-NC 4.0, research and education only; "
    "frames must not be redistributed"
)

ImageFolder = Literal["images_8", "images_4", "images_2", "images"]
_SMALLEST_FIRST: tuple[ImageFolder, ...] = ("images_8", "images_4", "images_2", "images")
_NO_SCENES = {*_SMALLEST_FIRST, "nerfstudio", "colmap", "gaussian_splat"}
"""Folders of a scene, in which there are no other scenes."""
_HASH_LENGTH = 64
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # y up, z backward → y down, z forward


@dataclass(frozen=True)
class _Scene:
    """A scene on disk.

    video_id: the scene's folder, relative to the root, without a nerfstudio/ level
    folder:   the folder that holds the scene's files, relative to the root
    names:    what is directly in that folder
    stray:    whether scenes lie beside its files, so that it is no scene: a zip without a folder of
              its own was unpacked there
    """

    video_id: str
    folder: str
    names: frozenset[str]
    stray: bool = False

    @property
    def has_files(self) -> bool:
        """Whether files of a scene are directly in the folder."""
        return bool(self.names.intersection(("transforms.json", "video.mp4", *_SMALLEST_FIRST)))

    @property
    def has_zips(self) -> bool:
        """Whether zips of scenes are directly in the folder, as in a batch."""
        return any(name.endswith(".zip") and _is_hash(name[:-4]) for name in self.names)

    @property
    def hash(self) -> str:
        """The name that DL3DV gives the scene in every release."""
        return self.video_id.rsplit("/", 1)[-1]


class Dl3dv(Settings):
    """DL3DV scenes, each a folder `BATCH/HASH/`, `HASH/` or `HASH/nerfstudio/`.

    A scene holds `images_8/frame_00001.png`, … and `transforms.json`; in the video release, it
    holds `video.mp4`. If a scene has both, its images are used. Poses become pinhole cameras: the
    small lens distortion in transforms.json is dropped.
    """

    dataset: Literal["dl3dv"]
    """The kind of dataset."""
    name: SourceName = "dl3dv"
    """The name of this source. Every source of a build needs its own."""
    root: Root
    """The folder that holds the batches (1K, 2K, …) or the scenes."""
    images: ImageFolder | None = None
    """Which size of image to read. Default: the smallest that a scene has."""
    exclude: tuple[str, ...] = ()
    """Hashes of scenes to leave out, for example those of the benchmark."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """Yield what is not unpacked, images outside of scenes, then all scenes, sorted by id.

        Each scene follows what it lacks.

        Raises PretrackError if the root does not exist or holds no scene.
        """
        check_root(self.root, "dl3dv")
        found = sorted(self._scenes(), key=lambda scene: scene.video_id)
        scenes = [scene for scene in found if not scene.stray]
        packed = sorted(set(self._packed()) - {scene.hash for scene in scenes})
        if not scenes:
            unpack = f"; its zips ({packed[0]}.zip, …) have to be unpacked" if packed else ""
            raise PretrackError(
                f"{self.root} holds no DL3DV scenes: expected BATCH/HASH or HASH folders with "
                "images_8/ (or images_4, images_2, images) and transforms.json, "
                f"or with video.mp4{unpack}"
            )
        for name in packed:
            yield self._failure(
                name,
                Reason.NOT_UNPACKED,
                f"{name}.zip is not unpacked: unzip it in its batch folder",
            )
        for scene in found:
            if scene.stray:
                yield self._stray(scene)
        problems = self._problems()
        for scene in scenes:
            if scene.hash in self.exclude:
                continue
            if scene.hash in problems:
                yield self._failure(
                    scene.video_id,
                    Reason.FLAGGED_AS_A_PROBLEM,
                    "DL3DV-valid.csv puts this scene under 'problem'",
                )
            elif "video.mp4" in scene.names and not scene.names.intersection(_SMALLEST_FIRST):
                yield self._video_file(scene)
            else:
                yield from self._images(scene)

    def _scenes(self, folder: str = "", depth: int = 2) -> Iterator[_Scene]:
        """Yield the scenes in a folder, relative to the root, at most `depth` levels below it.

        Folders between the root and the scenes that hold files of a scene themselves are yielded
        as stray.
        """
        any_scenes = False
        for inner in folders_in(self.root, folder):
            if Path(inner).name not in _NO_SCENES:
                for scene in self._scenes_at(inner, depth):
                    any_scenes = True
                    yield scene
        if not folder:
            root = _Scene(video_id=".", folder="", names=_names_in(self.root))
            if root.has_files and (any_scenes or root.has_zips):
                yield replace(root, stray=True)

    def _scenes_at(self, folder: str, depth: int) -> Iterator[_Scene]:
        """Yield the scene that a folder is, or the scenes in it."""
        nested = join_path(folder, "nerfstudio")
        path = nested if (self.root / nested).is_dir() else folder
        scene = _Scene(video_id=folder, folder=path, names=_names_in(self.root / path))
        # A folder named like a scene is one, even if nothing usable is in it: it is reported. But
        # a zip may have been unpacked into a folder of its name although it has one of its own.
        named = _is_hash(scene.hash)
        if named and scene.has_files:
            yield scene
            return
        below = list(self._scenes(folder, depth - 1)) if depth > 1 or named else []
        yield from below
        if scene.has_files and (below or scene.has_zips):
            yield replace(scene, stray=True)
        elif not below and (named or scene.has_files):
            yield scene

    def _packed(self) -> Iterator[str]:
        """Yield the hashes of the scenes that are there as zips."""
        for pattern in ("*.zip", "*/*.zip"):
            yield from (path.stem for path in self.root.glob(pattern) if _is_hash(path.stem))

    def _problems(self) -> set[str]:
        """Read which scenes DL3DV's own list, if present, puts into the batch 'problem'.

        Raises PretrackError if the file lacks the columns of that list.
        """
        path = self.root / "DL3DV-valid.csv"
        if not path.is_file():
            return set()
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if not {"hash", "batch"} <= set(rows.fieldnames or ()):
                raise PretrackError(
                    f"{path} lacks the columns 'hash' and 'batch': "
                    "replace it by DL3DV's own file, or remove it"
                )
            return {
                row["hash"] for row in rows if (row["batch"] or "").strip().lower() == "problem"
            }

    def _stray(self, scene: _Scene) -> Failure:
        """Report files of a scene that lie beside scenes, in the batch's folder or the root."""
        files = sorted(scene.names.intersection(("transforms.json", "video.mp4", *_SMALLEST_FIRST)))
        return self._failure(
            "",
            Reason.STRAY_IMAGES,
            f"{self.root / scene.folder} holds {' and '.join(files)} beside scenes: a zip without "
            "a folder of its own was unpacked there. Remove them, and unpack that zip into a "
            "folder with the zip's name (unzip HASH.zip -d HASH)",
        )

    def _video_file(self, scene: _Scene) -> Video | Failure:
        """Describe a scene of the video release."""
        if self.images is not None:
            return self._no_images(scene)
        try:
            file = file_at(self.root, join_path(scene.folder, "video.mp4"))
        except OSError as error:
            return self._failure(
                scene.video_id,
                Reason.UNREADABLE_FILE,
                f"{scene.folder}/video.mp4 cannot be opened ({error.strerror})",
            )
        return self._video(scene, [file], file=file.name)

    def _images(self, scene: _Scene) -> Iterator[Video | Failure]:
        """Yield a scene with images, after a failure for the poses that it lacks."""
        files = self._image_files(scene)
        if not files:
            yield self._no_images(scene)
            return
        frames = number_frames(files)
        ordered = [file for _, file in frames]
        cameras, why = self._cameras(scene, ordered)
        poses, failures = with_poses(self.name, scene.video_id, cameras, why)
        yield from failures
        numbers = tuple(number for number, _ in frames)
        yield self._video(scene, ordered, numbers=numbers, cameras=poses)

    def _image_files(self, scene: _Scene) -> list[ListedFile]:
        """List the images of a scene: those asked for, or the smallest that there are."""
        for name in (self.images,) if self.images else _SMALLEST_FIRST:
            if name in scene.names and (
                files := images_in(self.root, join_path(scene.folder, name))
            ):
                return files
        return []

    def _cameras(self, scene: _Scene, files: list[ListedFile]) -> tuple[list[Camera | None], str]:
        """Return the camera of each of a scene's images, or None, and why some have none."""
        path = self.root / scene.folder / "transforms.json"
        none: list[Camera | None] = [None] * len(files)
        if not path.is_file():
            return none, f"there is no {scene.folder}/transforms.json"
        try:
            transforms = json.loads(path.read_text(encoding="utf-8"))
            width, height = _image_size(self.root, files)
            # The paths say images/ whatever the folder is called, so only the file names count.
            # A frame's own intrinsics, if any, take precedence over those of all frames.
            poses = {
                Path(frame["file_path"]).stem: scaled_camera({**transforms, **frame}, width, height)
                for frame in transforms["frames"]
            }
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            return none, (
                f"{scene.folder}/transforms.json does not fit the images or cannot be read "
                f"({type(error).__name__}: {error})"
            )
        cameras = [poses.get(file.stem) for file in files]
        return cameras, f"{scene.folder}/transforms.json has no usable pose for them"

    def _video(
        self,
        scene: _Scene,
        files: list[ListedFile],
        *,
        file: str = "",
        numbers: tuple[int, ...] = (),
        cameras: tuple[Camera | None, ...] | None = None,
    ) -> Video:
        """Describe a scene: its video file `file`, or ("") its image `files` with their numbers."""
        return Video(
            source=self.name,
            dataset=self.dataset,
            video_id=scene.video_id,
            sequence=f"dl3dv/{scene.hash}",
            root=str(self.root.absolute()),
            file=file,
            image_files=() if file else tuple(image.name for image in files),
            frame_numbers=numbers,
            timestamps=None,
            cameras=cameras,
            identity=identity_of(files),
            terms=TERMS,
        )

    def _no_images(self, scene: _Scene) -> Failure:
        """Report that the images asked for are missing, and what is there instead."""
        wanted = self.images or "images_8"
        empty = " (the folder is empty)" if wanted in scene.names else ""
        present = sorted(
            name
            for name in scene.names.intersection(_SMALLEST_FIRST)
            if images_in(self.root, join_path(scene.folder, name))
        )
        present += ["video.mp4"] if "video.mp4" in scene.names else []
        hint = f"; there is {', '.join(present)} (see the option 'images')" if present else ""
        return self._failure(
            scene.video_id,
            Reason.NO_IMAGES,
            f"{scene.folder} holds no images in {wanted}{empty}{hint}",
        )

    def _failure(self, video_id: str, reason: Reason, detail: str) -> Failure:
        return Failure(
            source=self.name, video_id=video_id, stage="catalog", reason=reason, detail=detail
        )


def scaled_camera(frame: dict[str, Any], width: int, height: int) -> Camera | None:
    """Convert a frame of nerfstudio's transforms.json to a camera.

    The camera is that of the frame's image of `width` x `height` pixels. `frame` holds the
    intrinsics of the full-size image in pixels (`w`, `h`, `fl_x`, `fl_y`, `cx`, `cy`; the *corner*
    of the top-left pixel is at (0, 0)) and `transform_matrix`, 4x4 camera-to-world in OpenGL axes.
    Returns None if the numbers make no camera. Raises ValueError if the image's aspect ratio
    differs from w:h by more than 2 %.
    """
    sx, sy = width / frame["w"], height / frame["h"]
    if abs(sx / sy - 1) > 0.02:
        raise ValueError(
            f"an image is {width}x{height} and its pose is for {frame['w']}x{frame['h']}"
        )
    matrix = np.asarray(frame["transform_matrix"], np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        return None
    world_to_camera = np.asarray(np.linalg.inv(matrix @ _OPENGL_TO_OPENCV)[:3], np.float64)
    # Half a pixel less: pixel centres, not corners, are at integers here.
    return opencv_camera(
        fx=frame["fl_x"] * sx,
        fy=frame["fl_y"] * sy,
        cx=frame["cx"] * sx - 0.5,
        cy=frame["cy"] * sy - 0.5,
        world_to_camera=world_to_camera,
    )


def _image_size(root: Path, files: list[ListedFile]) -> tuple[int, int]:
    """Read (width, height) from the header of the first image that can be opened.

    It stands for all images of the scene. Raises OSError if none can be opened.
    """
    from PIL import Image

    for file in files:
        try:
            with Image.open(root / file.name) as image:
                return image.size
        except (OSError, Image.DecompressionBombError):
            continue  # one broken image must not cost the scene its poses; decoding reports it
    raise OSError("none of the images can be opened")


def _is_hash(name: str) -> bool:
    """Tell whether a name is one that DL3DV gives a scene: 64 hexadecimal digits."""
    return len(name) == _HASH_LENGTH and set(name) <= set("0123456789abcdef")


def _names_in(folder: Path) -> frozenset[str]:
    """The names of what is directly in a folder."""
    return frozenset(entry.name for entry in folder.iterdir())
