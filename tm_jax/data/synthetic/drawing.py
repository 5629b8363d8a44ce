"""Vector drawing on a planar canvas: distance fields, coverage and the four brushes.

A canvas is float32 [3, H, W] in 0..1. Coordinates are in units of the picture (0..1, x to
the right, y down), so a drawing does not depend on its resolution. A shape is a signed
distance field (negative inside); `Brush.fill` lays it over the canvas in the brush's style.
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp

STYLES: tuple[str, ...] = ("flat", "clay", "sketch", "paint")

PAPER = (0.955, 0.935, 0.89)
INK = (0.27, 0.235, 0.25)


def wave(turns: jax.Array) -> jax.Array:
    """A smooth wave of period 1 and amplitude 1: a sine made of parabolas, cheap on CPUs."""
    t = turns - jnp.floor(turns) - 0.5
    return 8.0 * t * (2.0 * jnp.abs(t) - 1.0)


def ellipse(x: jax.Array, y: jax.Array, rx: jax.Array | float, ry: jax.Array | float) -> jax.Array:
    """Distance to an axis-aligned ellipse at the origin, exact to first order at its edge."""
    a, b = x / rx, y / ry
    value = a * a + b * b
    slope = jnp.sqrt((a / rx) ** 2 + (b / ry) ** 2) + 1e-6
    return 0.5 * (value - 1.0) / slope


def circle(x: jax.Array, y: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Distance to a circle at the origin."""
    return jnp.sqrt(x * x + y * y) - radius


def box(
    x: jax.Array, y: jax.Array, rx: jax.Array | float, ry: jax.Array | float,
    corner: jax.Array | float
) -> jax.Array:
    """Distance to a rounded rectangle at the origin with half sizes `rx`, `ry`."""
    a, b = jnp.abs(x) - rx + corner, jnp.abs(y) - ry + corner
    outside = jnp.sqrt(jnp.maximum(a, 0.0) ** 2 + jnp.maximum(b, 0.0) ** 2)
    return outside + jnp.minimum(jnp.maximum(a, b), 0.0) - corner


