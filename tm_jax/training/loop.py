"""The only loop with side effects: checkpoints, metrics, samples, progress."""

from collections.abc import Callable
import contextlib
import dataclasses
import os
import signal
import time
from typing import Any

from absl import logging
import jax
from jax.sharding import Mesh
import numpy as np
import tensorboardX
import tqdm

from tm_jax.checkpoints import store as store_lib
from tm_jax.core import trees
from tm_jax.parallel import hosts
from tm_jax.parallel import mesh_flag
from tm_jax.parallel import rules
from tm_jax.training import alternating
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import placing
from tm_jax.training import steps as steps_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Where a run takes place, how often it leaves traces, and when it gives up.

    Attributes:
      checkpoint_every_s: Seconds between checkpoints; one more is written at the end.
      keep: Checkpoints that are kept, the newest ones.
      best: Name of a measure of the samples; its best checkpoint is kept too and published in
        the end instead of the last. "-" before the name: less is better. Empty: none.
      log_every: Updates between lines in TensorBoard, which hold the means since the last.
      sample_every: Updates between samples; 0 for none but the last.
      profile: First update of a profiler trace below WORKDIR/STAGE/profile, for TensorBoard;
        0: none. SIGUSR1 starts one at any time.
      profile_updates: Updates that a trace covers.
      skip_limit: The run ends after so many updates in a row whose gradient was not finite.
      peak_tflops: Peak TFLOP/s of one device at the dtype of the run; with it the
        utilisation is logged.
      mesh: Sizes of mesh axes, "fsdp=8,seq=2"; `data` takes the devices that are left.
      seed: Seed of parameters, noise and input order.
    """

    checkpoint_every_s: float = 180.0
    keep: int = 2
    best: str = ""
    log_every: int = 10
    sample_every: int = 200
    profile: int = 0
    profile_updates: int = 3
    skip_limit: int = 10
    peak_tflops: float | None = None
    mesh: str = ""
    seed: int = 0

    def __post_init__(self):
        for name in ("keep", "log_every", "skip_limit", "profile_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"peak_tflops must be above 0, got {self.peak_tflops}.")
        if self.best and not self.sample_every:
            raise ValueError(f"best={self.best} needs samples: set sample_every.")
        mesh_flag.sizes(self.mesh)  # Refuses what does not exist.

    def make_mesh(self) -> Mesh:
        """The mesh over all devices.

        Raises:
          ValueError: The sizes do not fit the number of devices.
        """
        return rules.make_mesh(**mesh_flag.parse(self.mesh, len(jax.devices())))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage of training is made of.

    Attributes:
      name: Name of its folder below the work directory.
      init: Function (key) -> boxed parameters. It runs inside a program: what it closes over
        becomes a constant of that program, so values of an earlier stage belong in `start`.
      loss: Function (params, frozen, batch, key) -> (scalar, metrics).
      frozen: Tree of arrays that the loss reads and does not train; boxed leaves are placed
        like parameters, device arrays on the mesh stay where they are.
      batches: Function (seed) -> iterator with `get_state` and `set_state`. Where `batch` is
        named it takes `rows` as well, a `hosts.Rows`, and reads these samples alone.
      sample: Function (averaged params, frozen, path without extension), writes what a
        person looks at; may return a dictionary of metrics.
      finish: Function (averaged params, frozen) -> params to publish.
      optimizer: Optimiser settings.
      critic: Second network that learns in turns with the first; None for a stage of one.
      start: Values that take the place of those of `init`: tree of host or device arrays
        without boxes, or function (tree of shardings) -> tree of device arrays. Not asked for
        by a run that resumes.
      labels: Function (params) -> tree of "base" or "new", the parameter groups of
        `optimizer_lib.OptimizerConfig`; None for one group.
      batch: Samples in a batch; None: the stage runs in one process only.
      frames: Video frames in a batch, for the throughput; 0: none is logged.
      flops: Model FLOPs of an update, for the utilisation; None: what the compiler counts of
        the update's program, which includes recomputation and counts loops once.
    """

    name: str
    init: Callable
    loss: Callable
    frozen: Any
    batches: Callable
    sample: Callable
    finish: Callable
    optimizer: optimizer_lib.OptimizerConfig
    critic: alternating.Critic | None = None
    start: Any = None
    labels: Callable | None = None
    batch: int | None = None
    frames: int = 0
    flops: float | None = None


