// One WebRTC connection of a call, with the same face as socket.js.

import * as api from "./api.js";
import { SAMPLE_RATE } from "./protocol.js";
import { TrackPlayer } from "./track-player.js";

const GATHER_MS = 1500;
const PATIENCE_MS = 3000; // a short "disconnected" often mends itself
const PING_MS = 1500;
// How long pictures wait for their turn at first, and the bounds. Sound waits 60 to 130 ms in the
// browser, more than pictures do on a good network: without this they ran up to 130 ms ahead of it.
const PICTURE_BUFFER_MS = 100;
const PICTURE_BUFFER_BOUNDS_MS = [60, 400];
const KEEP_STEP_MS = 1000;
// Part of what is missing that is made up for at a time: a buffer needs a while to grow or shrink.
const KEEP_STEP_PART = 0.5;
// The browser's estimate of when sound is heard leaves out its way through the audio output.
const OUTPUT_MS = 15;
const MOST_OFFSET_MS = 2000; // Beyond, one of the two clocks is not known yet.

export class Peer {
  /**
   * @param {object} events as for Socket, and `onResume(secret)`, which names the session before
   *   its first message does; but the stream comes whole: `onStream(MediaStream)`. Where the browser
   *   hands out its frames it is for an element without sound, and the page plays: `onDrawn()`
   *   after each frame, `onBlocked(blocked)`
   * @param {Array} iceServers STUN and TURN servers of the host
   * @param {object} screen where frames are drawn: `show(VideoFrame)`
   */
  constructor(events, iceServers, screen) {
    this.events = events;
    this.iceServers = iceServers;
    this.screen = screen;
    this.kind = "webrtc";
    this.surface = TrackPlayer.possible ? "canvas" : "stream";
    this.microphone = null;
    this.silent = false;
    this.last = { generation: 0, frame: 0 };
  }

  /** Connects to go on with a session; a new one connects with `start`. */
  open({ resume } = {}) {
    if (resume) this.#offer({ resume });
  }

  get ready() {
    return this.channel?.readyState === "open";
  }

  /** Begins a session. */
  start(fields) {
    this.#offer({ start: fields });
  }

