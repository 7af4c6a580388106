"""Checkpoints: everything a run needs to resume exactly, written atomically.

    OUT/checkpoints/step_00000500.pt    tensors and plain values only, read with `weights_only=True`

They hold no random state: every random choice of a step follows from (seed, step, rank), and that
of a clip from (seed, epoch, index). The loader's position is the step.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from shards.errors import PretrackError, access_error
from shards.files import TEMPORARY, open_atomic
from trainer.config import TrainSettings
from trainer.data.clip_table import open_snapshots
from trainer.distributed import Rank, all_reduce_any, broadcast_from_rank0
from trainer.methods.chosen import METHODS

log = logging.getLogger(__name__)

FREE_TO_CHANGE = {
    "data": {"out", "snapshot", "on_error", "cache", "resize", "decode", "cameras"},
    "model": {"weights"},
    "run": {
        "out",
        "workers",
        "resume",
        "device",
        "export",
        "export_every",
        "evaluate_every",
        "evaluate_on",
        "evaluate_clips",
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
"""Settings that a resumed run may change: where things are, how long it is, and how it reports."""

ADDED = {
    "data.control": "none",
    "data.frames_by": "step",
    "data.angle": [10.0, 60.0],
    "model.train_embeddings": False,
}
"""Settings that checkpoints of earlier versions lack, and the values that those versions acted by.
Settings whose default is null need no entry."""

PARTS = {"step", "settings", "snapshots", "clips", "optimizer"}
"""The keys of a checkpoint, beside those of its method (`Method.parts`)."""


def checkpoint_path(out: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` steps."""
    return out / "checkpoints" / f"step_{step:08d}.pt"


def newest_checkpoint(out: Path) -> Path | None:
    """Return the checkpoint with the most steps in a run's folder, or None."""
    return max(_checkpoints(out), default=None)


def save_checkpoint(out: Path, state: dict[str, Any], keep: int) -> Path:
    """Save `state`, named by its `step`; then remove all but the newest `keep` checkpoints."""
    path = checkpoint_path(out, state["step"])
    with open_atomic(path) as file:
        torch.save(state, file)
    for old in _checkpoints(out)[:-keep]:
        old.unlink()
    return path


def remove_temporary_files(out: Path) -> None:
    """Remove the temporary files that a killed run left in its folder."""
    for folder in ("checkpoints", "weights"):
        for path in (out / folder).glob(f"{TEMPORARY}*"):
            path.unlink()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU.

    Raises AccessError if the system cannot read it, and PretrackError if it is damaged or was
    written by another version of pretrack.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:  # the file may be intact
        raise access_error(path, error) from error
    except Exception as error:  # torch raises many types for a truncated file
        reason = " ".join(str(error).split())[:200]
        raise PretrackError(
            f"the checkpoint {path} cannot be read ({reason}): delete it to resume from the one "
            "before"
        ) from error
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("settings"), dict)
        or not isinstance(state.get("step"), int)
    ):
        raise PretrackError(f"{path} is not a checkpoint of pretrack: move it away")
    method = METHODS.get(_method(state["settings"]))
    if lacking := sorted({*PARTS, *(method.parts if method else ())} - state.keys()):
        raise PretrackError(
            f"{path} is of another version of pretrack (it lacks {', '.join(lacking)}): "
            f"{_how_to_start_over(path, state['settings'])}"
        )
    return state


def load_newest(settings: TrainSettings) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest checkpoint of the run, or None, and the names of its snapshots.

    A new run takes the snapshots that the settings name. Raises PretrackError if the run must not
    or cannot be resumed.
    """
    path = newest_checkpoint(settings.run.out)
    if path is None:
        return None, [snapshot.name for snapshot in open_snapshots(settings.data)]
    if not settings.run.resume:
        raise PretrackError(
            f"{settings.run.out} already holds a run: take another 'run.out', or resume it with "
            "'run.resume=true'"
        )
    state = load_checkpoint(path)
    check_same_run(path, state["settings"], settings)
    log.info("resuming from %s", path)
    return state, state["snapshots"]


def load_on_all_ranks(
    settings: TrainSettings, rank: Rank
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return on every rank what `load_newest` returns on rank 0; every rank must call this.

    Only rank 0 decides: other nodes may see another 'run.out', or a newer snapshot. A rank that has
    the same file reads it itself. If one does not, rank 0 sends what it read over the network of
    the CPUs.
    """
    state: dict[str, Any] | None = None

    def load_first() -> tuple[Path | None, list[tuple[str, int, int]], list[str]]:
        nonlocal state
        state, snapshots = load_newest(settings)
        path = checkpoint_path(settings.run.out, state["step"]) if state else None
        return path, checksums(path) if path else [], snapshots

    path, expected, snapshots = broadcast_from_rank0(load_first, rank)
    if path is None:
        return None, snapshots
    if not rank.first and expected and checksums(path) == expected:
        state = load_checkpoint(path)
    if all_reduce_any(state is None, rank):
        state = broadcast_from_rank0(lambda: state, rank)
    return state, snapshots


def checksums(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size and CRC-32 of each member of a checkpoint, without reading the members.

    Empty if the file is missing or is not whole.
    """
    try:
        with ZipFile(path) as archive:
            return [
                (member.filename, member.file_size, member.CRC) for member in archive.infolist()
            ]
    except (OSError, BadZipFile):
        return []


def check_same_run(path: Path, original: dict[str, Any], settings: TrainSettings) -> None:
    """Raise PretrackError if resuming with `settings` would continue a different run.

    path:     the checkpoint
    original: the settings it was saved with, as JSON values; those in FREE_TO_CHANGE may differ
    """
    if _method(original) != settings.method:
        raise PretrackError(
            f"the run in {path.parent.parent} was started with 'method: {_method(original)}': "
            f"take another 'run.out' for 'method: {settings.method}'"
        )
    old = ADDED | _flat(_comparable(original))
    new = _flat(_comparable(settings.model_dump(mode="json")))
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed:
        differences = ", ".join(
            f"{key} was {old.get(key, 'unknown')}, now {new.get(key, 'unknown')}" for key in changed
        )
        version = "" if old.keys() == new.keys() else ", perhaps by another version of pretrack"
        raise PretrackError(
            f"the run in {path.parent.parent} was started with other settings{version} "
            f"({differences}): {_how_to_start_over(path, original)}"
        )


def _how_to_start_over(path: Path, original: dict[str, Any]) -> str:
    """Return the advice for a checkpoint that cannot be resumed, saved with settings `original`."""
    model = original.get("model")
    if isinstance(model, dict) and model.get("lora"):
        # adapters are not merged in a checkpoint, so it has no weights to start from
        return "take another 'run.out'"
    return (
        f"take another 'run.out', and 'model.weights={path}' to start from what its teacher has "
        "learned"
    )


def _method(settings: dict[str, Any]) -> str:
    """Return the method of a run by its settings as JSON values; earlier versions had one."""
    return str(settings.get("method", "tracks"))


def _checkpoints(out: Path) -> list[Path]:
    """Return a run's checkpoints, the fewest steps first."""
    return sorted((out / "checkpoints").glob("step_*.pt"))


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings by part, without those that a resumed run may change."""
    return {
        name: {key: value for key, value in part.items() if key not in FREE_TO_CHANGE.get(name, ())}
        for name, part in settings.items()
        if isinstance(part, dict)
    }


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings by dotted key."""
    return {
        f"{name}.{key}": value for name, part in settings.items() for key, value in part.items()
    }
