// Plays the mix, with the picture beside it. The clock is that of the sound.

import { SAMPLE_RATE } from "./sounds.js";

const FADE_SECONDS = 0.005; // between two mixes, so that a change does not click
// What is to begin at a sample is planned before its time. A change of the mix has more of it.
const LEAD_SECONDS = 0.02;
const CHANGE_LEAD_SECONDS = 0.1;
const MAX_DRIFT_SECONDS = 0.08;
const REST_MS = 250; // after the last sound, until the loudspeakers are let go

const toSample = (seconds) => Math.round(seconds * SAMPLE_RATE) / SAMPLE_RATE;

/**
 * The mix at a position, playing or not. It may be a sound of which only the beginning is there.
 * Events: "state" when it begins or ends to play, "move" when it is elsewhere or plays on.
 */
export class Player extends EventTarget {
  constructor(picture) {
    super();
    this._picture = picture;
    this._buffer = null;
    this._position = 0; // while it does not play
    this._node = null;
    this.duration = 0;
    this.available = 0; // seconds of the sound that are there
    this.isWaiting = false; // plays on as soon as there is more
    this.loop = null; // {start, stop} in seconds
  }

  get isPlaying() {
    return this._node !== null || this.isWaiting;
  }

  /** Seconds. */
  get position() {
    return this._node === null ? this._position : this._find(this._context.currentTime);
  }

  /** The position at a time of the context, while it plays. */
  _find(time) {
    const passed = Math.max(this._least, this._from + time - this._startedAt);
    const loop = this._node.loop ? this.loop : null;
    if (loop === null || passed < loop.stop) return Math.min(passed, this._end);
    return loop.start + ((passed - loop.start) % (loop.stop - loop.start));
  }

  /**
   * Play these channels from now on, from where the playing is.
   *
   * @param {Float32Array[]} channels of the whole sound.
   * @param {number} duration in seconds.
   * @param {number} available seconds from the start that are made; the playing waits at their end.
   */
  setSound(channels, duration, available = duration) {
    this.duration = duration;
    this.available = Math.min(available, duration);
    const isWhole = this.available === duration;
    const numSamples = Math.max(1, isWhole ? channels[0].length : Math.round(this.available * SAMPLE_RATE));
    this._buffer = new AudioBuffer({ length: numSamples, numberOfChannels: channels.length, sampleRate: SAMPLE_RATE });
    channels.forEach((channel, index) => this._buffer.copyToChannel(channel.subarray(0, numSamples), index));
    if (this.isPlaying) this._goOn();
    else this._position = Math.min(this._position, duration);
    this._tell("move");
  }

  /** Have nothing to play, and be at the start. */
  clear() {
    this.pause();
    Object.assign(this, { _buffer: null, _position: 0, duration: 0, available: 0 });
    this._tell("move");
  }

  setLoop(loop) {
    const position = this.position;
    this.loop = loop;
    if (!this.isPlaying) return;
    const isOutside = loop !== null && (position < loop.start || position >= loop.stop);
    this._goOn(isOutside ? loop.start : undefined);
  }

  async play() {
    if (this._buffer === null || !this.duration) return;
    this._context ??= new AudioContext({ sampleRate: SAMPLE_RATE });
    await this._context.resume();
    const { loop } = this;
    let from = this._position;
    if (loop !== null && (from < loop.start || from >= loop.stop)) from = loop.start;
    else if (from >= this.duration - 0.01) from = 0;
    this._goOn(from);
    this._tell("state");
  }

  pause() {
    if (!this.isPlaying) return;
    const { position } = this;
    this._stop();
    this.isWaiting = false;
    this._picture.pause();
    this._position = position;
    this._showPicture(position);
    this._rest();
    this._tell("state");
  }

  toggle() {
    return this.isPlaying ? this.pause() : this.play();
  }

  seek(seconds) {
    const position = Math.min(Math.max(0, seconds), this.duration);
    if (this.isPlaying) this._goOn(position);
    else {
      this._position = position;
      this._showPicture(position);
      this._tell("move");
    }
  }

  /** Hold the picture to the sound; called for each frame that is drawn. */
  follow() {
    if (this._node === null) return;
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

  /** Play from a position, or from where the playing is; wait where the sound has not come yet. */
  _goOn(position) {
    const isChange = position === undefined && this._node !== null;
    let time = this._context.currentTime + (isChange ? CHANGE_LEAD_SECONDS : LEAD_SECONDS);
    // A fade that ends at this time would be taken back with what is planned after it.
    if (this._node !== null) time = Math.max(time, this._startedAt + FADE_SECONDS + 1 / SAMPLE_RATE);
    time = toSample(time);
    // Both sounds are on one grid of samples: where they are equal, nothing is heard of the change.
    const from = toSample(position ?? (isChange ? this._find(time) : this._position));
    this._stop(time);
    this.isWaiting = from >= this.available && this.available < this.duration;
    if (this.isWaiting) this._wait(from);
    else this._start(time, from);
    this._least = isChange ? 0 : from; // until a change the sound before it goes on
    this._tell("move");
  }

  _tell(name) {
    this.dispatchEvent(new Event(name));
  }

  _wait(position) {
    this._position = position;
    this._picture.pause();
    this._showPicture(position);
    this._rest();
  }

  /** Let the loudspeakers go: silence takes time of the cores too, which a model may need. */
  _rest() {
    clearTimeout(this._restTimer);
    this._restTimer = setTimeout(() => { if (this._node === null) this._context.suspend(); }, REST_MS);
  }

  _start(time, from) {
    const context = this._context;
    clearTimeout(this._restTimer);
    context.resume();
    const node = new AudioBufferSourceNode(context, { buffer: this._buffer });
    const fade = new GainNode(context, { gain: 0 });
    fade.gain.setValueAtTime(0, time);
    fade.gain.linearRampToValueAtTime(1, time + FADE_SECONDS);
    node.connect(fade).connect(context.destination);
    if (this.loop !== null && this.loop.stop <= this.available) {
      node.loop = true;
      node.loopStart = this.loop.start;
      node.loopEnd = this.loop.stop;
    }
    node.onended = () => {
      if (this._node !== node) return;
      this._node = null;
      this.isWaiting = this.available < this.duration;
      if (this.isWaiting) this._wait(this.available);
      else {
        this._position = this.duration;
        this._picture.pause();
        this._rest();
        this._tell("state");
      }
    };
    node.start(time, from);
    this._node = node;
    this._fade = fade;
    this._from = from;
    this._startedAt = time;
    this._end = this.available;
    // A picture that is where the sound is need not be sought, which would halt it.
    if (Math.abs(this._picture.currentTime - from) > MAX_DRIFT_SECONDS) this._showPicture(from);
  }

  _stop(time = this._context?.currentTime) {
    if (this._node === null) return;
    const { gain } = this._fade;
    const reached = Math.min(1, Math.max(0, (time - this._startedAt) / FADE_SECONDS));
    gain.cancelScheduledValues(time);
    gain.setValueAtTime(reached, time);
    gain.linearRampToValueAtTime(0, time + FADE_SECONDS);
    this._node.stop(time + FADE_SECONDS);
    this._node = null;
  }
}
