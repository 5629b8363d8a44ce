"""Attention arithmetic: scaled dot products with float32 softmax, and how devices share it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.core import target
from tm_jax.nn import flash

AUTO, XLA = "auto", "xla"
BACKENDS = (AUTO, XLA, *flash.KERNELS)

# Logits of one head of one sample from which heads are taken one after another on CPU.
_LARGE = 2**19
# Logits of one sample (1 GiB) from which queries are taken block by block.
_MOST = 2**28


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None,
    bias: jax.Array | None = None, scale: float | None = None,
    lengths: jax.Array | None = None, backend: str = AUTO,
) -> jax.Array:
    """Softmax attention.

    Logits are accumulated, scaled and kept in float32, whatever the dtype of the inputs. Those
    of a long clip never exist at once: queries are taken in blocks, whose logits the backward
    pass computes again. The kernels of `flash` write none at all.

    On CPU the product is written as batched matrices with the head axis in front: XLA's CPU
    backend runs that about three times faster than the [.., L, N, K] form. Large heads are
    computed one after another, so that their logits stay near the processor: half the time.
    Not where a mesh splits heads or tokens: a loop over a split axis gathers it.

    Args:
      q: Queries [*, L, N, K].
      k: Keys [*, S, N, K].
      v: Values [*, S, N, K].
      valid: Optional boolean mask that broadcasts to [*, N, L, S]; False is not seen. Every
        query must attend to at least one key.
      bias: Optional float32 term of the logits that broadcasts to [*, N, L, S].
      scale: Factor of the products; 1 / sqrt(K) by default.
      lengths: How many of the keys, from the first, are valid; int, broadcasts to [*]. It
        takes the place of `valid`.
      backend: Name in `BACKENDS`; "auto" is what is known to be right everywhere. The others
        than "xla" take neither `valid` nor `bias`.

    Returns:
      [*, L, N, K] in the dtype of `q`.

    Raises:
      ValueError: The backend cannot run here.
    """
    if backend in flash.KERNELS:
        assert valid is None and bias is None
        return _flash(q, k, v, lengths, scale, backend)
    if lengths is not None:
        count = jnp.asarray(lengths)[..., None, None, None]
        valid = jnp.arange(k.shape[-3]) < count  # [*, 1, 1, S]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.dtype == jnp.float32:  # Cheaper; narrower queries would be rounded once more.
        q, scale = q * scale, 1.0
    plain = valid is None and bias is None and _parts(axes.SPREAD) == 1
    if plain and target.platform() == "cpu":
        flat, keys, values = _fold(q, k, v)
        if flat.shape[-3] * keys.shape[-3] >= _LARGE:
            return _head_by_head(flat, keys, values, scale).reshape(q.shape)
    q = jnp.swapaxes(q, -2, -3)  # [*, N, L, K]
    k = jnp.swapaxes(k, -2, -3)  # [*, N, S, K]
    v = jnp.swapaxes(v, -2, -3)  # [*, N, S, K]
    mixed = _in_blocks(q, k, v, scale, valid, bias)
    return jnp.swapaxes(mixed, -2, -3)  # [*, L, N, K]


def place(x: jax.Array, *names: str | None) -> jax.Array:
    """Like flax's `with_logical_constraint`, but splits an axis only where it divides evenly.

    That is what arrays need that one program hands to another, such as a cache: XLA pads
    values inside a program, but arguments and results are never split unevenly.

    Args:
      x: Array.
      *names: Logical name of each axis; None is whole.
    """
    if jax.sharding.get_abstract_mesh().empty or not nn.get_logical_axis_rules():
        return x
    spec = [_mesh_axes(name, size) or None for name, size in zip(names, x.shape, strict=True)]
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(*spec))


def place_context(x: jax.Array) -> jax.Array:
    """Places keys or values [B, ..., N, K] that queries split over tokens attend to."""
    return place(x, axes.BATCH, *(None,) * (x.ndim - 3), axes.HEADS, None)


def place_keys(x: jax.Array) -> jax.Array:
    """Places keys or values of self-attention, or a cache of them, [B, ..., N, K].

    Heads are split over all devices that share a stream, everything else but the batch is
    whole. From values that are split over tokens XLA makes that by an all-to-all (the
    Ulysses form of sequence parallelism). A number of heads that does not divide is split
    over as many mesh axes as it can be. Without an active mesh nothing happens.
    """
    return place(x, axes.BATCH, *(None,) * (x.ndim - 4), axes.CACHE, axes.SPREAD, None)


def place_queries(x: jax.Array) -> jax.Array:
    """Places queries of self-attention [B, T, P, N, K]: like keys, if their heads divide.

    Otherwise they stay split over tokens, and meet keys and values whose tokens are whole.
    """
    return place_keys(x) if spreads(x.shape[-2]) else x


def spreads(num_heads: int) -> bool:
    """Whether all devices that share a stream can split so many heads among them."""
    return num_heads % _parts(axes.SPREAD) == 0


def _mesh_axes(name, size=0):
    """Axes of the active mesh that split a logical axis of this size evenly (0: all)."""
    names = dict(nn.get_logical_axis_rules()).get(name)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or names is None:
        return ()
    names = (names,) if isinstance(names, str) else names
    return axes.dividing(size, names, mesh.shape)


def _parts(name):
    """In how many parts the active mesh splits a logical axis."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in _mesh_axes(name))


