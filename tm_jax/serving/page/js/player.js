// Plays the stream: sound is scheduled on an AudioContext, a frame is drawn when its time is
// heard. Audio is the master clock, so the picture can never drift away from the sound.

import { Timeline } from "./timeline.js";

const QUIET = 0.004; // RMS below which a few milliseconds can be left out unheard
const FADE_S = 0.006; // an interrupt fades this fast: silent at once, without a click
const MAX_WAITING = 150; // decoded pictures; a hidden page draws none and must not hoard

export class Player {
  /**
   * @param {HTMLCanvasElement} canvas where frames are drawn
   * @param {object} events `onFrame(frame)` after drawing, `onLate()`, `onBlocked(bool)`
   */
  constructor(canvas, events = {}) {
    this.canvas = canvas;
    this.context2d = canvas.getContext("2d", { alpha: false });
    this.events = events;
    this.audio = null;
    this.counts = { drawn: 0, late: 0, dropped: 0, underruns: 0 };
    this.offsets = []; // recent picture-minus-sound times, s
  }

  /**
   * Opens the sound. Call it from a click, or browsers keep it silent.
   *
   * @param {number} sampleRate rate of the stream: equal rates join pieces without a click
   */
  open(sampleRate) {
    this.close();
    this.audio = new AudioContext({ sampleRate, latencyHint: "interactive" });
    this.audio.onstatechange = () => this.#tellBlocked();
    this.timeline = new Timeline();
    this.#freshTrack();
    this.#tick = this.#tick.bind(this);
    this.request = requestAnimationFrame(this.#tick);
    return this.resume();
  }

  /** Asks the browser to play; resolves with whether it does. */
  async resume() {
    const audio = this.audio;
    if (!audio) return false;
    if (audio.state !== "running") {
      // The promise stays open while the browser waits for a gesture.
      await Promise.race([audio.resume().catch(() => {}), sleep(800)]);
    }
    this.#tellBlocked();
    return audio.state === "running";
  }

  #tellBlocked() {
    if (this.audio && this.audio.state !== "closed") {
      this.events.onBlocked?.(this.audio.state !== "running");
    }
  }

  #freshTrack() {
    this.gain = this.audio.createGain();
    this.gain.connect(this.audio.destination);
    this.sources = new Set();
    this.waiting = []; // frames by time: {at, frame, picture}
  }
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
