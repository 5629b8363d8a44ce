"""Scarves, caps, beanies and glasses."""

import typing

import numpy as np
from scipy import ndimage

from tm_jax.data.synthetic.people import clothes
from tm_jax.data.synthetic.people import surfaces

if typing.TYPE_CHECKING:  # It builds figures with what this module makes.
    from tm_jax.data.synthetic.people import figure as figure_lib

_ANGLES = np.linspace(-np.pi, np.pi, 64, endpoint=False)


def _mark(figure, canon) -> np.ndarray:
    """The vertex at rest nearest to a place on the template."""
    skin = np.unique(figure.faces["skin"])
    return figure.rest[skin[np.argmin(np.linalg.norm(figure.canon[skin] - canon, axis=1))]]


def _head_points(figure, lowest: float) -> np.ndarray:
    rows = np.unique(figure.faces["skin"])
    inside = (figure.canon[rows, 1] > lowest) & (figure.region[rows, 2] < 0.3)
    return figure.rest[rows[inside]].astype(np.float64)


def _dome(figure, bottom: float, rows: int, offset: float):
    """A grid around the top of the head: points [R, A, 3], rows from the crown down."""
    points = _head_points(figure, 6.9)
    top = points[:, 1].max() + offset
    t = np.linspace(0.0, 1, rows)
    heights = top - (top - bottom) * t**1.6
    middle = np.array([0.0, (points[:, 2].max() + points[:, 2].min()) / 2])
    centre = np.broadcast_to(middle, (rows, 2))
    support = surfaces.slices(points, np.minimum(heights, top - offset - 0.05), _ANGLES, centre)
    radius = surfaces.support_to_radius(support, _ANGLES)
    # Toward the crown the outline closes like an ellipsoid.
    height = (heights - bottom) / (top - bottom)
    widest = radius[-1]
    closing = np.sqrt(np.clip(1 - height**2.1, 0.0, 1))
    radius = np.maximum(np.minimum(radius, widest * closing[:, None] * 1.04), 0.0)
    radius = surfaces.blur(radius, 1.2, 2.0) + offset * np.minimum(1, 3 * closing[:, None])
    x = radius * np.sin(_ANGLES)
    z = radius * np.cos(_ANGLES) + middle[1]
    return np.stack([x, np.broadcast_to(heights[:, None], x.shape), z], -1)


def _on_head(points: np.ndarray) -> np.ndarray:
    weights = np.zeros(points.shape[:-1] + (4,))
    weights[..., 3] = 1
    return weights


def cap(figure: "figure_lib.Figure") -> list[surfaces.Surface]:
    """A baseball cap: dome, sweatband's edge and brim."""
    identity = figure.identity
    bottom = _mark(figure, [0, 7.68, 1.3])[1]
    dome = _dome(figure, bottom, 16, 0.10)
    tilt = 0.06 * (dome[..., 2] - dome[..., 2].mean()) * np.linspace(0, 1, 16)[:, None]
    dome[..., 1] += tilt
    material = clothes.material(identity.headwear, weave=0.5, sheen=0.15)
    band = np.linspace(1, 0, 16)[:, None]
    shade = 0.85 + 0.15 * np.broadcast_to(band, dome.shape[:2])
    result = [surfaces.from_grid(dome, _on_head(dome), material, wrap=True, occlusion=shade)]
    edge = dome[-1]
    front = np.cos(_ANGLES) > 0.25
    rim = edge[np.flatnonzero(front)]
    t = np.linspace(0, 1, 7)[:, None, None]
    reach = 0.80 * np.sqrt(np.clip(1 - (rim[:, 0] / (np.abs(rim[:, 0]).max() * 1.02)) ** 2, 0, 1))
    brim = rim + t * reach[None, :, None] * np.array([0, -0.10, 1.0])
    brim[..., 1] += -0.16 * (rim[:, 0] / 0.7) ** 2 * t[..., 0] - 0.05 * t[..., 0] ** 2 + 0.01
    upper = surfaces.from_grid(brim, _on_head(brim), material, wrap=False)
    lower = surfaces.from_grid(
        brim - [0, 0.03, 0], _on_head(brim), material, wrap=False, flip=True, occlusion=0.45
    )
    return [*result, upper, lower]


