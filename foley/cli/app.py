"""The entry point of the `foley` command, and its exit codes.

The commands are imported by `main`, so that a signal during that time ends it with one line.
"""

import logging
import os
import sys

from foley.cli.stop_signals import StopSignals, is_interruption
from foley.errors import FoleyError, ParameterError, RequestError, UnauthorizedError

EXIT_OK = 0
EXIT_FAILED = 1  # a clip could not be used, or a result could not be written
EXIT_USAGE = 2  # wrong options, including a wrong API key
EXIT_SERVER = 3  # wrong weights, device or settings, or an unreachable service
EXIT_CLOSED_PIPE = 141  # as of a program that the signal of a closed pipe ends


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
    with StopSignals() as signals:
        from foley.cli.commands import app

        signals.interrupt()
        try:
            # A lone hyphen looks like an option to the parser. As a path it is the same as ./-
            app(["./-" if argument == "-" else argument for argument in sys.argv[1:]])
        except FoleyError as error:
            if not is_interruption(error):
                print(f"foley: {error}", file=sys.stderr)
                sys.exit(get_exit_code(error))
            signals.exit()
        except BrokenPipeError:  # the reader of standard output has seen enough, such as `head`
            sys.exit(EXIT_CLOSED_PIPE)
        except (Exception, KeyboardInterrupt) as error:
            if not is_interruption(error):
                raise
            signals.exit()


if __name__ == "__main__":
    main()
