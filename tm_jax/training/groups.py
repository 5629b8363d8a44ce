"""Parameter groups of the transformer: new layers can learn before the published ones."""

from typing import Any

import jax

from tm_jax.checkpoints import wan
from tm_jax.core import trees

NEW, BASE = "new", "base"


def groups(params: Any) -> Any:
    """The group of every parameter of a transformer.

    Args:
      params: Tree of parameters or shapes, without boxes.

    Returns:
      The tree of labels: "new" for what no published Wan checkpoint holds (audio projection,
      audio keys and values, mode embedding), "base" for the rest.
    """
    def label(path, leaf):
        del leaf
        return NEW if wan.is_own("/".join(map(trees.key_name, path))) else BASE

    return jax.tree_util.tree_map_with_path(label, params)
