"""Activations by arithmetic, where no compiler places them."""

from collections.abc import Mapping
import math
from typing import Any

from tm_jax.configs import presets
from tm_jax.nn import attention
from tm_jax.nn import flash


def bytes_of(
    preset: presets.Preset, stage: str, settings: Any, mesh: Mapping[str, int]
) -> float:
    """Bytes of activations of one device: what all layers keep, and what one needs at work.

    Args:
      preset: What is trained or streamed.
      stage: One of `work.STAGES`.
      settings: Settings of the stage.
      mesh: Sizes of all mesh axes.
    """
    c = preset.dit
    parts = mesh["data"] * mesh["fsdp"]
    samples = math.ceil(settings.batch / parts) if settings.batch % parts == 0 else settings.batch
    chunks = getattr(settings, "chunks", 1)
    length = (1 + chunks * preset.timing.latents_per_chunk) * preset.tokens
    tokens, hidden = length / mesh["seq"], c.mlp_width / mesh["tensor"]
    heads = c.num_heads / (mesh["seq"] * mesh["tensor"])
    queries = length / attention.blocks(c.num_heads, length, length)
    logits = 0.0 if c.attention in flash.KERNELS else heads * queries * length
    # 8 bytes a logit: XLA:TPU took 8.23 GB for one layer of tm-18b with 1.03e9 of them.
    at_work = 8 * logits + 8 * tokens * hidden + 20 * tokens * c.width
    if stage == "stream":
        return samples * at_work
    kept = 2 * tokens * c.width
    if not settings.remat:
        kept = 28 * tokens * c.width + 6 * tokens * hidden
        if queries == length:  # Blocks compute theirs again.
            kept += 6 * logits
    return samples * (c.num_layers * kept + at_work)
