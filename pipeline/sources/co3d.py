"""List CO3Dv2 (and v1): videos that circle an object, unpacked or straight from the zips."""

from __future__ import annotations

import gzip
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from manifests.rows import DepthFiles, Failure
from manifests.settings import Settings
from pipeline.failures import Reason
from pipeline.sources.cameras import with_poses
from pipeline.sources.co3d_annotations import (
    EXPLODED,
    FRAMES_FILE,
    SEQUENCES_FILE,
    FrameAnnotation,
    frames_by_sequence,
    in_order,
    increasing_times,
    quality_scores,
)
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

TERMS = (
    "CO3D: CC BY-NC 4.0; attribution to Meta, no commercial use of the frames "
    "or of what is made from them"
)

_DAMAGED = (OSError, EOFError, ValueError, RecursionError, zlib.error, zipfile.BadZipFile)
_MEMBER = re.compile(r"(?:(?:.*/)?(?P<category>[^/]+)/)?(?P<sequence>[^/]+)/images/[^/]+")

_MAP = re.compile(
    r"(?:(?:.*/)?(?P<category>[^/]+)/)?(?P<rest>[^/]+/(?:depths|depth_masks|masks)/[^/]+)"
)


@dataclass
class _Category:
    """The files of a category, on disk or in zips.

    images:      sequence → path as the annotations write it → file
    annotations: name of an annotation file → its location, "some.zip!member" in a zip
    zipped_maps: path of a depth map or mask as the annotations write it → its location in a zip
    """

    name: str
    images: dict[str, dict[str, ListedFile]] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    zipped_maps: dict[str, str] = field(default_factory=dict)

    def located(self, path: str) -> str:
        """Return where a depth map or mask is: in a zip, or unpacked, which is not checked."""
        return self.zipped_maps.get(path, path)

    def add(self, sequence: str, file: ListedFile) -> None:
        """Add an image, unless one with the same path was added before.

        Unpacked images are added before those in zips, and zips by name: the first found counts.
        """
        self.images.setdefault(sequence, {}).setdefault(
            f"{self.name}/{sequence}/images/{file.base}", file
        )


