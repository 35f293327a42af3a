"""The `foley` command: one module for each subcommand."""
