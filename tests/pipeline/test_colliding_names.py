"""A folder in which Ray's workers would find another `pipeline` is refused before Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from pipeline.config import RaySettings
from pipeline.ray_cluster import _check_current_folder, connect
from shards.errors import PretrackError

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "path"), [("pipeline", "pipeline/__init__.py"), ("shards", "shards.py")]
)
def test_a_package_or_module_in_the_current_folder_is_named(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.shutdown()  # `connect` does nothing in a process that uses Ray already
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PretrackError) as caught:
        connect(RaySettings())
    assert str(caught.value) == (
        f"{tmp_path} holds a '{name}' of its own, which Ray's workers would take for the package "
        f"{name} of pretrack: start the command in another folder"
    )


def test_an_output_folder_and_a_checkout_are_no_collision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    monkeypatch.chdir(REPOSITORY)
    _check_current_folder()
    # A folder without __init__.py yields to a package that comes later on the path.
    (tmp_path / "shards").mkdir()
    monkeypatch.chdir(tmp_path)
    _check_current_folder()
