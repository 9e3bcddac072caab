"""Maps at the resolution of pixels, which come window by window and are larger than memory.

A window that is committed stays: a resumed run goes on with the others.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.geometry import Window
from gigavim.georeference import Registration
from gigavim.ngff import Colour, coded, create_level, finish_label, finish_probabilities
from gigavim.store.disk import write_file, writing
from gigavim.store.result import ResultStore

SIDE = 1024
"""Of a window, in cells of the map."""


class WindowedMap:
    """``labels/<name>`` and ``maps/<name>`` of one resolution, and what was found in each window.

    Parameters
    ----------
    store
        Of a run that holds it.
    channels
        What there are probabilities of.
    shape
        Rows and columns of the maps.
    """

    def __init__(
        self, store: ResultStore, name: str, channels: Sequence[str], shape: tuple[int, int]
    ) -> None:
        self._store, self._name, self._channels = store, name, tuple(channels)
        self._folder = store.path / "state" / name
        if self._folder.is_dir():
            return
        with writing(store.path):
            labels, maps = (store.group.require_group(kind) for kind in ("labels", "maps"))
            create_level(labels, name, shape, np.uint8, shard=SIDE)
            create_level(maps, name, (len(self._channels), *shape), np.uint8, shard=SIDE)
            self._folder.mkdir(parents=True)

    def done(self, number: int) -> bool:
        """Tell whether a window was committed, in this run or one that it resumes."""
        return self._file(number).exists()

    def commit(
        self,
        number: int,
        window: Window,
        labels: NDArray[np.uint8],
        probs: NDArray[np.floating[Any]],
        found: dict[str, NDArray[Any]],
    ) -> None:
        """Write a window, all of it or nothing.

        Parameters
        ----------
        window
            In cells, from a multiple of `SIDE`; what lies beyond the maps is left out.
        labels
            Shape of the window.
        probs
            NaN where there are none, shape (channel, height, width).
        found
            Arrays to be read again by `read`.
        """
        rows, columns = self._store.array(f"labels/{self._name}/0").shape
        height, width = min(window.height, rows - window.y), min(window.width, columns - window.x)
        there = np.s_[..., window.y : window.y + height, window.x : window.x + width]
        buffer = io.BytesIO()
        place = np.array([window.y, window.x, height, width])
        np.savez(buffer, window=place, **found)  # type: ignore[arg-type]
        with writing(self._store.path):
            for kind, values in (("labels", labels), ("maps", coded(probs))):
                array = self._store.array(f"{kind}/{self._name}/0")
                array[there] = values[..., :height, :width]
            write_file(self._file(number), buffer.getvalue())

    def read(self, number: int) -> dict[str, NDArray[Any]]:
        """Return what was found in a committed window."""
        with np.load(self._file(number), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays if name != "window"}

    def finish(
        self, names: Sequence[str], colours: Sequence[Colour], registration: Registration
    ) -> None:
        """Add what makes the maps pyramids, once all windows are there.

        Parameters
        ----------
        names, colours
            Of the labels 1, 2, ..., which are the channels as well.
        """
        labels, maps = (self._store.group.require_group(kind) for kind in ("labels", "maps"))
        with writing(self._store.path):
            finish_label(labels, self._name, names, colours, registration)
            finish_probabilities(maps, self._name, self._channels, colours, registration)

    def _file(self, number: int) -> Path:
        """Where it is kept what was found in a window."""
        return self._folder / f"{number}.npz"
