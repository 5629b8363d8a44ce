"""Draws the features of a face: eyes, brows, nose and glasses, and the mouth.

Coordinates are those of the head (origin at the face's centre, picture units), already
shifted by yaw and pitch. The mouth's geometry is the label of the data set: its interior is
exactly as high as `mouth_height(...)`.
"""

import types
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from tm_jax.data.synthetic import drawing

INTERIOR = (0.15, 0.035, 0.055)
TEETH = (0.965, 0.955, 0.93)
TONGUE = (0.80, 0.33, 0.36)


def mouth_height(c: Any, opening: jax.Array | float) -> jax.Array:
    """Greatest height of the mouth's interior in picture units."""
    return opening * c.mouth[2] * 2.0 * c.face[1]


def mouth_half_width(
    c: Any, width: jax.Array | float, rounding: jax.Array | float
) -> jax.Array:
    """Half the width between the mouth's corners in picture units."""
    return c.mouth[1] * (1.0 + 0.26 * width) * (1.0 - 0.44 * rounding)


def upper(
    brush: drawing.Brush, canvas: jax.Array, c: Any, m: types.SimpleNamespace, u: jax.Array,
    v: jax.Array
) -> jax.Array:
    """Nose, eyes, brows and glasses on a window of the canvas, [3, H, W]."""
    fw, fh = c.face[0], c.face[1]
    canvas = _nose(brush, canvas, c, m, u, v, fw, fh)
    for side, blink in ((-1.0, m.blink_left), (1.0, m.blink_right)):
        canvas = _eye(brush, canvas, c, m, u, v, side, blink)
        canvas = _brow(brush, canvas, c, m, u, v, side)

    def glasses(canvas):
        spread, top = c.eyes[0] * fw, c.eyes[1] * fh
        r = c.glasses[0] * fw
        lens = drawing.box(jnp.abs(u) - spread, v - top - 0.006, r, r * c.glasses[1], r * 0.95)
        bridge = drawing.segment(jnp.abs(u), v - top, 0.0, 0.0, spread - r, 0.0) - 0.0035
        reach = fw * (0.97 - 0.1 * m.yaw * jnp.sign(u))
        arm = drawing.segment(jnp.abs(u), v - top, spread + r, -0.004, reach, -0.012) - 0.0035
        rim = jnp.minimum(jnp.minimum(bridge, arm), jnp.abs(lens) - 0.0042)
        canvas = brush.over(canvas, (1.0, 1.0, 1.0), brush.cover(lens) * 0.13)
        return brush.over(canvas, c.frames, brush.cover(rim, 1.2))

    return lax.cond(c.glasses[2] > 0.5, glasses, lambda canvas: canvas, canvas)


def _eye(brush, canvas, c, m, u, v, side, blink):
    fw, fh = c.face[0], c.face[1]
    rx, ry = c.eyes[2] * fw, c.eyes[3] * fh
    x, y = u - side * c.eyes[0] * fw, v - c.eyes[1] * fh
    white = drawing.ellipse(x, y, rx, ry)
    open_ = 1.0 - blink
    arc = jnp.sqrt(jnp.maximum(1.0 - (x / rx) ** 2, 0.0))
    upper_lid = -0.86 * ry * arc * open_ + 0.30 * ry * arc * blink  # height of the upper lid
    lower_lid = ry * arc - 0.55 * ry * arc * blink
    inside = jnp.maximum(jnp.maximum(upper_lid - y, y - lower_lid) * 0.85, white)
    gap = jnp.clip((ry * 2.0 * open_ - 0.002) / 0.006, 0.0, 1.0)
    shown = brush.cover(inside) * gap
    lid = c.skin * 0.92
    if brush.style == "sketch":
        lid = drawing.mix(c.skin, jnp.asarray(drawing.PAPER), 0.36) * 0.94
    canvas = brush.over(canvas, lid, brush.cover(white - 0.003, 1.5))
    canvas = brush.over(canvas, (0.985, 0.98, 0.97), shown)
    iris_x = x - 0.34 * rx * m.gaze_x
    iris_y = y - 0.30 * ry * m.gaze_y
    r = c.eyes[4] * rx
    iris = drawing.circle(iris_x, iris_y, r)
    canvas = brush.over(canvas, c.iris * 0.55, brush.cover(iris) * shown)
    canvas = brush.over(canvas, c.iris, brush.cover(iris + 0.18 * r) * shown)
    pupil = drawing.circle(iris_x, iris_y, 0.52 * r)
    canvas = brush.over(canvas, (0.07, 0.06, 0.08), brush.cover(pupil) * shown)
    spark = drawing.circle(iris_x + 0.32 * r, iris_y + 0.36 * r, 0.27 * r)
    canvas = brush.over(canvas, (1.0, 1.0, 1.0), brush.cover(spark) * shown)
    edge = jnp.clip(1.0 - jnp.maximum(jnp.abs(x) - rx, 0.0) * 250.0, 0.0, 1.0)
    lash = jnp.abs(y - upper_lid) * (0.55 + 0.45 * arc) - c.eyes[5]
    lash = jnp.maximum(lash, jnp.abs(x) - rx * 1.04)
    canvas = brush.over(canvas, c.lash, brush.cover(lash, 1.2) * edge)
    near, far = ((0.15 * blink - k * open_) * ry for k in (0.30, 0.62))
    flick = drawing.segment(side * x, y, rx * 0.90, near, rx * 1.20, far)
    return brush.over(canvas, c.lash, brush.cover(flick - 0.0026) * c.blush[1])


