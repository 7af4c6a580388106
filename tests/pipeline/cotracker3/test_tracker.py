"""CoTracker3 as the tracker of a build: its checkpoints, fingerprints, memory and compilation."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from manifests.settings import check_settings
from pipeline.cotracker3.weights import CHECKPOINTS, load_model
from pipeline.trackers.cotracker3 import CoTracker3Settings
from pipeline.trackers.network_tracker import NetworkTracker
from shards.clip import Tracks
from shards.errors import PretrackError, SettingsError
from shards.geometry import grid_points
from tests.helpers.clips import make_clip
from tests.pipeline.cotracker3.test_cotracker3 import golden_weights, make_video

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.mark.slow
def test_checkpoints_that_cannot_be_used_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    torch.save({"something": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save(golden_weights("online"), tmp_path / "online.pth")
    for weights, says in (
        ("other.pth", "is not a CoTracker3 checkpoint"),
        ("text.pth", "is not a CoTracker3 checkpoint"),
        ("absent.pth", "there is no CoTracker3 checkpoint"),
    ):
        with pytest.raises(PretrackError, match=says):
            load_model(tmp_path / weights)
    with pytest.raises(
        PretrackError, match=r"hf download facebook/cotracker3 baseline_online.pth.*CC BY-NC 4.0"
    ):
        CHECKPOINTS.find("baseline_online")
    with pytest.raises(PretrackError, match=r"are of the sliding kind, and tracks.mode is offline"):
        CoTracker3Settings(
            tracker="cotracker3", weights=str(tmp_path / "online.pth"), device="cpu"
        ).load()
    with pytest.raises(
        PretrackError, match=r"random_offline are of the offline kind, and tracks.mode is sliding"
    ):
        CoTracker3Settings(
            tracker="cotracker3", weights="random_offline", mode="sliding", device="cpu"
        ).load()


def test_a_damaged_file_of_the_hugging_face_cache_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache links a name to a file that is named by its own SHA-256."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--facebook--cotracker3"
    for folder in ("blobs", "refs", "snapshots/abc"):
        (cache / folder).mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    blob = cache / "blobs" / hashlib.sha256(b"whole").hexdigest()
    blob.write_bytes(b"whole")
    (cache / "snapshots" / "abc" / "scaled_offline.pth").symlink_to(blob)
    assert CHECKPOINTS.find("scaled_offline") == blob
    blob.write_bytes(b"not whole")
    with pytest.raises(PretrackError, match=r"is damaged: delete it and run 'hf download"):
        CHECKPOINTS.find("scaled_offline")


def test_moving_a_checkpoint_or_its_memory_changes_no_fingerprint(tmp_path: Path) -> None:
    torch.save(golden_weights("online"), tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    a, b = (
        CoTracker3Settings(
            tracker="cotracker3",
            weights=str(tmp_path / name),
            memory_gb=memory,
            device=device,
            compile=compiled,
        )
        for name, memory, device, compiled in (
            ("a.pth", 1.0, "cpu", True),
            ("b.pth", 2.0, "auto", False),
        )
    )
    assert a.of_content() == b.of_content()
    other = CoTracker3Settings(tracker="cotracker3", weights="random_online")
    assert other.of_content() != a.of_content()


def test_snapshots_that_name_the_backend_keep_their_tracks() -> None:
    """Earlier versions stored `backend: pretrack`; such settings still mean the same tracks."""
    values: dict[str, Any] = {"tracker": "cotracker3", "weights": "random_offline"}
    now = check_settings(CoTracker3Settings, values, "test")
    before = check_settings(CoTracker3Settings, {**values, "backend": "pretrack"}, "test")
    assert before == now
    assert before.of_content()["backend"] == "pretrack"
    with pytest.raises(SettingsError, match="backend has only one value left, pretrack"):
        check_settings(CoTracker3Settings, {**values, "backend": "cotracker"}, "test")


@pytest.fixture
def small_tracker() -> NetworkTracker:
    settings = CoTracker3Settings(
        tracker="cotracker3",
        weights="random_offline",
        precision="exact",
        device="cpu",
        grid=2,
        iterations=1,
    )
    return settings.load()


def track_two_clips(tracker: NetworkTracker) -> list[Tracks]:
    clips = [clip.permute(0, 2, 3, 1).numpy() for clip in make_video(2, 2)]
    return list(tracker.track(clips, [make_clip().info] * 2, (0, 1), grid_points(2, 64, 48)))


CUDA_FULL = torch.cuda.OutOfMemoryError("CUDA out of memory")


def out_of_memory_beyond(
    rows: int, error: Exception = CUDA_FULL
) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
    """Make a module hook that raises CUDA's error for more than `rows` inputs, without a GPU."""

    def check(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[0] > rows:
            raise type(error)(*error.args)

    return check


@pytest.mark.slow
@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("fnet", CUDA_FULL),
        ("updateformer", CUDA_FULL),
        ("updateformer", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …")),
    ],
)
def test_running_out_of_memory_takes_fewer_at_once(
    small_tracker: NetworkTracker,
    caplog: pytest.LogCaptureFixture,
    part: str,
    error: Exception,
) -> None:
    """Also with `torch.compile`, which such an error is not blamed on."""
    expected = track_two_clips(small_tracker)
    small_tracker._memory, small_tracker._compiled = 1 << 30, True
    small_tracker._model.get_submodule(part).register_forward_pre_hook(
        out_of_memory_beyond(1, error)
    )
    with caplog.at_level(logging.WARNING):
        got = track_two_clips(small_tracker)
    assert (
        caplog.messages[0]
        == "out of GPU memory: tracking fewer clips at once from now on (tracks.memory_gb=0.5)"
    )
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours.positions, theirs.positions, atol=1e-3)
        np.testing.assert_array_less(np.abs(ours.visibility.astype(int) - theirs.visibility), 2)
    caplog.clear()
    track_two_clips(small_tracker)  # the lower limit is kept
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.usefixtures("small_maps")
def test_the_failed_batch_is_freed_before_memory_is_given_back(
    small_tracker: NetworkTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback of the error holds its tensors: `empty_cache` could not give them back."""
    failed: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def fail_once(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not failed:
            failed.append(weakref.ref(inputs[0]))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("torch.cuda.empty_cache", lambda: alive.append(failed[0]() is not None))
    small_tracker._memory = 1 << 30
    small_tracker._model.updateformer.register_forward_pre_hook(fail_once)
    track_two_clips(small_tracker)
    assert alive == [False]


@pytest.mark.slow
@pytest.mark.usefixtures("small_maps")
def test_a_crashed_kernel_is_not_blamed_on_compilation(small_tracker: NetworkTracker) -> None:
    small_tracker._compiled = True
    crash = RuntimeError("CUDA error: an illegal memory access was encountered")
    small_tracker._model.fnet.register_forward_pre_hook(out_of_memory_beyond(0, crash))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        track_two_clips(small_tracker)


@pytest.mark.usefixtures("small_maps")
def test_memory_too_small_for_anything_says_what_to_change(
    small_tracker: NetworkTracker,
) -> None:
    small_tracker._memory = 1 << 22
    small_tracker._model.fnet.register_forward_pre_hook(out_of_memory_beyond(0))
    with pytest.raises(
        PretrackError,
        match=r"too small even for one anchor of one clip: lower frames.clip_frames or tracks.grid",
    ):
        track_two_clips(small_tracker)


@pytest.mark.slow
@pytest.mark.usefixtures("small_maps")
def test_where_compilation_fails_tracking_goes_on_without(
    small_tracker: NetworkTracker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    expected = track_two_clips(small_tracker)
    small_tracker._model, small_tracker._compiled = (
        load_model("random_offline", compiled=True),
        True,
    )
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/no/compiler/here",)}),
        caplog.at_level(logging.WARNING),
    ):
        got = track_two_clips(small_tracker)
    assert any("torch.compile does not work here" in record.message for record in caplog.records)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours.positions, theirs.positions)
