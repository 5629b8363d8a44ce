// Reads and writes the messages of docs/protocol.md.

export const VERSION = 1;
export const SUBPROTOCOL = "tm-jax.v1";
export const SAMPLE_RATE = 24000;
export const FRAME_SAMPLES = 960;

const MAGIC = 0x54;
const FRAMES = 1;
const SOUND = 2;
const HEAD = 28;
const NO_SOURCE = 0xffffffff;
const FLAG = { first: 1, speaking: 2, own: 4 };

/**
 * One message of sound for the server.
 *
 * @param {Int16Array} pcm mono sound
 * @param {number} sequence number of the message
 * @param {number} position samples sent before
 * @param {number} capturedMs own clock
 * @returns {ArrayBuffer}
 */
export function packSound(pcm, sequence, position, capturedMs) {
  const message = new ArrayBuffer(16 + pcm.byteLength);
  const view = new DataView(message);
  view.setUint8(0, MAGIC);
  view.setUint8(1, VERSION);
  view.setUint8(2, SOUND);
  view.setUint32(4, sequence >>> 0, true);
  view.setUint32(8, position >>> 0, true);
  view.setUint32(12, Math.round(capturedMs) >>> 0, true);
  new Int16Array(message, 16).set(pcm);
  return message;
}

/**
 * The frames of one message.
 *
 * @param {ArrayBuffer} message
 * @returns {Array<object>} of `generation`, `number`, `pts` in s, `source` (position in the
 *   sent sound, or null), `speaking`, `own` (the sound is the visitor's), `pcm` Int16Array,
 *   `picture` Blob
 * @throws {RangeError} for anything that is not such a message
 */
export function unpackFrames(message) {
  const view = new DataView(message);
  if (message.byteLength < HEAD || view.getUint8(0) !== MAGIC || view.getUint8(2) !== FRAMES) {
    throw new RangeError("Not a message of frames.");
  }
  if (view.getUint8(1) !== VERSION) throw new RangeError("Frames of another version.");
  const [flags, count, soundBytes] = [view.getUint8(3), view.getUint16(20, true), view.getUint32(24, true)];
  const [generation, number] = [view.getUint32(4, true), view.getUint32(8, true)];
  const [pts, source] = [view.getUint32(12, true), view.getUint32(16, true)];
  let at = HEAD + 4 * count + soundBytes;
  if (soundBytes !== 2 * FRAME_SAMPLES * count || at > message.byteLength) {
    throw new RangeError("A message of frames with another length of sound.");
  }
  const frames = [];
  for (let i = 0; i < count; i++) {
    const size = view.getUint32(HEAD + 4 * i, true);
    if (at + size > message.byteLength) throw new RangeError("A cut message of frames.");
    const sound = HEAD + 4 * count + 2 * FRAME_SAMPLES * i;
    frames.push({
      generation,
      number: number + i,
      pts: (pts + FRAME_SAMPLES * i) / SAMPLE_RATE,
      source: source === NO_SOURCE ? null : source + FRAME_SAMPLES * i,
      speaking: Boolean(flags & FLAG.speaking),
      own: Boolean(flags & FLAG.own),
      pcm: new Int16Array(message, sound, FRAME_SAMPLES),
      picture: new Blob([new Uint8Array(message, at, size)], { type: "image/jpeg" }),
    });
    at += size;
  }
  return frames;
}

// What a close of the connection asks for: end the call, or connect again.
const ENDS = new Map([
  [1000, "stopped"], [4000, "bad_message"], [4001, "unauthorized"], [4002, "bad_version"],
  [4003, "taken_over"], [4009, "full"],
]);

/** Error code with which a closed connection ends the call; null: connect again. */
export function endOf(closeCode) {
  return ENDS.get(closeCode) ?? null;
}

/** Seconds before attempt number `attempt` (from 0) to connect again. */
export function backoff(attempt, random = Math.random) {
  return Math.min(5, 0.5 * 2 ** attempt) * (0.8 + 0.4 * random());
}
