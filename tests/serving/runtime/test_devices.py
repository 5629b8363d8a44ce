"""Models on slices of simulated devices: same frames as a session, whatever the placement."""

import functools
import io

import jax
import numpy as np
import PIL.Image
import pytest

from tests import miniature
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import session as session_lib
from tm_jax.serving.runtime import backend as backend_lib
from tm_jax.serving.runtime import devices as devices_lib

CHUNKS = 3
STEP = 7680


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
    """Optimising the machine code of these tiny models takes longer than running it."""
    with pytest.MonkeyPatch.context() as patch:
        options = {"xla_backend_optimization_level": 0}
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
        yield


@pytest.fixture(scope="module")
def pipeline(pico):
    return miniature.pipeline(pico)


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def speech(seed):
    rng = np.random.default_rng(seed)
    return (0.3 * rng.standard_normal(CHUNKS * STEP)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(pipeline):
    """Frames of two plain sessions, [2, chunks * F, H, W, 3]."""
    clips = []
    for seed in (1, 2):
        session = session_lib.Session(pipeline, picture(seed), seed=seed)
        session.push_audio(speech(seed))
        session.end_audio()
        clips.append(np.concatenate([session.pull().frames for _ in range(CHUNKS)]))
    return np.stack(clips)


def windows(pipeline, seed):
    """What the models hear in each chunk."""
    sound = np.pad(speech(seed), (pipeline.before, pipeline.after))
    length = pipeline.before + STEP + pipeline.after
    return [sound[i * STEP : i * STEP + length] for i in range(CHUNKS)]


PLACEMENTS = {
    "one device": (1, {}),
    "disaggregated": (2, {"mode": "disaggregated"}),
    "sequence and streams shared": (4, {"sequence": 2}),
    "disaggregated, sequence": (3, {"mode": "disaggregated", "sequence": 2}),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_placement_gives_the_frames_of_a_session(pipeline, expected, name):
    count, arguments = PLACEMENTS[name]
    devices = jax.devices()[:count]
    placed = pipeline.placed(pipeline_lib.Placement(**arguments), devices)
    backend = devices_lib.PipelineBackend(placed)
    lane = backend.lane(2)
    # The second stream comes into the first one's running batch, in the place of a third.
    backend.begin(lane, 0, picture(3), 3, 0)
    backend.begin(lane, 0, picture(1), 1, 0)
    poses, clear = np.full(2, backend_lib.AUTO, np.int32), np.zeros(2, bool)
    heard, clips = [windows(pipeline, seed) for seed in (1, 2)], [[], []]
    silence = np.zeros_like(heard[0][0])
    for tick in range(CHUNKS + 1):
        if tick == 1:
            backend.begin(lane, 1, picture(2), 2, 0)
        rows = [
            heard[0][tick] if tick < CHUNKS else silence, heard[1][tick - 1] if tick else silence
        ]
        result = backend.step(lane, np.stack(rows), poses, clear).wait()
        clips[0].append(result.frames[0])
        clips[1].append(result.frames[1])
        assert set(result.spans) == {"score", "transfer", "decode"}
    actual = np.stack([np.concatenate(clips[0][:CHUNKS]), np.concatenate(clips[1][1:])])
    difference = np.abs(actual.astype(int) - expected.astype(int))
    # Rounding of float sums in another order may move a pixel by one level.
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert np.abs(expected[0].astype(int) - expected[1].astype(int)).mean() > 5


def test_a_call_with_models(net, pipeline):
    """Through engine, protocol and socket: the frames of a plain session, one by one."""
    pytest.importorskip("aiohttp")
    from tm_jax.serving import app
    from tm_jax.serving import client
    from tm_jax.serving import security
    from tm_jax.serving.calls import exchange
    from tm_jax.serving.runtime import capacity
    from tm_jax.serving.runtime import engine
    from tm_jax.serving.transport import messages
    from tm_jax.serving.transport import pictures

    backend = devices_lib.PipelineBackend(pipeline)
    capacity.measure(backend, 1)  # Compiles, as a server does before its first caller.
    motor = engine.Engine(backend)
    faces = [pictures.character("x", "X", picture(5))]
    calls = exchange.Exchange(motor, pictures.Gallery(faces, 64, 64))
    pcm = (8000 * np.sin(np.arange(30000) / 9)).astype("<i2").tobytes()

    async def go():
        running = await app.start(app.build(app.Site(exchange=calls, guard=security.Guard())), "127.0.0.1", 0)
        found = []
        async with client.connect(f"http://127.0.0.1:{running.port}") as call:
            await call.start(mode="file", avatar="speak")
            await call.send_sound(pcm)
            await call.send(messages.SpeechEnd())
            while len(found) < 60:
                found.append(await call.wait_for(messages.Frames, 60))
        await running.close()
        return found

    found = net.run(go(), 120)
    motor.close()
    assert [f.frame for f in found] == list(range(60))
    heard = np.concatenate([np.frombuffer(f.pcm, "<i2") for f in found])
    spoken = np.flatnonzero(heard)
    assert heard[spoken[0] :][:29999].tobytes() == pcm[2:60000]  # Whole, after a sample of 0.
    shown = [np.asarray(PIL.Image.open(io.BytesIO(f.jpegs[0])), int) for f in found]
    changes = [np.abs(a - b).mean() for a, b in zip(shown, shown[1:])]
    assert shown[0].shape == (64, 64, 3) and min(changes) > 0.05  # It never freezes.


def test_poses_and_interruption_decide_the_mode():
    poses = np.array([backend_lib.AUTO, backend_lib.SPEAK, backend_lib.LISTEN, -1], np.int32)
    loud = np.array([[0.1, 0.9, 0.1]] * 3 + [[0.1] * 3], np.float32)
    no, held = np.zeros(4, bool), np.zeros(4, np.int32)
    mode, held = devices_lib._decide(loud, held, poses, no)
    assert np.asarray(mode).tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]
    quiet = np.zeros((4, 3), np.float32)
    kept = np.array(held)
    mode, held = devices_lib._decide(quiet, held, poses, no)
    assert np.asarray(mode)[:, 0].tolist() == [1, 1, 0, 0]  # `auto` holds on for a chunk.
    mode, _ = devices_lib._decide(quiet, kept, poses, ~no)
    assert np.asarray(mode)[:, 0].tolist() == [0, 1, 0, 0]  # Not after an interruption.


@pytest.mark.parametrize(
    "count,arguments,message",
    [
        (1, {"mode": "disaggregated"}, "at least 2 devices"),
        (3, {"sequence": 2}, "does not divide"),
    ],
)
def test_placements_that_cannot_be(count, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline_lib.Placement(**arguments).meshes(jax.devices()[:count])


def test_wrong_words_are_explained():
    with pytest.raises(ValueError, match="self-contained or disaggregated"):
        pipeline_lib.Placement(mode="apart")
    with pytest.raises(ValueError, match="at least 1"):
        pipeline_lib.Placement(sequence=0)
