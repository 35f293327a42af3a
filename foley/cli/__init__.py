"""The `foley` command.

Each subcommand is a module; `generate` is split into plan, table, backends and report. Heavy
packages are imported inside functions, so that `foley --help` is fast.
"""
