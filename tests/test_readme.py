"""The README's example runs as printed, with the shipped weights."""

import pathlib
import re

import numpy as np

import tm_jax
from tm_jax.media import audio

_ROOT = pathlib.Path(__file__).parent.parent


def _speech(seconds):
    voice = _ROOT / "tm_jax" / "assets" / "voices" / "dashwood_amiable.flac"
    with audio.open_speech(voice) as reader:
        sound = np.concatenate([block.speech for block in reader])
    return sound[: int(seconds * 16000)]


def test_the_example_of_the_readme(tmp_path, monkeypatch, capsys):
    import soundfile  # Comes with librosa.

    text = (_ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- example -->\n```python\n(.*?)```\n<!-- end -->", text, re.S)[1]
    assert 8 <= len(code.strip().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    samples = _speech(1.5)
    soundfile.write("speech.wav", samples, 16000)
    exec(compile(code, "README.md", "exec"), {"samples": samples})  # noqa: S102
    printed = capsys.readouterr().out
    assert "38 frames" in printed and "real-time factor" in printed
    assert "0 (12, 256, 256, 3)" in printed and "12 (12, 256, 256, 3)" in printed
    assert (tmp_path / "clip.mp4").stat().st_size > 5000


def test_public_names():
    assert tm_jax.PRESETS["nano"].height == 256
    assert set(tm_jax.__all__) <= set(dir(tm_jax))
    picture = tm_jax.draw_character(9, "clay", size=64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
