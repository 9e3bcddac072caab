"""Mix a sequence that is longer than memory: layer by layer, chunk by chunk, there and back.

docs/streaming.md explains it with a picture. In short: a layer reads the residual stream of all
tokens from one table of a scratch. Its forward sweep takes the chunks in order and writes the
forward direction's share to the other table; its backward sweep takes them in reverse order and
writes there the next layer's residual stream, one chunk further on than the share it replaces: on
rows that are done with. So nothing is ever overwritten that a step still has to read, and a step
that a kill has interrupted can be taken again.

Letters: ``l`` tokens, ``D`` width of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gigavim.encoder import Block, DirectionState, VisionMamba
from gigavim.errors import ModelError
from gigavim.mixer import TILE
from gigavim.streamed.scratch import Mark, Scratch

READ_OUT_ROWS = 8192
"""Rows that the last norm sees at once."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """The features of a sequence, still in the scratch."""

    vector: Tensor
    """The whole sequence: its class token, or pooled, shape (D,)."""
    _encoder: VisionMamba
    _scratch: Scratch
    _length: int

    def tokens(self, start: int, stop: int) -> Tensor:
        """Return the features of some tokens, without class tokens, shape (stop - start, D)."""
        places = _places(self._encoder, self._length, np.arange(start, stop))
        first, last = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        rows = _finished(self._encoder, self._scratch, first, last)
        return rows[torch.from_numpy(places - first).to(rows.device)]


Turn = Callable[[Tensor, slice | NDArray[np.integer]], Tensor]
"""Turns rows by their places on the grid."""


class Part(NamedTuple):
    """One chunk of one layer in one direction."""

    layer: int
    reverse: bool
    start: int
    stop: int


def mix(
    encoder: VisionMamba,
    tokens: Iterable[tuple[NDArray[np.integer], Tensor]],
    length: int,
    scratch: Scratch,
    *,
    positioned: bool,
    index: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    on_chunk: Callable[[int], None] = lambda rows: None,
) -> Mixed:
    """Let all tokens of a sequence see each other, from where the scratch's mark says.

    The result is that of `VisionMamba.mix`; on the CPU it has the same bits for every size of chunk
    that is a multiple of `gigavim.mixer.TILE`.

    Parameters
    ----------
    tokens
        All tokens of the sequence, in parts and in any order: their places in it, and what `embed`
        returned plus `position_for`, shapes (m,) and (m, D). Not read where a run resumes.
    length
        Of the sequence.
    scratch
        Of `rows_of` the sequence.
    positioned
        Whether the tokens have positions, for the class tokens to have theirs.
    index
        Row and column of each token of the sequence, integer, shape (length, 2), for a model that
        turns tokens by their place.
    grid
        Rows and columns of the grid that `index` counts in; by default the training grid.
    on_chunk
        Told the rows of each chunk in each of the `sweeps_of` sweeps; those of an earlier process
        too.

    Raises
    ------
    ModelError
        If a state is no finite number any more.
    """
    config = encoder.config
    if config.rope != "none" and (index is None or len(index) != length):
        raise ValueError(f"rotary positions need the row and column of each of {length} tokens")

    def turn(rows: Tensor, places: slice | NDArray[np.integer]) -> Tensor:
        assert index is not None
        turned: Tensor = encoder.rope(rows, index[places], grid)
        return turned

    with torch.inference_mode():
        mark = scratch.mark()
        if mark is None:
            if config.rope != "none":
                tokens = ((where, turn(part, where)) for where, part in tokens)
            fill(encoder, tokens, length, scratch, positioned=positioned)
            mark = Mark()
            scratch.commit(mark)
        chunks = -(-rows_of(encoder, length) // scratch.chunk)
        for step in range(sweeps_of(encoder) * chunks):
            sweep, passed = divmod(step, chunks)
            layer, reverse = divmod(sweep, sweeps_of(encoder) // config.depth)
            number = chunks - 1 - passed if reverse else passed
            start = number * scratch.chunk
            stop = min(start + scratch.chunk, rows_of(encoder, length))
            if step >= mark.step:
                state = mark.state if passed else DirectionState()
                part = Part(layer, bool(reverse), start, stop)
                state = _mix_part(encoder, scratch, part, state, turn)
                if state.h is not None and not torch.isfinite(state.h).all():
                    raise ModelError(
                        f"a state of layer {layer + 1} of {config.depth} became infinite or NaN in "
                        f"chunk {number + 1} of {chunks}, {'backwards' if reverse else 'forwards'} "
                        f"over rows {start} to {stop}; check the weights, and the pixels there"
                    )
                mark = Mark(step + 1, state)
                scratch.commit(mark)
            on_chunk(stop - start)
        return Mixed(vector_of(encoder, scratch, length), encoder, scratch, length)


def rows_of(encoder: VisionMamba, length: int) -> int:
    """Return the rows of a sequence with its class tokens."""
    return length + len(encoder.config.class_index(length))


def sweeps_of(encoder: VisionMamba) -> int:
    """Return how often `mix`, or `mix_cross`, passes over all rows."""
    config = encoder.config
    if config.block == "cross":
        return 5 * config.depth
    return config.depth * (1 if config.directions == "forward" else 2)


def fill(
    encoder: VisionMamba,
    tokens: Iterable[tuple[NDArray[np.integer], Tensor]],
    length: int,
    scratch: Scratch,
    *,
    positioned: bool,
) -> None:
    """Put tokens and class tokens at their places, as the residual stream of the first layer."""
    came = 0
    for where, part in tokens:
        came += len(part)
        order = np.argsort(where)
        places = _places(encoder, length, np.asarray(where)[order])
        ordered = part[torch.from_numpy(order).to(part.device)]
        # One write for each run of neighbours.
        ends = np.flatnonzero(np.diff(places) != 1) + 1
        for start, stop in zip([0, *ends], [*ends, len(places)], strict=True):
            if stop > start:
                scratch.write(0, int(places[start]) + scratch.chunk, ordered[start:stop])
    if came != length:
        raise ValueError(f"the sequence has {length} tokens, and {came} came")
    index = encoder.config.class_index(length)
    if index:
        rows = encoder.class_rows(positioned=positioned)
        for place, row in zip(index, rows, strict=True):
            scratch.write(0, place + scratch.chunk, row[None])


def _places(encoder: VisionMamba, length: int, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the rows of tokens in the sequence with its class tokens."""
    index = encoder.config.class_index(length)
    places = np.asarray(tokens, np.int64)
    return places + (places >= index[0]) if index else places  # a second one comes last


