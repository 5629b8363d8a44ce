"""Wan's parts at tiny sizes as an encoder of clips: equal to the models, whole and streamed."""

import jax
import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ftfy")

from experiments.parity import reduced
from tests.data import recordings
from tm_jax.core import timing as timing_lib
from tm_jax.data import clips
from tm_jax.data import prepare
from tm_jax.data import shards
from tm_jax.inference import clip_encoder
from tm_jax.inference import wan_inputs
from tm_jax.models.wan import audio as dit_audio
from tm_jax.models.wan_vae import autoencoder as wan_vae
from tm_jax.models.wav2vec2 import config as wav2vec2_config
from tm_jax.models.wav2vec2 import encoder as wav2vec2
from tm_jax.models.wav2vec2 import stream

_SIDE = 32
_TIMING = timing_lib.Timing()
_ATOL = 1e-5  # Measured 8e-7 for latents, 0 for features.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("weights") / "tm-18b")
    reduced.write(reduced.sizes("tm-18b", 2, 32, side=_SIDE, vae_width=4), path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return clip_encoder.load("tm-18b", folder)


def _clip(frames, encoder, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (frames, _SIDE // 8, _SIDE // 8, 3), np.uint8)
    count = (encoder.before + frames + encoder.after) * _TIMING.samples_per_frame
    sound = (0.1 * rng.standard_normal(count)).astype(np.float32)
    return pixels.repeat(8, 1).repeat(8, 2), sound


def test_latents_are_those_of_the_whole_clip(encoder):
    frames, sound = _clip(13, encoder)
    found = encoder(frames, sound)
    sizes = encoder._sizes
    model = wan_vae.WanVAE(sizes.vae, np.dtype("float32"))
    expected = jax.jit(
        lambda params, x: model.apply({"params": params}, x, method="encode")
    )(encoder._params["vae"], wan_inputs.to_float(frames[None]))
    assert found["latents"].shape == (4, _SIDE // 8, _SIDE // 8, 16)
    np.testing.assert_allclose(found["latents"], expected[0], atol=_ATOL)
    assert found["condition"].shape == (_SIDE // 8, _SIDE // 8, 0)
    assert found["text"].ndim == found["image"].ndim == 2


def test_features_are_those_of_a_stream(encoder):
    chunks, start = 2, 7 * _TIMING.frames_per_chunk - 1  # Frame 1 begins a chunk.
    rng = np.random.default_rng(1)
    whole = (0.1 * rng.standard_normal(11 * _TIMING.samples_per_chunk)).astype(np.float32)
    first = (start - encoder.before) * _TIMING.samples_per_frame
    count = (encoder.before + 1 + 12 * chunks + encoder.after) * _TIMING.samples_per_frame
    found = encoder._audio(whole[None, first : first + count])[0]
    before, after = dit_audio.margins(encoder._sizes.preset.dit.audio_window, _TIMING)
    window = wav2vec2_config.WindowConfig(before_frames=before, after_frames=after)
    model = wav2vec2.Wav2Vec2(encoder._sizes.audio)
    streamed = np.asarray(jax.jit(
        lambda params, x: stream.windowed(model, params, window, x)
    )(encoder._params["audio"], whole[None]))[0, 7:9]  # fmt: skip
    assert found.shape == (before + 24 + after, streamed.shape[-1])
    np.testing.assert_allclose(found[: before + 12], streamed[0, : before + 12], atol=_ATOL)
    np.testing.assert_allclose(found[before + 12 :], streamed[1, before:], atol=_ATOL)
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
    again = clip_encoder.WanClipEncoder(encoder._sizes, encoder._params, None, encoder._mesh)
    other = clip_encoder.WanClipEncoder(encoder._sizes, params, None, encoder._mesh)
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
        tmp_path / "videos", tmp_path / "out", config, encoder, preset="tm-18b", workers=0
    )
    source = shards.ExampleSource(tmp_path / "out")
    assert len(source) == 2
    fields, dit = source.schema.fields, encoder._sizes.preset.dit
    assert list(fields) == ["latents", "condition", "face_mask", "audio", "mode", "text", "image"]
    before, after = encoder.margins
    assert fields["audio"].shape == (f"{before + after}+4T", dit.audio_feature_width)
    assert fields["face_mask"].shape == (encoder._sizes.preset.tokens,)
    windows = dit_audio.windows(source[0].audio[None], dit.audio_window, _TIMING)
    assert windows.shape == (1, 3, dit.audio_window, dit.audio_feature_width)
