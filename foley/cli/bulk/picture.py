"""The picture of a run: throughput over time, lengths of the sounds, and failures."""

from collections import Counter
from collections.abc import Sequence

from foley.bulk import BulkOutcome
from foley.cli.svg import draw_bars, draw_counts, draw_document

_NUM_BINS = 24


def draw_picture(outcomes: Sequence[BulkOutcome], *, title: str) -> str:
    """Return an SVG document.

    Args:
        outcomes: of all rows.
        title: of the picture.
    """
    done = [one for one in outcomes if one.state == "done" and one.finished]
    codes = Counter(one.error_code for one in outcomes if one.state == "failed")
    return draw_document(
        title,
        [
            _draw_throughput(done),
            _draw_lengths(done),
            draw_counts(
                "rows that failed, by error", codes.most_common(), f"none of {len(outcomes)}"
            ),
        ],
    )


def _draw_throughput(done: Sequence[BulkOutcome]) -> str:
    first = min((one.finished for one in done), default=0.0)
    last = max((one.finished for one in done), default=0.0)
    width = max((last - first) / _NUM_BINS, 1e-3)
    bins = [0.0] * _NUM_BINS
    for one in done:
        sound_seconds = one.duration_seconds * len(one.seeds)
        bins[min(int((one.finished - first) / width), _NUM_BINS - 1)] += sound_seconds / width
    labels = ["0", f"{last - first:.3g}"]
    return draw_bars(
        "seconds of sound made a second", bins, labels, "seconds since the first result"
    )


def _draw_lengths(done: Sequence[BulkOutcome]) -> str:
    title, axis = "rows by length of their sound", "seconds of sound"
    lengths = [one.duration_seconds for one in done]
    low, high = min(lengths, default=0.0), max(lengths, default=0.0)
    if high - low < 0.1:  # all are equal: one bar
        return draw_bars(title, [float(len(lengths))], [f"{low:.3g}"], axis)
    bins = [0.0] * _NUM_BINS
    for length in lengths:
        bins[min(int((length - low) / (high - low) * _NUM_BINS), _NUM_BINS - 1)] += 1
    return draw_bars(title, bins, [f"{low:.3g}", f"{high:.3g}"], axis)
