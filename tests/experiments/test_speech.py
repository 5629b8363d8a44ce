"""The probes find what is in features and nothing else; sources are on the frame grid."""

import jax
import numpy as np
import pytest

from experiments.speech import features
from experiments.speech import probes
from experiments.speech import report
from tm_jax.checkpoints import files
from tm_jax.configs import presets
from tm_jax.models.audio.causal import encoder
from tm_jax.parallel import rules
from tm_jax.training import speech_stage


def test_windows_lie_around_the_frames_of_their_latent():
    frames = probes.BEFORE + 8 + probes.AFTER
    found = probes.windows(np.arange(frames, dtype=np.float32)[:, None])
    # Latent k shows frames 4 k ... 4 k + 3, which follow `BEFORE` others.
    np.testing.assert_array_equal(found, [np.arange(6), np.arange(4, 10)])
    np.testing.assert_array_equal(probes.grouped(np.arange(8)), [[0, 1, 2, 3], [4, 5, 6, 7]])


def test_ridge_finds_a_linear_law_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    x, matrix = rng.standard_normal((4000, 6)), rng.standard_normal((6, 2))
    y = x @ matrix + 3
    told = probes.ridge(x[:2000], y[:2000])(x[2000:])
    np.testing.assert_allclose(told, y[2000:], atol=0.05)
    noise = rng.standard_normal((2000, 2))
    told = probes.ridge(x[:2000], noise)(x[2000:])
    assert np.corrcoef(told[:, 0], rng.permutation(y[2000:, 0]))[0, 1] < 0.1
    assert told.std() < 0.15


def test_networks_find_curved_laws_and_classes_and_leave_out_the_unknown():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4000, 3))
    y = np.abs(x[:, :1]).astype(np.float32)
    told = probes.network(x[:3000], y[:3000])(x[3000:])
    assert np.corrcoef(told[:, 0], y[3000:, 0])[0, 1] > 0.97
    classes = ((x[:, 0] > 0) + 2 * (x[:, 1] > 0))[:, None]
    labels = classes.copy()
    labels[x[:, 2] > 0.5] = -1  # Were they counted, class 0 would be found there.
    logits = probes.network(x[:3000], labels[:3000], 4)(x[3000:])
    assert logits.shape == (1000, 1, 4)
    assert (logits.argmax(-1) == classes[3000:]).mean() > 0.9


def test_a_small_encoder_is_read_from_its_file_and_keeps_time(tmp_path):
    audio = speech_stage.sizes(presets.get("nano").audio)
    model = encoder.AudioEncoder(audio)
    length = (audio.history + 1 + audio.future) * encoder.FRAME + 2 * encoder.MARGIN
    params = rules.unbox(
        model.init(jax.random.key(0), np.zeros((1, length)), method=model.train)["params"]
    )
    path = str(tmp_path / "audio.safetensors")
    files.save(path, params, "float32")
    source = features.small("own", path)
    track = 0.1 * np.random.default_rng(0).standard_normal(640 * 60).astype(np.float32)
    found = source.features(track)
    assert found.shape == (60, audio.features) and source.voice(track).shape == (60,)
    assert source.lookahead_ms == pytest.approx(47.5)
    # The last frame, from exactly what it may hear.
    known = np.pad(track, (0, audio.future * encoder.FRAME + encoder.MARGIN))[-length:]
    alone = model.apply({"params": params}, known[None])[0, 0]
    np.testing.assert_allclose(found[-1], alone, rtol=0, atol=1e-4)


def test_the_report_shows_medians_over_voices():
    def voice(value):
        one = {
            "correlation": value, "correlation_linear": value, "lips_shut": value,
            "phones": value, "voice": None,
        }
        return {"clean": one, "damaged": one}

    source = {
        "width": 3, "lookahead_ms": None,
        "voices": {"a": voice(0.1), "b": voice(0.5), "c": voice(0.7)},
    }
    text = report.render({
        "facts": {"hardware": "x", "load": 1, "versions": {}, "weights": "y", "settings": {}},
        "training_tracks": 2, "track_s": 16.0, "sources": {"one": source},
    })  # fmt: skip
    assert "| one | 3 | all | 0.50 / 0.50 | 0.50 / 0.50 | 50 % / 50 % | 50 % / 50 % | – / – |" in text
    assert "| one | 0.10 | 0.50 | 0.70 |" in text
