"""A call with a Realtime server: answers, captions, barge-in, losses."""

import asyncio
import base64
import time

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from tm_jax.integrations.agents import conversation
from tm_jax.integrations.agents import events
from tm_jax.integrations.agents import remote
from tm_jax.serving.calls import voice

_RETRY = conversation.Retry(first_s=0.02, longest_s=0.05, total_s=0.3)


def _call(make_server, line, work, **settings):
    """Runs `work(server, talk)` in a call with a server."""

    async def run():
        async with make_server() as server:
            server.session = settings.get("session", server.session)
            far = remote.Remote(remote.Config(url=server.url))
            persona = events.Persona(greeting=settings.get("greeting", ""))
            talk = conversation.Conversation(far, persona, _RETRY)
            await talk.start(line)
            try:
                await work(server, talk)
            finally:
                await talk.close()

    asyncio.run(run())


@pytest.mark.parametrize("old", [False, True])
def test_an_answer_is_spoken_and_captioned_until_it_was_heard(
    make_server, line, wait_until, answer_events, old
):
    async def work(server, talk):
        await server.say(*answer_events(old=old))
        await wait_until(lambda: line.of("finish"))
        assert line.of("speak") == [("i1", 250)] * 4
        await wait_until(lambda: ("avatar", "i1", "Hello there caller", True) in line.of("caption"))
        assert ("avatar", "i1", "Hello", False) in line.of("caption")
        assert line.of("state")[-1] == ("speaking",)
        await line.play(talk, 999)
        assert line.of("state")[-1] == ("speaking",)
        await line.play(talk, 1)
        assert line.of("state")[-1] == ("listening",)
        kind = (await wait_until(lambda: server.of("session.update")))[0]["session"]
        assert ("modalities" in kind) == old

    session = {"input_audio_format": "pcm16"} if old else {"type": "realtime"}
    _call(make_server, line, work, session=session)


def test_the_caller_is_heard_and_written_down(make_server, line, wait_until):
    async def work(server, talk):
        sound = bytes(range(240)) * 4
        await talk.hear(sound)
        heard = await wait_until(lambda: server.of("input_audio_buffer.append"))
        assert base64.b64decode(heard[0]["audio"]) == sound
        await server.say(
            {"type": "input_audio_buffer.speech_started", "item_id": "u1"},
            {"type": "input_audio_buffer.speech_stopped", "item_id": "u1"},
            {
                "type": "conversation.item.input_audio_transcription.completed",
                "item_id": "u1", "transcript": " What is it? ",
            },
        )
        await wait_until(lambda: line.of("caption"))
        assert line.of("caption") == [("caller", "u1", "What is it?", True)]
        assert line.of("state") == [("listening",), ("thinking",)]
        assert not line.of("interrupt")  # There was nothing to stop.
        await talk.heard_all()
        await wait_until(lambda: len(server.of("input_audio_buffer.append")) == 2)
        silence = base64.b64decode(server.received[-1]["audio"])
        assert len(silence) >= 48000 and not any(silence)

    _call(make_server, line, work)


def test_it_greets_once_if_it_is_told_to(make_server, line, wait_until):
    async def work(server, talk):
        create = await wait_until(lambda: server.of("response.create"))
        assert create[0]["response"] == {"instructions": "Say hi."}
        assert [e["type"] for e in server.received[:2]] == ["session.update", "response.create"]
        await server.hang_up()
        await wait_until(lambda: len(server.of("session.update")) == 2)
        await asyncio.sleep(0.05)
        assert len(server.of("response.create")) == 1

    _call(make_server, line, work, greeting="Say hi.")


