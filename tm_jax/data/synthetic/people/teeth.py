"""Teeth and gums, modelled tooth by tooth along the arches of the mesh's helper geometry."""

import dataclasses
import itertools

import numpy as np

from tm_jax.data.synthetic.people import assets

# Widths of the teeth from the middle outward, in decimetres (Wheeler's Dental Anatomy).
_WIDTHS = {
    "upper": (0.085, 0.066, 0.077, 0.070, 0.067, 0.100, 0.095),
    "lower": (0.053, 0.057, 0.068, 0.070, 0.071, 0.105, 0.100),
}
_HEIGHTS = {
    "upper": (0.108, 0.094, 0.104, 0.086, 0.080, 0.072, 0.070),
    "lower": (0.088, 0.092, 0.104, 0.088, 0.080, 0.072, 0.070),
}
_AROUND, _ALONG = 10, 6
_DEPTH = 0.062
_NEIGHBOURS = 12  # Helper vertices whose mean displacement a vertex follows.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arch:
    """Teeth and gums of both jaws.

    Attributes:
      vertices: [T, 3].
      faces: [F, 3].
      uv: [T, 2]: 0 to 1 from the gum's edge to the tip of a tooth, negative in the gum;
        and 0 for upper, 1 for lower teeth.
      binding: Rows of the base mesh whose mean displacement each vertex follows, [T, K].
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    binding: np.ndarray

    def follow(self, values: np.ndarray) -> np.ndarray:
        """Takes values over from the base mesh, [..., V, k] -> [..., T, k]."""
        return values[..., self.binding, :].mean(-2)


def _grid_faces(rows: int, columns: int, wrap: bool) -> np.ndarray:
    across = columns if wrap else columns - 1
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(across), indexing="ij")
    k = (j + 1) % columns
    a, b, c, d = i * columns + j, i * columns + k, (i + 1) * columns + k, (i + 1) * columns + j
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], -2)
    return faces.reshape(-1, 3)


def _curve(points: np.ndarray) -> np.ndarray:
    """Front of an arch as z over x: coefficients of 1, x^2, x^4, fitted to the outer points."""
    x, z = points[:, 0], points[:, 2]
    edges = np.linspace(-0.3, 0.3, 13)
    within = [(x >= a) & (x <= b) for a, b in itertools.pairwise(edges)]
    best = [np.argmax(np.where(cell, z, -9)) for cell in within if cell.any()]
    terms = np.stack([np.ones(len(best)), x[best] ** 2, x[best] ** 4], 1)
    return np.linalg.lstsq(terms, z[best], rcond=None)[0]


def _stations(curve: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 2] (x, z) at arc lengths from the middle, and outward normals [n, 2]."""
    x = np.linspace(0, 0.42, 800)
    z = curve[0] + curve[1] * x**2 + curve[2] * x**4
    z = np.maximum(z, z[0] - 0.62)
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    at = np.stack([np.interp(lengths, length, x), np.interp(lengths, length, z)], 1)
    step = np.stack([np.interp(lengths + 0.01, length, x), np.interp(lengths + 0.01, length, z)], 1)
    tangent = step - at
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    return at, np.stack([-tangent[:, 1], tangent[:, 0]], 1)


def _tooth(width: float, height: float, point: float) -> tuple[np.ndarray, np.ndarray]:
    """A rounded tooth: x across, y toward the tip, z outward; uv runs from gum to tip."""
    t = np.linspace(0, 1, _ALONG)[:, None]
    angle = np.linspace(0, 2 * np.pi, _AROUND, endpoint=False)[None]
    c, s = np.cos(angle), np.sin(angle)
    x, z = np.sign(c) * np.abs(c) ** 0.55, np.sign(s) * np.abs(s) ** 0.7
    wide = width / 2 * (0.99 + 0.05 * np.sin(np.pi * np.minimum(t * 0.8 + 0.1, 1)))
    wide = wide * np.where(t > 0.95, 0.84 - 0.3 * point, np.where(t > 0.75, 0.98 - 0.2 * point, 1))
    deep = _DEPTH / 2 * (1.15 - 0.65 * t) * np.where(t > 0.95, 0.6, 1)
    bulge = 0.012 * np.sin(np.pi * np.clip(t, 0, 1))
    points = np.stack([x * wide, np.broadcast_to(t * height, (_ALONG, _AROUND)),
                       z * deep + bulge], -1)  # fmt: skip
    top = np.array([[[0, height * (1.01 + 0.04 * point), 0]]]) * np.ones((1, _AROUND, 1))
    points = np.concatenate([points, top])
    uv = np.concatenate([np.broadcast_to(t, (_ALONG, _AROUND)), np.ones((1, _AROUND))])
    return points, uv


