"""The table of quality against steps: what a row counts, and how a record becomes Markdown."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.quality import table
from benchmarks.quality.held_out import make_frames
from foley.configs import TINY, TINY_GUIDANCE
from foley.media.decode import decode_frames
from foley.media.source import MediaLimits
from foley.plans import QUALITIES, TINY_PLAN
from tests.media.clips import write_clip


def record(**named: object) -> dict[str, object]:
    line = {
        "solver": TINY_PLAN.solver,
        "steps": TINY_PLAN.num_inference_steps,
        "schedule_shift": TINY_PLAN.schedule_shift,
        "guidance_interval": TINY_PLAN.guidance_interval,
        "evaluations": table.count_evaluations(TINY_PLAN),
        "f1": 0.9612,
        "median_error_ms": 4.16,
        "silence_db_median": None,
        "log_mel_distance": 0.2,
        "frechet": 1.0,
        "distance_db": 0.5,
    }
    return {
        "commit": "0000000",
        "gpu": None,
        "cpu": "a processor",
        "preset": "tiny",
        "clips": 2,
        "clip_seconds": 5.0,
        "events": 20,
        "guidance_scale": TINY_GUIDANCE,
        "truth": {"f1": 0.99, "median_error_ms": 2.0, "frechet_two_halves": 3.0},
        "distance_db_of_another_noise": 4.0,
        "rows": [line, {**line, "solver": "heun"}],
    } | named


def test_the_default_is_marked_and_what_is_not_known_is_a_dash() -> None:
    text = table.render(record(), "../records/a.json")
    (bold,) = [line for line in text.splitlines() if line.startswith("| **")]
    assert f"| **{TINY_PLAN.num_inference_steps}** |" in bold
    assert "**0.961** | **4.2** | **-** |" in bold
    assert "[Record](../records/a.json)" in text


def test_a_row_names_the_shift_and_the_interval_of_its_plan() -> None:
    plan = QUALITIES["balanced"]
    line = {**record()["rows"][0], "solver": plan.solver, "steps": plan.num_inference_steps}  # type: ignore[index]
    line |= {"schedule_shift": 4.0, "guidance_interval": 0.8, "evaluations": 9.5}
    text = table.render(record(rows=[line]), "../records/a.json")
    # Not in bold: it is not the default.
    assert f"| ab2, shift 4, guided to 0.8 | {plan.num_inference_steps} | 9.5 |" in text


def test_an_evaluation_without_the_unconditional_half_counts_half() -> None:
    assert {q: table.count_evaluations(plan) for q, plan in QUALITIES.items()} == {
        "reference": 50,
        "balanced": 9.5,
        "fast": 5,
    }


def test_a_record_without_distances_is_rendered() -> None:
    old = record()
    del old["distance_db_of_another_noise"]
    old["rows"] = [{k: v for k, v in row.items() if k != "distance_db"} for row in old["rows"]]  # type: ignore[attr-defined]
    text = table.render(old, "../records/a.json")
    assert "Another noise: - dB" in text
    assert all(line.endswith("- |") for line in text.splitlines() if line.startswith("| heun"))


def test_sounds_are_apart_by_what_is_heard_and_when() -> None:
    torch.manual_seed(0)
    noise, silent = 0.1 * torch.randn(48_000), torch.zeros(48_000)
    assert table.distance_db([noise], [noise]) == 0
    assert table.distance_db([noise], [noise * 10**0.5]) == pytest.approx(10, abs=0.1)
    half = torch.cat((noise[:24_000], silent[:24_000]))
    assert table.distance_db([noise], [half]) > 10
    # What is 60 dB below the highest is not heard.
    assert table.distance_db([half], [half + 1e-6 * torch.randn(48_000)]) < 0.1


def test_the_readme_takes_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(table.README.read_text())
    before, _, after = readme.read_text().partition(table.MARKS[0])
    after = after.partition(table.MARKS[1])[2]
    monkeypatch.setattr(table, "README", readme)
    for text in ("<first>\n", "<second>\n"):
        table.write_into_readme(text)
    start, end = table.MARKS
    assert readme.read_text() == f"{before}{start}<second>\n{end}{after}"


def test_records_are_plain(tmp_path: Path) -> None:
    assert json.loads(json.dumps(record())) == record()


def test_frames_of_pictures_are_those_of_the_clip_that_holds_them(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=40, size=(224, 224))
    decoded = decode_frames(
        clip,
        visual_size=TINY.vision.image_size,
        sync_size=TINY.synchformer.image_size,
        limits=MediaLimits(),
        exact_clock=TINY.exact_clock,
    )
    made = make_frames(decoded.sync.permute(0, 3, 1, 2), TINY)
    assert len(decoded.sync) == 40
    assert torch.equal(made.sync, decoded.sync)
    assert made.visual.shape == decoded.visual.shape
    # Bars have edges, which another filter draws a little differently: measured 0.3 of 255.
    assert (made.visual.float() - decoded.visual.float()).abs().mean() < 2
