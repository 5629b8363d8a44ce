"""All stages of the puppet one after another, through the launcher's own entry."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.checkpoints import files
from tm_jax.configs import overrides
from tm_jax.configs import presets
from tm_jax.configs import puppet as networks
from tm_jax.data.corpus import speech
from tm_jax.data.synthetic import characters
from tm_jax.inference import puppet
from tm_jax.inference import session as session_lib
from tm_jax.parallel import rules
from tm_jax.training import run

_LOOP = run.loop.LoopConfig(sample_every=0, log_every=1)
_DATA = ["data.clips=8", "data.latents=6", "batch=4", "previews=2"]
_SETTINGS = {
    "vae": ["batch=2"],
    "locator": ["batch=2", "size=64"],
    "audio": ["batch=2", "frames=30"],
    "motion": ["clips=4", "latents=12", "batch=8", "previews=2"],
    "teacher": [*_DATA, "sample_steps=2"],
    "student": [*_DATA, "trajectories=4", "teacher_steps=2"],
    "distill": [
        *_DATA, "batch=2", "trajectories=4", "teacher_steps=2", "rollouts.clips=8",
        "rollouts.latents=9", "rollout_chunks=3", "critic_updates=1",
    ],
}


@pytest.fixture(scope="module")
def preset():
    return presets.get("puppet")


def _plain(character, motion, size=256):
    """Pictures that depend on character and motion and, unlike drawn ones, compile at once."""
    ramp = jnp.linspace(0, 200, size)[:, None] + jnp.linspace(0, 50, size)
    shade = 20 * motion.mean(-1)[..., None, None, None] + 40 * character.skin[:, None, None, None]
    return jnp.clip(ramp[None, None, ..., None] + shade, 0, 255).astype(jnp.uint8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, preset):
    """A work directory after all stages, with exported weights."""
    with pytest.MonkeyPatch.context() as patch:
        # The renderer has tests of its own and takes the compiler 15 s for every shape.
        patch.setattr(characters, "render", _plain)
        yield _trained(tmp_path_factory, preset)


def _trained(tmp_path_factory, preset):
    folder = str(tmp_path_factory.mktemp("run"))
    rng = np.random.default_rng(0)
    for name in ("allison", "testdata_reader"):
        phones = [(0.1 * i, 0.1 * i + 0.1, int(rng.integers(0, 40))) for i in range(30)]
        utterances = [
            (0.1 * rng.standard_normal(48000).astype(np.float32), phones) for _ in range(2)
        ]
        speech.save(
            os.path.join(folder, "corpus"), name, utterances, language="en", source="noise",
            licence="none", alignment="made up",
        )
    for stage in _SETTINGS:
        config = overrides.apply(
            run.config(stage, os.path.join(folder, "corpus")), _SETTINGS[stage]
        )
        export = os.path.join(folder, "export")
        mesh = rules.make_mesh(jax.devices()[:1])
        assert run.train(preset, stage, config, folder, 2, _LOOP, export, mesh=mesh), stage
    return folder


def test_every_stage_leaves_weights_samples_and_a_checkpoint(workdir):
    pictures = {
        "vae": "png", "locator": "png", "teacher": "jpg", "student": "jpg", "distill": "jpg"
    }
    for stage, suffix in pictures.items():
        assert os.path.getsize(os.path.join(workdir, stage, "samples", f"0000002.{suffix}"))
    for stage in _SETTINGS:
        assert os.path.isdir(os.path.join(workdir, stage, "checkpoints", "2"))
        assert os.listdir(os.path.join(workdir, stage, "tensorboard"))


def test_exported_weights_stream(workdir):
    loaded = puppet.load("puppet", os.path.join(workdir, "export"))
    picture = np.zeros((64, 64, 3), np.uint8)
    session = session_lib.Session(loaded, picture)
    session.end_audio()
    frames = session.pull().frames
    assert frames.shape == (12, 64, 64, 3)


def test_an_exported_student_says_what_it_was_trained_for(workdir):
    facts = files.facts(os.path.join(workdir, "export", "dit.safetensors"))
    assert facts == {
        "preset": "puppet", "stage": "distill", "num_steps": "2", "policy": "clean",
        "temperature": "1",
    }
    assert files.facts(os.path.join(workdir, "export", "vae.safetensors")) == {"preset": "puppet"}


@pytest.mark.parametrize("stage", ["locator", "motion"])  # Motion publishes more than it trains.
def test_a_stage_starts_from_a_weight_file(workdir, preset, stage):
    settings = [*_SETTINGS[stage], "optimizer.learning_rate=0"]
    corpus = os.path.join(workdir, "corpus")
    config = overrides.apply(run.config(stage, corpus), settings)
    start = os.path.join(workdir, stage, f"{stage}.safetensors")
    name = f"{stage}_again"
    assert run.train(preset, stage, config, workdir, 1, _LOOP, name=name, start=start)
    shapes = networks.shapes(networks.models(preset))[stage]
    again = os.path.join(workdir, name, f"{stage}.safetensors")
    assert files.facts(again) == files.facts(start)
    for a, b in zip(*(jax.tree.leaves(files.load(p, shapes)) for p in (start, again))):
        np.testing.assert_array_equal(a, b)


def test_a_start_of_another_part_is_refused(workdir, preset):
    config = overrides.apply(run.config("locator", "corpus"), _SETTINGS["locator"])
    start = os.path.join(workdir, "audio", "audio.safetensors")
    with pytest.raises(ValueError, match="does not fit this preset"):
        run.train(preset, "locator", config, workdir, 1, _LOOP, name="other", start=start)


def test_the_motion_stage_measures_its_samples(workdir):
    motion = np.load(os.path.join(workdir, "motion", "samples", "0000002_listening.npy"))
    assert motion.shape == (2, 48, 12) and np.isfinite(motion).all()


def test_a_stage_names_the_one_that_it_needs(tmp_path, preset):
    config = run.config("teacher", str(tmp_path / "corpus"))
    with pytest.raises(FileNotFoundError, match="finish stage vae in this work directory"):
        run.train(preset, "teacher", config, str(tmp_path), 2, _LOOP)


def test_latents_of_another_configuration_are_refused(workdir, preset):
    config = overrides.apply(
        run.config("teacher", os.path.join(workdir, "corpus")),
        [*_DATA, "sample_steps=2", "data.listening=0.5"],
    )
    with pytest.raises(ValueError, match="holds other latents"):
        run.train(preset, "teacher", config, workdir, 2, _LOOP)


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("bach=4", "has no 'bach'; it has data, batch"),
        ("batch=four", "expected <class 'int'>, got 'four'"),
        ("optimizer=1", "optimizer is a group; set one of learning_rate"),
        ("batch.size=1", "batch is a value"),
        ("batch", "expected name=value"),
    ],
)
def test_overrides_explain_mistakes(assignment, message):
    with pytest.raises(ValueError, match=message):
        overrides.apply(run.config("teacher", "corpus"), [assignment])


def test_overrides_reach_nested_settings():
    config = overrides.apply(
        run.config("teacher", "corpus"), ["optimizer.learning_rate=2e-4", "data.clips=7"]
    )
    assert config.optimizer.learning_rate == 2e-4 and config.data.clips == 7
    assert config.data.corpus == "corpus"


def test_stores_grow_and_keep_what_they_hold(workdir, preset, tmp_path, monkeypatch):
    monkeypatch.setattr(characters, "render", _plain)
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    before = {}
    for path in [*folder.glob("latents/*.npy"), *folder.glob("trajectories/*.npy")]:
        before[path] = np.load(path)
    settings = [s for s in _SETTINGS["student"] if "clips" not in s and "trajectories" not in s]
    config = overrides.apply(
        run.config("student", os.path.join(workdir, "corpus")),
        [*settings, "data.clips=16", "trajectories=12"],
    )
    run.train(preset, "student", config, str(folder), 3, _LOOP, str(folder / "export"))
    for path, held in before.items():
        grown = np.load(path)
        assert len(grown) == {"latents": 16, "trajectories": 12}[path.parent.name] > len(held)
        np.testing.assert_array_equal(grown[: len(held)], held)
        if path.name in ("latents.npy", "features.npy", "points.npy"):
            assert all(np.any(entry) for entry in grown[len(held) :])
