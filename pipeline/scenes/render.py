"""Render pictures, depth and instances of a scene with MuJoCo.

Only MuJoCo's renderer is used, through EGL; nothing is simulated. Its camera is set from the
frame's `shards.clip.Camera`, so that pixel centres are at integers here too.

Legend of shapes: B objects, T frames, H and W the frame's height and width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.failures import MachineError
from pipeline.scenes.lights import Light
from pipeline.scenes.rigid import move
from pipeline.scenes.scene import Body, Scene
from pipeline.scenes.shading import corner_normals, shrunken, split_long_edges
from pipeline.scenes.textures import texture
from shards.clip import Camera
from shards.errors import first_line

if TYPE_CHECKING:
    import mujoco

NEAR, FAR = 0.25, 20.0
"""Distances from the camera between which surfaces are drawn, in world units."""

_SAMPLES = 3
"""Samples per pixel and axis of a picture: a pixel is the mean of 9, in large frames of fewer."""
_LARGEST_BUFFER = 4096
"""Largest side of a picture with all samples, unless a frame is larger: OpenGL has its limits."""
_SHADOW_TEXELS = 2048
"""Side of the shadow map."""
_LAMP_ANGLE, _SHADOW_ANGLE = 89.0, 75.0
"""Angles from a lamp's axis up to which it shines, and up to which it may cast shadows, in
degrees."""
_SPECULAR = 0.5
"""Level of a lamp's highlights, relative to its light."""
_ACROSS = 0.6
"""Level of the light from the other side, relative to the ambient light."""
_TONES = np.rint(255 * np.linspace(0, 1, 256) ** (1 / 1.4)).astype(np.uint8)
"""Brightens dark tones, as a camera does: light is added up in linear levels."""
_LONGEST_EDGE = 0.4
"""Longest edge of the room's faces, in world units: light is computed at vertices."""


