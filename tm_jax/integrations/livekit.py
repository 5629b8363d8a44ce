"""The avatar as a part of LiveKit Agents: one line between an agent and its room.

  session = agents.AgentSession(...)
  face = livekit.AvatarSession(avatar.Avatar.open(pipeline, picture))
  await face.start(session, room=ctx.room)
  await session.start(..., room_options=room_io.RoomOptions(audio_output=False))

The avatar runs inside the agent's process and publishes picture and sound as the agent's own
tracks. Needs the extra `livekit`.
"""

import asyncio
from collections.abc import AsyncIterator
import typing

from livekit import agents
from livekit import rtc
from livekit.agents.voice import avatar as livekit_avatar

from tm_jax.integrations import avatar as avatar_lib
from tm_jax.media import resampling

_RETURN_S = 0.5  # Longest wait for a frame that the consumer holds.
_HEARING_RATE = 16000


class Generator(livekit_avatar.VideoGenerator):
    """Gives an avatar's frames to an `AvatarRunner`.

    No sound of an interrupted utterance leaves it: the generation is checked when the
    consumer comes back for the next frame, before every one.
    """

    def __init__(self, avatar: avatar_lib.Avatar):
        """Takes the avatar's pieces; it is closed by whoever made it."""
        self._avatar = avatar
        self._returned = asyncio.Event()  # The consumer holds no sound of ours.
        self._returned.set()
        self._resampler: resampling.Resampler | None = None
        self._rate = 0

    async def push_audio(
        self, frame: rtc.AudioFrame | livekit_avatar.AudioSegmentEnd
    ) -> None:
        """Takes speech, or the end of an utterance."""
        if isinstance(frame, livekit_avatar.AudioSegmentEnd):
            await self._pass_on(b"", 1, last=True)
            self._avatar.end()
            return
        if frame.sample_rate != self._rate:
            self._rate = frame.sample_rate
            self._resampler = resampling.Resampler(self._rate, self._avatar.rate)
        await self._pass_on(frame.data.tobytes(), frame.num_channels, last=False)

    async def _pass_on(self, data: bytes, channels: int, last: bool) -> None:
        if self._resampler is not None:
            samples = resampling.from_pcm16(data, channels)
            await self._avatar.push(self._resampler.push(samples, last=last))

    async def clear_buffer(self) -> None:
        """Discards all speech at once.

        Returns when the sound that the consumer may still hold has been counted by it: the
        runner takes whatever it counts later for the beginning of another utterance.
        """
        self._avatar.clear()
        if self._resampler is not None:
            self._resampler.reset()
        try:
            await asyncio.wait_for(self._returned.wait(), _RETURN_S)
        except TimeoutError:
            pass  # A stuck consumer shall not stop the interruption.

    def __aiter__(
        self,
    ) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | livekit_avatar.AudioSegmentEnd]:
        return self._frames()

    async def _frames(self):
        async for piece in self._avatar.pieces():
            height, width, _ = piece.frame.shape
            yield rtc.VideoFrame(
                width, height, rtc.VideoBufferType.RGB24, piece.frame.tobytes()
            )
            if piece.generation != self._avatar.generation:
                continue
            if piece.sound is not None:
                self._returned.clear()
                try:
                    yield rtc.AudioFrame(
                        piece.sound.tobytes(), self._avatar.rate, 1, len(piece.sound)
                    )
                finally:
                    self._returned.set()
                # The others that wait for the return come first.
                await asyncio.sleep(0)
            for _ in range(piece.ended):
                if piece.generation == self._avatar.generation:
                    yield livekit_avatar.AudioSegmentEnd()


