// From the voice to the lips: when the sample that a frame moves with was captured.

import { median } from "./queue.js";

const KEPT = 1500; // messages: half a minute of sound
const RECENT = 100;

export class Lag {
  constructor() {
    this.reset();
  }

  /** Forgets everything: positions count from 0 in a new connection. */
  reset() {
    this.sent = []; // {position, end, ms}
    this.recent = [];
  }

  /** Sound of `length` samples went out at `position`; its first one was captured at `ms`. */
  captured(position, length, ms) {
    this.sent.push({ position, end: position + length, ms });
    if (this.sent.length > KEPT) this.sent.shift();
  }

  /** A frame that moves with the sample at `source` is on the screen now. */
  shown(source, now, samplesPerMs) {
    const block = this.sent.findLast((b) => b.position <= source);
    if (!block || source >= block.end) return;
    this.recent.push(now - block.ms - (source - block.position) / samplesPerMs);
    if (this.recent.length > RECENT) this.recent.shift();
  }

  /** The middle of the recent delays in ms, or null. */
  get ms() {
    return median(this.recent);
  }
}
