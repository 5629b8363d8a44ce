"""Weight files of the small video autoencoder: sizes and statistics travel with the tensors."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

from tm_jax.checkpoints import files
from tm_jax.models.vae.small import config as config_lib
from tm_jax.models.vae.small import network
from tm_jax.parallel import rules

_STATISTICS = ("latent_mean", "latent_std", "condition_mean", "condition_std")


def save(
    path: str, params: dict, config: config_lib.SmallVAEConfig,
    dtype: npt.DTypeLike = ml_dtypes.bfloat16
) -> None:
    """Writes parameters; the metadata holds the config and, in full precision, the statistics.

    Args:
      path: Target file.
      params: Parameters with statistics (`training.video_vae.with_statistics`).
      config: Sizes of the model.
      dtype: Storage dtype of the tensors.
    """
    statistics = {name: np.asarray(params[name]).tolist() for name in _STATISTICS}
    files.save(
        path, params, dtype, config=json.dumps(dataclasses.asdict(config)),
        statistics=json.dumps(statistics),
    )


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
    facts = files.facts(path)
    if "config" not in facts or "statistics" not in facts:
        raise ValueError(f"{path}: not a file of the small video autoencoder (no config in it).")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(facts["config"]).items()
    }
    config = config_lib.SmallVAEConfig(**values)
    params = files.load(path, shapes(config), dtype)
    for name, value in json.loads(facts["statistics"]).items():
        params[name] = np.asarray(value, np.float32)
    return config, params


def shapes(config: config_lib.SmallVAEConfig) -> dict:
    """Tree of the parameters' shapes."""
    model, side = network.SmallVAE(config), config.spatial_stride
    clip = jnp.zeros((1, 1 + config.frames_per_latent, side, side, 3))
    return rules.unbox(jax.eval_shape(model.init, jax.random.key(0), clip)["params"])
