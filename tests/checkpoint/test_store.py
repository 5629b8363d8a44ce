"""Checkpoints: exact, atomic, sharded, and clear about what does not fit."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tm_jax.checkpoint import store as store_lib
from tm_jax.parallel import rules


def _state(mesh, scale=1.0, width=8):
    placement = {
        "step": NamedSharding(mesh, P()), "kernel": NamedSharding(mesh, P("fsdp", "tensor")),
        "half": NamedSharding(mesh, P("fsdp")),
    }
    state = {
        "step": jnp.int32(3), "half": jnp.arange(4, dtype=jnp.bfloat16),
        "kernel": scale * jnp.arange(4.0 * width).reshape(4, width) / 7,
    }
    return jax.device_put(state, placement), placement


@pytest.fixture(scope="module")
def mesh():
    return rules.make_mesh(fsdp=2, tensor=4)


def test_round_trip_keeps_bits_and_sharding(tmp_path, mesh):
    state, placement = _state(mesh)
    store = store_lib.Store(str(tmp_path))
    assert store.latest is None
    store.save(3, state, {"next": 7, "epoch": [1, 2]})
    store.close()
    again = store_lib.Store(str(tmp_path))
    assert again.latest == 3
    fresh, _ = _state(mesh, scale=0.0)
    restored, position = again.restore(fresh, placement)
    again.close()
    assert position == {"next": 7, "epoch": [1, 2]}
    for name, value in state.items():
        np.testing.assert_array_equal(restored[name], value)
        assert restored[name].dtype == value.dtype
        assert restored[name].sharding == placement[name]


def test_a_checkpoint_moves_to_another_mesh(tmp_path, mesh):
    state, _ = _state(mesh)
    store = store_lib.Store(str(tmp_path))
    store.save(1, state, {})
    store.close()
    other, placement = _state(rules.make_mesh(jax.devices()[:2], tensor=2), scale=0.0)
    store = store_lib.Store(str(tmp_path))
    restored, _ = store.restore(other, placement)
    store.close()
    np.testing.assert_array_equal(restored["kernel"], state["kernel"])
    assert restored["kernel"].sharding == placement["kernel"]


def test_the_newest_are_kept_and_unfinished_ones_ignored(tmp_path, mesh):
    state, placement = _state(mesh)
    store = store_lib.Store(str(tmp_path), keep=2)
    for step in (1, 2, 3):
        store.save(step, {**state, "step": jnp.int32(step)}, {"step": step})
    store.close()
    unfinished = tmp_path / "9.orbax-checkpoint-tmp-123" / "state"
    os.makedirs(unfinished)
    (unfinished / "manifest.ocdbt").write_bytes(b"cut off")
    store = store_lib.Store(str(tmp_path))
    assert store.latest == 3
    assert {n for n in os.listdir(tmp_path) if n.isdigit()} == {"2", "3"}
    restored, position = store.restore(state, placement)
    store.close()
    assert int(restored["step"]) == position["step"] == 3


def test_saving_a_step_twice_writes_once(tmp_path, mesh):
    state, placement = _state(mesh)
    store = store_lib.Store(str(tmp_path))
    store.save(1, state, {"first": True})
    store.save(1, state, {"first": False})
    _, position = (store._manager.wait_until_finished(), store.restore(state, placement))[1]
    store.close()
    assert position == {"first": True}


def test_other_sizes_are_refused(tmp_path, mesh):
    state, _ = _state(mesh)
    store = store_lib.Store(str(tmp_path))
    store.save(1, state, {})
    store._manager.wait_until_finished()
    wide, placement = _state(mesh, width=16)
    with pytest.raises(ValueError, match=r"\(4, 8\)|\[4, 8\]|shape"):
        store.restore(wide, placement)
    store.close()


def test_nothing_to_resume_from(tmp_path, mesh):
    store = store_lib.Store(str(tmp_path))
    with pytest.raises(ValueError, match="there is no checkpoint to resume from"):
        store.restore(*_state(mesh))
    store.close()