def beanie(figure: "figure_lib.Figure") -> list[surfaces.Surface]:
    """A knitted hat with a folded edge."""
    identity = figure.identity
    bottom = _mark(figure, [0, 7.74, 1.3])[1]
    dome = _dome(figure, bottom - 0.05, 18, 0.12)
    dome[..., 1] += 0.06 * (dome[..., 2] - dome[..., 2].mean())
    lift = np.linspace(1, 0, 18)[:, None]
    dome[..., 1] += 0.16 * lift**2
    material = clothes.material(identity.headwear, weave=1.0, sheen=0.4, rib=1.0)
    result = [surfaces.from_grid(dome, _on_head(dome), material, wrap=True)]
    edge, above = dome[-1], dome[-4]
    middle = edge.mean(0)
    out = surfaces.unit((edge - middle) * [1, 0, 1])
    up = surfaces.unit(above - edge)
    angle = np.linspace(-0.4, np.pi + 0.2, 9)[:, None, None]
    fold = edge + up * (0.17 * (1 - np.cos(angle)) - 0.05)
    fold = fold + out * (0.075 * np.sin(angle) + 0.01)
    fold = fold[::-1]
    return [*result, surfaces.from_grid(fold, _on_head(fold), material, wrap=True)]


def hijab(figure: "figure_lib.Figure") -> list[surfaces.Surface]:
    """A scarf around head and neck that falls on the chest, open for the face."""
    identity = figure.identity
    rng = np.random.default_rng([identity.seed, 602214])
    points = _head_points(figure, 4.6)
    points = points[np.abs(points[:, 0]) < 1.85]
    top = points[:, 1].max() + 0.10
    chin = _mark(figure, [0, 6.2, 1.45])
    bottom = chin[1] - 2.2
    rows = 52
    t = np.linspace(0, 1, rows)
    heights = top - (top - bottom) * t**1.35
    neck = _mark(figure, [0, 7.6, 1.3])[2] - 0.95
    centre = np.stack([np.zeros(rows), np.full(rows, neck)], 1)
    within = np.minimum(heights, points[:, 1].max() - 0.05)
    support = surfaces.slices(points, within, _ANGLES, centre)
    radius = surfaces.support_to_radius(support, _ANGLES)
    height = np.clip((heights - (top - 0.9)) / 0.9, 0, 1)
    closing = np.sqrt(np.clip(1 - height**2.2, 0, 1))[:, None]
    widest = radius[np.argmin(np.abs(heights - (top - 0.9)))]
    radius = np.where(height[:, None] > 0, np.minimum(radius, widest * closing * 1.03), radius)
    radius = ndimage.maximum_filter(radius, (3, 5), mode=("nearest", "wrap"))
    for row in range(1, rows):  # Cloth falls; it cannot follow the neck inward.
        fall = heights[row - 1] - heights[row]
        radius[row] = np.maximum(radius[row], radius[row - 1] - 0.42 * fall)
    radius = surfaces.blur(radius, 1.3, 2.0) + 0.085 * np.minimum(1, closing * 3)
    low = surfaces.step(chin[1] + 0.5, chin[1] - 0.5, heights)[:, None]
    swing = np.sin(7 * _ANGLES + 2.0 * heights[:, None] + rng.uniform(0, 6))
    swing = swing + 0.6 * np.sin(13 * _ANGLES - 3 * heights[:, None] + rng.uniform(0, 6))
    radius = radius * (1 + 0.025 * low * swing) + 0.05 * low
    x, z = radius * np.sin(_ANGLES), radius * np.cos(_ANGLES) + neck
    grid = np.stack([x, np.broadcast_to(heights[:, None], x.shape), z], -1)
    brow, jaw = _mark(figure, [0, 7.90, 1.25])[1], _mark(figure, [0, 6.12, 1.35])[1]
    centre_y, tall = (brow + jaw) / 2, (brow - jaw) / 2
    wide = np.abs(_mark(figure, [0.66, 7.0, 0.8])[0]) * 0.97
    oval = np.hypot(grid[..., 0] / wide, (grid[..., 1] - centre_y) / tall)
    edge = np.where(grid[..., 2] > neck, (oval - 1) * 0.6, 1.0)
    weights = np.zeros(x.shape + (4,))
    share = surfaces.step(chin[1] - 0.75, chin[1] + 0.15, grid[..., 1])
    weights[..., 3] = share
    material = clothes.material(identity.headwear, weave=0.35, sheen=0.35)
    shade = 0.62 + 0.38 * surfaces.step(0.0, 0.16, edge)
    cloth = surfaces.from_grid(
        grid, weights, material, wrap=True, edge=edge, occlusion=shade
    )
    return [cloth]


