"""The lamps of a scene in each frame, as data for a renderer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.scenes.mesh import Floats
from pipeline.scenes.room import Room
from pipeline.scenes.scene_id import Lighting


@dataclass(frozen=True)
class Light:
    """A lamp. Positions are in the world's metres, colours are red, green, blue from 0 to 1.

    ambient: what it adds everywhere, whatever the direction
    shadows: whether objects cast shadows in its light
    """

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    diffuse: tuple[float, float, float]
    ambient: tuple[float, float, float]
    shadows: bool


_LEVELS: dict[Lighting, tuple[float, float, float]] = {
    "normal": (0.55, 0.25, 0.30),
    "dim": (0.20, 0.08, 0.10),
    "harsh": (1.00, 0.00, 0.06),
    "varied": (0.60, 0.20, 0.25),
}
"""Per kind of light: the lamp's diffuse level, the second lamp's, and the ambient level."""


def draw_lights(
    rng: np.random.Generator, room: Room, light: Lighting, frames: int
) -> tuple[tuple[Light, ...], ...]:
    """Draw the lamps of each frame: one below the ceiling, and a weaker one on the other side."""
    first, second, ambient = _LEVELS[light]
    side = float(rng.choice([-1.0, 1.0]))
    height, y = room.height - 0.15, rng.uniform(-1.8, -0.2)
    lamp = _light([side * rng.uniform(0.6, 1.8), y, height], first, ambient, rng)
    other = _light([-side * rng.uniform(0.6, 1.8), rng.uniform(-1.8, 0.5), height], second, 0, rng)
    lamps = [lamp] if second == 0 else [lamp, replace(other, shadows=False)]
    if light != "varied":
        return (tuple(lamps),) * frames
    # Level and colour of the first lamp swing, and so does its place; a flicker is added.
    swings = _swings(rng, frames, 6)
    flicker = rng.uniform(0.85, 1.15, frames)
    return tuple((_varied(lamp, swings[t], float(flicker[t])), *lamps[1:]) for t in range(frames))


def _light(position: list[float], level: float, ambient: float, rng: np.random.Generator) -> Light:
    """Make a lamp that points at the objects, in a colour near white."""
    tint = rng.uniform(0.8, 1.0, 3)
    x, y, z = map(float, position)
    return Light(
        position=(x, y, z),
        target=(0.0, 0.0, 0.4),
        diffuse=_colour(level * tint / tint.max()),
        ambient=_colour(np.full(3, ambient)),
        shadows=True,
    )


def _varied(lamp: Light, swing: Floats, flicker: float) -> Light:
    """Give a lamp another place, level and colour; `swing` [6] is from -1 to 1."""
    x, y, z = lamp.position
    level = (0.75 + 0.4 * swing[2]) * flicker
    return replace(
        lamp,
        position=(x + 0.6 * float(swing[0]), y + 0.6 * float(swing[1]), z),
        diffuse=_colour(np.array(lamp.diffuse) * level * (1 + 0.25 * swing[3:])),
        ambient=_colour(np.array(lamp.ambient) * level),
    )


def _swings(rng: np.random.Generator, frames: int, count: int) -> Floats:
    """Draw sine waves over the clip: [T, count], each with a frequency and phase of its own."""
    periods, phases = rng.uniform(0.5, 1.5, count), rng.uniform(0, 1, count)
    times = np.arange(frames)[:, None] / max(1, frames - 1)
    return np.asarray(np.sin(2 * np.pi * (times * periods + phases)))


def _colour(values: Floats) -> tuple[float, float, float]:
    red, green, blue = values.clip(0, 1).tolist()
    return red, green, blue
