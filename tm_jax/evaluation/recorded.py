"""Measures a video file of a face, real or generated, against its own sound.

No truth is known here: the mouth is read off landmarks and compared with how loud the voice
is. Loudness and opening go together only loosely, so the correlation compares versions of the
same clip; 0.3 to 0.6 is what people reach.
"""

from collections.abc import Iterator
import os

import av
import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.evaluation import gestures
from tm_jax.evaluation import landmarks
from tm_jax.evaluation import lipsync
from tm_jax.evaluation import syncnet
from tm_jax.media import audio as audio_files

_TIMING = timing_lib.Timing()
_RANGE_DB = 40.0  # Below the loudest speech nothing counts.
_VOICE_DB = 30.0  # Below the loudest speech it counts as silence.
_QUIET_DB = -60.0  # Below full scale there is no voice at all.
_SYNC_S = 60.0  # SyncNet looks at the first minute.
_REACH = 8  # Frames of lag.
_EMPTY_S = 1.0  # Least time with a face.
_SMOOTH = (0.25, 0.5, 0.25)


def read(path: str | os.PathLike, fps: int = _TIMING.fps) -> Iterator[np.ndarray]:
    """Yields the frames of a video at a steady rate, uint8 [H, W, 3].

    Raises:
      ValueError: No video in the file.
      OSError: It cannot be read.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"video: {path} holds no pictures.")
            due = 0
            start = last = None
            for frame in container.decode(video=0):
                now = float(frame.time or 0.0)
                start = now if start is None else start
                pixels = frame.to_ndarray(format="rgb24")
                # A frame is shown until the next one comes.
                while last is not None and due / fps < now - start - 0.5 / fps:
                    yield last
                    due += 1
                last = pixels
            if last is not None:
                yield last
    except av.FFmpegError as error:
        raise OSError(f"video: {path} cannot be read: {error.strerror or error}.") from error


def sound_of(path: str | os.PathLike) -> np.ndarray | None:
    """Speech of a file at 16 kHz, float32 [n]; None if it has no sound."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
    with audio_files.open_speech(path) as reader:
        blocks = [block.speech for block in reader]
    return np.concatenate(blocks) if blocks else None


def loudness(samples: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """How loud every frame is, [T] in 0..1, and whether somebody speaks, bool [T]."""
    size = _TIMING.samples_per_frame
    padded = np.pad(samples, (0, max(0, frames * size - len(samples))))[: frames * size]
    power = np.square(padded.reshape(frames, size)).mean(1)
    level = 10 * np.log10(power + 1e-12)
    top = float(np.percentile(level, 95))
    loud = np.clip((level - top + _RANGE_DB) / _RANGE_DB, 0, 1)
    return loud, (level > top - _VOICE_DB) & (level > _QUIET_DB)


def measure(path: str | os.PathLike, syncnet_path: str | os.PathLike | None = None) -> dict:
    """Measures a video of a face.

    Args:
      path: Video file, with sound or without.
      syncnet_path: The published weights of SyncNet, or None.

    Returns:
      `frames`, `seconds`, `face_share`; `lips` against the sound; `head`, `blinks_per_minute`;
      `syncnet` if asked for.

    Raises:
      ValueError: No face, no pictures, or a missing package.
      OSError: A file cannot be read.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"video: there is no file {path}.")
    net = syncnet.SyncNet(str(syncnet_path)) if syncnet_path else None
    mesh, rows, shape = landmarks.FaceMesh(), [], None
    for frame in read(path):
        shape = frame.shape
        rows.append(mesh(frame))
    seen = np.array([row is not None for row in rows])
    if seen.sum() < _EMPTY_S * _TIMING.fps:
        raise ValueError(
            f"video: {path} shows a face in {int(seen.sum())} of {len(rows)} frames; a second "
            "or more is needed."
        )
    assert shape is not None  # There are frames.
    points = _filled(rows, seen)
    samples = sound_of(path)
    minutes = len(rows) / _TIMING.fps / 60
    eyes = landmarks.eye_opening(points)
    shut = np.clip(1 - eyes / max(float(np.median(eyes)), 1e-6), 0, 1)
    middle = points[:, [33, 263]].mean(1)[:, ::-1]  # Row and column.
    found = {
        "frames": len(rows), "seconds": len(rows) / _TIMING.fps,
        "face_share": float(seen.mean()),
        "lips": None if samples is None else against_sound(
            landmarks.lip_opening(points), samples
        ),
        "head_speed": float(gestures.speeds([middle], _TIMING.fps, shape[0]).mean()),
        "blinks_per_minute": len(gestures.blinks(shut)) / minutes,
    }
    if net is not None:
        if samples is None:
            raise ValueError(f"video: {path} has no sound, which SyncNet needs.")
        found["syncnet"] = _sync(net, path, points, samples, shape)
    return found


def _filled(rows: list, seen: np.ndarray) -> np.ndarray:
    """Landmarks of every frame, [T, 468, 2]: those of the nearest seen one where none was."""
    known = np.flatnonzero(seen)
    nearest = known[np.abs(np.arange(len(rows))[:, None] - known).argmin(1)]
    return np.stack([rows[i] for i in nearest])


def against_sound(opening: np.ndarray, samples: np.ndarray) -> dict:
    """How an opening of the mouth follows a sound.

    Args:
      opening: Opening of every frame, [T].
      samples: Speech at 16 kHz, [n].

    Returns:
      `correlation` with loudness, `lag_frames` (positive if the picture is late) and the
      correlation there, `silence_ratio` (movement in pauses over movement in speech; None
      without either), `opening_p95`.
    """
    loud, voice = loudness(samples, len(opening))
    reach = min(_REACH, (len(opening) - 2) // 2)
    lag = lipsync.best_lag(opening, loud, reach)
    # Landmarks tremble from frame to frame; lips that speak do not.
    moved = np.abs(np.diff(np.convolve(np.pad(opening, 1, mode="edge"), _SMOOTH, "valid")))
    # Pauses begin and end with movements that belong to speech.
    near = np.convolve(voice, np.ones(7), "same") > 0
    still, spoken = ~near[1:] & ~near[:-1], voice[1:] & voice[:-1]
    ratio = None
    if still.any() and spoken.any():
        ratio = float(moved[still].mean() / max(moved[spoken].mean(), 1e-6))
    return {
        "correlation": lipsync.correlation(opening, loud), "lag_frames": lag.frames,
        "correlation_at_lag": lag.correlation, "silence_ratio": ratio,
        "opening_p95": float(np.percentile(opening, 95)), "speech_share": float(voice.mean()),
    }


def _sync(net, path, points, samples, shape) -> dict:
    """SyncNet on the first minute."""
    boxes = landmarks.face_boxes(points, *shape[:2])
    frames = []
    for frame in read(path):
        frames.append(frame)
        if len(frames) >= _SYNC_S * _TIMING.fps:
            break
    faces = syncnet.crops(frames, boxes[: len(frames)])
    found = syncnet.measure(net, faces, samples)
    return found._asdict() | {"seconds": len(faces) / _TIMING.fps}
