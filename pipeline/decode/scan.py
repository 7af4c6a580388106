"""Scan a video file: decode it once from its start, and enter every frame into its ledger."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from statistics import median
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decode.frame_format import FrameFormat, pixel_aspect
from pipeline.decode.joined_files import second_file
from pipeline.decode.ledger import KEY, Ledger, LedgerWriter
from pipeline.decode.picture_print import corner_sums
from pipeline.decode.pyav import decode, frame_times, open_video, packets
from pipeline.decode.shots import ShotDetector, small_picture
from pipeline.failures import DecodeError, Reason
from pipeline.sources.video import Scan, ScanNote

_FALLBACK_RATE = 25
"""Frames per second assumed for a file that states none; only used if it has no usable times."""
_FROZEN_S = 2.0
"""A picture that does not change for this many seconds is named."""
_JOIN_S = 1.0
"""A step between packets' times of this many seconds or more, or back, is a joined recording."""
_LEAST_SILENT = 3
"""Packets in a row without a frame that are named."""
_GAP = 1.9
"""Usual steps between the times of packets from which on a frame was lost. Film in 60 fields per
second has steps of up to 1.5 times the usual one."""
_WITHOUT_REFERENCES = ("mpeg1video", "mpeg2video", "mpeg4")
"""Codecs whose decoders do not notice that a frame is missing to which others refer."""
_DAMAGE_WORDS = ("Skipping invalid undecodable NALU", "Frame num gap")
"""How FFmpeg's decoders of HEVC and H.264 say, not as an error, that a picture or a part of one is
lost."""
_CORRUPT_PACKET = re.compile(r"Packet corrupt \(stream = (\d+), dts = (-?\d+)\)")
_HOLE = re.compile(rb"\0\0\0+[^\0\1]")
"""Zeros before anything but a start code: where codecs mark the beginning of a picture with a start
code, the picture's own data never holds them."""
_LONG_HOLE = re.compile(_HOLE.pattern + rb"|\0{128}")
"""Also zeros before a start code: the beginning of a picture was there. Not of MPEG-1 and 2, which
fill up to a constant rate with zeros."""
_START_CODE_FORMATS = {"mpegts", "mpeg", "h264", "hevc", "avi"}
"""Containers that store H.264 and HEVC with start codes; others give lengths instead."""
_LEAST_CONTRAST = 4
"""A frozen picture whose cells differ by fewer grey levels is called blank."""


def scan(path: str, shot_cuts: bool, on_frame: Callable[[], None] = lambda: None) -> Scan:
    """Decode a file from its start to its end, or until reading fails.

    Finds the true frame count, times, sizes, damage, and shot cuts if wanted. `on_frame` is called
    for each packet. Raises DecodeError if the file cannot be opened or no frame can be decoded.
    """
    with _logged_errors() as logged, open_video(path) as (container, stream):
        container_name = container.format.name
        seen = _Observer(stream, shot_cuts, logged)
        packets_read = packets(container, stream, seen.add_error)
        for frame in decode(seen.watch(packets_read, on_frame), seen.add_undecodable):
            seen.add_frame(frame)
        seen.add_lost_headers()
    if not len(seen.entries):
        words = f" ({seen.errors[0][1]})" if seen.errors else ""
        raise DecodeError(f"no frame could be decoded{words}", Reason.NO_FRAMES)
    unread = second_file(path, container_name, seen.last_byte)
    return _report(seen, unread)


