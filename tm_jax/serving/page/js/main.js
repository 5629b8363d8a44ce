// Ties the parts of the page together: what the visitor does, and what the server says.

import * as api from "./api.js";
import { Call } from "./call.js";
import { Captions } from "./captions.js";
import { announce, byId, say } from "./dom.js";
import { Faces } from "./faces.js";
import { Figures } from "./figures.js";
import { Lag } from "./lag.js";
import { Peer } from "./peer.js";
import { Player } from "./player.js";
import { backoff, SAMPLE_RATE } from "./protocol.js";
import * as settings from "./settings.js";
import { Socket } from "./socket.js";
import { Sources } from "./sources.js";
import { closeDrawer, drawer, Stage } from "./stage.js";
import * as theme from "./theme.js";
import { ofCode } from "./words.js";

const DOING = { listening: "Listening", thinking: "Thinking", speaking: "Speaking" };
const QUIET = new Set(["too_fast", "bad_state", "bad_message", "unknown_session"]);
const TITLE = document.title;
const BLOCKED = { title: "The sound is off", text: "The browser waits for a click before it plays sound." };

class Page {
  constructor() {
    this.info = null;
    this.generation = 0;
    this.roundTrip = null;
    this.stage = new Stage();
    this.figures = new Figures();
    this.lag = new Lag();
    this.captions = new Captions(byId("captions"), (role) => role === "caller" ? "You" : this.faces.chosen?.name ?? "");
    this.player = new Player(this.stage.screen, {
      onDrawn: (frame) => this.#drawn(frame),
      onBlocked: (blocked) => this.#blocked(blocked),
    });
    this.sources = new Sources({
      onSound: (pcm, ms) => this.#sound(pcm, ms),
      onEnd: () => this.#recordingEnded(),
    });
    this.faces = new Faces({ onChoose: (face, how) => this.#choose(face, how) });
    this.call = new Call((events) => this.#link(events), {
      onState: (state, detail) => this.#state(state, detail),
      onMessage: (message) => this.#message(message),
      onFrames: (frames) => this.#frames(frames),
      onStream: (stream) => this.#stream(stream),
      onDrawn: () => this.#drawnByPeer(),
      onBlocked: (blocked) => this.#blocked(blocked),
      onRoundTrip: (ms) => { this.roundTrip = ms; },
      onSession: (started) => this.#session(started),
      onGone: (fields) => this.#bringAgain(fields),
    });
  }

  start() {
    theme.start();
    drawer("setup", ["figures"]);
    drawer("figures", ["setup"]);
    this.#wireControls();
    this.#wireChoices();
    this.#wireWindow();
    this.#setMode(settings.load("mode", "mirror"));
    setInterval(() => this.#report(), 1000);
    this.#greet();
  }

  // What the server offers. Asked again until it answers: the page may be older than it.

  async #greet(attempt = 0) {
    this.stage.status("busy", "Connecting");
    try {
      this.info = await api.json("api/info");
      await this.faces.load();
    } catch (error) {
      if (error instanceof api.Refused && error.status === 401) return this.#askKey();
      this.stage.status("bad", "No server");
      this.stage.tell(ofCode("unreachable"), { owner: "greet" });
      setTimeout(() => this.#greet(attempt + 1), 1000 * backoff(attempt));
      return;
    }
    this.stage.clear("greet");
    if (this.call.state === "idle") this.stage.status("quiet", "Ready");
    this.#offer(this.info);
  }

  #offer({ limits, modes, agents, transports, width, height }) {
    this.faces.limit = limits.picture_bytes;
    this.stage.shape(width, height);
    for (const radio of document.querySelectorAll("[name=mode]")) {
      radio.disabled = !modes.includes(radio.value);
      if (radio.disabled) {
        radio.parentElement.querySelector("small").textContent = "This server does not offer it.";
      }
    }
    const options = agents.map(({ id, name }) => new Option(name, id));
    byId("agent").replaceChildren(...options);
    const last = settings.load("agent", "");
    if (agents.some(({ id }) => id === last)) byId("agent").value = last;
    for (const radio of document.querySelectorAll("[name=transport]")) {
      radio.disabled = !transports.includes(radio.value);
    }
    if (!transports.includes(this.transport)) this.#setTransport("websocket");
    if (!modes.includes(this.mode)) this.#setMode(modes[0]);
    else this.#showAgents();
  }

  #askKey() {
    this.stage.status("bad", "Key needed");
    const dialog = byId("key-dialog");
    byId("key-form").onsubmit = () => {
      api.keep(byId("key").value);
      byId("key").value = "";
      this.#greet();
    };
    if (!dialog.open) dialog.showModal();
  }

