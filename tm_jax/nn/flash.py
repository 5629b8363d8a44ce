"""Attention kernels that never write their logits to memory: cuDNN on GPUs, splash on TPUs.

Both take keys of which the first few are valid, [B, S, N, K] with `lengths` [B].
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tm_jax.core import target

CUDNN, SPLASH = "cudnn", "splash"
KERNELS = (CUDNN, SPLASH)
_PLATFORMS = {CUDNN: "gpu", SPLASH: "tpu"}
_NARROW = (jnp.bfloat16, jnp.float16)
_LANES = 128  # Of a TPU: heads are as wide or wider, blocks are multiples.
_BLOCK = 512


def check(name: str, dtype: Any, head_width: int) -> None:
    """Raises ValueError where a kernel cannot run, with what would be right.

    Args:
      name: "cudnn" or "splash".
      dtype: Dtype of queries.
      head_width: Width K of a head.
    """
    platform, dtype = target.platform(), jnp.dtype(dtype)
    if platform != _PLATFORMS[name] and not (name == SPLASH and platform == "cpu"):
        raise ValueError(
            f"attention={name} needs a {_PLATFORMS[name].upper()}, this is a "
            f"{platform.upper()}; choose auto or xla."
        )
    if name == CUDNN and (dtype not in _NARROW or head_width % 8 or head_width > 256):
        raise ValueError(
            f"attention=cudnn needs bfloat16 and heads of a multiple of 8 up to 256, got {dtype} "
            f"and {head_width}; choose auto or xla."
        )
    if name == SPLASH and head_width % _LANES:
        raise ValueError(
            f"attention=splash needs heads of a multiple of {_LANES}, got {head_width}; choose "
            "auto or xla."
        )


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, lengths: Any, scale: float) -> jax.Array:
    """Queries [B, L, N, K] -> [B, L, N, K]; `lengths` None: all keys are valid.

    Raises:
      ValueError: There is no cuDNN here, or none that can do it.
    """
    try:
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, key_value_seq_lengths=lengths, implementation="cudnn"
        )
    except (RuntimeError, NotImplementedError) as error:  # Of its checks, while it is traced.
        raise ValueError(f"attention=cudnn: {error} Choose auto or xla.") from error


def splash(q: jax.Array, k: jax.Array, v: jax.Array, lengths: Any, scale: float) -> jax.Array:
    """Like `cudnn`; on CPUs the kernel is interpreted, which is for tests."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    size, slots, dtype = q.shape[1], k.shape[1], q.dtype
    block_q, block_k = (min(_BLOCK, -(-x // _LANES) * _LANES) for x in (size, slots))
    q, k, v = _padded(q * scale, block_q), _padded(k, block_k), _padded(v, block_k)
    if lengths is None:
        lengths = jnp.full(q.shape[0], slots, jnp.int32)
    # Keys of another segment are not seen.
    ids = kernel.SegmentIds(
        q=jnp.zeros(q.shape[:2], jnp.int32),
        kv=(jnp.arange(k.shape[1]) >= lengths[:, None]).astype(jnp.int32),
    )
    mask = masks.MultiHeadMask([masks.FullMask((q.shape[1], k.shape[1]))] * q.shape[2])
    run = kernel.make_splash_mha(
        mask, head_shards=1, q_seq_shards=1, interpret=target.platform() == "cpu",
        block_sizes=kernel.BlockSizes(
            block_q=block_q, block_kv=block_k, block_q_dkv=block_q, block_kv_dkv=block_k,
            use_fused_bwd_kernel=True,
        ),
    )
    by_head = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [B, N, L, K]
    mixed: Any = jax.vmap(run)(*by_head, ids)
    return jnp.swapaxes(mixed, 1, 2)[:, :size].astype(dtype)


def _padded(x: jax.Array, multiple: int) -> jax.Array:
    """[B, L, N, K] with L rounded up."""
    more = -x.shape[1] % multiple
    return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x


def shared(name: str, batch: tuple[str, ...], heads: tuple[str, ...]) -> Any:
    """A kernel on a mesh: every device has its own samples and heads.

    Args:
      name: "cudnn" or "splash".
      batch: Axes of the active mesh that split the batch.
      heads: Those that split the heads.

    Returns:
      Function of the arguments of `cudnn`.
    """
    run = {CUDNN: cudnn, SPLASH: splash}[name]
    if jax.sharding.get_abstract_mesh().empty:
        return run
    place = jax.sharding.PartitionSpec(batch or None, None, heads or None, None)
    counts = jax.sharding.PartitionSpec(batch or None)

    def call(q, k, v, lengths, scale):
        kernel = functools.partial(run, scale=scale)
        if lengths is None:
            split = jax.shard_map(
                lambda q, k, v: kernel(q, k, v, None), in_specs=(place,) * 3, out_specs=place,
                check_vma=False,
            )
            return split(q, k, v)
        split = jax.shard_map(
            kernel, in_specs=(*(place,) * 3, counts), out_specs=place, check_vma=False
        )
        return split(q, k, v, lengths)

    return call
