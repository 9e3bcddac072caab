"""The scan in C."""

from __future__ import annotations

from gigavim.kernels.scan.reference import selective_scan

__all__ = ["library_name", "selective_scan", "unavailable"]


def unavailable() -> str:
    """Return why the C library cannot run here."""
    return "the C library is not built"


def library_name() -> str:
    """Return which build of the C library is loaded."""
    return ""
