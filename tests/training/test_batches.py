"""Batches of both sources against their definition; windows, dropout, bad examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from tm_jax.core import trees
from tm_jax.models.dit import conditioning
from tm_jax.parallel import rules
from tm_jax.training import batches
from tm_jax.training import example_source
from tm_jax.training import groups
from tm_jax.training import sources


def test_a_window_of_an_example_is_a_clip_of_its_own():
    """Channels begin at the picture, whatever the place of the window in the clip."""
    record, start, frames = small.record(1), 5, 6
    batch = small.batch(2, frames, start)
    np.testing.assert_array_equal(batch.sink[1], record["latents"][0])
    np.testing.assert_array_equal(batch.x0[1], record["latents"][6:12])
    given = batch.conditioning
    assert not given.audio[:, 0].any() and not given.mode[:, 0].any()
    np.testing.assert_array_equal(given.audio[1, 1:], record["audio"][5:11])
    np.testing.assert_array_equal(given.mode[1, 1:], record["mode"][5:11])
    condition = record["condition"]
    known = [1.0] + 6 * [0.0]
    np.testing.assert_array_equal(given.channels[1, :, 0, 0, :4], np.repeat(known, 4).reshape(7, 4))
    exact = condition[[0, 1, 2, 3, 4, 4, 4]]
    np.testing.assert_array_equal(given.channels[1, ..., 4:], exact)
    for name in ("text", "image", "face_mask"):
        np.testing.assert_array_equal(getattr(given, name)[1], record[name])


def test_a_stream_has_the_settled_channels_after_the_picture():
    """As `StreamFunctions` makes them: the picture's, then those long after it."""
    batch, record = small.batch(2, 6), small.record(1)
    condition = record["condition"][None][:, [0, -1]]
    expected = [
        conditioning.channels("first_frame", condition, 1),
        conditioning.channels("first_frame", condition, 6, first=1),
    ]
    np.testing.assert_array_equal(
        batch.streamed.channels[1], np.concatenate(expected, 1)[0]
    )
    np.testing.assert_array_equal(batch.streamed.audio, batch.conditioning.audio)


def test_every_sample_is_cut_at_its_own_frame():
    whole, first = small.batch(2, 9), np.array([3, 0])
    part = jax.jit(lambda b, i: b.cut(i, 6))(whole, first)
    for sample, start in enumerate(first):
        expected = small.batch(2, 6, start)
        for mine, theirs in zip(jax.tree.leaves(part), jax.tree.leaves(expected)):
            np.testing.assert_array_equal(mine[sample], theirs[sample])
    np.testing.assert_array_equal(whole.cut(3, 6).x0, whole.x0[:, 3:])


def test_conditions_are_dropped_apart_from_one_another():
    size = 4000
    chances = {"text": 0.5, "image": 0.2, "audio": 0.3}
    dropped = batches.Dropout(**chances).draw(jax.random.key(0), size)
    for name, chance in chances.items():
        assert np.mean(dropped[name]) == pytest.approx(chance, abs=0.03)
        for other, second in chances.items():
            if other != name:
                both = np.mean(dropped[name] & dropped[other])
                assert both == pytest.approx(chance * second, abs=0.03)


def test_what_is_dropped_is_replaced_for_that_sample_alone():
    batch = small.batch(2, 6)
    flags = {"text": [True, False], "image": [False, True], "audio": [True, False]}
    part = batch.without({name: jnp.array(value) for name, value in flags.items()})
    before, after = batch.conditioning, part.conditioning
    np.testing.assert_array_equal(after.text[0], batch.negative_text[0])
    np.testing.assert_array_equal(after.text[1], before.text[1])
    assert not after.image[1].any() and not after.audio[0].any()
    np.testing.assert_array_equal(after.image[0], before.image[0])
    np.testing.assert_array_equal(after.audio[1], before.audio[1])
    np.testing.assert_array_equal(after.mode, before.mode)
    without = batch.replace(negative_text=None).without({"text": True})
    assert not without.conditioning.text.any()


def test_windows_lie_everywhere_and_short_clips_are_passed_over():
    records = [small.record(0, 4), small.record(1, 9)]
    source = example_source.ExampleSource(records, small.preset())
    rng = np.random.default_rng(0)
    places = {source.place(i % 2, rng, 6) for i in range(60)}
    assert places == {(1, start) for start in range(4)}
    one = sources.random_window(source, 6, seed=3)
    starts = {float(one(i)["x0"][0, 0, 0, 0]) for i in range(40)}
    assert len(starts) == 4
    np.testing.assert_array_equal(one(7)["x0"], one(7)["x0"])
    with pytest.raises(ValueError, match="no example is long enough for windows of 12"):
        source.place(0, rng, 12)


def test_a_listener_overhears_voices_that_are_not_its_own():
    records = [small.record(0, 4), small.record(1, 14)]
    source = example_source.ExampleSource(records, small.preset(), overheard=0.5)
    voices = np.concatenate([record["audio"] for record in records])
    foreign = 0
    for start in range(9):
        window, record = source.window(1, start, 6), records[1]
        own, listens = record["audio"][start : start + 6], window["mode"] == 0
        changed = (window["audio"] != own).any((1, 2))
        assert not changed[~listens].any()
        for sound in window["audio"][changed]:
            assert (sound == voices).all((1, 2)).any()
        np.testing.assert_array_equal(window["x0"], record["latents"][1 + start : 7 + start])
        again = source.window(1, start, 6)
        np.testing.assert_array_equal(window["audio"], again["audio"])
        foreign += changed.any()
    assert 0 < foreign < 9
    with pytest.raises(ValueError, match=r"overheard must be in 0\.\.1, got 2"):
        example_source.ExampleConfig(overheard=2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"audio": None}, "examples have no audio"),
        ({"text": np.zeros((5, 24))}, r"text must have shape \(6, 24\), got \(5, 24\)"),
        ({"latents": np.zeros((15, 8, 8, 4))}, r"latents must have shape \(any, 8, 8, 16\)"),
        ({"mode": np.zeros(3)}, "latents must have 4 entries beside 3 modes, got 15"),
    ],
)
def test_examples_of_another_preset_are_refused(change, message):
    record = {k: v for k, v in {**small.record(0), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        example_source.ExampleSource([record], small.preset())


def test_the_last_examples_are_held_out():
    train, held_out = example_source.split(list("abcde"), 2)
    assert list(train) == list("abc") and list(held_out) == list("de")
    with pytest.raises(ValueError, match="the store has 2 examples"):
        example_source.split(["a", "b"], 2)


def test_groups_are_what_published_checkpoints_lack():
    labels = trees.flatten(groups.groups(rules.unbox(small.shapes())))
    assert labels["audio_projection/in/kernel"] == labels["mode_embedding"] == "new"
    assert labels["blocks_0/cross/k_audio/kernel"] == "new"
    assert labels["blocks_0/cross/k/kernel"] == labels["patch_embedding/kernel"] == "base"
    assert set(labels.values()) == {"new", "base"}
