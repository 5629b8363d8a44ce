"""The LiveKit avatar: generations, a runner with real sources, a session in a fake room."""

import asyncio
import types

import numpy as np
import pytest

pytest.importorskip("livekit.agents")

from livekit import rtc  # noqa: E402
from livekit.agents.voice import avatar as livekit_avatar  # noqa: E402
from livekit.agents.voice import io  # noqa: E402

from tm_jax.integrations import avatar as avatar_lib
from tm_jax.integrations import livekit
from tm_jax.media import resampling  # noqa: E402


def _speech(seconds, rate=24000, level=0.5):
    data = resampling.to_pcm16(np.full(round(seconds * rate), level, np.float32))
    return rtc.AudioFrame(data, rate, 1, len(data) // 2)


def _run(session, work):
    async def run():
        avatar = avatar_lib.Avatar(session, 0.2)
        try:
            await work(avatar)
        finally:
            await avatar.close()

    asyncio.run(run())


async def _until_sound(frames):
    async for frame in frames:
        if isinstance(frame, rtc.AudioFrame):
            return frame


def test_pictures_sound_and_ends_come_in_order(fake):
    async def work(avatar):
        generator = livekit.Generator(avatar)
        await generator.push_audio(_speech(0.2, rate=48000))
        await generator.push_audio(livekit_avatar.AudioSegmentEnd())
        kinds, sound = [], []
        async for frame in generator:
            kinds.append(type(frame).__name__)
            if isinstance(frame, rtc.AudioFrame):
                assert (frame.sample_rate, frame.num_channels) == (24000, 1)
                sound.append(np.frombuffer(frame.data, np.int16))
            if isinstance(frame, rtc.VideoFrame):
                assert (frame.width, frame.height) == (4, 4)
            if len(kinds) == 14:
                break
        assert kinds == ["VideoFrame", "AudioFrame"] * 5 + ["AudioSegmentEnd"] + ["VideoFrame"] * 3
        assert abs(np.median(np.concatenate(sound)) - 16384) < 20

    _run(fake, work)


def test_after_an_interruption_not_one_piece_of_old_sound_comes_out(fake):
    async def work(avatar):
        generator = livekit.Generator(avatar)
        await generator.push_audio(_speech(4))
        await generator.push_audio(livekit_avatar.AudioSegmentEnd())
        frames = aiter(generator)
        for _ in range(7):
            frame = await anext(frames)
        assert isinstance(frame, rtc.VideoFrame)  # Its sound would come next.
        await generator.clear_buffer()
        kinds = [type(await anext(frames)).__name__ for _ in range(30)]
        assert set(kinds) == {"VideoFrame"}

    _run(fake, work)


def test_clearing_waits_for_the_sound_that_the_consumer_holds(fake):
    async def work(avatar):
        generator = livekit.Generator(avatar)
        await generator.push_audio(_speech(4))
        frames = aiter(generator)
        await _until_sound(frames)
        clearing = asyncio.create_task(generator.clear_buffer())
        await asyncio.sleep(0.02)
        assert not clearing.done() and avatar.generation == 1
        await anext(frames)
        await asyncio.wait_for(clearing, 0.1)
        # A consumer that never comes back does not hold the interruption up for ever.
        await generator.push_audio(_speech(4))
        await _until_sound(frames)
        await asyncio.wait_for(generator.clear_buffer(), 1)

    _run(fake, work)


class _Participant:
    def __init__(self):
        self.identity, self.published, self.track_publications = "agent", [], {}

    async def publish_track(self, track, options):
        self.published.append((track, options))

        async def subscribed():
            pass

        return types.SimpleNamespace(wait_for_subscription=subscribed, kind=track.kind)


class _Room(rtc.EventEmitter):
    """A room that is connected to nothing."""

    def __init__(self):
        super().__init__()
        self.name, self.local_participant = "room", _Participant()
        self.remote_participants = {}

    def isconnected(self):
        return True


class _Agent(rtc.EventEmitter):
    """An agent with the real chain of outputs."""

    def __init__(self):
        super().__init__()
        nothing = lambda: None  # noqa: E731
        self.output = io.AgentOutput(nothing, nothing, nothing)


async def _session(fake):
    room, agent = _Room(), _Agent()
    face = livekit.AvatarSession(avatar_lib.Avatar(fake, 0.2))
    events = []
    await face.start(agent, room)
    output = agent.output.audio
    output.on("playback_started", lambda event: events.append("started"))
    output.on(
        "playback_finished",
        lambda event: events.append((round(event.playback_position, 2), event.interrupted)),
    )
    return room, agent, face, output, events


def test_an_agent_speaks_through_real_sources(make_fake):
    async def run():
        room, _, face, output, events = await _session(make_fake(size=16))
        assert face.avatar_identity == "agent" and face.provider == "tm_jax"
        with pytest.raises(RuntimeError, match="once"):
            await face.start(None, room)
        await output.capture_frame(_speech(0.6))
        output.flush()
        async with asyncio.timeout(10):
            finished = await output.wait_for_playout()
        assert finished.playback_position == pytest.approx(0.6, abs=0.021)
        assert not finished.interrupted
        kinds = [track.kind for track, _ in room.local_participant.published]
        assert kinds == [rtc.TrackKind.KIND_AUDIO, rtc.TrackKind.KIND_VIDEO]
        await face.aclose()
        await face.aclose()
        return events

    events = asyncio.run(run())
    assert events == ["started", (0.6, False)]


def test_an_interrupted_agent_reports_what_was_played_once(make_fake):
    async def run():
        _, _, face, output, events = await _session(make_fake(size=16))
        await output.capture_frame(_speech(10))
        output.flush()
        async with asyncio.timeout(10):
            while "started" not in events:
                await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.sleep(0.7)
        cleared = loop.time()
        output.clear_buffer()
        async with asyncio.timeout(5):
            finished = await output.wait_for_playout()
        took = loop.time() - cleared
        # What the sources hold, a tenth of a second, counts as played.
        assert finished.interrupted
        assert 0.3 < finished.playback_position < cleared - started + 0.3
        await asyncio.sleep(0.5)  # Time for a spurious "started", if there were one.
        count = len(events)
        # The next utterance is heard as one of its own.
        await output.capture_frame(_speech(0.3))
        output.flush()
        async with asyncio.timeout(10):
            again = await output.wait_for_playout()
        assert again.playback_position == pytest.approx(0.3, abs=0.041) and not again.interrupted
        await face.aclose()
        return events, count, took

    events, count, took = asyncio.run(run())
    assert count == 2 and [e for e in events if e == "started"] == ["started"] * 2
    print(f"stopped after {1000 * took:.0f} ms")
    assert took < 0.3


def test_a_real_agent_session_speaks_and_is_interrupted(make_fake):
    """LiveKit's own agent, without a room of its own: `say`, then `interrupt`."""
    from livekit import agents

    async def sound(seconds):
        for _ in range(round(seconds / 0.1)):
            yield _speech(0.1)

    async def run():
        room = _Room()
        session = agents.AgentSession()
        face = livekit.AvatarSession(avatar_lib.Avatar(make_fake(size=16), 0.2))
        await face.start(session, room)
        await session.start(agent=agents.Agent(instructions="None."))
        async with asyncio.timeout(20):
            first = session.say("Hello there.", audio=sound(0.6))
            await first.wait_for_playout()
            second = session.say("A long story.", audio=sound(8))
            while session.agent_state != "speaking":
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            await session.interrupt()
            await second.wait_for_playout()
        said = [item.interrupted for item in session.history.items if item.type == "message"]
        await session.aclose()
        await face.aclose()
        return first.interrupted, second.interrupted, said

    assert asyncio.run(run()) == (False, True, [False, True])


async def _talk(room, level):
    """A real track of the caller in the room; returns it and what keeps it talking."""
    source = rtc.AudioSource(48000, 1)
    track = rtc.LocalAudioTrack.create_audio_track(f"microphone {level}", source)
    room.emit("track_subscribed", track, None, None)

    async def talk():
        while True:
            await source.capture_frame(_speech(0.1, rate=48000, level=level))

    return track, asyncio.create_task(talk())


def _levels(session):
    return {round(float(np.median(sound)), 1) for sound in session.others if len(sound)}


def test_the_callers_are_heard_one_at_a_time(make_fake):
    """The first microphone, and the second one when the first has gone."""
    session = make_fake(size=16)

    async def heard(level):
        async with asyncio.timeout(10):
            while level not in _levels(session):
                await asyncio.sleep(0.02)

    async def run():
        room, _, face, _, _ = await _session(session)
        first, talking = await _talk(room, 0.5)
        second, also = await _talk(room, 0.2)
        await heard(0.5)
        assert 0.2 not in _levels(session)
        room.emit("track_unsubscribed", first, None, None)
        await heard(0.2)
        await face.aclose()
        count = len(session.others)
        await asyncio.sleep(0.3)
        assert len(session.others) == count
        for task in (talking, also):
            task.cancel()

    asyncio.run(run())


def test_a_caller_who_was_there_before_is_heard(make_fake):
    session = make_fake(size=16)

    async def run():
        room, (track, talking) = _Room(), await _talk(_Room(), 0.5)
        publication = types.SimpleNamespace(track=track)
        person = types.SimpleNamespace(track_publications={"TR": publication})
        room.remote_participants = {"caller": person}
        face = livekit.AvatarSession(avatar_lib.Avatar(session, 0.2))
        await face.start(_Agent(), room)
        async with asyncio.timeout(10):
            while 0.5 not in _levels(session):
                await asyncio.sleep(0.02)
        await face.aclose()
        talking.cancel()

    asyncio.run(run())
