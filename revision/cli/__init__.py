"""The command line: `revision COMMAND [overrides]`, sweeps (`-m`), searches, help, and mistakes as one sentence."""

from revision.cli.command_line import main

__all__ = ["main"]
