"""Clothes: shells over the shoulders with a neckline, and collars along it."""

import typing

import numpy as np
from scipy import sparse

from tm_jax.data.synthetic.people import paint
from tm_jax.data.synthetic.people import surfaces

if typing.TYPE_CHECKING:  # It builds figures with what this module makes.
    from tm_jax.data.synthetic.people import figure as figure_lib


def _line(kind: str, points: np.ndarray) -> np.ndarray:
    """Height over the neckline on the template, [P]: negative is cloth."""
    x, y, z = points.T
    tilt = np.where(z > 0.05, 0.42, 0.30) * (z - 0.05)
    base = 5.80 - tilt + 0.10 * np.minimum(np.abs(x) / 0.5, 1.2) ** 2
    front = surfaces.step(0.15, 0.4, z)
    if kind == "vneck":
        base = base - front * 0.62 * np.maximum(0, 1.06 - np.hypot(x, 0.03) / 0.40)
    elif kind == "shirt":
        base = base + 0.05 - front * 0.34 * np.maximum(0, 1 - np.abs(x) / 0.20)
    elif kind == "turtleneck":
        base = base + 0.12
    elif kind == "blazer":
        base = base - 0.02 - front * 1.45 * np.maximum(0, 1.04 - np.hypot(x, 0.03) / 0.52)
    elif kind == "hoodie":
        base = base - 0.02
    return y - base


def hides(figure: "figure_lib.Figure", faces: np.ndarray) -> np.ndarray:
    """Which faces [F, 3] of the skin lie well below the clothes, [F]."""
    kind = figure.identity.clothes
    inner = "shirt" if kind == "blazer" else kind
    return _line(inner, figure.canon.astype(np.float64))[faces].max(1) < -0.22


class _Torso:
    """The body's skin below the neck, smoothed, as the form that clothes lie on."""

    def __init__(self, figure, top: float):
        canon = figure.canon
        faces = figure.faces["skin"]
        keep = (canon[faces, 1].max(1) < top) & (np.abs(canon[faces, 0]).max(1) < 2.7)
        self.faces = faces[keep]
        self.rows, local = np.unique(self.faces, return_inverse=True)
        self.local = local.reshape(-1, 3)
        self.canon = canon[self.rows].astype(np.float64)
        self.weights = figure.weights[self.rows].astype(np.float64)
        self.figure = figure

    def shell(self, offset: np.ndarray, smooth: int) -> tuple[np.ndarray, np.ndarray]:
        """Vertices [V, 3] at a distance from the skin, and their normals."""
        figure = self.figure
        skin = figure.rest[self.rows].astype(np.float64)
        normal = figure.vertex_normals(figure.rest)[self.rows]
        a, b = self.local[:, [0, 1, 2]].ravel(), self.local[:, [1, 2, 0]].ravel()
        count = len(self.rows)
        links = sparse.coo_matrix((np.ones(len(a)), (a, b)), (count, count)).tocsr()
        links = ((links + links.T) > 0).astype(float)
        degree = np.asarray(links.sum(1)).ravel()[:, None]
        edge = np.asarray(degree.ravel() < 5)
        point = skin + normal * offset[:, None]
        for _ in range(smooth):
            mean = links @ point / degree
            point = np.where(edge[:, None], point, 0.5 * point + 0.5 * mean)
            short = offset * 0.55 - np.einsum("vk,vk->v", point - skin, normal)
            point = point + normal * np.maximum(short, 0)[:, None]
        corners = point[self.local]
        flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals = np.zeros_like(point)
        for corner in range(3):
            np.add.at(normals, self.local[:, corner], flat)
        return point, surfaces.unit(normals)


