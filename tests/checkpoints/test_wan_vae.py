"""Tables of the Wan autoencoder and of TAEHV against published names and sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import wan_vae
from tm_jax.core import trees
from tm_jax.models.vae.wan import autoencoder
from tm_jax.models.vae.wan import config as config_lib
from tm_jax.parallel import rules

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

_FULL = config_lib.PRESETS["wan-2.1"]
_SMALL = config_lib.WanVAEConfig(base_width=4)  # As deep as the published one.


def _boxed(config):
    frames = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    return jax.eval_shape(autoencoder.WanVAE(config).init, jax.random.key(0), frames)["params"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small random checkpoint in the diffusers layout, read from its file."""
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(1)
    diffusers.AutoencoderKLWan(base_dim=_SMALL.base_width).save_pretrained(folder)
    return safetensors.numpy.load_file(folder / "diffusion_pytorch_model.safetensors")


def test_the_published_size():
    """Every name and shape of the reference at full size, without its memory."""
    with torch.device("meta"):
        published = diffusers.AutoencoderKLWan().state_dict()
    shapes = rules.unbox(_boxed(_FULL))
    mapping.check(published, wan_vae.rows(_FULL, "diffusers"), shapes)
    assert trees.count(shapes) == sum(math.prod(t.shape) for t in published.values())
    assert trees.count(shapes) == 126_892_531


def test_statistics_are_the_published_ones():
    published = diffusers.AutoencoderKLWan.__init__.__wrapped__.__defaults__
    lists = [x for x in published if isinstance(x, list) and len(x) == 16]
    assert lists == [list(_FULL.latent_mean), list(_FULL.latent_std)]


def test_every_parameter_has_logical_axes():
    boxed = _boxed(_SMALL)
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: hasattr(x, "names"))
    assert all(len(leaf.names) == leaf.value.ndim for leaf in leaves)


def test_original_and_diffusers_layout_are_the_same_model(saved):
    """Ours to the original layout, by the reference's own conversion to diffusers, and back."""
    from diffusers.loaders import single_file_utils

    params = mapping.read(saved, wan_vae.rows(_SMALL, "diffusers"), rules.unbox(_boxed(_SMALL)))
    original = mapping.write(params, wan_vae.rows(_SMALL, "original"))
    assert "decoder.middle.0.residual.0.gamma" in original  # How loaders know this layout.
    converted = single_file_utils.convert_wan_vae_to_diffusers(dict(original))
    assert converted.keys() == saved.keys()
    for name, value in saved.items():
        np.testing.assert_array_equal(converted[name], value, err_msg=name)
    again = mapping.read(original, wan_vae.rows(_SMALL, "original"), params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_round_trip_is_exact(saved):
    table = wan_vae.rows(_SMALL, "diffusers")
    params = mapping.read(saved, table, rules.unbox(_boxed(_SMALL)))
    written = mapping.write(params, table)
    assert written.keys() == saved.keys()
    for name, value in saved.items():
        assert written[name].dtype == value.dtype
        np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="original.*diffusers.*got 'torch'"):
        wan_vae.rows(_SMALL, "torch")
