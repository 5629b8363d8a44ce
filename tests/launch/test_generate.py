"""The launcher of whole clips, with fake models: results, one-line errors, interruption."""

import importlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import types
from typing import NamedTuple
import wave

from absl import flags
import av
import numpy as np
import PIL.Image
import pytest

from launch import common
from tm_jax.core import timing as timing_lib
import tm_jax.inference
from tm_jax.inference import loading

_ROOT = pathlib.Path(__file__).resolve().parents[2]


class _Chunk(NamedTuple):
    frames: np.ndarray
    first_frame: int
    seconds: dict[str, float]


class _Session:
    error = None

    chunk_frames = 12

    def __init__(self, bundle, picture, *, seed, mode):
        self.heard, self.next, self.other = 0, 0, 0

    def push_audio(self, samples):
        self.heard += len(samples)

    def push_other(self, samples):
        self.other += len(samples)
        _Session.last = self

    def end_audio(self):
        self.heard = np.inf

    def pull(self):
        if self.error is not None and self.next == 24:
            raise self.error
        if self.heard < (self.next + 12) * 640:
            return None
        self.next += 12
        return _Chunk(np.zeros((12, 32, 32, 3), np.uint8), self.next - 12, {})

    def close(self):
        pass


def _load(preset, weights, **options):
    if preset != "nano":
        return _LOAD(preset, weights, **options)  # Errors of others are the real ones.
    timing = timing_lib.Timing()
    return types.SimpleNamespace(
        preset=types.SimpleNamespace(height=32, width=32, timing=timing),
        functions=types.SimpleNamespace(partner=True),
    )


