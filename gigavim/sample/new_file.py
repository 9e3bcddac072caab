"""A file that is there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gigavim.errors import StoreError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Lend a name to write under; what is written gets its own name once it is whole.

    Raises
    ------
    StoreError
        If the file is there already or cannot be written.
    """
    if path.exists():
        raise StoreError(f"{path} is there already; remove it, or choose another name")
    unfinished = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {(error.strerror or str(error)).lower()}; "
            "free some space, or choose a folder that is there and yours"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
