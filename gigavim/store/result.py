"""The store of one image: created, resumed, filled, and marked complete last."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from gigavim.errors import StoreError
from gigavim.geometry import Level
from gigavim.georeference import Registration
from gigavim.ngff import Colour, write_image, write_label
from gigavim.sources.source import ReadError
from gigavim.store.blocks import BlockLabels, BlockState, TokenBlock
from gigavim.store.contents import contents_of, damage
from gigavim.store.disk import writing
from gigavim.store.identity import differences
from gigavim.store.lock import StoreLock
from gigavim.store.running import announced
from gigavim.store.tables import write_table

logger = logging.getLogger(__name__)


class ResultStore:
    """One image's results, as a Zarr v3 group on a disk.

    Made by `create` for a run and by `open` for a look. A run asks `is_finished` first, and holds
    the store in a ``with`` statement: while it lasts, no other run may have it, and however it
    ends, the store says truthfully whether it is complete.
    """

    def __init__(self, path: Path, group: zarr.Group, lock: StoreLock | None = None) -> None:
        self.path = path
        self.group = group
        self._lock = lock
        self._state = BlockState(path / "state")

    @classmethod
    def is_finished(cls, path: str | Path, attributes: Mapping[str, Any]) -> bool:
        """Tell whether a run left all of its results here, and all of them are there still.

        Takes milliseconds and no lock.

        Parameters
        ----------
        attributes
            As for `create`.

        Raises
        ------
        StoreError
            If the store holds another run, or the folder something else.
        """
        path = Path(path)
        with writing(path):
            group = _open(path, "r")
        if group is None:
            return False
        _check_same_run(path, group, attributes)
        return _is_whole(path, group)

    @classmethod
    def create(
        cls, path: str | Path, attributes: Mapping[str, Any], *, force: bool = False
    ) -> ResultStore:
        """Start a run, or take up the same one where it stopped.

        Parameters
        ----------
        attributes
            What the store says of itself, in JSON types. ``configuration``, ``model`` and
            ``source`` (its ``size`` and ``fingerprint``) make the run: put there what changes the
            result and nothing else.
        force
            Start over, whatever an earlier run left.

        Returns
        -------
        store
            Locked. If another process finished the run meanwhile, it is `complete`, and nothing is
            left to do.

        Raises
        ------
        StoreBusyError
            If another run holds the store.
        StoreError
            If the store holds another run, the folder something else, or nothing can be written.
        """
        path = Path(path)
        with contextlib.ExitStack() as undo:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = StoreLock(path)
            undo.callback(lock.release)
            with writing(path):
                group = _prepare(path, attributes, force=force)
            undo.pop_all()
        return cls(path, group, lock)

    @classmethod
    def batch_of(cls, path: str | Path) -> str | None:
        """Return the batch that began the run of a store, None where there is none."""
        path = Path(path)
        with writing(path):
            group = _open(path, "r")
        return None if group is None else _attributes(group).get("batch")

    @classmethod
    def open(cls, path: str | Path) -> ResultStore:
        """Open a store for reading, complete or not.

        Raises
        ------
        StoreError
            If there is none.
        """
        path = Path(path)
        group = _open(path, "r")
        if group is None:
            raise StoreError(f"{path} is no GigaVim store: there is nothing; check the path")
        return cls(path, group)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other runs have the store."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Write, as long as the store is ours."""
        with writing(self.path):
            if self._lock is not None:
                self._lock.check()
            yield

    def array(self, name: str) -> zarr.Array[Any]:
        """Return an array, ``tokens/features`` say, to be read in parts."""
        array = self.group[name]
        if not isinstance(array, zarr.Array):
            raise KeyError(name)
        return array

    def values(self, name: str) -> NDArray[Any]:
        """Read a whole array."""
        return np.asarray(self.array(name)[...])

    @property
    def attributes(self) -> dict[str, Any]:
        """What the store says of itself."""
        return _attributes(self.group)

    @property
    def complete(self) -> bool:
        """Whether everything is there."""
        return bool(self.attributes["status"] == "complete")

    def part(self, name: str) -> ResultStore:
        """Return the same store with blocks of its own, for one of several images that share it."""
        part = ResultStore(self.path, self.group, self._lock)
        part._state = BlockState(self.path / "state" / name)
        return part

    def block_done(self, block: int) -> bool:
        """Tell whether a block of tokens was committed, in this run or one that it resumes."""
        return self._state.done(block)

    def write_block(
        self,
        block: int,
        tokens: NDArray[np.float32],
        valid: NDArray[np.bool_],
        errors: Sequence[ReadError] = (),
        shown: BlockLabels | None = None,
    ) -> None:
        """Commit the tokens of one block of patches, all of it or nothing.

        Parameters
        ----------
        tokens
            Shape (m, D).
        valid
            Shape (m,).
        shown
            What the map that was announced has here, for whoever follows the run.
        """
        with self._writing():
            self._state.write(block, tokens, valid, errors, shown)

    def read_block(self, block: int) -> TokenBlock:
        """Return a committed block."""
        return self._state.read(block)

    def write_array(self, name: str, values: NDArray[Any]) -> None:
        """Write a whole array, ``tokens/coords`` say, over what is there."""
        self.write_rows(name, [values], values.shape, values.dtype)

    def write_rows(
        self, name: str, parts: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: DTypeLike
    ) -> None:
        """Write an array that comes in parts along its first axis; holds one file of it at a time.

        Raises
        ------
        ValueError
            If the parts do not add up to ``shape``.
        """
        with self._writing():
            write_table(self.group, name, parts, shape, dtype)

    def write_label_map(
        self,
        name: str,
        labels: NDArray[np.uint8],
        names: Sequence[str],
        colours: Sequence[Colour],
        registration: Registration,
    ) -> None:
        """Write ``labels/<name>``: the class of every cell, 0 for background; see `write_label`."""
        with self._writing():
            write_label(
                self.group.require_group("labels"), name, labels, names, colours, registration
            )

    def write_map(
        self,
        name: str,
        values: NDArray[np.floating[Any]],
        channels: Sequence[str],
        colours: Sequence[Colour],
        registration: Registration,
    ) -> None:
        """Write ``maps/<name>``: numbers for every cell, NaN for none; see `write_image`."""
        with self._writing():
            write_image(
                self.group.require_group("maps"), name, values, channels, colours, registration
            )

    def announce(
        self,
        name: str,
        names: Sequence[str],
        colours: Sequence[Colour],
        shape: tuple[int, int],
        registration: Registration,
    ) -> None:
        """Say which map blocks or windows will fill, for whoever follows the run."""
        state: Any = self.group["state"].attrs
        about = announced(names, colours, shape, registration)
        with self._writing():
            state["maps"] = {**state.get("maps", {}), name: about}

    def write_errors(self, errors: Iterable[ReadError], levels: Sequence[Level]) -> None:
        """Record what could not be read, each part once, in level-0 pixels.

        Parameters
        ----------
        levels
            The pyramid that the errors' windows refer to.
        """
        rows = list(dict.fromkeys(errors))
        columns: dict[str, list[int]] = {"x": [], "y": [], "w": [], "h": [], "level": []}
        for error in rows:
            level, window = levels[error.level], error.window
            columns["x"].append(round(window.x * level.downsample_x))
            columns["y"].append(round(window.y * level.downsample_y))
            columns["w"].append(round(window.width * level.downsample_x))
            columns["h"].append(round(window.height * level.downsample_y))
            columns["level"].append(error.level)
        for name, column in columns.items():
            self.write_array(f"errors/{name}", np.array(column, np.int32))
        with self._writing():
            messages = self.group.create_array(
                "errors/message", shape=(len(rows),), dtype="string", overwrite=True
            )
            if rows:
                messages[:] = np.array([error.message for error in rows], object)

    def describe(self, name: str, **attributes: Any) -> None:
        """Attach attributes to a group or array, ``describe("tokens", order="hilbert")``."""
        with self._writing():
            self.group[name].attrs.update(attributes)

    def finish(self, **facts: Any) -> None:
        """Remove what only a resume needs and mark the store complete, last.

        Parameters
        ----------
        facts
            What is known only now: times, peak memory.
        """
        with self._writing():
            _update(self.group, **facts, contents=contents_of(self.path), status="written")
            _finish(self.path, self.group)


