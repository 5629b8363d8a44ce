"""The encoder of clips: what a stream of the same picture and sound has, part by part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ftfy")

from experiments.parity import reduced
from tests.data import recordings
from tm_jax.configs import components
from tm_jax.configs import presets
from tm_jax.core import pixels
from tm_jax.core import timing as timing_lib
from tm_jax.data import clips
from tm_jax.data import prepare
from tm_jax.data import shards
from tm_jax.inference import clip_encoder
from tm_jax.training import example_source

_SIDE = 64
_TIMING = timing_lib.Timing()
_ATOL = 1e-5  # Measured 8e-7 for latents, 0 for features.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("weights") / "pico")
    reduced.write(presets.get("pico"), path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return clip_encoder.load("pico", folder)


def _clip(frames, encoder, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (frames, _SIDE // 8, _SIDE // 8, 3), np.uint8)
    count = (encoder.before + frames + encoder.after) * _TIMING.samples_per_frame
    sound = (0.1 * rng.standard_normal(count)).astype(np.float32)
    return pixels.repeat(8, 1).repeat(8, 2), sound


def test_latents_and_condition_are_those_of_the_whole_clip(encoder):
    frames, sound = _clip(13, encoder)
    found = encoder(frames, sound)
    vae, params = encoder._functions.components.vae, encoder._params
    clip = pixels.to_float(jnp.asarray(frames[None]))
    encode = jax.jit(lambda p, x: vae.model.apply({"params": p}, x, method="encode"))
    expected = encode(params["vae"], clip)
    side = _SIDE // 8
    assert found["latents"].shape == (4, side, side, 16)
    np.testing.assert_allclose(found["latents"], expected[0], atol=_ATOL)
    empty = np.concatenate([clip[:, :1], np.zeros_like(clip[:, 1:])], 1)
    assert found["condition"].shape == (5, side, side, 16)
    np.testing.assert_allclose(
        found["condition"][:4], encode(params["vae"], empty)[0], atol=_ATOL
    )
    np.testing.assert_array_equal(found["condition"][4], params["constants"]["empty"])
    assert "text" not in found and found["image"].shape == (5, 20)


def test_windows_are_those_of_a_stream(encoder):
    chunks, start = 2, 7 * _TIMING.frames_per_chunk - 1  # Frame 1 begins a chunk.
    rng = np.random.default_rng(1)
    whole = (0.1 * rng.standard_normal(11 * _TIMING.samples_per_chunk)).astype(np.float32)
    first = (start - encoder.before) * _TIMING.samples_per_frame
    count = (encoder.before + 1 + 12 * chunks + encoder.after) * _TIMING.samples_per_frame
    found = encoder._windows(whole[None, first : first + count], 1 + 12 * chunks)[0]
    audio, preset = encoder._functions.components.audio, encoder.preset
    streamed = jax.jit(lambda params, x: components.wav2vec2_stream.windowed(
        components.wav2vec2.Wav2Vec2(preset.audio), params, audio.window, x
    ))(encoder._params["audio"], whole[None])[0, 7:9]  # fmt: skip
    expected = components.dit_audio.windows(streamed, preset.dit.audio_window, _TIMING)
    assert found.shape == (6, preset.dit.audio_window, preset.dit.audio_feature_width)
    np.testing.assert_allclose(found, expected.reshape(found.shape), atol=_ATOL)
    assert np.abs(np.diff(found, axis=0)).max() > 100 * _ATOL


def test_a_batch_is_its_clips(encoder):
    made = [_clip(13, encoder, seed) for seed in (0, 1)]
    together = encoder.encode_batch(*(np.stack(parts) for parts in zip(*made)))
    alone = encoder(*made[1])
    assert together.keys() == alone.keys()
    for name, part in alone.items():
        np.testing.assert_allclose(together[name][1], part, atol=_ATOL)


def test_weights_are_part_of_the_settings(encoder):
    settings = encoder.settings()
    assert settings["prompt"] and len(settings["vae_weights"]) == 16
    params = dict(encoder._params, vae=jax.tree.map(lambda x: x + 1e-3, encoder._params["vae"]))
    functions, mesh = encoder._functions, encoder._mesh
    again, other = (
        clip_encoder.ClipEncoder(functions, p, mesh, settings["prompt"])
        for p in (encoder._params, params)
    )
    assert settings == again.settings()
    changed = [name for name, value in other.settings().items() if value != settings[name]]
    assert changed == ["vae_weights"]


def test_a_video_becomes_examples(encoder, tmp_path):
    (tmp_path / "videos").mkdir()
    rng = np.random.default_rng(0)
    frames = list(rng.integers(0, 256, (30, 48, 48, 3), np.uint8))
    recordings.write(tmp_path / "videos" / "a.mp4", frames, recordings.clicks(1.2, [0.5]))
    config = clips.Config(
        height=_SIDE, width=_SIDE, chunks=1, least_chunks=1, face="none",
        voice_activity="loudness",
    )
    prepare.prepare(
        tmp_path / "videos", tmp_path / "out", config, encoder, preset="pico", workers=0
    )
    source = shards.ExampleSource(tmp_path / "out")
    assert len(source) == 2
    fields, dit = source.schema.fields, encoder.preset.dit
    assert list(fields) == ["latents", "condition", "face_mask", "audio", "mode", "image"]
    # The prompt is there once, and the empty one that stands for a dropped prompt.
    record = example_source.Store(str(tmp_path / "out"))[0]
    for name, key in (("text", "prompt"), ("negative_text", "negative")):
        np.testing.assert_array_equal(record[name], encoder._params["constants"][key][0])
    assert not np.array_equal(record["text"], record["negative_text"])
    batch = example_source.ExampleSource([record], encoder.preset).window(0, 0, 3)
    assert batch["negative_text"].shape == batch["text"].shape == (6, 24)
    assert fields["audio"].shape == ("T", dit.audio_window, dit.audio_feature_width)
    assert fields["condition"].shape == ("2+T", 8, 8, 16)
    assert fields["face_mask"].shape == (encoder.preset.tokens,)


def test_without_weights_nothing_is_encoded():
    with pytest.raises(FileNotFoundError, match="pico comes without weights"):
        clip_encoder.load("pico", None)
