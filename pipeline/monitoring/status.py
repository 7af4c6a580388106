"""Keep the state of a build in `OUT/build.json`, and collect what `pretrack status` shows."""

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
from manifests.snapshot import Snapshot, current_snapshot, open_snapshot
from manifests.tables import failure_counts
from pipeline.monitoring.process import has_exited, machine_id, start_time
from shards.errors import PretrackError
from shards.files import Location, atomic_write, read_file

STAGES = ("decode", "track", "write")
_LOCAL_INTERVAL_S = 1.0
_BUCKET_INTERVAL_S = 10.0
"""On a bucket each write of `build.json` is a request."""


@dataclass(frozen=True)
class TrackerUsage:
    """How many tracker workers are loaded and busy, now and in total time.

    live:         trackers that are loaded
    busy:         trackers with calls in flight
    live_seconds: total time that trackers were loaded, including those lost since
    busy_seconds: total time that trackers tracked, including calls in flight
    """

    live: int
    busy: int
    live_seconds: float
    busy_seconds: float


@dataclass(frozen=True)
class BuildState:
    """The state of a folder's latest build, as `build.json` holds it. Times are Unix seconds.

    state:            "running", "finished", "failed" (a shard could not be made, for example),
                      "stopped" (interrupted), or "killed" (see `read_state`)
    began, updated:   when the build started; when this state was recorded
    shards_broken:    shards that could not be made
    clips_done:       planned clips of the shards that were made or failed
    stage_seconds:    worker time in decode, track and write
    reasons:          failures as (stage, reason, count)
    tracker_seconds:  total time that trackers were loaded
    tracking_seconds: total time of it that they tracked
    machine, process_began: identify the process `pid` (see `pipeline.monitoring.process`)
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
        """Return the state of a build that this process starts now."""
        now, pid = time.time(), os.getpid()
        return cls(
            state="running",
            host=socket.gethostname(),
            pid=pid,
            began=now,
            updated=now,
            shards_total=shards,
            shards_done=0,
            shards_broken=0,
            clips_total=clips,
            clips_done=0,
            failures=0,
            tracker_gpus=tracker_gpus,
            machine=machine_id(),
            process_began=start_time(pid),
        )


class StateFile:
    """Keep `OUT/build.json` up to date.

    The file is replaced at most once per second (every ten on a bucket), and when the build ends.
    """

    def __init__(self, out: Location, state: BuildState) -> None:
        self._out = out
        self._state = state
        self._interval_s = _LOCAL_INTERVAL_S if isinstance(out, Path) else _BUCKET_INTERVAL_S
        self._reasons = Counter[tuple[str, str]]()
        self._seconds = Counter[str]()
        self._write()

    def shard_made(self, receipt: Receipt, clips: int) -> None:
        """Record that a shard with `clips` planned clips was written."""
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

    def shard_scored(self, receipt: Receipt) -> None:
        """Record that the tracks of a stored shard were scored."""
        self._change(
            shards_done=self._state.shards_done + 1,
            clips_done=self._state.clips_done + receipt.shard.clips,
            bytes=self._state.bytes + receipt.shard.bytes,
        )

    def shard_failed(self, clips: int) -> None:
        """Record that a shard with `clips` planned clips could not be made."""
        self._change(
            shards_broken=self._state.shards_broken + 1, clips_done=self._state.clips_done + clips
        )

    def in_flight(self, shards: int, trackers: TrackerUsage) -> None:
        """Record how many shards are in flight, and how busy the trackers are."""
        self._change(
            shards_running=shards,
            trackers=trackers.live,
            tracker_seconds=trackers.live_seconds,
            tracking_seconds=trackers.busy_seconds,
        )

    def end(self, state: str) -> None:
        """Record that the build ended in `state`, and write the file at once."""
        self._state = replace(self._state, state=state, updated=time.time(), shards_running=0)
        self._write()

    def _change(self, **changes: Any) -> None:
        self._state = replace(self._state, updated=time.time(), **changes)
        if time.monotonic() - self._written > self._interval_s:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with suppress(OSError):  # a folder that cannot be written fails where shards are written
            atomic_write(self._out / "build.json", json.dumps(asdict(self._state)).encode())


def read_state(out: Location) -> BuildState | None:
    """Read the state of the folder's latest build; None if there was none.

    A "running" build whose process on this machine has exited is returned as "killed".

    Raises PretrackError if the file is damaged, AccessError if it cannot be read.
    """
    try:
        state = BuildState(**json.loads(read_file(out / "build.json")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise PretrackError(
            f"{out / 'build.json'} is damaged ({error}): delete it, the next build writes a new one"
        ) from error
    if state.state == "running" and has_exited(state.pid, state.machine, state.process_began):
        return replace(state, state="killed")
    return state


def status(out: Location) -> dict[str, Any]:
    """Collect everything that `pretrack status` shows, as plain data.

    Raises PretrackError if nothing was ever built there.
    """
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
    """Add what follows from a build's state: what is left, rates, and the slowest stage."""
    settled = state.shards_done + state.shards_broken + state.shards_running
    shown = asdict(state) | {
        "shards_left": state.shards_total - settled,
        "clips_left": state.clips_total - state.clips_done,
        "reasons": _reasons(state.reasons),
    }
    # Rates need something done in some time; a key is left out where its figure is unknown.
    if state.clips_done and state.updated > state.began:
        shown["clips_per_s"] = rate = state.clips_done / (state.updated - state.began)
        if state.state == "running":
            shown["seconds_left"] = shown["clips_left"] / rate
    if state.tracker_seconds:
        # The two times are read at different moments: their ratio may exceed 1 slightly.
        shown["trackers_busy"] = min(1.0, state.tracking_seconds / state.tracker_seconds)
    if state.stage_seconds:
        shown["slowest_stage"] = max(
            state.stage_seconds, key=lambda stage: state.stage_seconds[stage]
        )
    return shown


def _reasons(counts: Iterable[tuple[str, str, int]]) -> list[dict[str, Any]]:
    return [{"stage": stage, "reason": reason, "count": count} for stage, reason, count in counts]


def _snapshot_status(out: Location, name: str) -> dict[str, Any]:
    """Collect what a snapshot holds and leaves out, and the worker time that it took."""
    snapshot = open_snapshot(out, name)
    seconds = snapshot.shards.select([f"{stage}_seconds" for stage in STAGES])
    return {
        "name": name,
        "clips": len(snapshot.clips),
        "shards": len(snapshot.shards),
        "videos": len(snapshot.videos),
        "bytes": sum(snapshot.shards.column("bytes").to_pylist()),
        "sources": _by_source(snapshot),
        "failures": _reasons(failure_counts(snapshot.failures)),
        "left_out": snapshot.failures.to_pylist(),
        "worker_seconds": {
            column: sum(seconds.column(column).to_pylist()) for column in seconds.column_names
        },
    }


def _by_source(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Count the clips and frames of each source and split, with the mean visible fraction."""
    totals = snapshot.clips.group_by(["source", "split"]).aggregate(
        [("key", "count"), ("frames", "sum"), ("visible_fraction", "mean")]
    )
    return [
        {
            "source": row["source"],
            "split": row["split"],
            "clips": row["key_count"],
            "frames": row["frames_sum"],
            "visible_fraction": row["visible_fraction_mean"],
        }
        for row in totals.sort_by([("source", "ascending"), ("split", "descending")]).to_pylist()
    ]
