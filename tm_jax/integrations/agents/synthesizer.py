"""Turns text into speech without a network.

Three synthesisers, chosen by name: `nanotts` is a wheel with its voices (extra `agent`);
`flite` and `espeak-ng` are programs of the operating system. `auto` takes the first of
them that is there and logs which.
"""

from collections.abc import Callable
import io
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import wave

from absl import logging
import numpy as np

from tm_jax.media import resampling

NAMES = ("auto", "nanotts", "flite", "espeak-ng")
_TIMEOUT_S = 20.0
_SENTENCE = re.compile(r"[^.!?]+(?:[.!?]+|$)")


class Synthesizer:
    """One voice; any number of callers may share one.

    Attributes:
      name: Which synthesiser speaks.
    """

    def __init__(self, name: str = "auto"):
        """Finds a synthesiser.

        Args:
          name: One of `NAMES`.

        Raises:
          ValueError: An unknown name.
          ModuleNotFoundError: The synthesiser, or with "auto" all of them, is missing.
        """
        if name not in NAMES:
            raise ValueError(f"synthesizer must be one of {', '.join(NAMES)}, got {name!r}.")
        self.name, self._speak = _find(name)
        self._lock = threading.Lock()
        logging.info("Speech synthesis by %s.", self.name)

    def speak(self, text: str, rate: int) -> np.ndarray:
        """Speaks a sentence.

        Args:
          text: The sentence.
          rate: Samples per second of the result.

        Returns:
          float32 [n] in -1..1; empty for a text without letters or digits.
        """
        if not re.search(r"\w", text):
            return np.zeros(0, np.float32)
        with self._lock:
            samples, own_rate = self._speak(text)
        out = resampling.Resampler(own_rate, rate).push(samples, last=True)
        return np.clip(out, -1.0, 1.0)  # A filter overshoots loud peaks a little.


def sentences(text: str) -> list[str]:
    """Cuts a text into sentences, which are synthesised one by one."""
    return [part.strip() for part in _SENTENCE.findall(text) if part.strip()]


def _find(name: str) -> tuple[str, Callable[[str], tuple[np.ndarray, int]]]:
    makers = {"nanotts": _nanotts, "flite": _flite, "espeak-ng": _espeak}
    wanted = list(makers) if name == "auto" else [name]
    for candidate in wanted:
        speak = makers[candidate]()
        if speak is not None:
            return candidate, speak
    raise ModuleNotFoundError(
        f"no speech synthesiser found (looked for {', '.join(wanted)}); install the extra "
        "agent, or one of the programs flite and espeak-ng."
    )


def _nanotts():
    try:
        import py_nanotts
    except ModuleNotFoundError:
        return None
    network = py_nanotts.NanoTTS()
    return lambda text: (resampling.from_pcm16(network.speak(text, voice="en-US")), 16000)


def _flite():
    program = shutil.which("flite")
    if program is None:
        return None

    def speak(text):
        with tempfile.TemporaryDirectory(prefix="tm_jax_") as folder:
            path = pathlib.Path(folder, "speech.wav")
            _run([program, "-voice", "rms", "-t", text, "-o", str(path)])
            return _read_wave(path.read_bytes())

    return speak


def _espeak():
    program = shutil.which("espeak-ng")
    if program is None:
        return None
    return lambda text: _read_wave(
        _run([program, "-v", "en-us", "-s", "155", "--stdin", "--stdout"], text)
    )


def _run(command: list[str], text: str = "") -> bytes:
    done = subprocess.run(
        command, input=text.encode(), capture_output=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise OSError(
            f"{command[0]} ended with {done.returncode}: "
            f"{done.stderr.decode(errors='replace').strip()[:200]}"
        )
    return done.stdout


def _read_wave(data: bytes) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(data)) as reader:
        rate, channels = reader.getframerate(), reader.getnchannels()
        # A program that writes to a pipe cannot fill in the length.
        frames = reader.readframes(len(data))
    whole = len(frames) - len(frames) % (2 * channels)
    return resampling.from_pcm16(frames[:whole], channels), rate
