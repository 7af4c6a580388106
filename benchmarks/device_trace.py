"""Run training steps on a CUDA device that this machine lacks, and count what they ask of it.

    python -m benchmarks.device_trace [--backbone NAME] [--clips N]

Tensors have shapes and a device, and no values (torch's fake tensors). Counted are the operations
that launch kernels, and the places where the host waits for the device: reading a value, copying
to the host, copying to the device without `non_blocking` or from memory that is not pinned, and
decoding JPEGs (`data.decode: device`).

One operation of torch is counted as one, although it may launch several kernels. Autocast changes
nothing here, so its casts are not counted. The sorting losses count as one operation per reference
each way, as their Triton kernels are.
"""

from __future__ import annotations

import argparse
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    is_fake,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.step import make_batch
from shards import jpeg
from trainer.config import TrainSettings
from trainer.data import device_decoding
from trainer.data.batch import Batch
from trainer.data.device_batches import CopyStream
from trainer.distributed import Rank
from trainer.losses.sorting import cross_entropy, soft_rank
from trainer.methods.chosen import METHODS
from trainer.methods.tracks import TrackMethod
from trainer.model.student_teacher import TeacherAverage
from trainer.run_setup import make_optimizer
from trainer.step_record import StepRecord
from trainer.train import TrainingRun

