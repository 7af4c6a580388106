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
from trainer.cuda_device import choose_device

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

    Without torchrun, the rank is 0 of 1 and there is no group. Tensors on CUDA are exchanged by
    NCCL, and those on the CPU by Gloo. On the CPU deterministic algorithms are used. Raises
    PretrackError as `choose_device` does.
    """
    number, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    on_cuda = chosen.type == "cuda"
    deterministic = torch.are_deterministic_algorithms_enabled()
    if on_cuda:
        torch.cuda.set_device(chosen)
    else:
        # costs little on a CPU, where threads otherwise add up gradients in varying order
        torch.use_deterministic_algorithms(True)
    if world > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    try:
        yield Rank(number, world, chosen)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        if world > 1:
            dist.destroy_process_group()


def all_reduce_mean(values: Tensor, rank: Rank) -> list[float]:
    """All-reduce values [n] on the CPU to their means over all ranks; every rank must call this."""
    values = values.clone()
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
        dist.broadcast_object_list(result, device=torch.device("cpu"))
    if isinstance(result[0], PretrackError):
        raise result[0]
    return result[0]  # type: ignore[no-any-return]


def all_reduce_any(flag: bool, rank: Rank) -> bool:
    """All-reduce a flag: whether it is set on any rank; every rank must call this."""
    flags = torch.tensor([flag], dtype=torch.int32)
    if rank.world > 1:
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


class StopAgreement:
    """Agree with the other ranks, once per step, on whether to stop.

    Ranks must stop after the same step, or those that continue would wait for the others forever.
    The flags are exchanged over the network of the CPUs while the next step runs, so that neither
    the device nor, usually, the host waits.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self._exchange: tuple[dist.Work, Tensor] | None = None

    def agreed(self, requested: bool) -> bool:
        """Return whether to stop after this step; every rank must call this after every step.

        With one rank that is `requested`. With several it is whether any rank requested it at its
        previous call, so they stop one step later.
        """
        if self.rank.world == 1:
            return requested
        stopping = False
        if self._exchange:
            work, flags = self._exchange
            work.wait()
            stopping = bool(flags)
        flags = torch.tensor([requested], dtype=torch.int32)
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True)
        self._exchange = work, flags
        return stopping


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
