"""Pipelines with other weights or samplers, the teacher's streams beside them, reconstruction."""

import jax
import ml_dtypes
import numpy as np
import pytest

from tm_jax.checkpoints import files
from tm_jax.inference import part_files
from tm_jax.inference import reconstruction
from tm_jax.inference import teacher_session
from tm_jax.inference import variants


def _write(pipeline, folder, preset, part="transformer", change=0.0):
    """A folder with one part of a pipeline, and the sizes of a preset; returns the part."""
    values = jax.tree.map(lambda x: np.asarray(x) + change, pipeline.params[part])
    files.save(str(folder / f"{part}.safetensors"), values, "float32")
    part_files.write_settings(preset, str(folder))
    return values


def test_parts_of_a_folder_replace_those_of_a_pipeline(pipeline, tmp_path):
    other = _write(pipeline, tmp_path, pipeline.preset, change=1.0)
    changed = variants.with_parts(pipeline, str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, dict(changed.params["transformer"]), dict(other))
    jax.tree.map(np.testing.assert_array_equal, changed.params["vae"], pipeline.params["vae"])
    (tmp_path / "none").mkdir()
    part_files.write_settings(pipeline.preset, str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="expected one or more of transformer, audio, vae"):
        variants.with_parts(pipeline, str(tmp_path / "none"))


def test_what_is_replaced_keeps_its_dtype(pipeline, tmp_path):
    values = pipeline.params["transformer"]
    files.save(str(tmp_path / "transformer.safetensors"), values, ml_dtypes.bfloat16)
    part_files.write_settings(pipeline.preset, str(tmp_path))
    changed = variants.with_parts(pipeline, str(tmp_path))
    assert {str(x.dtype) for x in jax.tree.leaves(changed.params["transformer"])} == {"float32"}


def test_a_student_of_a_folder_samples_as_it_was_trained(pipeline, tmp_path):
    trained = pipeline.preset.with_student(num_steps=4, policy="per_step", sink=False)
    _write(pipeline, tmp_path, trained)
    student = variants.with_parts(pipeline, str(tmp_path)).preset.student
    assert (student.num_steps, student.policy, student.sink) == (4, "per_step", False)


def test_another_sampler_of_the_student(pipeline):
    changed = variants.with_student(pipeline, num_steps=1, policy="per_step")
    assert changed.preset.sigmas == (1.0,) and changed.preset.student.policy == "per_step"
    assert pipeline.preset.student.num_steps == 2
    with pytest.raises(ValueError, match="num_steps"):
        variants.with_student(pipeline, num_steps=0)


def test_every_clip_of_the_teacher_has_the_reference_picture(pipeline, picture, monkeypatch):
    """Where the conditioning is a picture, the last frame of a clip does not take its place."""
    sampler = teacher_session.Sampler(latents=7, steps=1, guidance=1.0)
    session = teacher_session.TeacherSession(pipeline, picture, sampler=sampler, mode="speak")
    seen, run = [], session._run

    def spy(name, *args, **kwargs):
        if name == "sample":
            seen.append(args[0]["pictures"])
        return run(name, *args, **kwargs)

    monkeypatch.setattr(session, "_run", spy)
    session.push_audio(np.random.default_rng(1).standard_normal(2 * 15360).astype(np.float32) / 9)
    session.end_audio()
    first, second = session.pull(), session.pull()
    assert first.frames.shape == (24, 64, 64, 3) and second.first_frame == 24
    assert (second.frames != first.frames).any()
    for given in seen:
        np.testing.assert_array_equal(given[0], picture)
    assert len(seen) == 2


def test_reconstruction_is_what_a_stream_of_true_latents_shows(pipeline, picture):
    rng = np.random.default_rng(2)
    frames = rng.integers(0, 256, (15, 64, 64, 3), np.uint8)
    shown = reconstruction.Autoencoder(pipeline)(picture, frames)
    vae, params = pipeline.functions.components.vae, pipeline.params
    clip = np.concatenate([picture[None], frames, frames[-1:]])[None] / np.float32(127.5) - 1
    state = vae.begin_decoder(params, clip[:, 0], None)
    whole, _ = vae.decode_chunk(params, vae.encode(params, clip)[:, 1:], state)
    expected = np.clip(np.round((np.asarray(whole[0]) + 1) * 127.5), 0, 255)
    assert shown.shape == frames.shape
    assert np.abs(shown.astype(int) - expected[:15]).max() <= 1
