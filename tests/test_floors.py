"""Imports only go down the house: shards ← manifests ← pipeline and trainer; and `pretrack --help` answers at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
MAY_IMPORT = {
    "shards": set(),
    "manifests": {"shards"},
    "pipeline": {"shards", "manifests"},
    "trainer": {"shards", "manifests"},
}


def imported(path: Path) -> set[str]:
    """The top-level packages a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_down(package: str) -> None:
    files = list((REPOSITORY / package).rglob("*.py"))
    assert files
    for path in files:
        ours = imported(path) & MAY_IMPORT.keys() - {package}
        assert ours <= MAY_IMPORT[package], f"{path} imports {ours}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("pipeline.cli", {"ray", "cv2", "torch", "decord", "av", "pyarrow"}),
        ("pipeline.execution.build", {"torch", "decord", "timm"}),
        pytest.param(
            "trainer.train", {"ray", "decord", "av", "scenedetect"}, marks=pytest.mark.slow
        ),
    ],
)
def test_nothing_heavy_is_imported_that_is_not_needed(module: str, unwanted: set[str]) -> None:
    code = f"import {module}, sys; print('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY
    ).stdout.split()
    assert not unwanted & set(loaded)
