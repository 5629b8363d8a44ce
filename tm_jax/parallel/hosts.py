"""Several processes as one computation: start, who reads what, and values for the host.

Every process runs the same program on one mesh over the devices of all of them. They read the
same files, so the work directory must be one that all of them see.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from tm_jax.core import axes
from tm_jax.parallel import rules

AUTO = "auto"
_HEARTBEAT_S = 30  # After so long a silence a process is taken for dead.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """One process among several.

    Attributes:
      address: HOST:PORT at which process 0 coordinates.
      count: Number of processes.
      index: This process, from 0.
    """

    address: str
    count: int
    index: int


def parse(text: str) -> Place | None:
    """The place that a flag names; None where the environment has to say it.

    Args:
      text: "auto", or "HOST:PORT,COUNT,INDEX".

    Raises:
      ValueError: Something else.
    """
    if text == AUTO:
        return None
    address, *numbers = text.split(",")
    host, _, port = address.rpartition(":")
    if len(numbers) == 2 and host and all(x.isdecimal() for x in (port, *numbers)):
        count, index = (int(x) for x in numbers)
        if index < count:
            return Place(address=address, count=count, index=index)
    raise ValueError(
        f"expected {AUTO} or HOST:PORT,COUNT,INDEX with INDEX from 0 to COUNT-1, got {text!r}."
    )


def start(text: str, environment: dict[str, str], timeout_s: int = 300) -> None:
    """Joins the other processes; must come before anything else that JAX does.

    Args:
      text: See `parse`; an empty text means that this process is the only one. "auto" looks for
        `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, then for SLURM,
        Cloud TPUs, GKE and Open MPI, as `jax.distributed` knows them.
      environment: Variables of the process.
      timeout_s: How long to wait for the others.

    Raises:
      ValueError: A wrong text, or nothing in the environment says who the processes are.
      OSError: The others did not come.
    """
    if not text:
        return
    place = parse(text)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if place is None and all(name in environment for name in names):
        place = parse(",".join(environment[name] for name in names))
    try:
        jax.distributed.initialize(
            None if place is None else place.address, None if place is None else place.count,
            None if place is None else place.index, initialization_timeout=timeout_s,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
        )
    except ValueError as error:
        raise ValueError(
            f"nothing here says which processes belong together ({error}); set {', '.join(names)}, "
            "or name HOST:PORT,COUNT,INDEX."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise OSError(
            f"the other processes did not join within {timeout_s} s ({_first_line(error)}); start "
            "all of them with the same address and count, and look at the log of process 0."
        ) from error


def several() -> bool:
    """Whether other processes take part."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes for all."""
    return jax.process_index() == 0


def gather(value: Any) -> np.ndarray:
    """A global array on the host of every process; all of them must ask for it."""
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
        return np.asarray(value)
    if not value.is_fully_replicated:
        assert isinstance(value.sharding, NamedSharding)
        whole = NamedSharding(value.sharding.mesh, PartitionSpec())
        value = jax.jit(lambda x: x, out_shardings=whole)(value)
    return np.asarray(value.addressable_data(0))


def of_first(here: float) -> float:
    """The number that process 0 has; all of them must ask. The device is waited for."""
    if not several():
        return here
    return float(multihost_utils.broadcast_one_to_all(np.asarray(here, np.float32)))


def wait(name: str) -> None:
    """Returns when all processes have come to the place of this name."""
    if several():
        multihost_utils.sync_global_devices(name)


def asked_to_stop(step: int) -> bool:
    """Whether a process was asked to terminate; true at the same step in all of them."""
    return several() and multihost_utils.reached_preemption_sync_point(step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """The samples of a batch that the devices of this process work on.

    Attributes:
      total: Samples of the whole batch.
      here: Indices of those that are needed here, rising.
    """

    total: int
    here: tuple[int, ...]


def rows(mesh: Mesh, batch: int) -> Rows:
    """Which samples of a batch this process has to read; `placing.batch` splits them so."""
    spec = rules.spec(mesh.shape, (batch,), (axes.BATCH,))
    places = NamedSharding(mesh, spec).addressable_devices_indices_map((batch,))
    slices = [index[0] for index in places.values() if index is not None]
    found = {row for one in slices for row in range(*one.indices(batch))}
    return Rows(total=batch, here=tuple(sorted(found)))


def explained(work: Callable[[], Any], last: Callable[[], Any]) -> Any:
    """Runs `work`; if another process fails meanwhile, the error says so.

    Args:
      work: What is run.
      last: Gives the step of the last checkpoint, or None.

    Raises:
      OSError: Another process ended or cannot be reached.
    """
    try:
        return work()
    except jax.errors.JaxRuntimeError as error:
        if not several():
            raise
        raise OSError(
            f"process {jax.process_index()} lost another process of this run "
            f"({_first_line(error)}); start all of them again, they go on from the last "
            f"checkpoint, step {last()}."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
