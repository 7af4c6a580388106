"""A shard is a plain tar: tar, image viewers and webdataset read it, and agree with our reader."""

from __future__ import annotations

import errno
import io
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.clip import ClipInfo
from shards.codec import decode_tracks, encode_tracks
from shards.errors import ShardError
from shards.files import TEMPORARY
from shards.reader import iterate_shard, read_members
from shards.verify import verify_shard
from shards.writer import ByteRange, ClipMembers, open_shard
from tests.helpers.clips import make_clip, make_tracks, write_clips

KEYS = ["made-a-00000000-000000", "made-b-00000000-000024"]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_clips(tmp_path / "s.tar", [make_clip(key, seed) for seed, key in enumerate(KEYS)])
    return tmp_path / "s.tar"


def test_tar_lists_the_members_in_order(shard: Path) -> None:
    names = subprocess.run(
        ["tar", "tf", shard], check=True, capture_output=True, text=True
    ).stdout.split()
    extensions = ["json", "tracks.zst", *(f"{i:03d}.jpg" for i in range(6))]
    assert names == [f"{key}.{extension}" for key in KEYS for extension in extensions]


def test_plain_webdataset_reads_a_shard(shard: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == KEYS
    assert Image.open(io.BytesIO(samples[0]["003.jpg"])).size == (96, 64)
    assert ClipInfo.from_json(samples[1]["json"]) == make_clip(KEYS[1], 1).info


def test_index_and_tar_agree(tmp_path: Path) -> None:
    clips = [make_clip(key, seed) for seed, key in enumerate(KEYS)]
    members, size, _ = write_clips(tmp_path / "s.tar", clips)
    assert size == (tmp_path / "s.tar").stat().st_size
    for streamed, clip in zip(iterate_shard(tmp_path / "s.tar"), clips, strict=True):
        located = members[clip.info.key]
        wanted = (located.info, located.tracks, located.frames[-1])
        info, tracks, last = read_members(
            tmp_path / "s.tar", [part.offset for part in wanted], [part.size for part in wanted]
        )
        assert ClipInfo.from_json(info) == streamed.info == clip.info
        assert streamed.jpegs == clip.jpegs
        assert last == clip.jpegs[-1]
        assert np.array_equal(decode_tracks(tracks).positions, streamed.tracks.positions)


def test_the_same_clips_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_clips(tmp_path / name, [make_clip()])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    clip = make_clip()
    with pytest.raises(KeyboardInterrupt), open_shard(tmp_path / "s.tar") as writer:  # noqa: PT012
        writer.add(clip.info, encode_tracks(clip.tracks), clip.jpegs)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_not_half_a_shard(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"the old shard")
    with pytest.raises(OSError) as full, open_shard(tmp_path / "s.tar") as writer:  # noqa: PT011, PT012
        os.dup2(os.open("/dev/full", os.O_WRONLY), writer._file.fileno())
        clip = make_clip()
        writer.add(clip.info, encode_tracks(clip.tracks), clip.jpegs)
    assert full.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]
    assert (tmp_path / "s.tar").read_bytes() == b"the old shard"


@pytest.mark.parametrize("key", ["", "a.b", "../up", "a/b", "<script>"])
def test_a_key_that_readers_would_misread_is_refused(tmp_path: Path, key: str) -> None:
    clip = make_clip(key)
    with (
        pytest.raises(ShardError, match="cannot be a clip's key"),
        open_shard(tmp_path / "s.tar") as writer,
    ):
        writer.add(clip.info, encode_tracks(clip.tracks), clip.jpegs)


def test_verify_finds_nothing_wrong_with_a_good_shard(tmp_path: Path) -> None:
    members, size, checksum = write_clips(tmp_path / "s.tar", [make_clip()])
    assert list(verify_shard(tmp_path / "s.tar", size, checksum, members)) == []


def offsets_in(members: ClipMembers, size: int) -> dict[str, int]:
    """Pick the offset of one byte in each kind of content that a shard has."""
    last = members.frames[-1]
    return {
        "description": members.info.offset + members.info.size // 2,
        "tracks": members.tracks.offset + members.tracks.size // 2,
        "frame": members.frames[2].offset + members.frames[2].size // 2,
        "name in a tar header": members.tracks.offset - 512 + 3,
        "size in a tar header": members.tracks.offset - 512 + 130,
        "padding": last.offset + last.size + (-last.size % 512) - 1,
        "end of the tar": size - 700,
    }


