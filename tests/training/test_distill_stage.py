"""Stage `distill` on random clips: its losses, both policies, resuming, many devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from tests.training import test_example_stages as examples
from tm_jax.configs import overrides
from tm_jax.core import trees
from tm_jax.parallel import rules
from tm_jax.training import alternating
from tm_jax.training import distill_stage
from tm_jax.training import loop
from tm_jax.training import placing
from tm_jax.training import run
from tm_jax.training import sources

_CONFIG = distill_stage.DistillStageConfig(batch=2, rollout_chunks=3, critic_updates=1)


@pytest.fixture(scope="module")
def params(pico):
    """Random parameters of student and teacher."""
    return [pico.random(small.shapes(), seed) for seed in (1, 2)]


def _boxed(values):
    """Parameters in the boxes that say how they are split."""
    is_box = lambda x: hasattr(x, "replace_boxed")
    return jax.tree.map(
        lambda box, x: box.replace_boxed(x), small.shapes(), dict(values), is_leaf=is_box
    )


def _stage(params, num_steps=2, policy="clean"):
    """The stage on random examples, without previews."""
    student, teacher = params
    source = small.source()
    regression = distill_stage.Regression(
        source=source, one=examples.paths(num_steps), sizes=sources.Sizes([source.sizes[0]] * 8)
    )
    stage = distill_stage.make(
        small.models("pico", num_steps, policy), source, regression,
        lambda latents: examples.Quiet(), _CONFIG, start=student, critic=teacher,
        teacher=_boxed(trees.cast(teacher, jnp.bfloat16)),
    )
    return dataclasses.replace(stage, sample=lambda *args: {})


def _mesh(*devices, **sizes):
    return rules.make_mesh(jax.devices()[: devices[0]], **sizes)


def _two_batches(params, mesh):
    """The state after one batch of the critic and one of the student, and the metrics."""
    stage = _stage(params)
    state, _, step = alternating.make(stage, 4, mesh, jax.random.key(0))
    frozen = placing.place(stage.frozen, mesh)
    batches = iter(stage.batches(0))
    for _ in range(2):
        batch = placing.batch(next(batches), mesh)
        state, metrics = step(state, frozen, batch, jax.random.key(1))
    return state, {k: float(v) for k, v in metrics.items()}


def _moments(state):
    """First moments of Adam: with beta1 = 0 the clipped gradients themselves."""
    adam = [
        s for s in jax.tree.leaves(
            state.optimizer, is_leaf=lambda x: hasattr(x, "mu")
        ) if hasattr(s, "mu")
    ]
    return {name: np.asarray(v) for name, v in trees.flatten(adam[0].mu).items()}


def test_eight_devices_equal_one(params):
    expected, wanted = _two_batches(params, _mesh(1))
    mesh = _mesh(8, fsdp=2, seq=2, tensor=2)
    state, metrics = _two_batches(params, mesh)
    for name, value in wanted.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4), name
    for part in ("student", "critic"):
        ours, theirs = _moments(getattr(state, part)), _moments(getattr(expected, part))
        scale = max(np.abs(v).max() for v in theirs.values())
        assert scale > 1e-3
        for name, value in theirs.items():
            np.testing.assert_allclose(
                ours[name] / scale, value / scale, rtol=0, atol=1e-4, err_msg=name
            )
    kernel = state.critic.params["blocks_0"]["cross"]["q"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(16, 16)}


class Killed(Exception):
    """Stands for the end of a process."""


def test_killed_and_resumed_equals_uninterrupted(params, tmp_path):
    often = loop.LoopConfig(checkpoint_every_s=0.0, log_every=1, sample_every=0)
    stage, mesh = _stage(params), _mesh(1)

    def killing(seed):
        """Dies before the third batch, after one turn of each network."""
        inner = iter(stage.batches(seed))

        class Killing:
            get_state, set_state = inner.get_state, inner.set_state
            left = 2

            def __iter__(self):
                return self

            def __next__(self):
                if not self.left:
                    raise Killed
                self.left -= 1
                return next(inner)

        return Killing()

    whole = loop.run(stage, str(tmp_path / "whole"), 4, often, mesh)
    with pytest.raises(Killed):
        broken = dataclasses.replace(stage, batches=killing)
        loop.run(broken, str(tmp_path / "cut"), 4, often, mesh)
    saved = [p.name for p in (tmp_path / "cut/distill/checkpoints").iterdir()]
    assert saved and "3" not in saved
    resumed = loop.run(stage, str(tmp_path / "cut"), 4, often, mesh)
    start = trees.flatten(params[0])
    changed = 0.0
    for name, value in trees.flatten(whole).items():
        np.testing.assert_array_equal(trees.flatten(resumed)[name], value, err_msg=name)
        changed = max(changed, np.abs(value - start[name]).max())
    assert changed > 1e-6


@pytest.mark.parametrize("num_steps, policy", [(1, "clean"), (2, "per_step")])
def test_every_sampler_trains(params, num_steps, policy):
    stage = _stage(params, num_steps, policy)
    batch = next(iter(stage.batches(0)))
    student, teacher = params
    assert batch["regression"]["points"].shape[1] == num_steps + 1
    frozen = {"teacher": teacher, "critic": teacher, "student": student}
    for loss, at in ((stage.loss, student), (stage.critic.loss, teacher)):
        (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            at, frozen, batch, jax.random.key(3)
        )
        assert np.isfinite(value) and value > 0
        sizes = {k: float(jnp.abs(g).max()) for k, g in trees.flatten(grads).items()}
        assert all(np.isfinite(s) for s in sizes.values())
        assert sizes["head/kernel"] > 0 and sizes["audio_projection/in/kernel"] > 0


def test_windows_lie_everywhere_in_the_rollout(monkeypatch):
    """Starts, true chunks and exit steps over many keys; nothing is rolled out."""
    seen = []
    monkeypatch.setattr(
        distill_stage.rollouts, "rollout_window",
        lambda models, params, batch, key, chunks, start, teacher_forced, exit_step: seen.append(
            (np.asarray(start), np.asarray(teacher_forced), np.asarray(exit_step))
        ),
    )
    config = dataclasses.replace(_CONFIG, rollout_chunks=4, real_fraction=0.3)
    batch = small.batch(6, 12)
    for i in range(40):
        _, window = distill_stage.random_window(
            small.models("pico", 4), None, batch, jax.random.key(i), config
        )
        for sample, start in enumerate(seen[-1][0]):
            np.testing.assert_array_equal(
                window.x0[sample], batch.x0[sample, 3 * start : 3 * start + 6]
            )
    starts, forced, exits = (np.stack(column) for column in zip(*seen))
    assert set(starts[~forced]) == {0, 1, 2} and set(starts[forced]) == {1, 2}
    assert 0.2 < forced.mean() < 0.4
    assert set(exits.ravel()) == {0, 1, 2, 3}
    for values in (starts, forced, exits):  # Each sample draws for itself.
        assert np.mean(values[:, 0] != values[:, 1]) > 0.3
    short = dataclasses.replace(config, rollout_chunks=2)
    distill_stage.random_window(small.models(), None, batch, jax.random.key(0), short)
    assert not seen[-1][0].any()


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("rollout_chunks=1", "rollout_chunks=1 must be at least the window of chunks=2"),
        ("real_fraction=2", "real_fraction must be in 0..1, got 2.0"),
        ("critic_updates=0", "critic_updates must be at least 1"),
        ("lowest_sigma=0.99", "must be rising"),
        ("dropout.audio=2", "dropout.audio must be in 0..1"),
        ("score_guidance.audio=nan", "guidance.audio must be finite"),
    ],
)
def test_settings_that_cannot_be_are_refused(assignment, message):
    with pytest.raises(ValueError, match=message):
        overrides.apply(run.config("distill", "corpus"), [assignment])


def test_one_folder_is_the_data_of_windows_and_rollouts():
    config = run.config("distill", "voices", data="examples")
    assert config.data.path == config.rollouts.path == "examples"
