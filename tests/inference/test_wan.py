"""Presets of full size at tiny sizes: conditioning, streams, clips, files, missing parts."""

import dataclasses
import json
import os
import shutil

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ftfy")

import tm_jax
from experiments.parity import reduced
from tm_jax.core import trees
from tm_jax.inference import loading
from tm_jax.inference import wan
from tm_jax.inference import wan_inputs
from tm_jax.inference import wan_session
from tm_jax.inference import wan_weights
from tm_jax.models import presets
from tm_jax.models.wan import patterns
from tm_jax.models.wan_vae import config as vae_config
from tm_jax.parallel import rules
from tm_jax.weights import convert
from tm_jax.weights import wan as wan_table

_SIDE = 64
_CHUNK_SAMPLES = 7680
_PLAN = wan.Plan(latents=4, steps=2, guidance=3.0)


@pytest.fixture(scope="module", autouse=True)
def fast_compilation():
    """These models are tiny: optimising their programs takes longer than running them."""
    usual = jax.jit

    def jit(function, **options):
        return usual(
            function, compiler_options={"xla_backend_optimization_level": 0}, **options
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wan.jax, "jit", jit)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with random weights of both presets, by name."""
    root = tmp_path_factory.mktemp("weights")
    found = {}
    for name in ("tm-18b", "wan-1.3b"):
        found[name] = str(root / name)
        sizes = reduced.sizes(name, 2, 32, side=_SIDE, vae_width=4)
        reduced.write(sizes, found[name])
    return found


@pytest.fixture(scope="module")
def bundle(folders):
    return tm_jax.load("tm-18b", weights=folders["tm-18b"])


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


def test_conditioning_is_mask_then_latent(bundle):
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((1, 3, 8, 8, 16), np.float32)
    condition = np.asarray(bundle.condition(jnp.asarray(latents), jnp.asarray([[1.0, 0, 0]])))
    assert condition.shape == (1, 3, 8, 8, 20)
    np.testing.assert_array_equal(condition[:, 0, ..., :4], 1)
    np.testing.assert_array_equal(condition[:, 1:, ..., :4], 0)
    np.testing.assert_array_equal(condition[..., 4:], latents)


def test_the_student_is_told_the_picture_once_and_then_empty_frames(
    bundle, picture, monkeypatch
):
    """What `begin` and `score` hand to the transformer, against the definition."""
    seen = []

    def keep(model, params, reference, condition, *rest):
        seen.append((reference, condition))

    def keep_next(model, params, state, condition, *rest):
        seen.append((None, condition))
        return 0, 0

    monkeypatch.setattr(wan.student, "begin", keep)
    monkeypatch.setattr(wan.student, "next_chunk", keep_next)
    monkeypatch.setattr(wan.jax, "jit", lambda function, **unused: function)
    fresh = dataclasses.replace(bundle)  # Compiles anew.
    reference = jnp.ones((1, 8, 8, 16)) * 3
    fresh.begin(None, reference, None, None)
    fresh.score(None, None, jnp.ones((8, 8, 16)) * 5, None, None, None)
    (_, sink), (_, chunk) = seen
    np.testing.assert_array_equal(sink[..., :4], np.ones((1, 8, 8, 4)))
    np.testing.assert_array_equal(sink[..., 4:], np.full((1, 8, 8, 16), 3))
    np.testing.assert_array_equal(chunk[..., :4], np.zeros((1, 3, 8, 8, 4)))
    np.testing.assert_array_equal(chunk[..., 4:], np.full((1, 3, 8, 8, 16), 5))


def test_empty_frames_settle(bundle, picture):
    """Long after a picture the encoder gives what it gives in a stream; soon after it not."""
    count = wan_inputs.settled_latents(bundle.sizes.vae)
    latents = wan.jax.jit(lambda p, x: bundle.clip_latents(p, x, count + 1))(
        bundle.params["vae"], picture
    )[0]
    empty = np.asarray(bundle.empty)
    assert np.abs(latents[1] - empty).max() > 1e-2
    assert np.abs(latents[-2] - empty).max() > 1e-6  # Not sooner than needed.
    np.testing.assert_allclose(latents[-1], empty, rtol=0, atol=5e-7)  # Measured 0.
    np.testing.assert_allclose(
        latents[0], bundle.reference(picture)[0], rtol=0, atol=1e-5  # Measured 0.
    )


def test_the_encoder_forgets_when_it_is_said_to():
    assert wan_inputs.settled_latents(vae_config.PRESETS["wan-2.1"]) == 29


def test_a_stream_repeats_and_follows_its_seed_and_sound(bundle, picture, sound):
    def make(seed, sound, **options):
        session = wan_session.Student(bundle, picture, seed=seed, **options)
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


def test_streamed_frames_are_those_of_the_whole_clip(bundle, picture, sound, monkeypatch):
    latents = []
    score = wan_session.Student._score

    def keep(session, *args):
        latents.append(np.asarray(score(session, *args)))
        return latents[-1]

    monkeypatch.setattr(wan_session.Student, "_score", keep)
    chunks = _pull(wan_session.Student(bundle, picture), sound, 2)
    z = np.concatenate([bundle.reference(picture)[:, None], *latents], 1)
    assert z.shape == (1, 7, 8, 8, 16) and z[:, 1:].std() > 0.1
    decode = wan.jax.jit(lambda p, x: bundle.vae.apply({"params": p}, x, method="decode"))
    whole = wan_inputs.to_uint8(decode(bundle.params["vae"], z))[0, 1:]
    video = np.concatenate([c.frames for c in chunks]).astype(int)
    assert np.abs(video - np.asarray(whole, int)).max() <= 1  # Rounding to 8 bits.


def test_a_mesh_gives_the_same_chunk(bundle, folders):
    mesh = rules.make_mesh(jax.devices()[:4], tensor=2, seq=2)
    sharded = wan.load("tm-18b", folders["tm-18b"], mesh=mesh)
    kernel = sharded.params["transformer"]["blocks_0"]["q"]["kernel"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == 2
    rng = np.random.default_rng(4)
    shapes = [(1, 8, 8, 16), (1, 17, 64), (8, 8, 16), (1, 3, 8, 64)]
    reference, image, empty, windows = (rng.standard_normal(s, np.float32) for s in shapes)

    def chunk(b):
        params, key = b.params["transformer"], jax.random.key(0)[None]
        context = b.context(params, b.prompt, image, np.ones((1, 16), np.float32))
        state = b.begin(params, reference, context, key)
        mode = np.ones((1, 3), np.int32)
        return np.asarray(b.score(params, state, empty, windows, mode, context)[0])

    expected = chunk(bundle)
    assert np.abs(expected).max() > 1
    # Measured 2.4e-6.
    np.testing.assert_allclose(chunk(sharded), expected, rtol=0, atol=2e-5)


def test_sound_must_be_known_beyond_a_chunk(bundle, picture):
    session = wan_session.Student(bundle, picture)
    assert session.lookahead_s == 0.2
    session.push_audio(np.zeros(_CHUNK_SAMPLES + 3199, np.float32))
    assert session.pull() is None
    session.push_audio(np.zeros(1, np.float32))
    chunk = session.pull()
    assert not chunk.speaking  # Silence.
    assert session.pull() is None
    session.push_audio(np.ones(_CHUNK_SAMPLES - 1, np.float32))
    session.interrupt()  # Forgets it.
    session.push_audio(np.zeros(_CHUNK_SAMPLES, np.float32))
    assert not session.pull().speaking
    session.reset()
    session.end_audio()
    np.testing.assert_array_equal(session.pull().frames, chunk.frames)


def test_the_teacher_makes_clips(bundle, picture, sound):
    session = wan_session.Teacher(bundle, picture, plan=_PLAN)
    first, second = _pull(session, sound, 2)
    assert first.frames.shape == second.frames.shape == (12, _SIDE, _SIDE, 3)
    assert second.first_frame == 12
    np.testing.assert_array_equal(session._next, second.frames[-1])
    again = _pull(wan_session.Teacher(bundle, picture, plan=_PLAN), sound, 1)[0]
    np.testing.assert_array_equal(first.frames, again.frames)


def test_the_teacher_integrates_the_guided_velocity(bundle, picture, monkeypatch):
    """Two Euler steps of a known field, sigma by sigma, from the definition in NumPy."""
    levels = []

    class Field:
        """v = x for the conditional model and 2 for the other; keeps what it was told."""

        def apply(self, variables, x, *args, method=None):
            if method == "audio":
                return x
            condition, level, modes, context, audio, _ = args
            levels.append(np.asarray(level))
            assert condition.shape[-1] == 20
            np.testing.assert_array_equal(condition[0, :, 0, 0, 0], [1, 0, 0, 0])
            np.testing.assert_array_equal(audio[:, 0], 0)
            assert (np.abs(audio[:, 1:]).max() > 0) == (context == "prompt")
            return (x if context == "prompt" else jnp.full_like(x, 2.0)), None

    def clip(self, params, picture, latents):
        return jnp.zeros((1, latents, 8, 8, 16))

    monkeypatch.setattr(wan.jax, "jit", lambda function, **unused: function)
    monkeypatch.setattr(wan.WanBundle, "clip_latents", clip)
    monkeypatch.setattr(wan.WanBundle, "dit", property(lambda self: Field()))
    fresh = dataclasses.replace(bundle)
    key = jax.random.key(3)
    with jax.disable_jit():
        result = fresh.teacher(
            _PLAN, {"transformer": None, "vae": None}, picture, None,
            jnp.ones((1, 3, 8, 64)), jnp.ones((1, 3), jnp.int32), "prompt", "negative", key,
        )
    x = np.asarray(jax.random.normal(key, (1, 4, 8, 8, 16)))
    sigmas = (1.0, 5 * 0.5 / (1 + 4 * 0.5), 0.0)  # Shift 5.
    for now, after in zip(sigmas, sigmas[1:]):
        x = x + (after - now) * (2 + 3.0 * (x - 2))
    np.testing.assert_allclose(result, x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        np.unique(np.concatenate(levels)), np.unique(sigmas[:2]), atol=1e-6
    )


def test_without_conditioning_channels_the_picture_is_the_sink(folders, picture, sound):
    """wan-1.3b: the picture's latent stays as it is, and the tiny decoder shows the rest."""
    small = wan.load("wan-1.3b", folders["wan-1.3b"], decoder="tiny")
    assert "image" not in small.params and "taehv" in small.params
    session = wan_session.Teacher(
        small, picture, plan=dataclasses.replace(_PLAN, guidance=1.0)
    )
    kept, score = [], session._score
    session._score = lambda *args: kept.append(score(*args)) or kept[-1]
    [clip] = _pull(session, sound, 1)
    assert clip.frames.shape == (12, _SIDE, _SIDE, 3)
    np.testing.assert_array_equal(kept[0][:, 0], small.reference(picture))


