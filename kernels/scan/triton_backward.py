"""The scan on a GPU, backward: the gradients of one chunk for each program.

The adjoint g of the state runs against the scan, ``g = C dy + exp(A dt) g``, and so obeys the same
law: `summarise` and `prefix`, mirrored, give it at the end of every chunk. No state is divided by a
decay to get the one before it. The states are recomputed instead, twice: `scan` leaves one at every
SEGMENT-th token. From the last segment of a chunk to its first, one scan leaves every UNROLL-th
state in scratch memory; from the last part of a segment to its first, another keeps all UNROLL
states in registers, where the walk backwards finds them.

Gradients of B and C are sums over channels. Every block of channels writes its own, and PyTorch
adds them up, so that the order of the sum is always the same; so with A, D and the bias over
chunks.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"
# ruff: noqa: N815, RUF005, SIM102
# Triton compiles less than Python: a kernel has no types, and what is known to the compiler must be
# an if of its own.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gigavim.kernels.scan.triton_tile import (
    LOG2E,
    below_both,
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


class Backward(NamedTuple):
    """One direction; strides are from token to token, and outputs have none between them."""

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
    checkpoints: Any
    scratch: Any
    """(chunks, SEGMENT / UNROLL, n, d)."""
    dy: Any
    dy_stride: int
    dh_last: Any
    ds: Any
    adjoints: Any
    """The gradient of the state after each chunk, or None if each sequence is one chunk."""
    du: Any
    ddt: Any
    dA: Any
    """(chunks, n, d)."""
    dB: Any
    """(channel blocks, tokens, n), or if constant (chunks, n, d)."""
    dC: Any
    dD: Any
    """(chunks, d)."""
    dz: Any
    dbias: Any
    """(chunks, d)."""
    dh: Any
    """Or None, (sequences, n, d)."""
    reverse: bool


@triton.jit
def backward(
    directions, chunks, tokens,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
    B_WIDTH: tl.constexpr, C_WIDTH: tl.constexpr, SOFTPLUS: tl.constexpr, UNROLL: tl.constexpr,
    SEGMENT: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Write the gradients of all inputs, or parts of them that PyTorch adds up."""
    for i in tl.static_range(len(directions)):
        if tl.program_id(2) == i:
            _backward(
                directions[i], chunks, tokens, D, N, BLOCK, STATES, B_WIDTH, C_WIDTH, SOFTPLUS,
                UNROLL, SEGMENT, FLOAT,
            )  # fmt: skip


