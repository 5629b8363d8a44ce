"""How long a program takes at best, from the data sheet of the chip."""

from collections.abc import Iterable
import dataclasses

from tm_jax.planning import chips
from tm_jax.planning import collectives as collectives_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Time:
    """Seconds that one device needs for each kind of work.

    Attributes:
      compute_s: Products at peak speed.
      memory_s: Bytes from and to the memory.
      network_s: Bytes that it sends.
    """

    compute_s: float = 0.0
    memory_s: float = 0.0
    network_s: float = 0.0

    @property
    def least_s(self) -> float:
        """All kinds at the same time: the roofline, which nothing can beat."""
        return max(self.compute_s, self.memory_s, self.network_s)

    @property
    def serial_s(self) -> float:
        """One kind after another: nothing overlaps."""
        return self.compute_s + self.memory_s + self.network_s

    @property
    def bound(self) -> str:
        """The kind of work that takes longest."""
        return max(
            ("compute", self.compute_s), ("memory", self.memory_s), ("network", self.network_s),
            key=lambda item: item[1],
        )[0]


def time(
    topology: chips.Topology, flops: float, memory_bytes: float,
    collectives: Iterable[collectives_lib.Collective],
) -> Time:
    """The time of a program on one device.

    Args:
      topology: The devices.
      flops: Operations of one device.
      memory_bytes: Bytes that one device reads and writes.
      collectives: What it sends.
    """
    chip = topology.chip
    return Time(
        compute_s=flops / (chip.tflops * 1e12), memory_s=memory_bytes / (chip.memory_gbps * 1e9),
        network_s=sum(
            one.wire_bytes / topology.bandwidth(one.members, one.together) for one in collectives
        ),
    )
