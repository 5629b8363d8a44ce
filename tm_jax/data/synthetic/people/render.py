"""Draws people with OpenGL: on a GPU, or by Mesa's software rasteriser, without a window.

The context is made through EGL. `load` bakes what does not change (see `bake`); a frame is a
small matrix product on the CPU and one pass at a larger size, reduced by averaging.
"""

import dataclasses
import types
from typing import Any

import numpy as np
from PIL import Image

from tm_jax.data.synthetic.people import assets
from tm_jax.data.synthetic.people import bake
from tm_jax.data.synthetic.people import basis as basis_lib
from tm_jax.data.synthetic.people import figure as figure_lib
from tm_jax.data.synthetic.people import paint
from tm_jax.data.synthetic.people import pose as pose_lib
from tm_jax.data.synthetic.people import shaders
from tm_jax.data.synthetic.people import surfaces

_FOV_DEG = 19.0
_SHADOW = 512
_LOOK = 384  # Side of the pictures in which seen triangles are counted.
_SPAN = 2.1  # Half a side of the light's view, in decimetres.
_AT = {name: index for index, name in enumerate(basis_lib.ACTIONS)}
_BLINK = [_AT["eyeBlinkLeft"], _AT["eyeBlinkRight"]]
_WIDE = [_AT["eyeWideLeft"], _AT["eyeWideRight"]]


def _moderngl() -> types.ModuleType:
    try:
        import moderngl
    except ModuleNotFoundError as error:
        raise assets.Missing(
            "people: the package moderngl is not installed; install the extra `people`."
        ) from error
    return moderngl


def create_context() -> Any:
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


def _bytes(matrix: np.ndarray) -> bytes:
    """Column by column, as GLSL wants it; a stack of matrices one after the other."""
    return np.ascontiguousarray(np.swapaxes(matrix, -1, -2), np.float32).tobytes()


def _sphere(rows: int = 14, columns: int = 22) -> tuple[np.ndarray, np.ndarray]:
    """The front of a unit sphere around +z: vertices [N, 3] and faces."""
    polar = np.linspace(0, 0.55 * np.pi, rows)[:, None]
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    points = np.stack([
        np.sin(polar) * np.cos(angle), np.sin(polar) * np.sin(angle),
        np.broadcast_to(np.cos(polar), (rows, columns)),
    ], -1)  # fmt: skip
    faces = surfaces.grid_faces(rows, columns, True)[:, ::-1]
    return points.reshape(-1, 3), faces


def _padded(layout: str, names: tuple[str, ...], members) -> str:
    """The layout of a buffer with attributes that a program lacks replaced by padding."""
    kinds = layout.split()
    return " ".join(
        kind if name in members else f"{4 * int(kind[0])}x" for kind, name in zip(kinds, names)
    )


@dataclasses.dataclass
class _Part:
    """A mesh on the device.

    Attributes:
      program: Which shader draws it.
      content: Buffers with layout and names.
      faces: [F, 3].
      surface: What it shows, or None for parts of the skin.
      array: The vertex array of the seen faces.
    """

    program: str
    content: list
    faces: np.ndarray
    surface: surfaces.Surface | None = None
    array: Any = None


