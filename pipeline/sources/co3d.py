"""CO3Dv2 (and v1): turns around an object, unpacked or straight from the zips."""

from __future__ import annotations

import gzip
import itertools
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from manifests.rows import Failure
from manifests.settings import Settings
from pipeline.failures import Reason
from pipeline.sources.cameras import opencv_camera, with_poses
from pipeline.sources.json_stream import items
from pipeline.sources.listing import (
    ListedFile,
    Root,
    SourceName,
    check_root,
    folders_in,
    identity_of,
    images_in,
    is_image,
    number_frames,
)
from pipeline.sources.video import Video
from shards.clip import Camera
from shards.errors import PretrackError

TERMS = "CO3D: CC BY-NC 4.0; attribution to Meta, no commercial use of the frames or of what is made from them"

FRAMES_FILE = "frame_annotations.jgz"
SEQUENCES_FILE = "sequence_annotations.jgz"
_DAMAGED = (OSError, EOFError, ValueError, RecursionError, zlib.error, zipfile.BadZipFile)
_EXPLODED = 1e5  # Structure from motion failed where a translation is longer than this; other loaders use the same number.
_MEMBER = re.compile(r"(?:(?:.*/)?(?P<category>[^/]+)/)?(?P<sequence>[^/]+)/images/[^/]+")


@dataclass(frozen=True, slots=True)
class _Frame:
    """What frame_annotations.jgz says of a frame. `path` is relative to the root; `timestamp` in seconds or None."""

    number: int
    path: str
    timestamp: float | None
    camera: Camera | None
    exploded: bool


@dataclass
class _Category:
    """A category's files: `images[sequence][path]` with paths as annotations write them, and where its annotation files lie."""

    name: str
    images: dict[str, dict[str, ListedFile]] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)

    def add(self, sequence: str, file: ListedFile) -> None:
        """Adds an image. What is unpacked counts before what is in a zip, and an earlier zip before a later one."""
        self.images.setdefault(sequence, {}).setdefault(
            f"{self.name}/{sequence}/images/{file.base}", file
        )


