"""The table of presets: sizes of the real models, by shape alone."""

import dataclasses
import json

import pytest

from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.parallel import rules


def test_the_paper_has_eighteen_billion_parameters(preset_shapes):
    shapes = rules.unbox(preset_shapes["tm-18b"])
    assert trees.count(shapes) == pytest.approx(18e9, rel=0.03)
    assert trees.count(shapes["audio_projection"]) == pytest.approx(1.2e9, rel=0.05)
    heard = {n: s for n, s in trees.flatten(shapes).items() if "_audio/" in n}
    assert trees.count(heard) == pytest.approx(0.4e9, rel=0.1)


def test_tokens_of_the_paper():
    # DESIGN.md, section 3: 1024 tokens per latent frame, 3072 per chunk, window 7168.
    preset = presets.get("tm-18b")
    chunk = preset.timing.latents_per_chunk
    assert preset.tokens == 1024
    assert preset.tokens * chunk == 3072
    assert preset.tokens * (1 + 2 * chunk) == 7168
    assert preset.latent_shape == (64, 64, 16)
    assert 1000 * preset.sigmas[1] == pytest.approx(833.33, abs=0.01)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_parts_fit_together(name):
    preset = presets.get(name)
    assert preset.name == name
    height, width, channels = preset.latent_shape
    assert height * preset.spatial_stride == preset.height
    assert width * preset.spatial_stride == preset.width
    assert preset.vae.latent_channels == channels
    assert preset.vae.frames_per_latent == preset.timing.frames_per_latent
    assert preset.audio.features == preset.dit.audio_feature_width
    for name in ("text", "image"):
        assert (getattr(preset, name) is None) == (getattr(preset.dit, f"{name}_width") is None)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"conditioning": "none"}, "dit.condition_channels is 20, but .* has 0"),
        ({"conditioning": "all"}, "conditioning must be one of none, first_frame, reference"),
        ({"image": None}, "dit.image_width is 20, but image is None: both or none"),
        ({"height": 72}, "height and width must be multiples of 16, got 72x64"),
    ],
)
def test_components_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(presets.get("pico"), **changes)


def test_settings_come_back():
    preset = presets.get("pico")
    changed = dataclasses.replace(preset, height=96, dtype="bfloat16")
    told = json.loads(json.dumps(presets.settings(changed)))
    assert presets.with_settings(preset, told) == changed


def test_lookahead():
    assert presets.get("nano").lookahead_s <= 0.120
    # One window frame and one encoder frame of 40 ms, and 7.5 ms of the analysis window.
    assert presets.get("nano").lookahead_s == pytest.approx(0.0875)


def test_nano_is_between_five_and_twenty_million(preset_shapes):
    assert 5e6 < trees.count(rules.unbox(preset_shapes["nano"])) < 20e6


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="unknown preset 'nona'; choose one of pico, nano"):
        presets.get("nona")


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("num_heads", 3, "width=32 is not a multiple of num_heads=3"),
        ("num_heads", 32, "head width 1 must be even"),
        ("clean_std", -1.0, "clean_std must be positive, got -1.0"),
    ],
)
def test_bad_transformer_sizes_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(presets.get("pico").dit, **{field: value})


def test_bad_student_settings_are_refused():
    with pytest.raises(ValueError, match="policy must be clean or per_step, got 'x'"):
        presets.StudentConfig(policy="x")
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        presets.StudentConfig(num_steps=0)
