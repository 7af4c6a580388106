"""Shards, snapshots, weights and configs of people who mean harm: one sentence, little memory, and no file outside the folder."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import zstandard
from pydantic import TypeAdapter, ValidationError

from manifests.receipt import receipt_path, shard_path
from manifests.settings import Settings, load_settings
from manifests.snapshot import current_snapshot, list_snapshots, open_snapshot
from manifests.tables import read_table, write_table
from pipeline.cutting import video_names
from pipeline.decode.errors import DecodeError
from pipeline.decode.images import LARGEST_FILE, read_image
from pipeline.gc import collect
from pipeline.progress import Progress
from pipeline.show import read_clip, show_clips
from pipeline.snapshot_figures import measure
from pipeline.sources.files import SourceName
from pipeline.sources.json_stream import LARGEST_ITEM, items
from pipeline.verify import _tasks, _verify, verify_snapshot
from shards import jpeg
from shards.clip import LARGEST_DESCRIPTION, ClipInfo
from shards.codec import decode_frames, decode_tracks, encode_tracks
from shards.errors import PretrackError, SettingsError, ShardError
from shards.reader import iterate_shard, read_members
from shards.verify import verify_shard
from shards.writer import ClipMembers, Span, open_shard
from tests.clips import grey_clip, make_clip, make_tracks, write_clips
from tests.published import publish_clips
from trainer.backbone import read_weights
from trainer.checkpoint import load_checkpoint
from trainer.clips import open_snapshots
from trainer.config import DataSettings
from trainer.data import ClipDataset
from trainer.streaming import StreamedClips, listed_tars

ROOT = Path(__file__).parents[1]
DEEP = b"[" * 100_000
MEMORY = 1 << 30
"""More than a test of what is refused may take on top of what the imports take."""


@pytest.fixture
def little_memory() -> Any:
    """Lets this process take no more than MEMORY more: what unfolds ends in a MemoryError, which no test expects."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], kind: str = "w") -> Path:
    with tarfile.open(path, kind) as tar:  # type: ignore[call-overload]
        for header, data in members:
            tar.addfile(header, io.BytesIO(data))
    return path


def member(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
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


def streamed(tar: Path) -> list[str]:
    settings = DataSettings.model_validate({"out": "not-looked-at", "size": 64, "step": 1, "frames": 2})
    return [sample["key"] for sample in islice(StreamedClips(str(tar), settings, seed=0), 1)]


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
def test_tar_members_with_evil_names(tmp_path: Path, read: Callable[[Path], object], members: list[Any]) -> None:
    (tmp_path / "in").mkdir()
    tar = tar_of(tmp_path / "in" / "s.tar", members)
    with pytest.raises(ShardError) as caught:
        read(tar)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "s.tar"]
    assert not Path("/tmp/pretrack-escaped.jpg").exists()


@pytest.mark.parametrize("read", READERS, ids=["iterate_shard", "streaming"])
def test_tars_that_unfold(tmp_path: Path, little_memory: None, read: Callable[[Path], object]) -> None:
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


def track_bomb() -> bytes:
    """Tracks of 100 kB that unpack to 400 MB."""
    packer = zstandard.ZstdCompressor().compressobj(size=400_000_052)
    bomb = packer.compress(struct.pack("<4sHHIII", b"PTRK", 1, 32, 8, 500, 10_000) + bytes(32))
    bomb += b"".join(packer.compress(bytes(1_000_000)) for _ in range(400)) + packer.flush()
    assert len(bomb) < 100_000
    return bomb


