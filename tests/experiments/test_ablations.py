"""Ablations of the distillation: the table of variants, their training, the evaluation's arms."""

import json
import os
import types

import numpy as np
import pytest

from experiments.distillation import ablations
from experiments.distillation import report
from experiments.distillation import variants
from tests.training import small
from tm_jax.checkpoints import files
from tm_jax.configs import overrides
from tm_jax.training import run


def _plan(folder, **changes):
    return variants.Plan(
        preset=small.preset(), workdir=str(folder), data="examples", **changes
    )


def test_every_job_finds_its_start_and_its_settings_exist(tmp_path):
    plan, ready = _plan(tmp_path, shared=("batch=3",)), {"teacher"}
    made = list(variants.jobs(plan, variants.choose([])))
    assert len({job.name for job in made}) == len(made)
    for job in made:
        config = overrides.apply(run.config(job.stage, "", "examples"), job.assignments)
        assert config.batch == 3 and config.data.path == "examples"
        if job.stage == "distill":
            assert config.start in ready, job.name
        ready.add(f"{variants.FOLDER}/{job.name}")
    full, *others = [j.assignments for j in made if j.stage == "distill"]
    assert len({*others, full}) == len(variants.VARIANTS)
    configs = {j.name: overrides.apply(run.config("distill", "", "c"), j.assignments) for j in made}
    assert configs["no_regression"].start == "teacher"
    assert configs["four_per_step"].num_steps == 4
    assert configs["regression_no_sink"].sink is False and configs["full"].sink is None
    with pytest.raises(ValueError, match="unknown variant 'fast'; there are full, no_regress"):
        variants.choose(["full", "fast"])


@pytest.fixture
def trained(monkeypatch):
    """Stands for the training. Yields what was asked for."""
    seen = []

    def train(preset, stage, settings, workdir, steps, loop_config, name):
        seen.append((name, settings, steps))
        if seen[-1][0].endswith("one_step") and len(seen) < 3:
            return False  # Asked to stop.
        path = os.path.join(workdir, name, "transformer.safetensors")
        files.save(path, {"x": np.zeros(1)}, "float32")
        return True

    monkeypatch.setattr(variants.run, "train", train)
    return seen


def test_training_goes_on_where_it_was(trained, tmp_path):
    plan, chosen = _plan(tmp_path, steps=5), variants.choose(["full", "one_step"])
    jobs = list(variants.jobs(plan, chosen))
    assert [j.name for j in jobs] == ["regression", "full", "regression_one_step", "one_step"]
    assert variants.train(plan, jobs[0]) and variants.finished(plan, "regression")
    assert not variants.train(plan, jobs[2])  # Stopped, and begun again.
    assert not variants.finished(plan, "regression_one_step")
    assert all(variants.train(plan, job) for job in jobs)
    names = [name.partition("/")[2] for name, _, _ in trained]
    assert names == ["regression", "regression_one_step", "full", "regression_one_step", "one_step"]
    assert [steps for _, _, steps in trained] == [300, 300, 5, 300, 5]
    other = _plan(tmp_path, steps=6)
    with pytest.raises(ValueError, match="holds a training of .*'steps': 5.*asked for is"):
        variants.train(other, list(variants.jobs(other, chosen))[1])


def _arm(correlation):
    return {
        "lipsync_correlation": correlation, "lipsync_lag_frames": 0, "bilabial_closure": 0.9,
        "silence_ratio": 0.02, "frechet_ratio": 1.1, "drift": None, "seam_ratio": 1.0,
        "gestures": {"speaking": {"to_truth": {"head_spread": 0.95}}},
    }


def test_every_trained_student_is_an_arm_and_a_row(trained, tmp_path, monkeypatch):
    plan, out = _plan(tmp_path), tmp_path / "results"
    chosen = variants.choose(["no_sink", "one_step"])
    for job in list(variants.jobs(plan, chosen))[:2]:  # The other variant is not trained yet.
        assert variants.train(plan, job)
    asked = []

    def evaluate(command):
        asked.extend(command)
        about = {"hardware": "h", "load": 1, "versions": {}, "weights": "w", "settings": {}}
        arms = {name: _arm(0.8) for name in ("student", "regression_no_sink", "no_sink", "static")}
        (out / "quality.json").write_text(json.dumps({**about, "arms": arms}))
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(ablations.subprocess, "run", evaluate)
    ablations.measure(plan, chosen, "weights", "corpus", out, ["clips=4"])
    assert f"--weights=no_sink={variants.folder(plan, 'no_sink')}" in asked
    assert not any("one_step" in word for word in asked)
    assert "--weights=weights" in asked and asked[-1] == "--clips=4"
    assert "--long_arms=student,regression_no_sink,no_sink" in asked
    text = report.render(out)
    assert "`sink=false`" in text and "regression only" in text and "| static |" not in text
    assert "No results yet" in report.render(tmp_path)
    monkeypatch.setattr(
        ablations.subprocess, "run", lambda command: types.SimpleNamespace(returncode=1)
    )
    with pytest.raises(RuntimeError, match="its error is above"):
        ablations.measure(plan, chosen, "weights", "corpus", out, [])
