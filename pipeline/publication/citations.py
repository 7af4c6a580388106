"""Name the papers to cite for a build's datasets and tracker."""

from __future__ import annotations

from manifests.snapshot import Snapshot

_DATASETS = {
    "co3d": "Reizenstein et al., Common Objects in 3D: Large-Scale Learning and Evaluation of "
    "Real-life 3D Category Reconstruction, ICCV 2021",
    "uco3d": "Liu et al., UnCommon Objects in 3D, arXiv:2501.07574, 2025",
    "dl3dv": "Ling et al., DL3DV-10K: A Large-Scale Scene Dataset for Deep Learning-based 3D "
    "Vision, CVPR 2024",
    "youtube_vos": "Xu et al., YouTube-VOS: A Large-Scale Video Object Segmentation Benchmark, "
    "arXiv:1809.03327, 2018",
}
_TRACKERS = {
    "cotracker3": "Karaev et al., CoTracker3: Simpler and Better Point Tracking by "
    "Pseudo-Labelling Real Videos, arXiv:2410.11831, 2024",
    "tapir": "Doersch et al., TAPIR: Tracking Any Point with per-frame Initialization and temporal "
    "Refinement, ICCV 2023; with BootsTAPIR's weights also Doersch et al., BootsTAP: Bootstrapped "
    "Training for Tracking-Any-Point, ACCV 2024",
}


def citations(snapshot: Snapshot) -> list[str]:
    """List what to cite: the papers of the datasets and of the tracker, then the software."""
    datasets = sorted(set(snapshot.videos["dataset"].to_pylist()))
    tracker = str(snapshot.settings.get("tracks", {}).get("tracker"))
    papers = [_DATASETS[name] for name in datasets if name in _DATASETS]
    if tracker in _TRACKERS:
        papers.append(_TRACKERS[tracker])
    return [*papers, "pretrack, the software that made the shards and tracks"]