@contextlib.contextmanager
def _stop_on_signals():
    """Yields a list that fills when the process is asked to stop; restores the handlers.

    Several processes have to agree on the step: `hosts.asked_to_stop`, which catches SIGTERM.
    """
    asked, before = [], {}
    for number in () if hosts.several() else (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, lambda *args: asked.append(args[0]))
        except ValueError:  # Not in the main thread: the caller handles signals.
            break
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    stage: Stage, workdir: str, steps: int, config: LoopConfig, mesh: Mesh | None = None
) -> Any:
    """Trains a stage up to update `steps`, resuming where an earlier run stopped.

    SIGINT and SIGTERM end the loop after the current update, with a checkpoint. Of several
    processes (`hosts.start`) all take part in everything, and the first one writes; SIGTERM to
    one of them ends all at the same update.

    Args:
      stage: The stage.
      workdir: Folder of the run.
      steps: Updates in all, including those of earlier runs.
      config: Mesh, traces, limits.
      mesh: Device mesh; that of `config` by default.

    Returns:
      The parameters to publish, or None when the run was asked to stop before the end.

    Raises:
      ValueError: A mesh, batch or checkpoint that does not fit.
      FloatingPointError: Too many updates in a row were not finite.
      OSError: A checkpoint could not be written, or another process was lost.
    """
    mesh = mesh or config.make_mesh()
    folder = os.path.join(workdir, stage.name)
    os.makedirs(folder, exist_ok=True)
    if stage.critic is None:
        training = steps_lib.prepare(stage, steps, mesh)
    else:
        training = alternating.prepare(stage, steps, mesh)
    logging.info("%s: %.2f M parameters", stage.name, trees.count(training.target.params) / 1e6)
    batches, rows = _open(stage, config, mesh)
    with (
        contextlib.closing(
            store_lib.Store(os.path.join(folder, "checkpoints"), config.keep, bool(config.best))
        ) as store,
        contextlib.closing(
            tensorboardX.SummaryWriter(
                os.path.join(folder, "tensorboard"), write_to_disk=hosts.is_first()
            )
        ) as writer,
        _stop_on_signals() as asked,
    ):
        state = _begin(stage, training, store, batches, config)
        frozen = placing.place(stage.frozen, mesh)
        traces = _Traces(stage, store, writer, config, folder, steps, mesh, frozen)
        with tqdm.tqdm(
            total=steps, initial=int(state.step), desc=stage.name, unit="step", mininterval=2.0,
            disable=not hosts.is_first(),
        ) as bar:
            state = hosts.explained(lambda: _loop(
                training.step, state, frozen, batches, rows, traces, bar, mesh, asked
            ), lambda: store.latest)
        finished, position = int(state.step) == steps, batches.get_state()
        value = traces.sample(state.average, steps) if finished else None
        store.save(int(state.step), state, position, value)
        if not finished:
            return None
        best = store.best
        if best is not None and best != steps:
            logging.info("%s: step %d has the best %s", stage.name, best, config.best)
            store.wait()
            del state  # Before another takes its memory.
            placement = jax.tree.map(lambda x: x.sharding, training.target)
            state, _ = store.restore(training.target, placement, best)
        return stage.finish(state.average, frozen)


def _open(stage: Stage, config: LoopConfig, mesh: Mesh) -> tuple[Any, hosts.Rows | None]:
    """The input, and which samples of its batches this process reads if there are others."""
    if not hosts.several():
        return iter(stage.batches(config.seed)), None
    if stage.batch is None:
        raise ValueError(f"stage {stage.name} runs in one process; start it without --hosts.")
    rows = hosts.rows(mesh, stage.batch)
    return iter(stage.batches(config.seed, rows)), rows


def _begin(stage, training, store, batches, config):
    """The state of the newest checkpoint, or a new one; never both in memory."""
    if store.latest is None:
        return training.create(jax.random.fold_in(jax.random.key(config.seed), 1))
    placement = jax.tree.map(lambda x: x.sharding, training.target)
    state, position = store.restore(training.target, placement)
    batches.set_state(position)
    logging.info("%s: resumed at step %d", stage.name, int(state.step))
    return state


def _loop(step, state, frozen, batches, rows, traces, bar, mesh, asked):
    """Updates until the last one or until somebody asks to stop."""
    count, total = int(state.step), traces.steps
    noise = jax.random.fold_in(jax.random.key(traces.config.seed), 2)
    while count < total and not asked and not hosts.asked_to_stop(count):
        number = step.micro_batches(count)
        batch = next(batches)
        if number > 1:
            rest = [next(batches) for _ in range(number - 1)]
            batch = jax.tree.map(lambda *x: np.stack(x), batch, *rest)
        batch = placing.batch(batch, mesh, stacked=number > 1, rows=rows)
        traces.before(count, step, (state, frozen, batch, noise), number)
        state, metrics = step(state, frozen, batch, noise)
        count += 1
        bar.update()
        traces.after(count, state, metrics, batches, bar)
    return state


