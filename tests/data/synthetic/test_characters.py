"""Characters: determinism, shapes, batching, the held-out rule and the exactness of labels."""

import jax
import numpy as np
import pytest

from tm_jax.data.synthetic import characters

SIZE = 64
STYLES = characters.STYLES


def _motion(**values: float) -> np.ndarray:
    motion = characters.neutral()
    for name, value in values.items():
        motion[characters.MOTION.index(name)] = value
    return motion


@pytest.fixture(scope="module")
def clip():
    """One character of each style, opening its mouth over 5 frames."""
    batch = characters.stack([characters.sample(i, style) for i, style in enumerate(STYLES)])
    curve = np.stack([_motion(mouth_open=i / 4, yaw=0.5, roll=0.4) for i in range(5)])
    motion = np.tile(curve, (len(STYLES), 1, 1))
    return batch, motion, np.asarray(characters.render(batch, motion, SIZE))


def test_sampling_is_deterministic_and_varied():
    first, again, other = (characters.sample(seed) for seed in (7, 7, 8))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.skin, other.skin)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(first))
    chosen = {int(characters.sample(seed).kinds[0]) for seed in range(40)}
    assert chosen == set(range(len(STYLES)))


def test_unknown_style_names_the_valid_ones():
    with pytest.raises(ValueError, match="flat, clay, sketch, paint"):
        characters.sample(0, "oil")


def test_wrong_motion_is_explained(clip):
    batch, motion, _ = clip
    with pytest.raises(ValueError, match=r"\[B, T, 17\]"):
        characters.render(batch, motion[..., :3], SIZE)


def test_video_has_the_promised_shape(clip):
    _, motion, video = clip
    assert video.shape == (*motion.shape[:2], SIZE, SIZE, 3)
    assert video.dtype == np.uint8
    assert np.ptp(video) > 150


def test_batch_equals_single(clip):
    batch, motion, video = clip
    shuffled = jax.tree.map(lambda leaf: leaf[::-1], batch)
    again = characters.render(shuffled, motion[::-1], SIZE)
    np.testing.assert_array_equal(video[::-1], np.asarray(again))


def test_styles_differ(clip):
    _, motion, _ = clip
    batch = characters.stack([characters.sample(3, style) for style in STYLES])
    frames = np.asarray(characters.render(batch, motion, SIZE))[:, 0].astype(float)
    for i in range(len(STYLES)):
        for j in range(i):
            assert np.abs(frames[i] - frames[j]).mean() > 3.0


def test_held_out_rule_splits_the_seeds():
    train = [characters.training_seed(i) for i in range(900)]
    held = [characters.held_out_seed(i) for i in range(100)]
    assert sorted(train + held) == list(range(1000))
    assert not any(map(characters.is_held_out, train))
    assert all(map(characters.is_held_out, held))


def test_boxes_contain_the_mouth(clip):
    batch, motion, video = clip
    boxes = characters.regions(batch, motion)
    assert boxes["mouth"].shape == boxes["face"].shape == (*motion.shape[:2], 4)
    change = np.abs(np.diff(video.astype(int), axis=1)).max(-1).max(1)  # [B, H, W]
    for picture, box in zip(change, np.asarray(boxes["mouth"])[:, 0]):
        ys, xs = np.nonzero(picture > 2)
        assert len(ys) > 20
        y0, x0, y1, x1 = box * SIZE
        assert y0 <= ys.min() + 1 and ys.max() <= y1 and x0 <= xs.min() + 1 and xs.max() <= x1
    face, mouth = np.asarray(boxes["face"]), np.asarray(boxes["mouth"])
    assert (face[..., :2] < mouth[..., :2]).all() and (face[..., 3] > mouth[..., 3]).all()


def test_opening_the_mouth_darkens_its_box_step_by_step(clip):
    batch, motion, video = clip
    boxes = np.asarray(characters.regions(batch, motion)["mouth"])[:, 0]
    for frames, box in zip(video, boxes):
        y0, x0, y1, x1 = np.round(box * SIZE).astype(int)
        dark = (frames[:, y0:y1, x0:x1].mean(-1) < 40).sum((1, 2))
        assert dark[0] == 0
        assert (np.diff(dark[1:]) > 0).all()
