// Loudness and true peak of a sound at 48 kHz. Source: ITU-R BS.1770-5 and EBU Tech 3341.

const SHELF = { b: [1.53512485958697, -2.69169618940638, 1.19839281085285], a: [-1.69065929318241, 0.73248077421585] };
const HIGH_PASS = { b: [1, -2, 1], a: [-1.99004745483398, 0.99007225036621] };
const GATE_LUFS = -70;
const STEPS = 4; // a block of 400 ms has four steps of 100 ms
const OVERSAMPLING = 4;
const HALF_TAPS = 24;

/** The integrated loudness of two channels in LUFS; null under -70, and for less than 0.4 s. */
export function measureLoudness(channels, sampleRate) {
  const step = Math.round(sampleRate / 10);
  const numSteps = Math.floor(channels[0].length / step);
  const energies = new Float64Array(numSteps);
  for (const channel of channels) addEnergies(channel, step, energies);
  const blocks = [];
  for (let n = STEPS; n <= numSteps; n++) {
    let sum = 0;
    for (let k = n - STEPS; k < n; k++) sum += energies[k];
    blocks.push(sum / (STEPS * step));
  }
  const loudness = (energy) => -0.691 + 10 * Math.log10(energy);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const heard = blocks.filter((energy) => loudness(energy) > GATE_LUFS);
  if (!heard.length) return null;
  const gate = loudness(mean(heard)) - 10;
  return loudness(mean(heard.filter((energy) => loudness(energy) > gate)));
}

/** Add the energy of each step of a channel, after the K weighting. */
function addEnergies(channel, step, energies) {
  let [s1, s2, h1, h2] = [0, 0, 0, 0];
  for (let n = 0; n < energies.length * step; n++) {
    const x = channel[n];
    const shelved = SHELF.b[0] * x + s1;
    s1 = SHELF.b[1] * x - SHELF.a[0] * shelved + s2;
    s2 = SHELF.b[2] * x - SHELF.a[1] * shelved;
    const heard = HIGH_PASS.b[0] * shelved + h1;
    h1 = HIGH_PASS.b[1] * shelved - HIGH_PASS.a[0] * heard + h2;
    h2 = HIGH_PASS.b[2] * shelved - HIGH_PASS.a[1] * heard;
    energies[Math.floor(n / step)] += heard * heard;
  }
}

/** The highest level at and between the samples of all channels; 1 is full scale. */
export function measureTruePeak(channels) {
  let peak = 0;
  for (const channel of channels) for (const value of channel) peak = Math.max(peak, Math.abs(value));
  const least = peak / 3; // between quieter samples the level is lower than the peak
  const filters = Array.from({ length: OVERSAMPLING - 1 }, (_, index) => makeFilter((index + 1) / OVERSAMPLING));
  for (const channel of channels) {
    for (let n = 0; n < channel.length; n++) {
      if (Math.abs(channel[n]) < least && Math.abs(channel[n + 1] ?? 0) < least) continue;
      for (const filter of filters) {
        let value = 0;
        for (let k = 0; k < filter.length; k++) value += filter[k] * (channel[n + k - HALF_TAPS + 1] ?? 0);
        peak = Math.max(peak, Math.abs(value));
      }
    }
  }
  return peak;
}

/** A windowed sinc that gives the value at a part of the way from one sample to the next. */
function makeFilter(part) {
  return Float64Array.from({ length: 2 * HALF_TAPS }, (_, k) => {
    const x = k - HALF_TAPS + 1 - part;
    const window = 0.5 + 0.5 * Math.cos((Math.PI * x) / (HALF_TAPS + 0.5));
    return (window * Math.sin(Math.PI * x)) / (Math.PI * x);
  });
}
