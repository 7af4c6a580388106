"""Time a training step as published, and with its redundant work removed part by part.

    python -m benchmarks.step [--backbone NAME] [--clips N]

Each row of the table adds one change to the row above, up to the trainer's own step. All rows
compute the published loss of the same clips, weights and references; the table shows how much their
loss and gradient differ from the first row's. Forward, backward and the teacher's update are timed.
The optimiser, which is the same for all, and the reading of clips are not.

Rows take turns. A time is the median over rounds; a speed-up is the median over rounds of the first
row's time divided by this row's. "Kept" is what autograd keeps until backward; on CUDA the peak of
allocated memory is shown beside it. The tracker is CoTracker3 with random weights on the four
frames, as published. With `--device cuda` the last row is the trainer's default there, bfloat16.
Needs the `dev` extra.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from pipeline.cotracker3.tracking import track
from pipeline.cotracker3.weights import load_model
from trainer.config import TrainSettings
from trainer.data.batch import Batch, track_mask
from trainer.data.device_batches import to_device
from trainer.losses.sorting.objective import make_objective, sorting_loss
from trainer.losses.weighted_sum import make_losses
from trainer.methods.draws import pack_draws, unpack_draws
from trainer.model.backbone import make_backbone, normalised_images
from trainer.model.feature_sampling import (
    References,
    choose_references,
    crop_references,
    sample_points,
)
from trainer.model.step import Step
from trainer.model.step_indices import StepIndices, make_indices
from trainer.model.student_teacher import Embedder, Projection, TeacherAverage, make_teacher

FRAMES, POINTS, REFERENCES = 4, 256, 5


@dataclass(frozen=True)
class StepVariant:
    """Which redundant parts of the published step are removed."""

    tracker: Callable[[Tensor], object] | None = None
    """A tracker that runs in the step, on the frames [B, T, 3, S, S] in 0..255."""
    references_by_index: bool = False
    """Cut references from features already computed, instead of encoding their frames again."""
    anchors_only: bool = False
    """Let the teacher encode frame 0 only, instead of all T."""
    orders_once: bool = False
    """Compute the teacher's soft permutation once per reference, instead of for every frame."""
    fused_loss: bool = False
    """Compute the loss by the fused operator, instead of `diffsort`."""


def variant_step(
    variant: StepVariant,
    model: Step,
    batch: Batch,
    compared: Sequence[int],
    references: References,
    side: int,
) -> Tensor:
    """Compute the published loss, with every transformer run in full."""
    frames, points = batch["frames"], batch["positions"]
    (b, t), size = frames.shape[:2], frames.shape[-1]
    if variant.tracker:
        variant.tracker(frames)
    data = model.settings.data
    images = normalised_images(frames, data.mean, data.std).flatten(0, 1)
    student, teacher = model.student, model.teacher
    features = student.backbone(images)
    with torch.no_grad():
        taught = teacher.backbone(images[::t] if variant.anchors_only else images)
        anchor = teacher.embed(
            sample_points(taught[:: 1 if variant.anchors_only else t], points[:, 0], size, True)
        )
    if variant.references_by_index:
        crops = crop_references(features, references, side)
    else:
        again = student.backbone(images[references.frame.flatten()])
        crops = crop_references(
            again,
            replace(
                references,
                frame=torch.arange(len(again), device=frames.device).view_as(references.frame),
            ),
            side,
        )
    crops = student.embed(crops)
    tracks = student.embed(sample_points(features, points.flatten(0, 1), size, True)).view(
        b, t, POINTS, -1
    )[:, list(compared)]
    mask = track_mask(batch, model.settings.tracks).float()
    weights = mask[:, :1] * mask[:, list(compared)]
    if variant.fused_loss:
        return sorting_loss(
            tracks,
            anchor,
            crops,
            weights,
            objective=make_objective(model.settings.loss),
            detach_teacher=False,
        )
    return dense_loss(tracks, anchor, crops, weights, variant.orders_once)


