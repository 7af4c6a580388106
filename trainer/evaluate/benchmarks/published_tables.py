"""What papers print, as data, to be read beside a row of one's own. Every table says how its protocol may differ from ours.

All from 3DPoV's results (its page and paper), which measure the other methods too. Figures are recall in per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.evaluate import tables


@dataclass(frozen=True)
class Row:
    """A method's figures, one a column of its table."""

    method: str
    backbone: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class PublishedTable:
    """A published table. `differs` says, in a sentence each, what keeps its rows from being ours."""

    title: str
    columns: tuple[str, ...]
    differs: tuple[str, ...]
    rows: tuple[Row, ...]


_PROBE3D = "The code behind these rows is not public: it is said to follow Probe3D, and so do we, from Probe3D's code."
_SAMPLING = "Probe3D's choice of pairs depends on the order of files on its disk: ours is sorted, and written down in the results."
_OCCLUDED = (
    "How views are occluded is not published: ours are seeded rectangles.",
    "The unoccluded baseline is lower (53.47 for all), so these are other points: compare within the table alone.",
)
_LIGHTING = (
    "How pairs are chosen by lighting is not published, and every bin is higher than over all pairs.",
)
_VIEWPOINTS = ("small", "medium", "large", "all")
_DEGREES = ("0-15", "15-30", "30-60", "60-120")

PUBLISHED = {
    "spair": PublishedTable(
        "SPair-71k keypoint recall, by viewpoint variation",
        _VIEWPOINTS,
        (_PROBE3D, _SAMPLING, "'all' is a draw of pairs of its own, not the mean of the others."),
        (
            Row("DINO", "ViT-S/16", (28.34, 23.38, 24.44, 25.63)),
            Row("TimeT", "ViT-S/16", (26.76, 22.48, 23.45, 23.96)),
            Row("MoSiC", "ViT-S/16", (26.73, 21.97, 22.98, 23.76)),
            Row("DINO", "ViT-B/16", (30.19, 24.22, 24.35, 26.39)),
            Row("NeCo", "ViT-B/16", (30.24, 24.45, 23.10, 26.32)),
            Row("3DPoV", "ViT-B/16", (31.77, 25.74, 25.80, 28.16)),
            Row("DINOv2R", "ViT-B/14", (58.20, 51.56, 53.41, 53.47)),
            Row("NeCo", "ViT-B/14", (59.57, 49.06, 52.35, 54.42)),
            Row("MoSiC", "ViT-B/14", (56.37, 50.70, 51.75, 51.72)),
            Row("3DPoV", "ViT-B/14", (60.16, 52.79, 54.50, 55.40)),
            Row("DINOv3", "ViT-B/16", (61.99, 48.67, 46.77, 55.76)),
            Row("3DPoV (DINOv3)", "ViT-B/16", (62.24, 48.56, 46.81, 55.84)),
        ),
    ),
    "navi": PublishedTable(
        "NAVI correspondence recall at 2 cm, by relative rotation",
        _DEGREES,
        (
            _PROBE3D,
            _SAMPLING,
            "Probe3D's own bins are 0-30-60-90-120 degrees; these are the ones that 3DPoV prints.",
        ),
        (
            Row("DINO", "ViT-S/16", (84.36, 55.17, 34.58, 20.48)),
            Row("TimeT", "ViT-S/16", (80.81, 52.61, 33.93, 19.96)),
            Row("MoSiC", "ViT-S/16", (80.21, 52.07, 33.37, 19.59)),
            Row("DINO", "ViT-B/16", (86.13, 56.92, 33.37, 19.74)),
            Row("NeCo", "ViT-B/16", (84.94, 53.52, 31.80, 18.47)),
            Row("3DPoV", "ViT-B/16", (86.42, 57.18, 33.77, 20.42)),
            Row("DINOv2R", "ViT-B/14", (87.87, 67.45, 47.15, 31.58)),
            Row("NeCo", "ViT-B/14", (88.76, 65.10, 43.88, 28.96)),
            Row("MoSiC", "ViT-B/14", (87.13, 66.46, 46.95, 31.78)),
            Row("3DPoV", "ViT-B/14", (89.18, 68.98, 47.64, 31.63)),
            Row("DINOv3", "ViT-B/16", (94.40, 74.73, 48.64, 31.45)),
            Row("3DPoV (DINOv3)", "ViT-B/16", (94.47, 74.74, 48.65, 31.36)),
        ),
    ),
    "spair_one_occluded": PublishedTable(
        "SPair-71k keypoint recall, one view occluded",
        _VIEWPOINTS,
        _OCCLUDED,
        (
            Row("DINOv2R", "ViT-B/14", (59.78, 53.84, 56.01, 55.54)),
            Row("3DPoV", "ViT-B/14", (62.04, 54.92, 57.65, 57.54)),
        ),
    ),
    "spair_both_occluded": PublishedTable(
        "SPair-71k keypoint recall, both views occluded",
        _VIEWPOINTS,
        _OCCLUDED,
        (
            Row("DINOv2R", "ViT-B/14", (58.84, 53.41, 56.90, 54.88)),
            Row("3DPoV", "ViT-B/14", (61.30, 54.11, 58.09, 56.98)),
        ),
    ),
    "navi_less_lighting": PublishedTable(
        "NAVI correspondence recall at 2 cm, less difference in lighting",
        _DEGREES,
        _LIGHTING,
        (
            Row("DINOv2R", "ViT-B/14", (92.28, 67.72, 49.24, 33.69)),
            Row("3DPoV", "ViT-B/14", (93.27, 68.85, 49.27, 33.52)),
        ),
    ),
    "navi_intense_lighting": PublishedTable(
        "NAVI correspondence recall at 2 cm, intense difference in lighting",
        _DEGREES,
        _LIGHTING,
        (
            Row("DINOv2R", "ViT-B/14", (89.63, 66.98, 48.13, 33.96)),
            Row("3DPoV", "ViT-B/14", (90.91, 68.45, 48.82, 34.11)),
        ),
    ),
}
"""Published tables by the name of the evaluation that makes a row for them."""


def beside(name: str, own: Mapping[str, Sequence[float]]) -> str:
    """A published table with rows of one's own below it, by name, and what differs. NaN is "-".

    Raises ValueError for a row that does not fit the columns.
    """
    published = PUBLISHED[name]
    if any(len(values) != len(published.columns) for values in own.values()):
        raise ValueError(
            f"a row of '{name}' has {len(published.columns)} figures: {', '.join(published.columns)}"
        )
    theirs: list[tables.Row] = [
        [f"{row.method}, {row.backbone}", *row.values] for row in published.rows
    ]
    ours: list[tables.Row] = [
        [f"{model} (this evaluation)", *values] for model, values in own.items()
    ]
    return "\n".join(
        [
            f"{published.title}, %",
            tables.table(("", *published.columns), [*theirs, *ours]),
            *published.differs,
        ]
    )
