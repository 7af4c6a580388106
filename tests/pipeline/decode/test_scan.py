"""What the scan of a file finds: damage, changes within the file, and pictures that do not move."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode.ledger import DAMAGED, Ledger
from pipeline.decode.scan import damaged_stretches, scan
from pipeline.decode.video import read_frames
from pipeline.failures import DecodeError, Reason
from tests.helpers.barcode import HEIGHT, WIDTH, Recipe, numbered_frame, read_number, write_numbered


def numbers(path: Path, indices: list[int]) -> list[int]:
    ledger = Ledger.unpack(scan(str(path), shot_cuts=False).ledger)
    return [read_number(frame) for frame in read_frames(str(path), "pyav", ledger, indices)]


def test_times_begin_at_the_first_frame(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mkv", Recipe("mkv", frames=5, times=(50, 51, 52, 55, 56)))
    times = scan(str(tmp_path / "a.mkv"), shot_cuts=False).timestamps
    assert times == pytest.approx([0, 0.04, 0.08, 0.2, 0.24], abs=1e-3)


def test_recordings_joined_byte_by_byte_are_read_by_number(tmp_path: Path) -> None:
    """Both parts have the same times; a seek by time would find the first for the second."""
    write_numbered(tmp_path / "a.ts", Recipe("ts", b_frames=2, parts=(40, 50)))
    found = scan(str(tmp_path / "a.ts"), shot_cuts=False)
    assert len(found.timestamps) == 90
    assert Reason.TIMES_INVENTED in [note.reason for note in found.notes]
    assert np.diff(found.timestamps) == pytest.approx(np.full(89, 0.04))
    assert numbers(tmp_path / "a.ts", [3, 39, 40, 41, 77]) == [3, 39, 40, 41, 77]


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("flv", "libx264"), ("wmv", "wmv2"), ("mkv", "libx264")],
)
def test_the_unread_second_part_of_a_joined_file_is_named(
    tmp_path: Path, container: str, codec: str
) -> None:
    """FFmpeg reads both parts of a Matroska file, and of the others the first alone."""
    data = []
    for first in (0, 20):
        path = tmp_path / f"part.{container}"
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for number in range(first, first + 20):
                frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        data.append(path.read_bytes())
    joined = tmp_path / f"joined.{container}"
    joined.write_bytes(data[0] + data[1])
    assert not scan(str(path), shot_cuts=False).notes
    found = scan(str(joined), shot_cuts=False)
    notes = [note.detail for note in found.notes if note.reason == Reason.UNREAD_PART]
    if container == "mkv":
        assert (len(found.timestamps), notes) == (40, [])
    else:
        (note,) = notes
        assert note.startswith(f"another file begins at byte {len(data[0]):,}, joined to")
        assert len(found.timestamps) == 20


def test_a_change_of_size_begins_a_shot_of_its_own(tmp_path: Path) -> None:
    data = b""
    for size in ((WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT)):
        path = tmp_path / "part.ts"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            for number in range(10):
                picture = numbered_frame(number).repeat(size[0] // WIDTH, 0)
                picture = picture.repeat(size[0] // WIDTH, 1)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        data += path.read_bytes()
    (tmp_path / "joined.ts").write_bytes(data)
    found = scan(str(tmp_path / "joined.ts"), shot_cuts=True)
    # MPEG-TS numbers its packets, and the numbers break off at the join: the frames before it, up
    # to the key frame that begins the second part, are not trusted.
    assert found.cuts == (8, 9, 10)
    ledger = Ledger.unpack(found.ledger)
    shapes = [
        frame.shape for frame in read_frames(str(tmp_path / "joined.ts"), "pyav", ledger, [9, 10])
    ]
    assert shapes == [(HEIGHT, WIDTH, 3), (2 * HEIGHT, 2 * WIDTH, 3)]


def test_damaged_frames_are_named_and_left_out_up_to_the_next_key_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    write_numbered(path, Recipe("ts", frames=60, b_frames=0, gop=20))
    data = bytearray(path.read_bytes())
    # Zeros over a stretch in the middle, away from the packets' headers.
    start = len(data) // 2
    data[start : start + 1500] = bytes(1500)
    path.write_bytes(data)
    found = scan(str(path), shot_cuts=False)
    ledger = Ledger.unpack(found.ledger)
    assert found.notes
    assert found.notes[0].reason == Reason.DAMAGED_FRAMES
    damaged = np.flatnonzero(ledger.flags & DAMAGED)
    # The damage swallowed a frame, so key frame 40 is the 39th: there, trust begins again.
    assert (len(ledger), damaged[-1]) == (59, 38)
    assert 20 < damaged[0] < 30
    assert read_number(next(read_frames(str(path), "pyav", ledger, [39]))) == 40
    # Every damaged frame is a shot by itself; the rest shows its own number.
    assert set(damaged.tolist()) <= {*found.cuts, 0}
    before = list(range(damaged[0]))
    shown = [read_number(frame) for frame in read_frames(str(path), "pyav", ledger, before)]
    assert shown == before


def test_a_truncated_file_keeps_what_comes_before(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_numbered(path, Recipe("mkv", frames=60))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    found = scan(str(path), shot_cuts=False)
    count = len(found.timestamps)
    assert 25 <= count < 60
    good = [index for index in range(count) if index not in found.cuts or index % 12 == 0][:30]
    assert numbers(path, good) == good


def test_a_scan_keeps_no_frames_and_starts_no_threads(tmp_path: Path) -> None:
    """A build runs a scan per core: threads per frame, or frames kept, would multiply."""
    write_numbered(tmp_path / "a.mp4", Recipe(frames=40))
    gc.collect()
    threads = len(os.listdir("/proc/self/task"))
    most = 0

    def count_threads() -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/task")))

    gc.disable()
    try:
        scan(str(tmp_path / "a.mp4"), shot_cuts=True, on_frame=count_threads)
        assert not [kept for kept in gc.get_objects() if type(kept) is av.VideoFrame]
    finally:
        gc.enable()
    assert most == threads


def test_a_scan_within_a_scan_changes_neither(tmp_path: Path) -> None:
    """PyAV keeps what a packet carries to its frame in one table for all files of a process."""
    path = tmp_path / "a.mp4"
    write_numbered(path, Recipe(b_frames=2))
    break_packet(path, 16)
    alone = scan(str(path), shot_cuts=False)
    count = 0

    def scan_within() -> None:
        nonlocal count
        count += 1
        if count == 15:
            scan(str(path), shot_cuts=False)

    within = scan(str(path), shot_cuts=False, on_frame=scan_within)
    assert within.cuts == alone.cuts
    assert within.ledger == alone.ledger


def test_nothing_but_damage_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    write_numbered(path, Recipe("ts", frames=12))
    data = bytearray(path.read_bytes())
    data[564:] = bytes(len(data) - 564)
    path.write_bytes(data)
    with pytest.raises(DecodeError):
        scan(str(path), shot_cuts=False)


@pytest.mark.parametrize(("level", "kind"), [(None, "the same picture"), (255, "blank")])
def test_stretches_that_do_not_change_are_named(
    tmp_path: Path, level: int | None, kind: str
) -> None:
    """60 equal frames at 25 per second: more than two seconds."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(70):
            picture = numbered_frame(number if number < 10 else 10)
            if level is not None and number >= 10:
                picture[:] = level
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    (note,) = scan(str(path), shot_cuts=False).notes
    assert note.reason == Reason.FROZEN_FRAMES
    assert note.detail == f"frames 10 to 69 are {kind}"