@triton.jit
def _backward(
    p, chunks, tokens,
    D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
    B_WIDTH: tl.constexpr, C_WIDTH: tl.constexpr, SOFTPLUS: tl.constexpr, UNROLL: tl.constexpr,
    SEGMENT: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(D, BLOCK)
    block = tl.program_id(0) % blocks
    chunk = tl.program_id(0) // blocks
    sequence, first, behind, start, stop = place(chunk, chunks)
    # Wide accesses, which `channels_of` avoids, are welcome here: they give each lane 4 x 4 states
    # and channels, which makes the sums over either short.
    d = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, STATES)
    d_mask = d < D
    mask = below_both(n, d, N, D, BLOCK, STATES)
    A = rates(p.A, n, d, mask, D, FLOAT)
    bias = load_optional(p.dt_bias, d, d_mask, FLOAT)
    skip = load_optional(p.D, d, d_mask, FLOAT)
    B_offsets = weight_offsets(n, d, block * BLOCK, N, B_WIDTH)
    C_offsets = weight_offsets(n, d, block * BLOCK, N, C_WIDTH)
    ds = load_optional(p.ds, sequence * D + d, d_mask, FLOAT)

    g = incoming(p.adjoints, p.dh_last, chunk, sequence, n, d, mask, N, D, FLOAT)
    dA = tl.zeros([STATES, BLOCK], FLOAT)
    dB_constant = tl.zeros([STATES, BLOCK], FLOAT)
    dC_constant = tl.zeros([STATES, BLOCK], FLOAT)
    dD = tl.zeros([BLOCK], FLOAT)
    dbias = tl.zeros([BLOCK], FLOAT)
    sign = tl.where(p.reverse, -1, 1).to(tl.int64)
    begin = tl.where(p.reverse, stop - 1, start)
    count = stop - start
    segments = tl.cdiv(count, SEGMENT)
    scratch = p.scratch + chunk.to(tl.int64) * (SEGMENT // UNROLL * N * D)
    tile = n[:, None] * D + d[None, :]
    # What does not change would, moved out of the loop, take registers that there are not.
    for back in tl.range(segments, disable_licm=True):
        segment = (segments - 1 - back) * SEGMENT
        parts = tl.cdiv(tl.minimum(count - segment, SEGMENT), UNROLL)
        row = (start + segment) // SEGMENT + chunk
        h = load(p.checkpoints + row * (N * D) + tile, mask, FLOAT)
        # The parts before have been read: only now may others take their place.
        tl.debug_barrier()
        store(scratch + tile, h, mask)
        for i in range(1, parts):
            for k in range(UNROLL):
                token = begin + (segment + (i - 1) * UNROLL + k) * sign
                step = load_step(p.dt + token * p.dt_stride + d, d_mask, bias, SOFTPLUS, FLOAT)
                u = load(p.u + token * p.u_stride + d, d_mask, FLOAT)
                weight = load_weights(p.B + token * p.B_stride + B_offsets, n < N, mask, FLOAT)
                h = tl.exp2(step[None, :] * A) * h + (step * u)[None, :] * weight
            store(scratch + i * (N * D) + tile, h, mask)
        tl.debug_barrier()
        for i in range(parts):
            part = segment + (parts - 1 - i) * UNROLL
            h = load(scratch + (parts - 1 - i) * (N * D) + tile, mask, FLOAT)
            states = (h,)
            for k in tl.static_range(UNROLL):
                # Tokens beyond the chunk are zero, and so are their steps.
                token = begin + (part + k) * sign
                limit = tl.where(part + k < count, D, 0)
                step = load_step(p.dt + token * p.dt_stride + d, d < limit, bias, SOFTPLUS, FLOAT)
                step = tl.where(d < limit, step, 0.0)
                u = load(p.u + token * p.u_stride + d, d < limit, FLOAT)
                weight = _weights(p.B + token * p.B_stride + B_offsets, n, d, limit, N, D, FLOAT)
                h = tl.exp2(step[None, :] * A) * h + (step * u)[None, :] * weight
                states = states + (h,)

            for k in tl.static_range(UNROLL - 1, -1, -1):
                token = begin + (part + k) * sign
                limit = tl.where(part + k < count, D, 0)
                here = d < limit
                step = load_step(p.dt + token * p.dt_stride + d, here, bias, SOFTPLUS, FLOAT)
                step = tl.where(here, step, 0.0)
                u = load(p.u + token * p.u_stride + d, here, FLOAT)
                du = tl.zeros([BLOCK], FLOAT)
                if p.C is not None:
                    dy = load(p.dy + token * p.dy_stride + d, here, FLOAT)
                    weight = _weights(
                        p.C + token * p.C_stride + C_offsets, n, d, limit, N, D, FLOAT
                    )
                    if p.z is not None:
                        y = tl.sum(states[k + 1] * weight, 0)
                        if skip is not None:
                            y += skip * u
                        z = load(p.z + token * p.z_stride + d, here, FLOAT)
                        gate = sigmoid(z)
                        store(p.dz + token * D + d, dy * y * gate * (1.0 + z * (1.0 - gate)), here)
                        dy *= z * gate
                    if skip is not None:
                        du += skip * dy
                        dD += dy * u
                    g += weight * dy[None, :]
                    dC = states[k + 1] * dy[None, :]
                    if C_WIDTH == 0:
                        dC_constant += dC
                    else:
                        at = (block.to(tl.int64) * tokens + token) * N + n
                        tl.store(p.dC + at, tl.sum(dC, 1), (n < N) & (n * 0 < limit))

                dB = g * (step * u)[None, :]
                if B_WIDTH == 0:
                    dB_constant += dB
                else:
                    at = (block.to(tl.int64) * tokens + token) * N + n
                    tl.store(p.dB + at, tl.sum(dB, 1), (n < N) & (n * 0 < limit))
                weight = _weights(p.B + token * p.B_stride + B_offsets, n, d, limit, N, D, FLOAT)
                along_B = tl.sum(g * weight, 0)
                g *= tl.exp2(step[None, :] * A)
                decayed = g * states[k]
                dA += step[None, :] * decayed
                dstep = u * along_B + tl.sum(A * decayed, 0) * (1.0 / LOG2E)
                if ds is not None:
                    dstep += ds
                if SOFTPLUS:
                    x = load_step(p.dt + token * p.dt_stride + d, here, bias, False, FLOAT)
                    dstep *= sigmoid(x)
                dbias += tl.where(here, dstep, 0.0)
                store(p.ddt + token * D + d, dstep, here)
                store(p.du + token * D + d, du + step * along_B, here)

    row = chunk.to(tl.int64)
    tile += row * (N * D)
    store(p.dA + tile, dA, mask)
    if B_WIDTH == 0:
        store(p.dB + tile, dB_constant, mask)
    if p.C is not None and C_WIDTH == 0:
        store(p.dC + tile, dC_constant, mask)
    if p.D is not None:
        store(p.dD + row * D + d, dD, d_mask)
    if p.dt_bias is not None:
        store(p.dbias + row * D + d, dbias, d_mask)
    if p.dh is not None:
        if chunk == tl.where(p.reverse, behind - 1, first):
            at = (sequence.to(tl.int64) * N + n[:, None]) * D + d[None, :]
            store(p.dh + at, g, mask)


@triton.jit
def _weights(
    pointers, n, d, limit, N: tl.constexpr, D: tl.constexpr, FLOAT: tl.constexpr
):  # fmt: skip
    """Load B or C of a token, to multiply (n, d); zero where the limit is."""
    if len(pointers.shape) == 1:
        value = load(pointers, n < tl.where(limit > 0, N, 0), FLOAT)[:, None]
    else:
        value = load(pointers, (n < N)[:, None] & (d < limit)[None, :], FLOAT)
    return value
