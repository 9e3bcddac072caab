"""What the kernels in Triton have in common: where chunks lie, and tiles of states and channels."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"
# ruff: noqa: RET505, SIM108
# Triton compiles less than Python: a kernel has no types, and what is known to the compiler must be
# an if of its own.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
HUGE = tl.constexpr(1e30)


class Chunks(NamedTuple):
    """Where the chunks lie: by arithmetic if all sequences are equally long, else by table."""

    size: int
    """Tokens in a chunk; the last one of a sequence may have fewer."""
    length: int
    """Tokens in a sequence."""
    per_sequence: int
    table: Any
    """Sequence, start and stop of each chunk, (chunks, 3), or None; unused ones are empty."""
    first: Any
    """The first chunk of each sequence, then the number of chunks, (sequences + 1,), or None."""


@triton.jit
def load(pointer, mask, FLOAT: tl.constexpr):
    """Load as FLOAT; zero where masked."""
    if mask is None:
        value = tl.load(pointer)
    else:
        value = tl.load(pointer, mask, 0.0)
    return value.to(FLOAT)


@triton.jit
def store(pointer, value, mask):
    """Store as whatever lies there."""
    if mask is None:
        tl.store(pointer, value.to(pointer.dtype.element_ty))
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask)


@triton.jit
def channels_of(block, BLOCK: tl.constexpr):
    """Return the channels of a block, such that no access to them is known to be aligned.

    Wider accesses would make the compiler spread the states over lanes, which then exchange them
    at every token. The second axis of the grid has one program, number 0; it does not know.
    """
    return block * BLOCK + tl.program_id(1) + tl.arange(0, BLOCK)


@triton.jit
def below(index, limit: tl.constexpr, SIZE: tl.constexpr):
    """Return which of SIZE indices at a time are below the limit, or None if all are for sure."""
    if limit % SIZE == 0:
        return None
    else:
        return index < limit


@triton.jit
def below_both(n, d, N: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr):
    """Return which states and channels there are, (n, d), or None if all are for sure."""
    if N % STATES == 0 and D % BLOCK == 0:
        return None
    else:
        return (n < N)[:, None] & (d < D)[None, :]


@triton.jit
def place(chunk, chunks):
    """Return the sequence of a chunk, its first chunk, the one behind its last, start and stop."""
    if chunks.table is None:
        sequence = chunk // chunks.per_sequence
        first = sequence * chunks.per_sequence
        behind = first + chunks.per_sequence
        offset = sequence.to(tl.int64) * chunks.length
        start = offset + (chunk - first).to(tl.int64) * chunks.size
        stop = tl.minimum(start + chunks.size, offset + chunks.length)
    else:
        sequence = tl.load(chunks.table + 3 * chunk)
        first = tl.load(chunks.first + sequence)
        behind = tl.load(chunks.first + sequence + 1)
        start = tl.load(chunks.table + 3 * chunk + 1)
        stop = tl.load(chunks.table + 3 * chunk + 2)
    return sequence, first, behind, start, stop


@triton.jit
def rates(A, n, d, mask, D: tl.constexpr, FLOAT: tl.constexpr):
    """Load A times log2(e), (n, d); what is masked decays at once."""
    A_tile = load(A + n[:, None] * D + d[None, :], mask, FLOAT) * LOG2E
    if mask is not None:
        A_tile = tl.where(mask, A_tile, -HUGE)
    return A_tile


@triton.jit
def incoming(
    states, h, chunk, sequence, n, d, mask, N: tl.constexpr, D: tl.constexpr, FLOAT: tl.constexpr
):
    """Load the state before a chunk, (n, d)."""
    if states is not None:
        return load(states + (chunk.to(tl.int64) * N + n[:, None]) * D + d[None, :], mask, FLOAT)
    elif h is not None:
        return load(h + (sequence.to(tl.int64) * N + n[:, None]) * D + d[None, :], mask, FLOAT)
    else:
        return tl.zeros([n.shape[0], d.shape[0]], FLOAT)


@triton.jit
def weight_offsets(n, d, first_channel, N: tl.constexpr, WIDTH: tl.constexpr):
    """Return where B or C lie: (n,) of a group of WIDTH channels, or (n, d) if constant."""
    if WIDTH == 0:
        offsets = d[None, :] * N + n[:, None]
    else:
        offsets = first_channel // WIDTH * N + n
    return offsets


@triton.jit
def load_weights(pointers, n_mask, mask, FLOAT: tl.constexpr):
    """Load B or C of a token, to multiply (n, d)."""
    if len(pointers.shape) == 1:
        return load(pointers, n_mask, FLOAT)[:, None]
    else:
        return load(pointers, mask, FLOAT)


@triton.jit
def softplus(x):
    """Return log(1 + exp(x)); the identity above 20 comes out by rounding."""
    e = tl.exp2(tl.abs(x) * -LOG2E)
    if x.dtype == tl.float64:
        log1p = tl.log(1 + e)
    else:
        # Minimax on [0, 1], 1 at 0: the logarithm of 1 + e would lose a small e.
        p = e * 0.00536482 - 0.030065775
        p = p * e + 0.07920451
        p = p * e - 0.137538
        p = p * e + 0.19153655
        p = p * e - 0.24857163
        p = p * e + 0.33321324
        p = p * e - 0.49999648
        log1p = (p * e + 1.0) * e
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def load_step(pointer, mask, bias, SOFTPLUS: tl.constexpr, FLOAT: tl.constexpr):
    """Load dt of a token and turn it into the step size."""
    x = load(pointer, mask, FLOAT)
    if bias is not None:
        x += bias
    if SOFTPLUS:
        x = softplus(x)
    return x


@triton.jit
def load_optional(pointer, index, mask, FLOAT: tl.constexpr):
    """Load, or return None where there is nothing."""
    if pointer is None:
        return None
    else:
        return load(pointer + index, mask, FLOAT)
