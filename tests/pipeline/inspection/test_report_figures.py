"""The figures and the concerns of `pretrack report`, worked out for small snapshots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from manifests.snapshot import Snapshot, publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS
from pipeline.inspection import report_figures
from pipeline.inspection.report_figures import StageSpeed, measure
from pipeline.trackers.protocol import leave_untracked
from shards.sample_starts import SampleRule
from shards.stored_clip import StoredClip
from tests.helpers.clips import grey_clip
from tests.helpers.published import HOSTILE, publish_clips, publish_pans


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return publish_pans(tmp_path_factory.mktemp("figures") / "out")


def test_counts(snapshot: Snapshot) -> None:
    figures = measure(snapshot)
    assert (figures.out, figures.snapshot) == (str(snapshot.out), "000001")
    assert figures.tracks == {"tracker": "lucas_kanade", "grid": 4, "anchors": [0, 4]}
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
    assert figures.visible.edges[-1] == figures.motion.edges[-1] == 1.0
    assert figures.failures == (("scan", "unreadable video", 2), ("decode", HOSTILE, 1))
    assert figures.videos_lost == 1, "the other one lost a clip, and has others"


def test_bytes_and_speed(snapshot: Snapshot) -> None:
    figures = measure(snapshot)
    rows = snapshot.clips.to_pylist()
    parts = {
        "frames": sum(sum(row["frame_sizes"]) for row in rows),
        "tracks": sum(row["tracks_size"] for row in rows),
        "descriptions": sum(row["json_size"] for row in rows),
    }
    tar = snapshot.shards["bytes"][0].as_py() - sum(parts.values())
    assert figures.bytes == {**parts, "tar": tar}
    assert [(it.stage, it.seconds, it.frames_per_second) for it in figures.stages] == [
        ("decode", 2.0, 18.0),
        ("track", 6.0, 6.0),
        ("write", 0.5, 72.0),
    ]


def test_a_snapshot_of_nothing_counts_nothing(tmp_path: Path) -> None:
    tables = {
        "videos": VIDEOS.empty_table(),
        "clips": CLIPS.empty_table(),
        "shards": SHARDS.empty_table(),
        "failures": FAILURES.empty_table(),
    }
    figures = measure(publish_snapshot(tmp_path, tables, {}))
    assert (figures.clips, figures.frames, figures.good, figures.videos_lost) == (0, 0, 0, 0)
    assert figures.bytes == {"frames": 0, "tracks": 0, "descriptions": 0, "tar": 0}
    assert figures.stages == tuple(
        StageSpeed(stage, 0.0, None) for stage in ("decode", "track", "write")
    )
    assert (figures.groups, figures.sources, figures.damaged) == ((), (), 0)


def test_visibility_since_the_anchor(snapshot: Snapshot) -> None:
    still, pans = sorted(measure(snapshot).sources, key=lambda source: source.source)
    assert dict(still.since_anchor) == dict.fromkeys(range(-4, 8), 1.0)
    since = dict(pans.since_anchor)
    assert since[0] == 1.0
    assert (min(since), max(since)) == (-4, 11)
    # only the clip of 12 frames gets there, from its anchor 0: it moved by (33, 11) pixels, so of
    # columns at 1, 32, 63, 94 and rows at 1, 22, 42, 63, two and three are still within 96x64
    assert since[11] == 2 * 3 / 16


def test_frames_that_were_not_tracked_are_no_part_of_the_visibility(tmp_path: Path) -> None:
    clip = grey_clip("made-a", step=(0.0, 0.0))
    forward = leave_untracked(clip.tracks, "forward")
    settings = {"tracks": {"tracker": "lucas_kanade", "directions": "forward"}}
    stored = [StoredClip(clip.info, forward, clip.jpegs)]
    (source,) = measure(publish_clips(tmp_path / "out", stored, settings=settings)).sources
    # frames 0 to 7 from anchor 0, frames 4 to 7 from anchor 4
    assert dict(source.since_anchor) == dict.fromkeys(range(8), 1.0)


def test_tracks_that_no_training_sample_can_use_are_said_in_sentences(tmp_path: Path) -> None:
    """In clips of 8 frames, a sample of 4 frames steps by 2 and reaches 6 frames far.

    From anchor 0 it steps forward into 7 frames; on the sides of anchor 4 there are 3 and 4. So it
    uses 7 of the 7 + 3 + 4 tracked frames.
    """
    clips = [grey_clip("made-a"), grey_clip("made-b")]
    snapshot = publish_clips(tmp_path / "both", clips)
    assert measure(snapshot).unused_tracks == (
        "No training sample can start from the anchor 4.",
        "A sample takes 4 frames, 10 apart (less in clips of fewer than 40 frames). In clips of 8 "
        "frames, the most frequent length, it can start from frames 0 to 1 or 6 to 7. Samples use "
        "50% of the tracked frames: change tracks.anchors or frames.clip_frames.",
        "This is for data.frames=4 and data.step=10, the trainer's defaults: --train-frames and "
        "--train-step choose others.",
    )
    assert measure(snapshot, SampleRule(frames=4, step=1)).unused_tracks == ()
    settings = {"tracks": {"anchors": [0, 4], "directions": "backward"}}
    backward = publish_clips(tmp_path / "backward", clips, settings=settings)
    first, second, _ = measure(backward).unused_tracks
    assert first == "No training sample can start from the anchor 0."
    assert "it can start from frames 6 to 7. Samples use 100% of the tracked frames" in second


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


def test_only_some_clips_are_read_and_always_the_same(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_figures, "SAMPLED", 2)
    assert [source.clips for source in measure(snapshot).sources] == [1, 1]
    monkeypatch.setattr(report_figures, "SAMPLED", 5)
    assert [source.clips for source in measure(snapshot).sources] == [1, 2]


def test_one_source_gets_the_whole_sample_and_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_figures, "SAMPLED", 4)
    clips = clips_of(pans=8)
    for number, clip in enumerate(clips):
        clip.tracks.visibility[:] = 1 << number  # the mean tells which clips were sampled
    snapshot = publish_clips(tmp_path, clips)
    first, *others = (measure(snapshot).sources for _ in range(3))
    assert [source.clips for source in first] == [4]
    assert others == [first, first]


def test_lost_videos_and_clips_that_the_filter_drops_are_concerns(snapshot: Snapshot) -> None:
    concerns = measure(snapshot).concerns
    assert "1 video yielded no clips, beside 3 that could be read." in concerns
    assert '"motion > 0.01 and visible_fraction > 0.5" keeps 2 of 4 clips (50%).' in concerns


def test_damaged_tracks_are_a_concern(tmp_path: Path) -> None:
    clips = [grey_clip("made-a", anchors=(0,)), grey_clip("walks-b", source="walks", anchors=(0,))]
    damaged = publish_clips(tmp_path / "out", clips)
    row = damaged.clips.to_pylist()[0]
    tar = tmp_path / "out" / "shards" / f"{row['shard']}.tar"
    data = bytearray(tar.read_bytes())
    data[row["tracks_offset"] : row["tracks_offset"] + 8] = bytes(8)
    tar.write_bytes(data)
    figures = measure(damaged)
    assert figures.damaged == 1
    assert [source.clips for source in figures.sources] == [0, 1]
    assert figures.concerns == (
        "The split eval has no clips: it cannot be measured whether training helped; "
        "set split.eval_fraction.",
        "The tracks of 1 sampled clip could not be read: run 'pretrack verify'.",
    )


def test_a_snapshot_without_training_clips_says_so(tmp_path: Path) -> None:
    snapshot = publish_clips(tmp_path / "out", [grey_clip("made-a", split="eval")])
    assert measure(snapshot).concerns == (
        "The split train has no clips: there is nothing to train on.",
    )


def clips_of(**counts: int) -> list[StoredClip]:
    """Make clips of 2 frames, `counts` of each source; only the first is for evaluation."""
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
        (
            {"pans": 5, "walks": 1},  # those of `pans` are in both splits
            ("83% of the clips are from the source pans: data.weights can balance the sources.",),
        ),
        ({"walks": 5}, ()),  # with one source there is nothing to balance
    ],
)
def test_a_source_with_more_than_80_percent_of_the_clips_is_a_concern(
    tmp_path: Path, counts: dict[str, int], concerns: tuple[str, ...]
) -> None:
    assert measure(publish_clips(tmp_path / "out", clips_of(**counts))).concerns == concerns


def test_forward_backward_errors_are_counted_with_their_median_and_90th_percentile(
    tmp_path: Path,
) -> None:
    clips = [grey_clip("made-a", step=(0.0, 0.0)), grey_clip("made-b", step=(0.0, 0.0))]
    clips[1].tracks.positions[0, 4, :, 0] += 2.0
    (source,) = measure(publish_clips(tmp_path, clips)).sources
    # of a grid of 4x4, the points of 3x3 cells, from two anchors: without error in one clip, and
    # with an error of 2 px in the other
    assert (source.clips, source.cycles) == (2, 2 * 2 * 9)
    assert source.cycle_median == pytest.approx(1.0)
    assert source.cycle_p90 == pytest.approx(2.0)


def test_visibility_is_measured_for_clips_of_more_frames_than_points(tmp_path: Path) -> None:
    clip = grey_clip("made-a", grid=1, frames=4, anchors=(1,), step=(0.0, 0.0))
    clip.tracks.visibility[0, :, 0] = [51, 255, 204, 0]
    (source,) = measure(publish_clips(tmp_path, [clip])).sources
    assert source.since_anchor == ((-1, 0.2), (0, 1.0), (1, 0.8), (2, 0.0))


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
