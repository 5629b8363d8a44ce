"""Stage `vae`: the autoencoder of a small preset, on drawn characters."""

import dataclasses

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.configs import presets
from tm_jax.core import pixels as pixels_lib
from tm_jax.data.synthetic import drawn
from tm_jax.models.puppet import face as face_lib
from tm_jax.models.puppet.vae import autoencoder
from tm_jax.models.puppet.vae import config as vae_config
from tm_jax.training import aligned
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEStageConfig:
    """Settings of the stage.

    Attributes:
      batch: Clips per step.
      latents: Latent frames per clip.
      mouth_weight: Extra weight of the pixels around the mouth.
      eyes_weight: The same for eyes and brows.
      edge_weight: Weight of the error of pixel differences, which keeps lines sharp.
      time_weight: Weight of the error of differences between frames.
      square_weight: Weight of the squared error beside the absolute one, which a face that
        never moves makes small too.
      noise: Largest noise on latents: it stands for the errors of the transformer.
      label_weight: Weight of the squared error of the latents that the encoder reads.
      optimizer: Optimiser.
    """

    batch: int = 8
    latents: int = 1
    mouth_weight: float = 8.0
    eyes_weight: float = 4.0
    edge_weight: float = 0.5
    time_weight: float = 0.3
    square_weight: float = 10.0
    noise: float = 0.3
    label_weight: float = 0.02
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=2e-3, warmup_steps=30, beta2=0.99, weight_decay=0.0, ema_decay=0.98
    )


def weights(seen: dict, config: VAEStageConfig, rows: int) -> jax.Array:
    """How much pixels (or latents) of `aligned.squares` matter, [B, 1 + F, rows, rows]."""
    mouth = face_lib.coverage(seen["mouth"], rows, rows)
    eyes = face_lib.coverage(seen["eyes"], rows, rows)
    return 1 + config.mouth_weight * mouth + config.eyes_weight * eyes


def make(preset: presets.Preset, config: VAEStageConfig) -> loop.Stage:
    """The stage for a preset with an autoencoder of its own.

    Raises:
      ValueError: The preset uses the Wan VAE.
    """
    vae = preset.vae
    if not isinstance(vae, vae_config.VAEConfig):
        raise ValueError(
            f"preset {preset.name} has no autoencoder of aligned faces; this stage trains none "
            "other."
        )
    model = autoencoder.VideoAutoencoder(vae)
    length = vae.frames_per_latent * config.latents

    def init(key):
        frames = jnp.zeros((1, vae.frames_per_latent, vae.side, vae.side, 3))
        return model.init(key, frames, frames[:, 0])["params"]

    def loss(params, frozen, batch, key):
        seen = aligned.squares(preset, batch)
        x, weight = seen["frames"], weights(seen, config, vae.side)[:, 1:, ..., None]
        weight = weight / weight.mean()
        variables, z = {"params": params}, seen["latents"]
        read = model.apply(variables, x[:, 1:], x[:, 0], method=model.encode)
        keys = jax.random.split(key)
        level = config.noise * jax.random.uniform(keys[0], (z.shape[0], 1, 1, 1, 1))
        z = z + level * jax.random.normal(keys[1], z.shape)
        y = model.apply(variables, z, x[:, 0], method=model.decode)
        error = y - x[:, 1:]
        absolute = jnp.mean(weight * jnp.abs(error))
        edges = jnp.mean(weight[:, :, 1:] * jnp.abs(jnp.diff(error, axis=2)))
        edges += jnp.mean(weight[:, :, :, 1:] * jnp.abs(jnp.diff(error, axis=3)))
        moved = jnp.mean(weight[:, 1:] * jnp.abs(jnp.diff(error, axis=1)))
        label = jnp.mean(jnp.square(read - seen["latents"]))
        square = jnp.mean(weight * jnp.square(error))
        total = absolute + config.square_weight * square
        total += config.edge_weight * edges + config.time_weight * moved
        psnr = -10 * jnp.log10(jnp.mean(jnp.square(error)) / 4)
        return total + config.label_weight * label, {"psnr": psnr, "label": label}

    held_out = next(iter(drawn.batches(2, 12, 2 * length, held_out=True)))
    draw = jax.jit(lambda batch: aligned.squares(preset, batch))
    paint = jax.jit(lambda p, z, x: model.apply({"params": p}, z, x, method=model.decode))
    reconstruct = jax.jit(lambda p, x: model.apply({"params": p}, x[:, 1:], x[:, 0]))

    def sample(params, frozen, path):
        seen = draw(held_out)
        x = seen["frames"]
        x, still = x[:, 1:], x[:, 0]
        y = paint(params, seen["latents"], still)
        again = reconstruct(params, seen["frames"])
        mouth = np.asarray(face_lib.coverage(seen["mouth"], vae.side, vae.side))[:, 1:]

        def psnr(y, mask=1.0):
            square = np.square(np.clip(y, -1, 1) - x) * mask
            return float(-10 * np.log10(square.sum() / (np.ones_like(square) * mask).sum() / 4))

        pictures = [np.asarray(pixels_lib.to_uint8(v)) for v in (x, y, again)]
        rows = [np.concatenate(list(v[:, at]), 1) for at in (3, -1) for v in pictures]
        iio.imwrite(path + ".png", np.concatenate(rows))
        return {
            "psnr": psnr(y), "psnr_mouth": psnr(y, mouth[..., None]), "psnr_read": psnr(again)
        }

    return loop.Stage(
        name="vae", init=init, loss=loss, frozen={},
        batches=lambda seed: drawn.batches(seed, config.batch, length),
        sample=sample, finish=lambda params, frozen: params, optimizer=config.optimizer,
    )
