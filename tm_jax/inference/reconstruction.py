"""Shows frames as an autoencoder leaves them: what a perfect denoiser could reach at best."""

import functools
import typing

import jax
import numpy as np

from tm_jax.core import pixels as pixels_lib
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import streams


class Autoencoder:
    """Encodes clips and decodes them as a stream, with a pipeline's autoencoder."""

    def __init__(self, pipeline: pipeline_lib.Pipeline):
        self._pipeline = pipeline
        functions = typing.cast(streams.StreamFunctions, pipeline.functions)
        vae = functions.components.vae
        self._encode = functools.partial(
            jax.jit(lambda params, clip: vae.encode(params, pixels_lib.to_float(clip))),
            {name: pipeline.params[name] for name in vae.parts},
        )

    def __call__(self, picture: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Frames [T, H, W, 3] as a stream of their true latents would show them.

        Args:
          picture: Reference picture, uint8 [H, W, 3].
          frames: uint8 [T, H, W, 3].
        """
        pipeline, timing = self._pipeline, self._pipeline.preset.timing
        rest = -len(frames) % timing.frames_per_chunk
        clip = np.concatenate([picture[None], frames, np.repeat(frames[-1:], rest, 0)])
        latents = self._encode(clip[None])
        _, _, state = pipeline.begin(picture[None], pipeline_lib.stream_key(0)[None])
        shown = []
        for at in range(1, latents.shape[1], timing.latents_per_chunk):
            part = latents[:, at : at + timing.latents_per_chunk]
            made, state = pipeline.decode(part, state)
            shown.append(np.asarray(made[0]))
        return np.concatenate(shown)[: len(frames)]
