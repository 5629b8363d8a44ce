"""Meshes that move with the bones or follow the skin, and the tools that shape them."""

import dataclasses

import numpy as np
from scipy import ndimage

NO_WEIGHT = (0.0, 0.0, 0.0, 0.0)
HEAD_WEIGHT = (0.0, 0.0, 0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surface:
    """A mesh over the skin: hair, clothes, glasses.

    Attributes:
      kind: Which shader draws it: `hair`, `tip` (hair that fades) or `cloth`.
      position: [N, 3].
      normal: [N, 3].
      tangent: Direction of strands or threads, [N, 3].
      uv: [N, 4]. Hair: across, along (0 root to 1 tip), random, occlusion. Cloth: two texture
        coordinates in decimetres, signed distance to the edge, occlusion.
      weights: Of neck01, neck02, neck03 and head, [N, 4].
      faces: [F, 3].
      uniforms: Settings of the shader.
      follow: Rows of the skin whose displacement each vertex adds, [N], or None.
      casts: Whether it throws shadows.
    """

    kind: str
    position: np.ndarray
    normal: np.ndarray
    tangent: np.ndarray
    uv: np.ndarray
    weights: np.ndarray
    faces: np.ndarray
    uniforms: dict
    follow: np.ndarray | None = None
    casts: bool = True


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., 3] of length one; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def step(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def grid_faces(rows: int, columns: int, wrap: bool) -> np.ndarray:
    """Triangles of a grid of vertices stored row by row, [F, 3]."""
    across = columns if wrap else columns - 1
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(across), indexing="ij")
    k = (j + 1) % columns
    a, b, c, d = i * columns + j, i * columns + k, (i + 1) * columns + k, (i + 1) * columns + j
    return np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], -2).reshape(-1, 3)


def grid_normals(points: np.ndarray, wrap: bool) -> np.ndarray:
    """Normals of a grid [R, C, 3]: along the columns crossed with along the rows."""
    if wrap:
        padded = np.concatenate([points[:, -1:], points, points[:, :1]], 1)
        across = padded[:, 2:] - padded[:, :-2]
    else:
        across = np.gradient(points, axis=1)
    down = np.gradient(points, axis=0)
    return unit(np.cross(across, down))


def from_grid(
    points: np.ndarray, weights: np.ndarray, uniforms: dict, *, wrap: bool,
    uv: np.ndarray | None = None, edge: np.ndarray | None = None,
    occlusion: np.ndarray | float = 1.0, flip: bool = False, casts: bool = True
) -> Surface:  # fmt: skip
    """A cloth surface from a grid of points [R, C, 3] with weights [R, C, 4].

    Args:
      points: Rows run down (or outward), columns around.
      weights: Skinning weights.
      uniforms: Settings of the shader.
      wrap: Whether the last column meets the first.
      uv: Texture coordinates [R, C, 2]; lengths along the grid by default.
      edge: Signed distance to the edge [R, C]; all cloth by default.
      occlusion: [R, C] or a number.
      flip: Whether normals point to the other side.
      casts: Whether it throws shadows.
    """
    rows, columns, _ = points.shape
    normal = grid_normals(points, wrap) * (-1 if flip else 1)
    if uv is None:
        down = np.linalg.norm(np.diff(points, axis=0, prepend=points[:1]), axis=-1).cumsum(0)
        around = np.linalg.norm(np.diff(points, axis=1, prepend=points[:, :1]), axis=-1).cumsum(1)
        uv = np.stack([around.mean(0, keepdims=True) + 0 * down, down], -1)
    full = np.empty((rows, columns, 4))
    full[..., :2] = uv
    full[..., 2] = 1.0 if edge is None else edge
    full[..., 3] = occlusion
    tangent = unit(np.gradient(points, axis=0))
    faces = grid_faces(rows, columns, wrap)
    if edge is not None:  # What is cut away throws no shadow.
        faces = faces[np.asarray(edge).ravel()[faces].max(1) > 0]
    return Surface(
        kind="cloth", position=points.reshape(-1, 3), normal=normal.reshape(-1, 3),
        tangent=tangent.reshape(-1, 3), uv=full.reshape(-1, 4), weights=weights.reshape(-1, 4),
        faces=faces, uniforms=uniforms, casts=casts,
    )  # fmt: skip


def slices(
    points: np.ndarray, heights: np.ndarray, angles: np.ndarray, centre: np.ndarray,
    reach: float = 0.09,
) -> np.ndarray:  # fmt: skip
    """Convex outlines of a body in horizontal slices: radii [heights, angles].

    Args:
      points: [P, 3].
      heights: y of the slices.
      angles: Azimuths; 0 is the front, +90 degrees the subject's left.
      centre: x and z of the axis at every height, [heights, 2].
      reach: Half the thickness of a slice.
    """
    outward = np.stack([np.sin(angles), np.cos(angles)], 1)  # [A, 2] of x, z
    radii = np.zeros((len(heights), len(angles)))
    for row, height in enumerate(heights):
        inside = points[np.abs(points[:, 1] - height) < reach]
        if len(inside) > 2:
            flat = inside[:, [0, 2]] - centre[row]
            radii[row] = np.maximum((flat @ outward.T).max(0), 0.02)
    return radii


def support_to_radius(support: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Radius of convex outlines along rays, from their support function, [R, A] each."""
    cosine = np.cos(angles[:, None] - angles[None])
    cosine = np.where(cosine > 0.05, cosine, np.nan)
    return np.nanmin(support[:, None, :] / cosine[None], axis=-1)


def blur(values: np.ndarray, down: float, around: float) -> np.ndarray:
    """Gaussian blur of a grid [R, C]: rows end, columns wrap."""
    values = ndimage.gaussian_filter1d(values, down, axis=0, mode="nearest") if down else values
    return ndimage.gaussian_filter1d(values, around, axis=1, mode="wrap") if around else values
