"""Connects a call with a Realtime endpoint: sound and captions, both ways.

When the caller begins to speak while the avatar talks, four things happen in this order: the
avatar's queue is flushed, which starts a new generation; late sound of the old answer is
ignored from then on; the answer is cancelled at its source; and its items are cut there to
what was really played to the caller.
"""

import asyncio
import collections
import dataclasses
import time

from absl import logging

from tm_jax.integrations.agents import endpoint as endpoints
from tm_jax.integrations.agents import events
from tm_jax.serving.calls import voice

_WAITING = 250  # Events that may wait for a slow endpoint: 5 to 10 s of the caller's sound.
_SOUND = "input_audio_buffer.append"
_FAILURES = 3  # Answers in a row that may fail before the voice gives up.
_END_OF_FILE_S = 1.5  # Silence after a file, in which the endpoint detects that it is over.
_FATAL = frozenset(
    ("invalid_api_key", "insufficient_quota", "model_not_found", "billing_hard_limit_reached")
)
# Cancelling an answer that is complete already is a race that nobody can avoid.
_HARMLESS = frozenset(("response_cancel_not_active",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retry:
    """How long to try again when an endpoint is lost.

    Attributes:
      first_s: Wait before the second try; doubles with each one.
      longest_s: Longest wait between two tries.
      total_s: Time after which the voice gives up.
    """

    first_s: float = 0.5
    longest_s: float = 8.0
    total_s: float = 60.0


@dataclasses.dataclass
class _Item:
    """An utterance of the avatar that has not been heard to its end.

    Attributes:
      response: The answer that it belongs to.
      content: Which of its contents is sound.
      sent_bytes: Sound that was passed on to the line.
      text: Its words so far.
    """

    response: str
    content: int = 0
    sent_bytes: int = 0
    text: str = ""


class Conversation(voice.Silent):
    """The voice of a call that a Realtime endpoint answers."""

    def __init__(
        self, endpoint: endpoints.Endpoint, persona: events.Persona = events.Persona(),
        retry: Retry = Retry(),
    ):
        """Makes a voice; nothing happens before `start`.

        Args:
          endpoint: What answers.
          persona: How it shall be.
          retry: What to do when it is lost.
        """
        self._endpoint = endpoint
        self._persona = persona
        self._retry = retry
        self._outbox: collections.deque[dict] = collections.deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._items: dict[str, _Item] = {}
        self._response: str | None = None  # the answer that is being made
        self._dropped: set[str] = set()  # answers whose sound is no longer wanted
        self._open = self._greeted = False
        self._failures = 0
        self._state = ""

    # The voice of a call.

    async def start(self, line: voice.Line) -> None:
        """Opens the endpoint and begins to listen.

        Raises:
          ConnectionError: The endpoint cannot be used; the text gives the reason.
        """
        await super().start(line)
        try:
            await self._endpoint.open()
        except BaseException:
            await self._endpoint.close()  # Also when the caller has gone meanwhile.
            raise
        self._open = True
        self._tasks = [
            asyncio.create_task(self._guard(self._receive())),
            asyncio.create_task(self._guard(self._send())),
        ]
        self._show("listening")

    async def hear(self, pcm: bytes) -> None:
        """Sends sound of the caller to the endpoint; the oldest is let go if it is slow."""
        if not self._open:
            return
        if len(self._outbox) >= _WAITING:
            sound = (e for e in self._outbox if e["type"] == _SOUND)
            self._outbox.remove(next(sound, self._outbox[0]))
        self._post({"type": _SOUND, "audio": events.encode(pcm)})

    async def finished(self, item: str) -> None:
        """An utterance was heard to its end."""
        self._items.pop(item, None)
        if not self._items and self._response is None:
            self._show("listening")

    async def interrupted(self, played: voice.Played) -> None:
        """The caller pressed interrupt."""
        self._cut(played)
        self._show("listening")

    async def heard_all(self) -> None:
        """Sends silence, so that the endpoint detects the end of the caller's words."""
        await self.hear(bytes(2 * int(events.RATE * _END_OF_FILE_S)))

    async def close(self) -> None:
        """Ends the conversation."""
        self._open = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._endpoint.close()

    # Out.

    def _post(self, event: dict) -> None:
        if self._open:  # A new connection starts without the events of the old one.
            self._outbox.append(event)
            self._wake.set()

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox and self._open:
                event = self._outbox.popleft()
                try:
                    await self._endpoint.send(event)
                except endpoints.Lost:
                    self._open = False  # The receiving side opens it again.

    # In.

    async def _receive(self) -> None:
        while True:
            try:
                event = await self._endpoint.receive()
            except endpoints.Lost as lost:
                await self._reopen(lost)
                continue
            handler = _HANDLERS.get(event["type"])
            if handler is not None:
                try:
                    handler(self, event)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    logging.warning("Realtime: %s is malformed (%r).", event["type"], error)

    async def _reopen(self, lost: endpoints.Lost) -> None:
        """Connects again; a half-spoken answer goes on to its end, the rest is forgotten."""
        logging.warning("Realtime: %s; connecting again.", lost)
        self._open = False
        self._outbox.clear()
        for item in self._items:
            self.line.finish(item)
        self._items.clear()
        self._response = None
        self._dropped.clear()
        self._show("thinking")
        until, wait = time.monotonic() + self._retry.total_s, self._retry.first_s
        while True:
            await asyncio.sleep(wait)
            try:
                await self._endpoint.open()
            except endpoints.Lost as error:
                if time.monotonic() + wait > until:
                    raise endpoints.Refused(
                        f"The voice agent was lost and did not come back in "
                        f"{self._retry.total_s:.0f} s: {error}"
                    ) from error
                wait = min(2 * wait, self._retry.longest_s)
                continue
            self._open = True
            self._show("listening")
            return

    async def _guard(self, work) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except endpoints.Refused as error:
            self._fail(str(error))
        except Exception as error:
            logging.exception("Realtime: the voice agent stopped.")
            self._fail(f"The voice agent stopped: {type(error).__name__}.")

    def _fail(self, message: str) -> None:
        if self._open or self._tasks:
            self._open = False
            self.line.fail(message)

    def _show(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self.line.state(state)

    # Events of the server, by type.

    def _on_created(self, event: dict) -> None:
        self._post(events.session_update(self._persona, event.get("session", {})))
        if self._persona.greeting and not self._greeted:
            self._greeted = True
            response = {"instructions": self._persona.greeting}
            self._post({"type": "response.create", "response": response})

    def _on_speech(self, event: dict) -> None:
        del event
        if self.line.speaking or self._items or self._response:
            self._cut(self.line.interrupt("barge_in"))
        self._show("listening")

    def _on_silence(self, event: dict) -> None:
        del event
        self._show("thinking")

    def _on_transcribed(self, event: dict) -> None:
        text = _text(event, "transcript").strip()
        if text:
            self.line.caption("caller", _text(event, "item_id"), text, True)

    def _on_response(self, event: dict) -> None:
        self._response = event["response"]["id"]

    def _on_sound(self, event: dict) -> None:
        if event["response_id"] in self._dropped:
            return
        pcm = events.decode(event["delta"])
        self._response = event["response_id"]  # Not every endpoint announces it before.
        item = self._item(event)
        if not self.line.speak(pcm, event["item_id"]):
            logging.warning("Realtime: the answer is minutes long; its end is left out.")
            return
        item.sent_bytes += len(pcm)
        self._show("speaking")

    def _on_words(self, event: dict) -> None:
        if event["response_id"] not in self._dropped:
            item = self._item(event)
            item.text += _text(event, "delta")
            self.line.caption("avatar", event["item_id"], item.text, False)

    def _on_all_words(self, event: dict) -> None:
        if event["response_id"] not in self._dropped:
            item = self._item(event)
            item.text = _text(event, "transcript")
            self.line.caption("avatar", event["item_id"], item.text, True)

    def _on_all_sound(self, event: dict) -> None:
        if event["response_id"] not in self._dropped and event["item_id"] in self._items:
            self.line.finish(event["item_id"])

    def _on_done(self, event: dict) -> None:
        response = event["response"]
        if response["id"] == self._response:
            self._response = None
        self._dropped.discard(response["id"])
        if response.get("status") == "failed":
            self._on_failed((response.get("status_details") or {}).get("error") or {})
        else:
            self._failures = 0
        for name, item in list(self._items.items()):
            if item.response == response["id"] and not item.sent_bytes:
                del self._items[name]  # Words without sound will never be heard to their end.
        if not (self._items or self.line.speaking or response.get("status") == "cancelled"):
            self._show("listening")

    def _on_failed(self, error: dict) -> None:
        self._failures += 1
        text = error.get("message") or error.get("code") or "no reason was given"
        logging.warning("Realtime: an answer failed: %s.", text)
        if error.get("code") in _FATAL or self._failures >= _FAILURES:
            raise endpoints.Refused(f"The voice agent cannot answer: {text}")

    def _on_error(self, event: dict) -> None:
        error = event["error"]
        if error.get("code") in _FATAL:
            raise endpoints.Refused(f"The voice agent refused: {error.get('message')}")
        if error.get("code") not in _HARMLESS:
            logging.warning("Realtime: %s", error.get("message") or error.get("code"))

    # Barge-in.

    def _item(self, event: dict) -> _Item:
        item = self._items.setdefault(_text(event, "item_id"), _Item(event["response_id"]))
        item.content = event.get("content_index", 0)
        return item

    def _cut(self, played: voice.Played) -> None:
        """Cancels and truncates at the source what has been flushed here."""
        if self._response is not None:
            self._dropped.add(self._response)
            self._post({"type": "response.cancel", "response_id": self._response})
            self._response = None
        for name, item in self._items.items():
            sent_ms = item.sent_bytes * 1000 // (2 * events.RATE)
            heard_ms = min(played.audio_end_ms, sent_ms) if name == played.item else 0
            if item.sent_bytes:
                self._post({
                    "type": "conversation.item.truncate", "item_id": name,
                    "content_index": item.content, "audio_end_ms": heard_ms,
                })  # fmt: skip
            self.line.caption("avatar", name, _heard(item.text, heard_ms, sent_ms), True)
        self._items.clear()


def _text(event: dict, name: str) -> str:
    if not isinstance(event[name], str):
        raise TypeError(f"{name} is {event[name]!r:.60}")
    return event[name]


def _heard(text: str, heard_ms: int, sent_ms: int) -> str:
    """Returns about the words that were heard, with a mark where they broke off."""
    if sent_ms and heard_ms >= sent_ms:
        return text
    words = text.split() if sent_ms else []
    return " ".join(words[: round(len(words) * heard_ms / max(1, sent_ms))] + ["…"])


_HANDLERS = {
    "session.created": Conversation._on_created,
    "input_audio_buffer.speech_started": Conversation._on_speech,
    "input_audio_buffer.speech_stopped": Conversation._on_silence,
    "conversation.item.input_audio_transcription.completed": Conversation._on_transcribed,
    "response.created": Conversation._on_response,
    "response.output_audio.delta": Conversation._on_sound,
    "response.output_audio.done": Conversation._on_all_sound,
    "response.output_audio_transcript.delta": Conversation._on_words,
    "response.output_audio_transcript.done": Conversation._on_all_words,
    "response.done": Conversation._on_done,
    "error": Conversation._on_error,
}
