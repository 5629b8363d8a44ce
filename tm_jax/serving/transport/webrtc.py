"""A call over WebRTC: VP8 and Opus by aiortc, control over a data channel.

Frames are sent when they are shown: time stamps alone do not keep picture and sound together.
Drawing, encoding and models run elsewhere; aiortc encodes in threads of its own.
"""

import asyncio
import fractions
import time

from absl import logging
import aioice.ice
import aiortc
from aiortc import jitterbuffer
from aiortc import mediastreams
from aiortc import sdp as sdp_lib
import av
import numpy as np

from tm_jax.serving.calls import call as call_lib
from tm_jax.serving.calls import exchange as exchange_lib
from tm_jax.serving.runtime import playout as playout_lib
from tm_jax.serving.runtime import stream as stream_lib
from tm_jax.serving.transport import codec
from tm_jax.serving.transport import messages
from tm_jax.serving.transport import protocol

_VIDEO_RATE, _AUDIO_RATE = 90000, 48000
_PACKET = 960  # Samples of an Opus packet: 20 ms.
_OUT_OF_ORDER = 4  # Packets of sound, a power of 2: one that is missing is waited for so long.
_CONNECT_S = 20.0  # A connection that is not up by then is given up.
_FAREWELL_S = 0.3  # Last messages leave.
_MOST_WAITING = 1 << 20  # Bytes in the data channel beyond which a client is too slow.
_SDP = 64 * 1024


class _Track(mediastreams.MediaStreamTrack):
    """Hands out frames that the ticker puts in; the newest ones if nobody takes them."""

    def __init__(self, kind: str, most: int):
        super().__init__()
        self.kind = kind
        self._frames: asyncio.Queue = asyncio.Queue(most)

    def put(self, frame) -> None:
        """Appends a frame."""
        if self._frames.full():
            self._frames.get_nowait()
        self._frames.put_nowait(frame)

    async def recv(self):
        """The next frame, when it is its time."""
        if self.readyState != "live":
            raise mediastreams.MediaStreamError
        return await self._frames.get()


