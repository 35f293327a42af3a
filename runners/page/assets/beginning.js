// Plays what is made of a long sound while the rest is made, beside the picture of the clip.

import { Player } from "../editor/player.js";
import { SAMPLE_RATE, decode } from "../editor/sounds.js";

/** A video whose time counts from one of its seconds. */
const countFrom = (video, seconds) => new Proxy(video, {
  get(target, name) {
    const value = target[name];
    if (name === "currentTime" || name === "duration") return value - seconds;
    return typeof value === "function" ? value.bind(target) : value;
  },
  set(target, name, value) {
    target[name] = name === "currentTime" ? value + seconds : value;
    return true;
  },
});

/** The sound that is being made. The page names its pieces as they come, and the result at the end. */
export class Beginning {
  /**
   * @param {HTMLElement} section with a video, a button and an output.
   */
  constructor(section) {
    this._section = section;
    this._video = section.querySelector("video");
    this._button = section.querySelector("button");
    this._output = section.querySelector("output");
    this._player = null;
    this._button.addEventListener("click", () => this.toggle());
  }

  /** Whether there is something to hear. */
  get isShown() {
    return !this._section.hidden;
  }

  toggle() {
    this._player.toggle();
  }

  /**
   * Take what the page says.
   *
   * @param {string[]} addresses of all pieces so far, in order.
   * @param {number} startSeconds where in the clip the sound begins.
   */
  show(addresses, startSeconds) {
    if (addresses[0] !== this._addresses?.[0]) this._begin(startSeconds);
    const { _player: player } = this;
    for (const address of addresses.slice(this._addresses.length)) {
      this._heard = this._heard.then(() => this._append(player, address)).catch(() => {}); // the result has it too
    }
    this._addresses = addresses;
  }

  /** Be silent; a result's video goes on from here where one is given. */
  end(video) {
    const { _player: player } = this;
    this._player = this._addresses = null;
    this._section.hidden = true;
    if (!player) return;
    const { position, isPlaying } = player;
    if (!video || !position) {
      player.clear();
      return;
    }
    video.currentTime = position;
    if (!isPlaying) return;
    // The sound goes on until the video is heard.
    const goOn = () => {
      if (player.position) video.currentTime = player.position;
      player.clear();
    };
    video.addEventListener("playing", goOn, { once: true });
    video.play().catch(() => player.clear());
  }

  _begin(startSeconds) {
    this._player?.clear();
    const clip = document.querySelector("#clip video");
    this._video.hidden = !clip?.currentSrc;
    if (clip?.currentSrc) this._video.src = clip.currentSrc;
    this._addresses = [];
    this._samples = new Float32Array(0);
    this._heard = Promise.resolve(); // the pieces, one after another
    this._player = new Player(countFrom(this._video, startSeconds));
    this._player.addEventListener("state", () => this._tell());
  }

  async _append(player, address) {
    const response = await fetch(address);
    const piece = response.ok ? await decode(await response.blob()) : null;
    if (piece === null || player !== this._player) return;
    const joined = new Float32Array(this._samples.length + piece[0].length);
    joined.set(this._samples);
    joined.set(piece[0], this._samples.length);
    this._samples = joined;
    // How long it will be is not known: the playing waits at the end of what is there.
    player.setSound([joined], Infinity, joined.length / SAMPLE_RATE);
    this._section.hidden = false;
    this._tell();
  }

  _tell() {
    const { _player: player } = this;
    this._button.textContent = player.isPlaying ? "Pause" : "Play what is there";
    this._output.textContent = `${player.available.toFixed(1)} s are made`;
    if (player.isPlaying) this._follow(player);
  }

  /** Hold the picture to the sound. */
  _follow(player) {
    cancelAnimationFrame(this._frame);
    if (player !== this._player || !player.isPlaying) return;
    player.follow();
    this._frame = requestAnimationFrame(() => this._follow(player));
  }
}
