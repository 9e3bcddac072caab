"""Where an export is written: under another name until all of it is there."""

from __future__ import annotations

import contextlib
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gigavim.errors import GigavimError
from gigavim.store.disk import writing


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """Lend a path for a file or folder, which takes the place of ``path`` if the body succeeds.

    Raises
    ------
    StoreError
        In place of any `OSError`; what stood at ``path`` stays.
    """
    partial = path.with_name(f"{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        try:
            yield partial
            if partial.is_dir() or path.is_dir():
                # A folder takes no other one's place in one step.
                _remove(path)
            partial.replace(path)
        finally:
            _remove(partial)


def library(name: str, extra: str) -> Any:
    """Import what only some exports need.

    Raises
    ------
    GigavimError
        If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise GigavimError(
            f"this export needs {name}, which is not installed: pip install 'gigavim[{extra}]'"
        ) from error


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
