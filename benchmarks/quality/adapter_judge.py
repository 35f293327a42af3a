"""What an adapter changes in the sounds of held-out clips: what it was taught, or more."""

# B clips, E hits of all clips, S samples

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.adapter_clips import ACTIONS, SECONDS, TESTING_SEED, draw_clip
from benchmarks.quality.held_out import HELD_OUT_SEED, make_frames
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import VideoFrames
from training import clips, judge, labels, text
from training.materials import MATERIALS, RUBBER
from training.scene import HELD_OUT
from training.train_vae import fit_judge

# The judge's classes: the seven materials, then rubber.
_TAUGHT = len(MATERIALS)
_JUDGE_SEED = 4545
_APART_SECONDS = 0.05
_SHARE_ACTIONS = ("bounce", "tap", "strike")


@dataclass(frozen=True, kw_only=True)
class TestClip:
    """A clip with what is asked for, and what should be heard.

    Attributes:
        frames: at the sizes of a preset's encoders.
        prompt: what is asked for.
        wanted: index of the judge's class that should be heard; None if nothing is asked for.
        events: seconds of the contacts, at least 50 ms apart.
        unscored: seconds at which things begin to rub.
        is_rattle: whether its action is the one that was held out.
    """

    frames: VideoFrames
    prompt: str
    wanted: int | None
    events: list[float]
    unscored: list[float]
    is_rattle: bool = False


def train_judge(device: torch.device, steps: int = 900, count: int = 12) -> judge.MaterialJudge:
    """Return a classifier of the seven materials and rubber, in known actions and the new one.

    Args:
        device: on which it is trained and used.
        steps: of its training.
        count: clips of each material and action.
    """
    windows, targets = [], []
    for wanted, material in enumerate((*range(len(MATERIALS)), RUBBER)):
        for action in (*_SHARE_ACTIONS, HELD_OUT):
            batch = clips.make_batch(
                _JUDGE_SEED, 0, count, SECONDS, action=action, quiet=True, material=material
            ).to(device)
            sounds = batch.waveform()
            for clip in range(count):
                events = list_events(batch, clip)
                windows.append(cut(sounds[clip], events))
                targets.append(torch.full((len(events),), wanted, device=device))
    torch.manual_seed(0)
    model = judge.MaterialJudge(num_materials=_TAUGHT + 1).to(device)
    fit_judge(model, torch.cat(windows), torch.cat(targets), steps)
    return model


def load_judge(path: Path, device: torch.device) -> judge.MaterialJudge:
    """Return the classifier of a file, which is made first where it is missing.

    Args:
        path: of the file.
        device: on which it is trained and used.
    """
    if not path.is_file():
        torch.save(train_judge(device).state_dict(), path)
    model = judge.MaterialJudge(num_materials=_TAUGHT + 1).to(device)
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return model.eval()


def list_events(batch: clips.Batch, clip: int) -> list[float]:
    """Return the contacts of a clip in seconds, without those soon after another."""
    return judge.merge_close_events(batch.hits["seconds"][batch.owner == clip].tolist())


def cut(sound: Tensor, events: Sequence[float]) -> Tensor:
    """Return the windows [E, S'] around the events of a sound [S]."""
    times = torch.tensor(events, dtype=torch.float32, device=sound.device)
    owner = torch.zeros(len(events), dtype=torch.long, device=sound.device)
    return judge.cut_hit_windows(sound[None], owner, times)


def draw_taught(pipeline: FoleyPipeline, count: int) -> list[TestClip]:
    """Return unseen clips of what the adapter was taught, asked for by name.

    Args:
        pipeline: whose encoders determine the frames' sizes.
        count: number of clips.
    """
    drawn = [draw_clip(TESTING_SEED, index) for index in range(count)]
    return [
        _describe(pipeline, batch, batch.prompts[0], _TAUGHT, ACTIONS[i % len(ACTIONS)] == HELD_OUT)
        for i, batch in enumerate(drawn)
    ]