@pytest.mark.parametrize(
    "content",
    list(
        offsets_in(ClipMembers(ByteRange(0, 0), ByteRange(0, 0), (), (ByteRange(0, 1),) * 3, ""), 0)
    ),
)
def test_verify_finds_one_flipped_bit_anywhere(tmp_path: Path, content: str) -> None:
    members, size, checksum = write_clips(
        tmp_path / "s.tar", [make_clip(key, seed) for seed, key in enumerate(KEYS)]
    )
    damaged = bytearray((tmp_path / "s.tar").read_bytes())
    damaged[offsets_in(members[KEYS[1]], size)[content]] ^= 4
    (tmp_path / "s.tar").write_bytes(damaged)
    problems = list(verify_shard(tmp_path / "s.tar", size, checksum, members))
    assert "s.tar: its checksum is" in problems[0]
    in_a_clip = content in ("description", "tracks", "frame")
    assert [KEYS[1] in problem for problem in problems[1:]] == [True] * in_a_clip, (
        "the clip concerned is named, and no other"
    )


@pytest.mark.parametrize(
    "cut",
    [
        "in a header",
        "after a header",
        "in a member",
        "after a member",
        "between clips",
        "before its end",
    ],
)
def test_a_shard_cut_anywhere_is_found(tmp_path: Path, cut: str) -> None:
    members, size, checksum = write_clips(
        tmp_path / "s.tar", [make_clip(key, seed) for seed, key in enumerate(KEYS)]
    )
    second, frame = members[KEYS[1]], members[KEYS[1]].frames[3]
    length = {
        "in a header": frame.offset - 100,
        "after a header": frame.offset,
        "in a member": frame.offset + frame.size // 2,
        "after a member": frame.offset + frame.size + (-frame.size % 512),
        "between clips": second.info.offset - 512,
        "before its end": size - 1024,
    }[cut]
    os.truncate(tmp_path / "s.tar", length)
    problems = list(verify_shard(tmp_path / "s.tar", size, checksum, members))
    assert f"has {length} bytes and should have {size}" in problems[0]
    with pytest.raises(ShardError, match=r"s\.tar"):
        list(iterate_shard(tmp_path / "s.tar"))


def test_verify_finds_a_missing_or_short_shard(tmp_path: Path) -> None:
    members, size, checksum = write_clips(tmp_path / "s.tar", [make_clip()])
    os.truncate(tmp_path / "s.tar", size // 2)
    problems = list(verify_shard(tmp_path / "s.tar", size, checksum, members))
    assert f"has {size // 2} bytes and should have {size}" in problems[0]
    assert "cut short" in problems[1]
    (tmp_path / "s.tar").unlink()
    (problem,) = verify_shard(tmp_path / "s.tar", size, checksum, members)
    assert "cannot be read" in problem


def test_tracks_of_other_frames_than_the_description_are_refused(tmp_path: Path) -> None:
    clip = replace(make_clip(), tracks=make_tracks(0, (0, 3), 5, 9))
    members, size, checksum = write_clips(tmp_path / "s.tar", [clip])
    message = r"the tracks have 2 anchors x 5 frames x 9 points, and should have 6 frames"
    with pytest.raises(ShardError, match=rf"the clip {clip.info.key} in .*s\.tar: {message}"):
        list(iterate_shard(tmp_path / "s.tar"))
    (problem,) = verify_shard(tmp_path / "s.tar", size, checksum, members)
    assert message in problem


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        ((0, 6), "the tracks' anchor 6 is not among their 6 frames"),
        ((-1, 3), "the tracks' anchor -1 is not among their 6 frames"),
        ((3, 3), "the tracks' anchors do not increase: 3 comes after 3"),
        ((3, 0), "the tracks' anchors do not increase: 0 comes after 3"),
    ],
)
def test_verify_finds_anchors_that_are_not_frames_of_the_clip(
    tmp_path: Path, anchors: tuple[int, ...], message: str
) -> None:
    clip = replace(make_clip(), tracks=make_tracks(0, anchors, 6, 9))
    members, size, checksum = write_clips(tmp_path / "s.tar", [clip])
    (problem,) = verify_shard(tmp_path / "s.tar", size, checksum, members)
    assert message in problem


def test_streaming_a_damaged_shard_names_it(shard: Path) -> None:
    os.truncate(shard, 3000)
    with pytest.raises(ShardError, match=r"s\.tar"):
        list(iterate_shard(shard))
    with pytest.raises(ShardError, match="pretrack verify"):
        read_members(shard, [100_000], [10])


def test_no_temporary_file_is_taken_for_a_shard(shard: Path) -> None:
    assert not any(TEMPORARY in path.name for path in shard.parent.iterdir())
