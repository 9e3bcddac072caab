"""Reading past a fault: what can be read is, and the rest is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from gigavim.geometry import Window

Result = TypeVar("Result")

CELL = 256
"""A part that fails is narrowed to this many pixels, or to a file tile where that is larger.

Narrower would take hours where each try begins at the top of the file, as in a PNG that breaks off.
"""


def cell_side(tile: int) -> int:
    """Return the side of whole file tiles that make up at least `CELL` pixels.

    >>> cell_side(1), cell_side(240), cell_side(512)
    (256, 480, 512)
    """
    return tile * max(1, -(-CELL // tile))


def read_around(
    read: Callable[[Window], Result],
    parts: Iterable[Window],
    cell: tuple[int, int],
    faults: tuple[type[Exception], ...],
) -> Iterator[tuple[Window, Result | Exception]]:
    """Read each part, and halve one that fails until the fault is down to one cell.

    Cells are fixed in the image and not in the window, so that all windows agree on what is lost.

    Parameters
    ----------
    cell
        Height and width of the smallest part that is tried alone.
    faults
        What ``read`` raises on what it cannot decode.

    Yields
    ------
    part, result
        What was read, or why it could not be.
    """
    waiting = list(parts)
    while waiting:
        part = waiting.pop()
        try:
            result = read(part)
        except faults as fault:
            halves = _halves(part, cell)
            waiting += halves
            if not halves:
                yield part, fault
            continue
        yield part, result


def _halves(window: Window, cell: tuple[int, int]) -> list[Window]:
    """Cut a window in two along a border of cells; nothing if it lies in one cell."""
    rows = _borders(window.y, window.height, cell[0])
    columns = _borders(window.x, window.width, cell[1])
    if rows and len(rows) >= len(columns):
        first = rows[len(rows) // 2] - window.y
        return [
            Window(window.y, window.x, first, window.width),
            Window(window.y + first, window.x, window.height - first, window.width),
        ]
    if columns:
        first = columns[len(columns) // 2] - window.x
        return [
            Window(window.y, window.x, window.height, first),
            Window(window.y, window.x + first, window.height, window.width - first),
        ]
    return []


def _borders(start: int, length: int, side: int) -> range:
    """Borders of cells that lie within a stretch."""
    return range((start // side + 1) * side, start + length, side)
