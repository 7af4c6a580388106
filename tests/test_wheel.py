"""A wheel contains the command, the gallery's pages, and the loader as the README shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.clips import make_clip
from tests.helpers.published import publish_clips

ROOT = Path(__file__).parent.parent
PACKAGES = ("shards", "manifests", "pipeline", "trainer")


def run(*command: str | Path, site: Path, folder: Path) -> str:
    """Run a command where only the wheel has our packages; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder; its dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


@pytest.mark.slow
def test_a_wheel_has_the_command_the_gallery_and_the_loader(site: Path, tmp_path: Path) -> None:
    publish_clips(
        tmp_path / "out",
        [make_clip(f"made-a-00000000-{number:06d}", number, frames=8) for number in range(4)],
    )
    pretrack = (sys.executable, site / "bin" / "pretrack")
    assert "build" in run(*pretrack, "--help", site=site, folder=tmp_path)
    shown = json.loads(
        run(
            *pretrack,
            "show",
            "out",
            "--open",
            "--to",
            "gallery",
            "--json",
            site=site,
            folder=tmp_path,
        )
    )
    assert all((site / package / "py.typed").is_file() for package in PACKAGES)
    page = tmp_path / shown["page"]
    for file in ("gallery.css", "gallery.js", "player.js", "draw.js", "input.js", "clips.js"):
        assert f'"{file}"' in page.read_text()
        assert (page.parent / file).stat().st_size > 0

    readme = (ROOT / "README.md").read_text()
    (loader,) = (
        block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "Loader(" in block
    )
    smaller = {'"out/mixed"': '"out"', "size=224": "size=32", "sampler(32": "sampler(2"}
    for text, replacement in smaller.items():
        assert text in loader
        loader = loader.replace(text, replacement)
    program = (
        f"{loader.rstrip()}\n    break\nimport trainer\n"
        "print(trainer.__file__, tuple(batch['frames'].shape))\n"
    )
    (tmp_path / "read.py").write_text(
        "if __name__ == '__main__':\n" + textwrap.indent(program, "    ")
    )
    output = run(sys.executable, "read.py", site=site, folder=tmp_path)
    module, shape = output.split(maxsplit=1)
    assert Path(module).is_relative_to(site)
    assert shape.strip() == "(2, 4, 3, 32, 32)"


def test_the_version_is_the_newest_release_in_the_changelog() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    newest = re.search(r"^## (?!Unreleased$)(.*)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert version
    assert newest
    assert version[1] == newest[1]
