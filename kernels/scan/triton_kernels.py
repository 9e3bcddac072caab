"""The scan on a GPU, forward: three phases over chunks of the sequence, each one launch.

1. `summarise` walks each chunk from its end towards its start and sums what every token adds to the
   state after the chunk, ``exp(A s) dt u B``, where s is the sum of the step sizes behind it. It
   stops once every such weight is below what float32 can add.
2. `prefix` combines these summaries along each sequence: ``h = exp(A s) h + h_local``. Now the
   state before each chunk is known.
3. `scan` walks each chunk from there and writes the outputs.

(A fourth, in `triton_spoil`, carries on what is not finite, past which phase 1 may stop.)

A program owns a chunk of one direction for BLOCK channels: the channels lie across the lanes of one
warp, all states of a channel in the registers of its lane, and the tokens follow one another. So
nothing is exchanged between lanes, and sums have one order. A reverse scan walks the same memory
downwards. Sequences, of equal lengths or packed, lie one after another in (token, channel) rows;
token numbers are 64 bits wide. `triton_backward` holds the gradients.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"
# ruff: noqa: RUF005, SIM102
# Triton compiles less than Python: a kernel has no types, and what is known to the compiler must be
# an if of its own.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gigavim.kernels.scan.triton_tile import (
    LOG2E,
    below,
    below_both,
    channels_of,
    incoming,
    load,
    load_optional,
    load_step,
    load_weights,
    place,
    rates,
    sigmoid,
    store,
    weight_offsets,
)

ROWS = tl.constexpr(16)
"""Chunks that `prefix` combines at once."""


class Summarise(NamedTuple):
    """One direction of phase 1; strides are from token to token."""

    drive: Any
    drive_stride: int
    dt: Any
    dt_stride: int
    A: Any
    weights: Any
    weights_stride: int
    z: Any
    z_stride: int
    dt_bias: Any
    local: Any
    """Out: the state after each chunk that starts from zero, (chunks, n, d)."""
    sums: Any
    """Out: the step sizes of each chunk, summed, (chunks, d)."""
    reverse: bool


class Prefix(NamedTuple):
    """One direction of phase 2."""

    A: Any
    h: Any
    local: Any
    sums: Any
    states: Any
    """Out: the state before each chunk, (chunks, n, d)."""
    h_last: Any
    s: Any
    """Out, or None: the step sizes of each sequence, summed, (sequences, d)."""
    reverse: bool


class Scan(NamedTuple):
    """One direction of phase 3."""

    u: Any
    u_stride: int
    dt: Any
    dt_stride: int
    A: Any
    B: Any
    B_stride: int
    C: Any
    C_stride: int
    D: Any
    z: Any
    z_stride: int
    dt_bias: Any
    h: Any
    states: Any
    """From phase 2, or None if each sequence is one chunk, which starts from h.

    Out: the state after each chunk, in place of the one before.
    """
    y: Any
    """Out, or None."""
    h_last: Any
    """Out, or None: the state after each sequence, (sequences, n, d)."""
    checkpoints: Any
    """Out, or None: the state before every SEGMENT-th token of a chunk, (segments, n, d)."""
    reverse: bool


@triton.jit
def summarise(
    directions, chunks,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
    WIDTH: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr, WHOLE: tl.constexpr,
    CUT: tl.constexpr, UNROLL: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Run phase 1, or, if ADJOINT, its mirror image for gradients.

    WHOLE sums every step size, and summarises the chunk that is followed by none too.
    """
    for i in tl.static_range(len(directions)):
        if tl.program_id(2) == i:
            _summarise(
                directions[i], chunks, D, N, BLOCK, STATES, WIDTH, SOFTPLUS, ADJOINT, WHOLE, CUT,
                UNROLL, FLOAT,
            )  # fmt: skip


