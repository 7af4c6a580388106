"""List the videos of all sources by their names, without reading their content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from manifests.rows import Failure
from pipeline.config import BuildSettings
from pipeline.failures import Reason
from pipeline.monitoring.progress import Progress
from pipeline.sources.video import Video
from shards.errors import PretrackError


def find_videos(settings: BuildSettings, progress: Progress) -> Iterator[Video | Failure]:
    """List all sources.

    Raises PretrackError if a source's root is missing, unreadable, or not what the source expects.
    """
    for source in settings.sources:
        with progress.task(f"listing {source.name}", noun="video") as task:
            try:
                for video in source.find_videos():
                    if isinstance(video, Video):
                        task.advance()
                    yield _with_text_names(video)
            except OSError as error:
                raise PretrackError(
                    f"{error.filename or source.root} of source {source.name} cannot be read "
                    f"({error})"
                ) from error


def _with_text_names(video: Video | Failure) -> Video | Failure:
    """Return a failure for a video whose file names are not text.

    On Linux file names are bytes, and tables hold text.
    """
    names = (
        [video.video_id, video.file, *video.image_files, *_map_files(video)]
        if isinstance(video, Video)
        else [video.video_id, video.detail]
    )
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        video_id = _escaped(video.video_id)
        if isinstance(video, Failure):
            return replace(video, video_id=video_id, detail=_escaped(video.detail))
        return Failure(
            source=video.source,
            video_id=video_id,
            stage="catalog",
            reason=Reason.UNUSABLE_NAME,
            detail=f"{video.root}/{video_id}: its name, or that of a file in it, is not valid "
            "UTF-8: rename it",
        )
    return video


def _map_files(video: Video) -> Iterator[str]:
    """Yield the names of a video's depth maps, their masks, and its masks."""
    if video.depth:
        yield from (*video.depth.files, *video.depth.masks)
    yield from video.mask_files or ()


def _escaped(name: str) -> str:
    """Return a name of any bytes as text, with backslash escapes."""
    return name.encode(errors="backslashreplace").decode()
