"""Ranks agree on weights, read different clips, and need no shared folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.helpers.object_store import free_port
from tests.helpers.ranks import environment_of_rank
from tests.trainer.conftest import panning_clip, publish
from tests.trainer.test_train import REPOSITORY, Make, assert_same, last_state
from trainer import checkpoint
from trainer import train as training
from trainer.checkpoint import (
    checksums,
    load_checkpoint,
    load_on_all_ranks,
    newest_checkpoint,
    save_checkpoint,
)
from trainer.config import TrainSettings
from trainer.data.dataset import ClipDataset
from trainer.distributed import Rank, StopAgreement
from trainer.train import train


def torchrun(config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    logs = f"--log-dir={config.parent / 'logs'}"  # by default in /tmp, where they stay
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        logs,
        "--nproc-per-node",
        "2",
    ]
    return subprocess.run(
        [*command, "-m", "tests.helpers.traced", str(config), *overrides],
        check=False,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.slow
def test_two_ranks_agree_and_read_different_clips(settings: Make, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(run={"steps": 4}).model_dump(mode="json")))
    run = torchrun(config)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("step 4/4") == 1  # one rank reports
    assert "FutureWarning" not in run.stderr
    traces = [torch.load(tmp_path / "run" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(traces[0]["weights"], traces[1]["weights"])
    for ours, theirs in zip(traces[0]["keys"], traces[1]["keys"], strict=True):
        assert len(ours) == len(theirs) == 2
        assert not set(ours) & set(theirs)
    losses = torch.tensor([trace["losses"] for trace in traces])
    assert (losses[0] - losses[1]).abs().max() > 0.001
    summed_up = [
        float(mean)
        for mean in re.findall(
            r"^epoch \d: mean loss ([\d.]+) over 2 steps", run.stdout, re.MULTILINE
        )
    ]
    assert summed_up == pytest.approx(
        [losses[:, :2].mean().item(), losses[:, 2:].mean().item()], abs=1e-4
    )

    alone = settings(run={"steps": 4, "out": tmp_path / "alone"})
    seen: list[set[str]] = []
    run_step = training.forward_backward

    def record_step(forward: Any, batch: Any, indices: Any) -> Any:
        seen.append(set(batch["key"]))
        return run_step(forward, batch, indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "forward_backward", record_step)
        train(alone)
    assert [
        set(a) | set(b) for a, b in zip(traces[0]["keys"], traces[1]["keys"], strict=True)
    ] == seen

    resumed = settings(run={"steps": 6})  # by one process: the number of ranks may change
    train(resumed)
    assert last_state(resumed)["step"] == 6


def two_nodes(settings: list[TrainSettings]) -> list[subprocess.Popen[str]]:
    """Start two ranks as on two machines that share only the network.

    Each has its own working folder, to which `run.out` is relative, so neither sees the other's.
    """
    port = free_port()
    nodes = []
    for rank, s in enumerate(settings):
        s.run.out.mkdir(parents=True, exist_ok=True)
        config = s.run.out.with_name("config.json")
        relative = s.run.model_copy(update={"out": Path("run")})
        config.write_text(s.model_copy(update={"run": relative}).model_dump_json())
        nodes.append(
            subprocess.Popen(
                [sys.executable, "-u", "-m", "tests.helpers.traced", str(config)],
                cwd=config.parent,
                env=os.environ | environment_of_rank(rank, port) | {"PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return nodes


@pytest.mark.slow
def test_nodes_without_a_shared_folder_stop_and_resume_together(
    settings: Make, tmp_path: Path
) -> None:
    snapshot = publish(tmp_path / "build", [panning_clip(f"made-{i}", i) for i in range(10)])
    data = {"out": str(tmp_path / "build"), "on_error": "skip"}
    order = ClipDataset([snapshot], settings(data=data).data, seed=1).sampler(4, rank=1, world=2)
    damaged = snapshot.clips.to_pylist()[
        next(iter(order))[0][1]
    ]  # one that the second rank reads first
    with open(str(snapshot.shard_path("made-000000")), "r+b") as file:
        file.seek(damaged["tracks_offset"])
        file.write(bytes(damaged["tracks_size"]))

    first = two_nodes(
        [settings(data=data, run={"steps": 1000, "out": tmp_path / node / "run"}) for node in "ab"]
    )
    assert first[0].stdout is not None
    for line in first[0].stdout:
        if line.startswith("step 2/"):
            first[1].terminate()  # only one of the two
    output = first[1].communicate(timeout=150)[0]
    assert [first[0].wait(), first[1].returncode] == [143, 143], output
    assert f"left out (1 so far): clip {damaged['key']}" in output
    events: Any = EventAccumulator(str(tmp_path / "a" / "run" / "tensorboard"))
    assert events.Reload().Scalars("skipped_clips")[0].value == 1
    newest = newest_checkpoint(tmp_path / "a" / "run")
    assert newest is not None

    steps = load_checkpoint(newest)["step"] + 1
    second = two_nodes(
        [settings(data=data, run={"steps": steps, "out": tmp_path / node / "run"}) for node in "ab"]
    )
    outputs = [node.communicate(timeout=150)[0] for node in second]
    assert [node.returncode for node in second] == [0, 0], outputs
    assert f"resuming from {newest.relative_to(tmp_path / 'a')}" in outputs[0]
    assert f"step {steps}/{steps}" in outputs[0]
    assert [path.name for path in (tmp_path / "b" / "run").iterdir()] == ["rank1.pt"]
    traces = [
        torch.load(tmp_path / node / "run" / f"rank{rank}.pt", weights_only=True)
        for rank, node in enumerate("ab")
    ]
    assert [len(trace["keys"]) for trace in traces] == [1, 1]  # both took only the last step
    assert_same(traces[0]["weights"], traces[1]["weights"])


def test_a_rank_reads_the_checkpoint_itself_only_if_it_has_the_same_file(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 of 2; what rank 0 sends stands in for the network."""
    s = settings(run={"steps": 1})
    train(s)
    path = newest_checkpoint(s.run.out)
    assert path is not None
    state = load_checkpoint(path)
    save_checkpoint(s.run.out, state, keep=2)
    sent = path, checksums(path), ["000001"]
    broadcasts: list[Any] = [sent]
    missing: list[bool] = []
    monkeypatch.setattr(checkpoint, "broadcast_from_rank0", lambda *_: broadcasts.pop(0))

    def reduce(flag: bool, _: Rank) -> bool:
        missing.append(flag)
        return flag

    monkeypatch.setattr(checkpoint, "all_reduce_any", reduce)
    second = Rank(1, 2, torch.device("cpu"))
    own, snapshots = load_on_all_ranks(s, second)
    assert_same(own, state)
    assert snapshots == ["000001"]

    # Another run's checkpoint of the same name and size: one weight differs.
    other = load_checkpoint(path)
    other["student"]["head.0.bias"][0] += 1
    save_checkpoint(s.run.out, other, keep=2)
    assert [row[:2] for row in checksums(path)] == [row[:2] for row in sent[1]]
    broadcasts[:] = [sent, {"from": "rank 0"}]
    assert load_on_all_ranks(s, second)[0] == {"from": "rank 0"}
    path.write_bytes(path.read_bytes()[:-100])
    broadcasts[:] = [sent, {"from": "rank 0"}]
    assert load_on_all_ranks(s, second)[0] == {"from": "rank 0"}
    # Neither rank could list the file's members: that does not make their files the same.
    broadcasts[:] = [(path, [], ["000001"]), {"from": "rank 0"}]
    assert load_on_all_ranks(s, second)[0] == {"from": "rank 0"}
    assert missing == [False, True, True, True]


def test_one_rank_stops_at_once_and_several_one_step_after_any_was_asked_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = StopAgreement(Rank(0, 1, torch.device("cpu")))
    assert [alone.agreed(requested) for requested in (False, True)] == [False, True]
    # The other rank, whose flags the reduction adds, is asked during the second step.
    others = [False, True, True, True]

    class Sent:
        def wait(self) -> None:
            pass

    def reduce(flags: Tensor, *_: Any, async_op: bool) -> Sent:
        flags |= others.pop(0)
        return Sent()

    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    first = StopAgreement(Rank(0, 2, torch.device("cpu")))
    assert [first.agreed(False) for _ in range(3)] == [False, False, True]
