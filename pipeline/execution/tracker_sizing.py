"""Compute how many tracker workers a cluster can hold, and how many there should be."""

from __future__ import annotations

import math

from pipeline.config import RaySettings
from pipeline.failures import MachineError
from pipeline.ray_cluster import Cluster
from shards.errors import PretrackError

_ROUNDING = 1e-6
"""Ratios of shares such as 0.1 miss whole numbers by less than this."""


def check_trackers(settings: RaySettings, cluster: Cluster, decoder_gpus: float = 0.0) -> None:
    """Raise PretrackError if the cluster cannot hold the trackers that the settings ask for.

    decoder_gpus: what a decoding task reserves beside them; 0 unless `frames.device` is cuda
    """
    if settings.tracker_gpus > cluster.gpus:
        raise PretrackError(
            f"ray.tracker_gpus is {settings.tracker_gpus}, and this cluster has {cluster.gpus} GPUs"
        )
    if settings.tracker_gpus and _trackers_on_gpus(settings, cluster, decoder_gpus) < 1:
        raise PretrackError(
            f"ray.tracker_gpus is {settings.tracker_gpus:g} and ray.decoder_gpus "
            f"{decoder_gpus:g}, which do not fit the GPUs of this cluster ({cluster.gpus}) "
            "together: leave room for both (0.9 and 0.1, for example), or set frames.device to "
            "cpu"
        )
    possible = _possible_trackers(settings, cluster)
    if possible < 1 or (settings.trackers or 1) > possible:
        raise PretrackError(
            f"{settings.trackers or 1} trackers of {cores_per_tracker(settings, cluster):g} cores "
            f"(ray.trackers, ray.tracker_cpus) leave none of the {cluster.cpus} cores to decode "
            "with"
        )


def check_decoders(cluster: Cluster, decoder_gpus: float) -> None:
    """Raise MachineError if no decoding task can ever start for lack of a GPU."""
    if decoder_gpus > cluster.gpus:
        raise MachineError(
            f"frames.device is cuda, and this cluster has {cluster.gpus} GPUs: run on a machine "
            "with a GPU that Ray sees, or set frames.device to cpu"
        )


def tracker_count(settings: RaySettings, cluster: Cluster, decoder_gpus: float = 0.0) -> int:
    """Return how many trackers there should be now; at least one, which may wait for resources."""
    requested = _requested_trackers(settings, cluster, decoder_gpus)
    return max(1, min(requested, _possible_trackers(settings, cluster)))


def cores_per_tracker(settings: RaySettings, cluster: Cluster) -> float:
    """Return the cores that a tracker reserves: none on a single core, shared with decoding."""
    return 0.0 if cluster.cpus == 1 else settings.tracker_cpus


def _requested_trackers(settings: RaySettings, cluster: Cluster, decoder_gpus: float) -> int:
    """Return `ray.trackers`, else one per GPU share or two cores; never more than the GPUs hold."""
    if not settings.tracker_gpus:
        return settings.trackers or max(1, cluster.cpus // 2)
    # A tracker beyond the GPUs would stay pending for ever.
    on_gpus = _trackers_on_gpus(settings, cluster, decoder_gpus)
    return min(settings.trackers or on_gpus, on_gpus)


def _trackers_on_gpus(settings: RaySettings, cluster: Cluster, decoder_gpus: float) -> int:
    """Return how many trackers fit on the GPUs and leave room for a decoding task on one of them.

    Ray never divides a share between two GPUs.
    """
    share = settings.tracker_gpus
    if not decoder_gpus or share > 1:
        return int((cluster.gpus - decoder_gpus) / share)
    per_gpu = math.floor(1 / share + _ROUNDING)
    missing = decoder_gpus - (1 - per_gpu * share)
    return cluster.gpus * per_gpu - max(0, math.ceil(missing / share - _ROUNDING))


def _possible_trackers(settings: RaySettings, cluster: Cluster) -> int:
    """Return how many trackers leave a core to decode with."""
    cores = cores_per_tracker(settings, cluster)
    # Trackers that reserve no core leave all of them to decoding.
    return int((cluster.cpus - 1) / cores) if cores else cluster.cpus
