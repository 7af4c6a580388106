"""Metrics of a run: what TensorBoard and the console show is what happened."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from shards.errors import PretrackError
from trainer.config import TrainSettings
from trainer.data.batch import track_mask
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.distributed import Rank
from trainer.run_setup import make_step
from trainer.train import forward_backward, train

Make = Callable[..., TrainSettings]


def logged(settings: TrainSettings) -> Any:
    """Read what a run wrote for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(settings.run.out / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_and_the_console_show_what_each_step_did(
    settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    s = settings(run={"steps": 4})  # 10 clips in batches of 4: two epochs
    train(s)
    events = logged(s)
    scalars = {
        name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]
    }
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]

    # The first step again, by hand.
    dataset = ClipDataset(open_snapshots(s.data), s.data, seed=s.run.seed)
    batch = next(iter(Loader(dataset, dataset.sampler(4))))
    torch.manual_seed(s.run.seed)
    model = make_step(s, None, torch.device("cpu"))
    loss, _, _ = forward_backward(
        model,
        batch,
        compared=[1, 2, 3],
        patches=(8, 4),
        step=0,
        settings=s,
        rank=Rank(0, 1, torch.device("cpu")),
    )
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    mask = track_mask(batch, s.tracks)
    counted = mask[:, :1] & mask[:, 1:]
    assert scalars["loss"][0] == pytest.approx(loss.item(), rel=1e-5)
    assert scalars["gradient_norm"][0] == pytest.approx(
        torch.cat(gradients).norm().item(), rel=1e-4
    )
    assert scalars["visible"][0] == pytest.approx(counted.float().mean().item(), rel=1e-5)
    # A cosine from 1e-3 to 0 over four steps, and the default momentum.
    assert scalars["lr"] == pytest.approx([1e-3, 8.5355e-4, 5e-4, 1.4645e-4], rel=1e-4)
    assert scalars["momentum"] == pytest.approx([0.99] * 4)
    assert scalars["frames"] == [3] * 4
    assert all(-1 <= value <= 1 for value in scalars["spearman"])
    # Rows of a soft permutation of 16 patches have an entropy of at most ln 16.
    assert all(0 < value < np.log(16) for value in scalars["student_entropy"])
    assert all(0 < value < np.log(16) for value in scalars["teacher_entropy"])
    # The published loss is a cross-entropy, so it is at least 0, and `excess` at least -ln 16.
    assert all(value > -np.log(16) for value in scalars["excess"])
    assert all(0 <= value < 1 for value in scalars["loader_wait"])
    assert all(value > 0 for value in scalars["clips_per_second"])

    printed = capsys.readouterr().out
    losses = [float(value) for value in re.findall(r"^step \d/4  loss (\S+)", printed, re.M)]
    assert losses == pytest.approx(scalars["loss"], abs=1e-4)
    epochs = re.findall(r"^epoch (\d): mean loss (\S+) over (\d) steps", printed, re.M)
    assert [(number, steps) for number, _, steps in epochs] == [("1", "2"), ("2", "2")]
    assert [float(mean) for _, mean, _ in epochs] == pytest.approx(
        [sum(scalars["loss"][:2]) / 2, sum(scalars["loss"][2:]) / 2], abs=1e-4
    )


def test_tensorboard_shows_frames_above_their_features(settings: Make) -> None:
    s = settings(run={"steps": 2, "pictures": 2})
    train(s)
    images = logged(s).Images("features/1")
    assert [event.step for event in images] == [0, 2]
    picture = cv2.imdecode(
        np.frombuffer(images[1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR_RGB
    )
    assert picture is not None
    assert picture.shape == (128, 4 * 64, 3)
    frames = ClipDataset(open_snapshots(s.data), s.data, seed=s.run.seed)[0, 1]["frames"]
    assert np.array_equal(picture[:64, 64:128], frames[1].permute(1, 2, 0).numpy())
    assert picture[64:].std() > 20


def test_a_logger_that_is_not_installed_is_named(settings: Make) -> None:
    with pytest.raises(PretrackError, match=r"'run\.watch' names trackio, which is not installed"):
        train(settings(run={"steps": 5, "watch": ("trackio",)}))
