"""Conversion both ways between every pair of layouts, bit by bit, and its refusals."""

import dataclasses
import json
import os
import types

import jax
import ml_dtypes
import numpy as np
import pytest

from tm_jax.checkpoints import convert
from tm_jax.checkpoints import parts
from tm_jax.checkpoints import sinks
from tm_jax.checkpoints import sources
from tm_jax.checkpoints import wan
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.parallel import rules

_PRESET = presets.get("pico")


@pytest.fixture(scope="module")
def part():
    return parts.transformer(_PRESET)


@pytest.fixture(scope="module")
def published(part):
    """Random tensors of the original layout, as two dtypes mixed, by name."""
    rng = np.random.default_rng(0)
    shapes = trees.flatten(rules.unbox(part.boxed))
    result = {}
    for row in wan.rows(_PRESET.dit):
        [shape] = convert.mapping.source_shapes(row, shapes)
        kind = np.float32 if "modulation" in row[0] else ml_dtypes.bfloat16
        result[row[0]] = rng.standard_normal(shape).astype(kind)
    return result


@pytest.fixture
def original(tmp_path, published):
    path = str(tmp_path / "original")
    sinks.write_safetensors(path, published, published.items(), limit=20000)
    return path


def _equal(path, expected):
    actual = sources.open_source(path)
    assert set(actual) == set(expected)
    for name, x in expected.items():
        y = np.asarray(actual[name])
        assert y.dtype == x.dtype, name
        np.testing.assert_array_equal(y, x, err_msg=name)


def test_round_trips_are_exact(tmp_path, part, original, published):
    """original -> diffusers -> ours -> .pth -> orbax -> ours -> original, read in between."""
    chain = [
        ("diffusers", "diffusers", 30000), ("ours", "ours", 10**9),
        ("original.pth", "original", 10**9), ("orbax", "orbax", 10**9),
        ("ours.safetensors", "ours", 100), ("end", "original", 15000),
    ]  # fmt: skip
    source, layout = original, "original"
    for name, to, shard in chain:
        out = str(tmp_path / name)
        report = convert.convert(part, source, out, to=to, shard_bytes=shard)
        assert (report.source[1], report.target[1]) == (layout, to)
        assert report.read == report.written == (
            len(published), sum(x.nbytes for x in published.values())
        )
        source, layout = out, to
    _equal(source, published)
    _equal(str(tmp_path / "original.pth"), published)
    assert len([f for f in os.listdir(source) if f.endswith(".safetensors")]) > 3
    assert not [f for f in os.listdir(tmp_path) if f.startswith(".")]
    settings = json.loads((tmp_path / "end" / "config.json").read_text())
    assert (settings["dim"], settings["model_type"]) == (_PRESET.dit.width, "i2v")


def test_the_reference_opens_what_is_written(tmp_path, part, original, published):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    out = str(tmp_path / "out")
    convert.convert(part, original, out, to="diffusers", shard_bytes=30000)
    model = diffusers.WanTransformer3DModel.from_pretrained(out, torch_dtype=torch.float32)
    found = dict(model.named_parameters())
    rows = zip(wan.rows(_PRESET.dit, "original"), wan.rows(_PRESET.dit, "diffusers"))
    for (before, _, _), (after, _, _) in rows:
        np.testing.assert_array_equal(
            found[after].detach().numpy(), np.float32(published[before]), after
        )
    assert len(found) == len(published)


def test_own_parameters_come_and_stay(tmp_path, part, pico):
    """A trained model of ours keeps its audio layers as ours and leaves them elsewhere."""
    path = str(tmp_path / "model.safetensors")
    flat = {n: np.asarray(x) for n, x in trees.flatten(pico.params).items()}
    sinks.write_safetensors(path, flat, flat.items())
    report = convert.convert(part, path, str(tmp_path / "ours.safetensors"))
    assert report.source[1] == "ours" and not report.notes
    _equal(str(tmp_path / "ours.safetensors"), flat)

    report = convert.convert(part, path, str(tmp_path / "out"), to="diffusers")
    own = sum(map(wan.is_own, flat))
    assert f"{own} parameters have no place in layout diffusers" in report.notes[0]
    assert report.written[0] == len(flat) - own

    report = convert.convert(part, str(tmp_path / "out"), str(tmp_path / "again"))
    assert f"{own} parameters of ours are not in the source" in report.notes[0]
    base = {n: x for n, x in flat.items() if not wan.is_own(n)}
    _equal(str(tmp_path / "again"), base)

    del flat["blocks_1/cross/k_audio/kernel"], flat["head/kernel"]
    sinks.write_safetensors(path, flat, flat.items())
    with pytest.raises(ValueError, match="1 tensors are missing: head/kernel"):
        convert.convert(part, path, str(tmp_path / "x"))


def test_dtype(tmp_path, part, original, published):
    for to in ("diffusers", "orbax"):
        out = str(tmp_path / to)
        convert.convert(part, original, out, to=to, dtype=np.float32)
        back = str(tmp_path / f"{to}-back")
        convert.convert(part, out, back, to="original")
        _equal(back, {n: np.float32(x) for n, x in published.items()})


def test_a_dry_run_writes_nothing_and_reads_no_data(tmp_path, part, original, monkeypatch):
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(sources.Entry, "_map", None)
    out = str(tmp_path / "out")
    report = convert.convert(part, original, out, to="diffusers", dtype=np.float32, dry_run=True)
    assert sorted(os.listdir(tmp_path)) == before
    text = "\n".join(report.lines())
    assert "(original; " in text and "(diffusers; " in text and out in text
    assert report.written[1] > 1.9 * report.read[1]


