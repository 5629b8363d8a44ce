// The course of a call: connect, start, live, lost and found again, ended.
//
// States: `idle`, `calling` (until the first frame), `live`, `lost` (connecting again).

import { backoff, endOf } from "./protocol.js";

const FIRST_TRIES = 2; // attempts before the first session
const GIVE_UP_MS = 300e3; // a call that was live waits this long for its server
const ANSWER_MS = 20e3; // from an open connection to the first frame

export class Call {
  /**
   * @param {function} makeLink (events) -> Socket or Peer
   * @param {object} events `onState(state, detail)`, `onMessage(message)`, `onFrames(frames)`,
   *   `onStream(stream)`, `onDrawn()`, `onRoundTrip(ms)`, `onSession(started)`,
   *   `onGone(fields)`: the server does not know the character; resolves with new fields or null
   */
  constructor(makeLink, events) {
    this.makeLink = makeLink;
    this.events = events;
    this.state = "idle";
  }

  /** Opens a connection. The session begins with `start`. */
  open() {
    this.resume = undefined;
    this.fields = null;
    this.attempt = 0;
    this.everLive = false;
    this.lostAt = 0;
    this.refused = null;
    this.#set("calling");
    this.#connect();
  }

  /** Begins the session as soon as the server is ready. @param fields of `start` */
  start(fields) {
    this.fields = fields;
    if (this.link && (this.welcomed || this.link.kind === "webrtc")) this.#begin();
  }

  #begin() {
    this.begun = true;
    clearTimeout(this.answer);
    this.answer = setTimeout(() => {
      if (this.everLive) this.fail(); // it may still be warming up: connect again
      else this.#end("silent");
    }, ANSWER_MS);
    this.link.start(this.fields);
  }

  #connect() {
    this.welcomed = this.begun = this.session = false;
    const guarded = (handler) => (...args) => {
      if (link === this.link) handler(...args);
    };
    const link = this.makeLink({
      onMessage: guarded((message) => this.#take(message)),
      onFrames: guarded((frames) => this.#frames(frames)),
      onStream: guarded((stream) => this.events.onStream?.(stream)),
      onDrawn: guarded(() => this.events.onDrawn?.()),
      onBlocked: guarded((blocked) => this.events.onBlocked?.(blocked)),
      onRoundTrip: guarded((ms) => this.events.onRoundTrip?.(ms)),
      onResume: guarded((secret) => { this.resume = secret; }),
      onDown: guarded((code) => this.#down(code)),
    });
    this.link = link;
    link.open({ resume: this.resume });
    if (this.fields && !this.resume && link.kind === "webrtc") this.#begin();
  }

  #frames(frames) {
    if (this.state === "calling" || this.state === "lost") this.#live();
    this.events.onFrames(frames);
  }

  #live() {
    clearTimeout(this.answer);
    this.attempt = 0;
    this.everLive = true;
    this.#set("live");
  }

  /** Tells that pictures move; over WebRTC no frame passes through here. */
  moving() {
    if (this.state === "calling" || this.state === "lost") this.#live();
  }

  #take(message) {
    if (message.type === "welcome") {
      this.welcomed = true;
      if (this.fields && !this.resume && !this.begun) this.#begin();
    } else if (message.type === "started") {
      this.session = true;
      this.resume = message.resume;
      this.events.onSession?.(message);
    } else if (message.type === "ended") {
      this.refused = { code: message.reason };
    } else if (message.type === "error") {
      this.#error(message);
      return;
    }
    this.events.onMessage(message);
  }

  async #error(message) {
    if (message.code === "unknown_session") {
      this.resume = undefined;
      if (this.fields && !this.begun) this.#begin();
      return;
    }
    if (message.code === "unknown_character" && this.begun && this.state !== "live") {
      // A restarted server has forgotten uploads: bring the picture again.
      const { link } = this;
      const fields = await this.events.onGone?.(this.fields);
      if (link !== this.link) return;
      if (!fields) return this.#end("unknown_character");
      return this.start(fields);
    }
    if (message.fatal) this.refused = message;
    this.events.onMessage(message);
  }

  #down(code) {
    clearTimeout(this.answer);
    this.link = null;
    const end = endOf(code);
    if (end) return this.#end(this.refused?.code ?? end, this.refused?.message);
    this.refused = null;
    if (!this.everLive && this.attempt + 1 >= FIRST_TRIES) return this.#end("unreachable");
    if (this.state === "live") this.lostAt = performance.now();
    if (this.everLive && performance.now() - this.lostAt > GIVE_UP_MS) return this.#end("gone");
    if (this.everLive) this.#set("lost", { code });
    this.timer = setTimeout(() => this.#connect(), 1000 * backoff(this.attempt++));
  }

  /** The network came back: no reason to wait for the next attempt. */
  hurry() {
    if (this.state !== "lost" || this.link) return;
    clearTimeout(this.timer);
    this.attempt = 0;
    this.#connect();
  }

  /** The network went away: the connection is dead, whatever it says. */
  fail() {
    this.link?.fail();
  }

  send(message) {
    this.link?.send(message);
  }

  /** Sends sound once the session exists; null if it could not be sent. */
  sendSound(pcm, capturedMs) {
    return this.session ? this.link?.sendSound(pcm, capturedMs) ?? null : null;
  }

  /** Ends the call from this side. */
  hangUp() {
    if (this.state !== "idle") this.#end("stopped");
  }

  #end(code, message) {
    clearTimeout(this.timer);
    clearTimeout(this.answer);
    const link = this.link;
    this.link = null;
    this.resume = undefined;
    link?.close();
    this.#set("idle", { code, message, wasLive: this.everLive });
  }

  #set(state, detail = {}) {
    const before = this.state;
    this.state = state;
    if (state !== before) this.events.onState(state, detail, before);
  }
}