def dense_loss(
    tracks: Tensor, anchor: Tensor, crops: Tensor, weights: Tensor, orders_once: bool
) -> Tensor:
    """Compute the published objective by diffsort.

    It equals `trainer.losses.sorting.objective.sorting_loss`.
    """
    from diffsort import DiffSortNet

    patches = crops.shape[2]
    hard, soft = (
        DiffSortNet("bitonic", patches, steepness=s, device=tracks.device) for s in (20.0, 3.0)
    )
    share = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
    total = tracks.new_zeros(())
    for r in range(crops.shape[1]):
        reference, order = crops[:, r].transpose(1, 2), None
        for f in range(tracks.shape[1]):
            if order is None or not orders_once:
                order = soft((anchor @ reference).flatten(0, 1))[1]
            a = hard((tracks[:, f] @ reference).flatten(0, 1))[1]
            loss = -(a * (order + 1e-6).log()).sum(dim=-1).mean(dim=-1).view_as(share[:, f])
            total = total + (loss * share[:, f]).sum(dim=-1).mean()
    return total / (crops.shape[1] * tracks.shape[1])


def make_model(backbone: str, size: int, device: str) -> Step:
    """Make a student and a different teacher with random weights, and the published loss."""
    settings = TrainSettings.model_validate(
        {
            "recipe": "upstream",
            "data": {"out": ".", "size": size},
            "model": {"backbone": backbone, "weights": "random"},
            "teacher": {"average": "trained"},
            "run": {"out": ".", "steps": 1},
        }
    )
    torch.manual_seed(0)
    body = make_backbone(backbone, None, settings.model.options)
    body.freeze(2, False)
    student = Embedder(body, Projection(body.width, settings.model.head), True)
    teacher = make_teacher(student)
    for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        if theirs.requires_grad:
            ours.data.add_(torch.randn_like(ours), alpha=0.01)
    return Step(student, teacher, make_losses(settings.loss, settings.model.head[-1]), settings).to(
        device
    )


