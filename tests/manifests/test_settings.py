"""Settings: what a user gets wrong is answered with one sentence that says where, and what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.settings import Settings, load_settings
from shards.errors import SettingsError


class Inner(Settings):
    grid: int = 16
    anchors: tuple[int, ...] = (0,)


class Outer(Settings):
    out: Path
    tracks: Inner = Inner()
    sources: tuple[Inner, ...] = ()


def load(tmp_path: Path, text: str, *overrides: str) -> Outer:
    (tmp_path / "c.yaml").write_text(text)
    return load_settings(Outer, tmp_path / "c.yaml", overrides)


def test_overrides_reach_every_level(tmp_path: Path) -> None:
    text = "out: here\nsources: [{grid: 1}, {grid: 2}]"
    settings = load(
        tmp_path, text, "tracks.grid=24", "sources.1.grid=3", "tracks.anchors=[0, 8]", "out=there"
    )
    assert settings == Outer(
        out=Path("there"),
        tracks=Inner(grid=24, anchors=(0, 8)),
        sources=(Inner(grid=1), Inner(grid=3)),
    )


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("out: x\ntraks: {}", [], "unknown key 'traks' (did you mean 'tracks'?)"),
        ("out: x\ntracks: {gird: 3}", [], "unknown key 'tracks.gird' (did you mean 'grid'?)"),
        ("tracks: {grid: 3}", [], "'out' is missing"),
        ("out: x\ntracks: {grid: many}", [], "'tracks.grid'"),
        ("out: [", [], "is not valid YAML"),
        ("just text", [], "holds no settings"),
        ("out: x", ["grid"], "write key=value"),
        ("out: x", ["tracks.gird=3"], "did you mean 'grid'?"),
        ("out: x", ["sources.4.grid=3"], "is not one of"),
        ("out: x", ["out.deeper=3"], "there is nothing below"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(
            tmp_path,
            text + ("\nsources: [{grid: 1}]" if "sources" in str(overrides) else ""),
            *overrides,
        )
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_suggests_the_near_one(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("out: x")
    with pytest.raises(SettingsError, match=r"did you mean .*demo\.yaml"):
        load_settings(Outer, tmp_path / "dmeo.yaml")
