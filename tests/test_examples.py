"""Run the files in `examples/` as they are, and compare them with the package."""

from __future__ import annotations

import importlib.util
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from manifests.rows import Failure
from manifests.settings import load_settings
from manifests.snapshot import Snapshot, open_snapshot
from pipeline.inspection.contact_sheet import read_clip
from pipeline.publication.card_files import write_card_files
from pipeline.publication.licences import terms_of_snapshot
from pipeline.sources.video import Video
from shards import jpeg
from shards.errors import SettingsError
from shards.reader import iterate_shard
from tests.helpers.clips import make_clip
from tests.helpers.panning import STEP, panning_frames
from tests.helpers.published import publish_clips

REPOSITORY = Path(__file__).parent.parent
EXAMPLES = REPOSITORY / "examples"


def load(name: str) -> Any:
    """Import an example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def start(name: str, *arguments: object) -> subprocess.Popen[str]:
    """Start an example as its docstring says."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait until an example ends without error, and return what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def run(name: str, *arguments: object) -> str:
    """Run an example to its end, and return what it printed."""
    return output_of(start(name, *arguments))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    publish_clips(
        folder, [make_clip(f"made-{n}-00000000-000000", n, frames=5 + n) for n in range(4)]
    )
    return folder


def test_the_reader_written_from_the_format_page_agrees_with_pretracks(out: Path) -> None:
    (tar,) = (out / "shards").iterdir()
    read = list(load("read_a_shard").read_shard(str(tar)))
    ours = list(iterate_shard(tar))
    assert len(read) == len(ours) == 4
    for theirs, clip in zip(read, ours, strict=True):
        assert theirs["key"] == theirs["info"]["key"] == clip.info.key
        assert tuple(theirs["jpegs"]) == clip.jpegs
        assert theirs["info"]["cameras"][1]["fx"] == 80.0
        for name in ("anchors", "positions", "visibility", "confidence"):
            a, b = theirs["tracks"][name], getattr(clip.tracks, name)
            assert a.dtype == b.dtype
            assert (a == b).all(), name


