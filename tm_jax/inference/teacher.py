"""Streams of a small preset by its bidirectional teacher: clip after clip, with many steps.

The teacher is trained on clips of a few chunks that all begin from the picture, so it makes a
stream of such clips. Sound, mode, motion and decoder are those of the student's session; the
chunks' latents alone come from the teacher's sampler. It is for comparison, not for live use.
"""

from collections.abc import Callable
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.diffusion import samplers
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import puppet
from tm_jax.inference import session
from tm_jax.models.puppet.motion import config as motion_config
from tm_jax.models.puppet.motion import network as motion_network

_NOISE = 0x7EAC  # Sets the teacher's noise apart from the student's.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How the teacher samples.

    Attributes:
      chunks: Chunks of one clip, as in its training.
      steps: Euler steps.
      guidance: g in uncond + g * (cond - uncond) over the sound; 1 is without guidance.
    """

    chunks: int = 2
    steps: int = 50
    guidance: float = 1.0

    def __post_init__(self):
        if min(self.chunks, self.steps) < 1:
            raise ValueError(
                f"chunks and steps must be at least 1, got {self.chunks} and {self.steps}."
            )


class Session(session.Session):
    """A session whose `pull` makes one clip of `plan.chunks` chunks."""

    def __init__(
        self, pipeline: pipeline_lib.Pipeline, picture: np.ndarray, velocity: Callable, *,
        seed: int = 0, mode: str = "auto", plan: Plan = Plan(),
    ):
        """Starts a stream.

        Args:
          pipeline: Preset and weights; its transformer is the teacher.
          picture: uint8 [H, W, 3] in the preset's size.
          velocity: The teacher's velocity (models, params, batch, x, sigma, windows, context),
            `training.puppet_source.teacher_velocity`.
          seed: Seed of the noise and the motion.
          mode: "auto" (speaks while a voice is heard), "speak" or "listen".
          plan: How to sample.
        """
        self._plan = plan
        models = puppet.functions_of(pipeline).models
        self._sample = _sampler(models, velocity, plan)
        self._move = _mover(models)
        super().__init__(pipeline, picture, seed=seed, mode=mode)
        self.chunk_frames *= plan.chunks

    def pull(self) -> session.Chunk | None:
        """Makes the next clip.

        Returns:
          The clip; None while too little sound has been pushed. Never None after `end_audio`.
        """
        pipeline, step = self._pipeline, self._pipeline.preset.timing.samples_per_chunk
        around = pipeline.before + pipeline.after
        needed = around + self._plan.chunks * step
        if len(self._sound) < needed:
            if not self._ended:
                return None
            self._sound = np.pad(self._sound, (0, needed - len(self._sound)))
        started = time.perf_counter()
        windows, modes = [], []
        for at in range(0, needed - around, step):
            part = self._sound[None, at : at + around + step]
            heard, voice = pipeline.encode_audio(part)
            speaking = self._speaks(np.asarray(voice))
            windows.append(heard)
            modes.append(np.full(voice.shape, speaking, np.int32))
        heard = time.perf_counter()
        frames = self._plan.chunks * pipeline.preset.timing.frames_per_chunk
        other = self._partner.take(frames)[None]
        partner = [
            pipeline.encode_partner(other[:, at : at + around + step])
            for at in range(0, needed - around, step)
        ]
        scored = self._score(windows, modes, partner)
        made = time.perf_counter()
        clip = []
        for latents in scored:
            shown, self._decoder = pipeline.decode(pipeline.move(latents), self._decoder)
            clip.append(np.asarray(shown)[0])
        self._sound = self._sound[needed - around :]
        first = self._chunk * self.chunk_frames
        self._chunk += 1
        seconds = {
            "audio": heard - started, "score": made - heard,
            "decode": time.perf_counter() - made,
        }
        speaking = bool(np.mean([mode.mean() for mode in modes]) >= 0.5)
        return session.Chunk(np.concatenate(clip), first, seconds, speaking)

    def _score(self, windows: list, modes: list, partner: list) -> list:
        """The clip's chunks, as `Pipeline.decode` takes them."""
        pipeline = self._pipeline
        params, start = pipeline.params, self._start
        assert start is not None  # Until `close`.
        hearing, mode = jnp.concatenate(windows, 1), np.concatenate(modes, 1)
        # `denoise` takes the state away, so the motion is drawn before it, and once more in it.
        other = jnp.concatenate(partner, 1)
        expression = self._move(params["motion"], self._state.motion, hearing, mode, other)
        scored = []
        for heard, speaks, loud in zip(windows, modes, partner):
            chunk, self._state = pipeline.denoise(self._state, start, heard, speaks, loud)
            scored.append(chunk)
        key = jax.random.fold_in(jax.random.key(self._seed ^ _NOISE), self._chunk)
        batch = {"reference": start.reference, "expression": expression, "mode": mode.max(1)}
        latents = self._sample(
            params["dit"], batch, start.context, hearing, key, scored[0].latents.shape[2:]
        )
        parts = jnp.split(latents, len(scored), axis=1)
        return [dataclasses.replace(chunk, latents=part) for chunk, part in zip(scored, parts)]


@functools.lru_cache(maxsize=8)
def _sampler(models, velocity: Callable, plan: Plan):
    """Compiled (params, batch, context, windows, key, shape) -> latents [B, T, H, W, C]."""
    sigmas = models.preset.schedule.steps(plan.steps)

    @functools.partial(jax.jit, static_argnums=5)
    def sample(params, batch, context, windows, key, shape):
        size, frames = windows.shape[:2]

        def run(x, sigma, heard):
            level = jnp.full((size,), sigma)
            return velocity(models, params, batch, x, level, heard, context)

        def guided(x, sigma):
            conditional = run(x, sigma, windows)
            if plan.guidance == 1.0:
                return conditional
            plain = run(x, sigma, jnp.zeros_like(windows))
            return plain + plan.guidance * (conditional - plain)

        noise = jax.random.normal(key, (size, frames, *shape))
        return samplers.euler(guided, noise, sigmas)[-1]

    return sample


@functools.lru_cache(maxsize=8)
def _mover(models):
    """Compiled (params, motion state, windows, mode, other) -> expression [B, T, X]."""

    @jax.jit
    def move(params, state, windows, mode, other):
        motion, _ = motion_network.next_chunk(
            models.motion, params, state, windows, mode, other
        )
        expression = motion[..., : len(motion_config.EXPRESSION)]
        return expression.reshape(*mode.shape, -1)

    return move
