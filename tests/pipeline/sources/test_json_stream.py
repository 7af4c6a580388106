"""The JSON reader that does not hold a whole file."""

from __future__ import annotations

import io
import json

import pytest

from pipeline.sources.json_stream import items


def test_json_list_is_streamed_across_chunks() -> None:
    rows = [{"i": i, "text": 'é]} " ,' * (i % 7), "score": float("inf")} for i in range(40_000)]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    assert len(text) > 3 << 20
    assert list(items(io.StringIO(text))) == rows
    assert list(items(io.StringIO(" [ ] "))) == []
    assert str(next(items(io.StringIO('[{"score": NaN}]')))["score"]) == "nan"


def test_an_item_may_be_longer_than_a_chunk() -> None:
    rows = [{"text": "x" * (5 << 20)}, {"text": "y"}]
    assert list(items(io.StringIO(json.dumps(rows)))) == rows


@pytest.mark.parametrize("text", ["", "{}", "[{}", '[{"a": 1}, {"a"', "[{} nonsense]"])
def test_broken_json_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the text is the decoder's)
        list(items(io.StringIO(text)))