def test_plain_pytorch_reads_clips_of_four_lengths_without_a_video_decoder(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for decoder in ("torchcodec", "av", "decord"):
        monkeypatch.setitem(sys.modules, decoder, None)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    (tar,) = (out / "shards").iterdir()
    clips = list(load("load_in_pytorch").Clips(out))
    assert [len(clip["frames"]) for clip in clips] == [5, 6, 7, 8]
    for clip, ours in zip(clips, iterate_shard(tar), strict=True):
        assert clip["frames"].shape[1:] == (3, 64, 96)
        assert clip["frames"].dtype == torch.uint8
        decoded = torch.from_numpy(jpeg.decode(ours.jpegs[-1])).permute(2, 0, 1)
        assert (clip["frames"][-1].int() - decoded.int()).abs().float().mean() < 1
        assert (clip["positions"].numpy() == ours.tracks.positions).all()
        assert (clip["visibility"].numpy() == ours.tracks.visibility).all()


@pytest.mark.parametrize("name", ["read_a_shard", "stream_with_webdataset", "load_in_pytorch"])
def test_readers_need_no_pretrack_and_stay_short(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert not [
        package
        for package in ("shards", "manifests", "pipeline", "trainer", "pretrack")
        if f"import {package}" in text or f"from {package}" in text
    ]
    assert len(text.splitlines()) < 65


def test_the_reader_refuses_other_bytes() -> None:
    import zstandard

    read_tracks = load("read_a_shard").read_tracks
    pack = zstandard.ZstdCompressor().compress
    whole = pack(struct.pack("<4sHHiII", b"PTRK", 2, 32, 0, 1, 1) + bytes(10))
    assert read_tracks(whole)["positions"].shape == (1, 1, 1, 2)
    others = [
        pack(bytes(60)),
        pack(b"PTRK"),
        whole + whole[:-3],
        pack(struct.pack("<4sHHiII", b"PTRK", 2, 0, 0, 1, 1) + bytes(10)),
    ]
    for data in others:
        with pytest.raises(ValueError, match="not whole tracks of version 2"):
            read_tracks(data)
    claims_a_tebibyte = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    for data in (
        claims_a_tebibyte,
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(60)),
    ):
        with pytest.raises(ValueError, match="are too large, or do not declare their size"):
            read_tracks(data)


def test_the_reader_refuses_another_format(out: Path, tmp_path: Path) -> None:
    (tar,) = (out / "shards").iterdir()
    (tmp_path / "newer.tar").write_bytes(tar.read_bytes().replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(ValueError, match="has format 2, not format 1"):
        list(load("read_a_shard").read_shard(str(tmp_path / "newer.tar")))


@pytest.mark.slow
def test_readers_run_as_they_are(out: Path) -> None:
    (tar,) = (out / "shards").iterdir()
    assert (
        run("read_a_shard", tar).splitlines()[2]
        == "made-2-00000000-000000 7 frames, tracks (2, 7, 9, 2)"
    )
    assert sorted(run("load_in_pytorch", out).splitlines())[3] == (
        "made-3-00000000-000000 (8, 3, 64, 96) (2, 8, 9, 2)"
    )
    streamed = run("stream_with_webdataset", out).splitlines()
    assert [line.split()[:2] for line in streamed] == [
        [f"made-{n}-00000000-000000", str(5 + n)] for n in range(4)
    ]
    assert "(64, 96, 3)" in streamed[0]


class RunsCommand:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.slow
def test_streaming_a_shard_runs_no_code_that_it_contains(tmp_path: Path) -> None:
    publish_clips(tmp_path / "out", [make_clip("made-0-00000000-000000", 0)])
    (tar,) = (tmp_path / "out" / "shards").iterdir()
    runs = pickle.dumps(RunsCommand(f"touch {tmp_path}/ran"))
    with tarfile.open(tar, "a") as opened:
        member = tarfile.TarInfo("made-0-00000000-000000.pkl")
        member.size = len(runs)
        opened.addfile(member, BytesIO(runs))
    assert run("stream_with_webdataset", tmp_path / "out").startswith(
        "made-0-00000000-000000 6 (64, 96, 3)"
    )
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two panning sequences in DAVIS's layout, and a list that names a third one."""
    root = tmp_path_factory.mktemp("DAVIS")
    for seed, name in enumerate(("bear", "goat")):
        folder = root / "JPEGImages" / "480p" / name
        folder.mkdir(parents=True)
        for number, frame in enumerate(panning_frames(seed, 10)):
            cv2.imwrite(str(folder / f"{number:05d}.jpg"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("bear\ngoat\nlost\n")
    return root


def config(path: Path, **parts: Any) -> Path:
    path.write_text(yaml.safe_dump({"frames": {"clip_frames": 10, "min_frames": 6}, **parts}))
    return path


def test_the_custom_dataset_lists_its_videos_and_what_is_missing(
    davis: Path, tmp_path: Path
) -> None:
    example = load("custom_dataset")
    bear, goat, lost = example.Davis(dataset="davis", root=davis).find_videos()
    assert isinstance(bear, Video)
    assert (bear.video_id, goat.video_id, len(bear.image_files)) == ("bear", "goat", 10)
    assert bear.timestamps is not None
    assert bear.timestamps[1] == 1 / 24
    assert isinstance(lost, Failure)
    assert lost.reason == "missing sequence"
    with pytest.raises(SettingsError, match=r"unknown key 'sources.0.lists' \(did you mean 'list'"):
        load_settings(
            example.Build,
            config(
                tmp_path / "c.yaml",
                sources=[{"dataset": "davis", "root": str(davis), "lists": "train"}],
                out="o",
            ),
        )


def test_the_custom_tracker_tracks_moving_points() -> None:
    example = load("custom_tracker")
    frames = np.stack(panning_frames(3, 6))
    queries = np.array([[40.0, 30.0], [60.0, 40.0]], np.float32)
    tracks = example.Farneback(tracker="farneback").load().track([frames], [], [0, 3], queries)[0]
    assert tracks.positions.shape == (2, 6, 2, 2)
    assert (tracks.positions[0, 0] == queries).all()
    assert (tracks.positions[1, 3] == queries).all()
    for row, anchor in enumerate((0, 3)):
        for t in range(6):
            true = queries + (t - anchor) * np.array(STEP)
            assert np.abs(tracks.positions[row, t] - true).max() < 0.7, (
                "frames move by whole pixels, and optical flow is not exact"
            )
    assert (tracks.visibility == 255).all()


@pytest.mark.slow
def test_the_custom_dataset_and_tracker_build_shards(davis: Path, tmp_path: Path) -> None:
    tracks = {"tracker": "lucas_kanade", "grid": 4, "anchors": [0]}
    own = [{"dataset": "davis", "root": str(davis)}]
    small = {"split": {"eval_fraction": 0.0}, "ray": {"cpus": 2}}
    with_dataset = config(
        tmp_path / "d.yaml",
        sources=own,
        tracks=tracks,
        max_failed_videos=0.5,
        out=str(tmp_path / "d"),
        **small,
    )
    folder = [{"dataset": "video_folder", "root": str(davis / "JPEGImages")}]
    own_tracks = {"tracker": "farneback", "grid": 4, "anchors": [0, 4]}
    with_tracker = config(
        tmp_path / "t.yaml", sources=folder, tracks=own_tracks, out=str(tmp_path / "t"), **small
    )
    # Both run at the same time.
    processes = [start("custom_dataset", with_dataset), start("custom_tracker", with_tracker)]
    for process in processes:
        assert "1 shards made" in output_of(process)

    snapshot = open_snapshot(tmp_path / "d")
    assert sorted(snapshot.clips["video_id"].to_pylist()) == ["bear", "goat"]
    assert snapshot.failures["reason"].to_pylist() == ["missing sequence"]
    assert f"\n- {load('custom_dataset').TERMS}\n" in card_of(snapshot)
    snapshot = open_snapshot(tmp_path / "t")
    assert read_clip(
        snapshot, snapshot.clips.slice(0, 1).to_pylist()[0]
    ).tracks.positions.shape == (2, 10, 16, 2)
    assert "tracker: farneback" in card_of(snapshot)


def card_of(snapshot: Snapshot) -> str:
    """Write a dataset card as `pretrack card` does, and return it."""
    write_card_files(snapshot, terms_of_snapshot(snapshot), "Example")
    return (Path(str(snapshot.out)) / "README.md").read_text()


def test_the_custom_loss_is_the_mean_distance_over_tracks_that_count() -> None:
    import torch

    from trainer.losses.embeddings import Embeddings
    from trainer.losses.weighted_sum import make_losses

    teacher = torch.nn.functional.normalize(
        torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    student = torch.stack([teacher, -teacher], dim=1)
    points, example = torch.zeros(2, 2, 5, 2), load("custom_loss")
    for weights, expected in (
        (torch.tensor([1.0, 0.0]), 0.0),
        (torch.tensor([1.0, 1.0]), 1.0),
        (torch.tensor([0.0, 1.0]), 1.0),
    ):
        counts = weights[None, :, None].expand(2, 2, 5)
        e = Embeddings(student, teacher, teacher[:, None], counts, points, points[:, 0])
        assert example.steady(e).item() == pytest.approx(expected, abs=1e-5)
    settings = example.OwnLossSettings(sorting=0, steady={"weight": 0.5})
    total, parts = make_losses(settings, 8)(e)
    assert list(parts) == ["steady"]
    assert total.item() == pytest.approx(0.5 * expected, abs=1e-5)


@pytest.mark.slow
def test_the_custom_loss_trains(tmp_path: Path) -> None:
    from tests.trainer.conftest import panning_clip

    publish_clips(tmp_path / "out", [panning_clip(f"made-{i:02d}", i) for i in range(6)])
    model = {
        "backbone": "vit_tiny_patch16_224",
        "weights": "random",
        "options": {"depth": 2, "patch_size": 8},
        "head": [32, 16],
    }
    run_settings = {
        "out": str(tmp_path / "run"),
        "steps": 2,
        "batch_size": 2,
        "workers": 0,
        "device": "cpu",
        "log_every": 1,
    }
    settings = {
        "data": {"out": str(tmp_path / "out"), "size": 64, "step": 2},
        "model": model,
        "references": {"count": 2},
        "loss": {"steady": {"weight": 0.5}},
        "run": run_settings,
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert "step 2/2" in run("custom_loss", path)
    assert (tmp_path / "run" / "weights" / "step_00000002.safetensors").is_file()
    card = (tmp_path / "run" / "weights" / "README.md").read_text()
    assert "the losses 1 x `sorting` (objective " in card
    assert ") + 0.5 x `steady`.\n" in card
    curves = b"".join(file.read_bytes() for file in (tmp_path / "run" / "tensorboard").iterdir())
    assert b"loss_steady" in curves
    assert b"loss_sorting" in curves


@pytest.mark.parametrize(
    ("script", "arguments", "command"),
    [
        (
            "build",
            # The last value of a setting wins.
            ["my.yaml", "frames.size=[224, 224]", "ray.tracker_gpus=0.5"],
            "ray symmetric-run --address node1:6379 --min-nodes 2 --num-cpus 64 --num-gpus 4 -- "
            "pretrack build my.yaml ray.address=auto ray.tracker_gpus=1 "
            "frames.size=[224, 224] ray.tracker_gpus=0.5",
        ),
        (
            "train",
            ["train.yaml", "run.out=runs/a"],
            "torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d "
            "--rdzv-endpoint node1:29500 --rdzv-id 77 -m trainer train.yaml run.out=runs/a",
        ),
    ],
)
def test_slurm_scripts_start_the_right_command_on_the_nodes(
    script: str, arguments: list[str], command: str, tmp_path: Path
) -> None:
    """Replace Slurm by an `srun` that prints its arguments and an `scontrol` with two nodes."""
    for name, line in (("srun", 'echo "$@"'), ("scontrol", "printf 'node1\\nnode2\\n'")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}
    node = {"SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_ON_NODE": "4", "PRETRACK_VENV": str(tmp_path)}
    environment = {**os.environ, **slurm, **node, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    path = EXAMPLES / "slurm" / f"{script}.sbatch"
    completed = subprocess.run(
        ["bash", str(path), *arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == command


def test_the_kubernetes_file_has_a_config_that_pretrack_accepts(tmp_path: Path) -> None:
    from pipeline.config import BuildSettings

    settings, job = yaml.safe_load_all((EXAMPLES / "kuberay" / "build.yaml").read_text())
    (tmp_path / "my.yaml").write_text(settings["data"]["my.yaml"])
    read = load_settings(BuildSettings, tmp_path / "my.yaml")
    assert read.ray.tracker_gpus == 1
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert {mount["mountPath"] for mount in worker["volumeMounts"]} == {"/datasets", "/config"}
    assert job["spec"]["entrypoint"] == "pretrack build /config/my.yaml"
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (head,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    for container in (head, worker):
        assert f"docker build --target cuda -t {container['image']} ." in dockerfile
    version = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"\nray=={version}\n" in (REPOSITORY / "constraints.txt").read_text()
