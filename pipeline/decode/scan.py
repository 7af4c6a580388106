"""Scan a video file: decode it once from its start, and enter every frame into its ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.joined_files import second_file
from pipeline.decode.ledger import KEY, Ledger
from pipeline.decode.pyav import decode, frame_times, open_video, packets
from pipeline.decode.scan_observer import ScanObserver, logged_errors
from pipeline.failures import DecodeError, Reason
from pipeline.sources.video import Scan, ScanNote

_FROZEN_S = 2.0
"""A picture that does not change for this many seconds is named."""
_LEAST_SILENT = 3
"""Packets in a row without a frame that are named."""
_LEAST_CONTRAST = 4
"""A frozen picture whose cells differ by fewer grey levels is called blank."""


def scan(path: str, shot_cuts: bool, on_frame: Callable[[], None] = lambda: None) -> Scan:
    """Decode a file from its start to its end, or until reading fails.

    Finds the true frame count, times, sizes, damage, and shot cuts if wanted. `on_frame` is called
    for each packet. Raises DecodeError if the file cannot be opened or no frame can be decoded.
    """
    with logged_errors() as logged, open_video(path) as (container, stream):
        container_name = container.format.name
        seen = ScanObserver(stream, shot_cuts, logged)
        packets_read = packets(container, stream, seen.add_error)
        for frame in decode(seen.watch(packets_read, on_frame), seen.add_undecodable):
            seen.add_frame(frame)
        seen.add_lost_headers()
    if not len(seen.entries):
        words = f" ({seen.errors[0][1]})" if seen.errors else ""
        raise DecodeError(f"no frame could be decoded{words}", Reason.NO_FRAMES)
    unread = second_file(path, container_name, seen.last_byte)
    return _report(seen, unread)


def _report(seen: ScanObserver, unread: int | None) -> Scan:
    """Conclude from what was observed: damage, times, shots and notes.

    unread: the byte from which on the file was not read, because another file begins there
    """
    broken = sorted({*seen.corrupt, *(packet for packet, _ in seen.errors)})
    keys = seen.entries.ledger((), seen.timed).flags & KEY > 0
    damaged = damaged_stretches(np.array(seen.packet_of), keys, broken)
    ledger = seen.entries.ledger(damaged, seen.timed)
    times = frame_times(seen.times if seen.timed else [None] * len(ledger), seen.rate)
    width, height = ledger.formats[0][1].upright_size
    notes = list(_notes(ledger, damaged, seen, times))
    if unread is not None:
        notes.append(_unread_part(unread))
    return Scan(
        width=width,
        height=height,
        timestamps=times,
        cuts=_cuts(ledger, damaged, seen),
        notes=tuple(notes),
        ledger=ledger.pack(),
    )


def damaged_stretches(
    packet_of: NDArray[np.int64], keys: NDArray[np.bool_], broken: Sequence[int]
) -> list[range]:
    """Return the stretches of frames that may show damage.

    packet_of: number of each frame's packet, in the order of decoding
    keys:      whether each frame is a key frame
    broken:    numbers of damaged packets, increasing

    A damaged packet spoils every frame that is decoded from it or later, wherever it is shown, up
    to the next key frame; and the frames that are decoded after that key frame but shown before it,
    which may refer to frames on both sides.
    """
    if not broken:
        return []
    # Only the last error before a frame matters: what clears it cleared all earlier ones.
    place = np.searchsorted(broken, packet_of, side="right") - 1
    last_error = np.where(place < 0, -1, np.array(broken)[place])
    key_frames = np.flatnonzero(keys)
    key_frames = key_frames[np.argsort(packet_of[key_frames])]
    next_key = np.searchsorted(packet_of[key_frames], last_error, side="right")
    key = np.append(key_frames, len(packet_of))[next_key]
    key_packet = np.append(packet_of[key_frames], np.iinfo(np.int64).max)[next_key]
    cleared = (np.arange(len(packet_of)) >= key) & (packet_of >= key_packet)
    damaged = (last_error >= 0) & ~cleared
    edges = np.flatnonzero(np.diff(damaged, prepend=False, append=False))
    return [range(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _silent_stretches(seen: ScanObserver) -> list[tuple[int, int]]:
    """Return (first packet, count) of every run of packets that gave no frame.

    One or two alone are usual: a field of a frame, a picture that is never shown.
    """
    shown = set(seen.packet_of)
    silent: list[tuple[int, int]] = []
    for gave_frame, run in groupby(seen.data_packets, key=shown.__contains__):
        numbers = list(run)
        if not gave_frame and len(numbers) >= _LEAST_SILENT:
            silent.append((numbers[0], len(numbers)))
    return silent


def _first_frames_after(numbers: Sequence[int], seen: ScanObserver) -> NDArray[np.int64]:
    """Return per packet number the first shown frame that is decoded after it, or their count."""
    packet_of = np.array(seen.packet_of)
    order = np.argsort(packet_of)
    first_shown = np.append(np.minimum.accumulate(order[::-1])[::-1], len(order))
    return first_shown[np.searchsorted(packet_of[order], numbers, side="right")]


def _cuts(ledger: Ledger, damaged: Sequence[range], seen: ScanObserver) -> tuple[int, ...]:
    """Return the first frames of all shots but the first.

    A change of format begins a shot, and so does a frame after an error or after packets without a
    frame: frames are missing there. Every damaged frame is a shot by itself, so that no clip of two
    frames or more can hold it.
    """
    cuts = {*(seen.shots.cuts() if seen.shots else ()), *(first for first, _ in ledger.formats)}
    lost = [packet for packet, _ in (*seen.errors, *_silent_stretches(seen))]
    cuts |= set(_first_frames_after(lost, seen).tolist())
    for stretch in damaged:
        cuts |= {*stretch, stretch.stop}
    return tuple(sorted(cut for cut in cuts if 0 < cut < len(ledger)))


def _notes(
    ledger: Ledger,
    damaged: Sequence[range],
    seen: ScanObserver,
    times: Sequence[float],
) -> Iterator[ScanNote]:
    """Describe what a user should know about a usable file."""
    words = seen.errors[0][1] if seen.errors else "the decoder flags them"
    for stretch in damaged:
        yield ScanNote(
            Reason.DAMAGED_FRAMES,
            f"{_frames(stretch.start, stretch.stop)} may show damage ({words}): left out",
        )
    for packet, count in _silent_stretches(seen):
        before = int(_first_frames_after([packet], seen)[0])
        yield ScanNote(
            Reason.DAMAGED_FRAMES,
            f"{count} packets after {before} frames give no frame: they refer to data that are "
            "missing, or are of another codec",
        )
    ends = [words for packet, words in seen.errors if packet > max(seen.packet_of)]
    if ends:
        yield ScanNote(
            Reason.DAMAGED_VIDEO,
            f"reading stopped after {len(ledger)} frames ({ends[0]}): what comes before is used",
        )
    if not ledger.seekable:
        yield ScanNote(
            Reason.TIMES_INVENTED,
            "its frame times are missing, repeat or jump back: frames are timed by their number",
        )
    contrasts = seen.entries.contrasts()
    first = 0
    for _, run in groupby(ledger.checksums.tolist()):
        count = sum(1 for _ in run)
        end = first + count
        if count > 1 and times[end - 1] - times[first] >= _FROZEN_S:
            kind = "blank" if contrasts[first] < _LEAST_CONTRAST else "the same picture"
            yield ScanNote(Reason.FROZEN_FRAMES, f"{_frames(first, end)} are {kind}")
        first = end


def _unread_part(first_byte: int) -> ScanNote:
    """Describe what is not read of a file to which another was joined."""
    return ScanNote(
        Reason.UNREAD_PART,
        f"another file begins at byte {first_byte:,}, joined to the first byte by byte; FFmpeg "
        "reads only the first: split the file there (head -c, tail -c), or join the parts with "
        "ffmpeg -f concat",
    )


def _frames(first: int, end: int) -> str:
    """Name frames `first` to `end` - 1."""
    return f"frame {first}" if end - first == 1 else f"frames {first} to {end - 1}"
