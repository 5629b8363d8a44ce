"""Shape checks at the door of public functions, free at run time."""

from typing import Any


def check(x: Any, spec: str, name: str, **sizes: int) -> dict[str, int]:
    """Binds the axis letters of `spec` to sizes, or explains the mismatch.

    Args:
      x: Array (or anything with `shape` and `ndim`).
      spec: Axis letters separated by blanks, oldest axis first, e.g. "B T H W C".
      name: What the array is, for the message.
      **sizes: Sizes that are known already, by letter.

    Returns:
      Dictionary from letter to size, including the given ones.

    Raises:
      ValueError: The rank or a bound size differs.
    """
    axes = spec.split()
    if x.ndim != len(axes):
        raise ValueError(f"{name}: expected axes [{spec}], got shape {tuple(x.shape)}.")
    for axis, size in zip(axes, x.shape):
        if sizes.setdefault(axis, size) != size:
            raise ValueError(
                f"{name}: axis {axis} of [{spec}] must be {sizes[axis]}, "
                f"got {size} (shape {tuple(x.shape)})."
            )
    return sizes
