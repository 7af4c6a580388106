"""Start the kernel: sizes, compile-time arguments and memory for the rows of two sides.

It computes what `trainer.losses.sorting.cross_entropy` defines, the only module that imports this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from trainer.losses.sorting.cross_entropy_kernel.rows import compute_rows
from trainer.losses.sorting.network import Network, Sort

MOST_WIRES = 128
"""Widest network: with each doubling, a row takes about five times the instructions."""
PROGRAMS_PER_SM = 8
"""As many warps as the registers of a multiprocessor hold at 255 each."""
BITONIC_TILE, ODD_EVEN_TILE = 128, 32
"""Numbers in each tensor of a state: four per lane, or one where every layer is stored."""
OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
"""How the kernel is compiled."""


def cross_entropy_rows(
    x: Tensor, y: Tensor, sorts: tuple[Sort, Sort], epsilon: float, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the same as `trainer.losses.sorting.cross_entropy.cross_entropy_rows` on a GPU.

    x, y: float32 [rows, n], at least one row; one may have a fraction of the other's rows, which it
    then repeats. Raises ValueError if the network has too many wires.
    """
    n, rows = x.shape[1], max(len(x), len(y))
    size = KernelSize.of(sorts[0].network, n)
    layers = _layer_table(sorts[0].network, n, x.device)
    values = x.new_empty(rows)
    gradients = [x.new_empty(rows, n) if want else None for want in wanted]
    programs = min(rows, _programs(x.device))
    scratch = x.new_empty(programs, size.scratch)
    with torch.cuda.device_of(x):
        compute_rows[(programs,)](
            x.contiguous(), y.contiguous(), values,
            *(values if gradient is None else gradient for gradient in gradients),
            scratch, layers, rows, len(x), len(y), n, size.layers,
            int(sorts[0].distribution == "cauchy"), 0 if wanted[0] else 1, 2 if wanted[1] else 1,
            *(float(sort.steepness) for sort in sorts), float(epsilon),
            **size.constants(), **OPTIONS,
        )  # fmt: skip
    return values, gradients[0], gradients[1]


@dataclass(frozen=True)
class KernelSize:
    """Sizes of a kernel: one is compiled for each network and number of wires."""

    network: Network
    wires: int
    """A power of two."""
    layers: int
    run: int
    """Wires whose states are in one lane's registers."""
    items: int
    """Items of a row per pass."""

    @classmethod
    def of(cls, network: Network, n: int) -> KernelSize:
        """Return the sizes for rows of n. Raises ValueError if there are more than MOST_WIRES."""
        wires = max(2, 1 << (n - 1).bit_length())
        if wires > MOST_WIRES:
            raise ValueError(f"rows of {n} numbers are too long: the kernel sorts {MOST_WIRES}")
        # Half as many registers compile in half the time: 128 wires take 12 s then.
        run = 8 if network == "bitonic" and wires > 64 else min(16, wires)
        if network == "odd_even":
            return cls(network, wires, n, run, min(wires, ODD_EVEN_TILE * run // wires))
        depth = wires.bit_length() - 1
        items = min(wires, 32, BITONIC_TILE * run // wires)
        return cls(network, wires, depth * (depth + 1) // 2, run, items)

    @property
    def room(self) -> int:
        """Most layers of a network of as many wires."""
        return self.wires if self.network == "odd_even" else self.layers

    @property
    def scratch(self) -> int:
        """Numbers that a program stores in global memory."""
        state = self.wires * self.items
        saved = (
            state * self.room // 2 if self.network == "odd_even" else state - self.run * self.items
        )
        return 6 * self.room * self.wires + 2 * saved + 2 * state

    def constants(self) -> dict[str, int | bool]:
        """Return the kernel's compile-time arguments."""
        return {
            "BITONIC": self.network == "bitonic",
            "WIRES": self.wires,
            "RUN": self.run,
            "ITEMS": self.items,
            "ROOM": self.room,
            "SCRATCH": self.scratch,
        }


@lru_cache(maxsize=16)
def _layer_table(network: Network, n: int, device: torch.device) -> Tensor:
    """Return the layers [layers, 3] as `values._wiring` takes them.

    Per layer: an offset of the wires' numbers, the distance of partners, and the bit of a wire's
    number that alternates the direction of sorting.
    """
    if network == "odd_even":
        rows = [(-(layer % 2), 1, 0) for layer in range(n)]
    else:
        depth = max(1, (n - 1).bit_length())
        rows = [(0, 1 << k, 2 << block) for block in range(depth) for k in range(block, -1, -1)]
    # One layer more, without comparators.
    return torch.tensor([*rows, (0, 0, 0)], dtype=torch.int32, device=device)


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_PER_SM