def test_tracks_that_unfold(little_memory: None) -> None:
    honest = encode_tracks(make_tracks(0, (0, 2), 5, 9))
    assert decode_tracks(honest, (2, 5, 9)).positions.shape == (2, 5, 9, 2)
    bomb = track_bomb()
    for read in (lambda data: decode_tracks(data, (2, 5, 9)), lambda data: decode_frames(data, 0, [0], (2, 5, 9))):
        with pytest.raises(ShardError, match=r"claim to unpack to 400000052 bytes, more than 2 anchors x 5 frames x 9 points take"):
            read(bomb)
    with pytest.raises(ShardError, match=r"have 2 anchors x 5 frames x 8 points, and should have 2 anchors x 5 frames x 9 points"):
        decode_tracks(encode_tracks(make_tracks(0, (0, 2), 5, 8)), (2, 5, 9))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10_000))
    window = b"\x28\xb5\x2f\xfd\x80\xf8" + struct.pack("<I", 52) + (52 << 3 | 1).to_bytes(3, "little") + bytes(52)  # of 2 TB
    for data in (unsized, window, window[:6]):
        with pytest.raises(ShardError, match=r"claim to unpack|cannot be unpacked"):
            decode_tracks(data)
    overflow = struct.pack("<4sHHIII", b"PTRK", 1, 32, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    with pytest.raises(ShardError, match="does not fit"):
        decode_tracks(zstandard.ZstdCompressor().compress(overflow))


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(jpeg.encode(np.zeros((16, 16, 3), np.uint8), 90))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def test_jpegs_that_unfold(little_memory: None) -> None:
    for call in (jpeg.decode, jpeg.size, lambda data: jpeg.decode(data, 8)):
        with pytest.raises(ShardError, match=r"claims 65500x65500 pixels, more than the \d+ allowed"):
            call(jpeg_claiming(65500, 65500))


def test_a_description_that_is_none(little_memory: None) -> None:
    for data in (DEEP, b'{"a":' * 100_000, b'{"format":1,"frame_numbers":' + DEEP, b"1" * 5000):
        with pytest.raises(ShardError, match=r"^not a clip description"):
            ClipInfo.from_json(data)
    with pytest.raises(ShardError, match="more than the 67108864 allowed"):
        ClipInfo.from_json(b" " * (LARGEST_DESCRIPTION + 1))


@pytest.mark.parametrize("key", ["../../escaped", "/tmp/x", "a\0b", "a\nb", "<script>", "", "n" * 10_000, 7, None, ["a"]])
def test_a_description_whose_key_leads_elsewhere(key: Any) -> None:
    fields = json.loads(make_clip().info.to_json()) | {"key": key}
    with pytest.raises(ShardError, match="cannot be a clip's key"):
        ClipInfo.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize("change", [{"width": -3}, {"height": "9"}, {"source_width": 1e300}, {"width": True}, {"terms": [1]}])
def test_a_description_of_other_kinds(change: dict[str, Any]) -> None:
    fields = json.loads(make_clip().info.to_json()) | change
    with pytest.raises(ShardError, match=f"^not a clip description .'{next(iter(change))}' should be"):
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
    said = r"^not a clip description .*('frame_numbers'|'timestamps'|'cameras'|a camera) (has|should)"
    with pytest.raises(ShardError, match=said):
        ClipInfo.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize("name", ["../x", "a/b", "a\0", "a\n", "<b>", "", "n" * 33])
def test_names_of_sources_and_videos(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(SourceName).validate_python(name)
    (named,) = video_names(pa.table({"source": ["s"], "video_id": [name]})).to_pylist()
    assert re.fullmatch(r"s-[A-Za-z0-9_]*-[0-9a-f]{16}", named), "what a video's clips are called"


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def test_images_that_unfold(tmp_path: Path, little_memory: None) -> None:
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000))
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("small.jpg", bytes(1 << 20))
    packed = (tmp_path / "b.zip").read_bytes()  # one that says it unpacks to 4 GB: what is written is a megabyte of zeros
    (tmp_path / "b.zip").write_bytes(packed.replace(struct.pack("<I", 1 << 20), struct.pack("<I", 0xFFFFFFF0)))
    for name in ("a.png", "huge.jpg", "b.zip!small.jpg"):
        with pytest.raises(DecodeError, match="the image is too large"):
            read_image(str(tmp_path), name)