class _Ears:
    """Feeds a room's sound to an avatar: one microphone at a time, the longest there."""

    def __init__(self, room: rtc.Room, avatar: avatar_lib.Avatar):
        """Listens from now on."""
        self._room, self._avatar = room, avatar
        self._tracks: list[rtc.Track] = []
        self._heard: rtc.Track | None = None
        self._task: asyncio.Task | None = None
        room.on("track_subscribed", self._came)
        room.on("track_unsubscribed", self._went)
        for participant in room.remote_participants.values():
            for publication in participant.track_publications.values():
                if publication.track is not None:
                    self._came(publication.track, publication, participant)

    def _came(self, track: rtc.Track, *_) -> None:
        if track.kind == rtc.TrackKind.KIND_AUDIO:
            self._tracks.append(track)
            self._follow()

    def _went(self, track: rtc.Track, *_) -> None:
        self._tracks = [other for other in self._tracks if other is not track]
        if track is self._heard:
            if self._task is not None:
                self._task.cancel()
            self._heard = None
            self._follow()

    def _follow(self) -> None:
        if self._heard is None and self._tracks:
            self._heard = self._tracks[0]
            self._task = asyncio.create_task(self._listen(self._heard))

    async def _listen(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(track, sample_rate=_HEARING_RATE, num_channels=1)
        try:
            async for event in stream:
                samples = resampling.from_pcm16(event.frame.data.tobytes())
                self._avatar.hear(samples, event.frame.sample_rate)
        finally:
            await stream.aclose()

    async def aclose(self) -> None:
        """Listens no more."""
        self._room.off("track_subscribed", self._came)
        self._room.off("track_unsubscribed", self._went)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class AvatarSession(livekit_avatar.AvatarSession):
    """Puts an avatar between an agent and its room."""

    def __init__(self, avatar: avatar_lib.Avatar):
        """Makes a session; nothing happens before `start`.

        Args:
          avatar: The avatar; this session closes it.
        """
        super().__init__()
        self._avatar = avatar
        self._runner: livekit_avatar.AvatarRunner | None = None
        self._speech_events: rtc.EventEmitter[str] | None = None  # Of the speech that goes in.
        self._ears: _Ears | None = None
        self._tasks: set[asyncio.Task] = set()

    @property
    def avatar_identity(self) -> str:
        """The agent itself: it publishes the avatar's tracks."""
        return "" if self._room is None else self._room.local_participant.identity

    @property
    def provider(self) -> str:
        """Name in the metrics."""
        return "tm_jax"

    async def start(self, agent_session: agents.AgentSession, room: rtc.Room) -> None:
        """Warms the avatar up and takes the agent's speech from now on.

        Args:
          agent_session: The agent; give it no audio output of its own.
          room: Where picture and sound are published, and whose people are heard.

        Raises:
          RuntimeError: Started twice.
        """
        if self._runner is not None:
            raise RuntimeError("AvatarSession.start may be called once; make another session.")
        await super().start(agent_session, room)
        height, width = await self._avatar.warm_up()
        options = livekit_avatar.AvatarOptions(
            video_width=width, video_height=height, video_fps=self._avatar.fps,
            audio_sample_rate=self._avatar.rate, audio_channels=1,
        )
        output = livekit_avatar.QueueAudioOutput(
            sample_rate=self._avatar.rate, wait_playback_start=True
        )
        self._runner = livekit_avatar.AvatarRunner(
            room, audio_recv=output, video_gen=Generator(self._avatar), options=options
        )
        self._speech_events = typing.cast("rtc.EventEmitter[str]", output)
        self._speech_events.on("clear_buffer", self._on_clear)
        agent_session.output.replace_audio_tail(output)
        await self._runner.start()
        self._ears = _Ears(room, self._avatar)

    def _on_clear(self) -> None:
        """Throws away what the sources have not played; the runner itself does not."""
        if self._runner is None:
            return
        task = asyncio.create_task(self._runner.av_sync.clear_queue())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Stops publishing and gives the avatar back; may be called twice."""
        runner, self._runner = self._runner, None
        ears, self._ears = self._ears, None
        if ears is not None:
            await ears.aclose()
        if runner is not None:
            if self._speech_events is not None:
                self._speech_events.off("clear_buffer", self._on_clear)
            await runner.aclose()
        await self._avatar.close()
        if self._room is not None:
            # The avatar's participant is the agent: it must not be removed from its room.
            self._room.off("connection_state_changed", self._on_connection_state_changed)
            self._room = None
        await super().aclose()
