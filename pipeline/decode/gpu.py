"""Decode, prove, shrink and encode clips of a video file on a GPU; only JPEG bytes leave it.

NVDEC decodes (by torchcodec), torch shrinks, nvJPEG encodes (by torchvision). Each frame is
compared with the ledger by its print, as those of the other decoders that return RGB are. A clip
that NVDEC cannot decode, or whose frames the ledger does not prove, is refused: the CPU decodes it.

With the device "cpu" the same functions run on the CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.ledger import Ledger
from pipeline.decode.messages import EncodedClip, EncodeRequest
from pipeline.decode.picture_print import picture_print
from pipeline.failures import DecodeError, MachineError, Reason
from shards import jpeg
from shards.errors import ShardError, first_line
from shards.geometry import FrameTransform

if TYPE_CHECKING:
    import torch

_FRAMES_AT_ONCE = 8
"""Frames in the device's memory at once; 8 frames of 4K video take 0.8 GB as floats."""
_PROOF_SIZE = 64
"""Pixels of a side of the pictures that prints are computed from; prints have 16x16 cells."""
_LARGEST_LOSS = 1.0
"""Grey levels by which an encoded frame may differ more from its pixels than the CPU's does."""
_ELSE = "or set frames.device to cpu"


def encode_clips(
    request: EncodeRequest, on_frames: Callable[[], None] = lambda: None
) -> Iterator[EncodedClip | DecodeError]:
    """Yield for each clip its encoded frames, or why it is refused.

    `on_frames` is called after every few frames. Raises DecodeError if the file as a whole is
    refused, and MachineError if this machine lacks what the device needs.
    """
    check_device(request.device)
    on_frames()  # loading torch and starting CUDA took seconds
    ledger = Ledger.unpack(request.ledger)
    reader = open_reader(request.path, request.device)
    if len(reader) != len(ledger):
        raise DecodeError(
            f"torchcodec sees {len(reader)} frames where {len(ledger)} decode",
            Reason.TORCHCODEC_MISCOUNTS,
        )
    for indices in request.clips:
        try:
            yield _encode_clip(reader, ledger, indices, request, on_frames=on_frames)
        except DecodeError as error:
            yield error
        except (RuntimeError, ValueError, IndexError, ShardError) as error:
            yield DecodeError(
                f"decoding or encoding fails there ({first_line(error)})", Reason.DECODER_FAILED
            )


@cache
def check_device(device: str) -> None:
    """Raise MachineError, saying what to do, if this machine cannot decode on a device."""
    try:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise MachineError(
                "frames.device is cuda, and torch finds no GPU here: see what nvidia-smi says, "
                f"{_ELSE}"
            )
        for module in ("torchcodec.decoders", "torchvision.io"):
            import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        raise MachineError(
            f"frames.device {device} needs torchcodec and torchvision, and one cannot be loaded "
            f"here ({first_line(error)}): pip install 'pretrack[torchcodec]' and FFmpeg from the "
            f"system's packages, {_ELSE}"
        ) from error
    try:
        encode_jpegs(torch.zeros(1, 3, 16, 16, dtype=torch.uint8, device=device), quality=90)
    except (RuntimeError, NotImplementedError) as error:
        raise MachineError(
            f"torchvision cannot encode JPEG on the device {device} ({first_line(error)}): install "
            f"a build of torchvision with nvJPEG, {_ELSE}"
        ) from error


def open_reader(path: str, device: str) -> Any:
    """Open a video file with torchcodec: a `VideoDecoder` that decodes on a device.

    Raises DecodeError if the device cannot decode it, and MachineError if no file could be decoded.
    """
    from torchcodec import decoders

    choose_backend = getattr(decoders, "set_cuda_backend", None)
    try:
        # Torchcodec's own way to NVDEC, faster than FFmpeg's; "beta" was its name before it became
        # the default.
        with choose_backend("beta") if choose_backend else nullcontext():
            reader = decoders.VideoDecoder(path, device=device)
    except (RuntimeError, ValueError) as error:
        if "nsupported device" in str(error):
            raise MachineError(
                "torchcodec was installed without CUDA: install its build for your version of "
                f"CUDA, as its README says, {_ELSE}"
            ) from error
        raise DecodeError(f"torchcodec cannot read it ({first_line(error)})") from error
    # Where NVDEC cannot decode, torchcodec decodes on the CPU itself, without the exact proof that
    # pretrack's CPU path has.
    fallback = getattr(reader, "cpu_fallback", None)
    if fallback and "nvcuvid" in str(fallback).lower():
        raise MachineError(
            "NVDEC's library, libnvcuvid, is missing here: start the container with "
            f"NVIDIA_DRIVER_CAPABILITIES=all, {_ELSE}"
        )
    if fallback:
        raise DecodeError("NVDEC of this GPU does not decode this kind of video")
    return reader


