"""Compiles the programs of a stage for a topology and reads what they need, layer by layer.

Depth: the layers of a transformer are alike, and every quantity here is a constant plus a
part for each. A deep model is compiled with few layers, twice, and its figures follow on the
line through both.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import time
from typing import Any

from absl import logging
import jax
from jax.sharding import Mesh

from tm_jax.configs import presets
from tm_jax.core import target
from tm_jax.parallel import rules
from tm_jax.planning import activations
from tm_jax.planning import chips
from tm_jax.planning import collectives
from tm_jax.planning import flops
from tm_jax.planning import work as work_lib

# Of the compiler of TPUs: less search for a faster or smaller program.
_QUICK = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}
# Of that of CPUs, whose machine code is never run.
_SIMULATED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What one program needs; figures of one device, FLOPs apart.

    Attributes:
      name: Name of the program.
      times: How often it runs in a unit of work.
      temporaries: Bytes beside its arguments, results that take no argument's place among them.
      flops: Operations on all devices.
      recomputed: Those of them that repeat the forward pass.
      replicated: How many times more a device computes than its share.
      memory_bytes: Bytes that it reads and writes.
      collectives: What it sends.
    """

    name: str
    times: int
    temporaries: float
    flops: float
    recomputed: float
    replicated: float
    memory_bytes: float
    collectives: tuple[collectives.Collective, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage needs on one device.

    Attributes:
      unit: Name of the unit of work.
      frames: Frames of video in a unit.
      tokens: Tokens in a unit.
      trees: Bytes of what stays there, by kind.
      inside: Bytes among the temporaries, by kind.
      programs: Its programs.
      depths: Layers that were compiled; one number: the model itself.
      seconds: Time that it took to trace and compile.
      points: Bytes of temporaries of the largest program, by layers that were compiled.
    """

    unit: str
    frames: int
    tokens: int
    trees: dict[str, float]
    inside: dict[str, float]
    programs: tuple[Measured, ...]
    depths: tuple[int, ...]
    seconds: float
    points: dict[int, float] = dataclasses.field(default_factory=dict)


def devices(topology: chips.Topology, simulate: bool) -> list:
    """Devices of a topology: described ones, or simulated ones of this process.

    Args:
      topology: The topology.
      simulate: Whether CPU devices stand for it. There must be enough of them
        (`jax_num_cpu_devices`).

    Raises:
      ImportError: libtpu is not installed.
      ValueError: There is no such slice, or not enough simulated devices.
    """
    if simulate:
        found = jax.devices("cpu")
        if len(found) < topology.count:
            raise ValueError(
                f"{topology.name} needs {topology.count} simulated devices, there are "
                f"{len(found)}: set jax_num_cpu_devices before JAX starts."
            )
        return found[: topology.count]
    from jax.experimental import topologies
    import libtpu  # noqa: F401  Says what is missing.

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology={topology.name}: {error}") from error
    return list(described.devices)


def measure(
    preset: presets.Preset, stage: str, settings: Any, topology: chips.Topology,
    mesh_sizes: dict[str, int], depths: tuple[int, ...] = (), *, simulate: bool = False,
    quick: bool = False, arithmetic: bool = False,
) -> Stage:
    """Compiles a stage and reads its needs.

    Args:
      preset: What is trained or streamed.
      stage: One of `work.STAGES`.
      settings: Settings of the stage.
      topology: Devices.
      mesh_sizes: Sizes of all mesh axes.
      depths: One or two numbers of layers to compile; empty: all layers of the model.
      simulate: Whether CPU devices stand for the topology's.
      quick: Whether the compiler of TPUs may take less trouble.
      arithmetic: Whether nothing is compiled: programs are traced and counted, activations
        estimated, collectives left out.

    Raises:
      ValueError: What `devices` or `work.make` refuse, or a program that the compiler refuses.
    """
    began = time.monotonic()
    mesh = rules.make_mesh(devices(topology, simulate), **mesh_sizes)
    layers = preset.dit.num_layers
    depths = tuple(sorted({min(depth, layers) for depth in depths or (layers,)}))
    found = [
        _at_depth(preset, stage, settings, topology, mesh, depth, simulate, quick, arithmetic)
        for depth in depths
    ]
    result = found[0] if len(found) == 1 else extrapolate(found[-2], found[-1], layers)
    return dataclasses.replace(result, seconds=time.monotonic() - began)


def _at_depth(
    preset: presets.Preset, stage: str, settings: Any, topology: chips.Topology, mesh: Mesh,
    depth: int, simulate: bool, quick: bool, arithmetic: bool,
) -> Stage:
    """A stage with so many layers."""
    preset = dataclasses.replace(preset, dit=dataclasses.replace(preset.dit, num_layers=depth))
    with _tracing(topology):
        work = work_lib.make(preset, stage, settings, mesh)
        programs = []
        for program in work.programs:
            began = time.monotonic()
            if arithmetic:
                estimate = activations.bytes_of(preset, stage, settings, mesh.shape)
                programs.append(_traced(program, work, estimate))
            else:
                programs.append(_program(program, topology, mesh, simulate, quick))
            logging.info(
                "%s, %d layers: %.0f s", program.name, depth, time.monotonic() - began
            )
    return Stage(
        unit=work.unit, frames=work.frames, tokens=work.tokens, inside=dict(work.inside),
        trees={name: work_lib.device_bytes(tree) for name, tree in work.trees.items()},
        programs=tuple(programs), depths=(depth,), seconds=0.0,
        points={depth: max(program.temporaries for program in programs)},
    )


@contextlib.contextmanager
def _tracing(topology: chips.Topology) -> Iterator[None]:
    """Programs written for the chip, whatever this process runs on."""
    with target.tracing_for(topology.chip.platform):
        yield


def _traced(program: work_lib.Program, work: work_lib.Work, estimate: float) -> Measured:
    """What a program needs by arithmetic."""
    counted = flops.count(program.trace().jaxpr, program.trips)
    temporaries = estimate + sum(work.inside.values())
    kept = sum(work_lib.device_bytes(tree) for tree in work.trees.values())
    return Measured(
        name=program.name, times=program.times, temporaries=temporaries, flops=counted.total,
        recomputed=counted.recomputed, replicated=1.0, memory_bytes=2 * (kept + temporaries),
        collectives=(),
    )


def _program(
    program: work_lib.Program, topology: chips.Topology, mesh: Mesh, simulate: bool, quick: bool
) -> Measured:
    traced = program.trace()
    counted = flops.count(traced.jaxpr, program.trips)
    options = _SIMULATED if simulate else _QUICK if quick else {}
    with rules.use(mesh):
        try:
            compiled = traced.lower().compile(options)
        except jax.errors.JaxRuntimeError as error:
            first = str(error).splitlines()[0]
            raise ValueError(
                f"{program.name} does not compile for {topology.name}: {first}"
            ) from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    count = topology.count
    looped = counted.total / counted.once if counted.once else 1.0
    share = counted.once / count
    # The compiler's count holds more than products: a few per cent are no replication.
    replicated = cost.get("flops", share) / share if share and not simulate else 1.0
    return Measured(
        name=program.name, times=program.times,
        temporaries=memory.temp_size_in_bytes
        + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        flops=counted.total, recomputed=counted.recomputed, replicated=max(1.0, replicated),
        memory_bytes=cost.get("bytes accessed", 0.0) * looped,
        collectives=tuple(collectives.parse(
            compiled.as_text(), count, topology.chip.group, program.trips
        )),
    )  # fmt: skip


def extrapolate(low: Stage, high: Stage, layers: int) -> Stage:
    """The stage with so many layers, on the line through two that were compiled."""
    [a], [b] = low.depths, high.depths

    def line(x: float, y: float) -> float:
        return max(0.0, y + (y - x) / (b - a) * (layers - b))

    def table(x: dict[str, float], y: dict[str, float]) -> dict[str, float]:
        return {name: line(x.get(name, 0.0), y.get(name, 0.0)) for name in {**x, **y}}

    programs = tuple(
        dataclasses.replace(
            q, temporaries=line(p.temporaries, q.temporaries), flops=line(p.flops, q.flops),
            recomputed=line(p.recomputed, q.recomputed),
            memory_bytes=line(p.memory_bytes, q.memory_bytes),
            collectives=_lines(p.collectives, q.collectives, line),
        )
        for p, q in zip(low.programs, high.programs, strict=True)
    )
    return dataclasses.replace(
        high, trees=table(low.trees, high.trees), inside=table(low.inside, high.inside),
        programs=programs, depths=(a, b), points={**low.points, **high.points},
    )


def _lines(low: tuple, high: tuple, line: Any) -> tuple[collectives.Collective, ...]:
    """Collectives of one kind and form of group by `line`."""
    def table(found: tuple) -> dict:
        return {(one.kind, one.members, one.together): one for one in found}

    x, y = table(low), table(high)
    result = []
    for key, one in sorted({**x, **y}.items()):
        none = dataclasses.replace(one, count=0.0, wire_bytes=0.0)
        a, b = x.get(key, none), y.get(key, none)
        result.append(dataclasses.replace(
            one, count=line(a.count, b.count), wire_bytes=line(a.wire_bytes, b.wire_bytes)
        ))
    return tuple(result)
