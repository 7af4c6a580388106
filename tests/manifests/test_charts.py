"""Charts: where their marks lie, and that SVG and PNG show the same."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests import charts
from manifests.charts import Bar, Box, Chart, Dot, Stroke, Text


def pixels(chart: Chart) -> NDArray[np.uint8]:
    """The chart's PNG as [H, W, 3]."""
    return np.asarray(Image.open(BytesIO(charts.png(chart))))


def texts(chart: Chart) -> list[str]:
    return [mark.text for mark in chart.marks if isinstance(mark, Text)]


def test_bars_have_one_scale_and_their_parts_follow_each_other() -> None:
    chart = charts.bars("", [Bar("a", (30, 10), "40"), Bar("b", (0, 20), "20")], ["x", "y"])
    boxes = [mark for mark in chart.marks if isinstance(mark, Box) and mark.height == 14]
    first, second, empty, half = boxes
    assert [box.role for box in boxes] == ["s0", "s1", "s0", "s1"]
    assert first.width == pytest.approx(3 * second.width)
    assert second.x == pytest.approx(first.x + first.width)
    assert empty.width == 0
    assert half.width == pytest.approx((first.width + second.width) / 2)
    assert half.x == first.x
    assert texts(chart) == ["x", "y", "a", "40", "b", "20"]


def test_a_small_part_of_a_bar_stays_visible() -> None:
    chart = charts.bars("", [Bar("a", (1e9, 1), "")])
    assert [mark.width for mark in chart.marks if isinstance(mark, Box)][1] == 0.75


def test_the_note_behind_the_longest_bar_is_not_cut_off() -> None:
    chart = charts.bars("", [Bar("unreadable video", (1_234_567,), "1,234,567 at catalog")])
    assert pixels(chart)[:, -4:].min() == 255, "the picture ends in its ground"


def test_columns_are_as_high_as_their_counts() -> None:
    chart = charts.columns("", [0, 1, 2, 4], [2, 0, 4], [(2, "two")], "unit")
    boxes = [mark for mark in chart.marks if isinstance(mark, Box)]
    assert [box.height for box in boxes] == [78, 0, 156]
    assert [box.y + box.height for box in boxes] == [168, 168, 168]
    # 376 units from 44 to 420 for values from 0 to 4, half a unit free on either side
    assert [(box.x, box.width) for box in boxes] == [(44.5, 93), (138.5, 93), (232.5, 187)]
    assert [(mark.x, mark.text) for mark in chart.marks if isinstance(mark, Text)][2:] == [
        (232, "two"),
        (420, "unit"),
    ]
    assert texts(chart)[:2] == ["0", "4"]


def test_a_line_goes_through_its_points_and_stops_at_a_gap() -> None:
    points = [(0, 0.5), (1, 1.0), (2, math.nan), (3, 0.0), (4, 0.25)]
    chart = charts.lines("", {"a": points}, "", ticks={0: "first", 4: "last"}, dots=True)
    strokes = [mark for mark in chart.marks if isinstance(mark, Stroke) and mark.role == "s0"]
    assert [stroke.points for stroke in strokes] == [
        ((44, 90), (138, 12)),
        ((326, 168), (420, 129)),
    ]
    dots = [(mark.x, mark.y) for mark in chart.marks if isinstance(mark, Dot)]
    assert dots == [(44, 90), (138, 12), (326, 168), (420, 129)]
    ticks = [mark.x for mark in chart.marks if isinstance(mark, Text) and mark.y == 184]
    assert ticks == [44, 420]
    assert texts(chart)[:5] == ["0%", "25%", "50%", "75%", "100%"]


def test_an_axis_may_end_below_all() -> None:
    chart = charts.lines("", {"a": [(0, 0.1), (1, 0.4)]}, "", ticks={0: "first"}, highest=0.4)
    strokes = [mark for mark in chart.marks if isinstance(mark, Stroke) and mark.role == "s0"]
    assert [stroke.points for stroke in strokes] == [((44, 129), (420, 12))]
    assert texts(chart)[:5] == ["0%", "10%", "20%", "30%", "40%"]


def test_baselines_are_grey_and_colours_repeat_after_the_sixth_series() -> None:
    names = [f"m{number}" for number in range(7)]
    series = {name: [(0.0, 0.5), (1.0, 0.5)] for name in ["chance", *names]}
    chart = charts.lines("", series, "", ticks={}, baselines=("chance",))
    drawn = [(mark.role, mark.width) for mark in chart.marks if isinstance(mark, Stroke)][5:]
    assert drawn == [("b0", 1), *((f"s{number % 6}", 2) for number in range(7))]


def test_names_that_do_not_fit_beside_each_other_are_below() -> None:
    names = [f"a model of {number} blocks" for number in range(5)]
    few, many = (
        charts.lines("", {name: [(0.0, 0.5)] for name in chosen}, "", ticks={})
        for chosen in (names[:2], names)
    )
    assert many.height == few.height + 36, "two per line"
    assert pixels(many)[:, -8:].min() == 255


def test_svg_and_png_show_the_same_marks() -> None:
    chart = Chart(
        "A <title>",
        60,
        (
            Box(10, 10, 20, 30, "s0"),
            Dot(60, 20, 5, "s1"),
            Stroke(((100, 20), (140, 20)), "s2", 4),
            Text(200, 20, "<b>", "ink"),
        ),
    )
    svg = charts.svg(chart)
    assert 'viewBox="0 0 440 60"' in svg
    assert "<title>A &lt;title&gt;</title>" in svg
    assert '<rect x="10.0" y="10.0" width="20.0" height="30.0" fill="var(--s0)"/>' in svg
    assert '<circle cx="60.0" cy="20.0" r="5.0" fill="var(--s1)"/>' in svg
    assert "&lt;b&gt;</text>" in svg
    picture = pixels(chart)
    assert picture.shape == (176, 880, 3)  # 28 units of title above, 2 pixels per unit
    for x, y, role in ((20, 25, "s0"), (60, 20, "s1"), (120, 20, "s2"), (300, 50, "ground")):
        colour = "#" + bytes(picture[2 * (y + 28), 2 * x]).hex()
        assert colour == charts.LIGHT[role]
