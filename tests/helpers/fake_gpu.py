"""Run code for a GPU without one: operations on "cuda" tensors compute shapes and bytes only."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")


class FakeGpu(TorchDispatchMode):
    """Count what code would do on a GPU.

    peak_bytes:   largest size of all living "cuda" tensors made under this mode
    waits:        operations for which the host would wait for the GPU: reads of values, and copies
                  that are not `non_blocking`
    convolutions: whether the input of each convolution has its channels last
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self.waits: list[str] = []
        self.convolutions: list[bool] = []
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._living: dict[int, int] = {}

    @contextmanager
    def making_tensors(self) -> Iterator[None]:
        """Put all tensors that are made onto the fake GPU, uncounted."""
        with self._fake, torch.device("cuda"):
            yield

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if not on_gpu and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            return function(*args, **kwargs)
        name = function.overloadpacket.__name__
        self._note_waits(name, tensors, args, kwargs)
        with self._fake:
            result = function(*args, **kwargs)
            if name == "convolution":
                last = args[0].is_contiguous(memory_format=torch.channels_last)
                self.convolutions.append(last)
                if last:  # as cuDNN does
                    result = result.contiguous(memory_format=torch.channels_last)
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
                self._count(tensor.untyped_storage())
        return result

    def _note_waits(self, name: str, tensors: list[Tensor], args: Any, kwargs: Any) -> None:
        crosses = "cpu" in {tensor.device.type for tensor in tensors} or (
            "device" in kwargs and torch.device(kwargs["device"]).type == "cpu"
        )
        if name in _HOST_READS:
            self.waits.append(name)
        elif name in ("_to_copy", "copy_") and crosses:
            asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if not asynchronous:
                self.waits.append(name)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._living:
            self._living[key] = storage.nbytes()
            weakref.finalize(storage, self._living.pop, key, None)
            self.peak_bytes = max(self.peak_bytes, sum(self._living.values()))
