"""Tracks survive being stored: positions within 1/64 px, the rest exactly; damage is refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import codec
from shards.clip import Tracks
from shards.codec import LARGEST_TRACKS, decode_frames, decode_tracks, encode_tracks
from shards.errors import ShardError
from tests.helpers.clips import make_tracks


def packed(tracks: Tracks) -> bytes:
    """Give the member `KEY.tracks.zst`."""
    return b"".join(encode_tracks(tracks))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    anchors=st.integers(1, 3),
    frames=st.integers(1, 9),
    points=st.integers(1, 40),
)
def test_round_trip(seed: int, anchors: int, frames: int, points: int) -> None:
    tracks = make_tracks(seed, tuple(range(min(anchors, frames))), frames, points)
    back = decode_tracks(packed(tracks))
    assert np.abs(back.positions - tracks.positions).max() <= 1 / 64 + 1e-5
    assert (back.anchors == tracks.anchors).all()
    assert (back.visibility == tracks.visibility).all()
    assert (back.confidence == tracks.confidence).all()
    assert back.anchors.dtype == np.int32
    assert back.positions.dtype == np.float32


def test_the_bytes_on_disk_are_those_of_the_format() -> None:
    """One point over three frames, packed by hand from the table in `docs/format.md`."""
    tracks = Tracks(
        anchors=np.array([1], np.int32),
        # in units of 1/32 px: x 160, 161, 159 and y -16, -17, -17
        positions=np.array(
            [[[[5, -0.5]], [[5.03125, -0.53125]], [[4.96875, -0.53125]]]], np.float32
        ),
        visibility=np.array([[[255], [0], [10]]], np.uint8),
        confidence=np.array([[[7], [7], [6]]], np.uint8),
    )
    (part,) = encode_tracks(tracks)
    header = b"PTRK" + bytes([2, 0, 32, 0, 1, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0])
    # differences 160, 1, -2 and -16, -1, 0; zigzag 320, 2, 3 and 31, 1, 0; lowest bytes first
    low, next_bytes = bytes([320 - 256, 2, 3, 31, 1, 0]), bytes([1, 0, 0, 0, 0, 0])
    certainty = bytes([255, 1, 10, 7, 0, 255])
    expected = header + low + next_bytes + bytes(12) + certainty
    assert zstandard.ZstdDecompressor().decompress(part) == expected
    back = decode_tracks(part)
    assert (back.positions == tracks.positions).all()
    assert (back.visibility == tracks.visibility).all()
    assert (back.confidence == tracks.confidence).all()
    assert back.anchors.tolist() == [1]


@pytest.mark.parametrize(
    ("position", "stored"),
    [(0.015, 0.0), (0.016, 0.03125), (-0.016, -0.03125), (99.99, 100.0), (100.02, 100.03125)],
)
def test_positions_are_rounded_to_the_nearest_32nd_of_a_pixel(
    position: float, stored: float
) -> None:
    one = np.full((1, 1, 1), 255, np.uint8)
    positions = np.full((1, 1, 1, 2), position, np.float32)
    back = decode_tracks(packed(Tracks(np.zeros(1, np.int32), positions, one, one)))
    assert back.positions.ravel().tolist() == [stored, stored]


def test_storing_again_changes_nothing() -> None:
    once = decode_tracks(packed(make_tracks(0, (0, 2), 5, 16)))
    assert encode_tracks(once) == encode_tracks(decode_tracks(packed(once)))
    assert (decode_tracks(packed(once)).positions == once.positions).all()


def test_points_far_outside_the_frame_are_kept() -> None:
    positions = np.array([[[[-5000.25, 70000.5]], [[30.0, -30.0]]]], np.float32)
    one = np.ones((1, 2, 1), np.uint8)
    back = decode_tracks(packed(Tracks(np.zeros(1, np.int32), positions, one, one)))
    assert (back.positions == positions).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, -(2.0**25 + 4)])
def test_positions_that_mean_nothing_are_not_stored(bad: float) -> None:
    tracks = make_tracks(0, (0,), 3, 4)
    tracks.positions[0, 1, 2, 0] = bad
    with pytest.raises(
        ValueError,
        match=r"^tracks hold positions that are not finite or are absurdly far outside the frame$",
    ):
        encode_tracks(tracks)


def test_tracks_that_no_reader_would_unpack_are_not_stored() -> None:
    shape = (8, 999, 128 * 128)
    positions, certainty = (
        np.broadcast_to(np.float32(1), (*shape, 2)),
        np.broadcast_to(np.uint8(255), shape),
    )
    with pytest.raises(
        ValueError,
        match="8 anchors x 999 frames x 16384 points take 1309409440 bytes, "
        "more than the 1073741824",
    ):
        encode_tracks(Tracks(np.arange(8, dtype=np.int32), positions, certainty, certainty))


def test_shapes_that_disagree_are_refused() -> None:
    good = make_tracks(0, (0,), 3, 4)
    with pytest.raises(ValueError, match="disagree in shape"):
        Tracks(good.anchors, good.positions, good.visibility[:, :2], good.confidence)


def record(
    *,
    anchor: int = 0,
    frames: int = 1,
    points: int = 1,
    magic: bytes = b"PTRK",
    version: int = 2,
    units: int = 32,
    size: int | None = None,
) -> bytes:
    """An unpacked record: its header, and `size` zeros (as many as fit the header by default)."""
    header = struct.pack("<4sHHiII", magic, version, units, anchor, frames, points)
    return header + bytes(10 * frames * points if size is None else size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the tracks are cut short"),
        (b"PTRK", "the tracks are cut short"),
        (b"X" * 64, "these are not tracks"),
        (record(magic=b"PTRX"), "these are not tracks"),
        (record(units=0), "these are not tracks"),
        (record(points=0), "these are not tracks"),
        (
            record(version=1),
            "these tracks have version 1, and this version of pretrack reads version 2",
        ),
        (
            record(frames=9, size=0),
            "the tracks hold 20 bytes, which does not fit 9 frames x 1 points",
        ),
        (record(size=11), "the tracks hold 31 bytes, which does not fit 1 frames x 1 points"),
    ],
)
def test_a_damaged_record_is_named(content: bytes, message: str) -> None:
    with pytest.raises(ShardError, match=f"^{message}$"):
        decode_tracks(zstandard.ZstdCompressor().compress(content))


def test_every_cut_is_named() -> None:
    first, second = encode_tracks(make_tracks(0, (0, 2), 4, 4))
    with pytest.raises(ShardError, match=r"^the tracks are cut short$"):
        decode_tracks(b"")
    for before, part in ((b"", first), (first, second)):
        for end in range(1, len(part)):
            # The frame's own header has 6 bytes; the blocks after it say how long they are.
            message = "cannot be unpacked" if end < 6 else "are cut short$"
            with pytest.raises(ShardError, match=f"^the tracks {message}"):
                decode_tracks(before + part[:end])
    for other in (b"not zstandard", first + second + b"x"):
        with pytest.raises(ShardError, match=r"^the tracks cannot be unpacked \(.+\)$"):
            decode_tracks(other)


def test_anchors_that_do_not_belong_together_are_refused() -> None:
    parts = encode_tracks(make_tracks(0, (0, 2), 4, 4))
    data = b"".join(parts)
    with pytest.raises(ShardError, match="anchor 3 differ in shape from those of anchor 0"):
        decode_tracks(data + packed(make_tracks(0, (3,), 5, 4)))
    with pytest.raises(ShardError, match="anchors do not increase: 0 comes after 2"):
        decode_tracks(data + parts[0])
    with pytest.raises(ShardError, match="anchors do not increase: 0 comes after 0"):
        decode_tracks(parts[0] + parts[0])


@pytest.mark.parametrize(
    "shape", [(2, 4, 9), (None, 4, 9), (None, 4, None), (None, None, 9), (2, None, None)]
)
def test_tracks_of_the_expected_shape_are_decoded(
    shape: tuple[int | None, int | None, int | None],
) -> None:
    tracks = make_tracks(0, (0, 2), 4, 9)
    assert (decode_tracks(packed(tracks), shape).visibility == tracks.visibility).all()
    part = encode_tracks(tracks)[1]
    assert (decode_frames(part, 2, [3], (4, 9))[1] == tracks.visibility[1, 3]).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4, 9), "have 2 anchors x 4 frames x 9 points, and should have 3 anchors x 4 frames x"),
        ((1, 4, 9), "have 2 anchors x 4 frames x 9 points, and should have 1 anchors x 4 frames x"),
        ((2, 5, 9), "have 2 anchors x 4 frames x 9 points, and should have 2 anchors x 5 frames x"),
        ((None, None, 8), "have 2 anchors x 4 frames x 9 points, and should have 8 points$"),
        ((None, 3, None), "have 2 anchors x 4 frames x 9 points, and should have 3 frames$"),
        # A record has 20 + 10 x 4 x 9 bytes: more than expected ones are not even unpacked.
        ((2, 3, 9), "claim to unpack to 380 bytes, more than 3 frames x 9 points take"),
        ((2, 4, 8), "claim to unpack to 380 bytes, more than 4 frames x 8 points take"),
    ],
)
def test_tracks_of_another_shape_are_refused(
    shape: tuple[int | None, int | None, int | None], message: str
) -> None:
    with pytest.raises(ShardError, match=f"^the tracks {message}"):
        decode_tracks(packed(make_tracks(0, (0, 2), 4, 9)), shape)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 9), "have 4 frames x 9 points, and should have 5 frames x 9 points"),
        ((4, 8), "claim to unpack to 380 bytes, more than 4 frames x 8 points take"),
    ],
)
def test_frames_of_tracks_of_another_shape_are_refused(
    shape: tuple[int, int], message: str
) -> None:
    part, _ = encode_tracks(make_tracks(0, (0, 2), 4, 9))
    with pytest.raises(ShardError, match=f"^the tracks {message}$"):
        decode_frames(part, 0, [0], shape)


def test_no_more_anchors_are_unpacked_than_tell_that_there_are_too_many() -> None:
    first, second = encode_tracks(make_tracks(0, (0, 2), 9, 4))
    with pytest.raises(ShardError, match="and should have 1 anchors"):
        decode_tracks(first + second + b"anything", (1, 9, 4))


def test_other_units_than_ours_are_read_as_the_header_says() -> None:
    """One point at (3, -2) in whole pixels: zigzag 6 and 3, in the lowest byte plane."""
    data = record(units=1)[:20] + bytes([6, 3]) + bytes(6) + bytes([255, 9])
    tracks = decode_tracks(zstandard.ZstdCompressor().compress(data))
    assert tracks.positions.tolist() == [[[[3.0, -2.0]]]]


def test_tracks_of_several_blocks_are_split_into_anchors() -> None:
    """A zstandard block unpacks to 128 KiB at most, and these anchors to 200 kB each."""
    tracks = make_tracks(0, (0, 30), 80, 256)
    back = decode_tracks(packed(tracks))
    assert (back.visibility == tracks.visibility).all()
    assert back.anchors.tolist() == [0, 30]


def test_parts_with_checksums_are_read_too() -> None:
    """zstandard's command line writes checksums by default."""
    tracks = make_tracks(0, (0, 2), 4, 9)
    unpack = zstandard.ZstdDecompressor().decompress
    pack = zstandard.ZstdCompressor(write_checksum=True).compress
    checked = b"".join(pack(unpack(part)) for part in encode_tracks(tracks))
    assert (decode_tracks(checked).visibility == tracks.visibility).all()
    wrong = checked[:-1] + bytes([checked[-1] ^ 1])
    with pytest.raises(ShardError, match=r"^the tracks cannot be unpacked \(.*checksum.*\)$"):
        decode_tracks(wrong)


