"""Hair and beards: ribbons of strands that grow from the scalp, are combed, and fall."""

import dataclasses
import typing

import numpy as np
from scipy import spatial

from tm_jax.data.synthetic.people import paint
from tm_jax.data.synthetic.people import surfaces

if typing.TYPE_CHECKING:  # It builds figures with what this module makes.
    from tm_jax.data.synthetic.people import figure as figure_lib

_GRAVITY = np.array([0.0, -1.0, 0.0])
_CROWN = np.array([0.0, 8.42, -0.02])  # Where hair turns, on the template.
_KNOT = np.array([0.0, 8.42, -0.38])  # Where a bun sits.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """How one kind of hair is cut and combed. Lengths in decimetres.

    Attributes:
      count: Ribbons.
      steps: Segments of a ribbon.
      width: Of a ribbon.
      length: Of hair that is not cut by height.
      end: Height on the template where it ends, or None.
      comb: `away` from the crown, `side` from the parting, `back`, `up`, `knot`, `out`.
      lift: How far roots stand off, 0 to 1.
      gravity: How fast hair turns down, per step.
      volume: Distance of the outer layer from the head.
      jitter: Disorder of directions.
      curl: Radius of curls.
      hug: How closely it lies on the upper head, 0 to 1.
    """

    count: int
    steps: int
    width: float
    length: float
    end: float | None = None
    comb: str = "away"
    lift: float = 0.3
    gravity: float = 0.0
    volume: float = 0.05
    jitter: float = 0.12
    curl: float = 0.0
    hug: float = 0.0


STYLES = {
    "buzz": Style(count=1900, steps=1, width=0.075, length=0.06, lift=0.6, jitter=0.3,
                  volume=0.02),
    "crop": Style(count=1250, steps=3, width=0.085, length=0.27, lift=0.26, jitter=0.16,
                  volume=0.05, gravity=0.05),
    "quiff": Style(count=950, steps=3, width=0.095, length=0.50, comb="up", lift=0.42, jitter=0.10,
                   volume=0.06),
    "bob": Style(count=560, steps=7, width=0.19, length=1.0, end=6.25, comb="side", lift=0.30,
                 gravity=0.22, volume=0.13, jitter=0.05, hug=0.85),
    "long": Style(count=560, steps=9, width=0.20, length=1.0, end=4.9, comb="side", lift=0.28,
                  gravity=0.22, volume=0.13, jitter=0.05, hug=0.85),
    "bun": Style(count=620, steps=6, width=0.17, length=1.0, comb="knot", lift=0.10, volume=0.11,
                 jitter=0.04, hug=1.0),
    "curls": Style(count=1150, steps=7, width=0.075, length=0.46, comb="out", lift=1.0,
                   gravity=0.10, volume=0.10, jitter=0.22, curl=0.075),
}  # fmt: skip


def _sample(figure, faces: np.ndarray, density: np.ndarray, count: int, rng):
    """Random points on faces: rest, normal and template positions, each [count, 3]; and rows."""
    corners = figure.rest[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]),
                          axis=1)  # fmt: skip
    chance = area * density
    chosen = rng.choice(len(faces), count, p=chance / chance.sum())
    u, v = rng.random((2, count, 1))
    flip = u + v > 1
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    share = np.concatenate([1 - u - v, u, v], 1)[..., None]
    normals = figure.vertex_normals(figure.rest)
    rows = faces[chosen]
    mix = [(values[rows] * share).sum(1) for values in (figure.rest, normals, figure.canon)]
    return mix[0], surfaces.unit(mix[1]), mix[2], rows[np.arange(count), share[..., 0].argmax(1)]


class _Body:
    """Pushes points out of the head and the clothes."""

    def __init__(self, figure, cloth: float):
        rows = np.unique(figure.faces["skin"])
        inner = (figure.region[rows, 2] < 0.3) & (figure.region[rows, 3] < 0.3)
        self.rows = rows[inner]
        self.points = figure.rest[self.rows].astype(np.float64)
        self.normals = figure.vertex_normals(figure.rest)[self.rows].astype(np.float64)
        self.extra = cloth * surfaces.step(5.75, 5.45, figure.canon[self.rows, 1])
        self.tree = spatial.KDTree(self.points)

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nearest row, smooth normal [P, 3], and height over the surface [P]."""
        distance, index = self.tree.query(points, k=4)
        weight = 1 / (distance + 0.02)
        weight /= weight.sum(1, keepdims=True)
        normal = surfaces.unit((self.normals[index] * weight[..., None]).sum(1))
        base = (self.points[index] * weight[..., None]).sum(1)
        height = np.einsum("pk,pk->p", points - base, normal)
        height -= (self.extra[index] * weight).sum(1)
        return self.rows[index[:, 0]], normal, height


