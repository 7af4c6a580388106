"""Use Ray: connect, limit the number of tasks in flight, keep one decoder per worker."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayTaskError

from pipeline.config import RaySettings
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from shards.errors import PretrackError

T = TypeVar("T")

_KILLED = (
    "pretrack: Ray on this machine, or this build, was killed, most often for lack of memory "
    "(dmesg names the process). What is finished is kept; the same command continues from there."
)
_ANSWER_S = 4.0
_CLIENT_PORT = 10001
_EMPTY_SETTINGS = bytes.fromhex("000000 04 00 00000000")
"""A frame of HTTP/2: length, type SETTINGS, flags, stream."""


@dataclass(frozen=True)
class Cluster:
    """What the cluster offers: CPU cores and GPUs, over all its nodes."""

    cpus: int
    gpus: int


def connect(settings: RaySettings) -> Cluster:
    """Connect to the cluster at `settings.address`, or start Ray on this machine.

    Does nothing if this process is connected already. Returns what the cluster offers. Raises
    PretrackError if no cluster answers at the address or Ray does not start, and if workers of this
    machine would not find pretrack's packages.
    """
    if not ray.is_initialized():
        # Otherwise Ray empties CUDA_VISIBLE_DEVICES for workers that reserve no GPU (num_gpus=0).
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # The build handles every task's error in turn; until then Ray would print it as unhandled.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        options: dict[str, Any] = {
            "address": "local",
            "logging_level": logging.ERROR,
            "log_to_driver": True,
            "include_dashboard": False,
        }
        if settings.address:
            _check_address(settings.address)
            options = {"logging_level": logging.ERROR, "address": settings.address}
        else:
            _check_current_folder()
            if settings.cpus:
                options["num_cpus"] = settings.cpus
        watcher = _watch_for_death()
        try:
            ray.init(**options)
        except Exception as error:  # a plain Exception is what Ray raises if it starts too slowly
            problem = (
                f"no Ray cluster answers at ray.address '{settings.address}'"
                if settings.address
                else "Ray did not start here"
            )
            raise PretrackError(f"{problem} ({' '.join(str(error).split())})") from error
        finally:
            # Exit handlers run in reverse order: this one before Ray's, which may end the process.
            atexit.register(watcher.communicate, b"ended\n")
    return resources()


def _check_current_folder() -> None:
    """Raise PretrackError if the current folder hides a package of pretrack from Ray's workers.

    Ray puts this folder at the start of its workers' `sys.path`, whatever this process looks into.
    """
    for name in ("manifests", "pipeline", "shards"):
        own, of_workers = find_spec(name), PathFinder.find_spec(name, ["", *sys.path])
        # pretrack itself may be found through a hook of an editable install, and not on a path.
        if not own or not of_workers:
            continue
        if os.path.realpath(own.origin or "") != os.path.realpath(of_workers.origin or ""):
            raise PretrackError(
                f"{Path.cwd()} holds a '{name}' of its own, which Ray's workers would take for the "
                f"package {name} of pretrack: start the command in another folder"
            )


def _watch_for_death() -> subprocess.Popen[bytes]:
    """Start a process that says a sentence if this one ends without a word.

    Ray's native code ends the driver at once when Ray's own processes on its machine are killed:
    no Python code runs after that. Write a line to the watcher to dismiss it.
    """
    wait = 'read ended || printf "%s\\n" "$1" >&2'
    return subprocess.Popen(
        ["/bin/sh", "-c", wait, "sh", _KILLED], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )


def _check_address(address: str) -> None:
    """Raise PretrackError if no Ray listens at an address; `ray.init` would wait for minutes.

    Ray speaks gRPC, which begins with settings of HTTP/2 from both sides.
    """
    target = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    scheme, mark, _ = target.partition("://")
    if not target or (mark and scheme != "ray"):
        return  # Ray looks for a cluster itself, or another client of Ray knows the address
    problem = f"no Ray cluster answers at ray.address '{address}'"
    try:
        parts = urlsplit(target if mark else f"//{target}")
        host, port = parts.hostname, parts.port or (_CLIENT_PORT if mark else None)
    except ValueError:
        host = port = None
    if not host or not port:
        raise PretrackError(f"{problem}: write HOST:PORT, ray://HOST:PORT or auto")
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _EMPTY_SETTINGS)
            answer = connection.recv(len(_EMPTY_SETTINGS), socket.MSG_WAITALL)
    except OSError as error:
        reason = error.strerror or error
        raise PretrackError(
            f"{problem}: nothing answers on port {port} of {host} ({reason}); start Ray there, or "
            "correct the address"
        ) from error
    if answer[3:4] != _EMPTY_SETTINGS[3:4]:
        raise PretrackError(
            f"{problem}: what listens on port {port} of {host} is not Ray (6379 is Ray's port, "
            "10001 that of ray://, and 8265 only its dashboard's)"
        )


def resources() -> Cluster:
    """Return what the cluster offers at this moment; nodes may join and leave during a build."""
    totals = ray.cluster_resources()
    return Cluster(int(totals.get("CPU", 0)), int(totals.get("GPU", 0)))


def ray_task(function: Callable[..., Any]) -> Any:
    """Make a function a Ray task of one core, retried three times if its worker or node dies."""
    return ray.remote(num_cpus=1, max_retries=3)(function)


def results_as_completed(submissions: Iterable[Callable[[], Any]], limit: int) -> Iterator[Any]:
    """Submit tasks and yield their results as they complete, with at most `limit` tasks in flight.

    Each submission starts one task and returns its object reference. Raises what a task raises.
    """
    in_flight: list[Any] = []
    for submit in submissions:
        if len(in_flight) >= limit:
            done, in_flight = ray.wait(in_flight, num_returns=1)
            yield from _results(done)
        in_flight.append(submit())
    while in_flight:
        done, in_flight = ray.wait(in_flight, num_returns=1)
        yield from _results(done)


def _results(done: list[Any]) -> list[Any]:
    """Return the results of tasks that are done. Raises what a task raised."""
    try:
        return ray.get(done)  # type: ignore[no-any-return]
    except RayTaskError as error:
        raise cause_of(error) from error


def cause_of(error: Exception) -> Exception:
    """Extract the exception that a worker raised from Ray's error."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        return error.cause
    return error


@lru_cache(maxsize=1)
def decoder_of_this_worker(stall_limit_s: float, *, gpus: str) -> SubprocessDecoder:
    """Return the decoder of this Ray worker: it is kept between tasks and ends with the worker.

    gpus: the GPUs that Ray gave the task, empty if it needs none; other GPUs need another decoder,
          whose process ends when the next takes its place
    """
    return SubprocessDecoder(stall_limit_s)
