"""What a voice is to a call: it hears the caller and gives the avatar words to speak.

The mirror and the file player are here because they need nothing; voices that understand
and answer are in `tm_jax.agents`. All methods run in the event loop of the server; a voice
does long work in threads or tasks of its own and never blocks the loop.
"""

from collections.abc import Callable
import dataclasses
from typing import Protocol

SAMPLE_RATE = 24000  # PCM of 16 bits, little-endian, mono; in both directions.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Played:
    """How much of an utterance was heard when it was cut off.

    Attributes:
      item: The utterance that was being heard; None if there was none.
      audio_end_ms: Milliseconds of it that the caller has really heard.
    """

    item: str | None
    audio_end_ms: int


class Line(Protocol):
    """What a voice may do in its call."""

    def speak(self, pcm: bytes, item: str = "") -> bool:
        """Appends sound to what the avatar says; may run far ahead of real time.

        Args:
          pcm: Sound at `SAMPLE_RATE`; any length of whole samples.
          item: Utterance that it belongs to.

        Returns:
          False if it was dropped because minutes of sound wait already.
        """

    def finish(self, item: str = "") -> None:
        """Completes the utterance.

        `Voice.finished` is called when its last sample has been played.
        """

    def interrupt(self, reason: str = "barge_in") -> Played:
        """Flushes all speech that was not heard yet and starts a new generation.

        The caller is told at once and the avatar listens. Cancel and truncate the
        answer at its source after this, with what is returned.
        """

    def caption(self, role: str, item: str, text: str, final: bool) -> None:
        """Shows text: all of an utterance so far, of "caller" or "avatar"."""

    def state(self, state: str) -> None:
        """Shows what the voice does: "listening", "thinking" or "speaking"."""

    def fail(self, message: str) -> None:
        """Tells the caller in one sentence that the voice cannot go on; it is closed then."""

    @property
    def speaking(self) -> bool:
        """Whether speech waits or is being heard."""

    @property
    def queued_s(self) -> float:
        """Seconds of speech that have not been shown yet."""


class Voice(Protocol):
    """Drives the avatar of one call.

    Attributes:
      live: Whether its speech comes at the pace of speaking, as from a microphone. A
        buffer then evens out the network, and sound that comes too late is let go.
      echo: Whether the speech is the caller's own.
    """

    live: bool
    echo: bool

    async def start(self, line: Line) -> None:
        """Begins; called once, before anything is heard.

        Raises:
          Exception: The voice cannot work; its text is shown to the caller.
        """

    async def hear(self, pcm: bytes) -> None:
        """Takes sound of the caller at `SAMPLE_RATE`, about 20 to 40 ms at a time.

        Called all the time, in order, also while the avatar speaks.
        """

    async def finished(self, item: str) -> None:
        """Called when an utterance was played to its end."""

    async def interrupted(self, played: Played) -> None:
        """Called when the caller pressed interrupt; speech has been flushed already."""

    async def heard_all(self) -> None:
        """Called when the caller's sound is complete, as at the end of a file."""

    async def close(self) -> None:
        """Ends; called once, whatever happened. Nothing of the line is used after it."""


class Silent:
    """A voice without words: a base with the methods that many voices do not need."""

    live = False
    echo = False

    async def start(self, line: Line) -> None:
        """Keeps the line."""
        self.line = line

    async def hear(self, pcm: bytes) -> None:
        """Ignores the caller."""

    async def finished(self, item: str) -> None:
        """Does nothing."""

    async def interrupted(self, played: Played) -> None:
        """Does nothing."""

    async def heard_all(self) -> None:
        """Does nothing."""

    async def close(self) -> None:
        """Does nothing."""


class Mirror(Silent):
    """The caller's own voice drives the face."""

    live = True
    echo = True

    async def hear(self, pcm: bytes) -> None:
        """Speaks what it hears."""
        self.line.speak(pcm)


class Player(Silent):
    """Speaks a file that the client sends, as fast as it comes."""

    async def hear(self, pcm: bytes) -> None:
        """Queues a part of the file."""
        self.line.speak(pcm, "file")

    async def heard_all(self) -> None:
        """The file is complete."""
        self.line.finish("file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agent:
    """A kind of voice that callers can choose in mode "agent".

    Attributes:
      id: Identifier in the protocol.
      name: Name for people.
      make: Makes a fresh voice for one call; quick, or it raises.
    """

    id: str
    name: str
    make: Callable[[], Voice]
