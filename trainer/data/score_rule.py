"""How tracks count by their geometric scores: left out, or with a weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ScoreRule:
    """Limits of the epipolar score of a track, in pixels of the stored frame; None for no limit.

    max_px:    tracks with a larger score are left out
    weight_px: a track with this score counts half
    """

    max_px: float | None = None
    weight_px: float | None = None

    @property
    def needs_scores(self) -> bool:
        """Whether scores change anything."""
        return self.max_px is not None or self.weight_px is not None

    @property
    def setting(self) -> str:
        """The setting that needs scores, for messages."""
        return f"tracks.{'epipolar_weight_px' if self.max_px is None else 'max_epipolar_px'}"

    def left_out(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which tracks to leave out by their scores [N], NaN for a track without one."""
        # NaN is not larger.
        return scores > (np.inf if self.max_px is None else self.max_px)

    def weights(self, scores: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return how much tracks count by their scores [N]: 1 / (1 + (s / weight_px)^2), or None.

        These are the weights of a Cauchy loss of the score.
        """
        if self.weight_px is None:
            return None
        return 1 / (1 + np.square(np.nan_to_num(scores, nan=0.0) / np.float32(self.weight_px)))


ALL_TRACKS = ScoreRule()
"""All tracks count, whatever their scores."""
