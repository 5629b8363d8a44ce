"""Checkpoints as trainers of causal students save them, against the plain layout.

The layouts are those that the trainers of Self-Forcing, Causal Forcing and CausVid write with
`torch.save`: the generator, its moving average and the critic side by side, the transformer a
member called `model`, and the names of FSDP and of compiled modules left in between.
"""

import collections
import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch

from tm_jax.checkpoints import convert
from tm_jax.checkpoints import files
from tm_jax.checkpoints import loading
from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import parts
from tm_jax.checkpoints import sources
from tm_jax.checkpoints import states
from tm_jax.checkpoints import wan
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import transformer
from tm_jax.parallel import rules

torch = pytest.importorskip("torch")

# Wan2.1-T2V-1.3B, a little smaller: text alone, nothing concatenated to the noisy latents.
_BASE = presets.get("wan-1.3b")
_PRESET = dataclasses.replace(
    _BASE, height=64, width=64,
    dit=dataclasses.replace(
        _BASE.dit, width=32, num_heads=2, num_layers=2, mlp_width=64, frequency_width=32,
        text_width=24, text_length=6, audio_feature_width=16, audio_window=6, audio_hidden=32,
        audio_tokens=4, audio_width=16,
    ),
    audio=dataclasses.replace(presets.get("pico").audio, width=8),
    text=presets.get("pico").text,
)


@pytest.fixture(scope="module")
def part():
    return parts.transformer(_PRESET)


def _original(part, seed):
    """Random tensors of the original layout, bfloat16 but for the modulations."""
    shapes = trees.flatten(rules.unbox(part.boxed))
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for row in wan.rows(_PRESET.dit):
        [shape] = mapping.source_shapes(row, shapes)
        kind = torch.float32 if "modulation" in row[0] else torch.bfloat16
        found[row[0]] = torch.randn(shape, generator=generator).to(kind)
    return found


@pytest.fixture(scope="module")
def ema(part):
    return _original(part, 1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, part, ema):
    """What the plain layout becomes, by path."""
    folder = tmp_path_factory.mktemp("plain")
    torch.save(ema, folder / "plain.pth")
    convert.convert(part, str(folder / "plain.pth"), str(folder / "out.safetensors"))
    return _tree(folder / "out.safetensors")


def _tree(path):
    return {name: np.asarray(x) for name, x in sources.open_source(str(path)).items()}


def _equal(actual, expected):
    assert set(actual) == set(expected)
    for name, x in expected.items():
        assert actual[name].dtype == x.dtype, name
        np.testing.assert_array_equal(actual[name], x, err_msg=name)


def _member(tensors, prefix="model."):
    return {prefix + name: x for name, x in tensors.items()}


def _sharded(tensors):
    """Names of an average that was taken over a sharded module, each block wrapped as well."""

    def wrap(name):
        head, number, *rest = name.split(".")
        if head == "blocks":
            name = ".".join([head, number, "_fsdp_wrapped_module", *rest])
        return f"model._fsdp_wrapped_module.{name}"

    return {wrap(name): x for name, x in tensors.items()}


def _module(tensors):
    """The state of a module whose member `model` is the transformer, as PyTorch gives it."""
    root = torch.nn.Module()
    for name, x in _member(tensors).items():
        *path, leaf = name.split(".")
        place = root
        for step in path:
            if step not in place._modules:
                place.add_module(step, torch.nn.Module())
            place = place._modules[step]
        place.register_parameter(leaf, torch.nn.Parameter(x))
    state = root.state_dict()
    assert state._metadata  # An attribute that comes along in the pickle.
    return state


def _compiled(tensors):
    return {
        name.replace("ffn.", "_checkpoint_wrapped_module.ffn."): x
        for name, x in _member(tensors, "model._orig_mod.").items()
    }


def _noise(tensors):
    return {name: torch.zeros_like(x) for name, x in tensors.items()}