def segment(
    x: jax.Array, y: jax.Array, ax: jax.Array | float, ay: jax.Array | float, bx: jax.Array | float,
    by: jax.Array | float
) -> jax.Array:
    """Distance to the line segment from (ax, ay) to (bx, by), never negative."""
    dx, dy = bx - ax, by - ay
    t = jnp.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-9), 0.0, 1.0)
    return jnp.sqrt((x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2)


def head_shape(
    x: jax.Array, y: jax.Array, rx: jax.Array | float, ry: jax.Array | float,
    square: jax.Array | float, jaw: jax.Array | float
) -> jax.Array:
    """Distance to a head: an ellipse mixed with a squarer curve, narrowed towards the chin."""
    low = jnp.maximum(y / ry, 0.0)
    width = rx * (1.0 - jaw * low * low)
    a, b = x / width, y / ry
    a2, b2 = a * a, b * b
    value = (1.0 - square) * (a2 + b2) + square * (a2 * a2 + b2 * b2)
    ga = 2.0 * a * (1.0 - square + 2.0 * square * a2) / width
    gb = 2.0 * b * (1.0 - square + 2.0 * square * b2) / ry
    return (value - 1.0) / (jnp.sqrt(ga * ga + gb * gb) + 1e-3)


def mix(a: jax.Array, b: jax.Array, t: jax.Array | float) -> jax.Array:
    """Linear mix from `a` (t = 0) to `b` (t = 1)."""
    return a + (b - a) * t


@dataclasses.dataclass(frozen=True)
class Brush:
    """How one style lays a shape on the canvas.

    Attributes:
      style: One of `STYLES`; static.
      px: Side of a pixel in picture units; static.
      x: Horizontal coordinate of the texture, [H, W], fixed to what is drawn.
      y: Vertical coordinate of the texture, [H, W].
    """

    style: str
    px: float
    x: jax.Array
    y: jax.Array

    def cover(self, d: jax.Array, soft: float = 1.0) -> jax.Array:
        """Coverage 0..1 of a distance field, over an edge `soft` pixels wide."""
        return jnp.clip(0.5 - d / (self.px * soft), 0.0, 1.0)

    def over(
        self, canvas: jax.Array, colour: jax.Array | Sequence[float], alpha: jax.Array
    ) -> jax.Array:
        """Lays a colour ([3] or [3, H, W]) over the canvas with opacity `alpha` [H, W]."""
        paint = jnp.asarray(colour, jnp.float32)
        paint = paint[:, None, None] if paint.ndim == 1 else paint
        return canvas + (paint - canvas) * alpha

    def wobble(self, d: jax.Array) -> jax.Array:
        """The irregularity of a drawn line; nothing outside the sketch."""
        if self.style != "sketch":
            return d
        shake = wave(self.x * 7.0 + self.y * 3.0) + wave(self.y * 9.0 - self.x * 4.0 + 0.3)
        return d + 0.0013 * shake

    def line(
        self, canvas: jax.Array, d: jax.Array, colour: jax.Array, width: jax.Array | float,
        alpha: jax.Array | float = 1.0
    ) -> jax.Array:
        """Strokes the edge of a field with a line `width` wide."""
        d = jnp.abs(self.wobble(d)) - 0.5 * width
        soft = 2.2 if self.style == "paint" else 1.0
        return self.over(canvas, colour, self.cover(d, soft) * alpha)

    def fill(
        self, canvas: jax.Array, d: jax.Array, colour: jax.Array, u: jax.Array, v: jax.Array, *,
        outline: float = 1.0, relief: float = 1.0, crisp: bool = False
    ) -> jax.Array:
        """Fills a shape.

        Args:
          canvas: [3, H, W].
          d: Distance field of the shape, [H, W].
          colour: [3] or [3, H, W].
          u: Horizontal position on the body, -1..1 from its left to its right edge.
          v: Vertical position, -1..1 from top to bottom.
          outline: Width of the sketched outline relative to the usual one.
          relief: Strength of the shading.
          crisp: Whether the painted edge stays as sharp as the other styles'.

        Returns:
          The new canvas, [3, H, W].
        """
        colour = jnp.asarray(colour, jnp.float32)
        colour = colour[:, None, None] if colour.ndim == 1 else colour
        if self.style == "flat":
            shade = 1.0 - 0.075 * relief * jnp.clip((u + 0.3 * v - 0.52) * 24.0, 0.0, 1.0)
            return self.over(canvas, colour * shade, self.cover(d))
        if self.style == "clay":
            nz = jnp.sqrt(jnp.maximum(1.06 - u * u - v * v, 0.03))
            light = jnp.maximum(0.75 * nz - 0.42 * u - 0.5 * v, 0.0)
            shade = 1.0 + relief * (0.40 * light - 0.27)
            rim = 1.0 - 0.22 * relief * jnp.clip(1.0 + d / 0.022, 0.0, 1.0) ** 2
            gloss = jnp.clip(0.88 * nz - 0.32 * u - 0.42 * v - 0.06, 0.0, 1.0) ** 2
            gloss = 0.11 * relief * gloss**4
            return self.over(canvas, colour * shade * rim + gloss, self.cover(d, 1.3))
        if self.style == "sketch":
            return self._sketch(canvas, self.wobble(d), colour, u, v, outline, relief)
        stroke = wave(self.x * 6.0 + self.y * 4.0 + 0.4 * wave(self.y * 4.0 - self.x * 2.0))
        shade = 1.0 + relief * (0.032 * stroke - 0.10 * u - 0.11 * v)
        warm = jnp.array([0.025, 0.0, -0.03])[:, None, None] * (-u - v) * relief
        alpha = self.cover(d, 1.4 if crisp else 2.6)
        return self.over(canvas, colour * shade + warm, alpha)

    def _sketch(self, canvas, d, colour, u, v, outline, relief):
        paper = jnp.asarray(PAPER)[:, None, None]
        inside = self.cover(d)
        tint = mix(colour, paper, 0.36 * min(relief, 1.0))
        canvas = self.over(canvas, tint, inside)
        if relief > 0.5:
            hatch = jnp.clip(wave((self.x + self.y * 0.8) * 58.0) * 2.0 - 0.7, 0.0, 1.0)
            dark = jnp.clip((u * 0.8 + v * 0.35 - 0.32) * 2.4, 0.0, 0.42)
            canvas = self.over(canvas, tint * 0.62, inside * hatch * dark)
        if outline:
            canvas = self.over(canvas, INK, self.cover(jnp.abs(d) - 0.0032 * outline))
        return canvas
