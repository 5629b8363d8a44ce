"""Parameters that carry logical axis names."""

from collections.abc import Callable, Sequence
import typing

import flax.linen as nn
import jax


def named(init: Callable[..., jax.Array], names: Sequence[str | None]) -> Callable[..., jax.Array]:
    """Initializer of a parameter that keeps the names of its logical axes.

    The values are boxed, `nn.LogicallyPartitioned`, in the tree that `Module.init` returns.
    `Module.param` takes them out of the box, so inside a module the result is an array.

    Args:
      init: Function (key, shape, dtype) -> initial values of that shape.
      names: One name an axis, from core/axes.py; None for an axis that stays whole.

    Returns:
      Function of the same arguments, for `Module.param`.
    """
    boxed = nn.with_logical_partitioning(init, tuple(names))
    return typing.cast(Callable[..., jax.Array], boxed)
