"""Work in another thread, whose faults are words and not tracebacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject

from gigavim.errors import GigavimError
from gigavim.plugins.napari.notify import notify

Found = TypeVar("Found")


def in_background(
    asker: QObject,
    task: Callable[[], Found],
    then: Callable[[Found], None],
    otherwise: Callable[[Exception], None] = notify,
) -> None:
    """Do something in another thread, and go on with what it returns in that of the window.

    Parameters
    ----------
    asker
        Who goes on: once its window is closed, nobody does.
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

    worker = create_worker(outcome)
    worker.returned.connect(_Hand(asker, then, otherwise).take)
    worker.start()


class _Hand(QObject):
    """Takes what a worker returns; Qt destroys it, and cuts the connection, with its parent."""

    def __init__(
        self,
        asker: QObject,
        then: Callable[[Any], None],
        otherwise: Callable[[Exception], None],
    ) -> None:
        super().__init__(asker)
        self._then, self._otherwise = then, otherwise

    def take(self, found: tuple[Any, Exception | None]) -> None:
        result, error = found
        self.deleteLater()
        if error is None:
            self._then(result)
        else:
            self._otherwise(error)
