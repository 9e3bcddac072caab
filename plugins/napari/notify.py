"""Errors of background work, in words, while the viewer goes on."""

from __future__ import annotations

from napari.utils.notifications import show_error

from gigavim.errors import GigavimError


def notify(error: BaseException) -> None:
    """Show what can be mended as a notification; let other errors be reported as such."""
    if isinstance(error, GigavimError):
        show_error(str(error))
    elif isinstance(error, OSError | KeyError):
        # Zarr says so of a store that is gone or half there.
        show_error(f"the store or its image cannot be read any more ({error}); open it again")
    else:
        raise error
