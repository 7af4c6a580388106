"""Filters: they select the clips that they describe, and mistakes are named in a sentence."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from manifests.tables import CLIPS, table_of
from shards.errors import SettingsError
from trainer.data.clip_filter import parse_filter
from trainer.data.settings import DataSettings

EMPTY = {field.name: None for field in CLIPS}
ROWS = [
    EMPTY
    | {"key": "a", "dataset": "co3d", "motion": 0.0, "frames": 24, "width": 320, "height": 240},
    EMPTY
    | {"key": "b", "dataset": "co3d", "motion": 0.2, "frames": 12, "width": 240, "height": 320},
    EMPTY
    | {"key": "c", "dataset": "dl3dv", "motion": 0.4, "frames": 48, "width": 320, "height": 240},
]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("motion > 0.1", "bc"),
        ("0 < motion <= 0.3", "b"),
        ("dataset == 'co3d' and frames >= 24", "a"),
        ("dataset in ('dl3dv', 'other') or frames < 20", "bc"),
        ("dataset not in ['dl3dv']", "ab"),
        ("not (dataset == 'co3d' or motion == 0)", "c"),
        ("width / height > 1", "ac"),
        ("frames * 2 - 1 == 47", "a"),
        ("motion > -1 and key != 'a'", "bc"),
    ],
)
def test_filters_select_the_clips_they_describe(text: str, kept: str) -> None:
    assert table_of(ROWS, CLIPS).filter(parse_filter(text))["key"].to_pylist() == list(kept)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("moton > 1", r"no column 'moton' \(did you mean 'motion'\?\)"),
        ("frame_offsets > 1", "no column 'frame_offsets'"),
        ("motion", "'motion' is not a condition"),
        ("motion >", "is not an expression such as"),
        ("motion > 'fast'", "compares things of different kinds"),
        ("dataset in (1, 2)", "compares things of different kinds"),
        ("dataset in 'co3d'", "needs a list such as"),
        ("__import__('os').system('true') == 0", "is not supported"),
        ("frames is 3", "write '=='"),
    ],
)
def test_mistakes_in_a_filter_are_named(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_filter(text)
    with pytest.raises(ValidationError, match=message):
        DataSettings.model_validate({"out": "x", "where": text})
