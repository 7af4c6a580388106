"""Ranks of a distributed run, and the collective operations they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from shards.errors import PretrackError

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """This process among the `world` processes of a run, numbered from 0, and its device."""

    number: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and reports."""
        return self.number == 0


@contextmanager
def init_distributed(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Rank]:
    """Join the process group that torchrun's environment describes; leave it at the end.

    Without torchrun, the rank is 0 of 1 and there is no group. NCCL on CUDA, Gloo on the CPU, where
    deterministic algorithms are used. Raises PretrackError if `device` is "cuda" and torch sees no
    CUDA device.
    """
    number, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if device == "cuda" and not torch.cuda.is_available():
        raise PretrackError("'run.device: cuda' was asked for, and torch sees no CUDA device here")
    on_cuda = device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")
    deterministic = torch.are_deterministic_algorithms_enabled()
    if on_cuda:
        torch.cuda.set_device(chosen)
    else:
        # costs little on a CPU, where threads otherwise add up gradients in varying order
        torch.use_deterministic_algorithms(True)
    if world > 1:
        dist.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield Rank(number, world, chosen)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        if world > 1:
            dist.destroy_process_group()


def all_reduce_mean(values: Tensor, rank: Rank) -> list[float]:
    """All-reduce values [n] to their means over all ranks; every rank must call this."""
    values = values.to(rank.device, copy=True)
    if rank.world > 1:
        dist.all_reduce(values)
    return [value / rank.world for value in values.tolist()]


def broadcast_from_rank0(make: Callable[[], T], rank: Rank) -> T:
    """Run `make` on rank 0 and broadcast its result; every rank must call this.

    A PretrackError that `make` raises is raised on every rank.
    """
    result: list[Any] = [None]
    if rank.first:
        try:
            result = [make()]
        except PretrackError as error:
            result = [error]
    if rank.world > 1:
        dist.broadcast_object_list(result, device=rank.device)
    if isinstance(result[0], PretrackError):
        raise result[0]
    return result[0]  # type: ignore[no-any-return]


def all_reduce_any(flags: Tensor, rank: Rank) -> list[bool]:
    """All-reduce flags [n]: whether each is set on any rank; every rank must call this."""
    flags = flags.to(rank.device, torch.int32)
    if rank.world > 1:
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def all_gather(values: Tensor) -> Tensor:
    """All-gather tensors [n, ...] of the same shape, in rank order: [world * n, ...].

    Differentiable: backward sums the gradients of all ranks. Returns `values` where there is one
    rank.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    gathered: Tensor = _AllGather.apply(values.contiguous())
    return gathered


def all_reduce_sum(sums: Tensor) -> Tensor:
    """All-reduce a tensor to its sum over all ranks, in place.

    Returns it unchanged if torch.distributed is not initialised.
    """
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.own = slice(dist.get_rank() * len(values), (dist.get_rank() + 1) * len(values))
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient.clone(memory_format=torch.contiguous_format))[ctx.own]