def test_barge_in_flushes_then_cancels_then_truncates_what_was_heard(
    make_server, line, wait_until, answer_events
):
    async def work(server, talk):
        answer = answer_events()
        await server.say(*answer[:5])  # Sound of 0.75 s; the answer is not complete.
        await wait_until(lambda: len(line.of("speak")) == 3)
        await line.play(talk, 420)
        started = time.monotonic()
        await server.say({"type": "input_audio_buffer.speech_started", "item_id": "u1"})
        await wait_until(lambda: line.of("interrupt"))
        assert time.monotonic() - started < 0.3
        assert line.of("interrupt") == [("barge_in", "i1", 420)]
        # What was on its way is not spoken any more.
        await server.say(*answer[5:])
        done = {"type": "response.done", "response": {"id": "r1", "status": "cancelled"}}
        await server.say(done, *answer_events("r2", "i2"))
        await wait_until(lambda: ("i2",) in line.of("finish"))
        after = line.log[line.log.index(("interrupt", "barge_in", "i1", 420)) :]
        assert {entry[1] for entry in after if entry[0] == "speak"} == {"i2"}
        assert ("listening",) in [e[1:] for e in after if e[0] == "state"]
        await wait_until(lambda: server.of("conversation.item.truncate"))
        sent = [e for e in server.received if e["type"] != "session.update"]
        assert [e["type"] for e in sent] == ["response.cancel", "conversation.item.truncate"]
        assert sent[0]["response_id"] == "r1"
        assert {k: sent[1][k] for k in ("item_id", "content_index", "audio_end_ms")} == {
            "item_id": "i1", "content_index": 0, "audio_end_ms": 420
        }

    _call(make_server, line, work)


def test_a_complete_answer_is_truncated_but_not_cancelled(
    make_server, line, wait_until, answer_events
):
    async def work(server, talk):
        await server.say(*answer_events(), *answer_events("r2", "i2"))
        await wait_until(lambda: ("i2",) in line.of("finish"))
        await wait_until(lambda: ("avatar", "i2", "Hello there caller", True) in line.of("caption"))
        await line.play(talk, 500)
        await server.say({"type": "input_audio_buffer.speech_started", "item_id": "u1"})
        cuts = await wait_until(
            lambda: len(server.of("conversation.item.truncate")) == 2 and server.received[-2:]
        )
        assert [(e["item_id"], e["audio_end_ms"]) for e in cuts] == [("i1", 500), ("i2", 0)]
        assert not server.of("response.cancel")
        # The caption keeps about what was heard: a half and nothing.
        last = {c[1]: c[2] for c in line.of("caption")}
        assert last["i1"] == "Hello there …" and last["i2"] == "…"

    _call(make_server, line, work)


def test_the_button_cancels_too_and_never_truncates_beyond_what_was_sent(
    make_server, line, wait_until, answer_events
):
    async def work(server, talk):
        await server.say(*answer_events()[:4])
        await wait_until(lambda: len(line.of("speak")) == 2)
        await talk.interrupted(voice.Played(item="i1", audio_end_ms=9000))
        cut = await wait_until(lambda: server.of("conversation.item.truncate"))
        assert cut[0]["audio_end_ms"] == 500 and server.of("response.cancel")  # Sent before.
        assert not line.of("interrupt")  # The line had flushed already.

    _call(make_server, line, work)


def test_a_lost_connection_comes_back_and_the_call_goes_on(
    make_server, line, wait_until, answer_events
):
    async def work(server, talk):
        await server.say(*answer_events()[:4])
        await wait_until(lambda: len(line.of("speak")) == 2)
        await server.hang_up()
        await wait_until(lambda: len(server.of("session.update")) == 2)
        assert ("i1",) in line.of("finish")  # What was said is said to its end.
        await server.say(*answer_events("r2", "i2"))
        await wait_until(lambda: ("i2",) in line.of("finish"))
        await talk.hear(bytes(960))
        await wait_until(lambda: server.of("input_audio_buffer.append"))
        assert line.failed is None

    _call(make_server, line, work)


def test_it_gives_up_in_words_when_nothing_comes_back(make_server, line, wait_until):
    async def work(server, talk):
        server.status = 503
        await server.hang_up()
        await wait_until(lambda: line.failed)
        assert "did not come back in 0 s" in line.failed and "status 503" in line.failed
        await talk.hear(bytes(960))  # Harmless until it is closed.

    _call(make_server, line, work)


def test_a_key_that_is_refused_later_ends_it_at_once(make_server, line, wait_until):
    async def work(server, talk):
        server.status = 401
        await server.hang_up()
        await wait_until(lambda: line.failed)
        assert "OPENAI_API_KEY" in line.failed

    _call(make_server, line, work)


def test_an_endpoint_that_cannot_be_used_is_refused_at_the_start(make_server, line):
    async def run():
        async with make_server() as server:
            server.status = 404
            talk = conversation.Conversation(remote.Remote(remote.Config(url=server.url)))
            with pytest.raises(ConnectionError, match="no Realtime endpoint"):
                await talk.start(line)
            await talk.close()

    asyncio.run(run())


