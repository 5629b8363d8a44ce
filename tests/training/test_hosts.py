"""Several processes train as one does: started, terminated, killed and resumed."""

import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.training import hosts_toy
from tm_jax.parallel import hosts
from tm_jax.parallel import rules
from tm_jax.training import loop
from tm_jax.training import placing
from tm_jax.training import sources

_DEVICES = 4  # In all, however many processes have them.


def _mesh():
    return rules.make_mesh(jax.devices()[:_DEVICES], fsdp=2)


def _run(folder, count, *more):
    """Outputs and exit statuses of `count` processes, and the seconds they took."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    start = time.monotonic()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.hosts_program",
             f"localhost:{port},{count},{index}", str(_DEVICES // count), str(folder),
             str(hosts_toy.STEPS), *more],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for index in range(count)
    ]  # fmt: skip
    outputs = [one.communicate(timeout=240)[0] for one in running]
    return outputs, [one.returncode for one in running], time.monotonic() - start


def _steps(folder):
    names = os.listdir(os.path.join(folder, "toy", "checkpoints"))
    return sorted(int(name) for name in names if name.isdecimal())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The kernel of a run of one process that nobody disturbed."""
    folder = str(tmp_path_factory.mktemp("whole"))
    found = loop.run(hosts_toy.stage(), folder, hosts_toy.STEPS, hosts_toy.LOOP, _mesh())
    return np.asarray(found["kernel"])


def test_two_are_terminated_four_go_on_one_dies_and_one_ends_it(whole, tmp_path):
    outputs, codes, _ = _run(tmp_path, 2, "term", "1", "3")
    assert codes == [0, 0], outputs
    # All stop after the same update although one alone was asked, and each read its half.
    assert all("stopped" in text for text in outputs), outputs
    [stopped] = {_steps(tmp_path)[-1]}
    assert 3 <= stopped < hosts_toy.STEPS
    read = [set(eval(text.split("read ")[1].splitlines()[0])) for text in outputs]
    assert read[0].isdisjoint(read[1]) and all(len(r) >= 4 * stopped for r in read)

    at = stopped + 2
    outputs, codes, seconds = _run(tmp_path, 4, "kill", "2", str(at))
    assert codes[2] == -9 and all(codes) and seconds < 100, (codes, seconds)
    said = [text for i, text in enumerate(outputs) if i != 2]
    assert any(f"they go on from the last checkpoint, step {at}" in text for text in said), said
    assert at in _steps(tmp_path)

    result = loop.run(hosts_toy.stage(), str(tmp_path), hosts_toy.STEPS, hosts_toy.LOOP, _mesh())
    np.testing.assert_allclose(result["kernel"], whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("here", [(0, 1, 2, 3, 4, 5, 6, 7), (2, 3), (5,)])
def test_rows_are_those_of_the_whole_batch(here):
    stage = hosts_toy.stage()
    whole = next(iter(stage.batches(3)))["x"]
    part = iter(stage.batches(3, hosts.Rows(total=8, here=here)))
    np.testing.assert_array_equal(next(part)["x"], whole[list(here)])
    again = iter(stage.batches(3, hosts.Rows(total=8, here=here)))
    again.set_state(part.get_state())
    np.testing.assert_array_equal(next(part)["x"], next(again)["x"])


def test_rows_of_one_process_are_all():
    mesh = _mesh()
    rows = hosts.rows(mesh, 8)
    assert rows == hosts.Rows(total=8, here=tuple(range(8)))
    x = np.arange(16.0).reshape(8, 2)
    placed = placing.batch({"x": x}, mesh, rows=rows)["x"]
    assert placed.addressable_shards[0].data.shape == (2, 2)
    np.testing.assert_array_equal(placed, x)
    np.testing.assert_array_equal(hosts.gather(placed), x)
    assert hosts.is_first() and not hosts.several() and hosts.of_first(0.25) == 0.25


@pytest.mark.parametrize("text", ["", "here", "host,2,0", "host:1,2,2", "host:1,2", "host:x,2,0"])
def test_a_wrong_place_is_refused(text):
    with pytest.raises(ValueError, match="expected auto or HOST:PORT,COUNT,INDEX"):
        hosts.parse(text)


def test_places_are_read():
    assert hosts.parse("auto") is None
    assert hosts.parse("a.b:80,4,3") == hosts.Place(address="a.b:80", count=4, index=3)


def test_a_stage_without_batch_runs_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(loop.hosts, "several", lambda: True)
    stage = hosts_toy.stage()
    object.__setattr__(stage, "batch", None)
    with pytest.raises(ValueError, match="stage toy runs in one process; start it without --hosts"):
        loop.run(stage, str(tmp_path), 1, hosts_toy.LOOP, _mesh())


def test_batches_do_not_depend_on_where_they_are_read():
    """As grain itself would make them, without processes."""
    import grain

    plain = grain.MapDataset.range(10).shuffle(seed=4).repeat().map(int).batch(3)
    found = sources.stream(int, 10, 3, 4)
    for _, ours, theirs in zip(range(8), found, plain.to_iter_dataset()):
        np.testing.assert_array_equal(ours, theirs)