def _contour(canon, values: list[np.ndarray], faces, height: np.ndarray, count: int = 72):
    """The loop in which a height is zero, at equal azimuths around the neck.

    Returns:
      For canon and each of `values` [V, k] an array [count, k], and the azimuths.
    """
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    a, b = edges.T
    cross = (height[a] > 0) != (height[b] > 0)
    a, b = a[cross], b[cross]
    t = (height[a] / (height[a] - height[b]))[:, None]
    where = canon[a] * (1 - t) + canon[b] * t
    near = (np.abs(where[:, 0]) < 0.9) & (np.abs(where[:, 2] - 0.05) < 1.8)
    a, b, t, where = a[near], b[near], t[near], where[near]
    azimuth = np.arctan2(where[:, 0], where[:, 2] - 0.05)
    order = np.argsort(azimuth)
    angles = np.linspace(-np.pi, np.pi, count, endpoint=False)

    def resample(value):
        value = (value[a] * (1 - t) + value[b] * t)[order]
        at = azimuth[order]
        wrapped = np.concatenate([at - 2 * np.pi, at, at + 2 * np.pi])
        columns = [np.interp(angles, wrapped, np.tile(v, 3)) for v in value.T]
        result = np.stack(columns, 1)
        return surfaces.blur(result.T, 0, 0.8).T

    return [resample(canon), *(resample(v) for v in values)], angles


class _Neckline:
    """A loop along the edge of a shell, to hang collars on."""

    def __init__(self, torso: _Torso, point, normal, height):
        parts, self.angles = _contour(
            torso.canon, [point, normal, torso.weights], torso.local, height
        )
        self.canon, self.point, normal, self.weights = parts
        self.normal = surfaces.unit(normal)
        along = np.roll(self.point, -1, 0) - np.roll(self.point, 1, 0)
        self.down = surfaces.unit(np.cross(along, self.normal))
        self.front = surfaces.step(-0.2, 0.7, np.cos(self.angles))

    def loft(self, profile: np.ndarray, uniforms: dict, columns=slice(None), **settings):
        """A band: profile [R, C, 2] or [R, 1, 2] gives distance down and out at every row."""
        profile = np.broadcast_to(profile, (profile.shape[0], len(self.point), 2))
        points = self.point + profile[..., :1] * self.down + profile[..., 1:] * self.normal
        points = points[:, columns]
        weights = np.broadcast_to(self.weights, (len(profile),) + self.weights.shape)[:, columns]
        wrap = isinstance(columns, slice) and columns == slice(None)
        return surfaces.from_grid(points, weights, uniforms, wrap=wrap, **settings)


def material(
    colour: np.ndarray, *, pattern: int = 0, weave: float = 1.0, sheen: float = 0.3,
    rib: float = 0.0
) -> dict:
    """Settings of the cloth shader."""
    return dict(
        cloth=tuple(map(float, paint.linear(colour))), pattern=float(pattern), weave=weave,
        sheen=sheen, rib=rib,
    )  # fmt: skip


def _tube(width: float, height: float, overlap: float = 0.03, rows: int = 7) -> np.ndarray:
    """Profile of a rounded rib that lies along an edge, [R, 1, 2]."""
    angle = np.linspace(0, np.pi, rows)
    down = width * (1 - np.cos(angle)) / 2 - overlap
    return np.stack([down, height * np.sin(angle) - 0.01], 1)[:, None]


def _collar(line: _Neckline, colour, spread: float = 0.27) -> list[surfaces.Surface]:
    """A shirt's collar: a stand around the neck and a leaf that folds over it."""
    away = np.abs(np.angle(np.exp(1j * line.angles)))  # From the front.
    order = np.argsort((line.angles + 2 * np.pi) % (2 * np.pi))
    gap = away[order] > 0.16
    columns = order[gap]
    tip = np.exp(-(((away - 0.2) / spread) ** 2))
    stand = 0.30 - 0.10 * tip
    fall = 0.12 + 0.30 * tip
    rows = [
        (0.04 + 0 * tip, 0.0 + 0 * tip), (-stand * 0.6, 0.015 + 0 * tip),
        (-stand, 0.03 + 0 * tip), (-stand - 0.03, 0.075 + 0 * tip),
        (-stand * 0.85, 0.125 + 0 * tip), (-stand * 0.3, 0.155 + 0 * tip), (fall, 0.17 + 0 * tip),
        (fall + 0.004, 0.145 + 0 * tip),
    ]  # fmt: skip
    profile = np.stack([np.stack(row, 1) for row in rows])
    occlusion = np.array([0.4, 0.6, 0.85, 1, 1, 1, 1, 0.6])[:, None] * np.ones((1, len(columns)))
    return [line.loft(profile, material(colour, sheen=0.2), columns, occlusion=occlusion)]