class Co3d(Settings):
    """A tree `CATEGORY/SEQUENCE/images/frame000001.jpg`, or the zips it came in (in the root or in a category's folder), or some of
    both. A sequence's frames may be spread over several zips.

    Frame numbers are those of frame_annotations.jgz, which need not be the numbers in the file names; without annotations the
    latter are used. Masks, depths, point clouds and set lists are not read.
    """

    dataset: Literal["co3d"]
    """Which dataset this is."""
    name: SourceName = "co3d"
    """The name of this source; two sources need different ones."""
    root: Root
    """The folder that holds the categories, or the zips."""
    categories: tuple[str, ...] | None = None
    """The categories to read; by default all there are."""
    min_viewpoint_quality: float | None = None
    """Leave out sequences whose viewpoint_quality_score is lower, or is not known. 0.5 is usual."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """All sequences, sorted by id. Raises PretrackError if the root, a category asked for, or any sequence is missing."""
        check_root(self.root, "co3d")
        zips, failures = self._zips()
        yield from failures
        found = False
        for name in self._category_names(zips):
            category = self._list(name, zips)
            if category.images:
                found = True
                yield from self._find_in(category)
            elif category.annotations:
                yield self._failure(
                    "",
                    Reason.MISSING_SEQUENCES,
                    f"the category {name} has annotations but no images here",
                )
        if not found:
            raise PretrackError(
                f"{self.root} holds no CO3D sequences: expected CATEGORY/SEQUENCE/images/frame000001.jpg, "
                "or zips such as apple_000.zip"
            )

    def _zips(self) -> tuple[dict[str, set[str]], list[Failure]]:
        """The zips by their path relative to the root, each with the categories in it; and those that cannot be read."""
        zips: dict[str, set[str]] = {}
        failures = []
        for path in sorted([*self.root.glob("*.zip"), *self.root.glob("*/*.zip")]):
            name = path.relative_to(self.root).as_posix()
            try:
                with zipfile.ZipFile(path) as archive:
                    zips[name] = {
                        place[0] for member in archive.namelist() if (place := _place(name, member))
                    }
            except (OSError, zipfile.BadZipFile) as error:
                detail = (
                    f"{path} cannot be read ({error}): download it again, or finish the download"
                )
                failures.append(self._failure(name, Reason.UNREADABLE_ZIP, detail))
        return zips, failures

    def _category_names(self, zips: Mapping[str, set[str]]) -> list[str]:
        """The categories to read, sorted."""
        there = {*folders_in(self.root), *(name for names in zips.values() for name in names)}
        if self.categories is None:
            return sorted(there)
        if missing := sorted(set(self.categories) - there):
            raise PretrackError(
                f"{self.root} holds no category '{missing[0]}': correct 'categories', or unpack or download it"
            )
        return sorted(set(self.categories))

    def _list(self, name: str, zips: Mapping[str, set[str]]) -> _Category:
        """All files of a category that count: one stat a file on disk, one directory a zip."""
        category = _Category(name)
        if (self.root / name).is_dir():
            for folder in folders_in(self.root, name):
                if (self.root / folder / "images").is_dir():
                    for file in images_in(self.root, f"{folder}/images"):
                        category.add(Path(folder).name, file)
            for file_name in (FRAMES_FILE, SEQUENCES_FILE):
                if (self.root / name / file_name).is_file():
                    category.annotations[file_name] = f"{name}/{file_name}"
        for archive_name in (archive for archive, names in zips.items() if name in names):
            with zipfile.ZipFile(self.root / archive_name) as archive:
                for member in archive.infolist():
                    place = _place(archive_name, member.filename)
                    if place is None or place[0] != name:
                        continue
                    location = f"{archive_name}!{member.filename}"
                    if place[1]:
                        category.add(place[1], ListedFile(location, member.file_size, member.CRC))
                    else:
                        category.annotations.setdefault(
                            member.filename.rsplit("/", 1)[-1], location
                        )
        return category

    def _find_in(self, category: _Category) -> Iterator[Video | Failure]:
        """The videos of a category."""
        annotated, why = self._read(category, FRAMES_FILE, _frames)
        scores, no_scores = (
            self._read(category, SEQUENCES_FILE, _scores)
            if self.min_viewpoint_quality is not None
            else ({}, "")
        )
        if missing := sorted(annotated.keys() - category.images.keys()):
            detail = f"{len(missing)} of {len(annotated)} sequences of {category.name} that {FRAMES_FILE} names have no images here"
            yield self._failure("", Reason.MISSING_SEQUENCES, f"{detail} (first: {missing[0]})")
        for sequence in sorted(category.images):
            score = scores.get(sequence, math.nan)
            if self.min_viewpoint_quality is not None and not score >= self.min_viewpoint_quality:
                shown = (
                    f"{score:g}"
                    if sequence in scores
                    else f"not known ({no_scores or 'it has none'})"
                )
                detail = f"its viewpoint_quality_score is {shown}, and min_viewpoint_quality asks for {self.min_viewpoint_quality:g}"
                yield self._failure(
                    f"{category.name}/{sequence}", Reason.LOW_VIEWPOINT_QUALITY, detail
                )
            elif sequence in annotated:
                yield from self._annotated(category, sequence, annotated[sequence])
            else:
                yield from self._listed(
                    category,
                    sequence,
                    why or f"{category.name}/{FRAMES_FILE} does not name the sequence",
                )

    def _read(self, category: _Category, file: str, parse: Any) -> tuple[Any, str]:
        """An annotation file as `parse` gives it, and ""; or an empty mapping and why there is none."""
        location = category.annotations.get(file)
        if location is None:
            return {}, f"there is no {category.name}/{file}"
        try:
            with _open(self.root, location) as raw, gzip.open(raw, "rt", encoding="utf-8") as text:
                return parse(items(text)), ""
        except (*_DAMAGED, KeyError, TypeError, AttributeError) as error:
            return {}, f"{location} cannot be read ({type(error).__name__}: {error})"

    def _annotated(
        self, category: _Category, sequence: str, frames: list[_Frame]
    ) -> Iterator[Video | Failure]:
        """A sequence as its annotations list it, and what of it is not on disk or not annotated."""
        video_id, images = f"{category.name}/{sequence}", category.images[sequence]
        by_path: dict[str, _Frame] = {}
        by_number: dict[int, _Frame] = {}
        for frame in frames:  # should two rows name one image or one number, the first counts
            if by_path.setdefault(frame.path, frame) is frame:
                by_number.setdefault(frame.number, frame)
        ordered = [by_number[number] for number in sorted(by_number)]
        used = [frame for frame in ordered if frame.path in images]
        if absent := [frame.path for frame in ordered if frame.path not in images]:
            detail = f"{len(absent)} of {len(ordered)} annotated images are not there (first: {absent[0]})"
            yield self._failure(video_id, Reason.MISSING_IMAGES, detail)
        if extra := sorted(images.keys() - {frame.path for frame in ordered}):
            detail = f"{len(extra)} images are left out: {FRAMES_FILE} gives them no frame of their own (first: {extra[0]})"
            yield self._failure(video_id, Reason.IMAGES_WITHOUT_ANNOTATION, detail)
        if not used:
            return
        cameras, why = (
            [frame.camera for frame in used],
            f"{FRAMES_FILE} gives no usable viewpoint for them",
        )
        if any(frame.exploded for frame in used):
            cameras, why = (
                [None] * len(used),
                f"translations of more than {_EXPLODED:g} say that its reconstruction failed",
            )
        known, failures = with_poses(self.name, video_id, cameras, why)
        yield from failures
        timestamps = _increasing([frame.timestamp for frame in used])
        if timestamps is None:
            detail = f"the times of its frames in {FRAMES_FILE} are absent or do not increase: it goes on without"
            yield self._failure(video_id, Reason.TIMESTAMPS_MISSING, detail)
        numbers = tuple(frame.number for frame in used)
        yield self._video(
            video_id, sequence, [images[frame.path] for frame in used], numbers, timestamps, known
        )

    def _listed(self, category: _Category, sequence: str, why: str) -> Iterator[Video | Failure]:
        """A sequence as its files list it."""
        video_id, frames = (
            f"{category.name}/{sequence}",
            number_frames(category.images[sequence].values()),
        )
        _, failures = with_poses(
            self.name, video_id, [None] * len(frames), f"{why}; their times are not known either"
        )
        yield from failures
        yield self._video(
            video_id,
            sequence,
            [file for _, file in frames],
            tuple(number for number, _ in frames),
            None,
            None,
        )

    def _video(
        self,
        video_id: str,
        sequence: str,
        files: list[ListedFile],
        numbers: tuple[int, ...],
        timestamps: tuple[float, ...] | None,
        cameras: tuple[Camera | None, ...] | None,
    ) -> Video:
        return Video(
            source=self.name,
            dataset=self.dataset,
            video_id=video_id,
            sequence=f"co3d/{sequence}",
            root=str(self.root.absolute()),
            file="",
            image_files=tuple(file.name for file in files),
            frame_numbers=numbers,
            timestamps=timestamps,
            cameras=cameras,
            identity=identity_of(files),
            terms=TERMS,
        )

    def _failure(self, video_id: str, reason: Reason, detail: str) -> Failure:
        return Failure(
            source=self.name, video_id=video_id, stage="catalog", reason=reason, detail=detail
        )


def viewpoint_camera(viewpoint: Mapping[str, Any], width: int, height: int) -> Camera | None:
    """The camera of a CO3D viewpoint for its image at `width` x `height` pixels; None if its numbers are no camera.

    PyTorch3D's axes are x left, y up, z forward, with X_camera = X_world @ R + T. Its NDC puts (0, 0) midway between the image's
    *borders*; a unit is half a side ("ndc_norm_image_bounds": in x and y each its own, "ndc_isotropic": the shorter).
    Raises ValueError for another intrinsics_format.
    """
    unit = {
        "ndc_norm_image_bounds": (width / 2, height / 2),
        "ndc_isotropic": (min(width, height) / 2,) * 2,
    }
    form = viewpoint.get(
        "intrinsics_format", "ndc_norm_image_bounds"
    ).lower()  # v1 has no such key, and means this
    if form not in unit:
        raise ValueError(f"unknown intrinsics_format '{form}'")
    (ux, uy), (fx, fy), (px, py) = (
        unit[form],
        viewpoint["focal_length"],
        viewpoint["principal_point"],
    )
    rotation, translation = (
        np.asarray(viewpoint["R"], np.float64),
        np.asarray(viewpoint["T"], np.float64),
    )
    if rotation.shape != (3, 3) or translation.shape != (3,):
        return None
    flip = np.array([[-1.0], [-1.0], [1.0]])  # x left, y up → x right, y down
    world_to_camera = flip * np.column_stack([rotation.T, translation])
    return opencv_camera(
        fx * ux, fy * uy, width / 2 - px * ux - 0.5, height / 2 - py * uy - 0.5, world_to_camera
    )


def _place(archive: str, member: str) -> tuple[str, str] | None:
    """(category, sequence) of a zip's member that counts: an image, or (category, "") for an annotation file; otherwise None.

    A zip in a category's folder may leave the category out of its members' names.
    """
    base = member.rsplit("/", 1)[-1]
    around = archive.split("/", 1)[0] if "/" in archive else ""
    if base in (FRAMES_FILE, SEQUENCES_FILE):
        category = member.rsplit("/", 2)[-2] if "/" in member else around
        return (category, "") if category else None
    match = _MEMBER.fullmatch(member) if is_image(base) else None
    if match is None:
        return None
    category = match["category"] or around
    return (category, match["sequence"]) if category else None


@contextmanager
def _open(root: Path, location: str) -> Iterator[BinaryIO]:
    """Opens a file of the root, or "some.zip!member", for reading."""
    archive, bang, member = location.partition("!")
    if not bang:
        with open(root / location, "rb") as file:
            yield file
    else:
        with zipfile.ZipFile(root / archive) as opened, opened.open(member) as inside:
            yield inside  # type: ignore[misc]


def _frames(rows: Iterator[Any]) -> dict[str, list[_Frame]]:
    """frame_annotations.jgz by sequence."""
    sequences: dict[str, list[_Frame]] = {}
    for row in rows:
        image, viewpoint = row["image"], row.get("viewpoint")
        camera = (
            viewpoint_camera(viewpoint, image["size"][1], image["size"][0])
            if viewpoint and image.get("size")
            else None
        )
        exploded = bool(viewpoint) and sum(map(abs, viewpoint["T"])) > _EXPLODED
        frame = _Frame(
            int(row["frame_number"]), image["path"], row.get("frame_timestamp"), camera, exploded
        )
        sequences.setdefault(row["sequence_name"], []).append(frame)
    return sequences


def _scores(rows: Iterator[Any]) -> dict[str, float]:
    """viewpoint_quality_score by sequence; absent and null ones are NaN."""
    scores = ((row["sequence_name"], row.get("viewpoint_quality_score")) for row in rows)
    return {name: math.nan if score is None else float(score) for name, score in scores}


def _increasing(times: list[float | None]) -> tuple[float, ...] | None:
    """The times if all are known and they increase, otherwise None."""
    known = [float(time) for time in times if time is not None and math.isfinite(time)]
    rising = all(earlier < later for earlier, later in itertools.pairwise(known))
    return tuple(known) if len(known) == len(times) and rising else None
