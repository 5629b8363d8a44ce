"""The loop: a killed and resumed run equals an uninterrupted one, bit for bit."""

import os
import time

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

    fields = dict(
        name="toy", init=_init, loss=_loss, frozen={"target": np.eye(4, dtype=np.float32)},
        batches=_batches, sample=sample, finish=lambda params, frozen: params,
        optimizer=optimizer_lib.OptimizerConfig(learning_rate=0.05, warmup_steps=2),
    )
    return loop.Stage(**{**fields, **changes})


@pytest.fixture(autouse=True)
def quiet_signals():
    """The loop catches signals of the process; later tests get the old handlers back."""
    import signal

    kept = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
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

    def counted(seed):
        for_resume = iter(_batches(seed))

        class Counting:
            get_state, set_state = for_resume.get_state, for_resume.set_state

            def __iter__(self):
                return self

            def __next__(self):
                seen.append(1)
                return next(for_resume)

        return Counting()

    resumed = loop.run(_stage(batches=counted), str(tmp_path), _STEPS, _ONCE)
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


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    def loss(params, frozen, batch, key):
        return jnp.sum(params["kernel"]) * jnp.nan, {}

    with pytest.raises(FloatingPointError, match="toy: the loss is nan at step 2"):
        loop.run(_stage(loss=loss), str(tmp_path), _STEPS, _ONCE)
    assert not any(n.isdigit() for n in os.listdir(tmp_path / "toy" / "checkpoints"))


def test_a_signal_ends_the_run_with_a_checkpoint(uninterrupted, tmp_path):
    import signal

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