def test_errors_are_borne_unless_they_are_final(make_server, line, wait_until, answer_events):
    async def work(server, talk):
        await server.say(
            {"type": "error", "error": {"code": "response_cancel_not_active", "message": "no"}},
            {"type": "error", "error": {"code": "odd", "message": "something"}},
            {"type": "error"}, {"type": "response.output_audio.delta", "delta": "%%%"},
            {"type": "response.output_audio.delta", "response_id": "r", "item_id": "i", "delta": 3},
            {"type": "rate_limits.updated"},
        )
        await server.say(*answer_events())
        await wait_until(lambda: line.of("finish"))
        assert line.failed is None
        await server.say({"type": "error", "error": {"code": "insufficient_quota", "message": "Pay."}})
        await wait_until(lambda: line.failed)
        assert line.failed == "The voice agent refused: Pay."

    _call(make_server, line, work)


def _nonsense(rng):
    """A value of some type, nested at times."""
    choice = rng.integers(0, 9)
    simple = (None, True, -1, 1e9, "", "%", "QUJDRA==", [], {})
    if choice < 3:
        return {"id": _nonsense(rng), "code": simple[rng.integers(0, 9)], "status": "failed"}
    return simple[rng.integers(0, 9)]


def test_no_event_of_a_server_breaks_the_voice(make_server, line, wait_until, answer_events):
    rng = np.random.default_rng(0)
    kinds = sorted(conversation._HANDLERS)
    fields = (
        "response_id", "item_id", "delta", "transcript", "content_index", "error", "session",
    )

    async def work(server, talk):
        for _ in range(1500):
            event = {name: _nonsense(rng) for name in fields if rng.random() < 0.9}
            if rng.random() < 0.5:
                event |= {"response_id": "odd", "delta": "QUJDRA=="}
            if rng.random() < 0.2:
                event["response"] = _nonsense(rng)
            await server.say({"type": kinds[rng.integers(0, len(kinds))], **event})
            if rng.random() < 0.05:  # Three failures in a row would end it rightly.
                await server.say(*answer_events("ok", "ok"))
        await server.say(*answer_events("last", "last"))
        await wait_until(lambda: ("last",) in line.of("finish"), 20)
        assert line.failed is None and len(line.of("speak")) > 20 * 4

    class Strict(type(line)):
        def speak(self, pcm, item=""):
            assert isinstance(item, str), item
            return super().speak(pcm, item)

        def caption(self, role, item, text, final):
            assert isinstance(item, str) and isinstance(text, str), (item, text)
            super().caption(role, item, text, final)

    line.__class__ = Strict
    _call(make_server, line, work)


def test_three_failed_answers_in_a_row_are_enough(make_server, line, wait_until, answer_events):
    def failed(name):
        error = {"code": "server_error", "message": "Overloaded."}
        details = {"type": "failed", "error": error}
        response = {"id": name, "status": "failed", "status_details": details}
        return {"type": "response.done", "response": response}

    async def work(server, talk):
        await server.say(failed("a"), failed("b"), *answer_events(), failed("c"), failed("d"))
        await wait_until(lambda: line.of("finish"))
        await asyncio.sleep(0.02)
        assert line.failed is None
        await server.say(failed("e"))
        await wait_until(lambda: line.failed)
        assert "Overloaded." in line.failed

    _call(make_server, line, work)


def test_a_slow_endpoint_loses_the_oldest_sound_and_no_command(line):
    class Stuck:
        def __init__(self):
            self.sent, self.free = [], asyncio.Event()

        async def open(self):
            pass

        async def send(self, event):
            await self.free.wait()
            self.sent.append(event)

        async def receive(self):
            await asyncio.Event().wait()

        async def close(self):
            pass

    async def run():
        stuck = Stuck()
        talk = conversation.Conversation(stuck)
        await talk.start(line)
        talk._post({"type": "response.cancel"})
        for number in range(2000):
            await talk.hear(number.to_bytes(2, "little"))
        await asyncio.sleep(0.01)
        assert len(talk._outbox) <= 251
        stuck.free.set()
        await asyncio.sleep(0.05)
        await talk.close()
        assert stuck.sent[0] == {"type": "response.cancel"}
        numbers = [
            int.from_bytes(base64.b64decode(e["audio"]), "little") for e in stuck.sent[1:]
        ]
        assert numbers[-1] == 1999 and numbers == sorted(numbers)
        assert 200 < len(numbers) <= 251

    asyncio.run(run())
