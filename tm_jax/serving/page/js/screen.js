// The canvas that shows the frames: enlarged smoothly, with two soft edges.
//
// Both are done here at the size of the picture. The same with a CSS mask on the enlarged
// canvas takes several times as long on a computer without a GPU.

const EDGE = 0.09; // part of the picture that fades, on each side
const MOST = 2; // enlargement in the canvas; the browser does the rest

export class Screen {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.paint = canvas.getContext("2d");
    this.shape = "";
    this.watch = new ResizeObserver(() => { this.shape = ""; });
    this.watch.observe(canvas);
  }

  /** Shows a frame. @param {ImageBitmap|VideoFrame} picture */
  show(picture) {
    const width = picture.displayWidth ?? picture.width;
    const height = picture.displayHeight ?? picture.height;
    if (!this.shape || width !== this.of.width || height !== this.of.height) this.#fit({ width, height });
    const { paint, canvas } = this;
    paint.globalCompositeOperation = "copy";
    paint.drawImage(picture, 0, 0, canvas.width, canvas.height);
    paint.globalCompositeOperation = "destination-in";
    paint.fillStyle = this.edges;
    paint.fillRect(0, 0, canvas.width, canvas.height);
  }

  #fit(picture) {
    const { canvas, paint } = this;
    this.of = picture;
    const wanted = (canvas.clientWidth * devicePixelRatio) / picture.width || 1;
    const scale = Math.max(1, Math.min(MOST, wanted));
    canvas.width = Math.round(picture.width * scale);
    canvas.height = Math.round(picture.height * scale);
    paint.imageSmoothingQuality = "medium";
    // The picture touches two edges of the window; the other two fade into the backdrop.
    const wide = innerWidth / innerHeight > picture.width / picture.height;
    this.edges = wide ? paint.createLinearGradient(0, 0, canvas.width, 0)
      : paint.createLinearGradient(0, 0, 0, canvas.height);
    for (const [at, colour] of [[0, "transparent"], [EDGE, "#000"], [1 - EDGE, "#000"], [1, "transparent"]]) {
      this.edges.addColorStop(at, colour);
    }
    this.shape = wide ? "wide" : "tall";
  }
}
