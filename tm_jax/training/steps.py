"""The training state and the one pure step that every stage runs."""

from collections.abc import Callable
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import optax

from tm_jax.parallel import rules
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import placing


@flax.struct.dataclass
class TrainState:
    """Everything that a resumed run needs, apart from the input position.

    Attributes:
      step: Updates so far, int32 scalar; the key of an update is fold_in(seed key, step).
      params: Parameters.
      average: Exponential moving average of the parameters; None for a network that needs
        none.
      optimizer: Optimiser state.
      skipped: Updates that were skipped because a gradient was not finite, int32 scalar.
      streak: How many of them were the latest updates, int32 scalar.
    """

    step: jax.Array
    params: dict
    average: dict | None
    optimizer: optax.OptState
    skipped: jax.Array
    streak: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How one network, or two in turns, are trained on a mesh.

    Attributes:
      target: The state's shapes and shardings, a tree of `jax.ShapeDtypeStruct`.
      create: Function (key) -> state before the first update, every leaf made in its sharding.
      step: Function (state, frozen, batch, key) -> (state, metrics), an update; the old state
        is donated. `step.micro_batches(count)` is how many batches update `count`, from 0,
        takes; from two on they come stacked along a first axis. `step.flops(count, ...)`, with
        the same arguments, is how many floating-point operations it takes.
    """

    target: Any
    create: Callable
    step: Any


def prepare(network: Any, steps: int, mesh: Mesh, average: bool = True) -> Training:
    """The training of one network.

    Args:
      network: `loop.Stage` or `alternating.Critic`: what is read are `init`, `start`, `loss`,
        `labels` and `optimizer`.
      steps: Updates in all.
      mesh: Device mesh.
      average: Whether to keep an average of the parameters.
    """
    config = network.optimizer
    optimizer = optimizer_lib.make(config, steps, network.labels)
    target = layout(network.init, optimizer, mesh, average)
    placement = jax.tree.map(lambda x: x.sharding, target)
    return Training(
        target=target,
        create=lambda key: create(
            network.init, optimizer, mesh, key, average, network.start
        )[0],
        step=make_step(
            network.loss, optimizer, config.ema_decay, mesh, placement, config.accumulate
        ),
    )


def _builder(optimizer, average: bool) -> Callable:
    """Function (parameters) -> state before the first update."""

    def build(params):
        count = jnp.zeros((), jnp.int32)
        return TrainState(
            step=count, params=params,
            average=jax.tree.map(jnp.copy, params) if average else None,
            optimizer=optimizer.init(params), skipped=count, streak=count,
        )

    return build


def layout(
    init: Callable, optimizer: optax.GradientTransformation, mesh: Mesh, average: bool = True
) -> TrainState:
    """Shapes and shardings of a state, a tree of `jax.ShapeDtypeStruct`; nothing is made.

    The arguments are those of `create`.
    """
    build = _builder(optimizer, average)
    with rules.use(mesh):
        boxed = jax.eval_shape(lambda key: build(init(key)), jax.random.key(0))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        rules.unbox(boxed), rules.shardings(mesh, boxed),
    )


def create(
    init: Callable, optimizer: optax.GradientTransformation, mesh: Mesh, key: jax.Array,
    average: bool = True, start: Any = None
) -> tuple[TrainState, TrainState]:
    """Creates the state, every leaf directly in its sharding.

    Args:
      init: Function (key) -> boxed parameters.
      optimizer: optax transformation.
      mesh: Device mesh.
      key: Random key.
      average: Whether to keep an average of the parameters.
      start: Values instead of those of `init` (`placing.parameters`), of which only the shapes
        and the boxes are read then.

    Returns:
      The state and, in the same structure, its shardings.
    """
    target = layout(init, optimizer, mesh, average)
    placement = jax.tree.map(lambda x: x.sharding, target)
    build = _builder(optimizer, average)
    with rules.use(mesh):
        if start is None:
            make = jax.jit(lambda k: rules.unbox(build(init(k))), out_shardings=placement)
            return make(key), placement
        params = placing.parameters(start, target.params)
        # The parameters do not go through the program: they would come out as a second copy.
        rest = jax.jit(
            lambda p: dataclasses.replace(build(p), params=None),
            out_shardings=dataclasses.replace(placement, params=None),
        )(params)
    return dataclasses.replace(rest, params=params), placement


def make_step(
    loss: Callable, optimizer: optax.GradientTransformation, ema_decay: float, mesh: Mesh,
    placement: TrainState, accumulate: int = 1
) -> "Step":
    """Compiles one update.

    An update whose loss or gradient is not finite leaves parameters, average and optimiser as
    they are, and is counted.

    Args:
      loss: Function (params, frozen, batch, key) -> (scalar, metrics). With accumulation it
        must be a mean over samples: then n micro-batches are one batch of n-fold size.
      optimizer: optax transformation.
      ema_decay: Decay of the average. Early in a run the average follows faster.
      mesh: Device mesh.
      placement: Shardings of the state.
      accumulate: Micro-batches per update; from 2 on, batches come as [accumulate, B, ...].

    Returns:
      Function (state, frozen, batch, key) -> (state, metrics). The old state is donated.
      Metrics are those of the loss, averaged over micro-batches, `loss`, `gradient_norm` and
      `skipped`, the updates that were skipped so far.
    """
    gradients = _gradients(loss, accumulate, placement.params)

    def step(state, frozen, batch, key):
        key = jax.random.fold_in(key, state.step)
        (value, metrics), grads = gradients(state.params, frozen, batch, key)
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(norm) & jnp.isfinite(value)
        updates, opt = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            count = state.step.astype(jnp.float32) + 1
            decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
            average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        skipped = state.skipped + ~good
        state = TrainState(
            step=state.step + 1, params=keep(params, state.params),
            average=keep(average, state.average), optimizer=keep(opt, state.optimizer),
            skipped=skipped, streak=jnp.where(good, 0, state.streak + 1),
        )
        return state, {"loss": value, "gradient_norm": norm, "skipped": skipped, **metrics}

    replicated = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(placement, replicated))
    return Step(compiled, mesh, accumulate)


def _gradients(loss: Callable, accumulate: int, placement) -> Callable:
    """Function (params, frozen, batch, key) -> ((loss, metrics), gradients), all means."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        return gradient

    def mean(params, frozen, batch, key):
        def micro(total, inputs):
            item, index = inputs
            found, grads = gradient(params, frozen, item, jax.random.fold_in(key, index))
            total = jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads)
            return jax.lax.with_sharding_constraint(total, placement), found

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        zeros = jax.lax.with_sharding_constraint(zeros, placement)
        total, found = jax.lax.scan(micro, zeros, (batch, jnp.arange(accumulate)))
        grads = jax.tree.map(lambda t, p: (t / accumulate).astype(p.dtype), total, params)
        return jax.tree.map(lambda x: x.mean(0), found), grads

    return mean


