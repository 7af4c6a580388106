"""How many trackers a cluster gets: always a core left to decode with, never more than its GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import RaySettings
from pipeline.execution.tracker_sizing import (
    check_decoders,
    check_trackers,
    cores_per_tracker,
    tracker_count,
)
from pipeline.failures import MachineError
from pipeline.ray_cluster import Cluster
from shards.errors import PretrackError


@pytest.mark.parametrize(
    ("settings", "cluster", "count"),
    [
        ({}, Cluster(1, 0), 1),  # shares the only core with decoding
        ({}, Cluster(2, 0), 1),
        ({}, Cluster(8, 0), 4),  # one per two cores
        ({"trackers": 6}, Cluster(8, 0), 6),
        ({"trackers": 9}, Cluster(8, 0), 7),  # a core is left to decode with
        ({"tracker_cpus": 3}, Cluster(8, 0), 2),
        ({"tracker_gpus": 1}, Cluster(8, 2), 2),
        ({"tracker_gpus": 0.5}, Cluster(8, 2), 4),
        ({"tracker_gpus": 1, "trackers": 1}, Cluster(8, 2), 1),
        ({"tracker_gpus": 1, "trackers": 5}, Cluster(8, 2), 2),
        ({"tracker_gpus": 1}, Cluster(8, 0), 1),  # it waits until a GPU is back
    ],
)
def test_trackers_follow_the_cluster(
    settings: dict[str, Any], cluster: Cluster, count: int
) -> None:
    assert tracker_count(RaySettings(**settings), cluster) == count


def test_a_single_core_is_shared_with_decoding() -> None:
    assert cores_per_tracker(RaySettings(tracker_cpus=2), Cluster(1, 0)) == 0.0
    assert cores_per_tracker(RaySettings(tracker_cpus=2), Cluster(4, 0)) == 2.0


@pytest.mark.parametrize(
    ("settings", "cluster", "message"),
    [
        ({"tracker_gpus": 1}, Cluster(8, 0), r"ray\.tracker_gpus is 1\.0, .* has 0 GPUs"),
        ({"trackers": 8}, Cluster(8, 0), r"8 trackers of 1 cores .* none of the 8 cores"),
        ({"tracker_cpus": 4}, Cluster(4, 0), r"1 trackers of 4 cores .* none of the 4 cores"),
    ],
)
def test_trackers_that_do_not_fit_stop_the_build(
    settings: dict[str, Any], cluster: Cluster, message: str
) -> None:
    with pytest.raises(PretrackError, match=message):
        check_trackers(RaySettings(**settings), cluster)


def test_trackers_that_just_fit_do_not_stop_the_build() -> None:
    check_trackers(RaySettings(trackers=7), Cluster(8, 0))
    check_trackers(RaySettings(tracker_gpus=2), Cluster(8, 2))


@pytest.mark.parametrize(
    ("tracker_gpus", "gpus", "decoder_gpus", "count"),
    [
        (1.0, 2, 0.1, 1),  # the other GPU decodes
        (1.0, 8, 0.1, 7),
        (0.9, 8, 0.1, 8),
        (0.5, 1, 0.1, 1),
        (0.45, 1, 0.1, 2),
        (0.3, 2, 0.1, 6),
        (0.3, 2, 0.2, 5),
        (0.2, 1, 0.2, 4),  # 1 / 0.2 - 1, which floating point rounds down
        (0.1, 1, 1.0, 1),  # at least one, which waits
        (2.0, 4, 1.0, 1),
    ],
)
def test_trackers_leave_a_share_of_a_gpu_to_decode_with(
    tracker_gpus: float, gpus: int, decoder_gpus: float, count: int
) -> None:
    settings = RaySettings(tracker_gpus=tracker_gpus)
    assert tracker_count(settings, Cluster(16, gpus), decoder_gpus) == count


def test_trackers_that_leave_no_share_of_a_gpu_stop_the_build() -> None:
    settings = RaySettings(tracker_gpus=1)
    check_trackers(settings, Cluster(8, 1))
    check_trackers(settings, Cluster(8, 2), decoder_gpus=0.1)
    with pytest.raises(PretrackError, match=r"tracker_gpus is 1 and ray\.decoder_gpus 0\.1, which"):
        check_trackers(settings, Cluster(8, 1), decoder_gpus=0.1)


def test_decoding_on_a_gpu_needs_one() -> None:
    check_decoders(Cluster(8, 0), decoder_gpus=0.0)
    check_decoders(Cluster(8, 1), decoder_gpus=1.0)
    with pytest.raises(MachineError, match=r"frames\.device is cuda, and this cluster has 0 GPUs"):
        check_decoders(Cluster(8, 0), decoder_gpus=0.1)
