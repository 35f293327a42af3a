"""Speech that nobody asked for: it is measured, and other seeds are drawn."""

import io
import shutil
import subprocess
import threading
from typing import Any

import av
import numpy as np
import pytest
import torch

from foley import FoleyPipeline
from foley.errors import ParameterError
from foley.generation import Generation
from foley.request import GenerationRequest
from foley.speech import measure_speech
from foley.types import NoPicture
from tests.speech import babble
from tests.toys import toy_components

RATE = 48_000
SECONDS = 2.0


def effects(seed: int) -> np.ndarray:
    """Hits of a ringing thing over wind, 2 s."""
    generator = np.random.default_rng(seed)
    times = np.arange(int(RATE * SECONDS)) / RATE
    sound = np.cumsum(generator.normal(0, 1, len(times)))
    sound = 0.05 * np.diff(sound - np.convolve(sound, np.ones(200) / 200, "same"), prepend=0)
    for start in generator.uniform(0, SECONDS, 5):
        after = np.maximum(times - start, 0)
        tone = np.sin(2 * np.pi * generator.uniform(400, 5000) * after)
        sound += (times >= start) * tone * np.exp(-after * generator.uniform(10, 60))
    return sound.astype(np.float32)


def mix(effect: np.ndarray, voice: np.ndarray, voice_db: float) -> torch.Tensor:
    """An effect with a voice whose level is `voice_db` above its own."""

    def level(sound: np.ndarray) -> float:
        return float(np.sqrt((sound**2).mean()))

    gain = 10 ** (voice_db / 20) * level(effect) / level(voice)
    return torch.from_numpy(effect + gain * voice)[None]


def voice_of(seed: int) -> np.ndarray:
    return babble(SECONDS, seed, pitch_hz=90 + 17 * (seed % 10))


@pytest.mark.slow
def test_a_voice_as_loud_as_the_effects_is_found_and_effects_alone_are_none() -> None:
    heard = [measure_speech(mix(effects(i), voice_of(i), 0), RATE) for i in range(8)]
    assert all(seconds > 0 for seconds in heard), heard
    alone = [measure_speech(torch.from_numpy(effects(i))[None], RATE) for i in range(8)]
    assert alone == [0.0] * 8


def test_seconds_are_those_of_the_voice_wherever_the_channels_have_it() -> None:
    voice = torch.from_numpy(np.concatenate([np.zeros(RATE, np.float32), voice_of(3)]))
    stereo = torch.stack([voice, 0 * voice])
    for sound in (voice[None], stereo, 0.1 * stereo):
        assert measure_speech(sound, RATE) == pytest.approx(SECONDS, abs=0.4)
    assert measure_speech(torch.zeros(2, 100), RATE) == 0
    assert measure_speech(voice[None, : RATE + 4800], RATE) == 0  # 0.1 s of it