def _shell(torso, point, normal, height, uniforms) -> surfaces.Surface:
    uv = np.empty((len(point), 4))
    uv[:, :2] = point[:, :2]
    uv[:, 2] = -height
    occlusion = torso.figure.extra[torso.rows, 0]
    uv[:, 3] = 0.45 + 0.55 * np.clip(occlusion * 1.2, 0, 1)
    keep = height[torso.local].min(1) < 0.02
    tangent = np.broadcast_to([0.0, -1.0, 0.0], point.shape)
    return surfaces.Surface(
        kind="cloth", position=point, normal=normal, tangent=tangent, uv=uv,
        weights=torso.weights, faces=torso.local[keep], uniforms=uniforms,
    )  # fmt: skip


def _folds(torso, rng, size: float) -> np.ndarray:
    """Wrinkles: displacements outward that run from the shoulders down, [V]."""
    x, y, z = torso.canon.T
    phase = rng.uniform(0, 6.28, 4)
    run = x * 2.0 - np.sign(x) * (y - 5.2) * 1.1
    fold = np.sin(4.5 * run + phase[0]) * np.sin(2.2 * y + phase[1])
    fold += 0.6 * np.sin(8.0 * run + 3 * z + phase[2])
    low = surfaces.step(5.65, 5.1, y)
    return size * fold * low


def build(figure: "figure_lib.Figure") -> list[surfaces.Surface]:
    """The clothes of a person."""
    identity = figure.identity
    rng = np.random.default_rng([identity.seed, 299792])
    main, trim = identity.cloth
    kind = identity.clothes
    torso = _Torso(figure, 6.35)
    result = []
    if kind == "blazer":
        result += _garment(torso, "shirt", np.array([0.82, 0.83, 0.85]) if rng.random() < 0.6
                           else trim, 0, 0.05, rng)  # fmt: skip
        result += _garment(torso, "blazer", main * 0.6, 2 if rng.random() < 0.5 else 0, 0.13, rng)
        return result
    return _garment(torso, kind, main, identity.pattern, 0.09, rng, trim)


def _garment(torso, kind, colour, pattern, offset, rng, trim=None) -> list[surfaces.Surface]:
    height = _line(kind, torso.canon)
    thick = offset * (0.55 + 0.45 * surfaces.step(0.0, -0.5, height))
    loose = {"hoodie": 0.10, "blazer": 0.05, "shirt": 0.03}.get(kind, 0.0)
    thick = thick + loose * surfaces.step(-0.1, -0.8, height)
    thick = thick + _folds(torso, rng, 0.022 if kind != "blazer" else 0.010)
    thick = np.maximum(thick, 0.03)
    point, normal = torso.shell(thick, 14 if kind in ("hoodie", "blazer") else 7)
    weave = {"hoodie": 0.9, "turtleneck": 0.6, "blazer": 0.7}.get(kind, 0.5)
    plain = material(colour, pattern=pattern, weave=weave)
    result = [_shell(torso, point, normal, height, plain)]
    line = _Neckline(torso, point, normal, height)
    plain = material(colour, weave=weave, rib=1.0)
    if torso.figure.identity.hair == "hijab":
        return result
    if kind in ("crew", "vneck"):
        assert trim is not None  # These kinds have one.
        edge = material(colour if rng.random() < 0.7 else trim, weave=weave, rib=1.0)
        result.append(line.loft(_tube(0.13, 0.035), edge))
    elif kind == "turtleneck":
        result.append(line.loft(_roll(line), plain))
    elif kind == "hoodie":
        result += _hood(line, plain, colour, trim)
    elif kind == "shirt":
        result += _collar(line, colour)
        result.append(_placket(line, colour))
    elif kind == "blazer":
        result.append(_lapels(line, colour, weave))
    return result


