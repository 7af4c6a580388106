"""Decode clips of a video file, in one pass over the file or on the GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from manifests.rows import VideoRow
from pipeline.decode.messages import EncodedClip
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.decoded_clip import (
    ClipResult,
    DecodedClip,
    clip_info,
    decode_failure,
    encode_clip,
    frame_indices,
    stored_form,
)
from pipeline.execution.map_decoding import add_maps
from pipeline.execution.shard_task import ShardTask
from pipeline.failures import DecodeError, Reason
from pipeline.planning.ledger_store import digest_of, ledger_digest, read_ledger, write_ledger
from pipeline.planning.plan import PlannedClip


def decode_on_gpu(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> Iterator[ClipResult]:
    """Decode clips of a video file on the GPU, and those that it refuses on the CPU.

    Raises MachineError if this machine cannot decode on a GPU.
    """
    encoded = _encode_on_gpu(planned, video, task, decoder)
    refused = [
        clip
        for clip, result in zip(planned, encoded, strict=True)
        if isinstance(result, DecodeError)
    ]
    from_cpu = decode_from_file(refused, video, task, decoder)
    for clip, result in zip(planned, encoded, strict=True):
        if isinstance(result, EncodedClip):
            indices = frame_indices(clip, task)
            info = clip_info(
                clip,
                video,
                task,
                indices=indices,
                numbers=_indices_in_file(clip, video, task),
                source_sizes=[result.source_size] * len(indices),
                size=result.size,
            )
            yield ClipResult(DecodedClip(info, result.jpegs))
        else:
            on_cpu = next(from_cpu)
            decoded = on_cpu.clip and replace(on_cpu.clip, gpu_refused=str(result))
            yield replace(on_cpu, clip=decoded)


def _encode_on_gpu(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> list[EncodedClip | DecodeError]:
    """Return for each clip of a video file its encoded frames, or why the GPU refuses it."""
    settings = task.settings.frames
    path = str(Path(video.root) / video.file)
    try:
        ledger = _ledger(path, video, task, decoder)
    except DecodeError as error:  # the CPU meets it too, and makes it a failure
        return [error] * len(planned)
    return decoder.encode_clips(
        path,
        device=settings.device,
        ledger=ledger,
        clips=[_indices_in_file(clip, video, task) for clip in planned],
        form=stored_form(task),
        jpeg_quality=settings.jpeg_quality,
    )


def decode_from_file(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> Iterator[ClipResult]:
    """Decode clips of a video file, by start, in one pass over the file.

    After a frame that cannot be read, the pass begins again at the next clip.
    """
    remaining = list(planned)
    while remaining:
        done = 0
        try:
            for clip in _one_pass(remaining, video, task, decoder):
                yield ClipResult(clip)
                done += 1
            return
        except DecodeError as error:
            failed = remaining[done:]
            if error.reason not in (Reason.VIDEO_CHANGED, Reason.MISSING_VIDEO):
                failed = failed[:1]  # only a missing or changed file fails all its clips
            for clip_plan in failed:
                failure = decode_failure(clip_plan, video, error, str(error))
                yield ClipResult(None, (failure,))
            remaining = remaining[done + len(failed) :]


def _one_pass(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> Iterator[DecodedClip]:
    """Decode clips of a video file in one pass. Raises DecodeError."""
    settings = task.settings.frames
    path = str(Path(video.root) / video.file)
    numbers = [_indices_in_file(clip, video, task) for clip in planned]
    frames = decoder.read_video(
        path,
        decoder=settings.decoder,
        ledger=_ledger(path, video, task, decoder),
        indices=[number for of_clip in numbers for number in of_clip],
        form=stored_form(task),
    )
    for clip, of_clip in zip(planned, numbers, strict=True):
        indices, stored = frame_indices(clip, task), [next(frames) for _ in of_clip]
        yield encode_clip(clip, video, task, indices=indices, numbers=of_clip, frames=stored)
    for _ in frames:  # receive the end of the request, which may be an error
        pass


def _ledger(path: str, video: VideoRow, task: ShardTask, decoder: SubprocessDecoder) -> bytes:
    """Return the packed ledger of a video file.

    If it was deleted with the folder `catalog`, the file is scanned again. Raises DecodeError.
    """
    out, digest = task.settings.out, digest_of(video)
    if packed := read_ledger(out, digest):
        return packed
    scan = decoder.scan(path, task.settings.frames.shot_cuts)
    if ledger_digest(scan.ledger) != digest:
        raise DecodeError(
            "its ledger is gone, and the file has changed since it was scanned: 'touch' it and run "
            "the build again",
            Reason.VIDEO_CHANGED,
        )
    write_ledger(out, scan.ledger)
    return scan.ledger


def _indices_in_file(planned: PlannedClip, video: VideoRow, task: ShardTask) -> list[int]:
    """Return the indices of a clip's frames within its video file, which may skip frames."""
    indices = frame_indices(planned, task)
    return [video.frame_numbers[index] for index in indices] if video.frame_numbers else indices


def with_maps(
    planned: PlannedClip,
    result: ClipResult,
    video: VideoRow,
    task: ShardTask,
    decoder: SubprocessDecoder,
) -> ClipResult:
    """Read the depth maps and masks of a clip that was decoded from a video file."""
    if result.clip is None:
        return result
    info, failures = result.clip.info, list(result.failures)
    # All frames of a shot have one size.
    size = (info.source_width, info.source_height)
    sizes = dict.fromkeys(frame_indices(planned, task), size)
    try:
        clip = add_maps(planned, result.clip, sizes, video, decoder, failures=failures)
    except DecodeError as error:
        return ClipResult(None, (decode_failure(planned, video, error, str(error)),))
    return ClipResult(clip, tuple(failures))
