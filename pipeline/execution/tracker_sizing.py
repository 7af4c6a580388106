"""Compute how many tracker workers a cluster can hold, and how many there should be."""

from __future__ import annotations

from pipeline.config import RaySettings
from pipeline.ray_cluster import Cluster
from shards.errors import PretrackError


def check_trackers(settings: RaySettings, cluster: Cluster) -> None:
    """Raise PretrackError if the cluster cannot hold the trackers that the settings ask for."""
    if settings.tracker_gpus > cluster.gpus:
        raise PretrackError(
            f"ray.tracker_gpus is {settings.tracker_gpus}, and this cluster has {cluster.gpus} GPUs"
        )
    possible = _possible_trackers(settings, cluster)
    if possible < 1 or (settings.trackers or 1) > possible:
        raise PretrackError(
            f"{settings.trackers or 1} trackers of {cores_per_tracker(settings, cluster):g} cores "
            f"(ray.trackers, ray.tracker_cpus) leave none of the {cluster.cpus} cores to decode "
            "with"
        )


def tracker_count(settings: RaySettings, cluster: Cluster) -> int:
    """Return how many trackers there should be now; at least one, which may wait for resources."""
    return max(
        1, min(_requested_trackers(settings, cluster), _possible_trackers(settings, cluster))
    )


def cores_per_tracker(settings: RaySettings, cluster: Cluster) -> float:
    """Return the cores that a tracker reserves: none on a single core, shared with decoding."""
    return 0.0 if cluster.cpus == 1 else settings.tracker_cpus


def _requested_trackers(settings: RaySettings, cluster: Cluster) -> int:
    """Return `ray.trackers`, else one per GPU share or two cores; never more than the GPUs hold."""
    if not settings.tracker_gpus:
        return settings.trackers or max(1, cluster.cpus // 2)
    # A tracker beyond the GPUs would stay pending for ever.
    on_gpus = int(cluster.gpus / settings.tracker_gpus)
    return min(settings.trackers or on_gpus, on_gpus)


def _possible_trackers(settings: RaySettings, cluster: Cluster) -> int:
    """Return how many trackers leave a core to decode with."""
    cores = cores_per_tracker(settings, cluster)
    # Trackers that reserve no core leave all of them to decoding.
    return int((cluster.cpus - 1) / cores) if cores else cluster.cpus
