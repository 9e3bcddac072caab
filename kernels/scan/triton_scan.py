"""The scan on a GPU as PyTorch operators.

`triton_kernels` holds the forward kernels and says how they work, `triton_backward` the gradients.
`triton_plan` cuts sequences into chunks, by the tuned table; `triton_launch` hands tensors over. An
operator scans one direction, or both directions of a layer in the same launches, and keeps nothing
for gradients but its inputs. Triton is imported with the first scan.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """One direction of `gigavim.kernels.selective_scan`; without C only states are asked for."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor | None = None
    D: Tensor | None = None
    z: Tensor | None = None
    dt_bias: Tensor | None = None
    h: Tensor | None = None


def unavailable() -> str | None:
    """Return why Triton cannot run here, or None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None if torch.cuda.is_available() else "PyTorch finds no GPU"


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
    """Run `gigavim.kernels.selective_scan` on a GPU.

    With `offsets`, int64, shape (k + 1,), the batch is 1 and holds k sequences one after another,
    the i-th from token ``offsets[i]`` to ``offsets[i + 1]``. h is then (k, d, n).
    """
    inputs = Inputs(u, dt, A, B, C, D, z, dt_bias, h)
    y, last = scan_directions([inputs], [reverse], dt_softplus=dt_softplus, offsets=offsets)
    return y, last


def scan_summary(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    u: Tensor,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    reverse: bool = False,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `gigavim.kernels.scan_summary` on a GPU, in one pass."""
    inputs = Inputs(u, dt, A, B, dt_bias=dt_bias)
    s, h = scan_directions([inputs], [reverse], dt_softplus=dt_softplus, offsets=offsets)
    return s, h


def bidirectional_scan(
    forward: Inputs, backward: Inputs, *, dt_softplus: bool = False, offsets: Tensor | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Scan forwards and backwards in the same launches.

    Returns
    -------
    forward, backward
        y and h of each direction, as of `selective_scan`.
    """
    y, h, y_reverse, h_reverse = scan_directions(
        [forward, backward], [False, True], dt_softplus=dt_softplus, offsets=offsets
    )
    return (y, h), (y_reverse, h_reverse)


def scan_directions(
    directions: Sequence[Inputs],
    reverse: Sequence[bool],
    *,
    dt_softplus: bool,
    offsets: Tensor | None = None,
    chunk: int = 0,
) -> list[Tensor]:
    """Return y and h of each direction; without C the sum s of the step sizes in place of y.

    `chunk` fixes the tokens of a chunk, for tests.

    Raises
    ------
    ValueError
        If the directions have different shapes.
    """
    for x in directions:
        if any(
            a is not b and (a is None or b is None or a.shape != b.shape)
            for a, b in zip(x[:5], directions[0][:5], strict=True)
        ):
            raise ValueError("u, dt, A, B and C must have the same shapes in both directions")
    tensors = []
    for u, dt, A, B, C, D, z, dt_bias, h in directions:
        state = torch.float64 if u.dtype == torch.float64 else torch.float32
        # Operators have no lists of optional tensors: an empty one stands for None.
        h = None if h is None else h.to(state)
        given = (u, dt, A.to(state), B, C, D, z, dt_bias, h)
        tensors += [u.new_empty(0) if x is None else x for x in given]
    return torch.ops.gigavim.triton_scan(tensors, offsets, dt_softplus, list(reverse), chunk)  # type: ignore[no-any-return]


def _given(tensors: Sequence[Tensor]) -> list[Tensor | None]:
    return [None if x.shape == (0,) else x for x in tensors]


def _directions(tensors: Sequence[Tensor]) -> list[Inputs]:
    given, width = _given(tensors), len(Inputs._fields)
    return [Inputs(*given[i : i + width]) for i in range(0, len(given), width)]  # type: ignore[arg-type]


@torch.library.custom_op(
    "gigavim::triton_scan",
    mutates_args=(),
    schema="(Tensor[] tensors, Tensor? offsets, bool softplus, bool[] reverse, int chunk)"
    " -> Tensor[]",
)
def _scan_op(
    tensors: list[Tensor], offsets: Tensor | None, softplus: bool, reverse: list[bool], chunk: int
) -> list[Tensor]:
    from gigavim.kernels.scan import triton_launch

    return triton_launch.forward(_directions(tensors), offsets, softplus, reverse, chunk)


@_scan_op.register_fake
def _(
    tensors: list[Tensor], offsets: Tensor | None, softplus: bool, reverse: list[bool], chunk: int
) -> list[Tensor]:
    results = []
    for x in _directions(tensors):
        sequences = x.u.shape[0] if offsets is None else offsets.shape[0] - 1
        s = x.A.new_empty(sequences, x.A.shape[0])
        h = x.A.new_empty(sequences, *x.A.T.shape).mT
        results += [s if x.C is None else x.u.new_empty(x.u.shape), h]
    return results


@torch.library.custom_op(
    "gigavim::triton_scan_backward",
    mutates_args=(),
    schema="(Tensor[] tensors, Tensor[] gradients, Tensor? offsets, bool softplus, bool[] reverse,"
    " int chunk) -> Tensor[]",
)
def _backward_op(
    tensors: list[Tensor],
    gradients: list[Tensor],
    offsets: Tensor | None,
    softplus: bool,
    reverse: list[bool],
    chunk: int,
) -> list[Tensor]:
    from gigavim.kernels.scan import triton_launch

    found = triton_launch.backward(
        _directions(tensors), _given(gradients), offsets, softplus, reverse, chunk
    )
    return [x.new_empty(x.shape) if g is None else g for x, g in zip(tensors, found, strict=True)]


@_backward_op.register_fake
def _(
    tensors: list[Tensor],
    gradients: list[Tensor],
    offsets: Tensor | None,
    softplus: bool,
    reverse: list[bool],
    chunk: int,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, offsets, *ctx.options = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *([] if offsets is None else [offsets]))
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    tensors, rest = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    offsets = rest[0] if rest else None
    given = [tensors[0].new_empty(0) if x is None else x for x in gradients]
    found = torch.ops.gigavim.triton_scan_backward(list(tensors), given, offsets, *ctx.options)
    return found, None, None, None, None


_scan_op.register_autograd(_differentiate, setup_context=_save)