class _Observer:
    """Observes a file while it is decoded, packet by packet and frame by frame.

    Packets are numbered as they are read, which is the order of decoding; frames as they are shown.

    entries:      the ledger so far
    timed:        whether the container gave a time with every packet so far
    data_packets: numbers of the packets that are to give a frame
    packet_of:    number of each frame's packet
    errors:       (packet number, FFmpeg's words) of every error
    corrupt:      numbers of the packets whose frames are damaged, or may be, without an error
    times:        seconds, None where the container gives none
    dts:          decoding time of each packet in the stream's units, None where there is none
    last_byte:    the largest position of a packet in the file; 0 if the container states none
    """

    def __init__(self, stream: Any, shot_cuts: bool, logged: list[tuple[int, str, str]]) -> None:
        # Decoders hand a packet's `opaque` on to its frame, however late they show it.
        stream.codec_context.copy_opaque = True
        self._stream = stream
        self._logged = logged
        self._corrupt_dts = _corrupt_dts(logged, stream.index)
        logged.clear()
        self._packet = 0  # number of the packet that is being read or decoded
        self._last_dts: int | None = None
        self._data_lost = False
        self._is_transport_stream = stream.container.format.name == "mpegts"
        self._codec = stream.codec_context.name
        self._hole = _hole_pattern(stream)
        self.rate = float(stream.average_rate or stream.guessed_rate or _FALLBACK_RATE)
        self.entries = LedgerWriter(stream.time_base)
        self.shots = ShotDetector() if shot_cuts else None
        self.timed = True
        self.data_packets: list[int] = []
        self.packet_of: list[int] = []
        self.errors: list[tuple[int, str]] = []
        self.corrupt: list[int] = []
        self.times: list[float | None] = []
        self.dts: list[int | None] = []
        self.last_byte = 0

    def watch(self, stream_packets: Iterator[Any], on_packet: Callable[[], None]) -> Iterator[Any]:
        """Number the packets on their way to the decoder, and note what is wrong with them."""
        for packet in stream_packets:
            on_packet()
            self._add_logged(max(0, self._packet - 1))  # on the way from the packet before
            # A new object, not a bare number: PyAV identifies it by its address, and small numbers
            # are one object for all files of a process.
            packet.opaque = (self._packet,)
            self.last_byte = max(self.last_byte, packet.pos or 0)
            self.dts.append(packet.dts)
            if packet.size:  # the last packet is empty: it flushes the decoder
                self.timed = self.timed and packet.pts is not None
                if not packet.is_discard:
                    self.data_packets.append(self._packet)
            self._watch_for_lost_data(packet)
            if packet.size and self._hole and self._hole.search(packet):
                self.add_error("zeros in place of data")
            # Only in detail does the H.264 decoder say that a picture is missing to which this one
            # refers. Detail costs time, so it is asked for only where the times leave a gap.
            gap = self._codec == "h264" and self._follows_gap(packet)
            av.logging.set_level(av.logging.DEBUG if gap else av.logging.WARNING)
            yield packet
            self._add_logged(self._packet)  # while it was decoded
            self._packet += 1

    def _watch_for_lost_data(self, packet: Any) -> None:
        """Note a packet that the container delivered in part, and the next one if it may be.

        The container flags the packet at which data are missing, and the loss may reach into the
        next. Where the next packet's time jumps, another recording was joined: it is whole.
        """
        if self._data_lost and self._last_dts is not None and packet.dts is not None:
            step = (packet.dts - self._last_dts) * self._stream.time_base
            if 0 < step < _JOIN_S:
                self.add_error("data are missing")
        if packet.is_corrupt or packet.dts in self._corrupt_dts:
            self.add_error("data are missing")
        self._corrupt_dts.discard(packet.dts)  # times may repeat in another recording
        self._data_lost, self._last_dts = packet.is_corrupt, packet.dts

    def _follows_gap(self, packet: Any) -> bool:
        """Tell whether frames may be missing before a packet of MPEG-TS, going by its time."""
        recent = [time for time in self.dts[-6:-1] if time is not None]
        if not self._is_transport_stream or packet.dts is None or len(recent) < 2:
            return False
        usual = median(after - before for before, after in pairwise(recent))
        return bool(packet.dts - recent[-1] > _GAP * usual)

    def _add_logged(self, packet: int) -> None:
        """Note what FFmpeg logged as an error of a packet."""
        if not self._logged:
            return
        for level, _, words in self._logged:
            if level <= av.logging.ERROR or words.startswith(_DAMAGE_WORDS):
                self.errors.append((packet, words.strip()))
                break
        self._logged.clear()

    def add_error(self, words: str) -> None:
        """Note an error at the packet that is being read or decoded."""
        self.errors.append((self._packet, words))

    def add_undecodable(self, words: str) -> None:
        """Note that the current packet cannot be decoded.

        The damage often began in the packet before, which decodes to a wrong picture without an
        error.
        """
        self.add_error(words)
        self.corrupt.append(max(0, self._packet - 1))

    def add_lost_headers(self) -> None:
        """Note the packets of MPEG-TS whose headers are lost, once the file was read.

        A lost header loses a whole frame, or joins its data to the packet before; counters of
        packets tell, unless as many were lost as they can count.
        """
        if not self._is_transport_stream:
            return
        # The last packet of joined recordings has no time, though nothing is lost.
        headless = [number for number in self.data_packets[1:-1] if self.dts[number] is None]
        self.corrupt += [number - 1 for number in headless]
        found = [(number, "data are missing") for number in headless]
        if self._codec in _WITHOUT_REFERENCES:
            steps = [
                (number, after - before)
                for number, (before, after) in enumerate(pairwise(self.dts))
                if before is not None and after is not None
            ]
            usual = median(step for _, step in steps) if steps else 0
            join = _JOIN_S / self._stream.time_base
            gaps = [number for number, step in steps if _GAP * usual < step < join]
            found += [(number, "frames are missing") for number in gaps]
        self.errors = sorted([*self.errors, *found])

    def add_frame(self, frame: Any) -> None:
        """Enter the next frame, an `av.VideoFrame`, into the ledger."""
        small = small_picture(frame)
        sums = corner_sums(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))
        described = FrameFormat.of_frame(frame, pixel_aspect(self._stream))
        self.entries.add(frame, described, sums)
        self.times.append(frame.time)
        (number,) = frame.opaque or (self._packet,)
        self.packet_of.append(number)
        if frame.is_corrupt:
            self.corrupt.append(self.packet_of[-1])
        if self.shots:
            self.shots.add(small)