@triton.jit
def _summarise(
    p, chunks,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
    WIDTH: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr, WHOLE: tl.constexpr,
    CUT: tl.constexpr, UNROLL: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(D, BLOCK)
    block = tl.program_id(0) % blocks
    chunk = tl.program_id(0) // blocks
    _, first, behind, start, stop = place(chunk, chunks)
    # Scans that go on upwards are summarised downwards.
    upwards = p.reverse != ADJOINT
    last = tl.where(upwards, first, behind - 1)
    if WHOLE or chunk != last:
        d = channels_of(block, BLOCK)
        n = tl.arange(0, STATES)
        d_mask = below(d, D, BLOCK)
        n_mask = below(n, N, STATES)
        mask = below_both(n, d, N, D, BLOCK, STATES)
        A = rates(p.A, n, d, mask, D, FLOAT)
        bias = load_optional(p.dt_bias, d, d_mask, FLOAT)
        weights = weight_offsets(n, d, block * BLOCK, N, WIDTH)
        slowest = tl.min(-A, 0)

        h = tl.zeros([STATES, BLOCK], FLOAT)
        s = tl.zeros([BLOCK], FLOAT)
        sign = tl.where(upwards, 1, -1).to(tl.int64)
        token = tl.where(upwards, start, stop - 1)
        rest = stop - start
        fading = 1
        while (rest > 0) & (fading > 0):
            for k in tl.static_range(UNROLL):
                # Tokens beyond the chunk count as steps of zero.
                at = token + tl.minimum(k, rest - 1) * sign
                step = load_step(p.dt + at * p.dt_stride + d, d_mask, bias, SOFTPLUS, FLOAT)
                step = tl.where(d * 0 + k < rest, step, 0.0)
                if ADJOINT:
                    s += step
                    if p.drive is not None:
                        drive = load(p.drive + at * p.drive_stride + d, d_mask, FLOAT)
                        if p.z is not None:
                            z = load(p.z + at * p.z_stride + d, d_mask, FLOAT)
                            drive *= z * sigmoid(z)
                        drive = tl.where(d * 0 + k < rest, drive, 0.0)
                        weight = load_weights(
                            p.weights + at * p.weights_stride + weights, n_mask, mask, FLOAT
                        )
                        h += tl.exp2(s[None, :] * A) * (drive[None, :] * weight)
                else:
                    drive = load(p.drive + at * p.drive_stride + d, d_mask, FLOAT)
                    weight = load_weights(
                        p.weights + at * p.weights_stride + weights, n_mask, mask, FLOAT
                    )
                    h += tl.exp2(s[None, :] * A) * ((step * drive)[None, :] * weight)
                    s += step
            token += UNROLL * sign
            rest -= UNROLL
            if not WHOLE:
                # NaN counts as fading, lest it cut the sums of other channels short.
                fading = tl.max(tl.where((s * slowest >= CUT) | (d >= D), 0, 1), 0)

        row = chunk.to(tl.int64)
        store(p.local + (row * N + n[:, None]) * D + d[None, :], h, mask)
        store(p.sums + row * D + d, s, d_mask)


@triton.jit
def _then(s1, h1, s2, h2):
    return s1 + s2, tl.exp2(s2) * h1 + h2


@triton.jit
def prefix(
    directions, chunks,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Run phase 2; the states after the sequences too, if WHOLE."""
    for i in tl.static_range(len(directions)):
        if tl.program_id(2) == i:
            _prefix(directions[i], chunks, D, N, BLOCK, WHOLE, FLOAT)


@triton.jit
def _prefix(
    p, chunks,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(D * N, BLOCK)
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    e = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = below(e, N * D, BLOCK)
    d = e % D
    if chunks.table is None:
        first = sequence * chunks.per_sequence
        count = chunks.per_sequence
    else:
        first = tl.load(chunks.first + sequence)
        count = tl.load(chunks.first + sequence + 1) - first

    A = load(p.A + e, mask, FLOAT) * LOG2E
    h = tl.zeros([BLOCK], FLOAT)
    if p.h is not None:
        h = load(p.h + sequence * (N * D) + e, mask, FLOAT)
    total = tl.zeros([BLOCK], FLOAT)
    ahead = tl.where(p.reverse, -1, 1)
    begin = tl.where(p.reverse, first + count - 1, first)
    if count > 0:
        store(p.states + begin * (N * D) + e, h, mask)
    rows = tl.arange(0, ROWS)
    # What the chunk that is followed by none adds is asked for only if WHOLE.
    summaries = count if WHOLE else count - 1
    for done in range(0, summaries, ROWS):
        i = done + rows[:, None]
        chunk = begin + i * ahead
        known = (i < summaries) & (e < N * D)[None, :]
        s = load(p.sums + chunk * D + d[None, :], known, FLOAT)
        local = load(p.local + chunk * (N * D) + e[None, :], known, FLOAT)
        decay, after = tl.associative_scan((s * A[None, :], local), 0, _then)
        after += tl.exp2(decay) * h[None, :]
        follows = (i + 1 < count) & (e < N * D)[None, :]
        store(p.states + (chunk + ahead) * (N * D) + e[None, :], after, follows)
        h = tl.sum(tl.where(rows[:, None] == ROWS - 1, after, 0.0), 0)
        total += tl.sum(s, 0)
    if WHOLE or count == 0:
        store(p.h_last + sequence * (N * D) + e, h, mask)
    if p.s is not None:
        tl.store(p.s + sequence * D + d, total, e < D)


@triton.jit
def scan(
    directions, chunks,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
    B_WIDTH: tl.constexpr, C_WIDTH: tl.constexpr, SOFTPLUS: tl.constexpr, UNROLL: tl.constexpr,
    SEGMENT: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Run phase 3."""
    for i in tl.static_range(len(directions)):
        if tl.program_id(2) == i:
            _scan(
                directions[i], chunks, D, N, BLOCK, STATES, B_WIDTH, C_WIDTH, SOFTPLUS, UNROLL,
                SEGMENT, FLOAT,
            )  # fmt: skip


@triton.jit
def _scan(
    p, chunks,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
    B_WIDTH: tl.constexpr, C_WIDTH: tl.constexpr, SOFTPLUS: tl.constexpr, UNROLL: tl.constexpr,
    SEGMENT: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(D, BLOCK)
    block = tl.program_id(0) % blocks
    chunk = tl.program_id(0) // blocks
    sequence, first, behind, start, stop = place(chunk, chunks)
    d = channels_of(block, BLOCK)
    n = tl.arange(0, STATES)
    d_mask = below(d, D, BLOCK)
    n_mask = below(n, N, STATES)
    mask = below_both(n, d, N, D, BLOCK, STATES)
    A = rates(p.A, n, d, mask, D, FLOAT)
    bias = load_optional(p.dt_bias, d, d_mask, FLOAT)
    skip = load_optional(p.D, d, d_mask, FLOAT)
    B_offsets = weight_offsets(n, d, block * BLOCK, N, B_WIDTH)
    C_offsets = weight_offsets(n, d, block * BLOCK, N, C_WIDTH)

    h = incoming(p.states, p.h, chunk, sequence, n, d, mask, N, D, FLOAT)
    sign = tl.where(p.reverse, -1, 1).to(tl.int64)
    token = tl.where(p.reverse, stop - 1, start)
    count = stop - start
    # Pointers that move on cost less than 64-bit products for every token.
    u = p.u + token * p.u_stride
    dt = p.dt + token * p.dt_stride
    B = p.B + token * p.B_stride
    C = token if p.C is None else p.C + token * p.C_stride
    z = token if p.z is None else p.z + token * p.z_stride
    y = token if p.y is None else p.y + token * D
    done = start - start
    while done < count:
        if p.checkpoints is not None:
            if done % SEGMENT == 0:
                row = (start + done) // SEGMENT + chunk
                store(p.checkpoints + (row * N + n[:, None]) * D + d[None, :], h, mask)
        if done + UNROLL <= count:
            outputs = ()
            for k in tl.static_range(UNROLL):
                at = k * sign
                h, output = _advance(
                    h, p, A, skip, bias,
                    u + at * p.u_stride + d, dt + at * p.dt_stride + d,
                    B + at * p.B_stride + B_offsets, C + at * p.C_stride + C_offsets,
                    z + at * p.z_stride + d, n_mask, d_mask, mask, SOFTPLUS, FLOAT,
                )  # fmt: skip
                outputs = outputs + (output,)
            # Together, because no load may overtake a store.
            if p.y is not None:
                for k in tl.static_range(UNROLL):
                    store(y + k * sign * D + d, outputs[k], d_mask)
            ahead = UNROLL * sign
        else:
            h, output = _advance(
                h, p, A, skip, bias, u + d, dt + d, B + B_offsets, C + C_offsets, z + d,
                n_mask, d_mask, mask, SOFTPLUS, FLOAT,
            )  # fmt: skip
            if p.y is not None:
                store(y + d, output, d_mask)
            ahead = sign
        u += ahead * p.u_stride
        dt += ahead * p.dt_stride
        B += ahead * p.B_stride
        C += ahead * p.C_stride
        z += ahead * p.z_stride
        y += ahead * D
        done += ahead * sign

    if p.states is not None:
        # The difference is 0; without it the address is computed before the loop, and registers
        # that hold it are spilled.
        row = chunk + (done - count)
        store(p.states + (row * N + n[:, None]) * D + d[None, :], h, mask)
    if p.h_last is not None:
        if chunk == tl.where(p.reverse, first, behind - 1):
            at = (sequence.to(tl.int64) * N + n[:, None]) * D + d[None, :]
            store(p.h_last + at, h, mask)


@triton.jit
def _advance(
    h, p, A, skip, bias, u, dt, B, C, z, n_mask, d_mask, mask,
    SOFTPLUS: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Return the state after a token, and its output."""
    step = load_step(dt, d_mask, bias, SOFTPLUS, FLOAT)
    x = load(u, d_mask, FLOAT)
    h = tl.exp2(step[None, :] * A) * h + (step * x)[None, :] * load_weights(B, n_mask, mask, FLOAT)
    y = x
    if p.y is not None:
        y = tl.sum(h * load_weights(C, n_mask, mask, FLOAT), 0)
        if skip is not None:
            y += skip * x
        if p.z is not None:
            gate = load(z, d_mask, FLOAT)
            y *= gate * sigmoid(gate)
    return h, y