_LOAD = loading.load


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (80, 80)).save("face.png")
    with wave.open("voice.wav", "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * 16000 * 2))
    return tmp_path


@pytest.fixture
def launch(folder, monkeypatch):
    """Runs the launcher in this process on arguments, with fake models and its own flags."""
    values = flags.FlagValues()
    for name in ("string", "integer", "enum", "float", "bool"):
        define = getattr(flags, f"DEFINE_{name}")

        def own(*args, define=define, **options):
            return define(*args, flag_values=values, **options)

        monkeypatch.setattr(flags, f"DEFINE_{name}", own)
    monkeypatch.delitem(sys.modules, "launch.generate", raising=False)
    generate = importlib.import_module("launch.generate")
    monkeypatch.delitem(sys.modules, "launch.generate")
    monkeypatch.setattr(common, "cache_compilations", lambda: None)
    fakes = {
        "session": types.SimpleNamespace(Session=_Session),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, f"tm_jax.inference.{name}", fake)
        monkeypatch.setattr(tm_jax.inference, name, fake, raising=False)
    monkeypatch.setattr(loading, "load", _load)
    monkeypatch.setattr(loading.session, "Session", _Session)

    def run(*arguments):
        values(["generate", *arguments])
        common.guard("generate", generate.main)

    return run


def test_it_writes_a_clip_and_says_so(launch, capsys):
    launch("--image=face.png", "--audio=voice.wav", "--out=o.mp4")
    line = capsys.readouterr().out
    assert re.fullmatch(r"Wrote o\.mp4: 50 frames \(2\.00 s\) in .* frames/s, .*\.\n", line)
    with av.open("o.mp4") as file:
        assert sum(1 for _ in file.decode(video=0)) == 50


def test_listening_without_sound(launch, capsys):
    launch("--image=face.png", "--seconds=0.4", "--mode=listen", "--out=o.mp4")
    assert "10 frames (0.40 s)" in capsys.readouterr().out


def test_listening_to_another_party(launch, capsys):
    launch("--image=face.png", "--other_audio=voice.wav", "--mode=listen", "--out=o.mp4")
    assert "50 frames (2.00 s)" in capsys.readouterr().out
    assert _Session.last.other >= 32000


@pytest.mark.parametrize(
    "changed,text",
    [
        (["--image=no.png"], "image: there is no file no.png"),
        (["--image=voice.wav"], "not a picture"),
        (["--audio=no.wav"], "audio: there is no file no.wav"),
        (["--audio=face.png"], "holds no sound"),
        (["--audio="], "audio: "),
        (["--other_audio=no.wav"], "other_audio: there is no file no.wav"),
        (["--other_audio=face.png"], "other_audio: face.png holds no sound"),
        (["--other_audio=voice.wav", "--preset=tm-18b"], "name a folder with --weights"),
        (["--other_audio=voice.wav", "--out=voice.wav/o.mp4"], "no folder"),
        (["--out=o.avi"], "ends in .mp4"),
        (["--out=no/o.mp4"], "no folder no"),
        (["--out=voice.wav/o.mp4"], "no folder"),
        (["--preset=mega"], "unknown preset 'mega'; choose one of"),
        (["--seconds=-1"], "above 0"),
        (["--seconds=nan"], "above 0"),
        (["--noaudio"], "seconds"),
        (["--aspect=wide"], "expected 2 numbers"),
        (["--aspect=0:1"], "above 0"),
        (["--face=0,0,1"], "expected 4 numbers"),
        (["--preset=tm-18b"], "name a folder with --weights"),
        (["--preset=tm-18b", "--steps=3"], "--steps needs --sampler=teacher"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(launch, folder, changed, text):
    arguments = ["--image=face.png", "--audio=voice.wav", "--out=o.mp4", *changed]
    if changed == ["--noaudio"]:
        arguments = ["--image=face.png", "--out=o.mp4"]
    with pytest.raises(SystemExit) as caught:
        launch(*arguments)
    message = caught.value.code  # A text becomes one line on stderr and exit code 1.
    assert message.startswith("generate: ") and text in message and "\n" not in message
    assert sorted(os.listdir(folder)) == ["face.png", "voice.wav"]


@pytest.mark.parametrize(
    "number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_it_cleanly(launch, folder, monkeypatch, number, code):
    """The signal arrives while a chunk is computed."""
    pull = _Session.pull

    def slow(session):
        if session.next == 24:
            os.kill(os.getpid(), number)
        return pull(session)

    monkeypatch.setattr(_Session, "pull", slow)
    # A shell's background job inherits an ignored SIGINT, nohup an ignored SIGHUP.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    try:
        with pytest.raises(SystemExit) as caught:
            launch("--image=face.png", "--audio=voice.wav", "--out=o.mp4")
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, before)
    assert caught.value.code == code
    assert sorted(os.listdir(folder)) == ["face.png", "voice.wav"]


def test_a_fault_of_the_program_is_not_hidden(launch, monkeypatch):
    monkeypatch.setattr(_Session, "error", RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        launch("--image=face.png", "--audio=voice.wav", "--out=o.mp4")


def test_the_cache_of_compiled_programs(tmp_path, monkeypatch):
    import jax

    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setenv("TM_JAX_CACHE", str(tmp_path / "a" / "cache"))
    common.cache_compilations()
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "a" / "cache")
    settings.clear()
    (tmp_path / "file").touch()
    monkeypatch.setenv("TM_JAX_CACHE", str(tmp_path / "file" / "cache"))
    common.cache_compilations()  # Only a warning.
    assert not settings


@pytest.mark.parametrize(
    "arguments,text",
    [
        (["--image=no.png", "--seconds=1"], "image: there is no file no.png."),
        (["--image=face.png", "--seed=-1"], "seed"),
        (["--oops"], "oops"),
        (["--image=face.png", "--seconds=1", "more"], "unexpected argument 'more'"),
    ],
)
def test_the_script_reports_errors_from_any_folder(folder, arguments, text):
    """No models are imported for these, so it is fast."""
    done = subprocess.run(
        [sys.executable, str(_ROOT / "launch" / "generate.py"), *arguments],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("generate: ") and text in done.stderr
