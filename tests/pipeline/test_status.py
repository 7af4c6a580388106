"""Where a build stands is told if it can be, and never in a build's way."""

from __future__ import annotations

from pathlib import Path

from pipeline.status import BuildState, StateFile, read_state


def test_a_state_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    in_the_way = tmp_path / "build.json"
    in_the_way.mkdir()
    file = StateFile(tmp_path, BuildState.started(2, 10, 0.0))
    file.broken(5)
    file.end("failed")
    in_the_way.rmdir()
    file.end("finished")
    state = read_state(tmp_path)
    assert state is not None
    assert (state.state, state.shards_broken) == ("finished", 1)
