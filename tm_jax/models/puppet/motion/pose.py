"""Moves head and chest: the pose columns.

Frames are generated with the head where it is in the reference picture. Here the head turns
about the neck, shifts, and its features slide over its round front when it turns or nods;
the chest rises with the breath. Displacements fade out around the head, so the background
stays. The sizes are those of `data/synthetic/portrait.py`.
"""

import functools

import jax
import jax.numpy as jnp

from tm_jax.models.puppet import face as face_lib

_SHIFT = 0.03  # picture widths
_ROLL = 0.105  # radians
_PARALLAX = 0.1  # half widths of the face
_NECK = 1.2  # half heights of the face, below its centre
_BREATH = 0.012  # picture heights
_BOX = 1.03  # half widths of a face in its box
_TAPS = (-1, 0, 1, 2)


def warp(frames: jax.Array, pose: jax.Array, box: jax.Array) -> jax.Array:
    """Frames in a pose.

    Args:
      frames: [B, F, H, W, C], the head at rest.
      pose: yaw, pitch, roll, head_x, head_y, breath of every frame, [B, F, 6].
      box: Face at rest (y0, x0, y1, x1) in 0..1, [B, 4].

    Returns:
      [B, F, H, W, C]. With a pose of zeros the frames themselves.
    """
    height, width = frames.shape[2:4]

    def one(frame, pose, box):
        y, x = _source(pose, box, height, width)
        return _cubic(frame, y, x)

    return jax.vmap(jax.vmap(one, (0, 0, None)))(frames, pose, box)


def _source(pose, box, height, width):
    """Where each pixel of a frame comes from, in pixels: rows and columns, [H, W]."""
    yaw, pitch, roll, shift_x, shift_y, breath = (pose[i] for i in range(6))
    y = ((jnp.arange(height) + 0.5) / height)[:, None]
    x = ((jnp.arange(width) + 0.5) / width)[None]
    centre_y, centre_x = 0.5 * (box[0] + box[2]), 0.5 * (box[1] + box[3])
    half_y, half_x = 0.5 * (box[2] - box[0]) / _BOX, 0.5 * (box[3] - box[1]) / _BOX
    u, v = (x - centre_x) / half_x, (y - centre_y) / half_y
    radius = jnp.sqrt(u * u + v * v)

    neck_y = centre_y + _NECK * half_y
    dx, dy = x - centre_x - _SHIFT * shift_x, y - neck_y - _SHIFT * shift_y
    cos, sin = jnp.cos(_ROLL * roll), jnp.sin(_ROLL * roll)
    # Nearest parts, the features, slide furthest; ears and hair behind slide back.
    slide = _PARALLAX * (1.0 - 1.4 * face_lib.smooth_step(radius, 0.55, 1.1))
    from_x = cos * dx + sin * dy + centre_x - slide * yaw * half_x
    from_y = cos * dy - sin * dx + neck_y - slide * pitch * half_y
    head = (1 - face_lib.smooth_step(radius, 1.3, 2.2)) * (1 - face_lib.smooth_step(v, 1.0, 1.8))
    chest = face_lib.smooth_step(v, 1.1, 1.7)
    rows = y + head * (from_y - y) + chest * _BREATH * breath
    columns = x + head * (from_x - x)
    return rows * height - 0.5, jnp.broadcast_to(columns, rows.shape) * width - 0.5


def _cubic(frame, y, x):
    """Catmull-Rom interpolation: bilinear sampling takes a quarter of the fine detail."""
    height, width, channels = frame.shape
    y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
    row, column = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    columns = [jnp.clip(column + i, 0, width - 1) for i in _TAPS]
    across, down = _catmull_rom(x - column), _catmull_rom(y - row)
    flat = frame.reshape(-1, channels)

    def line(i):
        start = jnp.clip(row + i, 0, height - 1) * width
        parts = (flat[start + at] * w[..., None] for at, w in zip(columns, across))
        return functools.reduce(jnp.add, parts)

    lines = (line(i) * weight[..., None] for i, weight in zip(_TAPS, down))
    return functools.reduce(jnp.add, lines)


def _catmull_rom(t):
    """Weights of four neighbours for a place t in 0..1 between the middle two."""
    return (
        t * (-0.5 + t * (1.0 - 0.5 * t)), 1.0 + t * t * (1.5 * t - 2.5),
        t * (0.5 + t * (2.0 - 1.5 * t)), t * t * (0.5 * t - 0.5),
    )