class Renderer:
    """Render the frames of one scene. A context manager, used by one thread.

    on_texture: called after each texture is made, which takes most of the time before a frame

    Raises MachineError if MuJoCo is not installed, or this machine has no OpenGL.
    """

    def __init__(self, scene: Scene, on_texture: Callable[[], None] = lambda: None) -> None:
        self._mujoco = _load_mujoco()
        self._scene = scene
        self._width, self._height = scene.id.width, scene.id.height
        longest = max(self._width, self._height)
        self._samples = max(1, min(_SAMPLES, _LARGEST_BUFFER // longest))
        self._gl = _open_gl(self._mujoco, longest)
        self._gl.make_current()
        self._bodies = _drawn_bodies(scene)
        for name in sorted({body.texture for body in scene.bodies}):
            _texture(name)
            on_texture()
        self._model = _model(scene, self._bodies, self._samples, self._mujoco)
        self._data = self._mujoco.MjData(self._model)
        try:
            self._context = self._mujoco.MjrContext(
                self._model, self._mujoco.mjtFontScale.mjFONTSCALE_50.value
            )
        except self._mujoco.FatalError as error:  # a context without what MuJoCo needs
            self._gl.free()
            raise _no_open_gl(error) from error
        self._context.readDepthMap = self._mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._drawn = self._mujoco.MjvScene(self._model, maxgeom=self._model.ngeom)
        self._options = self._mujoco.MjvOption()
        self._camera = self._mujoco.MjvCamera()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._gl.make_current()
        self._context.free()
        self._gl.free()

    def picture(self, frame: int) -> NDArray[np.uint8]:
        """Render a frame [H, W, 3], RGB uint8, with antialiasing."""
        self._pose(frame)
        size = (self._width, self._height)
        samples = np.empty((size[1] * self._samples, size[0] * self._samples, 3), np.uint8)
        self._draw(samples, None)
        return _TONES[cv2.resize(samples, size, interpolation=cv2.INTER_AREA)]

    def depth(self, frame: int) -> NDArray[np.float64]:
        """Render the depth [H, W] along the camera's z axis at the centres of pixels.

        In world units; infinite where the camera sees no surface.
        """
        self._pose(frame)
        buffer = np.empty((self._height, self._width), np.float32)
        with self._numbers_as_colours():
            self._draw(None, buffer)
        # The buffer is affine in the inverse depth: 1 at the near plane, 0 at the far one.
        near, far = float(np.float32(NEAR)), float(np.float32(FAR))
        inverse = buffer.astype(np.float64) * (1 / near - 1 / far) + 1 / far
        return np.where(buffer > 0, 1 / inverse, np.inf)

    def instances(self, frame: int) -> NDArray[np.uint8]:
        """Render the instance [H, W] that is seen at the centres of pixels; 0 is the room."""
        self._pose(frame)
        colours = np.empty((self._height, self._width, 3), np.uint8)
        with self._numbers_as_colours():
            self._draw(colours, None)
        # A colour is a geom's number plus one, lowest byte first.
        numbers = colours.astype(np.int64) @ np.array([1, 256, 65536])
        instances = np.zeros(len(self._scene.bodies) + 1, np.uint8)
        for geom in self._drawn.geoms[: self._drawn.ngeom]:
            instances[geom.segid + 1] = self._scene.bodies[geom.objid].instance
        return instances[numbers]

    def _pose(self, frame: int) -> None:
        """Give bodies, camera and lights their poses in a frame."""
        mujoco, data = self._mujoco, self._data
        for number, body in enumerate(self._bodies):
            pose = body.poses[frame]
            data.mocap_pos[number] = pose[:, 3]
            mujoco.mju_mat2Quat(data.mocap_quat[number], pose[:, :3].ravel())
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_camlight(self._model, data)
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._options,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._drawn,
        )
        for view in self._drawn.camera:  # the left and the right eye, which are averaged
            _set_camera(view, self._scene.cameras[frame], self._width, self._height)
        _set_lights(self._drawn.lights, self._scene.lights[frame])
        for geom in self._drawn.geoms[: self._drawn.ngeom]:
            if geom.objid < len(self._scene.bodies):
                geom.category = mujoco.mjtCatBit.mjCAT_DECOR  # casts no shadow
            else:
                geom.rgba[3] = 0  # only casts a shadow

    @contextmanager
    def _numbers_as_colours(self) -> Iterator[None]:
        """Draw each body in a colour that is its number, without light or antialiasing."""
        flags = (
            self._mujoco.mjtRndFlag.mjRND_SEGMENT.value,
            self._mujoco.mjtRndFlag.mjRND_IDCOLOR.value,
        )
        self._drawn.flags[list(flags)] = True
        self._drawn.ngeom = len(self._scene.bodies)  # without those that only cast shadows
        yield
        self._drawn.flags[list(flags)] = False

    def _draw(self, colours: NDArray[np.uint8] | None, depth: NDArray[np.float32] | None) -> None:
        """Draw the scene as it is posed into an array [h, w, ...] of colours or depths."""
        array = colours if colours is not None else depth
        assert array is not None
        height, width = array.shape[:2]
        mujoco, view = self._mujoco, self._mujoco.MjrRect(0, 0, width, height)
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        mujoco.mjr_render(view, self._drawn, self._context)
        mujoco.mjr_readPixels(colours, depth, view, self._context)
        array[:] = array[::-1].copy()  # OpenGL's first row is the lowest


def _model(scene: Scene, bodies: Sequence[Body], samples: int, mujoco: Any) -> mujoco.MjModel:
    """Make MuJoCo's model of a scene: bodies with meshes and materials, and lights."""
    spec = mujoco.MjSpec()
    spec.compiler.balanceinertia = True
    # Clipping planes are in units of this extent.
    spec.stat.extent = 1
    spec.visual.map.znear, spec.visual.map.zfar = NEAR, FAR
    spec.visual.map.shadowscale = _shadow_angle(scene) / _LAMP_ANGLE
    spec.visual.headlight.active = 0
    spec.visual.quality.offsamples = 0
    spec.visual.quality.shadowsize = _SHADOW_TEXELS
    spec.visual.global_.offwidth = scene.id.width * samples
    spec.visual.global_.offheight = scene.id.height * samples
    for name in sorted({body.texture for body in scene.bodies}):
        _add_material(spec, name, mujoco)
    for number, body in enumerate(bodies):
        _add_body(spec, f"body{number}", body, mujoco)
    for lamp in scene.lights[0]:
        added = spec.worldbody.add_light(
            type=mujoco.mjtLightType.mjLIGHT_SPOT, castshadow=lamp.shadows
        )
        # Fades towards the edge of the cone as the cosine.
        added.cutoff, added.exponent, added.attenuation = _LAMP_ANGLE, 1, [1, 0, 0]
    spec.worldbody.add_light(type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, castshadow=False)
    return spec.compile()


def _shadow_angle(scene: Scene) -> float:
    """Return the angle from a lamp's axis, in degrees, within which all objects are in all frames.

    The shadow map covers no more, since its texels are larger the more it covers.
    """
    objects = [body for body in scene.bodies if body.instance > 0]
    bounds = np.stack([[body.mesh.vertices.min(0), body.mesh.vertices.max(0)] for body in objects])
    x, y, z = np.indices((2, 2, 2)).reshape(3, 8)
    corners = np.stack([bounds[:, x, 0], bounds[:, y, 1], bounds[:, z, 2]], axis=-1)  # [B, 8, 3]
    angles = [0.0]
    for frame, lamps in enumerate(scene.lights):
        places = move(np.stack([body.poses[frame] for body in objects]), corners).reshape(-1, 3)
        for lamp in filter(lambda lamp: lamp.shadows, lamps):
            rays = places - lamp.position
            cosines = rays @ _direction(lamp.position, lamp.target) / np.linalg.norm(rays, axis=1)
            angles.append(float(np.degrees(np.arccos(cosines.min()))))
    return min(max(angles), _SHADOW_ANGLE)


def _drawn_bodies(scene: Scene) -> list[Body]:
    """Return the scene's bodies, and then a smaller one inside each object, which casts its shadow.

    A surface that cast shadows itself would do so on itself, in stripes, wherever light grazes it.
    """
    casters = [
        replace(body, mesh=shrunken(body.mesh)) for body in scene.bodies if body.instance > 0
    ]
    return [*scene.bodies, *casters]


@lru_cache(maxsize=32)
def _texture(name: str) -> NDArray[np.uint8]:
    """Make a texture; those of the last scenes are kept, for their other clips."""
    return texture(name)


def _add_material(spec: Any, name: str, mujoco: Any) -> None:
    """Add the material that shows a texture."""
    picture = _texture(name)
    added = spec.add_texture(
        name=name,
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        height=picture.shape[0],
        width=picture.shape[1],
        nchannel=3,
    )
    added.data = picture[::-1].tobytes()  # the first row is at v = 0, the bottom
    material = spec.add_material(name=name, specular=0.15, shininess=0.3)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name


def _add_body(spec: Any, name: str, body: Body, mujoco: Any) -> None:
    """Add a body, whose pose is set per frame, and its mesh."""
    mesh = split_long_edges(body.mesh, _LONGEST_EDGE) if body.instance == 0 else body.mesh
    added = spec.add_mesh(name=name, inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
    added.uservert = mesh.vertices.ravel()
    added.userface = mesh.faces.ravel()
    added.usernormal = corner_normals(mesh).ravel()
    added.usertexcoord = mesh.uv.ravel()
    # Every corner has a normal and a texture coordinate of its own.
    added.userfacenormal = added.userfacetexcoord = np.arange(mesh.faces.size)
    posed = spec.worldbody.add_body(name=name, mocap=True)
    posed.add_geom(
        type=mujoco.mjtGeom.mjGEOM_MESH,
        meshname=name,
        material=body.texture,
        contype=0,
        conaffinity=0,
    )


def _set_camera(view: Any, camera: Camera, width: int, height: int) -> None:
    """Give MuJoCo's camera a frame's pose and view: x right, y up, looking along -z."""
    pose = np.reshape(camera.world_to_camera, (3, 4))
    rotation = pose[:, :3]
    view.pos = -rotation.T @ pose[:, 3]
    view.forward, view.up = rotation[2], -rotation[1]
    view.frustum_near, view.frustum_far = NEAR, FAR
    # The borders of the frame, half a pixel beyond the centres of its outer pixels, where their
    # rays meet the near plane. The width follows from the frame's aspect ratio: pixels are square.
    scale = NEAR / camera.fy
    view.frustum_top = (camera.cy + 0.5) * scale
    view.frustum_bottom = (camera.cy + 0.5 - height) * scale
    view.frustum_center = (width / 2 - 0.5 - camera.cx) * scale


def _set_lights(drawn: Any, lamps: Sequence[Light]) -> None:
    """Give MuJoCo's lights the places, directions and colours of lamps; the last one is added.

    The last has all ambient light, which would be dark in a lamp's shadow, and some light from the
    side across from the first lamp, so that faces in its shadow are told apart.
    """
    for light, lamp in zip(drawn, lamps, strict=False):
        light.pos, light.dir = lamp.position, _direction(lamp.position, lamp.target)
        light.diffuse, light.specular = lamp.diffuse, _SPECULAR * np.array(lamp.diffuse)
        light.ambient = 0
    ambient = np.sum([lamp.ambient for lamp in lamps], axis=0)
    across = np.multiply(lamps[0].position, [-1, -1, 0.5])
    last = drawn[len(lamps)]
    last.dir = _direction(across, (0, 0, 0))
    last.ambient, last.diffuse, last.specular = ambient, _ACROSS * ambient, 0


def _direction(start: ArrayLike, end: ArrayLike) -> NDArray[np.float64]:
    way = np.subtract(end, start)
    return way / np.linalg.norm(way)


def _load_mujoco() -> Any:
    """Import MuJoCo, set up for EGL, or for OSMesa if MUJOCO_GL says so. Raises MachineError."""
    # MuJoCo's other ways need a screen, and some people set them for all programs. PyOpenGL's own
    # variable has to agree.
    platform = "osmesa" if os.environ.get("MUJOCO_GL", "").lower() == "osmesa" else "egl"
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = platform
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's: workers are the parallelism
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise MachineError(
            "scenes are rendered by MuJoCo, which is not installed: pip install 'pretrack[scenes]'"
        ) from error
    except Exception as error:
        raise _no_open_gl(error) from error
    return mujoco


def check_renderer() -> None:
    """Raise MachineError if this machine cannot render scenes: no MuJoCo, or no OpenGL."""
    _open_gl(_load_mujoco(), 8).free()


def _open_gl(mujoco: Any, size: int) -> Any:
    """Make a context of OpenGL without a window. Raises MachineError."""
    try:
        return mujoco.GLContext(size, size)  # EGL makes no window of that size
    except Exception as error:  # of many types, depending on which library is missing
        raise _no_open_gl(error) from error


def _no_open_gl(error: Exception) -> MachineError:
    # PyOpenGL gives None for a library that is not there.
    missing = isinstance(error, AttributeError)
    cause = "its library is missing" if missing else first_line(error).partition(". ")[0]
    if os.environ.get("MUJOCO_GL", "").lower() == "osmesa":
        return MachineError(
            f"scenes cannot be rendered: OSMesa does not work on this machine ({cause}): "
            "install it, or unset MUJOCO_GL to render through EGL"
        )
    return MachineError(
        f"scenes cannot be rendered: OpenGL's EGL does not work on this machine ({cause}): "
        "apt-get install libegl1 libgl1-mesa-dri"
    )
