"""The version of this project, as its distribution states it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("foley-serving")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
