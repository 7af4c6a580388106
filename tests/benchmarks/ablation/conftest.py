"""Leave later tests of the same process as if no experiment had run."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import forkserver

import pytest


@pytest.fixture(scope="package", autouse=True)
def no_fork_server_left() -> Iterator[None]:
    """Stop the fork server that runs of an experiment share.

    A process has one, and it preloads other modules than the trainer's workers need.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # the runner sets it if nobody has
        yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