def _hole_pattern(stream: Any) -> re.Pattern[bytes] | None:
    """Return what packets of a stream hold only where their data were replaced by zeros."""
    codec, container = stream.codec_context.name, stream.container.format.name
    if codec in ("mpeg1video", "mpeg2video"):
        return _HOLE
    if codec == "mpeg4" or (codec in ("h264", "hevc") and container in _START_CODE_FORMATS):
        return _LONG_HOLE if container == "mpegts" else _HOLE
    return None


def _corrupt_dts(logged: Sequence[tuple[int, str, str]], stream: int) -> set[int]:
    """Return the decoding times of packets that were found corrupt while the file was opened.

    FFmpeg reads the first packets then, and loses their flags.
    """
    found = (_CORRUPT_PACKET.match(words) for _, _, words in logged)
    return {int(match[2]) for match in found if match and int(match[1]) == stream}


@contextmanager
def _logged_errors() -> Iterator[list[tuple[int, str, str]]]:
    """Collect (level, context, message) of the errors and warnings that FFmpeg logs in this thread.

    Much damage is concealed, neither flagged nor raised, and only logged: wrong checksums of FFV1,
    references that HEVC lacks, garbage between the packets of Matroska.
    """
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as logged:
            yield logged
    finally:
        av.logging.set_level(None)
        av.logging.set_skip_repeated(True)


def _report(seen: _Observer, unread: int | None) -> Scan:
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


def _silent_stretches(seen: _Observer) -> list[tuple[int, int]]:
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


def _first_frames_after(numbers: Sequence[int], seen: _Observer) -> NDArray[np.int64]:
    """Return per packet number the first shown frame that is decoded after it, or their count."""
    packet_of = np.array(seen.packet_of)
    order = np.argsort(packet_of)
    first_shown = np.append(np.minimum.accumulate(order[::-1])[::-1], len(order))
    return first_shown[np.searchsorted(packet_of[order], numbers, side="right")]


def _cuts(ledger: Ledger, damaged: Sequence[range], seen: _Observer) -> tuple[int, ...]:
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
    seen: _Observer,
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
