"""What `foley generate` says: a line for the model, for each result or error, and for all."""

import json
import os
import sys
import time
from typing import Any

from rich.console import Console

from foley.cli.backends import ClipResult, ModelName, SoundFile
from foley.cli.pipes import write_file, write_line
from foley.cli.plan import ClipTask, name_flags
from foley.errors import RequestError
from foley.mix import Loudness, LoudnessReport


class Report:
    """Where results and errors of clips go.

    Standard output gets the path of each file, a line of JSON for each clip and each piece of a
    sound, or the file itself.
    All else goes to standard error.

    Args:
        console: for notices and a line about each result.
        as_json: whether standard output gets JSON.
        verbose: whether the lines have the seconds of each stage.

    Attributes:
        num_clips: that were asked for.
        num_failed: that have an error.
    """

    def __init__(self, console: Console, *, as_json: bool, verbose: bool = False) -> None:
        self.console = console
        self.num_clips = 0
        self.num_failed = 0
        self._as_json = as_json
        self._verbose = verbose
        self._num_done = 0
        self._sound_seconds = 0.0
        self._start = time.perf_counter()

    def print_model(self, model: ModelName) -> None:
        """Print which model is used, and start to count the seconds of all clips.

        Args:
            model: its names.
        """
        self._start = time.perf_counter()
        if self._verbose:
            self.console.print(model.description + (f", {model.about}" if model.about else ""))
        else:
            hint = "; -v says what it can do" if model.about else ""
            self.console.print(f"preset {model.preset} {model.place}{hint}")

    def print_result(self, task: ClipTask, result: ClipResult) -> None:
        """Print the notices about a clip, a line for each of its sounds, and its files.

        Args:
            task: what was asked for.
            result: what was made.
        """
        self._num_done += 1
        self._sound_seconds += result.duration_seconds * len(result.seeds)
        for notice in dict.fromkeys(result.notices):
            self.console.print(f"{task.name}: {notice}", style="yellow")
        summary = f"{result.duration_seconds:.2f} s of sound in {result.seconds:.2f} s"
        if self._verbose:
            stages = (f"{stage} {seconds:.2f} s" for stage, seconds in result.timings.items())
            summary += f" ({', '.join(stages)})"
        for seed in result.seeds:
            self.console.print(f"{task.name}: {summary}, seed {seed}")
        for number, seed in enumerate(result.layer_seeds, start=1):
            self.console.print(f"{task.name}: layer {number}, seed {seed}")
        for seconds in result.speech_seconds:
            self.console.print(f"{task.name}: {seconds:.2f} s of speech")
        for report in result.loudness:
            self.console.print(f"{task.name}: {_describe_loudness(report)}")
        if task.to_stdout:
            write_file(result.paths[0])
        elif self._as_json:
            files = [
                {"path": str(path), "seed": seed}
                for path, seed in zip(result.paths, result.seeds, strict=True)
            ]
            layers = [
                {"path": str(path), "seed": seed}
                for path, seed in zip(result.stems, result.layer_seeds, strict=True)
            ]
            for file, seconds in zip(files, result.speech_seconds, strict=False):
                file["speech_seconds"] = round(seconds, 3)
            for file, report in zip(files, result.loudness, strict=False):
                file["loudness"] = report.model_dump(exclude_none=True)
            _write_json(
                {
                    "clip": task.name if task.clip else None,
                    "files": files,
                    **({"layers": layers} if layers else {}),
                    "duration_seconds": result.duration_seconds,
                    "seconds": result.seconds,
                    "timings_seconds": result.timings,
                    "notices": list(result.notices),
                }
            )
        else:
            for path in (*result.paths, *result.stems):
                write_line(os.fsencode(path))

    def print_piece(self, task: ClipTask, piece: SoundFile) -> None:
        """Print the path of a piece of a long sound.

        Args:
            task: what was asked for.
            piece: which one it is.
        """
        if not self._as_json:
            write_line(os.fsencode(piece.path))
            return
        _write_json(
            {
                "clip": task.name if task.clip else None,
                "piece": {
                    "path": str(piece.path),
                    "variation": piece.variation,
                    "number": piece.number,
                    "start_seconds": piece.start_seconds,
                    "duration_seconds": piece.duration_seconds,
                },
            }
        )

    def print_error(self, task: ClipTask, error: RequestError) -> None:
        """Print why a clip has no result.

        Args:
            task: what was asked for.
            error: which ended it.
        """
        self.num_failed += 1
        text = name_flags(str(error))
        if not text.startswith((f"{task.name} ", f"there is no file {task.name};")):
            text = f"{task.name}: {text}"
        print(f"foley: {text}", file=sys.stderr)
        if self._as_json:
            details = {"code": error.code, "message": str(error)}
            _write_json({"clip": task.name if task.clip else None, "error": details})

    def print_summary(self) -> None:
        """Print a line about all clips, if there are several."""
        if self.num_clips < 2:
            return
        if self._num_done:
            seconds = time.perf_counter() - self._start
            self.console.print(
                f"{self._num_done} of {self.num_clips} clips: {self._sound_seconds:.2f} s of sound "
                f"in {seconds:.2f} s"
            )
        if self.num_failed:
            print(f"foley: {self.num_failed} of {self.num_clips} clips failed", file=sys.stderr)


def _describe_loudness(report: LoudnessReport) -> str:
    def name(loudness: Loudness) -> str:
        integrated, peak = loudness.integrated_lufs, loudness.true_peak_dbtp
        return ", ".join(
            [
                "under -70 LUFS" if integrated is None else f"{integrated:.1f} LUFS",
                "no peak" if peak is None else f"{peak:.1f} dBTP",
            ]
        )

    return f"{name(report.after)} (before: {name(report.before)})"


def _write_json(value: dict[str, Any]) -> None:
    write_line(json.dumps(value).encode())