def test_annotations_that_unfold(little_memory: None) -> None:
    class Endless(io.StringIO):
        """A list whose first text never ends."""

        def read(self, size: int | None = -1) -> str:
            return super().read(size) or "x" * (size or 1)

    with pytest.raises(ValueError, match=f"more than {LARGEST_ITEM} characters"):
        list(items(Endless('["')))
    with pytest.raises(RecursionError):  # which who reads annotations takes for damage
        list(items(io.StringIO("[" + DEEP.decode())))


class Config(Settings):
    """A config with one number."""

    a: Any = 1


LAUGHS = "l0: &l0 [x, x]\n" + "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30)) + "a: *l29\n"
MERGES = "l0: &l0 {x: 1}\n" + "".join(f"l{i}: &l{i}\n  <<: [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.system ['touch {made}']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        (LAUGHS, "it unfolds to more than 100000 values"),
        (MERGES, "it unfolds to more than 100000 values"),
        ("a: &a [*a]", "it unfolds to more than 100000 values"),
        ("a: " + "[" * 1200, "nested too deep"),
        ("a: 2001-99-99", "month must be in"),
        ("#" * (1 << 20) + "\n", "more than 1048576 bytes"),
    ],
    ids=["call", "name", "laughs", "merges", "itself", "nested", "date", "long"],
)
def test_configs_that_unfold_or_run(tmp_path: Path, little_memory: None, text: str, said: str) -> None:
    made = tmp_path / "made"
    (tmp_path / "c.yaml").write_text(text.replace("{made}", str(made)))
    with pytest.raises(SettingsError, match=said) as caught:
        load_settings(Config, tmp_path / "c.yaml")
    assert len(str(caught.value)) < 400
    assert not made.exists()


