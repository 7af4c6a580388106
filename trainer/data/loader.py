"""Infinite, resumable loading of one rank's batches, in this process or in workers."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import re
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
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
from trainer.data.batch import Batch
from trainer.data.dataset import ClipDataset
from trainer.data.packed_batch import BatchShape, PackedBatch, empty_memory
from trainer.data.sampler import ClipSampler, SampleIndex

logger = logging.getLogger(__name__)

PREFETCH = 4
"""Batches that each worker reads ahead (torch's `prefetch_factor`)."""
SLOTS = PREFETCH + 1
"""Shared-memory slots per worker: torch requests at most PREFETCH batches from a worker beyond the
one that is being copied out."""
_KILLED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?(killed by signal: [\w ]+|exited \w+)"
)
"""What torch says of a worker that was killed."""
SECONDS_TO_STOP = 30
"""Seconds that a worker goes on after SIGTERM, so that the run can finish its step: as long as
Slurm waits by default between SIGTERM and SIGKILL."""


class Loader:
    """Infinite iterator over the batches of one rank, read by `workers` processes (0: this one).

    Iterating again continues after the last batch, with the same workers. So does another loader
    after `load_state_dict`, with any number of workers and ranks.

    With `data.resize: device`, batches have crops: copy them to the device (`device_batches`), and
    make their frames there (`device_frames.make_frames`). With `data.decode: device`, they have
    JPEGs, which the same functions decode.

    skipped: clips so far that were replaced because they could not be read
    pin:     batches are in pinned memory where there is a CUDA device

    Raises PretrackError if shared memory is too small for the workers.
    """

    def __init__(
        self, dataset: ClipDataset, sampler: ClipSampler, workers: int = 0, pin: bool = False
    ) -> None:
        self.dataset, self.sampler = dataset, sampler
        self.step, self.skipped = sampler.start, 0
        self._pin = pin and torch.cuda.is_available()
        shape = dataset.batch_shape(sampler.batch_size // sampler.world)
        self._slots = shared_memory_slots(workers, shape.num_bytes) if workers else None
        self._loader: DataLoader[PackedBatch | _SharedBatch] = DataLoader(
            _Batches(dataset, self._slots),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_not_collated,
            worker_init_fn=partial(init_worker, dict(os.environ)),
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context=forkserver_context() if workers and dataset.remote else None,
        )
        shut_down_at_exit(self._loader)
        # Shut workers down while the torch loader is still whole: if the garbage collector of
        # cycles clears its parts first, torch waits for each worker until a timeout.
        weakref.finalize(self, shut_down_workers, self._loader).atexit = False

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from the current position on.

        Raises ShardError for a damaged clip, AccessError for one that cannot be read, and
        PretrackError if a worker was killed.
        """
        self.sampler.start = self.step
        try:
            with explain_killed_workers():
                for received in self._loader:
                    # Count before yielding, so that a saved position is that of the next batch.
                    self.step += 1
                    batch = self._copy_out(received).unpack(self.dataset.settings)
                    self._log_left_out(batch)
                    yield batch
        except PretrackError as error:
            raise unwrap_worker_error(error) from error

    def _copy_out(self, received: PackedBatch | _SharedBatch) -> PackedBatch:
        """Return a batch in memory of its own, so that the worker can reuse its slot."""
        if isinstance(received, PackedBatch):  # read by this process
            if not self._pin:
                return received
            return PackedBatch(
                received.memory.pin_memory(), received.shape, received.keys, received.left_out
            )
        assert self._slots is not None
        shape, size = received.shape, received.shape.num_bytes
        slot = self._slots[received.worker, received.slot, :size]
        # The copy frees the slot; pinned memory lets the copy to CUDA run asynchronously.
        memory = (
            torch.empty(size, dtype=torch.uint8, pin_memory=True)
            if self._pin
            else empty_memory(size)
        )
        batch = PackedBatch(memory, shape, received.keys, received.left_out)
        batch.copy_from(PackedBatch.empty(shape, slot))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position: global batches yielded so far, and what identifies their order."""
        return {
            "step": self.step,
            "batch_size": self.sampler.batch_size,
            "seed": self.sampler.seed,
            "clips": self.dataset.identity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to a saved position; iterate again afterwards.

        Raises PretrackError if it was saved with another batch size, seed or list of clips.
        """
        # A step names the same clips only if these three are the same.
        ours = self.state_dict()
        if changed := [
            name for name in ("batch_size", "seed", "clips") if ours[name] != state.get(name)
        ]:
            raise PretrackError(
                f"the saved position counts other batches ({', '.join(changed)} differ): resume "
                "with the settings and snapshots that it was saved with"
            )
        self.step = int(state["step"])

    def _log_left_out(self, batch: Batch) -> None:
        for sentence in batch.pop("left_out", ()):
            self.skipped += 1
            logger.warning("left out (%d so far): %s", self.skipped, sentence)


@dataclass(frozen=True)
class _SharedBatch:
    """A worker's message about a batch that it has written into one of its shared-memory slots."""

    worker: int
    slot: int
    shape: BatchShape
    keys: list[str]
    left_out: list[list[str]]


def shared_memory_slots(workers: int, size: int) -> Tensor:
    """Allocate shared memory for in-flight batches: uint8 [workers, SLOTS, size rounded up].

    Each worker uses its slots as a ring buffer, and the receiving process copies each batch out.
    Raises PretrackError if shared memory is too small.
    """
    # The ring is allocated once: the kernel takes far longer to find and clear new shared memory
    # for every batch. Slots start at multiples of 64 bytes, for the alignment of float32 views.
    size = -(-size // 64) * 64
    total = workers * SLOTS * size
    try:
        storage = torch.UntypedStorage._new_shared(total)
    except RuntimeError as error:
        raise PretrackError(
            f"shared memory has no room for {total / 1e6:.0f} MB: {workers} workers with {SLOTS} "
            f"batches of {size / 1e6:.1f} MB each. Enlarge it ('docker run --shm-size', or "
            "/dev/shm), or take fewer workers or smaller batches"
        ) from error
    memory = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[call-overload]
    return memory.view(workers, SLOTS, size)


class _Batches(Dataset["PackedBatch | _SharedBatch"]):
    """Dataset that gives torch's loader whole batches; workers put them into shared memory."""

    def __init__(self, dataset: ClipDataset, slots: Tensor | None) -> None:
        self.dataset, self.slots, self.batches_read = dataset, slots, 0

    def __getitems__(self, indices: list[SampleIndex]) -> PackedBatch | _SharedBatch:
        worker = get_worker_info()
        if worker is None or self.slots is None:
            return self.dataset.load(indices)
        # Count before reading, so that a batch that fails uses up its slot like any other.
        slot = self.batches_read % SLOTS
        self.batches_read += 1
        batch = self.dataset.load(indices, self.slots[worker.id, slot])
        return _SharedBatch(
            worker=worker.id,
            slot=slot,
            shape=batch.shape,
            keys=batch.keys,
            left_out=batch.left_out,
        )


def _not_collated(batch: Any) -> Any:
    """Return the batch unchanged: it is already collated (the loader's collate_fn)."""
    return batch


def shut_down_at_exit(loader: DataLoader[Any]) -> None:
    """Shut the loader's workers down when this process exits.

    Without it Python sends them SIGTERM at exit and waits, and they defer SIGTERM.
    """
    # A weak reference: the exit handler must not keep a loader alive that is no longer used.
    reference = weakref.ref(loader)
    atexit.register(lambda: shut_down_workers(reference()))


def shut_down_workers(loader: DataLoader[Any] | None) -> None:
    """Shut the workers of a loader down, if the loader still exists and has any."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


def unwrap_worker_error(error: PretrackError) -> PretrackError:
    """Return an error with its original message.

    torch replaces the message of an error from a worker by the worker's traceback. Its last line
    is the type and the message, which is one line for every PretrackError.
    """
    kind = type(error)
    return kind(
        str(error).strip().splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")
    )


@contextmanager
def explain_killed_workers() -> Iterator[None]:
    """Raise PretrackError instead of torch's RuntimeError where a worker process was killed.

    torch raises it in a signal handler, so at any point of the main thread.
    """
    try:
        yield
    except RuntimeError as error:
        if not (found := _KILLED.search(str(error))):
            raise
        raise PretrackError(
            f"a worker of the data loader (process {found[1]}) was lost ({found[2]}), most often "
            "for lack of memory: take fewer workers or smaller batches, and run the same command "
            "again"
        ) from error


def forkserver_context() -> BaseContext:
    """Return the context that starts workers which read an object store.

    The store's client runs threads, which do not survive a fork of this process. A fork server has
    no threads; workers forked from it share the memory of its imports, while spawned workers would
    take 360 MB each.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["trainer.data.forkserver"])
    return context


def init_worker(environment: dict[str, str], worker: int) -> None:
    """Set up a worker process (the loader's worker_init_fn)."""
    # Objects inherited from the parent process are never collected here: touching them would copy
    # their memory pages, and the parent's garbage would be finalised a second time.
    gc.freeze()
    # The fork server may have been started for an earlier loader, with other credentials.
    os.environ.update(environment)
    # Defer SIGTERM: SIGALRM ends the worker after this time.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_STOP))
    cv2.setNumThreads(0)  # workers are the parallelism
