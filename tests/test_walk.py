"""From videos to a served stream, by the same code for every preset."""

import dataclasses
import os
import shutil

import av
import jax
import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ftfy")

from experiments.parity import reduced
from tests import miniature
from tests.data import recordings
import tm_jax
from tm_jax.checkpoints import sources
from tm_jax.configs import overrides
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.data import clips
from tm_jax.data import prepare
from tm_jax.inference import clip_encoder
from tm_jax.inference import loading
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.media import partner
from tm_jax.parallel import rules
from tm_jax.serving.runtime import backend as backend_lib
from tm_jax.serving.runtime import devices as devices_lib
from tm_jax.training import run

_SIDE, _STEP = 64, 7680
_LOOP = run.loop.LoopConfig(sample_every=0, log_every=1)
_SHARED = ["batch=2", "chunks=1", "data.held_out=1", "optimizer.schedule=constant"]
_SETTINGS = {
    "teacher": [*_SHARED, "sample_steps=2"],
    "student": [*_SHARED, "trajectories=2"],
    "distill": [*_SHARED, "trajectories=2", "rollout_chunks=2", "critic_updates=1"],
}


def _small(name: str) -> presets.Preset:
    """A preset at the sizes of pico; of several layers where `test_pico_walks_as_tm_18b` asks."""
    pico, base = presets.get("pico"), presets.get(name)
    if name == "nano":
        return miniature.nano()
    given = presets.settings(pico)
    del given["preset"], given["conditioning"]
    if base.image is None:
        given["image"] = None
        given["transformer"] |= {"image_width": None, "condition_channels": 0, "num_layers": 1}
    return presets.with_settings(base, given)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three files of 1.2 s with a moving pattern and a voice-like sound."""
    folder = tmp_path_factory.mktemp("videos")
    time = np.arange(round(1.2 * 48000)) / 48000
    for i in range(3):
        rng = np.random.default_rng(i)
        still = rng.integers(40, 216, (8, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1)
        frames = [np.roll(still, 2 * t, 0) for t in range(30)]
        sound = 0.3 * np.sin(2 * np.pi * (150 + 40 * i) * time) * np.sin(2 * np.pi * 3 * time)
        recordings.write(folder / f"{i}.mp4", frames, sound.astype(np.float32))
    return folder


def _train(preset, folder, stage, steps, name=None):
    config = run.config(stage, "unused", data=os.path.join(folder, "examples"))
    published = os.path.join(folder, "published")
    # Previews of the teacher alone are decoded, which is enough of compiling.
    decoder = [f"data.weights={published}"] if stage == "teacher" else []
    config = overrides.apply(config, _SETTINGS[stage] + decoder)
    start = os.path.join(published, "transformer") if stage == "teacher" else None
    assert run.train(
        preset, stage, config, folder, steps, _LOOP, os.path.join(folder, "weights"),
        name=name, start=start, mesh=rules.make_mesh(jax.devices()[:1]),
    )


@pytest.fixture(scope="module", params=["tm-18b", "nano", "wan-1.3b"])
def walked(request, videos, tmp_path_factory):
    """(preset, work directory) after preparation and two updates of every stage."""
    preset = _small(request.param)
    folder = str(tmp_path_factory.mktemp("run"))
    published = os.path.join(folder, "published")
    reduced.write(preset, published)
    shutil.copytree(published, os.path.join(folder, "weights"))
    encoder = clip_encoder.load(preset.name, published)
    config = clips.Config(
        height=_SIDE, width=_SIDE, chunks=2, least_chunks=2, face="none",
        voice_activity="loudness",
    )
    summary = prepare.prepare(
        videos, os.path.join(folder, "examples"), config, encoder, preset=preset.name, workers=0
    )
    assert summary.clips == 3 and not summary.files_rejected
    _train(preset, folder, "teacher", 2)
    _train(preset, folder, "student", 2)
    _train(preset, folder, "distill", 4)
    # What was exported takes the place of the published transformer.
    shutil.rmtree(os.path.join(folder, "weights", "transformer"))
    return preset, folder


@pytest.fixture(scope="module")
def pipeline(walked):
    preset, folder = walked
    return tm_jax.load(preset.name, os.path.join(folder, "weights"))


def _picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)


def _sound(seed, chunks=2):
    rng = np.random.default_rng(seed)
    return (0.2 * rng.standard_normal(chunks * _STEP)).astype(np.float32)


def _stream(pipeline, seed):
    session = tm_jax.Session(pipeline, _picture(seed), seed=seed)
    session.push_audio(_sound(seed))
    session.end_audio()
    return np.concatenate([session.pull().frames for _ in range(2)])


def test_pico_walks_as_tm_18b():
    """At equal sizes they differ in their name only, so one of them is walked."""
    pico, paper = presets.settings(presets.get("pico")), presets.settings(_small("tm-18b"))
    assert (pico.pop("preset"), paper.pop("preset")) == ("pico", "tm-18b")
    assert pico == paper and pico["transformer"]["num_layers"] == 2


def test_a_preview_shows_truth_and_sample(walked):
    _, folder = walked
    with av.open(os.path.join(folder, "teacher", "samples", "0000002.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 12 and frames[0].shape == (_SIDE, 2 * _SIDE, 3)


def test_a_stopped_stage_goes_on_to_the_same_weights(walked):
    preset, folder = walked
    for steps in (1, 2):  # The second run finds the first one's checkpoint.
        _train(preset, folder, "teacher", steps, name="again")
    ours, theirs = (
        sources.open_source(os.path.join(folder, name, "transformer.safetensors"))
        for name in ("teacher", "again")
    )
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), name)


def test_the_exported_student_was_trained(walked, pipeline):
    preset, folder = walked
    assert pipeline.preset.student.num_steps == preset.student.num_steps
    published = loading.load(preset.name, os.path.join(folder, "published"))
    before, after = (
        trees.flatten(p.params["transformer"]) for p in (published, pipeline)
    )
    moved = [n for n in before if np.any(np.asarray(before[n]) != np.asarray(after[n]))]
    assert len(moved) > 0.9 * len(before)


def test_it_speaks_in_a_file(pipeline, tmp_path):
    import soundfile  # Comes with librosa.

    soundfile.write(tmp_path / "voice.wav", _sound(5), 16000)
    report = tm_jax.generate(pipeline, _picture(5), tmp_path / "voice.wav", tmp_path / "clip.mp4")
    assert report.frames == 24
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24


def test_a_partner_is_heard_as_in_the_examples(walked, pipeline):
    preset, folder = walked
    session = tm_jax.Session(pipeline, _picture(1), seed=1, mode="listen")
    if not preset.dit.partner_audio:
        with pytest.raises(ValueError, match="takes the character's own sound alone"):
            session.push_other(_sound(2))
        return
    # Windows: a stream's, chunk by chunk, and an example's, whose clip begins with the sound.
    encoder = clip_encoder.load(preset.name, os.path.join(folder, "published"))
    published = loading.load(preset.name, os.path.join(folder, "published"))
    rate, sound = preset.timing.samples_per_frame, _sound(2)
    padded = np.pad(sound, ((encoder.before + 1) * rate, encoder.after * rate))
    clip = np.zeros((1, 25, _SIDE, _SIDE, 3), np.uint8)
    expected = encoder.encode_batch(clip, 0 * padded[None], padded[None])["partner_audio"]
    queue = partner.PartnerQueue(rate, published.before + published.after)
    queue.push(sound)
    heard = [published.encode_partner(queue.take(12)[None]) for _ in range(2)]
    np.testing.assert_allclose(np.concatenate(heard, 1), expected, atol=1e-5)
    assert np.abs(np.diff(expected, axis=1)).max() > 1e-2

    # And it moves the video, once its values are trained.
    flat = trees.flatten(pipeline.params["transformer"])
    for name in flat:
        if "v_partner" in name and name.endswith("kernel"):
            flat[name] = jax.random.normal(jax.random.key(0), flat[name].shape)
    params = {**pipeline.params, "transformer": trees.unflatten(flat)}
    moved = dataclasses.replace(pipeline, params=params)

    def shown(other):
        session = tm_jax.Session(moved, _picture(1), seed=1, mode="listen")
        session.push_other(other)
        session.end_audio()
        return session.pull().frames

    assert np.abs(shown(sound).astype(int) - shown(0 * sound)).max() > 0


def _served(pipeline, seeds):
    """Frames of streams in one lane, as the engine steps them."""
    backend = devices_lib.PipelineBackend(pipeline)
    lane = backend.lane(len(seeds))
    for slot, seed in enumerate(seeds):
        backend.begin(lane, slot, _picture(seed), seed, 0)
    sounds = [np.pad(_sound(seed), (backend.before, backend.after)) for seed in seeds]
    length = backend.before + _STEP + backend.after
    poses = np.full(len(seeds), backend_lib.AUTO, np.int32)
    made = []
    for chunk in range(2):
        parts = np.stack([s[chunk * _STEP : chunk * _STEP + length] for s in sounds])
        made.append(backend.step(lane, parts, poses, np.zeros(len(seeds), bool)).wait().frames)
    return np.concatenate(made, 1)


def _alike(actual, expected):
    difference = np.abs(actual.astype(int) - expected)
    # Rounding of float sums in another order may move a pixel by one level.
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-2


def test_two_streams_are_served(pipeline):
    expected = np.stack([_stream(pipeline, seed) for seed in (1, 2)])
    _alike(_served(pipeline, (1, 2)), expected)
    assert np.abs(expected[0].astype(int) - expected[1]).mean() > 1


def test_slices_of_devices_give_the_same_frames(walked, pipeline):
    """Denoising on two devices that share the sequence, decoding on a third."""
    preset, folder = walked
    placement = pipeline_lib.Placement(mode="disaggregated", sequence=2)
    placed = loading.load(
        preset.name, os.path.join(folder, "weights"), placement=placement,
        devices=jax.devices()[:3],
    )
    _alike(_served(placed, (1, 2)), np.stack([_stream(pipeline, seed) for seed in (1, 2)]))
    assert dataclasses.asdict(placed.preset) == dataclasses.asdict(pipeline.preset)
