"""Stage `distill` on random clips: its losses, both policies, resuming, many devices."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from tm_jax.configs import overrides
from tm_jax.core import trees
from tm_jax.parallel import rules
from tm_jax.training import distill_stage
from tm_jax.training import loop
from tm_jax.training import student_stage
from tm_jax.training import latents as latents_lib
from tm_jax.training import run
from tm_jax.training import turns


_C = 3
_CONFIG = distill_stage.DistillStageConfig(
    batch=2, rollout_chunks=3, critic_updates=1,
    rollouts=latents_lib.LatentConfig(clips=6, latents=12),
)


@pytest.fixture(scope="module")
def params(pico):
    """Random student and teacher."""
    shapes = small.shapes()
    return types.SimpleNamespace(
        student={"dit": pico.random(shapes, 1)}, teacher=pico.random(shapes, 2)
    )


def _stage(monkeypatch, params, config=_CONFIG, num_steps=2, policy="clean"):
    """The stage as `make` builds it, with clips out of nothing and without previews."""
    models = small.models(num_steps, policy)
    monkeypatch.setattr(
        latents_lib, "window",
        lambda store, index, start, latents, models: small.clip(index + 100 * start, latents),
    )
    monkeypatch.setattr(student_stage, "previewer", lambda *args: lambda *args: {})
    rng = np.random.default_rng(1)
    frames, shape = config.chunks * _C, models.preset.latent_shape
    points = rng.standard_normal((8, config.teacher_steps + 1, frames, *shape))
    paths = {"points": points.astype(np.float16), "start": np.zeros(8, np.int32)}
    store = {"mode": np.zeros(6)}
    return distill_stage.make(
        models, params.student, params.teacher, store, store, paths, config
    )


def _mesh(*devices, **sizes):
    return rules.make_mesh(jax.devices()[: devices[0]], **sizes)


def _two_batches(monkeypatch, params, mesh):
    """The state after one batch of the critic and one of the student, and the metrics."""
    stage = _stage(monkeypatch, params)
    state, _, step = turns.make(stage, 8, mesh, jax.random.key(0))
    frozen = jax.device_put(rules.unbox(stage.frozen), rules.shardings(mesh, stage.frozen))
    batches = iter(stage.batches(0))
    for _ in range(2):
        batch = run.loop.steps_lib.place_batch(next(batches), mesh)
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


def test_eight_devices_equal_one(monkeypatch, params):
    expected, wanted = _two_batches(monkeypatch, params, _mesh(1))
    mesh = _mesh(8, fsdp=2, seq=2, tensor=2)
    state, metrics = _two_batches(monkeypatch, params, mesh)
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


def test_killed_and_resumed_equals_uninterrupted(monkeypatch, params, tmp_path):
    often = loop.LoopConfig(checkpoint_every_s=0.0, log_every=1, sample_every=0)
    stage, mesh = _stage(monkeypatch, params), _mesh(1)

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
    start = trees.flatten(params.student["dit"])
    changed = 0.0
    for name, value in trees.flatten(whole).items():
        np.testing.assert_array_equal(trees.flatten(resumed)[name], value, err_msg=name)
        changed = max(changed, np.abs(value - start[name]).max())
    assert changed > 1e-6


@pytest.mark.parametrize("num_steps, policy", [(1, "clean"), (2, "per_step"), (4, "per_step")])
def test_every_sampler_trains(monkeypatch, params, num_steps, policy):
    stage = _stage(monkeypatch, params, num_steps=num_steps, policy=policy)
    batch, student = next(iter(stage.batches(0))), params.student["dit"]
    assert batch["regression"]["points"].shape[1] == num_steps + 1
    frozen = {"teacher": params.teacher, "critic": params.teacher, "student": student}
    for loss, at in ((stage.loss, student), (stage.critic.loss, params.teacher)):
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
        distill_stage.rollouts, "visit",
        lambda models, params, batch, key, chunks, start, given, exit_step: seen.append(
            (int(start), bool(given), exit_step.tolist())
        ),
    )
    config = dataclasses.replace(
        _CONFIG, rollout_chunks=5, real_fraction=0.3,
        rollouts=latents_lib.LatentConfig(latents=15),
    )
    batch = {"mode": np.zeros(4)}
    for i in range(120):
        _, first = distill_stage.visit_somewhere(
            small.models(4), None, batch, jax.random.key(i), config
        )
        assert first == 3 * seen[-1][0]
    assert {s for s, given, _ in seen if not given} == {0, 1, 2, 3}
    assert {s for s, given, _ in seen if given} == {1, 2, 3}
    assert 0.2 < np.mean([given for _, given, _ in seen]) < 0.4
    assert {e for _, _, exits in seen for e in exits} == {0, 1, 2, 3}
    assert any(len(set(exits)) > 1 for _, _, exits in seen)
    short = dataclasses.replace(config, rollout_chunks=2)
    for i in range(8):
        assert distill_stage.visit_somewhere(
            small.models(), None, batch, jax.random.key(i), short
        )[1] == 0


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("rollout_chunks=1", "rollout_chunks=1 must be at least the window of chunks=2"),
        ("real_fraction=2", "real_fraction must be in 0..1, got 2.0"),
        ("critic_updates=0", "critic_updates must be at least 1"),
        ("lowest_sigma=0.99", "must be rising"),
    ],
)
def test_settings_that_cannot_be_are_refused(assignment, message):
    with pytest.raises(ValueError, match=message):
        overrides.apply(run.config("distill", "corpus"), [assignment])


def test_clips_shorter_than_a_rollout_are_refused(monkeypatch, params):
    config = dataclasses.replace(_CONFIG, rollout_chunks=5)
    with pytest.raises(ValueError, match="rollouts.latents=12 is too short .* at least 15"):
        _stage(monkeypatch, params, config)


def test_the_corpus_reaches_both_stores():
    config = run.config("distill", "voices")
    assert config.data.corpus == config.rollouts.corpus == "voices"