def _brow(brush, canvas, c, m, u, v, side):
    fw, fh = c.face[0], c.face[1]
    x = side * u - c.eyes[0] * fw
    half = c.brow[3] * fw
    lift = 0.065 * fh * m.brow
    y = v - (c.eyes[1] - c.brow[0]) * fh + lift
    t = jnp.clip(x / half, -1.0, 1.0)
    arch = -0.030 * fh + 0.055 * fh * t * t + c.brow[2] * fh * t
    thick = c.brow[1] * (1.0 - 0.42 * jnp.maximum(t, 0.0))
    d = jnp.sqrt((y - arch) ** 2 + (x - t * half) ** 2) - thick
    return brush.over(canvas, c.brows, brush.cover(brush.wobble(d), 1.3))


def _nose(brush, canvas, c, m, u, v, fw, fh):
    """One of four noses; it stands out, so it moves a little more than the rest."""
    x, y = u - 0.03 * fw * m.yaw, v - 0.03 * fh * m.pitch - c.nose[2] * fh
    w = c.nose[1] * fw
    dark = c.skin * jnp.array([0.74, 0.64, 0.62])

    def button(canvas):
        d = drawing.ellipse(x, y, w, 0.8 * w)
        colour = c.skin * jnp.array([0.97, 0.86, 0.83])
        canvas = brush.fill(canvas, d, colour, x / w * 0.9, y / w, outline=0.8, relief=0.9)
        spot = drawing.ellipse(x + 0.3 * w, y + 0.25 * w, 0.3 * w, 0.2 * w)
        return brush.over(canvas, c.skin * 1.18, brush.cover(spot, 2.0) * 0.5)

    def curve(canvas):
        d = jnp.abs(drawing.circle(x, y + 0.35 * w, 0.85 * w))
        d = jnp.maximum(d, -y - 0.05 * w) - 0.0034
        return brush.over(canvas, dark, brush.cover(brush.wobble(d), 1.3))

    def bridge(canvas):
        d = drawing.segment(x, y, -0.12 * w, -1.9 * w, 0.75 * w, -0.1 * w)
        d = jnp.minimum(d, drawing.segment(x, y, 0.75 * w, -0.1 * w, -0.3 * w, 0.18 * w))
        return brush.over(canvas, dark, brush.cover(brush.wobble(d - 0.0030), 1.3))

    def soft(canvas):
        ridge = drawing.ellipse(x + 0.1 * w, y + 1.0 * w, 0.55 * w, 1.9 * w)
        canvas = brush.over(canvas, c.skin * 1.09, brush.cover(ridge, 4.0) * 0.55)
        d = drawing.ellipse(jnp.abs(x) - 0.55 * w, y - 0.1 * w, 0.34 * w, 0.22 * w)
        base = drawing.ellipse(x, y - 0.12 * w, w, 0.55 * w)
        below = c.skin * jnp.array([0.92, 0.84, 0.82])
        canvas = brush.over(canvas, below, brush.cover(base, 4.0) * 0.7)
        return brush.over(canvas, dark * 0.85, brush.cover(d, 1.4))

    return lax.switch(c.nose[0].astype(jnp.int32), (button, curve, bridge, soft), canvas)


