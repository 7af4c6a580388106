"""Where in a clip a training sample can start: from which anchors, in which direction, how far.

The trainer draws one of these starts, and `pretrack plan` and `pretrack report` say which anchors
none of them uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.clip import Directions


@dataclass(frozen=True)
class SampleRule:
    """How a training sample takes frames of a clip; the defaults are those of the trainer.

    frames:       frames per sample, T: the anchor frame and T - 1 others (`data.frames`)
    step:         step between them, in stored frames (`data.step`)
    first_anchor: start from a clip's first anchor only (`data.anchor: first`)
    backward:     step backward in time as well as forward (`data.direction: both`)
    """

    frames: int = 4
    step: int = 10
    first_anchor: bool = False
    backward: bool = True

    def step_in(self, frames: int) -> int:
        """Return the step in a clip of `frames` frames: smaller in short clips (3DPoV's rule)."""
        return self.step if frames >= self.frames * self.step else max(1, frames // self.frames)

    def reach_in(self, frames: int) -> int:
        """Return how far a sample steps away from its anchor in a clip of `frames` frames."""
        return (self.frames - 1) * self.step_in(frames)


TRAINER_DEFAULTS = SampleRule()


@dataclass(frozen=True)
class SampleStart:
    """A start of a sample: the index of the anchor, the direction (1 or -1), and the step."""

    anchor: int
    direction: int
    step: int


def sample_starts(
    frames: int, anchors: Sequence[int], rule: SampleRule, tracked: Directions = "both"
) -> list[SampleStart]:
    """List the starts that a sample of a clip is drawn from: forward ones first, by anchor.

    frames:  number of frames in the clip
    anchors: its anchor frames, by frame number
    tracked: the directions in which its points were tracked; no sample steps in another

    These are the anchors and directions with enough frames for the rule's step. If none has enough,
    it is the one with the most frames, with the largest step that fits. The list is empty for a
    clip that no sample can be taken from.
    """
    # (frames available, index of the anchor, direction)
    options: list[tuple[int, int, int]] = []
    if tracked != "backward":
        options += [(frames - 1 - anchor, index, 1) for index, anchor in enumerate(anchors)]
    if tracked != "forward" and rule.backward:
        options += [(anchor, index, -1) for index, anchor in enumerate(anchors)]
    if rule.first_anchor:
        options = [option for option in options if option[1] == 0]
    step, reach = rule.step_in(frames), rule.reach_in(frames)
    if fitting := [option for option in options if option[0] >= reach]:
        return [SampleStart(index, direction, step) for _, index, direction in fitting]
    available, index, direction = max(options, default=(0, 0, 1))
    step = available // (rule.frames - 1)
    return [SampleStart(index, direction, step)] if step else []
