"""The Pipecat service, by Pipecat's own test runner and by its real media sender."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("pipecat.tests.utils")

from pipecat.frames import frames as pipecat_frames  # noqa: E402
from pipecat.pipeline.pipeline import Pipeline  # noqa: E402
from pipecat.pipeline.worker import PipelineWorker  # noqa: E402
from pipecat.tests import utils  # noqa: E402
from pipecat.transports import base_output  # noqa: E402
from pipecat.transports import base_transport  # noqa: E402
from pipecat.workers.runner import WorkerRunner  # noqa: E402

from tm_jax.integrations import avatar as avatar_lib
from tm_jax.integrations import pipecat
from tm_jax.media import resampling  # noqa: E402


def _speech(seconds, rate=16000, level=0.5):
    data = resampling.to_pcm16(np.full(round(seconds * rate), level, np.float32))
    return pipecat_frames.TTSAudioRawFrame(audio=data, sample_rate=rate, num_channels=1)


def _run(fake, *sent):
    async def run():
        service = pipecat.AvatarVideoService(avatar_lib.Avatar(fake, 0.2))
        down, up = await utils.run_test(
            service, frames_to_send=[pipecat_frames.OutputTransportReadyFrame(), *sent]
        )
        return down

    return asyncio.run(run())


def _kinds(frames, *wanted):
    return [type(f).__name__ for f in frames if not wanted or isinstance(f, wanted)]


def _sound(frames):
    kind = pipecat_frames.SpeechOutputAudioRawFrame
    parts = [np.frombuffer(f.audio, np.int16) for f in frames if isinstance(f, kind)]
    return np.concatenate(parts or [np.zeros(0, np.int16)])


def test_speech_comes_out_with_pictures_and_its_end_after_it(fake):
    frames = _run(
        fake, utils.SleepFrame(0.1), pipecat_frames.TTSStartedFrame(), _speech(0.4),
        _speech(0.4), pipecat_frames.TTSStoppedFrame(), pipecat_frames.TTSTextFrame("x", "y"),
    )
    names = _kinds(frames)
    assert "TTSAudioRawFrame" not in names
    images = [f for f in frames if isinstance(f, pipecat_frames.OutputImageRawFrame)]
    assert all((f.size, f.format, len(f.image)) == ((4, 4), "RGB", 48) for f in images)
    sound = _sound(frames)
    # Above half of its level, because edges ring.
    assert np.count_nonzero(sound > 8192) == pytest.approx(0.8 * 24000, abs=4)
    # The end waits for its sound; text does not.
    last = max(i for i, f in enumerate(frames) if _is_loud(f))
    assert names.index("TTSStoppedFrame") > last > names.index("TTSTextFrame")
    assert names.index("OutputTransportReadyFrame") < names.index("OutputImageRawFrame")


def _is_loud(frame):
    return isinstance(frame, pipecat_frames.SpeechOutputAudioRawFrame) and any(frame.audio)


def test_every_piece_of_sound_follows_its_picture(fake):
    frames = _run(fake, _speech(0.5, 24000), pipecat_frames.TTSStoppedFrame())
    media = _kinds(
        frames, pipecat_frames.OutputImageRawFrame, pipecat_frames.SpeechOutputAudioRawFrame
    )
    first = next(i for i, f in enumerate(media) if f.startswith("Speech"))
    speaking = media[first - 1 : first - 1 + 2 * 13]
    assert speaking == ["OutputImageRawFrame", "SpeechOutputAudioRawFrame"] * 13
    assert len(_sound(frames)) % 960 == 0


def test_frames_come_at_25_a_second_also_without_speech(fake):
    frames = _run(fake, utils.SleepFrame(1.0))
    count = _kinds(frames).count("OutputImageRawFrame")
    assert 10 <= count <= 27 and not _sound(frames).any()  # Fewer on a busy machine.


def test_the_user_is_heard_and_passed_on(fake):
    data = resampling.to_pcm16(np.full(8000, 0.5, np.float32))
    user = pipecat_frames.InputAudioRawFrame(audio=data, sample_rate=16000, num_channels=1)
    frames = _run(fake, user, utils.SleepFrame(0.8))
    assert "InputAudioRawFrame" in _kinds(frames)
    assert any(np.median(other) == pytest.approx(0.5, abs=0.01) for other in fake.others)


def test_an_interruption_passes_and_silences(fake):
    frames = _run(
        fake, _speech(5), pipecat_frames.TTSStoppedFrame(), utils.SleepFrame(0.6),
        pipecat_frames.InterruptionFrame(), utils.SleepFrame(0.4), _speech(0.2, level=0.25),
        pipecat_frames.TTSStoppedFrame(),
    )
    at = next(i for i, f in enumerate(frames) if isinstance(f, pipecat_frames.InterruptionFrame))
    assert 0.2 * 24000 < np.count_nonzero(_sound(frames[:at])) < 3 * 24000
    after = _sound(frames[at:])
    assert not np.any(np.abs(after.astype(int)) > 9500)  # Nothing of the old speech.
    assert np.count_nonzero(after > 4096) == pytest.approx(4800, abs=4)
    assert _kinds(frames).count("TTSStoppedFrame") == 1  # That of the second utterance.


def test_without_a_transport_nothing_is_held_back(fake):
    async def run():
        service = pipecat.AvatarVideoService(avatar_lib.Avatar(fake, 0.2))
        sent = [_speech(0.2), pipecat_frames.TTSStoppedFrame()]
        down, _ = await utils.run_test(
            service, frames_to_send=sent, expected_down_frames=[pipecat_frames.TTSStoppedFrame]
        )

    asyncio.run(run())
    assert fake.calls[-1] == "close"


def test_a_broken_session_is_reported_upstream(make_fake):
    async def run():
        broken = make_fake()
        service = pipecat.AvatarVideoService(avatar_lib.Avatar(broken, 0.2))
        warm = service._avatar.warm_up

        async def warm_then_break():
            size = await warm()
            broken.lookahead = 99999
            return size

        service._avatar.warm_up = warm_then_break
        sent = [pipecat_frames.OutputTransportReadyFrame(), utils.SleepFrame(0.3)]
        return await utils.run_test(service, frames_to_send=sent)

    _, up = asyncio.run(run())
    errors = [f for f in up if isinstance(f, pipecat_frames.ErrorFrame)]
    assert len(errors) == 1 and "The avatar stopped" in errors[0].error


class _Output(base_output.BaseOutputTransport):
    """Pipecat's own media sender; keeps what it would send."""

    def __init__(self, size):
        super().__init__(
            base_transport.TransportParams(
                audio_out_enabled=True, audio_out_sample_rate=24000, video_out_enabled=True,
                video_out_is_live=True, video_out_width=size, video_out_height=size,
                video_out_framerate=25, audio_out_end_silence_secs=0,
            )
        )
        self.pictures, self.sound, self.clock = [], [], None

    async def start(self, frame):
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_video_frame(self, frame):
        pixels = np.frombuffer(frame.image, np.uint8).reshape(*frame.size, 3)
        self.pictures.append((asyncio.get_running_loop().time(), pixels))
        return True

    async def write_audio_frame(self, frame):
        now = asyncio.get_running_loop().time()
        self.clock = max(self.clock or now, now)
        await asyncio.sleep(self.clock - now)
        self.sound.append((self.clock, np.frombuffer(frame.audio, np.int16)))
        self.clock += len(frame.audio) / 48000
        return True


