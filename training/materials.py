"""Modal models of the materials, and how force and size change their sound."""

# M modes of one hit

from dataclasses import dataclass

import numpy as np

MATERIALS = ("wood", "metal", "glass", "plastic", "stone", "skin", "water")
BURST = len(MATERIALS)  # a bang with a flash of light, which belongs to no material
RUBBER = BURST + 1  # no training of the model hears it; an adapter is shown to learn it
NUM_MODES = 12
MAX_HIT_SECONDS = 0.9
LOUDNESS_SECONDS = 0.08


@dataclass(frozen=True, kw_only=True)
class Material:
    """The sound of an object of this material.

    Attributes:
        low_hz, high_hz: lowest mode of the largest and of the smallest object.
        ratios: frequencies of the modes relative to the lowest.
        decay_seconds: range of the lowest mode's decay to 1 / e.
        damping: higher modes decay faster, by ratio ** -damping.
        tilt: exponential fall of the modes' amplitudes with their number.
        noise: range of the contact noise's peak relative to the modes.
        noise_hz: centre of the contact noise.
        noise_seconds: decay of the contact noise to 1 / e.
        chirp: relative rise of the frequencies per second (bubbles); below 0 a fall.
        attack_seconds: of the modes.
    """

    low_hz: float
    high_hz: float
    ratios: tuple[float, ...]
    decay_seconds: tuple[float, float]
    damping: float
    tilt: float
    noise: tuple[float, float]
    noise_hz: float
    noise_seconds: float
    chirp: float = 0.0
    attack_seconds: float = 0.0004


TABLE: tuple[Material, ...] = (
    Material(  # wood: few, quickly damped modes of a bar
        low_hz=190,
        high_hz=800,
        ratios=(1, 2.57, 3.9, 4.95, 6.4, 7.9, 9.6, 11.5, 13.3),
        decay_seconds=(0.035, 0.06),
        damping=0.55,
        tilt=0.45,
        noise=(0.15, 0.35),
        noise_hz=1800,
        noise_seconds=0.004,
    ),
    Material(  # metal: many long inharmonic modes
        low_hz=380,
        high_hz=1500,
        ratios=(1, 1.51, 2.76, 3.37, 4.1, 5.40, 6.22, 7.3, 8.93, 10.1, 11.8, 13.3),
        decay_seconds=(0.22, 0.42),
        damping=0.25,
        tilt=0.16,
        noise=(0.1, 0.25),
        noise_hz=6000,
        noise_seconds=0.003,
    ),
    Material(  # glass: high, sparse, clear
        low_hz=1700,
        high_hz=4200,
        ratios=(1, 2.32, 3.1, 4.25),
        decay_seconds=(0.07, 0.15),
        damping=0.4,
        tilt=0.5,
        noise=(0.1, 0.25),
        noise_hz=9000,
        noise_seconds=0.002,
    ),
    Material(  # plastic: dull, hollow, very short
        low_hz=320,
        high_hz=1000,
        ratios=(1, 1.45, 2.1, 2.7, 3.3),
        decay_seconds=(0.009, 0.016),
        damping=0.2,
        tilt=0.5,
        noise=(0.25, 0.5),
        noise_hz=1300,
        noise_seconds=0.006,
    ),
    Material(  # stone: a hard, dense, high click
        low_hz=1300,
        high_hz=2800,
        ratios=(1, 1.2, 1.47, 1.72, 2.05, 2.4, 2.9, 3.4, 4.0, 4.6),
        decay_seconds=(0.010, 0.020),  # quality factors of 60 to 120 at 2 kHz, like rocks
        damping=0.3,
        tilt=0.1,
        noise=(0.5, 0.9),
        noise_hz=4500,
        noise_seconds=0.004,
    ),
    Material(  # skin: a membrane's low modes
        low_hz=65,
        high_hz=170,
        ratios=(1, 1.59, 2.14, 2.30, 2.65, 2.92, 3.5, 4.06),
        decay_seconds=(0.09, 0.17),
        damping=0.7,
        tilt=0.4,
        noise=(0.15, 0.35),
        noise_hz=700,
        noise_seconds=0.008,
        attack_seconds=0.001,
    ),
    Material(  # water: bubbles that rise in pitch
        low_hz=480,
        high_hz=1400,
        ratios=(1, 1.37, 1.9),
        decay_seconds=(0.03, 0.055),
        damping=0.5,
        tilt=0.7,
        noise=(0.08, 0.2),
        noise_hz=3500,
        noise_seconds=0.012,
        chirp=9.0,
        attack_seconds=0.002,
    ),
    Material(  # burst: a bang, mostly noise
        low_hz=50,
        high_hz=90,
        ratios=(1, 1.9, 2.8),
        decay_seconds=(0.08, 0.14),
        damping=0.3,
        tilt=0.5,
        noise=(1.2, 2.0),
        noise_hz=900,
        noise_seconds=0.06,
        attack_seconds=0.001,
    ),
    Material(  # rubber: a soft, low, harmonic tone that sags in pitch, without a click
        low_hz=150,
        high_hz=420,
        ratios=(1, 2, 3, 4),
        decay_seconds=(0.07, 0.11),
        damping=0.3,
        tilt=0.35,
        noise=(0.0, 0.03),
        noise_hz=500,
        noise_seconds=0.01,
        chirp=-8.0,
        attack_seconds=0.006,
    ),
)


