"""The training state and the one pure step that every stage runs."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from tm_jax.core import axes
from tm_jax.parallel import rules


@flax.struct.dataclass
class TrainState:
    """Everything that a resumed run needs, apart from the input position.

    Attributes:
      step: Batches so far, int32 scalar; the key of a batch is fold_in(seed key, step). With
        accumulation an update takes several of them.
      params: Parameters.
      average: Exponential moving average of the parameters; None for a network of which
        nobody asks for it.
      optimizer: Optimiser state.
    """

    step: jax.Array
    params: dict
    average: dict | None
    optimizer: optax.OptState


def create(
    init: Callable, optimizer, mesh, key, average: bool = True
) -> tuple[TrainState, TrainState]:
    """Creates the state, every leaf directly in its sharding.

    Args:
      init: Function (key) -> boxed parameters.
      optimizer: optax transformation.
      mesh: Device mesh.
      key: Random key.
      average: Whether to keep an average of the parameters.

    Returns:
      The state and, in the same structure, its shardings.
    """

    def build(key):
        params = init(key)
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params,
            average=jax.tree.map(jnp.copy, params) if average else None,
            optimizer=optimizer.init(params),
        )

    with rules.use(mesh):
        placement = rules.shardings(mesh, jax.eval_shape(build, key))
        make = jax.jit(lambda k: rules.unbox(build(k)), out_shardings=placement)
        return make(key), placement


def make_step(loss: Callable, optimizer, ema_decay: float, mesh, placement):
    """Compiles one update.

    Args:
      loss: Function (params, frozen, batch, key) -> (scalar, metrics).
      optimizer: optax transformation.
      ema_decay: Decay of the average. Early in a run the average follows faster.
      mesh: Device mesh.
      placement: Shardings of the state.

    Returns:
      Function (state, frozen, batch, key) -> (state, metrics). The old state is donated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def step(state, frozen, batch, key):
        key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, metrics), grads = gradient(state.params, frozen, batch, key)
        updates, opt = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            count = state.step.astype(jnp.float32) + 1
            decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
            average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
        metrics = {"loss": value, "gradient_norm": optax.global_norm(grads), **metrics}
        state = TrainState(
            step=state.step + 1, params=params, average=average, optimizer=opt
        )
        return state, metrics

    compiled = jax.jit(
        step, donate_argnums=0, out_shardings=(placement, replicated)
    )

    def run(state, frozen, batch, key):
        with rules.use(mesh):
            return compiled(state, frozen, batch, key)

    return run


def place_batch(batch, mesh):
    """Puts a batch of host arrays on the mesh, split along its first axis."""
    split = rules.sharding(mesh, axes.BATCH)
    whole = NamedSharding(mesh, PartitionSpec())
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def one(x):
        return jax.device_put(x, split if x.shape[0] % parts == 0 else whole)

    return jax.tree.map(one, batch)
