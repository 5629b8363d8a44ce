// What the visitor sends: the microphone or a recording, with the controls beside them.

import { byId, say, setIcon } from "./dom.js";
import { Microphone } from "./microphone.js";
import { SAMPLE_RATE } from "./protocol.js";
import * as recording from "./recording.js";
import { clockTime } from "./stage.js";
import { ofMicrophone } from "./words.js";

export class Sources {
  /** @param {object} events `onSound(Int16Array, capturedMs)`, `onEnd()` of a recording */
  constructor(events) {
    this.events = events;
    this.testing = false;
    this.inCall = false;
    this.pcm = null;
    this.player = null;
    this.microphone = new Microphone({
      onBlock: (pcm) => this.#block(pcm),
      onLevel: (level) => showLevel(level),
      onEnded: () => this.#say("ended"),
    });
    byId("mic-test").addEventListener("click", () => this.test(!this.testing));
    byId("choose-sound").addEventListener("click", () => byId("sound").click());
    byId("sound").addEventListener("change", ({ target }) => {
      if (target.files.length) this.#read(target.files[0]);
      target.value = "";
    });
  }

  /** Which of the two a mode needs; shows its controls. */
  use(mode) {
    this.mode = mode;
    byId("source-file").hidden = mode !== "file";
    byId("source-mic").hidden = mode === "file";
    byId("own-row").hidden = mode !== "mirror";
    if (mode === "file") this.closeMicrophone();
    else this.stopRecording();
  }

  /** Opens the microphone; says why if it is refused. @returns {Promise<boolean>} */
  async openMicrophone() {
    say(byId("mic-words"), "");
    try {
      await this.microphone.start(SAMPLE_RATE);
      return true;
    } catch (error) {
      this.#say(error);
      this.reason = ofMicrophone(error);
      return false;
    }
  }

  #say(error) {
    const { title, text } = ofMicrophone(error);
    say(byId("mic-words"), `${title}. ${text}`);
  }

  closeMicrophone() {
    this.microphone.stop();
    this.#showTest(false);
  }

  /** Lets the visitor see the level before a call. */
  async test(on) {
    if (on) on = await this.openMicrophone();
    else this.closeMicrophone();
    this.#showTest(on);
  }

  #showTest(on) {
    this.testing = on;
    byId("mic-test").setAttribute("aria-pressed", String(on));
    byId("mic-test").textContent = on ? "Stop" : "Test";
  }

  #block(pcm) {
    const captured = performance.now() - (1000 * pcm.length) / SAMPLE_RATE;
    if (this.inCall && this.mode !== "file") this.events.onSound(pcm, captured);
  }

  set muted(muted) {
    this.microphone.muted = muted;
    for (const track of this.microphone.stream?.getAudioTracks() ?? []) track.enabled = !muted;
    byId("mute").setAttribute("aria-pressed", String(muted));
    setIcon(byId("mute"), muted ? "mic-off" : "mic");
  }

  get muted() {
    return this.microphone.muted;
  }

  async #read(file) {
    say(byId("sound-words"), "");
    byId("sound-name").textContent = file.name;
    try {
      this.pcm = await recording.read(file, SAMPLE_RATE);
    } catch (error) {
      this.pcm = null;
      byId("sound-name").textContent = "Choose a sound file";
      say(byId("sound-words"), error.message);
      return;
    }
    byId("sound-name").textContent = `${file.name} · ${clockTime(this.pcm.length / SAMPLE_RATE)}`;
    byId("sound-again").hidden = false;
    if (this.inCall) this.playRecording();
  }

  /** Whether a recording is there; says so if not. */
  checkRecording() {
    if (!this.pcm) say(byId("sound-words"), "Choose a sound file first, then call.");
    return Boolean(this.pcm);
  }

  /** Sends the recording from its beginning. */
  playRecording() {
    this.stopRecording();
    if (!this.pcm || !this.inCall || this.mode !== "file") return;
    const progress = byId("sound-progress");
    progress.hidden = false;
    this.player = new recording.Recording(this.pcm, SAMPLE_RATE, {
      onBlock: (pcm) => this.events.onSound(pcm, performance.now()),
      onProgress: (part) => { progress.value = part; },
      onEnd: () => this.events.onEnd?.(),
    });
    this.player.start();
  }

  /** The connection broke, or is back: the recording waits meanwhile. */
  pauseRecording(paused) {
    if (paused) this.player?.stop();
    else if (this.player && this.player.sent < this.player.pcm.length) this.player.start();
  }

  stopRecording() {
    this.player?.stop();
    this.player = null;
    byId("sound-progress").hidden = true;
  }

  /** A call ended: nothing is sent and the device is free. */
  close() {
    this.inCall = false;
    this.stopRecording();
    this.closeMicrophone();
    this.muted = false;
  }
}

const LEVEL_MS = 60; // an eye needs no more
let levelShown = 0;

function showLevel(level) {
  const now = performance.now();
  if (level && now - levelShown < LEVEL_MS) return;
  levelShown = now;
  byId("meter-fill").style.transform = `scaleX(${level.toFixed(3)})`;
  byId("meter").setAttribute("aria-valuenow", String(Math.round(100 * level)));
  byId("mute").style.setProperty("--level", level.toFixed(2));
}
