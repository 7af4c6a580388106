"""Sampling: features are read at the points, and references come from the right frames."""

from __future__ import annotations

import pytest
import torch

from shards.errors import SettingsError
from trainer.model.feature_sampling import (
    References,
    choose_references,
    crop_references,
    frames_of_clips,
    needed_frames,
    rank_references,
    sample_points,
)

SIZE, PATCH = 64, 8
GRID = SIZE // PATCH


def position_map() -> torch.Tensor:
    """Make a patch map [1, h, w, 2] of every patch's own centre (x, y) in pixels."""
    centres = torch.arange(GRID) * PATCH + (PATCH - 1) / 2
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1)[None]


def test_a_point_is_sampled_at_its_position() -> None:
    points = (
        torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0)) * (SIZE - PATCH)
        + (PATCH - 1) / 2
    )
    torch.testing.assert_close(
        sample_points(position_map(), points, SIZE, align_corners=False), points
    )


def test_published_sampling_is_off_most_at_the_border() -> None:
    points = torch.tensor([[[0.0, 31.5], [63.0, 31.5], [31.5, 31.5]]])
    read = sample_points(position_map(), points, SIZE, align_corners=True)
    torch.testing.assert_close(read[0, :, 0], torch.tensor([3.5, 59.5, 31.5]))


@pytest.mark.parametrize("align_corners", [False, True])
def test_points_outside_are_clamped_to_the_border(align_corners: bool) -> None:
    points = torch.tensor([[[-50.0, 20.0], [500.0, 20.0]]])
    torch.testing.assert_close(
        sample_points(position_map(), points, SIZE, align_corners),
        sample_points(position_map(), points.clamp(0, SIZE - 1), SIZE, align_corners),
    )


def test_bfloat16_features_are_sampled_at_exact_positions() -> None:
    points = torch.tensor([[[13.25, 40.0]]])
    read = sample_points(position_map().bfloat16(), points, SIZE, align_corners=False)
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, points, rtol=0, atol=0.25)


def test_float64_features_stay_float64_at_float32_points() -> None:
    points = torch.tensor([[[13.25, 40.0]]])
    read = sample_points(position_map().double(), points, SIZE, align_corners=False)
    torch.testing.assert_close(read, points.double(), rtol=0, atol=1e-5)


def test_references_are_frames_of_other_clips_and_one_of_its_own() -> None:
    clips, frames, count, side = 5, 4, 5, 3
    own_seen, others_seen = set(), set()
    tops, lefts = set(), set()
    for seed in range(200):
        r = choose_references(
            clips,
            frames,
            count,
            grid=GRID,
            side=side,
            generator=torch.Generator().manual_seed(seed),
        )
        assert r.frame.shape == r.top.shape == r.left.shape == (clips, count)
        for clip in range(clips):
            *others, own = r.frame[clip].tolist()
            assert len(set(others)) == count - 1
            assert all(frame // frames != clip for frame in others)
            assert own // frames == clip
            own_seen.add(own % frames)
            others_seen |= {frame % frames for frame in others}
        tops |= set(r.top.flatten().tolist())
        lefts |= set(r.left.flatten().tolist())
        assert not torch.equal(r.top, r.left)
    assert own_seen == {1, 2}
    assert others_seen == {0, 1, 2, 3}
    assert tops == lefts == set(range(6))  # a square of 3 begins at 0..5 on a grid of 8


def test_the_same_seed_draws_the_same_references() -> None:
    first, second, other = (
        choose_references(5, 4, 5, grid=GRID, side=3, generator=torch.Generator().manual_seed(seed))
        for seed in (7, 7, 8)
    )
    for name in ("frame", "top", "left"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert not torch.equal(getattr(first, name), getattr(other, name)), name


def test_too_few_frames_for_references_are_refused() -> None:
    with pytest.raises(SettingsError) as error:
        choose_references(2, 4, 6, grid=GRID, side=3, generator=torch.Generator())
    assert str(error.value) == (
        "'references.count: 6' takes 5 frames of other clips, and where 2 go through the model "
        "together there are 4: enlarge 'run.batch_size', lower 'run.accumulate' if it is above 1, "
        "or set 'references.count=1' to use only a clip's own frames"
    )
    all_of_the_other = choose_references(
        2, 4, 5, grid=GRID, side=3, generator=torch.Generator().manual_seed(0)
    )
    assert sorted(all_of_the_other.frame[0, :4].tolist()) == [4, 5, 6, 7]
    alone = choose_references(
        1, 4, 1, grid=GRID, side=3, generator=torch.Generator().manual_seed(0)
    )
    assert alone.frame.tolist()[0][0] in (1, 2)


def test_crops_are_slices() -> None:
    features = torch.randn(6, GRID, GRID, 3, generator=torch.Generator().manual_seed(0))
    references = References(
        torch.tensor([[4, 1], [0, 5]]),
        torch.tensor([[0, 5], [2, 3]]),
        torch.tensor([[1, 4], [5, 0]]),
    )
    crops = crop_references(features, references, 3)
    for b in range(2):
        for r in range(2):
            frame, top, left = (
                int(t[b, r]) for t in (references.frame, references.top, references.left)
            )
            expected = features[frame, top : top + 3, left : left + 3].reshape(9, 3)
            assert torch.equal(crops[b, r], expected)


def test_frames_of_clips_are_numbered_clip_by_clip() -> None:
    assert frames_of_clips(3, 4, [1, 3]).tolist() == [1, 3, 5, 7, 9, 11]


def test_needed_frames_are_renumbered() -> None:
    needed, first, second = needed_frames(12, torch.tensor([9, 2]), torch.tensor([[2, 5], [11, 9]]))
    assert needed.tolist() == [2, 5, 9, 11]
    assert first.tolist() == [2, 0]
    assert second.tolist() == [[0, 1], [3, 2]]


def test_a_ranks_references_are_its_rows_of_the_common_draw() -> None:
    drawn = choose_references(6, 4, 3, grid=8, side=4, generator=torch.Generator().manual_seed(0))
    own = rank_references(drawn, 2, 1)
    assert own.across_ranks
    for name in ("frame", "top", "left"):
        assert torch.equal(getattr(own, name), getattr(drawn, name)[2:4])
    assert isinstance(own, References)


@pytest.mark.parametrize(
    ("align_corners", "x", "expected"),
    [
        # Patches of 8 pixels have their centres at 3.5, 11.5, ...: 5.5 is a quarter of the way.
        (False, 5.5, 0.25),
        (False, 11.5, 1.0),
        (False, 0.0, 0.0),
        (False, 63.0, 7.0),
        # Pixels 0..63 are spread over the centres of patches 0..7: 9 pixels per patch.
        (True, 9.0, 1.0),
        (True, 4.5, 0.5),
        (True, 63.0, 7.0),
    ],
)
def test_sampling_positions_are_those_worked_out_by_hand(
    align_corners: bool, x: float, expected: float
) -> None:
    column = torch.arange(GRID).float().expand(GRID, GRID)[None, ..., None]
    row = column.transpose(1, 2)
    points = torch.tensor([[[x, 20.0], [20.0, x]]])
    columns = sample_points(column, points, SIZE, align_corners)
    rows = sample_points(row, points, SIZE, align_corners)
    assert columns[0, 0].item() == pytest.approx(expected, abs=1e-5)
    assert rows[0, 1].item() == pytest.approx(expected, abs=1e-5)
