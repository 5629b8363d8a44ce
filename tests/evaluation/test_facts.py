"""What results say of the weights they belong to."""

import numpy as np

from tm_jax.checkpoints import files
from tm_jax.evaluation import facts


def test_the_hash_is_of_the_tensors_alone(tmp_path):
    one = {"a": {"kernel": np.arange(6.0).reshape(2, 3)}, "b": np.ones(4)}
    for name, params, said in (
        ("first", one, {}), ("again", one, {"stage": "student", "preset": "pico"}),
        ("other", {**one, "b": np.array([1.0, 1.0, 1.0, 2.0])}, {}),
        ("shape", {**one, "a": {"kernel": np.arange(6.0).reshape(3, 2)}}, {}),
    ):
        (tmp_path / name).mkdir()
        files.save(str(tmp_path / name / "dit.safetensors"), params, "float32", **said)
    found = {p.name: facts.weights_hash(str(p)) for p in tmp_path.iterdir()}
    assert found["first"] == found["again"]
    assert len(set(found.values())) == 3
