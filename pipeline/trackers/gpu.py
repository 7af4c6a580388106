"""What a network needs of a GPU: one that fits, copies that do not wait, and its errors."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.trackers.protocol import DeviceFullError
from shards.errors import PretrackError

_OUT_OF_MEMORY = re.compile(
    r"out of memory|(CUBLAS|CUDNN)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)", re.IGNORECASE
)
"""cuBLAS and cuDNN allocate workspaces of their own, and say so only in their messages. What they
call NOT_INITIALIZED is a handle for which there is no memory."""
_OLDEST_FOR_BFLOAT16 = (8, 0)


def choose_device(device: str, *, fast: bool) -> str:
    """Return `cuda` or `cpu` for the setting `device` (auto, cpu or cuda).

    Raises PretrackError if the GPU asked for is missing, if its driver is too old for torch, or if
    it cannot compute what is needed: bfloat16 for `fast`.
    """
    if device == "cpu":
        return "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what is raised here
        if torch.cuda.is_available():
            _check_capability(fast)
            return "cuda"
        reason = _why_unavailable()
    # A process from which all GPUs are hidden needs no driver.
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if "driver" in reason and "too old" in reason and not (hidden and device == "auto"):
        raise PretrackError(
            f"the NVIDIA driver of this machine is too old for {_torch_version()}: update the "
            "driver, install a torch for an older CUDA, or set tracks.device=cpu"
        )
    if device == "cuda":
        if torch.version.cuda is None:
            raise PretrackError(
                f"tracks.device is cuda, and {_torch_version()} is installed: install a torch with "
                "CUDA, or set tracks.device=auto"
            )
        raise PretrackError(
            "tracks.device is cuda, and this worker sees no GPU: "
            "set ray.tracker_gpus=1, or tracks.device=auto"
        )
    return "cpu"


def _why_unavailable() -> str:
    """Return what torch says of a GPU that it cannot use."""
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return str(error)
    return ""


def _torch_version() -> str:
    cuda = torch.version.cuda
    return f"torch {torch.__version__} ({f'CUDA {cuda}' if cuda else 'without CUDA'})"


def _check_capability(fast: bool) -> None:
    """Raise PretrackError if torch has no kernels for the GPU, or if it lacks bfloat16."""
    capability = torch.cuda.get_device_capability()
    name = f"the GPU {torch.cuda.get_device_name()} (sm_{capability[0]}{capability[1]})"
    built_for = torch.cuda.get_arch_list()
    if built_for and not any(_runs_on(architecture, capability) for architecture in built_for):
        raise PretrackError(
            f"{name} is not among those that {_torch_version()} was built for "
            f"({', '.join(built_for)}): install a torch that has it, or set tracks.device=cpu"
        )
    if fast and capability < _OLDEST_FOR_BFLOAT16:
        raise PretrackError(
            f"{name} does not compute in bfloat16, which tracks.precision=fast uses: set "
            "tracks.precision=exact, or use a GPU from sm_80 on"
        )


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Return whether code for an architecture (sm_80, compute_90) runs on a GPU."""
    kind, _, version = architecture.partition("_")
    digits = re.match(r"\d+", version)
    if digits is None:
        return True  # a name of another form: let torch decide
    major, minor = divmod(int(digits[0]), 10)
    if kind == "compute":  # the driver compiles it for newer GPUs, too
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that led to it, says that the GPU's memory is full."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_cuda_error(error: BaseException) -> bool:
    """Return whether a kernel crashed: the process cannot use the GPU any more."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def no_memory_to_load(network: str) -> DeviceFullError:
    """Return the error that a network does not fit beside what other programs hold."""
    try:
        free, total = torch.cuda.mem_get_info()
        state = f"{free / 1e9:.1f} of its {total / 1e9:.1f} GB are free"
    except RuntimeError:  # not even CUDA itself fits
        state = "hardly anything is free"
    return DeviceFullError(
        f"the GPU has no memory for {network}, because other programs fill it ({state}): end them "
        "(nvidia-smi lists them), choose another GPU (CUDA_VISIBLE_DEVICES), or wait"
    )


class CopyStreams:
    """Copy clips to the GPU and results back while it computes.

    Only copies from and to pinned memory overlap with other work.
    """

    def __init__(self) -> None:
        # Two streams, so that the next clips do not queue behind results that are not ready.
        self._to_gpu = torch.cuda.Stream()
        self._from_gpu = torch.cuda.Stream()

    def upload(self, clips: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Copy clips [T, H, W, 3] of one shape to the GPU: [B, T, H, W, 3].

        Queued, so the clips must live until the work that follows has ended.
        """
        with torch.cuda.stream(self._to_gpu):
            video = torch.empty((len(clips), *clips[0].shape), dtype=torch.uint8, device="cuda")
            for row, clip in zip(video, clips, strict=True):
                row.copy_(torch.from_numpy(clip), non_blocking=True)
        current = torch.cuda.current_stream()
        current.wait_stream(self._to_gpu)
        video.record_stream(current)  # its memory is used there, too
        return video

    def download(self, values: Sequence[Tensor], read: object) -> Download:
        """Queue copies of tensors to the host, once the work queued so far has ended.

        read: what that work reads; it is kept alive until then
        """
        self._from_gpu.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._from_gpu):
            copies = []
            for value in values:
                copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                copies.append(copy.copy_(value, non_blocking=True))
            # Blocking: the thread that waits sleeps instead of using a core.
            event = torch.cuda.Event(blocking=True)
            event.record()
        return Download(copies, event, (values, read))


class Download:
    """Tensors on their way to the host. What is `kept` lives until they have arrived."""

    def __init__(self, copies: Sequence[Tensor], event: torch.cuda.Event, kept: object) -> None:
        self._copies = copies
        self._event = event
        self._kept: object | None = kept

    def wait(self) -> Sequence[Tensor]:
        """Wait for the copies, and return them. Raises what failed on the GPU."""
        self._event.synchronize()
        self._kept = None
        return self._copies


def pinned_frames(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Allocate host memory from which frames are copied to the GPU without waiting.

    torch keeps freed pinned memory and hands it out again, so that builds alternate between a few
    buffers. Where no more can be pinned, ordinary memory is returned.
    """
    try:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    except RuntimeError:
        return np.empty(shape, np.uint8)
