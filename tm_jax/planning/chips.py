"""Data sheets of accelerators, and topologies such as `v5p:4x4x4` or `h100:8`."""

import dataclasses
import math

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator, by its data sheet.

    Attributes:
      name: Name in a topology.
      platform: "tpu" or "gpu".
      memory_gib: Memory in GiB, as a program can address it.
      tflops: Peak TFLOP/s of dense bfloat16 products.
      memory_gbps: Bandwidth of the memory, GB/s.
      link_gbps: What one chip sends at most to chips of its group at a time, GB/s: half of
        the bidirectional figure of the data sheets.
      group: Chips that those links join; 0: a whole slice.
      network_gbps: What one chip sends at most to other groups, GB/s; 0 where the links join all.
      dimensions: Numbers that a topology of it has.
      source: Where the figures are from.
    """

    name: str
    platform: str
    memory_gib: float
    tflops: float
    memory_gbps: float
    link_gbps: float
    group: int = 0
    network_gbps: float = 0.0
    dimensions: int = 1
    source: str


_TPU = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"

# TPUs: "Bidirectional inter-chip interconnect (ICI) bandwidth per chip", halved. GPUs: memory as
# the driver reports it, NVLink halved, and one network card a GPU as in the DGX of the kind.
CHIPS = {chip.name: chip for chip in (
    Chip(name="v5e", platform="tpu", memory_gib=16, tflops=197, memory_gbps=819, link_gbps=200,
         dimensions=2, source=f"{_TPU}v5e"),
    Chip(name="v5p", platform="tpu", memory_gib=95, tflops=459, memory_gbps=2765, link_gbps=600,
         dimensions=3, source=f"{_TPU}v5p"),
    Chip(name="v6e", platform="tpu", memory_gib=32, tflops=918, memory_gbps=1638, link_gbps=400,
         dimensions=2, source=f"{_TPU}v6e"),
    Chip(name="a100", platform="gpu", memory_gib=79.2, tflops=312, memory_gbps=2039,
         link_gbps=300, group=8, network_gbps=25, source=f"{_NVIDIA}a100/"),
    Chip(name="h100", platform="gpu", memory_gib=79.6, tflops=989, memory_gbps=3350,
         link_gbps=450, group=8, network_gbps=50, source=f"{_NVIDIA}h100/"),
    Chip(name="h200", platform="gpu", memory_gib=140.4, tflops=989, memory_gbps=4800,
         link_gbps=450, group=8, network_gbps=50, source=f"{_NVIDIA}h200/"),
)}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Some chips of one kind and how they are joined.

    Attributes:
      chip: Their kind.
      shape: Their number along every dimension.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """The text that it is parsed from."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def bandwidth(self, members: int, together: int) -> float:
        """Bytes a second that one chip sends at most in a collective.

        Args:
          members: Chips that take part.
          together: How many of them are in one group of links. What crosses groups is shared by
            the network cards of those.
        """
        chip = self.chip
        if not chip.group or members <= together:
            return chip.link_gbps * 1e9
        return min(chip.link_gbps, chip.network_gbps * together) * 1e9


def parse(text: str) -> Topology:
    """The topology of a text.

    Raises:
      ValueError: Not of that form, or an unknown chip; the message says what would be right.
    """
    name, colon, sizes = text.partition(":")
    if name not in CHIPS:
        raise ValueError(
            f"--topology={text}: unknown chip {name!r}; choose from {', '.join(CHIPS)}, "
            "for example v5p:4x4x4, v6e:4x4 or h100:8."
        )
    chip = CHIPS[name]
    parts = sizes.split("x")
    if not colon or not all(p.isascii() and p.isdigit() and int(p) for p in parts):
        example = f"{name}:{'x'.join(['4'] * chip.dimensions) if chip.platform == 'tpu' else 8}"
        raise ValueError(f"--topology={text}: expected {name} and sizes, such as {example}.")
    if len(parts) != chip.dimensions:
        raise ValueError(
            f"--topology={text}: {name} has {chip.dimensions} dimension"
            f"{'s' * (chip.dimensions > 1)}, got {len(parts)} sizes."
        )
    return Topology(chip=chip, shape=tuple(int(p) for p in parts))
