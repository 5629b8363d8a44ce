"""Features of the other party for a listener: voice activity, now and a little while back.

A listener reacts to when the other party talks and when a phrase ends, not to words. So the
other voice comes as one number per video frame, its loudness, and activity is loudness that
stands out from the quietest sound lately. That needs no weights, works at any level, and
takes steady noise for silence soon. It streams: state in, state out, in steps of any length.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.models.puppet.motion import config as config_lib

_RANGE_DB = config_lib.LOUDNESS_DB
# In loudness, hence in 1/80 dB; a voice is 6 dB above the noise at least, 15 to 50 usually.
_FIRST_FLOOR, _FIRST_PEAK = 0.25, 0.5  # -60 and -40 dB, until sound has come.
_RISE = 2 / _RANGE_DB / 25  # The floor rises by 2 dB/s,
_RISE_STEADY = 15 / _RANGE_DB / 25  # faster in steady sound, as only noise is;
_STEADY = 1 / _RANGE_DB  # whose frames differ by about 1 dB or less, those of speech by 5.
_FALL = 4 / _RANGE_DB / 25  # The peak falls by 4 dB/s.
_FAST = 1 / 6  # Share of a frame in the averages over about 0.25 s.
_JUMP = 6 / _RANGE_DB  # A jump counts no more than this, so that its effect soon decays.
_ABOVE = 6 / _RANGE_DB
_SHARE = 0.35  # Of the way from floor to peak.
_LEAST = 25 / _RANGE_DB  # -55 dB
_SOFT = 4 / _RANGE_DB  # Width of the change from no voice to voice.
_SLOW = 1 / 75  # Share of a frame in the average over about 3 s.


def loudness(samples: jax.typing.ArrayLike, samples_per_frame: int) -> jax.Array:
    """Loudness of every video frame.

    Args:
      samples: Sound in -1..1, [..., F * samples_per_frame], at any rate.
      samples_per_frame: Samples of one video frame.

    Returns:
      float32 [..., F] from 0 (-80 dB of full scale and below) to 1 (full scale).
    """
    samples = jnp.asarray(samples, jnp.float32)
    frames = samples.reshape(*samples.shape[:-1], -1, samples_per_frame)
    power = jnp.mean(jnp.square(frames), -1)
    db = 10 * jnp.log10(jnp.maximum(power, 10 ** (-_RANGE_DB / 10)))
    return jnp.clip(1 + db / _RANGE_DB, 0, 1)


@flax.struct.dataclass
class HeardState:
    """State of the features: statistics of the sound so far.

    Attributes:
      floor: Loudness of the noise, [B].
      peak: Loudness of the voice, [B].
      mean: Average loudness of the last moments, [B].
      spread: Average distance from it, [B].
      recent: Average activity of the last seconds, [B].
      past: Features of the last frames, [B, heard * frames_per_latent, 2], oldest first.
    """

    floor: jax.Array
    peak: jax.Array
    mean: jax.Array
    spread: jax.Array
    recent: jax.Array
    past: jax.Array


def initial_state(config: config_lib.MotionConfig, batch: int) -> HeardState:
    """State of `batch` streams before any sound."""
    past = config.heard * config.frames_per_latent
    return HeardState(
        floor=jnp.full((batch,), _FIRST_FLOOR), peak=jnp.full((batch,), _FIRST_PEAK),
        mean=jnp.zeros((batch,)), spread=jnp.zeros((batch,)), recent=jnp.zeros((batch,)),
        past=jnp.zeros((batch, past, config_lib.HEARD)),
    )


def hear(
    config: config_lib.MotionConfig, state: HeardState, other: jax.Array
) -> tuple[jax.Array, HeardState]:
    """Features of latent frames.

    Args:
      config: Sizes.
      state: State of the streams.
      other: Loudness of the other party in every pixel frame, [B, 4 T], from 0 (-80 dB of full
        scale and below) to 1 (full scale), as of `loudness`.

    Returns:
      Features [B, T, config.heard_width], zeros after a while without a voice, and the
      next state.
    """

    def step(carry, level):
        floor, peak, mean, spread, recent = carry
        mean = mean + _FAST * (level - mean)
        spread = spread + _FAST * (jnp.minimum(jnp.abs(level - mean), _JUMP) - spread)
        steady = jnp.clip(2 - spread / _STEADY, 0, 1)
        floor = jnp.minimum(level, floor + _RISE + steady * _RISE_STEADY)
        peak = jnp.maximum(level, peak - _FALL)
        threshold = jnp.maximum(floor + _ABOVE, floor + _SHARE * (peak - floor))
        threshold = jnp.maximum(threshold, _LEAST)
        active = jnp.clip((level - threshold) / _SOFT + 0.5, 0, 1)
        recent = recent + _SLOW * (active - recent)
        return (floor, peak, mean, spread, recent), jnp.stack([active, recent], -1)

    carry = state.floor, state.peak, state.mean, state.spread, state.recent
    carry, features = jax.lax.scan(step, carry, jnp.moveaxis(other, 1, 0))
    seen = jnp.concatenate([state.past, jnp.moveaxis(features, 0, 1)], 1)  # [B, past + 4 T, 2]
    group, past = config.frames_per_latent, state.past.shape[1]
    starts = np.arange(other.shape[1] // group)[:, None] * group
    windows = seen[:, starts + np.arange(past + group)]  # [B, T, past + 4, 2]
    names = "floor", "peak", "mean", "spread", "recent"
    state = HeardState(**dict(zip(names, carry)), past=seen[:, -past:])
    return windows.reshape(*windows.shape[:2], -1), state