class Renderer:
    """Draws one person after the other in frames of a fixed size.

    Attributes:
      size: Side of the frames in pixels.
      oversample: Samples per side of a pixel, 1 to 4.
    """

    def __init__(self, size: int = 256, oversample: float = 1.5):
        if not 16 <= size <= 2048:
            raise ValueError(f"size must lie in 16..2048, got {size}.")
        if not 1 <= oversample <= 4:
            raise ValueError(f"oversample must lie in 1..4, got {oversample}.")
        self.size, self.oversample = size, oversample
        self._gl = gl = _moderngl()
        self._mipmaps = (gl.LINEAR_MIPMAP_NEAREST, gl.LINEAR)
        self.context = context = create_context()
        self._wide = wide = round(size * oversample)
        self._canvas = context.framebuffer(
            [context.renderbuffer((wide, wide), 3)], context.depth_renderbuffer((wide, wide))
        )
        self._programs = {
            name: context.program(vertex_shader=vertex, fragment_shader=fragment)
            for name, (vertex, fragment) in shaders.PROGRAMS.items()
        }
        corners = context.buffer(np.array([-1, -1, 3, -1, -1, 3], np.float32))
        self._back = context.vertex_array(self._programs["back"], [(corners, "2f", "corner")])
        points, faces = _sphere()
        self._eye = context.vertex_array(
            self._programs["eye"],
            [(context.buffer(points.astype("f4")), "3f", "position")],
            context.buffer(faces.astype("i4").tobytes()),
        )
        pixels = paint.strands()
        self._strands = context.texture(pixels.shape[1::-1], 4, pixels.tobytes())
        self._strands.build_mipmaps()
        self._strands.filter = self._mipmaps
        self._kept: list = []
        self._figure: figure_lib.Figure | None = None

    def load(self, figure: figure_lib.Figure) -> None:
        """Makes a person the one that is drawn."""
        for item in self._kept:
            item.release()
        self._kept = []
        self._figure = figure
        identity = figure.identity
        tops = [surface.position[:, 1].max() for surface in figure.worn]
        self._set_identity(identity, float(max(tops, default=1.3)))
        self._upload(figure)
        self._bake_light(figure)
        self._prune(figure)
        pixels = paint.face(identity)
        self._face = self._keep(self.context.texture(pixels.shape[1::-1], 3, pixels.tobytes()))
        self._face.build_mipmaps()
        self._face.filter = self._mipmaps
        back = paint.backdrop(identity, max(self.size, 64))
        self._backdrop = self._keep(
            self.context.texture(back.shape[1::-1], 3, back.tobytes(), alignment=1)
        )

    def _keep(self, item):
        self._kept.append(item)
        return item

    def _buffer(self, values: np.ndarray, kind: str = "f4", **settings):
        data = np.ascontiguousarray(values, kind).tobytes()
        return self._keep(self.context.buffer(data, **settings))

    def _array(self, program: str, content: list, faces: np.ndarray):
        members = self._programs[program]
        content = [
            (buffer, _padded(layout, names, members), *[n for n in names if n in members])
            for buffer, layout, names in content
        ]
        content = [row for row in content if len(row) > 2]
        return self._keep(self.context.vertex_array(members, content, self._buffer(faces, "i4")))

    def _upload(self, figure: figure_lib.Figure) -> None:
        moving = np.concatenate([figure.rest, figure.vertex_normals(figure.rest)], 1)
        self._moving = self._buffer(moving, dynamic=True)
        fixed = np.concatenate([figure.canon, figure.weights, figure.region, figure.extra], 1)
        content = [
            (self._moving, "3f 3f", ("position", "normal")),
            (self._buffer(fixed), "3f 4f 4f 4f", ("canon", "weights", "region", "extra")),
        ]
        programs = {"skin": "skin", "teeth": "mouth", "tongue": "mouth", "lashes": "lash"}
        self._parts = {
            name: _Part(program=program, content=content, faces=figure.faces[name])
            for name, program in programs.items()
        }
        self._followers = []
        for number, surface in enumerate(figure.worn):
            position = np.asarray(surface.position, np.float32)
            places = self._buffer(position, dynamic=True)
            if surface.follow is not None:
                base = position - figure.rest[surface.follow]
                self._followers.append((places, base, surface.follow))
            values = [surface.normal, surface.tangent, surface.uv, surface.weights]
            content = [
                (places, "3f", ("position",)),
                (self._buffer(np.concatenate(values, 1)), "3f 3f 4f 4f",
                 ("normal", "tangent", "uv", "weights")),
            ]  # fmt: skip
            self._parts[f"worn{number}"] = _Part(
                program=surface.kind, content=content, faces=surface.faces, surface=surface
            )

    def _bake_light(self, figure: figure_lib.Figure) -> None:
        """Adds to every part where the key light falls."""
        context = self.context
        depth = context.depth_texture((_SHADOW, _SHADOW))
        frame = context.framebuffer(depth_attachment=depth)
        casting = [
            self._array("depth", part.content, part.faces) for part in self._parts.values()
            if part.program in ("skin", "hair", "tip", "cloth")
            and (part.surface is None or part.surface.casts)
        ]  # fmt: skip
        matrix = np.diag([1 / _SPAN, 1 / _SPAN, -1 / 6.0, 1.0])
        matrix = matrix @ pose_lib.light_view(figure.identity.light.key)
        matrix = matrix @ pose_lib.translation(np.array([0, 0.6, 0]))
        softness = figure.identity.light.softness / _SPAN * 0.5
        clouds = [(figure.rest, figure.vertex_normals(figure.rest), figure.weights, 0.05)]
        front = figure.eyes + [0, 0, figure.radius * 1.25]
        ahead = np.tile([0.0, 0.0, 1.0], (2, 1))
        clouds.append((front, ahead, np.tile([0.0, 0, 0, 1], (2, 1)), 0.02))
        for part in figure.worn:
            lift = 0.05 if part.kind == "cloth" else 0.09
            clouds.append((part.position, part.normal, part.weights, lift))
        values = [[] for _ in clouds]
        for yaw, pitch in ((-1, 0), (0, 0), (1, 0), (0, -1), (0, 1)):
            turn = pose_lib.Pose(yaw=yaw * bake.TURN, pitch=pitch * bake.NOD)
            bones = pose_lib.bone_matrices(figure.joints, turn)
            self._place(bones, np.eye(4), turn, 0.0)
            frame.use()
            frame.clear(depth=1.0)
            context.enable_only(self._gl.DEPTH_TEST)
            self._set("depth", camera=_bytes(matrix))
            for array in casting:
                array.render()
            pixels = np.frombuffer(depth.read(alignment=1), np.float32).reshape(_SHADOW, _SHADOW)
            for kept, (points, normals, weights, lift) in zip(values, clouds):
                at = bake.posed(points, weights, bones)
                out = bake.turned(normals, weights, bones)
                kept.append(bake.visibility(pixels, matrix, at, out, softness, lift))
        frame.release()
        depth.release()
        baked = [bake.by_turn(kept) for kept in values]
        self._eye_light = baked[1]
        skin = (self._buffer(baked[0]), "4f", ("baked",))
        for part in self._parts.values():
            if part.surface is None:
                part.content = [*part.content, skin]
        for number, light in enumerate(baked[2:]):
            part = self._parts[f"worn{number}"]
            part.content = [*part.content, (self._buffer(light), "4f", ("baked",))]

    def _prune(self, figure: figure_lib.Figure) -> None:
        """Keeps the triangles that are seen in some pose, and makes the arrays to draw."""
        context = self.context
        numbers = context.texture((_LOOK, _LOOK), 1, dtype="i4")
        frame = context.framebuffer([numbers], context.depth_renderbuffer((_LOOK, _LOOK)))
        jobs, base = [], 0
        for name, part in self._parts.items():
            if part.program != "lash":
                program = "identity_cut" if part.program == "cloth" else "identity"
                jobs.append((name, program, base, self._array(program, part.content, part.faces)))
                base += len(part.faces)
        seen = np.zeros(base + 1, bool)
        for turn, actions in _views():
            self._move(figure.vertices(actions), figure)
            bones = pose_lib.bone_matrices(figure.joints, turn)
            self._place(bones, np.eye(4), turn, 0.0)
            frame.use()
            frame.clear()
            for late in (False, True):  # Tips of hair hide nothing: they come last.
                for name, program, first, array in jobs:
                    if (self._parts[name].program == "tip") != late:
                        continue
                    cull = self._gl.CULL_FACE if name == "skin" else 0
                    context.enable_only(self._gl.DEPTH_TEST | cull)
                    self._set(program, base=first)
                    array.render()
                seen[np.frombuffer(numbers.read(alignment=1), np.int32)] = True
        frame.release()
        numbers.release()
        for name, _, first, _ in jobs:
            part = self._parts[name]
            rows = np.flatnonzero(seen[first + 1 : first + 1 + len(part.faces)])
            part.faces = bake.keep(part.faces, rows, int(part.faces.max(initial=0)) + 1)
        for part in self._parts.values():
            if len(part.faces):
                part.array = self._array(part.program, part.content, part.faces)
        drawn = [part.faces for part in self._parts.values() if part.surface is None]
        self._figure = figure.over(np.concatenate(drawn))

    def _set(self, name: str, **values: object) -> None:
        """Sets uniforms that the program has; a compiler drops those without effect."""
        program = self._programs[name]
        for key, value in values.items():
            if key in program:
                if isinstance(value, bytes):
                    program[key].write(value)
                else:
                    program[key].value = value

    def _set_identity(self, identity, top: float) -> None:
        light = identity.light
        names = ("key", "key_colour", "fill", "fill_colour", "rim", "rim_colour", "sky", "ground")
        rig = {name: tuple(map(float, getattr(light, name))) for name in names}
        colours = {
            name: tuple(map(float, paint.linear(getattr(identity, attribute))))
            for name, attribute in (("skin", "skin"), ("lips", "lips"), ("hair", "hair_colour"),
                                    ("iris", "iris"))
        }  # fmt: skip
        right, up, zoom = identity.framing
        height = 3.95 + 0.3 * zoom
        middle = max(-0.42 + 0.08 * up, top + 0.22 - height / 2)
        target = np.array([0.10 * right, middle, 0.3])
        distance = height / 2 / np.tan(np.radians(_FOV_DEG) / 2) + 0.3
        view = pose_lib.translation(-np.array([target[0], target[1], distance]))
        self._camera = pose_lib.perspective(_FOV_DEG, 4.0, 40.0) @ view
        grey = float(identity.hair_colour.mean())
        for name in self._programs:
            self._set(
                name, eye=(float(target[0]), float(target[1]), float(distance)), **rig, **colours,
                face=1, strands=2, face_box=paint.FACE_BOX, backdrop=0,
                stubble={"none": 0.0, "stubble": 0.55}.get(identity.beard, 1.0),
                roots={"bald": 0.10, "buzz": 0.85, "hijab": 0.0}.get(identity.hair, 0.95),
                gloss=0.55 - 0.35 * identity.age, enamel=(0.90, 0.85, 0.75),
                lash=(0.02, 0.015, 0.012) if grey < 0.55 else (0.12, 0.08, 0.05),
                makeup=identity.makeup, pupil=0.36, seed=float(identity.seed % 97),
            )  # fmt: skip

    def frame(self, actions: np.ndarray, pose: pose_lib.Pose) -> np.ndarray:
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
        self._move(vertices, figure)
        bones = pose_lib.bone_matrices(figure.joints, pose)
        body = pose_lib.translation(np.array([pose.shift[0], pose.shift[1], 0]))
        opening = float(np.clip(figure.opening(vertices) / 0.25, 0, 1))
        self._place(bones, body, pose, opening)
        self._draw(figure, actions, pose, bones, opening)
        data = self._canvas.read(components=3, alignment=1)
        pixels = np.frombuffer(data, np.uint8).reshape(self._wide, self._wide, 3)[::-1]
        if self._wide != self.size:
            image = Image.fromarray(pixels)
            pixels = image.resize((self.size, self.size), Image.Resampling.BOX)
        return np.array(pixels)

    def _move(self, vertices: np.ndarray, figure: figure_lib.Figure) -> None:
        normals = figure.vertex_normals(vertices)
        self._moving.write(np.concatenate([vertices, normals], 1).astype("f4").tobytes())
        for places, base, rows in self._followers:
            places.write((base + vertices[rows]).astype("f4").tobytes())

    def _place(self, bones, body, pose: pose_lib.Pose, opening: float) -> None:
        turn = np.clip([pose.yaw / bake.TURN, pose.pitch / bake.NOD], -1.2, 1.2)
        for name in self._programs:
            self._set(
                name, bones=_bytes(body @ bones), body=_bytes(body), camera=_bytes(self._camera),
                opening=opening, breath=pose.breath, turn=tuple(map(float, turn)),
            )  # fmt: skip

    def _draw(self, figure: figure_lib.Figure, actions, pose, bones, opening: float) -> None:
        context, gl = self.context, self._gl
        self._canvas.use()
        self._canvas.clear()
        context.enable_only(gl.NOTHING)
        self._backdrop.use(0)
        self._back.render()
        self._face.use(1)
        self._strands.use(2)
        context.enable_only(gl.DEPTH_TEST)
        late = []
        for part in self._parts.values():
            if part.surface is None or part.array is None:
                continue
            if part.program == "tip":
                late.append((part.surface, part.array))
                continue
            self._set(part.program, **part.surface.uniforms)
            part.array.render()
        context.enable_only(gl.DEPTH_TEST | gl.CULL_FACE)
        self._parts["skin"].array.render()
        self._draw_eyes(figure, actions, pose, bones)
        context.enable_only(gl.DEPTH_TEST)
        if opening > 0.02:
            for name in ("teeth", "tongue"):
                self._set("mouth", tongue=float(name == "tongue"))
                self._parts[name].array.render()
        context.enable_only(gl.DEPTH_TEST | gl.BLEND)
        self._canvas.depth_mask = False
        self._parts["lashes"].array.render()
        for surface, array in late:
            self._set("tip", **surface.uniforms)
            array.render()
        self._canvas.depth_mask = True

    def _draw_eyes(self, figure: figure_lib.Figure, actions, pose, bones) -> None:
        for side, centre in enumerate(figure.eyes):
            vergence = 0.03 if side else -0.03
            turn = pose_lib.rotation(1, pose.gaze[0] + vergence)
            turn = turn @ pose_lib.rotation(0, pose.gaze[1])
            shut, wide = float(actions[_BLINK[side]]), float(actions[_WIDE[side]])
            self._set(
                "eye", centre=tuple(map(float, centre)), radius=figure.radius,
                gaze=_bytes(turn[:3, :3]), weights=(0.0, 0.0, 0.0, 1.0),
                to_head=_bytes(bones[3][:3, :3].T), side=1.0 - 2.0 * side,
                lid_upper=0.44 + 0.15 * wide - 0.85 * shut, lid_lower=-0.58 - 0.1 * wide,
                baked=tuple(map(float, self._eye_light[side])),
            )  # fmt: skip
            self._eye.render()


