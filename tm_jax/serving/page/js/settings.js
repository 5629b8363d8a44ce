// What the visitor chose last time. A browser that forbids storage only forgets.

const PREFIX = "tm.";

/** The stored value, or `fallback`. */
export function load(name, fallback) {
  try {
    return localStorage.getItem(PREFIX + name) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Stores a string. */
export function save(name, value) {
  try {
    localStorage.setItem(PREFIX + name, value);
  } catch {
    // Private windows may refuse; the choice then lasts until the page closes.
  }
}
