"""A GPU that is missing, too old, full, or behind an old driver is named in one sentence."""

from __future__ import annotations

import pytest
import torch

from pipeline.trackers.gpu import (
    choose_device,
    is_cuda_error,
    is_out_of_memory,
    no_memory_to_load,
)
from shards.errors import PretrackError

TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update it"


def no_gpu(monkeypatch: pytest.MonkeyPatch, reason: str, cuda: str | None = "13.0") -> None:
    """Let torch, built for a version of CUDA, see no GPU, and give a reason."""

    def init() -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.init", init)
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setattr("torch.__version__", "2.11.0")


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Let torch see a GPU with a compute capability."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_75", "sm_80", "compute_120"])


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch, "No CUDA GPUs are available")
    assert choose_device("auto", fast=True) == "cpu"
    with pytest.raises(PretrackError, match=r"^tracks.device is cuda, and this worker sees no GPU"):
        choose_device("cuda", fast=True)
    no_gpu(monkeypatch, "Torch not compiled with CUDA enabled", cuda=None)
    with pytest.raises(PretrackError, match=r"and torch 2.11.0 \(without CUDA\) is installed"):
        choose_device("cuda", fast=True)


def test_a_driver_older_than_torch_is_not_taken_for_a_missing_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise `auto` would track for days on CPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    no_gpu(monkeypatch, TOO_OLD)
    for device in ("auto", "cuda"):
        with pytest.raises(
            PretrackError, match=r"driver .* is too old for torch 2.11.0 \(CUDA 13.0\): update"
        ):
            choose_device(device, fast=True)
    assert choose_device("cpu", fast=True) == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device("auto", fast=True) == "cpu", "the GPUs are hidden from this process"


@pytest.mark.parametrize(
    ("capability", "fast", "says"),
    [
        (
            (7, 0),
            False,
            r"Tesla V100 \(sm_70\) is not among those .* \(sm_75, sm_80, compute_120\)",
        ),
        ((7, 5), True, r"\(sm_75\) does not compute in bfloat16, .* set tracks.precision=exact"),
        ((7, 5), False, ""),
        ((8, 0), True, ""),
        ((8, 9), True, ""),  # sm_80 runs on all of generation 8
        ((9, 0), True, r"\(sm_90\) is not among those"),
        ((12, 1), True, ""),  # compiled by the driver from compute_120
    ],
)
def test_an_old_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool, says: str
) -> None:
    gpu(monkeypatch, capability)
    if not says:
        assert choose_device("auto", fast=fast) == "cuda"
        return
    with pytest.raises(PretrackError, match=says):
        choose_device("auto", fast=fast)


def test_a_full_gpu_says_how_much_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (300_000_000, 85_000_000_000))
    assert "(0.3 of its 85.0 GB are free): end them (nvidia-smi" in str(no_memory_to_load("TAPIR"))

    def fails() -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("torch.cuda.mem_get_info", fails)
    assert "(hardly anything is free)" in str(no_memory_to_load("TAPIR"))


@pytest.mark.parametrize(
    ("message", "out_of_memory", "crashed"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True, True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`", True, True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True, False),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", True, False),
        ("CUDA error: out of memory\nCUDA kernel errors might be reported later", True, True),
        ("CUDA error: an illegal memory access was encountered", False, True),
        ("out of resource: shared memory, Required: 264192, Hardware limit: 232448", False, False),
        ("Failed to find C compiler. Please specify via CC environment variable.", False, False),
    ],
)
def test_errors_of_libraries_that_run_out_of_memory_are_recognised(
    message: str, out_of_memory: bool, crashed: bool
) -> None:
    error = RuntimeError(message)
    assert is_out_of_memory(error) == out_of_memory
    assert is_cuda_error(error) == crashed


def test_an_error_of_compiled_code_is_judged_by_its_cause() -> None:
    error = RuntimeError("backend='inductor' raised")
    error.__cause__ = torch.OutOfMemoryError("CUDA: no room")
    assert is_out_of_memory(error)
