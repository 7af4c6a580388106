"""A mistake in a config gives one sentence: where it is, the value at fault, what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import field_validator, model_validator

from manifests.settings import LocationSetting, Settings, check_settings, load_settings
from shards.errors import SettingsError


class Inner(Settings):
    grid: int = 16
    anchors: tuple[int, ...] = (0,)


class Named(Settings):
    name: str
    size: tuple[int, int] | None = None


class Document(Settings):
    out: LocationSetting
    sources: tuple[Named, ...] = ()
    inner: Inner = Inner()

    @field_validator("sources")
    @classmethod
    def _check_names(cls, sources: tuple[Named, ...]) -> tuple[Named, ...]:
        names = [source.name for source in sources]
        if len(names) > len(set(names)):
            raise ValueError(f"two sources are called '{names[0]}'")
        return sources

    @model_validator(mode="after")
    def _check_grid(self) -> Document:
        if self.inner.grid > 100:
            raise ValueError(f"'inner.grid: {self.inner.grid}' is larger than 100")
        return self


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


SOURCE = {"name": "a"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": [SOURCE, SOURCE]}, "'sources': two sources are called 'a'"),
        ({"sources": SOURCE}, "'sources': input should be a list (got a mapping of 1 key)"),
        ({"sources": [SOURCE, 5]}, "'sources.1': input should be a mapping (got 5)"),
        (
            {"sources": [SOURCE, [SOURCE]]},
            "'sources.1': input should be a mapping (got a list of 1 value)",
        ),
        (
            {"sources": [{"name": None}]},
            "'sources.0.name': input should be a valid string (got null)",
        ),
        ({"sources": [{"name": "a", "size": [1]}]}, "'sources.0.size.1' is missing"),
        ({"inner": {"grid": 101}}, "'inner.grid: 101' is larger than 100"),
        ({"inner": [1, 2]}, "'inner': input should be a mapping (got [1, 2])"),
        ({"inner": {"anchors": 3}}, "'inner.anchors': input should be a list (got 3)"),
        (
            {"inner": {"grid": "many"}},
            "'inner.grid': input should be a valid integer, unable to parse string as an integer "
            "(got 'many')",
        ),
        ({"out": ["x"] * 100}, "'out': should name a folder (got a list of 100 values)"),
        ({"out": [True, None, 0.5]}, "'out': should name a folder (got [true, null, 0.5])"),
        ({"out": None}, "'out': should name a folder (got null)"),
        (
            {"inner": {"anchors": "x" * 5000}},
            f"'inner.anchors': input should be a list (got '{'x' * 80}' and 4,920 more characters)",
        ),
    ],
)
def test_the_value_at_fault_is_shown_and_never_the_whole_document(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError) as error:
        check_settings(Document, {"out": "x", **values}, "c.yaml")
    assert str(error.value) == f"c.yaml: {message}"


def test_a_config_of_mistakes_is_not_answered_with_as_many_sentences() -> None:
    with pytest.raises(SettingsError) as error:
        check_settings(Document, {"out": "x", **{f"k{n}": n for n in range(500)}}, "c.yaml")
    assert str(error.value).startswith("c.yaml: unknown key 'k0'; unknown key 'k1'; ")
    assert str(error.value).endswith("unknown key 'k9'; and 490 more problems")
