"""Make shards as a Ray job: run a bounded number of shard chains at once.

Memory does not grow with the dataset, because the number of shards in flight is bounded. A shard
that fails leaves nothing behind and does not stop the others; the next build makes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from functools import partial
from typing import Any

from ray.exceptions import LocalRayletDiedError

from manifests.receipt import Receipt
from manifests.wording import pluralise
from pipeline.config import BuildSettings
from pipeline.execution.build_monitor import BuildMonitor
from pipeline.execution.shard_chain import ShardChain
from pipeline.execution.shard_task import shard_task, task_from_source
from pipeline.execution.tracker_pool import TrackerPool
from pipeline.failures import MachineError
from pipeline.planning.plan import Plan, PlannedShard
from pipeline.ray_cluster import cause_of, connect, resources
from shards.errors import PretrackError, first_line
from shards.files import is_permanent_error

_POLL_S = 1.0
"""How often the tracker pool is resized and the state reported while no shard is done."""


def make_shards(
    todo: list[PlannedShard], plan: Plan, settings: BuildSettings, monitor: BuildMonitor
) -> dict[str, str]:
    """Make the shards `todo` of a plan; return their names by their groups.

    Raises PretrackError at the end if a shard failed, at once if the disk is full or read-only or
    if no tracker can be loaded.
    """
    connect(settings.ray)
    return _run(_make_shards(todo, plan, settings, monitor))


def _run(making: Coroutine[Any, Any, dict[str, str]]) -> dict[str, str]:
    """Run a coroutine to its end, even if this thread has an event loop (in a notebook)."""
    if not _in_event_loop():
        return asyncio.run(making)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, making).result()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _make_shards(
    todo: list[PlannedShard], plan: Plan, settings: BuildSettings, monitor: BuildMonitor
) -> dict[str, str]:
    """Run the chains and report the outcome of each shard.

    If a shard fails, the others go on, and the build fails once they are made. An error that every
    shard would hit ends the build at once.
    """
    clips = sum(shard.count for shard in todo)
    made: dict[str, str] = {}
    failed: dict[str, str] = {}
    # Every error passes through `monitor.running`, which reports how the build ended.
    with (
        closing(TrackerPool(settings, monitor)) as pool,
        monitor.running(
            shards=len(todo),
            clips=clips,
            kept_shards=len(plan.shards) - len(todo),
            tracker_gpus=settings.ray.tracker_gpus,
        ),
    ):
        with monitor.progress_task(clips):
            async with aclosing(
                _run_chains(todo, plan, settings, pool=pool, monitor=monitor)
            ) as results:
                async for shard, result in results:
                    if isinstance(result, Receipt):
                        monitor.shard_made(shard, result)
                        made[shard.group] = result.shard.shard
                    else:  # one shard failed: the others go on, unless they would fail as well
                        monitor.shard_failed(shard, result)
                        failed[shard.group] = first_line(result)
                        _raise_if_permanent(result, settings)
        if failed:
            raise _shards_failed(failed, len(todo))
    return made


async def _run_chains(
    todo: list[PlannedShard],
    plan: Plan,
    settings: BuildSettings,
    *,
    pool: TrackerPool,
    monitor: BuildMonitor,
) -> AsyncGenerator[tuple[PlannedShard, Receipt | Exception]]:
    """Yield every shard with its receipt or its error, as the chains complete."""
    waiting = iter(todo)
    in_flight: dict[asyncio.Task[Receipt], PlannedShard] = {}
    try:
        while True:
            pool.resize()
            # Enough shards that trackers and decoding cores never wait for each other, and few
            # enough to bound the memory of frames in flight.
            limit = pool.size + max(2, resources().cpus // 2)
            while len(in_flight) < limit and (shard := next(waiting, None)):
                chain = ShardChain(
                    shard_task(shard, plan, settings),
                    partial(task_from_source, shard, plan, settings),
                    pool,
                    monitor,
                )
                in_flight[asyncio.create_task(chain.run())] = shard
            monitor.shards_in_flight(len(in_flight), pool.usage)
            if not in_flight:
                return
            done, _ = await asyncio.wait(
                in_flight, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                shard, error = in_flight.pop(task), task.exception()
                if error is None:
                    yield shard, task.result()
                elif isinstance(error, Exception):
                    yield shard, cause_of(error)
                else:  # an interrupt
                    raise error
    finally:
        for task in in_flight:
            task.cancel()


def _raise_if_permanent(error: Exception, settings: BuildSettings) -> None:
    """Raise PretrackError if all other shards would fail too: full disk, no GPU, Ray has ended."""
    if isinstance(error, LocalRayletDiedError):
        raise PretrackError(
            f"Ray on this machine has ended ({first_line(error)}), most often because one of its "
            "processes was killed for lack of memory: run the same build again, what is done is "
            "kept"
        ) from error
    if isinstance(error, MachineError):
        raise error
    if isinstance(error, OSError) and is_permanent_error(error):
        raise PretrackError(
            f"a shard could not be written to {settings.out} ({error.strerror}): free some space "
            "and run the same build again; finished shards are kept"
        ) from error


def _shards_failed(failed: dict[str, str], shards: int) -> PretrackError:
    group, reason = next(iter(failed.items()))
    return PretrackError(
        f"{len(failed)} of {pluralise(shards, 'shard')} could not be made, the first being {group} "
        f"({reason}); the others are kept, no snapshot was published: run the same build again to "
        "retry"
    )