def _toward(style: Style, normals, canon, parting, rng) -> np.ndarray:
    """The direction in which hair is combed at its root, [P, 3]."""
    x, y, z = canon.T
    part = 0.28 * parting
    if style.comb == "side":
        side = np.where(x > part + 0.03 * rng.standard_normal(len(x)), 1.0, -1.0)
        top = surfaces.step(7.6, 8.2, y)
        want = np.stack([side * (0.35 + 0.65 * top), -0.55 + 0 * x, 0.05 - 0.30 * top + 0 * x], 1)
    elif style.comb == "back":
        want = np.stack([0.2 * x, 0.15 + 0 * x, -1.0 + 0 * x], 1)
    elif style.comb == "up":
        top = surfaces.step(7.75, 8.05, y) * surfaces.step(-0.5, 0.2, z)
        want = np.stack([0.4 * np.sign(x) * (1 - top) + 0.35 * top * np.sign(parting),
                         0.9 * top - 0.6 * (1 - top), -0.55 * top - 0.35 * (1 - top)], 1)
    elif style.comb == "knot":
        want = _KNOT - canon
    elif style.comb == "out":
        want = canon - np.array([0.0, 7.6, 0.2])
    else:
        want = canon - _CROWN
        front = surfaces.step(0.5, 1.1, z)[:, None]
        want = surfaces.unit(want) * (1 - 0.4 * front) + front * np.array([0.35, 0, 0.3]) * 0.6
    want = surfaces.unit(want) + style.jitter * rng.standard_normal(want.shape)
    flat = want - normals * np.einsum("pk,pk->p", want, normals)[:, None]
    flat = surfaces.unit(flat)
    return surfaces.unit(flat * (1 - style.lift) + normals * style.lift)


def _in_fringe(figure, style: Style, canon: np.ndarray) -> np.ndarray:
    """Which roots fall over the forehead, [P]."""
    worn = figure.identity.fringe and style.comb == "side"
    return worn & (canon[:, 2] > 0.72) & (np.abs(canon[:, 0]) < 0.58) & (canon[:, 1] > 7.9)


def _lengths(style: Style, canon: np.ndarray, rng) -> np.ndarray:
    x, y, z = canon.T
    vary = rng.uniform(0.8, 1.1, len(x))
    if style.end is not None:
        top = np.maximum(0, 0.72 - np.abs(x)) * surfaces.step(7.7, 8.2, y)
        return (y - style.end + 0.75 * top) * rng.uniform(0.93, 1.03, len(x))
    if style.comb == "up":
        top = surfaces.step(7.62, 8.02, y) * surfaces.step(-0.75, 0.5, z)
        return (0.15 + (style.length - 0.15) * top) * vary
    if style.comb == "knot":
        return np.linalg.norm(_KNOT - canon, axis=1) * 1.12
    if style.comb == "away":
        fade = 0.45 + 0.55 * surfaces.step(7.3, 7.95, y)
        return style.length * vary * fade
    return style.length * rng.uniform(0.35, 1.0, len(x))


