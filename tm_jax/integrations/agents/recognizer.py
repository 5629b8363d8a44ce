"""Turns one utterance into text, with a network whose weights are in its wheel."""

import pathlib
import threading

import numpy as np

RATE = 16000
_SHORTEST = RATE // 4  # The network needs some sound around a short word.


class Recognizer:
    """English speech recognition by Moonshine tiny; any number of callers may share one."""

    def __init__(self):
        """Loads the network; takes half a second and 100 MB.

        Raises:
          ModuleNotFoundError: The extra `agent` is not installed.
          FileNotFoundError: A version of moonshine-voice that comes without weights.
        """
        import moonshine_voice
        from moonshine_voice import transcriber

        folder = pathlib.Path(moonshine_voice.__file__).parent / "assets" / "tiny-en"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"moonshine-voice {moonshine_voice.__version__} comes without the weights "
                "tiny-en; install version 0.1.0 (extra agent)."
            )
        # Utterances are cut already, and their sound need not come back.
        options = {"vad_threshold": "0", "return_audio_data": "false"}
        self._network = transcriber.Transcriber(
            folder, moonshine_voice.ModelArch.TINY, options=options
        )
        self._lock = threading.Lock()

    def transcribe(self, samples: np.ndarray) -> str:
        """Recognises one utterance.

        Args:
          samples: float32 [n] at 16 kHz.

        Returns:
          The text, with punctuation; empty if nothing was understood.
        """
        samples = np.asarray(samples, np.float32)
        samples = np.pad(samples, (0, max(0, _SHORTEST - len(samples))))
        with self._lock:
            transcript = self._network.transcribe_without_streaming(samples.tolist(), RATE)
        return " ".join(line.text.strip() for line in transcript.lines).strip()

    def close(self) -> None:
        """Gives the memory of the network back."""
        with self._lock:
            self._network.close()
