"""The command line: parses, calls, prints.

Errors are one line on stderr, and the exit code is 1; wrong usage is 2. Results go to stdout,
everything else to stderr. Heavy imports stay inside commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer

from gigavim import __version__
from gigavim.cli.batch import batch
from gigavim.cli.change import change
from gigavim.cli.export import export
from gigavim.cli.here import bench, doctor, models, sample
from gigavim.cli.run import info, run
from gigavim.cli.stack import stack
from gigavim.cli.train import evaluate, pretrain, train
from gigavim.cli.view import view
from gigavim.memory import keep_freed_memory

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Read a whole slide or a satellite scene as one long sequence, and map it.",
)

COMMANDS = (
    run, batch, stack, change, info, view, export, train, pretrain, evaluate, models, sample,
    doctor, bench,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Read a whole slide or a satellite scene as one long sequence, and map it."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr."""
    # Readers and encoder share the cores: a thread that spins while it waits for others keeps them
    # from what they are waiting for. OpenMP reads this when PyTorch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    # Asked to end, by a viewer or a cluster, a run lets go of its store as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()
