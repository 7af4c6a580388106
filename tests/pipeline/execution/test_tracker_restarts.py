"""Trackers that do not load are retried with growing delays, until retrying makes no sense."""

from __future__ import annotations

import time

import pytest

from pipeline.execution.tracker_restarts import RestartPolicy
from shards.errors import PretrackError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still at its only entry."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_delays_double_up_to_a_minute(clock: list[float]) -> None:
    policy = RestartPolicy()
    policy.loaded()
    for delay in (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        policy.failed(None, "its worker process has died", trackers=1)
        clock[0] += delay - 0.01
        assert not policy.may_start
        clock[0] += 0.01
        assert policy.may_start
    assert policy.error is None, "a tracker loaded before, so the machine may recover"
    policy.loaded()
    policy.failed(None, "its worker process has died", trackers=1)
    clock[0] += 2.0
    assert policy.may_start, "delays start small again"


def test_trackers_that_never_load_end_the_build_after_three_rounds() -> None:
    policy = RestartPolicy()
    for _ in range(5):
        policy.failed(None, "its worker process has died", trackers=2)
        assert policy.error is None
    policy.failed(None, "its worker process has died", trackers=2)
    assert isinstance(policy.error, PretrackError)
    assert str(policy.error) == (
        "every tracker dies while it is loaded, the last one because its worker process has died"
    )


def test_a_wrong_setting_ends_the_build_at_once() -> None:
    policy = RestartPolicy()
    policy.loaded()
    wrong = PretrackError("there are no weights at /not/there")
    policy.failed(wrong, str(wrong), trackers=2)
    assert policy.error is wrong


def test_another_error_only_ends_a_build_that_never_had_a_tracker() -> None:
    error = RuntimeError("CUDA is busy")
    fresh, running = RestartPolicy(), RestartPolicy()
    running.loaded()
    for policy in (fresh, running):
        policy.failed(error, "CUDA is busy", trackers=1)
    assert fresh.error is error
    assert running.error is None
