"""Sessions of nano in miniature with random weights: streaming, clocks, modes, replay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.checkpoints import files
from tm_jax.inference import loading
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import programs as programs_lib
from tm_jax.inference import session as session_lib
from tm_jax.inference import streams as streams_lib
from tm_jax.models.audio.causal import encoder
from tm_jax.models.dit import audio_projection as dit_audio
from tm_jax.parallel import rules

_ATOL = 1e-5


@pytest.fixture(scope="module")
def speech():
    rng = np.random.default_rng(1)
    return (0.3 * rng.standard_normal(4 * 7680)).astype(np.float32)


def _frames(session, sound, block):
    """Pushes `sound` in blocks and returns all frames."""
    chunks = []
    for start in range(0, len(sound), block):
        session.push_audio(sound[start : start + block])
        while (chunk := session.pull()) is not None:
            chunks.append(chunk)
    session.end_audio()
    while len(chunks) * 7680 < len(sound):
        chunks.append(session.pull())
    assert [c.first_frame for c in chunks] == [12 * i for i in range(len(chunks))]
    return np.concatenate([c.frames for c in chunks])


def test_block_size_of_the_sound_does_not_matter(pipeline, picture, speech):
    clips = [
        _frames(session_lib.Session(pipeline, picture, mode="speak"), speech, block)
        for block in (160, 7680, len(speech))
    ]
    assert clips[0].shape == (48, 64, 64, 3) and clips[0].dtype == np.uint8
    np.testing.assert_array_equal(clips[0], clips[1])
    np.testing.assert_array_equal(clips[0], clips[2])


def test_windows_of_a_stream_equal_those_of_the_whole_clip(pipeline, speech):
    """What each chunk hears is what one pass over all of the sound would hear."""
    preset, audio = pipeline.preset, encoder.AudioEncoder(pipeline.preset.audio)
    before, after = dit_audio.margins(preset.dit.audio_window, preset.timing)
    head = (before + preset.audio.history) * 640 + 120
    tail = (after + preset.audio.future) * 640 + 120
    assert (pipeline.before, pipeline.after) == (head, tail)
    padded = np.pad(speech, (head, tail))
    features = audio.apply({"params": pipeline.params["audio"]}, padded[None])
    whole = dit_audio.windows(features, preset.dit.audio_window, preset.timing)
    for chunk in range(4):
        part = padded[chunk * 7680 : (chunk + 1) * 7680 + head + tail]
        windows, _ = pipeline.encode_audio(part[None])
        # Measured 5e-7 of values up to 3.
        np.testing.assert_allclose(windows, whole[:, 3 * chunk : 3 * chunk + 3], atol=1e-5)


def _begin(pipeline, pictures, seeds):
    """Start, state and decoder of streams that begin."""
    keys = np.stack([pipeline_lib.stream_key(seed) for seed in seeds])
    return pipeline.begin(np.stack(pictures), keys)


def _step(pipeline, streams, samples, mode):
    """One chunk of every stream: (latents, frames), next streams."""
    start, state, decoder = streams
    windows, voice = pipeline.encode_audio(samples)
    assert voice.shape == mode.shape
    latents, state = pipeline.denoise(state, start, windows, mode)
    frames, decoder = pipeline.decode(latents, decoder)
    kept = jax.tree.map(np.array, latents)
    return (kept, np.asarray(frames)), (start, state, decoder)


def test_a_stream_of_a_batch_is_the_stream_alone(pipeline, picture, speech):
    """Also of streams that were put into a running batch, whatever runs beside them."""
    samples = np.resize(speech, (2, pipeline.before + 7680 + pipeline.after))
    samples[1] *= 0.3
    mode = np.array([[1, 1, 1], [0, 0, 0]], np.int32)
    pictures, seeds = (picture, 255 - picture), (5, 6)

    def alone(i):
        streams, made = _begin(pipeline, pictures[i : i + 1], seeds[i : i + 1]), []
        for _ in range(3):
            one, streams = _step(pipeline, streams, samples[i : i + 1], mode[i : i + 1])
            made.append(one)
        return made

    expected = [alone(0), alone(1)]

    def together(streams, both, index):
        made, streams = _step(pipeline, streams, both, mode)
        return jax.tree.map(lambda x: x[index], made), streams

    def check(actual, expected):
        # Measured 1e-6 of latents up to 4; the frames may round another way.
        for a, b in zip(*map(jax.tree.leaves, (actual[0], expected[0]))):
            np.testing.assert_allclose(a, b[0], rtol=0, atol=_ATOL)
        assert np.abs(actual[1].astype(int) - expected[1][0]).max() <= 1

    streams = _begin(pipeline, [picture, picture], [5, 9])
    for leaf in jax.tree.leaves(streams):
        assert leaf.shape[0] == 2
    first, streams = together(streams, samples, 0)
    check(first, expected[0][0])
    one = _begin(pipeline, pictures[1:], seeds[1:])
    streams = pipeline.insert(streams, 1, one)
    both, streams = together(streams, samples, slice(None))
    for i, chunk in ((0, 1), (1, 0)):
        check(jax.tree.map(lambda x: x[i], both), expected[i][chunk])
    # Only the neighbour differs now: not one bit of this stream may.
    other = pipeline.insert(jax.tree.map(jnp.copy, streams), 0, one)
    loud = np.stack([9 * samples[1], samples[1]])
    quiet, _ = together(streams, samples, 1)
    disturbed, _ = together(other, loud, 1)
    check(quiet, expected[1][1])
    jax.tree.map(np.testing.assert_array_equal, disturbed, quiet)


def test_programs_of_an_earlier_process_give_the_same_video(
    pipeline, picture, speech, monkeypatch
):
    def clip(pipeline):
        session = session_lib.Session(pipeline, picture, mode="speak")
        return _frames(session, speech[:15360], 7680)

    def never(*unused):
        raise AssertionError("traced")

    first = clip(pipeline)
    # Without the cache of this process, where broken programs would stay for other tests.
    monkeypatch.setattr(pipeline_lib, "_programs", pipeline_lib._programs.__wrapped__)
    for name in ("begin", "begin_decoder", "encode_audio", "denoise", "decode"):
        monkeypatch.setattr(streams_lib.StreamFunctions, name, never)
    np.testing.assert_array_equal(clip(dataclasses.replace(pipeline)), first)


def test_after_warming_nothing_is_left_to_compile(pipeline, picture, speech, monkeypatch):
    def never(*unused):
        raise AssertionError("compiled")

    pipeline.warm(2)
    monkeypatch.setattr(programs_lib.Program, "_make", never)
    one = _begin(pipeline, [picture], [1])
    streams = pipeline.insert(_begin(pipeline, [picture, picture], [1, 2]), 1, one)
    heard = speech[: pipeline.before + 7680 + pipeline.after]
    (_, frames), _ = _step(pipeline, streams, np.stack([heard, heard]), np.ones((2, 3), np.int32))
    # One began in a batch of two, the other alone: they may round another way.
    assert np.abs(frames[0].astype(int) - frames[1]).max() <= 1
    with pytest.raises(AssertionError, match="compiled"):
        _begin(pipeline, 3 * [picture], [1, 2, 3])


def test_a_chunk_waits_for_its_look_ahead_and_no_longer(pipeline, picture, speech):
    session = session_lib.Session(pipeline, picture)
    needed = 7680 + round(pipeline.preset.lookahead_s * 16000)
    session.push_audio(speech[: needed - 1])
    assert session.pull() is None
    session.push_audio(speech[needed - 1 : needed])
    assert session.pull().first_frame == 0
    assert session.pull() is None


def test_seed_replays_and_reset_starts_again(pipeline, picture, speech):
    session = session_lib.Session(pipeline, picture, seed=3)
    first = _frames(session, speech, 7680)
    session.reset()
    np.testing.assert_array_equal(_frames(session, speech, 7680), first)
    other = _frames(session_lib.Session(pipeline, picture, seed=4), speech, 7680)
    assert np.abs(other.astype(int) - first).mean() > 1


def test_auto_speaks_while_a_voice_is_heard(pipeline, picture, speech):
    # The activity logit is the last label; a bias decides what the network believes.
    def believing(bias):
        labels = pipeline.params["audio"]["labels"]
        labels = {**labels, "bias": labels["bias"].at[-1].set(bias)}
        audio = {**pipeline.params["audio"], "labels": labels}
        return dataclasses.replace(pipeline, params={**pipeline.params, "audio": audio})

    for bias, expected in ((50.0, True), (-50.0, False)):
        session = session_lib.Session(believing(bias), picture, mode="auto")
        session.push_audio(speech)
        assert session.pull().speaking is expected
        session.set_mode("listen" if expected else "speak")
        assert session.pull().speaking is not expected


def test_mode_and_sound_change_the_picture(pipeline, picture, speech):
    speak = _frames(session_lib.Session(pipeline, picture, mode="speak"), speech, 7680)
    listen = _frames(session_lib.Session(pipeline, picture, mode="listen"), speech, 7680)
    quiet = _frames(session_lib.Session(pipeline, picture, mode="speak"), 0 * speech, 7680)
    assert np.abs(speak.astype(int) - listen).mean() > 0.5
    assert np.abs(speak.astype(int) - quiet).mean() > 0.5


def _listened(pipeline, picture, push, chunks=5):
    """Frames of a listener; `push(session, chunk)` is called before every chunk."""
    session = session_lib.Session(pipeline, picture, mode="listen")
    session.end_audio()
    frames = []
    for chunk in range(chunks):
        push(session, chunk)
        frames.append(session.pull().frames)
    return np.concatenate(frames)


@pytest.fixture(scope="module")
def voice(speech):
    """Another party: a phrase, a pause, a phrase."""
    return speech * np.repeat([1, 1, 0, 1], 7680).astype(np.float32)


def test_a_listener_hears_the_other_party(pipeline, picture, voice):
    alone = _listened(pipeline, picture, lambda session, chunk: None)
    heard = _listened(
        pipeline, picture, lambda session, chunk: chunk or session.push_other(voice)
    )
    assert np.abs(alone.astype(int) - heard).mean() > 0.1
    silent = _listened(
        pipeline, picture, lambda session, chunk: session.push_other(np.zeros(100))
    )
    np.testing.assert_array_equal(silent, alone)


def test_pieces_of_the_other_sound_do_not_matter(pipeline, picture, voice):
    whole = _listened(
        pipeline, picture, lambda session, chunk: chunk or session.push_other(voice)
    )
    queue = list(np.split(voice, range(333, len(voice), 333)))

    def odd(session, chunk):
        for _ in range(24):  # A chunk is a little more than 23 pieces.
            if queue:
                session.push_other(queue.pop(0))

    np.testing.assert_array_equal(_listened(pipeline, picture, odd), whole)


def test_the_other_sound_may_come_late_and_reset_forgets_it(pipeline, picture, voice):
    on_time = _listened(
        pipeline, picture, lambda session, chunk: chunk or session.push_other(voice)
    )
    late = _listened(
        pipeline, picture, lambda session, chunk: chunk == 2 and session.push_other(voice)
    )
    alone = _listened(pipeline, picture, lambda session, chunk: None)
    np.testing.assert_array_equal(late[:24], alone[:24])
    assert np.abs(late[24:].astype(int) - alone[24:]).mean() > 0.1
    assert np.abs(late[24:].astype(int) - on_time[24:]).mean() > 0.01

    session = session_lib.Session(pipeline, picture, mode="listen")
    session.push_other(voice)
    session.reset()
    session.end_audio()
    np.testing.assert_array_equal(session.pull().frames, alone[:12])
    with pytest.raises(ValueError, match="mono at 16 kHz"):
        session.push_other(np.zeros((2, 100)))
    with pytest.raises(ValueError, match="finite"):
        session.push_other(np.array([np.inf]))


def test_auto_holds_on_after_the_voice(pipeline, picture, speech, monkeypatch):
    """A short pause does not shut the mouth; a longer one does."""
    session = session_lib.Session(pipeline, picture)
    session.end_audio()
    heard = iter([0.9, 0.1, 0.9, 0.1, 0.1, 0.1])
    plain = session._encode_audio

    def encode_audio(samples, known):
        windows, voice = plain(samples, known)
        return windows, np.full(voice.shape, next(heard), np.float32)

    monkeypatch.setattr(session, "_encode_audio", encode_audio)
    speaking = [session.pull().speaking for _ in range(6)]
    assert speaking == [True, True, True, True, False, False]


def test_interrupt_forgets_sound_and_keeps_the_clock(pipeline, picture, speech):
    session = session_lib.Session(pipeline, picture, mode="speak")
    session.push_audio(speech)
    session.pull()
    session.interrupt()
    assert session.pull() is None
    session.push_audio(speech)
    assert session.pull().first_frame == 12


def test_another_character_goes_on_at_the_same_time(pipeline, picture, speech):
    session = session_lib.Session(pipeline, picture, mode="speak")
    session.push_audio(speech)
    session.pull()
    session.set_character(255 - picture)
    assert session.pull().first_frame == 12


@pytest.mark.parametrize(
    "bad", [np.zeros((32, 64, 3), np.uint8), np.zeros((64, 64, 3), np.float32)]
)
def test_wrong_pictures_are_explained(pipeline, bad):
    with pytest.raises(ValueError, match=r"expected uint8 \(64, 64, 3\)"):
        session_lib.Session(pipeline, bad)


def test_wrong_sound_and_modes_are_explained(pipeline, picture):
    session = session_lib.Session(pipeline, picture)
    with pytest.raises(ValueError, match="mono at 16 kHz"):
        session.push_audio(np.zeros((2, 100), np.float32))
    with pytest.raises(ValueError, match="finite"):
        session.push_audio(np.array([np.nan], np.float32))
    with pytest.raises(ValueError, match="auto, speak, listen, got 'sing'"):
        session.set_mode("sing")
    session.end_audio()
    with pytest.raises(RuntimeError, match="after end_audio"):
        session.push_audio(np.zeros(10, np.float32))


def test_weights_are_read_strictly(tmp_path, pipeline):
    shapes, values = rules.unbox(pipeline.functions.boxed()["audio"]), pipeline.params["audio"]
    path = tmp_path / "audio.safetensors"
    files.save(str(path), values, "float32")
    restored = files.load(str(path), shapes)
    jax.tree.map(np.testing.assert_array_equal, restored, dict(values))
    with pytest.raises(ValueError, match="must have shape"):
        files.save(str(path), jax.tree.map(lambda x: jnp.zeros((*x.shape, 1)), values), "float32")
        files.load(str(path), shapes)
    with pytest.raises(ValueError, match="tensors are missing"):
        files.save(str(path), {"out": values["out"]}, "float32")
        files.load(str(path), shapes)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="complete safetensors file"):
        files.load(str(path), shapes)
    with pytest.raises(FileNotFoundError, match="no such weight file"):
        files.load(str(tmp_path / "none.safetensors"), shapes)


def test_loading_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="unknown preset 'mega'; choose one of pico, nano"):
        loading.load("mega")
    with pytest.raises(FileNotFoundError, match="preset tm-18b comes without weights"):
        loading.load("tm-18b")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        loading.load("nano", str(tmp_path / "none"))
