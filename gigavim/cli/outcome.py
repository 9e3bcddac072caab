"""How commands end: results on stdout, one line on stderr for what the user can mend."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer

from gigavim.errors import GigavimError


def or_one_line(call: Any, *, debug: bool) -> Any:
    """Call; say in one line what the user can mend."""
    try:
        return call()
    except GigavimError as error:
        if debug:
            raise
        fail(error)


def fail(error: GigavimError, code: int = 1) -> NoReturn:
    """Say what went wrong, and end."""
    print(f"gigavim: {error}", file=sys.stderr)
    raise typer.Exit(code)


def print_json(value: Any) -> None:
    """Print what a machine reads."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def log_to(path: Path | None, *, quiet: bool) -> None:
    """Send the log to a file, and warnings to the screen unless it is to be quiet."""
    # With no handler at all, Python prints warnings to stderr.
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if path is not None:
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
    if not quiet:
        to_screen = logging.StreamHandler()
        to_screen.setLevel(logging.WARNING)
        handlers.append(to_screen)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=handlers,
        force=True,
    )
