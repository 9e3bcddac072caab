"""Writing to a disk that may refuse: whole files or none, and errors that a person can act on."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gigavim.errors import StoreError

_REMEDIES = {
    errno.ENOSPC: "free some space, or write elsewhere with -o",
    errno.EDQUOT: "free some of your quota, or write elsewhere with -o",
    errno.EFBIG: "raise the file size limit (ulimit -f), or write elsewhere with -o",
    errno.EACCES: "write to a folder that is yours with -o",
    errno.EPERM: "write to a folder that is yours with -o",
    errno.EROFS: "write elsewhere with -o",
    errno.ENOTDIR: "write elsewhere with -o",
    errno.EEXIST: "write elsewhere with -o",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one line that says what to do.

    Raises
    ------
    StoreError
        In place of any `OSError`.
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk, or write elsewhere with -o")
        fault = error.strerror or str(error)
        raise StoreError(f"cannot write {path}: {fault.lower()}; {remedy}") from error


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file under its name all at once; what stood there stays until then.

    Neither a kill nor a power cut leaves a name without its content.
    """
    with whole_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that gets its name once it is written; see `write_file`."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
