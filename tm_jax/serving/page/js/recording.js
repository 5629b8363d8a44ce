// A sound file of the visitor, sent like a microphone: block after block, in real time.

import { toPcm16 } from "./resampler.js";

const BLOCK_S = 0.04;
const AHEAD_S = 0.2; // sent before its time, so that a busy page does not run dry
const MOST_S = 600;
const MOST_BYTES = 100e6;

/**
 * Reads a sound file.
 *
 * @param {File} file what the visitor chose
 * @param {number} rate wanted rate, Hz
 * @returns {Promise<Int16Array>} mono PCM
 * @throws {Error} with words for the visitor
 */
export async function read(file, rate) {
  if (file.size > MOST_BYTES) {
    throw new Error(`This file has ${Math.round(file.size / 1e6)} MB; at most ${MOST_BYTES / 1e6} MB can be read.`);
  }
  let sound;
  try {
    // The context only lends its decoder, which resamples to its rate.
    sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error("This file could not be read as sound. WAV, MP3, Ogg, FLAC and M4A work in most browsers.");
  }
  if (sound.duration > MOST_S) {
    throw new Error(`This recording is ${Math.round(sound.duration / 60)} minutes long; at most ${MOST_S / 60} minutes can be played.`);
  }
  const channels = [...Array(sound.numberOfChannels).keys()].map((i) => sound.getChannelData(i));
  const mono = channels[0].map((_, i) => channels.reduce((sum, c) => sum + c[i], 0) / channels.length);
  return toPcm16(mono);
}

export class Recording {
  /**
   * @param {Int16Array} pcm mono sound
   * @param {number} rate its rate, Hz
   * @param {object} events `onBlock(Int16Array)`, `onProgress(0..1)`, `onEnd()`
   */
  constructor(pcm, rate, events) {
    Object.assign(this, { pcm, rate, events });
    this.block = Math.round(rate * BLOCK_S);
    this.sent = 0;
    this.timer = 0;
  }

  start() {
    this.stop();
    this.begun = performance.now() / 1000 - this.sent / this.rate;
    this.timer = setInterval(() => this.#send(), BLOCK_S * 500);
    this.#send();
  }

  #send() {
    const until = (performance.now() / 1000 - this.begun + AHEAD_S) * this.rate;
    while (this.sent < this.pcm.length && this.sent + this.block <= until) {
      this.events.onBlock(this.pcm.slice(this.sent, this.sent + this.block));
      this.sent = Math.min(this.pcm.length, this.sent + this.block);
    }
    this.events.onProgress?.(this.sent / this.pcm.length);
    if (this.sent >= this.pcm.length) {
      this.stop();
      this.events.onEnd?.();
    }
  }

  stop() {
    clearInterval(this.timer);
  }
}