class Co3d(Settings):
    """CO3D as a tree `CATEGORY/SEQUENCE/images/frame000001.jpg`, or as the zips it is released in.

    The zips lie in the root or in a category's folder; unpacked and zipped files may be mixed, and
    a sequence may be spread over several zips. Frame numbers are those of frame_annotations.jgz,
    which may differ from the numbers in the file names; without annotations, the latter are used.
    Depth maps and masks are read with `frames.depth` and `frames.masks`, where the annotations name
    them; point clouds and set lists are not.
    """

    dataset: Literal["co3d"]
    """The kind of dataset."""
    name: SourceName = "co3d"
    """The name of this source. Every source of a build needs its own."""
    root: Root
    """The folder that holds the categories, or the zips."""
    categories: tuple[str, ...] | None = None
    """The categories to read. Default: all that are there."""
    min_viewpoint_quality: float | None = None
    """Leave out sequences whose viewpoint_quality_score is lower or unknown. 0.5 is usual."""

    def find_videos(self) -> Iterator[Video | Failure]:
        """Yield all sequences, sorted by id, each after what is missing or unusable in it.

        Raises PretrackError if the root or a category asked for does not exist, or nothing is in
        it.
        """
        check_root(self.root, "co3d")
        zips, failures = self._zips()
        yield from failures
        any_images = False
        for name in self._category_names(zips):
            category = self._list(name, zips)
            if category.images:
                any_images = True
                yield from self._find_in(category)
            elif category.annotations:
                yield self._failure(
                    "",
                    Reason.MISSING_SEQUENCES,
                    f"the category {name} has annotations but no images here",
                )
        if not any_images:
            raise PretrackError(
                f"{self.root} holds no CO3D sequences: expected "
                "CATEGORY/SEQUENCE/images/frame000001.jpg, or zips such as apple_000.zip"
            )

    def _zips(self) -> tuple[dict[str, set[str]], list[Failure]]:
        """Map each zip, by its path relative to the root, to the categories in it.

        Also returns the failures of the zips that cannot be read.
        """
        zips: dict[str, set[str]] = {}
        failures = []
        for path in sorted([*self.root.glob("*.zip"), *self.root.glob("*/*.zip")]):
            name = path.relative_to(self.root).as_posix()
            try:
                with zipfile.ZipFile(path) as archive:
                    members = archive.namelist()
                matches = [_category_and_sequence(name, member) for member in members]
                maps = [_path_of_map(name, member).split("/")[0] for member in members]
                zips[name] = {*(match[0] for match in matches if match), *maps} - {""}
            except (OSError, zipfile.BadZipFile) as error:
                detail = (
                    f"{path} cannot be read ({error}): download it again, or finish the download"
                )
                failures.append(self._failure(name, Reason.UNREADABLE_ZIP, detail))
        return zips, failures

    def _category_names(self, zips: Mapping[str, set[str]]) -> list[str]:
        """Return the categories to read, sorted. Raises PretrackError if one is not there."""
        present = {*folders_in(self.root), *(name for names in zips.values() for name in names)}
        if self.categories is None:
            return sorted(present)
        if missing := sorted(set(self.categories) - present):
            raise PretrackError(
                f"{self.root} holds no category '{missing[0]}': "
                "correct 'categories', or unpack or download it"
            )
        return sorted(set(self.categories))

    def _list(self, name: str, zips: Mapping[str, set[str]]) -> _Category:
        """List the images and annotation files of a category, unpacked ones first.

        Takes one stat per file on disk and one directory per zip; no file is opened.
        """
        category = _Category(name)
        if (self.root / name).is_dir():
            for folder in folders_in(self.root, name):
                if (self.root / folder / "images").is_dir():
                    for file in images_in(self.root, f"{folder}/images"):
                        category.add(Path(folder).name, file)
            for file_name in (FRAMES_FILE, SEQUENCES_FILE):
                if (self.root / name / file_name).is_file():
                    category.annotations[file_name] = f"{name}/{file_name}"
        for archive_name, names in zips.items():
            if name in names:
                self._list_zip(category, archive_name)
        return category

    def _list_zip(self, category: _Category, archive_name: str) -> None:
        """Add to a category the images and annotation files that a zip holds of it."""
        with zipfile.ZipFile(self.root / archive_name) as archive:
            for member in archive.infolist():
                location = f"{archive_name}!{member.filename}"
                path = _path_of_map(archive_name, member.filename)
                if path.startswith(f"{category.name}/"):
                    category.zipped_maps.setdefault(path, location)
                match = _category_and_sequence(archive_name, member.filename)
                if match is None or match[0] != category.name:
                    continue
                sequence = match[1]
                if sequence:
                    category.add(sequence, ListedFile(location, member.file_size, member.CRC))
                else:
                    category.annotations.setdefault(member.filename.rsplit("/", 1)[-1], location)

    def _find_in(self, category: _Category) -> Iterator[Video | Failure]:
        """Yield the videos of a category, and what is missing from it."""
        annotated, no_annotations = self._read(category, FRAMES_FILE, frames_by_sequence)
        if missing := sorted(annotated.keys() - category.images.keys()):
            detail = (
                f"{len(missing)} of {len(annotated)} sequences of {category.name} "
                f"that {FRAMES_FILE} names have no images here (first: {missing[0]})"
            )
            yield self._failure("", Reason.MISSING_SEQUENCES, detail)
        scores, no_scores = self._read(category, SEQUENCES_FILE, quality_scores)
        low_quality = self._low_quality(category, scores, no_scores)
        for sequence in sorted(category.images):
            if sequence in low_quality:
                yield self._failure(
                    f"{category.name}/{sequence}",
                    Reason.LOW_VIEWPOINT_QUALITY,
                    low_quality[sequence],
                )
            elif sequence in annotated:
                yield from _with_quality(
                    self._annotated(category, sequence, annotated[sequence]), scores.get(sequence)
                )
            else:
                unnamed = f"{category.name}/{FRAMES_FILE} does not name the sequence"
                yield from self._listed(category, sequence, no_annotations or unnamed)

    def _low_quality(
        self, category: _Category, scores: Mapping[str, float], no_scores: str
    ) -> dict[str, str]:
        """Map each sequence whose score is too low, or unknown, to a sentence that says so."""
        if self.min_viewpoint_quality is None:
            return {}
        details = {}
        for sequence in category.images:
            score = scores.get(sequence, math.nan)
            if not score >= self.min_viewpoint_quality:  # a NaN is below every threshold
                score_text = f"not known ({no_scores or 'it has none'})"
                if sequence in scores:
                    score_text = f"{score:g}"
                details[sequence] = (
                    f"its viewpoint_quality_score is {score_text}, "
                    f"and min_viewpoint_quality asks for {self.min_viewpoint_quality:g}"
                )
        return details

    def _read(self, category: _Category, file: str, parse: Any) -> tuple[Any, str]:
        """Read an annotation file with `parse`: (its result, ""), or ({}, why there is none)."""
        location = category.annotations.get(file)
        if location is None:
            return {}, f"there is no {category.name}/{file}"
        try:
            with _open(self.root, location) as raw, gzip.open(raw, "rt", encoding="utf-8") as text:
                return parse(items(text)), ""
        except (*_DAMAGED, KeyError, TypeError, AttributeError) as error:
            return {}, f"{location} cannot be read ({type(error).__name__}: {error})"

    def _annotated(
        self, category: _Category, sequence: str, frames: list[FrameAnnotation]
    ) -> Iterator[Video | Failure]:
        """Yield how a sequence's images differ from its annotations, then the video of both."""
        video_id, images = f"{category.name}/{sequence}", category.images[sequence]
        ordered = in_order(frames)
        used = [frame for frame in ordered if frame.path in images]
        yield from self._differences(video_id, images, ordered)
        if not used:
            return
        # One exploded pose means that the reconstruction failed: no pose of the sequence is used.
        cameras = [frame.camera for frame in used]
        why = f"{FRAMES_FILE} gives no usable viewpoint for them"
        if any(frame.exploded for frame in used):
            cameras = [None] * len(used)
            why = f"translations of more than {EXPLODED:g} say that its reconstruction failed"
        poses, failures = with_poses(self.name, video_id, cameras, why)
        yield from failures
        timestamps = increasing_times([frame.timestamp for frame in used])
        if timestamps is None:
            detail = (
                f"the times of its frames in {FRAMES_FILE} are absent or do not increase: "
                "it is used without them"
            )
            yield self._failure(video_id, Reason.TIMESTAMPS_MISSING, detail)
        yield self._video(
            category,
            sequence,
            files=[images[frame.path] for frame in used],
            numbers=tuple(frame.number for frame in used),
            timestamps=timestamps,
            cameras=poses,
            frames=used,
        )

    def _differences(
        self, video_id: str, images: Mapping[str, ListedFile], frames: list[FrameAnnotation]
    ) -> Iterator[Failure]:
        """Yield how many images are missing, and how many are without an annotation."""
        if absent := [frame.path for frame in frames if frame.path not in images]:
            detail = (
                f"{len(absent)} of {len(frames)} annotated images are not there "
                f"(first: {absent[0]})"
            )
            yield self._failure(video_id, Reason.MISSING_IMAGES, detail)
        if extra := sorted(images.keys() - {frame.path for frame in frames}):
            detail = (
                f"{len(extra)} images are left out: {FRAMES_FILE} gives them no frame "
                f"of their own (first: {extra[0]})"
            )
            yield self._failure(video_id, Reason.IMAGES_WITHOUT_ANNOTATION, detail)

    def _listed(self, category: _Category, sequence: str, why: str) -> Iterator[Video | Failure]:
        """Yield a failure for the poses of a sequence without annotations, then its video."""
        frames = number_frames(category.images[sequence].values())
        _, failures = with_poses(
            self.name,
            f"{category.name}/{sequence}",
            [None] * len(frames),
            f"{why}; their times are not known either",
        )
        yield from failures
        yield self._video(
            category,
            sequence,
            files=[file for _, file in frames],
            numbers=tuple(number for number, _ in frames),
            timestamps=None,
            cameras=None,
            frames=[],
        )

    def _video(
        self,
        category: _Category,
        sequence: str,
        *,
        files: list[ListedFile],
        numbers: tuple[int, ...],
        timestamps: tuple[float, ...] | None,
        cameras: tuple[Camera | None, ...] | None,
        frames: Sequence[FrameAnnotation],
    ) -> Video:
        masks = tuple(category.located(frame.mask) for frame in frames)
        return Video(
            source=self.name,
            dataset=self.dataset,
            video_id=f"{category.name}/{sequence}",
            sequence=f"co3d/{sequence}",
            root=str(self.root.absolute()),
            file="",
            image_files=tuple(file.name for file in files),
            frame_numbers=numbers,
            timestamps=timestamps,
            cameras=cameras,
            identity=identity_of(files),
            terms=TERMS,
            depth=_depth_files(category, frames),
            mask_files=masks if any(masks) else None,
        )

    def _failure(self, video_id: str, reason: Reason, detail: str) -> Failure:
        return Failure(
            source=self.name, video_id=video_id, stage="catalog", reason=reason, detail=detail
        )


