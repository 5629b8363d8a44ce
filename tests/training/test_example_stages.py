"""All stages of a preset that learns from examples, one after another, from files to videos."""

import dataclasses
import json
import os

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from tm_jax.checkpoints import files
from tm_jax.checkpoints import parts
from tm_jax.checkpoints import wan
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.diffusion import guidance
from tm_jax.parallel import rules
from tm_jax.training import batches
from tm_jax.training import distill_stage
from tm_jax.training import run
from tm_jax.training import sources
from tm_jax.training import starts
from tm_jax.training import student_stage
from tm_jax.training import teacher_stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pico):
    """A work directory with examples, an autoencoder, and all stages after two updates."""
    folder = str(tmp_path_factory.mktemp("run"))
    small.lay_out(folder, pico)
    for stage in small.STEPS:
        config, export = small.settings(stage, folder), os.path.join(folder, "export")
        if stage == "distill":
            config = dataclasses.replace(config, sampling_temperature=0.75)
        assert run.train(
            small.preset(), stage, config, folder, small.STEPS[stage], small.LOOP, export, mesh=small.one_device()
        ), stage
    return folder


def _frames(path):
    with av.open(path) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_every_stage_leaves_weights_and_a_video(folder):
    for stage, latents in (("teacher", 6), ("student", 6), ("distill", 9)):
        frames = _frames(f"{folder}/{stage}/samples/{small.STEPS[stage]:07d}.mp4")
        # Truth and sample side by side, two held-out clips below each other.
        assert frames.shape == (4 * latents, 128, 128, 3)
        assert frames.std() > 1
        assert os.path.getsize(f"{folder}/{stage}/transformer.safetensors")


def test_an_exported_student_streams_as_its_settings_say(folder):
    facts = files.facts(f"{folder}/export/transformer.safetensors")
    assert facts["stage"] == "distill" and facts["num_steps"] == "2"
    with open(f"{folder}/export/preset.json") as file:
        found = presets.with_settings(presets.get("pico"), json.load(file))
    assert found == dataclasses.replace(
        small.preset(), student=dataclasses.replace(small.preset().student, temperature=0.75)
    )
    part = parts.transformer(found)
    assert starts.Start(part=part, path=f"{folder}/export").load(None).keys() == part.boxed.keys()


def test_a_stage_names_the_one_that_it_needs(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="stage distill needs .* finish stage teacher"):
        settings = small.settings("distill", folder)
        run.train(small.preset(), "distill", settings, str(tmp_path), 2, small.LOOP)


def test_presets_and_their_data_must_fit(folder, tmp_path):
    preset = small.preset()
    with pytest.raises(ValueError, match="learns from prepared examples: name their folder"):
        run.train(preset, "teacher", run.config("teacher", "c"), str(tmp_path), 2, small.LOOP)
    with pytest.raises(ValueError, match="preset pico has no autoencoder that this stage trains"):
        run.train(preset, "vae", run.config("vae", "c"), str(tmp_path), 2, small.LOOP)


def test_published_weights_start_a_teacher_with_new_audio_layers(pico, tmp_path):
    """Each tensor in its sharding; what the file lacks has its initial values."""
    part = parts.transformer(small.preset())
    values = trees.flatten(pico.random(part.boxed, 5))
    published = {name: v for name, v in values.items() if not wan.is_own(name)}
    files.save(str(tmp_path / "transformer.safetensors"), trees.unflatten(published), "float32")
    mesh = rules.make_mesh(jax.devices()[:4], data=1, fsdp=2, tensor=2)
    start = starts.Start(part=part, path=str(tmp_path))
    shardings = rules.shardings(mesh, part.boxed)
    found = trees.flatten(start(shardings))
    assert found.keys() == values.keys() != published.keys()
    for name, value in found.items():
        assert value.sharding.is_equivalent_to(trees.flatten(shardings)[name], value.ndim), name
        if name in published:
            np.testing.assert_array_equal(value, published[name])
    assert not found["mode_embedding"].any()
    assert found["audio_projection/in/kernel"].any()
    kernel = found["blocks_0/cross/q/kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 16)
    with pytest.raises(FileNotFoundError, match="no such weights"):
        starts.Start(part=part, path=str(tmp_path / "absent"))


class Quiet:
    """A preview that shows nothing."""

    batch: dict = {}

    def show(self, x0, path):
        return {}


def paths(num_steps: int, chunks: int = 2, teacher_steps: int = 4):
    """Function (index) -> a window of the source and a random trajectory."""
    latents, stride = 3 * chunks, teacher_steps // num_steps

    def one(index):
        rng, i = np.random.default_rng((8, int(index) % 8)), int(index) % 8
        points = rng.standard_normal((teacher_steps + 1, latents, *small.preset().latent_shape))
        return {
            "window": small.source().window(i % 6, 0, latents),
            "dropped": np.zeros(3, bool), "points": points[::stride].astype(np.float16),
        }

    return one


def _silenced(items):
    """The same batch with other audio."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x[..., ::-1] if trees.key_name(path[-1]) == "audio" else x, items
    )


@pytest.fixture(scope="module")
def built(pico):
    """The stages, and batches for them."""
    source, models, one = small.source(), small.models(), paths(2)
    def quiet(latents):
        return Quiet()

    common = dict(start=pico.random(small.shapes(), 1))
    distill = distill_stage.DistillStageConfig(
        batch=2, rollout_chunks=3, dropout=batches.Dropout(text=0.5),
        score_guidance=guidance.Guidance(text=2.0, audio=1.5),
    )
    teacher = teacher_stage.make(models, source, quiet, teacher_stage.TeacherStageConfig(batch=2))
    sizes = sources.Sizes([source.sizes[0]] * 8)
    student = student_stage.make(
        models, source, one, sizes, quiet, student_stage.StudentStageConfig(batch=2), **common
    )
    regression = distill_stage.Regression(source=source, one=one, sizes=sizes)
    both = distill_stage.make(
        models, source, regression, quiet, distill, teacher=pico.random(small.shapes(), 2),
        critic=None, **common,
    )
    return {"teacher": teacher, "student": student, "distill": both}


@pytest.mark.parametrize("stage", ["teacher", "student", "distill", "critic"])
def test_losses_are_finite_and_depend_on_the_sound(built, pico, stage):
    of = built["distill" if stage == "critic" else stage]
    params, other = (pico.random(small.shapes(), seed) for seed in (1, 2))
    items = next(iter(of.batches(0)))
    frozen = {"teacher": other, "critic": other, "student": params}
    loss = jax.jit((of.critic if stage == "critic" else of).loss)
    value, metrics = loss(params, frozen, items, jax.random.key(1))
    again, _ = loss(params, frozen, _silenced(items), jax.random.key(1))
    assert np.isfinite(value) and value > 0
    assert abs(float(value) - float(again)) > 1e-5 * float(value)
    assert float(loss(params, frozen, items, jax.random.key(1))[0]) == float(value)


def test_a_perfect_student_has_no_regression_error(monkeypatch):
    """And the error of one that is off by 0.1 is 0.01."""
    items = sources.collate([paths(2)(i) for i in range(2)])
    batch, points = student_stage.assemble(small.source(), items)
    truth = points[:, -1].astype(jnp.float32)
    for off in (0.0, 0.1):
        monkeypatch.setattr(
            student_stage.rollouts, "student_forward", lambda *args: truth + off
        )
        error, step = student_stage.regression(
            small.models(), {}, batch, points, jax.random.key(0), 0.1
        )
        assert error.shape == step.shape == (2, 6)
        np.testing.assert_allclose(error, off**2, rtol=1e-3, atol=1e-9)
