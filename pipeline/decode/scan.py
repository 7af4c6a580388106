"""Scan a video file: decode it once from its start, and enter every frame into its ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import cv2
import numpy as np

from pipeline.decode.frame_format import FrameFormat, pixel_aspect
from pipeline.decode.ledger import Ledger, LedgerWriter, picture_cells
from pipeline.decode.pyav import decode, frame_times, open_video, packets
from pipeline.decode.shots import ShotDetector, small_picture
from pipeline.failures import DecodeError, Reason
from pipeline.sources.video import Scan, ScanNote

_FALLBACK_RATE = 25
"""Frames per second assumed for a file that states none; only used if it has no usable times."""
_FROZEN_S = 2.0
"""A picture that does not change for this many seconds is named."""
_LEAST_CONTRAST = 4
"""A frozen picture whose cells differ by fewer grey levels is called blank."""


@dataclass
class _Observed:
    """Observations from decoding a file, frame by frame.

    errors:       (frames shown before it, FFmpeg's words) of every decoding error
    corrupt:      frames that the decoder flags as damaged
    bidirectional: frames that may refer to a later one (B-frames)
    times:        seconds, None where the container gives none
    contrasts:    standard deviation of each small picture
    """

    errors: list[tuple[int, str]] = field(default_factory=list)
    corrupt: list[int] = field(default_factory=list)
    bidirectional: set[int] = field(default_factory=set)
    times: list[float | None] = field(default_factory=list)
    contrasts: list[int] = field(default_factory=list)


def scan(path: str, shot_cuts: bool, on_frame: Callable[[], None] = lambda: None) -> Scan:
    """Decode a file from its start to its end, or until reading fails.

    Finds the true frame count, times, sizes, damage, and shot cuts if wanted. `on_frame` is called
    after each frame. Raises DecodeError if the file cannot be opened or no frame can be decoded.
    """
    seen = _Observed()
    shots = ShotDetector() if shot_cuts else None
    timed = True
    with open_video(path) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or _FALLBACK_RATE)
        entries = LedgerWriter(stream.time_base)

        def watched() -> Iterator[Any]:
            nonlocal timed
            for packet in packets(container, stream, note_error):
                timed = timed and (packet.pts is not None or not packet.size)
                if packet.is_corrupt:  # the container lost a part of it
                    note_error("data are missing")
                yield packet

        def note_error(words: str) -> None:
            seen.errors.append((len(entries), words))

        for frame in decode(watched(), note_error):
            index = len(entries)
            small = small_picture(frame)
            cells = picture_cells(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))
            entries.add(frame, FrameFormat.of_frame(frame, pixel_aspect(stream)), cells)
            seen.times.append(frame.time)
            seen.contrasts.append(int(cells.max()) - int(cells.min()))
            if frame.is_corrupt:
                seen.corrupt.append(index)
            if frame.pict_type == "B":
                seen.bidirectional.add(index)
            if shots:
                shots.add(small)
            on_frame()
    if not len(entries):
        words = f" ({seen.errors[0][1]})" if seen.errors else ""
        raise DecodeError(f"no frame could be decoded{words}", Reason.NO_FRAMES)
    undamaged = entries.ledger((), timed)
    damaged = damaged_stretches(undamaged, seen.corrupt, seen.bidirectional, seen.errors)
    ledger = entries.ledger(damaged, timed)
    times = frame_times(seen.times if timed else [None] * len(ledger), rate)
    cuts = _cuts(ledger, damaged, seen, shots.cuts() if shots else ())
    return Scan(
        width=ledger.formats[0][1].upright_size[0],
        height=ledger.formats[0][1].upright_size[1],
        timestamps=times,
        cuts=cuts,
        notes=tuple(_notes(ledger, damaged, seen, times, timed)),
        ledger=ledger.pack(),
    )


def damaged_stretches(
    ledger: Ledger,
    corrupt: Sequence[int],
    bidirectional: set[int],
    errors: Sequence[tuple[int, str]],
) -> list[range]:
    """Return the stretches of frames that may show damage.

    A damaged frame spoils all that refer to it, up to the next intact key frame; and the B-frames
    shown just before it, which refer to it as their later frame. After a decoding error the frames
    not yet shown are not trusted either.
    """
    intact_keys = ledger.key_frames  # those flagged as corrupt are not among them
    stretches: list[range] = []
    for broken in sorted({*corrupt, *(count for count, _ in errors)}):
        first = broken
        while first - 1 in bidirectional:
            first -= 1
        following = intact_keys[np.searchsorted(intact_keys, broken) :]
        end = int(following[0]) if len(following) else len(ledger)
        if stretches and first < stretches[-1].stop:
            stretches[-1] = range(stretches[-1].start, max(end, stretches[-1].stop))
        elif broken < end:
            stretches.append(range(first, end))
    return stretches


def _cuts(
    ledger: Ledger, damaged: Sequence[range], seen: _Observed, shot_cuts: Sequence[int]
) -> tuple[int, ...]:
    """Return the first frames of all shots but the first.

    A change of format begins a shot, and so does a frame after an error: frames are missing there.
    Every damaged frame is a shot by itself, so that no clip of two frames or more can hold it.
    """
    cuts = {
        *shot_cuts,
        *(first for first, _ in ledger.formats),
        *(count for count, _ in seen.errors),
    }
    for stretch in damaged:
        cuts |= {*stretch, stretch.stop}
    return tuple(sorted(cut for cut in cuts if 0 < cut < len(ledger)))


def _notes(
    ledger: Ledger,
    damaged: Sequence[range],
    seen: _Observed,
    times: Sequence[float],
    timed: bool,
) -> Iterator[ScanNote]:
    """Describe what a user should know about a usable file."""
    words = seen.errors[0][1] if seen.errors else "the decoder flags them"
    for stretch in damaged:
        yield ScanNote(
            Reason.DAMAGED_FRAMES,
            f"{_frames(stretch.start, stretch.stop)} may show damage ({words}): left out",
        )
    ends = [message for count, message in seen.errors if count == len(ledger)]
    if ends:
        yield ScanNote(
            Reason.DAMAGED_VIDEO,
            f"reading stopped after {len(ledger)} frames ({ends[0]}): what comes before is used",
        )
    if not timed or not ledger.seekable:
        yield ScanNote(
            Reason.TIMES_INVENTED,
            "its frame times are missing, repeat or jump back: frames are timed by their number",
        )
    first = 0
    for _, run in groupby(ledger.checksums.tolist()):
        count = sum(1 for _ in run)
        end = first + count
        if count > 1 and times[end - 1] - times[first] >= _FROZEN_S:
            kind = "blank" if seen.contrasts[first] < _LEAST_CONTRAST else "the same picture"
            yield ScanNote(Reason.FROZEN_FRAMES, f"{_frames(first, end)} are {kind}")
        first = end


def _frames(first: int, end: int) -> str:
    """Name frames `first` to `end` - 1."""
    return f"frame {first}" if end - first == 1 else f"frames {first} to {end - 1}"
