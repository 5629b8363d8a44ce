"""The only loop with side effects: checkpoints, metrics, samples, progress."""

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
      frozen: Tree of arrays that the loss reads and does not train.
      batches: Function (seed) -> iterator with `get_state` and `set_state`.
      sample: Function (averaged params, frozen, path without extension), writes what a
        person looks at; may return a dictionary of metrics.
      finish: Function (averaged params, frozen) -> params to publish.
      optimizer: Optimiser settings.
    """

    name: str
    init: Callable
    loss: Callable
    frozen: Any
    batches: Callable
    sample: Callable
    finish: Callable
    optimizer: optimizer_lib.OptimizerConfig


def _stop_on_signals():
    """Returns a list that fills when the process is asked to stop."""
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            signal.signal(number, lambda *args: asked.append(args[0]))
        except ValueError:  # Not in the main thread: the caller handles signals.
            break
    return asked


def run(stage: Stage, workdir: str, steps: int, config: LoopConfig, mesh=None):
    """Trains a stage to `steps` updates, resuming where an earlier run stopped.

    SIGINT and SIGTERM end the loop after the current step, with a checkpoint.

    Args:
      stage: The stage.
      workdir: Folder of the run.
      steps: Updates in all, including those of earlier runs.
      config: Traces.
      mesh: Device mesh; all devices on `data` by default.

    Returns:
      The parameters to publish, or None when the run was asked to stop before the end.
    """
    mesh = mesh or rules.make_mesh()
    folder = os.path.join(workdir, stage.name)
    os.makedirs(folder, exist_ok=True)
    optimizer = optimizer_lib.make(stage.optimizer, steps)
    key = jax.random.key(config.seed)
    state, placement = steps_lib.create(
        stage.init, optimizer, mesh, jax.random.fold_in(key, 1)
    )
    logging.info("%s: %.2f M parameters", stage.name, trees.count(state.params) / 1e6)
    batches = iter(stage.batches(config.seed))
    store = store_lib.Store(os.path.join(folder, "checkpoints"))
    if store.latest is not None:
        state, position = store.restore(state, placement)
        batches.set_state(position)
        logging.info("%s: resumed at step %d", stage.name, int(state.step))
    step = steps_lib.make_step(
        stage.loss, optimizer, stage.optimizer.ema_decay, mesh, placement
    )
    asked = _stop_on_signals()
    first, saved = int(state.step), time.monotonic()
    writer = tensorboardX.SummaryWriter(os.path.join(folder, "tensorboard"))
    bar = tqdm.tqdm(
        total=steps, initial=first, desc=stage.name, unit="step", mininterval=2.0
    )
    noise = jax.random.fold_in(key, 2)
    frozen = jax.device_put(stage.frozen)
    while first < steps and not asked:
        batch = steps_lib.place_batch(next(batches), mesh)
        state, metrics = step(state, frozen, batch, noise)
        first += 1
        bar.update()
        if first % config.log_every == 0 or first == steps:
            values = {k: float(np.mean(v)) for k, v in jax.device_get(metrics).items()}
            if not np.isfinite(values["loss"]):
                raise FloatingPointError(
                    f"{stage.name}: the loss is {values['loss']} at step {first}; the last "
                    f"checkpoint is step {store.latest}. Lower optimizer.learning_rate."
                )
            bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()})
            for name, value in values.items():
                writer.add_scalar(name, value, first)
        if time.monotonic() - saved > config.checkpoint_every_s:
            store.save(first, state, batches.get_state())
            saved = time.monotonic()
        if config.sample_every and first % config.sample_every == 0 and first < steps:
            _sample(stage, state, folder, first, writer)
    bar.close()
    store.save(first, state, batches.get_state())
    store.close()
    published = None
    if first >= steps:
        published = stage.finish(state.average, frozen)
        _sample(stage, state, folder, first, writer)
    writer.close()
    return published


def _sample(stage, state, folder, step, writer):
    os.makedirs(os.path.join(folder, "samples"), exist_ok=True)
    path = os.path.join(folder, "samples", f"{step:07d}")
    for name, value in (stage.sample(state.average, stage.frozen, path) or {}).items():
        writer.add_scalar(f"sample/{name}", value, step)