class _Traces:
    """Metrics, checkpoints and samples of a running stage."""

    def __init__(self, stage, store, writer, config, folder, steps, mesh, frozen):
        self.config, self.steps = config, steps
        self._stage, self._store, self._writer, self._frozen = stage, store, writer, frozen
        self._samples = os.path.join(folder, "samples")
        os.makedirs(self._samples, exist_ok=True)
        self._saved = time.monotonic()
        self._metrics, self._seen, self._values = [], {}, {}
        self._speed = _Speed(stage, config, mesh)
        self._profile = _Profile(config, os.path.join(folder, "profile"))

    def before(self, count, step, arguments, micro_batches):
        """Counts the work of update `count`."""
        self._speed.add(count, step, arguments, micro_batches)
        self._profile.before(count)

    def after(self, count, state, metrics, batches, bar):
        """Leaves the traces that are due after `count` updates."""
        config = self.config
        self._profile.after(count, state)
        # Of two networks in turns, one repeats the numbers of its last turn.
        self._metrics.append({k: v for k, v in metrics.items() if v is not self._seen.get(k)})
        self._seen = metrics
        save = time.monotonic() - self._saved > config.checkpoint_every_s
        due = count % config.log_every == 0 or count == self.steps
        if hosts.several():
            save = due and bool(hosts.of_first(save))
        if save or due:
            self._log(count, state, bar)  # Before saving: a broken run leaves no checkpoint.
        with self._speed.pause():
            value = None
            if config.sample_every and count % config.sample_every == 0 and count < self.steps:
                value = self.sample(state.average, count)
            if save or value is not None:
                # What is logged so far must not be lost if the run goes on from here.
                self._writer.flush()
                self._store.save(count, state, batches.get_state(), value)
                self._saved = time.monotonic()

    def _log(self, count, state, bar):
        """Writes the means of the metrics since the last line; fails if the run has failed."""
        metrics, streak = jax.device_get((self._metrics, state.streak))  # Waits for the device.
        self._metrics = []
        self._values |= _means(metrics) | self._speed.rates()
        values = self._values
        if streak >= min(self.config.skip_limit, self.steps):
            raise FloatingPointError(
                f"{self._stage.name}: loss or gradient was not finite in the {int(streak)} "
                f"updates up to step {count}, which were skipped; the last checkpoint is step "
                f"{self._store.latest}. Lower optimizer.learning_rate, or look at the data."
            )
        self._store.check()
        bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()})
        for name, value in values.items():
            if np.isfinite(value):
                self._writer.add_scalar(name, value, count)

    def sample(self, average, count):
        """Writes a sample of the averaged parameters; returns what the best one is judged by."""
        path = os.path.join(self._samples, f"{count:07d}")
        measures = self._stage.sample(average, self._frozen, path) or {}
        for name, value in measures.items():
            self._writer.add_scalar(f"sample/{name}", value, count)
        name = self.config.best.removeprefix("-")
        if not name:
            return None
        if hosts.is_first() and name not in measures:
            raise ValueError(
                f"best={self.config.best}: samples of stage {self._stage.name} have no such "
                f"measure; they have {', '.join(measures) or 'none'}."
            )
        value = hosts.of_first(measures.get(name, 0.0))
        return -value if self.config.best.startswith("-") else value


class _Profile:
    """Traces of the profiler, from an update that was named or when SIGUSR1 comes."""

    def __init__(self, config: LoopConfig, folder: str):
        self._first, self._updates, self._folder = config.profile, config.profile_updates, folder
        self._asked = False
        self._last: int | None = None
        try:
            signal.signal(signal.SIGUSR1, self._ask)
        except (AttributeError, ValueError):  # Windows, or not in the main thread.
            pass

    def _ask(self, *unused):
        self._asked = True

    def before(self, count: int) -> None:
        """Starts a trace if one is due at update `count`, from 0."""
        if self._last is None and (self._asked or (self._first and count + 1 == self._first)):
            self._asked, self._last = False, count + self._updates
            jax.profiler.start_trace(self._folder)

    def after(self, count: int, state: Any) -> None:
        """Ends it after its last update."""
        if self._last is not None and count >= self._last:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._last = None
            logging.info("a trace is in %s", self._folder)


def _means(metrics: list[dict]) -> dict[str, float]:
    """Mean of every metric over updates, without those that are not finite; counts are last."""
    found = {}
    for name in dict.fromkeys(name for m in metrics for name in m):
        values = np.array([np.mean(m[name]) for m in metrics if name in m], np.float64)
        if name.split("/")[-1] == "skipped":
            found[name] = float(values[-1])
            continue
        finite = values[np.isfinite(values)]
        found[name] = float(finite.mean()) if finite.size else float("nan")
    return found


class _Speed:
    """Frames a second and utilisation, without the time of compiling, saving and sampling."""

    def __init__(self, stage, config, mesh):
        self._stage, self._peak = stage, config.peak_tflops
        self._devices = mesh.size
        self._frames = self._flops = self._paused = 0.0
        self._since = None  # The first interval, in which programs are compiled, is not timed.

    def add(self, count, step, arguments, micro_batches):
        """Counts the work of one update."""
        self._frames += self._stage.frames * micro_batches
        if self._peak is not None:
            given = self._stage.flops
            self._flops += step.flops(count, *arguments) if given is None else given

    @contextlib.contextmanager
    def pause(self):
        """What happens inside does not count."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    def rates(self) -> dict[str, float]:
        """Speed since the last call, once the device has finished."""
        now, found = time.monotonic(), {}
        if self._since is not None:
            seconds = max(now - self._since - self._paused, 1e-9)
            if self._frames:
                found["frames_per_s"] = self._frames / seconds
            if self._peak is not None:
                found["mfu"] = self._flops / seconds / (self._peak * 1e12 * self._devices)
        self._since, self._frames, self._flops, self._paused = now, 0.0, 0.0, 0.0
        return found
