"""`make demo` works where scenes cannot be rendered, and its settings and its page fit together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import demo
from manifests.settings import load_settings
from pipeline.config import BuildSettings
from pipeline.planning.video_rows import split_of
from pipeline.sources.video import Video
from trainer.config import TrainSettings

REPOSITORY = Path(__file__).parent.parent
CONFIGS = REPOSITORY / "configs"


@pytest.mark.parametrize(
    ("preparation", "variables", "reason"),
    [
        ("sys.modules['mujoco'] = None;", {}, "pip install 'pretrack[scenes]'"),
        (
            "",
            {"__EGL_VENDOR_LIBRARY_FILENAMES": os.devnull},
            "apt-get install libegl1 libgl1-mesa-dri",
        ),
    ],
    ids=["no MuJoCo", "no OpenGL"],
)
def test_without_a_renderer_other_scenes_are_shown_and_one_sentence_says_why(
    preparation: str, variables: dict[str, str], reason: str
) -> None:
    code = f"import sys; {preparation} import demo; print(*demo.choose_scenes(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=REPOSITORY,
        env=os.environ | variables,
    )
    assert (done.returncode, done.stderr) == (0, "")
    config, note = done.stdout.splitlines()
    assert config == "configs/demo_synthetic.yaml"
    assert note.startswith("The demo shows photographs on moving planes (the source 'synthetic') ")
    assert note.endswith(reason)


def test_rooms_are_shown_where_they_can_be_rendered() -> None:
    assert demo.choose_scenes() == ("configs/demo_scenes.yaml", "")


@pytest.mark.parametrize("name", ["demo_scenes", "demo_synthetic"])
def test_scenes_to_train_on_and_held_out_ones_are_where_the_demo_reads_them(name: str) -> None:
    settings = load_settings(BuildSettings, CONFIGS / f"{name}.yaml")
    assert str(settings.out) == str(demo.SCENES.absolute())
    videos = [video for source in settings.sources for video in source.find_videos()]
    splits = [
        split_of(video.dataset, video.sequence, settings.split)
        for video in videos
        if isinstance(video, Video)
    ]
    assert len(splits) == 12
    assert min(splits.count("train"), splits.count("eval")) >= 4


def test_training_reads_both_builds() -> None:
    settings = load_settings(TrainSettings, CONFIGS / "train" / "demo.yaml")
    of_videos = load_settings(BuildSettings, CONFIGS / "demo.yaml")
    assert str(of_videos.out) == str(demo.SHARDS.absolute())
    assert [str(out) for out in settings.data.out] == [
        str(build.absolute()) for build in (demo.SHARDS, demo.SCENES)
    ]


def test_errors_by_viewing_angle_are_in_rows_without_the_bins_in_which_no_point_is() -> None:
    errors = {"base": (0.25, None, 0.5), "never moves": (0.125, None, None)}
    labels = ("10-20", "40-70", "unknown")
    evaluated = {
        "figures": {
            model: {
                "city_block": {
                    "by_viewing_angle": {
                        label: {"mean": mean} for label, mean in zip(labels, means, strict=True)
                    }
                }
            }
            for model, means in errors.items()
        }
    }
    assert demo.angles_table(evaluated) == (
        '<div class="wide"><table>'
        "<tr><th>viewing angle</th><th>base</th><th>never moves</th></tr>"
        "<tr><td>10-20 degrees</td><td>0.2500</td><td>0.1250</td></tr>"
        "<tr><td>unknown</td><td>0.5000</td><td>none</td></tr>"
        "</table></div>"
    )
