"""Decode the depth maps and masks of a clip whose frames are decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.rows import DepthFiles, Failure, VideoRow
from manifests.wording import pluralise
from pipeline.decode.messages import DepthFile, MapsRequest
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.decoded_clip import DecodedClip, Size, decode_failure
from pipeline.failures import DecodeError, Reason
from pipeline.planning.plan import PlannedClip
from shards.clip import ClipInfo
from shards.frame_maps import LARGEST_VALUE, NO_MAPS, FrameMaps, encode_depth, encode_mask

_FARTHEST = 32.0
"""Depths beyond this multiple of a clip's median become unknown: one wild value would leave too few
of the 65535 steps for all others. Where cameras move by the median depth, a step is then worth less
than a tenth of a pixel in a frame of 256 pixels."""
_NAMED_FRAMES = 3
"""Most frames that a note names."""


def add_maps(
    planned: PlannedClip,
    clip: DecodedClip,
    source_sizes: Mapping[int, Size],
    video: VideoRow,
    decoder: SubprocessDecoder,
    *,
    failures: list[Failure],
) -> DecodedClip:
    """Read a clip's depth maps and masks; unknown ones are appended to `failures`.

    source_sizes: as in `read_maps`

    Raises DecodeError if the decoder's process was killed or died.
    """
    scale, maps, unknown = read_maps(clip.info, source_sizes, video, decoder)
    failures += [decode_failure(planned, video, error, str(error)) for error in unknown]
    return replace(clip, info=replace(clip.info, depth_scale=scale), maps=maps)


def read_maps(
    info: ClipInfo,
    source_sizes: Mapping[int, Size],
    video: VideoRow,
    decoder: SubprocessDecoder,
) -> tuple[float | None, FrameMaps, list[DecodeError]]:
    """Read the depth maps and masks of a clip, as far as its video has them.

    source_sizes: of the clip's frames, by their index in the video

    Returns the scale of the depth maps (None without), the encoded maps, and an error per kind of
    map that is unknown in some frames: they are 0 there. A clip in which no frame has one is
    stored without.
    """
    frames = list(source_sizes)
    depth, masks = video.depth, video.mask_files
    if not depth and not masks:
        return None, NO_MAPS, []
    request = MapsRequest(
        root=video.root,
        depths=tuple(_depth_file(depth, index) for index in frames) if depth else (),
        masks=tuple(masks[index] for index in frames) if masks else (),
        source_sizes=tuple(source_sizes.values()),
        stored_size=(info.width, info.height),
    )
    results = decoder.read_maps(request)
    count = len(request.depths)
    unknown = [
        *_unknown(info, results[:count], [file.name for file in request.depths], "depth"),
        *_unknown(info, results[count:], request.masks, "mask"),
    ]
    depths, mask_values = (_filled(part, info) for part in (results[:count], results[count:]))
    scale = _scale(depth, frames, depths) if depth and depths else None
    maps = FrameMaps(
        tuple(encode_depth(values, scale) for values in depths) if scale else (),
        tuple(encode_mask(values.astype(np.uint8)) for values in mask_values),
    )
    return scale, maps, unknown


def _depth_file(depth: DepthFiles, index: int) -> DepthFile:
    return DepthFile(
        name=depth.files[index],
        encoding=depth.encoding,
        scale=depth.scales[index],
        mask=depth.masks[index] if depth.masks else "",
    )


def _filled(results: Sequence[NDArray[Any] | DecodeError], info: ClipInfo) -> list[NDArray[Any]]:
    """Put zeros in the place of maps that could not be read; [] if none could."""
    if all(isinstance(result, DecodeError) for result in results):
        return []
    zeros = np.zeros((info.height, info.width), np.float32)
    return [zeros if isinstance(result, DecodeError) else result for result in results]


def _scale(depth: DepthFiles, frames: Sequence[int], maps: Sequence[NDArray[Any]]) -> float:
    """Choose the scale of a clip: the source's own if it has one, so that its values are kept."""
    scales = {depth.scales[index] for index in frames}
    if depth.encoding == "linear" and len(scales) == 1:
        return scales.pop()
    known = np.concatenate([values[values > 0] for values in maps])
    if not known.size:  # all of it was on edges
        return 1.0
    return float(min(known.max(), _FARTHEST * float(np.median(known))) / LARGEST_VALUE)


def _unknown(
    info: ClipInfo,
    results: Sequence[NDArray[Any] | DecodeError],
    names: Sequence[str],
    kind: str,
) -> list[DecodeError]:
    """Return an error that names the frames whose maps could not be read, if there are any."""
    errors = [
        f"frame {number} ({name}: {result})" if name else f"frame {number} ({result})"
        for number, name, result in zip(info.frame_numbers, names, results, strict=False)
        if isinstance(result, DecodeError)
    ]
    if not errors:
        return []
    more = f" and {len(errors) - _NAMED_FRAMES} more" if len(errors) > _NAMED_FRAMES else ""
    reason = Reason.DEPTH_UNKNOWN if kind == "depth" else Reason.MASK_UNKNOWN
    return [
        DecodeError(
            f"the {kind} of {len(errors)} of {pluralise(info.frames, 'frame')} is unknown and "
            f"stored as 0: {', '.join(errors[:_NAMED_FRAMES])}{more}",
            reason,
        )
    ]