class Step:
    """A compiled update; see `make_step` and `Training.step`."""

    def __init__(self, compiled, mesh: Mesh, accumulate: int):
        self._compiled, self._mesh, self._accumulate = compiled, mesh, accumulate
        self._flops = None

    def __call__(self, state, frozen, batch, key):
        with rules.use(self._mesh):
            return self._compiled(state, frozen, batch, key)

    def trace(self, state: Any, frozen: Any, batch: Any, key: jax.Array) -> jax.stages.Traced:
        """The update's program for arguments that may be shapes with shardings."""
        with rules.use(self._mesh):
            return self._compiled.trace(state, frozen, batch, key)

    def micro_batches(self, count: int) -> int:
        """Batches that update `count` takes."""
        del count
        return self._accumulate

    def flops(
        self, count: int, state: TrainState, frozen: Any, batch: Any, key: jax.Array
    ) -> float:
        """Floating-point operations of an update on all devices; loops but the micro-batches'
        count once."""
        del count
        if self._flops is None:
            with rules.use(self._mesh):
                cost = self._compiled.lower(state, frozen, batch, key).cost_analysis()
            self._flops = float(cost["flops"]) * self._accumulate
        return self._flops


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts a batch of host arrays on the mesh, split along its first axis."""
    return placing.batch(batch, mesh)
