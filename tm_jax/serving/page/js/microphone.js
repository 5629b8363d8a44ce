// The visitor's microphone as blocks of 16-bit PCM, and its level.

const WORKLET = new URL("capture-worklet.js", import.meta.url);
const BLOCK_S = 0.02;

export class Microphone {
  /** @param {object} events `onBlock(Int16Array)`, `onLevel(0..1)`, `onEnded()`: all optional */
  constructor(events = {}) {
    this.events = events;
    this.stream = null;
    this.audio = null;
    this.muted = false;
  }

  get open() {
    return this.stream !== null;
  }

  /** The live track, or null. */
  get track() {
    return this.stream?.getAudioTracks()[0] ?? null;
  }

  /**
   * Asks for the microphone and starts to listen. Call it from a click.
   *
   * @param {number} rate rate of the blocks, Hz
   * @throws {DOMException} as `getUserMedia` does; words.js explains it
   */
  async start(rate) {
    if (this.open) return;
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new DOMException("This page is not in a secure context.", "SecurityError");
    }
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
    this.stream = stream;
    stream.getAudioTracks()[0].onended = () => {
      this.stop();
      this.events.onEnded?.();
    };
    try {
      await this.#listen(stream, rate);
    } catch (error) {
      this.stop();
      throw error;
    }
  }

  async #listen(stream, rate) {
    // The device's own rate: not every browser lets a stream into a context of another one.
    const audio = new AudioContext();
    this.audio = audio;
    await audio.audioWorklet.addModule(WORKLET);
    if (this.stream !== stream) return; // hung up meanwhile
    const options = { rate, block: Math.round(rate * BLOCK_S) };
    const node = new AudioWorkletNode(audio, "capture", {
      numberOfOutputs: 0, processorOptions: options,
    });
    node.port.onmessage = ({ data }) => this.#hear(data);
    this.node = node;
    audio.createMediaStreamSource(stream).connect(node);
    audio.resume().catch(() => {});
  }

  #hear({ pcm, rms }) {
    this.events.onLevel?.(this.muted ? 0 : loudness(rms));
    // A muted microphone sends silence: the clock of the call goes on.
    this.events.onBlock?.(this.muted ? new Int16Array(pcm.length) : pcm);
  }

  /** Lets the device go; the browser's recording sign disappears. */
  stop() {
    this.node?.port.postMessage("close");
    this.node?.disconnect();
    this.node = null;
    for (const track of this.stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    this.stream = null;
    if (this.audio && this.audio.state !== "closed") this.audio.close();
    this.audio = null;
    this.events.onLevel?.(0);
  }
}

/** A level for the eye, 0..1: -60 dB is nothing, -6 dB is all. */
function loudness(rms) {
  const decibels = 20 * Math.log10(Math.max(rms, 1e-6));
  return Math.max(0, Math.min(1, (decibels + 60) / 54));
}
