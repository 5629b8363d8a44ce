"""The cached rollout against one masked pass over the whole clip, and its state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import causal
from tm_jax.models.dit import conditioning
from tm_jax.models.dit import config

_B, _CHUNKS, _C = 2, 3, 3
_ATOL = 1e-5  # Latents are of size one.


class Streams:
    """Two streams of the smallest preset: compiled functions and fixed inputs."""

    def __init__(self, pico):
        self.pico, self.model, self.params = pico, pico.model, pico.params
        self.sigmas = pico.preset.sigmas
        frames = 1 + _CHUNKS * _C
        self.inputs = pico.inputs(pico.preset, _B, frames)
        self.inputs["mode"][:, 0] = 0  # The sink listens to silence.
        self.inputs["windows"][:, 0] = 0
        self.inputs["x"][:, 0] = 0
        self.keys = jax.vmap(jax.random.key)(jnp.array([11, 12]))
        # Two chunks of condition can differ, as in image-to-video.
        noise = np.random.default_rng(9).standard_normal(self.inputs["condition"].shape)
        self.inputs["condition"] = self.inputs["condition"] + 0.1 * noise.astype(np.float32)
        i = self.inputs
        self.context = jax.jit(
            lambda p, *x: self.model.apply({"params": p}, *x, method="context")
        )(self.params, i["text"], i["image"], i["face_mask"])
        self._begin = jax.jit(self._begin_unjitted, static_argnums=(1, 2))
        self._next = {p: self.compile(p) for p in causal.POLICIES}

    def _begin_unjitted(self, keys, policy, view=config.View()):
        i = self.inputs
        return causal.begin(
            self.model, self.params, i["x"][:, 0], i["condition"][:, 0], self.context, keys,
            _C, len(self.sigmas), policy, view,
        )

    def compile(self, policy):
        def function(state, condition, windows, mode):
            given = conditioning.Conditioning(channels=condition, audio=windows, mode=mode)
            return causal.next_chunk(
                self.model, self.params, state, given, self.context, self.sigmas, policy
            )

        return jax.jit(function, donate_argnums=0)

    def begin(self, policy, keys=None):
        return self._begin(self.keys if keys is None else keys, policy)

    def chunk(self, c):
        """Inputs of chunk c."""
        part = slice(1 + c * _C, 1 + (c + 1) * _C)
        return [self.inputs[n][:, part] for n in ("condition", "windows", "mode")]

    def next(self, policy, state, c):
        """Runs a copy of `state`, which a donated call would consume."""
        return self._next[policy](jax.tree.map(jnp.copy, state), *self.chunk(c))

    def rollout(self, policy, keys=None):
        """Latents of all chunks and the states before and after each."""
        states, latents = [self.begin(policy, keys)], []
        for c in range(_CHUNKS):
            x0, state = self.next(policy, states[-1], c)
            latents.append(np.asarray(x0))
            states.append(state)
        return latents, states


@pytest.fixture(scope="module")
def streams(pico):
    return Streams(pico)


@pytest.fixture(scope="module")
def clean(streams):
    return streams.rollout("clean")


@pytest.fixture(scope="module")
def per_step(streams):
    return streams.rollout("per_step")


@pytest.fixture(scope="module")
def whole_clip(streams):
    """Velocity of the noisy chunks in one pass over [sink, context 1 ... n-1, noisy 1 ... n]."""
    height, width, _ = streams.pico.preset.latent_shape
    patch = streams.pico.preset.dit.patch
    grid = attention_patterns.Grid(height // patch, width // patch, _C)
    order = np.r_[0, 1 : 1 + (_CHUNKS - 1) * _C, 1 : 1 + _CHUNKS * _C]
    context_frames = (_CHUNKS - 1) * _C

    @jax.jit
    def velocity(context, context_sigma, noisy, sigma):
        i = dict(streams.inputs)
        x = jnp.concatenate([i["x"][:, :1], *context[:-1], *noisy], 1)
        level = jnp.concatenate([
            jnp.zeros(1), jnp.full(context_frames, context_sigma), jnp.full(_CHUNKS * _C, sigma)
        ])
        i.update({n: i[n][:, order] for n in ("condition", "mode", "windows")})
        i.update(x=x, sigma=jnp.broadcast_to(level, (_B, len(order))))
        out, _ = streams.model.apply(
            {"params": streams.params}, **i, method=streams.pico.touch,
            pattern=attention_patterns.teacher_forcing(grid, _CHUNKS),
        )
        return jnp.split(out[:, 1 + context_frames :], _CHUNKS, 1)

    return velocity


def _noise(streams, c, step):
    """The documented noise: fold_in(key of the stream, chunk), then the step."""
    shape = (_C, *streams.pico.preset.latent_shape)
    draws = [
        jax.random.normal(jax.random.fold_in(jax.random.fold_in(k, c), step), shape)
        for k in streams.keys
    ]
    return np.stack(draws)


def _renoise(streams, x0, step):
    sigma = streams.sigmas[step]
    return [(1 - sigma) * x + sigma * _noise(streams, c, step) for c, x in enumerate(x0)]


def test_clean_rollout_equals_the_whole_clip(streams, clean, whole_clip):
    latents, _ = clean
    noisy = [_noise(streams, c, 0) for c in range(_CHUNKS)]
    for step, sigma in enumerate(streams.sigmas):
        velocity = whole_clip(latents, 0.0, noisy, sigma)
        x0 = [x - sigma * v for x, v in zip(noisy, velocity)]
        if step + 1 < len(streams.sigmas):
            noisy = _renoise(streams, x0, step + 1)
    # Measured 2.2e-6.
    np.testing.assert_allclose(np.stack(latents), np.stack(x0), rtol=0, atol=_ATOL)
    assert np.abs(latents[2] - latents[1]).max() > 0.1


def test_per_step_rollout_equals_the_whole_clip_at_every_step(streams, per_step, whole_clip):
    """Each step sees the chunk before at its own noise level, as it was at that step."""
    latents, _ = per_step
    noisy = [_noise(streams, c, 0) for c in range(_CHUNKS)]
    for step, sigma in enumerate(streams.sigmas):
        velocity = whole_clip(noisy, sigma, noisy, sigma)
        x0 = [x - sigma * v for x, v in zip(noisy, velocity)]
        if step + 1 < len(streams.sigmas):
            noisy = _renoise(streams, x0, step + 1)
    # Measured 1.2e-6.
    np.testing.assert_allclose(np.stack(latents), np.stack(x0), rtol=0, atol=_ATOL)


@pytest.mark.parametrize(
    "view",
    [
        {"history": 2}, {"history": 2, "keep": 1, "positions": "rollout"},
        {"history": 3, "positions": "absolute"},
    ],
    ids=str,
)
def test_other_windows_equal_the_whole_clip(streams, clean, view):
    """More history, a first chunk that stays, other places of the sink: cached and at once.

    Five chunks, so that a window of two has rolled.
    """
    chunks, view = 5, config.View(**view)
    state = streams._begin(streams.keys, "clean", view)
    latents = []
    for c in range(chunks):
        x0, state = streams._next["clean"](state, *streams.chunk(c % _CHUNKS))
        latents.append(np.asarray(x0))
    preset = streams.pico.preset
    height, width, _ = preset.latent_shape
    grid = attention_patterns.Grid(height // preset.dit.patch, width // preset.dit.patch, _C)
    order = np.r_[0, [1 + c % _CHUNKS * _C + i for c in range(chunks) for i in range(_C)]]
    order = np.r_[order[: 1 + (chunks - 1) * _C], order[1:]]
    sink = streams.inputs["x"][:, :1]

    @jax.jit
    def velocity(noisy, sigma):
        i = {**streams.inputs}
        i.update({n: i[n][:, order] for n in ("condition", "mode", "windows")})
        level = jnp.r_[jnp.zeros(1 + (chunks - 1) * _C), jnp.full(chunks * _C, sigma)]
        i.update(
            x=jnp.concatenate([sink, *latents[:-1], *noisy], 1),
            sigma=jnp.broadcast_to(level, (_B, len(order))),
        )
        out, _ = streams.model.apply(
            {"params": streams.params}, **i, method=streams.pico.touch,
            pattern=attention_patterns.teacher_forcing(grid, chunks, view),
        )
        return jnp.split(out[:, -chunks * _C :], chunks, 1)

    noisy = [_noise(streams, c, 0) for c in range(chunks)]
    for step, sigma in enumerate(streams.sigmas):
        x0 = [x - sigma * v for x, v in zip(noisy, velocity(noisy, sigma))]
        if step + 1 < len(streams.sigmas):
            noisy = _renoise(streams, x0, step + 1)
    np.testing.assert_allclose(np.stack(latents), np.stack(x0), rtol=0, atol=_ATOL)
    assert np.abs(latents[1] - clean[0][1]).max() > 1e-3  # Not the usual window.


def test_the_sink_stands_where_a_rollout_has_it():
    """Latents between the sink and the current chunk, by the definition of each choice."""
    chunk = np.arange(5)
    for view, expected in (
        (config.View(), [4, 4, 4, 4, 4]),
        (config.View(positions="rollout"), [1, 4, 4, 4, 4]),
        (config.View(positions="rollout", history=2), [1, 4, 7, 7, 7]),
        (config.View(positions="absolute"), [1, 4, 7, 10, 13]),
        (config.View(positions="absolute", history=2), [1, 4, 7, 10, 13]),
    ):
        grid = attention_patterns.Grid(2, 2, 3)
        first = grid.current_times(view.history)[0]
        distance = first - np.broadcast_to(np.asarray(view.sink_time(chunk, 3)), 5)
        np.testing.assert_array_equal(distance, expected)
    with pytest.raises(ValueError, match="keep must be 0 ... history - 1 = 0, got 1"):
        config.View(keep=1)


def test_policies_differ(clean, per_step):
    np.testing.assert_allclose(per_step[0][0], clean[0][0], rtol=0, atol=_ATOL)  # No cache yet.
    assert np.abs(per_step[0][1] - clean[0][1]).max() > 1e-3


def test_the_same_key_makes_the_same_video(streams, clean):
    again, _ = streams.rollout("clean")
    np.testing.assert_array_equal(np.stack(again), np.stack(clean[0]))
    state = streams.begin("clean", jax.vmap(jax.random.key)(jnp.array([11, 99])))
    other, _ = streams.next("clean", state, 0)
    np.testing.assert_array_equal(other[0], clean[0][0][0])
    assert np.abs(other[1] - clean[0][0][1]).max() > 0.1


def test_a_stream_resumes_from_its_state(streams, clean):
    latents, states = clean
    x0, _ = streams.next("clean", states[2], 2)
    np.testing.assert_array_equal(x0, latents[2])


def test_streams_of_a_batch_may_be_at_different_chunks(streams, clean):
    """One stream is at its third chunk while the other has just begun."""
    latents, states = clean

    def pick(old, new):
        return jnp.stack([old[0], new[1]])

    mixed = jax.tree.map(pick, states[2], states[0])
    state_inputs = [
        np.stack([late[0], early[1]])
        for late, early in zip(streams.chunk(2), streams.chunk(0))
    ]
    x0, state = streams._next["clean"](mixed, *state_inputs)
    np.testing.assert_allclose(x0[0], latents[2][0], rtol=0, atol=_ATOL)
    np.testing.assert_allclose(x0[1], latents[0][1], rtol=0, atol=_ATOL)
    assert state.chunk.tolist() == [3, 1]


def test_the_first_chunk_ignores_the_empty_cache(streams, clean):
    latents, states = clean

    def garbage(state):
        return state.replace(
            previous=jax.tree.map(lambda x: 30 * jnp.cos(jnp.arange(x.size)).reshape(x.shape),
                                  state.previous)
        )

    x0, _ = streams.next("clean", garbage(states[0]), 0)
    np.testing.assert_array_equal(x0, latents[0])
    x0, _ = streams.next("clean", garbage(states[1]), 1)
    assert np.abs(x0 - latents[1]).max() > 1e-3  # Later chunks do read it.


def test_chunk_one_million_computes_what_chunk_two_does(streams, clean, monkeypatch):
    """Same cache, same noise, another index: the same picture, bit for bit."""
    _, states = clean
    monkeypatch.setattr(jax.random, "fold_in", lambda key, data: key)
    run = streams.compile("clean")
    outputs = []
    for index in (2, 1_000_000, 2**31 - 2):
        state = jax.tree.map(jnp.copy, states[2])
        state = state.replace(chunk=jnp.full((_B,), index, jnp.int32))
        x0, after = run(state, *streams.chunk(2))
        outputs.append(np.asarray(x0))
        assert after.chunk.tolist() == [index + 1] * _B
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


@pytest.mark.parametrize("policy", causal.POLICIES)
def test_the_state_keeps_its_shapes(streams, policy):
    state = jax.eval_shape(functools.partial(streams._begin_unjitted, streams.keys, policy))
    _, after = jax.eval_shape(streams._next[policy], state, *streams.chunk(0))
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after)):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    assert len(state.previous) == (1 if policy == "clean" else 2)


def test_the_state_is_donated(streams):
    state = streams.begin("clean")
    caches = jax.tree.leaves((state.sink, state.previous))
    streams._next["clean"](state, *streams.chunk(0))
    assert all(x.is_deleted() for x in caches)


def test_an_unknown_policy_is_refused(streams):
    with pytest.raises(ValueError, match="policy must be one of .* got 'dirty'"):
        streams._begin_unjitted(streams.keys, "dirty")
