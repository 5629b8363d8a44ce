"""Speech to features at the video's frame rate, with a bounded receptive field.

There is no hidden state: a feature of frame j depends on the samples of frames
j - history ... j + future and 7.5 ms more. A stream keeps that much sound and computes only
the frames that it needs; the result equals the whole clip's.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.models.audio.causal import config as config_lib
from tm_jax.nn import linear

RATE = 16000
FRAME = 640  # samples of one frame at 25 fps
_HOP = 160
_WINDOW = 400
MARGIN = (_WINDOW - _HOP) // 2  # samples that an analysis window reaches past its hop
_FLOOR = 1e-7
# Factors on the frequencies of a voice in training, evenly on a logarithmic scale.
WARPS = tuple(float(warp) for warp in np.geomspace(1 / 1.22, 1.22, 9))


@functools.cache
def _bases(mels: int):
    """Windowed Fourier basis [400, 2 * 257] and mel filters [257, mels]."""
    size = 512
    n = np.arange(_WINDOW)
    angle = 2 * np.pi * np.outer(n, np.arange(size // 2 + 1)) / size
    window = np.hanning(_WINDOW + 1)[:-1, None]
    basis = np.concatenate([np.cos(angle) * window, np.sin(angle) * window], 1)
    import librosa  # Slow to import, and not there on every machine that streams.

    filters = librosa.filters.mel(sr=RATE, n_fft=size, n_mels=mels, fmin=50, fmax=7600)
    return basis.astype(np.float32), filters.T.astype(np.float32)


@functools.cache
def _warped(mels: int):
    """The mel filters for voices whose formants lie at other frequencies, [K, 257, mels]."""
    _, filters = _bases(mels)
    at = np.arange(len(filters))
    return np.stack([
        np.stack([np.interp(at * warp, at, column, right=0.0) for column in filters.T], 1)
        for warp in WARPS
    ]).astype(np.float32)  # fmt: skip


def log_mel(samples: jax.Array, mels: int, warp: jax.Array | None = None) -> jax.Array:
    """Log-mel spectrum, four hops of 10 ms stacked per video frame.

    Args:
      samples: Speech in -1..1 at 16 kHz, [B, MARGIN + 640 n + MARGIN].
      mels: Mel bands.
      warp: Index into `WARPS` for every clip, int [B]: hears a voice with all its
        frequencies times that factor, as from a shorter or longer vocal tract (Jaitly and
        Hinton 2013).

    Returns:
      [B, n, 4 * mels], about zero mean and unit size for speech at a usual level.

    Raises:
      ValueError: The length does not fit.
    """
    length = samples.shape[1] - 2 * MARGIN
    if length <= 0 or length % FRAME:
        raise ValueError(
            f"samples: expected {2 * MARGIN} + {FRAME} n samples, got {samples.shape[1]}."
        )
    basis, filters = _bases(mels)
    hops = length // _HOP
    index = np.arange(hops)[:, None] * _HOP + np.arange(_WINDOW)
    spectrum = samples[:, index] @ basis  # [B, hops, 514]
    cosine, sine = jnp.split(spectrum, 2, -1)
    power = jnp.square(cosine) + jnp.square(sine)
    power = power @ (filters if warp is None else jnp.asarray(_warped(mels))[warp])
    level = jnp.log10(jnp.maximum(power, _FLOOR))
    return (level.reshape(samples.shape[0], -1, 4 * mels) + 2.5) / 2.0


class AudioEncoder(nn.Module):
    """Convolutions over frames: one layer reads later frames, the others only earlier ones.

    Attributes:
      config: Sizes.
      dtype: Dtype of the products.
    """

    config: config_lib.AudioEncoderConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c, dtype = self.config, self.dtype

        def conv():
            return linear.Dense(c.width, (None, None), dtype)

        self.stem = conv()
        self.around = conv()
        self.back = [conv() for _ in c.dilations]
        self.mix = [conv() for _ in c.dilations]
        self.out = linear.Dense(c.features, (None, None), dtype)
        self.labels = linear.Dense((c.outputs - 1) * (1 + c.recalled) + 1, (None, None), dtype)

    def __call__(self, samples: jax.Array, warp: jax.Array | None = None) -> jax.Array:
        """Features of the frames whose whole receptive field lies in `samples`.

        Args:
          samples: [B, MARGIN + 640 (history + n + future) + MARGIN] at 16 kHz.
          warp: As in `log_mel`; None leaves voices as they are.

        Returns:
          [B, n, U].
        """
        c = self.config
        x = nn.gelu(self.stem(log_mel(samples, c.mels, warp)))  # [B, history + n + future, width]
        taps = c.past + 1 + c.future
        frames = x.shape[1] - taps + 1
        around = jnp.concatenate([x[:, i : i + frames] for i in range(taps)], -1)
        x = x[:, c.past : c.past + frames] + nn.gelu(self.around(around))
        for dilation, back, mix in zip(c.dilations, self.back, self.mix):
            frames = x.shape[1] - 2 * dilation
            seen = [x[:, i * dilation : i * dilation + frames] for i in range(3)]
            y = nn.gelu(back(_normalise(jnp.concatenate(seen, -1))))
            x = x[:, 2 * dilation :] + mix(y)
        return self.out(_normalise(x))

    def predict(self, features: jax.Array) -> jax.Array:
        """Training labels from features, [..., (outputs - 1) * (1 + recalled) + 1].

        Columns of the feature's own frame, of the frame before it and so on, then a
        voice-activity logit of its own.
        """
        return self.labels(features)

    def train(self, samples: jax.Array, warp: jax.Array | None = None) -> jax.Array:
        """`predict` of `__call__`; touches every parameter."""
        return self.predict(self(samples, warp))


def init(config: config_lib.AudioEncoderConfig, key: jax.Array) -> dict:
    """Random parameters."""
    model = AudioEncoder(config)
    frames = config.history + config.future + 1
    samples = jnp.zeros((1, frames * FRAME + 2 * MARGIN))
    return dict(model.init(key, samples, method=model.train)["params"])


def _normalise(x):
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)
