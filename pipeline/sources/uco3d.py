"""List uCO3D: videos that circle an object, with cameras, depth maps and masks of some frames."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manifests.rows import DepthFiles, Failure
from manifests.settings import Settings
from pipeline.failures import Reason
from pipeline.sources.cameras import pytorch3d_cameras, with_poses
from pipeline.sources.listing import (
    Root,
    SourceName,
    check_root,
    file_at,
    identity_of,
    path_inside,
)
from pipeline.sources.video import Video
from shards.clip import Camera
from shards.errors import PretrackError

TERMS = (
    "uCO3D: CC BY 4.0; attribute Liu et al., UnCommon Objects in 3D (Meta), and say what was "
    "changed. Its depth maps are estimated per frame and scaled to the scene: they do not agree "
    "between views pixel by pixel"
)

METADATA_FILE = "metadata.sqlite"
_IN_PROGRESS = "_in_progress"
"""The folder in which uCO3D's downloader keeps archives until they are complete."""

_SEQUENCES = """
    SELECT sequence_name, super_category, category, _video_path AS video, _mask_video_path AS mask,
        _depth_video_path AS depth, _reconstruction_quality_viewpoint AS quality
    FROM sequence_annots ORDER BY super_category, category, sequence_name
"""
_FRAMES = """
    SELECT frame_number AS number, frame_timestamp AS time, _image_size AS size,
        _depth_scale_adjustment AS depth_scale, _viewpoint_R AS R, _viewpoint_T AS T,
        _viewpoint_focal_length AS focal_length, _viewpoint_principal_point AS principal_point
    FROM frame_annots WHERE sequence_name = ? ORDER BY frame_timestamp, frame_number
"""


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame as metadata.sqlite describes it.

    number: its position among the frames of the sequence that have annotations
    time:   in seconds from the start of the video
    size:   (width, height) of the video's frames, or None
    """

    number: int
    time: float
    size: tuple[int, int] | None
    camera: Camera | None
    depth_scale: float


@dataclass
class _Missing:
    """Count the sequences of a super-category, and those whose video is not there."""

    total: int = 0
    videos: list[str] = field(default_factory=list)


class Uco3d(Settings):
    """uCO3D as its own downloader unpacks it: SUPER_CATEGORY/CATEGORY/SEQUENCE/rgb_video.mp4.

    A sequence's video is about 200 frames: those whose camera is in `metadata.sqlite`. All
    frames of the files are videos of the source `video_folder`, without cameras. Depth maps
    (`depth_maps.h5`) and masks (`mask_video.mkv`) are read with `frames.depth` and `frames.masks`.
    Cameras become pinhole cameras: the lens distortion in metadata.sqlite is dropped.
    """

    dataset: Literal["uco3d"]
    """The kind of dataset."""
    name: SourceName = "uco3d"
    """The name of this source. Every source of a build needs its own."""
    root: Root
    """The folder that holds metadata.sqlite and the super-categories."""
    set_list: str | None = None
    """Read only the sequences in set_lists/set_lists_NAME.sqlite, by this NAME, such as
    static-categories-accurate-reconstruction. Default: all that are in metadata.sqlite."""
    subsets: tuple[str, ...] = ("train", "val")
    """Which subsets of `set_list` to read."""
    super_categories: tuple[str, ...] | None = None
    """The super-categories to read, such as stationery. Default: all."""
    categories: tuple[str, ...] | None = None
    """The categories to read. Default: all."""
    min_viewpoint_quality: float | None = None
    """Leave out sequences whose score of their cameras is lower or unknown."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """Yield all sequences, by super-category, category and name, each after what it lacks.

        metadata.sqlite is read row by row. After each super-category follows how many of its videos
        are not here. Raises PretrackError if the root, metadata.sqlite or the set list is missing
        or cannot be read, or no video is here.
        """
        check_root(self.root, "uco3d")
        yield from self._unfinished()
        any_videos = False
        with _open(self._metadata()) as metadata:
            self._check_names(metadata)
            chosen = self._listed_sequences()
            rows = (row for row in metadata.execute(_SEQUENCES) if self._is_chosen(row, chosen))
            for super_category, sequences in groupby(rows, key=lambda row: row["super_category"]):
                missing = _Missing()
                for row in sequences:
                    for video in self._sequence(row, metadata, missing):
                        any_videos = any_videos or isinstance(video, Video)
                        yield video
                yield from self._missing(str(super_category), missing)
        if not any_videos:
            raise PretrackError(
                f"{self.root} holds none of the videos that its {METADATA_FILE} and the settings "
                "name: expected SUPER_CATEGORY/CATEGORY/SEQUENCE/rgb_video.mp4; download the "
                "modality rgb_videos"
            )

    def _metadata(self) -> Path:
        """Return the path of metadata.sqlite. Raises PretrackError if it is not there."""
        path = self.root / METADATA_FILE
        if not path.is_file():
            raise PretrackError(
                f"{self.root} holds no uCO3D: expected {METADATA_FILE} and folders "
                "SUPER_CATEGORY/CATEGORY/SEQUENCE; uCO3D's downloader always fetches this file"
            )
        return path

    def _unfinished(self) -> Iterator[Failure]:
        """Report archives that the downloader has not finished."""
        folder = self.root / _IN_PROGRESS
        if names := sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []:
            yield self._failure(
                "",
                Reason.NOT_UNPACKED,
                f"{folder} holds {len(names)} unfinished downloads (first: {names[0]}): run "
                "uCO3D's downloader again",
            )

    def _check_names(self, metadata: sqlite3.Connection) -> None:
        """Raise PretrackError if a category that the settings name is not in the metadata."""
        asked = [("super_category", self.super_categories), ("category", self.categories)]
        for column, names in asked:
            if names is None:
                continue
            there = {row[0] for row in metadata.execute(f"SELECT {column} FROM sequence_annots")}
            if absent := sorted(set(names) - there):
                setting = "super_categories" if column == "super_category" else "categories"
                raise PretrackError(
                    f"{METADATA_FILE} names no {column} '{absent[0]}': correct '{setting}'"
                )

    def _listed_sequences(self) -> set[str] | None:
        """Return the names of the sequences in the set list, None if all are to be read.

        Raises PretrackError if there is no such list, or nothing of these subsets in it.
        """
        if self.set_list is None:
            return None
        folder = self.root / "set_lists"
        path = folder / f"set_lists_{self.set_list}.sqlite"
        if not path.is_file():
            lists = sorted(p.stem.removeprefix("set_lists_") for p in folder.glob("*.sqlite"))
            there = f"there are {', '.join(lists)}" if lists else "download uCO3D's metadata"
            raise PretrackError(f"{path} does not exist: correct 'set_list' ({there})")
        marks = ", ".join("?" * len(self.subsets))
        query = f"SELECT DISTINCT sequence_name FROM set_lists WHERE subset IN ({marks})"
        with _open(path) as set_list:
            names = {row[0] for row in set_list.execute(query, self.subsets)}
        if not names:
            raise PretrackError(
                f"{path} names no sequence of the subsets {', '.join(self.subsets)}: "
                "correct 'subsets'"
            )
        return names

    def _is_chosen(self, row: sqlite3.Row, listed: set[str] | None) -> bool:
        """Tell whether the settings ask for a sequence."""
        return (
            (listed is None or row["sequence_name"] in listed)
            and (self.super_categories is None or row["super_category"] in self.super_categories)
            and (self.categories is None or row["category"] in self.categories)
        )

    def _sequence(
        self, row: sqlite3.Row, metadata: sqlite3.Connection, missing: _Missing
    ) -> Iterator[Video | Failure]:
        """Yield what a sequence lacks, then its video. A missing video is only counted."""
        name = str(row["sequence_name"])
        path = path_inside(row["video"])
        video_id = path.rsplit("/", 1)[0] if "/" in path else name
        missing.total += 1
        try:
            file = file_at(self.root, path) if path else None
        except OSError:
            file = None
        if file is None:
            missing.videos.append(video_id)
            return
        quality = float(row["quality"]) if isinstance(row["quality"], float | int) else None
        if low := self._too_low(quality):
            yield self._failure(video_id, Reason.LOW_VIEWPOINT_QUALITY, low)
            return
        frames, failures = self._frames(video_id, metadata.execute(_FRAMES, (name,)))
        yield from failures
        if not frames:
            return
        cameras, without = with_poses(
            self.name,
            video_id,
            [frame.camera for frame in frames],
            f"{METADATA_FILE} gives no usable viewpoint for them",
        )
        yield from without
        yield Video(
            source=self.name,
            dataset=self.dataset,
            video_id=video_id,
            sequence=f"uco3d/{name}",
            root=str(self.root.absolute()),
            file=path,
            image_files=(),
            frame_numbers=(),
            timestamps=tuple(frame.time for frame in frames),
            cameras=cameras,
            size=frames[0].size,
            identity=identity_of([file]),
            terms=TERMS,
            viewpoint_quality=quality,
            depth=self._depth(path_inside(row["depth"]), frames),
            mask_files=self._masks(path_inside(row["mask"]), frames),
        )

    def _too_low(self, quality: float | None) -> str:
        """Return a sentence if the score of a sequence's cameras is too low, otherwise ""."""
        if self.min_viewpoint_quality is None:
            return ""
        if quality is not None and quality >= self.min_viewpoint_quality:
            return ""
        score = "not known" if quality is None else f"{quality:g}"
        return (
            f"the score of its cameras is {score}, and min_viewpoint_quality asks for "
            f"{self.min_viewpoint_quality:g}"
        )

    def _frames(
        self, video_id: str, rows: Iterable[sqlite3.Row]
    ) -> tuple[list[_Frame], list[Failure]]:
        """Return the frames of a sequence that have a time of their own, in order.

        Also returns a failure that counts the others, if there are any.
        """
        usable: list[sqlite3.Row] = []
        count, last = 0, -math.inf
        for row in rows:
            count += 1
            time = _number(row["time"], math.nan)
            if 0 <= time < math.inf and time > last:
                usable.append(row)
                last = time
        frames = _described(usable) if usable else []
        if len(frames) == count and count:
            return frames, []
        detail = (
            f"{count - len(frames)} of {count} frames have no time of their own in "
            f"{METADATA_FILE} and are left out"
            if count
            else f"{METADATA_FILE} describes no frame of it"
        )
        return frames, [self._failure(video_id, Reason.TIMESTAMPS_MISSING, detail)]

    def _depth(self, file: str, frames: list[_Frame]) -> DepthFiles | None:
        """Return the depth maps of a sequence, None if they are not here.

        The file holds one dataset per frame, named by the frame's number plus 1.
        """
        if not file or not (self.root / file).is_file():
            return None
        return DepthFiles(
            encoding="float",
            files=tuple(f"{file}!{frame.number + 1}" for frame in frames),
            scales=tuple(frame.depth_scale for frame in frames),
        )

    def _masks(self, file: str, frames: list[_Frame]) -> tuple[str, ...] | None:
        """Return the masks of a sequence, None if they are not here: the frames of a video."""
        if not file or not (self.root / file).is_file():
            return None
        return tuple(f"{file}!{frame.time!r}" for frame in frames)

    def _missing(self, super_category: str, missing: _Missing) -> Iterator[Failure]:
        """Report how many videos of a super-category are not here."""
        if missing.videos:
            yield self._failure(
                "",
                Reason.MISSING_VIDEOS,
                f"{len(missing.videos)} of {missing.total} videos of {super_category} are not here "
                f"(first: {missing.videos[0]}): download the modality rgb_videos of this "
                "super-category, or leave it out with 'super_categories'",
            )

    def _failure(self, video_id: str, reason: Reason, detail: str) -> Failure:
        return Failure(
            source=self.name, video_id=video_id, stage="catalog", reason=reason, detail=detail
        )


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """Open an SQLite file for reading. Raises PretrackError if it turns out to be damaged.

    "immutable" takes no lock and writes no journal, so the file may be on a read-only mount.
    """
    try:
        address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            yield connection
    except sqlite3.Error as error:
        raise PretrackError(
            f"{path} cannot be read ({error}): download uCO3D's metadata again"
        ) from error


