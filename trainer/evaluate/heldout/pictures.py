"""Draw the label-free evaluation: curves by gap and viewpoint, features as colours, and matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.heldout.breakdown import UNKNOWN, bins, by_clip
from trainer.evaluate.heldout.canvas import INK, PAPER, SUBPIXELS, Picture, font, png, subpixel
from trainer.evaluate.heldout.clips import HeldOutClip, HeldOutSet
from trainer.evaluate.heldout.curves import plot
from trainer.evaluate.heldout.measures import (
    BY_VIEWING_ANGLE,
    METRICS,
    MOVING_DISTANCE,
    Metric,
    match,
    moving_points,
)
from trainer.evaluate.heldout.scoring import CHANCE, STATIC, Scores
from trainer.evaluate.results import finite_mean
from trainer.feature_colours import principal_colours

SIDE, LARGE = 256, 384
"""Side of a drawn frame in pixels: in a row of all frames, and in a pair of frames."""
GAP = 8
MAX_LINES = 24
"""Most points of a pair that are drawn: more would hide the picture."""
RIGHT, WRONG = (34, 160, 74), (220, 50, 47)


def choose_clips(clips: Sequence[HeldOutClip], count: int) -> list[int]:
    """Choose clips to draw, evenly from the half in which most points move.

    The choice does not depend on any model. Clips without a moving
    point are chosen only if there are no others.
    """
    moving = []
    for clip in clips:
        pairs = (clip.points(t) for t in range(1, len(clip.frame_numbers)))
        moving.append(sum(int(moving_points(*pair).sum()) for pair in pairs))
    by_motion = np.argsort(moving, kind="stable")[::-1].tolist()
    ranked = [i for i in by_motion if moving[i]] or list(range(len(clips)))
    half = sorted(ranked[: max(count, -(-len(ranked) // 2))])
    spaced = np.linspace(0, len(half) - 1, min(count, len(half))).round().astype(int)
    return [half[i] for i in np.unique(spaced).tolist()]


def draw_pictures(
    held_out: HeldOutSet,
    models: Sequence[EvaluatedModel],
    scores: dict[str, Scores],
    drawn: Sequence[int],
) -> Iterator[tuple[str, bytes]]:
    """Yield all pictures as (name, PNG).

    First curves: the headline metric by frame gap and by viewpoint, and two metrics by points'
    viewing angles, as far as poses are known; then features and matches of the clips `drawn`.
    """
    yield from _curve("recall-gap", METRICS[0], "gap", held_out, scores)
    yield from _curve("recall-angle", METRICS[0], "angle", held_out, scores)
    for name, metric in zip(("recall", "error"), BY_VIEWING_ANGLE, strict=True):
        yield from _curve(f"{name}-viewing-angle", metric, "viewing_angle", held_out, scores)
    for i in drawn:
        clip = held_out.clips[i]
        features = {model.name: scores[model.name].kept_features[i] for model in models}
        yield f"features-{clip.info.key}", png(draw_features(clip, features))
        if picture := draw_matches(clip, features):
            yield f"matches-{clip.info.key}", png(picture)


_BY = {
    "gap": "frames apart, in steps",
    "angle": "degrees between the cameras",
    "viewing_angle": "degrees between the rays to a point",
}


def _curve(
    name: str, metric: Metric, kind: str, held_out: HeldOutSet, scores: dict[str, Scores]
) -> Iterator[tuple[str, bytes]]:
    """Yield the curve of a metric over the bins of a kind, if there are any."""
    labels = [label for label in bins(held_out)[kind] if label != UNKNOWN]
    if not labels:
        return
    curves = {
        column: [finite_mean(by_clip(metric, found, held_out, kind, label)) for label in labels]
        for column, found in scores.items()
    }
    yield name, plot(metric.title, labels, curves, baselines=(STATIC, CHANCE), unit=_BY[kind])


def draw_features(clip: HeldOutClip, features: dict[str, Tensor]) -> Image.Image:
    """Draw the frames of a clip, and below them each model's features as colours.

    features: model → [T, h, w, D]

    Red, green and blue are the first three principal components of the anchor frame's features,
    from their 1st to their 99th percentile there; the other frames use the same components and
    range. The sign of a component is the one that agrees most with the first model's.
    """
    rows: list[list[Picture]] = [_resized_frames(clip)]
    first: NDArray[np.float64] | None = None
    for maps in features.values():
        colours = principal_colours(maps.double().numpy(), first)
        first = colours if first is None else first
        row = []
        for colour in colours:
            small = np.rint(255 * colour.clip(0, 1)).astype(np.uint8)
            large = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            row.append(large.astype(np.uint8))
        rows.append(row)
    ahead = [number - clip.frame_numbers[0] for number in clip.frame_numbers]
    return _sheet(
        rows,
        labels=["", *features],
        titles=["anchor frame", *(f"{frames:+d} frames" for frames in ahead[1:])],
        title=f"{clip.info.key}\nfeatures as colours, chosen on the anchor frame",
    )


def draw_matches(clip: HeldOutClip, features: dict[str, Tensor]) -> Image.Image | None:
    """Draw the matches of each model from the anchor frame to the last that shares a point with it.

    features: model → [T, h, w, D]

    A line joins each point to where the model finds it. Green: less than a tenth of the image away
    from the track; red: further. None if no frame shares a point.
    """
    frame = max(
        (t for t in range(1, len(clip.frame_numbers)) if len(clip.points(t)[0])), default=None
    )
    if frame is None:
        return None
    queries, targets = clip.points(frame)
    chosen = _choose_points(queries, targets)
    queries, targets = queries[chosen], targets[chosen]
    frames, rows, labels = _resized_frames(clip, LARGE), [], []
    for name, maps in features.items():
        matches = match(maps[0], maps[frame], queries)
        correct = ((matches - targets).norm(dim=-1) < MOVING_DISTANCE).tolist()
        rows.append([_match_lines(frames[0], frames[frame], queries, matches, correct)])
        labels.append(f"{name}\n{sum(correct)} of {len(correct)}\nfound")
    ahead = clip.frame_numbers[frame] - clip.frame_numbers[0]
    caption = (
        f"points of the anchor frame (left), and where they are found {ahead} frames later: "
        "right ones green, others red"
    )
    return _sheet(rows, labels=labels, titles=[""], title=f"{clip.info.key}\n{caption}")


def _choose_points(queries: Tensor, targets: Tensor) -> Tensor:
    """Choose up to MAX_LINES points, evenly: moving ones if there are at least four."""
    moving = torch.nonzero((targets - queries).norm(dim=-1) > MOVING_DISTANCE).flatten()
    pool = moving if len(moving) >= 4 else torch.arange(len(queries))
    spaced = torch.linspace(0, len(pool) - 1, min(MAX_LINES, len(pool))).round().long()
    return pool[spaced]


def _match_lines(
    left: Picture, right: Picture, queries: Tensor, matches: Tensor, correct: Sequence[bool]
) -> Picture:
    """Draw two frames side by side, dimmed, with a line from each point to its match.

    Wrong lines are drawn first, so that right ones lie on top.
    """
    side = len(left)
    canvas = np.hstack([left, np.full((side, GAP, 3), 255, np.uint8), right])
    canvas = cv2.addWeighted(canvas, 0.6, np.full_like(canvas, 255), 0.4, 0).astype(np.uint8)
    # Fractions of the image to pixels with centres at integers.
    starts = queries.numpy() * side - 0.5
    ends = matches.numpy() * side - 0.5 + (side + GAP, 0)
    for i in sorted(range(len(correct)), key=lambda i: correct[i]):
        colour = RIGHT if correct[i] else WRONG
        start, end = subpixel(*starts[i]), subpixel(*ends[i])
        cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA, shift=4)
        for point in (start, end):
            cv2.circle(canvas, point, 3 * SUBPIXELS, PAPER, -1, cv2.LINE_AA, shift=4)
            cv2.circle(canvas, point, 2 * SUBPIXELS, colour, -1, cv2.LINE_AA, shift=4)
    return canvas


def _resized_frames(clip: HeldOutClip, side: int = SIDE) -> list[Picture]:
    """Resize a clip's frames to [side, side, 3], from the largest images that models see."""
    images = clip.images[max(clip.images)].numpy().transpose(0, 2, 3, 1)
    method = cv2.INTER_AREA if images.shape[1] >= side else cv2.INTER_CUBIC
    return [
        cv2.resize(image, (side, side), interpolation=method).astype(np.uint8) for image in images
    ]


def _sheet(
    rows: Sequence[Sequence[Picture]], *, labels: Sequence[str], titles: Sequence[str], title: str
) -> Image.Image:
    """Lay out pictures of one size in rows with a label each, and columns with a title each."""
    text_font = font(14)
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def text_width(text: str) -> int:
        return round(probe.multiline_textbbox((0, 0), text, text_font)[2])

    margin = GAP + max(map(text_width, labels)) + GAP if any(labels) else GAP
    high, wide = rows[0][0].shape[:2]
    top = 84 if any(titles) else 58
    width = max(margin + len(rows[0]) * (wide + GAP), text_width(title) + 2 * GAP)
    sheet = Image.new("RGB", (width, top + len(rows) * (high + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((GAP, GAP), title, INK, text_font)
    for column, text in enumerate(titles):
        x = margin + column * (wide + GAP) + wide / 2
        draw.text((x, top - 6), text, INK, text_font, anchor="ms")
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + number * (high + GAP)
        beside = (margin - GAP, y + high / 2)
        draw.multiline_text(beside, label, INK, text_font, anchor="rm", align="right")
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (margin + column * (wide + GAP), y))
    return sheet
