"""Long streams that drift, break or stay as they are, in ways that are known."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.core import timing as timing_lib
from tm_jax.evaluation import arms
from tm_jax.evaluation import endurance

_TIMING = timing_lib.Timing()
_SIDE = 64
_SECONDS = 48


class _Session:
    """Shows a picture with noise, a mouth that follows the sound, and a growing cast."""

    def __init__(self, picture, seed, cast_per_minute, broken_at=None):
        self.fps, self.chunk_frames = _TIMING.fps, _TIMING.frames_per_chunk
        self._picture, self._rng = picture.astype(float), np.random.default_rng(seed)
        self._cast, self._broken_at = cast_per_minute, broken_at
        self._sound, self._at, self._ended, self.closed = np.zeros(0), 0, False, False
        self._state, self._decoder = {"x": jnp.zeros(3)}, ()

    def push_audio(self, samples):
        assert not self._ended
        self._sound = np.concatenate([self._sound, samples])

    def end_audio(self):
        self._ended = True

    def pull(self):
        step = self.chunk_frames * 640
        ready = (self._at // self.chunk_frames + 1) * step
        if len(self._sound) < ready + 320 and not self._ended:  # A look-ahead.
            return None
        sound = np.pad(self._sound, (0, max(0, ready - len(self._sound))))[ready - step : ready]
        opening = np.abs(sound.reshape(self.chunk_frames, 640)).max(1)
        frames = np.repeat(self._picture[None], self.chunk_frames, 0)
        for i, frame in enumerate(frames):
            frame[40 : 40 + round(12 * opening[i]), 22:42] = 8
            frame += self._cast * (self._at + i) / self.fps / 60
        frames += self._rng.normal(0, 2, (self.chunk_frames, 1, 1, 1))
        first, self._at = self._at, self._at + self.chunk_frames
        if self._broken_at is not None and self._at >= self._broken_at:
            self._state = {"x": jnp.array([0, jnp.nan])}
        shown = np.uint8(np.clip(frames, 0, 255))
        return types.SimpleNamespace(frames=shown, first_frame=first, speaking=first % 24 == 0)

    def close(self):
        self.closed = True


def _picture():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    picture = np.full((_SIDE, _SIDE, 3), 120.0)
    for _ in range(30):
        cy, cx = rng.random(2)
        spot = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.003)
        picture += spot[..., None] * rng.uniform(-60, 60, 3)
    picture[36:56, 18:46] = 150
    return np.uint8(np.clip(picture, 0, 255))


@pytest.fixture(scope="module")
def scene():
    frames = _SECONDS * _TIMING.fps
    rng = np.random.default_rng(1)
    window = np.hanning(9)
    opening = np.convolve(rng.standard_normal(frames + 8), window / window.sum(), "valid")
    opening = np.clip(0.5 + opening, 0, 1)
    track = types.SimpleNamespace(
        audio=np.repeat(opening, 640).astype(np.float32), mouth=opening[:, None]
    )
    return types.SimpleNamespace(
        picture=_picture(), track=track, motion=np.zeros((frames, 1)), speaker="x", style="y",
        mouth_box=np.array([0.55, 0.3, 0.9, 0.7]), face_box=np.array([0.1, 0.1, 0.9, 0.9]),
    )


def _arm(cast, broken_at=None):
    make = lambda picture, seed, mode: _Session(picture, seed, cast, broken_at)
    return arms.Streamed(make)


def test_a_known_drift_is_measured(scene):
    found = endurance.measure(_arm(12.0), scene, _TIMING, window_s=8, runs=4)
    # A cast of 12 grey levels a minute of 255, in windows whose middles are 40 s apart.
    drift = found["drift"]["picture_distance"]
    assert drift.last - drift.first == pytest.approx(12 / 255 * 40 / 60, rel=0.15)
    assert found["per_minute"]["picture_distance"] == pytest.approx(12 / 255, rel=0.15)
    assert found["runs"]["picture_distance"]["change"] > 5
    assert endurance.largest_change(found) > 5
    assert found["correlation_first_30_s"] > 0.9
    assert found["seconds"] == _SECONDS and found["finite"]


def test_a_steady_stream_is_within_the_spread_of_its_runs(scene):
    found = endurance.measure(_arm(0.0), scene, _TIMING, window_s=8, runs=6)
    assert endurance.largest_change(found) < 4  # Student's t with 5 degrees of freedom.
    assert abs(found["drift"]["likeness"].change) < 0.5
    assert found["seams"]["chunk"].median == pytest.approx(1, abs=0.3)
    spreads = [row["spread"] for row in found["runs"].values()]
    assert all(len(row["first"]) == 6 for row in found["runs"].values()) and max(spreads) > 0


def test_numbers_that_are_not_finite_are_seen(scene):
    short = types.SimpleNamespace(**vars(scene) | {
        "track": types.SimpleNamespace(audio=scene.track.audio[: 24 * 7680],
                                       mouth=scene.track.mouth[: 24 * 12]),
        "motion": scene.motion[: 24 * 12],
    })  # fmt: skip
    found = endurance.measure(_arm(0.0, broken_at=100), short, _TIMING, window_s=2)
    assert not found["finite"] and "runs" not in found
    assert endurance.measure(_arm(0.0), short, _TIMING, window_s=2)["finite"]


def test_chunks_cover_the_sound_and_close_the_session():
    session = _Session(_picture(), 0, 0.0)
    made = list(arms.chunks(session, np.zeros(7680 * 2 + 1)))
    assert [c.first_frame for c in made] == [0, 12, 24] and session.closed
    clip = arms.show(_Session(_picture(), 0, 0.0), np.zeros(7680 * 2 + 1), 25)
    assert clip.frames.shape == (25, _SIDE, _SIDE, 3)
    assert clip.speaking == pytest.approx(2 / 3)
    stopped = _Session(_picture(), 0, 0.0)
    next(stream := arms.chunks(stopped, np.zeros(99999)))
    stream.close()
    assert stopped.closed
