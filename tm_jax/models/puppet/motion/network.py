"""Draws the motion of the next latent frame from the past, the sound and chance.

A speaker's motion follows its own voice; a listener's reacts to the other party's, if any.
What the voice does not determine (when to blink, where to look, how the head drifts and
nods) is drawn here, four pixel frames at a time, by flow matching in a space of 48 numbers.
The transformer is conditioned on the expression, so its output is nearly determined. A few-step
student returns about the mean of what its conditions leave open, and a mean never blinks.

Differs from the paper, whose 18 B transformer draws all motion itself.
"""

import dataclasses
import typing

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.diffusion import flow_matching
from tm_jax.diffusion import samplers
from tm_jax.models.puppet.motion import config as config_lib
from tm_jax.models.puppet.motion import heard as heard_lib
from tm_jax.nn import embeddings
from tm_jax.nn import linear

_COLUMNS = len(config_lib.COLUMNS)
_SCHEDULE = flow_matching.Schedule(shift=1.0)
# Lids, smile and breath are never negative.
_LOW = np.array(
    [0.0 if name.startswith(("blink", "smile", "breath")) else -1.0
     for name in config_lib.COLUMNS], np.float32
)


@flax.struct.dataclass
class MotionState:
    """Motion of a stream so far.

    Attributes:
      history: Last frames of motion [B, history_frames, M], oldest first.
      heard: State of the features of the other party's voice.
      key: Key of every stream, [B].
      latent: Latent frames drawn so far, int32 [B].
    """

    history: jax.Array
    heard: heard_lib.HeardState
    key: jax.Array
    latent: jax.Array


class MotionModel(nn.Module):
    """Velocity of the flow from noise to the motion of one latent frame.

    Attributes:
      config: Sizes.
    """

    config: config_lib.MotionConfig

    def setup(self):
        c = self.config
        shape = (c.frames_per_latent, _COLUMNS)
        # Set from data before training.
        self.mean = self.param("mean", nn.initializers.zeros, (_COLUMNS,))
        self.std = self.param("std", nn.initializers.ones, (_COLUMNS,))
        self.change = self.param("change", nn.initializers.ones, shape)
        plain = (None, None)
        self.inner = linear.Dense(c.width, plain)
        self.time = linear.Dense(c.width, plain)
        self.first = [linear.Dense(c.mlp_width, plain) for _ in range(c.layers)]
        self.second = [linear.Dense(c.width, plain, zero=True) for _ in range(c.layers)]
        self.head = linear.Dense(c.frames_per_latent * _COLUMNS, plain, zero=True)

    def normalise(self, motion: jax.Array, history: jax.Array) -> jax.Array:
        """Motion [B, 4, M] as its change since the last frame of `history`, in unit scale."""
        return (motion - history[:, -1:]) / jax.lax.stop_gradient(self.change)

    def restore(self, x: jax.Array, history: jax.Array) -> jax.Array:
        """Inverse of `normalise`."""
        return history[:, -1:] + x * jax.lax.stop_gradient(self.change)

    def __call__(self, x, sigma, history, window, mode, heard):
        """Velocity.

        Args:
          x: Noisy normalised motion [B, 4, M].
          sigma: Noise level [B].
          history: Past motion [B, history_frames, M].
          window: Audio window of the latent frame, [B, R, U].
          mode: 0 listening, 1 speaking, [B].
          heard: Features of the other party's voice, [B, heard_width].

        Returns:
          [B, 4, M].
        """
        batch = x.shape[0]
        stop = jax.lax.stop_gradient
        past = (history - stop(self.mean)) / stop(self.std)
        speaks = mode.astype(jnp.float32)[:, None]
        y = self.inner(jnp.concatenate([
            x.reshape(batch, -1), past.reshape(batch, -1), speaks,
            window.reshape(batch, -1) * speaks, heard * (1 - speaks),
        ], -1))
        y = y + self.time(embeddings.sinusoid(flow_matching.model_time(sigma), self.config.width))
        for first, second in zip(self.first, self.second):
            scale = jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + 1e-6)
            y = y + second(nn.silu(first(y * scale)))
        return self.head(nn.silu(y)).reshape(x.shape)


def initial_state(config: config_lib.MotionConfig, keys: jax.Array) -> MotionState:
    """State of streams that begin at rest; keys [B]."""
    batch = keys.shape[0]
    return MotionState(
        history=jnp.zeros((batch, config.history_frames, _COLUMNS)),
        heard=heard_lib.initial_state(config, batch), key=keys,
        latent=jnp.zeros((batch,), jnp.int32),
    )


def next_chunk(
    model: MotionModel, params: dict, state: MotionState, windows: jax.Array, mode: jax.Array,
    other: jax.Array | None = None
) -> tuple[jax.Array, MotionState]:
    """Draws the motion of a chunk.

    Args:
      model: Motion model.
      params: Its parameters.
      state: State of the streams.
      windows: Audio windows [B, T, R, U].
      mode: [B, T] int32.
      other: Loudness of the other party in every frame, [B, 4 T], as in `heard.hear`;
        None for silence.

    Returns:
      Motion [B, 4 T, M] in the units of `data/synthetic/motion.py`, and the next state.
    """
    c = model.config
    variables = {"params": params}
    shape = (c.frames_per_latent, _COLUMNS)
    sigmas = _SCHEDULE.steps(c.steps)
    if other is None:
        other = jnp.zeros((mode.shape[0], mode.shape[1] * c.frames_per_latent))
    features, heard_state = heard_lib.hear(c, state.heard, other)
    state = dataclasses.replace(state, heard=heard_state)

    def step(state, inputs):
        window, speaks, heard = inputs
        keys = jax.vmap(jax.random.fold_in)(state.key, state.latent)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

        def velocity(x, sigma):
            level = jnp.full((x.shape[0],), sigma)
            output = model.apply(variables, x, level, state.history, window, speaks, heard)
            return typing.cast(jax.Array, output)

        x = samplers.euler(velocity, noise, sigmas)[-1]
        restored = model.apply(variables, x, state.history, method=model.restore)
        motion = jnp.clip(typing.cast(jax.Array, restored), _LOW, 1.0)
        history = jnp.concatenate([state.history, motion], 1)[:, c.frames_per_latent :]
        return dataclasses.replace(state, history=history, latent=state.latent + 1), motion

    inputs = tuple(jnp.moveaxis(x, 1, 0) for x in (windows, mode, features))
    state, motion = jax.lax.scan(step, state, inputs)  # [T, B, 4, M]
    motion = jnp.moveaxis(motion, 0, 1)
    return motion.reshape(motion.shape[0], -1, _COLUMNS), state
