"""CoTracker3 through the published package, for those who have installed it: `tracks.backend: cotracker`.

The package is CC BY-NC 4.0 (not for commercial use) and not on PyPI. Its predictors return visibilities as yes or no, so its
network is called instead, as they call it for a grid: frames resized to the network's size, no further points in support, and the
frames before an anchor from the video played backward. What is stored is then its probabilities, in stored-frame pixels, like ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.trackers.cotracker3 import CoTracker3, as_tracks, find_device, load_network
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError

if TYPE_CHECKING:
    from torch import Tensor


class PublishedTracker:
    """Holds the package's network on its device, with the same weights as ours would have."""

    def __init__(self, settings: CoTracker3) -> None:
        self._settings = settings
        self._device = find_device(settings)
        predictor = _package()
        ours = load_network(settings, self._device)
        make = predictor.CoTrackerPredictor if settings.mode == "offline" else predictor.CoTrackerOnlinePredictor
        self._model = make(checkpoint=None, window_len=ours.window, v2=False).model
        self._model.load_state_dict(ours.state_dict())
        self._model.eval().to(self._device)

    def track(
        self, clips: Sequence[NDArray[np.uint8]], infos: Sequence[ClipInfo], anchors: Sequence[int], queries: NDArray[np.float32]
    ) -> list[Tracks]:
        """See `Tracker.track`."""
        return [self._track(clip, anchors, queries) for clip in clips]

    def _track(self, clip: NDArray[np.uint8], anchors: Sequence[int], queries: NDArray[np.float32]) -> Tracks:
        import torch
        from torch.nn import functional as F

        from pipeline.cotracker3.model import HEIGHT, WIDTH
        from pipeline.cotracker3.tracking import Tracked

        height, width = clip.shape[1:3]
        frames = torch.from_numpy(clip).to(self._device).permute(0, 3, 1, 2).float()
        video = F.interpolate(frames, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)
        points = torch.from_numpy(queries).to(self._device)
        scale = points.new_tensor([(WIDTH - 1) / max(1, width - 1), (HEIGHT - 1) / max(1, height - 1)])
        found = []
        for anchor in anchors:
            positions, visibility, confidence = self._both_ways(video, anchor, points * scale)
            positions = positions / scale
            positions[anchor], visibility[anchor], confidence[anchor] = points, 1.0, 1.0
            found.append((positions, visibility, confidence))
        tracked = Tracked(*(torch.stack(parts)[None] for parts in zip(*found, strict=True)))
        return as_tracks(tracked, 0, anchors, width, height)

    def _both_ways(self, video: Tensor, anchor: int, points: Tensor) -> list[Tensor]:
        """Positions [T, N, 2], visibilities and confidences [T, N] of points [N, 2], in pixels of `video` [T, 3, h, w]."""
        import torch

        forward = self._forward(video, anchor, points)
        if anchor == 0:
            return forward
        backward = self._forward(video.flip(0), len(video) - 1 - anchor, points)
        return [torch.cat([b.flip(0)[:anchor], f[anchor:]]) for b, f in zip(backward, forward, strict=True)]

    def _forward(self, video: Tensor, anchor: int, points: Tensor) -> list[Tensor]:
        import torch
        from torch.nn import functional as F

        asked = F.pad(points, (1, 0), value=float(anchor))
        with torch.no_grad():
            found = self._model(video=video[None], queries=asked[None], iters=self._settings.iterations)
        return [value[0].clone() for value in found[:3]]


def _package() -> Any:
    """The package's predictors. Raises PretrackError if it is not installed."""
    try:
        from cotracker import predictor
    except ImportError as error:
        raise PretrackError(
            f"tracks.backend cotracker needs the published package ({error}): pip install "
            "git+https://github.com/facebookresearch/co-tracker (its licence is CC BY-NC 4.0: not for commercial use), or set "
            "tracks.backend=pretrack"
        ) from error
    return predictor
