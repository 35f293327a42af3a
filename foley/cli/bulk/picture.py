"""The picture of a run, as SVG: throughput over time, lengths of the sounds, and failures."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from foley.bulk import BulkOutcome

_WIDTH, _HEIGHT = 960, 300
_PANEL, _PLOT, _TOP, _BOTTOM = 320, 250, 60, 240
_NUM_BINS = 24
_BLUE, _RED, _GREY = "#3b6fb6", "#c0504d", "#777777"


def draw_picture(outcomes: Sequence[BulkOutcome], *, title: str) -> str:
    """Return an SVG document.

    Args:
        outcomes: of all rows.
        title: of the picture.
    """
    done = [one for one in outcomes if one.state == "done" and one.finished]
    panels = [
        _draw_bars(
            "seconds of sound made a second",
            _measure_throughput(done),
            unit="s",
            what="seconds since the first result",
        ),
        _draw_bars(
            "rows by length of their sound",
            _count_lengths(done),
            unit="",
            what="seconds of sound",
        ),
        _draw_failures(outcomes),
    ]
    body = "".join(
        f'<g transform="translate({_PANEL * index} 0)">{panel}</g>'
        for index, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>'
        f'<text x="36" y="22" font-size="14">{escape(title)}</text>{body}</svg>\n'
    )


Bars = tuple[list[float], float, float]  # heights, and the value at both ends of the axis


def _measure_throughput(done: Sequence[BulkOutcome]) -> Bars:
    if not done:
        return [], 0.0, 0.0
    first, last = min(one.finished for one in done), max(one.finished for one in done)
    width = max((last - first) / _NUM_BINS, 1e-3)
    bins = [0.0] * _NUM_BINS
    for one in done:
        sound_seconds = one.duration_seconds * len(one.seeds)
        bins[min(int((one.finished - first) / width), _NUM_BINS - 1)] += sound_seconds / width
    return bins, 0.0, last - first


def _count_lengths(done: Sequence[BulkOutcome]) -> Bars:
    if not done:
        return [], 0.0, 0.0
    lengths = [one.duration_seconds for one in done]
    low, high = min(lengths), max(lengths)
    if high - low < 0.1:  # all are equal: one bar
        return [float(len(lengths))], low, high
    bins = [0.0] * _NUM_BINS
    for length in lengths:
        bins[min(int((length - low) / (high - low) * _NUM_BINS), _NUM_BINS - 1)] += 1
    return bins, low, high


def _draw_bars(title: str, bars: Bars, *, unit: str, what: str) -> str:
    heights, low, high = bars
    parts = [f'<text x="36" y="46" fill="{_GREY}">{escape(title)}</text>']
    peak = max(heights, default=0.0)
    if not peak:
        return "".join([*parts, f'<text x="36" y="150" fill="{_GREY}">nothing was made</text>'])
    width = _PLOT / len(heights)
    for index, value in enumerate(heights):
        height = (_BOTTOM - _TOP) * value / peak
        parts.append(
            f'<rect x="{36 + index * width:.1f}" y="{_BOTTOM - height:.1f}" '
            f'width="{max(width - 1, 1):.1f}" height="{height:.1f}" fill="{_BLUE}"/>'
        )
    parts.append(
        f'<path d="M36 {_TOP}V{_BOTTOM}H{36 + _PLOT}" fill="none" stroke="{_GREY}"/>'
        f'<text x="32" y="{_TOP + 4}" text-anchor="end">{peak:.3g}{unit}</text>'
        f'<text x="36" y="{_BOTTOM + 18}">{low:.3g}</text>'
        f'<text x="{36 + _PLOT}" y="{_BOTTOM + 18}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{36 + _PLOT / 2}" y="{_BOTTOM + 36}" text-anchor="middle" fill="{_GREY}">'
        f"{escape(what)}</text>"
    )
    return "".join(parts)


def _draw_failures(outcomes: Sequence[BulkOutcome]) -> str:
    codes = Counter(one.error_code for one in outcomes if one.state == "failed").most_common(6)
    parts = [f'<text x="36" y="46" fill="{_GREY}">rows that failed, by error</text>']
    if not codes:
        parts.append(f'<text x="36" y="150" fill="{_GREY}">none of {len(outcomes)}</text>')
    for index, (code, count) in enumerate(codes):
        top = _TOP + 30 * index
        width = _PLOT * count / codes[0][1]
        parts.append(
            f'<rect x="36" y="{top}" width="{width:.1f}" height="10" fill="{_RED}"/>'
            f'<text x="36" y="{top + 22}">{escape(code)}: {count}</text>'
        )
    return "".join(parts)
