// What was said, over the picture: the latest utterances, each replaced as it grows.

import { make } from "./dom.js";

const SHOWN = 2;
const STAY_MS = 9000;

export class Captions {
  /** @param {HTMLElement} list  @param {function} nameOf role -> name of the speaker */
  constructor(list, nameOf) {
    this.list = list;
    this.nameOf = nameOf;
    this.items = new Map(); // item -> {line, text, timer}
  }

  /** Takes a `caption` message. */
  take({ role, item, text, final }) {
    const entry = this.items.get(item) ?? this.#add(role, item);
    entry.text.textContent = text;
    // Screen readers hear an utterance once, when it is complete.
    if (final) entry.line.removeAttribute("aria-hidden");
    entry.line.hidden = !text;
    clearTimeout(entry.timer);
    entry.timer = setTimeout(() => this.#remove(item), STAY_MS);
  }

  #add(role, item) {
    const text = make("span");
    const line = make("li", {}, make("b", { textContent: this.nameOf(role) }), text);
    line.dataset.who = role === "caller" ? "you" : "avatar";
    line.setAttribute("aria-hidden", "true");
    this.list.append(line);
    const entry = { line, text, role };
    this.items.set(item, entry);
    for (const old of [...this.items.keys()].slice(0, -SHOWN)) this.#remove(old);
    return entry;
  }

  #remove(item) {
    const entry = this.items.get(item);
    if (!entry) return;
    clearTimeout(entry.timer);
    entry.line.remove();
    this.items.delete(item);
  }

  /** Marks what the character was saying as cut off. */
  cut() {
    for (const { line, role } of this.items.values()) {
      if (role === "avatar") line.dataset.cut = "";
    }
  }

  clear() {
    for (const item of [...this.items.keys()]) this.#remove(item);
  }
}
