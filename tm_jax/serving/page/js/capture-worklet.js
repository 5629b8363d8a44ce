// Runs on the audio thread: microphone in, blocks of 16-bit PCM with their level out.

import { Resampler, toPcm16 } from "./resampler.js";

class Capture extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    const { rate, block } = processorOptions;
    this.resampler = new Resampler(sampleRate, rate);
    this.block = new Float32Array(block);
    this.filled = 0;
    this.open = true;
    this.port.onmessage = () => { this.open = false; };
  }

  process([channels]) {
    if (!channels.length) return this.open; // the source is not connected yet
    for (const sample of this.resampler.push(mix(channels))) {
      this.block[this.filled++] = sample;
      if (this.filled === this.block.length) this.#send();
    }
    return this.open;
  }

  #send() {
    let energy = 0;
    for (const sample of this.block) energy += sample * sample;
    const pcm = toPcm16(this.block);
    this.port.postMessage({ pcm, rms: Math.sqrt(energy / pcm.length) }, [pcm.buffer]);
    this.filled = 0;
  }
}

function mix(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, i) => channels.reduce((sum, c) => sum + c[i], 0) / channels.length);
}

registerProcessor("capture", Capture);