def glasses(figure: "figure_lib.Figure") -> list[surfaces.Surface]:
    """Frames around the eyes, a bridge, and the temples to the ears."""
    rng = np.random.default_rng([figure.identity.seed, 173205])
    dark = np.array([0.06, 0.055, 0.05])
    colours = [dark, np.array([0.16, 0.09, 0.05]), np.array([0.45, 0.42, 0.38])]
    colour = colours[rng.integers(3)]
    thick = rng.uniform(0.012, 0.022)
    width, tall, square = rng.uniform(0.23, 0.26), rng.uniform(0.17, 0.215), rng.uniform(0.6, 1.0)
    material = clothes.material(colour, weave=0.0, sheen=1.0)
    nose = _mark(figure, [0, 7.28, 1.52])
    z = max(figure.eyes[:, 2].max() + figure.radius + 0.13, nose[2] + 0.03)
    parts = []
    t = np.linspace(0, 2 * np.pi, 44, endpoint=False)
    for eye in figure.eyes:
        c, s = np.cos(t), np.sin(t)
        x = width * np.sign(c) * np.abs(c) ** square
        y = tall * np.sign(s) * np.abs(s) ** square - 0.03
        bow = 0.175 * (np.abs(eye[0] + x) / 0.6) ** 2  # Frames follow the face around.
        centre = np.stack([eye[0] * 1.02 + x, eye[1] + y, z - bow], 1)
        parts.append(_tube(centre, thick, True, material))
        side = np.sign(eye[0])
        ear = _mark(figure, [side * 0.80, 7.36, 0.55])
        start = centre[np.argmax(centre[:, 0] * side)] + [0, 0.04, 0]
        u = np.linspace(0, 1, 8)[:, None]
        line = start * (1 - u) + (ear + [0.05 * side, 0.04, 0.0]) * u
        line[:, 0] += side * 0.05 * np.sin(np.pi * u[:, 0])
        parts.append(_tube(line, thick * 0.9, False, material))
    left = figure.eyes[0] * 1.02
    inner = left[0] - width
    u = np.linspace(-1, 1, 9)
    bridge = np.stack([inner * u, left[1] + 0.03 + 0.03 * (1 - u**2), np.full(9, z + 0.0)], 1)
    parts.append(_tube(bridge, thick, False, material))
    return parts


def _tube(line: np.ndarray, radius: float, closed: bool, material: dict) -> surfaces.Surface:
    """A round rod along points [P, 3]."""
    along = np.roll(line, -1, 0) - np.roll(line, 1, 0) if closed else np.gradient(line, axis=0)
    along = surfaces.unit(along)
    out = surfaces.unit(np.cross(along, [0.02, 0.03, 1.0]) + 1e-6)
    over = np.cross(along, out)
    angle = np.linspace(0, 2 * np.pi, 6, endpoint=False)[:, None, None]
    ring = line + radius * (np.cos(angle) * out + np.sin(angle) * over)  # [6, P, 3]
    ring = np.concatenate([ring, ring[:1]])
    if closed:
        ring = np.concatenate([ring, ring[:, :1]], 1)
    return surfaces.from_grid(ring, _on_head(ring), material, wrap=False, flip=True)
