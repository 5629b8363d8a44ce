"""Every part converts between all of its layouts, bit by bit, and is found by its names."""

import dataclasses
import functools

import ml_dtypes
import numpy as np
import pytest

from tm_jax.checkpoints import convert
from tm_jax.checkpoints import loading
from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import parts
from tm_jax.checkpoints import sinks
from tm_jax.checkpoints import sources
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.models.audio.wav2vec2 import config as wav2vec2_config
from tm_jax.models.image import config as clip_config
from tm_jax.models.text import config as umt5_config
from tm_jax.models.vae.tiny import config as taehv_config
from tm_jax.models.vae.wan import config as vae_config
from tm_jax.parallel import rules

_SPEECH = dict(
    width=8, num_layers=2, num_heads=2, mlp_width=12, channels=(4,) * 7, position_taps=4,
    position_groups=2,
)
_BUILD = {
    "vae": lambda: parts.vae(vae_config.PRESETS["pico"]),
    "taehv": lambda: parts.taehv(taehv_config.PRESETS["pico"]),
    "text": lambda: parts.text(umt5_config.UMT5Config(
        vocab=11, width=8, num_layers=2, num_heads=2, head_width=4, mlp_width=12
    )),
    "image": lambda: parts.image(clip_config.CLIPConfig(
        width=8, num_layers=2, num_heads=2, mlp_width=12, picture=28
    )),
    "audio-base": lambda: parts.audio(wav2vec2_config.Wav2Vec2Config(**_SPEECH)),
    "audio-lv60": lambda: parts.audio(wav2vec2_config.Wav2Vec2Config(
        **_SPEECH, feature_norm="layer", conv_bias=True, pre_norm=True
    )),
}  # fmt: skip


@functools.cache
def _part(name):
    return _BUILD[name]()


def _published(part, layout):
    """Random tensors of a layout by name."""
    rng = np.random.default_rng(0)
    shapes = trees.flatten(rules.unbox(part.boxed))
    return {
        name: rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
        for row in part.rows(layout)
        for name, shape in zip(mapping.names(row[0]), mapping.source_shapes(row, shapes))
    }


@pytest.mark.parametrize("name", _BUILD)
def test_there_and_back_through_every_layout(tmp_path, name):
    part = _part(name)
    for layout in part.layouts:
        expected = _published(part, layout)
        start = str(tmp_path / f"{layout}.pth")
        sinks.write_pickled(start, expected, expected.items())
        source = start
        for to in ("ours", *part.layouts):
            out = str(tmp_path / f"{layout}-{to}")
            report = convert.convert(part, source, out, to=to, shard_bytes=3000)
            if source == start:
                assert report.source[1] == layout  # Told by the names.
            assert not report.notes
            source = out
        end = str(tmp_path / f"{layout}-end.safetensors")
        convert.convert(part, source, end, to=layout)
        actual = sources.open_source(end)
        assert set(actual) == set(expected)
        for tensor, value in expected.items():
            x = np.asarray(actual[tensor])
            assert x.dtype == value.dtype
            np.testing.assert_array_equal(x, value, err_msg=tensor)


@pytest.mark.parametrize("name", ["image", "audio-base"])
def test_tensors_that_carry_nothing_are_named(tmp_path, name):
    part = _part(name)
    layout = {"image": "original", "audio-base": "original-headed"}[name]
    extra = {"image": "textual.norm.weight", "audio-base": "lm_head.bias"}[name]
    tensors = {**_published(part, layout), extra: np.ones(3, np.float32)}
    path = str(tmp_path / "x.safetensors")
    sinks.write_safetensors(path, tensors, tensors.items())
    report = convert.convert(part, path, str(tmp_path / "out"))
    assert report.notes == (f"1 tensors carry nothing and are left out: {extra}",)


def test_a_part_in_place_of_another_is_told(tmp_path):
    """The autoencoder's file, given as the text encoder's, and the other way round."""
    for one, other in (("vae", "text"), ("text", "vae"), ("taehv", "vae")):
        part = _part(one)
        tensors = _published(part, part.layouts[-1])
        path = str(tmp_path / f"{one}.safetensors")
        sinks.write_safetensors(path, tensors, tensors.items())
        with pytest.raises(ValueError, match=f"expected the {other} in layout|does not fit"):
            convert.convert(_part(other), path, str(tmp_path / "out"))


def test_sizes_by_name():
    assert set(parts.PARTS) == {"transformer", "vae", "taehv", "text", "image", "audio"}
    assert parts.get("taehv", "wan-1.3b").name == "taehv of wan-1.3b"
    assert trees.count(rules.unbox(parts.get("taehv", "taew-2.1").boxed)) == 11_315_539
    assert parts.get("vae", "pico").name == "vae of size pico"
    large = parts.get("audio", "large-lv60")
    assert trees.count(rules.unbox(large.boxed)) == 315_437_696
    assert parts.get("audio", "nano").name != parts.get("audio", "base").name
    with pytest.raises(ValueError, match="no size 'nona'; choose one of base, large"):
        parts.get("audio", "nona")
    with pytest.raises(ValueError, match="no size 'x'"):
        parts.get("text", "x")


def test_loading_a_part(tmp_path):
    part = _part("image")
    tensors = _published(part, "original")
    path = str(tmp_path / "x.pth")
    sinks.write_pickled(path, tensors, tensors.items())
    params = loading.load_part(part, path, dtype=np.float32)
    expected = mapping.read(
        tensors, part.rows("original"), rules.unbox(part.boxed), dtype=np.float32
    )
    for name, x in trees.flatten(expected).items():
        np.testing.assert_array_equal(trees.flatten(params)[name], x, err_msg=name)


def test_a_part_is_traced_once_however_often_it_is_asked_for():
    preset = presets.get("pico")
    for name in ("transformer", "vae", "audio", "image", "text", "taehv"):
        part = parts.of_preset(preset, name)
        assert parts.of_preset(dataclasses.replace(preset), name) is part
        assert part.name == f"{name} of pico"