@dataclass(frozen=True)
class Voice:
    """The modes of one object, which are the same for every hit.

    Attributes:
        material: index in `TABLE`.
        size: 0 smallest .. 1 largest.
        hz: [M].
        decay_rates: [M], 1 / s.
        gains: [M], 0 for unused modes.
        noise: peak of the contact noise relative to the modes.
    """

    material: int
    size: float
    hz: np.ndarray
    decay_rates: np.ndarray
    gains: np.ndarray
    noise: float


def draw_voice(rng: np.random.Generator, material: int, size: float) -> Voice:
    """Draw the voice of an object; its size determines the pitch.

    Args:
        rng: of the details.
        material: index in `TABLE`.
        size: 0 smallest to 1 largest.
    """
    spec = TABLE[material]
    base_hz = spec.low_hz * (spec.high_hz / spec.low_hz) ** (1 - size) * rng.uniform(0.93, 1.07)
    count = len(spec.ratios)
    ratios = np.array(spec.ratios) * rng.uniform(0.97, 1.03, count)
    ratios[0] = 1.0
    decay = rng.uniform(*spec.decay_seconds) * (0.75 + 0.5 * size)
    hz, rates, gains = np.zeros(NUM_MODES), np.ones(NUM_MODES), np.zeros(NUM_MODES)
    hz[:count] = base_hz * ratios
    rates[:count] = ratios**spec.damping / decay
    gains[:count] = np.exp(-spec.tilt * np.arange(count)) * rng.uniform(0.6, 1.3, count)
    gains[hz > 19_000] = 0.0
    return Voice(material, size, hz, rates, gains, rng.uniform(*spec.noise))


def hit_level(force: float) -> float:
    """The RMS of a hit over `LOUDNESS_SECONDS`, which is the same for every material.

    The range is 15 dB. The ear sums energy over about this time, and a click has a tenth of the
    energy of a ringing object with the same peak. With equal peaks, materials would differ in
    loudness as much as forces do.

    Args:
        force: 0.06 to 1.
    """
    return 0.15 * force**0.6


def draw_hit_gains(voice: Voice, force: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the gains [M] of one hit; a harder hit excites the higher modes more.

    Args:
        voice: of the object.
        force: 0 to 1.
        rng: of the details.
    """
    tilt = 0.3 * (1 - force) * np.arange(NUM_MODES)
    gains: np.ndarray = voice.gains * np.exp(-tilt) * rng.uniform(0.8, 1.2, NUM_MODES)
    return gains