@pytest.mark.parametrize("anchor", [-1, 4, 1 << 20])
def test_anchors_that_are_no_frames_are_refused(anchor: int) -> None:
    parts = encode_tracks(make_tracks(0, (0, anchor), 4, 4))
    with pytest.raises(ShardError, match=rf"anchor {anchor} is not among their 4 frames"):
        decode_tracks(b"".join(parts))
    with pytest.raises(ShardError, match=rf"anchor {anchor} is not among their 4 frames"):
        decode_frames(parts[1], anchor, [0])


def zeros(size: int) -> bytes:
    """A zstandard frame of `size` zeros, of four bytes per 128 KiB (RFC 8878, 3.1.1)."""
    block = 1 << 17
    header = b"\x28\xb5\x2f\xfd\xc0\x38" + struct.pack("<Q", size)
    lengths = [block] * (size // block) + [size % block]
    # each block repeats one byte; the last one says so in its lowest bit
    blocks = [(length << 3 | 1 << 1).to_bytes(3, "little") + b"\0" for length in lengths[:-1]]
    return header + b"".join(blocks) + (lengths[-1] << 3 | 3).to_bytes(3, "little") + b"\0"


def test_a_bomb_is_not_unpacked() -> None:
    assert zstandard.ZstdDecompressor().decompress(zeros(300_000)) == bytes(300_000)
    bomb = zeros(LARGEST_TRACKS + 1)
    assert len(bomb) < 50_000
    for read in (decode_tracks, lambda data: decode_frames(data, 0, [0])):
        with pytest.raises(
            ShardError,
            match="claim to unpack to 1073741825 bytes, more than the 1073741824 allowed",
        ):
            read(bomb)  # type: ignore[no-untyped-call]


def test_tracks_are_stored_and_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two anchors take 2 x (20 + 10 x 4 x 4) = 360 bytes."""
    tracks = make_tracks(0, (0, 2), 4, 4)
    monkeypatch.setattr(codec, "LARGEST_TRACKS", 360)
    data = packed(tracks)
    assert (decode_tracks(data).visibility == tracks.visibility).all()
    monkeypatch.setattr(codec, "LARGEST_TRACKS", 359)
    with pytest.raises(ValueError, match="2 anchors x 4 frames x 4 points take 360 bytes"):
        encode_tracks(tracks)
    with pytest.raises(ShardError, match="claim to unpack to 360 bytes, more than the 359 allowed"):
        decode_tracks(data)
    first = packed(make_tracks(0, (0,), 4, 4))
    monkeypatch.setattr(codec, "LARGEST_TRACKS", 180)
    assert decode_tracks(first).anchors.tolist() == [0]


@given(
    seed=st.integers(0, 1000),
    frames=st.lists(st.integers(0, 11), min_size=1, max_size=6),
    anchor=st.integers(0, 2),
    far=st.booleans(),
)
def test_some_frames_are_those_of_all(seed: int, frames: list[int], anchor: int, far: bool) -> None:
    tracks = make_tracks(seed, (0, 4, 8), 12, 5)
    if far:  # differences that need all four bytes
        tracks = replace(tracks, positions=tracks.positions * np.float32(3000))
    parts = encode_tracks(tracks)
    every = decode_tracks(b"".join(parts))
    positions, visibility, confidence = decode_frames(parts[anchor], (0, 4, 8)[anchor], frames)
    np.testing.assert_array_equal(positions, every.positions[anchor, frames], strict=True)
    np.testing.assert_array_equal(visibility, every.visibility[anchor, frames])
    np.testing.assert_array_equal(confidence, every.confidence[anchor, frames])


def test_sums_wrap_alike() -> None:
    """Otherwise verification would see other positions than training."""
    positions = np.array([-(2.0**25), 2.0**25, 0], np.float32).repeat(2).reshape(1, 3, 1, 2)
    (part,) = encode_tracks(
        Tracks(
            np.zeros(1, np.int32),
            positions,
            np.ones((1, 3, 1), np.uint8),
            np.ones((1, 3, 1), np.uint8),
        )
    )
    np.testing.assert_array_equal(
        decode_frames(part, 0, [0, 1, 2])[0], decode_tracks(part).positions[0]
    )


def test_frames_that_are_not_there_are_refused() -> None:
    first, second = encode_tracks(make_tracks(0, (0, 3), 6, 4))
    for frame in (6, -1):
        with pytest.raises(ShardError, match="the tracks have 6 frames"):
            decode_frames(first, 0, [0, frame])
    with pytest.raises(ShardError, match="are those of anchor 3, and not of anchor 0"):
        decode_frames(second, 0, [0])
