"""Tables of the three encoders: every layout both ways, the names, the errors.

Names of the original layouts are written down here from `wan/modules/t5.py` and
`wan/modules/clip.py` of the Wan2.1 repository.
"""

import re

import jax
import numpy as np
import pytest

from tests import encoder_reference as reference
from tm_jax.checkpoints import clip
from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import umt5
from tm_jax.checkpoints import wav2vec2
from tm_jax.core import trees
from tm_jax.models.image import config as clip_config
from tm_jax.parallel import rules

_T5 = (
    (r"shared\.weight", "token_embedding.weight"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias",
     r"blocks.\1.pos_embedding.embedding"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.", r"blocks.\1.attn."),
    (r"encoder\.block\.(\d+)\.layer\.0\.layer_norm", r"blocks.\1.norm1"),
    (r"encoder\.block\.(\d+)\.layer\.1\.layer_norm", r"blocks.\1.norm2"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0", r"blocks.\1.ffn.gate.0"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1", r"blocks.\1.ffn.fc1"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo", r"blocks.\1.ffn.fc2"),
    (r"encoder\.final_layer_norm", "norm"),
)
_TOWER = (
    (r"embeddings\.class_embedding", "cls_embedding"),
    (r"embeddings\.patch_embedding", "patch_embedding"),
    (r"embeddings\.position_embedding\.weight", "pos_embedding"),
    (r"pre_layrnorm", "pre_norm"),
    (r"post_layernorm", "post_norm"),
    (r"encoder\.layers\.(\d+)\.layer_norm", r"transformer.\1.norm"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj", r"transformer.\1.attn.proj"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1", r"transformer.\1.mlp.0"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2", r"transformer.\1.mlp.2"),
)


@pytest.fixture(scope="module", params=reference.NAMES)
def made(request, tmp_path_factory):
    return reference.build(request.param, tmp_path_factory.mktemp(request.param))


def _rename(tensors, patterns):
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in patterns:
            name = re.sub(f"^{pattern}", replacement, name)
        renamed[name] = value
    return renamed


def _other_layout(made, layout):
    """The reference's tensors under the names and shapes of another layout."""
    tensors = made.tensors
    if made.table is umt5:
        if layout == "original":
            return _rename(tensors, _T5)
        return _rename(tensors, [(r"shared", "encoder.embed_tokens")])
    if made.table is wav2vec2:
        prefix = "wav2vec2." if layout.endswith("headed") else ""
        old = layout.startswith("original")
        extra = {"lm_head.weight": np.zeros((5, 32))} if prefix else {}
        return extra | {
            prefix + (
                name.replace("parametrizations.weight.original0", "weight_g")
                .replace("parametrizations.weight.original1", "weight_v") if old else name
            ): value
            for name, value in tensors.items()
        }
    if layout == "transformers":
        return {f"vision_model.{n}": v for n, v in tensors.items()} | {
            "visual_projection.weight": np.zeros((8, 48)),
            "vision_model.embeddings.position_ids": np.arange(10)[None],
        }
    tower = _rename(tensors, _TOWER)
    for i in range(3):
        for kind in ("weight", "bias"):
            parts = [
                tower.pop(f"encoder.layers.{i}.self_attn.{n}_proj.{kind}") for n in "qkv"
            ]
            tower[f"transformer.{i}.attn.to_qkv.{kind}"] = np.concatenate(parts)
    tower["cls_embedding"] = tower["cls_embedding"][None, None]
    tower["pos_embedding"] = tower["pos_embedding"][None]
    extra = {"log_scale": np.zeros(()), "textual.norm.weight": np.zeros(4)}
    return extra | {f"visual.{n}": v for n, v in tower.items()} | {
        "visual.head": np.zeros((48, 8))
    }


def _same(actual, expected):
    actual, expected = trees.flatten(actual), trees.flatten(expected)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_there_and_back_is_bit_exact(made):
    back = mapping.write(made.params, made.table.rows(made.config, made.layout))
    left = {n: v for n, v in made.tensors.items() if "masked_spec_embed" not in n}
    _same(back, left)
    for name, value in back.items():
        assert value.dtype == made.tensors[name].dtype == np.float32


def test_every_layout_gives_the_same_parameters(made):
    shapes = rules.unbox(made.boxed)
    others = [layout for layout in made.table.LAYOUTS if layout != made.layout]
    assert others
    for layout in others:
        tensors = _other_layout(made, layout)
        rows = made.table.rows(made.config, layout)
        params = mapping.read(tensors, rows, shapes, ignore=made.table.IGNORED[layout])
        _same(params, made.params)
        back = mapping.write(params, rows)
        for name, value in back.items():
            np.testing.assert_array_equal(value, tensors[name])
    with pytest.raises(ValueError, match="layout must be one of"):
        made.table.rows(made.config, "fairseq")


def test_the_reference_opens_what_is_written(made, tmp_path):
    """Weights and `config.json` written by us give the reference's own result."""
    import json

    import safetensors.numpy

    tensors = mapping.write(made.params, made.table.rows(made.config, made.layout))
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    settings = made.table.settings(made.config, made.layout)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert made.table.sizes(settings) == made.config
    opened, report = type(made.reference).from_pretrained(
        tmp_path, local_files_only=True, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
    expected = made.reference.state_dict()
    for name, value in opened.state_dict().items():
        assert reference.torch.equal(value, expected[name]), name


def test_a_missing_and_a_foreign_tensor(made):
    tensors = dict(made.tensors)
    gone = next(name for name in tensors if name.endswith("norm.weight"))
    tensors["stray"] = tensors.pop(gone)
    with pytest.raises(ValueError, match="missing: .*left over: stray") as error:
        mapping.read(
            tensors, made.table.rows(made.config, made.layout), rules.unbox(made.boxed),
            ignore=made.table.IGNORED[made.layout],
        )
    assert gone in str(error.value)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="hidden_act must be 'gelu', got 'quick_gelu'"):
        clip.sizes({"hidden_act": "quick_gelu"})
    with pytest.raises(ValueError, match="feed_forward_proj must be 'gated-gelu', got 'relu'"):
        umt5.sizes({"feed_forward_proj": "relu"})
    with pytest.raises(ValueError, match="add_adapter must be False, got True"):
        wav2vec2.sizes({"add_adapter": True})


def test_the_original_clip_at_its_published_size():
    """630.8 M parameters in the tower, of 1.2 B in the file with the text model."""
    from tm_jax.models.image import encoder

    config = clip_config.PUBLISHED["vit-h-14"]
    shapes = rules.unbox(
        jax.eval_shape(lambda key: encoder.init(config, key), jax.random.key(0))
    )
    width, published = 1280, {
        "visual.cls_embedding": (1, 1, 1280), "visual.pos_embedding": (1, 257, 1280),
        "visual.patch_embedding.weight": (1280, 3, 14, 14), "visual.head": (1280, 1024),
        "log_scale": (), "textual.token_embedding.weight": (250002, 1024),
    }
    for norm in ("pre_norm", "post_norm"):
        published |= {f"visual.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    for i in range(32):
        block = f"visual.transformer.{i}"
        for name, out, inner in (
            ("attn.to_qkv", 3 * width, width), ("attn.proj", width, width),
            ("mlp.0", 4 * width, width), ("mlp.2", width, 4 * width),
        ):
            published[f"{block}.{name}.weight"] = (out, inner)
            published[f"{block}.{name}.bias"] = (out,)
        for norm in ("norm1", "norm2"):
            published |= {f"{block}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    source = {n: jax.ShapeDtypeStruct(s, np.float16) for n, s in published.items()}
    mapping.check(
        source, clip.rows(config, "original"), shapes, ignore=clip.IGNORED["original"]
    )
