"""Draws people with OpenGL: on a GPU, or by Mesa's software rasteriser, without a window.

The context is made through EGL. Each frame: vertices and normals on the CPU (a small matrix
product), a depth map from the key light, then one pass with four samples a pixel.
"""

import dataclasses
import types

import numpy as np

from tm_jax.data.people import assets
from tm_jax.data.people import basis as basis_lib
from tm_jax.data.people import figure as figure_lib
from tm_jax.data.people import paint
from tm_jax.data.people import shaders

_FOV_DEG = 19.0
_SHADOW = 256
_SAMPLES = 4
_JAW = basis_lib.ACTIONS.index("jawOpen")
_BLINK = [basis_lib.ACTIONS.index(f"eyeBlink{side}") for side in ("Left", "Right")]
_WIDE = [basis_lib.ACTIONS.index(f"eyeWide{side}") for side in ("Left", "Right")]
_SHARE = (0.14, 0.19, 0.24, 0.43)  # Of a turn of the head, by neck01, neck02, neck03, head.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the head and the eyes are in one frame; angles in radians.

    Attributes:
      yaw: Positive turns to the picture's right.
      pitch: Positive looks down.
      roll: Positive tilts to the picture's right.
      shift: Of the whole person, right and up, in decimetres, [2].
      breath: 0 to 1.
      gaze: Of both eyes in the head: right and down, [2].
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    breath: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)


def _moderngl() -> types.ModuleType:
    try:
        import moderngl
    except ModuleNotFoundError as error:
        raise assets.Missing(
            "people: the package moderngl is not installed; install the extra `people`."
        ) from error
    return moderngl


def create_context():
    """An OpenGL context without a window.

    Raises:
      assets.Missing: moderngl or the system's EGL is not installed.
    """
    moderngl = _moderngl()
    try:
        return moderngl.create_context(standalone=True, backend="egl", require=330)
    except Exception as error:  # moderngl raises bare Exception here.
        raise assets.Missing(
            f"people: no OpenGL 3.3 through EGL ({error}); on Debian install libegl1 and "
            "libgl1-mesa-dri."
        ) from error


def rotation(axis: int, angle: float) -> np.ndarray:
    """Turn about an axis, [4, 4]."""
    matrix = np.eye(4)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    c, s = np.cos(angle), np.sin(angle)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def translation(offset: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def bone_matrices(joints: np.ndarray, pose: Pose) -> np.ndarray:
    """Transforms of neck01, neck02, neck03 and head with respect to the chest, [4, 4, 4]."""
    total, result = np.eye(4), []
    for joint, share in zip(joints, _SHARE):
        turn = rotation(1, share * pose.yaw) @ rotation(0, share * pose.pitch)
        turn = turn @ rotation(2, -share * pose.roll)
        total = total @ translation(joint) @ turn @ translation(-joint)
        result.append(total)
    return np.stack(result)


def _perspective(fov_deg: float, near: float, far: float) -> np.ndarray:
    f = 1 / np.tan(np.radians(fov_deg) / 2)
    matrix = np.zeros((4, 4))
    matrix[0, 0] = matrix[1, 1] = f
    matrix[2, 2], matrix[2, 3] = (far + near) / (near - far), 2 * far * near / (near - far)
    matrix[3, 2] = -1
    return matrix


def _look(direction: np.ndarray) -> np.ndarray:
    """Rows right, up, toward the light, [4, 4]."""
    toward = direction / np.linalg.norm(direction)
    right = np.cross([0.0, 1.0, 0.0], toward)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(toward, right), toward])
    return matrix


def _bytes(matrix: np.ndarray) -> bytes:
    """Column by column, as GLSL wants it; a stack of matrices one after the other."""
    return np.ascontiguousarray(np.swapaxes(matrix, -1, -2), np.float32).tobytes()


