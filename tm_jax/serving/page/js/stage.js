// The picture and what lies over it: name, state, messages, full screen.

import { Backdrop } from "./backdrop.js";
import { announce, byId, setIcon } from "./dom.js";
import { Screen } from "./screen.js";

export class Stage {
  constructor() {
    this.backdrop = new Backdrop(byId("ambient"));
    this.screen = new Screen(byId("video"));
    this.video = byId("video");
    this.remote = byId("remote");
    byId("banner-close").addEventListener("click", () => this.clear());
    byId("fullscreen").addEventListener("click", () => toggleFullScreen());
    byId("fullscreen").hidden = !document.documentElement.requestFullscreen;
    document.addEventListener("fullscreenchange", () => {
      const full = Boolean(document.fullscreenElement);
      byId("fullscreen").setAttribute("aria-pressed", String(full));
      setIcon(byId("fullscreen"), full ? "unfull" : "full");
    });
  }

  /** Shows the still picture of a character and its name. */
  still({ name, url }) {
    const image = byId("still");
    image.onload = () => {
      if (image.hidden) return;
      this.backdrop.reset();
      this.backdrop.take(image);
    };
    image.src = url;
    image.hidden = !this.video.hidden || !this.remote.hidden;
    byId("name").textContent = name;
  }

  /** Shows what moves: "canvas", "stream", or null for the still picture. */
  show(kind) {
    this.video.hidden = kind !== "canvas";
    this.remote.hidden = kind !== "stream";
    byId("still").hidden = kind !== null || !byId("still").src;
    this.backdrop.reset();
    if (kind === null && byId("still").complete && byId("still").src) {
      this.backdrop.take(byId("still"));
    }
  }

  /** The size of the picture decides the shape of its place. */
  shape(width, height) {
    byId("stage").style.setProperty("--ratio", `${width} / ${height}`);
  }

  /** The line below the name. */
  doing(words) {
    if (byId("doing").textContent !== words) byId("doing").textContent = words;
  }

  /** The chip at the top: tone "quiet", "good", "busy" or "bad". */
  status(tone, words) {
    byId("status").dataset.tone = tone;
    if (byId("status-text").textContent !== words) byId("status-text").textContent = words;
  }

  /**
   * A message over the picture.
   *
   * @param {{title: string, text: string}} words
   * @param {object} options `calm` for good news, `action` label, `onAction`, `owner` name for
   *   `clear`
   */
  tell({ title, text }, { calm = false, action, onAction, owner = "" } = {}) {
    this.owner = owner;
    byId("banner").dataset.tone = calm ? "calm" : "alarm";
    byId("banner-title").textContent = title;
    byId("banner-text").textContent = text;
    const button = byId("banner-action");
    button.hidden = !action;
    button.textContent = action ?? "";
    button.onclick = () => {
      this.clear();
      onAction();
    };
    byId("banner").hidden = false;
  }

  /** Takes the message away; with an owner, only its own. */
  clear(owner) {
    if (owner === undefined || owner === this.owner) byId("banner").hidden = true;
  }

  /** Counts the time of the call up, or stops counting. */
  count(on) {
    clearInterval(this.clock);
    byId("timer").hidden = !on;
    if (!on) return;
    const from = performance.now();
    const tick = () => { byId("timer").textContent = clockTime((performance.now() - from) / 1000); };
    tick();
    this.clock = setInterval(tick, 1000);
    this.began = from;
  }

  get length() {
    return this.began ? clockTime((performance.now() - this.began) / 1000) : "";
  }
}

/** Seconds as 1:05. */
export function clockTime(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

async function toggleFullScreen() {
  try {
    if (document.fullscreenElement) await document.exitFullscreen();
    else await document.documentElement.requestFullscreen();
  } catch {
    announce("The browser did not allow full screen.");
  }
}

/**
 * A card that opens over the picture during a call: button, Escape and close button.
 *
 * @param {string} name id of the card; `NAME-toggle` and `NAME-close` are its buttons
 * @param {Array<string>} others cards that close when this one opens
 */
export function drawer(name, others) {
  const card = byId(name);
  const toggle = byId(`${name}-toggle`);
  const set = (open, focus = true) => {
    card.classList.toggle("open", open);
    toggle.setAttribute("aria-expanded", String(open));
    if (!focus) return;
    if (open) {
      for (const other of others) closeDrawer(other);
      byId(`${name}-close`).focus();
    } else {
      toggle.focus();
    }
  };
  toggle.addEventListener("click", () => set(!card.classList.contains("open")));
  byId(`${name}-close`).addEventListener("click", () => set(false));
  card.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && card.classList.contains("open")) set(false);
  });
}

/** Closes a card without moving the focus. */
export function closeDrawer(name) {
  byId(name).classList.remove("open");
  byId(`${name}-toggle`).setAttribute("aria-expanded", "false");
}
