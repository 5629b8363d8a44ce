"""The speech encoder's stage on tones that stand for phones."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from tests import miniature
from tm_jax.configs import overrides
from tm_jax.configs import presets
from tm_jax.data.corpus import acoustics
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import spoken
from tm_jax.data.corpus import tracks
from tm_jax.data.synthetic import visemes
from tm_jax.models.audio.causal import encoder
from tm_jax.training import run
from tm_jax.training import speech_stage

_LOOP = run.loop.LoopConfig(sample_every=0, log_every=1)
_STEPS = 150
_TONES = {"SIL": 0, "AA": 400, "IY": 900, "S": 2500, "M": 200}


def _utterance(rng):
    """Phones of 0.08 to 0.2 s, each a tone of its own."""
    rows, pieces, at = [], [], 0.0
    for name in rng.choice(list(_TONES), 20):
        count = int(rng.uniform(0.08, 0.2) * 16000)
        time = np.arange(count) / 16000
        pieces.append(0.1 * np.sin(2 * np.pi * _TONES[name] * time))
        rows.append((at, at + count / 16000, speech.PHONE_ID[name]))
        at += count / 16000
    sound = np.concatenate(pieces) + 1e-4 * rng.standard_normal(sum(map(len, pieces)))
    return sound.astype(np.float32), rows


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, rng = str(tmp_path_factory.mktemp("corpus")), np.random.default_rng(0)
    for name in ("allison", "testdata_reader"):
        speech.save(
            folder, name, [_utterance(rng) for _ in range(4)], language="en", source="tones",
            licence="none", alignment="exact",
        )
    return folder


def _settings(corpus, *more):
    return overrides.apply(
        run.config("speech", corpus),
        ["batch=4", "frames=30", "warp=false", "optimizer.warmup_steps=5",
         "optimizer.learning_rate=5e-3", "optimizer.ema_decay=0.9", *more],
    )  # fmt: skip


def test_loss_falls_and_a_resumed_run_equals_an_uninterrupted_one(corpus, tmp_path):
    preset, settings = miniature.nano(), _settings(corpus)
    settings = dataclasses.replace(
        settings, damage=acoustics.AcousticsConfig(noise_db=(30.0, 45.0))
    )
    stage = run.make(preset, "speech", settings, str(tmp_path))
    first = stage.init(jax.random.key(0))
    audio = speech_stage.sizes(preset.audio)
    model = encoder.AudioEncoder(audio)
    speaker = tracks.Voices(corpus, "held_out").speakers[0]
    batch = speech_stage.clean_batch(speaker, settings, audio, 4)

    def measured(params):
        out = compiled.method(model, "train")(params, batch["samples"])
        return speech_stage.losses(out, batch, audio.recalled)

    whole = run.loop.run(stage, str(tmp_path / "whole"), _STEPS, _LOOP)
    assert run.loop.run(_stopped(stage, 20), str(tmp_path / "parts"), _STEPS, _LOOP) is None
    resumed = run.loop.run(stage, str(tmp_path / "parts"), _STEPS, _LOOP)
    before, after = measured(run.rules.unbox(first)), measured(whole)
    assert after["phones"] < 0.5 * before["phones"] and after["right"] > 0.6
    assert after["level"] < before["level"] and after["voice"] < before["voice"]
    for a, b in zip(*(jax.tree.leaves(p) for p in (whole, resumed))):
        np.testing.assert_array_equal(a, b)
    measures = stage.sample(whole, {}, "")
    assert measures["phones"] == measures["phones_testdata_reader"] > 0.5
    assert measures["voice"] > 0.7


def _stopped(stage, at):
    """The stage, of which somebody stops the run at batch `at`."""

    def batches(seed):
        inner = iter(stage.batches(seed))

        class Stopping:
            count = 0
            get_state, set_state = inner.get_state, inner.set_state

            def __iter__(self):
                return self

            def __next__(self):
                self.count += 1
                if self.count == at:
                    signal.raise_signal(signal.SIGTERM)
                return next(inner)

        return Stopping()

    return dataclasses.replace(stage, batches=batches)


def test_a_batch_holds_nothing_of_a_face(corpus, monkeypatch):
    def never(*args, **more):
        raise AssertionError("the stage asked for the curves of a mouth")

    monkeypatch.setattr(visemes, "mouth_curves", never)
    settings = _settings(corpus)
    preset = miniature.nano()
    audio = speech_stage.sizes(preset.audio)
    voices = tracks.Voices(corpus, "train")
    batch = next(iter(speech_stage.batches(voices, settings, audio, 0)))
    assert set(batch) == {"samples", "phones", "active", "level"}
    frames = settings.frames + audio.history + audio.future
    assert batch["samples"].shape == (4, frames * encoder.FRAME + 2 * encoder.MARGIN)
    assert batch["phones"].shape == (4, 30, spoken.PARTS)
    assert batch["active"].shape == batch["level"].shape == (4, 30)


def test_unknown_phones_count_for_nothing():
    rng = np.random.default_rng(0)
    recalled, frames = 1, 6
    shape = (2, frames, speech_stage.COLUMNS * (1 + recalled) + 1)
    out = jnp.asarray(rng.standard_normal(shape).astype(np.float32))
    phones = rng.integers(0, speech_stage.CLASSES, (2, frames, spoken.PARTS))
    phones[0, 2:5], phones[1, 1, 0] = spoken.UNKNOWN, spoken.UNKNOWN
    batch = {
        "phones": phones, "active": spoken.voice(phones),
        "level": np.zeros((2, frames), np.float32),
    }

    def loss(out):
        found = speech_stage.losses(out, batch, recalled)
        return found["phones"] + found["voice"]

    logits, _, voice = speech_stage.parts(jax.grad(loss)(out), recalled)
    unknown = phones == spoken.UNKNOWN
    touched = np.abs(np.asarray(logits)).max(-1) > 0  # [B, n, 1 + recalled, PARTS]
    np.testing.assert_array_equal(touched[:, :, 0], ~unknown)
    np.testing.assert_array_equal(touched[:, 1:, 1], ~unknown[:, :-1])
    assert not touched[:, 0, 1].any()  # Nothing comes before the first frame.
    np.testing.assert_array_equal(np.asarray(voice) != 0, batch["active"] != spoken.UNKNOWN)


def test_losses_are_those_of_the_definition():
    rng = np.random.default_rng(1)
    out = rng.standard_normal((1, 3, speech_stage.COLUMNS + 1)).astype(np.float32)
    phones = rng.integers(0, speech_stage.CLASSES, (1, 3, spoken.PARTS))
    phones[0, 1] = spoken.UNKNOWN
    level = rng.standard_normal((1, 3)).astype(np.float32)
    active = np.array([[1, -1, 0]], np.float32)
    found = speech_stage.losses(out, {"phones": phones, "active": active, "level": level}, 0)
    width, expected = speech_stage.CLASSES, []
    for frame in (0, 2):
        for part in range(spoken.PARTS):
            z = np.float64(out[0, frame, part * width : (part + 1) * width])
            expected.append(np.log(np.exp(z).sum()) - z[phones[0, frame, part]])
    np.testing.assert_allclose(found["phones"], np.mean(expected), rtol=1e-5)
    square = np.square(np.float64(out[0, :, -2]) - level[0]).mean()
    np.testing.assert_allclose(found["level"], square, rtol=1e-5)
    p = 1 / (1 + np.exp(-np.float64(out[0, :, -1])))
    np.testing.assert_allclose(found["voice"], -np.log([p[0], 1 - p[2]]).mean(), rtol=1e-5)


def test_accuracy_counts_speech_now_and_later():
    rng, recalled, frames = np.random.default_rng(2), 1, 12
    phones = rng.integers(1, speech_stage.CLASSES, (1, frames, spoken.PARTS))
    phones[0, :4] = speech.PHONE_ID["SIL"]
    phones[0, 11] = spoken.UNKNOWN
    out = np.zeros((1, frames, speech_stage.COLUMNS * (1 + recalled) + 1), np.float32)
    logits, _, _ = speech_stage.parts(out, recalled)  # A view.
    for frame in range(11):
        for part in range(spoken.PARTS):
            phone = phones[0, frame, part]
            logits[0, frame, 0, part, phone if frame < 6 else 0] = 1
            logits[0, frame + 1, 1, part, phone] = 1
    out[0, :, -1] = np.where(np.arange(frames) < 8, -1, 1)
    batch = {"phones": phones, "active": spoken.voice(phones)}
    found = speech_stage.accuracy(out, batch, recalled)
    # Spoken frames are 4 ... 10; the frame's own logits know two of them, the later ones all.
    assert found == pytest.approx({"phones": 2 / 7, "delayed": 1.0, "voice": (3 / 7 + 1) / 2})


def test_the_stage_publishes_an_encoder(corpus, tmp_path):
    preset = miniature.nano()
    export = str(tmp_path / "export")
    assert run.train(preset, "speech", _settings(corpus), str(tmp_path), 2, _LOOP, export)
    assert os.listdir(tmp_path / "speech" / "tensorboard")
    audio = speech_stage.sizes(preset.audio)
    own = dataclasses.replace(preset, audio=audio)
    model = encoder.AudioEncoder(own.audio)
    dummy = np.zeros((1, (audio.history + 1 + audio.future) * 640 + 240), np.float32)
    shapes = jax.eval_shape(
        lambda key: run.rules.unbox(model.init(key, dummy, method=model.train)["params"]),
        jax.random.key(0),
    )
    path = os.path.join(export, "audio.safetensors")
    params = run.files.load(path, shapes)
    assert run.files.facts(path) == {"preset": "nano", "stage": "speech"}
    out = compiled.method(model, "train")(params, dummy)
    assert out.shape == (1, 1, speech_stage.COLUMNS * (1 + audio.recalled) + 1)


def test_standardised_features_tell_the_same(corpus):
    settings, audio = _settings(corpus), speech_stage.sizes(miniature.nano().audio)
    model = encoder.AudioEncoder(audio)
    batch = next(iter(speech_stage.batches(
        tracks.Voices(corpus, "train"), settings, audio, 1
    )))  # fmt: skip
    params = run.rules.unbox(jax.jit(
        lambda key, x: model.init(key, x, method=model.train)["params"]
    )(jax.random.key(1), batch["samples"]))
    features = compiled.method(model, "__call__")(params, batch["samples"])
    plain = speech_stage.standardised(params, 3 * features + 1)  # As if of another size.
    before, after = (
        compiled.method(model, "train")(p, batch["samples"]) for p in (params, plain)
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)
    unit = compiled.method(model, "__call__")(
        speech_stage.standardised(params, features), batch["samples"]
    )
    np.testing.assert_allclose(unit.mean((0, 1)), 0, atol=1e-3)
    np.testing.assert_allclose(unit.std((0, 1)), 1, atol=1e-2)


def test_presets_with_wav2vec2_have_nothing_to_train():
    with pytest.raises(ValueError, match="tm-18b uses wav2vec2"):
        speech_stage.make(presets.get("tm-18b"), speech_stage.SpeechStageConfig())