def test_a_clip_becomes_a_file(bundle, picture, sound, tmp_path):
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
    report = tm_jax.generate(bundle, picture, str(path), out, seconds=0.72)
    assert report.frames == 18
    with av.open(out) as container:
        assert sum(1 for _ in container.decode(video=0)) == 18
        assert container.streams.video[0].width == _SIDE
        assert len(container.streams.audio) == 1


@pytest.mark.parametrize("name", ["transformer", "vae", "audio", "image", "taehv"])
def test_a_missing_part_is_named_with_its_command(folders, tmp_path, name):
    folder = str(tmp_path / "w")
    shutil.copytree(folders["tm-18b"], folder, symlinks=True)
    shutil.rmtree(os.path.join(folder, name))
    with pytest.raises(FileNotFoundError, match=rf"has no {name}; .*--part={name} --preset=tm-18b"):
        wan.load("tm-18b", folder, decoder="tiny")


def test_published_files_are_used_as_they_are(bundle, folders, tmp_path):
    """The original layout: the transformer's files at the top, the VAE as .pth beside them."""
    folder = str(tmp_path / "w")
    shutil.copytree(folders["tm-18b"], folder)
    for name, out, layout in (
        ("vae", "Wan2.1_VAE.pth", "original"), ("transformer", "t", "original"),
    ):
        here = os.path.join(folder, name)
        convert.convert(
            bundle.sizes.part(name), here, os.path.join(folder, out), to=layout
        )
        shutil.rmtree(here)
    for file in os.listdir(os.path.join(folder, "t")):
        os.replace(os.path.join(folder, "t", file), os.path.join(folder, file))
    loaded = wan.load("tm-18b", folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.params["vae"], bundle.params["vae"])
    ours, theirs = (trees.flatten(b.params["transformer"]) for b in (bundle, loaded))
    same = {n for n in ours if np.array_equal(ours[n], theirs[n])}
    assert {n for n in ours if not wan_table.is_own(n)} <= same
    assert not np.any(theirs["blocks_0/cross/v_audio/kernel"])  # New layers do nothing yet.