def _jaw(mesh: assets.Mesh, jaw: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces and uv of one jaw."""
    helper = mesh.vertices[np.unique(mesh.quads[f"helper-{jaw}-teeth"])]
    curve = _curve(helper)
    upper = jaw == "upper"
    widths, heights = np.array(_WIDTHS[jaw]), np.array(_HEIGHTS[jaw])
    centres = np.cumsum(widths) - widths / 2
    at, normal = _stations(curve, centres)
    tips = helper[:, 1].min() - 0.030 if upper else helper[:, 1].max() - 0.125
    vertices, faces, uv, count = [], [], [], 0
    for i, (width, height) in enumerate(zip(widths, heights)):
        points, t = _tooth(width, height, 1.0 if i == 2 else 0.25)
        for side in (1, -1):
            n = normal[i] * [side, 1]
            across = np.array([n[1], 0, -n[0]])
            outward = np.array([n[0], 0, n[1]])
            up = np.array([0, -1.0 if upper else 1.0, 0])
            gum = tips + (heights[i] if upper else -heights[i])
            gum += (0.010 if i == 1 else 0.0) * (1 if upper else -1)
            origin = np.array([at[i, 0] * side, gum, at[i, 1]]) - 0.035 * outward
            world = origin + points @ np.stack([across, up, outward])
            rows, columns = t.shape
            grid = _grid_faces(rows, columns, True)
            vertices.append(world.reshape(-1, 3))
            faces.append((grid if not upper else grid[:, ::-1]) + count)
            uv.append(t.reshape(-1))
            count += rows * columns
    gums, gum_uv, gum_faces = _gum(curve, tips, float(heights.mean()), upper)
    return (
        np.concatenate([*vertices, gums]), np.concatenate([*faces, gum_faces + count]),
        np.concatenate([*uv, gum_uv]),
    )  # fmt: skip


def _gum(curve, tips, height, upper):
    """A rounded ridge above (or below) the teeth."""
    lengths = np.linspace(0, 0.56, 24)
    half, outward = _stations(curve, lengths)
    at = np.concatenate([half[:0:-1] * [-1, 1], half])
    out = np.concatenate([outward[:0:-1] * [-1, 1], outward])
    angle = np.linspace(-0.6 * np.pi, 0.62 * np.pi, 8)
    sign = 1 if upper else -1
    y = tips + sign * (height * 0.92 + 0.10 * (0.5 + 0.5 * np.sin(angle)))
    scallop = 0.010 * np.abs(np.sin(np.pi * np.linspace(-8, 8, len(at))))
    depth = 0.05 * np.cos(angle) - 0.022
    points = np.empty((len(angle), len(at), 3))
    points[..., 0] = at[:, 0] + out[:, 0] * depth[:, None]
    points[..., 1] = y[:, None] - sign * scallop * (angle < 0)[:, None]
    points[..., 2] = at[:, 1] + out[:, 1] * depth[:, None]
    faces = _grid_faces(len(angle), len(at), False)
    faces = faces if upper else faces[:, ::-1]
    return points.reshape(-1, 3), np.full(points.size // 3, -1.0), faces


def build(mesh: assets.Mesh) -> Arch:
    """Models the teeth of both jaws in the template's mouth."""
    vertices, faces, uv, binding, count = [], [], [], [], 0
    for level, jaw in enumerate(("upper", "lower")):
        v, f, t = _jaw(mesh, jaw)
        rows = np.unique(mesh.quads[f"helper-{jaw}-teeth"])
        vertices.append(v)
        faces.append(f + count)
        uv.append(np.stack([t, np.full(len(t), float(level))], 1))
        flat = np.linalg.norm((v[:, None] - mesh.vertices[rows])[..., [0, 2]], axis=-1)
        binding.append(rows[np.argsort(flat, axis=1)[:, :_NEIGHBOURS]])
        count += len(v)
    return Arch(
        vertices=np.concatenate(vertices), faces=np.concatenate(faces),
        uv=np.concatenate(uv), binding=np.concatenate(binding),
    )  # fmt: skip
