"""Layers of the Wan autoencoder; each takes the past of its stream and returns the next.

A clip is [B, T, H, W, C]. `past` is what a temporal convolution has seen before: its last two
inputs. It is None for the first frame of a clip, which has no past: a convolution over zeros
and one frame is a convolution with its last tap alone.
"""

from collections.abc import Sequence
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from tm_jax.core import axes
from tm_jax.nn import attention
from tm_jax.nn import linear
from tm_jax.nn import parameters

TAPS = 3  # of a temporal convolution
# Rows of a frame are its tokens: a mesh splits them as it splits the tokens of the transformer.
_CLIP = (axes.BATCH, axes.FRAMES, axes.TOKENS, None, None)


def constrain(x: jax.Array) -> jax.Array:
    """Splits a clip [B, T, H, W, C] over the mesh where batch and rows divide evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not nn.get_logical_axis_rules():
        return x
    names = []
    for size, name in zip(x.shape, _CLIP):
        (mapped,) = nn.logical_to_mesh_axes((name,)) or (None,)
        group = (mapped,) if isinstance(mapped, str) else (mapped or ())
        names.append(name if size % math.prod(mesh.shape[m] for m in group) == 0 else None)
    return nn.with_logical_constraint(x, tuple(names))


class Conv(nn.Module):
    """Causal convolution over time and space, or over space alone.

    Attributes:
      features: Output channels.
      window: Taps along (time, height, width) or (height, width).
      dtype: Dtype of the products.
      stride: Step along the axes of `window`.
      padding: Pairs of zeros before and after height and width.
      bias: Whether to add a bias.
    """

    features: int
    window: Sequence[int]
    dtype: jnp.dtype
    stride: Sequence[int] = ()
    padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1))
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, H, W, in]; taps over time cover only what `x` holds (no zeros added).

        A single frame under a window over time meets the last tap, the others meet zeros.
        """
        names = (None,) * len(self.window) + (axes.CHANNELS_IN, axes.CHANNELS_OUT)
        kernel = self.param(
            "kernel",
            parameters.named(nn.initializers.he_normal(), names),
            (*self.window, x.shape[-1], self.features),
        ).astype(self.dtype)
        x = x.astype(self.dtype)
        stride = tuple(self.stride) or (1,) * len(self.window)
        if len(self.window) == 2:
            kernel, stride = kernel[None], (1, *stride)
        elif x.shape[1] == 1:
            kernel = kernel[-1:]
        y = _convolve(x, kernel, stride, self.padding)
        if self.bias:
            zeros = parameters.named(nn.initializers.zeros, (axes.CHANNELS_OUT,))
            y = y + self.param("bias", zeros, (self.features,)).astype(self.dtype)
        return constrain(y)


def _convolve(x, kernel, stride, padding):
    """[B, T, H, W, in] by [taps, h, w, in, out], without zeros before the first frame."""
    if len(kernel) == 1:
        return _over_space(x, kernel[0], stride[1:], padding)

    def whole(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, stride, ((0, 0), *padding),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )

    def by_taps(x, kernel):
        count = (x.shape[1] - len(kernel)) // stride[0] + 1
        ends = range((count - 1) * stride[0] + 1, x.shape[1] + 1)
        parts = (
            _over_space(x[:, i : ends[i] : stride[0]], tap, stride[1:], padding)
            for i, tap in enumerate(kernel)
        )
        return functools.reduce(jnp.add, parts)

    # XLA's three-dimensional convolution on CPU takes twice as long as one over space per tap.
    return jax.lax.platform_dependent(x, kernel, cpu=by_taps, default=whole)


