"""Compare the sorting losses with reference implementations: `python -m benchmarks.exactness`.

Prints the largest differences of values and gradients: our networks from `diffsort`, our soft ranks
from `torchsort`. Gradients are those of a random linear function of the result, and their
differences are relative to the largest gradient. The whole published loss is compared with a plain
transcription of its formula in tests/trainer/losses/sorting/test_objective.py. Needs the `dev`
extra.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import get_args

import torch
from torch import Tensor

from benchmarks.command_line import make_parser
from trainer.losses.sorting.cross_entropy import sorting_cross_entropy
from trainer.losses.sorting.network import Distribution, Network, soft_permutation
from trainer.losses.sorting.soft_rank import has_torchsort, soft_rank_torch, standardised

ROWS = 64


def largest_differences(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[float, float]:
    """Return the largest differences of values and of gradients of two functions of rows [R, n]."""
    x = x.requires_grad_()
    results = ours(x), theirs(x)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(results[0].shape, dtype=results[0].dtype, generator=generator)
    gradients = [torch.autograd.grad((result * weights).sum(), x)[0] for result in results]
    values = (results[0] - results[1]).abs().max().item()
    return values, ((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()).item()


def rows(n: int, dtype: torch.dtype) -> Tensor:
    """Make similarities [ROWS, n] with the spread that they have in training."""
    return (
        torch.randn(ROWS, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * 0.2
    ).to(dtype)


def print_operator() -> None:
    """Print how far the fused loss is from diffsort's, with gradients for both sides.

    Rows of both sides are concatenated: [ROWS, 2 n].
    """
    from diffsort import DiffSortNet

    def theirs(both: Tensor, hard: DiffSortNet, soft: DiffSortNet) -> Tensor:
        x, y = both.chunk(2, dim=1)
        return -(hard(x)[1] * (soft(y)[1] + 1e-6).log()).sum(dim=-1).mean(dim=-1)

    def ours(both: Tensor, network: Network, distribution: Distribution) -> Tensor:
        x, y = both.chunk(2, dim=1)
        return sorting_cross_entropy(x, y, network, 20.0, 3.0, distribution)

    heads = ["network", "n", "relaxation"]
    heads += ["float64: values, gradients", "float32: values, gradients"]
    print(f"\nthe loss as a fused operator\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for network, n, distribution in product(
        get_args(Network), (8, 49, 64, 100), get_args(Distribution)
    ):
        hard, soft = (
            DiffSortNet(network, n, steepness=steepness, distribution=distribution)
            for steepness in (20.0, 3.0)
        )
        fused = partial(ours, network=network, distribution=distribution)
        reference = partial(theirs, hard=hard, soft=soft)
        cells = [
            "{:.0e}, {:.0e}".format(*largest_differences(fused, reference, rows(2 * n, dtype)))
            for dtype in (torch.float64, torch.float32)
        ]
        print(f"| {network} | {n} | {distribution} | {' | '.join(cells)} |")


def main() -> None:
    """Print the tables."""
    from diffsort import DiffSortNet

    print("largest differences (values, gradients)   float64             float32")
    for network in get_args(Network):
        for n in (8, 49, 64, 100):
            for steepness in (3.0, 20.0):
                ours = partial(soft_permutation, network=network, steepness=steepness)
                net = DiffSortNet(network, n, steepness=steepness)
                cells = [
                    "{:.1e}, {:.1e}".format(
                        *largest_differences(
                            ours,
                            lambda x, net=net: net(x)[1],  # type: ignore[misc]
                            rows(n, dtype),
                        )
                    )
                    for dtype in (torch.float64, torch.float32)
                ]
                print(f"{network:<10} n={n:<4} steepness={steepness:<14g}{'   '.join(cells)}")
    print_operator()
    if not has_torchsort("cpu"):
        print("torchsort is not installed: soft ranks are not compared")
        return
    import torchsort

    for n in (49, 64):
        for strength in (1.0, 0.1, 0.03):
            ours, theirs = (
                partial(soft_rank_torch, strength=strength),
                partial(torchsort.soft_rank, regularization_strength=strength),
            )
            differences = largest_differences(ours, theirs, standardised(rows(n, torch.float64)))
            print(
                "{:<10} n={:<4} strength={:<15g}{:.1e}, {:.1e}".format(
                    "soft ranks", n, strength, *differences
                )
            )


if __name__ == "__main__":
    make_parser("exactness", __doc__).parse_args()
    main()
