"""The loop: a killed and resumed run equals an uninterrupted one, bit for bit."""

import dataclasses
import os
import signal
import struct
import time

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import limits
from tm_jax.core import axes
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib

_STEPS = 9
_OFTEN = loop.LoopConfig(checkpoint_every_s=0.0, log_every=2, sample_every=4)
_ONCE = loop.LoopConfig(checkpoint_every_s=1e9, log_every=2, sample_every=4)


class Killed(Exception):
    """Stands for the end of a process."""


class _Killing:
    """Input that dies before batch `at`, once the checkpoint before it is complete."""

    def __init__(self, inner, at, folder):
        self._inner, self._left, self._folder = iter(inner), at, folder
        self.get_state, self.set_state = self._inner.get_state, self._inner.set_state
        self._at = at

    def __iter__(self):
        return self

    def __next__(self):
        if not self._left:
            deadline = time.monotonic() + 60
            while not os.path.isdir(os.path.join(self._folder, str(self._at))):
                assert time.monotonic() < deadline, os.listdir(self._folder)
                time.sleep(0.02)
            raise Killed
        self._left -= 1
        return next(self._inner)


def _batches(seed):
    def one(index):
        rng = np.random.default_rng((seed, int(index)))
        return {"x": rng.standard_normal(4).astype(np.float32)}

    data = grain.MapDataset.range(1000).shuffle(seed).map(one).batch(8)
    return data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def _watched(before_each):
    """Input that calls a function before each batch."""

    class Watched:
        def __init__(self, seed):
            self._inner = iter(_batches(seed))
            self.get_state, self.set_state = self._inner.get_state, self._inner.set_state

        def __iter__(self):
            return self

        def __next__(self):
            before_each()
            return next(self._inner)

    return Watched


def _init(key):
    box = nn.LogicallyPartitioned(jax.random.normal(key, (4, 4)), (axes.EMBED, axes.MLP))
    return {"kernel": box}


def _loss(params, frozen, batch, key):
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    error = (batch["x"] + noise) @ params["kernel"] - batch["x"] @ frozen["target"]
    return jnp.mean(jnp.square(error)), {"largest": jnp.abs(error).max()}


def _stage(samples=None, **changes):
    def sample(params, frozen, path):
        if samples is not None:
            samples.append(os.path.basename(path))
        return {"size": float(jnp.abs(params["kernel"]).max())}

    fields = {
        "name": "toy", "init": _init, "loss": _loss, "frozen": {"target": np.eye(4, dtype=np.float32)},
        "batches": _batches, "sample": sample, "finish": lambda params, frozen: params,
        "optimizer": optimizer_lib.OptimizerConfig(learning_rate=0.05, warmup_steps=2),
    }
    return loop.Stage(**{**fields, **changes})


@pytest.fixture(autouse=True)
def quiet_signals():
    """The loop catches signals of the process; later tests get the old handlers back."""
    kept = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    samples = []
    folder = str(tmp_path_factory.mktemp("whole"))
    return np.asarray(loop.run(_stage(samples), folder, _STEPS, _ONCE)["kernel"]), samples, folder


def test_a_run_learns_and_samples(uninterrupted):
    kernel, samples, folder = uninterrupted
    start = np.asarray(_init(jax.random.fold_in(jax.random.key(0), 1))["kernel"].value)
    assert np.abs(kernel - start).max() > 0.05
    assert samples == ["0000004", "0000008", "0000009"]
    assert os.listdir(os.path.join(folder, "toy", "tensorboard"))


@pytest.mark.parametrize("at", [1, 5])
def test_killed_and_resumed_equals_uninterrupted(uninterrupted, tmp_path, at):
    folder = str(tmp_path / "toy" / "checkpoints")
    killing = _stage(batches=lambda seed: _Killing(_batches(seed), at, folder))
    with pytest.raises(Killed):
        loop.run(killing, str(tmp_path), _STEPS, _OFTEN)
    # A write that the kill cut off.
    os.makedirs(os.path.join(folder, f"{_STEPS - 1}.orbax-checkpoint-tmp-7", "state"))
    seen = []

    resumed = loop.run(_stage(batches=_watched(lambda: seen.append(1))), str(tmp_path), _STEPS, _ONCE)
    assert len(seen) == _STEPS - at  # It did not start again from zero.
    np.testing.assert_array_equal(resumed["kernel"], uninterrupted[0])


def test_a_finished_run_returns_at_once(uninterrupted):
    kernel, _, folder = uninterrupted

    def none(seed):
        class Empty:
            def __iter__(self):
                return self

            def __next__(self):
                raise AssertionError("a finished run asks for no batch")

            get_state, set_state = staticmethod(dict), staticmethod(lambda state: None)

        return Empty()

    again = loop.run(_stage(batches=none), folder, _STEPS, _ONCE)
    np.testing.assert_array_equal(again["kernel"], kernel)


