"""The commands, one module each, in the order of the pipeline.

A command reads its input from disk, leaves its output on disk, and imports no other command. Its module's first
paragraph is its help text, and `run(config)` is all that the command line calls.
"""

from revision.schema import STEPS

COMMANDS = (*STEPS, "chat", "inspect", "plan", "push", "verify", "run")
