"""Metrics of a run: logs and console show what happened, with rates as worked out by hand."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shards.errors import PretrackError
from trainer import metric_logging
from trainer.config import TrainSettings
from trainer.data.batch import track_mask
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.distributed import Rank
from trainer.methods.tracks import TrackMethod, draw_indices
from trainer.metric_logging import (
    MetricWindow,
    TensorBoardLogger,
    TrainingMonitor,
    compute_rates,
    make_metric_logger,
    peak_flops,
)
from trainer.run_setup import make_step
from trainer.train import forward_backward, train

Make = Callable[..., TrainSettings]
CPU = torch.device("cpu")
FIRST_RANK = Rank(0, 1, CPU)
METRICS = {"loss": 1.5, "spearman": 0.25, "visible": 0.75, "lr": 1e-6}


class Clock:
    """A clock that the test moves, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(metric_logging, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Recorder:
    """A metric logger that keeps what it is given."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.images: list[tuple[int, str]] = []
        self.closed = False

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.metrics[step] = dict(values)

    def log_image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        self.images.append((step, name))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(metric_logging, "make_metric_logger", lambda *_: recorder)
    return recorder


def monitor_of(
    settings: TrainSettings,
    rank: Rank = FIRST_RANK,
    *,
    first_step: int = 0,
    flops_per_step: float = 1e12,
) -> TrainingMonitor:
    return TrainingMonitor(
        settings,
        rank,
        first_step=first_step,
        last_step=5,
        steps_per_epoch=2,
        flops_per_step=flops_per_step,
        shown=TrackMethod.console,
    )


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("some other device", None),
    ],
)
def test_peak_flops_are_those_of_the_data_sheet(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak


def test_mfu_is_the_fraction_of_the_peak_of_all_devices() -> None:
    # 791.2 TFLOP/s on 2 H100 of 989 TFLOP/s each
    rates = compute_rates(791.2e12, "NVIDIA H100 80GB HBM3", world=2)
    assert rates == pytest.approx({"teraflops": 791.2, "mfu": 0.4})
    assert compute_rates(5e12, "some other device", world=2) == {"teraflops": 5.0}


def test_a_window_averages_losses_and_measures_time_spent_waiting(clock: Clock) -> None:
    window = MetricWindow()
    for loss, waited in ((1.0, 0.5), (2.0, 1.0), (6.0, 0.0)):
        window.add(torch.tensor(loss), waited)
    clock.now += 6
    assert window.mean_loss == 3.0
    assert window.steps_per_second == 0.5
    assert window.wait_fraction == 0.25
    assert MetricWindow().mean_loss == 0


def test_clips_per_second_and_loader_wait_cover_the_steps_since_the_last_report(
    settings: Make, clock: Clock, recorder: Recorder
) -> None:
    with monitor_of(settings(run={"batch_size": 4})) as monitor:
        clock.now += 3
        monitor.count_step(1, torch.tensor(1.5), 1.0)
        clock.now += 1
        monitor.count_step(2, torch.tensor(1.5), 2.0)
        monitor.log_metrics(2, METRICS)
        clock.now += 10
        monitor.count_step(3, torch.tensor(1.5), 1.0)
        monitor.log_metrics(3, METRICS)
    # 2 steps of 4 clips in 4 s, 3 s of them waiting; then 1 step in 10 s, 1 s of it waiting
    assert recorder.metrics[2] == METRICS | {"clips_per_second": 2.0, "loader_wait": 0.75}
    assert recorder.metrics[3] == METRICS | {"clips_per_second": 0.4, "loader_wait": 0.1}
    assert recorder.closed


def test_the_console_shows_steps_and_sums_up_epochs(
    settings: Make, clock: Clock, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    with monitor_of(settings(run={"batch_size": 4, "log_every": 2})) as monitor:
        for step, loss in enumerate((1.0, 2.0, 3.0, 5.0, 7.0), start=1):
            clock.now += 2
            monitor.count_step(step, torch.tensor(loss), 0.5)
        monitor.log_metrics(5, METRICS | {"loss": 7.0})
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1: mean loss 1.5000 over 2 steps, 2.0 clips/s, 25% of the time waiting for clips",
        "epoch 2: mean loss 4.0000 over 2 steps, 2.0 clips/s, 25% of the time waiting for clips",
        "epoch 3: mean loss 7.0000 over 1 steps, 2.0 clips/s, 25% of the time waiting for clips",
        "step 5/5  loss 7.0000  spearman 0.250  visible 0.75  lr 1.00e-06  2.0 clips/s",
    ]


def test_epochs_shorter_than_a_report_are_not_summed_up_one_by_one(
    settings: Make, clock: Clock, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    with monitor_of(settings(run={"log_every": 3})) as monitor:
        for step in range(1, 6):
            clock.now += 1
            monitor.count_step(step, torch.tensor(float(step)), 0.0)
    (summary,) = capsys.readouterr().out.splitlines()
    assert summary.startswith("epoch 3: mean loss 3.0000 over 5 steps")


def test_only_the_first_rank_reports(
    settings: Make, clock: Clock, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    with monitor_of(settings(), Rank(1, 1, CPU)) as monitor:
        clock.now += 1
        monitor.count_step(
            5, torch.tensor(1.0), 0.0
        )  # the last step: the first rank sums up the epoch
        monitor.log_metrics(5, METRICS)
        monitor.log_image(1, "features/0", np.zeros((2, 2, 3), np.uint8))
    assert not recorder.metrics
    assert not recorder.images
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_the_progress_of_the_run_and_plain_lines(
    settings: Make,
    clock: Clock,
    recorder: Recorder,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the captured output for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with monitor_of(settings(), first_step=2) as monitor:
        monitor.progress.refresh()
        begun = capsys.readouterr().out
        clock.now += 1
        monitor.count_step(4, torch.tensor(1.0), 0.0)
        monitor.log_metrics(4, METRICS)
    output = capsys.readouterr().out
    assert "training" in begun
    assert "40%" in begun  # resumed at step 2 of 5
    assert "80%" in output
    # numbers have no colours of their own
    assert "step 4/5  loss 1.5000  spearman 0.250  visible 0.75  lr 1.00e-06" in output


def test_a_gpus_memory_and_utilisation_are_reported(
    settings: Make, clock: Clock, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a step per second of 791.2 TFLOP on 4 H100: 395.6 of 4 x 989 TFLOP/s are 10 %."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 40_500_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    rank = Rank(0, 4, torch.device("cuda"))
    with monitor_of(settings(run={"batch_size": 4}), rank, flops_per_step=791.2e12) as monitor:
        clock.now += 2
        monitor.count_step(1, torch.tensor(1.5), 0.5)
        monitor.log_metrics(1, METRICS)
    assert recorder.metrics[1] == METRICS | {
        "clips_per_second": 2.0,
        "loader_wait": 0.25,
        "gpu_memory_gb": 40.5,
        "teraflops": pytest.approx(395.6),
        "mfu": pytest.approx(0.1),
    }


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
    indices = draw_indices(0, patches=(8, 4), settings=s, rank=FIRST_RANK)
    loss, _, _ = forward_backward(model, batch, indices)
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


def test_tensorboard_of_a_resumed_run_shows_no_step_twice(settings: Make) -> None:
    s = settings()
    first = TensorBoardLogger(s.run, 0)
    for step in (1, 2, 3, 4):
        first.log_metrics(step, {"loss": 1.0 * step})
    first.close()
    (events,) = (s.run.out / "tensorboard").iterdir()
    events.rename(events.with_name("events.out.tfevents.1000000000"))  # of an earlier second
    resumed = TensorBoardLogger(s.run, 2)  # its checkpoint was after step 2
    resumed.log_metrics(3, {"loss": 30.0})
    resumed.close()
    values = [(event.step, event.value) for event in logged(s).Scalars("loss")]
    assert values == [(1, 1.0), (2, 2.0), (3, 30.0)]


class RecordingPackage(ModuleType):
    """Stands for wandb or trackio, which need an account or a server: keeps what it is given."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[Any, ...]] = []

    def init(self, **arguments: Any) -> None:
        self.calls.append(("init", arguments))

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls.append(("log", values, step))

    def Image(self, image: NDArray[np.uint8]) -> tuple[str, Any]:
        return ("picture", image.tolist())

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.mark.parametrize(
    ("name", "identity"), [("wandb", {"id": "run"}), ("trackio", {})], ids=["wandb", "trackio"]
)
def test_wandb_and_trackio_continue_the_run_of_the_same_folder(
    settings: Make, monkeypatch: pytest.MonkeyPatch, name: str, identity: dict[str, str]
) -> None:
    package = RecordingPackage(name)
    monkeypatch.setitem(sys.modules, name, package)
    s = settings()
    logger = make_metric_logger(name, s, 0)
    logger.log_metrics(3, {"loss": 1.5})
    logger.log_image(4, "features/0", np.full((1, 1, 3), 7, np.uint8))
    logger.close()
    init = {
        "project": "pretrack",
        "name": "run",
        "config": s.model_dump(mode="json"),
        "resume": "allow",
    }
    assert s.run.out.name == "run"
    assert package.calls == [
        ("init", init | identity),
        ("log", {"loss": 1.5}, 3),
        ("log", {"features/0": ("picture", [[[7, 7, 7]]])}, 4),
        ("finish",),
    ]
