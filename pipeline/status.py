"""Where a build stands, for people who look from outside: `OUT/build.json`, replaced after every shard."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from manifests.snapshot import current_snapshot, open_snapshot
from shards.errors import PretrackError
from shards.files import Location, read_whole, write_whole


@dataclass(frozen=True)
class BuildState:
    """The latest build of a folder. `state`: running, finished, failed (a shard could not be made) or stopped; times in Unix s."""

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

    @classmethod
    def started(cls, out: Location, shards: int, clips: int) -> BuildState:
        """A build that begins now; writes it down."""
        now = time.time()
        state = cls("running", socket.gethostname(), os.getpid(), now, now, shards, 0, 0, clips, 0, 0)
        write_state(out, state)
        return state

    def advanced(self, clips_done: int, failures: int, shards_broken: int) -> BuildState:
        """One shard further."""
        return replace(
            self,
            updated=time.time(),
            shards_done=self.shards_done + 1,
            shards_broken=shards_broken,
            clips_done=clips_done,
            failures=failures,
        )

    def ended(self, state: str) -> BuildState:
        """The build's end."""
        return replace(self, state=state, updated=time.time())


def write_state(out: Location, state: BuildState) -> None:
    """Replaces `OUT/build.json`."""
    write_whole(out / "build.json", json.dumps(asdict(state)).encode())


def read_state(out: Location) -> BuildState | None:
    """The latest build, or None. A build said to run whose process on this machine is gone was killed: its state is `killed`."""
    try:
        state = BuildState(**json.loads(read_whole(out / "build.json")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise PretrackError(f"{out / 'build.json'} is damaged ({error}): delete it, the next build writes it anew") from error
    if state.state == "running" and state.host == socket.gethostname() and not Path(f"/proc/{state.pid}").exists():
        return replace(state, state="killed")
    return state


def status(out: Location) -> dict[str, Any]:
    """Everything `pretrack status` shows, as plain data. Raises PretrackError if nothing was ever built there."""
    state, name = read_state(out), current_snapshot(out)
    if state is None and name is None:
        raise PretrackError(f"{out} holds no build: run 'pretrack build' with 'out: {out}' first")
    shown: dict[str, Any] = {"out": str(out), "build": asdict(state) if state else None, "snapshot": None}
    if state and state.state == "running" and state.clips_done:
        rate = state.clips_done / (state.updated - state.began)
        shown["build"] |= {"clips_per_s": rate, "seconds_left": (state.clips_total - state.clips_done) / rate}
    if name:
        shown["snapshot"] = _snapshot_status(out, name)
    return shown


def _snapshot_status(out: Location, name: str) -> dict[str, Any]:
    snapshot = open_snapshot(out, name)
    clips = snapshot.clips.group_by(["source", "split"]).aggregate(
        [("key", "count"), ("frames", "sum"), ("visible_fraction", "mean")]
    )
    failures = snapshot.failures.group_by(["stage", "reason"]).aggregate([("reason", "count")])
    seconds = snapshot.shards.select(["decode_seconds", "track_seconds", "write_seconds"])
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
        "failures": [
            {"stage": row["stage"], "reason": row["reason"], "count": row["reason_count"]}
            for row in failures.sort_by([("reason_count", "descending"), ("reason", "ascending")]).to_pylist()
        ],
        "left_out": snapshot.failures.to_pylist(),
        "worker_seconds": {column: sum(seconds.column(column).to_pylist()) for column in seconds.column_names},
    }
