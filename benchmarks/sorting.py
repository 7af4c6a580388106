"""Time our sorting loss and diffsort's: `python -m benchmarks.sorting [--large] [--device cuda]`.

Computes 3DPoV's loss of rows of 64 similarities (bitonic network, steepness 20 and 3), forward and
backward, with gradients for both sides: by `diffsort`, by our plain layers, and by the fused
operator. They take turns; a ratio is the median over rounds of diffsort's time divided by the
other's time in the same round. Memory is what autograd keeps between forward and backward, each
storage counted once. `--large` adds 131,072 rows; implementations that keep every layer (94 GB for
diffsort) then get 2,048 rows at a time. Needs the `dev` extra.
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

SIMILARITIES, ROUNDS, MAX_ROWS = 64, 5, 2048
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    """Return the mean over items of -sum over positions of p log(q + 1e-6).

    p and q are permutation matrices [rows, n, n]; the result is [rows].
    """
    return -(p * (q + 1e-6).log()).sum(dim=-1).mean(dim=-1)


def losses(device: str) -> dict[str, Loss]:
    """Return the same loss in three implementations: x, y [rows, 64] → [rows]."""
    hard, soft = (
        DiffSortNet("bitonic", SIMILARITIES, steepness=steepness, device=device)
        for steepness in (20.0, 3.0)
    )
    return {
        "diffsort": lambda x, y: cross_entropy(hard(x)[1], soft(y)[1]),
        "plain layers": lambda x, y: cross_entropy(
            soft_permutation(x, "bitonic", 20.0), soft_permutation(y, "bitonic", 3.0)
        ),
        "fused operator": sorting_cross_entropy,
    }


def seconds(loss: Loss, x: Tensor, y: Tensor, rows_at_once: int) -> float:
    """Time forward and backward."""
    started = time.perf_counter()
    for rows in zip(x.split(rows_at_once), y.split(rows_at_once), strict=True):
        leaves = [values.detach().requires_grad_() for values in rows]
        torch.autograd.grad(loss(*leaves).sum(), leaves)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def saved_bytes(loss: Loss, x: Tensor, y: Tensor) -> int:
    """Return the bytes that autograd keeps of a loss until backward."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss(x.requires_grad_(), y.requires_grad_())
    assert result.requires_grad
    return sum(storages.values())


def compare(rows: int, device: str) -> None:
    """Print the table for a number of rows."""
    x, y = 0.1 * torch.randn(2, rows, SIMILARITIES, device=device)
    compared = losses(device)
    rows_at_once = {
        name: rows if name == "fused operator" else min(rows, MAX_ROWS) for name in compared
    }
    # Warm up.
    for name, loss in compared.items():
        seconds(loss, x[:64], y[:64], 64)
        seconds(loss, x, y, rows_at_once[name])
    times: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(ROUNDS):
        for name, loss in compared.items():
            times[name].append(seconds(loss, x, y, rows_at_once[name]))
    kept = {
        name: saved_bytes(loss, x[:256].clone(), y[:256].clone()) / 256
        for name, loss in compared.items()
    }
    heads = [f"{rows:,} rows", "ms", "speed-up over diffsort (range)"]
    heads += ["bytes per row kept for backward", "of diffsort's bytes"]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name in compared:
        ratios = sorted(a / b for a, b in zip(times["diffsort"], times[name], strict=True))
        share = kept[name] / kept["diffsort"]
        speed_up = f"{median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        shown_share = f"{share:.2g}" if share >= 1 else f"1/{1 / share:.0f}"
        figures = [f"{1e3 * median(times[name]):.1f}", speed_up, f"{kept[name]:,.0f}", shown_share]
        print(f"| {name} | {' | '.join(figures)} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="also measure 131,072 rows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    for rows in (2048, 131_072) if arguments.large else (2048,):
        compare(rows, arguments.device)


if __name__ == "__main__":
    main()
