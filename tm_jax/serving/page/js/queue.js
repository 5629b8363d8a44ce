// Pictures that wait for their time. The browser looks 60 times a second, or less often when it is
// busy. Of several that are due by then the oldest is drawn that is not late yet, and the next one
// at the next look; what is late already gives way to what is not.

const AHEAD_S = 0.008; // half of the time between two looks
const RECENT = 250; // offsets that the figures look at

export class Queue {
  /**
   * @param {object} screen where pictures go: `show(picture)`
   * @param {object} options
   * @param {number} options.most pictures kept; the oldest go first
   * @param {function} options.now the clock of the stream, s
   * @param {function} options.onDrawn (entry) after each picture
   */
  constructor(screen, { most, now, onDrawn }) {
    Object.assign(this, { screen, most, now, onDrawn });
    this.waiting = [];
    this.counts = { drawn: 0, late: 0, dropped: 0 };
    this.offsets = []; // picture minus its time, of the latest ones, s
    const look = () => {
      this.request = requestAnimationFrame(look);
      this.#draw();
    };
    this.request = requestAnimationFrame(look);
  }

  /**
   * Appends an entry. A hidden page draws nothing and must not hoard.
   *
   * @param {object} entry `at`: when to draw it, s; `duration`, s; `picture`: an ImageBitmap, a
   *   VideoFrame, or null until `ready` brings it
   */
  add(entry) {
    if (document.hidden) return this.#discard(entry);
    this.waiting.push(entry);
    if (this.waiting.length > this.most) this.#miss(this.waiting.shift());
  }

  /** The picture of an entry is there. */
  ready(entry, picture) {
    entry.picture = picture;
    if (entry.gone) this.#discard(entry);
  }

  /** Forgets pictures that would be drawn at `from` or later, s. */
  cut(from) {
    for (const entry of this.waiting.filter(({ at }) => at >= from)) this.#discard(entry);
    this.waiting = this.waiting.filter(({ at }) => at < from);
  }

  #draw() {
    if (!this.waiting.length) return;
    const now = this.now();
    const due = this.waiting.findLastIndex((entry) => entry.at <= now + AHEAD_S);
    if (due < 0) return;
    const decoded = (entry, index) => index <= due && entry.picture;
    const fresh = (entry, index) => decoded(entry, index) && now - entry.at < entry.duration - AHEAD_S;
    let shown = this.waiting.findIndex(fresh);
    if (shown < 0) shown = this.waiting.findLastIndex(decoded);
    if (shown < 0) return;
    for (const missed of this.waiting.splice(0, shown)) this.#miss(missed);
    const entry = this.waiting.shift();
    this.screen.show(entry.picture);
    this.#discard(entry);
    this.counts.drawn += 1;
    if (Number.isFinite(entry.at)) {
      remember(this.offsets, now - entry.at, RECENT);
      if (now - entry.at > entry.duration) this.counts.late += 1;
    }
    this.onDrawn(entry);
  }

  #miss(entry) {
    if (!document.hidden) this.counts.dropped += 1;
    this.#discard(entry);
  }

  #discard(entry) {
    entry.gone = true;
    entry.picture?.close();
    entry.picture = null;
  }

  /** Stops, and gives the pictures back. */
  close() {
    cancelAnimationFrame(this.request);
    this.cut(-Infinity);
  }
}

/** The middle value, or null of nothing. */
export function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

/** Appends a value to the latest `most` ones. */
export function remember(list, value, most) {
  list.push(value);
  if (list.length > most) list.shift();
}
