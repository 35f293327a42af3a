"""The fixed analysis that stands in for an encoder."""

import torch

from foley.models.analysis import ACTIVE, HOP, LATENT_DIM, Analysis, append_noise
from training import clips, judge
from training.train_vae import compute_spectra, level_errors, spectral_distance


def test_latents_are_at_fifty_hertz_and_keep_the_variance() -> None:
    sounds = clips.make_batch(1, 0, 4, 2.0).waveform()
    analysis = Analysis()
    assert analysis.fit([sounds]) > 0.97
    active = analysis(sounds)
    assert active.shape == (4, ACTIVE, sounds.shape[1] // HOP)
    # measured over channels: 0.97 to 1.03; the scale is set so that the mean is 1
    assert 0.8 < float(active.var((0, 2)).mean()) < 1.2


def test_free_channels_hold_unit_noise() -> None:
    latents = append_noise(torch.zeros(2, ACTIVE, 400), torch.Generator().manual_seed(0))
    assert latents.shape == (2, LATENT_DIM, 400)
    assert abs(float(latents[:, ACTIVE:].std()) - 1) < 0.02


def test_a_click_lands_in_its_own_frame() -> None:
    analysis = Analysis()
    sound = torch.zeros(1, 50 * HOP)
    sound[0, 20 * HOP + HOP // 2] = 1.0
    energy = analysis.features(sound)[0, -192:].sum(0)
    assert int(energy.argmax()) == 20


def test_distance_of_a_sound_to_itself_is_least() -> None:
    sound = clips.make_batch(1, 0, 2, 1.0).waveform()
    level = [s.square().mean((1, 2)).sqrt() + 5e-4 for s in compute_spectra(sound)]
    own = spectral_distance(compute_spectra(sound), compute_spectra(sound), level)
    other = spectral_distance(compute_spectra(sound), compute_spectra(sound.roll(1, 0)), level)
    assert (own < 0.01).all()
    assert (other > 10 * own).all()


def test_a_tone_must_keep_its_level_and_noise_its_grain_may_change() -> None:
    seconds = torch.arange(64 * HOP) / 48_000
    tone = 0.1 * torch.sin(2 * torch.pi * 3000 * seconds)[None]
    noise, other = 0.1 * torch.randn(2, 1, 64 * HOP, generator=torch.Generator().manual_seed(0))
    assert level_errors(compute_spectra(tone), compute_spectra(tone)) == 0
    halved = float(level_errors(compute_spectra(tone), compute_spectra(tone / 2)))
    assert abs(halved - 0.602) < 0.01  # decades of power: 6 dB
    assert level_errors(compute_spectra(noise), compute_spectra(other)) < 0.08  # measured: 0.057


def test_frechet_distance_is_zero_for_equal_sets() -> None:
    values = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    assert abs(judge.frechet_distance(values, values)) < 1e-6
    assert judge.frechet_distance(values, values + 1) > 7.5
