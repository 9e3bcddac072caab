"""What a run that goes on tells other processes: how far it is, and its maps as far as they are.

All of it lies under ``state/``, which goes when the run is complete, so that nothing half-done can
be taken for a result::

    progress.json    the stage, and how far it is
    attributes       ``maps``: which maps fill, with their classes and where they lie
    <n>.npz          a block of patches: ``cells`` and their ``labels``
    <map>/<n>.npz    a ``window`` of ``labels/<map>/0`` that is filled

A reader needs no lock: files appear whole, and one that is gone is no error.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import zarr
from numpy.typing import NDArray

from gigavim.georeference import Registration
from gigavim.ngff import Colour
from gigavim.store.disk import writing

_FILE = "progress.json"
PREVIEW_SIDE = 4096
"""Most cells to a side of a map that is shown while it fills."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is."""

    stage: str
    done: int
    """Tokens, or pixels."""
    total: int
    """In this stage; 0 where it is not known."""
    seconds: float
    """Since the stage began."""
    stopped: str | None = None
    """Why the run ended before it was complete, in words; None while it goes on."""

    @property
    def left_s(self) -> float | None:
        """Seconds that the stage will still take at its rate; None while nobody can tell.

        >>> RunProgress("reading", 25, 100, 10.0).left_s
        30.0
        """
        if not self.done or not self.total:
            return None
        return self.seconds * (self.total - self.done) / self.done


def write_progress(store: Path, progress: RunProgress) -> None:
    """Replace what the store of a run says of its progress; costs a tenth of a millisecond."""
    file = store / "state" / _FILE
    partial = file.with_name(f"{_FILE}.partial")
    with writing(store):
        # Not synced to the disk: after a power cut nobody asks how far it was.
        partial.write_text(json.dumps(asdict(progress)), encoding="utf-8")
        # Windows refuses while somebody reads it; the next record comes soon.
        with contextlib.suppress(PermissionError):
            partial.replace(file)


def read_progress(store: Path) -> RunProgress | None:
    """Return how far the run of a store is; None before it has begun and once it is complete."""
    try:
        return RunProgress(**json.loads((store / "state" / _FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def is_written(store: Path, writer: dict[str, Any]) -> bool:
    """Tell whether a process has the store now; of another machine, whether it has let go of it.

    Parameters
    ----------
    writer
        ``host``, ``pid`` and ``started``, as the store says.
    """
    # A run removes its lock however it ends, unless it is killed.
    if not store.with_name(f"{store.name}.lock").exists():
        return False
    if writer.get("host") != socket.gethostname():
        return True
    try:
        process = psutil.Process(writer["pid"])
        born = process.create_time()
        # Another process may have got its number since; clocks are compared to the second.
        same = born <= datetime.fromisoformat(writer["started"]).timestamp() + 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True, slots=True)
class FillingMap:
    """A map as far as it is; cells that nothing is known of yet are 0."""

    name: str
    """Of the head, or ``foreground`` for what has been read."""
    names: tuple[str, ...]
    """Of the labels 1, 2, ..."""
    colours: tuple[Colour, ...]
    cell: tuple[float, float]
    """Height and width of a cell of ``labels``, in level-0 pixels."""
    corner: tuple[float, float]
    """Top and left of the first cell, in level-0 pixels."""
    factor: int
    """Cells of the map to a side of one that is shown."""
    labels: NDArray[np.uint8]
    """Shape (rows, columns); filled in place."""

    @classmethod
    def of(cls, name: str, about: dict[str, Any]) -> Self:
        """Return an empty one, coarse enough to be shown."""
        factor = 1
        while max(about["shape"]) > PREVIEW_SIDE * factor:
            factor *= 2
        rows, columns = (-(-side // factor) for side in about["shape"])
        return cls(
            name,
            tuple(about["names"]),
            tuple((r, g, b) for r, g, b in about["colours"]),
            (about["cell_level0"][0] * factor, about["cell_level0"][1] * factor),
            (about["corner_level0"][0], about["corner_level0"][1]),
            factor,
            np.zeros((rows, columns), np.uint8),
        )


def announced(
    names: Sequence[str],
    colours: Sequence[Colour],
    shape: tuple[int, int],
    registration: Registration,
) -> dict[str, Any]:
    """Describe a map that will fill, in JSON types, for `FillingMap.of`."""
    return {
        "names": list(names),
        "colours": [list(colour) for colour in colours],
        "shape": list(shape),
        "cell_level0": [registration.cell_y, registration.cell_x],
        "corner_level0": [registration.corner_y, registration.corner_x],
    }


class Filling:
    """The maps of a run that goes on; each `update` reads what is new, and no more."""

    def __init__(self, store: Path) -> None:
        self.maps: dict[str, FillingMap] = {}
        self._store = store
        self._seen: set[Path] = set()

    def update(self) -> bool:
        """Fill in what was committed since; tell whether there was anything."""
        try:
            state = zarr.open_group(self._store / "state", mode="r", zarr_format=3)
        except FileNotFoundError:
            return False
        about: Any = state.attrs.get("maps", {})
        for name in about.keys() - self.maps.keys():
            self.maps[name] = FillingMap.of(name, about[name])
        before = len(self._seen)
        for name, filling in self.maps.items():
            if (self._store / "state" / name).is_dir():
                self._add_windows(filling)
            else:
                self._add_blocks(filling)
        return len(self._seen) > before

    def _add_blocks(self, filling: FillingMap) -> None:
        """Add blocks of patches."""
        for arrays in self._new(self._store / "state"):
            if "labels" in arrays:  # not of an older version
                cells = arrays["cells"] // filling.factor
                filling.labels[cells[:, 0], cells[:, 1]] = arrays["labels"]

    def _add_windows(self, filling: FillingMap) -> None:
        """Add windows of pixels, thinned."""
        level: Any = None
        factor = filling.factor
        for arrays in self._new(self._store / "state" / filling.name):
            level = level or zarr.open_array(
                self._store / "labels" / filling.name / "0", mode="r", zarr_format=3
            )
            y, x, height, width = arrays["window"].tolist()
            thinned = level[y : y + height : factor, x : x + width : factor]
            rows, columns = thinned.shape
            filling.labels[y // factor :, x // factor :][:rows, :columns] = thinned

    def _new(self, folder: Path) -> Iterator[Any]:
        """Yield the arrays of files that have come since."""
        for file in sorted(set(folder.glob("*.npz")) - self._seen):
            # The run may become complete, and clear up, at any moment.
            with contextlib.suppress(FileNotFoundError), np.load(file) as arrays:
                yield arrays
            self._seen.add(file)
