"""Where a build stands, for people who look from outside: `OUT/build.json`, replaced every second."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from manifests.receipt import Receipt
from manifests.snapshot import current_snapshot, open_snapshot
from manifests.tables import failure_counts
from pipeline.monitoring.process import began, is_gone, this_machine
from shards.errors import PretrackError
from shards.files import Location, atomic_write, read_file

STAGES = ("decode", "track", "write")


@dataclass(frozen=True)
class BuildState:
    """The latest build of a folder. `state`: running, finished, failed (a shard could not be made) or stopped; times in Unix s.

    stage_seconds:   what workers spent in decode, track and write
    reasons:         failures as [stage, reason, count]
    tracker_seconds: how long trackers have been there, all together; they tracked for `tracking_seconds` of it
    """

    state: str
    host: str
    pid: int
    began: float
    updated: float
    shards_total: int
    shards_done: int
    shards_broken: int
    clips_total: int
    clips_done: int
    failures: int
    shards_running: int = 0
    bytes: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    reasons: tuple[tuple[str, str, int], ...] = ()
    trackers: int = 0
    tracker_gpus: float = 0.0
    tracker_seconds: float = 0.0
    tracking_seconds: float = 0.0
    machine: str = ""
    process_began: str = ""

    @classmethod
    def started(cls, shards: int, clips: int, tracker_gpus: float) -> BuildState:
        """A build that begins now."""
        now = time.time()
        state = cls(
            "running",
            socket.gethostname(),
            os.getpid(),
            now,
            now,
            shards,
            0,
            0,
            clips,
            0,
            0,
            tracker_gpus=tracker_gpus,
        )
        return replace(state, machine=this_machine(), process_began=began(state.pid))


class StateFile:
    """Keeps `OUT/build.json` up to date: replaced at most once a second, on a bucket every ten (each time is a request), and at
    the end."""

    def __init__(self, out: Location, state: BuildState) -> None:
        self._out = out
        self._state = state
        self._every_s = 1.0 if isinstance(out, Path) else 10.0
        self._reasons = Counter[tuple[str, str]]()
        self._seconds = Counter[str]()
        self._write()

    def made(self, receipt: Receipt, clips: int) -> None:
        """A shard of so many planned clips was written."""
        self._reasons.update((failure.stage, failure.reason) for failure in receipt.failures)
        for stage in STAGES:
            self._seconds[stage] += getattr(receipt.shard, f"{stage}_seconds")
        self._change(
            shards_done=self._state.shards_done + 1,
            clips_done=self._state.clips_done + clips,
            bytes=self._state.bytes + receipt.shard.bytes,
            failures=self._reasons.total(),
            reasons=tuple(
                (stage, reason, count) for (stage, reason), count in self._reasons.most_common()
            ),
            stage_seconds=dict(self._seconds),
        )

    def broken(self, clips: int) -> None:
        """A shard of so many planned clips could not be made."""
        self._change(
            shards_broken=self._state.shards_broken + 1, clips_done=self._state.clips_done + clips
        )

    def under_way(
        self, shards: int, trackers: int, tracker_seconds: float, tracking_seconds: float
    ) -> None:
        """What is going on now."""
        self._change(
            shards_running=shards,
            trackers=trackers,
            tracker_seconds=tracker_seconds,
            tracking_seconds=tracking_seconds,
        )

    def end(self, state: str) -> None:
        """The build's end."""
        self._state = replace(self._state, state=state, updated=time.time(), shards_running=0)
        self._write()

    def _change(self, **changes: Any) -> None:
        self._state = replace(self._state, updated=time.time(), **changes)
        if time.monotonic() - self._written > self._every_s:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with suppress(OSError):  # a place that cannot be written is the shards' to report
            atomic_write(self._out / "build.json", json.dumps(asdict(self._state)).encode())


def read_state(out: Location) -> BuildState | None:
    """The latest build, or None. A build said to run whose process on this machine is gone was killed: its state is `killed`."""
    try:
        state = BuildState(**json.loads(read_file(out / "build.json")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise PretrackError(
            f"{out / 'build.json'} is damaged ({error}): delete it, the next build writes it anew"
        ) from error
    if state.state == "running" and is_gone(state.pid, state.machine, state.process_began):
        return replace(state, state="killed")
    return state


def status(out: Location) -> dict[str, Any]:
    """Everything `pretrack status` shows, as plain data. Raises PretrackError if nothing was ever built there."""
    state, name = read_state(out), current_snapshot(out)
    if state is None and name is None:
        raise PretrackError(f"{out} holds no build: run 'pretrack build' with 'out: {out}' first")
    build = _build_status(state) if state else None
    return {
        "out": str(out),
        "build": build,
        "snapshot": _snapshot_status(out, name) if name else None,
    }


def _build_status(state: BuildState) -> dict[str, Any]:
    """The state, and what follows from it."""
    shown = asdict(state) | {
        "shards_left": state.shards_total
        - state.shards_done
        - state.shards_broken
        - state.shards_running,
        "clips_left": state.clips_total - state.clips_done,
        "reasons": _reasons(state.reasons),
    }
    if state.clips_done and state.updated > state.began:
        shown["clips_per_s"] = rate = state.clips_done / (state.updated - state.began)
        if state.state == "running":
            shown["seconds_left"] = shown["clips_left"] / rate
    if state.tracker_seconds:
        shown["trackers_busy"] = min(1.0, state.tracking_seconds / state.tracker_seconds)
    if state.stage_seconds:
        shown["slowest_stage"] = max(
            state.stage_seconds, key=lambda stage: state.stage_seconds[stage]
        )
    return shown


def _reasons(counts: Iterable[tuple[str, str, int]]) -> list[dict[str, Any]]:
    return [{"stage": stage, "reason": reason, "count": count} for stage, reason, count in counts]


def _snapshot_status(out: Location, name: str) -> dict[str, Any]:
    snapshot = open_snapshot(out, name)
    clips = snapshot.clips.group_by(["source", "split"]).aggregate(
        [("key", "count"), ("frames", "sum"), ("visible_fraction", "mean")]
    )
    seconds = snapshot.shards.select([f"{stage}_seconds" for stage in STAGES])
    return {
        "name": name,
        "clips": len(snapshot.clips),
        "shards": len(snapshot.shards),
        "videos": len(snapshot.videos),
        "bytes": sum(snapshot.shards.column("bytes").to_pylist()),
        "sources": [
            {
                "source": row["source"],
                "split": row["split"],
                "clips": row["key_count"],
                "frames": row["frames_sum"],
                "visible_fraction": row["visible_fraction_mean"],
            }
            for row in clips.sort_by([("source", "ascending"), ("split", "descending")]).to_pylist()
        ],
        "failures": _reasons(failure_counts(snapshot.failures)),
        "left_out": snapshot.failures.to_pylist(),
        "worker_seconds": {
            column: sum(seconds.column(column).to_pylist()) for column in seconds.column_names
        },
    }
