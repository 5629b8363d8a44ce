"""The image encoder against transformers' `CLIPVisionModel` and its picture processor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import encoder_reference as reference
from tm_jax.checkpoints import clip
from tm_jax.checkpoints import mapping
from tm_jax.core import trees
from tm_jax.models.image import config as config_lib
from tm_jax.models.image import encoder
from tm_jax.models.image import pictures
from tm_jax.parallel import rules

torch = reference.torch


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return reference.build("clip", tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(0).standard_normal((2, 42, 42, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(made, batch):
    with torch.no_grad():
        return made.reference(
            torch.tensor(batch).permute(0, 3, 1, 2), output_hidden_states=True
        )


def test_hidden_states(made, batch, expected):
    @jax.jit
    def run(params, batch):
        return made.model.apply({"params": params}, batch, method="hidden_states")

    states, pooled = run(made.params, batch)
    assert len(states) == len(expected.hidden_states) == 4
    for actual, wanted in zip(states, expected.hidden_states):
        assert reference.relative(actual, wanted) < 5e-6  # Measured 1e-6.
    assert reference.relative(pooled, expected.pooler_output) < 5e-6


def test_the_result_is_the_penultimate_state(made, batch, expected):
    actual = jax.jit(made.model.apply)({"params": made.params}, batch)
    assert reference.relative(actual, expected.hidden_states[-2]) < 5e-6
    assert reference.relative(actual, expected.hidden_states[-1]) > 1e-2
    low = encoder.CLIPVision(made.config, jnp.bfloat16)
    actual = jax.jit(low.apply)({"params": made.params}, batch)
    assert actual.dtype == jnp.bfloat16
    error = reference.relative(actual.astype(jnp.float32), expected.hidden_states[-2])
    assert 1e-4 < error < 3e-2  # Measured 7.4e-3.


def test_sharded_equals_one_device(made, batch, expected):
    mesh = rules.make_mesh(jax.devices()[:8], data=2, fsdp=2, seq=1, tensor=2)
    params = jax.device_put(made.params, rules.shardings(mesh, made.boxed))
    both = np.concatenate([batch, batch])
    with rules.use(mesh):
        actual = jax.jit(made.model.apply)({"params": params}, both)
    assert actual.sharding.shard_shape(actual.shape) == (1, 10, 48)
    assert reference.relative(np.asarray(actual)[:2], expected.hidden_states[-2]) < 5e-6


def _picture(height, width):
    """A picture with detail at all scales, uint8 [H, W, 3]."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width]
    wave = 60 * np.sin(x / 9)[..., None] + 60 * np.cos(y / 5)[..., None]
    return np.uint8(np.clip(128 + wave + rng.normal(0, 30, (height, width, 3)), 0, 255))


@pytest.mark.parametrize("size", [(300, 421), (421, 300), (101, 90), (224, 224)])
def test_crop_equals_the_picture_processor(size):
    from transformers.models.clip import image_processing_pil_clip

    picture = _picture(*size)
    processor = image_processing_pil_clip.CLIPImageProcessorPil()
    wanted = processor(images=picture, return_tensors="np")["pixel_values"][0]
    actual = pictures.prepare(picture)
    np.testing.assert_allclose(actual, wanted.transpose(1, 2, 0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(300, 421), (101, 90)])
def test_stretch_equals_plain_cubic_interpolation(size):
    picture = _picture(*size)
    # In float32 PyTorch rounds coordinates, which costs 1e-5.
    x = torch.tensor(picture).permute(2, 0, 1)[None].double() / 255
    wanted = torch.nn.functional.interpolate(
        x, size=(224, 224), mode="bicubic", align_corners=False
    )[0].permute(1, 2, 0).numpy()
    actual = pictures.prepare(picture, fit="stretch") * pictures.STD + pictures.MEAN
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=2e-6)


def test_what_is_no_picture():
    with pytest.raises(ValueError, match=r"expected uint8 RGB \[H, W, 3\], got float32"):
        pictures.prepare(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="fit must be one of"):
        pictures.prepare(_picture(8, 8), fit="pad")


def test_published_size_and_names():
    config = config_lib.PUBLISHED["vit-h-14"]
    shapes = rules.unbox(
        jax.eval_shape(lambda key: encoder.init(config, key), jax.random.key(0))
    )
    with torch.device("meta"):
        model = reference.transformers.CLIPVisionModelWithProjection(
            reference.transformers.CLIPVisionConfig(**clip.settings(config, "transformers"))
        )
    tower = model.vision_model
    assert trees.count(shapes) == sum(p.numel() for p in tower.parameters()) == 630_766_080
    mapping.check(
        model.state_dict(), clip.rows(config, "transformers"), shapes,
        ignore=clip.IGNORED["transformers"],
    )
    assert config.tokens == 257