def test_without_a_text_encoder_features_are_zeros(folders, tmp_path, caplog):
    folder = str(tmp_path / "w")
    shutil.copytree(folders["tm-18b"], folder)
    loaded = wan.load("tm-18b", folder, prompt="A fox.", negative="A wolf.")
    assert loaded.prompt.shape == (1, 32, 64)
    assert np.any(np.asarray(loaded.prompt) != np.asarray(loaded.negative))
    assert np.all(np.asarray(loaded.prompt)[0, 7:] == 0)  # 6 characters and the end.
    shutil.rmtree(os.path.join(folder, "tokenizer"))
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        wan.load("tm-18b", folder)
    shutil.rmtree(os.path.join(folder, "text"))
    with caplog.at_level("WARNING", logger="absl"):
        loaded = wan.load("tm-18b", folder)
    assert "the prompt is not used" in caplog.text
    assert not np.any(np.asarray(loaded.prompt))


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"transformer": {"wide": 3}}, "transformer has no 'wide'"),
        ({"video": {}}, "there is no 'video'"),
        ({"preset": "wan-1.3b"}, "another preset"),
        ({"height": 40}, "multiples of 16"),
        ({"transformer": {"text_width": 9}}, "text_width is 9"),
        ({"transformer": {"condition_channels": 16}}, "0 or 20"),
    ],
)
def test_wrong_sizes_are_explained(tmp_path, changes, text):
    (tmp_path / "preset.json").write_text(json.dumps(changes))
    with pytest.raises(ValueError, match=text):
        wan_weights.sizes("tm-18b", str(tmp_path))


