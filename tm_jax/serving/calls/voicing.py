"""The voice of a call: one takes the place of another, hears the caller, and may break down."""

import asyncio
from collections.abc import Callable

from absl import logging

from tm_jax.serving.calls import voice as voice_lib
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

_CLOSE_S = 5.0


class Voicing:
    """Owns the voice that drives an avatar.

    A voice may be anything, so whatever it raises ends the voice and never the call.
    """

    def __init__(self, call):
        """Begins without a voice.

        Args:
          call: The `call.Call` that is driven.
        """
        self._call = call
        self._voice: voice_lib.Voice | None = None
        self._line: _Line | None = None
        self._switching = asyncio.Lock()
        self._hearing: asyncio.Queue = asyncio.Queue()
        self._waiting = 0  # Samples in `_hearing`.
        self._source = protocol.NO_SOURCE
        self._finishing: list[str] = []

    # For the call.

    @property
    def echo(self) -> bool:
        """Whether the avatar speaks with the caller's own voice."""
        return self._voice is not None and self._voice.echo

    @property
    def waiting_s(self) -> float:
        """Seconds of the caller's sound that the voice has not heard yet."""
        return self._waiting / protocol.SAMPLE_RATE

    def hear(self, sound: messages.Sound | None) -> None:
        """Queues sound of the caller for the voice; None for the end of it."""
        if sound is not None:
            self._waiting += len(sound.pcm) // 2
        self._hearing.put_nowait(sound)

    async def switch(
        self, make: Callable[[], voice_lib.Voice], reason: str | None = None
    ) -> None:
        """Puts a new voice in the place of the old one.

        Args:
          make: Makes the voice.
          reason: Why speech of the old one is interrupted; None if there was none.
        """
        async with self._switching:
            await self.close()
            if reason is not None:
                self._call.interrupt(reason)
            while not self._hearing.empty():
                self._hearing.get_nowait()
            self._waiting = 0
            self._call.send(messages.State(state="listening"))
            voice = None
            try:
                voice = make()
                self._call.stream.set_live(voice.live)
                line = _Line(self._call, self, voice)
                await voice.start(line)
            except BaseException as error:
                await _shut(voice)
                if not isinstance(error, Exception):
                    raise
                logging.warning("The voice did not start: %s", error)
                self._call.stream.set_live(False)
                self._call.send(messages.Error(code="agent_failed", message=_sentence(error)))
                return
            self._voice, self._line = voice, line

    async def listen(self) -> None:
        """Hands the caller's sound to the voice, piece by piece, without end."""
        while True:
            sound = await self._hearing.get()
            if sound is None:
                await self._ask(lambda voice: voice.heard_all())
                continue
            self._waiting = max(0, self._waiting - len(sound.pcm) // 2)
            # A mirror speaks within `hear`, so its speech gets this position.
            self._source = sound.position if self.echo else protocol.NO_SOURCE
            await self._ask(lambda voice, sound=sound: voice.hear(sound.pcm))

    async def notice(self) -> None:
        """Tells the voice of an utterance that was heard to its end."""
        if self._finishing and self._call.stream.heard_out(self._finishing[0]):
            item = self._finishing.pop(0)
            await self._ask(lambda voice: voice.finished(item))

    async def interrupted(self, played: voice_lib.Played) -> None:
        """Tells the voice that the caller has cut it off."""
        await self._ask(lambda voice: voice.interrupted(played))

    def forget(self) -> None:
        """Forgets utterances that will not be heard to their end."""
        self._finishing.clear()

    async def close(self) -> None:
        """Ends the voice."""
        voice, self._voice = self._voice, None
        if self._line is not None:
            self._line.cut = True
            self._line = None
        await _shut(voice)

    async def _ask(self, question) -> None:
        voice = self._voice
        if voice is not None:
            try:
                await question(voice)
            except Exception as error:
                self.failed(voice, _sentence(error))

    # For the line of a voice.

    def failed(self, voice: voice_lib.Voice, message: str) -> None:
        """Goes on without a voice that broke down."""
        if voice is self._voice and self._call.ended is None:
            logging.warning("A voice failed: %s", message)
            self._call.send(messages.Error(code="agent_failed", message=message))
            self._call.send(messages.State(state="listening"))
            self._call.spawn(self.close())

    def speak(self, pcm: bytes, item: str) -> bool:
        """Queues speech of the voice."""
        if item:
            self._call.touch()
        return self._call.stream.push_pcm(pcm, item, self._source)

    def finish(self, item: str) -> None:
        """Notes that an utterance is complete."""
        self._call.stream.end_audio()
        self._finishing.append(item)


class _Line:
    """The `voice.Line` of one voice; does nothing once it is cut.

    Attributes:
      cut: Whether another voice has taken its place.
    """

    def __init__(self, call, voicing: Voicing, voice: voice_lib.Voice):
        self._call, self._voicing, self._voice = call, voicing, voice
        self.cut = False

    @property
    def _dead(self) -> bool:
        return self.cut or self._call.ended is not None

    def speak(self, pcm: bytes, item: str = "") -> bool:
        """See `voice.Line`."""
        return not self._dead and self._voicing.speak(pcm, item)

    def finish(self, item: str = "") -> None:
        """See `voice.Line`."""
        if not self._dead:
            self._voicing.finish(item)

    def interrupt(self, reason: str = "barge_in") -> voice_lib.Played:
        """See `voice.Line`."""
        if self._dead:
            return voice_lib.Played(item=None, audio_end_ms=0)
        return self._call.interrupt(reason)

    def caption(self, role: str, item: str, text: str, final: bool) -> None:
        """See `voice.Line`."""
        if not self._dead:
            self._call.send(messages.Caption(role=role, item=item, text=text, final=final))

    def state(self, state: str) -> None:
        """See `voice.Line`."""
        if not self._dead:
            self._call.send(messages.State(state=state))

    def fail(self, message: str) -> None:
        """See `voice.Line`."""
        if not self._dead:
            self._voicing.failed(self._voice, message)

    @property
    def speaking(self) -> bool:
        """See `voice.Line`."""
        return not self._dead and self._call.stream.speaking

    @property
    def queued_s(self) -> float:
        """See `voice.Line`."""
        return 0.0 if self._dead else self._call.stream.queued_s


async def _shut(voice: voice_lib.Voice | None) -> None:
    """Closes a voice, whatever it does."""
    if voice is not None:
        try:
            await asyncio.wait_for(voice.close(), _CLOSE_S)
        except Exception as error:
            logging.warning("A voice did not close: %s", error)


def _sentence(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
