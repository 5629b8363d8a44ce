"""The Wan table against the published tensors, written down from the architecture.

Names and shapes are those of `wan/modules/model.py` in the Wan2.1 repository, built here
from its constructor arguments: every tensor is used once, every parameter of ours that is
not about audio or modes is filled, and every shape fits after its transform.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import wan
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.parallel import rules


def _published(dim, ffn, layers, in_channels, image, out_channels=16, freq=256, text=4096):
    """Name to shape of every tensor of a published checkpoint."""
    shapes = {"patch_embedding.weight": (dim, in_channels, 1, 2, 2), "patch_embedding.bias": (dim,)}

    def linear(name, inputs, outputs):
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    linear("text_embedding.0", text, dim)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", freq, dim)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", dim, 6 * dim)
    for i in range(layers):
        b = f"blocks.{i}"
        shapes[f"{b}.modulation"] = (1, 6, dim)
        norm(f"{b}.norm3", dim)
        for attention in ("self_attn", "cross_attn"):
            for name in "qkvo":
                linear(f"{b}.{attention}.{name}", dim, dim)
            shapes[f"{b}.{attention}.norm_q.weight"] = (dim,)
            shapes[f"{b}.{attention}.norm_k.weight"] = (dim,)
        if image:
            linear(f"{b}.cross_attn.k_img", dim, dim)
            linear(f"{b}.cross_attn.v_img", dim, dim)
            shapes[f"{b}.cross_attn.norm_k_img.weight"] = (dim,)
        linear(f"{b}.ffn.0", dim, ffn)
        linear(f"{b}.ffn.2", ffn, dim)
    shapes["head.modulation"] = (1, 2, dim)
    linear("head.head", dim, 4 * out_channels)
    if image:
        norm("img_emb.proj.0", 1280)
        linear("img_emb.proj.1", 1280, 1280)
        linear("img_emb.proj.3", 1280, dim)
        norm("img_emb.proj.4", dim)
    return shapes


_MODELS = {
    # T2V-1.3B: 1.42 B parameters with everything ("1.3B" by name).
    "wan-1.3b": (dict(dim=1536, ffn=8960, layers=30, in_channels=16, image=False), 1.419e9),
    # I2V-14B: 16.4 B (DESIGN.md, section 3).
    "tm-18b": (dict(dim=5120, ffn=13824, layers=40, in_channels=36, image=True), 16.4e9),
}


@pytest.mark.parametrize("name", _MODELS)
def test_the_table_is_complete_and_every_shape_fits(preset_shapes, name):
    arguments, total = _MODELS[name]
    published = _published(**arguments)
    assert sum(map(math.prod, published.values())) == pytest.approx(total, rel=0.003)
    ours = trees.flatten(rules.unbox(preset_shapes[name]))
    rows = wan.rows(presets.get(name).dit)

    sources, targets = [r[0] for r in rows], [r[1] for r in rows]
    assert sorted(sources) == sorted(published)  # Every tensor once.
    assert len(set(targets)) == len(targets)
    left = {path for path in ours if path not in targets}
    assert set(targets) <= set(ours)
    assert all(wan.is_own(path) for path in left), sorted(left)[:5]
    assert not any(wan.is_own(path) for path in targets)
    for prefix in wan.OWN:
        prefix = prefix.replace("*", "0")
        found = any(path.startswith(prefix) for path in left)
        assert found == ("partner" not in prefix), prefix  # Neither hears another party.

    for source, target, kind in rows:
        before = jax.ShapeDtypeStruct(published[source], jnp.float32)
        after = jax.eval_shape(mapping.KINDS[kind].forward, before)
        assert after.shape == ours[target].shape, (source, target)


@pytest.mark.parametrize("name", _MODELS)
def test_diffusers_names_and_shapes(name, preset_shapes):
    """The other column against the reference itself, built without memory."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = presets.get(name).dit
    with torch.device("meta"):
        model = diffusers.WanTransformer3DModel.from_config(wan.settings(config, "diffusers"))
    published = {n: jax.ShapeDtypeStruct(x.shape, np.float32) for n, x in model.state_dict().items()}
    assert len(published) == len(wan.rows(config))
    if config.image_width is not None:  # An edition that also has tensors nobody reads.
        published["blocks.3.attn2.norm_added_q.weight"] = jax.ShapeDtypeStruct((8,), np.float32)
    mapping.check(
        published, wan.rows(config, "diffusers"), rules.unbox(preset_shapes[name]),
        own=wan.is_own, ignore=wan.IGNORED["diffusers"],
    )


def test_layouts_differ_in_names_alone():
    config = presets.get("tm-18b").dit
    original, diffusers = (wan.rows(config, layout) for layout in wan.LAYOUTS)
    assert [row[1:] for row in original] == [row[1:] for row in diffusers]
    # The editions number the norms of a block differently.
    names = dict(zip((r[0] for r in original), (r[0] for r in diffusers)))
    assert names["blocks.7.norm3.weight"] == "blocks.7.norm2.weight"
    with pytest.raises(ValueError, match="layout must be one of"):
        wan.rows(config, "other")


def test_a_square_matrix_is_transposed_too():
    """Shapes cannot tell: a square matrix must not be copied as it is."""
    for source, _, kind in wan.rows(presets.get("tm-18b").dit):
        vector = source.endswith("bias") or "norm" in source or "img_emb.proj.0" in source
        if not vector and source.endswith("weight") and "img_emb.proj.4" not in source:
            assert kind == ("patches" if "patch" in source else "matrix"), source


def test_patch_kernel_fits_patchify():
    """Transformed, it gives the tokens of Conv3d with kernel and stride (1, 2, 2)."""
    from tm_jax.nn import embeddings

    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 1, 2, 4, 3))
    kernel = rng.standard_normal((5, 3, 1, 2, 2))
    actual = np.asarray(embeddings.patchify(x, 2)) @ mapping.KINDS["patches"].forward(kernel)
    for column in range(2):
        expected = np.einsum("hwc,dchw->d", x[0, 0, :, 2 * column : 2 * column + 2], kernel[:, :, 0])
        np.testing.assert_allclose(actual[0, 0, column], expected, rtol=1e-5)
