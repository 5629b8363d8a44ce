"""Shows frames as an autoencoder leaves them: what a perfect denoiser could reach at best."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import pixels as pixels_lib
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import puppet
from tm_jax.models.puppet import face as face_lib
from tm_jax.models.puppet.motion import config as motion_config


class Autoencoder:
    """Encodes and decodes frames with the pipeline's autoencoder, chunk by chunk."""

    def __init__(self, pipeline: pipeline_lib.Pipeline):
        self._pipeline = pipeline
        models = puppet.functions_of(pipeline).models

        @jax.jit
        def encode(params, frames, place, picture):
            whole = pixels_lib.to_float(frames[None])
            squares = face_lib.cut(whole, place.square, models.vae.config.side)
            return models.vae.apply({"params": params}, squares, picture, method=models.vae.encode)

        self._encode = functools.partial(encode, pipeline.params["vae"])

    def __call__(self, picture: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Returns frames [T, H, W, 3] as a stream of the true latents would show them."""
        pipeline, step = self._pipeline, self._pipeline.preset.timing.frames_per_chunk
        start, _, state = pipeline.begin(picture[None], pipeline_lib.stream_key(0)[None])
        still = jnp.zeros((1, step, len(motion_config.POSE)), jnp.float32)
        shown = []
        for at in range(0, len(frames), step):
            part = frames[at : at + step]
            part = np.concatenate([part, np.repeat(part[-1:], step - len(part), 0)])
            z = self._encode(part, start.place, state.picture)
            latents = puppet.Denoised(latents=z, pose=still, place=start.place)
            pixels, state = pipeline.decode(latents, state)
            shown.append(np.asarray(pixels[0]))
        return np.concatenate(shown)[: len(frames)]