def test_a_config_may_still_have_aliases(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: {b: &b {x: 1}, c: *b, d: {<<: *b, y: 2}}\n")
    assert load_settings(Config, tmp_path / "c.yaml").a == {"b": {"x": 1}, "c": {"x": 1}, "d": {"x": 1, "y": 2}}


def test_overrides_that_unfold(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 1\n")
    with pytest.raises(SettingsError, match="is not valid YAML"):
        load_settings(Config, tmp_path / "c.yaml", ["a=" + "[" * 1200])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with two snapshots of the same shard, of one clip."""
    for _ in range(2):
        publish_clips(tmp_path / "out", [grey_clip("made-a-000000")])
    return tmp_path / "out"


def spoil(out: Path, table: str, snapshot: str = "000002", **values: Any) -> None:
    """Replaces columns of a table of one row."""
    file = out / "snapshots" / snapshot / f"{table}.parquet"
    whole = read_table(file)
    for name, value in values.items():
        place = whole.schema.get_field_index(name)
        whole = whole.set_column(place, whole.schema.field(name), pa.array([value], whole.schema.field(name).type))
    write_table(file, whole)


def loaded(out: Path) -> object:
    settings = DataSettings.model_validate({"out": out, "size": 32, "frames": 4, "step": 1})
    return ClipDataset(open_snapshots(settings), settings, seed=0)[0, 0]


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("clips", {"shard": "../../etc/passwd"}),
        ("clips", {"shard": "/etc/passwd"}),
        ("clips", {"tracks_offset": -512}),
        ("clips", {"tracks_offset": 1 << 62, "tracks_size": 1 << 62}),
        ("clips", {"tracks_size": -1}),
        ("clips", {"tracks_size": 1 << 60}),
        ("clips", {"frame_offsets": [-1] * 8}),
        ("clips", {"frame_sizes": [1 << 60] * 8}),
        ("clips", {"frame_sizes": [-(1 << 60)] * 8}),
        ("clips", {"frame_offsets": []}),
        ("clips", {"width": 1 << 30, "height": 1 << 30}),
        ("clips", {"points": 1}),
        ("clips", {"points": 1 << 30}),
        ("clips", {"anchors": [0, 1 << 30]}),
        ("clips", {"frames": 1 << 30}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_tables_that_point_elsewhere(out: Path, little_memory: None, table: str, values: dict[str, Any]) -> None:
    assert loaded(out)
    spoil(out, table, **values)
    with pytest.raises(PretrackError) as caught:
        loaded(out)
    assert len(str(caught.value).splitlines()) == 1
    assert "root:" not in str(caught.value)


def test_members_beyond_a_shard(tmp_path: Path, little_memory: None) -> None:
    write_clips(tmp_path / "s.tar", [make_clip()])
    for offset, size in ((-1, 5), (0, -1), (0, 1 << 60), (1 << 62, 1 << 62), (1 << 62, 1)):
        with pytest.raises(ShardError):
            read_members(tmp_path / "s.tar", [offset], [size])
        members = ClipMembers(Span(offset, size), Span(offset, size), (), "")
        assert any("clip k:" in problem for problem in verify_shard(tmp_path / "s.tar", 1, "0", {"k": members}))


def test_tables_bound_what_tracks_unfold_to(out: Path, little_memory: None) -> None:
    clip, shard = grey_clip("made-a-000000"), open_snapshot(out).shards["shard"][0].as_py()
    with open_shard(shard_path(out, shard)) as writer:
        members = writer.add(clip.info, track_bomb(), clip.jpegs)
    frames = [span.offset for span in members.frames]
    spoil(out, "clips", tracks_size=members.tracks.size, frame_offsets=frames, checksum=members.checksum)
    snapshot = open_snapshot(out)
    said = "claim to unpack to 400000052 bytes, more than 2 anchors x 8 frames x 16 points take"
    problems = [str(problem) for task in _tasks(snapshot, snapshot.shards.to_pylist()) for problem in _verify(task)]
    assert any(said in problem for problem in problems)
    with pytest.raises(ShardError, match=said):
        loaded(out)
    with pytest.raises(ShardError, match=said):
        read_clip(snapshot, snapshot.clips.to_pylist()[0])
    assert measure(snapshot).damaged == 1


def test_verify_and_show_stay_in_the_folder(out: Path, tmp_path: Path) -> None:
    spoil(out, "shards", shard="../../etc/passwd")
    assert "does not name the shards of the tables" in str(verify_snapshot(open_snapshot(out), Progress(quiet=True))[0])
    (out / "snapshots" / "000002" / "shards.txt").write_text("shards/../../etc/passwd.tar\n")
    with pytest.raises(PretrackError, match=r"'../../etc/passwd' is no name of a shard"):
        verify_snapshot(open_snapshot(out), Progress(quiet=True))
    spoil(out, "clips", frame_sizes=[1])
    with pytest.raises(PretrackError, match="8 offsets and 1 sizes of frames"):
        show_clips(open_snapshot(out), [], 1, 0, tmp_path / "shown")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shown"]


@pytest.mark.parametrize("shard", ["../../precious", "/precious", "..", "a/b", ""])
def test_gc_deletes_nothing_outside(out: Path, tmp_path: Path, shard: str) -> None:
    for name in ("precious.tar", "precious.json"):
        (tmp_path / name).write_text("mine")
    spoil(out, "shards", "000001", shard=shard)
    with pytest.raises(PretrackError, match="is no name of a shard"):
        collect(out, keep=1)
    for name in ("precious.tar", "precious.json"):
        assert (tmp_path / name).read_text() == "mine"
    assert list_snapshots(out) == ["000001", "000002"], "and nothing inside before that was seen"


def test_gc_follows_no_link(out: Path, tmp_path: Path) -> None:
    shutil.move(out / "snapshots" / "000001", tmp_path / "mine")
    (out / "snapshots" / "000001").symlink_to(tmp_path / "mine")
    with pytest.raises(PretrackError, match=r"000001 is a link, and nothing outside .* is deleted"):
        collect(out, keep=1)
    assert (tmp_path / "mine" / "settings.json").exists()


def test_gc_of_linked_tars_removes_the_links(out: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.tar").write_text("mine")
    (out / "shards" / "made-000009-0123456789abcdef.tar").symlink_to(tmp_path / "precious.tar")
    collect(out, keep=1)
    assert not (out / "shards" / "made-000009-0123456789abcdef.tar").is_symlink()
    assert (tmp_path / "precious.tar").read_text() == "mine"


@pytest.mark.parametrize("name", ["../../elsewhere", "..", "", "/tmp", "²"])
def test_a_current_snapshot_elsewhere(out: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(out / "snapshots" / "000001", tmp_path / "elsewhere")
    with pytest.raises(PretrackError, match="has no snapshot"):
        open_snapshot(out, name)
    (out / "current.json").write_text(json.dumps({"snapshot": name}))
    with pytest.raises(PretrackError, match="is no snapshot"):
        current_snapshot(out)
    (out / "current.json").write_bytes(DEEP)
    with pytest.raises(PretrackError, match="is damaged"):
        current_snapshot(out)


def test_paths_of_shards_stay_inside(tmp_path: Path) -> None:
    for name in ("..", "a/b", "a\0", "a\n", ".", "", "a.b"):
        for path in (receipt_path, shard_path):
            with pytest.raises(PretrackError, match="is no name of a shard"):
                path(tmp_path, name)


@pytest.mark.parametrize(
    "line", ["pipe:touch${IFS}made", "../../etc/passwd.tar", "/etc/x.tar", "s3://other/x.tar", "shards/../x.tar"]
)
def test_a_list_of_tars_runs_nothing(out: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(out)
    (out / "snapshots" / "000002" / "shards.txt").write_text(f"{line}\n")
    for where in (".", "snapshots/000002/shards.txt"):
        with pytest.raises(PretrackError, match="is no tar of a snapshot"):
            streamed(Path(where))
    assert not (out / "made").exists()


def test_a_file_called_like_a_command_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "pipe:touch made;.tar", [make_clip()])
    assert listed_tars("*.tar") == ["./pipe:touch made;.tar"]
    assert streamed(Path("*.tar")) == [make_clip().info.key]
    assert not (tmp_path / "made").exists()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, made: str) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (self.made,)


def test_weights_that_run(tmp_path: Path) -> None:
    torch.save({"step": Evil(str(tmp_path / "made"))}, tmp_path / "w.pt")
    for read in (read_weights, load_checkpoint):
        with pytest.raises(PretrackError, match="cannot be read"):
            read(tmp_path / "w.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", len(DEEP)) + DEEP,
        struct.pack("<Q", 66) + b'{"a":{"dtype":"F32","shape":[1073741824,8],"data_offsets":[0,4]}} ',
        struct.pack("<Q", 66) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[99999999,10000]}} ',
        b"",
    ],
)
def test_safetensors_that_lie(tmp_path: Path, little_memory: None, header: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(header + bytes(8))
    with pytest.raises(SettingsError, match="cannot be read as weights"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("state", [[1, 2], {"model": {}}, {"settings": 3, "step": 1}, {"settings": {}, "step": "x"}])
def test_checkpoints_of_other_programs(tmp_path: Path, state: Any) -> None:
    torch.save(state, tmp_path / "step_00000001.pt")
    with pytest.raises(PretrackError, match="is no checkpoint of a run of ours"):
        load_checkpoint(tmp_path / "step_00000001.pt")


def test_nothing_that_runs_what_it_reads() -> None:
    """Every call in the tree that could be made to run a file's content is one that cannot."""
    # What stands here is only searched for in the product's files: nothing is loaded or run by it.
    calls: dict[str, Callable[[str], bool]] = {
        r"torch\.load\(": lambda line: "weights_only=True" in line,
        r"\byaml\.(load|unsafe_load|full_load)\w*\(": lambda line: False,
        r"\bpickle\.loads?\(|allow_pickle=True|\bjoblib\b|\bmarshal\b|\bshelve\b": lambda line: False,
        r"\.extractall\(|\.extract\(|unpack_archive": lambda line: False,
        r"(?<![\w.])(eval|exec)\(|os\.system\(|shell=True": lambda line: False,
    }
    for folder in ("shards", "manifests", "pipeline", "trainer"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                for call, harmless in calls.items():
                    assert not re.search(call, line) or harmless(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_the_cli_says_it_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(LAUGHS)
    command = [sys.executable, "-m", "pipeline", "build", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "unfolds to more than 100000 values" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
