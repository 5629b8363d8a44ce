"""Names and sizes of tree leaves."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import trees


@flax.struct.dataclass
class _Pair:
    left: jax.Array
    right: list


def test_flatten_names_every_kind_of_node():
    tree = {"a": {"b": 1}, "c": _Pair(left=2, right=[3, 4])}
    assert trees.flatten(tree) == {"a/b": 1, "c/left": 2, "c/right/0": 3, "c/right/1": 4}


def test_unflatten_inverts_flatten():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert trees.unflatten(trees.flatten(tree)) == tree


def test_count():
    shapes = {"a": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": np.zeros(())}
    assert trees.count(shapes) == 13


def test_cast_leaves_integers_alone():
    tree = trees.cast({"w": jnp.ones(2), "step": jnp.int32(3)}, jnp.bfloat16)
    assert tree["w"].dtype == jnp.bfloat16
    assert tree["step"].dtype == jnp.int32
