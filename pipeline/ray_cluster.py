"""Ray, as little of it as is needed: connecting, a bounded number of tasks in flight, and a decoder process a worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import ray

from pipeline.config import RaySettings
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from shards.errors import PretrackError

T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """What there is to work with."""

    cpus: int
    gpus: int


def connect(settings: RaySettings) -> Cluster:
    """Joins the cluster at `settings.address`, or starts Ray on this machine; does nothing if that was done before.

    Raises PretrackError if no cluster answers at the address, or Ray does not start.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault(
            "RAY_IGNORE_UNHANDLED_ERRORS", "1"
        )  # errors are looked at in their order
        options: dict[str, Any] = {
            "address": "local",
            "logging_level": logging.ERROR,
            "log_to_driver": True,
            "include_dashboard": False,
        }
        if settings.address:
            options = {"logging_level": logging.ERROR, "address": settings.address}
        elif settings.cpus:
            options["num_cpus"] = settings.cpus
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises just that where it starts too slowly
            where = (
                f"no Ray cluster answers at ray.address '{settings.address}'"
                if settings.address
                else "Ray did not start here"
            )
            raise PretrackError(f"{where} ({' '.join(str(error).split())})") from error
    return resources()


def resources() -> Cluster:
    """What the cluster has now: nodes come and go."""
    found = ray.cluster_resources()
    return Cluster(int(found.get("CPU", 0)), int(found.get("GPU", 0)))


def ray_task(function: Callable[..., Any]) -> Any:
    """A function as a Ray task of one core, tried again if its worker or node dies."""
    return ray.remote(num_cpus=1, max_retries=3)(function)


def bounded(submissions: Iterable[Callable[[], Any]], limit: int) -> Iterator[Any]:
    """Submits tasks while no more than `limit` are in flight, and yields their results as they come. Their errors are raised."""
    waiting: list[Any] = []
    for submit in submissions:
        if len(waiting) >= limit:
            done, waiting = ray.wait(waiting, num_returns=1)
            yield from ray.get(done)
        waiting.append(submit())
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        yield from ray.get(done)


@cache
def worker_decoder(stall_limit_s: float) -> SubprocessDecoder:
    """This worker's decoder process; it lives on from task to task, and dies with the worker."""
    return SubprocessDecoder(stall_limit_s)
