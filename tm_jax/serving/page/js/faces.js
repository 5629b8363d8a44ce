// Whom to call: the bundled characters, and pictures of the visitor.

import * as api from "./api.js";
import { byId, icon, make, say } from "./dom.js";
import * as settings from "./settings.js";
import { ofPicture, tooLarge } from "./words.js";

export class Faces {
  /** @param {object} events `onChoose({id, name, url}, {sharper})`: chosen, or only better drawn */
  constructor(events) {
    this.events = events;
    this.faces = new Map(); // id -> {id, name, url, file?, tile}
    this.chosen = null;
    this.limit = null; // bytes of a picture
    this.add = make("button", { type: "button", className: "face" },
      make("span", { className: "plus" }, icon("upload")), make("span", { textContent: "Your own" }));
    this.input = byId("picture");
    this.add.addEventListener("click", () => this.input.click());
    this.input.addEventListener("change", () => {
      if (this.input.files.length) this.upload(this.input.files[0]);
      this.input.value = "";
    });
    byId("faces").append(this.add);
    this.#takeDrops();
  }

  #takeDrops() {
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      const file = [...event.dataTransfer.files].find((f) => f.type.startsWith("image/"));
      if (file) this.upload(file);
    });
  }

  /** Fetches the bundled characters and chooses the one of last time. */
  async load() {
    const { characters } = await api.json("api/characters");
    const urls = await Promise.all(characters.map((c) => api.picture(c.preview)));
    characters.forEach(({ id, name, picture }, i) => {
      if (!this.faces.has(id)) this.#show({ id, name, url: urls[i], large: picture });
    });
    const last = settings.load("character", "");
    const first = this.faces.get(last) ?? this.faces.values().next().value;
    if (first && !this.chosen) this.choose(first.id);
  }

  #show(face) {
    const radio = make("input", { type: "radio", name: "character", value: face.id });
    radio.addEventListener("change", () => this.choose(face.id));
    const image = make("img", { src: face.url, alt: "", draggable: false });
    face.tile = make("label", { className: "face" }, radio, image, make("span", { textContent: face.name }));
    this.faces.set(face.id, face);
    byId("faces").insertBefore(face.tile, this.add);
  }

  /** Makes a character the chosen one. */
  choose(id) {
    const face = this.faces.get(id);
    if (!face) return;
    face.tile.querySelector("input").checked = true;
    if (this.chosen === face) return;
    this.chosen = face;
    if (!face.file) settings.save("character", id);
    this.events.onChoose?.(face);
    if (face.large) this.#enlarge(face);
  }

  /** The preview is small; the picture itself takes its place as soon as it is here. */
  async #enlarge(face) {
    const path = face.large;
    face.large = null;
    try {
      face.url = await api.picture(path);
    } catch {
      return; // the preview stays
    }
    if (this.chosen === face) this.events.onChoose?.(face, { sharper: true });
  }

  /** Sends a picture of the visitor; says why if it is refused. */
  async upload(file) {
    const words = byId("picture-words");
    say(words, "");
    if (this.limit && file.size > this.limit) {
      say(words, tooLarge(file.size, this.limit));
      return;
    }
    this.add.dataset.busy = "";
    try {
      const { character: id, picture } = await this.#send(file);
      this.#show({ id, name: "Yours", url: URL.createObjectURL(file), file, large: picture });
      this.choose(id);
      this.faces.get(id).tile.scrollIntoView({ block: "nearest", inline: "nearest" });
    } catch (error) {
      const known = error instanceof api.Refused;
      say(words, known ? ofPicture(error.status, error.code, error.message, this.limit)
        : "The picture could not be sent: the server cannot be reached.");
    } finally {
      delete this.add.dataset.busy;
    }
  }

  async #send(file) {
    const options = { method: "POST", body: file, headers: { "Content-Type": file.type } };
    return api.json("api/pictures", options);
  }

  /** Brings an uploaded picture again; resolves with its new id, or null. */
  async renew(id) {
    const face = this.faces.get(id);
    if (!face?.file) return null;
    try {
      face.id = (await this.#send(face.file)).character;
    } catch {
      return null;
    }
    this.faces.delete(id);
    this.faces.set(face.id, face);
    // The old tile's handler names the old id.
    const old = face.tile;
    this.#show(face);
    old.replaceWith(face.tile);
    face.tile.querySelector("input").checked = this.chosen === face;
    return face.id;
  }
}
