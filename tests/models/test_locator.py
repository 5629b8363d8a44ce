"""The face locator: shape, and where a token looks."""

import jax
import numpy as np

from tm_jax.models import locator


def test_a_logit_belongs_to_its_own_corner(pico):
    model = locator.FaceLocator(patch=2, width=8)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 16, 20, 8), dtype=np.float32)
    params = pico.random(jax.eval_shape(model.init, jax.random.key(0), x)["params"])
    apply = jax.jit(lambda x: model.apply({"params": params}, x))
    before = np.asarray(apply(x))
    assert before.shape == (2, 80)
    changed = x.copy()
    changed[:, -1, -1] += 3  # Three 3x3 convolutions reach 3 latents, two tokens.
    moved = np.abs(apply(changed) - before).max(0).reshape(8, 10) > 0
    assert moved[-1, -1]
    assert moved[:-2].sum() + moved[:, :-2].sum() == 0
