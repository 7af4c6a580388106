"""Frames decoded, proven, shrunk and encoded as on a GPU, with the device "cpu".

Where torchcodec is not installed, PyAV reads the frames in its place; everything else is real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode import gpu
from pipeline.decode.ledger import Ledger
from pipeline.decode.messages import EncodedClip, EncodeRequest, StoredForm
from pipeline.decode.pyav import frames_at
from pipeline.decode.scan import scan
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.decode.video import read_frames
from pipeline.failures import DecodeError, MachineError, Reason
from pipeline.ray_cluster import decoder_of_this_worker
from shards import jpeg
from shards.geometry import FrameTransform
from tests.helpers.barcode import Recipe, numbered_frame, read_number, write_numbered

CLIPS = ((0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (20, 22, 24), (57, 58, 59))
FORM = StoredForm(short_side=96)


@pytest.fixture(scope="module")
def decoder() -> Iterator[SubprocessDecoder]:
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        yield decoder


class PyAVReader:
    """Read frames by PyAV as torchcodec's `VideoDecoder` returns them."""

    def __init__(self, path: str, shift: int = 0) -> None:
        self._path, self._shift = path, shift
        self._ledger = Ledger.unpack(scan(path, shot_cuts=False).ledger)

    def __len__(self) -> int:
        return len(self._ledger)

    def get_frames_at(self, indices: list[int]) -> Any:
        shifted = [index + self._shift for index in indices]
        frames = np.stack(list(frames_at(self._path, self._ledger, shifted)))
        return SimpleNamespace(data=torch.from_numpy(frames).permute(0, 3, 1, 2))


def reading_with(monkeypatch: pytest.MonkeyPatch, open_reader: Callable[[str, str], Any]) -> None:
    monkeypatch.setattr(gpu, "check_device", lambda device: None)
    monkeypatch.setattr(gpu, "open_reader", open_reader)


def request(
    path: Path, clips: Sequence[Sequence[int]] = CLIPS, form: StoredForm = FORM
) -> EncodeRequest:
    return EncodeRequest(
        path=str(path),
        device="cpu",
        ledger=scan(str(path), shot_cuts=False).ledger,
        clips=tuple(tuple(indices) for indices in clips),
        form=form,
        jpeg_quality=90,
    )


def encoded_by_cpu(path: Path, indices: Sequence[int], form: StoredForm) -> list[NDArray[np.uint8]]:
    """Give the frames that a build without a GPU stores, decoded."""
    ledger = Ledger.unpack(scan(str(path), shot_cuts=False).ledger)
    transform = FrameTransform.whole(192, 128, *form.size_of(ledger.format_of(0)))
    frames = read_frames(str(path), "pyav", ledger, indices)
    return [jpeg.decode(jpeg.encode(transform.frame(frame), 90)) for frame in frames]


def check_clips(results: Sequence[EncodedClip | DecodeError], path: Path, form: StoredForm) -> None:
    """Check that the clips hold the frames that a build without a GPU stores, nearly to the bit."""
    assert len(results) == len(CLIPS)
    for indices, clip in zip(CLIPS, results, strict=True):
        assert isinstance(clip, EncodedClip), clip
        frames = [jpeg.decode(data) for data in clip.jpegs]
        assert [read_number(frame) for frame in frames] == list(indices)
        for frame, expected in zip(frames, encoded_by_cpu(path, indices, form), strict=True):
            assert frame.shape == expected.shape == (clip.size[1], clip.size[0], 3)
            assert np.abs(frame.astype(int) - expected).mean() < 2


@pytest.mark.parametrize(
    ("form", "size"),
    [
        (FORM, (144, 96)),
        (StoredForm(short_side=256), (192, 128)),  # as it is
        (StoredForm(short_side=96, size=(160, 160)), (160, 160)),  # narrower, and higher
    ],
)
def test_the_frames_are_those_of_a_build_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: StoredForm, size: tuple[int, int]
) -> None:
    write_numbered(tmp_path / "a.mp4", Recipe(b_frames=2))
    reading_with(monkeypatch, lambda path, device: PyAVReader(path))
    results = list(gpu.encode_clips(request(tmp_path / "a.mp4", form=form)))
    check_clips(results, tmp_path / "a.mp4", form)
    assert [(clip.size, clip.source_size) for clip in results] == [(size, (192, 128))] * 3  # type: ignore[union-attr]


@pytest.mark.slow
def test_torchcodec_gives_the_frames_of_a_build_without_a_gpu(
    tmp_path: Path, decoder: SubprocessDecoder
) -> None:
    """Through the decoder process, as a build does."""
    try:
        import_module("torchcodec.decoders")
    except (ImportError, RuntimeError):
        pytest.skip("torchcodec is not installed, or finds no FFmpeg")
    path = tmp_path / "a.mp4"
    write_numbered(path, Recipe(b_frames=2))
    asked = request(path)
    results = decoder.encode_clips(
        asked.path,
        device="cpu",
        ledger=asked.ledger,
        clips=asked.clips,
        form=FORM,
        jpeg_quality=90,
    )
    check_clips(results, path, FORM)


