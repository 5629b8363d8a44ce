// Plays the stream: sound is scheduled on an AudioContext, a frame is drawn when its time is
// heard. Sound is the master clock, so the picture can never drift away from it.

import * as output from "./output.js";
import { SAMPLE_RATE } from "./protocol.js";
import { median, Queue, remember } from "./queue.js";
import { fromPcm16 } from "./resampler.js";
import { Timeline } from "./timeline.js";

const QUIET = 0.004; // RMS below which a few milliseconds can be left out unheard
const FADE_S = 0.006; // an interrupt is silent this fast, without a click
const MOST_WAITING = 250; // pictures kept; a hidden page draws none and must not hoard
const RECENT = 250; // delays that the figures look at

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
    this.hearOwn = false; // whether sound that the visitor made himself is played back
    this.#forget();
  }

  #forget() {
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
    this.audio = output.open({ sampleRate: SAMPLE_RATE }, this.events.onBlocked);
    this.gain = this.#newGain();
    this.queue = new Queue(this.screen, {
      most: MOST_WAITING,
      now: () => (this.running ? this.heard() : 0),
      onDrawn: ({ frame }) => {
        this.drawn = frame;
        this.events.onDrawn?.(frame);
      },
    });
    return this.resume();
  }

  /** Asks the browser to play; resolves with whether it does. */
  async resume() {
    return this.audio ? output.wake(this.audio) : false;
  }

  get running() {
    return this.audio?.state === "running";
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
    remember(this.delays, place.at - now + this.outputLatency, RECENT);
    if (!silent) this.#sound(samples, place);
    this.#expect({ at: place.at, frame });
  }

  /** The first frame of a new generation: it need not wait behind pictures of the old one. */
  #enter(frame, now) {
    this.newest = frame.generation;
    this.generation = Math.max(this.generation, frame.generation);
    if (this.timeline.slackOf(frame.pts, now) > this.timeline.start) this.timeline.reset();
    this.queue.cut(now + this.timeline.start);
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
    if (document.hidden) return;
    const { queue } = this;
    queue.add(Object.assign(entry, {
      picture: null, duration: entry.frame.pcm.length / SAMPLE_RATE,
    }));
    createImageBitmap(entry.frame.picture).then(
      (picture) => queue.ready(entry, picture),
      () => { entry.gone = true; }, // a broken picture counts as dropped when it is due
    );
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
      ...this.queue.counts,
      underruns: this.timeline.underruns,
      buffer: this.timeline.buffer,
      offset: median(this.queue.offsets),
      playout: median(this.delays),
      generation: this.drawn?.generation,
      number: this.drawn?.number,
    };
  }

  /** Stops everything and gives sound and pictures back. */
  close() {
    this.queue?.close();
    this.sources.clear();
    if (this.audio && this.audio.state !== "closed") {
      this.audio.onstatechange = null;
      this.audio.close();
    }
    this.audio = null;
  }
}

function rms(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.sqrt(sum / Math.max(1, samples.length));
}
