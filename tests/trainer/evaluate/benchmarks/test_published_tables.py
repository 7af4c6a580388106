"""Published results are printed beside one's own."""

from __future__ import annotations

import math

import pytest

from trainer.evaluate.benchmarks import published_tables as papers


def test_published_rows_stand_beside_ones_own() -> None:
    text = papers.beside("spair", {"mine": (60.0, 50.0, math.nan, 55.5)})
    lines = text.splitlines()
    assert lines[-4].split() == ["mine", "(this", "evaluation)", "60.00", "50.00", "-", "55.50"]
    assert lines[-5].split() == [
        "3DPoV",
        "(DINOv3),",
        "ViT-B/16",
        "62.24",
        "48.56",
        "46.81",
        "55.84",
    ]
    assert [line.split(",")[0].strip() for line in lines[8:12]] == [
        "DINOv2R",
        "NeCo",
        "MoSiC",
        "3DPoV",
    ]
    assert "not public" in text
    assert all(
        len(row.values) == len(table.columns)
        for table in papers.PUBLISHED.values()
        for row in table.rows
    )
    with pytest.raises(ValueError, match="has 4 values"):
        papers.beside("navi", {"mine": (1.0,)})