def _open(path: Path, mode: Literal["r", "r+"]) -> zarr.Group | None:
    """Open a store; None where nothing is yet."""
    if not path.is_dir():
        if path.exists():
            raise StoreError(f"{path} is a file, not a GigaVim store; write elsewhere with -o")
        return None
    if all(file.suffix == ".partial" for file in path.iterdir()):
        return None
    try:
        group = zarr.open_group(path, mode=mode, zarr_format=3)
    except (FileNotFoundError, ValueError):
        group = None
    if group is None or "gigavim" not in group.attrs:
        raise StoreError(
            f"{path} holds something that is not a GigaVim store and is left alone; "
            "write elsewhere with -o, or remove it yourself"
        )
    return group


def _check_same_run(path: Path, group: zarr.Group, attributes: Mapping[str, Any]) -> None:
    """Refuse to mix two runs in one store."""
    differ = differences(_attributes(group), attributes)
    if differ:
        raise StoreError(
            f"{path} was made by another run ({', '.join(differ)}); "
            "start over with --force, or write elsewhere with -o"
        )


def _prepare(path: Path, attributes: Mapping[str, Any], *, force: bool) -> zarr.Group:
    """Bring a locked folder to where the run can go on."""
    group = _open(path, "r+")
    if group is not None:
        for leftover in path.rglob("*.partial"):
            leftover.unlink()
        if not force:
            _check_same_run(path, group, attributes)
            if _attributes(group)["status"] == "written":
                _finish(path, group)
            if _is_whole(path, group):
                return group
        if force or _attributes(group)["status"] == "complete":
            _update(group, status="running")
            _clear(path)
    writer = {"host": socket.gethostname(), "pid": os.getpid(), "started": _now()}
    marks = {**attributes, "status": "running", "writer": writer}
    if group is None:
        group = zarr.create_group(path, attributes={"gigavim": marks})
    else:
        group.attrs["gigavim"] = marks
    group.require_group("state")
    return group