def lower(
    brush: drawing.Brush, canvas: jax.Array, c: Any, m: types.SimpleNamespace, u: jax.Array,
    v: jax.Array
) -> jax.Array:
    """Moustache and mouth on a window of the canvas, [3, H, W]."""
    fw, fh = c.face[0], c.face[1]
    x, y = u, v - c.mouth[0] * fh
    height = mouth_height(c, m.mouth_open)
    half = mouth_half_width(c, m.mouth_width, m.mouth_round)
    half = half * (1.0 - 0.10 * m.mouth_open)
    t2 = jnp.minimum((x / half) ** 2, 1.0)
    bow = 1.0 - t2
    circle = jnp.sqrt(bow)
    profile = bow + (circle - bow) * (0.35 + 0.6 * m.mouth_round)
    corner = -(0.045 * m.smile + 0.012) * fh * 2.0 * (t2 - 0.35)
    top = corner - 0.30 * height * profile
    bottom = corner + 0.70 * height * profile
    wide = half + 0.010 + 0.002 * m.mouth_round
    s2 = jnp.minimum((x / wide) ** 2, 1.0)
    lip = (1.0 - s2) * (0.55 + 0.45 * jnp.sqrt(1.0 - s2)) + 0.10
    pout = 1.0 + 0.45 * m.mouth_round
    dip = 1.0 - 0.28 * jnp.clip(1.0 - (x / (0.22 * half)) ** 2, 0.0, 1.0)
    upper_edge = top - c.mouth[3] * lip * dip * pout
    lower_edge = bottom + c.mouth[4] * lip * pout
    ends = jnp.abs(x) - wide

    def moustache(canvas):
        a = jnp.abs(x) / (0.46 * fw)
        base = -c.mouth[3] - 0.032 * fh + 0.10 * fh * a * a
        thick = 0.060 * fh * jnp.clip(1.06 - a, 0.0, 1.0) + 0.004
        d = jnp.abs(y + 0.30 * height - base + 0.3 * thick) - thick
        d = jnp.maximum(d, jnp.abs(x) - 0.46 * fw)
        return brush.fill(canvas, d, c.beard_colour, x / fw, y / fh, relief=0.5)

    canvas = lax.cond(c.kinds[7] > 0.5, moustache, lambda canvas: canvas, canvas)
    shape = jnp.maximum(jnp.maximum(upper_edge - y, y - lower_edge) * 0.9, ends)
    su, sv = x / wide, jnp.clip(y / 0.03, -1.0, 1.0) * 0.5
    canvas = brush.fill(canvas, shape, c.lips, su * 0.6, sv, outline=0.55, relief=0.5, crisp=True)
    shine = y - bottom - 0.45 * c.mouth[4]
    light = drawing.ellipse(x + 0.12 * half, shine, 0.42 * half, 0.22 * c.mouth[4])
    gleam = {"flat": 0.18, "clay": 0.40, "sketch": 0.0, "paint": 0.22}[brush.style]
    canvas = brush.over(canvas, (1.0, 0.95, 0.93), brush.cover(light, 2.5) * gleam)
    closed = jnp.clip(1.0 - m.mouth_open * 6.0, 0.0, 1.0)
    seam = jnp.abs(y - 0.5 * (top + bottom)) - 0.0036
    seam = jnp.maximum(seam, jnp.abs(x) - half * 1.02)
    canvas = brush.over(canvas, c.lips * 0.47, brush.cover(seam) * closed)
    return _interior(brush, canvas, c, m, x, y, top, bottom, half, height)


def _interior(brush, canvas, c, m, x, y, top, bottom, half, height):
    """The inside of the mouth, with exact vertical coverage: none at height 0."""
    h = 0.5 * brush.px
    span = jnp.minimum(y + h, bottom) - jnp.maximum(y - h, top)
    sides = brush.cover(jnp.abs(x) - half)
    inside = jnp.clip(span / brush.px, 0.0, 1.0) * sides
    canvas = brush.over(canvas, INTERIOR, inside)
    rise = (0.22 + 0.42 * m.tongue) * height
    tongue = drawing.ellipse(x, y - 0.80 * height, 0.62 * half, rise + 1e-3)
    tongue = jnp.maximum(tongue, y - bottom + 0.0055)
    strength = jnp.clip(height * 60.0 - 0.5, 0.0, 1.0) * (0.35 + 0.65 * m.tongue)
    canvas = brush.over(canvas, TONGUE, brush.cover(tongue, 1.5) * inside * strength)
    band = m.teeth * (0.010 + 0.24 * height)
    band = jnp.minimum(band, 0.62 * height + 0.004)
    teeth = jnp.maximum(y - top - band, jnp.abs(x) - 0.80 * half)
    shown = jnp.clip(m.teeth * 4.0, 0.0, 1.0)
    return brush.over(canvas, TEETH, brush.cover(teeth) * inside * shown)
