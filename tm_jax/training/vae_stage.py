"""Stage `vae`: the autoencoder of a small preset, on drawn characters.

The linear code is fitted at once; the steps train the convolutions that clean frames up.
"""

import dataclasses

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.data import drawn
from tm_jax.models import face as face_lib
from tm_jax.models import presets
from tm_jax.models.vae import autoencoder
from tm_jax.training import aligned
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEStageConfig:
    """Settings of the stage.

    Attributes:
      batch: Clips per step.
      latents: Latent frames per clip.
      mouth_weight: Extra weight of the pixels around the mouth, in the fit and in the loss.
      eyes_weight: The same for eyes and brows.
      edge_weight: Weight of the error of pixel differences, which keeps lines sharp.
      time_weight: Weight of the error of differences between frames, which hides the borders
        of latents.
      noise: Largest noise on latents, in units of each channel's spread: it stands for the
        errors of the transformer.
      fade: Largest share of a latent that is lost, likewise.
      fit_clips: Clips used to fit the linear code, of two latents each.
      optimizer: Optimiser.
    """

    batch: int = 4
    latents: int = 2
    mouth_weight: float = 8.0
    eyes_weight: float = 4.0
    edge_weight: float = 0.5
    time_weight: float = 0.3
    noise: float = 0.5
    fade: float = 0.3
    fit_clips: int = 240
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=1e-3, warmup_steps=50, beta2=0.99, weight_decay=0.0, ema_decay=0.99
    )


_BLOCK = 16  # Clips drawn at once for the fit.


def weights(seen: dict, config: VAEStageConfig, rows: int) -> jax.Array:
    """How much pixels (or latents) of `aligned.squares` matter, [B, 1 + F, rows, rows]."""
    mouth = face_lib.coverage(seen["mouth"], rows, rows)
    eyes = face_lib.coverage(seen["eyes"], rows, rows)
    return 1 + config.mouth_weight * mouth + config.eyes_weight * eyes


def fit(preset: presets.Preset, config: VAEStageConfig) -> dict:
    """The linear code of drawn clips: parameters without the convolutions."""
    frames = 2 * preset.vae.frames_per_latent
    data = iter(drawn.batches(1, min(_BLOCK, config.fit_clips), frames))
    draw = jax.jit(lambda batch: aligned.squares(preset, batch))
    pixels, importance = [], []
    for _ in range(-(-config.fit_clips // _BLOCK)):
        seen = draw(next(data))
        pixels.append(np.asarray(seen["frames"]))
        importance.append(np.asarray(weights(seen, config, preset.crop)))
    code = autoencoder.principal_components(
        np.concatenate(pixels), np.concatenate(importance), preset.vae
    )
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), code)


def make(preset: presets.Preset, config: VAEStageConfig) -> loop.Stage:
    """The stage for a preset with an autoencoder of its own.

    Raises:
      ValueError: The preset uses the Wan VAE.
    """
    if preset.vae is None:
        raise ValueError(f"preset {preset.name} uses the Wan VAE; there is none to train.")
    model = autoencoder.VideoAutoencoder(preset.vae)
    length = preset.vae.frames_per_latent * config.latents
    code = fit(preset, config)

    def init(key):
        frames = jnp.zeros((1, 1 + preset.vae.frames_per_latent, 32, 32, 3))
        return model.init(key, frames, frames[:, 0])["params"]["refine"]

    def loss(params, frozen, batch, key):
        seen = aligned.squares(preset, batch)
        x, weight = seen["frames"], weights(seen, config, preset.crop)[:, 1:, ..., None]
        weight = weight / weight.mean()
        variables = {"params": {**frozen, "refine": params}}
        z = model.apply(variables, x, x[:, 0], method=model.encode)
        keys = jax.random.split(key, 3)
        one = (z.shape[0], 1, 1, 1, 1)
        spread = jnp.sqrt(jnp.mean(jnp.square(z), (0, 1, 2, 3)))
        z = z * (1 - config.fade * jax.random.uniform(keys[0], one))
        level = config.noise * jax.random.uniform(keys[1], one) * spread
        z = z + level * jax.random.normal(keys[2], z.shape)
        y = model.apply(variables, z, x[:, 0], method=model.decode)
        error = y - x[:, 1:]
        absolute = jnp.mean(weight * jnp.abs(error))
        edges = jnp.mean(weight[:, :, 1:] * jnp.abs(jnp.diff(error, axis=2)))
        edges += jnp.mean(weight[:, :, :, 1:] * jnp.abs(jnp.diff(error, axis=3)))
        moved = jnp.mean(weight[:, 1:] * jnp.abs(jnp.diff(error, axis=1)))
        total = absolute + config.edge_weight * edges + config.time_weight * moved
        return total, {"psnr": -10 * jnp.log10(jnp.mean(jnp.square(error)) / 4)}

    held_out = next(iter(drawn.batches(2, 12, 2 * length, held_out=True)))
    draw = jax.jit(lambda batch: aligned.squares(preset, batch))
    reconstruct = jax.jit(lambda p, x: model.apply({"params": p}, x, x[:, 0])[0])

    def sample(params, frozen, path):
        seen = draw(held_out)
        x = seen["frames"]
        y = reconstruct({**frozen, "refine": params}, x)
        x, square = x[:, 1:], np.square(np.clip(y, -1, 1) - x[:, 1:])
        mouth = np.asarray(face_lib.coverage(seen["mouth"], preset.crop, preset.crop))[:, 1:]
        around = np.sum(square * mouth[..., None]) / (3 * np.sum(mouth))
        pictures = [np.asarray(drawn.to_uint8(v)) for v in (x, y)]
        rows = [np.concatenate(list(v[:, at]), 1) for at in (3, -1) for v in pictures]
        iio.imwrite(path + ".png", np.concatenate(rows))
        psnr = -10 * np.log10(square.mean((1, 2, 3, 4)) / 4)
        return {
            "psnr": float(psnr.mean()), "psnr_min": float(psnr.min()),
            "psnr_mouth": float(-10 * np.log10(around / 4)),
        }

    def finish(params, frozen):
        return jax.tree.map(jnp.asarray, {**frozen, "refine": params})

    return loop.Stage(
        name="vae", init=init, loss=loss, frozen=code,
        batches=lambda seed: drawn.batches(seed, config.batch, length),
        sample=sample, finish=finish, optimizer=config.optimizer,
    )
