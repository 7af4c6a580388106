"""Ids of scenes: their text, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.scenes.scene_id import SceneId
from shards.errors import PretrackError

SCENE = SceneId(
    split="eval", seed=7, number=3, objects=5, orbit=90, motion="moving", light="varied"
)


def test_an_id_is_parsed_as_it_is_written() -> None:
    text = "v1-eval-seed7-scene0003-5objects-90deg-moving-varied-16f-128x128"
    assert str(SCENE) == text
    assert SceneId.parse(text) == SCENE
    large = replace(SCENE, number=12345, width=341, height=256)
    assert SceneId.parse(str(large)) == large


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v1-seed7-scene0003-24f-320x240", "is not the id of a scene such as v1-train-seed7"),
        (str(SCENE).replace("v1", "v2"), "has version 2, and this version of pretrack makes"),
        (str(SCENE).replace("16f", "16f\n"), "is not the id of a scene"),
        (str(SCENE).replace("moving", "flying"), "'motion' is one of static, moving, not 'flying'"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(PretrackError, match=message):
        SceneId.parse(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objects": 0}, "a scene's 'objects' is 1 to 15, not 0"),
        ({"objects": 16}, "a scene's 'objects' is 1 to 15, not 16"),
        ({"orbit": 121}, "an orbit of 121 degrees would lead the camera into a wall: set 'orbit'"),
        ({"orbit": -1}, "a scene's 'orbit' is 0 to 120, not -1"),
        ({"seed": 2**32}, "a scene's 'seed' is 0 to 4294967295, not 4294967296"),
        ({"number": 10**9}, "a scene's 'number' is 0 to 999999999, not 1000000000"),
        ({"frames": 0}, "a scene's 'frames' is 1 to 999, not 0"),
        ({"width": 31}, "a scene's 'width' is 32 to 4096, not 31"),
        ({"light": "sun"}, "a scene's 'light' is one of normal, dim, harsh, varied, not 'sun'"),
        ({"split": "test"}, "a scene's 'split' is one of train, eval, not 'test'"),
    ],
)
def test_values_out_of_their_limits_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PretrackError, match=message):
        replace(SCENE, **values)
