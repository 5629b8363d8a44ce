// Watches the page from outside its own modules: what the canvas shows, and what sounds.

window.measured = { shown: [], tones: [], contexts: [], streams: [], analysers: [] };

const BITS = 24;
const number = { y: 215 / 256, x: 32 / 256, step: 8 / 256 };

// The number and the flash of the picture that is in the canvas now.
function readCanvas(canvas) {
  const { width, height } = canvas;
  const paint = canvas.getContext("2d");
  const row = paint.getImageData(0, Math.floor(number.y * height), width, 1).data;
  let value = 0;
  for (let bit = 0; bit < BITS; bit++) {
    const x = Math.floor((number.x + (bit + 0.5) * number.step) * width);
    if (row[4 * x] > 127) value += 2 ** bit;
  }
  const flash = paint.getImageData(Math.floor(0.17 * width), Math.floor(0.17 * height), 1, 1).data[0] > 127;
  return { number: value, flash };
}

function watch() {
  requestAnimationFrame(watch);
  const canvas = document.getElementById("video");
  if (!canvas || canvas.hidden || document.body.dataset.state === "idle" || window.measured.paused) return;
  const { shown } = window.measured;
  const now = readCanvas(canvas);
  if (shown.length && shown.at(-1).number === now.number) return;
  shown.push({ ...now, ms: performance.now() });
}
requestAnimationFrame(watch);

// When sound begins after silence. The clocks are compared while it is heard: a starved sound
// card stops the one of the context, and later comparisons would count that in.
function noteTone(at, context) {
  setTimeout(() => {
    const { contextTime, performanceTime } = context.getOutputTimestamp();
    window.measured.tones.push(performanceTime + (at - contextTime) * 1000);
  }, Math.max(0, at - context.currentTime) * 1000);
}

let silentBefore = true;
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (at, ...rest) {
  const loud = this.buffer.getChannelData(0).some((sample) => Math.abs(sample) > 0.05);
  if (loud && silentBefore) noteTone(at, this.context);
  silentBefore = !loud;
  return start.call(this, at, ...rest);
};

const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode && target.context instanceof AudioContext) {
    const analyser = new AnalyserNode(this.context, { fftSize: 256 });
    connect.call(this, analyser);
    window.measured.analysers.push(analyser);
  }
  return connect.call(this, target, ...rest);
};

// The loudest sample of the last 10 ms.
window.measured.level = () => Math.max(0, ...window.measured.analysers.map((analyser) => {
  const samples = new Float32Array(analyser.fftSize);
  analyser.getFloatTimeDomainData(samples);
  return Math.max(...samples.map(Math.abs));
}));

const Native = window.AudioContext;
window.AudioContext = class extends Native {
  constructor(...args) {
    super(...args);
    window.measured.contexts.push(this);
  }
};

const devices = navigator.mediaDevices; // about:blank has none
if (devices) {
  const getUserMedia = devices.getUserMedia.bind(devices);
  devices.getUserMedia = async (...args) => {
    const stream = await getUserMedia(...args);
    window.measured.streams.push(stream);
    return stream;
  };
}

// Milliseconds from each burst of sound to the picture of its flash.
window.measured.offsets = () => {
  const { shown, tones } = window.measured;
  const flashes = shown.filter((s, i) => s.flash && i > 0 && !shown[i - 1].flash).map((s) => s.ms);
  return tones.map((heard) => {
    const near = flashes.map((ms) => ms - heard).sort((a, b) => Math.abs(a) - Math.abs(b));
    return near[0];
  }).filter((ms) => Math.abs(ms) < 450); // a burst at an end of the measurement has no flash
};