def _encode_clip(
    reader: Any,
    ledger: Ledger,
    indices: Sequence[int],
    request: EncodeRequest,
    *,
    on_frames: Callable[[], None],
) -> EncodedClip:
    """Read, prove, shrink and encode one clip. Raises DecodeError if it is refused."""
    import torch

    if any(ledger.interlaced(index) for index in indices):
        raise DecodeError("it is interlaced")
    described = ledger.format_of(indices[0])  # a change of format begins another clip
    transform = FrameTransform.whole(*described.upright_size, *request.form.size_of(described))
    parts = []
    for first in range(0, len(indices), _FRAMES_AT_ONCE):
        some = list(indices[first : first + _FRAMES_AT_ONCE])
        frames = reader.get_frames_at(some).data
        _prove(frames, some, ledger)
        parts.append(resize(frames, transform))
        on_frames()
    stored = torch.cat(parts)
    jpegs = encode_jpegs(stored, request.jpeg_quality)
    check_encoding(stored[0].permute(1, 2, 0).cpu().numpy(), jpegs[0], request.jpeg_quality)
    size = (transform.out_width, transform.out_height)
    return EncodedClip(jpegs, size, described.upright_size)


def _prove(frames: torch.Tensor, indices: Sequence[int], ledger: Ledger) -> None:
    """Raise DecodeError unless frames [T, 3, H, W] can be those at `indices`."""
    height, width = frames.shape[2:]
    shown = ledger.format_of(indices[0]).upright_size
    if (width, height) != shown:
        raise DecodeError(
            f"the GPU gives frames of {width}x{height} pixels instead of {shown[0]}x{shown[1]}"
        )
    small = resize(frames, FrameTransform.whole(width, height, _PROOF_SIZE, _PROOF_SIZE))
    for index, picture in zip(indices, small.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
        if not ledger.has_print(index, picture_print(picture)):
            raise DecodeError(
                f"the GPU gives another frame {index} than the scan found", Reason.WRONG_FRAME
            )


def resize(frames: torch.Tensor, transform: FrameTransform) -> torch.Tensor:
    """Resize whole frames, uint8 [T, 3, H, W], on their device, as `FrameTransform.frame` does."""
    import torch

    if (transform.width, transform.height) == (transform.out_width, transform.out_height):
        return frames
    rows, columns = (
        torch.from_numpy(weights).to(frames.device) for weights in transform.resize_weights()
    )
    return (rows @ frames.float() @ columns.T).round_().clamp_(0, 255).to(torch.uint8)


def encode_jpegs(frames: torch.Tensor, quality: int) -> tuple[bytes, ...]:
    """Encode frames, uint8 [T, 3, H, W], as JPEG: with 4:4:4 chroma on a GPU, else with 4:2:0.

    nvJPEG can subsample chroma, but torchvision does not let it.
    """
    import torch
    from torchvision.io import encode_jpeg

    if frames.is_cuda:
        # torchvision encodes on a stream of its own, which does not wait for this one.
        torch.cuda.current_stream(frames.device).synchronize()
    with warnings.catch_warnings():
        # torchvision 0.29 deprecates it for torchcodec's encoder, which versions for torch 2.11
        # lack.
        warnings.simplefilter("ignore")
        encoded = encode_jpeg(list(frames.contiguous()), quality)
    return tuple(data.cpu().numpy().tobytes() for data in encoded)


def check_encoding(frame: NDArray[np.uint8], data: bytes, quality: int) -> None:
    """Raise DecodeError if a JPEG differs clearly more from its frame than the CPU's would.

    frame: [H, W, 3] RGB
    """

    def loss(encoded: bytes) -> float:
        return float(np.abs(jpeg.decode(encoded).astype(np.int16) - frame).mean())

    limit = loss(jpeg.encode(frame, quality)) + _LARGEST_LOSS
    if (differs := loss(data)) > limit:
        raise DecodeError(
            f"the GPU's JPEG differs from its frame by {differs:.1f} grey levels, where "
            f"{limit:.1f} are allowed",
            Reason.DECODER_FAILED,
        )
