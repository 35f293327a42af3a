// A worker that measures a sound: integrated loudness, true peak, and where onsets are.

import { findOnsets } from "./onsets.js";
import { measureLoudness, measureTruePeak } from "./meter.js";

self.onmessage = ({ data: { id, channels, sampleRate } }) => {
  const lufs = measureLoudness(channels, sampleRate);
  const peak = measureTruePeak(channels);
  self.postMessage({ id, lufs, peak, onsets: findOnsets(channels, sampleRate) });
};
