"""Several stores of examples as one: shares, what is held out, what identifies them."""

import collections

import pytest

from tests.training import small
from tm_jax.data import examples
from tm_jax.data import shards
from tm_jax.training import example_source


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Stores of five and of three examples; a mode tells them apart."""
    root = tmp_path_factory.mktemp("stores")
    for name, count, first in (("many", 5, 0), ("few", 3, 100)):
        with shards.ExampleWriter(root / name, {"preset": "pico", "of": name}, {}) as writer:
            for i in range(count):
                values = small.record(i, 3)
                del values["negative_text"]
                values["face_mask"] = values["face_mask"] * 0 + first + i
                writer.add(examples.Example(**values), f"{i}.mp4", 1)
                writer.finish(f"{i}.mp4", {"bytes": 1, "clips": [0], "rejected": [], "notes": []})
    return str(root / "many"), str(root / "few")


def _numbers(records):
    return [int(records[i]["face_mask"][0]) for i in range(len(records))]


def test_one_store_holds_out_its_last(folders):
    train, held_out = example_source.open_records(folders[0], 2)
    assert _numbers(train) == [0, 1, 2] and _numbers(held_out) == [3, 4]


@pytest.mark.parametrize("shares, wanted", [
    # Of four and two that are not held out.
    (("", ""), {0: 1, 1: 1, 2: 1, 3: 1, 100: 2, 101: 2}),
    (("=2", "=1"), {0: 1, 1: 1, 2: 1, 3: 1, 100: 1, 101: 1}),
    (("=1", "=3"), {0: 1, 1: 1, 2: 1, 3: 1, 100: 6, 101: 6}),
    (("=4", "=1"), {0: 2, 1: 2, 2: 2, 3: 2, 100: 1, 101: 1}),
])
def test_stores_are_mixed_by_their_shares(folders, shares, wanted):
    path = ",".join(folder + share for folder, share in zip(folders, shares))
    train, held_out = example_source.open_records(path, 1)
    assert collections.Counter(_numbers(train)) == wanted
    assert _numbers(held_out) == [4, 102]


def test_what_identifies_examples(folders):
    one, both = (example_source.fingerprint(p) for p in (folders[0], ",".join(folders)))
    assert len({one, both, example_source.fingerprint(folders[1])}) == 3
    assert one == example_source.fingerprint(folders[0] + "=2")


@pytest.mark.parametrize("path", ["a=0", "a=-1,b", "a=x", "a=nan"])
def test_wrong_shares_are_refused(path):
    with pytest.raises(ValueError, match="expected STORE=SHARE with a share above 0"):
        example_source.parse(path)


def test_a_store_that_is_not_there(folders):
    with pytest.raises(FileNotFoundError, match="nowhere has no examples"):
        example_source.open_records(f"{folders[0]},nowhere=2", 1)
    assert example_source.parse("gs://b/c=2") == [("gs://b/c", 2.0)]
