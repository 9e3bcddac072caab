"""What a resume needs: the tokens of every block of patches that was read and embedded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.geometry import Window
from gigavim.sources.source import ReadError
from gigavim.store.disk import write_file


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """The tokens of one block, as they were committed."""

    tokens: NDArray[np.float32]
    """Shape (m, D); m differs from block to block and may be 0."""
    valid: NDArray[np.bool_]
    """Shape (m,); False where no pixel of the patch could be read."""
    errors: tuple[ReadError, ...]
    """What could not be decoded in this block."""


@dataclass(frozen=True, slots=True)
class BlockLabels:
    """What a viewer may show of a block while the run goes on."""

    cells: NDArray[np.int32]
    """Row and column on the grid of patches that the result will have, shape (k, 2)."""
    labels: NDArray[np.uint8]
    """Of each, 0 for none, shape (k,)."""


class BlockState:
    """A folder with one file per finished block.

    A block appears under its name in one atomic rename, tokens and errors together, so a file that
    is there is a block that is done, wherever the process was killed. An ``.npz`` takes blocks of
    any length without padding, which a Zarr chunk would not.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def done(self, block: int) -> bool:
        """Tell whether this block was committed, in this run or an earlier one."""
        return self._file(block).exists()

    def write(
        self,
        block: int,
        tokens: NDArray[np.float32],
        valid: NDArray[np.bool_],
        errors: Sequence[ReadError] = (),
        shown: BlockLabels | None = None,
    ) -> None:
        """Commit a block; writing it twice leaves the last."""
        boxes = [(e.level, e.window.y, e.window.x, e.window.height, e.window.width) for e in errors]
        arrays: dict[str, Any] = {
            "tokens": np.asarray(tokens, np.float32),
            "valid": np.asarray(valid, np.bool_),
            "boxes": np.array(boxes, np.int64).reshape(-1, 5),
            "messages": np.array([e.message for e in errors], np.str_),
        }
        if shown is not None:
            arrays |= {"cells": shown.cells, "labels": shown.labels}
        self._folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_file(self._file(block), buffer.getvalue())

    def read(self, block: int) -> TokenBlock:
        """Return a committed block."""
        with np.load(self._file(block), allow_pickle=False) as arrays:
            errors = tuple(
                ReadError(int(level), Window(int(y), int(x), int(height), int(width)), str(message))
                for (level, y, x, height, width), message in zip(
                    arrays["boxes"], arrays["messages"], strict=True
                )
            )
            return TokenBlock(arrays["tokens"], arrays["valid"], errors)

    def _file(self, block: int) -> Path:
        """Where a block lies."""
        return self._folder / f"{block}.npz"
