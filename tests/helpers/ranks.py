"""What torchrun tells a rank, for tests that start two ranks themselves.

torchrun is a third process that imports torch.
"""

from __future__ import annotations


def environment_of_rank(rank: int, port: int) -> dict[str, str]:
    """Return the environment of one of two ranks on this machine, with one thread each."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
