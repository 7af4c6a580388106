"""Where a build stands is told if it can be, and never in a build's way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pipeline.monitoring.status import BuildState, StateFile, read_state


def test_a_state_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    in_the_way = tmp_path / "build.json"
    in_the_way.mkdir()
    file = StateFile(tmp_path, BuildState.started(2, 10, 0.0))
    file.shard_failed(5)
    file.end("failed")
    in_the_way.rmdir()
    file.end("finished")
    state = read_state(tmp_path)
    assert state is not None
    assert (state.state, state.shards_broken) == ("finished", 1)


def test_another_process_of_the_same_number_is_not_the_build(tmp_path: Path) -> None:
    begin = "import sys; from pathlib import Path; from pipeline.monitoring.status import BuildState, StateFile; "
    begin += "StateFile(Path(sys.argv[1]), BuildState.started(2, 10, 0.0))"
    StateFile(tmp_path, BuildState.started(2, 10, 0.0))
    state = read_state(tmp_path)
    assert state is not None
    assert state.state == "running"
    subprocess.run([sys.executable, "-c", begin, str(tmp_path)], check=True)
    file = tmp_path / "build.json"
    said = json.loads(file.read_text())
    for changed in (said, {**said, "pid": 1}):  # gone, and its number given to another
        file.write_text(json.dumps(changed))
        found = read_state(tmp_path)
        assert found is not None
        assert found.state == "killed"
