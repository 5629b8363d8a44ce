"""Collectives of a compiled program, read from its HLO text: kinds, groups and bytes sent."""

from collections.abc import Iterator
import dataclasses
import math
import re

import numpy as np

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast",
)

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "f8e4m3fn": 8, "f8e5m2": 8,
}  # fmt: skip
_ARRAY = re.compile(rf"\b({'|'.join(_BITS)})\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# The shape may be a tuple and holds layouts, so it ends where " opcode(" begins.
_LINE = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?[\]})]) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))? \{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """Collectives of one kind over groups of one form.

    Attributes:
      kind: One of `KINDS`.
      members: Devices that take part in each.
      together: How many of them, at most, are in one group of links.
      count: How many are run.
      wire_bytes: What one device sends in all of them, if they run in rings.
    """

    kind: str
    members: int
    together: int
    count: float
    wire_bytes: float


def parse(text: str, devices: int, group: int = 0, trips: float = 1.0) -> list[Collective]:
    """Collectives of a program, those of loops as often as the loops run.

    Args:
      text: HLO text of the compiled program.
      devices: Devices that run it.
      group: Devices that fast links join, in the order of their numbers; 0: all.
      trips: Passes of a loop whose number the text does not say.

    Returns:
      One entry per kind and form of group, in the order of their names.

    Raises:
      ValueError: The text has no entry.
    """
    found: dict[tuple, list[float]] = {}
    for one in _walk(text, devices, group or devices, trips):
        total = found.setdefault((one.kind, one.members, one.together), [0.0, 0.0])
        total[0] += one.count
        total[1] += one.wire_bytes
    return [
        Collective(kind=kind, members=members, together=together, count=n, wire_bytes=size)
        for (kind, members, together), (n, size) in sorted(found.items())
    ]


def _walk(text: str, devices: int, group: int, trips: float) -> Iterator[Collective]:
    """Every collective of every computation that the entry reaches."""
    bodies, entry = _computations(text)
    if entry is None:
        raise ValueError("the HLO text has no ENTRY computation.")
    todo = [(entry, 1.0)]
    while todo:
        name, times = todo.pop()
        for shape, opcode, rest in bodies.get(name, ()):
            kind = opcode.removesuffix("-start")
            if kind in KINDS:
                # On TPU a reduce-scatter is a fusion of an all-reduce and a slice.
                scattered = "all-reduce-scatter" in name and kind == "all-reduce"
                yield _collective(kind, scattered, shape, opcode, rest, devices, group, times)
                continue
            known = _TRIPS.search(rest)
            passes = (float(known[1]) if known else trips) if opcode == "while" else 1.0
            called = [match[1] for match in _CALLED.findall(rest)]
            for match in _BRANCHES.findall(rest):
                called += [branch.strip().lstrip("%") for branch in match.split(",")]
            todo += [(other, times * passes) for other in called if other in bodies]


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str, str]]], str | None]:
    """(shape, opcode, rest) of every instruction by computation, and the entry's name."""
    bodies: dict[str, list[tuple[str, str, str]]] = {}
    entry, current = None, None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
            continue
        found = _LINE.match(line)
        if found and current is not None:
            current.append((found[1], found[2], found[3]))
    return bodies, entry


def _collective(
    kind: str, scattered: bool, shape: str, opcode: str, rest: str, devices: int, group: int,
    times: float,
) -> Collective:
    """One collective; sizes in rings as in the NCCL tests' notes on bus bandwidth."""
    members, together = _group(kind, rest, devices, group)
    size, n = _bytes(shape), max(members, 1)
    if opcode.endswith("-start"):
        # (operand, result): the result of a gathering is n times the operand.
        if kind == "all-gather":
            size = size * n / (n + 1)
        elif kind in ("collective-permute", "all-to-all", "reduce-scatter"):
            size = size / (1 + n) if kind == "reduce-scatter" else size / 2
    share = (n - 1) / n
    sent = {
        "all-gather": size * share, "all-reduce": 2 * size * share, "all-to-all": size * share,
        "reduce-scatter": size * (n - 1), "collective-permute": size, "collective-broadcast": size,
    }[kind]  # fmt: skip
    if scattered:
        kind, sent = "reduce-scatter", sent / 2
    if members == 1:
        sent = 0.0
    return Collective(
        kind=kind, members=members, together=together, count=times, wire_bytes=times * sent
    )


def _bytes(shape: str) -> float:
    """Bytes of all arrays of a shape; scalars, which are handles of asynchronous starts, apart."""
    return sum(
        _BITS[dtype] / 8 * math.prod(int(n) for n in sizes.split(","))
        for dtype, sizes in _ARRAY.findall(shape) if sizes
    ) or sum(_BITS[dtype] / 8 for dtype, _ in _ARRAY.findall(shape))


def _group(kind: str, rest: str, devices: int, group: int) -> tuple[int, int]:
    """How many devices take part in each, and how many of them share links at most."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{\{(.*?)\}\}", rest)
        moves = [tuple(map(int, p.split(","))) for p in pairs[1].split("},{")] if pairs else []
        inside = all(a // group == b // group for a, b in moves)
        return 2, 2 if inside else 1
    ids = _members(rest, devices)
    _, counts = np.unique(ids // group, return_counts=True)
    return len(ids), int(counts.max())


def _members(rest: str, devices: int) -> np.ndarray:
    """Devices of the first group."""
    # [4,2]<=[2,4]T(1,0): the devices as an array of 2 x 4, transposed, in rows of 2.
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        order = np.arange(devices).reshape(_numbers(iota[3]))
        if iota[4]:
            order = order.transpose(_numbers(iota[4]))
        return order.reshape(int(iota[1]), int(iota[2]))[0]
    named = _NAMED.search(rest)
    if named:
        mesh, shape, permutation, names = named.groups()
        return _along(mesh, shape, permutation, names, devices)
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    return np.array(_numbers(listed[1])) if listed else np.arange(devices)


def _along(
    mesh: str, shape: str | None, permutation: str | None, names: str, devices: int
) -> np.ndarray:
    """Devices along some axes of a mesh: of 'a'=4,'b'=2 and 'b', those that differ in b only.

    A part of an axis is written 'a':(2)2, a factor of 2 after one of 2; the devices may be
    counted in another order, ([2,4]T(1,0)).
    """
    order = np.arange(devices)
    if shape is not None and permutation is not None:
        order = order.reshape(_numbers(shape)).transpose(_numbers(permutation))
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    factors = {name: [size] for name, size in sizes.items()}
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", names)
    for name, before, size in wanted:
        if size:
            factors[name] = [int(before), int(size), sizes[name] // (int(before) * int(size))]
    places = [(name, i) for name in sizes for i in range(len(factors[name]))]
    order = order.reshape([factors[name][i] for name, i in places])
    chosen = {(name, 1 if size else 0) for name, _, size in wanted}
    index = tuple(slice(None) if place in chosen else 0 for place in places)
    return order[index].reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
