// Plays the stream: sound is scheduled on an AudioContext, a frame is drawn when its time is
// heard. Sound is the master clock, so the picture can never drift away from it.

import { SAMPLE_RATE } from "./protocol.js";
import { fromPcm16 } from "./resampler.js";
import { Timeline } from "./timeline.js";

const QUIET = 0.004; // RMS below which a few milliseconds can be left out unheard
const FADE_S = 0.006; // an interrupt is silent this fast, without a click
const MOST_WAITING = 250; // pictures kept; a hidden page draws none and must not hoard
const RECENT = 250; // offsets that the figures look at

export class Player {
  /**
   * @param {object} screen where frames go: `show(ImageBitmap)`
   * @param {object} events `onDrawn(frame)`, `onBlocked(blocked)`: all optional
   */
  constructor(screen, events = {}) {
    this.screen = screen;
    this.events = events;
    this.audio = null;
    this.timeline = new Timeline();
    this.sources = new Set();
    this.waiting = [];
    this.hearOwn = false; // whether sound that the visitor made himself is played back
    this.#forget();
  }

  #forget() {
    this.counts = { drawn: 0, late: 0, dropped: 0 };
    this.offsets = []; // picture minus sound of the latest frames, s
    this.delays = []; // arrival to sound of the latest frames, s
    this.drawn = null; // the latest frame on the screen
    this.generation = 0;
    this.newest = 0;
  }

  /**
   * Opens the sound. Call it from a click, or browsers keep it silent.
   *
   * @returns {Promise<boolean>} whether sound can be heard
   */
  open() {
    this.close();
    this.#forget();
    this.timeline = new Timeline();
    // The stream's own rate: pieces of another rate would not join without a click.
    this.audio = new AudioContext({ sampleRate: SAMPLE_RATE, latencyHint: "interactive" });
    this.audio.onstatechange = () => this.#tellBlocked();
    this.gain = this.#newGain();
    const tick = () => {
      this.request = requestAnimationFrame(tick);
      this.#draw();
    };
    this.request = requestAnimationFrame(tick);
    return this.resume();
  }

  /** Asks the browser to play; resolves with whether it does. */
  async resume() {
    const audio = this.audio;
    if (!audio || audio.state === "closed") return false;
    if (audio.state !== "running") {
      // The promise stays open as long as the browser waits for a gesture.
      await Promise.race([audio.resume().catch(() => {}), later(700)]);
    }
    this.#tellBlocked();
    return audio.state === "running";
  }

  get running() {
    return this.audio?.state === "running";
  }

  #tellBlocked() {
    if (this.audio && this.audio.state !== "closed") this.events.onBlocked?.(!this.running);
  }

  #newGain() {
    const gain = this.audio.createGain();
    gain.connect(this.audio.destination);
    return gain;
  }

  /**
   * Takes one piece of the stream.
   *
   * @param {object} frame of `unpackFrames`
   */
  push(frame) {
    if (!this.audio || this.audio.state === "closed") return;
    if (!this.running) {
      // Without a clock the picture shows at once, and the sound is lost.
      this.timeline.reset();
      this.#expect({ at: -Infinity, frame });
      return;
    }
    const now = this.audio.currentTime;
    if (frame.generation > this.newest) this.#enter(frame, now);
    const silent = frame.generation < this.generation || (frame.own && !this.hearOwn);
    const samples = silent ? null : fromPcm16(frame.pcm);
    const quiet = silent || rms(samples) < QUIET;
    const place = this.timeline.place(frame.pts, frame.pcm.length / SAMPLE_RATE, now, quiet);
    remember(this.delays, place.at - now + this.outputLatency);
    if (!silent) this.#sound(samples, place);
    if (!document.hidden) this.#expect({ at: place.at, frame });
  }

  /** The first frame of a new generation: it need not wait behind pictures of the old one. */
  #enter(frame, now) {
    this.newest = frame.generation;
    this.generation = Math.max(this.generation, frame.generation);
    if (this.timeline.slackOf(frame.pts, now) > this.timeline.start) this.timeline.reset();
    const from = now + this.timeline.start;
    const late = this.waiting.filter((entry) => entry.at >= from);
    this.waiting = this.waiting.filter((entry) => entry.at < from);
    for (const entry of late) this.#discard(entry);
  }

  #sound(samples, place) {
    const length = Math.round(place.play * SAMPLE_RATE);
    const buffer = this.audio.createBuffer(1, length, SAMPLE_RATE);
    buffer.copyToChannel(samples.subarray(0, length), 0);
    const source = this.audio.createBufferSource();
    source.buffer = buffer;
    source.connect(this.gain);
    source.onended = () => {
      source.disconnect();
      this.sources.delete(source);
    };
    // On the grid of samples, pieces follow each other without being interpolated.
    const rate = this.audio.sampleRate;
    source.start(Math.round(place.at * rate) / rate);
    this.sources.add(source);
  }

  #expect(entry) {
    entry.picture = null;
    this.waiting.push(entry);
    if (this.waiting.length > MOST_WAITING) this.#discard(this.waiting.shift());
    createImageBitmap(entry.frame.picture).then(
      (picture) => {
        entry.picture = picture;
        if (entry.gone) this.#discard(entry);
      },
      () => { entry.gone = true; }, // a broken picture counts as dropped when it is due
    );
  }

  #discard(entry) {
    entry.gone = true;
    entry.picture?.close();
    entry.picture = null;
  }

  get outputLatency() {
    return this.audio?.outputLatency || this.audio?.baseLatency || 0;
  }

  /** The audio time that is being heard right now, s. */
  heard() {
    const plain = this.audio.currentTime - this.outputLatency;
    const { contextTime, performanceTime } = this.audio.getOutputTimestamp?.() ?? {};
    if (!contextTime) return plain;
    const exact = contextTime + (performance.now() - performanceTime) / 1000;
    // Some systems report nonsense after a change of device.
    return Math.abs(exact - plain) < 0.3 ? exact : plain;
  }

  #draw() {
    if (!this.waiting.length) return;
    const heard = this.running ? this.heard() : 0;
    const due = this.waiting.findLastIndex((entry) => entry.at <= heard + 0.008);
    if (due < 0) return;
    // The newest due frame that is decoded; older ones have missed their time.
    const shown = this.waiting.findLastIndex((e, index) => index <= due && e.picture);
    if (shown < 0) return;
    for (const missed of this.waiting.splice(0, shown)) {
      if (!document.hidden) this.counts.dropped += 1;
      this.#discard(missed);
    }
    this.#show(this.waiting.shift(), heard);
  }

  #show(entry, heard) {
    const { picture, frame } = entry;
    this.screen.show(picture);
    this.#discard(entry);
    this.counts.drawn += 1;
    this.drawn = frame;
    if (Number.isFinite(entry.at)) {
      const offset = heard - entry.at;
      remember(this.offsets, offset);
      if (offset > frame.pcm.length / SAMPLE_RATE) this.counts.late += 1;
    }
    this.events.onDrawn?.(frame);
  }

  /**
   * The stream was interrupted: stops what sounds. Pictures go on until new ones come.
   *
   * @param {number} generation the first one that may sound again
   */
  flush(generation) {
    this.generation = Math.max(this.generation, generation);
    if (!this.audio || this.audio.state === "closed") return;
    const now = this.audio.currentTime;
    this.gain.gain.setValueAtTime(1, now);
    this.gain.gain.linearRampToValueAtTime(0, now + FADE_S);
    for (const source of this.sources) source.stop(now + FADE_S);
    this.sources.clear();
    this.gain = this.#newGain();
  }

  /** Another session begins: its numbers and times are its own. */
  restart(generation) {
    this.generation = this.newest = 0;
    this.flush(generation);
    this.timeline.reset();
  }

  /** Figures of the last seconds: counts, and times in s. */
  figures() {
    return {
      ...this.counts,
      underruns: this.timeline.underruns,
      buffer: this.timeline.buffer,
      offset: median(this.offsets),
      playout: median(this.delays),
      generation: this.drawn?.generation,
      number: this.drawn?.number,
    };
  }

  /** Stops everything and gives sound and pictures back. */
  close() {
    cancelAnimationFrame(this.request);
    for (const entry of this.waiting.splice(0)) this.#discard(entry);
    this.sources.clear();
    if (this.audio && this.audio.state !== "closed") {
      this.audio.onstatechange = null;
      this.audio.close();
    }
    this.audio = null;
  }
}

/** The middle value, or null of nothing. */
export function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

function remember(list, value) {
  list.push(value);
  if (list.length > RECENT) list.shift();
}

function rms(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.sqrt(sum / Math.max(1, samples.length));
}

function later(ms) {
  return new Promise((resolve) => { setTimeout(resolve, ms); });
}
