"""Where the residual stream waits between layers: in memory, or in files that outlive a kill.

A scratch is a few tables of rows, and a mark that says how far the work is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from gigavim.errors import StoreError
from gigavim.mixer import DirectionState
from gigavim.store.disk import write_file, writing

Place = Literal["device", "host", "disk"]
"""Where the residual stream can wait."""


class Mark(NamedTuple):
    """How far the work is."""

    step: int = 0
    """The next chunk to mix, counted over all sweeps of all layers; those before it are done."""
    state: DirectionState = DirectionState()
    """What the last of them left for the next."""


class Scratch(Protocol):
    """Tables of rows and a mark."""

    @property
    def chunk(self) -> int:
        """Tokens of a chunk; a table has that many rows more than the sequence."""
        ...

    def read(self, table: int, start: int, stop: int) -> Tensor:
        """Return rows of a table, a copy on the device of the encoder, shape (stop - start, D)."""
        ...

    def write(self, table: int, start: int, rows: Tensor) -> None:
        """Replace rows of a table."""
        ...

    def mark(self) -> Mark | None:
        """Return where to go on; None at the very beginning."""
        ...

    def commit(self, mark: Mark) -> None:
        """Make what was written last, and say with `mark` that it was."""
        ...


class MemoryScratch:
    """Tables in memory; a kill loses them.

    Parameters
    ----------
    like
        A tensor of the encoder: dtype and device of the rows.
    on_host
        Keep them in the memory of the host, page-locked where the encoder is on a GPU, so that
        copies there and back are fast and nobody waits for them.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        chunk: int,
        like: Tensor,
        *,
        on_host: bool = False,
        tables: int = 2,
    ) -> None:
        self.chunk = _checked(chunk)
        self._device = like.device
        self._tables = [
            torch.empty(
                (rows + chunk, width),
                dtype=like.dtype,
                device="cpu" if on_host else like.device,
                pin_memory=on_host and like.is_cuda,
            )
            for _ in range(tables)
        ]
        self._mark: Mark | None = None

    def read(self, table: int, start: int, stop: int) -> Tensor:
        """See `Scratch.read`."""
        # Nobody waits for copies: a device takes them, and what works on them, in order.
        return self._tables[table][start:stop].to(self._device, non_blocking=True, copy=True)

    def write(self, table: int, start: int, rows: Tensor) -> None:
        """See `Scratch.write`."""
        # By way of the device: a copy on the host alone could overtake one that is under way.
        rows = rows.to(self._device)
        self._tables[table][start : start + len(rows)].copy_(rows, non_blocking=True)

    def mark(self) -> Mark | None:
        """See `Scratch.mark`."""
        return self._mark

    def commit(self, mark: Mark) -> None:
        """See `Scratch.commit`."""
        self._mark = mark


class DiskScratch:
    """Tables in files, and a journal that is replaced when they are safely on the disk.

    The files are read and written, not mapped: what the system caches of them is not counted as
    this process's memory and goes when memory is short, and a full disk is an error, not a signal.

    Parameters
    ----------
    folder
        Created if it is not there. What is in it of another `identity`, or with larger chunks than
        `chunk`, is started over; smaller chunks stay as they are.
    identity
        Of the run: everything that decides a bit of the result.
    like
        A tensor of the encoder: dtype and device of the rows.

    Raises
    ------
    StoreError
        If the disk is full or refuses; also from every method.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        rows: int,
        width: int,
        chunk: int,
        like: Tensor,
        *,
        tables: int = 2,
    ) -> None:
        self.chunk = _checked(chunk)
        self._folder = folder
        self._like = like.new_empty(0)
        self._row_bytes = width * like.element_size()
        self._width = width
        self._identity = {"run": identity, "rows": rows, "width": width, "dtype": str(like.dtype)}
        self._journal = folder / "journal.safetensors"
        self._dirty: set[int] = set()
        self._mark = self._resume()
        paths = [folder / f"residual-{table}.bin" for table in range(tables)]
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path in paths:
                path.touch()
            # Unbuffered: a chunk goes to the system in one call, and nothing waits in between.
            self._files = [path.open("r+b", buffering=0) for path in paths]

    def __enter__(self) -> DiskScratch:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def read(self, table: int, start: int, stop: int) -> Tensor:
        """See `Scratch.read`."""
        rows = torch.empty((stop - start, self._width), dtype=self._like.dtype)
        view = _bytes_of(rows)
        with writing(self._folder):
            self._files[table].seek(start * self._row_bytes)
            while view:
                count = self._files[table].readinto(view)
                if not count:
                    raise StoreError(
                        f"{self._files[table].name} is shorter than its journal says; "
                        "start over with --force"
                    )
                view = view[count:]
        return rows.to(self._like.device)

    def write(self, table: int, start: int, rows: Tensor) -> None:
        """See `Scratch.write`."""
        view = _bytes_of(rows.cpu().contiguous())
        self._dirty.add(table)
        with writing(self._folder):
            self._files[table].seek(start * self._row_bytes)
            while view:
                view = view[self._files[table].write(view) :]

    def mark(self) -> Mark | None:
        """See `Scratch.mark`."""
        return self._mark

    def commit(self, mark: Mark) -> None:
        """See `Scratch.commit`."""
        head = {**self._identity, "chunk": self.chunk, "step": mark.step}
        state = {
            name: tensor.cpu().contiguous()
            for name, tensor in mark.state._asdict().items()
            if tensor is not None
        }
        journal = safetensors.torch.save(state, {"head": json.dumps(head)})
        with writing(self._folder):
            for table in self._dirty:
                os.fsync(self._files[table].fileno())
            write_file(self._journal, journal)
        self._dirty.clear()
        self._mark = mark

    def _resume(self) -> Mark | None:
        """Return where an earlier process came to, if what it left is of this run."""
        if not self._journal.exists():
            return None
        with safetensors.safe_open(self._journal, "pt") as journal:
            head = json.loads(journal.metadata()["head"])
            names = journal.keys()
            tensors = {name: journal.get_tensor(name).to(self._like.device) for name in names}
        step, chunk = head.pop("step"), head.pop("chunk")
        if head != self._identity or chunk > self.chunk:
            with writing(self._folder):
                self._journal.unlink()
            return None
        self.chunk = chunk
        return Mark(step, DirectionState(**tensors))


def _checked(chunk: int) -> int:
    if chunk < 1:
        raise ValueError(f"a chunk is at least one token, not {chunk}")
    return chunk


def _bytes_of(rows: Tensor) -> memoryview:
    """Look at the bytes of a tensor on the CPU."""
    return memoryview(rows.numpy().reshape(-1).view(np.uint8).data)