def _march(style: Style, figure, body: _Body, roots, normals, canon, rng):
    """Lets ribbons grow: middle lines [S + 1, P, 3] and outward normals of the same shape."""
    identity = figure.identity
    direction = _toward(style, normals, canon, identity.parting, rng)
    length = np.maximum(_lengths(style, canon, rng), 0.05)
    fringe = _in_fringe(figure, style, canon)
    if fringe.any():
        down = np.stack([0.25 * canon[:, 0], -0.6 + 0 * canon[:, 0], 0.55 + 0 * canon[:, 0]], 1)
        down -= normals * np.minimum(np.einsum("pk,pk->p", down, normals), 0)[:, None]
        down = surfaces.unit(down + 0.08 * rng.standard_normal(down.shape))
        direction = np.where(fringe[:, None], down, direction)
        over = (canon[:, 1] - 7.52) * 1.12 + 0.30 * np.maximum(0, 1.15 - canon[:, 2])
        length = np.where(fringe, over * rng.uniform(0.92, 1.06, len(length)), length)
    stride = (length / style.steps)[:, None]
    least = 0.4 if style.comb == "knot" else 0.15
    layer = style.volume * rng.uniform(least, 1.0, len(roots)) ** 0.7
    point, lines, outward = roots - 0.01 * normals, [], []
    lines.append(point)
    outward.append(normals)
    knot = figure.rest[np.argmin(np.linalg.norm(figure.canon - _KNOT, axis=1))]
    phase = rng.uniform(0, 2 * np.pi, len(roots))
    for index in range(style.steps):
        before = point
        if style.comb == "knot":
            direction = surfaces.unit(direction * 0.4 + 0.6 * surfaces.unit(knot - point))
        elif style.comb == "up":
            direction = surfaces.unit(direction + np.array([0, -0.10, -0.22]) * (index > 0))
        direction = surfaces.unit(direction + style.gravity * _GRAVITY)
        point = point + stride * direction
        _, near, height = body.nearest(point)
        floor = layer * min(1.0, (index + 1.2) / 2.5)
        point = point + near * np.clip(floor - height, 0, 0.10)[:, None]
        if style.hug:  # Hair lies on the head down to the ears and then falls.
            close = style.hug * surfaces.step(-0.55, 0.05, point[:, 1])
            point = point - near * (close * np.maximum(height - floor, 0))[:, None]
        if style.steps > 2:
            direction = surfaces.unit(point - before)
        lines.append(point)
        outward.append(near)
    lines, outward = np.stack(lines), np.stack(outward)
    if style.curl:
        turn = phase + 1.15 * np.arange(style.steps + 1)[:, None]
        u = surfaces.unit(np.cross(outward, [0.3, 1, 0.2]))
        w = np.cross(outward, u)
        ramp = np.minimum(np.arange(style.steps + 1) / 2, 1)[:, None, None] * style.curl
        lines = lines + ramp * (np.cos(turn)[..., None] * u + np.sin(turn)[..., None] * w)
    return lines, outward


