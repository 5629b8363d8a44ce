"""Shows frames as an autoencoder leaves them: what a perfect denoiser could reach at best."""

import functools

import jax
import numpy as np

from tm_jax.data import drawn
from tm_jax.inference import bundle as bundle_lib
from tm_jax.models.motion import config as motion_config


class Autoencoder:
    """Encodes and decodes frames with the bundle's autoencoder, chunk by chunk."""

    def __init__(self, bundle):
        self._bundle = bundle
        vae = bundle.models.vae

        @jax.jit
        def encode(params, frames):
            return vae.apply({"params": params}, drawn.to_float(frames[None]), method=vae.encode)

        self._encode = functools.partial(encode, bundle.params["vae"])

    def __call__(self, picture: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Returns frames [T, H, W, 3] as a stream of the true latents would show them."""
        bundle, step = self._bundle, self._bundle.preset.timing.frames_per_chunk
        _, _, state = bundle.begin(bundle.params, picture[None], bundle_lib.stream_key(0)[None])
        still = np.zeros((1, step, len(motion_config.POSE)), np.float32)
        whole = np.array([[-9.0, -9.0, 10.0, 10.0]], np.float32)  # Code the whole picture.
        shown = []
        for at in range(0, len(frames), step):
            part = frames[at : at + step]
            part = np.concatenate([part, np.repeat(part[-1:], step - len(part), 0)])
            before = frames[at - 1 : at] if at else picture[None]
            latents = self._encode(np.concatenate([before, part]))[:, 1:]
            z = bundle_lib.Scored(latents=latents, pose=still, face=whole, picture=picture[None])
            pixels, state = bundle.decode(bundle.params, z, state)
            shown.append(np.asarray(pixels[0]))
        return np.concatenate(shown)[: len(frames)]