def _over_space(x, kernel, stride, padding):
    """[B, T, H, W, in] by [h, w, in, out], frame by frame."""
    if kernel.shape[:2] == (1, 1):
        return jnp.dot(x, kernel[0, 0])
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]), kernel, stride, tuple(padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


def extend(x: jax.Array, past: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Puts the past in front of new inputs of a convolution.

    Args:
      x: New inputs, [B, T, H, W, C].
      past: The two inputs before them, [B, 2, H, W, C], or None for the first frame alone.

    Returns:
      What the convolution reads, and the past of the next call, [B, 2, H, W, C].
    """
    if past is None:
        zeros = jnp.zeros_like(x)
        return x, jnp.concatenate([zeros, x], 1)
    x = jnp.concatenate([past.astype(x.dtype), x], 1)
    return x, x[:, -(TAPS - 1) :]


class Norm(nn.Module):
    """Channels scaled to unit length times the root of their number, in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis; returns the dtype of `x`."""
        ones = parameters.named(nn.initializers.ones, (None,))
        scale = self.param("scale", ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        # torch's `normalize` bounds the length, it adds nothing to it: max(length, 1e-12).
        squares = jnp.sum(jnp.square(y), -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
        return (y * (scale * x.shape[-1] ** 0.5)).astype(x.dtype)


class ResBlock(nn.Module):
    """Two causal 3x3x3 convolutions beside a shortcut.

    Attributes:
      features: Output channels.
      dtype: Dtype of the products.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, past):
        """Maps x [B, T, H, W, in] and the pasts of both convolutions to (y, next pasts)."""
        shortcut = x
        if x.shape[-1] != self.features:
            dense = linear.Dense(self.features, (None, axes.CHANNELS_OUT), self.dtype,
                                 name="shortcut")
            shortcut = dense(x)
        first, second = (None, None) if past is None else past
        window = (TAPS, 3, 3)
        y, first = extend(nn.silu(Norm(name="norm_1")(x)), first)
        y = Conv(self.features, window, self.dtype, name="conv_1")(y)
        y, second = extend(nn.silu(Norm(name="norm_2")(y)), second)
        y = Conv(self.features, window, self.dtype, name="conv_2")(y)
        return shortcut + y, (first, second)


class Attention(nn.Module):
    """Self-attention with one head among the pixels of each frame.

    Attributes:
      dtype: Dtype of the products; the softmax runs in float32.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """Maps [B, T, H, W, C] to the same shape."""
        width = x.shape[-1]
        dense = linear.Dense(3 * width, (None, None), self.dtype, name="qkv")
        y = dense(Norm(name="norm")(x))
        y = y.reshape(-1, x.shape[2] * x.shape[3], 1, 3 * width)  # [B * T, H * W, 1, 3 C]
        q, k, v = jnp.split(y, 3, -1)
        mixed = attention.attend(q, k, v).reshape(x.shape)
        return constrain(x + linear.Dense(width, (None, None), self.dtype, name="out")(mixed))


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution.

    Attributes:
      dtype: Dtype of the products.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, past):
        """Maps x [B, T, h, w, C] and the pasts of both blocks to (y, next pasts)."""
        first, second = (None, None) if past is None else past
        x, first = ResBlock(x.shape[-1], self.dtype, name="res_0")(x, first)
        x = Attention(self.dtype, name="attention")(x)
        x, second = ResBlock(x.shape[-1], self.dtype, name="res_1")(x, second)
        return x, (first, second)


class Downsample(nn.Module):
    """Halves height and width, and time as well if `temporal`.

    Attributes:
      temporal: Whether to halve time.
      dtype: Dtype of the products.
    """

    temporal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, past):
        """Maps x [B, T, H, W, C] and past [B, 1, H / 2, W / 2, C] to (y, next past).

        Without a past (the first frame) or without `temporal` time keeps its length.
        """
        pad = ((0, 1), (0, 1))
        y = Conv(x.shape[-1], (3, 3), self.dtype, (2, 2), pad, name="space")(x)
        if not self.temporal:
            return y, None
        time = Conv(x.shape[-1], (TAPS, 1, 1), self.dtype, (2, 1, 1), ((0, 0), (0, 0)),
                    name="time")
        if past is None:
            self._touch(time, y)
            return y, y
        y = jnp.concatenate([past.astype(y.dtype), y], 1)
        return time(y), y[:, -1:]

    def _touch(self, layer, x):
        """Makes the parameters of a layer that the first frame does not need."""
        if self.is_initializing():
            layer(x)


class Upsample(nn.Module):
    """Doubles height and width and halves channels; doubles time as well if `temporal`.

    Attributes:
      temporal: Whether to double time.
      dtype: Dtype of the products.
    """

    temporal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, past):
        """Maps x [B, T, h, w, C] and past [B, 2, h, w, C] to (y, next past).

        Without a past (the first frame) or without `temporal` time keeps its length.
        """
        width = x.shape[-1]
        if self.temporal:
            time = Conv(2 * width, (TAPS, 1, 1), self.dtype, (), ((0, 0), (0, 0)), name="time")
            if past is None:
                if self.is_initializing():
                    time(x)
                # The first frame passes by this convolution, which then starts from zeros.
                past = jnp.zeros((x.shape[0], TAPS - 1, *x.shape[2:]), x.dtype)
            else:
                y, past = extend(x, past)
                y = time(y)  # [B, T, h, w, 2 C]: both new frames of each old one
                b, t, h, w, _ = y.shape
                y = y.reshape(b, t, h, w, 2, width).transpose(0, 1, 4, 2, 3, 5)
                x = y.reshape(b, 2 * t, h, w, width)
        x = jnp.repeat(jnp.repeat(x, 2, 2), 2, 3)
        return Conv(width // 2, (3, 3), self.dtype, name="space")(x), past
