"""The processes that train together: who this one is, and what they do in step."""

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
    """This process among those that train together."""

    number: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.number == 0


@contextmanager
def init_distributed(wanted: Literal["auto", "cpu", "cuda"]) -> Iterator[Rank]:
    """This process's rank, as torchrun's environment says; joins and leaves the others where there are any."""
    number, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if wanted == "cuda" and not torch.cuda.is_available():
        raise PretrackError("'run.device: cuda' was asked for, and torch sees no CUDA device here")
    cuda = wanted != "cpu" and torch.cuda.is_available()
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if cuda
        else torch.device("cpu")
    )
    deterministic = torch.are_deterministic_algorithms_enabled()
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.use_deterministic_algorithms(
            True
        )  # costs little on a CPU, where adding up gradients is otherwise a race of threads
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Rank(number, world, device)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        if world > 1:
            dist.destroy_process_group()


def all_reduce_mean(values: Tensor, rank: Rank) -> list[float]:
    """The means of some values [n] over all ranks; every rank must call this, and learns the same."""
    values = values.to(rank.device, copy=True)
    if rank.world > 1:
        dist.all_reduce(values)
    return [value / rank.world for value in values.tolist()]


def broadcast_from_rank0(make: Callable[[], T], rank: Rank) -> T:
    """What the first rank makes, in every rank, each of which must call this; so is the PretrackError that it raises instead."""
    made: list[Any] = [None]
    if rank.first:
        try:
            made = [make()]
        except PretrackError as error:
            made = [error]
    if rank.world > 1:
        dist.broadcast_object_list(made, device=rank.device)
    if isinstance(made[0], PretrackError):
        raise made[0]
    return made[0]  # type: ignore[no-any-return]


def all_reduce_any(flags: Tensor, rank: Rank) -> list[bool]:
    """For each of some flags [n], whether any rank's is set; every rank must call this, and learns the same."""
    flags = flags.to(rank.device, torch.int32)
    if rank.world > 1:
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def all_gather(values: Tensor) -> Tensor:
    """Tensors of the same shape [n, ...] from all ranks, one after the other: [world * n, ...]. Gradients find their way back."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    all_gather: Tensor = _Gathered.apply(values.contiguous())
    return all_gather


def all_reduce_sum(sums: Tensor) -> Tensor:
    """Adds up a tensor of every rank, in place; alone it is returned as it is."""
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums


class _Gathered(torch.autograd.Function):
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