class PeerConnection:
    """See `call.Connection`."""

    def __init__(self, peer: aiortc.RTCPeerConnection, call: call_lib.Call, fps: int, ended):
        """Takes a peer that is not connected yet.

        Args:
          peer: The peer.
          call: The call that it serves.
          fps: Frames per second.
          ended: Called once when it is over.
        """
        self.peer, self._call, self._fps = peer, call, fps
        self._ended = ended
        self._playout = playout_lib.Playout()
        self._packets = playout_lib.Packets(protocol.SAMPLE_RATE, _AUDIO_RATE, _PACKET)
        self.video, self.audio = _Track("video", 4), _Track("audio", 16)
        self._channel = None
        self._waiting: list[str] = []
        self._closed = False
        self._tasks = [asyncio.get_running_loop().create_task(self._play())]
        self._position = 0

    @property
    def dropped(self) -> int:
        """See `call.Connection`."""
        return self._playout.dropped

    # What comes in.

    def wire(self) -> None:
        """Listens to the peer."""
        loop = asyncio.get_running_loop()

        @self.peer.on("datachannel")
        def opened(channel):
            if channel.label != "control" or self._channel is not None:
                return
            self._channel = channel
            channel.on("message", self._text)
            waiting, self._waiting = self._waiting, []
            for text in waiting:
                channel.send(text)

        @self.peer.on("track")
        def heard(track):
            if track.kind == "audio":
                self._tasks.append(loop.create_task(self._hear(track)))

        @self.peer.on("connectionstatechange")
        def changed():
            if self.peer.connectionState in ("failed", "closed"):
                self.end()

        self._timer = loop.call_later(_CONNECT_S, self._give_up)

    def _give_up(self) -> None:
        if self._channel is None:
            self.end()

    def _text(self, data) -> None:
        try:
            if not isinstance(data, str):
                raise protocol.ProtocolError("bad_message", "This channel carries text.")
            if self._call.ended is None and not self._closed:
                self._call.receive(codec.from_client(data))
        except protocol.ProtocolError as error:
            self.send(messages.Error(code=error.code, message=str(error)))

    async def _hear(self, track) -> None:
        resampler, kind = None, None
        try:
            while True:
                frame = await track.recv()
                found = frame.sample_rate, frame.layout.name, frame.format.name
                if resampler is None or kind != found:
                    kind = found
                    resampler = av.AudioResampler("s16", "mono", protocol.SAMPLE_RATE)
                for part in resampler.resample(frame):
                    if self._call.ended is None and not self._closed:
                        self._call.hear(self._message(part.to_ndarray().tobytes()))
        except mediastreams.MediaStreamError:
            return

    def _message(self, pcm: bytes) -> messages.Sound:
        message = messages.Sound(
            sequence=0, position=self._position & 0xFFFFFFFF, captured_ms=0, pcm=pcm
        )
        self._position += len(pcm) // 2
        return message

    # What goes out.

    def send(self, message: messages.Message) -> None:
        """See `call.Connection`."""
        text = codec.to_text(message)
        if self._channel is None:
            self._waiting.append(text)
            del self._waiting[:-64]
        elif self._channel.readyState == "open":
            if self._channel.bufferedAmount > _MOST_WAITING:
                self.end()
            else:
                self._channel.send(text)

    def show(self, chunk: stream_lib.Chunk, own_voice: bool) -> None:
        """See `call.Connection`."""
        del own_voice  # The client knows its mode.
        assert chunk.frames is not None  # The stream is raw.
        samples = len(chunk.pcm) // len(chunk.frames)
        shown_s = time.perf_counter()

        def done():
            self._call.sent(chunk, 1000 * (time.perf_counter() - shown_s))

        items = [
            playout_lib.Item(
                generation=chunk.generation, frame=chunk.frame + index, image=image,
                pcm=chunk.pcm[index * samples : (index + 1) * samples],
                done=done if index == 0 else None,
            )
            for index, image in enumerate(chunk.frames)
        ]
        self._playout.push(items)

    def flush(self, generation: int) -> None:
        """See `call.Connection`."""
        self._playout.flush(generation)

    async def _play(self) -> None:
        """Releases a frame and its sound at every tick."""
        start_s = time.monotonic()
        silence = np.zeros(protocol.SAMPLE_RATE // self._fps, np.int16)
        tick = position = 0
        while True:
            await asyncio.sleep(start_s + tick / self._fps - time.monotonic())
            item = self._playout.tick()
            if item is not None:
                frame = av.VideoFrame.from_ndarray(item.image, "rgb24")
                frame.pts = tick * _VIDEO_RATE // self._fps
                frame.time_base = fractions.Fraction(1, _VIDEO_RATE)
                self.video.put(frame)
                if item.done is not None:
                    item.done()
            for packet in self._packets.push(silence if item is None else item.pcm):
                # Each packet at its own time: a player takes bunches for jitter, and waits.
                await asyncio.sleep(start_s + position / _AUDIO_RATE - time.monotonic())
                packet.pts, packet.time_base = position, fractions.Fraction(1, _AUDIO_RATE)
                self.audio.put(packet)
                position += packet.samples
            tick += 1

    # Its end.

    def close(self, code: int) -> None:
        """See `call.Connection`."""
        del code  # A data channel has none; `ended` or `error` was sent.
        asyncio.get_running_loop().call_later(_FAREWELL_S, self.end)

    def end(self) -> None:
        """Closes the connection; may be called twice."""
        if not self._closed:
            self._closed = True
            self._timer.cancel()
            self._last = asyncio.get_running_loop().create_task(self._shut())

    async def _shut(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.video.stop()
        self.audio.stop()
        self._call.detach(self)
        try:
            await self.peer.close()
        except Exception as error:  # The peer is gone anyway.
            logging.info("A peer did not close: %s.", error)
        self._ended(self)


class Peers:
    """All WebRTC connections of a server."""

    def __init__(
        self, exchange: exchange_lib.Exchange, ice_servers: tuple[dict, ...] = (),
        loopback: bool = False,
    ):
        """Makes a place for peers.

        Args:
          exchange: All calls.
          ice_servers: STUN and TURN servers, as browsers take them.
          loopback: Whether to use 127.0.0.1 alone, for a machine without a network.
        """
        self._exchange = exchange
        self._servers = [aiortc.RTCIceServer(**server) for server in ice_servers]
        self._connections: set[PeerConnection] = set()
        if loopback:
            aioice.ice.get_host_addresses = _loopback_addresses

    async def answer(self, fields: dict, address: str) -> dict:
        """Answers an offer.

        Args:
          fields: `sdp`, `type`, and `start` or `resume`, as in docs/protocol.md.
          address: Where it comes from.

        Returns:
          `sdp`, `type`, `session` and `resume`.

        Raises:
          protocol.ProtocolError: Bad fields, or the call is refused.
        """
        sdp = fields.get("sdp")
        if fields.get("type") != "offer" or not isinstance(sdp, str) or len(sdp) > _SDP:
            raise protocol.ProtocolError("bad_message", "Expected `sdp` of an `offer`.")
        try:
            offer = aiortc.RTCSessionDescription(sdp=sdp, type="offer")
            sdp_lib.SessionDescription.parse(sdp)
        except Exception as error:  # The parser raises whatever its code runs into.
            raise protocol.ProtocolError("bad_message", "The `sdp` cannot be read.") from error
        resume = fields.get("resume")
        if resume is not None:
            call = self._exchange.resume(str(resume))
            if not call.stream.raw:
                raise protocol.ProtocolError("bad_state", "That session is on a WebSocket.")
        else:
            wanted = codec.start_from(fields.get("start", {}))
            call = self._exchange.open(wanted, address, raw=True)
        try:
            return await self._connect(call, offer, resume is not None)
        except Exception as error:  # As above: offers come from strangers.
            if resume is None:
                call.end("internal")
            logging.info("An offer could not be answered: %s.", error)
            raise protocol.ProtocolError(
                "bad_message", "The offer cannot be answered; it needs audio, video and "
                "the data channel `control`."
            ) from error

    async def _connect(self, call: call_lib.Call, offer, resumed: bool) -> dict:
        peer = aiortc.RTCPeerConnection(
            aiortc.RTCConfiguration(iceServers=self._servers)
        )
        connection = PeerConnection(
            peer, call, self._exchange.engine.backend.fps, self._connections.discard
        )
        self._connections.add(connection)
        connection.wire()
        try:
            peer.addTrack(connection.audio)
            peer.addTrack(connection.video)
            codecs = aiortc.RTCRtpSender.getCapabilities("video").codecs
            vp8 = [c for c in codecs if c.mimeType.lower() in ("video/vp8", "video/rtx")]
            for transceiver in peer.getTransceivers():
                if transceiver.kind == "video":
                    transceiver.setCodecPreferences(vp8)
                else:
                    _prompt(transceiver.receiver)
            await peer.setRemoteDescription(offer)
            await peer.setLocalDescription(await peer.createAnswer())
        except BaseException:
            connection.end()
            raise
        call.attach(connection, resumed)
        return {
            "sdp": peer.localDescription.sdp, "type": "answer", "session": call.id,
            "resume": call.secret,
        }

    async def close(self) -> None:
        """Closes all connections."""
        for connection in list(self._connections):
            connection.end()
        for _ in range(50):
            if not self._connections:
                return
            await asyncio.sleep(0.05)


def _prompt(receiver: aiortc.RTCRtpReceiver) -> None:
    """Hands sound on as it comes.

    aiortc keeps four packets back, 80 ms, and fifteen from the first one on that is lost. It has
    no setting for that.
    """
    vars(receiver)["_RTCRtpReceiver__jitter_buffer"] = jitterbuffer.JitterBuffer(_OUT_OF_ORDER)


def _loopback_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    return ["127.0.0.1"] * use_ipv4 + ["::1"] * (use_ipv6 and not use_ipv4)
