"""The figures and the concerns of `pretrack report`, worked out for small snapshots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manifests.snapshot import Snapshot
from pipeline.inspection import report_figures
from pipeline.inspection.report_figures import cycle_errors, measure
from shards.clip import Tracks
from shards.stored_clip import StoredClip
from tests.helpers.clips import grey_clip
from tests.helpers.published import HOSTILE, publish_clips, publish_pans


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return publish_pans(tmp_path_factory.mktemp("figures") / "out")


def test_counts(snapshot: Snapshot) -> None:
    figures = measure(snapshot)
    assert (figures.clips, figures.frames, figures.shards) == (4, 36, 1)
    groups = {
        (group.source, group.split): (group.videos, group.clips, group.frames)
        for group in figures.groups
    }
    assert groups == {
        ("pans", "train"): (1, 2, 20),
        ("pans", "eval"): (1, 1, 8),
        (HOSTILE, "train"): (1, 1, 8),
    }
    counts = dict(zip(figures.lengths.edges, figures.lengths.counts, strict=False))
    assert (counts[7.5], counts[11.5]) == (3, 1)
    assert sum(figures.visible.counts) == sum(figures.motion.counts) == 4
    assert figures.motion.edges[-1] == 1.0
    assert figures.failures == (("scan", "unreadable video", 2), ("decode", HOSTILE, 1))
    assert figures.videos_lost == 1, "the other one lost a clip, and has others"


def test_bytes_and_speed(snapshot: Snapshot) -> None:
    figures = measure(snapshot)
    assert sum(figures.bytes.values()) == snapshot.shards["bytes"][0].as_py()
    sizes = snapshot.clips.to_pylist()
    assert figures.bytes["frames"] == sum(sum(row["frame_sizes"]) for row in sizes)
    assert [(it.stage, it.seconds, it.frames_per_second) for it in figures.stages] == [
        ("decode", 2.0, 18.0),
        ("track", 6.0, 6.0),
        ("write", 0.5, 72.0),
    ]


def test_visibility_since_the_anchor(snapshot: Snapshot) -> None:
    still, pans = sorted(measure(snapshot).sources, key=lambda source: source.source)
    assert dict(still.since_anchor) == dict.fromkeys(range(-4, 8), 1.0)
    since = dict(pans.since_anchor)
    assert since[0] == 1.0
    assert (min(since), max(since)) == (-4, 11)
    # only the clip of 12 frames gets there, from its anchor 0: it moved by (33, 11) pixels, so of
    # columns at 1, 32, 63, 94 and rows at 1, 22, 42, 63, two and three are still within 96x64
    assert since[11] == 2 * 3 / 16


def test_points_that_come_home_have_no_error_and_others_have_theirs() -> None:
    tracks = grey_clip("any", grid=5, step=(2.0, 1.0)).tracks
    errors = cycle_errors(tracks)
    assert len(errors) > 10
    assert errors.max() < 1e-3
    strayed = tracks.positions.copy()
    strayed[1, 0] += (3.0, -4.0)  # what starts at frame 4 is at frame 0 where it does not belong
    back = cycle_errors(replace(tracks, positions=strayed))
    np.testing.assert_allclose(back[: len(back) // 2], 5.0, atol=1e-3)
    one = Tracks(
        tracks.anchors[:1], tracks.positions[:1], tracks.visibility[:1], tracks.confidence[:1]
    )
    assert len(cycle_errors(one)) == 0


def test_a_cycle_error_is_interpolated_between_the_four_tracks_around_a_point() -> None:
    """Two anchors of 2x2 points: the second grid moves each corner by another amount."""
    first = np.array([[10, 10], [30, 10], [10, 30], [30, 30]], np.float32)
    second = np.array([[0, 0], [40, 0], [0, 40], [40, 40]], np.float32)
    positions = np.empty((2, 2, 4, 2), np.float32)
    positions[0] = first  # followed from frame 0 to frame 1, it stands still
    positions[1, 1] = second
    positions[1, 0] = second + np.array([[4, 0], [8, 0], [0, 0], [0, 16]])
    visible = np.full((2, 2, 4), 255, np.uint8)
    tracks = Tracks(np.array([0, 1], np.int32), positions, visible, visible)
    # (10, 10) is a quarter of the cell away from its first corner: weights 9, 3, 3, 1 sixteenths
    dx = [(9 * 4 + 3 * 8) / 16, (3 * 4 + 9 * 8) / 16, (3 * 4 + 8) / 16, (4 + 3 * 8) / 16]
    dy = [16 / 16, 3 * 16 / 16, 3 * 16 / 16, 9 * 16 / 16]
    # of the second grid, no point lies within the cell of the first one
    np.testing.assert_allclose(cycle_errors(tracks), np.hypot(dx, dy), rtol=1e-6)
    visible[1, 0, 2] = 127  # one of the four tracks is hidden where the way back ends
    assert len(cycle_errors(tracks)) == 0
    visible[1, 0, 2] = 128
    visible[0, 1, :3] = 0  # three points are hidden where they turn
    np.testing.assert_allclose(cycle_errors(tracks), [np.hypot(dx[3], dy[3])], rtol=1e-6)


@pytest.mark.parametrize(
    ("frames", "edges", "counts"),
    [
        ([1, 3, 3], [0.5, 1.5, 2.5, 3.5], [1, 0, 2]),
        ([2, 120], [0.5, 3.5], [1]),  # bins of 3: 1-3, 4-6, ... 118-120
    ],
)
def test_clips_are_counted_by_length(
    frames: list[int], edges: list[float], counts: list[int]
) -> None:
    histogram = report_figures._length_histogram(np.array(frames, np.int32))
    assert histogram.edges[: len(edges)] == tuple(edges)
    assert histogram.counts[: len(counts)] == tuple(counts)
    assert sum(histogram.counts) == len(frames)
    assert histogram.edges[-1] > max(frames) > histogram.edges[-2]


def test_fractions_are_counted_in_25_bins_with_larger_ones_in_the_last() -> None:
    values = np.array([0.0, 0.019, 0.021, 0.25, 0.499, 0.5, 7.0, np.nan], np.float32)
    histogram = report_figures._histogram(values, 0.5)
    assert histogram.edges == pytest.approx([0.02 * edge for edge in range(26)])
    expected = {0: 3, 1: 1, 12: 1, 24: 3}  # NaN counts as 0
    assert {bin: count for bin, count in enumerate(histogram.counts) if count} == expected


@pytest.mark.parametrize(
    ("motion", "end"),
    [
        ([], 0.05),
        ([0.049], 0.05),
        ([0.051], 0.1),
        ([0.11], 0.2),
        ([0.3, float("nan")], 0.5),
        ([0.01] * 200 + [9.0], 0.05),  # less than one in a hundred does not stretch the axis
        ([5.1], 6.0),
    ],
)
def test_the_axis_of_motion_ends_at_a_round_number(motion: list[float], end: float) -> None:
    assert report_figures._motion_scale(np.array(motion, np.float32)) == end


def test_hidden_points_are_not_judged() -> None:
    tracks = grey_clip("any", grid=5, step=(2.0, 1.0)).tracks
    hidden = np.zeros_like(tracks.visibility)
    assert len(cycle_errors(replace(tracks, visibility=hidden))) == 0


def test_only_some_clips_are_read_and_always_the_same(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_figures, "SAMPLED", 2)
    first, again = measure(snapshot).sources, measure(snapshot).sources
    assert first == again
    assert [source.clips for source in first] == [1, 1]


def test_concerns(snapshot: Snapshot, tmp_path: Path) -> None:
    concerns = measure(snapshot).concerns
    assert "1 video yielded no clips, beside 3 that could be read." in concerns
    assert '"motion > 0.01 and visible_fraction > 0.5" keeps 2 of 4 clips (50%).' in concerns
    damaged = publish_clips(tmp_path / "out", [grey_clip("made-a", anchors=(0,))])
    row = damaged.clips.to_pylist()[0]
    tar = tmp_path / "out" / "shards" / f"{row['shard']}.tar"
    data = bytearray(tar.read_bytes())
    data[row["tracks_offset"] : row["tracks_offset"] + 8] = bytes(8)
    tar.write_bytes(data)
    concerns = measure(damaged).concerns
    assert any(concern.startswith("The split eval has no clips") for concern in concerns)
    assert "The tracks of 1 sampled clip could not be read: run 'pretrack verify'." in concerns
    assert measure(damaged).damaged == 1


def test_a_snapshot_without_training_clips_says_so(tmp_path: Path) -> None:
    snapshot = publish_clips(tmp_path / "out", [grey_clip("made-a", split="eval")])
    assert measure(snapshot).concerns == (
        "The split train has no clips: there is nothing to train on.",
    )


def clips_of(**counts: int) -> list[StoredClip]:
    """Clips of 2 frames, so many per source, the first one of all for evaluation."""
    keys = [f"{source}-{number}" for source, count in counts.items() for number in range(count)]
    return [
        grey_clip(
            key,
            source=key.split("-")[0],
            split="eval" if number == 0 else "train",
            frames=2,
            grid=2,
            anchors=(0,),
        )
        for number, key in enumerate(keys)
    ]


@pytest.mark.parametrize(
    ("counts", "concerns"),
    [
        ({"pans": 4, "walks": 1}, ()),  # exactly 80%
        (
            {"pans": 1, "walks": 5},
            ("83% of the clips are from the source walks: data.weights can balance the sources.",),
        ),
        ({"walks": 5}, ()),  # with one source there is nothing to balance
    ],
)
def test_a_source_with_more_than_80_percent_of_the_clips_is_a_concern(
    tmp_path: Path, counts: dict[str, int], concerns: tuple[str, ...]
) -> None:
    assert measure(publish_clips(tmp_path / "out", clips_of(**counts))).concerns == concerns


@pytest.mark.parametrize(
    ("strayed", "concern"),
    [
        (1.9, None),
        (2.1, "The median forward-backward error of made is 2.1 px: look at its tracks."),
    ],
)
def test_a_median_forward_backward_error_above_2_pixels_is_a_concern(
    tmp_path: Path, strayed: float, concern: str | None
) -> None:
    clips = [
        grey_clip("made-a", step=(0.0, 0.0)),
        grey_clip("made-b", split="eval", step=(0.0, 0.0)),
    ]
    for clip in clips:
        # tracks of the first anchor are off in the second one's frame, in both directions
        clip.tracks.positions[0, 4, :, 0] += strayed
    snapshot = publish_clips(tmp_path / "out", clips)
    (source,) = measure(snapshot).sources
    assert source.cycle_median == pytest.approx(strayed, abs=0.05)
    assert measure(snapshot).concerns == ((concern,) if concern else ())
