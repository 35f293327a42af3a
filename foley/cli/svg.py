"""Small pictures as SVG, without a library: panels of bars under a title."""

from collections.abc import Sequence
from html import escape

WIDTH = 320  # of a panel
HEIGHT = 300
PLOT, LEFT, TOP, BOTTOM = 250, 40, 60, 240
BLUE, RED, GREY = "#3b6fb6", "#c0504d", "#777777"


def draw_document(title: str, panels: Sequence[str]) -> str:
    """Return an SVG document with panels side by side.

    Args:
        title: above them.
        panels: of `draw_bars` and `draw_counts`.
    """
    width = WIDTH * len(panels)
    body = "".join(
        f'<g transform="translate({WIDTH * index} 0)">{panel}</g>'
        for index, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
        f'width="{width}" height="{HEIGHT}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>'
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>{body}</svg>\n'
    )


def draw_bars(title: str, heights: Sequence[float], labels: Sequence[str], axis: str) -> str:
    """Return a panel of upright bars; its highest one has its value beside it.

    Args:
        title: of the panel.
        heights: of the bars, from 0.
        labels: spread evenly below the bars: one for each, or those of both ends.
        axis: what the labels are.
    """
    parts = [f'<text x="{LEFT}" y="46" fill="{GREY}">{escape(title)}</text>']
    peak = max(heights, default=0.0)
    if not peak:
        return "".join([*parts, f'<text x="{LEFT}" y="150" fill="{GREY}">nothing</text>'])
    width = PLOT / len(heights)
    for index, value in enumerate(heights):
        height = (BOTTOM - TOP) * value / peak
        parts.append(
            f'<rect x="{LEFT + index * width:.1f}" y="{BOTTOM - height:.1f}" '
            f'width="{max(width - 1, 1):.1f}" height="{height:.1f}" fill="{BLUE}"/>'
        )
    is_each = len(labels) == len(heights)
    for index, label in enumerate(labels):
        share = (index + 0.5) / len(labels) if is_each else index / (len(labels) - 1)
        parts.append(
            f'<text x="{LEFT + PLOT * share:.1f}" y="{BOTTOM + 18}" text-anchor="middle">'
            f"{escape(label)}</text>"
        )
    parts.append(
        f'<path d="M{LEFT} {TOP}V{BOTTOM}H{LEFT + PLOT}" fill="none" stroke="{GREY}"/>'
        f'<text x="{LEFT - 4}" y="{TOP + 4}" text-anchor="end">{peak:.3g}</text>'
        f'<text x="{LEFT + PLOT / 2}" y="{BOTTOM + 36}" text-anchor="middle" fill="{GREY}">'
        f"{escape(axis)}</text>"
    )
    return "".join(parts)


def draw_counts(title: str, counts: Sequence[tuple[str, int]], nothing: str) -> str:
    """Return a panel of lying bars with names, for at most six of them.

    Args:
        title: of the panel.
        counts: names and their counts, the largest first.
        nothing: what stands there without any.
    """
    parts = [f'<text x="{LEFT}" y="46" fill="{GREY}">{escape(title)}</text>']
    if not counts:
        parts.append(f'<text x="{LEFT}" y="150" fill="{GREY}">{escape(nothing)}</text>')
    for index, (name, count) in enumerate(counts[:6]):
        top = TOP + 30 * index
        width = PLOT * count / counts[0][1]
        parts.append(
            f'<rect x="{LEFT}" y="{top}" width="{width:.1f}" height="10" fill="{RED}"/>'
            f'<text x="{LEFT}" y="{top + 22}">{escape(name)}: {count}</text>'
        )
    return "".join(parts)
