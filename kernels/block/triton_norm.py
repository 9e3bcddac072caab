"""Norm and input projection in one pass: ``(norm(t) * weight + bias) @ W.T`` of each token t.

A program takes TOKENS tokens. It walks over their numbers, BLOCK at a time, for the mean square (or
for the mean, and then for the variance), summed in float32. Then it computes OUTPUTS outputs at a
time: it walks over the numbers again, norms them, rounds them to the dtype of the products and
multiplies them by their columns of the weights, accumulated in float32. So tokens are read from
memory once, and again from the nearest caches, as the weights are, which all programs share. A
token may have any number of numbers; what lies beyond them is zero, and adds nothing.

Bytes of a token in Vim-Ti (192 numbers in float32, 768 outputs in bfloat16): 768 read, 1,536
written. With the norm apart, it would write 384 to 768, and the projection read as many.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles less than Python: a kernel has no types.

from __future__ import annotations

import triton
import triton.language as tl

from gigavim.kernels.scan.triton_tile import load, store


@triton.jit
def norm_project(
    tokens, tokens_stride, norm_weight, norm_bias, weight, out, count, eps,
    M: tl.constexpr, OUT: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
    OUTPUTS: tl.constexpr, FLOAT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write what `reference.norm_project` defines, (count, OUT)."""
    row = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    known = (row < count)[:, None]
    tokens += row[:, None] * tokens_stride

    mean = tl.zeros([TOKENS], FLOAT)
    if norm_bias is not None:
        for first in range(0, M, BLOCK):
            m = first + tl.arange(0, BLOCK)
            mean += tl.sum(load(tokens + m[None, :], known & (m < M)[None, :], FLOAT), 1)
        mean /= M
    squares = tl.zeros([TOKENS], FLOAT)
    for first in range(0, M, BLOCK):
        m = first + tl.arange(0, BLOCK)
        x = load(tokens + m[None, :], known & (m < M)[None, :], FLOAT) - mean[:, None]
        squares += tl.sum(tl.where((m < M)[None, :], x * x, 0.0), 1)
    factor = 1.0 / tl.sqrt(squares / M + eps)

    for first_output in range(0, OUT, OUTPUTS):
        o = first_output + tl.arange(0, OUTPUTS)
        total = tl.zeros([TOKENS, OUTPUTS], FLOAT)
        for first in range(0, M, BLOCK):
            m = first + tl.arange(0, BLOCK)
            x = load(tokens + m[None, :], known & (m < M)[None, :], FLOAT) - mean[:, None]
            x *= factor[:, None] * load(norm_weight + m, m < M, FLOAT)[None, :]
            if norm_bias is not None:
                x += load(norm_bias + m, m < M, FLOAT)[None, :]
            w = tl.load(
                weight + o[None, :] * M + m[:, None], (o < OUT)[None, :] & (m < M)[:, None], 0.0
            )
            x = x.to(w.dtype)
            total = tl.dot(x, w, total, out_dtype=FLOAT, input_precision=PRECISION)
        store(out + row[:, None] * OUT + o[None, :], total, known & (o < OUT)[None, :])
