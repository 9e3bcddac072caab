"""The definition of the selective scan, token by token, that every other implementation must meet.

Mamba's S6 (Gu and Dao 2023, arXiv 2312.00752, algorithm 2), with the input discretised by Euler's
rule (``dt B``) as in the published code, not by the zero-order hold of the paper's equation 4.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from gigavim.kernels.packed import scan_each


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    h: Tensor | None = None,
    reverse: bool = False,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `gigavim.kernels.selective_scan` as a loop over the tokens."""
    if offsets is not None:
        options = {"dt_softplus": dt_softplus, "reverse": reverse}
        return scan_each(selective_scan, offsets, u, dt, A, B, C, D, z, dt_bias, h, **options)
    batch, length, channels = u.shape
    states = A.shape[1]
    dtype = state_dtype(u)
    x, A = u.to(dtype), A.to(dtype)
    step = step_sizes(dt, dt_bias, dt_softplus, dtype)
    h = x.new_zeros(batch, channels, states) if h is None else h.to(dtype, copy=True)

    outputs = []
    tokens = zip(_in_order(step, reverse), _in_order(x, reverse), strict=True)
    weights = zip(_spread(B, u, reverse), _spread(C, u, reverse), strict=True)
    for (step_t, x_t), (B_t, C_t) in zip(tokens, weights, strict=True):
        h = torch.exp(step_t[..., None] * A) * h + (step_t * x_t)[..., None] * B_t
        outputs.append((h * C_t).sum(-1))
    if reverse:
        outputs.reverse()

    y = torch.stack(outputs, 1) if length else torch.zeros_like(x)
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * silu(z.to(dtype))
    return y.to(u.dtype), h


def state_dtype(u: Tensor) -> torch.dtype:
    """Return the dtype in which states and step sizes are kept for inputs like `u`."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dtype: torch.dtype) -> Tensor:
    """Return dt with its bias and softplus (the identity above 20) applied, shape (b, l, d)."""
    step = dt.to(dtype)
    if dt_bias is not None:
        step = step + dt_bias.to(dtype)
    return softplus(step) if dt_softplus else step


def _in_order(values: Tensor, reverse: bool) -> list[Tensor]:
    # unbind, because the backward of indexing would fill a whole gradient for every token.
    tokens = list(values.unbind(1))
    return tokens[::-1] if reverse else tokens


def _spread(weights: Tensor, u: Tensor, reverse: bool) -> Iterator[Tensor]:
    """Yield B or C of each token, shaped to multiply (b, d, n)."""
    _, length, channels = u.shape
    weights = weights.to(state_dtype(u))
    if weights.ndim == 2:
        yield from [weights] * length
        return
    if weights.ndim == 3:
        weights = weights[:, :, None]
    groups = weights.shape[2]
    for token in _in_order(weights, reverse):
        yield token if groups == 1 else token.repeat_interleave(channels // groups, 1)