def make_batch(clips: int, size: int, device: str) -> Batch:
    """Make clips of noise, with points that move at random."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(
        0, 256, (clips, FRAMES, 3, size, size), generator=generator, dtype=torch.uint8
    )
    points = torch.rand(clips, 1, POINTS, 2, generator=generator) * size
    points = points + torch.randn(clips, FRAMES, POINTS, 2, generator=generator) * 5
    visible = (torch.rand(clips, FRAMES, POINTS, generator=generator) < 0.8).float()
    visible[:, 0] = 1
    batch = Batch(
        frames=frames,
        positions=points,
        visibility=visible,
        confidence=torch.ones_like(visible),
        inside=torch.ones_like(visible, dtype=torch.bool),
        key=[""] * clips,
    )
    return to_device(batch, torch.device(device))


def draw(
    model: Step, clips: int, compared: Sequence[int], size: int, device: str
) -> tuple[References, StepIndices]:
    """Draw references; return them, and the indices of the trainer's own step, on the device."""
    grid = model.student.backbone.grid(size)
    references = choose_references(
        clips,
        FRAMES,
        REFERENCES,
        grid=grid,
        side=grid // 2,
        generator=torch.Generator().manual_seed(1),
    )
    parts = [make_indices(clips, FRAMES, compared=compared, references=references, side=grid // 2)]
    (indices,) = unpack_draws(pack_draws(parts).to(device), parts)
    frame, top, left = (
        tensor.to(device) for tensor in (references.frame, references.top, references.left)
    )
    return References(frame, top, left), indices


def step_variants(
    model: Step, indices: StepIndices, device: str
) -> dict[str, Callable[..., Tensor]]:
    """Return the steps of the table's rows, each one change from the row before.

    indices: those of the trainer's own step
    """
    bfloat16 = Step(
        model.student, model.teacher, model.losses, with_precision(model.settings, "bfloat16")
    )
    tracker = partial(track, load_model("random_offline", device), grid=16, backward=False)
    steps = [
        ("published, tracker in the step", StepVariant(tracker)),
        ("tracks read, no tracker", variant := StepVariant()),
        ("references by index", variant := replace(variant, references_by_index=True)),
        ("teacher on anchor frames only", variant := replace(variant, anchors_only=True)),
        ("teacher's order once per reference", variant := replace(variant, orders_once=True)),
        ("sorting loss as a fused operator", replace(variant, fused_loss=True)),
    ]
    named: dict[str, Callable[..., Tensor]] = {
        name: partial(variant_step, variant, model) for name, variant in steps
    }
    named["shared trunk, needed frames only: ours"] = lambda batch, *_: model(batch, indices)[0]
    if device == "cuda":
        # Used under autocast only, so the rows above stay float32.
        model.student.backbone.keep_bfloat16_trunk()
        named["ours, bfloat16"] = lambda batch, *_: bfloat16(batch, indices)[0]
    return named


def with_precision(settings: TrainSettings, precision: str) -> TrainSettings:
    """Return the same settings with another precision of the transformers."""
    return settings.model_copy(
        update={"run": settings.run.model_copy(update={"precision": precision})}
    )


def timed(step: Callable[..., Tensor], model: Step, arguments: tuple[object, ...]) -> float:
    """Time forward, backward and the teacher's update, in seconds."""
    model.zero_grad()
    started = time.perf_counter()
    step(*arguments).backward()  # type: ignore[no-untyped-call]
    # A momentum of 1 changes nothing, so all rows see the same teacher.
    TeacherAverage(model.teacher, model.student, True).update(1.0)
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(
    step: Callable[..., Tensor], model: Step, arguments: tuple[object, ...]
) -> tuple[float, Tensor, float, float]:
    """Run a step once, without timing it.

    Returns the loss, the gradient of all trained weights, the GB that autograd keeps until
    backward, and the peak of GB allocated on a CUDA device (0 on a CPU).
    """
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in weights:
            storages[address] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    cuda = next(model.parameters()).is_cuda
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step(*arguments)
        kept = sum(storages.values())
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat(
        [p.grad.flatten() for p in model.student.parameters() if p.grad is not None]
    )
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return loss.item(), gradient, kept / 1e9, peak / 1e9


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step")
    parser.add_argument("--backbone", default="dinov2_reg_base")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--compared",
        type=int,
        nargs="+",
        default=[1, 2, 3],
        help="frames compared with the anchor frame",
    )
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    a = parse_arguments()
    model, batch = make_model(a.backbone, a.size, a.device), make_batch(a.clips, a.size, a.device)
    references, indices = draw(model, a.clips, a.compared, a.size, a.device)
    arguments = (batch, a.compared, references, indices.side)
    print(
        f"{a.backbone}, {a.clips} clips of {FRAMES} frames at {a.size} px, {POINTS} points,",
        end=" ",
    )
    print(f"frames {a.compared} compared with the anchor frame, {a.device}")
    steps = step_variants(model, indices, a.device)
    results = {name: measured(step, model, arguments) for name, step in steps.items()}  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(a.rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step, model, arguments))
    first, second, *_ = steps
    expected_loss, expected_gradient, _, _ = results[first]
    heads = ["step", "seconds", "speed-up over the first", "speed-up over the second", "kept GB"]
    heads += ["peak GB", "difference of the loss", "relative difference of the gradient"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, (loss, gradient, kept, peak) in results.items():
        speed_ups = [
            median(x / y for x, y in zip(seconds[base], seconds[name], strict=True))
            for base in (first, second)
        ]
        difference = (gradient - expected_gradient).norm() / expected_gradient.norm()
        figures = [f"{median(seconds[name]):.2f}", *(f"{gain:.1f}x" for gain in speed_ups)]
        figures += [f"{kept:.2f}", f"{peak:.2f}"]
        figures += [f"{abs(loss - expected_loss):.1e}", f"{difference:.1e}"]
        print(f"| {name} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