def _mix(q, k, v, scale, valid=None, bias=None):
    """Queries [*, L, K], keys and values [*, S, K] -> [*, L, K]."""
    logits = jnp.einsum("...qc,...kc->...qk", q, k, preferred_element_type=jnp.float32)
    logits = logits * scale
    if bias is not None:
        logits = logits + bias
    if valid is not None:
        logits = jnp.where(valid, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, -1).astype(v.dtype)
    return jnp.einsum("...qk,...kc->...qc", weights, v)


def _in_blocks(q, k, v, scale, valid, bias):
    """Like `_mix`, with as many queries at once as there is room for their logits."""
    heads, size, slots = q.shape[-3], q.shape[-2], k.shape[-2]
    own = any(x is not None and x.ndim > 1 and x.shape[-2] > 1 for x in (valid, bias))
    parts = 1 if own else blocks(heads, size, slots)
    if parts == 1:
        return _mix(q, k, v, scale, valid, bias)
    pieces = jnp.moveaxis(q.reshape(*q.shape[:-2], parts, size // parts, q.shape[-1]), -3, 0)
    one = jax.checkpoint(lambda piece: _mix(piece, k, v, scale, valid, bias))
    return jnp.moveaxis(jax.lax.map(one, pieces), 0, -3).reshape(q.shape)


def blocks(heads: int, queries: int, keys: int) -> int:
    """In how many blocks the queries of a sample are taken: the fewest that divide them."""
    least = math.ceil(heads * queries * keys / _MOST)
    return next(n for n in range(least, queries + 1) if queries % n == 0)


def _flash(q, k, v, lengths, scale, backend):
    """Attention by a kernel, on the devices that have the heads."""
    flash.check(backend, q.dtype, q.shape[-1])
    if not spreads(q.shape[-2]):
        raise ValueError(
            f"attention={backend} needs heads that all devices of a stream can share; "
            f"{q.shape[-2]} do not divide. Choose auto or xla, or another mesh."
        )
    leading = q.shape[:-3]
    if lengths is not None:
        lengths = jnp.broadcast_to(jnp.asarray(lengths, jnp.int32), leading).reshape(-1)

    def flat(x):
        return jnp.broadcast_to(x, (*leading, *x.shape[-3:])).reshape(-1, *x.shape[-3:])

    batch = _mesh_axes(axes.BATCH, leading[0] if leading else 1)
    run = flash.shared(backend, batch, _mesh_axes(axes.SPREAD, q.shape[-2]))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return run(flat(q), flat(k), flat(v), lengths, scale).reshape(q.shape)


def _fold(q, k, v):
    """Makes frames that share their keys one long sequence: [B, T, P, ..] -> [B, T * P, ..]."""
    if q.ndim > 4 and k.shape[-4] == v.shape[-4] == 1:
        q = q.reshape(*q.shape[:-4], q.shape[-4] * q.shape[-3], *q.shape[-2:])
        k, v = k.squeeze(-4), v.squeeze(-4)
    return q, k, v


def _head_by_head(q, k, v, scale):
    """Queries [*, L, N, K], keys and values [*, S, N, K] -> [*, L, N, K]."""
    heads = tuple(jnp.moveaxis(x, -2, 0) for x in (q, k, v))  # [N, *, L or S, K]
    mixed = jax.lax.map(lambda head: _mix(head[0], head[1], head[2], scale), heads)
    return jnp.moveaxis(mixed, 0, -2)
