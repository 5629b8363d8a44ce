"""The speech encoder against transformers' `Wav2Vec2Model`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import encoder_reference as reference
from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import wav2vec2
from tm_jax.core import timing
from tm_jax.core import trees
from tm_jax.models.audio.wav2vec2 import config as config_lib
from tm_jax.models.audio.wav2vec2 import encoder
from tm_jax.models.audio.wav2vec2 import sound
from tm_jax.parallel import rules

torch = reference.torch
_LENGTHS = (4001, 3121, 1777, 410)


@pytest.fixture(scope="module", params=["wav2vec2-base", "wav2vec2-large"])
def made(request, tmp_path_factory):
    return reference.build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sounds():
    """Sounds of odd lengths, padded with zeros, and their mask, [4, 4001]."""
    rng = np.random.default_rng(0)
    valid = np.arange(max(_LENGTHS)) < np.array(_LENGTHS)[:, None]
    return np.where(valid, rng.standard_normal(valid.shape), 0).astype(np.float32), valid


@pytest.fixture(scope="module")
def expected(made, sounds):
    samples, valid = sounds
    with torch.no_grad():
        return made.reference(
            torch.tensor(samples), attention_mask=torch.tensor(valid).long(),
            output_hidden_states=True,
        )


def _check(actual, expected):
    assert len(actual.states) == len(expected.hidden_states) == 4
    for ours, theirs in zip(actual.states, expected.hidden_states):
        assert reference.relative(ours, theirs) < 1e-5  # Measured 3e-6.
    assert reference.relative(actual.last, expected.last_hidden_state) < 1e-5


def test_all_hidden_states_of_padded_sounds(made, sounds, expected):
    actual = jax.jit(made.model.apply)({"params": made.params}, *sounds)
    _check(actual, expected)
    lengths = made.reference._get_feat_extract_output_lengths(torch.tensor(_LENGTHS))
    np.testing.assert_array_equal(actual.valid.sum(1), lengths)
    assert made.config.states(4001) == actual.last.shape[1] == 12
    assert actual.features().shape == (4, 12, made.config.features)


def test_a_sound_without_padding(made, sounds):
    samples = sounds[0][1:2, :3121]
    with torch.no_grad():
        expected = made.reference(torch.tensor(samples), output_hidden_states=True)
    actual = jax.jit(made.model.apply)({"params": made.params}, samples)
    _check(actual, expected)
    # Padding that does not count changes nothing, whether it stands in front or behind.
    ignoring = jax.jit(functools.partial(made.model.apply, padding_counts=False))
    for before in (640, 0):
        around = ((0, 0), (before, 640 - before))
        padded = np.pad(samples, around, constant_values=9)
        valid = np.pad(np.ones_like(samples), around)
        among = ignoring({"params": made.params}, padded, valid)
        kept = among.last[:, np.asarray(among.valid[0])]
        # Measured 1.5e-6 of values up to 3.
        np.testing.assert_allclose(kept, actual.last, rtol=0, atol=2e-5)


def test_bfloat16(made, sounds, expected):
    low = encoder.Wav2Vec2(made.config, jnp.bfloat16)
    actual = jax.jit(low.apply)({"params": made.params}, *sounds).last
    assert actual.dtype == jnp.bfloat16
    error = reference.relative(actual.astype(jnp.float32), expected.last_hidden_state)
    assert 1e-4 < error < 5e-2  # Measured 1.7e-2 and 1.9e-2.


def test_sharded_equals_one_device(made, sounds, expected):
    mesh = rules.make_mesh(jax.devices()[:8], data=2, fsdp=2, seq=1, tensor=2)
    params = jax.device_put(made.params, rules.shardings(mesh, made.boxed))
    with rules.use(mesh):
        actual = jax.jit(made.model.apply)({"params": params}, *sounds)
    assert actual.last.sharding.shard_shape(actual.last.shape) == (1, 12, 32)
    _check(jax.tree.map(np.asarray, actual), expected)


def test_normalise_equals_the_feature_extractor(sounds):
    samples, valid = sounds
    extractor = reference.transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    clips = [3 * row[:length] + 0.5 for row, length in zip(samples, _LENGTHS)]
    wanted = extractor(clips, sampling_rate=16000, padding=True, return_tensors="np")
    np.testing.assert_array_equal(wanted["attention_mask"], valid)
    actual = sound.normalise(3 * samples + 0.5, valid)
    np.testing.assert_allclose(actual, wanted["input_values"], rtol=0, atol=5e-6)
    alone = sound.normalise(clips[2][None])
    np.testing.assert_allclose(alone[0], actual[2, : _LENGTHS[2]], rtol=0, atol=5e-6)


def test_features_at_the_middle_of_pixel_frames():
    config, clock = config_lib.PUBLISHED["base"], timing.Timing()
    assert (config.hop, config.field) == (320, 400)
    states = config.states(9 * 640)
    features = np.random.default_rng(0).standard_normal((1, states, 2)).astype(np.float32)
    middle_of_state = (np.arange(states) * 320 + 200) / 16000
    middle_of_frame = (np.arange(9) + 0.5) / 25
    actual = sound.to_video(features, config, clock, 0, 9)
    for channel in range(2):
        wanted = np.interp(middle_of_frame, middle_of_state, features[0, :, channel])
        np.testing.assert_allclose(actual[0, :, channel], wanted, rtol=0, atol=1e-6)
    part = sound.to_video(features, config, clock, 3, 4)
    np.testing.assert_array_equal(part, actual[:, 3:7])


_REFERENCE = {"base": 94_370_944, "large": 315_427_968, "large-lv60": 315_437_696}


@pytest.mark.parametrize("name", config_lib.PUBLISHED)
def test_published_size_and_names(name):
    config = config_lib.PUBLISHED[name]
    shapes = rules.unbox(
        jax.eval_shape(lambda key: encoder.init(config, key), jax.random.key(0))
    )
    with torch.device("meta"):
        model = reference.transformers.Wav2Vec2Model(
            reference.transformers.Wav2Vec2Config(**wav2vec2.settings(config, "transformers"))
        )
    assert trees.count(shapes) == sum(p.numel() for p in model.parameters())
    assert trees.count(shapes) == _REFERENCE[name]
    mapping.check(model.state_dict(), wav2vec2.rows(config, "transformers"), shapes)


def test_too_little_sound():
    model = encoder.Wav2Vec2(config_lib.PUBLISHED["base"])
    with pytest.raises(ValueError, match="at least 400 are needed, got 399"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 399)))
