"""Speech features for the video, of a whole clip or chunk by chunk in a sliding window.

The encoder is not causal. In a stream it runs on a window of fixed length that slides by one
chunk; the window's sound after the chunk is latency (`WindowConfig.lookahead_s`). Sound before
the start of a stream is masked from the encoder, not treated as silence; features of frames
before the start are those of the first frame.
"""

import typing

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import shapes
from tm_jax.core import timing as timing_lib
from tm_jax.models.audio.wav2vec2 import config as config_lib
from tm_jax.models.audio.wav2vec2 import encoder
from tm_jax.models.audio.wav2vec2 import sound


@flax.struct.dataclass
class SoundState:
    """State of a stream between chunks.

    Attributes:
      samples: The sound before the next chunk's last part arrives: past and look-ahead,
        [B, past + future samples], newest last.
      heard: How many of them, from the end, belong to the stream, int32 [B].
    """

    samples: jax.Array
    heard: jax.Array


def begin(window: config_lib.WindowConfig, first: jax.Array) -> SoundState:
    """State before the first chunk.

    Args:
      window: Sizes of the window.
      first: The first `window.future_samples` samples of the stream, [B, samples].

    Returns:
      State for `step`.
    """
    sizes = shapes.check(first, "B S", "first", S=window.future_samples)
    past = window.past_frames * window.timing.samples_per_frame
    samples = jnp.pad(first, ((0, 0), (past, 0)))
    return SoundState(samples, jnp.full((sizes["B"],), window.future_samples, jnp.int32))


def step(
    model: encoder.Wav2Vec2, params: dict, window: config_lib.WindowConfig, state: SoundState,
    samples: jax.Array
) -> tuple[jax.Array, SoundState]:
    """Features of the next chunk.

    Args:
      model: Encoder.
      params: Its parameters.
      window: Sizes of the window.
      state: From `begin` or the step before.
      samples: The next chunk's worth of sound, [B, samples_per_chunk]. It ends
        `window.lookahead_s` after the chunk whose features are returned.

    Returns:
      Features [B, window.kept, U], and the next state.
    """
    count = window.timing.samples_per_chunk
    shapes.check(samples, "B S", "samples", B=state.heard.shape[0], S=count)
    heard = jnp.minimum(state.heard + count, window.samples)
    joined = jnp.concatenate([state.samples, samples], 1)  # [B, window.samples]
    features = window_features(model, params, window, joined, heard)
    keep = window.samples - count
    return features, SoundState(joined[:, count:], jnp.minimum(heard, keep))


def windowed(
    model: encoder.Wav2Vec2, params: dict, window: config_lib.WindowConfig, samples: jax.Array
) -> jax.Array:
    """What a stream computes, for a whole clip at once; silence follows the clip.

    Args:
      model: Encoder.
      params: Its parameters.
      window: Sizes of the window.
      samples: Sound, [B, samples].

    Returns:
      Features of every chunk that the sound reaches, [B, chunks, window.kept, U].
    """
    batch, timing = samples.shape[0], window.timing
    chunks = -(-samples.shape[1] // timing.samples_per_chunk)
    past = window.past_frames * timing.samples_per_frame
    length = chunks * timing.samples_per_chunk + window.future_samples
    padded = jnp.pad(samples, ((0, 0), (past, length - samples.shape[1])))
    starts = np.arange(chunks) * timing.samples_per_chunk
    cut = padded[:, starts[:, None] + np.arange(window.samples)]  # [B, chunks, window]
    heard = np.minimum(starts + window.samples - past, window.samples)
    features = window_features(
        model, params, window, cut.reshape(batch * chunks, -1),
        jnp.tile(jnp.asarray(heard, jnp.int32), batch),
    )
    return features.reshape(batch, chunks, *features.shape[1:])


def whole(
    model: encoder.Wav2Vec2, params: dict, timing: timing_lib.Timing, samples: jax.Array,
    valid: jax.Array | None = None
) -> jax.Array:
    """Features of a clip without a window: every state may depend on all of the sound.

    Args:
      model: Encoder.
      params: Its parameters.
      timing: Clocks.
      samples: Sound of n pixel frames, [B, n * samples_per_frame].
      valid: Optional boolean of that shape, False for padding.

    Returns:
      Features [B, n, U].
    """
    x = sound.normalise(samples, valid) if model.config.normalise else samples
    output = model.apply({"params": params}, x, valid, padding_counts=False)
    hidden = typing.cast(encoder.Hidden, output)
    frames = samples.shape[1] // timing.samples_per_frame
    return sound.to_video(hidden.features(), model.config, timing, 0, frames)


def window_features(
    model: encoder.Wav2Vec2, params: dict, window: config_lib.WindowConfig, samples: jax.Array,
    heard: jax.Array
) -> jax.Array:
    """Features of the chunk in the middle of a window of sound.

    Args:
      model: Encoder.
      params: Its parameters.
      window: Sizes of the window.
      samples: Sound, [B, window.samples].
      heard: How many of the samples, from the end, belong to the stream, int32 [B].

    Returns:
      [B, window.kept, U].
    """
    age = window.samples - np.arange(window.samples)
    valid = heard[:, None] >= age  # [B, window.samples]
    x = sound.normalise(samples, valid) if model.config.normalise else samples
    output = model.apply({"params": params}, x, valid, padding_counts=False)
    hidden = typing.cast(encoder.Hidden, output)
    first = window.past_frames - window.before_frames
    features = sound.to_video(
        hidden.features(), model.config, window.timing, first, window.kept
    )
    begun = window.frames - heard // window.timing.samples_per_frame - first  # [B]
    place = jnp.maximum(np.arange(window.kept), begun[:, None])  # [B, window.kept]
    return jnp.take_along_axis(features, place[..., None], 1)
