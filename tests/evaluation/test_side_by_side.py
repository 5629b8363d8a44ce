"""Videos of arms beside one another."""

import av
import numpy as np
import pytest

from tm_jax.evaluation import side_by_side


def test_videos_stand_beside_one_another_under_their_names(tmp_path):
    left, right = np.full((6, 64, 96, 3), 40, np.uint8), np.full((6, 64, 96, 3), 200, np.uint8)
    joined = side_by_side.join({"truth": left, "student": right})
    assert joined.shape == (6, 92, 192, 3)
    assert (joined[:, 28:, :96] == 40).all() and (joined[:, 28:, 96:] == 200).all()
    bar = joined[0, :28].mean(-1)
    assert (bar[:, :96] < 128).any() and (bar[:, 96:] < 128).any()
    path = tmp_path / "pair.mp4"
    side_by_side.write(path, {"truth": left, "student": right}, np.zeros(6 * 640), 25)
    with av.open(str(path)) as found:
        frames = [f.to_ndarray(format="rgb24") for f in found.decode(video=0)]
    assert len(frames) == 6 and frames[3].shape == (92, 192, 3)
    assert abs(frames[3][60, 40].mean() - 40) < 4 and abs(frames[3][60, 150].mean() - 200) < 4


def test_odd_sides_become_even():
    odd = np.zeros((2, 31, 33, 3), np.uint8)
    assert side_by_side.join({"a": odd}).shape == (2, 60, 32, 3)
    with pytest.raises(ValueError, match="one shape"):
        side_by_side.join({"a": odd, "b": odd[:1]})
