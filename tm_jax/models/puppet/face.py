"""The aligned face: a square cut out of the picture in which features always lie alike.

The transformer of a small preset draws this square alone. Whatever the picture, eyes and mouth
are at the same places of it and of the same size, so nothing has to be learned twice.
"""

import jax
import jax.numpy as jnp

# The square in half heights of the face: where its centre lies below that of the face, and
# its half side. From above the brows to below the chin.
_CENTRE = 0.2
_HALF = 0.9
_EDGE = (0.95, 1.15)  # Half boxes of a face: where its picture begins, where it is whole.
_MARGIN = 0.06  # Of the square's side: the picture again.


def square(face: jax.Array) -> jax.Array:
    """The square around a face.

    Args:
      face: Box (y0, x0, y1, x1) in 0..1 of a picture as wide as high, [..., 4].

    Returns:
      Box of the square, likewise; it may reach beyond the picture.
    """
    y0, x0, y1, x1 = jnp.moveaxis(jnp.asarray(face), -1, 0)
    half = 0.5 * (y1 - y0)
    y, x = 0.5 * (y0 + y1) + _CENTRE * half, 0.5 * (x0 + x1)
    side = _HALF * half
    return jnp.stack([y - side, x - side, y + side, x + side], -1)


def within(box: jax.Array, outer: jax.Array) -> jax.Array:
    """A box [..., 4] in the coordinates of another, in which `outer` is 0..1."""
    low, high = outer[..., :2], outer[..., 2:]
    return ((box.reshape(*box.shape[:-1], 2, 2) - low[..., None, :])
            / (high - low)[..., None, :]).reshape(box.shape)


def cut(frames: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """Resamples the inside of a box.

    Args:
      frames: [B, F, H, W, C].
      box: (y0, x0, y1, x1) in 0..1, [B, 4].
      size: Side of the result.

    Returns:
      [B, F, size, size, C]; pixels beyond the picture repeat its edge.
    """
    height, width = frames.shape[2:4]
    rows = _taps(size, height, box[:, 0], box[:, 2])
    columns = _taps(size, width, box[:, 1], box[:, 3])
    return jnp.einsum("bih,bfhwc,bjw->bfijc", rows, frames, columns)


def paste(
    paint: jax.Array, hidden: jax.Array, picture: jax.Array, box: jax.Array, face: jax.Array
) -> jax.Array:
    """Paints over the picture what changes in the square, fading at the edge of the face.

    With the head at rest nothing else of the picture moves, and what stays is as sharp as it
    came. What is hidden is taken from the picture itself: its lines are sharper than those of a
    resampled square, which would leave their outlines behind.

    Args:
      paint: What is added in the square, [B, F, S, S, C].
      hidden: How much of the picture it hides, 1 being all of it, [B, F, S, S, 1].
      picture: [B, H, W, C].
      box: The square's box, [B, 4].
      face: The face's box, [B, 4].

    Returns:
      [B, F, H, W, C].
    """
    height, width = picture.shape[1:3]
    size = paint.shape[2]
    whole = within(jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0, 1.0]), box.shape), box)
    rows = _taps(height, size, whole[:, 0], whole[:, 2])
    columns = _taps(width, size, whole[:, 1], whole[:, 3])
    rows = rows * _ramp(box[:, 0], box[:, 2], height)[..., None]
    columns = columns * _ramp(box[:, 1], box[:, 3], width)[..., None]
    both = jnp.concatenate([paint, hidden], -1)
    both = jnp.einsum("bih,bfhwc,bjw->bfijc", rows, both, columns)
    picture = picture[:, None]
    weight = _ellipse(face, height, width)[:, None, :, :, None]
    return picture + weight * (both[..., :-1] - both[..., -1:] * picture)


def tokens(face: jax.Array, box: jax.Array, rows: int, columns: int) -> jax.Array:
    """How much of every token of the square is face.

    Args:
      face: The face's box, [B, 4].
      box: The square's box, [B, 4].
      rows: Rows of tokens.
      columns: Columns of tokens.

    Returns:
      [B, rows * columns] in 0..1.
    """
    mask = coverage(within(face, box), rows, columns)
    return mask.reshape(mask.shape[0], -1)


def coverage(box: jax.Array, rows: int, columns: int) -> jax.Array:
    """Share of every cell of a grid that a box covers, [..., 4] to [..., rows, columns]."""

    def along(low, high, count):
        at = jnp.arange(count) / count
        low, high = low[..., None], high[..., None]
        return jnp.clip(jnp.minimum(high, at + 1 / count) - jnp.maximum(low, at), 0) * count

    a = along(box[..., 0], box[..., 2], rows)
    b = along(box[..., 1], box[..., 3], columns)
    return a[..., :, None] * b[..., None, :]


def _taps(count, length, low, high):
    """Weights [B, count, length] that sample low..high of a line of `length` pixels.

    Linear between pixels; where pixels are skipped, averaged over a triangle as wide.
    """
    at = (jnp.arange(count) + 0.5) / count
    at = (low[:, None] + (high - low)[:, None] * at) * length - 0.5
    step = jnp.maximum((high - low) * length / count, 1)[:, None, None]
    distance = jnp.abs(jnp.clip(at, 0, length - 1)[..., None] - jnp.arange(length))
    weight = jnp.maximum(1 - distance / step, 0)
    return weight / weight.sum(-1, keepdims=True)


def _ellipse(face, height, width):
    """1 inside a face, 0 outside, [B, H, W]."""
    y = ((jnp.arange(height) + 0.5) / height)[None, :, None]
    x = ((jnp.arange(width) + 0.5) / width)[None, None]
    y0, x0, y1, x1 = (face[:, i, None, None] for i in range(4))
    u = (2 * x - x0 - x1) / jnp.maximum(x1 - x0, 1e-3)
    v = (2 * y - y0 - y1) / jnp.maximum(y1 - y0, 1e-3)
    return 1 - smooth_step(jnp.sqrt(u * u + v * v), *_EDGE)


def _ramp(low, high, count):
    """1 between two ends, 0 at them and beyond, [B, count]."""
    at = (jnp.arange(count) + 0.5) / count
    low, high = low[:, None], high[:, None]
    return smooth_step(jnp.minimum(at - low, high - at) / (high - low), 0.0, _MARGIN)


def smooth_step(x: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = jnp.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
