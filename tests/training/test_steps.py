"""One update: the average, accumulation and the optimiser, in NumPy."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from tm_jax.core import axes
from tm_jax.parallel import rules
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import placing
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


@pytest.mark.parametrize("mesh", [{"data": 1}, {"fsdp": 2, "tensor": 2}])
def test_accumulation_equals_one_large_batch(mesh):
    """Parameters, average, moments, clipped norm and metrics, once an update."""
    devices = int(np.prod(list(mesh.values())))
    mesh = rules.make_mesh(jax.devices()[:devices], **mesh)
    settings = {"learning_rate": 0.05, "warmup_steps": 1, "weight_decay": 0.1, "clip_norm": 0.5}
    states, logged = {}, {}
    for accumulate in (1, 4):
        config = optimizer_lib.OptimizerConfig(accumulate=accumulate, **settings)
        optimizer = optimizer_lib.make(config, 10)
        state, placement = steps.create(_init, optimizer, mesh, jax.random.key(0))
        step = steps.make_step(_loss, optimizer, 0.9, mesh, placement, accumulate)
        batch = {"x": _X, "y": _Y}
        if accumulate > 1:
            batch = {name: x.reshape(4, 2, -1) for name, x in batch.items()}
        batch = placing.batch(batch, mesh, stacked=accumulate > 1)
        for _ in range(3):
            state, metrics = step(state, {}, batch, jax.random.key(1))
        states[accumulate], logged[accumulate] = jax.device_get((state, metrics))
    assert states[1].step == states[4].step == 3
    chex.assert_trees_all_close(states[1], states[4], rtol=0, atol=1e-6)  # Measured 6e-8.
    for name in ("loss", "gradient_norm"):
        assert logged[4][name] == pytest.approx(logged[1][name], rel=1e-5)
    assert logged[1]["gradient_norm"] > 0.5  # The clipping took part.
    assert np.abs(states[1].params["kernel"] - _W).max() > 0.05
    assert np.abs(states[1].average["kernel"] - _W).max() > 0.01


def test_micro_batches_have_keys_of_their_own():
    config = optimizer_lib.OptimizerConfig(accumulate=3)
    optimizer, mesh = optimizer_lib.make(config, 10), _one_device()
    state, placement = steps.create(_init, optimizer, mesh, jax.random.key(0))

    def loss(params, frozen, batch, key):
        return jnp.sum(params["bias"]), {"noise": jax.random.normal(key, (100,))}

    step = steps.make_step(loss, optimizer, 0.9, mesh, placement, 3)
    _, metrics = step(state, {}, {"x": np.zeros((3, 1))}, jax.random.key(1))
    # The mean of three independent numbers; of three equal ones it would be 1.
    assert np.std(metrics["noise"]) == pytest.approx(3**-0.5, rel=0.25)


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    state, step = _start(optax.adam(0.1))
    good, bad = {"x": _X, "y": _Y}, {"x": _X, "y": np.where(_Y > 1, np.nan, _Y)}
    state, metrics = step(state, {}, good, jax.random.key(1))
    before = jax.device_get(state)
    assert (before.skipped, before.streak, metrics["skipped"]) == (0, 0, 0)
    for count in (1, 2):
        state, metrics = step(state, {}, bad, jax.random.key(1))
        assert int(state.streak) == int(metrics["skipped"]) == count
    after = jax.device_get(state)
    for part in ("params", "average", "optimizer"):
        chex.assert_trees_all_equal(getattr(after, part), getattr(before, part))
    state, _ = step(state, {}, good, jax.random.key(1))
    assert (int(state.step), int(state.skipped), int(state.streak)) == (4, 2, 0)
    assert np.abs(state.params["kernel"] - before.params["kernel"]).max() > 0.01


def _rates(**settings):
    config = optimizer_lib.OptimizerConfig(learning_rate=0.1, warmup_steps=10, **settings)
    rate = optimizer_lib.schedule(config, 100)
    return np.array([rate(i) for i in range(100)])


def test_schedules_by_name():
    constant, cosine = _rates(schedule="constant"), _rates(final_fraction=0.05)
    wsd = _rates(schedule="wsd", decay_fraction=0.25, final_fraction=0.1)
    for rates in (constant, cosine, wsd):
        np.testing.assert_allclose(rates[:11], np.arange(11) / 100, rtol=1e-5)
    np.testing.assert_allclose(constant[10:], 0.1, rtol=1e-6)
    half = np.cos(np.pi * np.arange(90) / 90) / 2 + 0.5
    np.testing.assert_allclose(cosine[10:], 0.1 * (0.05 + 0.95 * half), rtol=1e-5)
    np.testing.assert_allclose(wsd[10:75], 0.1, rtol=1e-6)
    np.testing.assert_allclose(wsd[75:], 0.1 - 0.09 * np.arange(25) / 25, rtol=1e-5)


def test_new_parameters_learn_first_and_base_ones_slower():
    """A constant gradient: Adam moves by the learning rate of the group."""
    config = optimizer_lib.OptimizerConfig(
        learning_rate=0.1, schedule="constant", warmup_steps=1, weight_decay=0.0, clip_norm=1.0,
        base_factor=0.25, base_from_step=4, beta1=0.0,
    )
    transform = optimizer_lib.make(config, 20, lambda params: {"old": "base", "more": "new"})
    params = {"old": jnp.zeros((1, 1)), "more": jnp.zeros((1, 1))}
    update = jax.jit(transform.update)
    state, moved = transform.init(params), []
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for _ in range(8):
        gradient = {"old": jnp.full((1, 1), 1e6), "more": jnp.ones((1, 1))}
        change, state = update(gradient, state, params)
        moved.append([-float(change[name][0, 0]) for name in ("more", "old")])
    more, old = np.transpose(moved)
    # What is frozen has no part in the norm, or the first group would hardly have moments.
    np.testing.assert_allclose(more[:5], [0, 0.1, 0.1, 0.1, more[4]], rtol=1e-3)
    np.testing.assert_array_equal(old[:5], 0)  # The fifth is the first of its own warm-up.
    np.testing.assert_allclose(old[5:], 0.025, rtol=1e-3)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes


@pytest.mark.parametrize(
    "settings, labels, message",
    [
        ({"moment_dtype": "int8"}, None, "moment_dtype must be float32 or bfloat16, got 'int8'"),
        ({"schedule": "linear"}, None, "schedule must be one of constant, cosine, wsd"),
        ({"base_factor": 0.1}, None, "need a stage whose parameters have groups"),
        ({"base_from_step": 9}, lambda p: {"w": "new"}, "must be below the 9 steps"),
        ({}, lambda p: {"w": "old"}, r"must be 'base' or 'new', got \['old'\]"),
    ],
)
def test_wrong_settings_are_explained(settings, labels, message):
    with pytest.raises(ValueError, match=message):
        optimizer_lib.make(optimizer_lib.OptimizerConfig(**settings), 9, labels).init(
            {"w": jnp.zeros(1)}
        )


def test_groups_keep_their_shardings():
    mesh = rules.make_mesh(fsdp=4, tensor=2)
    config = optimizer_lib.OptimizerConfig(base_from_step=2)
    optimizer = optimizer_lib.make(config, 9, lambda p: {"kernel": "base", "bias": "new"})
    state, _ = steps.create(_init, optimizer, mesh, jax.random.key(0))
    held = [x for x in jax.tree.leaves(state) if x.shape == (4, 2)]
    assert len(held) == 4  # Parameters, average and two moments.
    assert {x.sharding.spec for x in held} == {P("fsdp", "tensor")}


def test_muon_makes_updates_of_matrices_orthogonal():
    """The first update of a matrix is nearly U V^T of its gradient's singular vectors."""
    config = optimizer_lib.OptimizerConfig(
        muon=True, learning_rate=1.0, schedule="constant", warmup_steps=0, weight_decay=0.0,
        clip_norm=1e9,
    )
    rng = np.random.default_rng(0)
    params = {"w": jnp.zeros((6, 4)), "b": jnp.zeros(4), "k": jnp.zeros((2, 3, 4))}
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    optimizer = optimizer_lib.make(config, 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    u, _, v = np.linalg.svd(grads["w"], full_matrices=False)
    made = -np.asarray(updates["w"]) / (0.2 * np.sqrt(6))
    np.testing.assert_allclose(np.linalg.svd(made)[1], 1, atol=0.35)  # Four steps of Newton-Schulz.
    assert np.sum(made * (u @ v)) / np.sqrt(np.sum(made**2) * 4) > 0.97
    for name in ("b", "k"):  # AdamW's first update is the sign.
        np.testing.assert_allclose(updates[name], -np.sign(grads[name]), rtol=1e-3)


@pytest.mark.parametrize("muon", [False, True])
def test_a_first_moment_in_bfloat16_takes_half(muon):
    rng = np.random.default_rng(1)
    params = {"w": jnp.zeros((6, 4)), "b": jnp.zeros(4)}
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)

    def run(dtype):
        optimizer = optimizer_lib.make(
            optimizer_lib.OptimizerConfig(muon=muon, moment_dtype=dtype, warmup_steps=1), 9
        )
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(grads, state, params)
        return updates, sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim)

    (wanted, whole), (found, less) = run("float32"), run("bfloat16")
    assert whole - less == 2 * (24 + 4)
    for name, value in wanted.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[name], value, rtol=0, atol=0.03 * scale)


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
    large = {"w": jnp.full((1, 2), 30.0), "b": jnp.full(2, 40.0)}
    _, after = transform.update(large, first, params)
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
