// Decides when on the audio clock a piece of the stream is played. Pure: no clock, no sound.
//
// The play-out buffer is the time between arrival and play. It starts at `start`, grows when
// a piece comes too late (so that the same jitter does not hurt twice), and gives time back
// during silence, where a few milliseconds less are not heard.

const FLOOR = 0.004; // s; a piece this close to its time would start in the past
const JUMP = 3; // s; a larger buffer means that the sender's clock jumped

export class Timeline {
  /**
   * @param {object} options all in seconds
   * @param {number} options.start buffer at the beginning and after an underrun
   * @param {number} options.reserve the least slack that is kept when shrinking
   * @param {number} options.most upper end of `start` after underruns
   * @param {number} options.window pieces that are looked at before shrinking
   */
  constructor({ start = 0.13, reserve = 0.05, most = 0.45, window = 100 } = {}) {
    this.first = { start, reserve };
    this.most = most;
    this.window = window;
    this.underruns = 0;
    this.start = start;
    this.reserve = reserve;
    this.reset();
  }

  /** Forgets the position of the stream; what was learnt about jitter stays. */
  reset() {
    this.base = null; // audio time of pts 0
    this.slacks = [];
  }

  /**
   * Places one piece.
   *
   * @param {number} pts start in the stream, s
   * @param {number} duration length, s
   * @param {number} now audio clock, s
   * @param {boolean} quiet whether a few milliseconds may be left out
   * @returns {{at: number, play: number, slack: number, late: boolean}} when to start, how
   *   many seconds to play, the slack it came with, and whether it came too late
   */
  place(pts, duration, now, quiet = false) {
    if (this.base === null) this.base = now + this.start - pts;
    let slack = this.base + pts - now;
    if (slack > this.start + JUMP) {
      this.base -= slack - this.start;
      this.slacks = [];
    }
    slack = this.base + pts - now;
    const late = slack < FLOOR;
    if (late) {
      this.underruns += 1;
      this.start = Math.min(this.most, this.start + 0.04);
      this.reserve = Math.min(this.most / 2, this.reserve + 0.02);
      this.base += this.start - slack;
      this.slacks = [];
    }
    const at = this.base + pts;
    this.slacks.push(at - now);
    if (this.slacks.length > this.window) this.slacks.shift();
    return { at, play: duration - this.#trim(duration, quiet), slack, late };
  }

  #trim(duration, quiet) {
    const spare = Math.min(...this.slacks) - this.reserve;
    if (!quiet || this.slacks.length < this.window || spare < 0.02) return 0;
    const trim = Math.min(duration / 5, spare);
    this.base -= trim;
    this.slacks = this.slacks.map((slack) => slack - trim);
    // A long time without trouble: forget some of what underruns taught.
    this.start = Math.max(this.first.start, this.start - 0.001);
    this.reserve = Math.max(this.first.reserve, this.reserve - 0.0005);
    return trim;
  }

  /** Slack that a piece arriving now would have, s; 0 before the first. */
  slackOf(pts, now) {
    return this.base === null ? 0 : this.base + pts - now;
  }

  /** The least slack of the recent pieces, s; null before the first. */
  get buffer() {
    return this.slacks.length ? Math.min(...this.slacks) : null;
  }
}
