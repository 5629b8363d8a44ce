"""The text, image and speech encoders against transformers.

Tiny references with random weights are saved in their own format and read through the
tables of `tm_jax/checkpoints`.
"""

from collections.abc import Iterator
import dataclasses
import functools
import tempfile
import types

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
import transformers

from experiments.parity import compare
from tm_jax.checkpoints import clip
from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import umt5
from tm_jax.checkpoints import wav2vec2
from tm_jax.models.audio.wav2vec2 import encoder as wav2vec2_encoder
from tm_jax.models.image import encoder as clip_encoder
from tm_jax.models.text import encoder as umt5_encoder
from tm_jax.parallel import rules


def _umt5():
    return transformers.UMT5EncoderModel(transformers.UMT5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=56, num_layers=3, num_heads=6,
    ))


def _clip():
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        image_size=42, patch_size=14, hidden_act="gelu",
    ))


def _wav2vec2(large):
    return transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        conv_dim=(12, 16, 16, 16, 16, 16, 20), num_conv_pos_embedding_groups=4,
        num_conv_pos_embeddings=7 if large else 8, do_stable_layer_norm=large,
        feat_extract_norm="layer" if large else "group", conv_bias=large,
    ))


# Reference, module of the table, class of ours, module with `init`.
_BUILD = {
    "umt5": (_umt5, umt5, umt5_encoder.UMT5Encoder, umt5_encoder),
    "clip": (_clip, clip, clip_encoder.CLIPVision, clip_encoder),
    "wav2vec2-base": (
        lambda: _wav2vec2(False), wav2vec2, wav2vec2_encoder.Wav2Vec2, wav2vec2_encoder
    ),
    "wav2vec2-large": (
        lambda: _wav2vec2(True), wav2vec2, wav2vec2_encoder.Wav2Vec2, wav2vec2_encoder
    ),
}
NAMES = tuple(_BUILD)


def build(name: str, folder, seed: int = 0) -> types.SimpleNamespace:
    """A reference, saved in its own format, and ours with its weights.

    Args:
      name: One of `NAMES`.
      folder: Where to save it.
      seed: Seed of the weights.

    Returns:
      reference, tensors (as saved), layout (of the file), table (module with `rows`),
      config, model, boxed (parameter shapes) and params of ours.
    """
    make, table, model, module = _BUILD[name]
    reference = make().eval()
    _randomise(reference, seed)
    reference.save_pretrained(folder)
    tensors = safetensors.numpy.load_file(f"{folder}/model.safetensors")
    layout = "transformers-bare" if name == "clip" else "transformers"
    config = table.sizes(reference.config.to_dict())
    boxed = jax.eval_shape(lambda key: module.init(config, key), jax.random.key(0))
    params = mapping.read(
        tensors, table.rows(config, layout), rules.unbox(boxed), ignore=table.IGNORED[layout]
    )
    return types.SimpleNamespace(
        reference=reference, tensors=tensors, layout=layout, table=table, config=config,
        model=model(config), boxed=boxed, params=params,
    )


def _randomise(model, seed):
    """Other values than a fresh model's for all weights: norms of one would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name and name.endswith("weight") or "original0" in name:
                value.copy_(1 + 0.2 * noise)
            elif value.ndim > 1:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.2 * noise)


@functools.cache
def _made(name):
    with tempfile.TemporaryDirectory() as folder:
        return build(name, folder)


def _padded(lengths, values):
    """Rows of random values, zero past their lengths, and which of them count."""
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return np.where(valid, values(valid.shape), 0), valid


def prompts() -> tuple[np.ndarray, np.ndarray]:
    """Token numbers and mask of padded prompts of several lengths, [4, 40]."""
    rng = np.random.default_rng(0)
    ids, valid = _padded((1, 9, 24, 40), lambda shape: rng.integers(1, 97, shape))
    return ids.astype(np.int32), valid


def sounds() -> tuple[np.ndarray, np.ndarray]:
    """Sounds of odd lengths, padded with zeros, and their mask, [4, 4001]."""
    rng = np.random.default_rng(0)
    samples, valid = _padded((4001, 3121, 1777, 410), rng.standard_normal)
    return samples.astype(np.float32), valid


def _ours(name, dtype):
    """Reference in float32, our model in a dtype, and our parameters."""
    made = _made(name)
    return made.reference, dataclasses.replace(made.model, dtype=jnp.dtype(dtype)), made.params


@torch.no_grad()
def text(dtype: str = "float32") -> compare.Row:
    """Padded prompts through UMT5."""
    (theirs, ours, params), (ids, valid) = _ours("umt5", dtype), prompts()
    expected = theirs(torch.tensor(ids), torch.tensor(valid).long()).last_hidden_state
    actual = compare.jit(ours.apply)({"params": params}, ids, valid)
    return compare.row(
        "UMT5", "3 layers, 4 padded prompts up to 40 tokens", dtype,
        np.float32(actual), expected.numpy(),
    )


@torch.no_grad()
def image(dtype: str = "float32") -> compare.Row:
    """The penultimate state of CLIP, as Wan uses it."""
    theirs, ours, params = _ours("clip", dtype)
    x = np.random.default_rng(0).standard_normal((2, 42, 42, 3)).astype(np.float32)
    pixels = torch.tensor(x).permute(0, 3, 1, 2)
    expected = theirs(pixels, output_hidden_states=True).hidden_states[-2]
    actual = compare.jit(ours.apply)({"params": params}, x)
    return compare.row(
        "CLIP", "3 layers, penultimate state, batch 2", dtype, np.float32(actual),
        expected.numpy(),
    )


@torch.no_grad()
def speech(size: str, dtype: str = "float32") -> compare.Row:
    """Hidden states of all layers of wav2vec2 for a padded batch."""
    (theirs, ours, params), (samples, valid) = _ours(f"wav2vec2-{size}", dtype), sounds()
    expected = theirs(
        torch.tensor(samples), attention_mask=torch.tensor(valid).long(),
        output_hidden_states=True,
    ).hidden_states
    actual = compare.jit(ours.apply)({"params": params}, samples, valid).states
    norm = "group" if size == "base" else "layer"
    return compare.row(
        f"wav2vec2 {size}", f"{norm} norm, all hidden states, 4 padded sounds", dtype,
        {str(i): np.float32(x) for i, x in enumerate(actual)},
        {str(i): x.numpy() for i, x in enumerate(expected)},
    )


def rows() -> Iterator[compare.Row]:
    """All comparisons of the encoders."""
    for dtype in ("float32", "bfloat16"):
        yield text(dtype)
        yield image(dtype)
        yield speech("base", dtype)
        yield speech("large", dtype)
