"""Where hair, beard and brows grow, as functions of a point of the template's head.

Units are decimetres in the template: the eyes stand at y = 7.28, the chin's tip at y = 6.2,
the crown at y = 8.49; x is the subject's left, z to the front.
"""

import numpy as np

# Outline of the hair seen from the side, (z, y); inside is up and behind.
_HAIRLINE = np.array([
    (3.0, 8.02), (1.13, 8.02), (1.00, 7.86), (0.93, 7.70), (0.90, 7.52), (0.84, 7.40),
    (0.80, 7.20), (0.72, 6.98), (0.62, 7.00), (0.60, 7.20), (0.58, 7.38), (0.46, 7.44),
    (0.30, 7.36), (0.24, 7.10), (0.20, 6.86), (0.05, 6.62), (-0.25, 6.42), (-0.60, 6.36),
    (-3.0, 6.36), (-3.0, 9.5), (3.0, 9.5),
])  # fmt: skip
_BROW = np.array([(0.115, 7.452), (0.20, 7.488), (0.31, 7.524), (0.40, 7.525), (0.50, 7.468)])


def _segments(points: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance to a polyline [P], position along it in 0..1 [P], and side [P]."""
    a, b = line[:-1], line[1:]
    along = b - a
    t = np.einsum("psk,sk->ps", points[:, None] - a, along) / np.sum(along**2, 1)
    t = np.clip(t, 0, 1)
    offset = points[:, None] - (a + t[..., None] * along)
    distance = np.linalg.norm(offset, axis=-1)
    best = distance.argmin(1)
    rows = np.arange(len(points))
    lengths = np.linalg.norm(along, axis=1)
    start = np.concatenate([[0], np.cumsum(lengths)])
    position = (start[best] + t[rows, best] * lengths[best]) / start[-1]
    near = offset[rows, best]
    side = along[best, 0] * near[:, 1] - along[best, 1] * near[:, 0]
    return distance[rows, best], position, np.sign(side)


def _inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Whether points [P, 2] lie in a polygon [V, 2]."""
    x, y = points.T
    inside = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0)):
        crosses = (y0 > y) != (y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def scalp(points: np.ndarray) -> np.ndarray:
    """Signed distance to the hairline, [P]: positive where hair grows."""
    # The line rises a little in the middle and recedes at the temples.
    lifted = points.copy()
    lifted[:, 1] -= 0.05 * np.exp(-((points[:, 0] / 0.28) ** 2)) * (points[:, 2] > 0.8)
    side = lifted[:, [2, 1]]
    distance, _, _ = _segments(side, np.concatenate([_HAIRLINE, _HAIRLINE[:1]]))
    return np.where(_inside(side, _HAIRLINE), distance, -distance)


def _step(low: float, high: float, x: np.ndarray) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def beard(points: np.ndarray, kind: str) -> np.ndarray:
    """How densely a beard grows at points of the face, [P] in 0..1."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    # The cheek's line falls from the sideburn to the corner of the mouth.
    cheek = np.interp(x, [0.0, 0.30, 0.45, 0.60, 0.72, 0.85], [6.83, 6.80, 6.72, 6.84, 7.08, 7.25])
    lower = np.interp(x, [0.0, 0.35, 0.6, 0.8], [6.10, 6.14, 6.32, 6.55])
    front = _step(0.30, 0.62, z)
    full = _step(0.0, -0.10, y - cheek) * front
    full = full * _step(0.0, 0.12, y - lower)
    mouth = np.hypot(x / 0.275, (y - 6.60) / 0.125)
    full = full * _step(0.90, 1.02, mouth)
    strip = np.exp(-(((y - 6.775) / 0.06) ** 4)) * _step(0.36, 0.28, x) * _step(1.2, 1.35, z)
    drop = np.exp(-(((x - 0.31) / 0.06) ** 2)) * _step(6.45, 6.55, y) * _step(6.80, 6.70, y)
    moustache = np.clip(strip + drop * 0.8, 0, 1) * _step(0.90, 1.02, mouth)
    chin = _step(0.26, 0.16, x) * _step(6.52, 6.42, y) * _step(6.0, 6.12, y) * _step(0.9, 1.1, z)
    table = {
        "none": 0 * full, "stubble": np.maximum(full, moustache), "moustache": moustache,
        "goatee": np.clip(np.maximum(chin, moustache), 0, 1) * _step(0.90, 1.02, mouth),
        "full": np.maximum(full, moustache),
    }  # fmt: skip
    return np.clip(table[kind], 0, 1)


def brow(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance from the brow's middle line, position along it, and side, each like `x`."""
    points = np.stack([np.abs(x).ravel(), y.ravel()], 1)
    distance, along, side = _segments(points, _BROW)
    return distance.reshape(x.shape), along.reshape(x.shape), side.reshape(x.shape)
