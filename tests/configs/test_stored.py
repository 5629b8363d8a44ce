"""Settings go to a file and come back the same; what does not fit is explained."""

import dataclasses
import json

import pytest

from tm_jax.configs import stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inner:
    rate: float = 0.1
    name: str | None = None
    sizes: tuple[tuple[int, int], ...] = ((1, 2),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Outer:
    batch: int = 8
    remat: bool = False
    inner: _Inner = _Inner()


def test_a_round_trip(tmp_path):
    path = str(tmp_path / "run" / "config.json")
    config = _Outer(batch=3, remat=True, inner=_Inner(rate=1, name="x", sizes=((3, 4), (5, 6))))
    stored.write(path, {"stage": "vae", "settings": config})
    record = stored.read(path)
    assert record["stage"] == "vae"
    assert stored.fill(_Outer(), record["settings"]) == config
    assert stored.fill(_Outer(batch=5), {"inner": {"name": None}}) == _Outer(batch=5)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"inner": {"rat": 1.0}}, r"inner.rat: _Inner has no 'rat'; it has rate, name, sizes"),
        ({"batch": "8"}, r"batch: expected <class 'int'>, got '8'"),
        ({"batch": True}, "batch: expected"),
        ({"remat": 1}, "remat: expected"),
        ({"inner": 3}, "inner: expected a group of settings, got 3"),
        ({"inner": {"sizes": 4}}, "inner.sizes: expected"),
    ],
)
def test_what_does_not_fit_is_explained(values, message):
    with pytest.raises(ValueError, match=message):
        stored.fill(_Outer(), values)


def test_files_that_are_no_settings(tmp_path):
    with pytest.raises(FileNotFoundError):
        stored.read(str(tmp_path / "none.json"))
    for content, message in (("{", "is not JSON"), ("[1]", "must hold a JSON object, got list")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            stored.read(str(tmp_path / "bad.json"))


def test_differences_name_what_changed():
    before = json.loads(stored.text({"stage": "vae", "settings": _Outer()}))
    now = {"stage": "vae", "settings": _Outer(batch=4, inner=_Inner(name="x"))}
    assert stored.differences(before, now) == [
        "settings.batch: 8 -> 4", "settings.inner.name: None -> x"
    ]
    assert stored.differences(before, {"stage": "vae", "settings": _Outer()}) == []
