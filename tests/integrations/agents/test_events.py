"""Events are those that OpenAI's own client library declares."""

import base64

import pytest

from tm_jax.integrations.agents import events


def test_sound_survives_and_damage_is_explained():
    pcm = bytes(range(200))
    assert events.decode(events.encode(pcm)) == pcm
    assert events.milliseconds(bytes(4800)) == 100
    with pytest.raises(ValueError, match="expected base64"):
        events.decode("a*b=")
    with pytest.raises(ValueError, match="expected base64"):
        events.decode(None)
    with pytest.raises(ValueError, match="end within a sample"):
        events.decode(base64.b64encode(b"abc").decode())


def test_old_names_are_read_as_new_ones():
    assert events.new_name("response.audio.delta") == "response.output_audio.delta"
    assert events.new_name("response.audio_transcript.done") == (
        "response.output_audio_transcript.done"
    )
    assert events.new_name("response.done") == "response.done"


def test_the_session_is_set_up_in_the_generation_that_the_server_speaks():
    persona = events.Persona(voice="marin", silence_ms=400)
    new = events.session_update(persona, {"type": "realtime"})["session"]
    assert new["type"] == "realtime" and new["output_modalities"] == ["audio"]
    assert new["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 400
    assert new["audio"]["output"] == {
        "format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"
    }
    old = events.session_update(persona, {"input_audio_format": "pcm16"})["session"]
    assert old["modalities"] == ["audio", "text"] and old["voice"] == "marin"
    assert old["output_audio_format"] == "pcm16" and "audio" not in old
    silent = events.session_update(events.Persona(transcriber=None), {})["session"]
    assert "transcription" not in silent["audio"]["input"]


def test_client_events_are_valid_for_the_client_library():
    pytest.importorskip("openai")
    from openai.types.realtime import realtime_client_event
    import pydantic

    known = pydantic.TypeAdapter(realtime_client_event.RealtimeClientEvent)
    update = events.session_update(events.Persona(voice="marin", silence_ms=400), {})
    parsed = known.validate_python(update)
    assert type(parsed).__name__ == "SessionUpdateEvent"
    assert type(parsed.session.audio.input.turn_detection).__name__ == "ServerVad"
    assert parsed.session.audio.input.format.rate == 24000
    with pytest.raises(pydantic.ValidationError):
        known.validate_python({"type": "conversation.item.truncate", "item_id": "x"})
