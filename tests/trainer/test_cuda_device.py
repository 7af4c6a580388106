"""A GPU that cannot be used is explained in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from shards.errors import PretrackError
from trainer import cuda_device
from trainer.config import TrainSettings
from trainer.cuda_device import check_precision, choose_device, explain_out_of_memory
from trainer.train import train

Make = Callable[..., TrainSettings]
CUDA = torch.device("cuda", 0)
NAME = "Tesla V100-SXM2-16GB"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that there is a GPU, with what torch says of it; `first_use` is raised by it."""

    def make(*, first_use: str | None = None, capability: tuple[int, int] = (9, 0)) -> None:
        def use(*_: Any, **__: Any) -> torch.Tensor:
            if first_use:
                raise RuntimeError(first_use)
            return torch.ones(1)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: NAME)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
        monkeypatch.setattr(cuda_device, "_run_kernel", use)

    return make


def memory(monkeypatch: pytest.MonkeyPatch, free: float, total: float, own: float) -> None:
    """Set what torch says of a GPU's memory, in GB."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(free * 1e9), int(total * 1e9)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: int(own * 1e9))


def old_driver() -> bool:
    warnings.warn(
        "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). "
        "Please update your GPU driver by downloading and installing a new version from the URL: "
        "http://www.nvidia.com/Download/index.aspx",
        stacklevel=1,
    )
    return False


def test_no_gpu_is_an_error_only_if_one_was_asked_for(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(
        PretrackError,
        match=r"^'run\.device: cuda' was asked for, and torch sees no CUDA device here$",
    ):
        train(settings(run={"device": "cuda"}))


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_driver_older_than_torchs_is_named(
    monkeypatch: pytest.MonkeyPatch, device: Literal["auto", "cuda"]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's own warning is not shown
        with pytest.raises(PretrackError) as error:
            choose_device(device)
    assert str(error.value) == (
        "the NVIDIA driver, which is for CUDA 11.4, is too old for this torch, which needs CUDA "
        "13.0: update the driver, install a torch built for it, or set 'run.device=cpu'"
    )
    assert choose_device("cpu") == torch.device("cpu")


def test_a_torch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(PretrackError, match=r"and torch was built without CUDA$"):
        choose_device("cuda")


def test_more_ranks_than_gpus_are_named(gpu: Callable[..., None]) -> None:
    gpu()
    assert choose_device("auto", local_rank=0) == CUDA
    with pytest.raises(PretrackError, match=r"^rank 1 .* torch sees 1, .* '--nproc-per-node 1'$"):
        choose_device("cuda", local_rank=1)


def test_a_gpu_without_kernels_in_torch_is_named(gpu: Callable[..., None]) -> None:
    gpu(
        first_use="CUDA error: no kernel image is available for execution on the device\nCUDA "
        "kernel errors might be asynchronously reported at some other API call.",
        capability=(7, 0),
    )
    with pytest.raises(PretrackError) as error:
        choose_device("auto")
    assert str(error.value) == (
        f"{NAME} has compute capability 7.0, for which this torch ({torch.__version__}) has no "
        "kernels (sm_75, sm_90): install a torch built for it, or set 'run.device=cpu'"
    )


@pytest.mark.parametrize(("capability", "works"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_needs_an_ampere_gpu(
    gpu: Callable[..., None], capability: tuple[int, int], works: bool
) -> None:
    gpu(capability=capability)
    check_precision(CUDA, "float32")
    check_precision(torch.device("cpu"), "bfloat16")
    if works:
        check_precision(CUDA, "bfloat16")
        return
    with pytest.raises(
        PretrackError,
        match=rf"^{NAME} has compute capability 7\.5, and bfloat16 needs 8\.0: set "
        r"'run\.precision=float32'$",
    ):
        check_precision(CUDA, "bfloat16")


def test_a_gpu_that_other_programs_fill_is_named_at_the_start(
    gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(first_use="CUDA error: out of memory")
    memory(monkeypatch, free=0.1, total=80, own=0)
    with pytest.raises(PretrackError) as error:
        choose_device("auto")
    assert str(error.value) == (
        "GPU 0 is out of memory: this run holds 0.0 of its 80.0 GB, and other programs 79.9 GB: "
        "end them ('nvidia-smi' lists them), or choose another GPU with CUDA_VISIBLE_DEVICES"
    )


def test_a_gpu_without_room_for_a_context_is_named(
    gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    gpu(first_use="CUDA error: out of memory")
    monkeypatch.setattr(torch.cuda, "mem_get_info", no_room)
    with pytest.raises(PretrackError, match=r"^GPU 0 has no free memory: end the programs"):
        choose_device("auto")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=["torch", "cuBLAS", "cuDNN"],
)
def test_memory_that_runs_out_in_a_step_is_explained(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    # 80 GB: 70 are this run's, and 3 of other programs, less than a tenth
    memory(monkeypatch, free=7, total=80, own=70)
    with pytest.raises(PretrackError) as said, explain_out_of_memory(CUDA):
        raise error
    assert str(said.value) == (
        "GPU 0 is out of memory: this run holds 70.0 of its 80.0 GB; raise 'run.accumulate', or "
        "lower 'run.batch_size' or 'data.size'"
    )


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(CUDA):
        raise RuntimeError("shapes differ")
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        explain_out_of_memory(torch.device("cpu")),
    ):
        raise RuntimeError("out of memory")
