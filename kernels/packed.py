"""Sequences of different lengths, end to end in a batch of one.

Sequence i of k is tokens ``offsets[i]`` to ``offsets[i + 1]``; the offsets are int64, (k + 1,).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def count_sequences(offsets: Tensor, x: Tensor) -> int:
    """Return k; raise ValueError unless the offsets may belong to x, (b, l, d), by their shape."""
    if len(x) != 1 or offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype != torch.int64:
        raise ValueError(
            "offsets must be int64, (k + 1,), of tokens (1, l, d), "
            f"not {offsets.dtype}, {tuple(offsets.shape)}, of {tuple(x.shape)}"
        )
    return len(offsets) - 1


def check_offsets(offsets: Tensor, length: int) -> None:
    """Raise ValueError unless the offsets cut `length` tokens into sequences."""
    if offsets[0] != 0 or offsets[-1] != length or (offsets.diff() < 0).any():
        raise ValueError(f"offsets must rise from 0 to {length}, not {offsets.tolist()}")


def scan_each(
    scan: Callable[..., tuple[Tensor, Tensor]],
    offsets: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h: Tensor | None,
    **options: bool,
) -> tuple[Tensor, Tensor]:
    """Run a `selective_scan` of whole sequences on one after the other; h is (k, d, n)."""
    check_offsets(offsets, u.shape[1])
    outputs, states = [u[:, :0]], [u.new_zeros(0, *A.shape)]
    for i, (start, stop) in enumerate(pairwise(offsets.tolist())):

        def own(tensor: Tensor, tokens: slice = slice(start, stop)) -> Tensor:
            return tensor if tensor.ndim == 2 else tensor[:, tokens]

        y, last = scan(
            own(u),
            own(dt),
            A,
            own(B),
            own(C),
            D,
            None if z is None else own(z),
            dt_bias,
            h=None if h is None else h[i : i + 1],
            **options,
        )
        outputs.append(y)
        states.append(last)
    return torch.cat(outputs, 1), torch.cat(states)
