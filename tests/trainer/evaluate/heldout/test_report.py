"""When a model is called better, and what is said if not."""

from __future__ import annotations

import pytest

from trainer.evaluate.heldout.report import conclusion
from trainer.evaluate.heldout.scoring import Scores
from trainer.evaluate.intervals import Difference


def concluded(rank: float = 8.0, videos: int = 20, track: float = 0.1) -> str:
    """The conclusion on a model with gains in both metrics; the base's effective rank is 10."""
    better = Difference(0.5, 0.6, 40, videos, (0.05, 0.15), "better")
    low, high = track - 0.05, track + 0.05
    tracks = Difference(
        base=0.5,
        model=0.5 + track,
        count=40,
        groups=videos,
        interval=(low, high),
        verdict="better" if low > 0 else "not distinguishable from 0",
    )
    scores = {"base": Scores([], effective_rank=10.0), "new": Scores([], effective_rank=rank)}
    return conclusion({"moving_pck@0.1": better, "moving_track@1": tracks}, scores, "base", "new")


def test_a_model_is_better_by_two_metrics_without_collapse_on_twenty_videos() -> None:
    assert concluded() == (
        "new is better than base, at moving points and at tracks; "
        "its effective rank is 0.80 of base's"
    )


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"rank": 7.9}, "its effective rank is 0.79 of base's, below 0.8"),
        ({"rank": float("nan")}, "its effective rank is nan of base's, below 0.8"),
        ({"videos": 19}, "only 19 videos with moving points, at least 20 are needed"),
        ({"track": 0.0}, "moving tracks told apart, first answer: not distinguishable from 0"),
    ],
)
def test_what_is_missing_is_named(case: dict[str, float], reason: str) -> None:
    assert concluded(**case) == f"new is not shown to be better than base ({reason})"  # type: ignore[arg-type]
