"""Decoding on the device: the frames that workers would have decoded, from the same photographs.

There is no GPU here, so the device is the CPU; a GPU is compared with it by `benchmarks.gpu`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from shards.errors import PretrackError, ShardError
from tests.helpers.web_server import web_server
from tests.trainer.conftest import publish
from tests.trainer.data.test_device_resize import opened, photographed_clip
from trainer.data import device_decoding
from trainer.data.batch import Batch, slice_batch
from trainer.data.clip_table import ClipTable
from trainer.data.device_decoding import check_decoder, decode_crops
from trainer.data.device_frames import make_frames
from trainer.data.loader import Loader
from trainer.data.packed_batch import BatchShape, PackedBatch
from trainer.data.settings import DataSettings


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of 6 clips of photographs, in 5 sizes from 97x61 to 420x300."""
    out = tmp_path_factory.mktemp("photographs")
    publish(out, [photographed_clip(number) for number in range(6)])
    return out


def batches_of(
    out: Path | str, decode: str, workers: int = 0, batches: int = 5, **changes: Any
) -> list[Batch]:
    """Load batches of 4 clips, with frames, decoded in workers or on the device."""
    dataset = opened(out, decode=decode, **changes)
    loaded = islice(Loader(dataset, dataset.sampler(4), workers), batches)
    return [make_frames(batch, dataset.settings) for batch in loaded]


def assert_equal(batches: list[Batch], others: list[Batch]) -> None:
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        assert batch["key"] == other["key"]
        for name, value in other.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(batch[name], value), name  # type: ignore[literal-required]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"crop": "random", "flip": 0.5, "workers": 2, "batches": 12}, marks=pytest.mark.slow
        ),
        {"crop_per_frame": True, "crop_scale": 0.05, "colour": {"jitter": 1.0, "blur": 0.5}},
        {"crop": "native", "size": 60, "colour": {"grey": 0.5, "student_only": True}},
        {"crop": "squash", "flip": 1.0, "control": "shuffled", "cameras": True},
    ],
    ids=["workers", "colours", "teacher frame", "whole frames"],
)
def test_frames_are_the_same_wherever_they_are_decoded(
    photographs: Path, changes: dict[str, Any]
) -> None:
    workers = {"workers": changes.pop("workers", 0)}
    expected = batches_of(photographs, "worker", reduced_decoding=False, **changes)
    assert_equal(
        batches_of(photographs, "device", reduced_decoding=False, **workers, **changes), expected
    )


def test_jpegs_of_a_build_on_a_server_are_those_of_a_disk(photographs: Path) -> None:
    expected = batches_of(photographs, "device", batches=2)
    with web_server(photographs) as served:
        assert_equal(batches_of(served.url, "device", batches=2), expected)


def test_pictures_are_decoded_at_full_scale_in_the_boxes_of_reduced_decoding(
    photographs: Path,
) -> None:
    """Decoders on a device cannot reduce; what is drawn does not depend on who decodes."""
    reduced = batches_of(photographs, "worker", size=40, crop_scale=0.9)
    full = batches_of(photographs, "device", size=40, crop_scale=0.9)
    items = opened(photographs, decode="device", size=40, crop_scale=0.9)
    differing = 0
    for batch, other in zip(full, reduced, strict=True):
        for name in ("positions", "visibility", "inside"):
            assert torch.equal(batch[name], other[name]), name  # type: ignore[literal-required]
        differing += int((batch["frames"] != other["frames"]).flatten(1).any(1).sum())
        assert (batch["frames"].int() - other["frames"].int()).abs().float().mean() < 4
    # All but the clips of 97x61 pixels are large enough to be decoded at half scale.
    assert differing == sum(key[-1] not in "27" for batch in full for key in batch["key"])
    indices = next(iter(items.sampler(4)))
    for slot, index in enumerate(indices):
        assert torch.equal(items[index]["frames"], full[0]["frames"][slot])


