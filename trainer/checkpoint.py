"""Checkpoints: everything a run needs to go on exactly where it was, whole on disk or not there.

    OUT/checkpoints/step_00000500.pt     tensors and plain values only, read with `weights_only=True`

No random state is among it: every random choice of a step follows from (seed, step, rank), and of a clip from (seed, epoch, index).
The loader's position is the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from shards.errors import PretrackError
from shards.files import TEMPORARY, open_atomic
from trainer.config import TrainSettings

FREE_TO_CHANGE = {
    "data": {"out", "snapshot", "on_error", "cache"},
    "model": {"weights"},
    "run": {
        "out",
        "workers",
        "resume",
        "device",
        "export",
        "steps",
        "epochs",
        "checkpoint_every",
        "keep",
        "log_every",
        "compile",
        "watch",
        "pictures",
    },
}
"""Settings a resumed run may change: where things lie, how long it is, and how it reports."""

PARTS = {"step", "settings", "snapshots", "clips", "student", "teacher", "losses", "optimizer"}
"""What a checkpoint holds."""


def checkpoint_path(out: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return out / "checkpoints" / f"step_{step:08d}.pt"


def newest_checkpoint(out: Path) -> Path | None:
    """The checkpoint with the most steps in a run's folder, or None."""
    return max(_checkpoints(out), default=None)


def save_checkpoint(out: Path, state: dict[str, Any], keep: int) -> Path:
    """Writes `state` (its `step` names the file), then removes all but the newest `keep` checkpoints."""
    path = checkpoint_path(out, state["step"])
    with open_atomic(path) as file:
        torch.save(state, file)
    for old in _checkpoints(out)[:-keep]:
        old.unlink()
    return path


def remove_temporary_files(out: Path) -> None:
    """Removes what a killed run was writing."""
    for folder in ("checkpoints", "weights"):
        for path in (out / folder).glob(f"{TEMPORARY}*"):
            path.unlink()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU. Raises PretrackError if it is damaged, or of another version."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is just not whole
        reason = " ".join(str(error).split())[:200]
        raise PretrackError(
            f"the checkpoint {path} cannot be read ({reason}): delete it to go on from the one before"
        ) from error
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("settings"), dict)
        or not isinstance(state.get("step"), int)
    ):
        raise PretrackError(f"{path} is no checkpoint of a run of ours: move it away")
    if lacking := sorted(PARTS - state.keys()):
        raise PretrackError(
            f"{path} is of another version of pretrack (it lacks {', '.join(lacking)}): {_begin_anew(path, state['settings'])}"
        )
    return state


def check_same_run(path: Path, begun: dict[str, Any], settings: TrainSettings) -> None:
    """Raises PretrackError if a run begun with the settings `begun` (as JSON values) would not be the same run with these."""
    old, new = _flat(_comparable(begun)), _flat(_comparable(settings.model_dump(mode="json")))
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed:
        how = "with other settings" + (
            "" if old.keys() == new.keys() else ", perhaps by another version of pretrack"
        )
        what = ", ".join(
            f"{key} was {old.get(key, 'unknown')}, now {new.get(key, 'unknown')}" for key in changed
        )
        raise PretrackError(
            f"the run in {path.parent.parent} was begun {how} ({what}): {_begin_anew(path, begun)}"
        )


def _begin_anew(path: Path, begun: dict[str, Any]) -> str:
    model = begun.get("model")
    if isinstance(model, dict) and model.get(
        "lora"
    ):  # adapters are no weights to start from until they are merged
        return "take another 'run.out'"
    return f"take another 'run.out', and 'model.weights={path}' to start from what its teacher has learned"


def _checkpoints(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").glob("step_*.pt"))


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in part.items() if key not in FREE_TO_CHANGE.get(name, ())}
        for name, part in settings.items()
        if isinstance(part, dict)
    }


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{name}.{key}": value for name, part in settings.items() for key, value in part.items()
    }
