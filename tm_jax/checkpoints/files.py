"""Safetensors files of our own parameter trees."""

import contextlib
import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from tm_jax.core import trees


def save(
    path: str, params, dtype=ml_dtypes.bfloat16, exact: tuple[str, ...] = (), **facts: str
) -> None:
    """Writes a tree, atomically.

    Args:
      path: Target file.
      params: Tree of arrays.
      dtype: Storage dtype of floating-point leaves.
      exact: Names of leaves that keep their own dtype.
      **facts: Strings for the file's metadata.
    """
    flat = {
        name: np.asarray(leaf) if name in exact else np.asarray(leaf).astype(dtype)
        for name, leaf in trees.flatten(params).items()
    }
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        safetensors.numpy.save_file(flat, temporary, metadata=facts)
        os.chmod(temporary, 0o644)  # The library writes it for the owner alone.
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def facts(path: str) -> dict[str, str]:
    """The strings that `save` put beside the tensors of a file.

    Raises:
      FileNotFoundError: No such file.
      ValueError: Not a safetensors file.
    """
    with _explained(path), safetensors.safe_open(path, "numpy") as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _explained(path: str):
    """Says in words what is wrong with a file."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such weight file.")
    try:
        yield
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError) as error:
        raise ValueError(
            f"{path}: expected a complete safetensors file ({error}); copy it again."
        ) from error


def load(path: str, expected, dtype=jnp.float32) -> dict:
    """Reads a tree strictly.

    Args:
      path: File written by `save`.
      expected: Tree of shapes that the model has.
      dtype: Dtype of the result.

    Returns:
      The tree, as host arrays.

    Raises:
      FileNotFoundError: No such file.
      ValueError: Not a safetensors file, or other names or shapes than expected.
    """
    with _explained(path):
        flat = safetensors.numpy.load_file(path)
    shapes = {k: tuple(v.shape) for k, v in trees.flatten(expected).items()}
    missing, extra = sorted(shapes.keys() - flat.keys()), sorted(flat.keys() - shapes.keys())
    if missing or extra:
        raise ValueError(
            f"{path}: does not fit this preset; {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])} ...), {len(extra)} are unknown "
            f"({', '.join(extra[:3])} ...)."
        )
    for name, shape in shapes.items():
        if flat[name].shape != shape:
            raise ValueError(
                f"{path}: {name} must have shape {shape}, got {flat[name].shape}."
            )
    return jax.tree.map(
        lambda x: np.asarray(x).astype(dtype), trees.unflatten(flat)
    )
