"""Mix a sequence of cross blocks that is longer than memory: along rows, then along columns.

A layer takes five sweeps over the chunks. The first goes along the rows: it projects and convolves
each chunk with the tokens above and below it, keeps that for the other sweeps, and scans it. The
second scans the rows on the way back. The next two do the same along the columns: a chunk of them
is gathered row by row from where the first sweep has put it. The last adds what all scans made to
the residual stream.

Sums of the scans along rows are in row-major order and those along columns in column-major order,
so that every sweep writes neighbours. A backward sweep writes one chunk further on than the forward
share that it replaces, as in `gigavim.streamed.mix`: nothing is overwritten that a step still has
to read, and a step that a kill has interrupted can be taken again.

Letters: ``l`` tokens, ``D`` width of a token, ``E`` inner channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gigavim.cross import CrossBlock, Places
from gigavim.encoder import DirectionState, VisionMamba
from gigavim.errors import ModelError
from gigavim.mixer import TILE
from gigavim.streamed.mix import Mixed, fill, vector_of
from gigavim.streamed.scratch import Mark, Scratch

INNER_TABLES = 3
"""Of the second scratch of `mix_cross`."""
CONVOLVED, ALONG_ROWS, ALONG_COLUMNS = range(INNER_TABLES)
SWEEPS = ("rows", "rows backwards", "columns", "columns backwards", "the sum")
"""Of a layer, in their order."""


def mix_cross(
    encoder: VisionMamba,
    tokens: Iterable[tuple[NDArray[np.integer], Tensor]],
    index: Tensor,
    residual: Scratch,
    inner: Scratch,
    *,
    on_chunk: Callable[[int], None] = lambda rows: None,
) -> Mixed:
    """Let all tokens of a grid see each other, from where the mark of `residual` says.

    The result is that of `VisionMamba.mix`. Memory is that of a chunk and 24 bytes a token.

    Parameters
    ----------
    tokens
        All tokens of the sequence, in parts and in any order: their places in it, and what `embed`
        returned plus `position_for`, shapes (m,) and (m, D). Not read where a run resumes.
    index
        Row and column of each token, integer, shape (l, 2), row-major.
    residual
        A scratch of two tables, l rows of D.
    inner
        A scratch of `INNER_TABLES` tables, l rows of E.
    on_chunk
        Told the rows of each chunk in each of the sweeps of all layers; those of an earlier process
        too.

    Raises
    ------
    ModelError
        If a state is no finite number any more.
    ValueError
        If the tokens are not in row-major order, or are not as many as have places.
    """
    places, length, depth = Places.of(index.cpu()), len(index), encoder.config.depth
    size = min(residual.chunk, inner.chunk)
    with torch.inference_mode():
        mark = None if inner.mark() is None else residual.mark()
        if mark is None:
            fill(encoder, tokens, length, residual, positioned=False)
            mark = Mark()
            _commit(mark, inner, residual)
        chunks = -(-length // size)
        for step in range(depth * len(SWEEPS) * chunks):
            sweep, passed = divmod(step, chunks)
            layer, kind = divmod(sweep, len(SWEEPS))
            number = chunks - 1 - passed if SWEEPS[kind].endswith("backwards") else passed
            start, stop = number * size, min((number + 1) * size, length)
            if step >= mark.step:
                block = encoder.layers[layer]
                assert isinstance(block, CrossBlock)
                part = Part(block, places, residual, inner, layer % 2, start, stop)
                h = part.sweep(kind, mark.state.h if passed else None)
                if h is not None and not torch.isfinite(h).all():
                    raise ModelError(
                        f"a state of layer {layer + 1} of {depth} became infinite or NaN in chunk "
                        f"{number + 1} of {chunks} along {SWEEPS[kind]}; check the weights, and "
                        "the pixels there"
                    )
                mark = Mark(step + 1, DirectionState(h))
                _commit(mark, inner, residual)
            on_chunk(stop - start)
        return Mixed(vector_of(encoder, residual, length), encoder, residual, length)


@dataclass(frozen=True, eq=False)
class Part:
    """One chunk of one layer, in row-major order or, along the columns, in column-major order."""

    block: CrossBlock
    places: Places
    residual: Scratch
    inner: Scratch
    here: int
    """The table of the residual stream that the layer reads; it writes the other one."""
    start: int
    stop: int

    def sweep(self, kind: int, h: Tensor | None) -> Tensor | None:
        """Do what one of the `SWEEPS` does, from a state to the next one."""
        if kind == len(SWEEPS) - 1:
            self._finish()
            return None
        if kind == 0:
            self._convolve()
        table, back = divmod(kind, 2)
        return self._scan(table, backwards=bool(back), h=h)

    def _convolve(self) -> None:
        """Keep what is scanned of the chunk, computed from it and the tokens around it."""
        op, offset = self.block.op, self.residual.chunk
        around = self.places.neighbours_of(self.start, self.stop)  # (9, n)
        seen = torch.unique(around[around >= 0])
        around = torch.where(around < 0, -1, torch.searchsorted(seen, around))
        x = op.conv2d.weight.new_zeros(1, len(seen) + 1, op.inner)  # and a row of zeros
        around = around.to(x.device)
        for cut in self._tiles(0, len(seen)):
            rows = _gather(self.residual, self.here, seen[cut] + offset)
            x[0, cut] = op.project(self.block.norm(rows))
        for cut in self._tiles(self.start, self.stop):
            u = op.convolve(x, around[:, cut.start - self.start : cut.stop - self.start])
            self.inner.write(CONVOLVED, cut.start, u[0])

    def _scan(self, along: int, *, backwards: bool, h: Tensor | None) -> Tensor | None:
        """Scan along rows (0) or columns (1); on the way back, add to the forward share."""
        op, offset = self.block.op, self.inner.chunk
        table = (ALONG_ROWS, ALONG_COLUMNS)[along]
        u = (
            _gather(self.inner, CONVOLVED, self.places.columns[self.start : self.stop])
            if along
            else self.inner.read(CONVOLVED, self.start, self.stop)
        )
        tiles = list(self._tiles(self.start, self.stop))
        for cut in reversed(tiles) if backwards else tiles:
            tile = u[None, cut.start - self.start : cut.stop - self.start]
            y, h = op.scan(tile, along + 2 * backwards, h)
            if backwards:
                y = y + self.inner.read(table, cut.start, cut.stop)
            self.inner.write(table, cut.start + offset * backwards, y[0])
        return h

    def _finish(self) -> None:
        """Write the residual stream of the next layer."""
        of_rows, of_inner = self.residual.chunk, self.inner.chunk
        for cut in self._tiles(self.start, self.stop):
            y = self.inner.read(ALONG_ROWS, cut.start + of_inner, cut.stop + of_inner)
            y += _gather(self.inner, ALONG_COLUMNS, self.places.rank[cut] + of_inner)
            rows = self.residual.read(self.here, cut.start + of_rows, cut.stop + of_rows)
            rows += self.block.finish(rows[None], y[None])[0]
            self.residual.write(1 - self.here, cut.start + of_rows, rows)

    def _tiles(self, start: int, stop: int) -> Iterator[slice]:
        """Cut tokens in what the device takes at once: what fits the cache of a CPU."""
        on_cpu = self.block.op.Ds.device.type == "cpu"
        size = TILE if on_cpu else max(1, stop - start)
        for first in range(start, stop, size):
            yield slice(first, min(first + size, stop))


def _commit(mark: Mark, inner: Scratch, residual: Scratch) -> None:
    """Make what was written last; the mark of `residual` counts, so that it comes last."""
    inner.commit(mark)
    residual.commit(mark)


def _gather(scratch: Scratch, table: int, rows: Tensor) -> Tensor:
    """Read rows in any order, with one read for each run of neighbours."""
    ordered, order = rows.sort()
    ends = (torch.nonzero(ordered.diff() != 1)[:, 0] + 1).tolist()
    runs = [
        scratch.read(table, int(ordered[start]), int(ordered[stop - 1]) + 1)
        for start, stop in zip([0, *ends], [*ends, len(rows)], strict=True)
    ]
    found = torch.cat(runs)
    gathered = torch.empty_like(found)
    gathered[order.to(found.device)] = found
    return gathered