_LAYOUTS = {
    "average alone": lambda x: {"generator_ema": _member(x)},
    "all three": lambda x: {
        "generator": _member(_noise(x)), "critic": _member(_noise(x)), "generator_ema": _member(x),
    },
    "sharded average": lambda x: {
        "generator": _member(_noise(x)), "generator_ema": _sharded(x), "step": 600,
    },
    "generator": lambda x: {"generator": _module(x), "critic": _module(_noise(x))},
    "with optimisers": lambda x: {
        "generator": _member(x), "critic": _member(_noise(x)),
        "generator_optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
    },
    "model": lambda x: {"model": _member(x)},
    "flat": _member,
    "module": _module,
    "compiled": lambda x: {"generator": _compiled(x)},
    "parallel": lambda x: _member(x, "module.model."),
    "any name": lambda x: {"state_dict": x, "epoch": 3},
    "ordered": lambda x: collections.OrderedDict(generator_ema=collections.OrderedDict(_member(x))),
}


@pytest.mark.parametrize("name", _LAYOUTS)
def test_every_layout_gives_the_tree_of_the_plain_one(tmp_path, part, ema, plain, name):
    path = str(tmp_path / "model.pt")
    torch.save(_LAYOUTS[name](ema), path)
    report = convert.convert(part, path, str(tmp_path / "out.safetensors"))
    assert report.source[1] == "original"
    _equal(_tree(tmp_path / "out.safetensors"), plain)


def test_older_containers_and_safetensors_too(tmp_path, part, ema, plain):
    old = str(tmp_path / "old.pt")
    torch.save({"generator_ema": _sharded(ema)}, old, _use_new_zipfile_serialization=False)
    flat = str(tmp_path / "flat.safetensors")
    safetensors.torch.save_file(_member(ema), flat)
    for path in (old, flat):
        convert.convert(part, path, path + "-out", layout="original")
        _equal(_tree(path + "-out"), plain)


def test_the_average_by_default_and_the_other_when_named(tmp_path, part, ema, plain):
    path, other = str(tmp_path / "model.pt"), _original(part, 2)
    torch.save({
        "generator": _member(other), "critic": _member(_noise(ema)), "generator_ema": _sharded(ema)
    }, path)  # fmt: skip
    report = convert.convert(part, path, str(tmp_path / "a.safetensors"))
    assert "state generator_ema was read; the file also has generator, critic" in report.notes
    assert "names were read without model. and _fsdp_wrapped_module." in report.notes
    _equal(_tree(tmp_path / "a.safetensors"), plain)
    out = str(tmp_path / "b.safetensors")
    report = convert.convert(part, path, out, state="generator", facts={"source": "here"})
    assert "state generator was read; the file also has critic, generator_ema" in report.notes
    facts = files.facts(out)
    assert (facts["state"], facts["source"]) == ("generator", "here")
    torch.save(other, tmp_path / "other.pth")
    convert.convert(part, str(tmp_path / "other.pth"), str(tmp_path / "c.safetensors"))
    _equal(_tree(out), _tree(tmp_path / "c.safetensors"))


def _without(tensors, name):
    return {n: x for n, x in tensors.items() if n != name}


