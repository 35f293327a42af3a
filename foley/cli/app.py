"""The command line: one module a command. Heavy imports stay inside the commands."""

import logging
import sys

from cyclopts import App

from foley.cli.convert import convert
from foley.cli.doctor import doctor
from foley.cli.download import download
from foley.cli.generate import generate
from foley.cli.info import info
from foley.cli.serve import serve
from foley.errors import FoleyError, ParameterError, RequestError, UnauthorizedError
from foley.version import __version__

EXIT_OK = 0
EXIT_FAILED = 1  # a clip could not be used, or its result not written
EXIT_USAGE = 2  # options that make no sense, a wrong key among them
EXIT_SERVER = 3  # weights, device or settings; a service that cannot be reached
EXIT_INTERRUPTED = 130

app = App(
    name="foley",
    help="Sound for silent video: the same clip with synchronised 48 kHz sound.",
    help_epilogue=(
        "Exit codes: 0 done; 1 a clip failed; 2 wrong options; 3 weights, device, settings or "
        "service; 130 interrupted."
    ),
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.command(generate)
app.command(download)
app.command(info)
app.command(doctor)
app.command(convert)
app.command(serve)


def exit_code(error: FoleyError) -> int:
    """The exit code that tells a script whose fault an error is."""
    if isinstance(error, ParameterError | UnauthorizedError):
        return EXIT_USAGE
    return EXIT_FAILED if isinstance(error, RequestError) else EXIT_SERVER


def main() -> None:
    """Entry point of the `foley` command."""
    logging.basicConfig(level=logging.WARNING, format="foley: %(message)s", stream=sys.stderr)
    # Their notes about kernels and attributes are for developers of models.
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        app(sys.argv[1:])
    except FoleyError as error:
        print(f"foley: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        print("foley: interrupted; nothing partial was left", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
