"""The id of a scene: the numbers that determine all of its content, and their limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from shards.errors import PretrackError

Split = Literal["train", "eval"]
"""Which shapes, photographs and textures a scene may show: no part is in both splits."""
Motion = Literal["static", "moving"]
"""Whether all objects stand still, or some of them move rigidly."""
Lighting = Literal["normal", "dim", "harsh", "varied"]
"""The light: even, weak, or from one hard lamp; `varied` changes from frame to frame."""

VERSION = 1
"""Raised by hand when the same id gives another scene, so that versions are never mixed."""
MOST_OBJECTS, MOST_OCCLUDERS = 15, 10
LARGEST_ORBIT = 120
"""In degrees. On a larger orbit the camera would come to the room's side walls."""
LARGEST_SEED, LARGEST_NUMBER = 2**32 - 1, 10**9 - 1
MOST_FRAMES = 999
SMALLEST_SIDE, LARGEST_SIDE = 32, 4096


@dataclass(frozen=True, kw_only=True)
class SceneId:
    """Everything that determines a scene. Raises PretrackError for values out of their limits.

    Its text form is the video's id
    ("v1-train-seed7-scene0003-10objects-120deg-moving-normal-16f-128x128").

    seed:          the source's seed
    number:        which of the seed's scenes, from 0
    objects:       number of objects in the room
    orbit:         the angle that the camera covers about the objects, in degrees
    occluders:     number of bodies between the camera's path and the objects; the text form has
                   "-3occluders" after the objects if there are any
    frames:        number of frames
    width, height: of the frames, in pixels
    """

    split: Split
    seed: int
    number: int
    objects: int = 10
    orbit: int = LARGEST_ORBIT
    motion: Motion = "static"
    light: Lighting = "normal"
    frames: int = 16
    width: int = 128
    height: int = 128
    occluders: int = 0

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise PretrackError(problem)

    def __str__(self) -> str:
        # Without occluders the text is that of ids from before there were any.
        occluders = f"{self.occluders}occluders-" if self.occluders else ""
        return (
            f"v{VERSION}-{self.split}-seed{self.seed}-scene{self.number:04d}-"
            f"{self.objects}objects-{occluders}{self.orbit}deg-{self.motion}-{self.light}-"
            f"{self.frames}f-{self.width}x{self.height}"
        )

    @classmethod
    def parse(cls, text: str) -> SceneId:
        """Parse the text form. Raises PretrackError for other text and for other versions."""
        match = re.fullmatch(
            r"v(\d{1,9})-(train|eval)-seed(\d{1,12})-scene(\d{1,9})-(\d{1,9})objects-"
            r"(?:([1-9]\d{0,8})occluders-)?(\d{1,9})deg-([a-z]+)-([a-z]+)-(\d{1,9})f-(\d{1,9})x(\d{1,9})",
            text,
            re.ASCII,
        )
        if not match:
            example = cls(split="train", seed=7, number=3)
            raise PretrackError(f"'{text}' is not the id of a scene such as {example}")
        version, split, seed, number, objects, occluders, orbit, motion, light, *size = (
            match.groups()
        )
        if int(version) != VERSION:
            raise PretrackError(
                f"the scene {text} has version {version}, "
                f"and this version of pretrack makes version {VERSION}"
            )
        frames, width, height = map(int, size)
        return cls(
            split=split,  # type: ignore[arg-type]
            seed=int(seed),
            number=int(number),
            objects=int(objects),
            occluders=int(occluders or 0),
            orbit=int(orbit),
            motion=motion,  # type: ignore[arg-type]
            light=light,  # type: ignore[arg-type]
            frames=frames,
            width=width,
            height=height,
        )


def _problem(scene_id: SceneId) -> str:
    """Return what is wrong with the values of an id, as a sentence; "" if nothing is."""
    for name, choices in (("split", Split), ("motion", Motion), ("light", Lighting)):
        value = getattr(scene_id, name)
        if value not in get_args(choices):
            return f"a scene's '{name}' is one of {', '.join(get_args(choices))}, not '{value}'"
    if scene_id.orbit > LARGEST_ORBIT:
        return (
            f"an orbit of {scene_id.orbit} degrees would lead the camera into a wall: "
            f"set 'orbit' to 0 to {LARGEST_ORBIT}"
        )
    for name, least, most in (
        ("objects", 1, MOST_OBJECTS),
        ("occluders", 0, MOST_OCCLUDERS),
        ("orbit", 0, LARGEST_ORBIT),
        ("seed", 0, LARGEST_SEED),
        ("number", 0, LARGEST_NUMBER),
        ("frames", 1, MOST_FRAMES),
        ("width", SMALLEST_SIDE, LARGEST_SIDE),
        ("height", SMALLEST_SIDE, LARGEST_SIDE),
    ):
        value = getattr(scene_id, name)
        if not least <= value <= most:
            return f"a scene's '{name}' is {least} to {most}, not {value}"
    return ""
