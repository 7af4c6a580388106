"""The notebooks run from top to bottom and show what their text says."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.helpers.environment import environment

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALLER = {
    "count: 6,": "count: 2,",
    "count: 3,": "count: 2,",
    "batch_size: 4,": "batch_size: 2,",
    "clips_per_shard: 3": "clips_per_shard: 2",
    "steps: 24,": "steps: 4,",
    "log_every: 3,": "log_every: 1,",
}
"""What the test changes, so that less is rendered and trained."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    for cell in json.loads(path.read_text())["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def run(name: str, folder: Path) -> Any:
    """Run a notebook in a folder, with smaller numbers."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        for number, smaller in SMALLER.items():
            cell.source = cell.source.replace(number, smaller)
    resources = {"metadata": {"path": str(folder)}}
    client: Any = NotebookClient(notebook, timeout=600, startup_timeout=300, resources=resources)
    client.execute()
    return notebook


def printed(notebook: Any) -> list[str]:
    """Return the lines that a notebook printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = (it.text for it in outputs if it.output_type == "stream" and it.name == "stdout")
    return "".join(texts).splitlines()


def pictures(notebook: Any) -> Iterator[Image.Image]:
    """Yield the pictures that a notebook shows."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if data := output.get("data", {}).get("image/png"):
                yield Image.open(BytesIO(base64.b64decode(data))).convert("RGB")


@pytest.mark.slow
def test_the_notebooks_run_and_the_second_keeps_the_build_of_the_first(tmp_path: Path) -> None:
    texts = "".join(path.read_text() for path in NOTEBOOKS)
    assert all(number in texts for number in SMALLER)
    threads = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with environment({**threads, "IPYTHONDIR": str(tmp_path / "ipython")}):
        looked = run("look_at_a_build", tmp_path)
        trained = run("train_and_evaluate", tmp_path)

    lines = printed(looked)
    assert "2 shards made, 0 kept" in lines
    assert "positions [anchors, frames, points, (x, y)]: (2, 8, 256, 2)" in lines
    assert any(line.startswith("- Terms: frames CC0-1.0, tracks") for line in lines)
    (table,) = (cell for cell in looked.cells if "SnapshotQueries" in cell.source)
    assert table.outputs[0].data["text/html"].count("<tr>") == 1 + 4, "heads, and a row per clip"

    lines = printed(trained)
    assert "0 shards made, 2 kept" in lines
    heads = next(line for line in lines if line.startswith("viewing angle"))
    columns = ["base", "tracks", "shuffled", "raw pixels", "never moves", "chance"]
    assert heads.split("  ")[0] == "viewing angle"
    assert [heads.index(name) for name in columns] == sorted(heads.index(name) for name in columns)
    (found,) = (line.split() for line in lines if line.startswith("40-70 "))
    assert len(found) == 1 + len(columns)
    assert 0.01 < float(found[-1]) < 0.06, "a circle of a tenth of the side is 0.031 of the image"
    assert any(line.startswith("tracks is not shown to be better than base (") for line in lines)

    shown = [*pictures(looked), *pictures(trained)]
    assert len(shown) == 5 + 4
    assert all(len(picture.getcolors(1 << 24) or ()) > 20 for picture in shown), "none is empty"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"tracks", "shuffled"}
