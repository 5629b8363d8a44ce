// Small helpers around the document. Text always goes through textContent, never through HTML.

/** The element with this id; a missing one is a mistake in index.html. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no element #${id}.`);
  return element;
}

/** A new element with properties (`className`, `textContent`, …) and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** An icon of the sprite in index.html, hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** Exchanges the icon inside an element. */
export function setIcon(element, name) {
  element.querySelector("use").setAttribute("href", `#i-${name}`);
}

/** Shows a sentence below a control, or hides the place when it is empty. */
export function say(element, words) {
  element.textContent = words || "";
  element.hidden = !words;
}

/** Tells screen readers something that sighted people see elsewhere. */
export function announce(words) {
  byId("announce").textContent = words;
}
