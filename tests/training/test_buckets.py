"""Clips of several aspect ratios: every batch has one, every stage takes all."""

import collections
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from tm_jax.configs import components
from tm_jax.configs import presets
from tm_jax.data import examples
from tm_jax.data import manifest
from tm_jax.data import shards
from tm_jax.parallel import hosts
from tm_jax.training import batches
from tm_jax.training import distill_stage
from tm_jax.training import example_preview
from tm_jax.training import example_source
from tm_jax.training import rollouts
from tm_jax.training import sources
from tm_jax.training import student_stage
from tm_jax.training import teacher_stage
from tm_jax.training import trajectories

_WIDE = 5 / 3  # 80 x 48 pixels.
_ASPECTS = (1.0, _WIDE, 1.0, 1.0, _WIDE, 1.0)


@functools.cache
def _source():
    """Four square clips and two wide ones, the fifth of them too short for nine latents."""
    records = [
        small.record(i, 6 if i == 4 else small.LATENTS, aspect)
        for i, aspect in enumerate(_ASPECTS)
    ]
    return example_source.ExampleSource(records, small.preset())


def test_a_batch_has_one_size_and_every_size_comes():
    source = _source()
    square, wide = source.sizes[0], source.sizes[1]
    assert square[0] == square[1] and wide[0] < wide[1]
    stream = iter(sources.stream(
        sources.random_window(source, 3, seed=1), len(source), 4, 2, sizes=source.sizes
    ))
    seen = collections.Counter()
    for _ in range(60):
        batch = next(stream)
        assert len(batch["x0"]) == len(batch["face_mask"]) == 4
        seen[batch["x0"].shape[2:4]] += 1
    # As often as their clips: a third.
    assert set(seen) == {square, wide} and 10 <= seen[wide] <= 30


def test_processes_agree_on_the_size_of_a_batch():
    source = _source()
    parts = [
        iter(sources.stream(int, len(source), 4, 2, hosts.Rows(here=here, total=4), source.sizes))
        for here in ((0, 1), (2, 3))
    ]
    whole = iter(sources.stream(int, len(source), 4, 2, sizes=source.sizes))
    for _ in range(12):
        indices = np.concatenate([next(part) for part in parts])
        np.testing.assert_array_equal(indices, next(whole))
        assert len({source.sizes[int(i)] for i in indices}) == 1


def test_an_index_keeps_its_epoch():
    sizes = sources.Sizes([(2, 2), (2, 4), (2, 2)])
    assert sizes.alike(7, (2, 4)) == 7 and sizes[7] == (2, 4)
    assert sizes.alike(6, (2, 4)) == 7 and sizes.alike(0, (2, 4)) == 1
    with pytest.raises(ValueError, match="no clip with latents of 4x2, only of 2x2, 2x4"):
        sizes.alike(0, (4, 2))


def test_a_short_clip_gives_way_to_one_of_its_size():
    source, rng = _source(), np.random.default_rng(0)
    assert {source.place(4, rng, 9)[0] for _ in range(8)} == {1}
    assert {source.place(3, rng, 9)[0] for _ in range(8)} == {3}


def test_a_clip_of_another_area_is_refused():
    record = small.record(0)
    record["latents"] = np.repeat(record["latents"], 2, 2)
    with pytest.raises(ValueError, match="latents must have shape"):
        example_source.ExampleSource([small.record(1), record], small.preset())


@pytest.fixture(scope="module")
def paths(pico, tmp_path_factory):
    """Trajectories of clips of both sizes."""
    config = student_stage.StudentStageConfig(batch=2, trajectories=12, teacher_steps=2, chunks=1)
    found = trajectories.build(
        str(tmp_path_factory.mktemp("paths")), _source(), small.models(),
        lambda: pico.random(small.shapes(), 2), config,
    )
    return found, *trajectories.windows(_source(), found, small.models(), config)


def test_trajectories_have_the_size_of_their_clips(paths):
    found, one, sizes = paths
    assert {sizes[i] for i in range(12)} == set(_source().sizes.members)
    for i in range(12):
        item = one(i)
        assert item["points"].shape[2:4] == item["window"]["x0"].shape[1:3] == sizes[i]
        kept = found["points"][i, :, :, : sizes[i][0] * sizes[i][1]]
        np.testing.assert_array_equal(item["points"].reshape(kept.shape), kept)
        assert np.isfinite(kept).all() and kept.std() > 0.1


