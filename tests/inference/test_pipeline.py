"""The pipeline with every part of the paper's model in miniature: streams, clips, files."""

import dataclasses
import json
import os
import shutil
import types

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ftfy")

from experiments.parity import reduced
import tm_jax
from tm_jax.checkpoints import convert
from tm_jax.checkpoints import parts
from tm_jax.checkpoints import wan as wan_table
from tm_jax.configs import components
from tm_jax.configs import presets
from tm_jax.core import pixels
from tm_jax.core import trees
from tm_jax.inference import loading
from tm_jax.inference import part_files
from tm_jax.inference import pictures
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import session as session_lib
from tm_jax.inference import streams
from tm_jax.inference import teacher_session
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import conditioning
from tm_jax.models.vae.wan import config as vae_config

_SIDE = 64
_CHUNK_SAMPLES = 7680
_SAMPLER = teacher_session.Sampler(latents=4, steps=2, guidance=3.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with random weights by preset: one with image conditioning, one without."""
    root = tmp_path_factory.mktemp("weights")
    sized = {
        "pico": presets.get("pico"),
        "wan-1.3b": reduced.sizes("wan-1.3b", 2, 32, side=_SIDE, vae_width=4),
    }
    for name, preset in sized.items():
        reduced.write(preset, str(root / name))
    return {name: str(root / name) for name in sized}


@pytest.fixture(scope="module")
def pipeline(folders):
    return tm_jax.load("pico", weights=folders["pico"])


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (_SIDE // 8, _SIDE // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)


@pytest.fixture(scope="module")
def sound():
    time = np.arange(3 * _CHUNK_SAMPLES) / 16000
    return (0.3 * np.sin(2 * np.pi * 200 * time) * np.sin(2 * np.pi * 3 * time)).astype(np.float32)


def _pull(session, sound, count):
    session.push_audio(sound)
    session.end_audio()
    return [session.pull() for _ in range(count)]


def test_channels_are_mask_then_latent():
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((1, 2, 8, 8, 16), np.float32)
    clip = conditioning.channels("first_frame", jnp.asarray(latents), 3)
    assert clip.shape == (1, 3, 8, 8, 20)
    np.testing.assert_array_equal(clip[:, 0, ..., :4], 1)
    np.testing.assert_array_equal(clip[:, 1:, ..., :4], 0)
    np.testing.assert_array_equal(clip[:, :2, ..., 4:], latents)
    np.testing.assert_array_equal(clip[:, 2, ..., 4:], latents[:, 1])  # As the last one given.
    later = conditioning.channels("first_frame", jnp.asarray(latents), 3, first=1)
    np.testing.assert_array_equal(later, np.repeat(clip[:, 1:2], 3, 1))
    same = conditioning.channels("reference", jnp.asarray(latents[:, :1]), 4, first=1)
    np.testing.assert_array_equal(same, np.repeat(latents[:, :1], 4, 1))
    assert conditioning.channels("none", jnp.asarray(latents), 2).shape[-1] == 0
    with pytest.raises(ValueError, match="none, first_frame, reference, got 'all'"):
        conditioning.channels("all", jnp.asarray(latents), 2)


def test_the_student_sees_the_picture_once_and_then_empty_frames(
    pipeline, picture, monkeypatch
):
    """What `begin` and `denoise` hand to the transformer, against the definition."""
    seen = []

    def begin(model, params, reference, channels, *rest):
        seen.append((reference, channels))

    def next_chunk(model, params, state, given, *rest):
        seen.append((None, given.channels))
        return 0, 0

    monkeypatch.setattr(streams.causal, "begin", begin)
    monkeypatch.setattr(streams.causal, "next_chunk", next_chunk)
    functions, params = pipeline.functions, pipeline.params
    inputs = functions.inputs(picture[None], None)
    start, _, given = functions.begin(params, inputs, pipeline_lib.stream_key(0)[None])
    functions.denoise(params, None, start, jnp.zeros((1, 3, 1)), jnp.ones((1, 3)), None)
    (reference, sink), (_, chunk) = seen
    np.testing.assert_array_equal(reference, given.latent)
    np.testing.assert_array_equal(sink[..., :4], np.ones((1, 8, 8, 4)))
    np.testing.assert_array_equal(sink[..., 4:], reference)
    np.testing.assert_array_equal(chunk[..., :4], np.zeros((1, 3, 8, 8, 4)))
    empty = np.broadcast_to(params["constants"]["empty"], (1, 3, 8, 8, 16))
    np.testing.assert_array_equal(chunk[..., 4:], empty)


def test_empty_frames_settle(pipeline, picture):
    """Long after a picture the encoder gives what it gives in a stream; soon after it not."""
    vae = pipeline.functions.components.vae
    count = components.settled_latents(pipeline.preset.vae)
    pixels_of = pixels.to_float(jnp.asarray(picture[None]))
    latents = jax.jit(lambda p, x: vae.clip_condition(p, x, count + 1))(
        pipeline.params, pixels_of
    )[0]
    empty = np.asarray(pipeline.params["constants"]["empty"])
    assert np.abs(latents[1] - empty).max() > 1e-2
    assert np.abs(latents[-2] - empty).max() > 1e-6  # Not sooner than needed.
    np.testing.assert_allclose(latents[-1], empty, rtol=0, atol=5e-7)  # Measured 0.
    reference = vae.begin(pipeline.params, pipeline.params["constants"], pixels_of)
    np.testing.assert_allclose(latents[0], reference.latent[0], rtol=0, atol=1e-5)


def test_the_encoder_forgets_when_it_is_said_to():
    assert components.settled_latents(vae_config.PRESETS["wan-2.1"]) == 29


def test_a_stream_repeats_and_follows_its_seed_and_sound(pipeline, picture, sound):
    def make(seed, sound, **options):
        session = session_lib.Session(pipeline, picture, seed=seed, **options)
        return _pull(session, sound, 2)

    chunks = make(0, sound)
    assert [c.first_frame for c in chunks] == [0, 12]
    assert all(c.frames.shape == (12, _SIDE, _SIDE, 3) for c in chunks)
    assert all(c.frames.dtype == np.uint8 and c.speaking for c in chunks)
    video = np.concatenate([c.frames for c in chunks])
    np.testing.assert_array_equal(video, np.concatenate([c.frames for c in make(0, sound)]))
    for other in (
        make(1, sound), make(0, sound[::-1].copy()), make(0, sound, face=(0, 0, 0.5, 0.5)),
    ):
        assert np.any(np.concatenate([c.frames for c in other]) != video)


def test_streamed_frames_are_those_of_the_whole_clip(pipeline, picture, sound, monkeypatch):
    latents = []
    denoise = session_lib.Session._denoise

    def keep(session, *args):
        latents.append(np.asarray(denoise(session, *args)))
        return latents[-1]

    monkeypatch.setattr(session_lib.Session, "_denoise", keep)
    chunks = _pull(session_lib.Session(pipeline, picture), sound, 2)
    vae, params = pipeline.functions.components.vae, pipeline.params
    reference = vae.begin(params, params["constants"], pixels.to_float(jnp.asarray(picture[None])))
    z = np.concatenate([reference.latent[:, None], *latents], 1)
    assert z.shape == (1, 7, 8, 8, 16) and z[:, 1:].std() > 0.1
    decode = jax.jit(lambda p, x: vae.model.apply({"params": p}, x, method="decode"))
    whole = pixels.to_uint8(decode(params["vae"], z))[0, 1:]
    video = np.concatenate([c.frames for c in chunks]).astype(int)
    assert np.abs(video - np.asarray(whole, int)).max() <= 1  # Rounding to 8 bits.


def test_windows_of_sound_are_those_of_the_whole_clip(pipeline, picture, sound):
    """Sound before the stream does not count as silence, whatever the session's buffer holds."""
    audio = pipeline.functions.components.audio
    whole = components.wav2vec2_stream.windowed(
        components.wav2vec2.Wav2Vec2(pipeline.preset.audio), pipeline.params["audio"],
        audio.window, jnp.asarray(sound[None]),
    )
    session, seen = session_lib.Session(pipeline, picture), []
    encode = session._encode_audio
    session._encode_audio = lambda *args: seen.append(encode(*args)) or seen[-1]
    _pull(session, sound, 3)
    for chunk, (windows, _) in enumerate(seen):
        expected = components.dit_audio.windows(
            whole[:, chunk], pipeline.preset.dit.audio_window, audio.window.timing
        )
        np.testing.assert_allclose(windows, expected, rtol=0, atol=1e-5)


PLACEMENTS = {
    "disaggregated": (2, {"mode": "disaggregated"}),
    "tensor and sequence": (4, {"sequence": 2, "mesh": {"tensor": 2}}),
    "disaggregated, sequence": (3, {"mode": "disaggregated", "sequence": 2}),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_placement_gives_the_same_frames(pipeline, folders, picture, sound, name):
    """Loaded straight onto slices of simulated devices."""
    count, arguments = PLACEMENTS[name]
    placement = pipeline_lib.Placement(**arguments)
    placed = loading.load(
        "pico", folders["pico"], placement=placement, devices=jax.devices()[:count]
    )
    kernel = placed.params["transformer"]["blocks_0"]["q"]["kernel"]
    shards = {str(shard.index) for shard in kernel.addressable_shards}
    assert len(shards) == arguments.get("mesh", {}).get("tensor", 1)
    decoders = {d for x in jax.tree.leaves(placed.decoder_params) for d in x.devices()}
    if placement.mode == "disaggregated":
        assert decoders == {jax.devices()[count - 1]}
    expected = _pull(session_lib.Session(pipeline, picture, seed=3), sound, 2)
    actual = _pull(session_lib.Session(placed, picture, seed=3), sound, 2)
    for a, b in zip(actual, expected):
        difference = np.abs(a.frames.astype(int) - b.frames)
        # Sums in another order may move a pixel by one level.
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-2


def test_sound_must_be_known_beyond_a_chunk(pipeline, picture):
    session = session_lib.Session(pipeline, picture)
    assert session.lookahead_s == 0.2
    session.push_audio(np.zeros(_CHUNK_SAMPLES + 3199, np.float32))
    assert session.pull() is None
    session.push_audio(np.zeros(1, np.float32))
    chunk = session.pull()
    assert not chunk.speaking  # Silence.
    assert session.pull() is None
    session.push_audio(np.ones(_CHUNK_SAMPLES - 1, np.float32))
    session.interrupt()  # Forgets it.
    session.push_audio(np.zeros(_CHUNK_SAMPLES + 3200, np.float32))
    assert not session.pull().speaking
    session.reset()
    session.end_audio()
    np.testing.assert_array_equal(session.pull().frames, chunk.frames)
    with pytest.raises(ValueError, match="push_other: preset pico takes"):
        session.push_other(np.zeros(10, np.float32))


def test_the_teacher_makes_clips(pipeline, picture, sound):
    make = teacher_session.TeacherSession
    session = make(pipeline, picture, sampler=_SAMPLER)
    first, second = _pull(session, sound, 2)
    assert first.frames.shape == second.frames.shape == (12, _SIDE, _SIDE, 3)
    assert second.first_frame == 12
    np.testing.assert_array_equal(session._next, second.frames[-1])
    again = _pull(make(pipeline, picture, sampler=_SAMPLER), sound, 1)[0]
    np.testing.assert_array_equal(first.frames, again.frames)


def test_the_teacher_integrates_the_guided_velocity(pipeline, picture, monkeypatch):
    """Two Euler steps of a known field, sigma by sigma, from the definition in NumPy."""
    levels = []

    class Field:
        """v = x for the conditional model and 2 for the other; keeps what it was given."""

        def apply(self, variables, x, *args, method=None):
            if method == "embed":
                return x, args[0]
            level, (given, context), _ = args
            levels.append(np.asarray(level))
            assert given.channels.shape[-1] == 20
            np.testing.assert_array_equal(given.channels[0, :, 0, 0, 0], [1, 0, 0, 0])
            np.testing.assert_array_equal(given.audio[:, 0], 0)
            assert (np.abs(given.audio[:, 1:]).max() > 0) == (context == "prompt")
            return (x if context == "prompt" else jnp.full_like(x, 2.0)), None

    functions = streams.StreamFunctions(pipeline.preset)
    zeros = jnp.zeros((1, 4, 8, 8, 16))
    vae = types.SimpleNamespace(
        begin=lambda *unused: components.Reference(latent=zeros[:, 0], condition=zeros),
        clip_condition=lambda *unused: zeros,
    )
    parts_of = dataclasses.replace(functions.components, dit=Field(), vae=vae)
    monkeypatch.setitem(functions.__dict__, "components", parts_of)
    monkeypatch.setattr(
        streams.StreamFunctions, "context", lambda self, params, inputs, prompt: prompt
    )
    key = pipeline_lib.stream_key(3)[None]
    with jax.disable_jit():
        result = teacher_session.sample(
            functions, _SAMPLER, {**pipeline.params, "transformer": None},
            functions.inputs(picture[None], None), jnp.ones((1, 3, 6, 32)),
            jnp.ones((1, 3), jnp.int32), None, key,
        )
    x = np.asarray(jax.random.normal(pipeline_lib.keys_of(key)[0], (1, 4, 8, 8, 16)))
    sigmas = (1.0, 5 * 0.5 / (1 + 4 * 0.5), 0.0)  # Shift 5.
    for now, after in zip(sigmas, sigmas[1:]):
        x = x + (after - now) * (2 + 3.0 * (x - 2))
    np.testing.assert_allclose(result, x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        np.unique(np.concatenate(levels)), np.unique(sigmas[:2]), atol=1e-6
    )


def test_without_conditioning_channels_the_picture_is_the_sink(folders, picture, sound):
    """wan-1.3b: the picture's latent stays as it is, and the tiny decoder shows the rest."""
    small = loading.load("wan-1.3b", folders["wan-1.3b"], decoder="tiny")
    assert "image" not in small.params and "taehv" in small.params
    session = teacher_session.TeacherSession(
        small, picture, sampler=dataclasses.replace(_SAMPLER, guidance=1.0)
    )
    kept, denoise = [], session._denoise
    session._denoise = lambda *args: kept.append(denoise(*args)) or kept[-1]
    [clip] = _pull(session, sound, 1)
    assert clip.frames.shape == (12, _SIDE, _SIDE, 3)
    reference = small.functions.components.vae.begin(
        small.params, small.params["constants"], pixels.to_float(jnp.asarray(picture[None]))
    )
    np.testing.assert_allclose(kept[0][:, 0], reference.latent, rtol=0, atol=1e-6)
    [chunk] = _pull(session_lib.Session(small, picture), sound, 1)
    assert chunk.frames.std() > 1


def test_a_clip_becomes_a_file(pipeline, picture, sound, tmp_path):
    path = tmp_path / "voice.wav"
    with av.open(str(path), "w") as container:
        track = container.add_stream("pcm_s16le", 16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.int16(sound[None, :_CHUNK_SAMPLES] * 32767), "s16", "mono"
        )
        frame.sample_rate = 16000
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    out = str(tmp_path / "clip.mp4")
    report = tm_jax.generate(pipeline, picture, str(path), out, seconds=0.72)
    assert report.frames == 18
    with av.open(out) as container:
        assert sum(1 for _ in container.decode(video=0)) == 18
        assert container.streams.video[0].width == _SIDE
        assert len(container.streams.audio) == 1


@pytest.mark.parametrize("name", ["transformer", "vae", "audio", "image", "taehv"])
def test_a_missing_part_is_named_with_its_command(folders, tmp_path, name):
    folder = str(tmp_path / "w")
    shutil.copytree(folders["pico"], folder, symlinks=True)
    shutil.rmtree(os.path.join(folder, name))
    with pytest.raises(FileNotFoundError, match=rf"has no {name}; .*--part={name} --preset=pico"):
        loading.load("pico", folder, decoder="tiny")


def test_published_files_are_used_as_they_are(pipeline, folders, tmp_path):
    """The original layout: the transformer's files at the top, the VAE as .pth beside them."""
    folder = str(tmp_path / "w")
    shutil.copytree(folders["pico"], folder)
    for name, out, layout in (
        ("vae", "Wan2.1_VAE.pth", "original"), ("transformer", "t", "original"),
    ):
        here = os.path.join(folder, name)
        convert.convert(
            parts.of_preset(pipeline.preset, name), here, os.path.join(folder, out), to=layout
        )
        shutil.rmtree(here)
    for file in os.listdir(os.path.join(folder, "t")):
        os.replace(os.path.join(folder, "t", file), os.path.join(folder, file))
    loaded = loading.load("pico", folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.params["vae"], pipeline.params["vae"])
    ours, theirs = (trees.flatten(b.params["transformer"]) for b in (pipeline, loaded))
    same = {n for n in ours if np.array_equal(ours[n], theirs[n])}
    assert {n for n in ours if not wan_table.is_own(n)} <= same
    assert not np.any(theirs["blocks_0/cross/v_audio/kernel"])  # New layers do nothing yet.


def test_without_a_text_encoder_features_are_zeros(folders, tmp_path, caplog):
    folder = str(tmp_path / "w")
    shutil.copytree(folders["pico"], folder)
    loaded = loading.load("pico", folder, prompt="A fox.", negative="A wolf.")
    constants = jax.tree.map(np.asarray, loaded.params["constants"])
    assert constants["prompt"].shape == (1, 6, 24)
    assert np.any(constants["prompt"] != constants["negative"])
    short = loading.load("pico", folder, prompt="A f")  # Two characters, a space and the end.
    assert np.all(np.asarray(short.params["constants"]["prompt"])[0, 4:] == 0)
    shutil.rmtree(os.path.join(folder, "tokenizer"))
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        loading.load("pico", folder)
    shutil.rmtree(os.path.join(folder, "text"))
    with caplog.at_level("WARNING", logger="absl"):
        loaded = loading.load("pico", folder)
    assert "the prompt is not used" in caplog.text
    assert not np.any(np.asarray(loaded.params["constants"]["prompt"]))


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"transformer": {"wide": 3}}, "transformer has no 'wide'"),
        ({"video": {}}, "there is no 'video'"),
        ({"preset": "wan-1.3b"}, "another preset"),
        ({"height": 40}, "multiples of 16"),
        ({"transformer": {"text_width": 9}}, "text_width is 9"),
        ({"transformer": {"condition_channels": 16}}, "condition_channels is 16"),
    ],
)
def test_wrong_sizes_are_explained(tmp_path, changes, text):
    (tmp_path / "preset.json").write_text(json.dumps(changes))
    with pytest.raises(ValueError, match=text):
        part_files.preset_of("tm-18b", str(tmp_path))


