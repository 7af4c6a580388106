"""Published results, to be printed beside ours.

Each table says how its protocol may differ from ours. All are from 3DPoV's results (its page and
paper), which also measure the other methods. Values are recall in per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.evaluate.tables import Row, table


@dataclass(frozen=True)
class PublishedRow:
    """A method's values, one per column of its table."""

    method: str
    backbone: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class PublishedTable:
    """A published table. Each sentence of `differs` says how its protocol may differ from ours."""

    title: str
    columns: tuple[str, ...]
    differs: tuple[str, ...]
    rows: tuple[PublishedRow, ...]


_PROBE3D = (
    "The code behind these rows is not public. It is said to follow Probe3D; "
    "ours follows Probe3D's code."
)
_SAMPLING = (
    "Probe3D's choice of pairs depends on the order of files on its disk. "
    "Ours is sorted, and is listed in the results."
)
_OCCLUDED = (
    "How views are occluded is not published. Ours are seeded rectangles.",
    "The unoccluded baseline is lower (53.47 for all), so these are other points: "
    "compare only within this table.",
)
_LIGHTING = (
    "How pairs are chosen by lighting is not published, "
    "and every bin is higher than over all pairs.",
)
_VIEWPOINTS = ("small", "medium", "large", "all")
_DEGREES = ("0-15", "15-30", "30-60", "60-120")

PUBLISHED = {
    "spair": PublishedTable(
        "SPair-71k keypoint recall, by viewpoint variation",
        _VIEWPOINTS,
        (_PROBE3D, _SAMPLING, "'all' is a separate draw of pairs, not the mean of the others."),
        (
            PublishedRow("DINO", "ViT-S/16", (28.34, 23.38, 24.44, 25.63)),
            PublishedRow("TimeT", "ViT-S/16", (26.76, 22.48, 23.45, 23.96)),
            PublishedRow("MoSiC", "ViT-S/16", (26.73, 21.97, 22.98, 23.76)),
            PublishedRow("DINO", "ViT-B/16", (30.19, 24.22, 24.35, 26.39)),
            PublishedRow("NeCo", "ViT-B/16", (30.24, 24.45, 23.10, 26.32)),
            PublishedRow("3DPoV", "ViT-B/16", (31.77, 25.74, 25.80, 28.16)),
            PublishedRow("DINOv2R", "ViT-B/14", (58.20, 51.56, 53.41, 53.47)),
            PublishedRow("NeCo", "ViT-B/14", (59.57, 49.06, 52.35, 54.42)),
            PublishedRow("MoSiC", "ViT-B/14", (56.37, 50.70, 51.75, 51.72)),
            PublishedRow("3DPoV", "ViT-B/14", (60.16, 52.79, 54.50, 55.40)),
            PublishedRow("DINOv3", "ViT-B/16", (61.99, 48.67, 46.77, 55.76)),
            PublishedRow("3DPoV (DINOv3)", "ViT-B/16", (62.24, 48.56, 46.81, 55.84)),
        ),
    ),
    "navi": PublishedTable(
        "NAVI correspondence recall at 2 cm, by relative rotation",
        _DEGREES,
        (
            _PROBE3D,
            _SAMPLING,
            "Probe3D's own bins are 0-30-60-90-120 degrees; these are 3DPoV's.",
        ),
        (
            PublishedRow("DINO", "ViT-S/16", (84.36, 55.17, 34.58, 20.48)),
            PublishedRow("TimeT", "ViT-S/16", (80.81, 52.61, 33.93, 19.96)),
            PublishedRow("MoSiC", "ViT-S/16", (80.21, 52.07, 33.37, 19.59)),
            PublishedRow("DINO", "ViT-B/16", (86.13, 56.92, 33.37, 19.74)),
            PublishedRow("NeCo", "ViT-B/16", (84.94, 53.52, 31.80, 18.47)),
            PublishedRow("3DPoV", "ViT-B/16", (86.42, 57.18, 33.77, 20.42)),
            PublishedRow("DINOv2R", "ViT-B/14", (87.87, 67.45, 47.15, 31.58)),
            PublishedRow("NeCo", "ViT-B/14", (88.76, 65.10, 43.88, 28.96)),
            PublishedRow("MoSiC", "ViT-B/14", (87.13, 66.46, 46.95, 31.78)),
            PublishedRow("3DPoV", "ViT-B/14", (89.18, 68.98, 47.64, 31.63)),
            PublishedRow("DINOv3", "ViT-B/16", (94.40, 74.73, 48.64, 31.45)),
            PublishedRow("3DPoV (DINOv3)", "ViT-B/16", (94.47, 74.74, 48.65, 31.36)),
        ),
    ),
    "spair_one_occluded": PublishedTable(
        "SPair-71k keypoint recall, one view occluded",
        _VIEWPOINTS,
        _OCCLUDED,
        (
            PublishedRow("DINOv2R", "ViT-B/14", (59.78, 53.84, 56.01, 55.54)),
            PublishedRow("3DPoV", "ViT-B/14", (62.04, 54.92, 57.65, 57.54)),
        ),
    ),
    "spair_both_occluded": PublishedTable(
        "SPair-71k keypoint recall, both views occluded",
        _VIEWPOINTS,
        _OCCLUDED,
        (
            PublishedRow("DINOv2R", "ViT-B/14", (58.84, 53.41, 56.90, 54.88)),
            PublishedRow("3DPoV", "ViT-B/14", (61.30, 54.11, 58.09, 56.98)),
        ),
    ),
    "navi_less_lighting": PublishedTable(
        "NAVI correspondence recall at 2 cm, less difference in lighting",
        _DEGREES,
        _LIGHTING,
        (
            PublishedRow("DINOv2R", "ViT-B/14", (92.28, 67.72, 49.24, 33.69)),
            PublishedRow("3DPoV", "ViT-B/14", (93.27, 68.85, 49.27, 33.52)),
        ),
    ),
    "navi_intense_lighting": PublishedTable(
        "NAVI correspondence recall at 2 cm, intense difference in lighting",
        _DEGREES,
        _LIGHTING,
        (
            PublishedRow("DINOv2R", "ViT-B/14", (89.63, 66.98, 48.13, 33.96)),
            PublishedRow("3DPoV", "ViT-B/14", (90.91, 68.45, 48.82, 34.11)),
        ),
    ),
}
"""Published tables by name; the benchmarks' `paper_rows` name those that a result fits."""


def beside(name: str, ours: Mapping[str, Sequence[float]]) -> str:
    """Print a published table with our rows below it, by model, and what differs. NaN is "-".

    Raises ValueError for a row that does not fit the columns.
    """
    published = PUBLISHED[name]
    columns = published.columns
    if any(len(values) != len(columns) for values in ours.values()):
        raise ValueError(f"a row of '{name}' has {len(columns)} values: {', '.join(columns)}")
    rows: list[Row] = [[f"{row.method}, {row.backbone}", *row.values] for row in published.rows]
    rows += [[f"{model} (this evaluation)", *values] for model, values in ours.items()]
    return "\n".join([f"{published.title}, %", table(("", *columns), rows), *published.differs])
