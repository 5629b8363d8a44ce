// Light and dark: follows the system until the visitor presses the switch.

import { byId, setIcon } from "./dom.js";
import * as settings from "./settings.js";

const system = matchMedia("(prefers-color-scheme: dark)");

function show(choice) {
  const dark = choice === "auto" ? system.matches : choice === "dark";
  if (choice === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
  byId("theme").setAttribute("aria-pressed", String(dark));
  setIcon(byId("theme"), dark ? "sun" : "moon");
  return dark;
}

/** Wires the switch. A choice equal to the system's means: follow the system again. */
export function start() {
  let choice = settings.load("theme", "auto");
  let dark = show(choice);
  system.addEventListener("change", () => { dark = show(choice); });
  byId("theme").addEventListener("click", () => {
    choice = !dark === system.matches ? "auto" : dark ? "light" : "dark";
    settings.save("theme", choice);
    dark = show(choice);
  });
}
