"""The entry point of the `foley` command, and its exit codes."""

import logging
import os
import sys

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
from foley.errors import FoleyError, ParameterError, RequestError, UnauthorizedError
from foley.version import __version__

EXIT_OK = 0
EXIT_FAILED = 1  # a clip could not be used, or a result could not be written
EXIT_USAGE = 2  # wrong options, including a wrong API key
EXIT_SERVER = 3  # wrong weights, device or settings, or an unreachable service
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # as of a program that the signal of a closed pipe ends

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

app = App(
    name="foley",
    help="Generate synchronised 48 kHz sound for silent video.",
    help_epilogue=(
        "Exit codes: 0 done; 1 a clip failed; 2 wrong options; 3 weights, device, settings or "
        "service; 130 interrupted."
    ),
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.command(generate, help_prologue=_GENERATE_EXAMPLES)
app.command(bulk, help_prologue=_BULK_EXAMPLES)
app.command("foley.cli.bench:bench")  # its imports take half a second
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


def get_exit_code(error: FoleyError) -> int:
    """Return the exit code that belongs to an error.

    Args:
        error: the error that ended the command.
    """
    if isinstance(error, ParameterError | UnauthorizedError):
        return EXIT_USAGE
    return EXIT_FAILED if isinstance(error, RequestError) else EXIT_SERVER


def main() -> None:
    """Run the command line and exit with its exit code."""
    logging.basicConfig(level=logging.WARNING, format="foley: %(message)s", stream=sys.stderr)
    # These libraries log remarks that concern model developers only.
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # OpenMP's threads spin while they wait, which starves them where other processes use the same
    # cores. OpenMP reads this when torch is loaded, and lets it overrule OMP_WAIT_POLICY.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        # A lone hyphen looks like an option to the parser. As a path it is the same as ./-
        app(["./-" if argument == "-" else argument for argument in sys.argv[1:]])
    except FoleyError as error:
        print(f"foley: {error}", file=sys.stderr)
        sys.exit(get_exit_code(error))
    except KeyboardInterrupt:
        print("foley: interrupted; no partial file was left", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of standard output has seen enough, such as `head`
        sys.exit(EXIT_CLOSED_PIPE)


if __name__ == "__main__":
    main()
