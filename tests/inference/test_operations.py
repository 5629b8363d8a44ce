"""Operations of a stream's chunk against the least that the mathematics needs, by hand."""

import dataclasses
import types

import jax
import pytest

from tm_jax.configs import presets
from tm_jax.core import target
from tm_jax.parallel import rules
from tm_jax.planning import flops
from tm_jax.planning import work


def _least(preset, passes):
    """Products of one chunk: what differs from pass to pass, and what does not."""
    c, d = preset.dit, preset.dit.width
    frames = preset.timing.latents_per_chunk
    chunk, window = frames * preset.tokens, (1 + 2 * frames) * preset.tokens
    seen = window + (c.text_length if c.text_width else 0) + c.audio_tokens
    seen += c.image_length if c.image_width else 0
    # Self-attention has four square matrices, cross-attention queries and output; keys and
    # values of text and picture are those of the stream.
    matrices = 6 * d * d + 2 * d * c.mlp_width
    block = 2 * chunk * matrices + 4 * chunk * seen * d
    # Of the patches' embedding the noisy latents' part, and the head.
    ends = 2 * 2 * chunk * c.latent_channels * c.patch**2 * d
    once = 2 * chunk * c.condition_channels * c.patch**2 * d
    e, tokens = c.audio_width, frames * c.audio_tokens
    once += 2 * frames * c.audio_hidden * (
        c.audio_window * c.audio_feature_width + c.audio_hidden + c.audio_tokens * e
    )
    once += c.num_layers * 2 * 2 * tokens * e * d  # Keys and values of sound.
    return passes * (c.num_layers * block + ends) + once


@pytest.mark.parametrize("policy", ["clean", "per_step"])
@pytest.mark.parametrize("name", ["tm-18b", "wan-1.3b"])
def test_a_chunk_computes_nothing_twice(name, policy):
    """Two steps, and with clean context a pass that writes it; nothing is compiled."""
    preset = presets.get(name).with_student(policy=policy)
    # A few layers are traced faster, and all are alike.
    preset = dataclasses.replace(preset, dit=dataclasses.replace(preset.dit, num_layers=3))
    mesh = rules.make_mesh(jax.devices()[:1])
    with target.tracing_for("gpu"):
        programs = work.make(preset, "stream", types.SimpleNamespace(batch=1), mesh).programs
        [denoise] = [program for program in programs if program.name == "denoise"]
        found = flops.count(denoise.trace().jaxpr).total
    least = _least(preset, preset.student.num_steps + (policy == "clean"))
    assert least < found < 1.005 * least
