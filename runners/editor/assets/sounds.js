// Samples: what takes sound like, and how they and the clip's own sound become the mix.
//
// The arithmetic is that of the service (foley/media/mix.py), so that what is heard here is what is
// downloaded. A sound is a list of one or two Float32Arrays at 48 kHz.

import { duck } from "./duck.js";
import { CROSSFADE_SECONDS, listAudible } from "./project.js";

export const SAMPLE_RATE = 48000;
export const MAX_PEAK_DBTP = -1;

const decoder = new OfflineAudioContext(1, 1, SAMPLE_RATE);

/** The samples of a file; null where the browser finds no sound in it. */
export async function decode(blob) {
  try {
    const buffer = await decoder.decodeAudioData(await blob.arrayBuffer());
    return Array.from({ length: buffer.numberOfChannels }, (_, index) => buffer.getChannelData(index));
  } catch {
    return null;
  }
}

export const factor = (decibels) => 10 ** (decibels / 20);
export const decibels = (peak) => 20 * Math.log10(peak);

/** Sounds by the id of their take: the files as they came, and their samples. */
export class Sounds {
  constructor() {
    this.files = new Map();
    this.samples = new Map();
    this.growing = new Map(); // by the id of a track: {samples, length}, a sound that is being made
  }

  async add(id, blob) {
    const samples = await decode(blob);
    if (samples === null) throw new Error("The browser cannot read the sound that the service made.");
    this.files.set(id, blob);
    this.samples.set(id, samples);
  }

  clear() {
    this.files.clear();
    this.samples.clear();
    this.growing.clear();
  }

  /** Append a piece to the sound that is being made for a track. */
  append(trackId, piece, numSamples) {
    const growing = this.growing.get(trackId) ?? { samples: new Float32Array(numSamples), length: 0 };
    const part = piece.subarray(0, Math.max(0, growing.samples.length - growing.length));
    growing.samples.set(part, growing.length);
    growing.length += part.length;
    this.growing.set(trackId, growing);
  }

  /**
   * What a track sounds like: its take, with the chosen takes of its spots laid over it. While a
   * sound is made for it, what is there of that one is heard in its place.
   */
  compose(track) {
    const growing = this.growing.get(track.id);
    const before = this._compose(track);
    if (!growing) return before;
    if (before === null) return [growing.samples];
    return before.map((channel) => {
      const composed = channel.slice();
      lay(composed, growing.samples, 0, growing.length / SAMPLE_RATE);
      return composed;
    });
  }

  _compose(track) {
    const base = this.samples.get(track.chosen);
    const spots = track.spots.filter((spot) => this.samples.has(spot.chosen));
    if (!base || !spots.length) return base ?? null;
    return base.map((channel, index) => {
      const composed = channel.slice();
      for (const spot of spots) {
        const take = this.samples.get(spot.chosen);
        lay(composed, take[Math.min(index, take.length - 1)], spot.start, spot.stop);
      }
      return composed;
    });
  }
}

/** Put the range of a sound into another one, with crossfades inside the range. */
function lay(target, source, startSeconds, stopSeconds) {
  const start = Math.round(startSeconds * SAMPLE_RATE);
  const stop = Math.min(Math.round(stopSeconds * SAMPLE_RATE), target.length, source.length);
  const fade = Math.min(Math.round(CROSSFADE_SECONDS * SAMPLE_RATE), Math.floor((stop - start) / 2));
  for (let n = start; n < stop; n++) {
    const edge = Math.min(start === 0 ? fade : n - start + 1, stop === target.length ? fade : stop - n);
    const share = edge >= fade ? 1 : edge / fade;
    target[n] += share * (source[n] - target[n]);
  }
}

/** The sum of the tracks that are heard, on two channels. */
export function sumTracks(project, sounds, numSamples) {
  const [left, right] = [new Float32Array(numSamples), new Float32Array(numSamples)];
  for (const track of listAudible(project)) {
    const sound = sounds.compose(track);
    if (sound === null) continue;
    const gain = factor(track.gain_db);
    add(left, sound[0], gain * Math.min(1, 1 - track.pan));
    add(right, sound[sound.length - 1], gain * Math.min(1, 1 + track.pan));
  }
  return [left, right];
}

function add(target, source, gain) {
  const length = Math.min(target.length, source.length);
  for (let n = 0; n < length; n++) target[n] += gain * source[n];
}

/** The clip's own sound on two channels, as the mix has it. */
export function placeOriginal(original, project, effect) {
  const { mode, gain_db, depth_db, release_ms } = project.original;
  const numSamples = effect[0].length;
  const own = toStereo(original).map((channel) => {
    const placed = new Float32Array(numSamples);
    add(placed, channel, factor(gain_db));
    return placed;
  });
  return mode === "duck" ? duck(own, effect, { depthDb: depth_db, releaseMs: release_ms, sampleRate: SAMPLE_RATE }) : own;
}

/** Two channels of any number, as ITU-R BS.775 mixes them down. */
export function toStereo(sound) {
  if (sound.length === 1) return [sound[0], sound[0]];
  if (sound.length < 6) return sound.slice(0, 2);
  const [left, right, centre, , backLeft, backRight] = sound;
  const share = Math.SQRT1_2;
  const scale = 1 / (1 + 2 * share);
  const down = (front, back) => front.map((value, n) => scale * (value + share * (centre[n] + back[n])));
  return [down(left, backLeft), down(right, backRight)];
}

/** A WAV file of 32-bit floating point. */
export function encodeWav(channels) {
  const numSamples = channels[0].length;
  const numBytes = numSamples * channels.length * 4;
  const view = new DataView(new ArrayBuffer(44 + numBytes));
  const text = (offset, letters) => [...letters].forEach((letter, n) => view.setUint8(offset + n, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + numBytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 3, true); // floating point
  view.setUint16(22, channels.length, true);
  view.setUint32(24, SAMPLE_RATE, true);
  view.setUint32(28, SAMPLE_RATE * channels.length * 4, true);
  view.setUint16(32, channels.length * 4, true);
  view.setUint16(34, 32, true);
  text(36, "data");
  view.setUint32(40, numBytes, true);
  const samples = new Float32Array(numSamples * channels.length);
  channels.forEach((channel, index) => {
    for (let n = 0; n < numSamples; n++) samples[n * channels.length + index] = channel[n];
  });
  new Uint8Array(view.buffer, 44).set(new Uint8Array(samples.buffer)); // browsers are little-endian
  return new Blob([view.buffer], { type: "audio/wav" });
}
