"""Checkpoints: where they are, whether they are whole, and loading them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import PretrackError

if TYPE_CHECKING:
    from pipeline.cotracker3.model import CoTracker3

REPOSITORY = "facebook/cotracker3"
OFFICIAL = ("scaled_offline", "scaled_online", "baseline_offline", "baseline_online")
WINDOWS = {"offline": 60, "sliding": 16}
"""How many frames a network sees at once, by the mode of its weights."""
RANDOM = {"random_offline": WINDOWS["offline"], "random_online": WINDOWS["sliding"]}
"""Names for untrained weights, always the same ones: they show that everything runs, and track nothing."""
_CHUNK = 1 << 22


def find_weights(weights: str) -> Path:
    """The file that `weights` means: a path, or an official name, which is looked up in the Hugging Face cache.

    Raises PretrackError, with the command that gets it and its licence, if it is not there or not whole.
    """
    if weights not in OFFICIAL:
        path = Path(weights).expanduser()
        if path.is_file():
            return path
        raise PretrackError(
            f"there is no CoTracker3 checkpoint {weights}: give a file, or one of {', '.join((*OFFICIAL, *RANDOM))}"
        )
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(REPOSITORY, f"{weights}.pth")
    if not isinstance(cached, str):
        raise PretrackError(
            f"the checkpoint {weights} is not on this machine: get it with 'hf download {REPOSITORY} {weights}.pth' "
            "(its licence is CC BY-NC 4.0: not for commercial use), or choose tracks.tracker=lucas_kanade"
        )
    path = Path(cached).resolve()
    if (
        len(path.name) == 64 and file_digest(path) != path.name
    ):  # the cache names a file by the digest it should have
        raise PretrackError(
            f"the checkpoint {path} is damaged: delete it and run 'hf download {REPOSITORY} {weights}.pth' again"
        )
    return path


def weights_digest(weights: str) -> str:
    """What identifies the weights: SHA-256 of the file, or the name of untrained ones. Raises PretrackError as `find_weights`."""
    return weights if weights in RANDOM else file_digest(find_weights(weights))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex; computed again only when the file changes."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _digest(path: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def load_model(weights: str | Path, device: str = "cpu", compiled: bool = False) -> CoTracker3:
    """The network with its weights, ready for inference.

    `weights` is a path, an official name (`scaled_offline`, …, from the Hugging Face cache), or `random_offline`, `random_online`.
    A `compiled` one (`CoTracker3.compile_parts`) takes a minute or so at its first clips; on a CPU that hardly pays.
    Raises PretrackError if there are none, or the file is no CoTracker3 checkpoint.
    """
    import torch

    from pipeline.cotracker3.model import CoTracker3

    name = str(weights)
    if name in RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = CoTracker3(RANDOM[name])
    else:
        path = find_weights(name)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("model", state)
            model = CoTracker3(state["time_emb"].shape[1])
            model.load_state_dict(state, strict=True)
        except Exception as error:  # torch raises many types for a file that is something else
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise PretrackError(f"{path} is not a CoTracker3 checkpoint ({reason})") from error
    if compiled:
        model.compile_parts()
    return model.eval().requires_grad_(False).to(device)
