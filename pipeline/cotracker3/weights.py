"""Find, identify and load CoTracker3 checkpoints."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import PretrackError

if TYPE_CHECKING:
    from pipeline.cotracker3.model import CoTracker3

REPOSITORY = "facebook/cotracker3"
OFFICIAL_CHECKPOINTS = ("scaled_offline", "scaled_online", "baseline_offline", "baseline_online")
WINDOW_FRAMES = {"offline": 60, "sliding": 16}
"""Frames that a network sees at once, by tracking mode. Each mode has its own weights."""
RANDOM_WEIGHTS = {
    "random_offline": WINDOW_FRAMES["offline"],
    "random_online": WINDOW_FRAMES["sliding"],
}
"""Names of untrained weights, drawn from a fixed seed, and their window lengths in frames. They
show that everything runs, but track nothing."""
_CHUNK_BYTES = 1 << 22


def find_weights(weights: str) -> Path:
    """Return the checkpoint file for a path or an official name.

    Official names are looked up in the Hugging Face cache. Raises PretrackError if the file is
    missing or damaged; the message gives the download command and the licence.
    """
    if weights not in OFFICIAL_CHECKPOINTS:
        path = Path(weights).expanduser()
        if path.is_file():
            return path
        raise PretrackError(
            f"there is no CoTracker3 checkpoint {weights}: give a file, or one of "
            f"{', '.join((*OFFICIAL_CHECKPOINTS, *RANDOM_WEIGHTS))}"
        )
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(REPOSITORY, f"{weights}.pth")
    if not isinstance(cached, str):
        raise PretrackError(
            f"the checkpoint {weights} is not on this machine: get it with "
            f"'hf download {REPOSITORY} {weights}.pth' (its licence is CC BY-NC 4.0: not for "
            "commercial use), or choose tracks.tracker=lucas_kanade"
        )
    path = Path(cached).resolve()
    # The cache names a file by its SHA-256.
    if len(path.name) == 64 and file_digest(path) != path.name:
        raise PretrackError(
            f"the checkpoint {path} is damaged: delete it and run "
            f"'hf download {REPOSITORY} {weights}.pth' again"
        )
    return path


def weights_digest(weights: str) -> str:
    """Return what identifies weights in a fingerprint: the file's SHA-256, or a random name itself.

    Raises PretrackError as `find_weights` does.
    """
    return weights if weights in RANDOM_WEIGHTS else file_digest(find_weights(weights))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex. It is cached until the file's size or time changes."""
    stat = path.stat()
    return _cached_digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _cached_digest(path: Path, size: int, modified_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


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
        path = find_weights(name)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("model", state)
            model = CoTracker3(state["time_emb"].shape[1])
            model.load_state_dict(state, strict=True)
        except Exception as error:  # torch raises many types for a file of another kind
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise PretrackError(f"{path} is not a CoTracker3 checkpoint ({reason})") from error
    if compiled:
        model.compile_parts()
    return model.eval().requires_grad_(False).to(device)
