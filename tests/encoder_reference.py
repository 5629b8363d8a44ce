"""Tiny encoders of `transformers` with random weights, for the tests of our own.

Skips the tests that import it where torch and transformers are not installed.
"""

import types

import jax
import pytest
import safetensors.numpy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tm_jax.models.clip import encoder as clip_encoder
from tm_jax.models.umt5 import encoder as umt5_encoder
from tm_jax.models.wav2vec2 import encoder as wav2vec2_encoder
from tm_jax.parallel import rules
from tm_jax.weights import clip
from tm_jax.weights import mapping
from tm_jax.weights import umt5
from tm_jax.weights import wav2vec2

torch.set_num_threads(1)


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


def relative(actual, expected) -> float:
    """Largest absolute difference over the largest absolute value of the reference."""
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    return float(abs(actual - expected).max() / abs(expected).max())