class _Listener(utils.FrameProcessor):
    def __init__(self, seen):
        super().__init__()
        self._seen = seen

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        self._seen.append(type(frame).__name__)
        await self.push_frame(frame, direction)


def test_a_real_transport_plays_lips_and_voice_together(make_fake):
    fake = make_fake(size=8)
    seen = []

    async def run():
        service = pipecat.AvatarVideoService(avatar_lib.Avatar(fake, 0.2))
        output = _Output(8)
        worker = PipelineWorker(
            Pipeline([_Listener(seen), service, output]), cancel_on_idle_timeout=False
        )

        async def speak():
            await asyncio.sleep(0.7)
            for _ in range(5):
                await worker.queue_frame(_speech(0.2, 24000))
            await worker.queue_frame(pipecat_frames.TTSStoppedFrame())
            await asyncio.sleep(2.5)
            await worker.queue_frame(pipecat_frames.EndFrame())

        runner = WorkerRunner()
        await runner.add_workers(worker)
        await asyncio.gather(runner.run(), speak())
        return output

    output = asyncio.run(run())
    loud = [at for at, sound in output.sound if np.median(sound) > 8000]
    moving = [at for at, pixels in output.pictures if pixels[0, 1, 0] > 90]
    assert len(loud) == 25 and len(moving) == 25
    offset = np.median(np.subtract(moving, loud))
    print(f"lips {1000 * offset:.0f} ms after the voice")
    assert abs(offset) < 0.06
    numbers = [int(pixels[0, 0, 0]) for _, pixels in output.pictures]
    assert numbers == sorted(numbers)
    # The transport says upstream when the bot speaks and when it has stopped.
    assert seen.count("BotStartedSpeakingFrame") == 1
    assert seen.count("BotStoppedSpeakingFrame") == 1
