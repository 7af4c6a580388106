"""Decode the clips of one shard from their sources, or copy them from the shard being replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from manifests.fingerprint import fingerprint_lines
from manifests.receipt import shard_path
from manifests.rows import Failure, VideoRow
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.decoded_clip import ClipResult, DecodedClip, decode_failure
from pipeline.execution.file_decoding import decode_from_file, decode_on_gpu, with_maps
from pipeline.execution.image_decoding import decode_from_images, render_images
from pipeline.execution.shard_task import ShardTask
from pipeline.failures import DecodeError
from pipeline.planning.plan import PlannedClip
from pipeline.sources.rendering import is_rendered
from shards.clip import ClipInfo
from shards.errors import ShardError
from shards.frame_maps import decode_depths, decode_masks
from shards.reader import read_clip_members, read_frame_maps


def decode_clips(task: ShardTask, decoder: SubprocessDecoder) -> Iterator[ClipResult]:
    """Decode the clips of a shard, and copy intact clips from the shard being replaced.

    Clips and images that cannot be read become failures. A stored clip with failures is decoded
    again, and kept as it was if decoding gives fewer frames, depth maps or masks.
    """
    for row, clips in groupby(task.clips, key=lambda clip: clip.video):
        planned = list(clips)
        stored = {clip.key: _intact_clip(clip.key, task) for clip in planned}
        earlier = {
            clip.key: tuple(failure for failure in task.failures if failure.clip == clip.key)
            for clip in planned
        }
        wanted = [clip for clip in planned if not stored[clip.key] or earlier[clip.key]]
        from_source = {
            clip.key: result
            for clip, result in zip(
                wanted, _decode_video(wanted, task.videos[row], task, decoder), strict=True
            )
        }
        for clip in planned:
            kept = ClipResult(stored[clip.key], earlier[clip.key])
            yield _better(kept, from_source.get(clip.key))


def _better(stored: ClipResult, decoded: ClipResult | None) -> ClipResult:
    """Prefer the decoded clip, unless decoding failed or gave less of anything than is stored."""
    if decoded is None:
        return stored
    if stored.clip is None:
        return decoded
    if decoded.clip is None:
        return stored
    counts = zip(_counts(stored.clip), _counts(decoded.clip), strict=True)
    return stored if any(now < before for before, now in counts) else decoded


def _counts(clip: DecodedClip) -> tuple[int, int, int]:
    """Count the frames of a clip, and its depth maps and masks that are not 0 throughout."""
    size = (clip.info.width, clip.info.height)
    # An unknown map is stored as 0. The scale of the depth maps does not matter here.
    depths = decode_depths(clip.maps.depths, size, 1.0)
    masks = decode_masks(clip.maps.masks, size)
    return clip.info.frames, int(depths.any((1, 2)).sum()), int(masks.any((1, 2)).sum())


def _intact_clip(key: str, task: ShardTask) -> DecodedClip | None:
    """Copy a clip's frames, byte for byte, from the shard being replaced; None if it is damaged."""
    if (members := task.stored.get(key)) is None:
        return None
    shard = shard_path(task.settings.out, task.shard.reuse)
    try:
        data, _, *jpegs = read_clip_members(shard, members)
        info = ClipInfo.from_json(data)
        maps = read_frame_maps(shard, members, info)
        digest = fingerprint_lines([task.shard.tracks_settings])
        return DecodedClip(replace(info, tracks_settings=digest), tuple(jpegs), maps)
    except ShardError:
        return None


def _decode_video(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> Iterator[ClipResult]:
    """Decode clips of one video."""
    if video.file:
        on_gpu = task.settings.frames.device == "cuda"
        decode = decode_on_gpu if on_gpu else decode_from_file
        results = decode(planned, video, task, decoder)
        if video.depth or video.mask_files:
            # The decoder answers one request at a time: maps are read after the pass over the file.
            for clip, result in zip(planned, list(results), strict=True):
                yield with_maps(clip, result, video, task, decoder)
        else:
            yield from results
        return
    for clip in planned:
        failures: list[Failure] = []
        try:
            if is_rendered(video.dataset):
                render_images(clip, video, task, decoder)
            decoded = decode_from_images(clip, video, task, decoder, failures=failures)
        except DecodeError as error:
            failures.append(decode_failure(clip, video, error, str(error)))
            decoded = None
        yield ClipResult(decoded, tuple(failures))