def _nan_loss(params, frozen, batch, key):
    return jnp.sum(params["kernel"]) * jnp.nan, {}


def test_updates_that_are_not_finite_stop_the_run_after_the_limit(tmp_path):
    config = dataclasses.replace(_ONCE, skip_limit=3)
    with pytest.raises(FloatingPointError, match="toy: .* in the 4 updates up to step 4"):
        loop.run(_stage(loss=_nan_loss), str(tmp_path), _STEPS, config)
    assert not any(n.isdigit() for n in os.listdir(tmp_path / "toy" / "checkpoints"))


def test_a_run_that_never_learned_publishes_nothing(tmp_path):
    with pytest.raises(FloatingPointError, match="not finite in the 2 updates"):
        loop.run(_stage(loss=_nan_loss), str(tmp_path), 2, _ONCE)


def _logged(folder):
    """Scalars of a run: name -> {step: value}."""
    from tensorboardX.proto import event_pb2

    found = {}
    [name] = os.listdir(folder)
    with open(os.path.join(folder, name), "rb") as file:
        while header := file.read(12):
            [size] = struct.unpack("<Q", header[:8])
            event = event_pb2.Event.FromString(file.read(size))
            file.read(4)
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_a_line_holds_the_means_since_the_last_and_the_speed(tmp_path):
    seen = []

    def batches(seed):
        inner = iter(_batches(seed))

        class Counting:
            get_state, set_state = inner.get_state, inner.set_state

            def __iter__(self):
                return self

            def __next__(self):
                seen.append(len(seen))
                return {**next(inner), "number": np.full(8, seen[-1], np.float32)}

        return Counting()

    def loss(params, frozen, batch, key):
        return jnp.mean(jnp.square(params["kernel"])), {"number": jnp.mean(batch["number"])}

    optimizer = optimizer_lib.OptimizerConfig(accumulate=2)
    stage = _stage(batches=batches, loss=loss, optimizer=optimizer, frames=100, flops=1e9)
    config = dataclasses.replace(_ONCE, peak_tflops=1e-3)
    loop.run(stage, str(tmp_path), 6, config)
    logged = _logged(tmp_path / "toy" / "tensorboard")
    # Two batches an update, two updates a line.
    assert logged["number"] == {2: 1.5, 4: 5.5, 6: 9.5}
    assert list(logged["frames_per_s"]) == [4, 6]  # Not where programs are compiled.
    for step, rate in logged["frames_per_s"].items():
        # 200 frames and 1 GFLOP an update, eight devices of 1 GFLOP/s.
        assert logged["mfu"][step] == pytest.approx(rate / 200 / 8, rel=1e-5)


def test_work_is_counted_by_the_compiler_where_the_stage_does_not(tmp_path):
    config = dataclasses.replace(_ONCE, peak_tflops=1e-3, sample_every=0)
    loop.run(_stage(frames=1), str(tmp_path), 4, config)
    logged = _logged(tmp_path / "toy" / "tensorboard")
    # Forward and backward of [8, 4] x [4, 4], twice in the forward pass.
    work = logged["mfu"][4] * 8 * 1e9 / logged["frames_per_s"][4]
    assert 3 * 2 * 8 * 4 * 4 < work < 30 * 2 * 8 * 4 * 4


def test_the_mesh_of_the_settings(uninterrupted, tmp_path):
    places = []

    def sample(params, frozen, path):
        places.append(params["kernel"].sharding.shard_shape((4, 4)))
        assert frozen["target"].shape == (4, 4)

    config = dataclasses.replace(_ONCE, mesh="fsdp=4,tensor=2")
    kernel = loop.run(_stage(sample=sample), str(tmp_path), _STEPS, config)["kernel"]
    assert set(places) == {(1, 2)}
    np.testing.assert_allclose(kernel, uninterrupted[0], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="unknown axis 'fdsp'"):
        loop.LoopConfig(mesh="fdsp=4")


def test_a_run_starts_from_given_values_and_resumes_without_them(tmp_path):
    asked = []

    def start(placement):
        asked.append(placement["kernel"].spec)
        return {"kernel": jax.device_put(np.full((4, 4), 7, np.float32), placement["kernel"])}

    stage = _stage(
        start=start, optimizer=optimizer_lib.OptimizerConfig(learning_rate=1e-6)
    )
    loop.run(stage, str(tmp_path), 1, _ONCE)
    kernel = loop.run(stage, str(tmp_path), 2, _ONCE)["kernel"]
    np.testing.assert_allclose(kernel, 7, atol=1e-4)
    assert len(asked) == 1


