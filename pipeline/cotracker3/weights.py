"""Find, identify and load CoTracker3 checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.network_trackers.checkpoints import Checkpoints

if TYPE_CHECKING:
    from pipeline.cotracker3.model import CoTracker3

WINDOW_FRAMES = {"offline": 60, "sliding": 16}
"""Frames that a network sees at once, by tracking mode. Each mode has its own weights."""
RANDOM_WEIGHTS = {
    "random_offline": WINDOW_FRAMES["offline"],
    "random_online": WINDOW_FRAMES["sliding"],
}
"""Names of untrained weights, and their window lengths in frames."""
OFFICIAL_CHECKPOINTS = ("scaled_offline", "scaled_online", "baseline_offline", "baseline_online")
CHECKPOINTS = Checkpoints(
    network="CoTracker3",
    repository="facebook/cotracker3",
    files={name: f"{name}.pth" for name in OFFICIAL_CHECKPOINTS},
    random=RANDOM_WEIGHTS,
    licence="CC BY-NC 4.0: not for commercial use",
    otherwise="choose tracks.tracker=lucas_kanade",
)


def load_model(weights: str | Path, device: str = "cpu", compiled: bool = False) -> CoTracker3:
    """Load the network with its weights, ready for inference.

    weights:  a path; an official name (`scaled_offline`, …), looked up in the Hugging Face cache;
              or `random_offline`, `random_online`
    compiled: compile it at its first clips (`CoTracker3.compile_parts`), which takes about a
              minute; on a CPU this hardly pays

    Raises PretrackError if the weights are missing or the file is not a CoTracker3 checkpoint.
    """
    import torch

    from pipeline.cotracker3.model import CoTracker3

    name = str(weights)
    if name in RANDOM_WEIGHTS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = CoTracker3(RANDOM_WEIGHTS[name])
    else:
        model = CHECKPOINTS.load(name, lambda state: CoTracker3(state["time_emb"].shape[1]))
    if compiled:
        model.compile_parts()
    return model.eval().requires_grad_(False).to(device)
