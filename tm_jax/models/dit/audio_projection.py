"""Projection of a window of audio features into a few tokens per latent frame."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.core import shapes
from tm_jax.core import timing as timing_lib
from tm_jax.models.dit import config as config_lib
from tm_jax.nn import linear
from tm_jax.nn import norms


class AudioProjection(nn.Module):
    """Three-layer perceptron from one window to A tokens (about 1.2 B in `tm-18b`).

    Attributes:
      config: Sizes of the transformer.
      dtype: Dtype of the projections.
    """

    config: config_lib.DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, windows: jax.Array) -> jax.Array:
        """Maps windows [B, T, R, U] to tokens [B, T, A, E]."""
        c = self.config
        sizes = shapes.check(
            windows, "B T R U", "audio windows", R=c.audio_window, U=c.audio_feature_width
        )
        x = windows.reshape(sizes["B"], sizes["T"], -1)
        x = nn.relu(
            linear.Dense(c.audio_hidden, (axes.EMBED, axes.MLP), self.dtype, name="in")(x)
        )
        x = nn.relu(
            linear.Dense(c.audio_hidden, (axes.MLP, axes.EMBED), self.dtype, name="mid")(x)
        )
        x = linear.Dense(
            c.audio_tokens * c.audio_width, (axes.EMBED, axes.MLP), self.dtype, name="out"
        )(x)
        x = x.reshape(sizes["B"], sizes["T"], c.audio_tokens, c.audio_width)
        return norms.LayerNorm(name="norm")(x)


def windows(features: jax.Array, window: int, timing: timing_lib.Timing) -> jax.Array:
    """Cuts a feature sequence into the windows of consecutive latent frames.

    Latent k >= 1 shows frames 4k-3 ... 4k. Its window starts (window - 4) / 2 feature frames
    before them; where the window has no room on both sides the past gets the odd frame.

    Args:
      features: [B, before + 4 * T + after, U] with `before` and `after` of `margins`;
        feature frame `before` sounds with the first pixel frame.
      window: Window length R in feature frames.
      timing: Clocks.

    Returns:
      [B, T, R, U].
    """
    before, after = margins(window, timing)
    stride = timing.frames_per_latent
    latents = (features.shape[1] - before - after) // stride
    index = jnp.arange(latents)[:, None] * stride + jnp.arange(window)  # [T, R]
    return features[:, index]


def margins(window: int, timing: timing_lib.Timing) -> tuple[int, int]:
    """Feature frames that a window reaches before and after its own pixel frames."""
    extra = window - timing.frames_per_latent
    if extra < 0:
        raise ValueError(
            f"audio_window={window} is shorter than a latent frame "
            f"({timing.frames_per_latent} frames)."
        )
    return extra - extra // 2, extra // 2
