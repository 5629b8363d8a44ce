// Notes what a page shows and what it lets hear, from outside its own modules (see marks.py).

window.probe = { frames: [], sounds: [], voice: [] };

const [ACROSS, PLACE, BITS] = [32, 4, 12];
const paint = new OffscreenCanvas(BITS + 1, 1).getContext("2d", { willReadFrequently: true });

paint.imageSmoothingEnabled = false; // A pixel of the middle, not a mean of neighbours.

// The marks of the picture that is on the screen now: one pixel for the middle of each square.
// One copy for all of them: without a GPU each copy of a video's frame converts all its pixels.
function readMarks(shown) {
  const square = (shown.videoWidth || shown.width) / ACROSS;
  const from = PLACE * square;
  const row = [from, from + square / 4, (BITS + 1) * square, square / 2];
  paint.drawImage(shown, ...row, 0, 0, BITS + 1, 1);
  const { data } = paint.getImageData(0, 0, BITS + 1, 1);
  let number = 0;
  for (let bit = 0; bit < BITS; bit++) number += (data[4 * (bit + 1)] > 127) << bit;
  return { number, level: data[0] };
}

// Whether a video has a frame that was not read yet; of a canvas nobody knows.
const presented = new WeakMap();
function isNew(shown) {
  if (!shown.requestVideoFrameCallback) return true;
  if (!presented.has(shown)) {
    const note = () => {
      presented.set(shown, true);
      shown.requestVideoFrameCallback(note);
    };
    note();
  }
  const fresh = presented.get(shown);
  presented.set(shown, false);
  return fresh;
}

// A look comes after the page has drawn: in the first task behind the browser's own.
const drawn = new MessageChannel();
requestAnimationFrame(function next() {
  requestAnimationFrame(next);
  drawn.port2.postMessage(null);
});

drawn.port1.onmessage = () => {
  const shown = document.querySelector("#video:not([hidden]), #remote:not([hidden])");
  if (!shown || document.body.dataset.state !== "live" || !isNew(shown)) return;
  const marks = readMarks(shown);
  const { frames } = window.probe;
  if (frames.length && frames.at(-1).number === marks.number) return;
  frames.push({ ...marks, ms: performance.now() });
};

// Loudness of what goes through a context, with the time of the middle of each piece: for what it
// plays, when that is heard; for a microphone, when it came.
const analysers = new WeakMap();
function listen(node, into, isHeard = true) {
  const { context } = node;
  if (analysers.has(context)) return connect.call(node, analysers.get(context));
  const analyser = new AnalyserNode(context, { fftSize: context.sampleRate > 30000 ? 1024 : 512 });
  analysers.set(context, analyser);
  connect.call(node, analyser);
  const samples = new Float32Array(analyser.fftSize);
  const half = analyser.fftSize / 2 / context.sampleRate;
  setInterval(() => {
    const { contextTime, performanceTime } = context.getOutputTimestamp();
    if (context.state !== "running" || !contextTime) return;
    analyser.getFloatTimeDomainData(samples);
    const level = samples.reduce((sum, sample) => sum + Math.abs(sample), 0) / samples.length;
    const [from, at] = isHeard ? [performanceTime, context.currentTime - contextTime] : [performance.now(), 0];
    into.push({ level, ms: from + (at - half) * 1000 });
  }, 10);
}

// What the page sends to the loudspeaker, and what it takes of the microphone.
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode) listen(this, window.probe.sounds);
  if (target instanceof AudioWorkletNode) listen(this, window.probe.voice, false);
  return connect.call(this, target, ...rest);
};

// Over WebRTC, where an element plays: its stream.
const heard = new WeakSet();
const property = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, "srcObject");
Object.defineProperty(HTMLMediaElement.prototype, "srcObject", {
  ...property,
  set(stream) {
    property.set.call(this, stream);
    // A muted element feeds a context, which is listened to already.
    if (this.id !== "remote" || this.muted || !stream?.getAudioTracks().length || heard.has(stream)) return;
    heard.add(stream);
    listen(new AudioContext().createMediaStreamSource(stream), window.probe.sounds);
  },
});
