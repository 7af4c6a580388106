"""Imports only go down: shards ← manifests ← pipeline and trainer.

They never form a circle, and `pretrack --help` loads nothing heavy. One exception: `pipeline.cli`
may import `trainer`, inside functions, since the one command `pretrack` also trains.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
MAY_IMPORT = {
    "shards": set(),
    "manifests": {"shards"},
    "pipeline": {"shards", "manifests"},
    "trainer": {"shards", "manifests"},
}
CLI = "pipeline.cli"


def module_name(file: Path, root: Path) -> str:
    """Give the dotted name of a module file below `root`; a package is named by its folder."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the nodes below `node`, functions included, except blocks under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from executed(other)
        else:
            yield child
            yield from executed(child)


def imports_of(file: Path, module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Give the dotted names in the import statements among `nodes`, relative ones resolved.

    `module` is the dotted name of `file`. `from a import b` gives "a.b", be b a module or not.
    """
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            above = ".".join(base) if node.level else ""
            prefix = ".".join(part for part in (above, node.module) if part)
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def import_graph(root: Path, packages: Sequence[str]) -> dict[str, set[str]]:
    """Map each module of `packages` to the modules of `packages` that it imports anywhere."""
    files = {
        module_name(file, root): file
        for package in packages
        for file in sorted((root / package).rglob("*.py"))
    }
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        names = imports_of(file, module, executed(ast.parse(file.read_text())))
        # `from a.b import c`: c is a module, or else something defined in a.b
        imported = {name if name in files else name.rpartition(".")[0] for name in names}
        graph[module] = (imported & files.keys()) - {module}
    return graph


def import_circle(graph: dict[str, set[str]]) -> list[str]:
    """Give one circle of imports as [a, b, …, a], each importing the next; [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = import_graph(REPOSITORY, [*MAY_IMPORT, "benchmarks", "tests"])
    assert len(graph) > 200
    circle = import_circle(graph)
    assert not circle, f"import circle: {' → '.join(circle)}"


@pytest.mark.parametrize(
    ("second", "third", "circle"),
    [
        ("import house.third", "from house.first import A", ["first", "second", "third"]),
        ("def f():\n  from house import third", "import house.first", ["first", "second", "third"]),
        ("from . import third", "from .first import A", ["first", "second", "third"]),
        ("from house import first", "", ["first", "second"]),
        ("import house.third", "", []),
        ("", "import house.room.fourth", ["room.fourth", "third"]),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import house.first",
            "import json",
            [],
        ),
    ],
)
def test_a_planted_circle_is_found(
    tmp_path: Path, second: str, third: str, circle: list[str]
) -> None:
    modules = {
        "first": "from house.second import f\nA = 1\n",
        "second": second,
        "third": third,
        "room/fourth": "from ..third import B",
        "__init__": "",
        "room/__init__": "",
    }
    for name, text in modules.items():
        file = tmp_path / "house" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    graph = import_graph(tmp_path, ["house"])
    reported = import_circle(graph)
    assert sorted(set(reported)) == [f"house.{name}" for name in circle]
    if reported:
        assert reported[0] == reported[-1]
        assert all(imported in graph[module] for module, imported in pairwise(reported))


def forbidden_imports(root: Path, package: str) -> list[str]:
    """List the forbidden imports in `package`, as "module imports package"."""
    problems = []
    for file in sorted((root / package).rglob("*.py")):
        module, tree = module_name(file, root), ast.parse(file.read_text())
        allowed = {package, *MAY_IMPORT[package]}
        anywhere = {name.split(".")[0] for name in imports_of(file, module, ast.walk(tree))}
        if module == CLI or module.startswith(f"{CLI}."):
            at_import = imports_of(file, module, iter(tree.body))
            anywhere -= {"trainer"} - {name.split(".")[0] for name in at_import}
        problems += [f"{module} imports {ours}" for ours in anywhere & MAY_IMPORT.keys() - allowed]
    return problems


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_down(package: str) -> None:
    assert list((REPOSITORY / package).rglob("*.py"))
    assert forbidden_imports(REPOSITORY, package) == []


def test_only_the_command_line_may_import_the_trainer_and_only_inside_functions(
    tmp_path: Path,
) -> None:
    for name in ("cli/lazy", "cli/eager", "clients", "planning/plan"):
        file = tmp_path / "pipeline" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("def run():\n    from trainer import train\n")
    (tmp_path / "pipeline/cli/eager.py").write_text("import trainer.train\n")
    assert forbidden_imports(tmp_path, "pipeline") == [
        "pipeline.cli.eager imports trainer",
        "pipeline.clients imports trainer",
        "pipeline.planning.plan imports trainer",
    ]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("pipeline.cli", {"ray", "cv2", "torch", "decord", "av", "pyarrow", "mujoco"}),
        ("pipeline.execution.build", {"torch", "decord", "timm", "mujoco", "h5py"}),
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
