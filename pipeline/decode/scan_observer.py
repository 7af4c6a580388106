"""Watch a file while it is decoded: enter its frames into a ledger, and find what is damaged.

Damage is what the container flags, what FFmpeg raises or logs, and what can only be seen in the
packets: zeros in place of data, headers and frames that are missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

import av
import cv2

from pipeline.decode.frame_format import FrameFormat, pixel_aspect
from pipeline.decode.ledger import LedgerWriter
from pipeline.decode.picture_print import corner_sums
from pipeline.decode.shots import ShotDetector, small_picture

_FALLBACK_RATE = 25
"""Frames per second assumed for a file that states none; only used if it has no usable times."""
_JOIN_S = 1.0
"""A step between packets' times of this many seconds or more, or back, is a joined recording."""
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


class ScanObserver:
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
            if self._is_transport_stream and self._codec == "h264":
                level = av.logging.DEBUG if self._follows_gap(packet) else av.logging.WARNING
                av.logging.set_level(level)
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
        """Tell whether frames may be missing before a packet, going by its time."""
        recent = [time for time in self.dts[-6:-1] if time is not None]
        if packet.dts is None or len(recent) < 2:
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
    if (stream.codec_context.extradata or b"")[:1] == b"\1" and codec != "mpeg4":
        return None  # lengths instead of start codes, whatever the container
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
def logged_errors() -> Iterator[list[tuple[int, str, str]]]:
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