def test_accumulation_consumes_its_batches_and_resumes(tmp_path):
    optimizer = optimizer_lib.OptimizerConfig(learning_rate=0.05, accumulate=2)
    whole = loop.run(_stage(optimizer=optimizer), str(tmp_path / "whole"), 4, _OFTEN)

    class Stops:
        """Input that asks the process to end during the second update."""

        def __init__(self, seed):
            self._inner, self._left = iter(_batches(seed)), 4
            self.get_state, self.set_state = self._inner.get_state, self._inner.set_state

        def __iter__(self):
            return self

        def __next__(self):
            self._left -= 1
            if not self._left:
                signal.raise_signal(signal.SIGTERM)
            return next(self._inner)

    stage = _stage(optimizer=optimizer, batches=Stops)
    assert loop.run(stage, str(tmp_path / "cut"), 4, _OFTEN) is None
    again = loop.run(_stage(optimizer=optimizer), str(tmp_path / "cut"), 4, _OFTEN)
    np.testing.assert_array_equal(again["kernel"], whole["kernel"])


@pytest.mark.parametrize("best, wanted", [("score", 4), ("-score", 8), ("", 9)])
def test_the_best_checkpoint_is_kept_and_published(tmp_path, best, wanted):
    scores, seen = {4: 3.0, 8: 1.0, 9: 2.0}, {}

    def sample(params, frozen, path):
        step = int(os.path.basename(path))
        seen[step] = np.array(params["kernel"])
        return {"score": scores[step]}

    config = dataclasses.replace(_ONCE, best=best, keep=1)
    for _ in range(2):  # A finished run finds it again.
        found = loop.run(_stage(sample=sample), str(tmp_path), _STEPS, config)["kernel"]
        np.testing.assert_array_equal(found, seen[wanted])
    folder = tmp_path / "toy" / "checkpoints"
    assert {int(n) for n in os.listdir(folder) if n.isdigit()} == {wanted, _STEPS}


def test_the_best_needs_a_measure_that_is_there(tmp_path):
    config = dataclasses.replace(_ONCE, best="sharpness")
    with pytest.raises(ValueError, match="have no such measure; they have size"):
        loop.run(_stage(), str(tmp_path), _STEPS, config)
    with pytest.raises(ValueError, match="best=psnr needs samples"):
        loop.LoopConfig(best="psnr", sample_every=0)


@pytest.mark.parametrize("ask", ["setting", "signal"])
def test_a_trace_of_the_profiler(tmp_path, monkeypatch, ask):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(len(seen)))
    seen = []

    def before_each():
        seen.append(1)
        if ask == "signal" and len(seen) == 3:
            signal.raise_signal(signal.SIGUSR1)

    first = 3 if ask == "setting" else 0
    config = dataclasses.replace(_ONCE, profile=first, profile_updates=2)
    loop.run(_stage(batches=_watched(before_each)), str(tmp_path), 6, config)
    # Of the third and fourth update.
    assert calls == [str(tmp_path / "toy" / "profile"), 4]


def test_a_checkpoint_that_cannot_be_written_stops_the_run(tmp_path):
    """The writer's thread fails; the loop hears of it and the checkpoint before stays."""

    def init(key):
        return {**_init(key), "large": jax.random.normal(key, (128, 512))}

    loop.run(_stage(init=init), str(tmp_path), 2, _ONCE)
    config = dataclasses.replace(_OFTEN, log_every=1)
    with limits.small_files(), pytest.raises(OSError, match="last good one is step 2"):
        loop.run(_stage(init=init), str(tmp_path), _STEPS, config)
    folder = tmp_path / "toy" / "checkpoints"
    assert [n for n in os.listdir(folder) if n.isdigit()] == ["2"]
    assert loop.run(_stage(init=init), str(tmp_path), 3, _ONCE) is not None


def test_a_signal_ends_the_run_with_a_checkpoint(uninterrupted, tmp_path):
    def batches(seed):
        inner = iter(_batches(seed))

        class Signalling:
            get_state, set_state = inner.get_state, inner.set_state
            left = 3

            def __iter__(self):
                return self

            def __next__(self):
                self.left -= 1
                if not self.left:
                    signal.raise_signal(signal.SIGTERM)
                return next(inner)

        return Signalling()

    assert loop.run(_stage(batches=batches), str(tmp_path), _STEPS, _ONCE) is None
    assert "3" in os.listdir(tmp_path / "toy" / "checkpoints")
    resumed = loop.run(_stage(), str(tmp_path), _STEPS, _ONCE)
    np.testing.assert_array_equal(resumed["kernel"], uninterrupted[0])
