"""Work in another thread, whose faults are words and not tracebacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from napari.qt.threading import create_worker

from gigavim.errors import GigavimError
from gigavim.plugins.napari.notify import notify

Found = TypeVar("Found")


def in_background(
    task: Callable[[], Found],
    then: Callable[[Found], None],
    otherwise: Callable[[Exception], None] = notify,
) -> None:
    """Do something in another thread, and go on with what it returns in that of the window.

    Parameters
    ----------
    otherwise
        Told what went wrong with files and stores; by default in a notification. Any other
        exception is a fault in the code, which napari reports as such.
    """

    def outcome() -> tuple[Any, Exception | None]:
        # napari reports whatever a worker raises with its traceback, whoever listens.
        try:
            return task(), None
        except (GigavimError, OSError, KeyError) as error:
            return None, error

    def go_on(found: tuple[Any, Exception | None]) -> None:
        result, error = found
        if error is None:
            then(result)
        else:
            otherwise(error)

    worker = create_worker(outcome)
    worker.returned.connect(go_on)
    worker.start()
