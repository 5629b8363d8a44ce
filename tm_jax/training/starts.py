"""Transformers that a stage begins with or reads, from files straight into their sharding."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tm_jax.checkpoints import loading
from tm_jax.checkpoints import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Parameters of a transformer in a file; serves as `loop.Stage.start`.

    Attributes:
      part: Its sizes and tables.
      path: File or folder in our own or a published layout, or a folder of all parts. What it
        lacks, such as audio layers, gets its initial values.
      seed: Seed of those.
    """

    part: parts.Part
    path: str
    seed: int = 0

    def __post_init__(self):
        if not os.path.exists(self.path):
            raise FileNotFoundError(f"{self.path}: no such weights to start from.")

    def __call__(self, shardings: Any) -> Any:
        """The parameters in float32, of which no device or host holds more than its slices.

        Args:
          shardings: Tree of `NamedSharding`; its mesh counts, the rules table does the rest.
        """
        return self.load(jax.tree.leaves(shardings)[0].mesh)

    def load(self, mesh: Mesh | None, dtype: Any = jnp.float32) -> Any:
        """The parameters on a mesh; None: the default device.

        Raises:
          ValueError: The files do not fit the sizes.
        """
        path = find(self.path, "transformer", self.part) or self.path
        return loading.load_part(self.part, path, mesh, dtype=dtype, seed=self.seed)


def find(folder: str, name: str, part: parts.Part) -> str | None:
    """Where a part lies in a folder of all parts; None if it is not there."""
    for place in (name, f"{name}.safetensors", *part.places):
        path = os.path.join(folder, place)
        if os.path.exists(path):
            return path
    return None