def test_few_pictures_are_in_memory_at_once(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(photographs, decode="device")
    batch = next(iter(Loader(dataset, dataset.sampler(4))))
    whole = decode_crops(batch)
    counts: list[int] = []
    earlier: list[weakref.ref[torch.Tensor]] = []
    decode = device_decoding._decode_on_host

    def counted(images: Sequence[NDArray[np.uint8]], keys: Sequence[str]) -> Iterator[torch.Tensor]:
        assert all(picture() is None for picture in earlier)
        counts.append(len(images))
        for picture in decode(images, keys):
            earlier.append(weakref.ref(picture))
            yield picture

    monkeypatch.setattr(device_decoding, "_decode_on_host", counted)
    # A clip of 3 frames of 420x300 pixels has 1.134 MB.
    for size, expected in ((1, [3] * 4), (1_134_000 * 2, [6, 6]), (1_134_000 * 3, [9, 3])):
        counts.clear()
        monkeypatch.setattr(device_decoding, "CHUNK_BYTES", size)
        part = decode_crops(batch)
        sizes = batch["boxes"][..., :2].prod(-1)
        for at, pixels in np.ndenumerate(sizes):
            assert torch.equal(part["crops"][at][:pixels], whole["crops"][at][:pixels])
        assert counts == expected
    alone = make_frames(slice_batch(batch, slice(2, 4)), dataset.settings)
    assert torch.equal(alone["frames"], make_frames(batch, dataset.settings)["frames"][2:])


def damaged(out: Path, where: str, **changes: Any) -> Loader:
    """Overwrite a part of the frames of clip photo-3 of 5, and load clips in batches of 2."""
    clips = [photographed_clip(number) for number in range(5)]
    jpegs = []
    for data in clips[3].jpegs:
        first = {"header": 0, "data": len(data) // 2, "end": len(data) - 2}[where]
        jpegs.append(data[:first] + bytes(2) + data[first + 2 :])
        if where == "data":
            jpegs[-1] = data[:first] + b"\xff\xd8" * 20 + data[first + 40 :]
    clips[3] = replace(clips[3], jpegs=tuple(jpegs))
    publish(out, clips)
    dataset = opened(out, decode="device", **changes)
    return Loader(dataset, dataset.sampler(2))


@pytest.mark.parametrize(
    ("where", "message"), [("header", "not a JPEG"), ("end", "marker at its end is missing")]
)
def test_clips_with_a_damaged_header_or_end_are_left_out(
    tmp_path: Path, where: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    loader = damaged(tmp_path, where, on_error="skip")
    keys = [key for batch in islice(loader, 4) for key in batch["key"]]
    assert len(keys) == 8
    assert "photo-3" not in keys
    assert loader.skipped == caplog.text.count("left out (") > 0
    assert "clip photo-3 in" in caplog.text
    assert message in caplog.text
    dataset = opened(tmp_path, decode="device")
    with pytest.raises(ShardError, match=rf"^clip photo-3 in .*{message}.*: run 'pretrack verify'"):
        list(islice(Loader(dataset, dataset.sampler(2)), 4))


def test_damage_within_a_picture_stops_a_run_when_it_is_decoded(tmp_path: Path) -> None:
    batches = list(islice(damaged(tmp_path, "data", on_error="skip"), 4))
    batch = next(batch for batch in batches if "photo-3" in batch["key"])
    with pytest.raises(
        ShardError,
        match=r"^clip photo-3: not a readable JPEG \(.*\): run 'pretrack verify', or leave damaged "
        r"clips out with 'data\.on_error=skip data\.decode=worker'$",
    ):
        decode_crops(batch)


@pytest.mark.slow
def test_a_device_that_cannot_decode_is_refused_in_a_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    check_decoder(torch.device("cpu"))
    with pytest.raises(
        PretrackError,
        match=r"^torchvision cannot decode JPEG on cuda:0 \(.+\): install a build of torchvision "
        r"with nvJPEG, for the same CUDA as torch's, or set 'data\.decode=worker'$",
    ):
        check_decoder(torch.device("cuda", 0))


def test_an_error_of_an_earlier_step_is_not_blamed_on_the_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decoding is the first to wait for the GPU, so what failed there before is reported to it."""

    def fail(images: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        raise RuntimeError("CUDA error: device-side assert triggered\nSearch for ...")

    monkeypatch.setattr(device_decoding, "decode_on_cuda", fail)
    with pytest.raises(RuntimeError, match=r"^CUDA error: device-side assert triggered"):
        check_decoder(torch.device("cuda", 0))


def test_decoding_on_the_device_needs_resizing_there() -> None:
    with pytest.raises(ValueError, match=r"'decode: device' .*: set 'resize: device' too"):
        DataSettings(out=("x",), decode="device")


def test_memory_of_a_batch_of_jpegs_is_what_was_worked_out_by_hand(photographs: Path) -> None:
    shape = BatchShape(2, 4, 8, 5, teacher_frames=True, jpeg_bytes=1001)
    # 40 points of 8 + 1 + 1 bytes; 8 frames of 10 * 8, 3 * 4, 2 * 4 and 4 bytes; 2 clips of JPEGs
    assert shape.num_bytes == 400 + 8 * (80 + 12 + 8 + 4) + 2 * 1001
    batch = PackedBatch.empty(shape, torch.zeros(4000, dtype=torch.uint8))
    names = ("positions", "visibility", "colours", "boxes", "corners", "jpeg_sizes", "jpegs")
    for number, name in enumerate(names):
        getattr(batch, name)[:] = number + 1
    for number, name in enumerate(names):  # no part overlaps another
        assert (getattr(batch, name) == number + 1).all(), name
    assert batch.frames.numel() == batch.teacher_frame.numel() == batch.crops.numel() == 0
    largest = max(len(data) for number in range(6) for data in photographed_clip(number).jpegs)
    assert opened(photographs, decode="device").batch_shape(2).jpeg_bytes == 3 * largest


def test_tables_that_claim_impossible_jpegs_are_refused(photographs: Path) -> None:
    dataset = opened(photographs, decode="device")
    table, column = dataset.clips.table, dataset.clips.table["frame_sizes"]
    sizes = [[10, 1 << 40], *column.to_pylist()[1:]]
    changed = table.set_column(
        table.column_names.index("frame_sizes"), "frame_sizes", pa.array(sizes, column.type)
    )
    dataset.clips = ClipTable(changed)
    with pytest.raises(
        PretrackError, match=r"are damaged: no clip has a frame of 1099511627776 bytes$"
    ):
        Loader(dataset, dataset.sampler(1))
