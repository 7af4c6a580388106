"""Log the events of a build, one line per event: JSON lines for programs, sentences for people.

An event has a name ("shard made", "tracker lost"), a sentence, and fields. Every event is appended
to `OUT/build.log` as a JSON object if OUT is a local folder; the file only grows, by a few hundred
bytes per shard. Buckets cannot append, so they hold no such file: `--json-logs` prints the same
lines on standard error. People see the notable events on standard error.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.monitoring.progress import Progress
from shards.files import Location


class EventLog:
    """Append events to `OUT/build.log` and pass them to the progress display."""

    def __init__(self, out: Location, progress: Progress) -> None:
        self._file = out / "build.log" if isinstance(out, Path) else None
        self._progress = progress

    def log(self, event: str, sentence: str, notable: bool = False, **fields: Any) -> None:
        """Log one event. Notable events are shown to people even above a progress bar."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps(
            {"time": now, "event": event, "message": sentence, **fields}, ensure_ascii=False
        )
        if self._file:
            # A full disk stops the build where shards are written; a lost log line must not.
            with suppress(OSError), open(self._file, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        self._progress.event(sentence, line, notable)
