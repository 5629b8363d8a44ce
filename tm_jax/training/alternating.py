"""Alternating updates of a student and its critic: one state, one compiled step for each."""

from collections.abc import Callable
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import steps as steps_lib


@flax.struct.dataclass
class PairState:
    """Everything that a resumed run of two networks needs, apart from the input position.

    Attributes:
      student: State of the network that is published.
      critic: State of the other one, without an average.
    """

    student: steps_lib.TrainState
    critic: steps_lib.TrainState

    @property
    def step(self) -> jax.Array:
        """Updates so far, those of both networks."""
        return self.student.step + self.critic.step

    @property
    def skipped(self) -> jax.Array:
        """Updates that were skipped, of both networks."""
        return self.student.skipped + self.critic.skipped

    @property
    def streak(self) -> jax.Array:
        """Latest updates that were skipped in a row, of the network that has more."""
        return jnp.maximum(self.student.streak, self.critic.streak)

    @property
    def params(self) -> dict:
        """Parameters of both."""
        return {"student": self.student.params, "critic": self.critic.params}

    @property
    def average(self) -> dict | None:
        """Averaged parameters of the student."""
        return self.student.average


@dataclasses.dataclass(frozen=True, kw_only=True)
class Critic:
    """The second network of a stage, which learns between the updates of the first.

    Attributes:
      init: Function (key) -> boxed parameters.
      loss: Function (params, frozen, batch, key) -> (scalar, metrics). Its `frozen` holds the
        student's parameters as `student`; that of the student's loss has `critic`.
      optimizer: Optimiser settings.
      updates: Updates for each update of the student.
      start: Values instead of those of `init`; see `loop.Stage`.
      labels: Groups of parameters; see `loop.Stage`.
    """

    init: Callable
    loss: Callable
    optimizer: optimizer_lib.OptimizerConfig
    updates: int
    start: Any = None
    labels: Callable | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """Who learns at which update: rounds of all the critic's updates, then the student's.

    Attributes:
      critic: Updates of the critic in a round.
      student: Updates of the student in a round.
    """

    critic: int
    student: int = 1

    def is_student(self, count: int) -> bool:
        """Whether update `count`, from 0, is the student's."""
        return count % (self.critic + self.student) >= self.critic

    def split(self, updates: int) -> tuple[int, int]:
        """How many of the first `updates` are the student's and the critic's."""
        rounds, rest = divmod(updates, self.critic + self.student)
        student = rounds * self.student + max(0, rest - self.critic)
        return student, updates - student


def prepare(stage: Any, steps: int, mesh: Mesh) -> steps_lib.Training:
    """The training of a stage with a critic.

    Args:
      stage: `loop.Stage` with a critic.
      steps: Updates in all, those of both networks.
      mesh: Device mesh.

    Returns:
      Its step updates the network whose turn it is; the old state of that network is donated.
    """
    order = Order(critic=stage.critic.updates)
    networks = {"student": stage, "critic": stage.critic}
    each = {
        name: steps_lib.prepare(networks[name], count, mesh, average=name == "student")
        for name, count in zip(networks, order.split(steps))
    }

    def create(key):
        return PairState(**{
            name: part.create(jax.random.fold_in(key, i))
            for i, (name, part) in enumerate(each.items())
        })

    return steps_lib.Training(
        target=PairState(**{name: part.target for name, part in each.items()}), create=create,
        step=_Turns(order, {name: part.step for name, part in each.items()}),
    )


def make(stage: Any, steps: int, mesh: Mesh, key: jax.Array) -> tuple[PairState, Any, Any]:
    """Creates both networks and compiles their steps.

    The arguments are those of `prepare`, and a random key.

    Returns:
      The state, its shardings, and the step of `prepare`.
    """
    training = prepare(stage, steps, mesh)
    placement = jax.tree.map(lambda x: x.sharding, training.target)
    return training.create(key), placement, training.step


class _Turns:
    """Calls the step of the network whose turn it is.

    Counts on the host, from the state of the first call on, so that no step waits for a
    number from the device.
    """

    def __init__(self, order: Order, updates: dict):
        self._order, self._updates = order, updates
        self._count: int | None = None
        self._metrics: dict[str, Any] = {}

    def _turn(self, count: int) -> tuple[str, str]:
        """Who learns at update `count`, and the other one."""
        names = ("critic", "student")
        return names[::-1] if self._order.is_student(count) else names

    def _arguments(self, count: int, state: PairState, frozen, batch, key):
        me, other = self._turn(count)
        # The networks count their updates apart: equal numbers must not mean equal noise.
        key = jax.random.fold_in(key, int(me == "student"))
        seen = {**frozen, other: getattr(state, other).params}
        return getattr(state, me), seen, batch, key

    def __call__(self, state: PairState, frozen, batch, key):
        count = int(state.step) if self._count is None else self._count
        self._count = count + 1
        me, _ = self._turn(count)
        arguments = self._arguments(count, state, frozen, batch, key)
        mine, metrics = self._updates[me](*arguments)
        # A line of the log shows both: the other's numbers are those of its last turn.
        self._metrics.update({f"{me}/{name}": value for name, value in metrics.items()})
        state = dataclasses.replace(state, **{me: mine})
        return state, {"loss": metrics["loss"], **self._metrics}

    def micro_batches(self, count: int) -> int:
        """See `steps.Training`."""
        return self._updates[self._turn(count)[0]].micro_batches(count)

    def flops(self, count: int, state: PairState, frozen, batch, key) -> float:
        """See `steps.Training`."""
        step = self._updates[self._turn(count)[0]]
        return step.flops(count, *self._arguments(count, state, frozen, batch, key))
