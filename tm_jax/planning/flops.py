"""Floating-point operations of a traced program: products and convolutions, loops in full.

The compiler's own count takes every loop once and counts what the backend made of the program;
this one is of the mathematics, the same for every backend.
"""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from jax.extend import core


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of a program on all devices together.

    Attributes:
      total: All that are run.
      once: With one pass of every loop, as the compiler counts.
      recomputed: Those of the total that repeat the forward pass (rematerialisation).
    """

    total: float = 0.0
    once: float = 0.0
    recomputed: float = 0.0

    @property
    def model(self) -> float:
        """What the mathematics needs, recomputation apart."""
        return self.total - self.recomputed

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            total=self.total + other.total, once=self.once + other.once,
            recomputed=self.recomputed + other.recomputed,
        )

    def times(self, passes: float) -> "Flops":
        """Those of a loop of so many passes."""
        return Flops(
            total=self.total * passes, once=self.once, recomputed=self.recomputed * passes
        )


def count(jaxpr: Any, trips: float = 1.0) -> Flops:
    """Operations of a jaxpr.

    Args:
      jaxpr: `jax.stages.Traced.jaxpr`, or any other.
      trips: Passes of a `while` loop, whose number is not known before it runs.
    """
    found = Flops()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        found += _equation(equation, trips)
    return found


def _equation(equation: Any, trips: float) -> Flops:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        number = _dot(equation)
        return Flops(total=number, once=number)
    if name == "conv_general_dilated":
        number = _convolution(equation)
        return Flops(total=number, once=number)
    inner = [count(jaxpr, trips) for jaxpr in _inner(params)]
    if name == "cond":
        return max(inner, key=lambda flops: flops.total)
    found = sum(inner, Flops())
    if name == "pallas_call":  # One jaxpr for every place of the grid.
        return found.times(math.prod(params["grid_mapping"].grid))
    if name == "scan":
        return found.times(params["length"])
    if name == "while":
        return found.times(trips)
    if name in ("checkpoint", "remat2") and params.get("differentiated"):
        # The forward pass once more, then the backward pass, which is twice as much.
        return dataclasses.replace(found, recomputed=found.total / 3)
    return found


def _inner(params: dict) -> Iterator[Any]:
    """Jaxprs among the parameters of an equation."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, (core.Jaxpr, core.ClosedJaxpr)):
                yield one


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
