"""Ablations of the distillation: the table of variants, their training, measures of latents."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import ablations
from experiments.distillation import curves
from experiments.distillation import report
from experiments.distillation import variants
from tests.training import small
from tm_jax.checkpoints import files
from tm_jax.configs import overrides
from tm_jax.core import trees
from tm_jax.models.puppet.vae import autoencoder
from tm_jax.training import run
from tm_jax.training import sources

_FRAMES, _CHUNK, _WINDOW = 240, 12, 24


def _latents(lower):
    """Latents that say `lower` [B, F, 6] of the mouth and something else of the eyes."""
    upper = np.random.default_rng(2).standard_normal(lower.shape)
    return np.asarray(autoencoder.labels(jnp.asarray(upper), jnp.asarray(lower), 4, 4, 4))


@pytest.fixture(scope="module")
def clips():
    """Four clips of syllables, closures and pauses."""
    rng = np.random.default_rng(0)
    mouth = np.repeat(rng.uniform(0.2, 1.5, (4, _FRAMES // 6, 6)), 6, 1)
    spoken = np.ones((4, _FRAMES), bool)
    spoken[:, 100:130] = False
    closed = np.zeros((4, _FRAMES), bool)
    closed[:, 40:43] = closed[:, 170:173] = True
    mouth[..., 0] *= spoken & ~closed
    x0 = _latents(mouth)
    return curves.Clips(
        speaking={"x0": x0}, resting={}, mouth=mouth, closed=closed, spoken=spoken,
        again=mouth[::-1], fps=25,
    )


def _measure(clips, mouth, rest=None, segment=None):
    rest = np.zeros_like(mouth) if rest is None else rest
    return curves.measure(clips, _latents(mouth), _latents(rest), _CHUNK, _WINDOW, segment)


def test_latents_tell_what_labels_said(clips):
    np.testing.assert_allclose(curves.told(clips.speaking["x0"]), clips.mouth, atol=1e-6)


def test_the_truth_is_perfect(clips):
    found = _measure(clips, clips.mouth)
    wanted = {
        "correlation": 1, "lag_frames": 0, "closures_kept": 1, "error": 0, "pause_ratio": 0,
        "rest_ratio": 0, "drift": 0,
    }
    for key, value in wanted.items():
        assert found["median"][key] == pytest.approx(value, abs=1e-5), key
        assert found["low"][key] <= found["median"][key] <= found["high"][key]
    assert found["frechet"] == pytest.approx(0, abs=1e-4) and found["finite"]


def test_faults_are_seen(clips):
    rng = np.random.default_rng(1)
    late = _measure(clips, np.roll(clips.mouth, 2, 1))
    assert late["median"]["lag_frames"] == 2 and late["median"]["correlation"] < 0.9
    still = _measure(clips, 0 * clips.mouth)
    assert still["median"]["correlation"] == 0 and still["median"]["closures_kept"] == 0
    open_ = _measure(clips, clips.mouth + 0.5)
    assert open_["median"]["closures_kept"] == 0 and open_["median"]["correlation"] > 0.99
    noisy = _measure(clips, clips.mouth + 0.1 * rng.standard_normal(clips.mouth.shape))
    assert noisy["median"]["pause_ratio"] > 0.2 and noisy["median"]["rest_ratio"] == 0
    restless = _measure(clips, clips.mouth, clips.mouth)
    assert restless["median"]["rest_ratio"] == pytest.approx(1, abs=0.2)
    assert still["frechet"] > noisy["frechet"] > 0.01
    growing = clips.mouth * np.linspace(1, 3, _FRAMES)[:, None]
    assert _measure(clips, growing)["median"]["drift"] > 0.2
    worse = clips.mouth + np.linspace(0, 1, _FRAMES)[:, None] * rng.standard_normal(6)
    assert _measure(clips, worse)["median"]["error_growth"] > 2
    broken = clips.mouth.copy()
    broken[0, -1, 0] = np.nan
    found = _measure(clips, broken)
    assert not found["finite"] and np.isnan(found["frechet"])


def test_jumps_count_at_borders_of_chunks_and_not_where_a_segment_ends(clips):
    ramp = np.repeat(np.arange(_FRAMES)[None, :, None] * 0.01, 4, 0) * np.ones(6)
    smooth = _measure(clips, ramp)["median"]["seam_ratio"]
    assert smooth == pytest.approx(1, abs=1e-3)
    at = np.arange(_FRAMES) // _CHUNK
    jumps = ramp + 0.02 * at[:, None]  # Three times the usual step at every border.
    assert _measure(clips, jumps)["median"]["seam_ratio"] == pytest.approx(3, rel=0.02)
    joined = ramp + 0.02 * (np.arange(_FRAMES) // _WINDOW)[:, None]
    found = _measure(clips, joined, segment=_WINDOW)["median"]
    assert found["seam_ratio"] == pytest.approx(1, abs=1e-3)
    assert np.isnan(found["drift"]) and np.isnan(found["error_growth"])


def _plan(folder, **changes):
    return variants.Plan(
        preset=small.preset("puppet"), workdir=str(folder), corpus="corpus", **changes
    )


def test_every_job_finds_its_start_and_its_settings_exist(tmp_path):
    plan, ready = _plan(tmp_path, shared=("previews=2",)), {"teacher"}
    made = list(variants.jobs(plan, variants.choose([])))
    assert len({job.name for job in made}) == len(made)
    for job in made:
        config = overrides.apply(run.config(job.stage, "corpus"), job.assignments)
        assert config.previews == 2
        if job.stage == "distill":
            assert config.start in ready, job.name
        ready.add(f"{variants.FOLDER}/{job.name}")
    full, *others = [j.assignments for j in made if j.stage == "distill"]
    assert len({*others, full}) == len(variants.VARIANTS)
    configs = {j.name: overrides.apply(run.config("distill", "c"), j.assignments) for j in made}
    assert configs["no_regression"].start == "teacher"
    assert configs["four_per_step"].num_steps == 4
    assert configs["regression_no_sink"].sink is False and configs["full"].sink is None
    with pytest.raises(ValueError, match="unknown variant 'fast'; there are full, no_regress"):
        variants.choose(["full", "fast"])


@pytest.fixture
def trained(monkeypatch, pico):
    """Stands for the training: random weights. Yields what was asked for."""
    seen = []

    def train(preset, stage, settings, workdir, steps, loop_config, name):
        seen.append((name, settings, steps))
        if seen[-1][0].endswith("one_step") and len(seen) < 3:
            return False  # Asked to stop.
        path = os.path.join(workdir, name, "dit.safetensors")
        files.save(path, pico.random(small.shapes("puppet"), len(seen)), "float32")
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


@pytest.fixture
def heard(monkeypatch):
    """Clips out of nothing, two windows long."""
    frames = 4 * 12

    def make(models, params, speakers, count, latents, seed):
        assert latents == 12 and count == 2
        batch = sources.collate([small.clip(i, latents) for i in range(count)])
        mouth = curves.told(batch["x0"])
        closed = np.zeros((count, frames), bool)
        closed[:, 20:23] = True
        return curves.Clips(
            speaking=batch, resting={**batch, "mode": np.zeros(count, np.int32)}, mouth=mouth,
            closed=closed, spoken=np.ones((count, frames), bool), again=mouth[::-1], fps=25,
        )

    monkeypatch.setattr(ablations.curves, "make", make)
    monkeypatch.setattr(ablations.speech, "load", lambda *args: [])


def test_all_arms_are_measured_once_and_reported(trained, heard, tmp_path, monkeypatch, pico):
    shapes = ablations.networks.shapes(small.models("puppet"))
    for stage, part in (("teacher", "dit"), ("audio", "audio")):
        os.makedirs(tmp_path / stage)
        path = str(tmp_path / stage / f"{part}.safetensors")
        files.save(path, pico.random(shapes[part], 9), "float32")
    plan, out = _plan(tmp_path), tmp_path / "results" / "ablations.json"
    measuring = ablations.Measuring(clips=2, seconds=1.9, teacher_steps=2)
    chosen = variants.choose(["no_sink"])
    assert ablations.run_all(plan, measuring, chosen, str(out))
    results = json.loads(out.read_text())
    assert list(results["arms"]) == ["teacher", "regression_no_sink", "no_sink"]
    for name, arm in results["arms"].items():
        assert arm["finite"] and arm["frechet"] > 0 and len(arm["clips"]) == 2
        assert (arm["median"]["drift"] is None) == (name == "teacher")
    assert results["arms"]["no_sink"]["start"] == "regression_no_sink"
    assert out.with_suffix(".png").stat().st_size > 1000
    monkeypatch.setattr(ablations.Bench, "__init__", None)  # Nothing is measured again.
    assert ablations.run_all(plan, measuring, chosen, str(out), train=False)
    assert json.loads(out.read_text())["arms"] == results["arms"]
    text = report.render(out.parent)
    assert text.count("| no_sink |") == 2 and "`sink=false`" in text
    assert "(results/ablations.png)" in text
    assert "No results" in report.render(tmp_path)


def test_a_student_is_measured_as_it_was_trained(trained, heard, tmp_path, pico):
    """What a variant changes in the rollout changes what is measured, with the same weights."""
    shapes = ablations.networks.shapes(small.models("puppet"))
    os.makedirs(tmp_path / "audio")
    files.save(
        str(tmp_path / "audio" / "audio.safetensors"), pico.random(shapes["audio"], 9), "float32"
    )
    os.makedirs(tmp_path / "student")
    random = trees.flatten(pico.random(small.shapes("puppet"), 3))
    files.save(str(tmp_path / "student" / "dit.safetensors"), trees.unflatten(random), "float32")
    bench = ablations.Bench(_plan(tmp_path), ablations.Measuring(clips=2, seconds=1.9))
    errors = {
        asked: bench.student(tmp_path / "student", asked)["median"]["error"]
        for asked in ((), ("num_steps=1", "sink=false"))
    }
    assert len({round(e, 5) for e in errors.values()}) == 2
