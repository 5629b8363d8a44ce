"""The face locator: its numbers stand for boxes, and a moved picture moves them."""

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.models.puppet import locator


def test_numbers_and_boxes_are_inverse():
    boxes = jnp.array([[0.2, 0.3, 0.7, 0.75], [0.1, 0.05, 0.95, 0.9]])
    np.testing.assert_allclose(locator.boxes(locator.numbers(boxes)), boxes, rtol=0, atol=1e-6)
    typical = locator.boxes(jnp.zeros((1, 4)))[0]
    assert 0 < typical[0] < typical[2] < 1 and 0 < typical[1] < typical[3] < 1


def test_whatever_it_says_a_box_is_a_box():
    boxes = np.asarray(locator.boxes(1e3 * jax.random.normal(jax.random.key(0), (50, 4))))
    assert np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()


def test_pictures_of_any_size_are_seen_alike(pico):
    model = locator.FaceLocator(width=4)
    rng = np.random.default_rng(0)
    small = rng.standard_normal((2, 64, 64, 3), dtype=np.float32)
    params = pico.random(jax.eval_shape(model.init, jax.random.key(0), small)["params"])
    large = np.repeat(np.repeat(small, 2, 1), 2, 2)
    said = [np.asarray(model.apply({"params": params}, x)) for x in (small, large)]
    assert said[0].shape == (2, 4) and np.abs(said[0][0] - said[0][1]).max() > 1e-3
    # Shrinking averages over a triangle of two pixels' width, more than the copies.
    assert np.corrcoef(said[0].ravel(), said[1].ravel())[0, 1] > 0.8