def draw_others(pipeline: FoleyPipeline, count: int, first: int = 700) -> list[TestClip]:
    """Return held-out clips of known actions; each prompt names another material than the clip's.

    Args:
        pipeline: whose encoders determine the frames' sizes.
        count: number of clips.
        first: number of the generator's first clip.
    """
    rng = np.random.default_rng(first)
    made = []
    for index in range(count):
        batch = clips.make_batch(
            HELD_OUT_SEED,
            first + index,
            1,
            SECONDS,
            action=_SHARE_ACTIONS[index % len(_SHARE_ACTIONS)],
            quiet=True,
        )
        seen = {int(m) for m in batch.hits["material"]}
        wanted = int(rng.choice([m for m in range(len(MATERIALS)) if m not in seen]))
        prompt = text.name_material(rng, MATERIALS[wanted])
        made.append(_describe(pipeline, batch, prompt, wanted))
    return made


def draw_usual(pipeline: FoleyPipeline, count: int, first: int = 900) -> list[TestClip]:
    """Return held-out clips of all known actions with the generator's prompts.

    Args:
        pipeline: whose encoders determine the frames' sizes.
        count: number of clips.
        first: number of the generator's first clip.
    """
    made = []
    for index in range(first, first + count):
        batch = clips.make_batch(HELD_OUT_SEED, index, 1, SECONDS, quiet=True)
        made.append(_describe(pipeline, batch, batch.prompts[0], None))
    return made


def _describe(
    pipeline: FoleyPipeline,
    batch: clips.Batch,
    prompt: str,
    wanted: int | None,
    is_rattle: bool = False,
) -> TestClip:
    pictures = batch.to(pipeline.device).pictures()[0]
    return TestClip(
        frames=make_frames(pictures.cpu(), pipeline.preset),
        prompt=prompt,
        wanted=wanted,
        events=list_events(batch, 0),
        unscored=labels.find_shoves(batch)[0],
        is_rattle=is_rattle,
    )


def measure(
    pipeline: FoleyPipeline,
    materials: judge.MaterialJudge,
    tests: Sequence[TestClip],
    *,
    adapter: str | None,
    scale: float = 1.0,
    seed: int = 0,
    at_once: int = 16,
) -> dict[str, Any]:
    """Return how far the sounds are what was asked for, and in time.

    Args:
        pipeline: the model.
        materials: of `train_judge`.
        tests: the clips.
        adapter: name of an adapter; None for the model itself.
        scale: of the adapter.
        seed: of the noise of the first clip; the others follow.
        at_once: clips of a batch.
    """
    match, rattles = judge.Match(), judge.Match()
    asked, hits, taught, surest = 0, 0, 0, 0.0
    wrong = Counter[str]()  # heard as what was taught, by what was asked for
    uses = [] if adapter is None else [{"name": adapter, "scale": scale}]
    for first in range(0, len(tests), at_once):
        part = tests[first : first + at_once]
        requests = [
            GenerationRequest.model_validate(
                {"prompt": test.prompt, "seed": seed + first + i, "adapters": uses}
            )
            for i, test in enumerate(part)
        ]
        made = pipeline.generate_together([test.frames for test in part], requests)
        for test, generation in zip(part, made, strict=True):
            sound = generation.waveforms[0, 0].float().cpu()
            found = judge.detect_onsets(sound)
            match.add(found, test.events, test.unscored)
            if test.is_rattle:
                rattles.add(found, test.events, test.unscored)
            if test.wanted is None or not test.events:
                continue
            with torch.inference_mode():
                windows = cut(sound.to(pipeline.device), test.events)
                logits = materials(materials.features(windows))
            heard = logits.argmax(1)
            hits += len(heard)
            asked += int((heard == test.wanted).sum())
            taught += int((heard == _TAUGHT).sum())
            if test.wanted != _TAUGHT:
                wrong[MATERIALS[test.wanted]] += int((heard == _TAUGHT).sum())
            surest += float(logits.softmax(1)[:, _TAUGHT].sum())
    figures: dict[str, Any] = {
        "clips": len(tests),
        "f1": round(match.f1, 4),
        "median_error_ms": round(match.median_error_ms, 2),
    }
    if rattles.truth:
        figures["f1_rattle"] = round(rattles.f1, 4)
    if hits:
        figures |= {
            "asked": round(asked / hits, 4),
            "taught": round(taught / hits, 4),
            "taught_probability": round(surest / hits, 4),
            "hits": hits,
            "taught_instead_of": {name: count for name, count in wrong.items() if count},
        }
    return figures
