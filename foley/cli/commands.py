"""The commands of `foley`, and their help."""

from cyclopts import App

from foley.cli.bulk.command import bulk
from foley.cli.convert import convert
from foley.cli.doctor import doctor
from foley.cli.download import download
from foley.cli.generate import generate
from foley.cli.info import info
from foley.cli.inspect import inspect
from foley.cli.jobs import app as jobs
from foley.cli.serve import serve
from foley.cli.train import train
from foley.cli.webhooks import app as webhooks
from foley.version import __version__

_GENERATE_EXAMPLES = """\
Examples:
  foley generate clip.mp4 -p "a wooden ball bounces"
  foley generate clip.mp4 -p "rain" -o rain.wav --seed 7
  foley generate *.mp4 -p "footsteps on gravel" -o results/ -j 4
  foley generate --csv clips.csv -o results/ --skip-existing
  foley generate - -p "rain" -o - < clip.mp4 > rain.mp4
"""

_BULK_EXAMPLES = """\
Examples:
  foley bulk clips/ results/ -p "the sound of {name}"
  foley bulk clips.csv results/ --max-errors 20
  foley bulk s3://bucket/clips/ s3://bucket/sounds/ -p "rain" --format wav
"""
# In the list of commands the help of a function that is not imported yet would be empty.
_BENCH_HELP = """Measure the latency and the throughput of a service.

Each caller waits for its answer before it sends the next request. A service that refuses requests,
because all places are taken, is measured as such: they count as errors.
"""

app = App(
    name="foley",
    help="Generate synchronised 48 kHz sound for silent video.",
    help_epilogue=(
        "Exit codes: 0 done; 1 a clip failed; 2 wrong options; 3 weights, device, settings or "
        "service; 130 interrupted; 141 the reader of its output is gone; 143 stopped by SIGTERM."
    ),
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.command(generate, help_prologue=_GENERATE_EXAMPLES)
app.command(bulk, help_prologue=_BULK_EXAMPLES)
# Its imports take half a second.
app.command("foley.cli.bench:bench", help=_BENCH_HELP)
app.command(download)
app.command(inspect)
app.command(jobs)
app.command(webhooks)
app.command(info)
app.command(doctor)
app.command(convert)
app.command(serve)
app.command(train)
app.register_install_completion_command()
