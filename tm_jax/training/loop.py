"""The only loop with side effects: checkpoints, metrics, samples, progress."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tensorboardX
import tqdm
from absl import logging

from tm_jax.checkpoint import store as store_lib
from tm_jax.core import trees
from tm_jax.parallel import rules
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import steps as steps_lib
from tm_jax.training import turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How often a run leaves traces.

    Attributes:
      checkpoint_every_s: Seconds between checkpoints; one more is written at the end.
      log_every: Steps between lines in TensorBoard.
      sample_every: Steps between samples; 0 for none but the last.
      seed: Seed of parameters, noise and input order.
    """

    checkpoint_every_s: float = 180.0
    log_every: int = 10
    sample_every: int = 200
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage of training is made of.

    Attributes:
      name: Name of its folder below the work directory.
      init: Function (key) -> boxed parameters.
      loss: Function (params, frozen, batch, key) -> (scalar, metrics).
      frozen: Tree of arrays that the loss reads and does not train; boxed leaves are placed
        like parameters.
      batches: Function (seed) -> iterator with `get_state` and `set_state`.
      sample: Function (averaged params, frozen, path without extension), writes what a
        person looks at; may return a dictionary of metrics.
      finish: Function (averaged params, frozen) -> params to publish.
      optimizer: Optimiser settings.
      critic: Second network that learns in turns with the first; None for a stage of one.
    """

    name: str
    init: Callable
    loss: Callable
    frozen: Any
    batches: Callable
    sample: Callable
    finish: Callable
    optimizer: optimizer_lib.OptimizerConfig
    critic: turns.Critic | None = None


@contextlib.contextmanager
def _stop_on_signals():
    """Yields a list that fills when the process is asked to stop; restores the handlers."""
    asked, before = [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, lambda *args: asked.append(args[0]))
        except ValueError:  # Not in the main thread: the caller handles signals.
            break
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(stage: Stage, workdir: str, steps: int, config: LoopConfig, mesh=None):
    """Trains a stage to `steps` batches, resuming where an earlier run stopped.

    SIGINT and SIGTERM end the loop after the current step, with a checkpoint.

    Args:
      stage: The stage.
      workdir: Folder of the run.
      steps: Batches in all, including those of earlier runs.
      config: Traces.
      mesh: Device mesh; all devices on `data` by default.

    Returns:
      The parameters to publish, or None when the run was asked to stop before the end.
    """
    mesh = mesh or rules.make_mesh()
    folder = os.path.join(workdir, stage.name)
    os.makedirs(folder, exist_ok=True)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    if stage.critic is None:
        optimizer = optimizer_lib.make(stage.optimizer, steps)
        state, placement = steps_lib.create(stage.init, optimizer, mesh, key)
        step = steps_lib.make_step(
            stage.loss, optimizer, stage.optimizer.ema_decay, mesh, placement
        )
    else:
        state, placement, step = turns.make(stage, steps, mesh, key)
    logging.info("%s: %.2f M parameters", stage.name, trees.count(state.params) / 1e6)
    batches = iter(stage.batches(config.seed))
    with (
        contextlib.closing(store_lib.Store(os.path.join(folder, "checkpoints"))) as store,
        contextlib.closing(
            tensorboardX.SummaryWriter(os.path.join(folder, "tensorboard"))
        ) as writer,
        _stop_on_signals() as asked,
    ):
        if store.latest is not None:
            state, position = store.restore(state, placement)
            batches.set_state(position)
            logging.info("%s: resumed at step %d", stage.name, int(state.step))
        traces = _Traces(stage, store, writer, config, folder, steps)
        with tqdm.tqdm(
            total=steps, initial=int(state.step), desc=stage.name, unit="step", mininterval=2.0
        ) as bar:
            state = _loop(stage, state, step, batches, traces, bar, mesh, asked)
        store.save(int(state.step), state, batches.get_state())
        if int(state.step) < steps:
            return None
        published = stage.finish(state.average, stage.frozen)
        traces.sample(state.average, steps)
        return published


def _loop(stage, state, step, batches, traces, bar, mesh, asked):
    """Updates until the last step or until somebody asks to stop."""
    count, total = int(state.step), traces.steps
    noise = jax.random.fold_in(jax.random.key(traces.config.seed), 2)
    frozen = jax.device_put(
        rules.unbox(stage.frozen), rules.shardings(mesh, stage.frozen)
    )
    while count < total and not asked:
        batch = steps_lib.place_batch(next(batches), mesh)
        state, metrics = step(state, frozen, batch, noise)
        count += 1
        bar.update()
        traces.after(count, state, metrics, batches, bar)
    return state


class _Traces:
    """Metrics, checkpoints and samples of a running stage."""

    def __init__(self, stage, store, writer, config, folder, steps):
        self.config, self.steps = config, steps
        self._stage, self._store, self._writer = stage, store, writer
        self._samples = os.path.join(folder, "samples")
        os.makedirs(self._samples, exist_ok=True)
        self._saved = time.monotonic()

    def after(self, count, state, metrics, batches, bar):
        """Leaves the traces that are due after `count` steps."""
        config = self.config
        save = time.monotonic() - self._saved > config.checkpoint_every_s
        if save or count % config.log_every == 0 or count == self.steps:
            self._log(count, metrics, bar)  # Before saving: a broken state is not kept.
        if save:
            self._store.save(count, state, batches.get_state())
            self._saved = time.monotonic()
        if config.sample_every and count % config.sample_every == 0 and count < self.steps:
            self.sample(state.average, count)

    def _log(self, count, metrics, bar):
        values = {k: float(np.mean(v)) for k, v in jax.device_get(metrics).items()}
        if not np.isfinite(values["loss"]):
            raise FloatingPointError(
                f"{self._stage.name}: the loss is {values['loss']} at step {count}; the last "
                f"checkpoint is step {self._store.latest}. Lower optimizer.learning_rate."
            )
        bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()})
        for name, value in values.items():
            self._writer.add_scalar(name, value, count)

    def sample(self, average, count):
        """Writes a sample of the averaged parameters."""
        path = os.path.join(self._samples, f"{count:07d}")
        measures = self._stage.sample(average, self._stage.frozen, path) or {}
        for name, value in measures.items():
            self._writer.add_scalar(f"sample/{name}", value, count)
