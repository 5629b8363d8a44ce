"""A student and its critic learn in turns: one state, one compiled step for each."""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax

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
        """Batches so far, those of both networks."""
        return self.student.step + self.critic.step

    @property
    def params(self) -> dict:
        """Parameters of both."""
        return {"student": self.student.params, "critic": self.critic.params}

    @property
    def average(self) -> dict:
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
    """

    init: Callable
    loss: Callable
    optimizer: optimizer_lib.OptimizerConfig
    updates: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """Who learns from which batch: rounds of all the critic's updates, then the student's.

    Attributes:
      critic: Batches of the critic in a round.
      student: Batches of the student in a round.
    """

    critic: int
    student: int

    def is_student(self, count: int) -> bool:
        """Whether batch `count`, from 0, is the student's."""
        return count % (self.critic + self.student) >= self.critic

    def split(self, batches: int) -> tuple[int, int]:
        """How many of the first `batches` are the student's and the critic's."""
        rounds, rest = divmod(batches, self.critic + self.student)
        student = rounds * self.student + max(0, rest - self.critic)
        return student, batches - student


def make(stage, steps: int, mesh, key):
    """Creates both networks and compiles their steps.

    Args:
      stage: `loop.Stage` with a critic.
      steps: Batches in all.
      mesh: Device mesh.
      key: Random key.

    Returns:
      The state, its shardings, and a function (state, frozen, batch, key) -> (state, metrics)
      that updates whose turn it is. The old state of that network is donated.
    """
    critic = stage.critic
    order = Order(
        critic=critic.updates * critic.optimizer.accumulate,
        student=stage.optimizer.accumulate,
    )
    batches = dict(zip(("student", "critic"), order.split(steps)))
    states, placements, updates = {}, {}, {}
    for i, (name, part) in enumerate({"student": stage, "critic": critic}.items()):
        optimizer = optimizer_lib.make(part.optimizer, batches[name])
        states[name], placements[name] = steps_lib.create(
            part.init, optimizer, mesh, jax.random.fold_in(key, i), average=name == "student"
        )
        updates[name] = steps_lib.make_step(
            part.loss, optimizer, part.optimizer.ema_decay, mesh, placements[name]
        )
    return PairState(**states), PairState(**placements), _Turns(order, updates)


class _Turns:
    """Calls the step of the network whose turn it is.

    Counts on the host, from the state of the first call on, so that no step waits for a
    number from the device.
    """

    def __init__(self, order: Order, updates: dict):
        self._order, self._updates = order, updates
        self._count, self._metrics = None, {}

    def __call__(self, state: PairState, frozen, batch, key):
        if self._count is None:
            self._count = int(state.step)
        me, other = "critic", "student"
        if self._order.is_student(self._count):
            me, other = other, me
        self._count += 1
        # The networks count their batches apart: equal numbers must not mean equal noise.
        key = jax.random.fold_in(key, int(me == "student"))
        seen = {**frozen, other: getattr(state, other).params}
        mine, metrics = self._updates[me](getattr(state, me), seen, batch, key)
        # A line of the log shows both: the other's numbers are those of its last turn.
        self._metrics.update({f"{me}/{name}": value for name, value in metrics.items()})
        return state.replace(**{me: mine}), {"loss": metrics["loss"], **self._metrics}
