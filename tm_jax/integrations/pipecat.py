"""The avatar as a Pipecat service: speech of a TTS service in, pictures with sound out.

  face = pipecat.AvatarVideoService(avatar.Avatar.open(pipeline, picture))
  pipeline = Pipeline([transport.input(), stt, llm, tts, face, transport.output()])

Sound of the user that reaches the service (speech recognition passes it on by default) is
heard by the avatar while it listens.

The transport needs `video_out_enabled=True, video_out_is_live=True, video_out_framerate=25`
and the preset's size. Needs the extra `pipecat`.
"""

import asyncio
import collections
import time

import numpy as np
from pipecat.frames import frames as pipecat_frames
from pipecat.processors import frame_processor
from pipecat.services import ai_service
from pipecat.services import settings as service_settings

from tm_jax.integrations import avatar as avatar_lib
from tm_jax.media import resampling

_DRAIN_S = 2.0  # How much longer than its sound an ending call may take.
_AFTERWARDS_S = 0.5  # Silence after speech; by it the transport detects that the bot has stopped.


class AvatarVideoService(ai_service.AIService):
    """Puts an avatar between speech synthesis and the transport."""

    def __init__(self, avatar: avatar_lib.Avatar, **kwargs):
        """Makes a service.

        Args:
          avatar: The avatar; this service closes it.
          **kwargs: For Pipecat's `AIService`.
        """
        super().__init__(settings=service_settings.ServiceSettings(model=None), **kwargs)
        self._avatar = avatar
        self._pump_task: asyncio.Task | None = None
        self._resampler: resampling.Resampler | None = None
        self._rate = 0
        # Ends of utterances that wait for their sound to be heard.
        self._stops: collections.deque[pipecat_frames.TTSStoppedFrame] = collections.deque()

    def can_generate_metrics(self) -> bool:
        """Time to the first byte is measured: from the first speech to its first frame."""
        return True

    async def setup(self, setup: frame_processor.FrameProcessorSetup) -> None:
        """Warms the avatar up before the pipeline starts."""
        await super().setup(setup)
        await self._avatar.warm_up()

    async def stop(self, frame: pipecat_frames.EndFrame) -> None:
        """Speaks to the end, then stops."""
        await super().stop(frame)
        until = time.monotonic() + self._avatar.queued_s + _DRAIN_S
        while self._pump_task and self._stops and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await self._finish()

    async def cancel(self, frame: pipecat_frames.CancelFrame) -> None:
        """Stops at once."""
        await super().cancel(frame)
        await self._finish()

    async def cleanup(self) -> None:
        """Gives the avatar back."""
        await super().cleanup()
        await self._finish()
        await self._avatar.close()

    async def _finish(self) -> None:
        if self._pump_task is not None:
            task, self._pump_task = self._pump_task, None
            await self.cancel_task(task)

    async def process_frame(
        self, frame: pipecat_frames.Frame, direction: frame_processor.FrameDirection
    ) -> None:
        """Takes speech out of the pipeline; everything else passes."""
        await super().process_frame(frame, direction)
        if isinstance(frame, pipecat_frames.TTSAudioRawFrame):
            await self._speak(frame)
            return
        if isinstance(frame, pipecat_frames.TTSStoppedFrame):
            await self._stop_speaking(frame)
            return
        if isinstance(frame, pipecat_frames.InputAudioRawFrame):
            samples = resampling.from_pcm16(frame.audio, frame.num_channels)
            self._avatar.hear(samples, frame.sample_rate)
        elif isinstance(frame, pipecat_frames.TTSStartedFrame):
            await self.start_ttfb_metrics()
        elif isinstance(frame, pipecat_frames.InterruptionFrame):
            self._stops.clear()
            self._avatar.clear()
            self._resampler, self._rate = None, 0
        elif isinstance(frame, pipecat_frames.OutputTransportReadyFrame):
            if self._pump_task is None:
                self._pump_task = self.create_task(self._pump())
        await self.push_frame(frame, direction)

    async def _speak(self, frame: pipecat_frames.TTSAudioRawFrame) -> None:
        if self._resampler is None or frame.sample_rate != self._rate:
            self._rate = frame.sample_rate
            self._resampler = resampling.Resampler(self._rate, self._avatar.rate)
        samples = resampling.from_pcm16(frame.audio, frame.num_channels)
        await self._avatar.push(self._resampler.push(samples))

    async def _stop_speaking(self, frame: pipecat_frames.TTSStoppedFrame) -> None:
        """Flushes; the frame goes on when its utterance has been shown."""
        if self._resampler is not None:
            await self._avatar.push(self._resampler.push(np.zeros(0), last=True))
        self._avatar.end()
        self._stops.append(frame)
        if self._pump_task is None:  # Nobody shows anything: nothing to wait for.
            await self.push_frame(self._stops.pop())

    async def _pump(self) -> None:
        """Gives frames to the transport at the times at which they are shown."""
        begin, number, quiet = time.monotonic(), 0, 0
        silence = np.zeros(self._avatar.samples_per_frame, np.int16)
        try:
            async for piece in self._avatar.pieces():
                late = time.monotonic() - begin - number / self._avatar.fps
                if late < 0:
                    await asyncio.sleep(-late)
                elif late > 1 / self._avatar.fps:  # Making took too long: all is shown later.
                    begin += late
                number += 1
                # An interruption may have come while it waited.
                current = piece.generation == self._avatar.generation
                sound = piece.sound if current else None
                quiet = 0 if sound is not None else quiet + 1
                if sound is None and quiet <= _AFTERWARDS_S * self._avatar.fps < number:
                    sound = silence
                await self._show(piece, sound)
                for _ in range(piece.ended if current else 0):
                    if self._stops:
                        await self.push_frame(self._stops.popleft())
        except RuntimeError as error:
            await self.push_error(f"The avatar stopped: {error}", exception=error)

    async def _show(self, piece: avatar_lib.Piece, sound: np.ndarray | None) -> None:
        height, width, _ = piece.frame.shape
        await self.push_frame(
            pipecat_frames.OutputImageRawFrame(
                image=piece.frame.tobytes(), size=(width, height), format="RGB"
            )
        )
        if sound is not None:
            if sound.any():
                await self.stop_ttfb_metrics()
            await self.push_frame(
                pipecat_frames.SpeechOutputAudioRawFrame(
                    audio=sound.tobytes(), sample_rate=self._avatar.rate, num_channels=1
                )
            )