def ribbons(
    lines: np.ndarray, outward: np.ndarray, width: np.ndarray, rng: np.random.Generator,
    taper: float = 0.35
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Flat ribbons along middle lines [S + 1, P, 3].

    Returns:
      position, normal, tangent [P, S + 1, 2, 3] and uv [P, S + 1, 2, 4], as flat arrays, faces.
    """
    steps, count = lines.shape[0] - 1, lines.shape[1]
    tangent = surfaces.unit(np.gradient(lines, axis=0))
    across = surfaces.unit(np.cross(tangent, outward))
    tilt = 0.35 * rng.standard_normal((1, count, 1))
    across = surfaces.unit(across + tilt * outward)
    t = np.linspace(0, 1, steps + 1)
    shape = 1 - (1 - taper) * np.clip((t - 0.6) / 0.4, 0, 1) ** 1.5
    half = 0.5 * width[None, :, None] * shape[:, None, None]
    position = np.stack([lines - across * half, lines + across * half], 2)  # [S+1, P, 2, 3]
    # A ribbon is rounded: the normals of its sides turn outward.
    normal = surfaces.unit(np.stack([outward - 0.35 * across, outward + 0.35 * across], 2))
    uv = np.empty(position.shape[:3] + (4,))
    uv[..., 0] = np.array([0.0, 1.0])
    uv[..., 1] = t[:, None, None]
    uv[..., 2] = rng.random(count)[None, :, None]
    uv[..., 3] = 1.0
    order = (1, 0, 2, 3)

    def flat(a: np.ndarray) -> np.ndarray:
        return a.transpose(order).reshape(-1, a.shape[-1])

    grid = surfaces.grid_faces(steps + 1, 2, False)
    faces = (grid[None] + (np.arange(count) * (steps + 1) * 2)[:, None, None]).reshape(-1, 3)
    tangent = np.repeat(tangent[:, :, None], 2, 2)
    return flat(position), flat(normal), flat(tangent), flat(uv), faces


def _weights(position: np.ndarray, figure) -> np.ndarray:
    """Hair turns with the head above the chin and rests with the chest below the shoulders."""
    chin = figure.rest[np.argmin(np.linalg.norm(figure.canon - [0, 6.2, 1.45], axis=1)), 1]
    share = surfaces.step(chin - 0.95, chin + 0.25, position[:, 1])
    weights = np.zeros((len(position), 4))
    weights[:, 3] = share
    return weights


def build(figure: "figure_lib.Figure", below: float | None = None) -> list[surfaces.Surface]:
    """The hair of a person.

    Args:
      figure: The person without hair.
      below: Only hair that roots lower than this height of the template, under a cap.
    """
    identity = figure.identity
    name = identity.hair
    if below is not None:
        name = "bob" if identity.female > 0.5 else "crop"
    if name not in STYLES:
        return []
    style = STYLES[name]
    rng = np.random.default_rng([identity.seed, 662607])
    faces = figure.faces["skin"]
    inside = figure.extra[faces, 2].min(1)
    density = surfaces.step(-0.015, 0.05, inside)
    if below is not None:
        density = density * (figure.canon[faces, 1].mean(1) < below)
    # More at the hairline, the parting and the front, which are seen.
    top = figure.canon[faces, 1].mean(1) > 7.95
    density = density * (1 + 1.0 * (inside < 0.14)) * (1 + 0.9 * top)
    count = style.count if below is None else style.count // 2
    roots, normals, canon, _ = _sample(figure, faces, density, count, rng)
    body = _Body(figure, 0.12)
    lines, outward = _march(style, figure, body, roots, normals, canon, rng)
    width = style.width * rng.uniform(0.7, 1.25, count)
    position, normal, tangent, uv, triangles = ribbons(lines, outward, width, rng)
    uv[:, 3] = _occlusion(style, lines, body)
    parts = [(position, normal, tangent, uv, triangles)]
    if name == "bun":
        parts.append(_knot(figure, rng))
    return _split(_join(parts, figure, identity))


def _split(whole: surfaces.Surface) -> list[surfaces.Surface]:
    """The bodies of ribbons, which hide what is behind them, and their fading tips."""
    faces = whole.faces
    tip = whole.uv[faces, 1].max(1) > 0.72
    far = np.linalg.norm(whole.position, axis=1)[faces[:, 0]]
    body = faces[~tip]
    body = body[np.argsort(-far[~tip], kind="stable")]  # The outer ones first.
    parts = [dataclasses.replace(whole, faces=body)] if len(body) else []
    return [*parts, dataclasses.replace(whole, kind="tip", faces=faces[tip], casts=not len(body))]


def _occlusion(style: Style, lines, body: _Body) -> np.ndarray:
    """Roots and lower layers are darker, [P (S + 1) 2]."""
    steps, count = lines.shape[:2]
    _, _, height = body.nearest(lines.reshape(-1, 3))
    depth = np.clip(height.reshape(steps, count) / max(style.volume, 0.03), 0, 1.2)
    along = np.linspace(0, 1, steps)[:, None]
    shade = 0.42 + 0.38 * np.clip(depth, 0, 1) + 0.22 * np.minimum(along * 2.5, 1)
    return np.repeat(np.clip(shade, 0, 1).T[..., None], 2, -1).reshape(-1)


def _knot(figure, rng):
    """A bun: ribbons wound around a flattened ball."""
    count, steps = 90, 6
    middle = figure.rest[np.argmin(np.linalg.norm(figure.canon - _KNOT, axis=1))]
    middle = middle + np.array([0, 0.16, -0.06])
    axis = surfaces.unit(np.array([0, 0.55, -0.85]))
    u = np.array([1.0, 0, 0])
    w = np.cross(axis, u)
    latitude = rng.uniform(-1.0, 1.35, count)
    start = rng.uniform(0, 2 * np.pi, count)
    t = np.linspace(0, 1, steps + 1)[:, None]
    angle = start + t * rng.uniform(1.2, 2.2, count)
    tilt = latitude + 0.35 * t
    ring = np.cos(tilt)[..., None] * (np.cos(angle)[..., None] * u + np.sin(angle)[..., None] * w)
    outward = ring + np.sin(tilt)[..., None] * axis
    radius = 0.34 * rng.uniform(0.9, 1.05, count)[:, None]
    lines = middle + radius * (ring + 0.8 * np.sin(tilt)[..., None] * axis)
    position, normal, tangent, uv, faces = ribbons(lines, outward, np.full(count, 0.15), rng)
    uv[:, 3] = 0.85
    return position, normal, tangent, uv, faces


def _colour(identity, follow) -> tuple[float, ...]:
    """Linear colour of hair; a beard is darker than fair hair."""
    colour = paint.linear(identity.hair_colour)
    if follow is not None:
        colour = np.minimum(colour * 0.75, paint.linear(identity.skin) * 0.85)
    return tuple(map(float, colour))


def _join(parts, figure, identity, follow=None) -> surfaces.Surface:
    offset, faces = 0, []
    for part in parts:
        faces.append(part[4] + offset)
        offset += len(part[0])
    position, normal, tangent, uv = (np.concatenate([p[k] for p in parts]) for k in range(4))
    weights = _weights(position, figure) if follow is None else figure.weights[follow]
    return surfaces.Surface(
        kind="hair", position=position, normal=normal, tangent=tangent, uv=uv,
        weights=weights, faces=np.concatenate(faces), uniforms=dict(hair=_colour(identity, follow)),
        follow=follow,
    )  # fmt: skip


def beard(figure: "figure_lib.Figure") -> list[surfaces.Surface]:
    """Ribbons of a beard or moustache, which follow the skin of the moving face."""
    identity = figure.identity
    if identity.beard in ("none", "stubble"):
        return []
    rng = np.random.default_rng([identity.seed, 137035])
    faces = figure.faces["skin"]
    outside = figure.region[faces, 2].max(1) < 0.5
    density = figure.extra[faces, 3].mean(1) * outside
    density = np.where(density > 0.2, density**1.5, 0)
    count = {"full": 3000, "goatee": 1400, "moustache": 900}[identity.beard]
    roots, normals, canon, rows = _sample(figure, faces, density, count, rng)
    lip = canon[:, 1] > 6.66
    aside = np.sign(canon[:, 0]) * (0.55 * lip + 0.15)
    want = np.stack([aside, -1.0 + 0 * aside, 0.15 + 0 * aside], 1)
    want = want + 0.22 * rng.standard_normal(want.shape)
    flat = surfaces.unit(want - normals * np.einsum("pk,pk->p", want, normals)[:, None])
    direction = surfaces.unit(flat * 0.8 + normals * 0.28)
    length = np.where(lip & (np.abs(canon[:, 0]) < 0.3), 0.07, 0.10) * rng.uniform(0.6, 1.2, count)
    length = length * (0.6 + 0.6 * surfaces.step(6.5, 6.15, canon[:, 1]))
    steps = 1
    lines = [roots - 0.006 * normals]
    for _ in range(steps):
        lines.append(lines[-1] + (length / steps)[:, None] * direction)
        direction = surfaces.unit(direction + np.array([0, -0.25, 0]))
    outward = np.broadcast_to(normals, (steps + 1, count, 3))
    part = ribbons(np.stack(lines), outward, np.full(count, 0.019), rng)
    part[3][:, 3] = 0.55 + 0.4 * part[3][:, 1]
    whole = _join([part], figure, identity, np.repeat(rows, (steps + 1) * 2))
    return [dataclasses.replace(whole, kind="tip", casts=False)]
