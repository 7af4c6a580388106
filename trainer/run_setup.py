"""Prepare a run for its first step: make models and optimizer, and check that settings fit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from shards.errors import PretrackError, SettingsError
from trainer.config import OptimSettings, TrainSettings
from trainer.losses.weighted_sum import FEATURE_LOSSES, make_losses
from trainer.methods.method import TrainedModel
from trainer.model.backbone import Backbone, make_backbone
from trainer.model.lora import add_adapters
from trainer.model.reference_queue import ReferenceQueue
from trainer.model.step import Step
from trainer.model.student_teacher import Embedder, Projection, make_teacher


def make_step(
    settings: TrainSettings, checkpoint: Mapping[str, Any] | None, device: torch.device
) -> Step:
    """Make student, teacher and losses, from their start weights or from a checkpoint."""
    m = settings.model
    backbone = make_backbone(m.backbone, None if checkpoint else m.weights, m.options)
    backbone.freeze(m.trainable_blocks, m.train_norm, m.train_embeddings)
    base = None
    if not settings.loss.weights.keys().isdisjoint(FEATURE_LOSSES):
        base = copy.deepcopy(backbone).requires_grad_(False).eval()
    if m.lora:
        add_adapters(backbone, m.lora)
    student = Embedder(backbone, Projection(backbone.width, m.head), settings.tracks.align_corners)
    model = Step(student, make_teacher(student), make_losses(settings.loss, m.head[-1]), settings)
    model.losses.base = base
    if settings.references.kind == "queue":
        model.losses.queue = ReferenceQueue(settings.references.queue, m.head[-1])
    if settings.loss.weights.keys() <= FEATURE_LOSSES:
        # No loss reaches the head, and DistributedDataParallel waits for a gradient of all weights.
        student.head.requires_grad_(False)
    if checkpoint:
        for part in ("student", "teacher", "losses"):
            model.get_submodule(part).load_state_dict(checkpoint[part])
    return model.to(device)


def make_optimizer(model: TrainedModel, optim: OptimSettings, *, fused: bool) -> torch.optim.AdamW:
    """Make AdamW with two groups for each of the model's learning rates (`TrainedModel.rates`).

    Weights of two or more axes have weight decay, and others have none. A group's `ratio` is its
    learning rate as a fraction of `optim.lr`.

    fused: update all weights in one kernel, which can be told on the device to change none
           (`StepRecord`); other steps are rounded in another way
    """
    groups = []
    for parts, ratio in model.rates(optim):
        trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim < 2]
        for parameters, decay in ((decayed, optim.weight_decay), (others, 0.0)):
            if parameters:
                groups.append(
                    {
                        "params": parameters,
                        "weight_decay": decay,
                        "ratio": ratio,
                        "lr": optim.lr * ratio,
                    }
                )
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused or None)


def load_optimizer(optimizer: torch.optim.AdamW, state: dict[str, Any]) -> None:
    """Load a checkpoint's state into an optimizer, which stays fused or not as it was made.

    A checkpoint from a CPU can so be resumed on CUDA, and the other way round.
    """
    groups = [group | {"fused": optimizer.defaults["fused"]} for group in state["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})


def reference_patches(backbone: Backbone, settings: TrainSettings) -> tuple[int, int]:
    """Return the sides, in patches, of the feature grid and of a reference crop.

    Raises PretrackError if a crop has too few patches to sort, and, with a queue, if a frame has
    fewer than are stored.
    """
    grid = backbone.grid(settings.data.size)
    if settings.references.kind == "queue":
        if settings.references.stored > grid**2:
            raise PretrackError(
                f"'references.stored: {settings.references.stored}' is more than the {grid**2} "
                "patches of a frame: lower it, or enlarge 'data.size'"
            )
        return grid, 1  # there are no crops
    side = round(grid * settings.references.crop_ratio)
    if side < 2:
        raise PretrackError(
            f"a reference would have {side}x{side} patches of a grid of {grid}x{grid}, which "
            "leaves nothing to sort: enlarge 'data.size' or 'references.crop_ratio'"
        )
    return grid, side


def check_batch_split(settings: TrainSettings, world: int) -> None:
    """Check that a rank's clips divide into `run.accumulate` parts. Raises PretrackError."""
    run = settings.run
    clips = run.batch_size // world
    if clips % run.accumulate:
        raise PretrackError(
            f"the {clips} clips of a rank cannot be shared by "
            f"'run.accumulate: {run.accumulate}' parts"
        )


def check_compiler(device: torch.device) -> None:
    """Compile a trivial function.

    Raises SettingsError if torch.compile does not work here: torch's own error has a hundred lines.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))  # type: ignore[no-untyped-call]
    except Exception as error:  # one of many types: no C++ compiler, no Triton, a Python too new
        reason = str(error).strip().split("\n")[0]
        raise SettingsError(
            f"'run.compile' needs a C++ compiler here, and on CUDA Triton ({reason}): leave it out"
        ) from error