def _mix_part(
    encoder: VisionMamba, scratch: Scratch, part: Part, state: DirectionState, turn: Turn
) -> DirectionState:
    """Mix one chunk of one layer in one direction; what it reads is left as it was."""
    layer, reverse, start, stop = part
    block, chunk, directions = encoder.layers[layer], scratch.chunk, encoder.config.directions
    assert isinstance(block, Block)
    here, there = layer % 2, 1 - layer % 2
    # v1 convolves in reading order on its way back too: the tokens before the chunk are its halo.
    taps = encoder.config.conv - 1 if reverse and directions == "v1" else 0
    reach = min(start, taps)
    residual = scratch.read(here, start - reach + chunk, stop + chunk)
    before, residual = residual[:reach], residual[reach:]
    added = scratch.read(there, start, stop) if reverse else torch.zeros_like(residual)
    finishes = reverse or directions == "forward"
    # Tokens are turned before each layer; so that it is done once, where they are written.
    rope = encoder.config.rope if layer + 1 < encoder.config.depth else "none"
    tiles = list(_tiles(stop - start, residual.device))
    for first, last in reversed(tiles) if reverse else tiles:
        if taps:
            seen = residual[max(0, first - taps) : first] if first else before
            state = state._replace(halo=_halo(block, seen))
        share, state = block.step(residual[None, first:last], state, reverse=reverse)
        tile = added[first:last].add_(share[0])
        if finishes:
            places = slice(start + first, start + last)
            if rope == "tokens":
                tile.copy_(turn(tile, places))
            tile += residual[first:last]
            if rope == "tokens and residual":
                tile.copy_(turn(tile, places))
    scratch.write(there, start + chunk if finishes else start, added)
    return state


def _tiles(length: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Cut a chunk in what a device takes at once: what fits the cache of a CPU."""
    size = TILE if device.type == "cpu" else max(1, length)
    for start in range(0, length, size):
        yield start, min(start + size, length)


def _halo(block: Block, before: Tensor) -> Tensor:
    """Return what the convolution still sees of the tokens before a tile, (1, taps - 1, E)."""
    projected: Tensor = block.mixer.in_proj(block.norm(before))
    x, _ = projected.chunk(2, -1)
    halo = x.new_zeros(1, block.mixer.conv1d.kernel_size[0] - 1, x.shape[-1])
    halo[0, halo.shape[1] - len(x) :] = x
    return halo


def rows_like(encoder: VisionMamba) -> Tensor:
    """Return a tensor of the dtype and on the device of the rows of an encoder."""
    return next(encoder.parameters()).detach()


def _finished(encoder: VisionMamba, scratch: Scratch, start: int, stop: int) -> Tensor:
    """Return rows of the mixed sequence, class tokens among them."""
    table = encoder.config.depth % 2
    with torch.inference_mode():
        rows: Tensor = encoder.norm_f(
            scratch.read(table, start + scratch.chunk, stop + scratch.chunk)
        )
        return rows


def vector_of(encoder: VisionMamba, scratch: Scratch, length: int) -> Tensor:
    """Read the vector of the sequence out."""
    index = encoder.config.class_index(length)
    if index:
        ends = [_finished(encoder, scratch, place, place + 1) for place in index]
        return torch.cat(ends).mean(0)
    if encoder.config.pool == "last":
        if not length:
            raise ValueError("an empty sequence has no last token to be read out by")
        return _finished(encoder, scratch, length - 1, length)[0]
    total = torch.zeros(encoder.config.width, dtype=torch.float64)
    for start in range(0, length, READ_OUT_ROWS):
        rows = _finished(encoder, scratch, start, min(start + READ_OUT_ROWS, length))
        total += rows.sum(0, dtype=torch.float64).cpu()
    return (total / length).to(rows_like(encoder))
