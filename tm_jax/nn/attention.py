"""Attention arithmetic: scaled dot products with float32 softmax."""

import jax
import jax.numpy as jnp


# Logits of one head of one sample from which heads are taken one after another on CPU.
_LARGE = 2**19


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None,
    bias: jax.Array | None = None, scale: float | None = None,
) -> jax.Array:
    """Softmax attention.

    On CPU the product is written as batched matrices with the head axis in front: XLA's CPU
    backend runs that about three times faster than the [.., L, N, K] form. Large heads are
    computed one after another, so that their logits stay near the processor: half the time.

    Args:
      q: Queries [*, L, N, K].
      k: Keys [*, S, N, K].
      v: Values [*, S, N, K].
      valid: Optional boolean mask that broadcasts to [*, N, L, S]; False is not seen. Every
        query must see at least one key.
      bias: Optional float32 term of the logits that broadcasts to [*, N, L, S].
      scale: Factor of the products; 1 / sqrt(K) by default.

    Returns:
      [*, L, N, K] in the dtype of `q`.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q = q * scale
    if valid is None and bias is None and jax.default_backend() == "cpu":
        flat, keys, values = _fold(q, k, v)
        if flat.shape[-3] * keys.shape[-3] >= _LARGE:
            return _head_by_head(flat, keys, values).reshape(q.shape)
    q = jnp.swapaxes(q, -2, -3)  # [*, N, L, K]
    k = jnp.swapaxes(k, -2, -3)  # [*, N, S, K]
    v = jnp.swapaxes(v, -2, -3)  # [*, N, S, K]
    mixed = _mix(q, k, v, valid, bias)
    return jnp.swapaxes(mixed, -2, -3)  # [*, L, N, K]


def _mix(q, k, v, valid=None, bias=None):
    """Scaled queries [*, L, K], keys and values [*, S, K] -> [*, L, K]."""
    logits = jnp.einsum("...qc,...kc->...qk", q, k).astype(jnp.float32)
    if bias is not None:
        logits = logits + bias
    if valid is not None:
        logits = jnp.where(valid, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, -1).astype(v.dtype)
    return jnp.einsum("...qk,...kc->...qc", weights, v)


def _fold(q, k, v):
    """Makes frames that share their keys one long sequence: [B, T, P, ..] -> [B, T * P, ..]."""
    if q.ndim > 4 and k.shape[-4] == v.shape[-4] == 1:
        q = q.reshape(*q.shape[:-4], q.shape[-4] * q.shape[-3], *q.shape[-2:])
        k, v = k.squeeze(-4), v.squeeze(-4)
    return q, k, v


def _head_by_head(q, k, v):
    """Scaled queries [*, L, N, K], keys and values [*, S, N, K] -> [*, L, N, K]."""
    heads = tuple(jnp.moveaxis(x, -2, 0) for x in (q, k, v))  # [N, *, L or S, K]
    mixed = jax.lax.map(lambda head: _mix(*head), heads)
    return jnp.moveaxis(mixed, 0, -2)
