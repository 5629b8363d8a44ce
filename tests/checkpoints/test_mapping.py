"""Tables are strict, and every kind has an exact inverse.

The layouts are PyTorch's, as its documentation gives them: a linear layer is [out, in], a
convolution [out, in, *window]. Meaning is checked against sums written from the definition.
"""

import numpy as np
import pytest

from tm_jax.checkpoints import mapping

# Published shape and our shape(s) of every kind.
_SHAPES = {
    "copy": ((3, 2), (3, 2)), "matrix": ((3, 4), (4, 3)),
    "conv1d": ((3, 4, 5), (5, 4, 3)), "conv2d": ((3, 4, 5, 6), (5, 6, 4, 3)),
    "conv3d": ((2, 3, 4, 5, 6), (4, 5, 6, 3, 2)), "pointwise1d": ((3, 4, 1), (4, 3)),
    "pointwise2d": ((3, 4, 1, 1), (4, 3)), "pointwise3d": ((3, 4, 1, 1, 1), (4, 3)),
    "squeeze": ((1, 6, 4), (6, 4)), "vector1": ((3, 1), (3,)), "vector2": ((3, 1, 1), (3,)),
    "vector3": ((3, 1, 1, 1), (3,)), "qkv": ((9, 4), ((4, 3),) * 3),
    "qkv_bias": ((9,), ((3,),) * 3), "patches": ((5, 3, 1, 2, 2), (12, 5)),
}


def _tuple(x):
    return x if isinstance(x, tuple) else (x,)


def test_every_kind_is_listed():
    assert _SHAPES.keys() == mapping.KINDS.keys()


@pytest.mark.parametrize("name", _SHAPES)
def test_kinds_move_every_number_and_move_it_back(name):
    published, ours = _SHAPES[name]
    kind = mapping.KINDS[name]
    x = np.arange(np.prod(published), dtype=np.int32).reshape(published)
    y = kind.forward(x)
    assert tuple(part.shape for part in _tuple(y)) == (
        ours if isinstance(ours[0], tuple) else (ours,)
    )
    assert sorted(n for part in _tuple(y) for n in part.ravel()) == list(range(x.size))
    back = kind.backward(*_tuple(y))
    assert back.shape == published
    np.testing.assert_array_equal(back, x)


def test_matrix_maps_inputs_to_outputs():
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((3, 4)), rng.standard_normal(4)
    expected = [sum(weight[o, i] * x[i] for i in range(4)) for o in range(3)]
    np.testing.assert_allclose(x @ mapping.KINDS["matrix"].forward(weight), expected)


@pytest.mark.parametrize("space", [1, 2, 3])
def test_convolutions_fit_channels_last(space):
    """One output of a convolution, summed tap by tap."""
    rng = np.random.default_rng(0)
    window = (2, 3, 4)[:space]
    weight = rng.standard_normal((3, 5, *window))  # [O, I, *window]
    x = rng.standard_normal((*window, 5))  # channels last
    expected = [
        sum(weight[(o, i, *at)] * x[(*at, i)] for i in range(5) for at in np.ndindex(*window))
        for o in range(3)
    ]
    kernel = mapping.KINDS[f"conv{space}d"].forward(weight)
    np.testing.assert_allclose(np.tensordot(x, kernel, space + 1), expected)


def test_fused_parts_stand_in_order():
    x = np.concatenate([np.full((2, 3), i) for i in range(3)])
    for i, part in enumerate(mapping.KINDS["qkv"].forward(x)):
        np.testing.assert_array_equal(part, np.full((3, 2), i))


def test_a_vector_is_not_squeezed_where_it_has_numbers():
    with pytest.raises(ValueError, match="singleton"):
        mapping.KINDS["vector3"].forward(np.zeros((3, 1, 1, 2)))


_ROWS = [
    *mapping.linear("a", "in"),
    ("norm.gamma", "norm/scale", "vector3"),
    ("qkv", ("q", "k", "v"), "qkv"),
]
_MODEL = {
    "in": {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)}, "norm": {"scale": np.zeros(5)},
    "q": np.zeros((2, 6)), "k": np.zeros((2, 6)), "v": np.zeros((2, 6)),
    "own": {"x": np.zeros(7)},
}


def _own(path):
    return path.startswith("own/")


def _source(**changes):
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (3, 4), "a.bias": (3,), "norm.gamma": (5, 1, 1, 1), "qkv": (18, 2)}
    source = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    source.update(changes)
    return {n: x for n, x in source.items() if x is not None}


def test_read_and_write_are_inverse():
    source = _source()
    tree = mapping.read(source, _ROWS, _MODEL, own=_own)
    assert "own" not in tree
    np.testing.assert_array_equal(tree["in"]["kernel"], source["a.weight"].T)
    np.testing.assert_array_equal(tree["k"], source["qkv"][6:12].T)
    back = mapping.write({**tree, "own": {"x": np.zeros(7)}}, _ROWS, own=_own)
    assert back.keys() == source.keys()
    for name, value in source.items():
        np.testing.assert_array_equal(back[name], value)


def test_dtype_and_ignored_tensors():
    source = _source(**{"a.position_ids": np.arange(3)})
    tree = mapping.read(
        source, _ROWS, _MODEL, own=_own, ignore=("*position_ids",), dtype=np.float16
    )
    assert tree["in"]["bias"].dtype == np.float16


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"a.bias": None}, ["1 tensors are missing: a.bias"]),
        ({"b.weight": np.zeros(1)}, ["1 tensors are left over: b.weight"]),
        ({"a.bias": None, "c": np.zeros(1)}, ["missing: a.bias", "left over: c"]),
        (
            {"a.weight": np.zeros((4, 3))},
            ["a.weight must have shape (3, 4) for in/kernel, got (4, 3)"],
        ),
        ({"qkv": np.zeros((15, 2))}, ["qkv", "(18, 2) for q and k and v", "(15, 2)"]),
        ({"norm.gamma": np.zeros(5)}, ["norm.gamma", "(5, 1, 1, 1)", "(5,)"]),
    ],
)
def test_misfits_are_told(changes, words):
    with pytest.raises(ValueError) as error:
        mapping.read(_source(**changes), _ROWS, _MODEL, own=_own)
    for word in words:
        assert word in str(error.value)


def test_nothing_is_read_before_everything_fits():
    class Unread:
        shape = (3, 4)

        def __array__(self, *args, **kwargs):
            raise AssertionError("read")

    with pytest.raises(ValueError, match="missing: a.bias"):
        mapping.read(_source(**{"a.weight": Unread(), "a.bias": None}), _ROWS, _MODEL, own=_own)


def test_tables_are_complete():
    with pytest.raises(ValueError, match="nothing fills own/x"):
        mapping.read(_source(), _ROWS, _MODEL)
    with pytest.raises(ValueError, match="model lacks z"):
        mapping.read(_source(), [*_ROWS, ("y", "z", "copy")], _MODEL, own=_own)
    with pytest.raises(ValueError, match="target in/bias twice"):
        mapping.read(_source(), [*_ROWS, ("y", "in/bias", "copy")], _MODEL, own=_own)
    with pytest.raises(ValueError, match="source a.bias twice"):
        mapping.read(_source(), [*_ROWS, ("a.bias", "z", "copy")], _MODEL, own=_own)


def test_repeat_numbers_every_name():
    rows = mapping.repeat([("l.*.qkv", ("b_*/q", "b_*/k"), "copy")], 2)
    assert rows == [
        ("l.0.qkv", ("b_0/q", "b_0/k"), "copy"), ("l.1.qkv", ("b_1/q", "b_1/k"), "copy"),
    ]
