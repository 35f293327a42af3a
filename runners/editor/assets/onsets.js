// Where sounds begin: rises of the energy of the higher frequencies.

const HOP_SECONDS = 0.005;
const LOOK_BACK = 4; // hops
const APART_SECONDS = 0.06;
const RISE_DB = 9;
const UNDER_LOUDEST_DB = 40;

/** The times of the onsets of a sound, in seconds, in order. */
export function findOnsets(channels, sampleRate) {
  const hop = Math.round(HOP_SECONDS * sampleRate);
  const levels = measureLevels(channels, hop);
  const floor = Math.max(...levels) - UNDER_LOUDEST_DB;
  const rise = (n) => {
    let before = 0;
    for (let k = 1; k <= LOOK_BACK; k++) before += Math.max(levels[n - k] ?? floor - RISE_DB, floor - RISE_DB) / LOOK_BACK;
    return Math.max(levels[n], floor - RISE_DB) - before;
  };
  const onsets = [];
  for (let n = 0; n < levels.length; n++) {
    if (levels[n] < floor || rise(n) < RISE_DB) continue;
    const seconds = (n * hop) / sampleRate;
    if (onsets.length && seconds - onsets[onsets.length - 1] < APART_SECONDS) continue;
    onsets.push(seconds);
  }
  return onsets;
}

/** The level of each hop in dB, of the differences of neighbours. */
function measureLevels(channels, hop) {
  const numHops = Math.floor(channels[0].length / hop);
  const levels = new Float32Array(Math.max(1, numHops)).fill(-200);
  for (let n = 0; n < numHops; n++) {
    let energy = 1e-20;
    for (const channel of channels) {
      for (let k = Math.max(1, n * hop); k < (n + 1) * hop; k++) energy += (channel[k] - channel[k - 1]) ** 2;
    }
    levels[n] = 10 * Math.log10(energy / hop);
  }
  return levels;
}
