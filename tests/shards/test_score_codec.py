"""The member `KEY.scores.zst`: values, nulls, and damage."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from shards.errors import ShardError
from shards.score_codec import decode_scores, encode_scores
from shards.track_scores import TrackScores


def scores_of(*planes: list[list[float]]) -> TrackScores:
    return TrackScores(*(np.array(plane, np.float32) for plane in planes))


def test_scores_are_kept_within_2_percent_and_the_lack_of_one_is_kept() -> None:
    values = np.geomspace(0.005, 240, 200).reshape(2, 100).astype(np.float32)
    values[1, ::7] = np.nan
    scores = TrackScores(values, values[::-1], values * 0.5, np.full_like(values, np.nan))
    decoded = decode_scores(encode_scores(scores), (2, 100))
    for stored, value in zip(decoded.planes, scores.planes, strict=True):
        known = ~np.isnan(value) & (value > 0.004)
        np.testing.assert_allclose(stored[known], value[known], rtol=0.022)
        np.testing.assert_array_equal(np.isnan(stored), np.isnan(value))


def test_no_score_is_never_0_and_0_is_the_smallest_score() -> None:
    empty = [[np.nan]]
    decoded = decode_scores(encode_scores(scores_of([[0.0]], [[np.inf]], [[1.0]], empty)))
    assert decoded.epipolar[0, 0] == pytest.approx(2 ** (-127 / 16))
    assert decoded.reprojection[0, 0] == pytest.approx(2 ** (127 / 16))
    assert decoded.parallax[0, 0] == 1.0
    assert np.isnan(decoded.cycle[0, 0])


def test_the_record_is_as_documented() -> None:
    encoded = encode_scores(scores_of([[1.0, 2.0]], [[4.0, 0.5]], [[np.nan, 1.0]], [[1.0, 1.0]]))
    record = zstandard.ZstdDecompressor().decompress(encoded)
    header = b"PSCR" + bytes([1, 0, 4, 0, 1, 0, 0, 0, 2, 0, 0, 0])
    assert record == header + bytes([128, 144, 160, 112, 0, 128, 128, 128])


def packed(record: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(record)


RECORD = b"PSCR" + bytes([1, 0, 4, 0, 1, 0, 0, 0, 2, 0, 0, 0]) + bytes(8)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "cannot be unpacked"),
        (b"no scores", "cannot be unpacked"),
        (packed(b"PSCR"), "cut short"),
        (packed(b"PTRK" + RECORD[4:]), "not scores of version 1"),
        (packed(RECORD[:4] + b"\2" + RECORD[5:]), "not scores of version 1"),
        (packed(RECORD[:-1]), "hold 23 bytes"),
        (packed(RECORD), "have 1 anchors x 2 points, and should have 1 x 3"),
        (packed(bytes(1 << 27)), "claim to unpack to 134217728 bytes"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(data: bytes, problem: str) -> None:
    with pytest.raises(ShardError, match=problem):
        decode_scores(data, (1, 3))


def test_a_flipped_bit_is_noticed() -> None:
    data = bytearray(encode_scores(scores_of(*[[[1.5, 3.0, 7.0]]] * 4)))
    data[-6] ^= 1
    with pytest.raises(ShardError, match="cannot be unpacked"):
        decode_scores(bytes(data))
