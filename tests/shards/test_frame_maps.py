"""Depth maps and masks as PNG: exact values, and damage that is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.codec import encode_tracks
from shards.errors import ShardError
from shards.frame_maps import FrameMaps, decode_depths, decode_masks, encode_depth, encode_mask
from shards.reader import iterate_shard
from shards.writer import open_shard
from tests.helpers.clips import make_clip

SIZE = (4, 2)


def test_depths_are_rounded_to_the_scale_and_0_stays_unknown() -> None:
    depth = np.array([[0, 0.01, 1.04, 1.06], [655.35 * 10, 6553.6, 3.0, 0.1]], np.float32)
    (decoded,) = decode_depths([encode_depth(depth, 0.1)], SIZE, 0.1)
    # A known depth below half a step stays known, and one beyond the largest value does not.
    expected = [[0, 0.1, 1.0, 1.1], [6553.5, 0, 3.0, 0.1]]
    np.testing.assert_allclose(decoded, expected, rtol=1e-6)


def test_masks_keep_their_values() -> None:
    mask = np.arange(8, dtype=np.uint8).reshape(2, 4) * 36
    (decoded,) = decode_masks([encode_mask(mask)], SIZE)
    assert decoded.tolist() == mask.tolist()


@pytest.mark.parametrize("size", [(4, 3), (2, 4)])
def test_a_map_of_another_size_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    data = encode_mask(np.zeros((size[1], size[0]), np.uint8))
    with pytest.raises(ShardError, match="no PNG of 4x2 pixels"):
        decode_masks([data], SIZE)


def test_damage_and_other_kinds_of_images_are_named() -> None:
    depth = encode_depth(np.ones((2, 4), np.float32), 1.0)
    mask = encode_mask(np.ones((2, 4), np.uint8))
    with pytest.raises(ShardError, match="cannot be read as uint16 grey"):
        decode_depths([mask], SIZE, 1.0)
    with pytest.raises(ShardError, match="cannot be read as uint8 grey"):
        decode_masks([depth], SIZE)
    with pytest.raises(ShardError, match="cannot be read as uint16 grey"):
        decode_depths([depth[:40]], SIZE, 1.0)
    with pytest.raises(ShardError, match="no PNG"):
        decode_depths([b"JFIF"], SIZE, 1.0)


def test_depth_maps_without_their_scale_are_named(tmp_path: Path) -> None:
    clip = make_clip()
    depth = encode_depth(np.ones((64, 96), np.float32), 1.0)
    with open_shard(tmp_path / "s.tar") as writer:
        maps = FrameMaps(depths=(depth,) * clip.info.frames)
        writer.add(clip.info, encode_tracks(clip.tracks), clip.jpegs, maps=maps)
    with pytest.raises(ShardError, match="depth maps without their scale"):
        list(iterate_shard(tmp_path / "s.tar"))


def test_a_clip_needs_a_map_for_every_frame(tmp_path: Path) -> None:
    clip = make_clip()
    maps = FrameMaps(masks=(encode_mask(np.zeros((64, 96), np.uint8)),) * 5)
    with (
        open_shard(tmp_path / "s.tar") as writer,
        pytest.raises(ValueError, match="has 6 frames and 5 masks"),
    ):
        writer.add(clip.info, encode_tracks(clip.tracks), clip.jpegs, maps=maps)
