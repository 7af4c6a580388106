"""What happens in a build, one line an event: for people on standard error, for programs as JSON lines.

An event has a name ("shard made", "tracker lost"), a sentence, and fields. All of them are appended to `OUT/build.log` where OUT is
a folder of this machine: a line is a JSON object, and the file only ever grows, by some hundred bytes a shard. A bucket cannot
append, so there is no such file there: `--json-logs` gives the same lines. People are shown the notable ones.
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
    """Writes a build's events down, and shows them by its progress."""

    def __init__(self, out: Location, progress: Progress) -> None:
        self._file = out / "build.log" if isinstance(out, Path) else None
        self._progress = progress

    def note(self, event: str, sentence: str, notable: bool = False, **fields: Any) -> None:
        """One event. `notable`: people should see it even where a bar shows how the build goes."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps(
            {"time": now, "event": event, "message": sentence, **fields}, ensure_ascii=False
        )
        if self._file:
            with (
                suppress(OSError),
                open(self._file, "a", encoding="utf-8") as file,
            ):  # a full disk is the shards' to report
                file.write(line + "\n")
        self._progress.event(sentence, line, notable)
