"""The legend and the list of logical axes."""

from tm_jax.core import axes


def test_every_logical_axis_is_listed_once():
    names = [
        value for name, value in vars(axes).items()
        if name.isupper() and isinstance(value, str)
    ]
    assert sorted(names) == sorted(axes.LOGICAL_AXES)
    assert len(set(names)) == len(names)