def _sphere(rows: int = 18, columns: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """The front of a unit sphere around +z: vertices [N, 3] and faces."""
    polar = np.linspace(0, 0.62 * np.pi, rows)[:, None] ** 1.0
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    points = np.stack([
        np.sin(polar) * np.cos(angle), np.sin(polar) * np.sin(angle),
        np.broadcast_to(np.cos(polar), (rows, columns)),
    ], -1)  # fmt: skip
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    k = (j + 1) % columns
    a, b = i * columns + j, (i + 1) * columns + j
    c, d = (i + 1) * columns + k, i * columns + k
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], -2).reshape(-1, 3)
    return points.reshape(-1, 3), faces


class Renderer:
    """Draws one person after the other in frames of a fixed size.

    Attributes:
      size: Side of the frames in pixels.
    """

    def __init__(self, size: int = 256, samples: int = _SAMPLES):
        if size < 16 or size > 2048:
            raise ValueError(f"size must lie in 16..2048, got {size}.")
        self.size = size
        self._gl = _moderngl()
        self.context = context = create_context()
        color = context.renderbuffer((size, size), 3, samples=samples)
        depth = context.depth_renderbuffer((size, size), samples=samples)
        self._canvas = context.framebuffer([color], depth)
        self._resolved = context.framebuffer([context.renderbuffer((size, size), 3)])
        self._shadow = context.depth_texture((_SHADOW, _SHADOW))
        self._shadow.compare_func = "<="
        self._shadow.repeat_x = self._shadow.repeat_y = False
        self._shadow_frame = context.framebuffer(depth_attachment=self._shadow)
        self._programs = {
            name: context.program(vertex_shader=vertex, fragment_shader=fragment)
            for name, (vertex, fragment) in shaders.PROGRAMS.items()
        }
        corners = np.array([-1, -1, 3, -1, -1, 3], np.float32)
        self._back = context.vertex_array(
            self._programs["back"], [(context.buffer(corners), "2f", "corner")]
        )
        points, faces = _sphere()
        self._eye = context.vertex_array(
            self._programs["eye"],
            [(context.buffer(points.astype("f4")), "3f", "position")],
            context.buffer(faces.astype("i4")),
        )
        pixels = paint.strands()
        self._strands = context.texture(pixels.shape[1::-1], 4, pixels.tobytes())
        self._strands.build_mipmaps()
        self._kept: list = []
        self._figure = None

    def load(self, figure: figure_lib.Figure) -> None:
        """Makes a person the one that is drawn."""
        for item in self._kept:
            item.release()
        self._kept = []
        self._figure = figure
        self._upload_figure(figure)
        self._upload_surfaces(figure)
        identity = figure.identity
        pixels = paint.face(identity)
        self._face = self._keep(self.context.texture(pixels.shape[1::-1], 3, pixels.tobytes()))
        self._face.build_mipmaps()
        back = paint.backdrop(identity, max(self.size, 64))
        self._backdrop = self._keep(
            self.context.texture(back.shape[1::-1], 3, back.tobytes(), alignment=1)
        )
        self._set_identity(identity)

    def _keep(self, item):
        self._kept.append(item)
        return item

    def _buffer(self, values: np.ndarray, kind: str = "f4"):
        return self._keep(self.context.buffer(np.ascontiguousarray(values, kind).tobytes()))

    def _array(self, program: str, content: list, faces):
        members = self._programs[program]
        content = [
            (buffer, _padded(layout, names, members), *[n for n in names if n in members])
            for buffer, layout, names in content
        ]
        return self._keep(self.context.vertex_array(self._programs[program], content, faces))

    def _upload_figure(self, figure: figure_lib.Figure) -> None:
        count = len(figure.rest)
        self._moving = self._keep(self.context.buffer(reserve=count * 24, dynamic=True))
        fixed = np.concatenate([figure.canon, figure.weights, figure.region, figure.extra], 1)
        fixed = self._buffer(fixed)
        content = [
            (self._moving, "3f 3f", ("position", "normal")),
            (fixed, "3f 4f 4f 4f", ("canon", "weights", "region", "extra")),
        ]
        faces = {name: self._buffer(f, "i4") for name, f in figure.faces.items()}
        self._arrays = {
            "skin": self._array("skin", content, faces["skin"]),
            "teeth": self._array("mouth", content, faces["teeth"]),
            "tongue": self._array("mouth", content, faces["tongue"]),
            "lashes": self._array("lash", content, faces["lashes"]),
            "depth": self._array("depth", content, faces["skin"]),
        }

    def _upload_surfaces(self, figure: figure_lib.Figure) -> None:
        self._surfaces, self._followers = [], []
        for surface in figure.worn:
            position = np.ascontiguousarray(surface.position, np.float32)
            places = self._keep(self.context.buffer(position.tobytes(), dynamic=True))
            if surface.follow is not None:
                base = position - figure.rest[surface.follow]
                self._followers.append((places, base, surface.follow))
            values = [surface.normal, surface.tangent, surface.uv, surface.weights]
            content = [
                (places, "3f", ("position",)),
                (self._buffer(np.concatenate(values, 1)), "3f 3f 4f 4f",
                 ("normal", "tangent", "uv", "weights")),
            ]  # fmt: skip
            faces = self._buffer(surface.faces, "i4")
            self._surfaces.append((
                surface, self._array(surface.kind, content, faces),
                self._array("depth", content, faces),
            ))  # fmt: skip

    def _set(self, name: str, **values: object) -> None:
        """Sets uniforms that the program has; a compiler drops those without effect."""
        program = self._programs[name]
        for key, value in values.items():
            if key in program:
                if isinstance(value, bytes):
                    program[key].write(value)
                else:
                    program[key].value = value

    def _set_identity(self, identity) -> None:
        light = identity.light
        names = ("key", "key_colour", "fill", "fill_colour", "rim", "rim_colour", "sky", "ground")
        rig = {name: tuple(map(float, getattr(light, name))) for name in names}
        self._frame_camera(identity)
        self._light_view = _look(light.key)
        span = 1.75  # Half a side of the light's view, in decimetres.
        scale = np.diag([1 / span, 1 / span, -1 / 6.0, 1.0])
        lift = translation([0, 0.55, 0])
        self._shadow_matrix = scale @ self._light_view @ lift
        colours = {
            name: tuple(map(float, paint.linear(getattr(identity, attribute))))
            for name, attribute in (("skin", "skin"), ("lips", "lips"), ("hair", "hair_colour"),
                                    ("iris", "iris"))
        }  # fmt: skip
        grey = float(identity.hair_colour.mean())
        bald = {"bald": 0.16, "buzz": 0.75, "hijab": 0.0}.get(identity.hair, 0.7)
        for name in self._programs:
            self._set(
                name, eye=(0.0, float(self._target[1]), float(self._distance)), **rig, **colours,
                shadow_matrix=_bytes(self._shadow_matrix), shadow_map=0, face=1, strands=2,
                shadow_softness=light.softness / span * 0.5, face_box=paint.FACE_BOX,
                stubble={"none": 0.0, "stubble": 0.62}.get(identity.beard, 0.85), roots=bald,
                gloss=0.55 - 0.35 * identity.age, enamel=(0.62, 0.56, 0.47),
                lash=(0.02, 0.015, 0.012) if grey < 0.55 else (0.12, 0.08, 0.05),
                makeup=identity.makeup, pupil=0.36, seed=float(identity.seed % 97), backdrop=0,
            )  # fmt: skip

    def _frame_camera(self, identity) -> None:
        right, up, zoom = identity.framing
        height = 3.95 + 0.3 * zoom
        self._target = np.array([0.10 * right, -0.42 + 0.08 * up, 0.3])
        self._distance = height / 2 / np.tan(np.radians(_FOV_DEG) / 2) + 0.3
        view = translation(-np.array([self._target[0], self._target[1], self._distance]))
        self._camera = _perspective(_FOV_DEG, 4.0, 40.0) @ view

    def frame(self, actions: np.ndarray, pose: Pose) -> np.ndarray:
        """Draws one frame.

        Args:
          actions: Facial actions in the order of `basis.ACTIONS`, [52].
          pose: Head and eyes.

        Returns:
          uint8 [size, size, 3], sRGB.
        """
        figure = self._figure
        if figure is None:
            raise ValueError("render: load a figure before the first frame.")
        vertices = figure.vertices(np.asarray(actions, np.float32))
        normals = figure.vertex_normals(vertices)
        self._moving.write(np.concatenate([vertices, normals], 1).astype("f4").tobytes())
        for places, base, rows in self._followers:
            places.write((base + vertices[rows]).tobytes())
        bones = bone_matrices(figure.joints, pose)
        body = translation([pose.shift[0], pose.shift[1], 0])
        self._place(bones, body, pose, float(np.clip(actions[_JAW] * 1.4, 0, 1)))
        self._draw_shadow(body)
        self._draw(actions, pose, bones)
        self.context.copy_framebuffer(self._resolved, self._canvas)
        data = self._resolved.read(components=3, alignment=1)
        return np.frombuffer(data, np.uint8).reshape(self.size, self.size, 3)[::-1].copy()

    def _place(self, bones, body, pose, opening) -> None:
        moved = body @ bones
        for name in self._programs:
            self._set(
                name, bones=_bytes(moved), body=_bytes(body), camera=_bytes(self._camera),
                opening=opening, breath=pose.breath,
            )  # fmt: skip

    def _draw_shadow(self, body) -> None:
        self._shadow_frame.use()
        self._shadow_frame.clear(depth=1.0)
        self.context.enable_only(self._gl.DEPTH_TEST)
        self._set("depth", camera=_bytes(self._shadow_matrix))
        self._arrays["depth"].render()
        for surface, _, depth in self._surfaces:
            if surface.casts:
                depth.render()

    def _draw(self, actions, pose, bones) -> None:
        context, gl = self.context, self._gl
        self._canvas.use()
        self._canvas.clear()
        context.enable_only(gl.NOTHING)
        self._backdrop.use(0)
        self._back.render()
        context.enable_only(gl.DEPTH_TEST | gl.CULL_FACE)
        self._shadow.use(0)
        self._face.use(1)
        self._strands.use(2)
        self._arrays["skin"].render()
        context.enable_only(gl.DEPTH_TEST)
        for name in ("teeth", "tongue"):
            self._set("mouth", tongue=float(name == "tongue"))
            self._arrays[name].render()
        self._draw_eyes(actions, pose, bones)
        for surface, array, _ in self._surfaces:
            self._set(surface.kind, **surface.uniforms)
            if surface.cut:
                context.enable_direct(0x809E)  # GL_SAMPLE_ALPHA_TO_COVERAGE
            array.render()
            context.disable_direct(0x809E)
        context.enable_only(gl.DEPTH_TEST | gl.BLEND)
        self._canvas.depth_mask = False
        self._arrays["lashes"].render()
        self._canvas.depth_mask = True

    def _draw_eyes(self, actions, pose, bones) -> None:
        figure = self._figure
        for side, centre in enumerate(figure.eyes):
            vergence = 0.03 if side else -0.03
            turn = rotation(1, pose.gaze[0] + vergence) @ rotation(0, pose.gaze[1])
            shut = float(actions[_BLINK[side]])
            wide = float(actions[_WIDE[side]])
            self._set(
                "eye", centre=tuple(map(float, centre)), radius=figure.radius,
                gaze=_bytes(turn[:3, :3]), weights=(0.0, 0.0, 0.0, 1.0),
                to_head=_bytes(bones[3][:3, :3].T), side=1.0 - 2.0 * side,
                lid_upper=0.44 + 0.15 * wide - 0.85 * shut, lid_lower=-0.58 - 0.1 * wide,
            )  # fmt: skip
            self._eye.render()


def _padded(layout: str, names: tuple[str, ...], members) -> str:
    """The layout of a buffer with attributes that a program lacks replaced by padding."""
    kinds = layout.split()
    return " ".join(
        kind if name in members else f"{4 * int(kind[0])}x" for kind, name in zip(kinds, names)
    )