def _is_whole(path: Path, group: zarr.Group) -> bool:
    """Tell whether a store is complete and has lost nothing since."""
    marks = _attributes(group)
    if marks["status"] != "complete":
        return False
    lost = damage(path, marks.get("contents", {}))
    if lost is not None:
        logger.warning("%s is damaged, and made again: %s", path, lost)
    return lost is None


def _finish(path: Path, group: zarr.Group) -> None:
    """Go from ``written`` to ``complete``; a kill on the way loses nothing."""
    if (path / "state").exists():
        shutil.rmtree(path / "state")
    _update(group, status="complete")


def _clear(path: Path) -> None:
    """Empty a store but for the file that says it is ours."""
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "zarr.json":
            entry.unlink()


def _attributes(group: zarr.Group) -> dict[str, Any]:
    """Return what the group says of itself."""
    marks = group.attrs["gigavim"]
    if not isinstance(marks, dict):
        raise StoreError(f"{group.store_path} is damaged: its attributes are no table; use --force")
    return dict(marks)


def _update(group: zarr.Group, **marks: Any) -> None:
    """Change some of what the group says of itself, in one write."""
    group.attrs["gigavim"] = {**_attributes(group), **marks}


def _now() -> str:
    """Return the time, for people and machines."""
    return datetime.now(UTC).isoformat(timespec="seconds")
