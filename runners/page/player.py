"""A result as HTML: one player for the original and all variations, with one timeline.

`assets/page.js` adds the behaviour. It finds the elements by their classes and data attributes.
"""

from collections.abc import Callable
from html import escape
from pathlib import Path

from runners.jobs.job import MEDIA_TYPES
from runners.page.plots import NUM_COLUMNS
from runners.page.results import AUDIO_SUFFIXES, PageResult, SoundPieces, Track

MakeUrl = Callable[[Path], str]

EMPTY = """\
<section class="foley-empty">
<h2>Your result appears here</h2>
<p>Choose a clip, say what should be heard, and switch between the new sound and the original
without losing your place.</p>
</section>"""
BEGINNING = """\
<section class="foley-beginning" data-beginning hidden aria-label="The sound so far">
<video playsinline muted aria-hidden="true" tabindex="-1"></video>
<p><button type="button">Play what is there</button> <output></output></p>
</section>"""
TICK_STEPS_SECONDS = (1, 2, 5, 10, 60)
MAX_TICKS = 8


def render_player(result: PageResult, make_url: MakeUrl) -> str:
    """Return the player of a result with its pictures, downloads, description and snippets.

    Args:
        result: what to show.
        make_url: returns the address of a file for the browser.
    """
    tracks = list(enumerate(result.tracks))
    choices = "".join(_render_choice(result, index, track, make_url) for index, track in tracks)
    lanes = "".join(_render_lane(result, index, track, make_url) for index, track in tracks)
    downloads = "".join(
        _render_downloads(result, index, track, make_url) for index, track in tracks
    )
    media = result.tracks[result.first_new].media  # shown first
    css_class = ' class="foley-sound-only"' if media.suffix in AUDIO_SUFFIXES else ""
    seconds = result.generation.duration_seconds
    strip = ""
    if result.film_strip is not None:
        strip = (
            f'<img class="foley-strip" src="{make_url(result.film_strip)}"'
            ' alt="Frames of the clip over its time">'
        )
    return f"""\
<section class="foley-player" data-player aria-label="Result {result.number}">
<video controls playsinline preload="auto" src="{make_url(media)}"{css_class}
 aria-label="Player"></video>
<fieldset class="foley-tracks"><legend>Listen to</legend>{choices}</fieldset>
<div class="foley-timeline">
{strip}
{lanes}
<span class="foley-playhead" aria-hidden="true"></span>
<input class="foley-seek" type="range" min="0" max="{seconds:.3f}" step="0.01"
 value="0" aria-label="Position in seconds">
</div>
<p class="foley-ticks" aria-hidden="true">{_render_ticks(seconds)}</p>
{downloads}
{_render_facts(result)}
{_render_snippets(result)}
</section>"""


def render_pieces(pieces: SoundPieces, make_url: MakeUrl) -> str:
    """Return what the script plays while a sound is made.

    Args:
        pieces: of the sound, so far.
        make_url: returns the address of a file for the browser.
    """
    links = "".join(f'<a href="{make_url(path)}"></a>' for path in pieces.files)
    return f'<div hidden data-pieces data-start-seconds="{pieces.start_seconds:g}">{links}</div>'


def render_end(result: PageResult) -> str:
    """Return what lets the result's player go on from where the pieces of its sound are heard.

    Args:
        result: whose player is shown.
    """
    return f'<div hidden data-pieces data-result="{result.number}"></div>'


def _render_choice(result: PageResult, index: int, track: Track, make_url: MakeUrl) -> str:
    checked = " checked" if index == result.first_new else ""
    return (
        f'<label><input type="radio" name="track-{result.number}" value="{index}"'
        f' data-track data-media="{make_url(track.media)}"{checked}>'
        f"<span>{escape(track.label)}</span></label>"
    )


def _render_lane(result: PageResult, index: int, track: Track, make_url: MakeUrl) -> str:
    """Return the waveform and the spectrogram of one track."""
    attributes = _render_attributes("foley-lane", result, index)
    if track.spectrogram is None:
        return (
            f'<div {attributes}><p class="foley-silent">This clip has no sound of its own</p></div>'
        )
    name = escape(track.label)
    return f"""\
<div {attributes}>
<svg viewBox="0 0 {NUM_COLUMNS} 2" preserveAspectRatio="none" role="img" \
aria-label="Waveform: {name}"><path d="{track.waveform}"/></svg>
<div class="foley-spectrogram"><img src="{make_url(track.spectrogram)}" alt="Spectrogram: {name}">
<span>20 kHz</span><span>40 Hz</span></div>
</div>"""


def _render_downloads(result: PageResult, index: int, track: Track, make_url: MakeUrl) -> str:
    links = []
    for path in track.files:
        format_ = path.suffix.removeprefix(".")
        links.append(
            f'<a href="{make_url(path)}" download="{path.name}" type="{MEDIA_TYPES[format_]}">'
            f"Download {format_.upper()}</a>"
        )
    return f"<p {_render_attributes('foley-downloads', result, index)}>{''.join(links)}</p>"


def _render_attributes(css_class: str, result: PageResult, index: int) -> str:
    """Return the attributes of an element that is visible only while its track is selected."""
    hidden = "" if index == result.first_new else " hidden"
    return f'class="{css_class}" data-of="{index}"{hidden}'


def _render_facts(result: PageResult) -> str:
    generation = result.generation
    rate_khz = generation.sample_rate_hz / 1000
    facts = {
        "Model": generation.model,
        "Seed": ", ".join(str(seed) for seed in generation.seeds),
        "Length": f"{generation.duration_seconds:.2f} s at {rate_khz:g} kHz",
        "Time taken": f"{generation.timings_seconds['total']:.1f} s",
    }
    speech = [file.speech_seconds for file in generation.files if file.speech_seconds is not None]
    if speech:  # of all variations and layers
        facts["Speech"] = f"{max(speech):.2f} s"
    terms = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    notices = "".join(f"<li>{escape(notice)}</li>" for notice in generation.notices)
    return f'<dl class="foley-facts">{terms}</dl>' + (
        f'<ul class="foley-notices">{notices}</ul>' if notices else ""
    )


def _render_snippets(result: PageResult) -> str:
    """Return the link and the programs that repeat a result."""
    settings = result.settings
    without_clip = "" if settings.example else " The link does not hold the clip."
    return f"""\
<details class="foley-repeat"><summary>Repeat this result</summary>
<p><a class="foley-link" href="{escape(settings.link)}" target="_blank">Link with these settings</a>
<button type="button" data-copy-link>Copy link</button> Opens this page with the same \
settings.{without_clip}</p>
{_render_snippet("curl", settings.curl)}
{_render_snippet("Python", settings.python)}
</details>"""


def _render_snippet(name: str, text: str) -> str:
    return (
        f'<div class="foley-snippet"><h3>{name}</h3>'
        f'<button type="button" data-copy>Copy {name}</button>'
        f'<pre tabindex="0" aria-label="{name}"><code>{escape(text)}</code></pre></div>'
    )


def _render_ticks(duration_seconds: float) -> str:
    """Return the labels of whole seconds below the timeline, at most `MAX_TICKS` of them."""
    every = next(step for step in TICK_STEPS_SECONDS if duration_seconds / step <= MAX_TICKS)
    marks = range(0, int(duration_seconds) + 1, every)
    return "".join(
        f'<span style="left:{100 * mark / duration_seconds:.3f}%">{mark} s</span>'
        for mark in marks
        if mark < 0.97 * duration_seconds  # a label at the very end would overhang the edge
    )
