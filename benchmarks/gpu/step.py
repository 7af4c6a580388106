"""One training step on the device: bfloat16 against float32, launches, ours against published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.line import Line, attempt, milliseconds, peak_gigabytes, reset_peak
from benchmarks.step import REFERENCES, draw, make_batch, make_model, step_variants
from trainer.config import TrainSettings
from trainer.losses.weighted_sum import make_losses
from trainer.model.backbone import make_backbone
from trainer.model.step import Step
from trainer.model.student_teacher import (
    Embedder,
    Projection,
    TeacherAverage,
    make_teacher,
)

COMPARED = (1, 2, 3)
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def lines(device: str, small: bool) -> Iterator[Line]:
    """Compare precisions and published steps with ours, then time steps of 8 and 32 clips."""
    if small:
        work = partial(_default_step, "vit_tiny_patch16_224", 64, 2, device)
        yield from attempt("vit_tiny_patch16_224, 2 clips", work)
        return
    work = partial(_bfloat16_against_float32, "dino_small", device)
    yield from attempt("bfloat16 against float32", work)
    for backbone, clips in (
        ("dino_small", 8),
        ("dinov2_reg_small", 32),
        ("dino_small", 32),
        ("dino_base", 32),
        ("dinov2_reg_base", 32),
    ):
        work = partial(_default_step, backbone, 224, clips, device)
        yield from attempt(f"{backbone}, {clips} clips", work)
    yield from attempt("published loss", partial(_published_steps, "dino_small", device))


def default_step(backbone: str, precision: str, device: str) -> Step:
    """Make the trainer's default student, teacher and loss, with random weights."""
    settings = TrainSettings.model_validate(
        {
            "data": {"out": ".", "size": 224},
            "model": {"backbone": backbone, "weights": "random"},
            "references": {"count": REFERENCES},
            "run": {"out": ".", "steps": 1, "precision": precision},
        }
    )
    torch.manual_seed(0)
    body = make_backbone(backbone, None, settings.model.options)
    body.freeze(settings.model.trainable_blocks, settings.model.train_norm)
    head = Projection(body.width, settings.model.head)
    student = Embedder(body, head, settings.tracks.align_corners)
    losses = make_losses(settings.loss, settings.model.head[-1])
    model = Step(student, make_teacher(student), losses, settings).to(device)
    if precision == "bfloat16" and device == "cuda":
        model.student.backbone.keep_bfloat16_trunk()
    return model


def _whole_step(model: Step, size: int, clips: int, device: str) -> Callable[[], Tensor]:
    """Return forward, backward and the teacher's update as one function without arguments."""
    batch = make_batch(clips, size, device)
    _, indices = draw(model, clips, COMPARED, size, device)
    average = TeacherAverage(model.teacher, model.student, True)

    def work() -> Tensor:
        model.zero_grad()
        loss, _, _ = model(batch, indices)
        loss.backward()
        average.update(0.99)
        return loss.detach()

    return work


def _gradient(model: Step) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _bfloat16_against_float32(backbone: str, device: str) -> Iterator[Line]:
    """Compare loss and gradient of the same step in both precisions."""
    losses, gradients = [], []
    for precision in ("float32", "bfloat16"):
        model = default_step(backbone, precision, device)
        losses.append(_whole_step(model, 224, 8, device)().item())
        gradients.append(_gradient(model).double())
    difference = abs(losses[1] - losses[0]) / losses[0]
    yield Line("bfloat16 against float32: loss", difference, "relative", at_most=5e-3)
    cosine = torch.cosine_similarity(gradients[0], gradients[1], dim=0).item()
    yield Line("bfloat16 against float32: gradient", cosine, "cosine", at_least=0.99)


def _default_step(backbone: str, size: int, clips: int, device: str) -> Iterator[Line]:
    """Time the default step, and count what the host launches for it."""
    name = f"{backbone}, {clips} clips"
    work = _whole_step(default_step(backbone, "bfloat16", device), size, clips, device)
    reset_peak(device)
    cuda = device == "cuda"
    taken = milliseconds(work, device, rounds=10 if cuda else 1, warm=3 if cuda else 0)
    yield Line(f"{name}: step", taken, "ms")
    yield Line(f"{name}: speed", 1e3 * clips / taken, "clips/s")
    if cuda:
        yield Line(f"{name}: peak memory", peak_gigabytes(device), "GB")
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            work()
            torch.cuda.synchronize()
        launched = sum(event.name in LAUNCHES for event in trace.events())
        yield Line(f"{name}: launches", float(launched), at_most=1000)
        busy = sum(event.self_device_time_total for event in trace.events()) / 1e3
        yield Line(f"{name}: device busy in a step", 100 * min(1.0, busy / taken), "%")


def _published_steps(backbone: str, device: str) -> Iterator[Line]:
    """Time the published loss as published, with the tracker in the step, and as the trainer does.

    Both compute the same clips, weights and references.
    """
    model, batch = make_model(backbone, 224, device), make_batch(8, 224, device)
    references, indices = draw(model, 8, COMPARED, 224, device)
    variants = step_variants(model, indices, device)
    published, *_, ours = variants.values()
    arguments = (batch, COMPARED, references, indices.side)

    average = TeacherAverage(model.teacher, model.student, True)

    def whole(variant: Callable[..., Tensor]) -> None:
        model.zero_grad()
        variant(*arguments).backward()
        average.update(0.99)

    times = [
        milliseconds(partial(whole, variant), device, rounds=3) for variant in (published, ours)
    ]
    for name, taken in zip(("as published", "ours"), times, strict=True):
        yield Line(f"published loss, {backbone}, 8 clips, {name}", taken, "ms")
    yield Line("published loss: speed-up", times[0] / times[1], "x", at_least=1)
