"""What the stages of the transformer share: settings, the loss of a flow, input."""

from collections.abc import Callable
import dataclasses
import typing
from typing import Any

import jax
import jax.numpy as jnp

from tm_jax.diffusion import flow_matching
from tm_jax.models.dit import preconditioning
from tm_jax.models.dit import transformer
from tm_jax.training import batches
from tm_jax.training import example_source
from tm_jax.training import lora as lora_lib
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import rollouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerStageConfig:
    """Settings that every stage of the transformer has.

    Attributes:
      data: The clips: prepared examples.
      batch: Clips per step.
      chunks: Chunks per clip, which is the teacher's window; the sink comes on top.
      dropout: Condition dropout.
      remat: Recompute every block in the backward pass: less memory, a third more time.
      remat_keeps: What of a block is kept all the same: "nothing", or "products" with weights,
        which take memory again and leave little to recompute.
      attention: How self-attention is computed, a name in `nn.attention.BACKENDS`; the preset's
        by default.
      lora: Low-rank adaptation.
      optimizer: Optimiser.
    """

    data: example_source.ExampleConfig = example_source.ExampleConfig()
    batch: int = 8
    chunks: int = 2
    dropout: batches.Dropout = batches.Dropout()
    remat: bool = False
    remat_keeps: str = "nothing"
    attention: str | None = None
    lora: lora_lib.LoraConfig = lora_lib.LoraConfig()
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig()

    def __post_init__(self):
        if self.remat_keeps not in transformer.REMAT_KEEPS:
            raise ValueError(
                f"remat_keeps must be one of {', '.join(transformer.REMAT_KEEPS)}, got "
                f"{self.remat_keeps!r}."
            )


def trained(models: rollouts.Models, config: TransformerStageConfig) -> rollouts.Models:
    """The networks as the stage runs them: with or without rematerialisation."""
    # Both kinds of networks are dataclasses, which the protocol cannot express.
    fields = typing.cast(Any, models)
    dit = models.dit.clone(remat=config.remat, remat_keeps=config.remat_keeps)
    return dataclasses.replace(fields, dit=dit)


def window_latents(models: rollouts.Models, config: TransformerStageConfig) -> int:
    """Latent frames of the teacher's window, without the sink."""
    return config.chunks * models.preset.timing.latents_per_chunk


def flow_loss(
    models: rollouts.Models, params: dict, batch: batches.Batch, sigma: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """Flow matching of a bidirectional transformer: of the teacher, and of the critic.

    Args:
      models: Networks.
      params: Parameters of the transformer.
      batch: Clean clips.
      sigma: Noise level of each sample, [B].
      noise: Unit normal, [B, 1 + T, H, W, C].

    Returns:
      Loss of every sample, [B]. A pinned sink does not count.
    """
    clip = batch.clip
    x = rollouts.corrupt(models, clip, noise, sigma)
    velocity = rollouts.teacher_velocity(models, params, batch, x, sigma)
    error = jnp.square(velocity - flow_matching.velocity(clip, noise))
    if rollouts.pinned(models):
        error = error[:, 1:]
    per_sample = error.mean((1, 2, 3, 4))
    std = models.preset.dit.clean_std
    if std is not None:
        per_sample = per_sample * preconditioning.loss_weight(sigma, std)
    return per_sample


def init(models: rollouts.Models) -> Callable:
    """Function (key) -> boxed random parameters of the transformer."""
    return lambda key: models.dit.init(key, method=transformer.touch)["params"]
