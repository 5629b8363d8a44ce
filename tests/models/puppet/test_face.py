"""The aligned face: geometry against the renderer, resampling against Pillow and itself."""

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from tm_jax.data.synthetic import characters
from tm_jax.models.puppet import face


def _faces(seeds):
    batch = characters.stack([characters.sample(seed) for seed in seeds])
    motion = np.repeat(characters.neutral()[None, None], len(seeds), 0)
    return batch, motion


def test_features_of_all_characters_lie_alike():
    seeds = range(3, 60, 3)
    regions = characters.regions(*_faces(seeds))
    box = face.square(regions["face"])
    assert np.allclose(box[..., 2] - box[..., 0], box[..., 3] - box[..., 1])
    for name, most in (("mouth", 0.03), ("eyes", 0.04)):
        inside = np.asarray(face.within(regions[name], box))[:, 0]
        assert (inside > 0).all() and (inside < 1).all(), name
        assert inside.mean(1).std() < most, name


def test_a_box_in_coordinates_of_another():
    inner, outer = jnp.array([0.2, 0.3, 0.4, 0.5]), jnp.array([0.1, 0.1, 0.5, 0.9])
    actual = face.within(inner, outer)
    np.testing.assert_allclose(actual, [0.25, 0.25, 0.75, 0.5], rtol=0, atol=1e-6)


def test_cutting_is_linear_resampling():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for box in ((4, 10, 24, 30), (5.5, 2.25, 37.5, 34.25)):  # Enlarged, and reduced to half.
        y0, x0, y1, x1 = box
        expected = PIL.Image.fromarray(picture).resize(
            (16, 16) if y1 - y0 > 25 else (32, 32), PIL.Image.Resampling.BILINEAR,
            box=(x0, y0, x1, y1),
        )
        scaled = jnp.asarray([[v / 40 for v in box]])
        actual = face.cut(jnp.asarray(picture[None, None], jnp.float32), scaled, expected.size[0])
        # Pillow rounds; at the edge it sees no pixels beyond the box.
        inside = np.abs(np.asarray(actual)[0, 0] - np.asarray(expected))[2:-2, 2:-2]
        assert inside.max() <= 1.01


def test_beyond_the_picture_its_edge_goes_on():
    picture = jnp.asarray(np.random.default_rng(1).random((1, 1, 8, 8, 3)))
    out = face.cut(picture, jnp.array([[-1.0, 0.0, 0.0, 1.0]]), 8)
    np.testing.assert_allclose(out[0, 0], np.repeat(picture[0, 0, :1], 8, 0), atol=1e-6)


def test_what_does_not_change_stays_bit_for_bit():
    picture = jnp.asarray(np.random.default_rng(2).random((1, 64, 64, 3)))
    box = jnp.array([[0.3, 0.3, 0.7, 0.7]])
    nothing = jnp.zeros((1, 2, 32, 32, 3))
    out = face.paste(nothing, nothing[..., :1], picture, face.square(box), box)
    np.testing.assert_array_equal(out, np.repeat(picture[:, None], 2, 1))


def test_a_change_arrives_where_it_was_cut():
    """A spot in the middle of the square comes back at its place; outside nothing moves."""
    y, x = np.mgrid[:64, :64]
    spot = np.exp(-(np.square(y - 34) + np.square(x - 31)) / 60)[None, None, ..., None] * np.ones(3)
    box = jnp.array([[0.2, 0.25, 0.75, 0.75]])
    square = face.square(box)
    change = face.cut(jnp.asarray(spot, jnp.float32), square, 64)
    black, seen = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 1, 64, 64, 1))
    out = np.asarray(face.paste(change, seen, black, square, box))
    np.testing.assert_allclose(out[0, 0], spot[0, 0], rtol=0, atol=0.03)
    whole = np.asarray(face.paste(jnp.ones_like(change), seen, black, square, box))
    assert whole[0, 0, 34, 31, 0] == pytest.approx(1)
    assert whole[0, 0, :8].max() == 0 == whole[0, 0, :, :8].max()


def test_what_is_hidden_leaves_no_outline():
    """Lines of the picture that are too fine for the square vanish under the paint."""
    y, x = np.mgrid[:64, :64]
    picture = jnp.asarray(((x + y) % 2)[None, ..., None] * np.ones(3), jnp.float32)
    box = jnp.array([[0.2, 0.25, 0.75, 0.75]])
    hidden = jnp.ones((1, 1, 24, 24, 1))
    out = np.asarray(face.paste(0.3 * hidden * jnp.ones(3), hidden, picture, face.square(box), box))
    np.testing.assert_allclose(out[0, 0, 30:38, 28:36], 0.3, rtol=0, atol=1e-6)
    half = np.asarray(
        face.paste(0.15 * hidden * jnp.ones(3), hidden / 2, picture, face.square(box), box)
    )
    middle = slice(30, 38), slice(28, 36)
    np.testing.assert_allclose(
        half[0, 0][middle], picture[0][middle] / 2 + 0.15, rtol=0, atol=1e-6
    )


def test_coverage_is_the_share_of_each_cell():
    actual = face.coverage(jnp.array([0.25, 0.0, 1.0, 0.375]), 2, 4)
    np.testing.assert_allclose(actual, [[0.5, 0.25, 0, 0], [1, 0.5, 0, 0]], atol=1e-6)


def test_tokens_of_the_square_are_mostly_face():
    regions = characters.regions(*_faces([3, 14]))
    box = regions["face"][:, 0]
    mask = np.asarray(face.tokens(box, face.square(box), 8, 8)).reshape(2, 8, 8)
    assert mask[:, 1:7, 2:6].min() == 1 and mask.mean() > 0.8
