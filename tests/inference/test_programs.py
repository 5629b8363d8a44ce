"""Kept programs: loaded without tracing, never when they could be wrong, never too many."""

import hashlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.inference import programs as programs_lib

PARAMS = {"w": jnp.full((3,), 2.0)}


class Machine:
    """A set of programs as a new process would have it, with a count of its traces."""

    def __init__(self, identity="one"):
        self.traced = 0

        def double(params, x):
            self.traced += 1
            return {"y": x * params["w"]}

        def add(params, x, state):
            self.traced += 1
            return x + state["sum"], {"sum": x + state["sum"]}

        functions = {"double": (double, ()), "add": (add, (2,))}
        self.programs = programs_lib.Programs(functions, identity)

    def double(self, batch=1):
        x = np.arange(3.0 * batch, dtype=np.float32).reshape(batch, 3)
        y = self.programs["double"](PARAMS, x)["y"]
        np.testing.assert_array_equal(y, 2 * x)
        return self


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TM_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "programs"


def _kept(folder):
    return sorted(folder.iterdir())


def test_a_program_is_compiled_once_and_then_loaded(folder):
    first = Machine().double().double()
    assert first.traced == 1 and len(_kept(folder)) == 1
    assert Machine().double().double().traced == 0
    assert len(_kept(folder)) == 1


def test_every_batch_size_is_a_program_of_its_own(folder):
    Machine().double(1).double(2)
    again = Machine()
    again.programs.preload(2).join()
    paths = _kept(folder)
    assert len(paths) == 2
    for path in paths:
        path.unlink()
    assert again.double(2).traced == 0  # loaded before
    assert again.double(1).traced == 1  # not asked for


def test_a_loaded_program_takes_the_memory_of_its_state():
    def run(machine):
        state = {"sum": jnp.ones((1, 3))}
        y, after = machine.programs["add"](PARAMS, np.ones((1, 3), np.float32), state)
        np.testing.assert_array_equal(y, 2)
        assert state["sum"].is_deleted() and not after["sum"].is_deleted()
        return machine.traced

    assert [run(Machine()), run(Machine())] == [1, 0]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_replaced(folder, damage, caplog):
    Machine().double()
    (path,) = _kept(folder)
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "other":  # Whole, but nothing that can be loaded.
        path.write_bytes(hashlib.sha256(b"what").digest() + b"what")
    else:
        path.write_bytes(data[: 20 if damage == "cut" else 0])
    assert Machine().double().traced == 1
    assert "kept program" in caplog.text
    assert Machine().double().traced == 0


@pytest.mark.parametrize("change", ["identity", "flags", "precision", "source", "version"])
def test_a_program_is_not_used_for_anything_else(folder, monkeypatch, change):
    Machine().double()
    identity = "one"
    if change == "identity":
        identity = "two"
    elif change == "flags":
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    elif change == "source":
        monkeypatch.setattr(programs_lib.source, "digest", lambda: "edited")
    elif change == "version":
        monkeypatch.setattr(programs_lib, "_version", lambda name: "99")
    if change == "precision":
        with jax.default_matmul_precision("highest"):
            assert Machine().double().traced == 1
    else:
        assert Machine(identity).double().traced == 1
    assert len(_kept(folder)) == 2
    monkeypatch.undo()


def test_a_file_that_others_could_have_written_is_not_read(folder, caplog):
    Machine().double()
    (path,) = _kept(folder)
    assert folder.stat().st_mode & 0o777 == 0o700 and path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o620)
    assert Machine().double().traced == 1
    assert "can be written by other users" in caplog.text
    assert _kept(folder)[0].stat().st_mode & 0o777 == 0o600  # replaced
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)
    assert Machine().double().traced == 1


def test_a_folder_that_others_can_write_is_not_used(folder, caplog):
    Machine().double()
    before = _kept(folder)
    folder.chmod(0o777)
    assert Machine().double().traced == 1
    assert "can be written by other users" in caplog.text
    folder.chmod(0o700)
    folder.rename(folder.with_name("real"))
    folder.symlink_to("real")
    assert Machine().double().traced == 1
    assert _kept(folder) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_read(folder, caplog):
    Machine().double()
    os.chown(_kept(folder)[0], 12345, 12345)
    assert Machine().double().traced == 1
    assert "belongs to another user" in caplog.text


def test_without_a_folder_programs_still_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TM_JAX_CACHE", str(tmp_path / "file" / "cache"))
    machine = Machine()
    machine.programs.preload(1).join()
    assert machine.double().traced == 1


def test_what_was_not_used_for_longest_is_removed(folder, monkeypatch):
    monkeypatch.setattr(programs_lib, "_MOST_FILES", 3)
    for age_s, name in enumerate(["a", "b", "c"]):
        Machine(name).double()
        newest = max(_kept(folder), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (0, 1e9 - 100 * age_s))
    half = folder / ".half"
    half.write_bytes(b"")
    os.utime(half, (0, 0))
    assert Machine("c").double().traced == 0  # the oldest, but used now
    Machine("d").double()
    assert len(_kept(folder)) == 3 and not half.exists()
    assert [Machine(name).double().traced for name in "dca"] == [0, 0, 0]
    assert Machine("b").double().traced == 1


def test_the_size_of_the_store_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(programs_lib, "_MOST_BYTES", 1000)
    store = programs_lib.Store(tmp_path / "store", "p")
    for index in range(5):
        store.write(str(index), bytes(300))
        os.utime(tmp_path / "store" / f"p-{index}", (0, 1e9 + index))
    assert store.names("") == ["4", "3", "2"]
    assert store.read("4") == bytes(300) and store.read("0") is None


def test_sharded_parameters_are_compiled_for_where_they_are(folder):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.device_put(PARAMS, spread)
    machine = Machine()
    y = machine.programs["double"](params, np.ones((1, 3), np.float32))["y"]
    np.testing.assert_array_equal(y, 2)
    assert y.sharding.device_set == set(mesh.devices.flat)
    other = jax.device_put(PARAMS, jax.devices()[1])
    y = machine.programs["double"](other, np.ones((1, 3), np.float32))["y"]
    assert y.devices() == {jax.devices()[1]}
    assert not folder.exists()


_PROCESS = """
import test_programs
machine = test_programs.Machine()
machine.programs.preload(1).join()
print("traced", machine.double().traced)
"""


def test_another_process_loads_it(folder):
    """The names of files are the same in every process, whatever its hash seed."""

    def run(seed):
        environment = {
            **os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        here = pathlib.Path(__file__).parent
        paths = [str(here), str(here.parents[1])]
        code = f"import sys; sys.path[:0] = {paths}\n{_PROCESS}"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert not done.returncode, done.stderr
        return done.stdout.strip()

    assert run("1") == "traced 1"
    # JAX's own cache has nothing of it: what is taken from there cannot be kept again.
    for path in _kept(folder):
        path.unlink()
    assert [run("2"), run("3")] == ["traced 1", "traced 0"]
