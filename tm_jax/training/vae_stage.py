"""Stage `vae`: the autoencoder of a small preset, on drawn characters."""

import dataclasses

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.data import characters
from tm_jax.data import drawn
from tm_jax.models import presets
from tm_jax.models.vae import autoencoder
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEStageConfig:
    """Settings of the stage.

    Attributes:
      batch: Clips per step.
      latents: Latent frames per clip, the first one included.
      crop: Side of the square that the loss looks at.
      mouth_weight: Extra weight of the pixels around the mouth.
      edge_weight: Weight of the error of pixel differences, which keeps lines sharp.
      time_weight: Weight of the error of differences between frames, which hides the borders
        of latents.
      square_weight: Weight of the squared error beside the absolute one.
      noise: Largest standard deviation of noise on normalised latents, which stands for the
        errors of the transformer.
      fit_mouth: Extra weight of the mouth in the fit of the linear code.
      fit_face: The same for the face.
      fit_frames: Frames of each clip used to fit the linear code.
      fit_clips: Clips used to fit the linear code.
      optimizer: Optimiser.
    """

    batch: int = 4
    latents: int = 3
    crop: int = 128
    mouth_weight: float = 3.0
    edge_weight: float = 0.3
    time_weight: float = 0.3
    square_weight: float = 10.0
    noise: float = 0.1
    fit_mouth: float = 20.0
    fit_face: float = 2.0
    fit_frames: int = 8
    fit_clips: int = 200
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=3e-5, beta2=0.99, weight_decay=0.0, ema_decay=0.995
    )


def _describe(config, size, held_out, seed, clips, frames):
    data = drawn.batches(seed, clips, frames, None, size, held_out)
    return next(iter(data))


def render(description: dict, size: int) -> jax.Array:
    """Frames [B, F, size, size, 3] in -1..1 of a batch of descriptions."""
    return drawn.to_float(
        characters.render(description["character"], description["motion"], size)
    )


def _cut(x, corner, crop):
    """Cuts the square at `corner` [B, 2] out of [B, F, H, W, C]."""

    def one(x, corner):
        start = (0, corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(x, start, (x.shape[0], crop, crop, x.shape[3]))

    return jax.vmap(one)(x, corner)


def make(preset: presets.Preset, config: VAEStageConfig) -> loop.Stage:
    """The stage for a preset with an autoencoder of its own.

    Raises:
      ValueError: The preset uses the Wan VAE.
    """
    if preset.vae is None:
        raise ValueError(f"preset {preset.name} uses the Wan VAE; there is none to train.")
    size, group = preset.height, preset.vae.frames_per_latent
    crop = min(config.crop, size)
    model = autoencoder.VideoAutoencoder(preset.vae)
    frames = group * (config.latents - 1)

    def init(key):
        # The fit is the start; `key` has nothing to draw.
        return jax.tree.map(jnp.copy, start)

    fit = _describe(config, size, False, 1, config.fit_clips, config.fit_frames)
    pixels = np.asarray(render(fit, size))
    boxes = characters.regions(fit["character"], fit["motion"])
    importance = 1 + config.fit_mouth * np.asarray(drawn.box_mask(boxes["mouth"], size))
    importance += config.fit_face * np.asarray(drawn.box_mask(boxes["face"], size))
    code = autoencoder.principal_components(pixels, importance, preset.vae)
    code = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), code)
    start = {name: code.pop(name) for name in ("uncode", "fade")}

    def loss(params, frozen, batch, key):
        whole = drawn.to_float(characters.render(batch["character"], batch["motion"], size))
        boxes = characters.regions(batch["character"], batch["motion"])
        weight = 1 + config.mouth_weight * drawn.box_mask(boxes["mouth"], size)
        x = _cut(whole, batch["corner"], crop)
        weight = _cut(weight[..., None], batch["corner"], crop)
        variables = {"params": {**frozen, **params}}
        z = model.apply(variables, x, method=model.encode)
        keys = jax.random.split(key)
        level = config.noise * jax.random.uniform(keys[0], (z.shape[0], 1, 1, 1, 1))
        z = z + level * jax.random.normal(keys[1], z.shape)
        state = autoencoder.initial_state(preset.vae, z.shape)
        y, _ = model.apply(variables, z, state, method=model.decode_chunk)
        error = y[:, group - 1 :] - x
        absolute = jnp.mean(weight * jnp.abs(error))
        square = jnp.mean(weight * jnp.square(error))
        edges = jnp.mean(
            weight[:, :, 1:] * jnp.abs(jnp.diff(error, axis=2))
        ) + jnp.mean(weight[:, :, :, 1:] * jnp.abs(jnp.diff(error, axis=3)))
        motion = jnp.mean(weight[:, 1:] * jnp.abs(jnp.diff(error, axis=1)))
        total = absolute + config.square_weight * square
        total = total + config.edge_weight * edges + config.time_weight * motion
        psnr = -10 * jnp.log10(jnp.mean(jnp.square(error)) / 4)
        return total, {"psnr": psnr}

    reconstruct = jax.jit(lambda p, x: model.apply({"params": p}, x))

    def sample(params, frozen, path):
        held_out = _describe(config, size, True, 2, 8, 2 * group)
        x = render(held_out, size)
        y = reconstruct({**frozen, **params}, x)
        mask = drawn.box_mask(
            characters.regions(held_out["character"], held_out["motion"])["mouth"], size
        )[..., None]
        square = np.square(np.clip(y, -1, 1) - x)
        mouth = np.sum(square * mask) / (np.sum(mask) * 3)
        rows = [np.concatenate(list(np.asarray(drawn.to_uint8(v))[:, -1]), 1) for v in (x, y)]
        iio.imwrite(path + ".png", np.concatenate(rows))
        psnr = -10 * np.log10(square.mean((1, 2, 3, 4)) / 4)
        return {
            "psnr": float(psnr.mean()), "psnr_min": float(psnr.min()),
            "psnr_mouth": float(-10 * np.log10(mouth / 4)),
        }

    def finish(params, frozen):
        return jax.tree.map(jnp.asarray, {**frozen, **params})

    def batches(seed):
        return drawn.batches(seed, config.batch, frames, crop, size)

    return loop.Stage(
        name="vae", init=init, loss=loss, frozen=code, batches=batches, sample=sample,
        finish=finish, optimizer=config.optimizer,
    )
