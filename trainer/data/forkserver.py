"""What the process imports that readers of a store are forked from (`trainer.data.loader.clean_processes`); nothing else should.

SIGTERM is sent to all of a job's processes, and the run means to finish its step: readers end with the process they come from, and
so do their batches.
"""

from __future__ import annotations

import signal

import trainer.data.loader  # noqa: F401  (what readers need, once for all of them)

signal.signal(signal.SIGTERM, signal.SIG_IGN)
