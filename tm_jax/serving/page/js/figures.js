// The panel with live figures: where the time goes, and how even the picture is.

import { byId, make } from "./dom.js";

// In the order in which a chunk passes through them.
const NAMES = {
  audio_wait: "Sound of a chunk",
  lookahead: "Look-ahead",
  queue: "Queue",
  score: "Transformer",
  transfer: "Hand-over",
  decode: "Decoder",
  encode: "Compression",
  send: "Sending",
  playout: "Play-out",
};

export class Figures {
  constructor() {
    this.rows = new Map();
    this.clear();
  }

  clear() {
    this.frames = []; // {ms, drawn, late}: one a second
    this.rows.clear();
    byId("spans").replaceChildren(make("tr", {}, make("td", {
      colSpan: 4, className: "none", textContent: "Figures appear during a call.",
    })));
    for (const id of ["total", "fps", "late", "av", "buffer", "rtt"]) show(id, null);
  }

  /** Takes a `stats` message: spans with p50 and p95 in ms. */
  spans(spans) {
    const parts = Object.keys(NAMES).filter((name) => spans[name]);
    if (!parts.length) return;
    if (!this.rows.size) byId("spans").replaceChildren();
    const total = parts.reduce((sum, name) => sum + spans[name].p50, 0) || 1;
    let before = 0;
    for (const name of parts) {
      const { p50, p95 } = spans[name];
      const row = this.rows.get(name) ?? this.#row(name);
      row.p50.textContent = format(p50);
      row.p95.textContent = format(p95);
      row.bar.style.left = `${(100 * before) / total}%`;
      row.bar.style.width = `${(100 * p50) / total}%`;
      before += p50;
    }
    this.sum = total;
  }

  #row(name) {
    const row = { p50: make("td"), p95: make("td"), bar: make("i") };
    const head = make("th", { scope: "row", textContent: NAMES[name] });
    const track = make("td", { className: "track" }, make("span", { className: "span-bar" }, row.bar));
    byId("spans").append(make("tr", {}, head, track, row.p50, row.p95));
    this.rows.set(name, row);
    return row;
  }

  /**
   * Takes what the player counted, once a second.
   *
   * @param {object} figures of `Player.figures`: counts since the start, times in s
   * @param {number|null} voiceToLips measured delay in ms, or null
   * @param {number|null} roundTrip ms
   */
  player(figures, voiceToLips, roundTrip) {
    const now = performance.now();
    const { drawn, late, dropped, offset, buffer } = figures;
    this.frames.push({ now, drawn, bad: late + dropped });
    if (this.frames.length > 10) this.frames.shift();
    const first = this.frames[0];
    const seconds = (now - first.now) / 1000;
    show("fps", seconds > 0.5 ? (drawn - first.drawn) / seconds : null, 1);
    const all = drawn + dropped;
    show("late", all ? (100 * (late + dropped)) / all : null, 1);
    show("av", offset === null ? null : 1000 * offset);
    show("buffer", buffer === null ? null : 1000 * buffer);
    show("total", voiceToLips ?? (this.rows.size ? this.sum : null));
    show("rtt", roundTrip);
  }
}

function show(id, value, digits = 0) {
  const number = value === null || !Number.isFinite(value) ? null : value.toFixed(digits);
  byId(`f-${id}`).textContent = number === null ? "–" : number.replace(/^-/, "−").replace(/^−0$/, "0");
}

function format(ms) {
  return ms < 10 ? ms.toFixed(1) : ms.toFixed(0);
}
