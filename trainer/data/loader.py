"""Reads a rank's batches, in workers if it has any, and keeps the place reached."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from shards.errors import PretrackError
from trainer.data.batch import PackedBatch, Sample, empty_memory
from trainer.data.dataset import ClipDataset
from trainer.data.sampler import ClipSampler, Item

logger = logging.getLogger(__name__)

AHEAD = 4
"""Batches that a worker reads ahead of those handed out."""
SECONDS_TO_STOP = 30
"""How long a worker that was sent SIGTERM goes on, for a run that means to finish its step: as long as Slurm waits by default."""


class Loader:
    """Batches of a rank, without end, read by `workers` processes (0: by this one), and the place reached in them.

    Iterating goes on from that place, with the same workers; so does another loader that was given its `state_dict()`, whatever its
    number of workers and ranks. `skipped` counts the clips that were left out because they could not be read. With `pin` batches
    lie in pinned memory where there is a CUDA device. Raises PretrackError where shared memory has no room for the workers.
    """

    def __init__(
        self, dataset: ClipDataset, order: ClipSampler, workers: int = 0, pin: bool = False
    ) -> None:
        self.dataset, self.order, self.step, self.skipped = dataset, order, order.start, 0
        self._pin = pin and torch.cuda.is_available()
        self._slots = (
            _shared(workers, dataset.memory_of(order.batch_size // order.world))
            if workers
            else None
        )
        self._loader: DataLoader[PackedBatch | _Shared] = DataLoader(
            _Batches(dataset, self._slots),
            batch_sampler=order,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=partial(begin_worker, dict(os.environ)),
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context=clean_processes() if workers and dataset.remote else None,
        )
        end_with_process(self._loader)
        # while all of it is there: torch waits long for workers that the collector of cycles takes apart
        weakref.finalize(self, end_workers, self._loader).atexit = False

    def __iter__(self) -> Iterator[Sample]:
        """Raises ShardError for a clip that cannot be read."""
        self.order.start = self.step
        try:
            for read in self._loader:
                self.step += 1
                batch = self._taken(read).sample(self.dataset.settings)
                self._report(batch)
                yield batch
        except PretrackError as error:
            raise unwrapped(error) from error

    def _taken(self, read: PackedBatch | _Shared) -> PackedBatch:
        """A batch in memory that is the receiver's: a worker's own goes round."""
        if isinstance(read, PackedBatch):
            return (
                PackedBatch(read.memory.pin_memory(), read.shape, read.keys, read.left_out)
                if self._pin
                else read
            )
        assert self._slots is not None
        shared = self._slots[read.worker, read.slot, : read.size]
        memory = (
            torch.empty(read.size, dtype=torch.uint8, pin_memory=True)
            if self._pin
            else empty_memory(read.size)
        )
        return PackedBatch(memory.copy_(shared), read.shape, read.keys, read.left_out)

    def state_dict(self) -> dict[str, Any]:
        """The place reached: how many batches were handed out since the beginning, to every rank, and what they are made of."""
        return {
            "step": self.step,
            "batch_size": self.order.batch_size,
            "seed": self.order.seed,
            "clips": self.dataset.identity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a place. Raises PretrackError if it is one among other batches. Iterate anew afterwards."""
        ours = self.state_dict()
        if changed := [
            name for name in ("batch_size", "seed", "clips") if ours[name] != state.get(name)
        ]:
            raise PretrackError(
                f"this place was reached among other batches ({', '.join(changed)} differ)"
            )
        self.step = int(state["step"])

    def _report(self, batch: Sample) -> None:
        for sentence in batch.pop("left_out", ()):
            self.skipped += 1
            logger.warning("left out (%d so far): %s", self.skipped, sentence)


@dataclass(frozen=True)
class _Shared:
    """A batch that lies in shared memory."""

    worker: int
    slot: int
    size: int
    shape: tuple[int, int, int, int]
    keys: list[str]
    left_out: list[list[str]]


def _shared(workers: int, size: int) -> Tensor:
    """Memory for all batches of up to `size` bytes that workers have in their hands: [workers, AHEAD + 1, size or a bit more].

    A worker goes round in its part, and what it has read is copied out: the system takes far longer to find and clear memory
    for each batch anew. Torch asks a worker for at most AHEAD batches beyond the one that is being copied, so AHEAD + 1
    slots are enough. Raises PretrackError where there is no room.
    """
    size = -(-size // 64) * 64  # so that numbers in it lie where numbers may
    count = workers * (AHEAD + 1) * size
    try:
        storage = torch.UntypedStorage._new_shared(count)
    except RuntimeError as error:
        raise PretrackError(
            f"shared memory has no room for the {count / 1e6:.0f} MB in which {workers} workers hand over batches of "
            f"{size / 1e6:.1f} MB: give it more ('docker run --shm-size', or /dev/shm), or take fewer workers or smaller batches"
        ) from error
    memory = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[call-overload]
    return memory.view(workers, AHEAD + 1, size)


class _Batches(Dataset["PackedBatch | _Shared"]):
    """A dataset that gives torch's loader whole batches, in a worker by way of the memory that it shares."""

    def __init__(self, dataset: ClipDataset, slots: Tensor | None) -> None:
        self.dataset, self.slots, self.asked = dataset, slots, 0

    def __getitems__(self, items: list[Item]) -> PackedBatch | _Shared:
        worker = get_worker_info()
        if worker is None or self.slots is None:
            return self.dataset.decode(items)
        slot = self.asked % (AHEAD + 1)
        self.asked += 1
        batch = self.dataset.decode(items, self.slots[worker.id, slot])
        return _Shared(
            worker.id, slot, batch.memory.numel(), batch.shape, batch.keys, batch.left_out
        )


def end_with_process(loader: DataLoader[Any]) -> None:
    """Lets a loader's workers go when this process ends: the SIGTERM that Python sends them then, they would put off."""
    watched = weakref.ref(loader)
    atexit.register(lambda: end_workers(watched()))


def end_workers(loader: DataLoader[Any] | None) -> None:
    """Ends a loader's workers, if it is there and has any."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


def _as_it_is(batch: Any) -> Any:
    return batch


def unwrapped(error: PretrackError) -> PretrackError:
    """An error as it was raised: from a worker it comes wrapped in that worker's traceback, whose last line is the sentence."""
    kind = type(error)
    return kind(
        str(error).strip().splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")
    )


def clean_processes() -> BaseContext:
    """Where workers come from that read a store, whose threads do not survive a fork of this process: forks of one that has none.

    They share the memory of what that one has imported; workers that start from nothing take 360 MB each.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["trainer.data.forkserver"])
    return context


def begin_worker(environment: dict[str, str], worker: int) -> None:
    """Makes a worker ready. Its environment may be that of an earlier loader, with other credentials."""
    gc.freeze()  # what the process that it was forked from has thrown away is not to be taken apart here a second time
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_STOP))  # which ends it
    cv2.setNumThreads(0)
