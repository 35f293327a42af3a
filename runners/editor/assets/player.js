// Plays the mix, with the picture beside it. The clock is that of the sound.

import { SAMPLE_RATE } from "./sounds.js";

const FADE_SECONDS = 0.005; // between two mixes, so that a change does not click
const MAX_DRIFT_SECONDS = 0.08;

/** The mix at a position, playing or not. */
export class Player extends EventTarget {
  constructor(picture) {
    super();
    this._picture = picture;
    this._buffer = null;
    this._position = 0; // while it does not play
    this._node = null;
    this.duration = 0;
    this.loop = null; // {start, stop} in seconds
  }

  get isPlaying() {
    return this._node !== null;
  }

  /** Seconds. */
  get position() {
    if (this._node === null) return this._position;
    const passed = this._from + Math.max(0, this._context.currentTime - this._startedAt);
    const loop = this._node.loop ? this.loop : null;
    if (loop === null || passed < loop.stop) return Math.min(passed, this.duration);
    return loop.start + ((passed - loop.start) % (loop.stop - loop.start));
  }

  /** Play these channels from now on, from where the playing is. */
  setSound(channels, duration) {
    this.duration = duration;
    const numSamples = Math.max(1, channels[0].length);
    this._buffer = new AudioBuffer({ length: numSamples, numberOfChannels: channels.length, sampleRate: SAMPLE_RATE });
    channels.forEach((channel, index) => this._buffer.copyToChannel(channel, index));
    if (this.isPlaying) this._start(this.position);
    else this._position = Math.min(this._position, duration);
  }

  setLoop(loop) {
    const position = this.position;
    this.loop = loop;
    if (!this.isPlaying) return;
    const isOutside = loop !== null && (position < loop.start || position >= loop.stop);
    this._start(isOutside ? loop.start : position);
  }

  async play() {
    if (this._buffer === null || !this.duration) return;
    this._context ??= new AudioContext({ sampleRate: SAMPLE_RATE });
    await this._context.resume();
    const { loop } = this;
    let from = this._position;
    if (loop !== null && (from < loop.start || from >= loop.stop)) from = loop.start;
    else if (from >= this.duration - 0.01) from = 0;
    this._start(from);
    this.dispatchEvent(new Event("state"));
  }

  pause() {
    if (!this.isPlaying) return;
    const { position } = this;
    this._stop();
    this._picture.pause();
    this._position = position;
    this._showPicture(position);
    this.dispatchEvent(new Event("state"));
  }

  toggle() {
    return this.isPlaying ? this.pause() : this.play();
  }

  seek(seconds) {
    const position = Math.min(Math.max(0, seconds), this.duration);
    if (this.isPlaying) this._start(position);
    else {
      this._position = position;
      this._showPicture(position);
    }
  }

  /** Hold the picture to the sound; called for each frame that is drawn. */
  follow() {
    if (!this.isPlaying) return;
    const picture = this._picture;
    const { position } = this;
    const end = Number.isFinite(picture.duration) ? picture.duration : 0;
    if (picture.readyState < 2 || picture.seeking || position >= end) return;
    if (Math.abs(picture.currentTime - position) > MAX_DRIFT_SECONDS) picture.currentTime = position;
    if (picture.paused) picture.play().catch(() => {});
  }

  _showPicture(seconds) {
    if (this._picture.readyState > 0) this._picture.currentTime = seconds;
  }

  _start(from) {
    this._stop();
    const context = this._context;
    const node = new AudioBufferSourceNode(context, { buffer: this._buffer });
    const fade = new GainNode(context, { gain: 0 });
    const now = context.currentTime;
    fade.gain.setValueAtTime(0, now);
    fade.gain.linearRampToValueAtTime(1, now + FADE_SECONDS);
    node.connect(fade).connect(context.destination);
    if (this.loop !== null) {
      node.loop = true;
      node.loopStart = this.loop.start;
      node.loopEnd = this.loop.stop;
    }
    node.onended = () => {
      if (this._node !== node) return;
      this._stop();
      this._position = this.duration;
      this._picture.pause();
      this.dispatchEvent(new Event("state"));
    };
    node.start(now, from);
    this._node = node;
    this._fade = fade;
    this._from = from;
    this._startedAt = now;
    this._showPicture(from);
  }

  _stop() {
    if (this._node === null) return;
    const now = this._context.currentTime;
    this._fade.gain.cancelScheduledValues(now);
    this._fade.gain.setValueAtTime(this._fade.gain.value, now);
    this._fade.gain.linearRampToValueAtTime(0, now + FADE_SECONDS);
    this._node.stop(now + FADE_SECONDS);
    this._node = null;
  }
}