def _roll(line: _Neckline) -> np.ndarray:
    """A thick collar that stands up the neck and folds over."""
    tall = 0.42 - 0.06 * line.front
    rows = [(-tall, 0.0), (-tall - 0.04, 0.05), (-tall + 0.01, 0.10), (-tall * 0.5, 0.115),
            (0.0 * tall, 0.115), (0.05 + 0 * tall, 0.085), (0.07 + 0 * tall, 0.02)]  # fmt: skip
    return np.stack([np.stack([d + 0 * tall, 0 * tall + o], 1) for d, o in rows])


def _hood(line: _Neckline, plain: dict, colour, trim) -> list[surfaces.Surface]:
    """The hood that lies behind the neck, and two strings."""
    back = 1 - line.front
    angle = np.linspace(-0.35, np.pi + 0.3, 9)
    width, high = 0.26 + 0.32 * back, 0.15 + 0.17 * back
    rows = [np.stack([width * (1 - np.cos(a)) / 2 - 0.10 - 0.16 * back, high * np.sin(a) - 0.0], 1)
            for a in angle]  # fmt: skip
    shade = np.interp(angle, [-0.4, 0.4, 1.2, 3.5], [0.35, 0.75, 1.0, 0.75])[:, None]
    hood = line.loft(np.stack(rows), plain | {"rib": 0.0}, occlusion=shade + 0 * line.front)
    return [hood]


def _placket(line: _Neckline, colour) -> surfaces.Surface:
    """The strip of buttons down the front."""
    front = int(np.argmin(np.abs(line.angles)))
    start = line.point[front] + 0.02 * line.normal[front]
    t = np.linspace(0, 1, 8)[:, None]
    centre = start + t * np.array([0, -1.4, 0.10]) + 0.02 * np.array([0, 0, 1])
    across = np.array([-0.085, -0.07, 0.07, 0.085])
    points = centre[:, None] + across[None, :, None] * np.array([1.0, 0, 0])
    points[:, [0, -1], 2] -= 0.03
    return surfaces.from_grid(
        points, np.zeros(points.shape[:2] + (4,)), material(colour, sheen=0.2), wrap=False,
        flip=True, casts=False,
    )  # fmt: skip


def _lapels(line: _Neckline, colour, weave: float) -> surfaces.Surface:
    """Lapels and the collar of a blazer: a flat band, widest at the chest."""
    drop = np.clip((line.canon[:, 1].max() - line.canon[:, 1]) / 1.6, 0, 1)
    notch = np.exp(-(((drop - 0.36) / 0.035) ** 2))
    width = 0.30 + 0.34 * surfaces.step(0.30, 0.5, drop) * surfaces.step(1.05, 0.6, drop)
    width = width * (1 - 0.55 * notch)
    rise = -0.12 * (1 - surfaces.step(0.1, 0.4, drop))
    rows = [(rise * 0 + 0.02, 0.0), (rise, 0.03), (rise - 0.01, 0.055),
            (0.3 * width, 0.065), (width, 0.06), (width + 0.005, 0.03)]  # fmt: skip
    profile = np.stack([np.stack([d + 0 * width, o + 0 * width], 1) for d, o in rows])
    shade = np.array([0.5, 0.8, 1, 1, 1, 0.6])[:, None] + 0 * width
    return line.loft(profile, material(colour, weave=weave), occlusion=shade)

