"""Streams of the teacher at pico size, and bundles with other weights or samplers."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.checkpoints import files
from tm_jax.configs import presets
from tm_jax.configs import puppet as networks
from tm_jax.diffusion import guidance
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import puppet
from tm_jax.inference import reconstruction
from tm_jax.inference import session as session_lib
from tm_jax.inference import teacher
from tm_jax.inference import variants
from tm_jax.training import puppet_source
from tm_jax.training import rollouts

_ATOL = 2e-5  # On latents of size 1.


@pytest.fixture(scope="module")
def pipeline(pico):
    functions = puppet.PuppetFunctions(presets.get("puppet"))
    shapes = networks.shapes(functions.models)
    params = {part: pico.random(tree) for part, tree in shapes.items()}
    return pipeline_lib.on_first_device(functions, params)


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def _session(pipeline, picture, **plan):
    return teacher.Session(
        pipeline, picture, puppet_source.teacher_velocity, seed=3, mode="speak",
        plan=teacher.Plan(**plan),
    )


def test_clips_are_samples_of_the_teacher(pipeline, picture, monkeypatch):
    """Against `rollouts.teacher_sample` with the same inputs, noise and guidance."""
    seen = {}
    made = _session(pipeline, picture, steps=2, guidance=2.0)
    inner = made._sample

    def spy(params, batch, context, windows, key, shape):
        seen.update(batch=batch, windows=windows, key=key)
        seen["x0"] = inner(params, batch, context, windows, key, shape)
        return seen["x0"]

    monkeypatch.setattr(made, "_sample", spy)
    rng = np.random.default_rng(1)
    step = pipeline.preset.timing.samples_per_chunk
    made.push_audio((0.3 * rng.standard_normal(2 * step)).astype(np.float32))
    assert made.pull() is None  # The look-ahead is missing.
    made.end_audio()
    first = made.pull()
    assert first.frames.shape == (24, 64, 64, 3) and first.first_frame == 0 and first.speaking
    face = made._start.context.face_mask
    x0 = jnp.zeros((*seen["windows"].shape[:2], *pipeline.preset.latent_shape))
    items = {**seen["batch"], "windows": seen["windows"], "face": face, "x0": x0}
    batch = puppet_source.assemble(pipeline.preset, items)
    sigmas, twice = pipeline.preset.schedule.steps(2), guidance.Guidance(audio=2.0)
    expected = jax.jit(lambda b, k: rollouts.teacher_sample(
        pipeline.functions.models, pipeline.params["dit"], b, k, sigmas, twice
    )[-1])(batch, seen["key"])
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(seen["x0"], expected, rtol=0, atol=_ATOL * max(1, scale))
    second = made.pull()
    assert second.first_frame == 24 and (second.frames != first.frames).any()


def test_motion_is_the_students(pipeline, picture):
    """Only latents differ: what moves the head is drawn from the same seed and sound."""
    sound = (0.3 * np.random.default_rng(2).standard_normal(20000)).astype(np.float32)
    poses = []
    for session in (
        session_lib.Session(pipeline, picture, seed=3, mode="speak"),
        _session(pipeline, picture, steps=1, chunks=2),
    ):
        session.push_audio(sound)
        session.end_audio()
        for _ in range(2 if session.chunk_frames == 12 else 1):
            session.pull()
        poses.append(np.asarray(session._state.motion.history))
    np.testing.assert_allclose(poses[0], poses[1], rtol=0, atol=1e-6)


def test_parts_of_a_folder_replace_those_of_a_bundle(pipeline, tmp_path):
    other = jax.tree.map(lambda x: x + 1, pipeline.params["dit"])
    files.save(str(tmp_path / "dit.safetensors"), other, "float32", preset="puppet")
    changed = variants.with_parts(pipeline, str(tmp_path))
    for a, b in zip(jax.tree.leaves(changed.params["dit"]), jax.tree.leaves(other)):
        np.testing.assert_array_equal(a, b)
    assert changed.params["vae"] is pipeline.params["vae"]
    with pytest.raises(FileNotFoundError, match="expected one or more of dit.safetensors"):
        variants.with_parts(pipeline, str(tmp_path / "none"))


def test_a_student_of_a_folder_samples_as_it_was_trained(pipeline, tmp_path):
    facts = presets.StudentConfig(num_steps=4, policy="per_step", sink=False).facts
    path = str(tmp_path / "dit.safetensors")
    files.save(path, pipeline.params["dit"], "float32", preset="puppet", **facts)
    student = variants.with_parts(pipeline, str(tmp_path)).preset.student
    assert (student.num_steps, student.policy, student.sink) == (4, "per_step", False)
    assert (student.positions, student.temperature) == (
        "window", pipeline.preset.student.temperature
    )
    files.save(path, pipeline.params["dit"], "float32", preset="puppet", num_steps="two")
    with pytest.raises(ValueError, match="num_steps must be a number, got 'two'"):
        variants.with_parts(pipeline, str(tmp_path))


def test_another_sampler_of_the_student(pipeline):
    changed = variants.with_student(pipeline, num_steps=1, policy="per_step")
    assert changed.preset.sigmas == (1.0,) and changed.preset.student.policy == "per_step"
    assert pipeline.preset.student.num_steps == 2
    with pytest.raises(ValueError, match="num_steps"):
        variants.with_student(pipeline, num_steps=0)


def test_a_plan_needs_steps():
    with pytest.raises(ValueError, match="at least 1"):
        teacher.Plan(steps=0)


def test_reconstruction_has_the_frames_of_its_clip(pipeline, picture):
    frames = np.repeat(picture[None], 15, 0)
    assert reconstruction.Autoencoder(pipeline)(picture, frames).shape == frames.shape
