"""A plan: what one device holds, computes and sends, how long that takes, and whether it fits."""

import dataclasses
from typing import Any

from tm_jax.configs import presets
from tm_jax.planning import chips
from tm_jax.planning import measure
from tm_jax.planning import roofline

COMPILED = "compiled for the topology by XLA:TPU"
SIMULATED = (
    "simulated CPU devices and arithmetic: collectives as XLA partitions them, temporaries as its "
    "CPU backend places them (products in float32, so rather too many)"
)

ARITHMETIC = (
    "arithmetic, nothing compiled: what is kept and FLOPs exactly, activations estimated, "
    "collectives left out (so the time is without the network)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is planned.

    Attributes:
      preset: What is trained or streamed.
      stage: One of `work.STAGES`.
      settings: Settings of the stage.
      topology: Devices.
      mesh: Sizes of all mesh axes.
      depths: Layers to compile, one or two numbers; empty: all.
      simulate: Whether CPU devices stand for the topology's.
      quick: Whether the compiler may take less trouble.
      arithmetic: Whether nothing is compiled.
    """

    preset: presets.Preset
    stage: str
    settings: Any
    topology: chips.Topology
    mesh: dict[str, int]
    depths: tuple[int, ...] = ()
    simulate: bool = False
    quick: bool = False
    arithmetic: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a case.

    Attributes:
      case: What was planned.
      stage: What was measured.
      times: Roofline of every program, in their order.
    """

    case: Case
    stage: measure.Stage
    times: tuple[roofline.Time, ...]

    @property
    def memory(self) -> dict[str, float]:
        """Bytes of one device by kind; temporaries are those of the largest program."""
        most = max(program.temporaries for program in self.stage.programs)
        inside = dict(self.stage.inside)
        rest = max(0.0, most - sum(inside.values()))
        return {**self.stage.trees, **inside, "activations and temporaries": rest}

    @property
    def total_gib(self) -> float:
        """What one device needs."""
        return sum(self.memory.values()) / chips.GIB

    @property
    def fits(self) -> bool:
        """Whether a device has as much."""
        return self.total_gib <= self.case.topology.chip.memory_gib

    @property
    def verdict(self) -> str:
        """Whether it fits, in a line."""
        what = f"{self.total_gib:.1f} of {self.case.topology.chip.memory_gib:g} GiB"
        return f"fits: {what}" if self.fits else f"does not fit: {what}"

    @property
    def least_s(self) -> float:
        """Seconds of a unit of work if all kinds of work overlap: the roofline."""
        return sum(p.times * t.least_s for p, t in zip(self.stage.programs, self.times))

    @property
    def serial_s(self) -> float:
        """Seconds of a unit of work if nothing overlaps."""
        return sum(p.times * t.serial_s for p, t in zip(self.stage.programs, self.times))

    @property
    def model_flops(self) -> float:
        """Operations of a unit on all devices, recomputation apart."""
        return sum(p.times * (p.flops - p.recomputed) for p in self.stage.programs)

    def utilisation(self, seconds: float) -> float:
        """Model FLOPs in `seconds` over what all devices could do at peak."""
        topology = self.case.topology
        return self.model_flops / (seconds * topology.count * topology.chip.tflops * 1e12)


def make(case: Case) -> Plan:
    """Compiles a case and works out its plan; raises what `measure.measure` does."""
    found = measure.measure(
        case.preset, case.stage, case.settings, case.topology, case.mesh, case.depths,
        simulate=case.simulate, quick=case.quick, arithmetic=case.arithmetic,
    )
    times = tuple(
        roofline.time(
            case.topology, p.flops * p.replicated / case.topology.count, p.memory_bytes,
            p.collectives,
        )
        for p in found.programs
    )
    return Plan(case=case, stage=found, times=times)
