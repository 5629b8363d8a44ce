"""Draws one frame of one character: the pose, and the layers from background to front hair.

Everything is a pure function of the character's leaves (see `characters.Character`), here
without batch axis, and of one motion vector. Layers that cover little are drawn in patches.
"""

import functools
import types
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from tm_jax.data import features
from tm_jax.data.synthetic import drawing

Brush = drawing.Brush


def grid(
    size: int, rows: int, cols: int, top: jax.Array | int = 0, left: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """Pixel centres of a window in picture units: x and y, each [rows, cols]."""
    x = (jnp.arange(cols, dtype=jnp.float32) + left + 0.5) / size
    y = (jnp.arange(rows, dtype=jnp.float32) + top + 0.5) / size
    return jnp.broadcast_to(x, (rows, cols)), jnp.broadcast_to(y[:, None], (rows, cols))


def pose(c: Any, m: types.SimpleNamespace) -> types.SimpleNamespace:
    """The head's placement in one frame.

    Returns:
      A namespace with `local(x, y)` from the picture to head coordinates (origin at the face's
      centre), its inverse `picture(u, v)`, and the shift (yaw, pitch) of features in them.
    """
    turn = m.roll * jnp.float32(0.105)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    arm = 1.2 * c.face[1]
    px, py = c.centre[0] + 0.03 * m.head_x, c.centre[1] + 0.03 * m.head_y + arm

    def local(x, y):
        x, y = x - px, y - py
        return cos * x + sin * y, cos * y - sin * x + arm

    def picture(u, v):
        v = v - arm
        return cos * u - sin * v + px, cos * v + sin * u + py

    return types.SimpleNamespace(
        local=local,
        picture=picture,
        yaw=0.1 * c.face[0] * m.yaw,
        pitch=0.1 * c.face[1] * m.pitch,
    )


def background(c: Any, size: int) -> jax.Array:
    """The backdrop of a clip, [3, size, size]."""
    x, y = grid(size, size, size)
    kind = c.kinds[3].astype(jnp.int32)

    def flat():
        return jnp.zeros_like(x)

    def gradient():
        return jnp.clip(y * c.backdrop[0] + x * (1.0 - c.backdrop[0]), 0.0, 1.0)

    def disc():
        d = drawing.circle(x - 0.5, y - c.backdrop[1], 0.40)
        return jnp.clip(0.5 - d * size, 0.0, 1.0)

    def hills():
        line = 0.62 + 0.06 * drawing.wave(x * 0.9 + c.backdrop[2])
        return jnp.clip(0.5 - (line - y) * size, 0.0, 1.0)

    def dots():
        a = (x * 7.0 + 0.5 * jnp.floor(y * 7.0)) % 1.0 - 0.5
        b = (y * 7.0) % 1.0 - 0.5
        return 0.55 * jnp.clip(0.5 - (jnp.sqrt(a * a + b * b) - 0.2) * size / 7.0, 0.0, 1.0)

    def rays():
        d = drawing.wave((x + y * (c.backdrop[0] - 0.3)) * 3.0 + c.backdrop[2])
        return 0.6 * jnp.clip(0.5 + d * size / 13.0, 0.0, 1.0)

    t = lax.switch(kind, (flat, gradient, disc, hills, dots, rays))

    def finish(style):
        a, b = c.back_a[:, None, None], c.back_b[:, None, None]
        canvas = a + (b - a) * t
        glow = jnp.clip(1.0 - ((x - 0.5) ** 2 + (y - 0.4) ** 2) * 1.6, 0.0, 1.0)
        if style == "clay":
            return canvas * (0.86 + 0.17 * glow)
        if style == "sketch":
            grain = 0.006 * drawing.wave(x * 61 + drawing.wave(y * 43)) * drawing.wave(y * 57)
            paper = jnp.asarray(drawing.PAPER)[:, None, None] + grain
            lines = jnp.clip(drawing.wave((x - y * 0.6) * 30.0) - 0.2, 0.0, 1.0) * 0.10
            return drawing.mix(paper, canvas, 0.30) * (1.0 - lines * t)
        if style == "paint":
            bend = 0.35 * drawing.wave(y * 2.1 - x * 1.3 + c.backdrop[2])
            brush = drawing.wave(x * 2.2 + y * 3.1 + bend)
            brush = brush + 0.5 * drawing.wave(x * 5.3 - y * 3.7 + 2.0 * bend)
            return canvas * (0.89 + 0.14 * glow + 0.026 * brush)
        return canvas

    branches = [functools.partial(finish, style) for style in drawing.STYLES]
    return jnp.clip(lax.switch(c.kinds[0].astype(jnp.int32), branches), 0.0, 1.0)


def _hair(c, at, u, v):
    """Distance fields of the hair behind the head, the hair in front and the hat, [3, H, W]."""
    fw, fh = c.face[0], c.face[1]
    volume, fringe, part = c.hair_shape[0], c.hair_shape[1], c.hair_shape[2]
    none = jnp.full_like(u, 1.0)
    shape = functools.partial(drawing.head_shape, square=c.face[2], jaw=0.0)
    uf, vf = u - 0.35 * at.yaw, v - 0.35 * at.pitch
    ub, vb = u + 0.5 * at.yaw, v + 0.5 * at.pitch
    cap = shape(uf, v + 0.4 * volume, fw + volume, fh + volume)
    side = jnp.maximum(jnp.abs(uf) / fw - 0.45, 0.0)
    straight = (vf / fh + fringe - 1.9 * side * side) * fh * 0.8
    swept = (vf / fh + fringe + 0.10 - 0.42 * (uf / fw - part) ** 2 - 0.8 * side**3) * fh * 0.8
    short = jnp.maximum(jnp.maximum(cap, straight), v - 0.12 * fh)
    swept = jnp.maximum(jnp.maximum(cap, swept), v - 0.12 * fh)
    opening = drawing.ellipse(uf, vf - 0.42 * fh, 0.86 * fw, 1.02 * fh)

    def bald():
        return none, none, none

    def cropped():
        return none, short, none

    def bob():
        back = drawing.box(ub, vb + 0.14 * fh, fw + 1.6 * volume, 0.96 * fh, 0.8 * fw)
        front = jnp.maximum(jnp.maximum(cap, -opening), v - 0.52 * fh)
        return back, jnp.minimum(front, jnp.maximum(straight + 0.03, cap)), none

    def long():
        flare = 0.10 * jnp.maximum(vb, 0.0)
        back = drawing.box(
            jnp.abs(ub) - flare, vb - 0.40 * fh, fw + 1.5 * volume, 1.48 * fh, 0.9 * fw
        )
        front = jnp.maximum(jnp.maximum(cap, -opening), v - 0.42 * fh)
        return back, jnp.minimum(front, jnp.where(v < 0.0, swept, 1.0)), none

    def bun():
        back = drawing.circle(ub, vb + 1.24 * fh, 0.36 * fw)
        return back, swept, none

    def curly():
        places = [(0.0, -1.0), (-0.5, -0.9), (0.5, -0.9), (-0.88, -0.55), (0.88, -0.55)]
        places += [(-1.04, -0.1), (1.04, -0.1), (-0.98, 0.3), (0.98, 0.3)]
        square = none * 9.0
        for a, b in places:
            square = jnp.minimum(square, (ub - a * fw) ** 2 + (vb - b * fh) ** 2)
        back = jnp.sqrt(square) - 0.36 * fw - 0.6 * volume
        square = none * 9.0
        for a, b in [(-0.66, -0.62), (-0.33, -0.78), (0.0, -0.82), (0.33, -0.78), (0.66, -0.62)]:
            square = jnp.minimum(square, (uf - a * fw) ** 2 + (vf - b * fh) ** 2)
        return back, jnp.sqrt(square) - 0.315 * fw, none

    def peaked():
        dome = shape(u, v + 0.4 * volume, fw + volume + 0.006, fh + volume + 0.012)
        dome = jnp.maximum(dome, vf + 0.46 * fh)
        brim = drawing.ellipse(uf - 0.35 * at.yaw, vf + 0.46 * fh, 0.92 * fw, 0.115 * fh)
        return none, jnp.maximum(cap + 0.3 * volume, short - 0.02), jnp.minimum(dome, brim)

    def beanie():
        dome = shape(u, v + 0.4 * volume, fw + volume + 0.002, fh + volume + 0.030)
        dome = jnp.maximum(dome, vf + 0.52 * fh)
        band = drawing.box(uf, vf + 0.52 * fh, fw * 0.98, 0.135 * fh, 0.05 * fh)
        return none, jnp.maximum(cap + 0.3 * volume, short - 0.02), jnp.minimum(dome, band)

    def quiff():
        tuft = drawing.ellipse(uf - 0.18 * fw, vf + 0.98 * fh, 0.62 * fw, 0.25 * fh)
        tuft = jnp.minimum(
            tuft, drawing.ellipse(uf + 0.35 * fw, vf + 0.93 * fh, 0.48 * fw, 0.18 * fh)
        )
        return none, jnp.minimum(swept, tuft), none

    branches = (bald, cropped, bob, long, bun, curly, peaked, beanie, quiff)
    return lax.switch(c.kinds[1].astype(jnp.int32), branches)


def _torso(brush, canvas, c, m, at, x, y):
    """Shoulders, neck and collar on the rows of `canvas`."""
    rise = -0.012 * m.breath
    neck_u = x - c.centre[0] - 0.015 * m.head_x
    sx, sy = x - c.centre[0] - 0.004 * m.head_x, y - rise
    wide = c.body[0]
    top = c.body[1]
    d = drawing.head_shape(sx, sy - top - 0.36, wide, 0.36, 0.45, 0.0)
    u, v = sx / wide, jnp.clip((sy - top) * 2.4 - 0.75, -1.0, 1.0)
    kind = c.kinds[4].astype(jnp.int32)

    def stripes():
        return jnp.clip(0.5 + drawing.wave(sy * 14.0) / (28.0 * 2.0 * brush.px), 0.0, 1.0)

    def dots():
        a = (sx * 15.0 + 0.5 * jnp.floor(sy * 15.0)) % 1.0 - 0.5
        b = (sy * 15.0) % 1.0 - 0.5
        d = (jnp.sqrt(a * a + b * b) - 0.2) / 15.0
        return jnp.clip(0.5 - d / brush.px, 0.0, 1.0)

    def plain():
        return jnp.zeros_like(sx)

    pattern = lax.switch(c.kinds[5].astype(jnp.int32), (plain, plain, stripes, dots))
    cloth, trim = c.cloth[:, None, None], c.trim[:, None, None]
    canvas = brush.fill(canvas, d, cloth + (trim - cloth) * pattern, u, v)
    half = 0.40 * c.face[0]
    skin = c.skin * 0.90
    nu, nv = neck_u / (half * 1.6), jnp.clip((y - top) * 4.0, -1.0, 1.0)
    stem = drawing.box(neck_u, y - top + 0.06, half, 0.13, 0.03)
    hole = drawing.ellipse(sx, sy - top - 0.005, half * 1.18, 0.050)
    deep = jnp.maximum(jnp.abs(sx) * 0.86 + (sy - top - 0.11) * 0.5, top - 0.03 - sy)

    def round_neck(canvas):
        canvas = brush.fill(canvas, hole - 0.014, trim, u, v)
        return brush.fill(canvas, jnp.minimum(jnp.maximum(stem, sy - top), hole), skin, nu, nv)

    def deep_neck(canvas):
        canvas = brush.fill(canvas, deep - 0.014, trim, u, v)
        return brush.fill(canvas, jnp.minimum(jnp.maximum(stem, sy - top), deep), skin, nu, nv)

    def shirt(canvas):
        canvas = brush.fill(canvas, jnp.minimum(jnp.maximum(stem, sy - top), deep), skin, nu, nv)
        a = jnp.abs(sx)
        flap = drawing.segment(a, sy - top, half * 1.12, -0.012, 0.035, 0.075) - 0.024
        canvas = brush.fill(canvas, jnp.maximum(flap, -sx - 0.5), trim, u, v)
        button = drawing.circle(sx, (sy - top - 0.135), 0.008)
        return brush.fill(canvas, button, trim * 0.8, u, v, outline=0.6)

    def roll_neck(canvas):
        canvas = brush.fill(canvas, stem, skin, nu, nv)
        collar = drawing.box(sx, sy - top - 0.005, half * 1.22, 0.045, 0.022)
        return brush.fill(canvas, collar, c.cloth * 0.93, sx / (half * 1.5), v)

    canvas = lax.switch(kind, (round_neck, deep_neck, shirt, roll_neck), canvas)
    return canvas


def _shadow(brush, canvas, c, at, x, y):
    """The head's soft shadow on neck and clothes."""
    u, v = at.local(x, y)
    d = drawing.ellipse(u, v - 0.22 * c.face[1], 0.62 * c.face[0], 0.92 * c.face[1])
    reach = 3.0 if brush.style in ("flat", "sketch") else 14.0
    return canvas * (1.0 - 0.17 * brush.cover(d, reach))


def _head(brush, canvas, c, m, at, u, v, front, hat):
    """Ears, head, beard, front hair and hat."""
    fw, fh = c.face[0], c.face[1]
    a, b = u / (fw * 1.04), v / (fh * 1.04)
    eu = jnp.abs(u + 0.45 * at.yaw) - fw * 0.99
    ear = drawing.ellipse(eu, v - c.ear[1] * fh + 0.4 * at.pitch, c.ear[0] * 0.72, c.ear[0] * 1.12)
    canvas = brush.fill(canvas, ear, c.skin * 0.965, a, b)
    canvas = brush.over(canvas, c.skin * 0.80, brush.cover(ear + 0.013, 2.5) * 0.7)
    d = drawing.head_shape(u, v, fw, fh, c.face[2], c.face[3])
    canvas = brush.fill(canvas, d, c.skin, a, b)
    fu, fv = u - at.yaw, v - at.pitch

    def beard(canvas):
        edge = drawing.head_shape(u, v - 0.012, fw + 0.004, fh + 0.004, c.face[2], c.face[3])
        curve = (0.30 + 0.10 * jnp.abs(fu) / fw) * fh - fv
        bare = drawing.ellipse(fu, fv - (c.mouth[0] - 0.02) * fh, 0.50 * fw, 0.235 * fh)
        side = jnp.maximum(edge, curve)
        field = jnp.maximum(side, -bare)
        return brush.fill(canvas, field, c.beard_colour, a, b, relief=0.7)

    canvas = lax.cond(c.kinds[6] > 0.5, beard, lambda canvas: canvas, canvas)
    cheek = jnp.abs(fu) - 0.60 * fw
    glow = 1.0 - ((cheek / (0.26 * fw)) ** 2 + ((fv - 0.30 * fh) / (0.17 * fh)) ** 2)
    glow = jnp.clip(glow * (3.0 if brush.style == "flat" else 1.0), 0.0, 1.0)
    blush = c.skin * jnp.array([1.03, 0.72, 0.70])
    canvas = brush.over(canvas, blush, glow * c.blush[0] * (1.0 - 0.9 * c.kinds[6]))

    def hair(canvas):
        sheen = c.hair[:, None, None] * (1.0 + 0.06 * drawing.wave(fu * 14.0 + fv * 3.0))[None]
        colour = c.hair if brush.style == "flat" else sheen
        return brush.fill(canvas, front, colour, a, b)

    canvas = lax.cond(c.kinds[1] > 0.5, hair, lambda canvas: canvas, canvas)

    def wear(canvas):
        canvas = brush.fill(canvas, hat, c.hat, a, b)
        band = -(fv + jnp.where(c.kinds[1] == 6.0, 0.535, 0.645) * fh)
        return brush.over(canvas, c.hat * 0.66, brush.cover(jnp.maximum(hat + 0.002, band)) * 0.55)

    worn = (c.kinds[1] == 6.0) | (c.kinds[1] == 7.0)
    return lax.cond(worn, wear, lambda canvas: canvas, canvas)


def _patch(draw, canvas, c, at, size, centre, height, width):
    """Runs `draw(brush, patch, u, v)` on a window around a point of the head."""
    rows, cols = min(size, round(height * size)), min(size, round(width * size))
    x, y = at.picture(*centre)
    top = jnp.clip(jnp.floor(y * size - rows / 2).astype(jnp.int32), 0, size - rows)
    left = jnp.clip(jnp.floor(x * size - cols / 2).astype(jnp.int32), 0, size - cols)
    u, v = at.local(*grid(size, rows, cols, top, left))
    window = lax.dynamic_slice(canvas, (0, top, left), (3, rows, cols))
    return lax.dynamic_update_slice(canvas, draw(window, u, v), (0, top, left))


def _layers(style, c, m, canvas, hair, size):
    """Everything in front of the background, in one style."""
    at = pose(c, m)
    px = 1.0 / size
    x, y = grid(size, size, size)
    u, v = at.local(x, y)
    brush = Brush(style, px, u, v)
    back, front, hat = hair
    a, b = u / (c.face[0] * 1.25), v / (c.face[1] * 1.3)
    behind = (c.kinds[1] >= 2.0) & (c.kinds[1] <= 5.0)
    canvas = lax.cond(
        behind, lambda k: brush.fill(k, back, c.hair * 0.86, a, b), lambda k: k, canvas
    )
    first = int(0.58 * size)
    tx, ty = grid(size, size - first, size, first)
    low = Brush(style, px, tx - c.centre[0], ty)
    torso = _torso(low, canvas[:, first:], c, m, at, tx, ty)
    torso = _shadow(low, torso, c, at, tx, ty)
    canvas = lax.dynamic_update_slice(canvas, torso, (0, first, 0))
    canvas = _head(brush, canvas, c, m, at, u, v, front, hat)

    def upper(window, u, v):
        return features.upper(Brush(style, px, u, v), window, c, m, u - at.yaw, v - at.pitch)

    def lower(window, u, v):
        return features.lower(Brush(style, px, u, v), window, c, m, u - at.yaw, v - at.pitch)

    fh = c.face[1]
    canvas = _patch(upper, canvas, c, at, size, (at.yaw, c.eyes[1] * fh + at.pitch), 0.30, 0.56)
    mouth = (at.yaw, (c.mouth[0] + 0.06) * fh + at.pitch)
    return _patch(lower, canvas, c, at, size, mouth, 0.26, 0.34)


def frame(c: Any, m: types.SimpleNamespace, canvas: jax.Array, size: int) -> jax.Array:
    """One frame.

    Args:
      c: A character without batch axis.
      m: Namespace of the motion columns, scalars.
      canvas: The character's background, [3, size, size].
      size: Side of the picture in pixels; static.

    Returns:
      The picture, uint8 [size, size, 3].
    """
    branches = [
        lambda canvas, hair, style=style: _layers(style, c, m, canvas, hair, size)
        for style in drawing.STYLES
    ]
    at = pose(c, m)
    hair = _hair(c, at, *at.local(*grid(size, size, size)))
    canvas = lax.switch(c.kinds[0].astype(jnp.int32), branches, canvas, hair)
    levels = jnp.clip(canvas * 255.0 + 0.5, 0.0, 255.0).astype(jnp.uint8)
    return jnp.transpose(levels, (1, 2, 0))  # [size, size, 3]
