"""Sharded on eight simulated devices equals one device."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from tm_jax.core import trees
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import causal
from tm_jax.models.dit import conditioning
from tm_jax.models.dit import transformer
from tm_jax.parallel import rules
from tm_jax.training import steps

_B, _C = 2, 3
_MESHES = {
    "one": dict(data=1),
    "fsdp-seq-tensor": dict(data=1, fsdp=2, seq=2, tensor=2),
    "data-seq-tensor": dict(data=2, fsdp=1, seq=2, tensor=2),
}
_GRID = attention_patterns.Grid(4, 4, _C)


def _mesh(name):
    sizes = _MESHES[name]
    return rules.make_mesh(jax.devices()[: int(np.prod(list(sizes.values())))], **sizes)


def _forward(pico, mesh):
    """Velocity and the states of the first layer."""
    params = jax.device_put(pico.params, rules.shardings(mesh, pico.boxed))
    inputs = steps.place_batch(pico.inputs(pico.preset, _B, 4), mesh)

    @jax.jit
    def forward(params, inputs):
        out, states = pico.model.apply(
            {"params": params}, **inputs, pattern=attention_patterns.bidirectional(_GRID),
            method=pico.touch,
        )
        return out, states[0]

    with rules.use(mesh):
        return forward(params, inputs)


@pytest.fixture(scope="module")
def alone(pico):
    return _forward(pico, _mesh("one"))


@pytest.mark.parametrize("name", list(_MESHES)[1:])
def test_forward(pico, alone, name):
    out, state = _forward(pico, _mesh(name))
    # Measured 2e-6.
    np.testing.assert_allclose(out, alone[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(state.k, alone[1].k, rtol=0, atol=1e-5)
    # Keys are split over batch and heads, of "tensor" and "seq" both.
    batch, frames, tokens, heads, width = state.k.shape
    parts = {s.data.shape for s in state.k.addressable_shards}
    assert heads == 4 and parts == {(batch // 2, frames, tokens, 1, width)}


def _rollout(pico, mesh):
    """Two chunks of the cached student, and the state after them."""
    params = jax.device_put(pico.params, rules.shardings(mesh, pico.boxed))
    i = steps.place_batch(pico.inputs(pico.preset, _B, 1 + _C), mesh)
    keys = jax.vmap(jax.random.key)(jnp.arange(_B))
    model, sigmas = pico.model, pico.preset.sigmas

    @jax.jit
    def begin(params, i):
        context = model.apply(
            {"params": params}, i["text"], i["image"], i["face_mask"], method="context"
        )
        state = causal.begin(
            model, params, i["x"][:, 0], i["condition"][:, 0], context, keys, _C, 2, "clean"
        )
        return context, state

    @jax.jit
    def chunk(params, state, context, i):
        return causal.next_chunk(
            model, params, state, conditioning.Conditioning(
                channels=i["condition"][:, 1:], audio=i["windows"][:, 1:], mode=i["mode"][:, 1:]
            ),
            context, sigmas, "clean",
        )

    with rules.use(mesh):
        context, state = begin(params, i)
        _, state = chunk(params, state, context, i)
        return chunk(params, state, context, i)


def test_rollout(pico):
    expected, expected_state = _rollout(pico, _mesh("one"))
    actual, state = _rollout(pico, _mesh("fsdp-seq-tensor"))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)  # Measured 2e-6.
    cache, expected_cache = (s.previous[0][1].k for s in (state, expected_state))
    np.testing.assert_allclose(cache, expected_cache, rtol=0, atol=1e-5)
    for value in jax.tree.leaves((state.sink, state.previous)):
        batch, slots, heads, width = value.shape
        parts = {s.data.shape for s in value.addressable_shards}
        assert heads == 4 and parts == {(batch // 2, slots, 1, width)}


def _train(pico, mesh):
    """One update of a small regression with one layer: parameters before, the state, metrics."""
    config = dataclasses.replace(pico.preset.dit, num_layers=1)
    model, boxed = transformer.DiT(config), pico.shapes(config)
    start = pico.random(boxed)
    batch = steps.place_batch(pico.inputs(pico.preset, _B, 4), mesh)

    def init(key):
        return jax.tree.map(
            lambda box, value: box.replace_boxed(value), boxed, start,
            is_leaf=lambda x: hasattr(x, "replace_boxed"),
        )

    def loss(params, frozen, batch, key):
        out, _ = model.apply(
            {"params": params}, **batch, pattern=attention_patterns.bidirectional(_GRID),
            method=pico.touch,
        )
        target = jax.random.normal(key, out.shape)
        return jnp.mean(jnp.square(out - target)), {"size": jnp.mean(jnp.abs(out))}

    optimizer = optax.adam(1e-3)
    state, placement = steps.create(init, optimizer, mesh, jax.random.key(0))
    step = steps.make_step(loss, optimizer, 0.9, mesh, placement)
    state, metrics = step(state, {}, batch, jax.random.key(1))
    return start, state, jax.device_get(metrics)


def _flat(tree):
    return {name: np.asarray(value) for name, value in trees.flatten(tree).items()}


def test_training_step(pico):
    start, expected, expected_metrics = _train(pico, _mesh("one"))
    _, state, metrics = _train(pico, _mesh("fsdp-seq-tensor"))
    for name, value in expected_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name  # Measured 2e-7.
    # Adam divides a gradient by its own size: where it is zero up to rounding, as that of a
    # key's bias is, the update is a sign without meaning. The moments have no such trouble.
    (moments, _), (wanted, _) = (
        [_flat(part) for part in jax.tree.leaves(
            s.optimizer, is_leaf=lambda x: isinstance(x, dict) and "head" in x
        ) if isinstance(part, dict)]
        for s in (state, expected)
    )
    scale = max(np.abs(v).max() for v in wanted.values())
    for name, value in wanted.items():
        np.testing.assert_allclose(
            moments[name] / scale, value / scale, rtol=0, atol=1e-5, err_msg=name
        )  # Measured 3e-7.
    start, params, wanted_params = _flat(start), _flat(state.params), _flat(expected.params)
    for name, value in wanted_params.items():
        firm = np.abs(wanted[name]) > 1e-4 * scale
        np.testing.assert_allclose(
            params[name][firm], value[firm], rtol=0, atol=1e-5, err_msg=name
        )
    assert max(np.abs(wanted_params[n] - start[n]).max() for n in start) > 5e-4

    kernel = "blocks_0/cross/q/kernel"
    held = [v for n, v in trees.flatten(state).items() if n.endswith(kernel)]
    assert len(held) == 4  # Parameters, their average and two moments.
    for value in held:
        assert value.sharding.spec == P("fsdp", "tensor")
        assert {s.data.shape for s in value.addressable_shards} == {(16, 16)}