@pytest.fixture(scope="module")
def stages(paths, pico):
    """All stages on both sizes."""
    _, one, sizes = paths
    source, models = _source(), small.models()

    class Quiet:
        batch: dict = {}
        batches: list = []

        def show(self, x0, path):
            return {}

    def quiet(latents):
        return Quiet()

    start = pico.random(small.shapes(), 1)
    settings = dict(batch=2, chunks=1)
    regression = distill_stage.Regression(source=source, one=one, sizes=sizes)
    return {
        "teacher": teacher_stage.make(
            models, source, quiet, teacher_stage.TeacherStageConfig(**settings)
        ),
        "student": student_stage.make(
            models, source, one, sizes, quiet,
            student_stage.StudentStageConfig(teacher_steps=2, **settings), start,
        ),
        "distill": distill_stage.make(
            models, source, regression, quiet, distill_stage.DistillStageConfig(
                rollout_chunks=2, teacher_steps=2, dropout=batches.Dropout(text=0.5), **settings
            ), start=start, teacher=start, critic=start,
        ),
    }


@pytest.mark.parametrize("stage", ["teacher", "student", "distill", "critic"])
def test_every_loss_takes_every_size(stages, pico, stage):
    of = stages["distill" if stage == "critic" else stage]
    params = pico.random(small.shapes(), 1)
    frozen = {"teacher": params, "critic": params, "student": params}
    loss = of.critic.loss if stage == "critic" else of.loss
    stream, seen = iter(of.batches(0)), set()
    for _ in range(24):
        items = next(stream)
        size = {x.shape[-3:-1] for x in jax.tree.leaves(items) if x.ndim == 5}
        if frozenset(size) in seen:
            continue
        seen.add(frozenset(size))
        found, _ = jax.eval_shape(loss, params, frozen, items, jax.random.key(0))
        assert found.shape == () and found.dtype == jnp.float32
    assert {next(iter(s)) for s in seen if len(s) == 1} == set(_source().sizes.members)


def test_a_wide_clip_is_seen_by_its_own_grid(pico):
    """A preset of that aspect ratio computes the same."""
    wide = example_source.ExampleSource([small.record(0, 6, _WIDE)], small.preset())
    batch = wide.assemble(sources.collate([wide.window(0, 0, 3)]))
    params = pico.random(small.shapes(), 1)
    sized = presets.with_aspect(small.preset(), _WIDE)
    x = jnp.asarray(batch.clip)
    sigma = jnp.full((1,), 0.5)
    found, wanted = (
        rollouts.teacher_velocity(models, params, batch, x, sigma)
        for models in (small.models(), components.build(sized))
    )
    np.testing.assert_array_equal(found, wanted)


def _write(folder, name, count, aspect):
    with shards.ExampleWriter(folder / name, {"preset": "pico", "of": name}, {}) as writer:
        for i in range(count):
            values = small.record(i, 6, aspect)
            del values["negative_text"]
            writer.add(examples.Example(**values), f"{i}.mp4", 1)
            writer.finish(f"{i}.mp4", {"bytes": 1, "clips": [0], "rejected": [], "notes": []})


def test_a_folder_of_stores_is_one_place(tmp_path):
    for name, count, aspect in (("64x64", 7, 1.0), ("80x48", 3, _WIDE)):
        _write(tmp_path / "all", name, count, aspect)
    manifest.write_stores(tmp_path / "all", ["64x64", "80x48"])
    train, held_out = example_source.open_records(str(tmp_path / "all"), 4)
    source = example_source.ExampleSource(train, small.preset())
    # Of a rare size no more than half is held out.
    assert {size: len(members) for size, members in source.sizes.members.items()} == {
        (8, 8): 4, (6, 10): 2
    }
    assert len(held_out) == 4
    preview = example_preview.Preview(held_out, small.preset(), 3)
    assert preview.batch["x0"].shape == (3, 3, 8, 8, small.preset().dit.latent_channels)
    many = example_preview.Preview([small.record(i, 6) for i in range(9)], small.preset(), 3)
    assert [len(one["x0"]) for one in many.batches] == [4, 4]
    assert many.batch is many.batches[0]
    _write(tmp_path, "one", 4, 1.0)
    mixed = f"{tmp_path / 'all'}=1,{tmp_path / 'one'}=1"
    order = example_source.open_records(mixed, 1)[0].order
    counts = np.bincount(order[:, 0]) / len(order)
    # Half of all; the other half in the ratio of its stores.
    np.testing.assert_allclose(counts, [1 / 3, 1 / 6, 1 / 2], atol=0.05)
    (tmp_path / "all" / manifest.STORES).write_text(json.dumps({"names": []}))
    with pytest.raises(ValueError, match="stores.json is damaged"):
        example_source.open_records(str(tmp_path / "all"), 1)
