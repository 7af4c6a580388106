"""The program `pretrack` as a whole: versions, speed, training commands, and missing packages."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from shards.clip import FORMAT_VERSION
from shards.codec import TRACKS_VERSION

REPOSITORY = Path(__file__).parents[3]
TRAIN_CONFIG = "configs/train/demo.yaml"

RUN_WITHOUT = """
import runpy, sys
hidden = set({hidden!r})
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
sys.argv = {arguments!r}
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
"""


def run(
    module: str, *arguments: object, hidden: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` in a new process, which cannot import the `hidden` packages."""
    code = RUN_WITHOUT.format(hidden=hidden, arguments=[module, *map(str, arguments)])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )


def test_the_version_names_the_formats_that_it_writes() -> None:
    done = run("pipeline", "--version")
    assert done.returncode == 0, done.stderr
    formats = f"shard format {FORMAT_VERSION}, tracks {TRACKS_VERSION}, frames 2"
    assert re.fullmatch(rf"pretrack \d+\.\d+\.\d+: {formats}\n", done.stdout)


def test_help_lists_every_command() -> None:
    done = run("pipeline", "--help")
    commands = (
        "catalog plan build status verify show report stats export train evaluate snapshots diff "
        "gc card publish"
    )
    assert re.findall(r"^│ ([a-z]+) ", done.stdout, re.MULTILINE) == commands.split()


def processor_seconds(*arguments: str) -> float:
    """The least user time of four runs of Python."""
    spent = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        spent.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    return min(spent)


@pytest.mark.slow
def test_help_takes_little_longer_than_typer_itself(tmp_path: Path) -> None:
    """About 0.2 s; a ratio holds on a busy machine too."""
    smallest = tmp_path / "smallest.py"
    smallest.write_text(
        "import typer\napp = typer.Typer(rich_markup_mode='markdown')\n"
        "for name in 'abcdefghijklmn': app.command(name)(lambda: None)\napp()\n"
    )
    own = processor_seconds("-m", "pipeline", "--help")
    assert own < 1.6 * processor_seconds(str(smallest), "--help")


def test_train_explains_its_arguments_in_both_programs() -> None:
    ours, theirs = (
        run(*command).stdout for command in (("pipeline", "train", "--help"), ("trainer", "--help"))
    )
    assert "Usage: pretrack train [OPTIONS]" in ours
    assert "Usage: python -m trainer [OPTIONS]" in theirs
    for text in (ours, theirs):
        assert "torchrun --nproc-per-node 4 -m trainer CONFIG" in text
        assert "configs/train/demo.yaml" in text
        assert "key=value, such as data.out=out/mixed" in text


@pytest.mark.parametrize(
    ("command", "program"), [(("pipeline", "train"), "pretrack"), (("trainer",), "trainer")]
)
def test_a_misspelt_training_setting_is_one_sentence(
    command: tuple[str, ...], program: str
) -> None:
    done = run(*command, TRAIN_CONFIG, "run.stepz=1")
    assert (done.returncode, done.stdout) == (1, "")
    sentence = f"{TRAIN_CONFIG}: unknown key 'run.stepz' (did you mean 'steps'?)"
    assert done.stderr == f"{program}: {sentence}\n"


def test_without_a_config_training_ends_with_2() -> None:
    for command in (("pipeline", "train"), ("trainer",)):
        done = run(*command)
        assert done.returncode == 2
        assert "Missing argument" in done.stderr


def test_evaluate_lists_its_evaluations_without_torch() -> None:
    done = run("pipeline", "evaluate", "--help", hidden=("torch", "timm"))
    assert done.returncode == 0, done.stderr
    for name in ("labelfree", "spair", "navi-depth", "voc-retrieval"):
        assert name in done.stdout
    assert run("pipeline", "evaluate", "imagenet").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "hidden", "sentence"),
    [
        (
            ("pipeline", "train", TRAIN_CONFIG),
            ("torch", "timm", "safetensors", "tensorboard", "torchvision"),
            "pretrack: the package 'torch' is not installed: pip install 'pretrack[train]'\n",
        ),
        (
            ("pipeline", "evaluate", "labelfree", "out", "--model", "a=b", "--out", "results"),
            ("torch", "timm", "safetensors", "tensorboard", "torchvision"),
            "pretrack: the package 'torch' is not installed: pip install 'pretrack[train]'\n",
        ),
        (
            ("trainer", TRAIN_CONFIG),
            ("torch", "timm", "safetensors", "tensorboard", "torchvision"),
            "trainer: the package 'torch' is not installed: pip install 'pretrack[train]'\n",
        ),
        (
            ("pipeline", "build", "configs/demo.yaml"),
            ("ray", "av", "decord", "duckdb", "scenedetect"),
            "pretrack: the package 'ray' is not installed: pip install 'pretrack[pipeline]'\n",
        ),
        (
            ("pipeline", "publish", "out", "ada/pans"),
            ("huggingface_hub",),
            "pretrack: the package 'huggingface_hub' is not installed: "
            "pip install 'pretrack[pipeline,hub]'\n",
        ),
    ],
)
def test_a_missing_extra_is_one_sentence_that_says_what_to_install(
    arguments: tuple[str, ...], hidden: tuple[str, ...], sentence: str
) -> None:
    done = run(*arguments, hidden=hidden)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


def test_help_needs_no_extra_at_all() -> None:
    extras = ("torch", "timm", "ray", "av", "decord", "duckdb", "PIL", "scenedetect", "cv2")
    for command in (("pipeline", "--help"), ("pipeline", "train", "--help"), ("trainer", "--help")):
        assert run(*command, hidden=extras).returncode == 0