  // Controls.

  #wireControls() {
    byId("call").addEventListener("click", () => this.dial());
    byId("hangup").addEventListener("click", () => this.call.hangUp());
    byId("mute").addEventListener("click", () => this.#toggleMute());
    byId("interrupt").addEventListener("click", () => this.#interrupt());
    byId("captions-toggle").addEventListener("click", () => this.#showCaptions(byId("captions").hidden));
    byId("sound-again").addEventListener("click", () => this.sources.playRecording());
    byId("own").addEventListener("change", () => this.#muteOwn());
    this.#showCaptions(settings.load("captions", "on") === "on");
  }

  #wireChoices() {
    for (const radio of document.querySelectorAll("[name=mode]")) {
      radio.addEventListener("change", () => this.#setMode(radio.value));
    }
    byId("agent").addEventListener("change", ({ target }) => {
      settings.save("agent", target.value);
      if (this.call.state === "live") this.#sendMode();
    });
    const asked = new URLSearchParams(location.search).get("transport");
    this.#setTransport(asked ?? settings.load("transport", "websocket"));
    for (const radio of document.querySelectorAll("[name=transport]")) {
      radio.addEventListener("change", () => {
        settings.save("transport", radio.value);
        this.#setTransport(radio.value);
      });
    }
  }

  #wireWindow() {
    addEventListener("pagehide", () => this.call.hangUp());
    addEventListener("offline", () => this.call.fail());
    addEventListener("online", () => this.call.hurry());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.call.state !== "idle") this.player.resume();
    });
  }

  #setTransport(transport) {
    this.transport = transport === "webrtc" && "RTCPeerConnection" in window ? "webrtc" : "websocket";
    document.querySelector(`[name=transport][value=${this.transport}]`).checked = true;
  }

  #setMode(mode) {
    const radio = [...document.querySelectorAll("[name=mode]")].find((r) => r.value === mode && !r.disabled);
    if (!radio) return;
    radio.checked = true;
    this.mode = mode;
    settings.save("mode", mode);
    this.sources.use(mode);
    byId("mute").hidden = mode === "file";
    byId("interrupt").hidden = mode === "mirror";
    say(byId("mode-words"), "");
    this.#showAgents();
    if (this.call.state === "live") this.#changeMode();
  }

  #showAgents() {
    byId("agent-row").hidden = this.mode !== "agent" || byId("agent").options.length < 2;
  }

  async #changeMode() {
    if (this.mode !== "file" && !(await this.sources.openMicrophone())) {
      this.stage.tell(this.sources.reason);
    }
    this.#useTrack();
    this.#sendMode();
    if (this.mode === "file") this.sources.playRecording();
  }

  #sendMode() {
    this.call.send({ type: "mode", mode: this.mode, ...this.#agent() });
  }

  #agent() {
    return this.mode === "agent" && byId("agent").value ? { agent: byId("agent").value } : {};
  }

  #choose(face, { sharper = false } = {}) {
    this.stage.still(face);
    if (this.call.state === "idle" || sharper) return;
    this.call.send({ type: "character", character: face.id });
  }

  #showCaptions(on) {
    byId("captions").hidden = !on;
    byId("captions-toggle").setAttribute("aria-pressed", String(on));
    settings.save("captions", on ? "on" : "off");
  }

  #toggleMute() {
    if (!this.sources.microphone.open) this.sources.openMicrophone().then(() => this.#useTrack());
    this.sources.muted = !this.sources.muted;
    announce(this.sources.muted ? "Microphone off" : "Microphone on");
  }

  #interrupt() {
    this.call.send({ type: "interrupt" });
    this.sources.stopRecording();
    // Silent before the server has heard of it.
    this.#flush(this.generation + 1);
    this.captions.cut();
  }

  // A call.

  /** Presses the button: sound, microphone and connection open side by side. */
  async dial() {
    if (this.call.state !== "idle") return;
    if (this.mode === "file" && !this.sources.checkRecording()) {
      byId("choose-sound").focus();
      return;
    }
    this.stage.clear();
    this.captions.clear();
    this.figures.clear();
    this.generation = 0;
    if (this.transport === "websocket") this.player.open();
    this.call.open();
    const allowed = this.mode === "file" || await this.sources.openMicrophone();
    if (this.call.state === "idle") return this.sources.close(); // hung up meanwhile
    if (!allowed) {
      this.call.hangUp();
      this.stage.tell(this.sources.reason, {
        action: "Play a file", onAction: () => this.#setMode("file"),
      });
      return;
    }
    this.#useTrack();
    this.sources.inCall = true;
    this.call.start({ mode: this.mode, ...this.#character(), ...this.#agent() });
  }

  #character() {
    return this.faces.chosen ? { character: this.faces.chosen.id } : {};
  }

  #link(events) {
    if (this.transport !== "webrtc") return new Socket(events);
    const peer = new Peer(events, this.info?.ice_servers ?? [], this.stage.screen);
    peer.useTrack(this.#track());
    return peer;
  }

  #track() {
    return this.mode === "file" ? null : this.sources.microphone.track;
  }

  #useTrack() {
    this.call.link?.useTrack?.(this.#track());
    this.#muteOwn();
  }

  /** The visitor need not hear himself. */
  #muteOwn() {
    this.player.hearOwn = byId("own").checked;
    const muted = this.mode === "mirror" && !byId("own").checked;
    const { link } = this.call;
    if (link?.kind === "webrtc") link.muted = muted;
    this.stage.remote.muted = muted || link?.surface === "canvas"; // where the page plays by itself
  }

  async #bringAgain(fields) {
    const character = await this.faces.renew(fields.character);
    return character && { ...fields, character };
  }

  #session(started) {
    this.lag.reset();
    this.generation = started.generation;
    if (started.resumed) this.player.flush(started.generation);
    else this.player.restart(started.generation);
    if (started.resumed) this.sources.pauseRecording(false);
    else if (this.mode === "file") this.sources.playRecording();
    // What was chosen while the connection was away.
    if (started.mode !== this.mode) this.#sendMode();
    const id = this.faces.chosen?.id;
    if (id && started.character !== id) this.call.send({ type: "character", character: id });
  }

  #sound(pcm, ms) {
    const position = this.call.sendSound(pcm, ms);
    if (position !== null) this.lag.captured(position, pcm.length, ms);
  }

  #frames(frames) {
    for (const frame of frames) this.player.push(frame);
  }

  #drawn(frame) {
    this.stage.backdrop.take(byId("video"));
    if (frame.source !== null) this.lag.shown(frame.source, performance.now(), SAMPLE_RATE / 1000);
    if (this.mode !== "agent") this.stage.doing(frame.speaking ? "Speaking" : "Listening");
  }

  #drawnByPeer() {
    this.stage.backdrop.take(byId("video"));
    this.call.moving();
  }

  #stream(stream) {
    const { remote } = this.stage;
    this.#muteOwn();
    remote.srcObject = stream;
    remote.onplaying = () => {
      if (stream.getVideoTracks().length) this.call.moving();
    };
    const heard = this.call.link.surface === "stream";
    remote.play().then(() => heard && this.#blocked(false), (error) => {
      if (error.name === "NotAllowedError") this.#blocked(true);
    });
  }

  #blocked(blocked) {
    if (!blocked) return this.stage.clear("sound");
    if (this.call.state === "idle") return;
    const onAction = () => {
      if (this.transport === "websocket") return this.player.resume();
      return this.call.link?.player?.resume() ?? this.stage.remote.play();
    };
    this.stage.tell(BLOCKED, { action: "Turn on sound", onAction, owner: "sound" });
  }

  #recordingEnded() {
    this.call.send({ type: "speech_end" });
  }

  #message(message) {
    switch (message.type) {
      case "caption": return this.captions.take(message);
      case "state": return this.stage.doing(DOING[message.state] ?? "");
      case "stats": return this.figures.spans(message.spans);
      case "interrupted": return this.#interrupted(message);
      case "ending": return this.stage.tell(ofCode(message.reason), { calm: message.reason === "draining", owner: "ending" });
      case "error": return this.#error(message);
      default: return undefined;
    }
  }

  #flush(generation) {
    this.player.flush(generation);
    this.call.link?.player?.flush();
  }

  #interrupted({ generation, reason }) {
    this.generation = generation;
    this.#flush(generation);
    if (reason === "barge_in" || reason === "client") this.captions.cut();
  }

  async #error(message) {
    if (message.fatal) return; // the end of the call tells it
    if (message.code === "unknown_character") {
      // An upload of half an hour ago may be forgotten: bring it again.
      const character = await this.faces.renew(this.faces.chosen?.id);
      if (character) return this.call.send({ type: "character", character });
    }
    // Nothing that a visitor could do about it.
    if (QUIET.has(message.code)) return console.warn(`${message.code}: ${message.message}`);
    this.stage.tell(ofCode(message.code, message.message));
  }

  // States of a call.

  #state(state, detail) {
    document.body.dataset.state = state;
    byId("setup-title").textContent = state === "idle" ? "Who would you like to call?" : "Character and mode";
    document.title = state === "idle" ? TITLE : `${byId("name").textContent} · ${TITLE}`;
    const show = { calling: this.#calling, live: this.#live, lost: this.#lost, idle: this.#ended };
    show[state].call(this, detail);
  }

  #calling() {
    this.stage.status("busy", "Calling");
    this.stage.doing("Calling");
    byId("hangup").focus();
    keepAwake(true);
  }

  #live() {
    this.stage.clear("lost");
    this.stage.clear("ending");
    this.stage.status("good", this.transport === "webrtc" ? "On call · WebRTC" : "On call");
    this.stage.doing("Listening");
    this.stage.show(this.call.link.surface);
    if (byId("timer").hidden) this.stage.count(true);
    announce(`On call with ${byId("name").textContent}`);
  }

  #lost() {
    this.sources.pauseRecording(true);
    this.stage.status("busy", "Reconnecting");
    this.stage.doing("Reconnecting");
    this.stage.tell(
      { title: "The connection broke", text: "The page connects again by itself." }, { owner: "lost" },
    );
  }

  #ended({ code, message, wasLive }) {
    keepAwake(false);
    this.player.close();
    this.stage.remote.srcObject = null;
    this.sources.close();
    this.captions.clear();
    for (const name of ["setup", "figures"]) closeDrawer(name);
    if (document.fullscreenElement) document.exitFullscreen();
    this.stage.show(null);
    this.stage.count(false);
    this.stage.clear();
    this.stage.doing(wasLive ? `Call ended after ${this.stage.length}` : "Ready when you are");
    this.stage.status("quiet", "Ready");
    byId("call").focus({ preventScroll: true });
    if (code === "stopped") return;
    this.stage.status("bad", "Call ended");
    this.stage.tell(ofCode(code, message), { action: "Try again", onAction: () => this.dial() });
    if (code === "unauthorized") this.#askKey();
  }

  // Figures, once a second: to the panel and to the server.

  async #report() {
    if (this.call.state !== "live") return;
    const { link } = this.call;
    const figures = link?.figures ? await link.figures() : this.player.figures();
    if (link !== this.call.link) return;
    const lag = this.mode === "mirror" ? this.lag.ms : null;
    this.figures.player(figures, lag, this.roundTrip);
    if (figures.number === undefined) return;
    const ms = (seconds) => Math.max(0, 1000 * (seconds ?? 0));
    this.call.send({
      type: "played", generation: figures.generation, frame: figures.number,
      late: figures.late, dropped: figures.dropped,
      buffer_ms: ms(figures.buffer), playout_ms: ms(figures.playout),
      ...(lag === null ? {} : { voice_to_lips_ms: lag }),
    });
  }
}

let lock = null;

/** Phones would darken the screen during a call. */
async function keepAwake(on) {
  if (!on) {
    lock?.release();
    lock = null;
    return;
  }
  lock = await navigator.wakeLock?.request("screen").catch(() => null);
}

new Page().start();
