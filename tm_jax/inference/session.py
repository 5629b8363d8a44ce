"""One live stream: sound in, frames out.

This is the one interface that launchers, servers and plug-ins use. A session is not thread
safe; whoever owns it calls it from one thread.
"""

import time
from typing import NamedTuple

import jax
import numpy as np

from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.media import partner as partner_lib

MODES = ("auto", "speak", "listen")
VOICE = 0.5  # probability of a voice above which the stream speaks
HOLD = 1  # chunks that `auto` goes on speaking after the last voice


class Chunk(NamedTuple):
    """One chunk of video.

    Attributes:
      frames: uint8 [F, H, W, 3].
      first_frame: Number of frames before this chunk; frame i is shown at
        (first_frame + i) / fps on the clock of the pushed sound.
      seconds: Wall time of the stages "audio", "score" (denoising) and "decode".
      speaking: Whether the character was in its speaking mode.
    """

    frames: np.ndarray
    first_frame: int
    seconds: dict[str, float]
    speaking: bool


class Session:
    """Streams one character.

    Frame 0 of the model's clock is the picture itself and is not shown: the first frame that
    comes out sounds with speech sample 0.
    """

    def __init__(
        self, pipeline: pipeline_lib.Pipeline, picture: np.ndarray, *, seed: int = 0,
        mode: str = "auto", face: tuple[float, float, float, float] | None = None,
    ):
        """Starts a stream.

        Args:
          pipeline: Preset and weights.
          picture: uint8 [H, W, 3] in the preset's size.
          seed: Seed of the noise; the same seed, picture and sound give the same video.
          mode: "auto" (speaks while there is a voice), "speak" or "listen".
          face: Box (top, left, bottom, right) in 0..1 of the picture whose tokens attend to
            the sound; None: the whole picture.

        Raises:
          ValueError: Wrong picture size or type, box or mode.
        """
        self._pipeline, self._seed, self._face = pipeline, seed, face
        self._timing = pipeline.preset.timing
        self._latents = self._chunk_latents
        self.fps = self._timing.fps
        self.chunk_frames = self._latents * self._timing.frames_per_latent
        self.set_mode(mode)
        self._picture = self._checked(picture)
        self._partner = partner_lib.PartnerQueue(self._timing.samples_per_frame, sum(self._around))
        self.reset()

    @property
    def _chunk_latents(self) -> int:
        """Latent frames that one `pull` makes."""
        return self._pipeline.preset.timing.latents_per_chunk

    @property
    def _around(self) -> tuple[int, int]:
        """Samples before and after a chunk that the speech encoder needs."""
        return self._pipeline.before, self._pipeline.after

    @property
    def lookahead_s(self) -> float:
        """Seconds of sound after a chunk that must be known to make it."""
        return self._around[1] / self._timing.sample_rate

    def _checked(self, picture):
        preset = self._pipeline.preset
        picture = np.asarray(picture)
        expected = (preset.height, preset.width, 3)
        if picture.shape != expected or picture.dtype != np.uint8:
            raise ValueError(
                f"picture: expected uint8 {expected}, got {picture.dtype} {picture.shape}; "
                "media.picture.load crops and resizes."
            )
        return picture

    def reset(self) -> None:
        """Starts again from the picture, at frame 0, without any sound."""
        # From `before` ahead of the next chunk on.
        self._sound = np.zeros(self._around[0], np.float32)
        self._partner.clear()
        self._ended = False
        self._chunk = 0
        self._held = 0
        self._start_stream()

    def _start_stream(self):
        key = pipeline_lib.stream_key(self._seed, self._chunk)
        faces = None if self._face is None else np.asarray([self._face])
        self._start, self._state, self._decoder = self._pipeline.begin(
            self._picture[None], key[None], faces
        )

    def set_character(self, picture: np.ndarray) -> None:
        """Goes on with another picture from the next chunk; sound and clock stay.

        Raises:
          ValueError: Wrong picture size or type.
        """
        self._picture = self._checked(picture)
        self._start_stream()

    def set_mode(self, mode: str) -> None:
        """Sets the mode from the next chunk on.

        Raises:
          ValueError: Not one of `MODES`.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
        self._mode = mode

    def push_audio(self, samples: np.ndarray) -> None:
        """Appends sound.

        Args:
          samples: float32 [n] in -1..1, mono at 16 kHz; any n.

        Raises:
          ValueError: Not a one-dimensional array of finite numbers.
          RuntimeError: After `end_audio`.
        """
        if self._ended:
            raise RuntimeError("push_audio after end_audio; call reset first.")
        self._sound = np.concatenate([self._sound, _checked_sound(samples)])

    def push_other(self, samples: np.ndarray) -> None:
        """Appends sound of the other party, to which the character reacts while it listens.

        It sounds on the clock of the pushed sound: sample 0 with the first frame. A chunk does
        not wait for it: what is missing is silence, and what comes late is used late. It may
        go on after `end_audio`, and `interrupt` leaves it alone.

        Args:
          samples: float32 [n] in -1..1, mono at 16 kHz; any n.

        Raises:
          ValueError: Not a one-dimensional array of finite numbers, or a preset that cannot
            hear another party.
        """
        if not self._pipeline.functions.partner:
            raise ValueError(
                f"push_other: preset {self._pipeline.preset.name} takes the character's own "
                "sound alone; nano takes the other party's, too."
            )
        self._partner.push(_checked_sound(samples))

    def end_audio(self) -> None:
        """Ends the sound: what is missing is silence."""
        self._ended = True

    def interrupt(self) -> None:
        """Discards sound that has not been shown yet; the clock goes on."""
        self._sound = self._sound[: self._around[0]]
        self._held = 0

    def pull(self) -> Chunk | None:
        """Makes the next chunk.

        Returns:
          The chunk; None while too little sound has been pushed. Sound must be known a
          little beyond the chunk (`lookahead_s`). Never None after `end_audio`.
        """
        timing, (before, after) = self._timing, self._around
        step = self.chunk_frames * timing.samples_per_frame
        needed = before + step + after
        if len(self._sound) < needed:
            if not self._ended:
                return None
            self._sound = np.pad(self._sound, (0, needed - len(self._sound)))
        started = time.perf_counter()
        known = min(needed, (self._chunk + 1) * step + after)
        windows, voice = self._encode_audio(
            self._sound[None, :needed], np.array([known], np.int32)
        )
        speaking = self._speaks(np.asarray(voice))
        encoded = time.perf_counter()
        mode = np.full((1, self._latents), speaking, np.int32)
        partner = self._encode_partner(self._partner.take(self.chunk_frames)[None])
        latents = jax.block_until_ready(self._denoise(windows, mode, partner))
        denoised = time.perf_counter()
        frames = self._decode(latents)
        decoded = time.perf_counter()
        self._sound = self._sound[step:]
        first = self._chunk * self.chunk_frames
        self._chunk += 1
        seconds = {
            "audio": encoded - started, "score": denoised - encoded,
            "decode": decoded - denoised,
        }
        return Chunk(frames, first, seconds, speaking)

    def _encode_audio(self, samples: np.ndarray, known: np.ndarray):
        return self._pipeline.encode_audio(samples, known)

    def _encode_partner(self, samples: np.ndarray):
        return self._pipeline.encode_partner(samples)

    def _denoise(self, windows, mode: np.ndarray, partner: jax.Array | None):
        latents, self._state = self._pipeline.denoise(
            self._state, self._start, windows, mode, partner
        )
        return latents

    def _decode(self, latents) -> np.ndarray:
        pipeline = self._pipeline
        frames, self._decoder = pipeline.decode(pipeline.move(latents), self._decoder)
        return np.asarray(frames)[0]

    def _speaks(self, voice: np.ndarray) -> bool:
        if self._mode != "auto":
            return self._mode == "speak"
        self._held = HOLD + 1 if (voice > VOICE).any() else max(0, self._held - 1)
        return self._held > 0

    def close(self) -> None:
        """Gives the memory of the stream back; the session cannot be used any more."""
        self._state = self._decoder = self._start = None


def _checked_sound(samples) -> np.ndarray:
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(
            "samples: expected finite float32 [n], mono at 16 kHz, got shape "
            f"{samples.shape}."
        )
    return samples
