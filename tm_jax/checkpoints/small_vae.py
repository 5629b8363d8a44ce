"""Weight files of the small video autoencoder: sizes and statistics travel with the tensors."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy.typing as npt

from tm_jax.checkpoints import files
from tm_jax.models.vae.small import config as config_lib
from tm_jax.models.vae.small import network
from tm_jax.parallel import rules


def save(
    path: str, params: dict, config: config_lib.SmallVAEConfig,
    dtype: npt.DTypeLike = ml_dtypes.bfloat16
) -> None:
    """Writes parameters; the statistics keep their precision, the metadata holds the config.

    Args:
      path: Target file.
      params: Parameters with statistics (`training.video_vae.with_statistics`).
      config: Sizes of the model.
      dtype: Storage dtype of the tensors.
    """
    files.save(path, params, dtype, network.STATISTICS, **facts(config))


def facts(config: config_lib.SmallVAEConfig) -> dict[str, str]:
    """What the metadata of a file says of its sizes."""
    return {"config": json.dumps(dataclasses.asdict(config))}


def load(path: str, dtype: npt.DTypeLike = jnp.float32) -> tuple[config_lib.SmallVAEConfig, dict]:
    """Reads a file of `save`.

    Args:
      path: The file.
      dtype: Dtype of the parameters.

    Returns:
      The sizes, and the parameters as host arrays.

    Raises:
      FileNotFoundError: No such file.
      ValueError: Not a file of this model.
    """
    found = files.facts(path)
    if "config" not in found:
        raise ValueError(f"{path}: not a file of the small video autoencoder (no config in it).")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(found["config"]).items()
    }
    config = config_lib.SmallVAEConfig(**values)
    return config, files.load(path, shapes(config), dtype)


def shapes(config: config_lib.SmallVAEConfig) -> dict:
    """Tree of the parameters' shapes."""
    boxed: dict = jax.eval_shape(lambda key: network.init(config, key), jax.random.key(0))
    return rules.unbox(boxed)
