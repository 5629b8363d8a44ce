"""What a person looks at while a transformer trains: held-out clips, and their mouths."""

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import pixels as pixels_lib
from tm_jax.data.corpus import tracks
from tm_jax.data.synthetic import characters
from tm_jax.evaluation import mouth
from tm_jax.models.puppet.vae import config as vae_config
from tm_jax.training import aligned
from tm_jax.training import latents as latents_lib
from tm_jax.training import sources


class Preview:
    """Held-out characters and voices, encoded once.

    Args:
      models: Networks.
      params: Parameters of `vae` and `audio`.
      config: Latent settings; `clips` is the number of previewed clips.
      latents: Latent frames per clip.
    """

    def __init__(self, models, params, config, latents: int, seed: int = 9):
        self._models, self._params = models, params
        voices = tracks.Voices(config.corpus, "held_out")
        items = []
        for i in range(config.clips):
            rng = np.random.default_rng((seed, i))
            character = characters.sample(characters.held_out_seed(i))
            items.append(latents_lib.describe(config, models, voices, rng, character))
        self._batch = sources.collate(items)
        arrays = jax.device_get(latents_lib.make_encoder(models, params)(self._batch))
        self.store = arrays
        windows = [
            latents_lib.window(arrays, i, 0, latents, models) for i in range(config.clips)
        ]
        self.batch = sources.collate(windows)
        self._decode = jax.jit(lambda p, z, x: pixels_lib.to_uint8(
            models.vae.apply({"params": p}, z, x, method=models.vae.decode)
        ))
        seen = jax.jit(lambda batch: aligned.squares(models.preset, batch))(self._batch)
        self._pictures = np.asarray(seen["frames"][:, 0])
        self.truth = np.asarray(pixels_lib.to_uint8(seen["frames"]))[:, 1:]
        self._boxes = np.asarray(seen["mouth"])[:, 1:]

    def show(self, x0: jax.Array, path: str) -> dict:
        """Writes frames and a clip of samples x0 [B, T, H, W, C]; returns measures."""
        video = np.concatenate(
            [np.asarray(self._decode(
                self._params["vae"], jnp.asarray(x0[i : i + 2]), self._pictures[i : i + 2]
            )) for i in range(0, len(x0), 2)]
        )
        frames = video.shape[1]
        truth = self.truth[:, :frames]
        shown = min(8, len(video))
        rows = []
        for at in (0, frames // 3, 2 * frames // 3, frames - 1):
            rows += [np.concatenate(list(v[:shown, at]), 1) for v in (truth, video)]
        iio.imwrite(path + ".jpg", np.concatenate(rows), quality=85)
        # A box that holds the mouth in every pose of the clip.
        boxes = self._boxes[:, :frames]
        around = np.concatenate([boxes[..., :2].min(1), boxes[..., 2:].max(1)], -1)
        correlations, openings = [], {0: [], 1: []}
        for i in range(len(video)):
            measured = mouth.opening(video[i], around[i])
            mode = int(self.batch["mode"][i])
            openings[mode].append(np.mean(np.abs(np.diff(measured))))
            true = self._batch["motion"][i, 1 : 1 + frames, 0]
            if mode and np.std(true) > 0.05:
                spread = np.std(measured) > 1e-6
                correlations.append(np.corrcoef(measured, true)[0, 1] if spread else 0.0)
        error = np.mean(np.square((video - truth.astype(np.float32)) / 255))
        result = {"psnr": float(-10 * np.log10(error)), **self._told(np.asarray(x0))}
        if correlations:
            result["opening_correlation"] = float(np.median(correlations))
        if openings[0] and openings[1]:
            result["silence_ratio"] = float(np.mean(openings[0]) / (np.mean(openings[1]) + 1e-9))
        return result

    def _told(self, x0) -> dict:
        """How well latents themselves encode the opening of the mouth, whatever is painted."""
        at = vae_config.LOWER.index("mouth_open")

        def opening(z):
            z = z[:, :, z.shape[2] // 2 :].mean((2, 3))
            return z.reshape(*z.shape[:2], -1, len(vae_config.LOWER))[..., at].reshape(len(z), -1)

        pairs = zip(opening(x0), opening(self.batch["x0"]), self.batch["mode"])
        found = [np.corrcoef(a, b)[0, 1] for a, b, mode in pairs if mode and np.std(b) > 0.15]
        return {"told_correlation": float(np.median(found))} if found else {}
