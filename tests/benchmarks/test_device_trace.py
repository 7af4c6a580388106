"""The trace of a device that is not there counts what would make the host wait, and operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from benchmarks.device_trace import CUDA, fake_cuda


@pytest.mark.parametrize(
    ("code", "waits"),
    [
        (lambda x: x[:, [0, 2]], 1),
        (lambda x: x[:, torch.tensor([0, 2])], 1),
        (lambda x: x[:, 1:], 0),
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x.max()), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=CUDA), 1),
        (lambda x: x + torch.ones(3).to(CUDA), 1),
        (lambda x: x + torch.ones(3).to(CUDA, non_blocking=True), 1),  # not pinned
        (lambda x: x + torch.ones(3).pin_memory().to(CUDA, non_blocking=True), 0),
        (lambda x: x + torch.ones(3, device=CUDA) * 2.5, 0),
        (lambda x: x.index_select(1, torch.arange(2, device=CUDA)), 0),
    ],
)
def test_what_makes_the_host_wait_is_counted(code: Callable[[Tensor], object], waits: int) -> None:
    with fake_cuda() as trace:
        x = torch.ones(4, 3, device=CUDA)
        code(x)
    assert len(trace.waits) == waits, trace.waits


def test_operations_are_counted_forward_and_backward_and_views_are_not() -> None:
    with fake_cuda() as trace:
        weight = torch.ones(3, 5, device=CUDA, requires_grad=True)
        x = torch.ones(4, 3, device=CUDA)
        trace.operations.clear()
        gelu(x.view(2, 2, 3).flatten(0, 1) @ weight).sum().backward()
    # forward: product, gelu, sum; backward: the gradient 1 (expanding it is a view), gelu's, and
    # the product with x; x needs no gradient
    assert dict(trace.operations) == {
        "mm": 2,
        "gelu": 1,
        "sum": 1,
        "ones_like": 1,
        "gelu_backward": 1,
    }
    assert not trace.waits
