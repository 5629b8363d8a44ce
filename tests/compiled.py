"""Methods of models as compiled functions: one program in place of hundreds of small ones."""

from collections.abc import Callable
import functools

import jax


@functools.cache
def method(model, name: str) -> Callable:
    """Function (parameters, arguments ...) -> what a method of a linen module returns."""
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args, method=name))
