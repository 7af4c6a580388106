"""How many trackers a cluster gets: always a core left to decode with, never more than its GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import RaySettings
from pipeline.execution.tracker_sizing import check_trackers, cores_per_tracker, tracker_count
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
