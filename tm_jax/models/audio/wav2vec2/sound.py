"""Arithmetic around the speech encoder: level of the sound, padding, the video's clock."""

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.models.audio.wav2vec2 import config as config_lib


def normalise(samples: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Zero mean and unit variance per sound, as the published feature extractors do it.

    Args:
      samples: [B, samples].
      valid: Optional boolean [B, samples]; the others do not count and become zero.

    Returns:
      [B, samples], float32.
    """
    x = samples.astype(jnp.float32)
    weight = jnp.ones_like(x) if valid is None else valid.astype(jnp.float32)
    count = jnp.maximum(weight.sum(-1, keepdims=True), 1)
    centred = (x - (x * weight).sum(-1, keepdims=True) / count) * weight
    variance = jnp.square(centred).sum(-1, keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + 1e-7)


def covered(valid: jax.Array, taps: int, stride: int) -> jax.Array:
    """Which outputs of a convolution depend on valid inputs only.

    Args:
      valid: Boolean [B, inputs].
      taps: Kernel size.
      stride: Stride.

    Returns:
      Boolean [B, outputs], of a convolution without padding.
    """
    starts = np.arange((valid.shape[-1] - taps) // stride + 1) * stride
    return valid[:, starts[:, None] + np.arange(taps)].all(-1)


def to_video(
    features: jax.Array, config: config_lib.Wav2Vec2Config, timing: timing_lib.Timing,
    first: int, count: int,
) -> jax.Array:
    """Linear interpolation of hidden states at the middle of pixel frames.

    State i belongs to the middle of the samples that the convolutions turned into it. At
    25 fps pixel frame j lies 0.375 of the way from state 2 j to state 2 j + 1. Before the
    first and after the last state the nearest one holds.

    Args:
      features: [B, states, U]; state 0 begins with sample 0.
      config: The encoder that made them.
      timing: Clocks.
      first: First pixel frame; frame 0 begins with sample 0.
      count: Number of pixel frames n.

    Returns:
      [B, n, U] in the dtype of `features`.

    Raises:
      ValueError: The encoder's sample rate differs from the timing's.
    """
    if config.sample_rate != timing.sample_rate:
        raise ValueError(
            f"the encoder hears {config.sample_rate} samples a second, "
            f"the timing has {timing.sample_rate}."
        )
    middle = (first + np.arange(count) + 0.5) * timing.samples_per_frame
    place = (middle - config.field / 2) / config.hop
    place = np.clip(place, 0, features.shape[1] - 1)
    low = np.minimum(np.floor(place).astype(int), max(features.shape[1] - 2, 0))
    high = np.minimum(low + 1, features.shape[1] - 1)
    share = (place - low).astype(np.float32)[:, None]
    before = features[:, low].astype(jnp.float32)
    after = features[:, high].astype(jnp.float32)
    return (before + (after - before) * share).astype(features.dtype)
