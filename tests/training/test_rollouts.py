"""Rollouts in training against the sampler, the whole clip at once, and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from tm_jax.core import trees
from tm_jax.models import networks
from tm_jax.models.wan import student as student_lib
from tm_jax.training import rollouts

_B, _CHUNKS, _W, _C = 2, 4, 2, 3
_ATOL = 1e-5  # Estimates are of size four.
_KEY = jax.random.key(5)


class Student:
    """A student with random weights, its compiled window and a fixed batch."""

    def __init__(self, params, policy, **view):
        preset = small.models(2, policy).preset.with_student(**view)
        self.models, self.params = networks.models(preset), params
        self.batch = small.batch(_B, _CHUNKS * _C)
        self.sampled = jax.jit(self._sample)(params)

        @jax.jit
        def window(params, x0, start, given, exit_step):
            batch = {**self.batch, "x0": x0}
            found = rollouts.visit(
                self.models, params, batch, _KEY, _W, start, given, exit_step
            )
            return found, self._exit(params, found, start)

        self._window = window

    def _sample(self, params):
        return rollouts.student_sample(self.models, params, self.batch, _KEY)

    def _exit(self, params, found, start):
        batch = rollouts.cut(self.batch, start * _C, _W * _C)
        return rollouts.exit_pass(self.models, params, batch, found)

    def window(self, start, given, exit_step, params=None, x0=None):
        params = self.params if params is None else params
        x0 = self.batch["x0"] if x0 is None else x0
        return self._window(
            params, x0, jnp.int32(start), jnp.bool_(given), jnp.asarray(exit_step, jnp.int32)
        )


@pytest.fixture(scope="module")
def students(pico):
    params = pico.random(small.shapes())
    return {policy: Student(params, policy) for policy in student_lib.POLICIES}


@pytest.mark.parametrize("policy", student_lib.POLICIES)
@pytest.mark.parametrize("start", [0, 2])
def test_a_window_is_a_part_of_the_cached_rollout(students, policy, start):
    student = students[policy]
    found, x0 = student.window(start, False, [1, 1])
    expected = student.sampled[:, start * _C : (start + _W) * _C]
    # Float32, of numbers of size 1.
    np.testing.assert_allclose(x0, expected, rtol=0, atol=_ATOL)
    np.testing.assert_allclose(
        found.estimates.reshape(expected.shape), expected, rtol=0, atol=_ATOL
    )


@pytest.mark.parametrize("view", [{"sink": False}, {"positions": "absolute"}])
def test_every_view_is_the_same_in_rollout_exit_and_whole_clip(students, view):
    """Training at once, training on rollouts and streams see the same of the sink."""
    student, usual = Student(students["clean"].params, "clean", **view), students["clean"]
    found, x0 = student.window(2, False, [1, 1])
    expected = student.sampled[:, 2 * _C :]
    np.testing.assert_allclose(x0, expected, rtol=0, atol=_ATOL)
    seen = student.sampled[:, : 3 * _C]
    x = jnp.concatenate([jnp.zeros_like(seen[:, : 2 * _C]), *found.points.swapaxes(0, 1)], 1)
    sigma = jnp.repeat(found.sigma[:, None], _CHUNKS, 1)
    whole = jax.jit(lambda p: rollouts.student_forward(
        student.models, p, student.batch, seen, jnp.zeros((_B, _CHUNKS - 1)), x, sigma
    ))(student.params)
    np.testing.assert_allclose(whole[:, 2 * _C :], expected, rtol=0, atol=_ATOL)
    assert np.abs(student.sampled - usual.sampled)[:, -_C:].max() > 0.01


def _noise(models, chunk, step):
    """The documented noise of a stream: its key, the chunk, then the step."""
    keys = jax.random.split(_KEY, _B)
    shape = (_C, *models.preset.latent_shape)
    draws = [
        jax.random.normal(jax.random.fold_in(jax.random.fold_in(k, chunk), step), shape)
        for k in keys
    ]
    return np.stack(draws)


@pytest.mark.parametrize("policy", student_lib.POLICIES)
def test_after_true_chunks_a_window_equals_the_whole_clip(students, policy):
    """Samples leave at steps 1 and 0; each cache holds true chunks at its level."""
    student, exit_step = students[policy], np.array([1, 0])
    models = student.models
    found, x0 = student.window(2, True, exit_step)
    np.testing.assert_allclose(
        x0, found.estimates.reshape(x0.shape), rtol=0, atol=_ATOL
    )
    sigma = np.asarray(models.preset.sigmas, np.float32)[exit_step]
    np.testing.assert_array_equal(found.sigma, sigma)
    assert found.chunk.tolist() == [[2, 3]] * _B
    true = np.split(student.batch["x0"], _CHUNKS, 1)[:2]
    seen, level = np.concatenate(true, 1), np.zeros(_B, np.float32)
    if policy == "per_step":
        noise = np.stack([
            np.concatenate([_noise(models, chunk, s)[i] for chunk in (0, 1)])
            for i, s in enumerate(exit_step)
        ])
        level, s = sigma, sigma[:, None, None, None, None]
        seen = (1 - s) * seen + s * noise
    x = np.concatenate([np.zeros_like(seen), found.points[:, 0]], 1)
    clip = {
        k: v[:, : 3 * _C] if k in ("windows", "expression") else v
        for k, v in student.batch.items()
    }
    whole = jax.jit(lambda p: rollouts.student_forward(
        models, p, clip, seen, np.repeat(level[:, None], 2, 1), x,
        np.repeat(sigma[:, None], 3, 1),
    ))(student.params)
    # Float32, of numbers of size 1.
    np.testing.assert_allclose(x0[:, :_C], whole[:, -_C:], rtol=0, atol=_ATOL)
    own, _ = student.window(2, False, exit_step)
    assert np.abs(own.estimates - found.estimates).max() > 0.01


@pytest.fixture(scope="module")
def gradients(students):
    """Of a random sum over the second chunk of a window: to parameters and true clips."""
    student = students["clean"]
    pull = np.random.default_rng(3).standard_normal((_B, _C, *student.models.preset.latent_shape))
    arguments = jnp.int32(1), jnp.bool_(True), jnp.asarray([1, 0])

    def value(params, x0):
        return jnp.sum(student._window(params, x0, *arguments)[1][:, _C:] * pull)

    grads = jax.jit(jax.grad(value, (0, 1)))(student.params, student.batch["x0"])
    return student, value, grads, pull


def test_the_gradient_is_that_of_the_exit_step_with_constant_context(gradients):
    """Differences along a direction: with the visit held fixed they agree, else they do not."""
    student, value, (to_params, _), pull = gradients
    start, exit_step = 1, [1, 0]
    rng, size = np.random.default_rng(4), 1e-3
    flat = trees.flatten(student.params)
    direction = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in flat.items()}
    found, _ = student.window(start, True, exit_step)
    exits = jax.jit(lambda p, f: jnp.sum(student._exit(p, f, start)[:, _C:] * pull))

    def along(function):
        ends = []
        for sign in (1, -1):
            moved = {k: v + sign * size * direction[k] for k, v in flat.items()}
            ends.append(float(function(trees.unflatten(moved))))
        return (ends[0] - ends[1]) / (2 * size)

    slope = sum(float(jnp.vdot(direction[k], g)) for k, g in trees.flatten(to_params).items())
    fixed = along(lambda p: exits(p, found))
    moving = along(lambda p: value(p, student.batch["x0"]))
    assert abs(slope) > 1
    assert slope == pytest.approx(fixed, rel=0.02)
    assert abs(slope - moving) > 0.1 * abs(slope)


def test_an_earlier_chunk_gets_no_gradient_from_a_later_one(gradients):
    student, value, (_, to_true), _ = gradients
    np.testing.assert_array_equal(to_true, 0)
    other = student.batch["x0"] + 0.5
    before, after = (float(value(student.params, x)) for x in (student.batch["x0"], other))
    assert abs(before - after) > 1e-2  # Its value does depend on them.


def test_cutting_moves_what_has_frames():
    batch = small.batch(2, 6)
    part = jax.jit(lambda b, i: rollouts.cut(b, i, 3))(batch, 2)
    for name in ("x0", "windows", "expression"):
        np.testing.assert_array_equal(part[name], batch[name][:, 2:5])
    for name in ("reference", "face", "mode"):
        np.testing.assert_array_equal(part[name], batch[name])