def break_packet(path: Path, number: int) -> None:
    """Overwrite 20 bytes in the middle of a packet, by its number in the order of decoding."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        start = packet.pos + packet.size // 2
    data = bytearray(path.read_bytes())
    data[start : start + 20] = bytes([0xA5]) * 20
    path.write_bytes(data)


@pytest.mark.parametrize("container", ["mp4", "avi"])
def test_frames_shown_before_a_damaged_one_that_they_refer_to_are_left_out(
    tmp_path: Path, container: str
) -> None:
    """B-frames refer to a later frame, which is decoded before them."""
    path = tmp_path / f"a.{container}"
    recipe = Recipe(container, "libx264" if container == "mp4" else "mpeg4", b_frames=2)
    write_numbered(path, recipe)
    ledger = Ledger.unpack(scan(str(path), shot_cuts=False).ledger)
    clean = list(read_frames(str(path), "pyav", ledger, range(60)))
    break_packet(path, 16)
    ledger = Ledger.unpack(scan(str(path), shot_cuts=False).ledger)
    damaged = np.flatnonzero(ledger.flags & DAMAGED)
    good = sorted({*range(60)} - set(damaged.tolist()))
    assert len(ledger) == 60
    assert len(good) >= 50
    for index, frame in zip(good, read_frames(str(path), "pyav", ledger, good), strict=True):
        assert np.array_equal(frame, clean[index]), index


def test_a_key_frame_decoded_before_an_error_does_not_end_the_damage() -> None:
    """Frames as decoded: I0 P1 I2 P3 (broken) B4 I5; as shown: I0 P1 I2 B4 P3 I5."""
    packet_of = np.array([0, 1, 2, 4, 3, 5])
    keys = np.array([True, False, True, False, False, True])
    assert damaged_stretches(packet_of, keys, [3]) == [range(3, 5)]
    assert damaged_stretches(packet_of, keys, [1, 3]) == [range(1, 2), range(3, 5)]
    assert damaged_stretches(packet_of, keys, [5]) == [range(5, 6)]
    assert damaged_stretches(packet_of, keys, []) == []


def test_frames_shown_before_a_key_frame_but_decoded_after_it_stay_damaged() -> None:
    """Open groups of pictures: as decoded P0 (broken) I1 B2 P3; as shown P0 B2 I1 P3."""
    packet_of, keys = np.array([0, 2, 1, 3]), np.array([False, False, True, False])
    assert damaged_stretches(packet_of, keys, [0]) == [range(2)]


def test_packets_that_give_no_frame_are_named(tmp_path: Path) -> None:
    """A recording of another codec is joined to the first: its packets cannot be decoded."""
    data = b""
    for codec in ("libx265", "libx264"):
        write_numbered(tmp_path / "part.ts", Recipe("ts", codec, frames=30))
        data += (tmp_path / "part.ts").read_bytes()
    (tmp_path / "joined.ts").write_bytes(data)
    notes = [note.detail for note in scan(str(tmp_path / "joined.ts"), shot_cuts=False).notes]
    assert any(note.startswith("31 packets after 28 frames give no frame") for note in notes), notes


def test_damage_that_the_decoder_only_logs_is_left_out(tmp_path: Path) -> None:
    """FFV1 finds a wrong checksum, shows the frame before instead, and flags nothing."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, options={"g": "1", "slicecrc": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    break_packet(path, 7)
    found = scan(str(path), shot_cuts=False)
    damaged = np.flatnonzero(Ledger.unpack(found.ledger).flags & DAMAGED)
    assert damaged.tolist() == [7]
    assert "slice CRC mismatch" in found.notes[0].detail


