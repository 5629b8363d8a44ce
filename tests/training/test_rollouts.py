"""Rollouts in training against the sampler, the whole clip at once, and differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import miniature
from tests.training import small
from tm_jax.configs import components
from tm_jax.core import trees
from tm_jax.diffusion import guidance as guidance_lib
from tm_jax.models.dit import causal as student_lib
from tm_jax.training import rollouts

_B, _CHUNKS, _W, _C = 2, 4, 2, 3
_ATOL = 1e-5  # Estimates are of size four.
_KEY = jax.random.key(5)


class Student:
    """A student with random weights, its compiled window and a fixed batch."""

    def __init__(self, params, policy, **view):
        models = small.models("pico", 2, policy)
        self.models = dataclasses.replace(models, preset=models.preset.with_student(**view))
        self.params = params
        self.batch = small.batch(_B, _CHUNKS * _C)
        self.sampled = jax.jit(self._sample)(params)

        @jax.jit
        def window(params, x0, start, teacher_forced, exit_step):
            found = rollouts.rollout_window(
                self.models, params, self.batch.replace(x0=x0), _KEY, _W, start, teacher_forced,
                exit_step,
            )
            return found, self._exit(params, found, start)

        self._window = window

    def _sample(self, params):
        return rollouts.student_sample(self.models, params, self.batch, _KEY)

    def _exit(self, params, found, start):
        batch = self.batch.cut(start * _C, _W * _C)
        return rollouts.exit_pass(self.models, params, batch, found)

    def window(self, start, teacher_forced, exit_step, params=None, x0=None):
        """A value for both samples, or one for each."""
        def spread(value, dtype):
            return jnp.broadcast_to(jnp.asarray(value, dtype), (_B,))

        return self._window(
            self.params if params is None else params, self.batch.x0 if x0 is None else x0,
            spread(start, jnp.int32), spread(teacher_forced, bool), spread(exit_step, jnp.int32),
        )


@pytest.fixture(scope="module")
def students(pico):
    params = pico.random(small.shapes())
    return {policy: Student(params, policy) for policy in student_lib.POLICIES}


@pytest.mark.parametrize("policy", student_lib.POLICIES)
@pytest.mark.parametrize("start", [0, 2])
def test_a_window_is_a_part_of_the_cached_rollout(students, policy, start):
    student = students[policy]
    found, x0 = student.window(start, False, 1)
    expected = student.sampled[:, start * _C : (start + _W) * _C]
    # Float32, of numbers of size 1.
    np.testing.assert_allclose(x0, expected, rtol=0, atol=_ATOL)
    np.testing.assert_allclose(found.x0, expected, rtol=0, atol=_ATOL)


@pytest.mark.parametrize("policy", student_lib.POLICIES)
def test_every_sample_has_a_start_a_coin_and_an_exit_of_its_own(students, policy):
    """Mixed in one batch equals each by itself."""
    student = students[policy]
    cases = [(0, False, 0), (2, True, 1), (1, True, 0), (2, False, 1)]
    alone = [student.window(*case) for case in cases]
    for i, j in ((0, 1), (1, 2), (3, 1)):
        found, x0 = student.window(*zip(cases[i], cases[j]))
        for sample, case in enumerate((i, j)):
            expected, expected_x0 = alone[case]
            np.testing.assert_allclose(x0[sample], expected_x0[sample], rtol=0, atol=_ATOL)
            for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
                np.testing.assert_allclose(mine[sample], theirs[sample], rtol=0, atol=_ATOL)
    assert np.abs(alone[1][1] - alone[3][1]).max() > 0.01  # The coin matters.


@pytest.mark.parametrize("view", [{"sink": False}, {"positions": "absolute", "history": 2}])
def test_every_view_is_the_same_in_rollout_exit_and_whole_clip(students, view):
    """Training at once, training on rollouts and streams see the same of the sink."""
    student, usual = Student(students["clean"].params, "clean", **view), students["clean"]
    found, x0 = student.window(2, False, 1)
    expected = student.sampled[:, 2 * _C :]
    np.testing.assert_allclose(x0, expected, rtol=0, atol=_ATOL)
    context = student.sampled[:, : 3 * _C]
    x = jnp.concatenate([jnp.zeros_like(context[:, : 2 * _C]), *found.points.swapaxes(0, 1)], 1)
    sigma = jnp.repeat(found.sigma[:, None], _CHUNKS, 1)
    whole = jax.jit(lambda p: rollouts.student_forward(
        student.models, p, student.batch, context, jnp.zeros((_B, _CHUNKS - 1)), x, sigma
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
    np.testing.assert_allclose(x0, found.x0, rtol=0, atol=_ATOL)
    sigma = np.asarray(models.preset.sigmas, np.float32)[exit_step]
    np.testing.assert_array_equal(found.sigma, sigma)
    assert found.chunk.tolist() == [[2, 3]] * _B
    context = student.batch.x0[:, : 2 * _C]
    level = np.zeros(_B, np.float32)
    if policy == "per_step":
        noise = np.stack([
            np.concatenate([_noise(models, chunk, s)[i] for chunk in (0, 1)])
            for i, s in enumerate(exit_step)
        ])
        level, s = sigma, sigma[:, None, None, None, None]
        context = (1 - s) * context + s * noise
    x = np.concatenate([np.zeros_like(context), found.points[:, 0]], 1)
    whole = jax.jit(lambda p: rollouts.student_forward(
        models, p, student.batch.cut(0, 3 * _C), context, np.repeat(level[:, None], 2, 1), x,
        np.repeat(sigma[:, None], 3, 1),
    ))(student.params)
    # Float32, of numbers of size 1.
    np.testing.assert_allclose(x0[:, :_C], whole[:, -_C:], rtol=0, atol=_ATOL)


@pytest.fixture(scope="module")
def gradients(students):
    """Of a random sum over the second chunk of a window: to parameters and true clips."""
    student = students["clean"]
    pull = np.random.default_rng(3).standard_normal((_B, _C, *student.models.preset.latent_shape))
    arguments = jnp.array([1, 1]), jnp.array([True, True]), jnp.array([1, 0])

    def value(params, x0):
        return jnp.sum(student._window(params, x0, *arguments)[1][:, _C:] * pull)

    grads = jax.jit(jax.grad(value, (0, 1)))(student.params, student.batch.x0)
    return student, value, grads, pull


def test_the_gradient_is_that_of_the_exit_step_with_constant_context(gradients):
    """Differences along a direction: with the window held fixed they agree, else they do not."""
    student, value, (to_params, _), pull = gradients
    rng, size = np.random.default_rng(4), 1e-3
    flat = trees.flatten(student.params)
    direction = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in flat.items()}
    found, _ = student.window(1, True, [1, 0])
    exits = jax.jit(lambda p, f: jnp.sum(student._exit(p, f, jnp.array([1, 1]))[:, _C:] * pull))

    def along(function):
        ends = []
        for sign in (1, -1):
            moved = {k: v + sign * size * direction[k] for k, v in flat.items()}
            ends.append(float(function(trees.unflatten(moved))))
        return (ends[0] - ends[1]) / (2 * size)

    slope = sum(float(jnp.vdot(direction[k], g)) for k, g in trees.flatten(to_params).items())
    fixed = along(lambda p: exits(p, found))
    moving = along(lambda p: value(p, student.batch.x0))
    assert abs(slope) > 1
    assert slope == pytest.approx(fixed, rel=0.02)
    assert abs(slope - moving) > 0.1 * abs(slope)


def test_an_earlier_chunk_gets_no_gradient_from_a_later_one(gradients):
    student, value, (_, to_true), _ = gradients
    np.testing.assert_array_equal(to_true, 0)
    other = student.batch.x0 + 0.5
    before, after = (float(value(student.params, x)) for x in (student.batch.x0, other))
    assert abs(before - after) > 1e-2  # Its value does depend on them.


class Teacher:
    """The same weights seen both ways, as a compiled velocity of fixed inputs."""

    def __init__(self, params):
        self.models, self.params = small.models(), params
        self.batch = small.batch(_B, _W * _C)
        rng = np.random.default_rng(7)
        self.x = rng.standard_normal(self.batch.clip.shape).astype(np.float32)
        self.sigma = jnp.array([0.9, 0.4])
        self._plain = jax.jit(
            lambda batch: rollouts.teacher_velocity(self.models, params, batch, self.x, self.sigma)
        )

    def velocity(self, **dropped):
        return np.asarray(self._plain(self.batch.without(dropped)))

    def guided(self, **factors):
        guidance = guidance_lib.Guidance(**factors)
        return np.asarray(jax.jit(lambda: rollouts.teacher_velocity(
            self.models, self.params, self.batch, self.x, self.sigma, guidance
        ))())


@pytest.fixture(scope="module")
def teacher(students):
    return Teacher(students["clean"].params)


def test_guidance_of_text_and_audio(teacher):
    full = teacher.velocity()
    no_text, no_audio = teacher.velocity(text=True), teacher.velocity(audio=True)
    assert np.abs(full - no_text).max() > 1e-3 and np.abs(full - no_audio).max() > 1e-3
    np.testing.assert_allclose(
        teacher.guided(audio=3.0), no_audio + 3 * (full - no_audio), rtol=0, atol=1e-4
    )
    expected = full + 1.5 * (full - no_text) + 2 * (full - no_audio)
    np.testing.assert_allclose(
        teacher.guided(text=2.5, audio=3.0), expected, rtol=0, atol=1e-4
    )


def test_a_guidance_of_one_takes_no_further_pass(teacher, monkeypatch):
    passes = []
    dit = teacher.models.dit

    def count(self, x, *args):
        passes.append(x.shape)
        return x, []

    monkeypatch.setattr(type(dit), "__call__", count)
    for factors, number in (({}, 1), ({"text": 2.0}, 2), ({"text": 2.0, "audio": 0.0}, 3)):
        passes.clear()
        guidance = guidance_lib.Guidance(**factors)
        jax.eval_shape(lambda p, g=guidance: rollouts.teacher_velocity(
            teacher.models, p, teacher.batch, teacher.x, teacher.sigma, g
        ), teacher.params)
        assert len(passes) == number


def test_the_teacher_samples_along_its_velocity(teacher):
    """Two Euler steps by hand; the picture's latent is denoised with the rest."""
    sigmas = (1.0, 0.6)
    path = jax.jit(lambda: rollouts.teacher_sample(
        teacher.models, teacher.params, teacher.batch, _KEY, sigmas, temperature=0.5
    ))()
    shape = teacher.batch.x0.shape
    assert path.shape == (3, *shape)
    x = 0.5 * rollouts.draw_noise(_KEY, shape)
    np.testing.assert_allclose(path[0], x[:, 1:], rtol=0, atol=1e-6)
    step = jax.jit(lambda x, s: rollouts.teacher_velocity(
        teacher.models, teacher.params, teacher.batch, x, s
    ))
    for point, (sigma, later) in zip(path[1:], ((1.0, 0.6), (0.6, 0.0))):
        x = x + (later - sigma) * step(x, jnp.full((_B,), sigma))
        np.testing.assert_allclose(point, x[:, 1:], rtol=0, atol=_ATOL)


def test_a_pinned_picture_stays_clean(pico):
    """Without the picture in the conditioning channels its latent is given as it is."""
    models = components.build(miniature.nano())
    clip = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 2, 2, 4)))
    noise = jnp.ones_like(clip)
    x = rollouts.corrupt(models, clip, noise, jnp.array([0.5, 1.0]))
    np.testing.assert_array_equal(x[:, 0], clip[:, 0])
    np.testing.assert_allclose(x[1, 1:], noise[1, 1:], rtol=0, atol=1e-6)
    x = rollouts.corrupt(small.models(), clip, noise, jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(x[0, 0], 0.5 * clip[0, 0] + 0.5, rtol=0, atol=1e-6)
