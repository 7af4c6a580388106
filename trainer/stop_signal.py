"""SIGTERM as a request to stop: the run finishes its step, saves a checkpoint and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """Yield an event that is set when this process receives SIGTERM; restore the handler after.

    Slurm sends SIGTERM before a job's time is up, and clouds before they reclaim a machine. Outside
    the main thread, where Python installs no handlers, the event is never set.
    """
    stop_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop_requested.set())
    try:
        yield stop_requested
    finally:
        signal.signal(signal.SIGTERM, previous)
