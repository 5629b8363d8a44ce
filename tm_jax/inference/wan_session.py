"""Streams of presets of full size: sound in, frames out, by the student or the teacher.

Both have the interface of `session.Session`. The student makes chunk after chunk. The teacher
makes clips of 81 frames: the picture and 80 frames that are shown; the next clip begins with
the last frame of the one before.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.inference import session
from tm_jax.inference import wan
from tm_jax.models.wan import audio as dit_audio
from tm_jax.models.wav2vec2 import config as wav2vec2_config
from tm_jax.models.wav2vec2 import stream

LOUD = 0.01  # Root mean square, -40 dB, above which `auto` takes a frame's sound for a voice.
_FUTURE = 5  # Frames of sound after a chunk that the speech encoder hears.
_MOST_DECODED = 4  # Latents of a teacher's clip that are decoded at once.


class _Stream(session.Session):
    """What student and teacher share: how sound is heard, and the clock.

    Attributes:
      fps: Frames per second.
      chunk_frames: Frames that one `pull` gives.
      lookahead_s: Seconds of sound after a chunk that must be known to make it.
    """

    def __init__(self, bundle, picture, latents: int, *, seed, mode, face):
        self._bundle, self._seed, self._face = bundle, seed, face
        timing = dataclasses.replace(bundle.preset.timing, latents_per_chunk=latents)
        before, after = dit_audio.margins(bundle.preset.dit.audio_window, timing)
        self._window = wav2vec2_config.WindowConfig(
            timing=timing, past_frames=max(50, before), future_frames=max(_FUTURE, after + 1),
            before_frames=before, after_frames=after,
        )
        self._timing = timing
        self.fps, self.chunk_frames = timing.fps, timing.frames_per_chunk
        self.lookahead_s = self._window.lookahead_s
        self.set_mode(mode)
        self._picture = self._checked(picture)
        self.reset()

    def reset(self):
        """Starts again from the picture, at frame 0, without any sound."""
        self._sound = np.zeros(0, np.float32)
        self._heard = None  # Begins with the first chunk, which must know its look-ahead.
        self._ended = False
        self._chunk = self._held = 0
        self._start_stream()

    def push_other(self, samples: np.ndarray):
        """Is refused: no preset of full size hears another party."""
        raise ValueError(
            f"push_other: preset {self._bundle.preset.name} hears the character's own sound "
            "alone; the other party's needs a preset with a motion model, such as nano."
        )

    def interrupt(self):
        """Forgets sound that has not been shown yet; the clock goes on."""
        self._sound = self._sound[:0]
        self._held = 0
        if self._heard is not None:
            samples = self._heard.samples.at[:, -self._window.future_samples :].set(0)
            self._heard = self._heard.replace(samples=samples)

    def pull(self) -> session.Chunk | None:
        """Makes the next chunk, or the next clip.

        Returns:
          The chunk; None while too little sound has been pushed. Sound must be known
          `lookahead_s` beyond the chunk. Never None after `end_audio`.
        """
        ahead = self._window.future_samples if self._heard is None else 0
        needed = ahead + self._timing.samples_per_chunk
        if len(self._sound) < needed:
            if not self._ended:
                return None
            self._sound = np.pad(self._sound, (0, needed - len(self._sound)))
        started = time.perf_counter()
        if self._heard is None:
            # Placed like what `hear` returns, or the second chunk would compile it again.
            self._heard = jax.device_put(
                stream.begin(self._window, jnp.asarray(self._sound[None, :ahead])),
                self._bundle.everywhere,
            )
        samples, self._sound = np.split(self._sound[ahead:], [needed - ahead])
        ours = np.concatenate([np.asarray(self._heard.samples[0]), samples])
        first = self._window.past_frames * self._timing.samples_per_frame
        speaking = self._speaks(self._voice(ours[first : first + len(samples)]))
        windows, self._heard = self._bundle.hear(
            self._window, self._bundle.params["audio"], self._heard, samples[None]
        )
        jax.block_until_ready(windows)
        heard = time.perf_counter()
        mode = np.full((1, self._timing.latents_per_chunk), speaking, np.int32)
        latents = jax.block_until_ready(self._score(windows, mode))
        scored = time.perf_counter()
        frames = self._decode(latents)
        seconds = {
            "audio": heard - started, "score": scored - heard,
            "decode": time.perf_counter() - scored,
        }
        number = self._chunk * self.chunk_frames
        self._chunk += 1
        return session.Chunk(frames, number, seconds, speaking)

    def _voice(self, samples: np.ndarray) -> np.ndarray:
        """Whether each frame of a chunk is loud, [F] of 0 or 1."""
        frames = np.square(samples.reshape(self.chunk_frames, -1))
        return (np.sqrt(frames.mean(1)) > LOUD).astype(np.float32)

    def _context(self, character: wan.Character, text):
        params = self._bundle.params["transformer"]
        return self._bundle.context(params, text, character.image, character.face_mask)

    def _key(self):
        return jax.random.fold_in(jax.random.key(self._seed), self._chunk)


class Student(_Stream):
    """Streams one character with the causal student.

    Frame 0 of the model's clock is the picture itself and is not shown.
    """

    def __init__(
        self, bundle: wan.WanBundle, picture: np.ndarray, *, seed: int = 0,
        mode: str = "auto", face: tuple[float, float, float, float] | None = None,
    ):
        """Starts a stream.

        Args:
          bundle: Preset and weights.
          picture: uint8 [H, W, 3] in the preset's size.
          seed: Seed of the noise; the same seed, picture and sound give the same video.
          mode: "auto" (speaks while there is sound), "speak" or "listen".
          face: Box (top, left, bottom, right) in 0..1 that listens to the sound; None: the
            whole picture.

        Raises:
          ValueError: Wrong picture size or type, box or mode.
        """
        latents = bundle.preset.timing.latents_per_chunk
        super().__init__(bundle, picture, latents, seed=seed, mode=mode, face=face)

    def _start_stream(self):
        bundle = self._bundle
        character = bundle.character(self._picture, self._face)
        self._conditioning = self._context(character, bundle.prompt)
        self._state = bundle.begin(
            bundle.params["transformer"], character.reference, self._conditioning,
            self._key()[None],
        )
        _, part = bundle.pixels
        _, self._decoder = bundle.decode_first(
            bundle.params[part], character.reference[:, None]
        )

    def _score(self, windows, mode):
        bundle = self._bundle
        latents, self._state = bundle.score(
            bundle.params["transformer"], self._state, bundle.empty, windows, mode,
            self._conditioning,
        )
        return latents

    def _decode(self, latents):
        _, part = self._bundle.pixels
        frames, self._decoder = self._bundle.decode(
            self._bundle.params[part], latents, self._decoder
        )
        return np.asarray(frames)

    def close(self):
        """Gives the memory of the stream back; the session cannot be used any more."""
        self._state = self._decoder = self._conditioning = self._heard = None


class Teacher(_Stream):
    """Makes one clip after another with the bidirectional teacher."""

    def __init__(
        self, bundle: wan.WanBundle, picture: np.ndarray, *, seed: int = 0,
        mode: str = "auto", face: tuple[float, float, float, float] | None = None,
        plan: wan.Plan = wan.Plan(),
    ):
        """Starts a stream of clips.

        Args:
          bundle: Preset and weights.
          picture: uint8 [H, W, 3] in the preset's size.
          seed: Seed of the noise.
          mode: "auto" (speaks while there is sound), "speak" or "listen".
          face: Box (top, left, bottom, right) in 0..1 that listens to the sound; None: the
            whole picture.
          plan: Length of a clip, steps and guidance.

        Raises:
          ValueError: Wrong picture size or type, box or mode.
        """
        self._plan = plan
        super().__init__(bundle, picture, plan.latents - 1, seed=seed, mode=mode, face=face)

    def _start_stream(self):
        bundle = self._bundle
        character = bundle.character(self._picture, self._face)
        self._conditioning = self._context(character, bundle.prompt)
        self._negative = None
        if self._plan.guidance != 1:
            self._negative = self._context(character, bundle.negative)
        self._next, self._reference = self._picture, character.reference

    def _score(self, windows, mode):
        bundle = self._bundle
        params = {part: bundle.params[part] for part in ("transformer", "vae")}
        return bundle.teacher(
            self._plan, params, self._next, self._reference, windows, mode,
            self._conditioning, self._negative, self._key(),
        )

    def _decode(self, latents):
        bundle, count = self._bundle, latents.shape[1] - 1
        _, part = bundle.pixels
        params = bundle.params[part]
        _, state = bundle.decode_first(params, latents[:, :1])  # Was shown already.
        step = max(n for n in range(1, _MOST_DECODED + 1) if count % n == 0)
        frames = []
        for start in range(1, count + 1, step):
            piece, state = bundle.decode(params, latents[:, start : start + step], state)
            frames.append(np.asarray(piece))
        self._next = frames[-1][-1]
        self._reference = bundle.reference(self._next)
        return np.concatenate(frames)

    def close(self):
        """Gives the memory of the stream back; the session cannot be used any more."""
        self._conditioning = self._negative = self._heard = self._reference = None
