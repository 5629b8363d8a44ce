"""The text encoder against transformers' `UMT5EncoderModel`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import encoder_reference as reference
from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import umt5
from tm_jax.core import trees
from tm_jax.models.text import config as config_lib
from tm_jax.models.text import encoder
from tm_jax.parallel import rules

torch = reference.torch
_LENGTHS = (1, 9, 24, 40)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return reference.build("umt5", tmp_path_factory.mktemp("umt5"))


@pytest.fixture(scope="module")
def prompts():
    """Token numbers and mask of padded prompts of several lengths, [4, 40]."""
    rng = np.random.default_rng(0)
    valid = np.arange(40) < np.array(_LENGTHS)[:, None]
    return np.where(valid, rng.integers(1, 97, valid.shape), 0).astype(np.int32), valid


def _expected(made, prompts):
    ids, valid = prompts
    with torch.no_grad():
        return made.reference(torch.tensor(ids), torch.tensor(valid).long()).last_hidden_state


def test_padded_prompts(made, prompts):
    expected = _expected(made, prompts)
    actual = jax.jit(made.model.apply)({"params": made.params}, *prompts)
    assert reference.relative(actual, expected) < 1e-5  # Measured 2.4e-6.
    # Past a prompt Wan's transformer reads zeros.
    prompt = jax.jit(functools.partial(made.model.apply, method="prompt"))
    features = np.asarray(prompt({"params": made.params}, *prompts))
    for row, length in enumerate(_LENGTHS):
        assert not features[row, length:].any()
        np.testing.assert_allclose(
            features[row, :length], actual[row, :length], rtol=0, atol=1e-5
        )


def test_bfloat16(made, prompts):
    model = encoder.UMT5Encoder(made.config, jnp.bfloat16)
    actual = jax.jit(model.apply)({"params": made.params}, *prompts)
    assert actual.dtype == jnp.bfloat16
    error = reference.relative(actual.astype(jnp.float32), _expected(made, prompts))
    assert 1e-4 < error < 6e-2  # Measured 2.9e-2.


@pytest.mark.parametrize("buckets, distance", [(32, 128), (16, 50)])
def test_position_buckets_equal_the_reference(made, buckets, distance):
    attention = made.reference.encoder.block[0].layer[0].SelfAttention
    kept = attention.relative_attention_num_buckets, attention.relative_attention_max_distance
    attention.relative_attention_num_buckets = buckets
    attention.relative_attention_max_distance = distance
    place = torch.arange(600)
    expected = attention._relative_position_bucket(place[None] - place[:, None])
    attention.relative_attention_num_buckets, attention.relative_attention_max_distance = kept
    actual = encoder.position_buckets(600, buckets, distance)
    np.testing.assert_array_equal(actual, expected)


def test_sharded_equals_one_device(made, prompts):
    mesh = rules.make_mesh(jax.devices()[:8], data=1, fsdp=2, seq=2, tensor=2)
    params = jax.device_put(made.params, rules.shardings(mesh, made.boxed))
    with rules.use(mesh):
        actual = jax.jit(made.model.apply)({"params": params}, *prompts)
    assert actual.sharding.shard_shape(actual.shape)[1] == 20  # Tokens are split over "seq".
    # Sums are added in another order.
    assert reference.relative(np.asarray(actual), _expected(made, prompts)) < 1e-5
    # 97 tokens do not divide; the real table has 256384 rows.
    kernel = params["blocks_0"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 28)


def test_published_size_and_names():
    config = config_lib.PUBLISHED["umt5-xxl"]
    shapes = rules.unbox(
        jax.eval_shape(lambda key: encoder.init(config, key), jax.random.key(0))
    )
    with torch.device("meta"):
        model = reference.transformers.UMT5EncoderModel(
            reference.transformers.UMT5Config(**umt5.settings(config, "transformers"))
        )
    assert trees.count(shapes) == sum(p.numel() for p in model.parameters()) == 5_680_910_336
    mapping.check(
        model.state_dict(), umt5.rows(config, "transformers"), shapes,
        ignore=umt5.IGNORED["transformers"],
    )
