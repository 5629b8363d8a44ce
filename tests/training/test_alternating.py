"""Two networks in turns: their order, who changes, and a run that is killed and resumed."""

import dataclasses

import chex
import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.core import axes
from tm_jax.parallel import rules
from tm_jax.training import alternating
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib


def _init(key):
    return {"w": nn.LogicallyPartitioned(jax.random.normal(key, (3, 3)), (axes.EMBED, None))}


def _student_loss(params, frozen, batch, key):
    error = batch["x"] @ params["w"] - batch["x"] @ frozen["critic"]["w"] - frozen["offset"]
    return jnp.mean(jnp.square(error)), {"noise": jax.random.uniform(key)}


def _critic_loss(params, frozen, batch, key):
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    error = (batch["x"] + noise) @ params["w"] - 2 * batch["x"] @ frozen["student"]["w"]
    return jnp.mean(jnp.square(error)), {"noise": jax.random.uniform(key)}


def _batches(seed):
    def one(index):
        rng = np.random.default_rng((seed, int(index)))
        return {"x": rng.standard_normal(3).astype(np.float32)}

    data = grain.MapDataset.range(1000).shuffle(seed).map(one).batch(4)
    return data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def _stage(updates=5, accumulate=(1, 1), batches=_batches):
    student, critic = (
        optimizer_lib.OptimizerConfig(learning_rate=0.02, warmup_steps=1, accumulate=n)
        for n in accumulate
    )
    return loop.Stage(
        name="toy", init=_init, loss=_student_loss, frozen={"offset": np.ones(3, np.float32)},
        batches=batches, sample=lambda params, frozen, path: {},
        finish=lambda params, frozen: params, optimizer=student,
        critic=alternating.Critic(init=_init, loss=_critic_loss, optimizer=critic, updates=updates),
    )


def _copy(state):
    return jax.device_get({"student": state.student.params, "critic": state.critic.params})


def _changes(stage, count, state=None):
    """Which networks change at each of `count` batches, and the metrics."""
    mesh = rules.make_mesh(jax.devices()[:1])
    state, _, step = alternating.make(stage, 100, mesh, jax.random.key(0))
    found, metrics, batches = [], [], iter(_batches(0))
    for _ in range(count):
        before = _copy(state)
        state, values = step(state, stage.frozen, next(batches), jax.random.key(1))
        after = _copy(state)
        changed = [n for n in before if not np.array_equal(before[n]["w"], after[n]["w"])]
        found.append("+".join(changed))
        metrics.append(jax.device_get(values))
    return found, metrics, state


def test_five_updates_of_the_critic_then_one_of_the_student():
    found, metrics, state = _changes(_stage(), 18)
    # The learning rate of the first update is zero.
    expected = ["", *["critic"] * 4, "", *([*["critic"] * 5, "student"] * 2)]
    assert found == expected
    assert (int(state.step), int(state.student.step), int(state.critic.step)) == (18, 3, 15)
    # Every batch has noise of its own, also where the counts of both networks agree.
    names = ("student/noise", "critic/noise")
    noises = {float(m[name]) for m in metrics for name in names if name in m}
    assert len(noises) == 18


def _trained(accumulate, size):
    """The state after ten updates; both networks see the same samples whatever `accumulate`."""

    def batches(seed):
        data = grain.MapDataset.range(1000).map(
            lambda i: {"x": np.random.default_rng(int(i)).standard_normal(3).astype(np.float32)}
        )
        return data.batch(size).to_iter_dataset(grain.ReadOptions(num_threads=1))

    stage = _stage(updates=2, accumulate=(accumulate, accumulate), batches=batches)

    def plain(params, frozen, batch, key):  # Without noise, which has a key per micro-batch.
        return jnp.mean(jnp.square(batch["x"] @ (params["w"] - frozen["student"]["w"]))), {}

    stage = dataclasses.replace(stage, critic=dataclasses.replace(stage.critic, loss=plain))
    mesh = rules.make_mesh(jax.devices()[:1])
    training = alternating.prepare(stage, 10, mesh)
    state, items = training.create(jax.random.key(0)), iter(batches(0))
    for count in range(10):
        group = [next(items) for _ in range(training.step.micro_batches(count))]
        batch = jax.tree.map(lambda *x: np.stack(x), *group) if accumulate > 1 else group[0]
        state, _ = training.step(state, stage.frozen, batch, jax.random.key(1))
    return jax.device_get(state)


def test_accumulation_equals_large_batches_in_both_networks():
    whole, parts = _trained(1, 8), _trained(4, 2)
    assert (int(whole.student.step), int(whole.critic.step)) == (3, 7)
    chex.assert_trees_all_close(parts, whole, rtol=0, atol=1e-5)  # Measured 2e-7.


def test_each_network_has_its_own_accumulation():
    stage = _stage(updates=2, accumulate=(3, 2))
    step = alternating.prepare(stage, 9, rules.make_mesh(jax.devices()[:1])).step
    assert [step.micro_batches(i) for i in range(6)] == [2, 2, 3] * 2


@pytest.mark.parametrize("critic, student", [(5, 1), (4, 3), (1, 1)])
def test_the_split_counts_updates(critic, student):
    order = alternating.Order(critic=critic, student=student)
    for batches in range(25):
        of_student = sum(order.is_student(i) for i in range(batches))
        assert order.split(batches) == (of_student, batches - of_student)


def test_only_the_student_has_an_average():
    _, _, state = _changes(_stage(), 6)
    assert state.critic.average is None
    assert state.average["w"].shape == (3, 3)


class Killed(Exception):
    """Stands for the end of a process."""


def _killing(at):
    """Input that dies before batch `at`."""

    def batches(seed):
        inner = iter(_batches(seed))

        class Killing:
            get_state, set_state = inner.get_state, inner.set_state
            left = at

            def __iter__(self):
                return self

            def __next__(self):
                if not self.left:
                    raise Killed
                self.left -= 1
                return next(inner)

        return Killing()

    return batches


@pytest.mark.parametrize("at", [4, 6, 7])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, at):
    """Killed among the critic's turns, and right after one of the student."""
    steps, often = 14, loop.LoopConfig(checkpoint_every_s=0.0, log_every=1, sample_every=0)
    whole = loop.run(_stage(), str(tmp_path / "whole"), steps, often)
    with pytest.raises(Killed):
        loop.run(_stage(batches=_killing(at)), str(tmp_path / "cut"), steps, often)
    # A kill may cost the checkpoint that was being written, never an older one.
    folder = tmp_path / "cut/toy/checkpoints"
    saved = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    assert saved and saved[-1] <= at
    seen = []

    def counted(seed):
        inner = iter(_batches(seed))

        class Counting:
            get_state, set_state = inner.get_state, inner.set_state

            def __iter__(self):
                return self

            def __next__(self):
                seen.append(1)
                return next(inner)

        return Counting()

    resumed = loop.run(_stage(batches=counted), str(tmp_path / "cut"), steps, often)
    assert len(seen) == steps - saved[-1]
    np.testing.assert_array_equal(resumed["w"], whole["w"])