def test_the_frame_decoded_before_an_undecodable_packet_is_left_out(tmp_path: Path) -> None:
    """Zeros from the middle of one packet into the next: only the second is an error."""
    path = tmp_path / "a.mp4"
    write_numbered(path, Recipe(codec="libx265", gop=12))
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][17]
        middle, size = packet.pos + packet.size // 2, packet.size
    data = bytearray(path.read_bytes())
    data[middle : middle + size] = bytes(size)
    path.write_bytes(data)
    ledger = Ledger.unpack(scan(str(path), shot_cuts=False).ledger)
    damaged = np.flatnonzero(ledger.flags & DAMAGED)
    assert damaged[0] == 17
    good = sorted({*range(len(ledger))} - set(damaged.tolist()))
    assert numbers(path, good) == [*range(17), *range(24, 60)]


PACKET = 188
"""Bytes of a packet of MPEG-TS: 4 of them its header."""


def zeroed(packets: list[bytes], place: int) -> list[bytes]:
    """Replace a packet's payload by zeros, as a hole in a copied file does."""
    packets[place] = packets[place][:4] + bytes(PACKET - 4)
    return packets


def lost(packets: list[bytes], place: int) -> list[bytes]:
    """Lose one packet."""
    return packets[:place] + packets[place + 1 :]


def lost_16(packets: list[bytes], place: int) -> list[bytes]:
    """Lose as many packets as their counters can count, so that the counters do not tell."""
    return packets[:place] + packets[place + 16 :]


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["libx265", "libx264", "mpeg4"])
@pytest.mark.parametrize("damage", [zeroed, lost, lost_16])
def test_no_picture_is_stored_that_lost_data_spoil(
    tmp_path: Path, codec: str, damage: Callable[[list[bytes], int], list[bytes]]
) -> None:
    """Every frame that is not left out shows one of the file's pictures as it was."""
    path = tmp_path / "a.ts"
    write_numbered(path, Recipe("ts", codec, frames=40, b_frames=1, gop=10))
    ledger = Ledger.unpack(scan(str(path), shot_cuts=False).ledger)
    clean = list(read_frames(str(path), "pyav", ledger, range(40)))
    data = path.read_bytes()
    packets = [data[start : start + PACKET] for start in range(0, len(data), PACKET)]
    for place in np.linspace(10, len(packets) - 17, 9).astype(int):
        path.write_bytes(b"".join(damage(list(packets), int(place))))
        ledger = Ledger.unpack(scan(str(path), shot_cuts=False).ledger)
        good = np.flatnonzero(ledger.flags & DAMAGED == 0).tolist()
        assert len(good) >= 20, place
        for index, frame in zip(good, read_frames(str(path), "pyav", ledger, good), strict=True):
            number = read_number(frame)
            assert number < 40, (place, index)
            assert np.abs(frame.astype(int) - clean[number]).mean() < 1, (place, index)