@pytest.mark.slow
def test_threads_do_not_disturb_each_other() -> None:
    sound = torch.from_numpy(voice_of(1))[None]
    expected = measure_speech(sound, RATE)
    heard: list[float] = []
    threads = [
        threading.Thread(target=lambda: heard.append(measure_speech(sound, RATE))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == [expected] * 4


class BabblingPipeline(FoleyPipeline):
    """A model that speaks instead for about half of all seeds."""

    level = 0.0  # of the latents, above which it speaks

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        waveform = super().decode(latents)
        if latents.mean() > self.level:
            voice = babble(waveform.shape[-1] / RATE + 0.01, int(latents.abs().sum()) % 100)
            waveform = torch.from_numpy(voice[: waveform.shape[-1]])[None, None]
        return waveform


@pytest.fixture(scope="module")
def pipeline() -> FoleyPipeline:
    return BabblingPipeline(toy_components(), torch.device("cpu"))


def make(pipeline: FoleyPipeline, **options: Any) -> Generation:
    asked = {"num_inference_steps": 1, "guidance_scale": 1.0, "duration_seconds": 1, **options}
    if "layers" not in asked:
        asked["prompt"] = "rain"
    request = GenerationRequest.parse(**asked)
    return pipeline.generate(NoPicture(duration_seconds=1), request)


@pytest.fixture(scope="module")
def spoken(pipeline: FoleyPipeline) -> list[bool]:
    """Whether the model speaks, for seeds from 0."""
    found = []
    for seed in range(0, 24, 8):
        made = make(pipeline, seed=seed, num_variations=8, avoid_speech="report")
        found += [seconds > 0 for seconds in made.speech_seconds]
    assert {True, False} == set(found)
    return found


@pytest.mark.slow
def test_report_measures_each_sound_and_changes_none(
    pipeline: FoleyPipeline, spoken: list[bool]
) -> None:
    plain = make(pipeline, seed=0, num_variations=3)
    assert plain.speech_seconds == ()
    reported = make(pipeline, seed=0, num_variations=3, avoid_speech="report")
    assert torch.equal(plain.waveforms, reported.waveforms)
    assert [seconds > 0 for seconds in reported.speech_seconds] == spoken[:3]
    assert reported[1].speech_seconds == reported.speech_seconds[1:2]
    assert reported.notices == plain.notices


@pytest.mark.slow
def test_retry_draws_other_seeds_until_there_is_no_speech(
    pipeline: FoleyPipeline, spoken: list[bool]
) -> None:
    first = next(i for i in range(20) if spoken[i] and not all(spoken[i : i + 4]))
    expected = next(seed for seed in range(first, 24) if not spoken[seed])
    made = make(pipeline, seed=first, avoid_speech="retry", max_retries=4)
    assert made.seeds == (expected,)
    assert made.speech_seconds == (0.0,)
    assert torch.equal(made.waveforms, make(pipeline, seed=expected).waveforms)
    (notice,) = made.notices
    assert f"seed {expected} has the least speech" in notice
    silent = spoken.index(False)
    once = make(pipeline, seed=silent, avoid_speech="retry")
    assert (once.seeds, once.notices) == ((silent,), ())


@pytest.mark.slow
def test_after_the_last_retry_the_cleanest_is_returned(
    pipeline: FoleyPipeline, spoken: list[bool]
) -> None:
    made = make(pipeline, seed=0, num_variations=8, avoid_speech="retry", max_retries=2)
    by_seed = dict(enumerate(spoken))
    for index, (seed, seconds) in enumerate(zip(made.seeds, made.speech_seconds, strict=True)):
        assert seed in (index, index + 8, index + 16)
        assert by_seed[seed] == (seconds > 0)
        attempts = [by_seed[index + 8 * attempt] for attempt in range(3)]
        assert (seconds > 0) == all(attempts)
        alone = make(pipeline, seed=seed).waveforms[0]
        assert (made.waveforms[index] - alone).abs().max() < 1e-4  # 2e-6: another order of sums


@pytest.mark.slow
def test_layers_are_measured_each_and_their_mix(
    pipeline: FoleyPipeline, spoken: list[bool]
) -> None:
    speaks, silent = spoken.index(True), spoken.index(False)
    layers = [{"prompt": "rain", "seed": speaks}, {"prompt": "rain", "seed": silent}]
    made = make(pipeline, layers=layers, avoid_speech="retry", max_retries=1)
    assert made.layer_seeds == (speaks, silent)  # given ones stay
    assert [seconds > 0 for seconds in made.layer_speech_seconds] == [True, False]
    assert len(made.speech_seconds) == 1


@pytest.mark.slow
def test_a_long_sound_is_measured_piece_by_piece(
    pipeline: FoleyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "level", -np.inf)
    request = GenerationRequest.parse(
        prompt="rain",
        duration_seconds=16,
        seed=1,
        num_inference_steps=1,
        guidance_scale=1,
        avoid_speech="report",
    )
    (seconds,) = pipeline.generate(NoPicture(duration_seconds=16), request).speech_seconds
    assert 10 < seconds < 17  # both of its pieces of 8 s


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_retries": 3}, "max_retries: cannot be combined with avoid_speech off"),
        ({"max_retries": 3, "avoid_speech": "report"}, "with avoid_speech report"),
        ({"max_retries": 9, "avoid_speech": "retry"}, "max_retries: .* 8"),
        ({"avoid_speech": "never"}, "avoid_speech"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        GenerationRequest.parse(**options)


SENTENCES = (
    "Hello there, how are you today?",
    "The quick brown fox jumps over the lazy dog.",
    "We will meet again at nine in the morning.",
    "Please close the door behind you when you leave.",
)
VOICES = ("en-us+m3", "en-us+f2", "en-gb", "de+f4", "fr+m1")


def speak(seed: int) -> np.ndarray:
    """Two seconds of a sentence by eSpeak NG, from its first sound on."""
    command = ["espeak-ng", "-v", VOICES[seed % len(VOICES)], "-s", str(150 + 10 * (seed % 4))]
    spoken = subprocess.run(
        [*command, "--stdout", SENTENCES[seed % len(SENTENCES)]], capture_output=True, check=True
    )
    with av.open(io.BytesIO(spoken.stdout)) as reader:
        resampler = av.AudioResampler("flt", "mono", RATE)
        parts = [part for frame in reader.decode(audio=0) for part in resampler.resample(frame)]
        parts += resampler.resample(None)
    voice = np.concatenate([part.to_ndarray()[0] for part in parts])
    first = int(np.argmax(np.abs(voice) > 0.01))
    return np.resize(voice[first:], int(RATE * SECONDS)).astype(np.float32)


def make_sounds_of_tiny() -> list[torch.Tensor]:
    """Return eight sounds of each of its prompts, float32 [1, S] each."""
    tiny = FoleyPipeline.from_preset("tiny", "cpu")
    return [
        sound.waveforms[0]
        for number, prompt in enumerate(tiny.preset.prompts)
        for sound in tiny(None, prompt, duration_seconds=SECONDS, num_variations=8, seed=8 * number)
    ]


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="eSpeak NG is not installed")
def test_speech_among_the_sounds_of_tiny_is_found_and_they_are_none_themselves() -> None:
    sounds = make_sounds_of_tiny()
    false = sum(measure_speech(sound, RATE) > 0 for sound in sounds)
    print(f"{false} of {len(sounds)} sounds have speech that is none")
    found = {}
    for voice_db in (6, 0, -3, -6, -9, -12):
        mixed = [mix(sound[0].numpy(), speak(n), voice_db) for n, sound in enumerate(sounds)]
        found[voice_db] = sum(measure_speech(sound, RATE) > 0 for sound in mixed) / len(sounds)
        print(f"voice at {voice_db} dB: found in {found[voice_db]:.1%}", flush=True)
    assert false <= 0.01 * len(sounds)
    assert found[0] >= 0.95


@pytest.mark.soak
def test_the_sounds_of_tiny_are_no_speech_and_a_voice_among_them_is_found() -> None:
    sounds = make_sounds_of_tiny()
    false = sum(measure_speech(sound, RATE) > 0 for sound in sounds)
    assert false <= 0.01 * len(sounds)
    found = [
        measure_speech(mix(sound[0].numpy(), voice_of(number), 0), RATE) > 0
        for number, sound in enumerate(sounds)
    ]
    assert sum(found) >= 0.95 * len(found)
