// The soft colours behind the picture: a tiny copy of it, blurred and stretched by the style.

const EVERY_MS = 400;

export class Backdrop {
  /** @param {HTMLCanvasElement} canvas a canvas of a few pixels */
  constructor(canvas) {
    this.canvas = canvas;
    this.paint = canvas.getContext("2d", { alpha: false });
    this.small = document.createElement("canvas");
    this.small.width = this.small.height = 6;
    this.last = 0;
  }

  /** Takes the colours of a picture, at most a few times a second. */
  take(picture, now = performance.now()) {
    if (now - this.last < EVERY_MS && this.last) return;
    this.last = now;
    // Twice through smooth scaling is a blur that every browser has.
    const small = this.small.getContext("2d");
    small.imageSmoothingQuality = "high";
    small.drawImage(picture, 0, 0, this.small.width, this.small.height);
    this.paint.imageSmoothingQuality = "high";
    this.paint.drawImage(this.small, 0, 0, this.canvas.width, this.canvas.height);
    this.paint.fillStyle = "rgb(16 18 22 / 28%)";
    this.paint.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** The next picture counts at once. */
  reset() {
    this.last = 0;
  }
}
