"""A take as HTML: one player for the original and all variations, over one time line.

`assets/page.js` brings it to life: it finds the parts by their classes and data attributes.
"""

from collections.abc import Callable
from html import escape
from pathlib import Path

from runners.jobs.job import MEDIA_TYPES
from runners.page.plots import NUM_COLUMNS
from runners.page.results import Take, Track

UrlOf = Callable[[Path], str]

EMPTY = """\
<section class="foley-empty">
<h2>Your result appears here</h2>
<p>Choose a clip, say what should be heard, and switch between the new sound and the original
without losing your place.</p>
</section>"""


def take_html(take: Take, url_of: UrlOf) -> str:
    """The whole of it.

    Args:
        take: what to show.
        url_of: where the browser finds a file.
    """
    shown = 1  # the first variation
    tracks = "".join(
        _choice(take, index, track, url_of, checked=index == shown)
        for index, track in enumerate(take.tracks)
    )
    lanes = "".join(
        _lane(index, track, url_of, hidden=index != shown)
        for index, track in enumerate(take.tracks)
    )
    downloads = "".join(
        _downloads(index, track, url_of, hidden=index != shown)
        for index, track in enumerate(take.tracks)
    )
    poster = ' class="foley-sound-only"' if _is_sound(take.tracks[shown].media) else ""
    return f"""\
<section class="foley-player" data-player aria-label="Result {take.number}">
<video controls playsinline preload="auto" src="{url_of(take.tracks[shown].media)}"{poster}
 aria-label="Player"></video>
<fieldset class="foley-tracks"><legend>Listen to</legend>{tracks}</fieldset>
<div class="foley-timeline">
<img class="foley-strip" src="{url_of(take.film_strip)}" alt="Frames of the clip over its time">
{lanes}
<span class="foley-playhead" aria-hidden="true"></span>
<input class="foley-seek" type="range" min="0" max="{take.duration_seconds:.3f}" step="0.01"
 value="0" aria-label="Position in seconds">
</div>
<p class="foley-ticks" aria-hidden="true">{_ticks(take.duration_seconds)}</p>
{downloads}
{_facts(take)}
{_repeat(take)}
</section>"""


def _choice(take: Take, index: int, track: Track, url_of: UrlOf, *, checked: bool) -> str:
    return (
        f'<label><input type="radio" name="track-{take.number}" value="{index}"'
        f' data-track data-media="{url_of(track.media)}"{" checked" if checked else ""}>'
        f"<span>{escape(track.label)}</span></label>"
    )


def _lane(index: int, track: Track, url_of: UrlOf, *, hidden: bool) -> str:
    """Waveform and spectrogram of one track."""
    attributes = f'class="foley-lane" data-of="{index}"{" hidden" if hidden else ""}'
    if track.spectrogram is None:
        return (
            f'<div {attributes}><p class="foley-silent">This clip has no sound of its own</p></div>'
        )
    name = escape(track.label)
    return f"""\
<div {attributes}>
<svg viewBox="0 0 {NUM_COLUMNS} 2" preserveAspectRatio="none" role="img" \
aria-label="Waveform: {name}"><path d="{track.outline}"/></svg>
<div class="foley-spectrogram"><img src="{url_of(track.spectrogram)}" alt="Spectrogram: {name}">
<span>20 kHz</span><span>40 Hz</span></div>
</div>"""


def _downloads(index: int, track: Track, url_of: UrlOf, *, hidden: bool) -> str:
    attributes = f'class="foley-downloads" data-of="{index}"{" hidden" if hidden else ""}'
    links = "".join(
        f'<a href="{url_of(path)}" download="{path.name}" type="{MEDIA_TYPES[_format(path)]}">'
        f"Download {_format(path).upper()}</a>"
        for path in track.files
    )
    return f"<p {attributes}>{links}</p>"


def _facts(take: Take) -> str:
    made = take.made
    facts = {
        "Model": made.model,
        "Seed": ", ".join(str(seed) for seed in made.seeds),
        "Length": f"{made.duration_seconds:.2f} s at {made.sample_rate_hz / 1000:g} kHz",
        "Made in": f"{made.timings_seconds['total']:.1f} s",
    }
    terms = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    notices = "".join(f"<li>{escape(notice)}</li>" for notice in made.notices)
    return f'<dl class="foley-facts">{terms}</dl>' + (
        f'<ul class="foley-notices">{notices}</ul>' if notices else ""
    )


def _repeat(take: Take) -> str:
    """The exact settings, to be taken along."""
    recipe = take.recipe
    with_clip = "" if recipe.example else " The clip is not in it."
    return f"""\
<details class="foley-repeat"><summary>Repeat this exactly</summary>
<p><a class="foley-link" href="{escape(recipe.link)}" target="_blank">Link with these settings</a>
<button type="button" data-copy-link>Copy link</button> Opens this page with every control set \
so.{with_clip}</p>
{_snippet("curl", recipe.curl)}
{_snippet("Python", recipe.python)}
</details>"""


def _snippet(name: str, text: str) -> str:
    return (
        f'<div class="foley-snippet"><h3>{name}</h3>'
        f'<button type="button" data-copy>Copy {name}</button>'
        f'<pre tabindex="0" aria-label="{name}"><code>{escape(text)}</code></pre></div>'
    )


def _ticks(duration_seconds: float) -> str:
    """Whole seconds, as many as there is room for."""
    every = next(step for step in (1, 2, 5, 10, 60) if duration_seconds / step <= 8)
    marks = range(0, int(duration_seconds) + 1, every)
    return "".join(
        f'<span style="left:{100 * mark / duration_seconds:.3f}%">{mark} s</span>'
        for mark in marks
        if mark < 0.97 * duration_seconds  # the last word would hang over the edge
    )


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".")


def _is_sound(path: Path) -> bool:
    return _format(path) in ("wav", "flac")