def test_a_clip_with_another_frame_is_refused_and_the_next_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: frame 21 is returned for frame 20."""
    path = tmp_path / "a.mp4"
    write_numbered(path, Recipe())

    class OneLate(PyAVReader):
        def get_frames_at(self, indices: list[int]) -> Any:
            self._shift = int(20 in indices)
            return super().get_frames_at(indices)

    reading_with(monkeypatch, lambda path, device: OneLate(path))
    first, second, third = gpu.encode_clips(request(path))
    assert isinstance(first, EncodedClip)
    assert isinstance(third, EncodedClip)
    assert isinstance(second, DecodeError)
    assert str(second) == "the GPU gives another frame 20 than the scan found"
    assert second.reason is Reason.WRONG_FRAME


def test_frames_that_are_not_turned_upright_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mirrored frames have the right size, and only the print tells."""
    path = tmp_path / "a.mp4"
    write_numbered(path, Recipe())

    class Mirrored(PyAVReader):
        def get_frames_at(self, indices: list[int]) -> Any:
            return SimpleNamespace(data=super().get_frames_at(indices).data.flip(3))

    reading_with(monkeypatch, lambda path, device: Mirrored(path))
    assert all(isinstance(clip, DecodeError) for clip in gpu.encode_clips(request(path)))


def test_an_error_of_cuda_refuses_the_clip_and_says_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    write_numbered(path, Recipe())

    class OutOfMemory(PyAVReader):
        def get_frames_at(self, indices: list[int]) -> Any:
            raise RuntimeError("CUDA error: out of memory\nCompile with …")

    reading_with(monkeypatch, lambda path, device: OutOfMemory(path))
    (clip,) = gpu.encode_clips(request(path, [[3]]))
    assert isinstance(clip, DecodeError)
    assert "(CUDA error: out of memory)" in str(clip)
    assert clip.reason is Reason.DECODER_FAILED


def test_a_file_whose_frames_torchcodec_counts_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_numbered(tmp_path / "a.mp4", Recipe(frames=60))
    write_numbered(tmp_path / "b.mp4", Recipe(frames=59))
    reading_with(monkeypatch, lambda path, device: PyAVReader(str(tmp_path / "b.mp4")))
    with pytest.raises(DecodeError, match="sees 59 frames where 60 decode") as error:
        list(gpu.encode_clips(request(tmp_path / "a.mp4")))
    assert error.value.reason is Reason.TORCHCODEC_MISCOUNTS


def test_interlaced_clips_are_refused(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVDEC deinterlaces in its own way, which may mix frames."""
    path = shared_data / "bugs" / "interlaced.mp4"
    reading_with(monkeypatch, lambda path, device: PyAVReader(path))
    (clip,) = gpu.encode_clips(request(path, [[0, 1]]))
    assert isinstance(clip, DecodeError)
    assert str(clip) == "it is interlaced"


def encoded(picture: NDArray[np.uint8], **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(picture).save(file, "jpeg", **options)
    return file.getvalue()


def test_another_encoder_may_differ_a_little_and_not_more() -> None:
    picture = numbered_frame(3)
    gpu.check_encoding(picture, encoded(picture, quality=90, subsampling="4:4:4"), 90)
    for wrong in (encoded(picture, quality=20), encoded(numbered_frame(4), quality=90)):
        with pytest.raises(DecodeError, match=r"differs from its frame by .* grey levels"):
            gpu.check_encoding(picture, wrong, 90)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_says_so_in_a_sentence(
    tmp_path: Path, decoder: SubprocessDecoder
) -> None:
    with pytest.raises(MachineError, match=r"frames\.device is cuda, and torch finds no GPU here"):
        decoder.encode_clips(
            str(tmp_path / "a.mp4"),
            device="cuda",
            ledger=b"",
            clips=[[0]],
            form=FORM,
            jpeg_quality=90,
        )


def test_a_worker_that_is_given_another_gpu_starts_another_decoder() -> None:
    """A process cannot change the GPUs that it sees."""
    first = decoder_of_this_worker(60.0, gpus="0")
    assert decoder_of_this_worker(60.0, gpus="0") is first
    assert decoder_of_this_worker(60.0, gpus="1") is not first


def test_without_torchcodec_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_torchcodec(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(gpu, "import_module", no_torchcodec)
    with pytest.raises(MachineError, match=r"No module named 'torchcodec.*pretrack\[torchcodec\]"):
        gpu.check_device("cpu")
