// The strip of pictures of the part of the clip that is on the screen.

const MAX_KEPT = 400;
const QUANTUM_SECONDS = 0.04;

/** Draws pictures of a clip side by side. They are fetched one after the other, as they decode. */
export class FrameStrip {
  constructor(canvas) {
    this._canvas = canvas;
    this._video = document.createElement("video");
    this._video.muted = true;
    this._video.preload = "auto";
    this._kept = new Map();
    this._view = null;
    this._working = false;
  }

  load(url) {
    this._kept.clear();
    this._view = null;
    this._video.src = url;
    this._video.load();
  }

  clear() {
    this._kept.clear();
    this._view = null;
    this._video.removeAttribute("src");
    this._video.load();
    this._draw();
  }

  /** Show the seconds from `start` to `stop` over the whole width. */
  show(start, stop) {
    this._view = { start, stop };
    this._draw();
    this._fetch();
  }

  _list() {
    const { _canvas: canvas, _video: video, _view: view } = this;
    if (!view || !video.videoWidth || !canvas.clientWidth) return [];
    const width = Math.max(24, (canvas.clientHeight * video.videoWidth) / video.videoHeight);
    const count = Math.ceil(canvas.clientWidth / width);
    const perPixel = (view.stop - view.start) / canvas.clientWidth;
    return Array.from({ length: count }, (_, n) => {
      const seconds = view.start + (n + 0.5) * width * perPixel;
      const last = Math.max(0, video.duration - QUANTUM_SECONDS);
      return { x: n * width, width, key: Math.round(Math.min(seconds, last) / QUANTUM_SECONDS) };
    });
  }

  _draw() {
    const { _canvas: canvas } = this;
    const scale = devicePixelRatio;
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    for (const { x, width, key } of this._list()) {
      const image = this._kept.get(key);
      if (image) context.drawImage(image, x, 0, width, canvas.clientHeight);
    }
  }

  async _fetch() {
    if (this._working) return;
    this._working = true;
    try {
      if (!this._video.videoWidth) await once(this._video, "loadeddata");
      let wanted;
      while ((wanted = this._list().find(({ key }) => !this._kept.has(key)))) {
        const arrived = once(this._video, "seeked");
        this._video.currentTime = wanted.key * QUANTUM_SECONDS + QUANTUM_SECONDS / 4;
        await arrived;
        this._keep(wanted.key);
        this._draw();
      }
    } catch {
      // The browser cannot play this clip: there is no strip.
    } finally {
      this._working = false;
    }
  }

  _keep(key) {
    const image = document.createElement("canvas");
    const height = 2 * this._canvas.clientHeight;
    image.height = height;
    image.width = (height * this._video.videoWidth) / this._video.videoHeight;
    image.getContext("2d").drawImage(this._video, 0, 0, image.width, image.height);
    this._kept.set(key, image);
    if (this._kept.size > MAX_KEPT) this._kept.delete(this._kept.keys().next().value);
  }
}

function once(target, name) {
  return new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true });
    target.addEventListener("error", reject, { once: true });
    target.addEventListener("emptied", reject, { once: true });
  });
}
