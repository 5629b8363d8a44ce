"""One update: the average, accumulation and the optimiser, in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tm_jax.core import axes
from tm_jax.parallel import rules
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import steps

_RNG = np.random.default_rng(0)
_X = _RNG.standard_normal((8, 4), dtype=np.float32)
_Y = _RNG.standard_normal((8, 2), dtype=np.float32)
_W = _RNG.standard_normal((4, 2), dtype=np.float32)


def _init(key):
    box = nn.LogicallyPartitioned(jnp.asarray(_W), (axes.EMBED, axes.MLP))
    return {"kernel": box, "bias": nn.LogicallyPartitioned(jnp.zeros(2), (axes.MLP,))}


def _loss(params, frozen, batch, key):
    error = batch["x"] @ params["kernel"] + params["bias"] - batch["y"]
    return jnp.mean(jnp.square(error)), {"noise": jax.random.uniform(key)}


def _one_device():
    return rules.make_mesh(jax.devices()[:1])


def _start(optimizer, ema_decay=0.9, mesh=None):
    mesh = mesh or _one_device()
    state, placement = steps.create(_init, optimizer, mesh, jax.random.key(0))
    return state, steps.make_step(_loss, optimizer, ema_decay, mesh, placement)


def _gradient(w, b, x, y):
    error = x @ w + b - y
    return 2 * x.T @ error / error.size, 2 * error.sum(0) / error.size


def test_gradient_descent_and_the_average():
    state, step = _start(optax.sgd(0.1), ema_decay=0.25)
    w, b = np.float64(_W), np.zeros(2)
    average = w.copy()
    noises = []
    for i in range(4):
        state, metrics = step(state, {}, {"x": _X, "y": _Y}, jax.random.key(1))
        loss = np.square(_X @ w + b - _Y).mean()
        dw, db = _gradient(w, b, np.float64(_X), _Y)
        w, b = w - 0.1 * dw, b - 0.1 * db
        decay = min(0.25, (2 + i) / (11 + i))  # Warm-up of the average.
        average = decay * average + (1 - decay) * w
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
        norm = np.sqrt(np.sum(dw**2) + np.sum(db**2))
        assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
        noises.append(float(metrics["noise"]))
    np.testing.assert_allclose(state.params["kernel"], w, rtol=0, atol=2e-6)  # Measured 8e-8.
    np.testing.assert_allclose(state.average["kernel"], average, rtol=0, atol=2e-6)
    assert int(state.step) == 4
    assert len(set(noises)) == 4  # Every step has its own key.


def test_two_halves_accumulate_to_one_batch():
    settings = dict(learning_rate=0.05, warmup_steps=1, weight_decay=0.1)
    whole = optimizer_lib.make(optimizer_lib.OptimizerConfig(**settings), 10)
    halves = optimizer_lib.make(optimizer_lib.OptimizerConfig(accumulate=2, **settings), 20)
    big, big_step = _start(whole)
    small, small_step = _start(halves)
    for _ in range(3):  # The learning rate of the first update is zero.
        big, _ = big_step(big, {}, {"x": _X, "y": _Y}, jax.random.key(1))
        for half in (slice(0, 4), slice(4, 8)):
            small, _ = small_step(small, {}, {"x": _X[half], "y": _Y[half]}, jax.random.key(1))
    np.testing.assert_allclose(
        small.params["kernel"], big.params["kernel"], rtol=0, atol=2e-6
    )  # Measured 6e-8.
    assert np.abs(big.params["kernel"] - _W).max() > 0.05


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_learning_rate_ends_at_its_final_fraction(accumulate):
    """A run of n steps walks the whole schedule, also when it accumulates."""
    config = optimizer_lib.OptimizerConfig(
        learning_rate=0.1, warmup_steps=2, final_fraction=0.05, weight_decay=0.0,
        accumulate=accumulate, clip_norm=1e9,
    )
    transform = optimizer_lib.make(config, 40)
    params = {"w": jnp.zeros((1, 1))}
    update = jax.jit(transform.update)
    state, moved = transform.init(params), []
    for _ in range(40):
        # A constant gradient: Adam moves by the learning rate itself.
        change, state = update({"w": jnp.ones((1, 1))}, state, params)
        moved.append(abs(float(change["w"][0, 0])))
    assert max(moved) == pytest.approx(0.1, rel=1e-3)
    assert moved[-1] == pytest.approx(0.005, rel=0.3)


def test_gradients_are_clipped_and_vectors_not_decayed():
    config = optimizer_lib.OptimizerConfig(
        learning_rate=0.1, warmup_steps=1, weight_decay=1.0, clip_norm=1.0
    )
    transform = optimizer_lib.make(config, 10)
    params = {"w": jnp.ones((1, 2)), "b": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    state = transform.init(params)
    _, state = transform.update(zero, state, params)
    change, _ = transform.update(zero, state, params)
    np.testing.assert_allclose(change["w"], -0.1, rtol=1e-5)  # rate * decay * 1
    np.testing.assert_array_equal(change["b"], 0)
    first = transform.init(params)
    _, after = transform.update({"w": jnp.full((1, 2), 30.0), "b": jnp.full(2, 40.0)}, first, params)
    mu = after[1][0].mu  # (1 - beta1) * clipped gradient; its norm was 70.71.
    np.testing.assert_allclose(mu["w"], 0.1 * 30 / np.sqrt(5000), rtol=1e-5)


def test_the_old_state_is_donated():
    state, step = _start(optax.sgd(0.1))
    step(state, {}, {"x": _X, "y": _Y}, jax.random.key(1))
    assert state.params["kernel"].is_deleted()


def test_batches_are_split_where_they_divide():
    mesh = rules.make_mesh(fsdp=2, tensor=4)
    placed = steps.place_batch({"x": np.zeros((4, 3)), "odd": np.zeros((3, 3))}, mesh)
    assert {s.data.shape for s in placed["x"].addressable_shards} == {(2, 3)}
    assert placed["odd"].sharding.is_fully_replicated
