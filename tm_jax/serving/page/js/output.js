// A way to the loudspeaker that the browser may keep shut until the visitor clicks.

const PATIENCE_MS = 700; // The promise stays open as long as the browser waits for a gesture.

/**
 * Opens an AudioContext. Call it from a click, or browsers keep it silent.
 *
 * @param {object} options of AudioContext
 * @param {function} tell called with whether the sound is blocked, when that changes
 */
export function open(options, tell) {
  const audio = new AudioContext({ latencyHint: "interactive", ...options });
  audio.onstatechange = () => {
    if (audio.state !== "closed") tell?.(audio.state !== "running");
  };
  return audio;
}

/** Asks the browser to play; resolves with whether it does. */
export async function wake(audio) {
  if (audio.state === "running") return true;
  const later = new Promise((resolve) => { setTimeout(resolve, PATIENCE_MS); });
  await Promise.race([audio.resume().catch(() => {}), later]);
  audio.onstatechange?.(); // A refusal is no change.
  return audio.state === "running";
}
