"""Stage `locator`: where the face is, on portraits in all sorts of frames."""

import dataclasses
import typing

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.configs import presets
from tm_jax.core import pixels as pixels_lib
from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic import drawn
from tm_jax.models.puppet import face as face_lib
from tm_jax.models.puppet import locator
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocatorStageConfig:
    """Settings of the stage.

    Attributes:
      batch: Portraits per step.
      size: Side of the portraits in pixels.
      zoom: Largest change of size, as a logarithm.
      shift: Largest shift, in pictures.
      optimizer: Optimiser.
    """

    batch: int = 32
    size: int = 128
    zoom: float = 0.3
    shift: float = 0.12
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=1e-3, warmup_steps=50, beta2=0.99, weight_decay=0.0, ema_decay=0.99
    )


def make(preset: presets.Preset, config: LocatorStageConfig) -> loop.Stage:
    """The stage; it needs no other."""
    model = locator.FaceLocator()

    def init(key):
        return model.init(key, jnp.zeros((1, 64, 64, 3)))["params"]

    def views(batch, key):
        """Pictures [B, size, size, 3] and boxes of their faces [B, 4]."""
        motion = batch["motion"][:, :1]
        frames = characters.render(batch["character"], motion, config.size)
        face = characters.regions(batch["character"], motion)["face"][:, 0]
        keys = jax.random.split(key)
        sides = jax.random.uniform(keys[0], (len(face), 1), minval=-1) * config.zoom
        shift = jax.random.uniform(keys[1], (len(face), 2), minval=-1) * config.shift
        half = 0.5 * jnp.exp(sides)
        view = jnp.concatenate([0.5 + shift - half, 0.5 + shift + half], -1)
        pictures = face_lib.cut(pixels_lib.to_float(frames), view, config.size)[:, 0]
        return pictures, face_lib.within(face, view)

    def loss(params, frozen, batch, key):
        pictures, face = views(batch, key)
        said = typing.cast(jax.Array, model.apply({"params": params}, pictures))
        error = said - locator.numbers(face)
        off = jnp.abs(locator.boxes(said) - face).mean() / (face[:, 2] - face[:, 0]).mean()
        return jnp.mean(jnp.square(error)), {"off": off}

    held_out = next(iter(drawn.batches(3, 64, 4, held_out=True)))
    draw = jax.jit(lambda: views(held_out, jax.random.key(0)))

    @jax.jit
    def find(params, pictures):
        numbers = model.apply({"params": params}, pictures)
        return locator.boxes(typing.cast(jax.Array, numbers))

    def sample(params, frozen, path):
        pictures, face = draw()
        found = find(params, pictures)
        cut = face_lib.cut(pictures[:, None], face_lib.square(found), 64)
        cut = np.asarray(pixels_lib.to_uint8(cut))[:16, 0]
        rows = [np.concatenate(list(cut[i::2]), 1) for i in (0, 1)]
        iio.imwrite(path + ".png", np.concatenate(rows))
        error = np.abs(found - face) / np.asarray(face[:, 2:3] - face[:, :1])
        return {"off_median": float(np.median(error)), "off_p95": float(np.quantile(error, 0.95))}

    return loop.Stage(
        name="locator", init=init, loss=loss, frozen={},
        batches=lambda seed: drawn.batches(seed, config.batch, 4),
        sample=sample, finish=lambda params, frozen: params, optimizer=config.optimizer,
    )
