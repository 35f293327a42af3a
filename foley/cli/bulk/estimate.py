"""What `foley bulk --dry-run` says: how much sound, how long and how large."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from zipfile import is_zipfile

from rich.console import Console

from foley.bulk import BulkOutcome, BulkTask
from foley.configs import MAX_CLIP_SECONDS
from foley.errors import VideoError
from foley.media.numbering import is_pattern, list_pictures
from foley.quiet import silence_imports
from foley.request import AUDIO_FORMATS
from foley.storage import is_remote

SAMPLE = 200  # clips that are opened; the others count as their mean
WAV_BYTES_A_SECOND = 144_000  # 24 bits at 48 kHz; a flac is smaller
AAC_BYTES_A_SECOND = 24_000


def print_estimate(
    console: Console,
    tasks: Sequence[BulkTask],
    finished: Iterable[BulkOutcome],
    *,
    hourly_price: float | None = None,
) -> int:
    """Print the seconds of sound, the bytes and, where rows were made before, the time.

    Returns how many rows will fail, of those whose clips were opened.

    Args:
        console: for the lines.
        tasks: that would be worked on.
        finished: outcomes of earlier runs in the same output.
        hourly_price: of the machines; None where nobody gave one.
    """
    if not tasks:
        return 0
    step = max(1, len(tasks) // SAMPLE)
    read: list[tuple[float, float]] = []
    unfit: list[str] = []
    for task in tasks[::step]:
        try:
            measured = _measure(task)
        except (VideoError, OSError) as error:
            unfit.append(f"{task.clip}: {getattr(error, 'strerror', None) or error}")
            measured = 0.0, 0.0
        if measured is not None:
            read.append(measured)
    if unfit:
        console.print(f"of {len(read)} rows that were opened {len(unfit)} will fail:")
        for line in unfit[:10]:
            console.print(f"  {line}", style="red")
    if not read:
        console.print("the clips' lengths are not known before they are fetched")
        return 0
    scale = len(tasks) / len(read)
    seconds = scale * sum(length for length, _ in read)
    size = scale * sum(num_bytes for _, num_bytes in read)
    about = f" (of {len(read)} rows that were opened)" if len(read) < len(tasks) else ""
    console.print(f"about {seconds:.0f} s of sound and {size / 1e6:.1f} MB{about}")
    rate = _measure_rate(finished)
    if rate is None:
        console.print("the time is known once some rows are made here: try --limit 20 first")
    else:
        hours = seconds / rate / 3600
        cost = "" if hourly_price is None else f" and a cost of {hours * hourly_price:.4g}"
        console.print(f"about {60 * hours:.1f} min{cost}, at the rate of the earlier rows")
    return len(unfit)


def _measure(task: BulkTask) -> tuple[float, float] | None:
    """Return the seconds of sound and the bytes of a row's results; None if they are not known.

    Raises:
        VideoError: the clip cannot be used.
        OSError: it cannot be read.
    """
    variations = task.request.num_variations
    is_audio = task.names[0].rpartition(".")[2].lower() in AUDIO_FORMATS
    if task.clip is None or task.request.duration_seconds is not None:  # a still picture has one
        seconds, clip_bytes = task.request.duration_seconds or 0.0, 0
    elif is_remote(task.clip):
        return None
    else:
        stated, clip_bytes = _measure_clip(Path(task.clip), task.frame_rate)
        seconds = max(0.0, min((stated or MAX_CLIP_SECONDS) - task.start_seconds, MAX_CLIP_SECONDS))
    if is_audio:
        return variations * seconds, variations * seconds * WAV_BYTES_A_SECOND
    return variations * seconds, variations * (clip_bytes + seconds * AAC_BYTES_A_SECOND)


def _measure_clip(clip: Path, frame_rate: float | None) -> tuple[float | None, int]:
    """Return the length that a clip states, if it does, and its bytes."""
    with silence_imports():
        from foley.media.decode import probe
        from foley.media.images import count_pictures

    if is_pattern(clip):
        pictures = list_pictures(clip)
        sizes = [picture.stat().st_size for picture in pictures]
        return len(pictures) / frame_rate if frame_rate else None, sum(sizes)
    num_bytes = clip.stat().st_size
    if frame_rate and is_zipfile(clip):
        return count_pictures(clip) / frame_rate, num_bytes
    return probe(clip).duration_seconds, num_bytes


def _measure_rate(finished: Iterable[BulkOutcome]) -> float | None:
    """Return seconds of sound made a second, of the earlier rows; None if there are too few."""
    done = [one for one in finished if one.state == "done" and one.finished]
    if len(done) < 2:
        return None
    # The gap between two runs is no work: only what a row took at most counts between two ends.
    ends = sorted(one.finished for one in done)
    longest = max(one.seconds for one in done)
    busy = sum(min(b - a, longest) for a, b in itertools.pairwise(ends))
    return sum(one.duration_seconds * len(one.seeds) for one in done) / busy if busy else None