def test_sizes_without_a_file_are_the_published_ones(tmp_path):
    for name in ("tm-18b", "wan-1.3b"):
        sizes = wan_weights.sizes(name, str(tmp_path))
        assert sizes.preset == presets.get(name)
    assert sizes.text.width == 4096 and sizes.vae.base_width == 96


def test_a_face_box_becomes_shares_of_tokens():
    grid = patterns.Grid(2, 4, 3)
    mask = wan_inputs.face_mask((0.0, 0.25, 0.75, 0.625), grid).reshape(2, 4)
    np.testing.assert_allclose(mask, [[0, 1, 0.5, 0], [0, 0.5, 0.25, 0]])
    for box in ((0.5, 0, 0.5, 1), (0, 0, 1.1, 1), (0, -1, 1, 1)):
        with pytest.raises(ValueError, match="0..1"):
            wan_inputs.face_mask(box, grid)


@pytest.mark.parametrize("aspect", [1.0, 9 / 16, 16 / 9, 3.0])
def test_aspect_keeps_the_area(aspect):
    fitted = wan_inputs.with_aspect(presets.get("tm-18b"), aspect)
    assert fitted.height % 16 == fitted.width % 16 == 0
    assert 0.93 * 512**2 < fitted.height * fitted.width <= 512**2
    assert abs(fitted.width / fitted.height / aspect - 1) < 0.02


@pytest.mark.parametrize(
    "preset, options, text",
    [
        ("nano", {"sampler": "teacher"}, "--sampler belongs to presets of full size"),
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