def test_sizes_without_a_file_are_the_published_ones(tmp_path):
    for name in ("tm-18b", "wan-1.3b"):
        assert part_files.preset_of(name, str(tmp_path)) == presets.get(name)


def test_a_face_box_becomes_shares_of_tokens():
    grid = attention_patterns.Grid(2, 4, 3)
    mask = pictures.face_mask((0.0, 0.25, 0.75, 0.625), grid).reshape(2, 4)
    np.testing.assert_allclose(mask, [[0, 1, 0.5, 0], [0, 0.5, 0.25, 0]])
    for box in ((0.5, 0, 0.5, 1), (0, 0, 1.1, 1), (0, -1, 1, 1)):
        with pytest.raises(ValueError, match="0..1"):
            pictures.face_mask(box, grid)


@pytest.mark.parametrize("aspect", [1.0, 9 / 16, 16 / 9, 3.0])
def test_aspect_keeps_the_area(aspect):
    fitted = presets.with_aspect(presets.get("tm-18b"), aspect)
    assert fitted.height % 16 == fitted.width % 16 == 0
    assert 0.93 * 512**2 < fitted.height * fitted.width <= 512**2
    assert abs(fitted.width / fitted.height / aspect - 1) < 0.02


@pytest.mark.parametrize(
    "preset, options, text",
    [
        ("tm-18b", {"sampler": "both"}, "sampler must be one of student, teacher, got 'both'"),
        ("tm-18b", {"steps": 3}, "--steps needs --sampler=teacher"),
        ("tm-18b", {"sampler": "teacher", "steps": 0}, "1 step"),
    ],
)
def test_options_that_do_nothing_are_refused(preset, options, text):
    with pytest.raises(ValueError, match=text):
        loading.prepare(preset, None, options)


def test_presets_without_weights_say_so():
    with pytest.raises(FileNotFoundError, match="--weights"):
        loading.load("wan-1.3b")
