// The lanes of the timeline: one time axis, one playhead, zoom, the selection, and regions.

import WaveSurfer from "./vendor/wavesurfer.esm.js";
import Minimap from "./vendor/minimap.esm.js";
import Regions from "./vendor/regions.esm.js";
import Spectrogram from "./vendor/spectrogram.esm.js";
import Ruler from "./vendor/timeline.esm.js";

const NONCE = document.querySelector("meta[name=nonce]").content;
const MAX_PIXELS_PER_SECOND = 1000;
const SNAP_PIXELS = 10;
const DRAG_PIXELS = 4;
const DRAWN_PIXELS = 5; // by which the library draws a region past the pointer
const QUIET_RATE = 100; // samples a second of a lane without a sound

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Custom properties keep light-dark() as text: a property that computes it gives the colour.
function resolve(name) {
  const probe = document.createElement("span");
  probe.style.color = colour(name);
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** One waveform. All lanes have the same width and the same scroll position. */
export class Lane extends EventTarget {
  constructor(container, { height, plugins = [] }) {
    super();
    this.regions = Regions.create();
    this._isLoaded = false;
    this.wave = WaveSurfer.create({
      container, height, cspNonce: NONCE, interact: false, cursorWidth: 0, autoScroll: false, autoCenter: false,
      waveColor: resolve("--wave"), progressColor: resolve("--wave"), hideScrollbar: true, sampleRate: 48000,
      plugins: [this.regions, ...plugins],
    });
    this.wave.on("scroll", () => this.dispatchEvent(new Event("scroll")));
  }

  /** Show a channel; null is silence. */
  show(channel, duration) {
    const shown = channel ?? new Float32Array(Math.max(2, Math.round(duration * QUIET_RATE)));
    this._isLoaded = true;
    return this.wave.load("", [shown], duration);
  }

  zoom(pixelsPerSecond) {
    if (this._isLoaded && this.wave.getDecodedData()) this.wave.zoom(pixelsPerSecond);
  }

  get scroll() {
    return this.wave.getScroll();
  }

  set scroll(left) {
    if (Math.abs(this.scroll - left) >= 1) this.wave.setScroll(left);
  }

  /** Take the colours that the page has now. */
  recolour() {
    const wave = resolve("--wave");
    this.wave.setOptions({ waveColor: wave, progressColor: wave });
  }

  destroy() {
    this.wave.destroy();
  }
}

/**
 * The lanes together. Events: "seek" {seconds}, "select" {start, stop}, "view".
 */
export class Timeline extends EventTarget {
  constructor(root, { mix, overview, original }) {
    super();
    this._root = root;
    this._mixBox = mix;
    this.duration = 0;
    this.onsets = [];
    this.snaps = true;
    this._zoom = 0; // 0 shows all, 1 is the closest
    this._lanes = new Set();
    this._selected = null;
    this._isFollowing = false;
    this._spectrogram = Spectrogram.create({ height: 96, fftSamples: 1024, scale: "mel", frequencyMax: 20000, colorMap: "roseus", useWebWorker: true });
    const quiet = resolve("--quiet");
    this._minimap = Minimap.create({ container: overview, height: 28, waveColor: quiet, progressColor: quiet, cspNonce: NONCE, cursorWidth: 0, interact: true });
    this.mix = this.add(new Lane(mix, {
      height: 72,
      plugins: [
        Ruler.create({ height: 18, insertPosition: "beforebegin", secondaryLabelOpacity: 1, style: { color: "var(--ink)", fontSize: "11px" } }),
        this._spectrogram,
        this._minimap,
      ],
    }));
    this.original = this.add(new Lane(original, { height: 56 }));
    this._makeSelectable();
    this._makeSeekable();
    new ResizeObserver(() => this._apply()).observe(mix);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this._recolour());
  }

  add(lane) {
    this._lanes.add(lane);
    lane.addEventListener("scroll", () => this._follow(lane));
    return lane;
  }

  remove(lane) {
    this._lanes.delete(lane);
    lane.destroy();
  }

  /** Show a sound of the mix; null is silence. The spectrogram waits until it is whole. */
  async showMix(channel, duration, { isWhole = true } = {}) {
    this.duration = duration;
    const left = this.mix.scroll;
    if (isWhole) this._spectrogram.clearCache();
    // While it loads, the library would add regions later, and then say that they are new.
    const loading = (this._loading = {});
    await this.mix.show(channel, duration);
    if (loading !== this._loading) return;
    this._loading = null;
    if (isWhole) this._drawSpectrogram();
    this._apply();
    this.mix.scroll = left;
    this._drawSelection();
  }

  /** The plugin draws once more what it has, unless it is told that the sound is another one. */
  _drawSpectrogram() {
    clearTimeout(this._drawTimer);
    if (!this._spectrogram.isRendering) {
      this._spectrogram.clearCache();
      this._spectrogram.render();
    } else this._drawTimer = setTimeout(() => this._drawSpectrogram(), 50);
  }

  /** Follow a change between light and dark: canvases keep the colours that they were drawn in. */
  _recolour() {
    for (const lane of this._lanes) lane.recolour();
    const quiet = resolve("--quiet");
    const colours = { waveColor: quiet, progressColor: quiet };
    Object.assign(this._minimap.options, colours);
    this._minimap.miniWavesurfer?.setOptions(colours);
  }

  /** Forget the sound that is shown, and how it is zoomed. */
  clear() {
    this.duration = 0;
    this.onsets = [];
    this._zoom = 0;
  }

  get width() {
    return this._mixBox.clientWidth;
  }

  get pixelsPerSecond() {
    const all = this.width / Math.max(this.duration, 0.1);
    const most = Math.max(MAX_PIXELS_PER_SECOND, all);
    return all * (most / all) ** this._zoom;
  }

  get zoom() {
    return this._zoom;
  }

  /** Zoom around a position, from 0 (all) to 1. */
  setZoom(zoom, seconds) {
    const x = this.toPixels(seconds);
    this._zoom = Math.min(1, Math.max(0, zoom));
    this._apply();
    const kept = x >= 0 && x <= this.width ? x : this.width / 2;
    this.mix.scroll = Math.max(0, seconds * this.pixelsPerSecond - kept);
    this._follow(this.mix);
  }

  /** The seconds that are on the screen. */
  get view() {
    const start = this.mix.scroll / this.pixelsPerSecond;
    return { start, stop: start + this.width / this.pixelsPerSecond };
  }

  /** Where a position is on the screen. */
  toPixels(seconds) {
    return seconds * this.pixelsPerSecond - this.mix.scroll;
  }

  showPlayhead(seconds, isPlaying) {
    let x = this.toPixels(seconds);
    if (isPlaying && this._zoom > 0 && (x > this.width * 0.95 || x < 0)) {
      this.mix.scroll = Math.max(0, seconds * this.pixelsPerSecond - this.width * 0.1);
      this._follow(this.mix);
      x = this.toPixels(seconds);
    }
    const place = `${x}px`;
    if (place === this._playhead) return;
    this._playhead = place;
    this._root.style.setProperty("--playhead", place);
  }

  /** The nearest onset, if snapping is on and one is near enough on the screen. */
  snap(seconds) {
    if (!this.snaps) return seconds;
    const near = SNAP_PIXELS / this.pixelsPerSecond;
    let best = seconds;
    let distance = near;
    for (const onset of this.onsets) {
      if (Math.abs(onset - seconds) < distance) {
        distance = Math.abs(onset - seconds);
        best = onset;
      }
    }
    return best;
  }

  /** The next onset after a position, or with -1 the last one before it; undefined without one. */
  findOnset(seconds, step) {
    const isBeyond = (onset) => step * (onset - seconds) > 1e-3;
    return step > 0 ? this.onsets.find(isBeyond) : this.onsets.findLast(isBeyond);
  }

  /** Where the pointer ended a region that was drawn. */
  findDrawnStop({ start, end }) {
    return end >= this.duration ? end : Math.max(start, end - DRAWN_PIXELS / this.pixelsPerSecond);
  }

  select(range) {
    this._selected = range;
    this._drawSelection();
  }

  _apply() {
    for (const lane of this._lanes) lane.zoom(this._zoom === 0 ? 0 : this.pixelsPerSecond);
    this._follow(this.mix);
  }

  _follow(source) {
    if (this._isFollowing) return;
    this._isFollowing = true;
    const left = source.scroll;
    for (const lane of this._lanes) if (lane !== source) lane.scroll = left;
    this._isFollowing = false;
    this.dispatchEvent(new Event("view"));
  }

  _drawSelection() {
    if (this._loading) return;
    this._drawing = true;
    const { regions } = this.mix;
    regions.clearRegions();
    if (this._selected && this.duration) {
      const region = regions.addRegion({ id: "selection", start: this._selected.start, end: this._selected.stop, color: "rgba(64, 140, 220, 0.25)" });
      region.element?.setAttribute("data-selection", "");
    }
    this._drawing = false;
  }

  _makeSelectable() {
    const { regions } = this.mix;
    regions.enableDragSelection({ color: "rgba(64, 140, 220, 0.25)" }, DRAG_PIXELS);
    const tell = (region, end = region.end) => {
      if (this._drawing) return;
      const [start, stop] = [this.snap(region.start), this.snap(end)];
      this._emit("select", { start: Math.min(start, stop), stop: Math.max(start, stop) });
    };
    regions.on("region-created", (region) => tell(region, this.findDrawnStop(region)));
    regions.on("region-updated", (region) => tell(region));
  }

  _makeSeekable() {
    let pressed = null;
    this._root.addEventListener("pointerdown", (event) => {
      pressed = event.target.closest(".lane") ? { x: event.clientX, y: event.clientY } : null;
    });
    this._root.addEventListener("click", (event) => {
      const lane = event.target.closest(".lane");
      if (!lane || !pressed || Math.abs(event.clientX - pressed.x) > DRAG_PIXELS) return;
      const x = event.clientX - lane.getBoundingClientRect().left;
      if (lane.id === "overview") return this._show((x / this.width) * this.duration);
      this._emit("seek", { seconds: this.view.start + x / this.pixelsPerSecond });
    });
    this._root.addEventListener("wheel", (event) => {
      if (!event.target.closest(".lane")) return;
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        const x = event.clientX - this._mixBox.getBoundingClientRect().left;
        this.setZoom(this._zoom - event.deltaY / 1000, this.view.start + x / this.pixelsPerSecond);
        this._emit("zoom", {});
      } else if (event.deltaX || event.shiftKey) {
        event.preventDefault();
        this.mix.scroll = Math.max(0, this.mix.scroll + (event.deltaX || event.deltaY));
        this._follow(this.mix);
      }
    }, { passive: false });
  }

  /** Go to a position, and have it in the middle of what is on the screen. */
  _show(seconds) {
    this.mix.scroll = Math.max(0, seconds * this.pixelsPerSecond - this.width / 2);
    this._follow(this.mix);
    this._emit("seek", { seconds });
  }

  _emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
