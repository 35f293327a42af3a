// A compressor that lowers one sound while another one is heard, by the service's settings.
//
// The level of the key is its squared peak over all channels, smoothed with one coefficient while it
// rises and another while it falls. Over the threshold the gain falls by the ratio; around it lies a
// soft knee, a cubic that has the slopes of both sides. foley/media/mix.py has the numbers.

const THRESHOLD = 0.01;
const KEY_GAIN = 4;
const RATIO = 20;
const ATTACK_MS = 10;
const KNEE = 2.82843;

/**
 * Return a sound as it is heard under another one.
 *
 * @param {Float32Array[]} sound its channels.
 * @param {Float32Array[]} key channels of the other one, as long.
 */
export function duck(sound, key, { depthDb, releaseMs, sampleRate }) {
  const share = 1 - 10 ** (-depthDb / 20);
  const attack = Math.min(1, 4000 / (ATTACK_MS * sampleRate));
  const release = Math.min(1, 4000 / (releaseMs * sampleRate));
  const threshold = Math.log(THRESHOLD);
  const kneeStart = Math.log(THRESHOLD / Math.sqrt(KNEE));
  const kneeStop = Math.log(THRESHOLD * Math.sqrt(KNEE));
  const loudest = (kneeStop - threshold) / RATIO + threshold;
  const ducked = sound.map((channel) => new Float32Array(channel.length));
  let level = 0;
  for (let n = 0; n < key[0].length; n++) {
    let peak = 0;
    for (const channel of key) peak = Math.max(peak, Math.abs(channel[n]));
    const power = (KEY_GAIN * peak) ** 2;
    level += (power - level) * (power > level ? attack : release);
    let gain = 1;
    if (level > 0) {
      const loudness = Math.log(level) / 2;
      if (loudness > kneeStart) {
        const wanted = loudness < kneeStop
          ? bend(loudness, kneeStart, kneeStop, kneeStart, loudest, 1, 1 / RATIO)
          : (loudness - threshold) / RATIO + threshold;
        gain = Math.exp(wanted - loudness);
      }
    }
    gain = gain * share + 1 - share;
    for (let index = 0; index < sound.length; index++) ducked[index][n] = sound[index][n] * gain;
  }
  return ducked;
}

/** The cubic through two points with a slope at each (Hermite). */
function bend(x, x0, x1, y0, y1, slope0, slope1) {
  const width = x1 - x0;
  const t = (x - x0) / width;
  const [t2, t3] = [t * t, t * t * t];
  return (2 * t3 - 3 * t2 + 1) * y0 + (t3 - 2 * t2 + t) * width * slope0
    + (3 * t2 - 2 * t3) * y1 + (t3 - t2) * width * slope1;
}
