"""The mouth's measurement agrees with the labels, which it never sees."""

import numpy as np
import pytest

from tm_jax.data.synthetic import characters
from tm_jax.evaluation import mouth

SIZE = 64


def _speech(rng: np.random.Generator, clips: int, frames: int) -> np.ndarray:
    """Random mouths on a head at rest."""
    motion = np.tile(characters.neutral(), (clips, frames, 1))
    for name in ("mouth_open", "mouth_round", "teeth", "tongue"):
        values = rng.uniform(0.0, 1.0, (clips, frames))
        motion[..., characters.MOTION.index(name)] = values
    motion[:, ::4, characters.MOTION.index("mouth_open")] = 0.0
    return motion


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    styles = characters.STYLES
    batch = characters.stack([characters.sample(i, style) for i, style in enumerate(styles)])
    motion = _speech(rng, 4, 20)
    parts = np.split(motion, 4, axis=1)  # the shape that the tests of characters compile
    video = np.concatenate([characters.render(batch, part, SIZE) for part in parts], axis=1)
    boxes = np.concatenate([characters.regions(batch, part)["mouth"] for part in parts], axis=1)
    return motion, video, boxes


def test_opening_follows_the_label(clips):
    motion, video, boxes = clips
    truth = motion[..., characters.MOTION.index("mouth_open")]
    scores = []
    for label, frames, box in zip(truth, video, boxes):
        measured = mouth.opening(frames, box)
        assert measured.shape == label.shape and measured.dtype == np.float32
        scores.append(np.corrcoef(measured, label)[0, 1])
    assert np.median(scores) > 0.9, scores


def test_one_box_serves_a_still_head(clips):
    _, video, boxes = clips
    np.testing.assert_allclose(
        mouth.opening(video[0], boxes[0, 0]), mouth.opening(video[0], boxes[0])
    )


def test_movement_separates_silence_from_speech(clips):
    _, video, boxes = clips
    still = np.repeat(video[0, :1], 5, axis=0)
    assert mouth.movement(still, boxes[0, 0]).max() == 0.0
    moving = mouth.movement(video[0], boxes[0, 0])
    assert moving.shape == (len(video[0]) - 1,)
    assert moving.min() > 0.001


def test_wrong_input_is_explained(clips):
    _, video, boxes = clips
    with pytest.raises(ValueError, match="uint8"):
        mouth.opening(video[0].astype(np.float32), boxes[0])
    with pytest.raises(ValueError, match="at least one pixel"):
        mouth.opening(video[0], np.array([0.5, 0.5, 0.5, 0.5]))
