"""How well frames are reconstructed: PSNR of whole frames and of what moves, SSIM.

Pixels are in -1..1 everywhere, so the peak of the PSNR is 2. A pixel moves where any of its
colours differs from the reference picture by more than `MOVING`.
"""

import jax
import jax.numpy as jnp

MOVING = 0.1  # 13 of 255 grey levels.
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5  # Wang et al. 2004, section III.B.
_SSIM_C1, _SSIM_C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2


def moving(frames: jax.Array, picture: jax.Array) -> jax.Array:
    """Where frames [B, F, H, W, 3] differ from the reference [B, H, W, 3]: [B, F, H, W, 1]."""
    change = jnp.abs(frames - picture[:, None])
    return (change.max(-1, keepdims=True) > MOVING).astype(jnp.float32)


def squared_error(
    made: jax.Array, frames: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Sum of squared errors of each clip and the weight it is divided by.

    Args:
      made: Reconstruction, [B, F, H, W, 3].
      frames: Truth, the same shape.
      mask: Pixels that count, [B, F, H, W, 1]; None for all.

    Returns:
      Two arrays [B].
    """
    square = jnp.square(jnp.clip(made, -1, 1) - frames)
    mask = jnp.ones_like(square[..., :1]) if mask is None else mask
    axes = tuple(range(1, frames.ndim))
    return jnp.sum(square * mask, axes), frames.shape[-1] * jnp.sum(mask, axes)


def psnr(square: jax.Array, count: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of sums of squared errors over `count` numbers."""
    return -10 * jnp.log10(jnp.maximum(square / jnp.maximum(count, 1), 1e-10) / 4)


def ssim(made: jax.Array, frames: jax.Array) -> jax.Array:
    """Structural similarity (Wang et al. 2004, eq. 13) of the luminance, mean over each frame.

    Args:
      made: Frames, [N, H, W, 3].
      frames: Truth, the same shape.

    Returns:
      [N], 1 for equal frames.
    """
    luminance = jnp.asarray((0.299, 0.587, 0.114))
    x, y = (made + 1) @ luminance, (frames + 1) @ luminance  # The measure wants no negative ones.
    at = jnp.arange(_SSIM_WINDOW) - _SSIM_WINDOW // 2
    taps = jnp.exp(-0.5 * jnp.square(at / _SSIM_SIGMA))
    taps = taps / taps.sum()

    def blur(image):
        rows = jax.vmap(lambda line: jnp.convolve(line, taps, "valid"))
        both = lambda one: rows(rows(one).T).T
        return jax.vmap(both)(image)

    mx, my = blur(x), blur(y)
    vx, vy = blur(x * x) - mx * mx, blur(y * y) - my * my
    covariance = blur(x * y) - mx * my
    value = (2 * mx * my + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    value /= (mx * mx + my * my + _SSIM_C1) * (vx + vy + _SSIM_C2)
    return value.mean((1, 2))