def _depth_files(category: _Category, frames: Sequence[FrameAnnotation]) -> DepthFiles | None:
    """Return the depth maps that the annotations of a sequence name, None if they name none.

    CO3D's decoder reads the 16 bits of a pixel as a float16, and multiplies by the adjustment.
    """
    if not any(frame.depth for frame in frames):
        return None
    masks = tuple(category.located(frame.depth_mask) for frame in frames)
    return DepthFiles(
        encoding="float16",
        files=tuple(category.located(frame.depth) for frame in frames),
        scales=tuple(frame.depth_scale for frame in frames),
        masks=masks if any(masks) else (),
    )


def _path_of_map(archive: str, member: str) -> str:
    """Return the path of a depth map or mask in a zip as annotations write it, "" for others."""
    if (match := _MAP.fullmatch(member)) is None:
        return ""
    around = archive.split("/", 1)[0] if "/" in archive else ""  # as for images
    return f"{match['category'] or around}/{match['rest']}"


def _category_and_sequence(archive: str, member: str) -> tuple[str, str] | None:
    """Return (category, sequence) of an image in a zip, (category, "") of an annotation file.

    Returns None for all other members. A zip in a category's folder may leave the category out of
    the names of its members.
    """
    base = member.rsplit("/", 1)[-1]
    around = archive.split("/", 1)[0] if "/" in archive else ""  # the folder that holds the zip
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
    """Open a file, relative to the root, or "some.zip!member", for reading."""
    archive, bang, member = location.partition("!")
    if not bang:
        with open(root / location, "rb") as file:
            yield file
    else:
        with zipfile.ZipFile(root / archive) as opened, opened.open(member) as inside:
            yield inside  # type: ignore[misc]


def _with_quality(
    found: Iterator[Video | Failure], score: float | None
) -> Iterator[Video | Failure]:
    """Give videos the sequence's viewpoint_quality_score, unless it is absent or not finite."""
    for video in found:
        if isinstance(video, Video) and score is not None and math.isfinite(score):
            yield replace(video, viewpoint_quality=score)
        else:
            yield video
