// One WebSocket of a call. It knows messages, not when to connect again: call.js decides that.

import * as api from "./api.js";
import { packSound, SUBPROTOCOL, unpackFrames, VERSION } from "./protocol.js";

const SILENT_MS = 5000; // a live server sends 25 messages a second
const PING_MS = 1500;
const MOST_WAITING = 1e6; // bytes; beyond it a dead network would only delay the sound

export class Socket {
  /**
   * @param {object} events `onMessage(object)`, `onFrames(array)`, `onDown(closeCode)`,
   *   `onRoundTrip(ms)`
   */
  constructor(events) {
    this.events = events;
    this.sequence = 0;
    this.position = 0;
    this.kind = "websocket";
    this.surface = "canvas";
    this.live = false; // whether frames came: before `start`, a ping is out of place
  }

  /** Connects; `resume` names a session to go on with. */
  open({ resume } = {}) {
    const url = api.address("ws");
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url, SUBPROTOCOL);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.send({ type: "hello", version: VERSION, token: api.key(), resume, client: "page" });
    socket.onmessage = ({ data }) => this.#take(data);
    socket.onclose = ({ code }) => this.#down(code);
    this.socket = socket;
    this.#alive();
    this.timer = setInterval(() => this.#watch(), PING_MS);
  }

  #alive() {
    this.heard = performance.now();
  }

  #watch() {
    if (performance.now() - this.heard > SILENT_MS) this.#down(1006);
    else if (this.live) this.send({ type: "ping", t: performance.now() });
  }

  #take(data) {
    this.#alive();
    let message;
    try {
      message = typeof data === "string" ? JSON.parse(data) : unpackFrames(data);
    } catch (error) {
      console.error("The server sent what cannot be read:", error);
      this.#down(1011);
      return;
    }
    if (Array.isArray(message)) {
      this.live = true;
      this.events.onFrames(message);
    } else if (message.type === "pong") this.events.onRoundTrip?.(performance.now() - message.t);
    else this.events.onMessage(message);
  }

  get ready() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  send(message) {
    if (this.ready) this.socket.send(JSON.stringify(message));
  }

  /** Sends microphone or file sound; returns its position, or null if nothing was sent. */
  sendSound(pcm, capturedMs) {
    if (!this.ready || this.socket.bufferedAmount > MOST_WAITING) return null;
    this.socket.send(packSound(pcm, this.sequence++, this.position, capturedMs));
    const position = this.position;
    this.position += pcm.length;
    return position;
  }

  /** Begins a session. */
  start(fields) {
    this.send({ type: "start", ...fields });
  }

  #down(code) {
    if (!this.socket) return;
    this.#drop();
    this.events.onDown(code);
  }

  #drop() {
    clearInterval(this.timer);
    const socket = this.socket;
    this.socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(1000);
  }

  /** Cuts the connection as a network break would: `onDown` follows. */
  fail() {
    this.#down(1006);
  }

  /** Hangs up; no event follows. */
  close() {
    this.send({ type: "stop" });
    this.#drop();
  }
}
