"""Time the rendering of scenes: `python -m benchmarks.scenes`.

Renders frames of 341x256 pixels of scenes with 7 to 13 objects in a room of six walls, as a worker
does, without its PNG files. Seconds are of CPU time, on all cores together. "same bytes" compares
pictures, depth and instances with those of another renderer, made from the scene's id again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version

from pipeline.scenes.render import Renderer
from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId

OBJECTS = (7, 10, 13)


def cpu_seconds(render: Callable[[int], object], frames: int) -> float:
    """Return the mean CPU seconds of rendering a frame."""
    started = time.process_time()
    for frame in range(frames):
        render(frame)
    return (time.process_time() - started) / frames


def rendered(scene_id: SceneId) -> bytes:
    """Render two frames of a scene, with everything that belongs to them."""
    with Renderer(make_scene(scene_id)) as renderer:
        return b"".join(
            part(frame).tobytes()
            for frame in (0, scene_id.frames - 1)
            for part in (renderer.picture, renderer.depth, renderer.instances)
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=16, help="frames per scene")
    parser.add_argument("--size", type=int, nargs=2, default=(341, 256), help="width and height")
    options = parser.parse_args()
    print(f"MuJoCo {version('mujoco')}\n")
    print(
        "| objects | meshes | faces | set-up s | picture s | depth s | instances s | same bytes |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for number, objects in enumerate(OBJECTS):
        width, height = options.size
        scene_id = SceneId(
            split="train",
            seed=0,
            number=number,
            objects=objects,
            motion="moving",
            frames=options.frames,
            width=width,
            height=height,
        )
        scene = make_scene(scene_id)
        started = time.process_time()
        with Renderer(scene) as renderer:
            renderer.picture(0)  # OpenGL compiles its shaders
            set_up = time.process_time() - started
            seconds = [
                cpu_seconds(part, options.frames)
                for part in (renderer.picture, renderer.depth, renderer.instances)
            ]
        faces = sum(len(body.mesh.faces) for body in scene.bodies)
        same = "yes" if rendered(scene_id) == rendered(scene_id) else "NO"
        cells = [f"{value:.3f}" for value in (set_up, *seconds)]
        print(f"| {objects} | {len(scene.bodies)} | {faces} | {' | '.join(cells)} | {same} |")


if __name__ == "__main__":
    main()
