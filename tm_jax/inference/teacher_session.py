"""Streams of the bidirectional teacher: one clip after another, with many steps.

A clip of Wan's models is the picture and 80 frames that are shown; the next one begins with the
last frame of the one before. Presets whose conditioning is a reference picture keep that one: their
clips show any moment after it, and follow one another without knowing of each other.
"""

import dataclasses
import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.configs import components
from tm_jax.core import pixels
from tm_jax.diffusion import samplers
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import session
from tm_jax.inference import streams
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import conditioning as conditioning_lib
from tm_jax.parallel import rules

_MOST_DECODED = 4  # Latents of a clip that are decoded at once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """How the teacher samples.

    Attributes:
      latents: Latents of a clip, the picture's included.
      steps: Euler steps.
      guidance: g in uncond + g * (cond - uncond), where uncond has silent audio and the
        negative prompt; 1 runs the conditional model alone.
    """

    latents: int = 21
    steps: int = 50
    guidance: float = 5.0

    def __post_init__(self):
        if self.latents < 2 or self.steps < 1 or not math.isfinite(self.guidance):
            raise ValueError(
                "a clip needs at least 2 latents, 1 step and a finite guidance, got "
                f"{self.latents}, {self.steps} and {self.guidance}."
            )


class TeacherSession(session.Session):
    """A session whose `pull` makes one clip of `sampler.latents - 1` latent frames."""

    def __init__(
        self, pipeline: pipeline_lib.Pipeline, picture: np.ndarray, *, seed: int = 0,
        mode: str = "auto", face: tuple[float, float, float, float] | None = None,
        sampler: Sampler = Sampler(),
    ):
        """Starts a stream of clips; arguments as of `session.Session`.

        Args:
          pipeline: Preset and weights; its transformer is the teacher.
          picture: uint8 [H, W, 3] in the preset's size.
          seed: Seed of the noise.
          mode: "auto", "speak" or "listen".
          face: Box that attends to the sound.
          sampler: Length of a clip, steps and guidance.
        """
        self._sampler = sampler
        self._audio = components.audio_encoder(pipeline.preset, sampler.latents - 1)
        self._programs = _programs(pipeline.functions, sampler)
        super().__init__(pipeline, picture, seed=seed, mode=mode, face=face)

    @property
    def _chunk_latents(self) -> int:
        return self._sampler.latents - 1

    @property
    def _around(self) -> tuple[int, int]:
        return self._audio.before, self._audio.after

    def _start_stream(self):
        self._next = self._picture

    def _encode_audio(self, samples: np.ndarray, known: np.ndarray):
        return self._run("encode_audio", samples, known)

    def _encode_partner(self, samples: np.ndarray):
        if not self._pipeline.functions.partner:
            return None
        known = np.full(len(samples), samples.shape[1], np.int32)
        return self._run("encode_audio", samples, known)[0]

    def _denoise(self, windows, mode: np.ndarray, partner: jax.Array | None):
        pipeline = self._pipeline
        faces = None if self._face is None else np.asarray([self._face])
        inputs = pipeline.functions.inputs(self._next[None], faces)
        key = pipeline_lib.stream_key(self._seed, self._chunk)[None]
        return self._run("sample", inputs, windows, mode, partner, key)

    def _decode(self, latents) -> np.ndarray:
        count = latents.shape[1] - 1
        picture = pixels.to_float(jnp.asarray(self._next[None]))
        state = self._run(
            "begin_decoder", streams.DecoderInput(picture=picture, latent=latents[:, 0]),
            decoder=True,
        )
        step = max(n for n in range(1, _MOST_DECODED + 1) if count % n == 0)
        frames = []
        for start in range(1, count + 1, step):
            part = self._pipeline.move(latents[:, start : start + step])
            piece, state = self._run("decode", part, state, decoder=True)
            frames.append(np.asarray(piece)[0])
        if self._pipeline.preset.conditioning != "reference":
            self._next = frames[-1][-1]
        return np.concatenate(frames)

    def _run(self, name: str, *args, decoder: bool = False) -> Any:
        pipeline = self._pipeline
        mesh = pipeline.decode_mesh if decoder else pipeline.denoise_mesh
        params = pipeline.decoder_params if decoder else pipeline.params
        if mesh is None:
            return self._programs[name](params, *args)
        with rules.use(mesh):
            return self._programs[name](params, *args)


@functools.lru_cache(maxsize=8)
def _programs(functions: streams.StreamFunctions, sampler: Sampler) -> dict:
    """Compiled programs of one way to sample."""
    audio = components.audio_encoder(functions.preset, sampler.latents - 1)
    return {
        "encode_audio": jax.jit(audio.encode),
        "sample": jax.jit(functools.partial(sample, functions, sampler)),
        "begin_decoder": jax.jit(functions.begin_decoder),
        "decode": jax.jit(functions.decode, donate_argnums=2),
    }


def sample(
    functions: streams.StreamFunctions, sampler: Sampler, params: dict, inputs: dict,
    windows: jax.Array, mode: jax.Array, partner: jax.Array | None, keys: jax.Array,
) -> jax.Array:
    """One clip by the many-step sampler.

    Where the transformer has conditioning channels all latents are denoised together, as in
    Wan's image-to-video model; where it has none the picture's latent stays clean at noise
    level 0, as in training.

    Args:
      functions: What streams of the preset compute.
      sampler: How to sample.
      params: Parameters by part.
      inputs: Result of `functions.inputs`.
      windows: Audio windows of the frames after the picture, [B, T - 1, R, U].
      mode: Mode of those frames, int32 [B, T - 1].
      partner: Windows of the other party's voice, as `windows`; None for a preset without.
      keys: Stream keys, uint32 [B, 2].

    Returns:
      Latents [B, T, H, W, C].
    """
    preset, parts, latents = functions.preset, functions.components, sampler.latents
    picture = pixels.to_float(inputs["pictures"])
    pinned = preset.conditioning != "first_frame"
    reference = parts.vae.begin(params, params[streams.CONSTANTS], picture)
    condition = reference.condition
    if not pinned:  # A clip of its own: the frames right after the picture are not settled.
        vae = cast(components.WanVideoVAE, parts.vae)  # No other has such presets.
        condition = vae.clip_condition(params, picture, latents)
    channels = conditioning_lib.channels(preset.conditioning, condition, latents)
    shape = (latents, *preset.latent_shape)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(pipeline_lib.keys_of(keys))
    known = (jnp.arange(latents) == 0).astype(jnp.float32)[None]
    if pinned:
        noise = noise.at[:, 0].set(reference.latent.astype(noise.dtype))
    variables = {"params": params["transformer"]}
    grid = dataclasses.replace(parts.grid, chunk=latents)
    given = conditioning_lib.Conditioning(
        channels=channels, audio=windows, partner_audio=partner, mode=mode
    ).after_sink()  # The picture listens, as in training.
    conditional = parts.dit.apply(
        variables, given, functions.context(params, inputs, "prompt"), method="embed"
    )
    plain = None
    if sampler.guidance != 1:
        plain = parts.dit.apply(
            variables, given.without_audio(), functions.context(params, inputs, "negative"),
            method="embed",
        )

    def once(x, sigma, embedded):
        level = sigma * (1 - known) if pinned else jnp.full_like(known, sigma)
        velocity, _ = parts.dit.apply(
            variables, x, jnp.broadcast_to(level, x.shape[:2]), embedded,
            lambda layer: attention_patterns.bidirectional(grid),
        )
        return velocity.at[:, 0].set(0.0) if pinned else velocity

    def velocity(x, sigma):
        with_condition = once(x, sigma, conditional)
        if plain is None:
            return with_condition
        without = once(x, sigma, plain)
        return without + sampler.guidance * (with_condition - without)

    return samplers.euler(velocity, noise, preset.schedule.steps(sampler.steps))[-1]
