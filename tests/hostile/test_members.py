"""Hostile shards and sources: one sentence, little memory, and no file outside the folder."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from pydantic import TypeAdapter, ValidationError

from pipeline.decode.images import read_image
from pipeline.failures import DecodeError
from pipeline.planning.clip_windows import video_names
from pipeline.sources.json_stream import LARGEST_ITEM, items
from pipeline.sources.listing import SourceName
from shards import jpeg
from shards.clip import LARGEST_DESCRIPTION, ClipInfo
from shards.codec import decode_frames, decode_tracks, encode_tracks
from shards.errors import ShardError
from shards.reader import iterate_shard
from tests.helpers.clips import make_clip, make_tracks
from tests.helpers.hostile import DEEP, streamed, track_bomb


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], kind: str = "w") -> Path:
    with tarfile.open(path, kind) as tar:  # type: ignore[call-overload]
        for header, data in members:
            tar.addfile(header, io.BytesIO(data))
    return path


def member(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, link
    header.size = len(data) if kind == tarfile.REGTYPE else 0
    return header, data


def sparse_tar(path: Path) -> Path:
    """A tar of 2 kB with a member `a.json` of 7 GB: a GNU sparse file that is all hole."""
    header = bytearray(tarfile.TarInfo("a.json").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (7 << 30, 0)  # no bytes at its end
    header[483:495] = b"%011o\0" % (7 << 30)
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]  # type: ignore[attr-defined]
    path.write_bytes(bytes(header) + bytes(1024))
    return path


READERS: list[Callable[[Path], object]] = [lambda tar: list(iterate_shard(tar)), streamed]


@pytest.mark.parametrize("read", READERS, ids=["iterate_shard", "streaming"])
@pytest.mark.parametrize(
    "members",
    [
        [member("../../escaped.jpg")],
        [member("/tmp/pretrack-escaped.jpg")],
        [member("a.json", kind=tarfile.SYMTYPE, link="/etc/passwd"), member("a.jpg")],
        [member("a.json", kind=tarfile.LNKTYPE, link="../../etc/passwd"), member("a.jpg")],
        [member("a.json", kind=tarfile.CHRTYPE), member("a.000.jpg")],
        [member("a.json", b"1"), member("a.json", b"2")],
        [member("n" * 10_000 + ".jpg")],
        [member("a.json", DEEP), member("a.tracks.zst")],
    ],
    ids=["up", "absolute", "symlink", "hard link", "device", "twice", "long name", "nested"],
)
def test_tar_members_with_evil_names(
    tmp_path: Path, read: Callable[[Path], object], members: list[Any]
) -> None:
    (tmp_path / "in").mkdir()
    tar = tar_of(tmp_path / "in" / "s.tar", members)
    with pytest.raises(ShardError) as caught:
        read(tar)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "s.tar"]
    assert not Path("/tmp/pretrack-escaped.jpg").exists()


@pytest.mark.parametrize("read", READERS, ids=["iterate_shard", "streaming"])
def test_tars_that_unfold(
    tmp_path: Path, little_memory: None, read: Callable[[Path], object]
) -> None:
    with pytest.raises(ShardError, match=r"its member 'a.json' claims 7516192768 bytes"):
        read(sparse_tar(tmp_path / "sparse.tar"))
    header = tarfile.TarInfo("a.json")
    header.size = 1 << 60
    (tmp_path / "claims.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(ShardError, match="claims 1152921504606846976 bytes"):
        read(tmp_path / "claims.tar")
    header.size = 1 << 20
    (tmp_path / "cut.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(ShardError, match="unexpected end of data"):
        read(tmp_path / "cut.tar")
    tar_of(tmp_path / "packed.tar", [member("a.json", bytes(1 << 22))], "w:gz")
    with pytest.raises(ShardError, match=r"packed.tar cannot be read"):
        read(tmp_path / "packed.tar")


@pytest.mark.slow
def test_tracks_that_unfold(little_memory: None) -> None:
    honest = encode_tracks(make_tracks(0, (0, 2), 5, 9))
    assert decode_tracks(b"".join(honest), (2, 5, 9)).positions.shape == (2, 5, 9, 2)
    bomb = track_bomb()
    for read in (
        lambda data: decode_tracks(data, (2, 5, 9)),
        lambda data: decode_frames(data, 0, [0], (5, 9)),
    ):
        with pytest.raises(
            ShardError,
            match="claim to unpack to 400000020 bytes, more than 5 frames x 9 points take",
        ):
            read(bomb)
    with pytest.raises(
        ShardError,
        match="have 2 anchors x 5 frames x 8 points, "
        "and should have 2 anchors x 5 frames x 9 points",
    ):
        decode_tracks(b"".join(encode_tracks(make_tracks(0, (0, 2), 5, 8))), (2, 5, 9))
    with pytest.raises(
        ShardError,
        match="have 2 anchors x 5 frames x 9 points, "
        "and should have 3 anchors x 5 frames x 9 points",
    ):
        decode_tracks(b"".join(honest), (3, 5, 9))
    part = encode_tracks(make_tracks(0, (0,), 50, 4096))[0]  # 2 MB each
    with pytest.raises(ShardError, match="do not increase"):
        decode_tracks(part * 200, (2, 50, 4096))
    many = b"".join(encode_tracks(make_tracks(0, tuple(range(50)), 50, 4096)))
    with pytest.raises(
        ShardError, match="have 3 anchors x 50 frames x 4096 points, and should have 2 anchors"
    ):
        decode_tracks(many, (2, 50, 4096))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10_000))
    window = (
        b"\x28\xb5\x2f\xfd\x80\xf8"
        + struct.pack("<I", 52)
        + (52 << 3 | 1).to_bytes(3, "little")
        + bytes(52)
    )  # of 2 TB
    for data in (unsized, window, window[:6]):
        with pytest.raises(ShardError, match=r"claim to unpack|cannot be unpacked"):
            decode_frames(data, 0, [0])
        with pytest.raises(ShardError, match=r"claim to unpack|cannot be unpacked"):
            decode_tracks(data)
    overflow = struct.pack("<4sHHiII", b"PTRK", 2, 32, 0, 2**32 - 1, 2**32 - 1)
    with pytest.raises(ShardError, match="does not fit"):
        decode_tracks(zstandard.ZstdCompressor().compress(overflow))


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(jpeg.encode(np.zeros((16, 16, 3), np.uint8), 90))
    offset = data.index(b"\xff\xc0") + 5
    data[offset : offset + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def test_jpegs_that_unfold(little_memory: None) -> None:
    for call in (jpeg.decode, jpeg.size, lambda data: jpeg.decode(data, 8)):
        with pytest.raises(
            ShardError, match=r"claims 65500x65500 pixels, more than the \d+ allowed"
        ):
            call(jpeg_claiming(65500, 65500))


def test_a_description_that_is_none(little_memory: None) -> None:
    for data in (DEEP, b'{"a":' * 100_000, b'{"format":1,"frame_numbers":' + DEEP, b"1" * 5000):
        with pytest.raises(ShardError, match=r"^not a clip description"):
            ClipInfo.from_json(data)
    with pytest.raises(ShardError, match="more than the 67108864 allowed"):
        ClipInfo.from_json(b" " * (LARGEST_DESCRIPTION + 1))


@pytest.mark.parametrize(
    "key", ["../../escaped", "/tmp/x", "a\0b", "a\nb", "<script>", "", "n" * 10_000, 7, None, ["a"]]
)
def test_a_description_whose_key_leads_elsewhere(key: Any) -> None:
    fields = json.loads(make_clip().info.to_json()) | {"key": key}
    with pytest.raises(ShardError, match="cannot be a clip's key"):
        ClipInfo.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "change",
    [{"width": -3}, {"height": "9"}, {"source_width": 1e300}, {"width": True}, {"terms": [1]}],
)
def test_a_description_of_other_kinds(change: dict[str, Any]) -> None:
    fields = json.loads(make_clip().info.to_json()) | change
    with pytest.raises(
        ShardError, match=f"^not a clip description .'{next(iter(change))}' should be"
    ):
        ClipInfo.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"frame_numbers": None},
        {"frame_numbers": []},
        {"frame_numbers": "abcdef"},
        {"frame_numbers": [1.5] * 6},
        {"timestamps": [0.1]},
        {"timestamps": ["x"] * 6},
        {"cameras": [None]},
        {"cameras": [{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "world_to_camera": [1]}] * 6},
        {"cameras": [{"fx": "a", "fy": 1, "cx": 1, "cy": 1, "world_to_camera": [1] * 12}] * 6},
    ],
    ids=lambda change: str(change)[:60],
)
def test_a_description_that_does_not_fit_its_frames(change: dict[str, Any]) -> None:
    fields = json.loads(make_clip().info.to_json()) | change
    message = (
        r"^not a clip description .*('frame_numbers'|'timestamps'|'cameras'|a camera) (has|should)"
    )
    with pytest.raises(ShardError, match=message):
        ClipInfo.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize("name", ["../x", "a/b", "a\0", "a\n", "<b>", "", "n" * 31])
def test_names_of_sources_and_videos(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(SourceName).validate_python(name)
    (named,) = video_names(pa.table({"source": ["s"], "video_id": [name]})).to_pylist()
    assert re.fullmatch(r"s-[A-Za-z0-9_]*-[0-9a-f]{16}", named), "what a video's clips are called"


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


def test_images_that_unfold(tmp_path: Path, little_memory: None) -> None:
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000))
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(8 * 10**8 + 1)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("small.jpg", bytes(1 << 20))
    packed = (
        tmp_path / "b.zip"
    ).read_bytes()  # one that says it unpacks to 4 GB: what is written is a megabyte of zeros
    (tmp_path / "b.zip").write_bytes(
        packed.replace(struct.pack("<I", 1 << 20), struct.pack("<I", 0xFFFFFFF0))
    )
    for name in ("a.png", "huge.jpg", "b.zip!small.jpg"):
        with pytest.raises(DecodeError, match="the image is too large"):
            read_image(str(tmp_path), name, max_megapixels=100)


def test_annotations_that_unfold(little_memory: None) -> None:
    class Endless(io.StringIO):
        """A list whose first text never ends."""

        def read(self, size: int | None = -1) -> str:
            return super().read(size) or "x" * (size or 1)

    with pytest.raises(ValueError, match=f"more than {LARGEST_ITEM} characters"):
        list(items(Endless('["')))
    with pytest.raises(RecursionError):  # which who reads annotations takes for damage
        list(items(io.StringIO("[" + DEEP.decode())))