  /** Offer out, answer in, then `started` comes through the channel. */
  async #offer(wanted) {
    const connection = new RTCPeerConnection({ iceServers: this.iceServers });
    this.connection = connection;
    this.feed = new Feed(SAMPLE_RATE);
    const track = this.microphone ?? this.feed.track;
    this.sender = connection.addTransceiver(track, { direction: "sendrecv" }).sender;
    connection.addTransceiver("video", { direction: "recvonly" });
    this.#wireChannel(connection.createDataChannel("control"));
    this.stream = new MediaStream();
    if (TrackPlayer.possible) this.player = new TrackPlayer(this.screen, this.events);
    this.muted = this.silent;
    connection.ontrack = ({ track: incoming, receiver }) => this.#receive(incoming, receiver);
    connection.onconnectionstatechange = () => this.#watch();
    try {
      await connection.setLocalDescription(await connection.createOffer());
      await gathered(connection);
      const { sdp } = connection.localDescription;
      const answer = await api.json("api/webrtc", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ sdp, type: "offer", ...wanted }),
      });
      if (this.connection !== connection) return; // hung up meanwhile
      // Frames may be there before `started`, and the connection gone again before it, too.
      this.events.onResume(answer.resume);
      await connection.setRemoteDescription({ sdp: answer.sdp, type: answer.type });
    } catch (error) {
      if (this.connection === connection) this.#refuse(error);
    }
  }

  #receive(track, receiver) {
    if (track.kind === "video" && this.player) return this.player.see(track);
    if (track.kind === "video") {
      receiver.jitterBufferTarget = PICTURE_BUFFER_MS;
      this.receiver = receiver;
    }
    this.stream.addTrack(track); // one stream, so that the browser keeps them in step
    this.events.onStream(this.stream);
    this.player?.hear(this.stream);
    return undefined;
  }

  /** Whether nothing is heard. */
  set muted(muted) {
    this.silent = muted;
    if (this.player) this.player.muted = muted;
  }

  #refuse(error) {
    this.#drop();
    const refused = error instanceof api.Refused;
    // What can be mended is told like over a WebSocket: the session is gone, or the picture.
    const mendable = refused && error.status === 404;
    if (refused) {
      // "too_fast" is about requests here, which the server's own sentence says.
      const code = error.code === "too_fast" ? "" : error.code;
      this.events.onMessage({ type: "error", code, message: error.message, fatal: !mendable });
    }
    const busy = refused && (error.code === "full" || error.status === 429);
    if (!mendable) this.events.onDown(busy ? 4009 : refused && error.status < 500 ? 1000 : 1006);
  }

  #wireChannel(channel) {
    this.channel = channel;
    channel.onopen = () => {
      this.timer = setInterval(() => this.send({ type: "ping", t: performance.now() }), PING_MS);
      this.stepTimer = setInterval(() => this.#keepStep(), KEEP_STEP_MS);
    };
    channel.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "timing") this.last = message;
      if (message.type === "pong") this.events.onRoundTrip?.(performance.now() - message.t);
      else this.events.onMessage(message);
    };
    channel.onclose = () => this.#down(1006);
  }

  #watch() {
    const state = this.connection?.connectionState;
    clearTimeout(this.patience);
    if (state === "failed" || state === "closed") this.#down(1006);
    if (state === "disconnected") this.patience = setTimeout(() => this.#down(1006), PATIENCE_MS);
  }

  send(message) {
    if (this.ready) this.channel.send(JSON.stringify(message));
  }

  /** Sends the microphone's own track; null goes back to what `sendSound` brings. */
  useTrack(track) {
    this.microphone = track;
    this.sender?.replaceTrack(track ?? this.feed.track);
  }

  /** Sound of a file. The microphone goes as a track and needs no copy. */
  sendSound(pcm) {
    if (!this.microphone) this.feed?.push(pcm);
    return null;
  }

  /** What the browser tells of its pictures, and how far they are behind the sound, in s or null. */
  async #received() {
    const found = {};
    for (const report of (await this.connection?.getStats())?.values() ?? []) {
      if (report.type === "inbound-rtp") found[report.kind] = report;
    }
    const offset = playoutOffset(found.audio, found.video);
    const own = this.player && offset !== null ? this.player.behind(offset) : offset;
    return { video: found.video, offset: own };
  }

  async #keepStep() {
    const { offset } = await this.#received();
    if (!this.connection || offset === null) return;
    if (this.player) this.player.keepStep(offset - OUTPUT_MS / 1000);
    else if (this.receiver) this.receiver.jitterBufferTarget = pictureBuffer(this.receiver.jitterBufferTarget, offset);
  }

  /** Figures of the player, times in s; null where the browser does not tell. */
  async figures() {
    const { video, offset } = await this.#received();
    const delay = video ? video.jitterBufferDelay / Math.max(1, video.jitterBufferEmittedCount) : null;
    const own = this.player;
    return {
      drawn: video?.framesDecoded ?? 0,
      late: video?.freezeCount ?? 0,
      dropped: video?.framesDropped ?? 0,
      ...own?.queue.counts,
      buffer: own ? own.buffer : delay,
      playout: own && delay !== null ? delay + own.waiting : delay,
      offset,
      generation: this.last.generation,
      number: this.last.frame,
    };
  }

  #down(code) {
    if (!this.connection) return;
    this.#drop();
    this.events.onDown(code);
  }

  #drop() {
    clearInterval(this.timer);
    clearInterval(this.stepTimer);
    clearTimeout(this.patience);
    const connection = this.connection;
    this.connection = this.sender = this.receiver = null;
    if (!connection) return;
    connection.onconnectionstatechange = connection.ontrack = null;
    this.player?.close();
    this.player = null;
    this.channel.onclose = this.channel.onmessage = null;
    connection.close();
    this.feed.close();
  }

  fail() {
    this.#down(1006);
  }

  close() {
    this.send({ type: "stop" });
    // Closing at once would overtake the message.
    const drop = () => this.#drop();
    if (this.ready) setTimeout(drop, 150);
    else drop();
  }
}

/** How far pictures are behind the sound by the browser's estimates, s; null if it has none. */
export function playoutOffset(audio, video) {
  const [heard, seen] = [audio?.estimatedPlayoutTimestamp, video?.estimatedPlayoutTimestamp];
  return heard && seen && Math.abs(heard - seen) < MOST_OFFSET_MS ? (heard - seen) / 1000 : null;
}

/**
 * How long pictures should wait: longer while they are ahead of the sound, shorter while behind.
 *
 * @param {number} waiting how long they wait now, in ms
 * @param {number} offset how far they are behind the sound, s
 */
export function pictureBuffer(waiting, offset) {
  const wanted = waiting + KEEP_STEP_PART * (OUTPUT_MS - 1000 * offset);
  const [least, most] = PICTURE_BUFFER_BOUNDS_MS;
  return Math.min(most, Math.max(least, wanted));
}

/** Blocks of PCM as a track; silence between them. */
class Feed {
  constructor(rate) {
    this.audio = new AudioContext({ sampleRate: rate });
    this.end = 0;
    this.output = this.audio.createMediaStreamDestination();
    [this.track] = this.output.stream.getAudioTracks();
  }

  push(pcm) {
    const buffer = this.audio.createBuffer(1, pcm.length, this.audio.sampleRate);
    buffer.copyToChannel(Float32Array.from(pcm, (value) => value / 32768), 0);
    const source = this.audio.createBufferSource();
    source.buffer = buffer;
    source.connect(this.output);
    this.end = Math.max(this.end, this.audio.currentTime + 0.02);
    source.start(this.end);
    this.end += buffer.duration;
  }

  close() {
    this.track.stop();
    this.audio.close();
  }
}

/** Waits until the offer holds its addresses: the protocol sends them in one piece. */
function gathered(connection) {
  if (connection.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    const done = setTimeout(resolve, GATHER_MS);
    connection.onicegatheringstatechange = () => {
      if (connection.iceGatheringState !== "complete") return;
      clearTimeout(done);
      resolve();
    };
  });
}
