// Changes the sample rate of a stream with a windowed sinc; runs in the worklet and in tests.

const ZEROS = 12; // zero crossings of the sinc on each side
const STEPS = 64; // table entries per zero crossing, interpolated between

function table() {
  const values = new Float32Array(ZEROS * STEPS + 2);
  for (let i = 0; i <= ZEROS * STEPS; i++) {
    const x = i / STEPS;
    const sinc = x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
    values[i] = sinc * Math.cos((Math.PI / 2) * (x / ZEROS)) ** 2;
  }
  return values;
}

export class Resampler {
  /** @param {number} from rate of the input, Hz  @param {number} to rate of the output, Hz */
  constructor(from, to) {
    this.step = from / to; // input samples per output sample
    // Cut off a little below the lower of both Nyquist rates, so that nothing folds back.
    this.cut = Math.min(1, to / from) * (from === to ? 1 : 0.94);
    this.reach = Math.ceil(ZEROS / this.cut);
    this.sinc = table();
    this.held = new Float32Array(this.reach); // silence before the first sample
    this.next = this.reach; // position of the next output in `held`, in input samples
  }

  /** The output that `input` completes, as a Float32Array of any length. */
  push(input) {
    if (this.step === 1) return Float32Array.from(input);
    const all = new Float32Array(this.held.length + input.length);
    all.set(this.held);
    all.set(input, this.held.length);
    const out = [];
    while (this.next + this.reach < all.length) {
      out.push(this.#at(all, this.next));
      this.next += this.step;
    }
    const used = Math.max(0, Math.min(all.length, Math.floor(this.next) - this.reach));
    this.held = all.slice(used);
    this.next -= used;
    return Float32Array.from(out);
  }

  #at(samples, position) {
    let sum = 0;
    const from = Math.max(0, Math.ceil(position - this.reach));
    const to = Math.min(samples.length - 1, Math.floor(position + this.reach));
    for (let i = from; i <= to; i++) {
      const x = Math.abs(position - i) * this.cut * STEPS;
      const k = Math.floor(x);
      if (k >= ZEROS * STEPS) continue;
      const weight = this.sinc[k] + (x - k) * (this.sinc[k + 1] - this.sinc[k]);
      sum += samples[i] * weight;
    }
    return sum * this.cut;
  }
}

/** Float samples in -1..1 as 16-bit integers. */
export function toPcm16(samples) {
  const pcm = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i++) {
    const clipped = Math.max(-1, Math.min(1, samples[i]));
    pcm[i] = Math.round(clipped * 32767);
  }
  return pcm;
}

/** 16-bit integers as float samples in -1..1. */
export function fromPcm16(pcm) {
  const samples = new Float32Array(pcm.length);
  for (let i = 0; i < pcm.length; i++) samples[i] = pcm[i] / 32768;
  return samples;
}