def test_published_folders_of_all_parts(tmp_path, part, original):
    os.makedirs(tmp_path / "all")
    os.rename(original, tmp_path / "all" / "transformer")
    report = convert.convert(part, str(tmp_path / "all"), str(tmp_path / "x"), dry_run=True)
    assert report.source[0].startswith(str(tmp_path / "all" / "transformer"))


def _drop(tensors):
    tensors.pop("blocks.1.ffn.0.bias")


def _add(tensors):
    tensors["blocks.2.ffn.0.bias"] = np.ones(3, np.float32)


def _reshape(tensors):
    tensors["blocks.1.ffn.0.weight"] = tensors["blocks.1.ffn.0.weight"].T.copy()


def _rename(tensors):
    for name in list(tensors):
        tensors[f"x.{name}"] = tensors.pop(name)


@pytest.mark.parametrize(
    "change, words",
    [
        (_drop, "1 tensors are missing: blocks.1.ffn.0.bias"),
        (_add, "1 tensors are left over: blocks.2.ffn.0.bias"),
        (
            _reshape,
            r"blocks.1.ffn.0.weight must have shape \(64, 32\) for blocks_1/mlp_in/kernel, "
            r"got \(32, 64\)",
        ),
        (_rename, "expected the transformer of pico in layout ours or original or diffusers, "
                  "got tensors such as x.blocks"),
    ],
)  # fmt: skip
def test_misfits_are_told_before_anything_is_written(tmp_path, part, published, change, words):
    tensors = dict(published)
    change(tensors)
    path = str(tmp_path / "bad.safetensors")
    sinks.write_safetensors(path, tensors, tensors.items())
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=words) as error:
            convert.convert(part, path, str(tmp_path / "out"), dry_run=dry_run)
        assert path in str(error.value)
    assert os.listdir(tmp_path) == ["bad.safetensors"]


def test_wrong_requests(tmp_path, part, original):
    with pytest.raises(ValueError, match="to must be one of ours, orbax, original, diffusers"):
        convert.convert(part, original, str(tmp_path / "x"), to="other")
    with pytest.raises(ValueError, match="layout must be one of auto, ours"):
        convert.convert(part, original, str(tmp_path / "x"), layout="other")
    with pytest.raises(ValueError, match="ours is not written as .pth"):
        convert.convert(part, original, str(tmp_path / "x.pth"))
    with pytest.raises(ValueError, match="orbax is not written as .safetensors"):
        convert.convert(part, original, str(tmp_path / "x.safetensors"), to="orbax")
    with pytest.raises(ValueError, match="missing: .*in layout|tensors are missing"):
        convert.convert(part, original, str(tmp_path / "x"), layout="diffusers")
    with pytest.raises(ValueError, match="unknown part 'other'; choose one of transformer"):
        parts.get("other", "pico")
    with pytest.raises(ValueError, match="unknown preset"):
        parts.get("transformer", "other")


def test_a_failure_midway_leaves_nothing(tmp_path, part, original, monkeypatch):
    write, count = sinks._write_array, []

    def fail(stream, value):
        count.append(1)
        if len(count) == 20:
            raise OSError("no space left on device")
        write(stream, value)

    monkeypatch.setattr(sinks, "_write_array", fail)
    for name in ("out", "out.safetensors", "out.pth"):
        count.clear()
        with pytest.raises(OSError, match="no space"):
            convert.convert(part, original, str(tmp_path / name), to="original")
        assert len(count) == 20
    assert os.listdir(tmp_path) == ["original"]


def test_a_full_disk_is_told_first(tmp_path, part, original, published, monkeypatch):
    size = sum(x.nbytes for x in published.values())
    for to, needed in (("original", size), ("orbax", 2 * size)):
        free = types.SimpleNamespace(free=needed - 1)
        monkeypatch.setattr(convert.shutil, "disk_usage", lambda folder: free)
        with pytest.raises(ValueError, match=f"{tmp_path}: expected room for"):
            convert.convert(part, original, str(tmp_path / "out"), to=to, dry_run=True)
        free.free += 1
        convert.convert(part, original, str(tmp_path / "out"), to=to, dry_run=True)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        convert.convert(part, original, str(tmp_path / "no" / "out"), dry_run=True)


def test_full_sizes_are_planned_without_memory():
    """The 14 B model: names, shapes and shards of both layouts, by shape alone."""
    part = parts.get("transformer", "tm-18b")
    shapes = trees.flatten(rules.unbox(part.boxed))
    for layout in part.layouts:
        items = {
            name: jax.ShapeDtypeStruct(shape, ml_dtypes.bfloat16)
            for row in part.rows(layout)
            for name, shape in zip(
                convert.mapping.names(row[0]), convert.mapping.source_shapes(row, shapes)
            )
        }
        groups = sinks.shards(items, 5 * 10**9)
        assert sum(map(sinks.nbytes, items.values())) == pytest.approx(32.8e9, rel=0.01)
        assert len(groups) == 7 and sum(map(len, groups)) == len(items)


def test_presets_in_other_depths(tmp_path):
    """A part can be made for any sizes, such as a few layers of a large preset."""
    small = dataclasses.replace(_PRESET, dit=dataclasses.replace(_PRESET.dit, num_layers=1))
    assert "blocks_1" not in parts.transformer(small).boxed
