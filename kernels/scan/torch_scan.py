"""The scan in plain PyTorch, for devices and machines that no faster implementation serves.

PyTorch needs large tensors to be fast, and one token of one sequence is small. So chunks of the
sequence advance side by side as if they were a batch: once from zero, to learn the state that each
hands to the next, and once more from the right state. Nothing is divided by a decay, which would
overflow. For gradients each segment is recomputed in the backward pass, so that the states of one
segment alone are ever stored.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from gigavim.kernels.packed import scan_each
from gigavim.kernels.scan.reference import state_dtype, step_sizes

CHUNK = 16
"""Tokens that a chunk advances by."""
WIDTH = 2**17
"""State elements worth one call into PyTorch: many to hide its overhead, few to stay in a cache."""


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
    """Run `gigavim.kernels.selective_scan` chunk beside chunk."""
    if offsets is not None:
        options = {"dt_softplus": dt_softplus, "reverse": reverse}
        return scan_each(selective_scan, offsets, u, dt, A, B, C, D, z, dt_bias, h, **options)
    batch, length, channels = u.shape
    states = A.shape[1]
    dtype = state_dtype(u)
    x, A = u.to(dtype), A.to(dtype)
    B, C = _per_token(B, u), _per_token(C, u)
    step = step_sizes(dt, dt_bias, dt_softplus, dtype)
    h = x.new_zeros(batch, channels, states) if h is None else h.to(dtype, copy=True)

    chunks = max(1, WIDTH // max(1, batch * channels * states))
    starts = range(0, length, chunks * CHUNK)
    outputs = []
    for start in reversed(starts) if reverse else starts:
        part = slice(start, start + chunks * CHUNK)
        inputs = (step[:, part], x[:, part], A, B[:, part], C[:, part], h, reverse)
        if torch.is_grad_enabled():
            y, h = checkpoint(_scan_segment, *inputs, use_reentrant=False)
        else:
            y, h = _scan_segment(*inputs)
        outputs.append(y)
    if reverse:
        outputs.reverse()

    y = torch.cat(outputs, 1) if outputs else torch.zeros_like(x)
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * silu(z.to(dtype))
    return y.to(u.dtype), h


def _per_token(weights: Tensor, u: Tensor) -> Tensor:
    """Return B or C as (b, l, g, n); constant ones as a view."""
    weights = weights.to(state_dtype(u))
    if weights.ndim == 2:
        return weights.expand(*u.shape[:2], *weights.shape)
    return weights[:, :, None] if weights.ndim == 3 else weights


def _scan_segment(
    step: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Scan (b, l, d) of step and x from the state h; return the sum over the states, and h."""
    chunks, rest = divmod(step.shape[1], CHUNK)
    if rest:
        chunks = 1
    # (b, chunk, token, ...), or for one chunk of any length (b, 1, token, ...).
    step, x, B, C = (values.unflatten(1, (chunks, -1)) for values in (step, x, B, C))  # type: ignore[no-untyped-call]
    if chunks == 1:
        y, h = _advance(step, x, A, B, C, h[:, None], reverse)
        return y.flatten(1, 2), h[:, 0]

    zero = h.new_zeros(h.shape[0], chunks, *h.shape[1:])
    _, local = _advance(step, x, A, B, None, zero, reverse)
    decay = torch.exp(step.sum(2)[..., None] * A)
    incoming = [h]
    for k in reversed(range(chunks)) if reverse else range(chunks):
        incoming.append(decay[:, k] * incoming[-1] + local[:, k])
    h = incoming.pop()
    if reverse:
        incoming.reverse()
    y, _ = _advance(step, x, A, B, C, torch.stack(incoming, 1), reverse)
    return y.flatten(1, 2), h


def _advance(
    step: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor | None, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Advance all chunks together; h is (b, chunk, d, n). Without C the outputs are empty."""
    channels = step.shape[3]
    tokens = range(step.shape[2])
    outputs = []
    for t in reversed(tokens) if reverse else tokens:
        step_t = step[:, :, t]
        drive = (step_t * x[:, :, t])[..., None] * _spread(B[:, :, t], channels)
        h = torch.addcmul(drive, torch.exp(step_t[..., None] * A), h)
        if C is not None:
            outputs.append((h * _spread(C[:, :, t], channels)).sum(-1))
    if reverse:
        outputs.reverse()
    return torch.stack(outputs, 2) if outputs else x, h


def _spread(weights: Tensor, channels: int) -> Tensor:
    """Shape (b, chunk, g, n) to multiply (b, chunk, d, n)."""
    groups = weights.shape[2]
    return weights if groups == 1 else weights.repeat_interleave(channels // groups, 2)