_BAD = {
    "critic alone": (
        lambda x: {"critic": _member(x)}, None,
        r"one of generator_ema, .*, generator, model .*got only \(critic\); name one by --state",
    ),
    "two unknown": (
        lambda x: {"a": _member(x), "b": _member(x)}, None, r"got several \(a, b\); name one",
    ),
    "no such": (
        lambda x: {"generator_ema": _member(x)}, "generator",
        "expected a state 'generator', got generator_ema; name another",
    ),
    "none at all": (
        _member, "generator", "expected a state 'generator', got tensors outside of any",
    ),
    "no tensors": (lambda x: {"generator": {"step": 3}}, None, "got none"),
    "missing": (
        lambda x: {"generator_ema": _member(_without(x, "blocks.1.ffn.0.bias"))}, None,
        "1 tensors are missing: blocks.1.ffn.0.bias",
    ),
    "left over": (
        lambda x: {"generator_ema": {**_member(x), "_register_tokens.weight": torch.zeros(3)}},
        None, "1 tensors are left over: _register_tokens.weight",
    ),
    "twice": (
        lambda x: {"generator_ema": {**_member(x), **_sharded(x)}}, None,
        r"are the same parameter [\w.]+ without model. and _fsdp_wrapped_module.",
    ),
    "half a prefix": (
        lambda x: {
            **_member(_without(x, "head.head.bias")), "net.head.head.bias": x["head.head.bias"]
        },
        None, "missing: head.head.bias; 1 tensors are left over: net.head.head.bias",
    ),
    "adapters": (
        lambda x: {"generator_lora": {"base.q.lora_A.weight": torch.zeros(2, 2)}}, None,
        "got tensors such as base.q.lora_A.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _BAD)
def test_what_does_not_fit_is_told_in_one_line(tmp_path, part, ema, name):
    make, state, words = _BAD[name]
    path = str(tmp_path / "model.pt")
    torch.save(make(ema), path)
    with pytest.raises(ValueError, match=words) as error:
        convert.convert(part, path, str(tmp_path / "out"), state=state)
    assert path in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_state_is_asked_of_what_has_none(tmp_path, part, ema):
    path = str(tmp_path / "x.safetensors")
    safetensors.torch.save_file(ema, path)
    with pytest.raises(ValueError, match="state 'generator' is asked for; .safetensors has one"):
        sources.open_source(path, "generator")
    tree = str(tmp_path / "tree")
    convert.convert(part, path, tree, to="orbax")
    with pytest.raises(ValueError, match="state 'generator' is asked for; an Orbax tree has none"):
        convert.open_any(tree, part, state="generator")


def test_names_without_wrappers_are_left_alone(tmp_path, ema):
    """A prefix is taken off only if that leads to names that the model has."""
    path = str(tmp_path / "x.pt")
    torch.save(_member(ema), path)
    source = sources.open_source(path)
    assert states.unwrap(source, {"model.head.head.bias"}) is source
    assert states.unwrap(source, {"other"}) is source
    assert set(states.unwrap(source, set(ema))) == set(ema)


def test_new_audio_layers_change_nothing_at_first(tmp_path, part, ema, pico):
    """Text-to-video weights have no audio layers; new ones start with zero outputs."""
    path = str(tmp_path / "model.pt")
    torch.save({"generator_ema": _sharded(ema)}, path)
    report = convert.convert(part, path, str(tmp_path / "out"))
    own = [p for p in trees.flatten(rules.unbox(part.boxed)) if wan.is_own(p)]
    assert f"{len(own)} parameters of ours are not in the source" in report.notes[-1]
    params = loading.load_part(part, str(tmp_path / "out"), dtype=jnp.float32)
    c, rng = _PRESET.dit, np.random.default_rng(0)
    windows = rng.standard_normal((1, 3, c.audio_window, c.audio_feature_width))
    x = rng.standard_normal((1, 3, 8, 8, c.latent_channels))
    text = rng.standard_normal((1, c.text_length, c.text_width))
    model, pattern = transformer.DiT(c), attention_patterns.bidirectional(attention_patterns.Grid(4, 4, 3))

    @jax.jit
    def run(params, windows, mode):
        velocity, _ = model.apply(
            {"params": params}, x, x[..., :0], jnp.full((1, 3), 0.5), mode, text, None,
            jnp.ones((1, 16)), windows, pattern, method=pico.touch,
        )
        return velocity

    def heard(params):
        """How far another sound and another mode move the result."""
        a = run(params, windows, jnp.zeros((1, 3), jnp.int32))
        b = run(params, -3 * windows, jnp.ones((1, 3), jnp.int32))
        return float(jnp.abs(a - b).max())

    assert heard(params) == 0
    rest = trees.flatten(pico.random(part.boxed))
    trained = {n: rest[n] if wan.is_own(n) else x for n, x in trees.flatten(params).items()}
    assert heard(trees.unflatten(trained)) > 1e-3


def test_a_checkpoint_of_full_size_fits_the_preset(tmp_path):
    """All 825 tensors of Wan2.1-T2V-1.3B by name and shape; each stores one number."""
    part = parts.get("transformer", "wan-1.3b")
    shapes = trees.flatten(rules.unbox(part.boxed))
    one, tensors = torch.zeros(1), {}
    for row in part.rows("original"):
        [shape] = mapping.source_shapes(row, shapes)
        tensors[row[0]] = one.expand(shape)
    assert len(tensors) == 825
    assert sum(x.numel() for x in tensors.values()) == pytest.approx(1.419e9, rel=1e-3)
    path = str(tmp_path / "self_forcing_dmd.pt")
    torch.save({"generator_ema": _sharded(tensors)}, path)
    source = sources.open_source(path)
    layout, found, ours = convert.open_any(path, part)
    assert layout == "original" and len(found) == len(source) == 825
    assert ours["blocks_29/mlp_in/kernel"].shape == (1536, 8960)
