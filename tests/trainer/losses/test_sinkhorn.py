"""Sinkhorn's iterations balance prototypes, also over several processes."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from trainer.losses.clusters import sinkhorn

WIDTH = 6


def scores_of(points: int, prototypes: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    a, b = (
        normalize(torch.randn(n, WIDTH, generator=generator, dtype=torch.float64), dim=-1)
        for n in (points, prototypes)
    )
    return a @ b.T


def test_sinkhorn_gives_points_mass_one_and_prototypes_equal_mass() -> None:
    counted = torch.arange(60) % 3 > 0
    mass = sinkhorn(scores_of(60, 8), counted, 0.06, 2000)
    torch.testing.assert_close(mass.sum(dim=1), counted.double())
    torch.testing.assert_close(
        mass.sum(dim=0), torch.full((8,), 40 / 8, dtype=torch.float64), rtol=1e-4, atol=0
    )
    few = sinkhorn(scores_of(60, 8), counted, 0.06, 3)
    torch.testing.assert_close(few.sum(dim=1), counted.double())
    assert (few.sum(dim=0) - 5).abs().max() < 2


def test_sinkhorn_stays_finite_at_its_smallest_epsilon() -> None:
    mass = sinkhorn(
        torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, -1.0]]),
        torch.tensor([True, True, False]),
        0.025,
        3,
    )
    torch.testing.assert_close(mass.sum(dim=1), torch.tensor([1.0, 1.0, 0.0]))


def sinkhorn_of_rank(rank: int, meet: Path, part: slice) -> Tensor:
    """Run Sinkhorn on one of two processes, with its part of 40 points."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meet}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        return sinkhorn(scores_of(40, 8)[part], (torch.arange(40) % 4 > 0)[part], 0.06, 3)
    finally:
        dist.destroy_process_group()


def sinkhorn_of_second_rank(meet: Path, path: Path) -> None:
    torch.save(sinkhorn_of_rank(1, meet, slice(17, None)), path)


@pytest.mark.slow
def test_sinkhorn_of_two_processes_equals_one(tmp_path: Path) -> None:
    second = multiprocessing.get_context("spawn").Process(
        target=sinkhorn_of_second_rank, args=(tmp_path / "meet", tmp_path / "rest.pt")
    )
    second.start()
    first = sinkhorn_of_rank(0, tmp_path / "meet", slice(17))
    second.join(120)
    together = torch.cat([first, torch.load(tmp_path / "rest.pt")])
    torch.testing.assert_close(
        together, sinkhorn(scores_of(40, 8), torch.arange(40) % 4 > 0, 0.06, 3), rtol=1e-12, atol=0
    )
