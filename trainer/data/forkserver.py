"""Prepare the fork server of workers, which preloads this module (`loader.forkserver_context`).

A job's SIGTERM reaches all of its processes, and the run still finishes its step. Workers die with
the fork server, and their batches with them, so the fork server ignores SIGTERM.
"""

from __future__ import annotations

import signal

import trainer.data.loader  # noqa: F401  (what workers need, imported once for all of them)

signal.signal(signal.SIGTERM, signal.SIG_IGN)