def _views() -> list[tuple[pose_lib.Pose, np.ndarray]]:
    """Poses and actions that together show whatever a clip may show."""
    rest = np.zeros(len(basis_lib.ACTIONS), np.float32)
    wide = rest.copy()
    wide[_AT["jawOpen"]] = 0.8
    wide[[_AT["mouthUpperUpLeft"], _AT["mouthUpperUpRight"]]] = 0.6
    wide[_BLINK] = 1.0
    smile = rest.copy()
    for side in ("Left", "Right"):
        smile[[_AT[f"mouth{name}{side}"] for name in ("Smile", "UpperUp", "LowerDown")]] = 0.8
        smile[_AT[f"mouthStretch{side}"]] = 0.5
    smile[_AT["jawOpen"]] = 0.25
    views = [(pose_lib.Pose(yaw=yaw), smile) for yaw in (-0.3, 0.0, 0.3)]
    for row, yaw in enumerate((-1.0, -0.5, 0.0, 0.5, 1.0)):
        for column, pitch in enumerate((-1.0, 0.0, 1.0)):
            turn = pose_lib.Pose(yaw=yaw * pose_lib.MAX_YAW, pitch=pitch * pose_lib.MAX_PITCH)
            views.append((turn, wide if (row + column) % 2 else rest))
    return [*views, (pose_lib.Pose(), wide)]