REPOSITORY = Path(__file__).parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_UNKNOWN_SIZE = {"nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}
"""Operations whose result has a size that only the device knows."""
_NO_KERNEL = {"detach", "lift_fresh", "alias", "_unsafe_view", "empty", "empty_like", "new_empty"}


@dataclass
class DeviceTrace:
    """What code asked of the device.

    operations: name of an operation → how often it ran
    waits:      where the host waited, as `file:line operation`, in order
    """

    operations: Counter[str] = field(default_factory=Counter)
    waits: list[str] = field(default_factory=list)


@contextmanager
def fake_cuda() -> Iterator[DeviceTrace]:
    """Pretend that there is a CUDA device; yield the counts, which grow as code runs.

    Tensors must be made inside, on `CUDA`. A value read from the device is 1.
    """
    trace = DeviceTrace()
    recorder = _Recorder(trace)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        for target, name, stand_in in _stand_ins(recorder):
            stack.enter_context(patch.object(target, name, stand_in, create=True))
        stack.enter_context(fake)
        stack.enter_context(recorder)
        yield trace


def on_fake_cuda(module: nn.Module) -> nn.Module:
    """Move a module, made outside of `fake_cuda`, to the device; its weights lose their values."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                moved = torch.empty_like(weight, device=CUDA)
                part._parameters[name] = nn.Parameter(moved, weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=CUDA)
    return module


def move_run(run: TrainingRun) -> None:
    """Move a run that was made on the CPU, outside of `fake_cuda`, to the device."""
    run.rank = Rank(0, 1, CUDA)
    on_fake_cuda(run.model)
    run.trained = [p for p in run.model.parameters() if p.requires_grad]
    if isinstance(run.method, TrackMethod):
        run.method.average = TeacherAverage(run.model.teacher, run.model.student, True)
    run.copies, run.record = CopyStream(CUDA), StepRecord(CUDA, deferred=True)
    run.optimizer = make_optimizer(run.model, run.settings.optim, fused=True)
    run.optimizer.found_inf = run.record.not_finite  # type: ignore[attr-defined]


def _stand_ins(recorder: _Recorder) -> list[tuple[Any, str, Any]]:
    """Return (object, name, stand-in) for what needs a real device."""
    pinned = recorder.pinned

    def pin(tensor: Tensor) -> Tensor:
        copied = tensor.clone()
        pinned.add(_address(copied))
        return copied

    make_subclass, make_tensor = torch.Tensor._make_subclass, torch.tensor

    def without_device(cls: Any, data: Tensor, requires_grad: bool = False, **others: Any) -> Any:
        # Autograd's C++ code then takes the tensor for one on `meta`, which needs no driver.
        others.pop("dispatch_device", None)
        return make_subclass(cls, data, requires_grad, **others)

    def tensor(data: Any, *, device: Any = None, **others: Any) -> Tensor:
        made = make_tensor(data, **others)
        return made if device is None else made.to(device)

    def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        # torch chooses the kernel by the device's properties; any of them is one operation.
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]  # type: ignore[no-any-return]

    def decoded(images: list[Tensor], device: torch.device) -> list[Tensor]:
        recorder.wait("JPEGs decoded")
        sizes = [jpeg.size(image.numpy().tobytes()) for image in images]
        return [torch.empty(3, *size[::-1], dtype=torch.uint8, device=device) for size in sizes]

    kernels = SimpleNamespace(spearman_rows=_one_operation)
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    stream = SimpleNamespace(wait_stream=nothing)
    optimizer = torch.optim.Optimizer
    return [
        (torch.Tensor, "_make_subclass", without_device),
        (torch, "tensor", tensor),
        (torch.nn.functional, "scaled_dot_product_attention", attention),
        (optimizer, "_accelerator_graph_capture_health_check", nothing),
        (optimizer, "_cuda_graph_capture_health_check", nothing),
        (torch.Tensor, "pin_memory", pin),
        (torch.Tensor, "is_pinned", lambda self: _address(self) in pinned),
        (torch.Tensor, "record_stream", nothing),
        (FakeTensor, "tolist", lambda self: self.cpu().tolist()),  # one copy, as on a device
        (torch.cuda, "Stream", lambda *_: stream),
        (torch.cuda, "current_stream", lambda *_: stream),
        (torch.cuda, "stream", nullcontext),
        (torch.nn.utils.clip_grad, "_has_foreach_support", lambda *_: True),
        (device_decoding, "decode_on_cuda", decoded),
        (soft_rank, "gpu_kernels", lambda *_: kernels),
        (cross_entropy, "gpu_kernel", lambda *_: _one_kernel),
    ]


def _one_operation(values: Tensor, order: Tensor, _: float) -> Tensor:
    """Stand for a kernel that computes a loss per row, and its gradient in one more operation."""
    return values.amax(dim=-1)


def _one_kernel(
    x: Tensor, y: Tensor, _sorts: object, _epsilon: float, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Stand for a kernel that computes the cross-entropy of rows and its gradients."""
    values = max(x, y, key=len).amax(dim=-1)
    by_x, by_y = (
        torch.empty_like(side) if want else None for side, want in zip((x, y), wanted, strict=True)
    )
    return values, by_x, by_y


class _Recorder(TorchDispatchMode):
    """Count each operation, and give a value where the host reads one."""

    def __init__(self, trace: DeviceTrace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.pinned: set[int] = set()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(kwargs.get("device"), "type", "") == "meta":
            kwargs["device"] = CUDA  # what autograd takes a fake tensor's device for
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_host = all(not is_fake(t) and t.device == CPU for t in tensors)
        if on_host and kwargs.get("device", CPU).type == "cpu":
            with unset_fake_temporarily():
                return operation(*args, **kwargs)  # what the host computes has values
        name = operation.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.wait(name)
            return {torch.bool: True, torch.int64: 1}.get(args[0].dtype, 1.0)
        if name == "lift_fresh":
            self.wait("list or number copied to the device")
            return torch.empty(args[0].shape, dtype=args[0].dtype, device=CUDA)
        if name in ("_to_copy", "copy_"):
            return self._copy(operation, name, args, kwargs)
        if name in _UNKNOWN_SIZE:
            self.wait(name)
        if name.startswith("index") and any(t.ndim and t.device == CPU for t in tensors):
            self.wait("indices copied to the device")
        result = _result(name, operation, args, kwargs)
        if _launches(operation, name, result):
            self.trace.operations[name] += 1
        return result

    def _copy(self, operation: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a copy to or from the device, or a conversion on it."""
        copied, target = args[0], kwargs.get("device", args[0].device)
        non_blocking = kwargs.get("non_blocking", False)
        if name == "copy_":
            copied, target = args[1], args[0].device
            non_blocking = args[2] if len(args) > 2 else False
        source = copied.device
        if source.type != "cpu" and target.type == "cpu":
            self.wait("copy to the host")
            with unset_fake_temporarily():
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype", args[0].dtype))
        if source.type == "cpu" and not (non_blocking and _address(copied) in self.pinned):
            self.wait("copy to the device")
        # Torch asks for a copy here even where the device and the type are the right ones already.
        if name == "copy_" or source.type == "cpu" or kwargs.get("dtype") != args[0].dtype:
            self.trace.operations[name] += 1
        return operation(*args, **kwargs)

    def wait(self, what: str) -> None:
        frames = [
            frame
            for frame in traceback.extract_stack()
            if Path(frame.filename).is_relative_to(REPOSITORY / "trainer")
        ]
        where = (
            f"{Path(frames[-1].filename).relative_to(REPOSITORY)}:{frames[-1].lineno}"
            if frames
            else "elsewhere"
        )
        self.trace.waits.append(f"{where} {what}")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _result(name: str, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operation returns, also where torch's own way fails here."""
    if name == "nonzero":  # half of the entries, say
        return args[0].new_empty(args[0].numel() // 2, args[0].ndim, dtype=torch.int64)
    return _sampled(name, args) if "grid_sampler" in name else operation(*args, **kwargs)


def _sampled(name: str, args: tuple[Any, ...]) -> Any:
    """Return what `grid_sampler_2d` or its backward returns."""
    if name.endswith("backward"):
        return torch.empty_like(args[1]), torch.empty_like(args[2])
    features, grid = args[:2]
    return features.new_empty(*features.shape[:2], *grid.shape[1:3])


def _launches(operation: Any, name: str, result: Any) -> bool:
    """Return whether an operation with this result launches a kernel on the device."""
    returns = operation._schema.returns
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    results = result if isinstance(result, tuple | list) else [result]
    on_device = any(isinstance(r, Tensor) and r.device.type != "cpu" for r in results)
    # `_foreach_…_` operations return nothing.
    return (on_device or not returns) and not is_view and name not in _NO_KERNEL


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_trace")
    parser.add_argument("--backbone", default="dino_small")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=["default"])
    return parser.parse_args()


STEPS: dict[str, dict[str, Any]] = {
    "default": {},
    "upstream": {"recipe": "upstream"},
    **{
        name: {"loss": {"sorting": 0, name: {}}}
        for name in (
            "info_nce",
            "smooth_ap",
            "clusters",
            "track_mean",
            "self_supervision",
            "lifted",
            "timetuning",
            "view_agreement",
        )
    },
    "multiview": {
        "method": "multiview",
        "multiview": {"fewer_views": 0.0},
        "model": {
            "trainable_blocks": 12,
            "lora": {"rank": 32, "alpha": 32, "dropout": 0.1, "layers": ["qkv"]},
        },
    },
}
"""Kinds of steps that can be traced, by the settings that they change."""


def main() -> None:
    """Trace a few steps of each kind; print what the last one asked of the device."""
    a = parse_arguments()
    for name in a.steps:
        run, batches = make_run(a.backbone, a.clips, a.size, STEPS[name])
        with fake_cuda() as trace:
            move_run(run)
            for _ in range(2):  # the first step makes the optimizer's state
                trace.operations.clear()
                trace.waits.clear()
                run.take_step(*run.prepare(next(batches)))
        print(
            f"{name}, {a.backbone}, {a.clips} clips of 4 frames at {a.size} px: "
            f"{trace.operations.total()} operations per step, the host waits "
            f"{len(trace.waits)} times",
            flush=True,
        )
        print("\n".join(trace.waits))
        if len(a.steps) == 1:
            for operation, count in trace.operations.most_common(12):
                print(f"{count:5d} {operation}")


def make_run(
    backbone: str, clips: int, size: int, changes: dict[str, Any]
) -> tuple[TrainingRun, Iterator[Batch]]:
    """Return a run on the CPU without data, with a step's settings, and its one batch."""
    run = object.__new__(TrainingRun)
    model = {"backbone": backbone, "weights": "random", **changes.get("model", {})}
    run.settings = TrainSettings.model_validate(
        {
            **changes,
            "data": {"out": ".", "size": size},
            "model": model,
            "run": {"out": ".", "steps": 100, "batch_size": clips},
        }
    )
    run.step, run.last_step = 0, 100
    run.method = METHODS[run.settings.method](run.settings, None, Rank(0, 1, CPU), 256)
    run.model = run.forward = run.method.model
    batch = make_batch(clips, size, "cpu")
    frames = batch["frames"].shape[1]
    batch["intrinsics"] = torch.eye(3).expand(clips, frames, 3, 3).contiguous()
    batch["world_to_camera"] = torch.eye(3, 4).expand(clips, frames, 3, 4).contiguous()
    batch["posed"] = torch.ones(clips, dtype=torch.bool)
    return run, repeat(batch)


if __name__ == "__main__":
    main()
