"""Conversion between uint8 pixels and -1..1."""

import jax
import jax.numpy as jnp


def to_float(values: jax.Array) -> jax.Array:
    """uint8 pixels [...] to float32 in -1..1."""
    return values.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(values: jax.Array) -> jax.Array:
    """Pixels in -1..1 [...] to uint8."""
    values = values.astype(jnp.float32)
    return jnp.round(jnp.clip(values * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)
