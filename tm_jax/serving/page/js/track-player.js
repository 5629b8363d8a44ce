// Plays received tracks: draws frames on the canvas by itself, in step with the sound.
//
// A video element leaves frames out where the browser draws without a GPU, and has no way to wait
// longer for frames that come late. So sound is held back here by as much as frames need to be
// there in time, and each frame is drawn when its sound is heard.

import * as output from "./output.js";
import { median, Queue, remember } from "./queue.js";

const RTP_RATE = 90000;
const DURATION_S = 0.04;
const MOST_WAITING = 25; // frames; decoders have few places for more
const RECENT = 75; // frames that say how early they come
const JUMP_S = 2; // Beyond, the sender's clock has jumped.
// How long sound is held back: at first, at most, and what is added for frames that come late.
const HOLD_S = 0.08;
const MOST_HOLD_S = 0.4;
const MORE_S = 0.04;
const LESS_S = 0.005; // and what is taken off while all of them come early
const EARLY_S = 0.08;
const SPARE_S = 0.01; // Frames that come this close to their time are late as good as.
const LATE_PART = 0.03; // Part of the frames that may be late before sound is held back longer.
// Part of a distance from the sound that is made up for at a time, and the most of it: estimates
// waver, and frames should stay even.
const STEP_PART = 0.5;
const STEP_S = 0.03;
const FADE_S = 0.006; // An interrupt is silent this fast, without a click,
const UNDERWAY_S = 0.2; // and stays so for what is held back and what the browser has in store.
const SLIDE_S = 1; // Sound changes its place this slowly: faster would be heard as its pitch.

export class TrackPlayer {
  /** Whether this browser hands out the frames of a track. */
  static get possible() {
    return "MediaStreamTrackProcessor" in window;
  }

  /**
   * @param {object} screen where frames go: `show(VideoFrame)`
   * @param {object} events `onDrawn()` after each frame, `onBlocked(blocked)`: no sound without
   *   a click
   */
  constructor(screen, { onDrawn, onBlocked }) {
    this.base = null; // time on the page's clock of a frame with time stamp 0, s
    this.near = false; // whether the place of the sound was known once
    this.stamp = null;
    this.seconds = 0;
    this.slacks = []; // how early the latest frames came, s
    this.held = HOLD_S;
    this.level = 1;
    this.audio = output.open({}, onBlocked);
    this.resume();
    this.hold = new DelayNode(this.audio, { maxDelayTime: 1, delayTime: HOLD_S });
    this.gain = new GainNode(this.audio);
    this.hold.connect(this.gain).connect(this.audio.destination);
    this.queue = new Queue(screen, {
      most: MOST_WAITING, now: () => performance.now() / 1000, onDrawn,
    });
  }

  /** Asks the browser to play; resolves with whether it does. */
  resume() {
    return output.wake(this.audio);
  }

  /** @param {boolean} muted whether nothing is heard */
  set muted(muted) {
    this.level = muted ? 0 : 1;
    this.gain.gain.cancelScheduledValues(0);
    this.gain.gain.value = this.level;
  }

  /** The stream was interrupted: what has not been heard yet stays unheard. */
  flush() {
    const { gain } = this.gain;
    const now = this.audio.currentTime;
    gain.cancelScheduledValues(now);
    gain.setTargetAtTime(0, now, FADE_S);
    gain.setValueAtTime(this.level, now + this.held + UNDERWAY_S);
  }

  /**
   * Plays the sound of a stream. An element has to play it, too, muted: else some browsers bring
   * nothing.
   */
  hear(stream) {
    this.audio.createMediaStreamSource(stream).connect(this.hold);
  }

  /** Shows the frames of a track. */
  async see(track) {
    const processor = new MediaStreamTrackProcessor({ track, maxBufferSize: MOST_WAITING });
    this.reader = processor.readable.getReader();
    for (;;) {
      const { value: frame, done } = await this.reader.read();
      if (done) return;
      this.queue.add({ at: this.#place(frame), duration: DURATION_S, picture: frame });
    }
  }

  #place(frame) {
    const now = performance.now() / 1000;
    const seconds = this.#secondsOf(frame);
    if (this.base === null || Math.abs(this.base + seconds - now) > JUMP_S) {
      this.base = now + this.held - seconds;
      this.near = false;
      this.slacks = [];
      return now; // The first one need not wait.
    }
    remember(this.slacks, this.base + seconds - now, RECENT);
    return this.base + seconds;
  }

  // The sender's clock without its wrap after half a day.
  #secondsOf(frame) {
    const stamp = frame.metadata().rtpTimestamp;
    if (stamp === undefined) return frame.timestamp / 1e6;
    if (this.stamp !== null) this.seconds += ((stamp - this.stamp) | 0) / RTP_RATE;
    this.stamp = stamp;
    return this.seconds;
  }

  /** How long frames wait here, s; null before the first. */
  get waiting() {
    return median(this.slacks);
  }

  /** How early the latest of the recent frames came, s; null before the first. */
  get buffer() {
    return this.slacks.length ? Math.min(...this.slacks) : null;
  }

  /**
   * How far frames are behind their sound when they are drawn, s; null before the first.
   *
   * @param {number} offset how far they are behind it where the browser hands out both, s
   */
  behind(offset) {
    const { waiting } = this;
    return waiting === null ? null : offset + waiting - this.held - (this.audio.outputLatency || 0);
  }

  /**
   * Brings frames nearer to their sound, and holds sound back for frames that come late.
   *
   * @param {number} behind how far frames are behind the sound, s
   */
  keepStep(behind) {
    const most = this.near ? STEP_S : Infinity;
    const step = Math.max(-most, Math.min(most, this.near ? STEP_PART * behind : behind));
    this.near = true;
    this.base -= step;
    this.slacks = this.slacks.map((slack) => slack - step);
    if (this.slacks.length < RECENT) return;
    const late = this.slacks.filter((slack) => slack < SPARE_S).length;
    if (late > LATE_PART * RECENT) {
      this.#holdBack(MORE_S);
      this.slacks = []; // These frames have had their say.
    } else if (this.buffer > EARLY_S) {
      this.#holdBack(-LESS_S);
    }
  }

  #holdBack(more) {
    this.held = Math.min(MOST_HOLD_S, Math.max(HOLD_S, this.held + more));
    this.hold.delayTime.setTargetAtTime(this.held, this.audio.currentTime, SLIDE_S);
  }

  /** Gives tracks, frames and the sound back. */
  close() {
    this.reader?.cancel();
    this.queue.close();
    this.audio.onstatechange = null;
    this.audio.close();
  }
}
