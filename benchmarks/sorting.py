"""The sorting loss beside diffsort's: `python -m benchmarks.sorting [--large] [--device cuda]` (needs the `dev` extra).

3DPoV's loss of rows of 64 similarities (bitonic network, steepness 20 and 3), forward and backward, gradients by both sides: with
`diffsort`, with our plain layers, and with the one operator. They take turns; a ratio is the median over rounds of diffsort's time
through the other's in the same round. Memory is what autograd keeps between forward and backward, every storage once. `--large`
adds 131,072 rows; what keeps every layer (94 GB, diffsort) then gets 2,048 of them at a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from diffsort import DiffSortNet
from torch import Tensor

from trainer.losses.sorting.cross_entropy import sorting_cross_entropy
from trainer.losses.sorting.network import soft_permutation

N, ROUNDS, PART = 64, 5, 2048
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    """Mean over items of -sum over positions of p log(q + 1e-6): twice [rows, n, n] → [rows]."""
    return -(p * (q + 1e-6).log()).sum(dim=-1).mean(dim=-1)


def losses(device: str) -> dict[str, Loss]:
    """The same loss three times: rows x, y [rows, 64] → [rows]."""
    hard, soft = (
        DiffSortNet("bitonic", N, steepness=steepness, device=device) for steepness in (20.0, 3.0)
    )
    return {
        "diffsort": lambda x, y: cross_entropy(hard(x)[1], soft(y)[1]),
        "plain layers": lambda x, y: cross_entropy(
            soft_permutation(x, "bitonic", 20.0), soft_permutation(y, "bitonic", 3.0)
        ),
        "one operator": sorting_cross_entropy,
    }


def seconds(loss: Loss, x: Tensor, y: Tensor, part: int) -> float:
    """Of forward and backward, `part` rows at a time."""
    start = time.perf_counter()
    for rows in zip(x.split(part), y.split(part), strict=True):
        leaves = [values.detach().requires_grad_() for values in rows]
        torch.autograd.grad(loss(*leaves).sum(), leaves)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def saved_bytes(loss: Loss, x: Tensor, y: Tensor) -> int:
    """What autograd keeps of a loss until backward."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss(x.requires_grad_(), y.requires_grad_())
    assert result.requires_grad
    return sum(storages.values())


def compare(rows: int, device: str) -> None:
    """Prints a table of one number of rows."""
    x, y = 0.1 * torch.randn(2, rows, N, device=device)
    ways = losses(device)
    parts = {name: rows if name == "one operator" else min(rows, PART) for name in ways}
    for name, loss in ways.items():
        seconds(loss, x[:64], y[:64], 64)
        seconds(loss, x, y, parts[name])
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, loss in ways.items():
            times[name].append(seconds(loss, x, y, parts[name]))
    kept = {
        name: saved_bytes(loss, x[:256].clone(), y[:256].clone()) / 256
        for name, loss in ways.items()
    }
    print(
        f"\n| {rows:,} rows | ms | diffsort's time through this (range) | kept for backward, bytes a row | of diffsort's |"
    )
    print("|---|---|---|---|---|")
    for name in ways:
        ratios = sorted(a / b for a, b in zip(times["diffsort"], times[name], strict=True))
        part = kept[name] / kept["diffsort"]
        print(
            f"| {name} | {1e3 * median(times[name]):.1f} | {median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) "
            f"| {kept[name]:,.0f} | {f'{part:.2g}' if part >= 1 else f'1/{1 / part:.0f}'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="131,072 rows, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    for rows in (2048, 131_072) if arguments.large else (2048,):
        compare(rows, arguments.device)


if __name__ == "__main__":
    main()
