"""How this process treats memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory", "return_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
MIB = 2**20


def keep_freed_memory() -> None:
    """Have the next array take the memory of the last one, where the C library is glibc.

    Otherwise glibc gives large arrays back to the system, which hands them out again a zeroed page
    at a time: a fifth of the time of a block. Up to a gibibyte stays with the process. That is a
    choice for a whole process, so programs make it; importing GigaVim does not.
    """
    glibc = _glibc()
    if glibc is not None:
        glibc.mallopt(_TRIM_THRESHOLD, 1024 * MIB)
        glibc.mallopt(_MMAP_THRESHOLD, 32 * MIB)  # the most that it takes


def return_freed_memory() -> None:
    """Give the system what has been freed, where the C library is glibc.

    Each thread's arrays come from a heap of its own, which keeps what it has had: what readers
    leave behind is of no use to the thread that comes after them.
    """
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") else None  # musl has none
