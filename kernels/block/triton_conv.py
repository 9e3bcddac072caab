"""Convolution, SiLU and all projections before the scan, in one pass, for one direction.

A program takes TOKENS tokens, and walks over the channels, CHANNELS at a time. Of each block it
reads the tokens once for each tap, shifted by one row, all but the first time from the nearest
cache. Rows beyond the sequence come from the halo, or are zero; each row tells by itself, so tokens
of many sequences may share a program. ``u = silu(conv(x) + bias)`` is written, and multiplied by
its columns of `x_proj` into an accumulator (TOKENS, r + 2 n), which after the last block holds the
low-rank step sizes, B and C. B and C are written in float32. A second walk over the channels
multiplies the low-rank step sizes, still in registers, by `dt_proj`.

Bytes of a token and direction in Vim-Ti (384 channels in bfloat16): 768 read, 768 of u, 768 of dt
and 128 of B and C written; apart, 2,400 more: padding, SiLU and projection each read or write u.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles less than Python: a kernel has no types.

from __future__ import annotations

import triton
import triton.language as tl

from gigavim.kernels.scan.triton_tile import load, sigmoid, store


@triton.jit
def conv_project(
    x, x_stride, halo, taps, bias, x_proj, dt_proj, u, dt, BC, count, length,
    D: tl.constexpr, N: tl.constexpr, RANK: tl.constexpr, TAPS: tl.constexpr,
    REVERSE: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, PROJECTED: tl.constexpr,
    FLOAT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write what `reference.conv_project` defines, of `count` tokens in sequences of `length`."""
    row = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    sequence = row // length
    # How many tokens there are between this one and the end that the convolution looks to.
    behind = row - sequence * length
    if REVERSE:
        behind = length - 1 - behind
    p = tl.arange(0, PROJECTED)

    projected = tl.zeros([TOKENS, PROJECTED], FLOAT)
    for first in range(0, D, CHANNELS):
        d = first + tl.arange(0, CHANNELS)
        here = (row < count)[:, None] & (d < D)[None, :]
        value = tl.zeros([TOKENS, CHANNELS], FLOAT) + load(bias + d, d < D, FLOAT)[None, :]
        for away in tl.static_range(TAPS):
            at = row + away if REVERSE else row - away
            inside = (behind >= away)[:, None]
            tap = load(taps + d * TAPS + (TAPS - 1 - away), d < D, FLOAT)
            seen = load(x + at[:, None] * x_stride + d[None, :], here & inside, FLOAT)
            if halo is not None:
                # The halo has TAPS - 1 tokens, in the order of the sequence.
                edge = away - 1 - behind if REVERSE else TAPS - 1 + behind - away
                edge += sequence * (TAPS - 1)
                seen += load(
                    halo + edge[:, None] * D + d[None, :], here & (behind < away)[:, None], FLOAT
                )
            value += tap[None, :] * seen
        activated = (value * sigmoid(value)).to(u.dtype.element_ty)
        tl.store(u + row[:, None] * D + d[None, :], activated, here)
        w = tl.load(
            x_proj + p[None, :] * D + d[:, None],
            (p < RANK + 2 * N)[None, :] & (d < D)[:, None], 0.0,
        )  # fmt: skip
        projected = tl.dot(activated, w, projected, out_dtype=FLOAT, input_precision=PRECISION)

    weights = (row < count)[:, None] & ((p >= RANK) & (p < RANK + 2 * N))[None, :]
    store(BC + row[:, None] * (2 * N) + (p - RANK)[None, :], projected, weights)
    # B and C must not reach the step sizes, not even as infinity times zero.
    low = tl.where((p < RANK)[None, :], projected, 0.0).to(dt_proj.dtype.element_ty)
    for first in range(0, D, CHANNELS):
        d = first + tl.arange(0, CHANNELS)
        w = tl.load(
            dt_proj + d[None, :] * RANK + p[:, None], (d < D)[None, :] & (p < RANK)[:, None], 0.0
        )
        step = tl.dot(low, w, out_dtype=FLOAT, input_precision=PRECISION)
        store(dt + row[:, None] * D + d[None, :], step, (row < count)[:, None] & (d < D)[None, :])
