"""Strict tables between the tensors of a published checkpoint and the parameters of a model.

A table is a list of rows `(source, target, kind)`: the name of a published tensor, the path
of our parameter ("a/b/kernel") and how one becomes the other. The kind is a name in `KINDS`
or a `Kind`. Where a tensor is fused or split, source or target is a tuple of names: the
kind's functions take and return that many arrays.

Every source tensor is used once, every parameter is filled, every shape is checked; the
names and shapes of a file are enough to find a mistake, so nothing is read before they fit.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import fnmatch
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tm_jax.core import trees

Names = str | tuple[str, ...]
_LISTED = 6  # Names that a message lists before it counts the rest.


@dataclasses.dataclass(frozen=True)
class Kind:
    """How published tensors become parameters, and the exact way back.

    Attributes:
      forward: Published arrays to our array, or a tuple of them if a row has several targets.
      backward: Its inverse: our arrays to the published one, or a tuple of them.
    """

    forward: Callable
    backward: Callable


def permute(*axes: int) -> Kind:
    """Axes of the published tensor in our order: `ours = published.transpose(axes)`."""
    back = tuple(int(i) for i in np.argsort(axes))
    return Kind(lambda x: x.transpose(axes), lambda x: x.transpose(back))


def vector(before: int = 0, after: int = 0) -> Kind:
    """[1, ..., *shape, 1, ...] without the singleton axes in front and behind."""

    def forward(x):
        shape = x.shape[before : x.ndim - after]
        if math.prod(shape) != x.size:
            raise ValueError(f"expected singleton axes around the vector, got {x.shape}.")
        return x.reshape(shape)

    return Kind(forward, lambda x: x.reshape((1,) * before + x.shape + (1,) * after))


def pointwise(space: int) -> Kind:
    """Kernel of a convolution of size one, [O, I, 1, ...], to a matrix [I, O]."""
    squeeze = vector(0, space)
    return Kind(lambda x: squeeze.forward(x).T, lambda x: squeeze.backward(x.T))


def patches(*window: int) -> Kind:
    """Patch embedding [D, C, *window] to a matrix [C * prod(window), D], channel slowest."""
    size = math.prod(window)
    return Kind(
        lambda x: x.reshape(x.shape[0], -1).T,
        lambda x: x.T.reshape(x.shape[1], x.shape[0] // size, *window),
    )


def fused(parts: int, kind: Kind, axis: int = 0) -> Kind:
    """One published tensor that holds `parts` equal ones along `axis`: one source, many targets."""
    return Kind(
        lambda x: tuple(kind.forward(part) for part in np.split(x, parts, axis)),
        lambda *xs: np.concatenate([kind.backward(x) for x in xs], axis),
    )


# Published layouts are PyTorch's: [out, in] matrices, channels before space.
KINDS: dict[str, Kind] = {
    "copy": Kind(lambda x: x, lambda x: x),
    "matrix": permute(1, 0),  # [out, in] to [in, out]
    "conv1d": permute(2, 1, 0),  # OIK to KIO
    "conv2d": permute(2, 3, 1, 0),  # OIHW to HWIO
    "conv3d": permute(2, 3, 4, 1, 0),  # OITHW to THWIO
    "pointwise1d": pointwise(1),  # [O, I, 1] to [I, O]
    "pointwise2d": pointwise(2),  # [O, I, 1, 1] to [I, O]
    "pointwise3d": pointwise(3),  # [O, I, 1, 1, 1] to [I, O]
    "squeeze": vector(before=1),  # [1, *shape] to [*shape]
    "vector1": vector(after=1),  # [C, 1] to [C]
    "vector2": vector(after=2),  # [C, 1, 1] to [C], norms over pictures
    "vector3": vector(after=3),  # [C, 1, 1, 1] to [C], norms over clips
    "qkv": fused(3, permute(1, 0)),  # [3 * out, in] to three [in, out]
    "qkv_bias": fused(3, permute(0)),  # [3 * out] to three [out]
    "patches": patches(1, 2, 2),  # Wan's patch embedding
}

Row = tuple[Names, Names, str | Kind]


def kind_of(row: Row) -> Kind:
    """The kind of a row, by name or as given."""
    kind = row[2]
    return KINDS[kind] if isinstance(kind, str) else kind


def names(value: Names) -> tuple[str, ...]:
    """The names on one side of a row as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def linear(source: str, target: str, bias: bool = True) -> list[Row]:
    """Rows of a torch.nn.Linear and one of our `Dense`."""
    rows: list[Row] = [(f"{source}.weight", f"{target}/kernel", "matrix")]
    return rows + [(f"{source}.bias", f"{target}/bias", "copy")] * bias


def convolution(source: str, target: str, space: int, bias: bool = True) -> list[Row]:
    """Rows of a convolution over `space` axes."""
    rows: list[Row] = [(f"{source}.weight", f"{target}/kernel", f"conv{space}d")]
    return rows + [(f"{source}.bias", f"{target}/bias", "copy")] * bias


def norm(source: str, target: str, bias: bool = True) -> list[Row]:
    """Rows of a norm with a scale and perhaps a bias."""
    rows: list[Row] = [(f"{source}.weight", f"{target}/scale", "copy")]
    return rows + [(f"{source}.bias", f"{target}/bias", "copy")] * bias


def repeat(rows: list[Row], count: int) -> list[Row]:
    """Rows with `*` in their names, once for every number below `count`."""

    def fill(value, i):
        filled = tuple(name.replace("*", str(i)) for name in names(value))
        return filled[0] if isinstance(value, str) else filled

    return [(fill(s, i), fill(t, i), kind) for i in range(count) for s, t, kind in rows]


