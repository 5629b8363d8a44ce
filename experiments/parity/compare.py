"""How two arrays are compared, and one row of the table of comparisons."""

import dataclasses
import functools

import jax
import numpy as np

# The models compared are tiny: optimising their machine code would take ten times longer
# than running it. XLA's own passes over the program stay.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison with a reference.

    Attributes:
      part: What was compared.
      config: Its sizes and inputs, in words.
      dtype: Dtype of the computation.
      max_abs: Largest absolute difference.
      max_rel: The same over the reference's largest absolute value.
      mean_rel: Mean absolute difference over the reference's mean absolute value.
    """

    part: str
    config: str
    dtype: str
    max_abs: float
    max_rel: float
    mean_rel: float


def row(part: str, config: str, dtype: str, actual, expected) -> Row:
    """Compares two arrays, or two dictionaries of arrays.

    Of dictionaries the largest errors of any entry count, each relative to its own entry: a
    small gradient must be right too.

    Raises:
      ValueError: Shapes or names differ, or a number is not finite.
    """
    if not isinstance(expected, dict):
        actual, expected = {"": actual}, {"": expected}
    if actual.keys() != expected.keys():
        raise ValueError(f"{part}: different names {sorted(actual.keys() ^ expected.keys())}.")
    found = [_errors(f"{part} {n}", actual[n], expected[n]) for n in expected]
    largest = [max(values) for values in zip(*found, strict=True)]
    return Row(
        part=part, config=config, dtype=dtype, max_abs=largest[0], max_rel=largest[1],
        mean_rel=largest[2],
    )


def _errors(name, actual, expected) -> tuple[float, float, float]:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise ValueError(f"{name}: expected shape {expected.shape}, got {actual.shape}.")
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        raise ValueError(f"{name}: not finite.")
    difference, scale = np.abs(actual - expected), np.abs(expected)
    if not scale.any():
        raise ValueError(f"{name}: the reference is zero everywhere; nothing is compared.")
    return (
        float(difference.max()), float(difference.max() / scale.max()),
        float(difference.mean() / scale.mean()),
    )