def _described(rows: Sequence[sqlite3.Row]) -> list[_Frame]:
    """Read the rows of a sequence in frame_annots."""
    sizes = _numbers(rows, "size", "<i4", 2)[:, ::-1]  # (height, width) → (width, height)
    sizes = np.where((sizes > 0).all(axis=1, keepdims=True), sizes, np.nan)
    cameras = pytorch3d_cameras(
        _numbers(rows, "R", "<f4", 9).reshape(-1, 3, 3),
        _numbers(rows, "T", "<f4", 3),
        focal=_numbers(rows, "focal_length", "<f4", 2),
        principal=_numbers(rows, "principal_point", "<f4", 2),
        # uCO3D's own code takes all intrinsics as isotropic, whatever the column
        # _viewpoint_intrinsics_format says.
        pixels_per_unit=sizes.min(axis=1, keepdims=True) / 2,
        sizes=sizes,
    )
    return [
        _Frame(
            number=int(row["number"]),
            time=float(row["time"]),
            size=None if np.isnan(size[0]) else (int(size[0]), int(size[1])),
            camera=camera,
            # With NaN no depth is known.
            depth_scale=_number(row["depth_scale"], math.nan),
        )
        for row, size, camera in zip(rows, sizes.tolist(), cameras, strict=True)
    ]


def _numbers(
    rows: Sequence[sqlite3.Row], column: str, kind: str, count: int
) -> NDArray[np.float64]:
    """Unpack a column of `count` numbers per row, [N, count], as uCO3D packs them.

    NaN stands for what is not there.
    """
    size = count * np.dtype(kind).itemsize
    there = [isinstance(row[column], bytes) and len(row[column]) == size for row in rows]
    packed = b"".join(
        row[column] if full else bytes(size) for row, full in zip(rows, there, strict=True)
    )
    numbers = np.frombuffer(packed, kind).reshape(-1, count).astype(np.float64)
    numbers[~np.array(there, bool)] = np.nan
    return numbers


def _number(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, float | int) else otherwise
