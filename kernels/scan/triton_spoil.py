"""The scan on a GPU, forward, phase 4: what is not finite spoils every token after it.

Phase 1 looks no further back than finite values can be felt. A NaN is felt for ever: once in a
state it stays there, whatever decays. One that phase 1 did not come to is missing from the states
that phase 2 hands out, so that later chunks are scanned as if it had never been. But phase 3 does
walk over it, and leaves the state after each chunk in the place of the one before. `spoil` looks
through these along each sequence. Behind the first chunk that ends in a state which is not finite
it overwrites all outputs of that channel, and the last state, with NaN. As a rule there is none,
and all that the phase reads is one state a chunk; chunks are long.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"
# Triton compiles less than Python: a kernel has no types.

from __future__ import annotations

import triton
import triton.language as tl

from gigavim.kernels.scan.triton_tile import below_both, load, place, store

ROWS = tl.constexpr(16)
"""Chunks that are looked at together, and tokens that are overwritten together."""


@triton.jit
def spoil(
    directions, chunks,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
    FLOAT: tl.constexpr,
):  # fmt: skip
    """Run phase 4, on the directions of phase 3."""
    for i in tl.static_range(len(directions)):
        if tl.program_id(2) == i:
            _spoil(directions[i], chunks, D, N, BLOCK, STATES, FLOAT)


@triton.jit
def _spoil(
    p, chunks,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
    FLOAT: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(D, BLOCK)
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, STATES)
    mask = below_both(n, d, N, D, BLOCK, STATES)
    tile = n[:, None] * D + d[None, :]
    if chunks.table is None:
        first = sequence * chunks.per_sequence
        count = chunks.per_sequence
    else:
        first = tl.load(chunks.first + sequence)
        count = tl.load(chunks.first + sequence + 1) - first

    ahead = tl.where(p.reverse, -1, 1)
    begin = tl.where(p.reverse, first + count - 1, first)
    spoilt = tl.zeros([STATES, BLOCK], tl.int32)
    rows = tl.arange(0, ROWS)
    for done in range(0, count, ROWS):
        i = done + rows
        at = (begin + i * ahead)[:, None, None] * (N * D) + tile[None, :, :]
        known = (i < count)[:, None, None] & ((n < N)[:, None] & (d < D)[None, :])[None, :, :]
        ends = load(p.states + at, known, FLOAT)
        found = tl.max(tl.where(ends - ends == 0.0, 0, 1), 0)
        if tl.max(tl.max(found | spoilt, 0), 0) > 0:
            for k in range(tl.minimum(ROWS, count - done)):
                chunk = begin + (done + k) * ahead
                _overwrite(p.y, chunk, chunks, d, tl.max(spoilt, 0) > 0, D, FLOAT)
                h = load(p.states + chunk * (N * D) + tile, mask, FLOAT)
                spoilt = tl.where(h - h == 0.0, spoilt, 1)
    last = p.h_last + sequence * (N * D) + tile
    tl.store(last, tl.full([STATES, BLOCK], float("nan"), FLOAT), spoilt > 0)


@triton.jit
def _overwrite(y, chunk, chunks, d, spoilt, D: tl.constexpr, FLOAT: tl.constexpr):
    """Fill the outputs of a chunk with NaN, in the channels that are spoilt."""
    _, _, _, start, stop = place(chunk, chunks)
    if tl.max(spoilt.to(tl.int32), 0) > 0:
        for token in range(start, stop, ROWS):
            row = token + tl.arange(0, ROWS)
            at = y + row[:, None] * D + d[None, :]
            nan = tl.full([ROWS, d.shape[0]], float("nan"), FLOAT)
            store(at, nan, (row < stop)[:, None] & (spoilt & (d < D))[None, :])
