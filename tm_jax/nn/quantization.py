"""Matrices in eight bits: how they are stored and multiplied.

`int8` stores weights alone in eight bits, with a scale for every output channel; products are in
the dtype of the input. `float8` (e4m3) stores weights likewise and rounds the input of a product
too, with a scale for every token, so that devices with products of eight bits can use them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import trees

FULL, INT8, FLOAT8 = "full", "int8", "float8"
KINDS = (FULL, INT8, FLOAT8)
SCALE = "kernel_scale"  # Beside the name of a kernel.
_KERNEL = "kernel"
_DTYPES = {INT8: jnp.int8, FLOAT8: jnp.float8_e4m3fn}
_LARGEST = {INT8: 127.0, FLOAT8: float(jnp.finfo(jnp.float8_e4m3fn).max)}


def quantise(kernel: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    """A matrix [in, out] in eight bits, and its scale for every output channel, float32 [out]."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(kernel).max(0), 1e-12) / _LARGEST[kind]
    return _rounded(kernel / scale, kind), scale


def _rounded(x: jax.Array, kind: str) -> jax.Array:
    limited = jnp.clip(x, -_LARGEST[kind], _LARGEST[kind])
    return (jnp.round(limited) if kind == INT8 else limited).astype(_DTYPES[kind])


def dot(x: jax.Array, kernel: jax.Array, scale: jax.Array, kind: str) -> jax.Array:
    """Product of inputs [..., in] and a matrix of `quantise`, in the dtype of `x`."""
    if kind == INT8:
        return jnp.dot(x, kernel.astype(x.dtype)) * scale.astype(x.dtype)
    wide = x.astype(jnp.float32)
    own = jnp.maximum(jnp.abs(wide).max(-1, keepdims=True), 1e-12) / _LARGEST[kind]
    product = jnp.dot(_rounded(wide / own, kind), kernel, preferred_element_type=jnp.float32)
    return (product * own * scale).astype(x.dtype)


def tree(params: Any, wanted: Any, kind: str) -> dict:
    """Parameters of a module with the matrices in eight bits that it wants so.

    Args:
      params: Its parameters in full; matrices that are converted are used up.
      wanted: Boxed shapes of the parameters in eight bits.
      kind: "int8" or "float8".

    Returns:
      The tree like `wanted`, without boxes, each leaf placed as the one that it is made of.
    """
    flat, names, found = trees.flatten(params), trees.flatten(nn.meta.unbox(wanted)), {}
    convert = jax.jit(lambda kernel: quantise(kernel, kind), donate_argnums=0)
    for name in names:
        module, _, last = name.rpartition("/")
        if last == SCALE:
            continue
        value = flat.pop(name)
        if f"{module}/{SCALE}" in names and last == _KERNEL:
            found[name], found[f"{module}/{SCALE}"] = convert(value)
        else:
            found[name] = value
    return trees.unflatten(found)
