"""Changes of colour: draw them, and apply them to the frames of one clip.

`trainer.data.device_colour` applies them to many clips at once. All randomness is drawn from the
generator that is passed, in a fixed order, because exact resuming depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from torch import Tensor

from trainer.data.settings import ColourSettings

COLOUR_NUMBERS = 10
"""Length of `ColourChange.numbers`."""


@dataclass(frozen=True)
class ColourChange:
    """Changes of colour, as drawn for one frame or for several alike.

    factors: brightness, contrast and saturation to multiply by, and the hue to add, in turns
    order:   indices of the factors in the order in which they are applied; empty: none is
    grey:    whether colours are then removed
    sigma:   standard deviation of the blur that follows, in pixels; 0: none
    """

    factors: tuple[float, float, float, float] = (1, 1, 1, 0)
    order: tuple[int, ...] = ()
    grey: bool = False
    sigma: float = 0.0

    @property
    def numbers(self) -> list[float]:
        """The change as numbers [COLOUR_NUMBERS]: factors, order (or four times -1), grey, sigma.

        Made for arrays: `trainer.data.device_colour` reads them.
        """
        return [*self.factors, *(self.order or (-1,) * 4), self.grey, self.sigma]


def draw_colour_changes(
    frames: int, colour: ColourSettings, random: np.random.Generator
) -> list[ColourChange]:
    """Draw the changes of T frames: all alike, or each on its own with `per_frame`."""
    if colour.per_frame:
        return [_draw_colour_change(colour, random) for _ in range(frames)]
    return [_draw_colour_change(colour, random)] * frames


def _draw_colour_change(colour: ColourSettings, random: np.random.Generator) -> ColourChange:
    change = ColourChange()
    if random.random() < colour.jitter:
        brightness, contrast, saturation = (
            random.uniform(1 - largest, 1 + largest)
            for largest in (colour.brightness, colour.contrast, colour.saturation)
        )
        hue = random.uniform(-colour.hue, colour.hue)
        factors = (brightness, contrast, saturation, hue)
        order = tuple(random.permutation(len(factors)).tolist())
        change = replace(change, factors=factors, order=order)
    if random.random() < colour.grey:
        change = replace(change, grey=True)
    if random.random() < colour.blur:
        change = replace(change, sigma=random.uniform(*colour.blur_sigma))
    return change


def change_colours(frames: Tensor, colour: ColourSettings, random: np.random.Generator) -> Tensor:
    """Jitter, grey and blur frames [T, 3, S, S] uint8, all alike or each on its own; new memory."""
    changes = draw_colour_changes(len(frames), colour, random)
    if colour.per_frame:
        parts = zip(frames.split(1), changes, strict=True)
        return torch.cat([_change_alike(frame, change) for frame, change in parts])
    return _change_alike(frames, changes[0])


def _change_alike(frames: Tensor, change: ColourChange) -> Tensor:
    # Importing it costs a worker half a second and 60 MB, so only runs that use it import it.
    from torchvision.transforms.v2 import functional

    adjust: list[Callable[[Tensor, float], Tensor]] = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    ]
    for number in change.order:
        frames = adjust[number](frames, change.factors[number])
    if change.grey:
        frames = functional.rgb_to_grayscale(frames, num_output_channels=3)
    if change.sigma:
        # The kernel reaches three sigma to either side.
        side = 2 * ceil(3 * change.sigma) + 1
        frames = functional.gaussian_blur(frames, [side] * 2, [change.sigma] * 2)
    return frames
