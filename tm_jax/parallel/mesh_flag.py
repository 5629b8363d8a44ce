"""Reads the meshes that launchers are given, such as `--mesh=fsdp=8,seq=2`."""

import itertools
import math

from tm_jax.parallel import rules

_EXAMPLE = "fsdp=8,seq=2"
_PROPOSALS = 3


def parse(text: str, devices: int) -> dict[str, int]:
    """Sizes of all mesh axes, for `rules.make_mesh(**parse(...))`.

    Args:
      text: Sizes as "axis=number", parted by commas; may be empty. Axes that are not named
        have size 1, but `data` takes what is left.
      devices: Number of devices to share out.

    Returns:
      Size of every axis of `rules.MESH_AXES`, in that order; their product is `devices`.

    Raises:
      ValueError: Not of that form, an axis that does not exist or is named twice, a size that
        is no positive number, or sizes that do not fit the devices; the message says what
        would be right.
    """
    found = sizes(text)
    _check(found, text, devices)
    found.setdefault("data", devices // math.prod(found.values()))
    return {axis: found.get(axis, 1) for axis in rules.MESH_AXES}


def sizes(text: str) -> dict[str, int]:
    """Sizes of the axes that a text names, whatever devices there are; see `parse`."""
    found: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        axis, size = _item(item, text)
        if axis in found:
            raise ValueError(f"--mesh={text}: axis {axis} is named twice; name it once.")
        found[axis] = size
    return found


def _item(item: str, text: str) -> tuple[str, int]:
    """Axis and size of one "axis=number"."""
    axis, equals, size = (part.strip() for part in item.partition("="))
    if not equals:
        raise ValueError(
            f"--mesh={text}: expected axis=number, got {item!r}; for example --mesh={_EXAMPLE}."
        )
    if axis not in rules.MESH_AXES:
        raise ValueError(
            f"--mesh={text}: unknown axis {axis!r}; choose from {', '.join(rules.MESH_AXES)}."
        )
    if not (size.isascii() and size.isdigit() and int(size)):
        raise ValueError(
            f"--mesh={text}: the size of {axis} must be a whole number from 1, got {size!r}."
        )
    return axis, int(size)


def _check(sizes: dict[str, int], text: str, devices: int):
    """Refuses sizes that do not fit the devices, and says which would."""
    product = math.prod(sizes.values())
    if product == devices or ("data" not in sizes and devices % product == 0):
        return
    if "data" in sizes:
        trouble = f"needs exactly {product} devices, there {_are(devices)}"
    else:
        trouble = f"needs {product} devices or a multiple, there {_are(devices)}"
    fitting = " or ".join(f"--mesh={proposal}" for proposal in _fitting(sizes, devices))
    raise ValueError(f"--mesh={text}: {trouble}; {fitting} would fit.")


def _are(devices: int) -> str:
    return "is 1" if devices == 1 else f"are {devices}"


def _fitting(sizes: dict[str, int], devices: int) -> list[str]:
    """The sizes of the same axes that fit and are nearest to what was asked for."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]

    def fits(candidate):
        product = math.prod(candidate)
        return product == devices if "data" in sizes else devices % product == 0

    def distance(candidate):
        pairs = list(zip(candidate, sizes.values()))
        # Few axes that change, then by small factors.
        return sum(a != b for a, b in pairs), sum(abs(math.log(a / b)) for a, b in pairs)

    found = sorted(filter(fits, itertools.product(divisors, repeat=len(sizes))), key=distance)
    return [
        ",".join(f"{axis}={size}" for axis, size in zip(sizes, candidate))
        for candidate in found[:_PROPOSALS]
    ]
