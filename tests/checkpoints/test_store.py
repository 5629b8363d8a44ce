"""Checkpoints: exact, atomic, sharded, and clear about what does not fit."""

import os
import shutil

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from tests.training import limits
from tm_jax.checkpoints import store as store_lib
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
    store.wait()
    _, position = store.restore(state, placement)
    store.close()
    assert position == {"first": True}


def test_another_state_is_refused_and_kept(tmp_path, mesh):
    state, _ = _state(mesh)
    store = store_lib.Store(str(tmp_path))
    store.save(1, state, {})
    store.wait()
    wide, placement = _state(mesh, width=16)
    with pytest.raises(ValueError, match=r"shape of kernel is \(4, 8\) there and \(4, 16\) here"):
        store.restore(wide, placement)
    more = {**state, "moment": state["kernel"]}
    with pytest.raises(ValueError, match="only the state has moment"):
        store.restore(more, jax.tree.map(lambda x: x.sharding, more))
    store.close()
    assert os.listdir(tmp_path) == ["1"]


def _truncate(folder):
    """Cuts the largest file of a checkpoint in half."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _remove_metadata(folder):
    for path in folder.rglob("_METADATA"):
        path.unlink()


def _remove_data(folder):
    shutil.rmtree(folder / "state")


def _half_position(folder):
    [path] = (folder / "position").glob("*metadata*")
    path.write_bytes(path.read_bytes()[:5])


@pytest.mark.parametrize("damage", [_truncate, _remove_metadata, _remove_data, _half_position])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, mesh, damage, caplog):
    state, placement = _state(mesh, width=4096)
    store = store_lib.Store(str(tmp_path))
    for step in (1, 2):
        noise = jax.random.normal(jax.random.key(step), state["kernel"].shape)
        state["kernel"] = jax.device_put(noise, placement["kernel"])
        store.save(step, state, {"step": step})
    store.close()
    damage(tmp_path / "2")
    store = store_lib.Store(str(tmp_path))
    restored, position = store.restore(state, placement)
    assert position == {"step": 1}
    first = jax.random.normal(jax.random.key(1), state["kernel"].shape)
    np.testing.assert_array_equal(restored["kernel"], first)
    assert "step 2" in caplog.text and "passed over" in caplog.text
    # The step can be written anew; what could not be read is still there.
    store.save(2, restored, {"step": 2, "again": True})
    store.close()
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "unreadable-2"]
    store = store_lib.Store(str(tmp_path))
    assert store.restore(state, placement)[1] == {"step": 2, "again": True}
    store.close()


def test_nothing_that_can_be_read_is_an_error(tmp_path, mesh):
    state, placement = _state(mesh)
    store = store_lib.Store(str(tmp_path))
    store.save(1, state, {})
    store.close()
    _remove_metadata(tmp_path / "1")
    store = store_lib.Store(str(tmp_path))
    with pytest.raises(ValueError, match=r"can be read \(steps \[1\]\); move the folder away"):
        store.restore(state, placement)
    store.close()
    assert os.listdir(tmp_path) == ["1"]


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, mesh):
    state, placement = _state(mesh, width=1 << 15)
    state["kernel"] = jax.device_put(
        jax.random.normal(jax.random.key(0), state["kernel"].shape), placement["kernel"]
    )
    store = store_lib.Store(str(tmp_path), keep=1)
    store.save(1, state, {"step": 1})
    store.wait()
    with limits.small_files(), pytest.raises(OSError, match="last good one is step 1"):
        store.save(2, state, {"step": 2})
        store.wait()
    store.close()
    store = store_lib.Store(str(tmp_path), keep=1)
    restored, position = store.restore(state, placement)
    assert position == {"step": 1}
    np.testing.assert_array_equal(restored["kernel"], state["kernel"])
    store.save(2, restored, {"step": 2})
    store.close()
    assert [n for n in os.listdir(tmp_path) if n.isdigit()] == ["2"]


def test_nothing_to_resume_from(tmp_path, mesh):
    store = store_lib.Store(str(tmp_path))
    with pytest.raises(ValueError, match="there is no checkpoint to resume from"):
        store.restore(*_state(mesh))
    store.close()