def read(
    source: Mapping, rows: list[Row], shapes: Any, *, own: Callable[[str], bool] | None = None,
    ignore: tuple[str, ...] = (), dtype: npt.DTypeLike | None = None
) -> dict:
    """Fills a parameter tree from published tensors.

    Args:
      source: Tensors by name: arrays, or anything with `shape` that NumPy can turn into one
        (`sources.Source` reads each tensor only when it is asked for).
      rows: Table.
      shapes: Tree of shapes that the model has, without boxes.
      own: Whether a parameter has no published counterpart; such ones are left out.
      ignore: Patterns of published tensors that carry nothing, such as position counters.
      dtype: Dtype of the result; None keeps the source's.

    Returns:
      Tree of host arrays.

    Raises:
      ValueError: A missing or unknown tensor or parameter, or a shape that does not fit.
    """
    check(source, rows, shapes, own=own, ignore=ignore)
    return trees.unflatten(dict(stream(source, rows, dtype=dtype)))


def write(params: Any, rows: list[Row], *, own: Callable[[str], bool] | None = None) -> dict:
    """Published tensors by name from a parameter tree, the exact inverse of `read`.

    Args:
      params: Tree of arrays.
      rows: Table.
      own: Whether a parameter has no published counterpart; such ones are left out.

    Returns:
      Host arrays by published name.

    Raises:
      ValueError: The tree lacks a parameter of the table, or has one that is not in it.
    """
    flat = trees.flatten(params)
    check_parameters(rows, flat, own)
    return dict(stream_back(flat, rows))


def stream(
    source: Mapping, rows: list[Row], dtype: npt.DTypeLike | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameters one by one, (path, host array); assumes that `check` has passed."""
    for row in rows:
        arrays = [np.asarray(source[name]) for name in names(row[0])]
        results = kind_of(row).forward(*arrays)
        results = (results,) if isinstance(row[1], str) else results
        for target, value in zip(names(row[1]), results, strict=True):
            value = np.asarray(value)
            yield target, value if dtype is None else value.astype(dtype, copy=False)


def stream_back(
    flat: Mapping, rows: list[Row], dtype: npt.DTypeLike | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Published tensors one by one, (name, host array), from our flat parameters."""
    for row in rows:
        arrays = [np.asarray(flat[name]) for name in names(row[1])]
        results = kind_of(row).backward(*arrays)
        results = (results,) if isinstance(row[0], str) else results
        for name, value in zip(names(row[0]), results, strict=True):
            value = np.asarray(value)
            yield name, value if dtype is None else value.astype(dtype, copy=False)


def source_shapes(row: Row, shapes: Mapping) -> tuple[tuple[int, ...], ...]:
    """Shapes that the published tensors of a row must have, given ours by path."""
    # An array of one number seen at every place: kinds move axes without touching data.
    zero = np.zeros((), np.float32)
    ours = [np.broadcast_to(zero, tuple(shapes[name].shape)) for name in names(row[1])]
    results = kind_of(row).backward(*ours)
    results = (results,) if isinstance(row[0], str) else results
    return tuple(tuple(x.shape) for x in results)


def check(
    source: Mapping, rows: list[Row], shapes: Any, *, own: Callable[[str], bool] | None = None,
    ignore: tuple[str, ...] = ()
) -> None:
    """Whether names and shapes of a source fit table and model; reads no data.

    Raises:
      ValueError: They do not; the message names file, tensor, expected and got.
    """
    flat = trees.flatten(shapes)
    check_parameters(rows, flat, own)
    wanted = [name for row in rows for name in names(row[0])]
    here = {n for n in source if not any(fnmatch.fnmatchcase(n, p) for p in ignore)}
    missing, extra = [n for n in wanted if n not in here], sorted(here - set(wanted))
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing: {listed(missing)}")
    if extra:
        problems.append(f"{len(extra)} tensors are left over: {listed(extra)}")
    if problems:
        raise ValueError(
            f"{origin(source)}: does not fit this model; {'; '.join(problems)}. Is it the "
            "right part, layout and size?"
        )
    for row in rows:
        for name, expected in zip(names(row[0]), source_shapes(row, flat), strict=True):
            got = tuple(source[name].shape)
            if got != expected:
                raise ValueError(
                    f"{origin(source, name)}: tensor {name} must have shape {expected} "
                    f"for {' and '.join(names(row[1]))}, got {got}."
                )


def check_parameters(rows: list[Row], flat: Mapping, own: Callable[[str], bool] | None) -> None:
    """Whether a table fills every parameter of a model once.

    Raises:
      ValueError: A name stands twice, or table and parameters differ.
    """
    sides = {"source": [row[0] for row in rows], "target": [row[1] for row in rows]}
    for side, column in sides.items():
        seen = [name for value in column for name in names(value)]
        if len(seen) != len(set(seen)):
            double = [name for name, n in collections.Counter(seen).items() if n > 1]
            raise ValueError(f"the table names the {side} {listed(double)} twice.")
    targets = {name for row in rows for name in names(row[1])}
    unfilled = sorted(n for n in flat if n not in targets and not (own and own(n)))
    unknown = sorted(targets - set(flat))
    if unfilled or unknown:
        raise ValueError(
            f"table and model differ: nothing fills {listed(unfilled)}; the model lacks "
            f"{listed(unknown)}."
        )


def listed(items: Iterable[str]) -> str:
    """A few names in words, the rest as a number."""
    items = list(items)
    if not items:
        return "nothing"
    rest = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def origin(source: Mapping, name: str | None = None) -> str:
    """The file that a tensor (or all of them) comes from, for messages."""
    if hasattr(source, "origin"):
        return source.origin(name)
    return "checkpoint"
