"""Gate, sum of both directions, output projection and residual sum, in one pass.

A program takes TOKENS tokens and OUTPUTS numbers of each. It walks over the channels, CHANNELS at a
time: reads both directions and the gate, forms ``(y + y_reverse) silu(z)`` in float32, rounds it to
the dtype of the products and multiplies it by its columns of the weights, accumulated in float32.
Scaled, and added to what is there, the sum is written once. With more numbers than OUTPUTS, the
programs of the same tokens follow one another and read the same from the GPU's cache.

The gate is here and not in the scans, because it is one for both directions: each scan would read z
and take its sigmoid. Bytes of a token in Vim-Ti (384 channels in bfloat16, residual in float32):
2,304 of y, y_reverse and z and 768 of the residual read, 768 written; in the scans the gate would
cost 768 more, a sum apart 768, a projection apart 768, and the residual sum apart 1,536.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles less than Python: a kernel has no types.

from __future__ import annotations

import triton
import triton.language as tl

from gigavim.kernels.scan.triton_tile import load, sigmoid, store


@triton.jit
def gate_project(
    y, y_reverse, z, z_stride, weight, gamma, out, out_stride, count, scale,
    D: tl.constexpr, M: tl.constexpr, ACCUMULATE: tl.constexpr, TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, FLOAT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write what `reference.gate_project` defines, (count, M), or add it if ACCUMULATE."""
    blocks = tl.cdiv(M, OUTPUTS)
    row = (tl.program_id(0) // blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    m = tl.program_id(0) % blocks * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros([TOKENS, OUTPUTS], FLOAT)
    for first in range(0, D, CHANNELS):
        d = first + tl.arange(0, CHANNELS)
        here = (row < count)[:, None] & (d < D)[None, :]
        value = load(y + row[:, None] * D + d[None, :], here, FLOAT)
        if y_reverse is not None:
            value += load(y_reverse + row[:, None] * D + d[None, :], here, FLOAT)
        gate = load(z + row[:, None] * z_stride + d[None, :], here, FLOAT)
        value = (value * gate * sigmoid(gate)).to(weight.dtype.element_ty)
        w = tl.load(weight + m[None, :] * D + d[:, None], (m < M)[None, :] & (d < D)[:, None], 0.0)
        total = tl.dot(value, w, total, out_dtype=FLOAT, input_precision=PRECISION)

    here = (row < count)[:, None] & (m < M)[None, :]
    total *= scale
    if gamma is not None:
        total *= load(gamma + m, m < M, FLOAT)[None, :]
    out += row[:, None] * out_stride + m[None, :]
    if ACCUMULATE:
        total += load(out, here, FLOAT)
    store(out, total, here)
