"""Events of the OpenAI Realtime protocol: names old and new, sound as text, the session.

Two generations of the protocol are in use. Both call the events of the client the same;
those of the server are read under either name and passed on under the new one.
"""

import base64
import binascii
import dataclasses

RATE = 24000  # Samples per second of sound in events: PCM of 16 bits, mono.

_RENAMED = {
    "response.audio.delta": "response.output_audio.delta",
    "response.audio.done": "response.output_audio.done",
    "response.audio_transcript.delta": "response.output_audio_transcript.delta",
    "response.audio_transcript.done": "response.output_audio_transcript.done",
    "response.text.delta": "response.output_text.delta",
    "response.text.done": "response.output_text.done",
    "conversation.item.created": "conversation.item.added",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Persona:
    """How an answering voice shall be.

    Attributes:
      instructions: System prompt of a language model; a script ignores it.
      greeting: Prompt when the call begins, so that it speaks first; empty for
        a voice that waits.
      voice: Name of the voice at the endpoint; None for the endpoint's own choice.
      transcriber: Model at the endpoint that writes down what the caller says; None for
        no captions of the caller.
      silence_ms: Silence after which the caller has finished; None for the endpoint's own.
    """

    instructions: str = (
        "You are the face of a video call. Answer as in a spoken conversation: friendly, in "
        "one to three short sentences, without lists or markup."
    )
    greeting: str = "Greet the caller in one short sentence."
    voice: str | None = None
    transcriber: str | None = "whisper-1"
    silence_ms: int | None = None


def new_name(kind: str) -> str:
    """Returns the new name of a server event, whichever it came under."""
    return _RENAMED.get(kind, kind)


def encode(pcm: bytes) -> str:
    """Returns sound as it stands in an event."""
    return base64.b64encode(pcm).decode("ascii")


def decode(text: str) -> bytes:
    """Returns the sound of an event.

    Raises:
      ValueError: Not base64, or half a sample.
    """
    try:
        pcm = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"sound of an event: expected base64 ({error}).") from error
    if len(pcm) % 2:
        raise ValueError(f"sound of an event: {len(pcm)} bytes end within a sample.")
    return pcm


def milliseconds(pcm: bytes) -> int:
    """Returns how long sound lasts, rounded down."""
    return len(pcm) * 1000 // (2 * RATE)


def session_update(persona: Persona, created: dict) -> dict:
    """Makes the event that sets up a session.

    Args:
      persona: How the voice shall be.
      created: The `session` of the server's `session.created`; its fields show which
        generation of the protocol the server speaks.
    """
    turns: dict = {"type": "server_vad", "create_response": True, "interrupt_response": True}
    if persona.silence_ms is not None:
        turns["silence_duration_ms"] = persona.silence_ms
    transcription = persona.transcriber and {"model": persona.transcriber}
    if "input_audio_format" in created:
        session = _first_generation(persona, turns, transcription)
    else:
        session = _second_generation(persona, turns, transcription)
    return {"type": "session.update", "session": session}


def _first_generation(persona, turns, transcription) -> dict:
    session = {
        "modalities": ["audio", "text"], "instructions": persona.instructions,
        "input_audio_format": "pcm16", "output_audio_format": "pcm16",
        "turn_detection": turns,
    }
    if transcription:
        session["input_audio_transcription"] = transcription
    if persona.voice:
        session["voice"] = persona.voice
    return session


def _second_generation(persona, turns, transcription) -> dict:
    form = {"type": "audio/pcm", "rate": RATE}
    source: dict = {"format": form, "turn_detection": turns}
    output: dict = {"format": form}
    if transcription:
        source["transcription"] = transcription
    if persona.voice:
        output["voice"] = persona.voice
    return {
        "type": "realtime", "output_modalities": ["audio"],
        "instructions": persona.instructions, "audio": {"input": source, "output": output},
    }
